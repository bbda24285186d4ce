"""Image files of any size and format as one uint8 tensor: checked, converted and resized."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from helpers.data.download import DataError
from helpers.runtime import say_once, show_path

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
NORMAL_NAMES = ("good", "ok", "normal")  # of sub-folders with normal test images


def list_images(folder: Path, nested: bool = False) -> list[Path]:
    """The image files in ``folder`` (``nested``: and below it), sorted by name.  Names once what else is there."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = [path for path in (folder.rglob("*") if nested else folder.iterdir()) if path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    images = sorted(path for path in found if path.suffix.lower() in ENDINGS)
    others = Counter(path.suffix.lower() for path in found if path.suffix.lower() not in ENDINGS)
    left_out = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(others.items())) or "none"
    if not images:
        raise DataError(f"no image in {folder}: {', '.join(ENDINGS)} are read; left out: {left_out}")
    if others:
        say_once(f"{show_path(folder)}: {', '.join(ENDINGS)} are read; left out: {left_out}")
    return images


def list_types(folder: Path, max_images: int | None = None) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Test images by sub-folder, normal ones first: their files, their defect types (N,), and the types' names."""
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    names.sort(key=lambda name: name.lower() not in NORMAL_NAMES)
    if [name.lower() in NORMAL_NAMES for name in names[:2]] != [True, False]:
        raise DataError(f"{folder} needs a sub-folder named good, ok or normal, and one for each defect: found {names}")
    files = [list_images(folder / name, nested=True)[:max_images] for name in names]
    defect_type = torch.tensor([place for place, paths in enumerate(files) for _ in paths])
    return sum(files, []), defect_type, tuple(names)


def read_image(path: Path, size: int | None = None, grey: bool = False) -> tuple[Tensor, str]:
    """One image file as (C, H, W) uint8, one channel if ``grey``, else three; and the mode it was stored in.

    size: height and width after resizing; None keeps them.
    Raises DataError for damage, for more than 8 bits a channel, and for a side below 8 pixels or ``size`` / 4.
    """
    image, stored = _load(path, "L" if grey else "RGB")
    if min(image.size) < max(8, (size or 0) / 4):
        raise DataError(f"{path} has {image.size} pixels: take a larger picture, or choose a smaller size")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return pil_to_tensor(image), stored


def read_mask(path: Path, size: int) -> Tensor:
    """A mask file as (size, size) bool: True where it is brighter than half, so that noise does not count."""
    mask, _ = _load(path, "L")
    if 0 < mask.getextrema()[1] < 128:
        raise DataError(f"the mask {path} marks nothing: its brightest value is {mask.getextrema()[1]} of 255")
    return pil_to_tensor(mask.resize((size, size), Image.Resampling.NEAREST))[0] > 127


def _load(path: Path, mode: str) -> tuple[Image.Image, str]:
    """An image file upright as EXIF says, transparent pixels on black, in a mode of Pillow; and its own mode."""
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


def read_images(paths: Sequence[Path], size: int, grey: bool = False) -> Tensor:
    """(N, C, size, size) uint8 images, decoded in parallel; the last are kept in memory until a file changes."""
    return _decoded(tuple((path, path.stat().st_mtime_ns) for path in paths), size, grey).clone()


@functools.lru_cache(maxsize=8)
def _decoded(files: tuple[tuple[Path, int], ...], size: int, grey: bool) -> Tensor:
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        results = pool.map(lambda file: read_image(file[0], size, grey), files)
        images, modes = zip(*tqdm(results, "decoding images", len(files), leave=False, delay=2), strict=True)
    if len(set(modes)) > 1:
        mixed = ", ".join(f"{count} {mode}" for mode, count in Counter(modes).items())
        say_once(f"{show_path(files[0][0].parent)}: {mixed} images, all converted to {'grey' if grey else 'colour'}")
    return torch.stack(images)
