"""MVTec AD and every folder in its layout: good images to train on, kinds of defects with masks to test on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.data import samples
from helpers.data.defects import object_region, paint
from helpers.data.download import DamagedFile, checksum_of, download, one_at_a_time, unpack
from helpers.data.images import list_images, read_images, read_mask
from helpers.data.loader import Augment, OneClassData, Split, good_and_painted
from helpers.runtime import Run, say_once, show_path

CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
MIRRORS = "https://www.mydrive.ch/shares/"
ARCHIVES = {  # category: addresses of its own archive, newest first; no checksum is published for these
    "hazelnut": (
        MIRRORS + "150457/51d49f65e84bdc100ff8035d7dd783ea/download/420937545-1629959162/hazelnut.tar.xz",
        MIRRORS + "38536/3830184030e49fe74747669442f0f283/download/420937545-1629959162/hazelnut.tar.xz",
    ),
    "transistor": (
        MIRRORS + "150464/99b8ea0332438d64fcc2475ee73f9c29/download/420938166-1629960554/transistor.tar.xz",
        MIRRORS + "38536/3830184030e49fe74747669442f0f283/download/420938166-1629960554/transistor.tar.xz",
    ),
}
WHOLE = (
    MIRRORS + "150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
    "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
)
LICENCE = (
    "MVTec AD: Bergmann, Batzner, Fauser, Sattlegger, Steger, International Journal of Computer Vision 129, 2021. "
    "CC BY-NC-SA 4.0, MVTec Software GmbH: not for commercial use."
)
PAINTED = ("crack", "cut", "hole", "print")
PAINTED_IMAGES = 10  # more would only cost time


class MVTec(OneClassData):
    """A category of MVTec AD, or a folder in its layout: ``train/good``, ``test/<kind>``, ``ground_truth/<kind>``.

    run: gives device and data folder.
    dataset: the name of a category, or the path of a folder.
    size: side of the images in pixels.  grey: one channel instead of three.
    batch_size, images_per_epoch, augment: as for ``OneClassData``.
    held_out: share of the good training images kept for thresholds.  To watch training, some of them also
        come with ``PAINTED`` defects and their masks; these are part of ``validation``, never of a threshold.
    limit: at most so many images of each kind in each split (smoke runs).

    Test images of a kind without masks count for image metrics only.  Raises ValueError for settings that
    cannot be met and for a category that does not exist, DataError for missing or broken files.
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
        limit: int | None = None,
    ):
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is the share of good images kept for thresholds, in (0, 1): got {held_out}")
        super().__init__(run.device, batch_size, 0, seed, augment, images_per_epoch)
        root, self.is_sample = mvtec_root(run, dataset)
        name = "SAMPLE DATA (rendered hazelnuts)" if self.is_sample else root.name
        cache = None if run.profile == "smoke" else run.data_dir / "cache"

        train = list_images(_folder(root, "train/good"))[:limit]
        if len(train) < 2:
            raise DamagedFile(
                f"{root / 'train/good'} holds one image: some for training and some for thresholds are needed"
            )
        images = read_images(train, size, grey, cache)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        kept = max(1, round(held_out * len(images)))

        kinds = sorted(path.name for path in _folder(root, "test").iterdir() if path.is_dir() and path.name != "good")
        self.kinds = ("good", *kinds, *(kind for kind in PAINTED if kind not in kinds))
        self.train = _good(images[order[kept:]])
        self.validation = _with_painted_defects(images[order[:kept]], self.kinds, seed)
        self.test = self._test(root, ("good", *kinds), size, grey, cache, limit)
        self.dataset = f"{name}, {len(train)} good images"
        self.protocol = f"one-class, {size}x{size}"

    def _test(
        self, root: Path, kinds: Sequence[str], size: int, grey: bool, cache: Path | None, limit: int | None
    ) -> Split:
        paths, kind, masks, has_mask = [], [], [], []
        for index, name in enumerate(kinds):
            if name == "good" and not (root / "test" / name).is_dir():
                continue
            images = list_images(root / "test" / name)
            found = {} if name == "good" else _masks(root, name, images)
            for path in images[:limit]:
                mask = found.get(path.stem)
                paths.append(path)
                kind.append(index)
                has_mask.append(name == "good" or mask is not None)
                masks.append(torch.zeros(size, size, dtype=torch.bool) if mask is None else read_mask(mask, path, size))
        if set(kind) != set(range(len(kinds))) or len(kinds) < 2:
            raise DamagedFile(
                f"{root / 'test'} needs a folder good and at least one folder of a defect, each with images"
            )
        without = has_mask.count(False)
        if without:
            say_once(
                f"{show_path(root)}: {without} defective test images have no mask: they count for image metrics only"
            )
        kind = torch.tensor(kind)
        return Split(
            read_images(paths, size, grey, cache), (kind > 0).long(), kind, torch.stack(masks), torch.tensor(has_mask)
        )


def mvtec_root(run: Run, dataset: str) -> tuple[Path, bool]:
    """The folder of a category (found, or downloaded), and whether it is the rendered sample instead."""
    how = f"Put the category's folder at {show_path(_home(run) / Path(dataset).name)}"
    return samples.real_or_sample(
        run,
        lambda: _real(run, dataset),
        lambda parent: samples.hazelnuts_as_mvtec(parent / "mvtec_anomaly_detection" / "hazelnut"),
        "rendered hazelnuts",
        how,
    )


def _home(run: Run) -> Path:
    return run.data_dir / "mvtec_anomaly_detection"


def _real(run: Run, dataset: str) -> Path:
    places = [_home(run) / dataset, run.data_dir / dataset, Path(dataset).expanduser()]
    for place in places:  # a name with a separator is a path; a bare one never means the working directory
        if place.is_dir() and (place != places[2] or Path(dataset).name != dataset):
            return place
    if dataset not in CATEGORIES:
        there = sorted(
            {path.parent.parent.name for parent in (_home(run), run.data_dir) for path in parent.glob("*/train/good")}
        )
        raise ValueError(
            f"there is no data set {dataset!r}: neither a folder nor a category. "
            f"At hand in {show_path(run.data_dir)}: {', '.join(there) or 'none'}. MVTec AD has {', '.join(CATEGORIES)}"
        )
    target = _home(run) / dataset
    with one_at_a_time(target):
        if not target.is_dir():
            _fetch(dataset, target, run.data_dir)
    return target


def _fetch(dataset: str, target: Path, data_dir: Path) -> None:
    """Download a category, unpack it as ``target`` and note the archive's checksum in it."""
    urls, checksum = (ARCHIVES[dataset], None) if dataset in ARCHIVES else (WHOLE[:1], WHOLE[1])
    archive = download(urls, data_dir / urls[0].rsplit("/", 1)[1], checksum)
    target.parent.mkdir(parents=True, exist_ok=True)
    found = checksum or checksum_of(archive, "sha256")
    unpack(archive, dataset, target)
    (target / "archive.sha256").write_text(f"{found}  {archive.name}\n")  # to compare a later download with
    if dataset in ARCHIVES:
        archive.unlink()  # the whole set stays: other categories are in it


def _folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise DamagedFile(
            f"{root} has no folder {name}: expected MVTec's layout, train/good, test/good, test/<kind of defect> "
            "and, where defects are marked, ground_truth/<kind of defect>"
        )
    return root / name


def _masks(root: Path, kind: str, images: list[Path]) -> dict[str, Path]:
    """The mask of each image that has one, by the image's stem."""
    folder = root / "ground_truth" / kind
    if not folder.is_dir():
        return {}
    found = {path.stem.removesuffix("_mask"): path for path in list_images(folder)}
    strangers = sorted(set(found) - {path.stem for path in images})
    if strangers:
        raise DamagedFile(
            f"the mask {found[strangers[0]]} belongs to no image: there is no {strangers[0]} in {root / 'test' / kind}"
        )
    return found


def _good(images: Tensor) -> Split:
    zeros = torch.zeros(len(images), dtype=torch.long)
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    return Split(images, zeros, zeros, masks, torch.ones(len(images), dtype=torch.bool))


def _with_painted_defects(images: Tensor, kinds: tuple[str, ...], seed: int) -> Split:
    """Held-out good images, then the first of them again, once with every kind of painted defect."""
    random = np.random.default_rng(seed)
    some = images[:PAINTED_IMAGES]
    regions = [object_region(image) for image in some]
    painted = [
        (*paint(image, name, random, region), kinds.index(name))
        for name in PAINTED
        for image, region in zip(some, regions, strict=True)
    ]
    return good_and_painted(images, painted)
