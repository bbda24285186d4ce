"""Image files of any size and format as one uint8 tensor: checked, converted and resized."""

import functools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pad, pil_to_tensor
from tqdm.auto import tqdm

from helpers.data.photo import ENDINGS, DataError, open_photo, shrunk
from helpers.runtime import say_once, show_path

NORMAL_NAMES = ("good", "ok", "normal")  # of sub-folders with normal test images


def list_images(folder: Path, nested: bool = False) -> list[Path]:
    """The image files in ``folder`` (``nested``: and below it), sorted by name.  Names once what else is there."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = [path for path in (folder.rglob("*") if nested else folder.iterdir()) if path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    images = sorted(path for path in found if path.suffix.lower() in ENDINGS)
    others = Counter(path.suffix.lower() for path in found if path.suffix.lower() not in ENDINGS)
    others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(others.items()))
    said = f"{', '.join(ENDINGS)} are read; left out: {others or 'none'}"
    if not images:
        raise DataError(f"no image in {folder}: {said}")
    if others:
        say_once(f"{show_path(folder)}: {said}")
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


def read_image(
    path: Path, size: int | None = None, grey: bool = False, resampling: str = "bicubic"
) -> tuple[Tensor, str]:
    """One image file as (C, H, W) uint8, one channel if ``grey``, else three; and the mode it was stored in.

    size: height and width after resizing; None keeps them.  An image that is no square keeps its proportions: its
    longer side becomes ``size``, and its edge is repeated to both sides of the shorter one.
    resampling: a name of Pillow's; "bicubic" is what ``helpers.export`` writes into a detector's file.
    Raises DataError for damage, for more than 8 bits a channel, and for a side below 8 pixels or ``size`` / 4.
    """
    image, stored = open_photo(path, "L" if grey else "RGB")
    if min(image.size) < max(8, (size or 0) / 4):
        raise DataError(f"{path} has {image.size} pixels: take a larger picture, or choose a smaller size")
    return pil_to_tensor(_square(image, size, Image.Resampling[resampling.upper()], "edge")), stored


def read_mask(path: Path, size: int) -> Tensor:
    """A mask file as (size, size) bool: True where it is brighter than half, so that noise does not count."""
    mask, _ = open_photo(path, "L")
    if 0 < mask.getextrema()[1] < 128:
        raise DataError(f"the mask {path} marks nothing: its brightest value is {mask.getextrema()[1]} of 255")
    return pil_to_tensor(_square(mask, size, Image.Resampling.NEAREST, "constant"))[0] > 127


def read_masks(root: Path, images: Sequence[Path], size: int) -> tuple[Tensor, Tensor]:
    """Masks (N, size, size) of test images, and (N,) bool: whether there is one.

    ``ground_truth/<type>`` in ``root`` holds them, named as the images or ``NAME_mask.png``.
    """
    files = (root / "ground_truth").glob("*/[!.]*")
    by_name = {(path.parent.name, path.stem.removesuffix("_mask")): path for path in files}
    found = [by_name.get((path.parent.name, path.stem)) for path in images]
    masks = [torch.zeros(size, size, dtype=torch.bool) if path is None else read_mask(path, size) for path in found]
    return torch.stack(masks), torch.tensor([path is not None for path in found])


def _square(image: Image.Image, size: int | None, how: Image.Resampling, filling: str) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    image = image.resize(shrunk(*image.size, size), how)
    left, top = ((size - side) // 2 for side in image.size)
    return pad(image, [left, top, size - left - image.width, size - top - image.height], padding_mode=filling)


def read_images(paths: Sequence[Path], size: int, grey: bool = False, resampling: str = "bicubic") -> Tensor:
    """(N, C, size, size) uint8 images, decoded in parallel; the last are kept in memory until a file changes."""
    return _decoded(tuple((path, path.stat().st_mtime_ns) for path in paths), size, grey, resampling).clone()


@functools.lru_cache(maxsize=8)
def _decoded(files: tuple[tuple[Path, int], ...], size: int, grey: bool, resampling: str) -> Tensor:
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        results = pool.map(lambda file: read_image(file[0], size, grey, resampling), files)
        images, modes = zip(*tqdm(results, "decoding images", len(files), leave=False, delay=2), strict=True)
    if len(set(modes)) > 1:
        mixed = ", ".join(f"{count} {mode}" for mode, count in Counter(modes).items())
        say_once(f"{show_path(files[0][0].parent)}: {mixed} images, all converted to {'grey' if grey else 'colour'}")
    return torch.stack(images)
