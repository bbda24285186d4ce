"""Fashion-MNIST and MNIST with one class normal and the nine others anomalous, or the other way round."""

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision import datasets

from helpers.data import samples
from helpers.data.download import download, make_folder, verify
from helpers.data.loader import Augment, OneClassData, Split
from helpers.runtime import Run, show_path, whole_file

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# file: (MD5 of the .gz, bytes once unpacked)
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 47_040_016),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 60_008),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 7_840_016),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 10_008),
}
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)


@dataclass
class Source:
    """A set in MNIST's format: its name, classes, files and their mirrors, and torchvision's reader."""

    name: str
    classes: tuple[str, ...]
    files: dict[str, tuple[str, int]]
    mirrors: tuple[str, ...]
    reader: type

    def raw(self, root: Path) -> Path:
        """Where torchvision looks for the files below ``root``."""
        return root / self.reader.__name__ / "raw"


FASHION_MNIST = Source("Fashion-MNIST", CLASSES, FILES, MIRRORS, datasets.FashionMNIST)
MNIST = Source(
    "MNIST",
    tuple(str(digit) for digit in range(10)),
    {Path(name).stem: (md5, FILES[Path(name).stem][1]) for name, md5 in datasets.MNIST.resources},
    tuple(datasets.MNIST.mirrors),
    datasets.MNIST,
)


class FashionMNISTOneClass(OneClassData):
    """One class of Fashion-MNIST is normal (label 0), the nine others are anomalous (label 1), or the other way round.

    run: gives device and data folder.
    normal_class: 0 to 9, or a name from ``source.classes``.
    anomalous_class: instead of normal_class: this class is anomalous, and the nine others are normal.
    anomaly_fraction: gamma, the share of labelled anomalies in the training set, in [0, 1):
        0 is one-class (no labels), 0.5 is balanced.  They are drawn from the nine classes at random.
    batch_size: images in a batch; round(gamma * batch_size), at least one if gamma > 0, are anomalous.
    held_out: share of the normal training images kept for validation and thresholds, with as many anomalous ones.
    limit: at most so many images of each label in each split (smoke runs).
    size: side of the images in pixels, 28 or an even number above it: a black border is added.
    images_per_epoch: as for ``OneClassData``.
    rare_class, rare_share: of this normal class only this share (0, 1] of the training files is there at all, for
        training and thresholds alike; the test split stays complete.

    Raises ValueError for settings that cannot be met, DataError for missing or broken files.
    """

    source = FASHION_MNIST

    def __init__(
        self,
        run: Run,
        normal_class: int | str = 0,
        anomaly_fraction: float = 0.5,
        batch_size: int = 128,
        seed: int = 0,
        augment: Augment | None = None,
        held_out: float = 0.1,
        limit: int | None = None,
        *,
        anomalous_class: int | str | None = None,
        size: int = 28,
        images_per_epoch: int | None = None,
        rare_class: int | str | None = None,
        rare_share: float = 0.01,
    ):
        normal_class = _class_index(normal_class, self.source.classes)
        if normal_class and anomalous_class is not None:
            raise ValueError("give normal_class or anomalous_class, not both")
        anomalous_class, rare_class = (
            None if name is None else _class_index(name, self.source.classes) for name in (anomalous_class, rare_class)
        )
        normal_classes = [normal_class] if anomalous_class is None else [c for c in range(10) if c != anomalous_class]
        if rare_class not in (None, *normal_classes):
            raise ValueError(f"rare_class must be normal: {self.source.classes[rare_class]} is anomalous here")
        if size < 28 or size % 2:
            raise ValueError(
                f"images have 28 x 28 pixels and get a black border: size must be even and at least 28, not {size}"
            )
        if not 0 < rare_share <= 1:
            raise ValueError(f"rare_share is the share of the rare class that is kept, in (0, 1]: got {rare_share}")
        if not 0 <= anomaly_fraction < 1:
            raise ValueError(
                f"anomaly_fraction is the share of anomalies in the training set and must be in [0, 1): got {anomaly_fraction}"
            )
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is the share of normal images kept for thresholds, in (0, 1): got {held_out}")
        anomalies_per_batch = max(1, round(anomaly_fraction * batch_size)) if anomaly_fraction else 0
        if anomalies_per_batch >= batch_size:
            raise ValueError(
                f"a batch of {batch_size} with {anomaly_fraction:.0%} anomalies has no place for a normal image"
            )
        super().__init__(run.device, batch_size, anomalies_per_batch, seed, augment, images_per_epoch)
        root, self.is_sample = fashion_mnist_root(run, self.source)
        self.kinds = MNIST.classes if self.is_sample else self.source.classes
        self.dataset = "SAMPLE DATA (handwritten digits)" if self.is_sample else self.source.name
        labels = f"{100 * anomaly_fraction:g}% labelled anomalies" if anomaly_fraction else "one-class (no labels)"
        normal_is = (
            f"{self.kinds[normal_class]} normal"
            if anomalous_class is None
            else f"{self.kinds[anomalous_class]} anomalous"
        )
        self.protocol = f"{normal_is}, {labels}"

        def labels_of(kind: torch.Tensor) -> torch.Tensor:
            return (~torch.isin(kind, torch.tensor(normal_classes))).long()

        generator = torch.Generator().manual_seed(seed)
        images, kind = _read(self.source, root, size, train=True)
        label = labels_of(kind)
        normal, anomalous = (
            chosen[torch.randperm(len(chosen), generator=generator)]
            for chosen in (torch.nonzero(label == 0)[:, 0], torch.nonzero(label == 1)[:, 0])
        )
        if rare_class is not None:
            rare = kind[normal] == rare_class
            normal = normal[~rare | (rare.cumsum(0) <= round(rare_share * int(rare.sum())))]
            self.protocol += f", {rare_share:.0%} of {self.kinds[rare_class]}"
        kept = round(held_out * len(normal))  # as many anomalous images, to watch
        validation = torch.cat([normal[:kept][:limit], anomalous[:kept][:limit]])
        normal, anomalous = normal[kept:][:limit], anomalous[kept:]
        wanted = round(anomaly_fraction / (1 - anomaly_fraction) * len(normal))
        if wanted > len(anomalous):
            raise ValueError(
                f"anomaly_fraction {anomaly_fraction} asks for {wanted:,} labelled anomalies beside {len(normal):,} "
                f"normal images, but only {len(anomalous):,} exist"
            )
        everything = Split(images, label, kind)
        self.validation = everything.pick(validation)
        self.train = everything.pick(torch.cat([normal, anomalous[: max(wanted, anomalies_per_batch > 0)][:limit]]))
        images, kind = _read(self.source, root, size, train=False)
        test = Split(images, labels_of(kind), kind)
        self.test = test if limit is None else test.first_of_each(limit)


class MNISTOneClass(FashionMNISTOneClass):
    """One digit of MNIST is normal or anomalous, the nine others are not; in all else as ``FashionMNISTOneClass``."""

    source = MNIST


def fashion_mnist_root(run: Run, source: Source = FASHION_MNIST) -> tuple[Path, bool]:
    """The folder to give torchvision, and whether it holds the embedded sample instead of the real data."""

    def sample(parent: Path) -> Path:
        raw = samples.digits_as_fashion_mnist(source.raw(parent))
        for name in source.files:
            _unpack(raw / f"{name}.gz")
        return parent

    how = f"Put the four .gz files of {source.name} into {show_path(source.raw(run.data_dir))}"
    return samples.real_or_sample(run, lambda: _real(source, run.data_dir), sample, "handwritten digits", how)


def _real(source: Source, data_dir: Path) -> Path:
    raw = source.raw(data_dir)
    for name, (md5, size) in source.files.items():
        unpacked, packed = raw / name, raw / f"{name}.gz"
        if unpacked.exists() and unpacked.stat().st_size == size:
            continue
        if packed.exists():
            verify(packed, md5)
        else:
            download([mirror + packed.name for mirror in source.mirrors], packed, md5)
        _unpack(packed, again=True)
    return data_dir


def _unpack(packed: Path, again: bool = False) -> None:
    """Unpack beside the .gz; the final name appears only when all of it is written."""
    target = packed.with_suffix("")
    if target.exists() and not again:
        return
    make_folder(packed.parent)
    with whole_file(target) as unfinished, gzip.open(packed, "rb") as source, unfinished.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _read(source: Source, root: Path, size: int, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1, size, size) uint8 images with a black border beyond 28 pixels, and (N,) class indices."""
    split = source.reader(str(root), train=train)
    return F.pad(split.data.unsqueeze(1), 4 * ((size - 28) // 2,)), split.targets


def _class_index(name: int | str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(classes):
        return name
    choices = ", ".join(f"{index} {label}" for index, label in enumerate(classes))
    raise ValueError(f"unknown class {name!r}: choose one of {choices}")
