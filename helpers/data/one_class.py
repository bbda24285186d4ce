"""The base class of every data set: splits, batches, and what defines the task."""

import hashlib

import torch

from helpers.data.batches import Augment, Batches


class OneClassData:
    """Splits, batches and names of one data set; each data set is a subclass that fills these attributes.

    train, validation, test: Split.  Held-out normal images give thresholds, anomalous ones are only watched.
    defect_types: names by index; 0 is normal, except where several classes are (Fashion-MNIST, MNIST).
    dataset, subset: "hazelnut" and which part of it, "embedded part: 50 of 391 good images".
    """

    normal_class: str = "good"
    tested_on: str = "test split"
    anomaly_fraction: float = 0.0

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        anomalies_per_batch: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        images_per_epoch: int | None = None,
    ):
        self.device, self.seed, self.images_per_epoch = device, seed, images_per_epoch
        self.normals_per_batch, self.anomalies_per_batch = batch_size - anomalies_per_batch, anomalies_per_batch
        self.augment = augment or Augment()

    @property
    def name(self) -> str:
        """Data set, part and size in one line, for figures."""
        return f"{self.dataset} ({self.subset})"

    @property
    def title(self) -> str:
        """Name, what is normal, and with which labels the training works, for figures."""
        labels = f"{100 * self.anomaly_fraction:g}% labelled anomalies" if self.anomaly_fraction else "no labels"
        return f"{self.name}: {self.normal_class} normal, {labels}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of normal and anomalous images in each split."""
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        anomalous = {name: int(split.label.sum()) for name, split in splits.items()}
        return {name: {"normal": len(splits[name]) - count, "anomalous": count} for name, count in anomalous.items()}

    def fields(self) -> dict:
        """What defines the task, for hparams.yaml and results.json."""
        names = ("dataset", "subset", "normal_class", "anomaly_fraction", "tested_on")
        training, validation, test = self.counts().values()
        sizes = {"n_train": training["normal"] + validation["normal"]}
        sizes |= {f"n_test_{label}": count for label, count in test.items()}
        return {name: getattr(self, name) for name in names} | sizes

    def fingerprint(self) -> str:
        """Changes with every image or setting that a training sees; the test split does not count."""
        how = (self.normals_per_batch, self.anomalies_per_batch, self.seed, self.images_per_epoch, self.augment)
        digest = hashlib.sha256(repr(how).encode())
        for values in (self.train.images, self.train.label, self.validation.images, self.validation.label):
            digest.update(values.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def train_dataloader(self) -> Batches:
        """One epoch of ``(normal, anomalous)`` batches, already on the device."""
        return Batches(self)
