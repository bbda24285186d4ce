"""Any folder of good images: checked, split, and put to the test without a single real defect."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helpers.data.defects import paint
from helpers.data.download import DataError
from helpers.data.images import list_images, read_images
from helpers.data.loader import Augment, OneClassData, Split, good_and_painted
from helpers.data.samples import keycaps, sample_folder
from helpers.runtime import Run, say_once, show_path

FEWEST = 10  # different good images
NORMAL_NAMES = ("good", "ok", "normal")  # of sub-folders with normal test images
CARD = ("golden sample", "darker", "handmade defects", "shifted", "another object")  # rows of the stress card
PAINTED = ("scratch", "spot")  # the handmade defects
DARKER, SHIFTED = 1 / 3, 0.25  # factor of the brightness; part of the side


class Folder(OneClassData):
    """Good images of one part from a folder, nested or flat, of any sizes and formats.

    path: only good images.  size, grey: of the tensors the network gets.
    test: a folder with a sub-folder for each kind (good, ok or normal: normal; all others: anomalous).
        Without one the test split is the stress card (``stress_card``), made from good images that are
        neither trained on nor used for the threshold.
    other: a folder with pictures of another object, for the stress card (rendered keys if None).
    batch_size, augment, seed, images_per_epoch: as for every data set.
    held_out: share of the good images kept for the threshold; without a test folder, as many again for
        the card.  The anomalous validation images are held-out images with painted defects, to watch.
    limit: at most so many images of each label in each split (smoke runs).

    Prints one line about images that are there more than once, and leaves the copies out.
    Raises DataError for fewer than ``FEWEST`` different images, for flat and for tiny ones, and for a test
    folder without normal or without anomalous images; else what ``read_images`` raises.
    """

    def __init__(
        self,
        run: Run,
        path: Path | str,
        size: int = 128,
        grey: bool = False,
        test: Path | str | None = None,
        other: Path | str | None = None,
        batch_size: int = 16,
        seed: int = 0,
        augment: Augment | None = None,
        held_out: float = 0.2,
        images_per_epoch: int | None = None,
        limit: int | None = None,
    ):
        if not 0 < held_out <= 0.4:
            raise ValueError(f"held_out is the share of images kept for the threshold, in (0, 0.4]: got {held_out}")
        super().__init__(run.device, batch_size, 0, seed, augment, images_per_epoch)
        path, cache = Path(path), run.data_dir / "cache"
        good = _good_images(path, size, grey, cache)
        self.dataset = _name(path)
        order = torch.randperm(len(good), generator=torch.Generator().manual_seed(seed))
        kept = max(2, round(held_out * len(good)))
        held, rest = good[order[:kept]], order[kept:]
        if test is None:
            self.kinds = CARD
            keys = keycaps(sample_folder(run) / "keycaps") / "F12" if other is None else Path(other)
            foreign = read_images(list_images(keys, nested=True), size, grey, cache)
            golden, rest = good[rest[:kept]][:limit], rest[kept:]
            self.test, tested = stress_card(golden, foreign, seed), "stress card"
        else:
            self.test, self.kinds = _by_kind(Path(test), size, grey, cache)
            if limit is not None:
                self.test = self.test.first_of_each(limit)
            tested = ", ".join(self.kinds[1:])
        self.train = _rows([good[rest[:limit]]])
        self.protocol = f"one-class (no labels), tested on {tested}"
        self.kinds = (*self.kinds, "painted")
        self.validation = _with_painted(held[:limit], len(self.kinds) - 1, seed)


def stress_card(golden: Tensor, other: Tensor, seed: int = 0) -> Split:
    """Five rows of test images from good ones: as they are, and changed in four ways that a sphere must notice.

    golden: (N, C, H, W) uint8, good images that were not trained on; other: (M, C, H, W), another object.
    Rows in the order of ``CARD``, N images each (as many of the last as there are): a third as bright; with a painted scratch
    and spot; moved by a quarter of the side, in one of four directions; the other object.
    """
    random = np.random.default_rng(seed)
    darker = golden.float().mul(DARKER).round().byte()
    handmade = torch.stack([_painted(image, random)[0] for image in golden])
    moved = torch.stack(
        [_moved(image, int(turn)) for turn, image in zip(random.integers(4, size=len(golden)), golden, strict=True)]
    )
    return _rows((golden, darker, handmade, moved, other[: len(golden)]))


def _painted(image: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A scratch and a spot on one image, and the mask of both."""
    masks = []
    for kind in PAINTED:
        image, mask = paint(image, kind, random)
        masks.append(mask)
    return image, torch.stack(masks).any(0)


def _moved(image: Tensor, turn: int) -> Tensor:
    """The image moved by a quarter of its side; what was not pictured repeats the edge."""
    step = round(SHIFTED * image.shape[-1])
    image = torch.rot90(image, turn, (1, 2))
    image = torch.cat([image[:, :, :1].expand(-1, -1, step), image[:, :, :-step]], 2)
    return torch.rot90(image, -turn, (1, 2))


def _with_painted(good: Tensor, kind: int, seed: int) -> Split:
    """Good images, then the same with painted defects and their masks."""
    random = np.random.default_rng(seed)
    return good_and_painted(good, [(*_painted(image, random), kind) for image in good])


def _rows(rows: Sequence[Tensor]) -> Split:
    """Images of kind 0, which are normal, of kind 1, 2 ..."""
    kind = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    return Split(torch.cat(list(rows)), (kind > 0).long(), kind)


def _good_images(path: Path, size: int, grey: bool, cache: Path) -> Tensor:
    """The images of a folder, each once; DataError for what cannot be learned from."""
    paths = list_images(path, nested=True)
    _refuse_tiny(paths, size)
    images = read_images(paths, size, grey, cache)
    flat = [
        file
        for file, image in zip(paths, images, strict=True)
        if image.flatten(1).amax(1).eq(image.flatten(1).amin(1)).all()
    ]
    if flat:
        raise DataError(
            f"{len(flat)} of {len(paths)} images in {path} show one flat colour ({_names(flat)}): "
            "a black frame or a failed exposure teaches nothing; remove them"
        )
    same = defaultdict(list)
    for place, image in enumerate(images):
        same[hashlib.md5(image.numpy().tobytes(), usedforsecurity=False).digest()].append(place)
    copies = [paths[place] for places in same.values() for place in places[1:]]
    if copies:
        say_once(
            f"{show_path(path)}: {len(copies)} of {len(paths)} images are copies of others and left out ({_names(copies)}): "
            "an image both learned and held out would make the threshold too low"
        )
    if len(same) < FEWEST:
        raise DataError(
            f"{path} holds {len(same)} different images: at least {FEWEST} are needed, most to learn what is normal, "
            "two or more to choose the threshold, and as many to test it; 50 or more are better"
        )
    return images[sorted(places[0] for places in same.values())]


def _refuse_tiny(paths: Sequence[Path], size: int) -> None:
    """DataError for images with less than a quarter of the side the network gets."""
    tiny = []
    for path in paths:
        try:
            with Image.open(path) as file:  # reads the header only
                if min(file.size) < size / 4:
                    tiny.append(path)
        except OSError:
            continue  # read_images says what is wrong with it
    if tiny:
        raise DataError(
            f"{len(tiny)} of {len(paths)} images in {paths[0].parent} are smaller than {size // 4} pixels ({_names(tiny)}): enlarged to "
            f"{size} they would be blur; take larger pictures or choose a smaller size"
        )


def _by_kind(folder: Path, size: int, grey: bool, cache: Path) -> tuple[Split, tuple[str, ...]]:
    """The test images by sub-folder, normal ones first, and the names of the kinds."""
    if not folder.is_dir():
        raise DataError(f"there is no test folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    normal = [path for path in found if path.name.lower() in NORMAL_NAMES]
    kinds = [path for path in found if path not in normal]
    if len(normal) != 1 or not kinds:
        raise DataError(
            f"the test folder {folder} needs one sub-folder named {', '.join(NORMAL_NAMES[:-1])} or {NORMAL_NAMES[-1]}, and one for each kind of "
            f"defect: found {', '.join(path.name for path in found) or 'none'}"
        )
    rows = [read_images(list_images(path, nested=True), size, grey, cache) for path in (*normal, *kinds)]
    return _rows(rows), (normal[0].name, *(path.name for path in kinds))


def _name(path: Path) -> str:
    """The folder's name, or that of the first folder above it that says what it holds."""
    parts = [part for part in path.resolve().parts if part.lower() not in (*NORMAL_NAMES, "train", "images")]
    return parts[-1]


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
