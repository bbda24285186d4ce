"""One image file as pixels: upright, checked, without distortion.  Needs Pillow only, for ``helpers.score``."""

import re
from pathlib import Path

from PIL import Image, ImageOps

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class DataError(RuntimeError):
    """Data is missing, damaged or cannot be written; the message says what to do."""


def open_photo(path: Path, mode: str = "RGB") -> tuple[Image.Image, str]:
    """An image file upright as EXIF says, transparent pixels on black, in a mode of Pillow; and the mode it was stored in.

    Raises DataError for damage, and for more than 8 bits a channel.
    """
    try:
        with Image.open(path) as file:
            deep = re.search(";16[BLN]", str(file.tile)) is not None  # colours that Pillow would cut to 8 bits silently
            image, stored = ImageOps.exif_transpose(file), file.mode
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise DataError(f"{path} cannot be read as an image ({error}): replace or delete it") from error
    if deep or stored.startswith(("I", "F")):  # only their owner knows which range of brightness matters
        raise DataError(f"{path} has more than 8 bits a channel: convert all images to 8 bits in the same way")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert(mode), stored


def shrunk(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height after the longer of both became ``side``; ``helpers.export`` writes the same rule into a file."""
    scale = side / max(width, height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
