"""Scores of a trained model and what they are worth; a control without a network; repeated seeds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from helpers import metrics
from helpers.data.batches import to_float
from helpers.data.one_class import OneClassData
from helpers.models import AnomalyModel, map_images, score_images
from helpers.progress import Line
from helpers.results import read_results
from helpers.runtime import Run

PIXEL_PERCENTILE = 99.9  # defects are small: one pixel in a thousand of good images may be flagged
CONTROL = "5 nearest neighbours on raw pixels"


@dataclass
class Scores:
    """Anomaly scores of one model: on the test split, and on the held-out normal images.

    score: (N,) float64, higher is more anomalous; label: (N,) 0 or 1; defect_type: (N,) index into ``defect_types``;
    validation: (M,) scores of the held-out normal images, which make the threshold; title: data set and protocol;
    images_per_second: speed of scoring the test split.
    Of a model with anomaly maps, where defects are marked: maps (N, H, W) float32, masks (N, H, W) bool,
    has_mask (N,) bool, validation_maps (M, H, W) of the held-out normal images; else None.
    percentile: of the held-out normal scores that becomes the threshold; for pixels it is ``PIXEL_PERCENTILE``.
    views: how many of the M held-out scores show the same image (augmented views); M / views images calibrate.
    """

    score: np.ndarray
    label: np.ndarray
    defect_type: np.ndarray
    defect_types: tuple[str, ...]
    validation: np.ndarray
    title: str
    images_per_second: float
    maps: np.ndarray | None = None
    masks: np.ndarray | None = None
    has_mask: np.ndarray | None = None
    validation_maps: np.ndarray | None = None
    percentile: float = 99.0
    views: int = 1

    @property
    def measures_pixels(self) -> bool:
        """Whether there is at least one marked defect to compare a map with."""
        return self.masks is not None and bool(self.masks[self.has_mask].any())

    @property
    def n_calibration(self) -> int:
        """Held-out normal images behind the threshold; views of an image do not count as images."""
        return len(self.validation) // self.views

    @cached_property
    def threshold(self) -> float:
        """The score above which an image is flagged, from held-out normal images."""
        return metrics.threshold(self.validation, self.percentile)

    @cached_property
    def pixel_threshold(self) -> float:
        """The map value above which a pixel is flagged, from pixels of held-out normal images."""
        return metrics.threshold(self.validation_maps.ravel(), PIXEL_PERCENTILE)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All metrics on the test split under the names of results.json."""
        values = metrics.image_metrics(self.score, self.label, self.threshold)
        if self.measures_pixels:
            marked = self.marked()
            values |= metrics.pixel_metrics(marked.maps, marked.masks, self.pixel_threshold)
        return values

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the true positive rate at the threshold."""
        return metrics.true_positive_rate_interval(self.score, self.label, self.validation, self.percentile)

    @property
    def auroc(self) -> float:
        """Area under the ROC curve of the test images."""
        return metrics.auroc(self.score, self.label)

    def by_defect_type(self) -> dict[str, float]:
        """AUROC of each type of anomaly against all normal test images, hardest first."""
        return metrics.per_defect_type(self.score, self.label, self.defect_type, self.defect_types)

    def marked(self) -> "Scores":
        """Only the test images whose defects are marked, normal ones included: what pixel metrics may use."""
        of_images = ("score", "label", "defect_type", "maps", "masks", "has_mask")
        return replace(self, **{name: getattr(self, name)[self.has_mask] for name in of_images})

    def __str__(self) -> str:
        """The metrics as a table, with the counts behind the rates and what the threshold can promise."""
        n, (normal, anomalous) = self.n_calibration, (int((self.label == value).sum()) for value in (0, 1))
        rates = {name: self.metrics[f"{name}_positive_rate"] for name in ("true", "false")}
        interval = "95 % interval {:.3f} to {:.3f}".format(*self.interval)
        notes = {
            "true_positive_rate": f"{round(rates['true'] * anomalous):,} of {anomalous:,}; {interval}",
            "false_positive_rate": f"{round(rates['false'] * normal):,} of {normal:,}",
            "best_f1_on_test": (optimistic := "optimistic: threshold selected on test labels"),
            "pixel_best_f1_on_test": optimistic,
        }
        lines = [f"{self.title}: {normal:,} normal and {anomalous:,} anomalous test images"]
        if self.measures_pixels:
            lines.append(f"  pixels of the {self.has_mask.sum()} images whose defects are marked (or that have none)")
        lines += [f"  {name:28} {value:.4f}  {notes.get(name, '')}".rstrip() for name, value in self.metrics.items()]
        of = f"{self.percentile:g}th percentile of {n:,} held-out normal images"
        lines.append(
            f"  {'threshold':28} {self.threshold:.4g}  {of}{f', each in {self.views} views' * (self.views > 1)}"
        )
        lines.append(
            f"{'':31} {n:,} images promise a false positive rate of {1 / (n + 1):.2g} at best, 1 / ({n:,} + 1)"
        )
        if self.measures_pixels:
            of = f"{PIXEL_PERCENTILE}th percentile of their pixels"
            lines.append(f"  {'pixel_threshold':28} {self.pixel_threshold:.4g}  {of}")
        return "\n".join(lines)


def evaluate(model: AnomalyModel, data: OneClassData, percentile: float = 99.0) -> Scores:
    """Score the test split and the held-out normal images, in eval mode and float32, in their order.

    Under DDP every process scores a part and all receive the whole.
    """
    start = time.perf_counter()
    score = score_images(model, data.test)
    speed = len(score) / (time.perf_counter() - start)
    good = data.validation.normal()
    label, defect_type = data.test.label.cpu().numpy(), data.test.defect_type.cpu().numpy()
    validation = score_images(model, good)
    scores = Scores(score, label, defect_type, data.defect_types, validation, data.title, speed, percentile=percentile)
    if model.has_map and data.test.mask is not None:
        scores.maps, scores.validation_maps = (map_images(model, split) for split in (data.test, good))
        scores.masks, scores.has_mask = data.test.mask.cpu().numpy(), data.test.has_mask.cpu().numpy()
    return scores


def neighbour_control(data: OneClassData, neighbours: int = 5, side: int = 32) -> np.ndarray:
    """(N,) scores of the test split without a network: the mean distance to the nearest normal training images.

    Pixel by pixel, images larger than ``side`` shrunk to it; neither labels nor training are needed.
    """

    def flat(split) -> torch.Tensor:
        parts = [to_float(chunk, data.device) for chunk in split.chunks()]
        return torch.cat([F.interpolate(p, side, mode="area") if p.shape[-1] > side else p for p in parts]).flatten(1)

    known = flat(data.train.normal())
    count = min(neighbours, len(known))
    distances = [
        torch.cdist(part, known).topk(count, largest=False).values.mean(1) for part in flat(data.test).split(500)
    ]
    return torch.cat(distances).double().cpu().numpy()


def run_seeds(
    run: Run,
    train: Callable[[str, int], tuple],
    seeds: int,
    first: dict[str, float],
    measure: Callable[..., dict[str, float]] | None = None,
    name: str = "",
) -> dict[str, list[float]]:
    """{metric: [one value per seed]} of trainings that differ in nothing but their seed.

    train: (name of the training, seed) -> (Trained, data); measure: (Trained, data) -> {metric: value}, the test AUROC if None.
    first: the values of seed 0, trained already.  Seeds 1, 2 ... are trained as ``<name>_seed_<n>``.
    With ``run.train`` False the values are those of the committed results.
    """
    if not run.train:
        return read_results(run.reference / name)["seeds"]
    measure = measure or (lambda trained, data: {"auroc": evaluate(trained.model, data).auroc})
    found, line = [first], Line()
    for seed in range(1, seeds):
        line.show(f"seed {seed + 1} of {seeds}")
        found.append(measure(*train(f"{name}_seed_{seed}".strip("_"), seed)))
    return {metric: [values[metric] for values in found] for metric in first}
