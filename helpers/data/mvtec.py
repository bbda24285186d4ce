"""MVTec AD and every folder in its layout: good images to train on, defect types with masks to test on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.data.batches import Augment, Split, good_and_painted, require
from helpers.data.images import list_images, list_types, read_images, read_masks
from helpers.data.one_class import OneClassData
from helpers.data.samples import find_data
from helpers.data.synthetic import paint
from helpers.runtime import Run, say_once, show_path

HOME = "mvtec_anomaly_detection"  # in the data folder
COMPLETE = {"hazelnut": 391, "transistor": 213}  # good training images; of these categories samples/ holds a part
ARCHIVES = {  # only these are downloaded, the newer address first; other categories are placed by hand
    "hazelnut": ("420937545-1629959162", "150457/51d49f65e84bdc100ff8035d7dd783ea"),
    "transistor": ("420938166-1629960554", "150464/99b8ea0332438d64fcc2475ee73f9c29"),
}
OLDER = "38536/3830184030e49fe74747669442f0f283"
LICENCE = (
    "MVTec AD: Bergmann, Batzner, Fauser, Sattlegger, Steger, International Journal of Computer Vision 129, 2021. "
    "CC BY-NC-SA 4.0, MVTec Software GmbH: not for commercial use."
)
PAINTED = ("crack", "cut", "hole", "print")


class MVTec(OneClassData):
    """A category of MVTec AD, or a folder in its layout: ``train/good``, ``test/<type>``, ``ground_truth/<type>``.

    dataset: the name of a category, or the path of a folder.
    held_out: share of the good images kept for thresholds, some of them once more with ``PAINTED`` defects, to watch;
        0 keeps none, for models that leave one image out at a time.  fold: 1 keeps the next images instead, and so on.
    max_images: at most so many images of each defect type in each split.  resampling: as for ``read_image``.
    """

    def __init__(
        self,
        run: Run,
        dataset: str = "hazelnut",
        size: int = 256,
        grey: bool = False,
        batch_size: int = 32,
        images_per_epoch: int | None = None,
        seed: int = 0,
        augment: Augment | None = None,
        held_out: float = 0.1,
        max_images: int | None = None,
        resampling: str = "bicubic",
        fold: int = 0,
    ):
        require((0 <= held_out < 1, f"held_out, the share of good images for thresholds, is in [0, 1): {held_out}"))
        super().__init__(run.device, batch_size, 0, seed, augment, images_per_epoch)
        root, embedded = mvtec_root(run, dataset)
        paths = list_images(root / "train" / "good")
        images = read_images(paths[:max_images], size, grey, resampling)
        tests, defect_type, types = list_types(root / "test", max_images)
        self.dataset, self.defect_types = root.resolve().name, tuple(dict.fromkeys((*types, *PAINTED)))
        of = f"of {COMPLETE[self.dataset]} " if COMPLETE.get(self.dataset, 0) > len(paths) else ""
        at_most = f", at most {max_images} of each type" if len(images) < len(paths) else ""
        self.subset = f"{'embedded part: ' * embedded}{len(paths)} {of}good images{at_most}"

        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
        kept = max(1, round(held_out * len(images))) if held_out else 0
        images = images.roll(-fold * kept, 0)
        self.train = good_and_painted(images[kept:])
        self.validation = good_and_painted(images[:kept], self._painted(images[:kept]))
        label, (mask, has_mask) = (defect_type > 0).long(), read_masks(root, tests, size)
        self.test = Split(read_images(tests, size, grey, resampling), label, defect_type, mask, has_mask | (label == 0))
        if missing := int((~self.test.has_mask).sum()):
            say_once(f"{show_path(root)}: {missing} defective test images have no mask and count for no pixel metrics")

    def _painted(self, images: Tensor) -> list[tuple[Tensor, Tensor, int]]:
        """The first ten images, each once with every painted defect: image, mask and defect type."""
        random, index = np.random.default_rng(self.seed), self.defect_types.index
        return [(*paint(image, name, random), index(name)) for name in PAINTED for image in images[:10]]


def mvtec_root(run: Run, dataset: str) -> tuple[Path, bool]:
    """The folder of a category or of a path, and whether it is the embedded part (see ``find_data``)."""
    if dataset in ARCHIVES:
        number, newer = ARCHIVES[dataset]
        urls = [f"https://www.mydrive.ch/shares/{share}/download/{number}/{dataset}.tar.xz" for share in (newer, OLDER)]
        return find_data(run, f"{HOME}/{dataset}", {"": (urls, None)})
    places = [parent / Path(dataset).expanduser() for parent in (run.data_dir / HOME, run.data_dir, Path())]
    there = [place for place in places if place.is_dir()]
    where = f"place it in {show_path(run.data_dir)}/{HOME}, or give the path of a folder"
    require((bool(there), f"no data set {dataset!r}: {where}; {' and '.join(ARCHIVES)} come by themselves"))
    return there[0], False
