"""Any folder of good images: checked, split, and tested without a single real defect."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.data.batches import Augment, Split, good_and_painted, require
from helpers.data.images import NORMAL_NAMES, list_images, list_types, read_images, read_masks
from helpers.data.one_class import OneClassData
from helpers.data.photo import DataError
from helpers.data.samples import sample
from helpers.data.synthetic import paint
from helpers.runtime import Run, say_once, show_path

FEWEST = 10  # different good images
CARD = ("golden sample", "darker", "handmade defects", "shifted", "another object")  # rows of the stress card


class Folder(OneClassData):
    """Good images of one part from a folder, nested or flat, of any sizes and formats.  Copies are left out.

    test: a folder with a sub-folder for each defect type (``list_types``); masks may be beside it, in ``ground_truth``.
        Without one, as many good images as are held out make a stress card.
    held_out: share kept for the threshold, in [0, 0.4], and once more with painted defects, to watch; 0 keeps none,
        for models that leave one image out at a time, and there is then no stress card.
        fold: 1 keeps the next images instead, and so on.
    max_images: at most so many images of each label in each split.  resampling: as for ``read_image``.
    """

    def __init__(
        self,
        run: Run,
        path: Path | str,
        size: int = 128,
        grey: bool = False,
        test: Path | str | None = None,
        batch_size: int = 16,
        seed: int = 0,
        augment: Augment | None = None,
        held_out: float = 0.2,
        images_per_epoch: int | None = None,
        max_images: int | None = None,
        resampling: str = "bicubic",
        fold: int = 0,
    ):
        require((0 <= held_out <= 0.4, f"held_out, the share kept for the threshold, is in [0, 0.4]: got {held_out}"))
        super().__init__(run.device, batch_size, 0, seed, augment, images_per_epoch)
        path, test = Path(path).expanduser(), None if test is None else Path(test).expanduser()
        _require_only_good(path, test)
        good = _different_images(path, size, grey, resampling)
        parts = [part for part in path.resolve().parts if part.lower() not in (*NORMAL_NAMES, "train", "images")]
        self.dataset, self.subset = parts[-1], f"{len(good)} good images"
        good = good[torch.randperm(len(good), generator=torch.Generator().manual_seed(seed))]
        kept = max(2, round(held_out * len(good))) if held_out else 0
        good = good.roll(-fold * kept, 0)
        held, rest = good[:kept][:max_images], good[kept:]
        if test is None and not held_out:
            self.test, names, self.tested_on = good_and_painted(good[:0]), CARD[:1], "nothing"
        elif test is None:
            other = read_images(list_images(sample("keycaps") / "F12"), size, grey, resampling)
            self.test, names, self.tested_on = stress_card(rest[:kept][:max_images], other, seed), CARD, "stress card"
            rest = rest[kept:]
        else:
            paths, defect_type, names = list_types(test)
            label, (mask, has_mask) = (defect_type > 0).long(), read_masks(test.resolve().parent, paths, size)
            masks = (mask, has_mask | (label == 0)) if has_mask.any() else (None, None)
            self.test = Split(read_images(paths, size, grey, resampling), label, defect_type, *masks)
            known = {image.numpy().tobytes() for image in good}
            if twice := sum(image.numpy().tobytes() in known for image in self.test.normal().images):
                raise DataError(f"{twice} good photographs in {test} are in {path}, too: move them, do not copy")
            self.test = self.test if max_images is None else self.test.first_of_each(max_images)
            self.tested_on = ", ".join(names[1:])
        if max_images is not None and max_images < len(rest):
            self.subset += f", at most {max_images} of each label"
        self.defect_types = (*names, "painted")
        self.train, random = good_and_painted(rest[:max_images]), np.random.default_rng(seed)
        self.validation = good_and_painted(held, [(*_painted(image, random), len(names)) for image in held])


def stress_card(golden: Tensor, other: Tensor, seed: int = 0) -> Split:
    """Five rows of test images, see ``CARD``, from good images and those of another object, (N, C, H, W) uint8."""
    random, count = np.random.default_rng(seed), len(golden)
    darker = golden.float().div(3).round().byte()
    handmade = torch.stack([_painted(image, random)[0] for image in golden])
    turns = random.integers(4, size=count).tolist()
    moved = torch.stack([_moved(image, turn) for image, turn in zip(golden, turns, strict=True)])
    images = torch.cat([golden, darker, handmade, moved, other[:count]])
    row = torch.arange(len(CARD)).repeat_interleave(count)[: len(images)]
    return Split(images, (row > 0).long(), row)


def _require_only_good(folder: Path, test: Path | None) -> None:
    """DataError if what lies below a folder of good images seems to hold others."""
    if test is not None and test.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{test} lies in {folder}, where all images are learned as good: move it elsewhere")
    for place in (folder, *(part for part in folder.rglob("[!.]*") if part.is_dir())):
        names = {part.name.lower(): part for part in place.glob("[!.]*") if part.is_dir()}
        good = [part for name, part in names.items() if name in NORMAL_NAMES]
        if {"test", "ground_truth"} & set(names) or (good and len(names) > 1):
            advice = f"give {good[0]}" if good else "give the sub-folder with good images only"
            found = f"{place} holds {', '.join(sorted(names))}"
            raise DataError(f"{found}, and all images would be learned as good: {advice}")


def _different_images(folder: Path, size: int, grey: bool, resampling: str) -> Tensor:
    """The images of a folder, each once.  Raises DataError if they are too few."""
    paths = list_images(folder, nested=True)
    images = read_images(paths, size, grey, resampling)
    for path, image in zip(paths, images.flatten(2), strict=True):
        if image.amax(1).equal(image.amin(1)):
            raise DataError(f"{path} shows one flat colour, as a failed exposure does: remove it")
    first = {image.numpy().tobytes(): place for place, image in reversed(list(enumerate(images)))}
    kept = sorted(first.values())
    if len(kept) < len(images):
        say_once(f"{show_path(folder)}: {len(images) - len(kept)} of {len(images)} images are copies and left out")
    if len(kept) < FEWEST:
        raise DataError(f"{folder} holds {len(kept)} different images: {FEWEST} are needed, 50 or more are better")
    small = F.interpolate(images[kept].float(), 32, mode="area").flatten(1)
    apart = torch.cdist(small, small).fill_diagonal_(torch.inf).amin(1) / small.shape[1] ** 0.5
    # root mean square in grey levels of 255: a JPEG copy differs by 0.5, another nut by 4 or more
    if alike := int((apart < 1).sum()):
        pairs = f"{show_path(folder)}: {alike} of {len(kept)} photographs hardly differ from another one"
        say_once(f"{pairs}: if a part is shown twice, keep one of them, or the threshold is too low")
    return images[kept]


def _painted(image: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A scratch and a spot on one image, and the mask of both."""
    image, scratch = paint(image, "scratch", random)
    image, spot = paint(image, "spot", random)
    return image, scratch | spot


def _moved(image: Tensor, turn: int) -> Tensor:
    """The image moved by a quarter, in one of four directions; what was not pictured repeats the edge."""
    step = round(image.shape[-1] / 4)
    image = torch.rot90(image, turn, (1, 2))
    image = torch.cat([image[:, :, :1].expand(-1, -1, step), image[:, :, :-step]], 2)
    return torch.rot90(image, -turn, (1, 2))
