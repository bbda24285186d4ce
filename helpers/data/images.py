"""Image files of any sort as one uint8 tensor: checked, converted, resized, and cached decoded."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from helpers.data.download import DamagedFile, DataError
from helpers.runtime import say_once, show_path, whole_file

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
CONVERTED = {"1": "black and white", "L": "grey", "P": "palette", "CMYK": "CMYK", "LA": "alpha", "RGBA": "alpha"}
CONVERTED |= {"PA": "alpha", "La": "alpha", "RGBa": "alpha", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV"}


def list_images(folder: Path, nested: bool = False) -> list[Path]:
    """The image files in ``folder``, sorted by name; with ``nested`` those of its sub-folders too.

    Raises DataError if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = folder.rglob("*") if nested else folder.iterdir()
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    images = sorted(path for path in visible if path.suffix.lower() in ENDINGS and path.is_file())
    if not images:
        raise DataError(f"no image in {folder}: expected files ending in {', '.join(ENDINGS)}")
    return images


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Pillow's errors as a DamagedFile that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{path} cannot be read as {what} ({error}): replace or delete it") from error


def read_image(path: Path, size: int | None = None, grey: bool = False) -> tuple[Tensor, str]:
    """One image file as (C, H, W) uint8, and the mode it was stored in.

    size: height and width after resizing (Lanczos; a picture that is not square is squeezed); None keeps it.
    grey: one channel instead of three.
    Palette, CMYK and other 8-bit modes are converted; transparent pixels are put on black; the camera's
    rotation mark (EXIF) is obeyed.  Raises DamagedFile for a file that cannot be decoded in full, and
    DataError for 16-bit and float images, whose brightness range only their owner knows.
    """
    with _named(path, "an image"), Image.open(path) as file:
        mode = file.mode
        packed = str(file.tile[0][3]) if file.tile else ""  # 16-bit colour would be cut to 8 bits without a word
        file.load()
        if mode.startswith(("I", "F")) or re.search(r";16[BLN]", packed):
            raise DataError(
                f"{path} has more than 8 bits a channel (mode {mode}): convert it to 8 bits with the brightness "
                "range that your parts need, the same for all images"
            )
        image = ImageOps.exif_transpose(file)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if grey else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1), mode


def read_mask(path: Path, image: Path, size: int) -> Tensor:
    """A mask file as (size, size) bool: True where it is not black.

    image: the picture it belongs to.  Raises DataError if the two differ in size, DamagedFile as ``read_image``.
    """
    with _named(image, "an image"), Image.open(image) as picture:
        width, height = picture.size
        if width != height and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # seen turned by 90 degrees
            width, height = height, width
    with _named(path, "a mask"), Image.open(path) as file:
        mask = ImageOps.exif_transpose(file)
        if mask.size != (width, height):
            raise DataError(
                f"the mask {path} is {mask.width}x{mask.height} pixels, its image {image.name} is "
                f"{width}x{height}: a mask marks the pixels of its image one by one"
            )
        mask = mask.convert("L").resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask) > 0)


def read_images(paths: Sequence[Path], size: int, grey: bool = False, cache: Path | None = None) -> Tensor:
    """(N, C, size, size) uint8 images of files, decoded in parallel.

    cache: a folder for the decoded tensor, which the next call reads instead, as long as no file
    changed its name, length or time.  A cache that cannot be written or read is done without.
    Says once which files were converted.  Raises what ``read_image`` raises.
    """
    if size < 8:
        raise ValueError(f"size is the side of the images in pixels, at least 8: got {size}")
    stored = _cache_file(paths, size, grey, cache)
    if stored is not None and stored.exists():
        try:
            return torch.load(stored, weights_only=True)
        except Exception:  # cut short or of another torch: decoded again
            with suppress(OSError):
                stored.unlink(missing_ok=True)
    from tqdm.auto import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside of Python's lock
        decoded = pool.map(lambda path: read_image(path, size, grey), paths)
        bar = tqdm(decoded, desc="decoding images", total=len(paths), disable=len(paths) < 100, leave=False)
        try:
            images, modes = zip(*bar, strict=True)
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    _tell_conversions(Counter(modes), grey, Path(paths[0]).parent)
    whole = torch.stack(images)
    if stored is not None:
        _store(whole, stored)
    return whole


def _tell_conversions(modes: Counter, grey: bool, folder: Path) -> None:
    odd = Counter()
    for mode, count in modes.items():
        if mode != "RGB" and not (grey and mode == "L"):
            odd[CONVERTED.get(mode, mode)] += count
    if odd and set(modes) != {"L"}:
        names = ", ".join(f"{count} {name}" for name, count in odd.items())
        say_once(f"{show_path(folder)}: of {modes.total()} images converted to {'grey' if grey else 'colour'}: {names}")


def _cache_file(paths: Sequence[Path], size: int, grey: bool, cache: Path | None) -> Path | None:
    """Where the decoded images are kept; the name changes with every file's name, length and time."""
    if cache is None:
        return None
    digest = hashlib.md5(f"{size} {grey}".encode(), usedforsecurity=False)
    for path in paths:
        found = Path(path).stat()
        digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    tag = hashlib.md5(f"{Path(paths[0]).parent} {size} {grey}".encode(), usedforsecurity=False).hexdigest()[:8]
    return cache / f"{tag}-{digest.hexdigest()[:16]}.pt"


def _store(images: Tensor, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            torch.save(images, unfinished)
    except (OSError, RuntimeError):  # RuntimeError: what torch says of a full disk
        return
    for old in path.parent.glob(f"{path.name.split('-')[0]}-*.pt"):  # of the same folder before it changed
        if old != path:
            old.unlink(missing_ok=True)
