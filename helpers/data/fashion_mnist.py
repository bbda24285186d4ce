"""Fashion-MNIST and MNIST with one class normal and the nine others anomalous, or the other way round."""

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets

from helpers.data.batches import Augment, Split, require
from helpers.data.one_class import OneClassData
from helpers.data.photo import DataError
from helpers.data.samples import find_data
from helpers.runtime import Run

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionMNISTOneClass(OneClassData):
    """One class of Fashion-MNIST is normal (label 0), the nine others are anomalous (label 1), or the other way round.

    normal_class: 0 to 9, or a name from ``classes``; anomalous_class: instead, the one class that is anomalous.
    anomaly_fraction: gamma, the share of labelled anomalies in training and in each batch, in [0, 1); 0 is one-class.
    held_out: share of the normal training images kept for validation, with as many anomalous ones.
    labelled: the kinds of anomalies that training and validation may hold; None: all.  The test split holds all.
    max_images: at most so many images of each label in each split.
    size: side of the (1, size, size) images, 28 or an even number above it: a black border is added.
    """

    dataset = "Fashion-MNIST"
    classes = CLASSES
    source = datasets.FashionMNIST  # knows addresses and checksums

    def __init__(
        self,
        run: Run,
        normal_class: int | str = 0,
        anomaly_fraction: float = 0.5,
        batch_size: int = 128,
        seed: int = 0,
        augment: Augment | None = None,
        held_out: float = 0.1,
        max_images: int | None = None,
        anomalous_class: int | str | None = None,
        size: int = 28,
        images_per_epoch: int | None = None,
        labelled: tuple[str, ...] | None = None,
    ):
        name = normal_class if anomalous_class is None else anomalous_class
        chosen = self.classes.index(name) if name in self.classes else name
        per_batch = max(1, round(anomaly_fraction * batch_size)) if anomaly_fraction else 0
        require(
            (chosen in range(10), f"unknown class {name!r}: choose 0 to 9, or one of {', '.join(self.classes)}"),
            (0 <= anomaly_fraction < 1, f"anomaly_fraction, the share of anomalies, is in [0, 1): {anomaly_fraction}"),
            (per_batch < batch_size, f"a batch of {batch_size}, {per_batch} of them anomalous, lacks normal images"),
            (0 < held_out < 1, f"held_out is the share of normal images kept for thresholds, in (0, 1): {held_out}"),
            (size >= 28 and size % 2 == 0, f"images have 28 x 28 pixels and a border: size is even, >= 28, not {size}"),
        )
        super().__init__(run.device, batch_size, per_batch, seed, augment, images_per_epoch)
        self.defect_types, self.anomaly_fraction = self.classes, anomaly_fraction
        self.normal_class = self.classes[chosen] if anomalous_class is None else f"all but {self.classes[chosen]}"
        urls, files = self.source.mirrors, self.source.resources  # which are packed
        sources = {f"raw/{file}": ([url + file for url in urls], md5) for file, md5 in files}
        folder, embedded = find_data(run, self.source.__name__, sources)
        label = (torch.arange(10) == chosen) == (anomalous_class is not None)  # of each class
        everything, test = (_read(folder / "raw", part, size, label.long()) for part in ("train", "t10k"))
        self.subset = f"{'embedded part: ' * embedded}{len(everything):,} + {len(test):,} images"

        generator = torch.Generator().manual_seed(seed)
        both = [torch.nonzero(everything.label == value)[:, 0] for value in (0, 1)]
        normal, anomalous = (places[torch.randperm(len(places), generator=generator)] for places in both)
        if labelled is not None:
            known = torch.tensor([self.classes.index(kind) for kind in labelled])
            anomalous = anomalous[torch.isin(everything.defect_type[anomalous], known)]
        kept = round(held_out * len(normal))  # as many anomalous images, to watch
        self.validation = everything.subset(torch.cat([normal[:kept][:max_images], anomalous[:kept][:max_images]]))
        normal, anomalous = normal[kept:][:max_images], anomalous[kept:]
        wanted = max(round(anomaly_fraction / (1 - anomaly_fraction) * len(normal)), int(per_batch > 0))
        require((wanted <= len(anomalous), f"anomaly_fraction asks for {wanted:,} of {len(anomalous):,} anomalies"))
        self.train = everything.subset(torch.cat([normal, anomalous[:wanted][:max_images]]))
        self.test = test if max_images is None else test.first_of_each(max_images)
        if len(self.test) < len(test):
            self.subset += f", at most {max_images:,} of each label"


class MNISTOneClass(FashionMNISTOneClass):
    """One digit of MNIST is normal or anomalous, the nine others are not; in all else as ``FashionMNISTOneClass``."""

    dataset = "MNIST"
    classes = tuple(str(digit) for digit in range(10))
    source = datasets.MNIST


def _read(raw: Path, part: str, size: int, label: Tensor) -> Split:
    """The images of one file, with a black border beyond 28 pixels.  label: (10,) of the classes, which are types."""
    images = _array(raw / f"{part}-images-idx3-ubyte", 16, -1, 1, 28, 28)
    defect_type = _array(raw / f"{part}-labels-idx1-ubyte", 8, -1).long()
    return Split(F.pad(images, 4 * ((size - 28) // 2,)), label[defect_type], defect_type)


def _array(path: Path, header: int, *shape: int) -> Tensor:
    """What follows the header of a file, unpacked or as .gz, as uint8 array."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run again, or replace it") from error
