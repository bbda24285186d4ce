"""Scores of a trained model and what they are worth; a control without a network; repeated seeds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from helpers import metrics
from helpers.data.batches import Split, to_float
from helpers.data.one_class import OneClassData
from helpers.models import AnomalyModel, scores_and_maps
from helpers.progress import Line
from helpers.runtime import Run
from helpers.versions import read_results

PIXEL_PERCENTILE = 99.9  # defects are small: one pixel in a thousand of good images may be flagged
CONTROL = "5 nearest neighbours on raw pixels"


@dataclass
class Scores:
    """Anomaly scores of one model, higher is more anomalous: on the test split, and on held-out normal images."""

    score: np.ndarray  # (N,) float64, of the test images
    label: np.ndarray  # (N,) 0 or 1
    defect_type: np.ndarray  # (N,) index into ``defect_types``
    defect_types: tuple[str, ...]
    validation: np.ndarray  # (M,) scores of the held-out normal images, which make the thresholds
    title: str  # data set and protocol
    images_per_second: float  # speed of scoring the test split
    maps: np.ndarray | None = None  # (N, H, W) float32; None, as the next three, without maps or marked defects
    masks: np.ndarray | None = None  # (N, H, W) bool, True on a defect
    has_mask: np.ndarray | None = None  # (N,) bool, False where nobody marked the defect
    validation_maps: np.ndarray | None = None  # (M, H, W)
    percentile: float = 99.0  # of the held-out scores, which becomes the threshold

    @property
    def measures_pixels(self) -> bool:
        """Whether there is at least one marked defect to compare a map with."""
        return self.masks is not None and bool(self.masks[self.has_mask].any())

    @property
    def n_calibration(self) -> int:
        return len(self.validation)

    @cached_property
    def threshold(self) -> float:
        return metrics.threshold(self.validation, self.percentile)

    @cached_property
    def pixel_threshold(self) -> float:
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
        return metrics.auroc(self.score, self.label)

    def by_defect_type(self) -> dict[str, float]:
        return metrics.per_defect_type(self.score, self.label, self.defect_type, self.defect_types)

    def marked(self) -> "Scores":
        """Only the test images whose defects are marked, normal ones included: what pixel metrics may use."""
        of_images = ("score", "label", "defect_type", "maps", "masks", "has_mask")
        return replace(self, **{name: getattr(self, name)[self.has_mask] for name in of_images})

    def __str__(self) -> str:
        """The metrics as a table, with the counts behind the rates and what the threshold can promise."""
        n, (normal, anomalous), (low, high) = self.n_calibration, np.bincount(self.label), self.interval
        caught, false = ((self.score[self.label == value] > self.threshold).sum() for value in (1, 0))
        notes = {
            "true_positive_rate": f"{caught:,} of {anomalous:,}; 95 % interval {low:.3f} to {high:.3f}",
            "false_positive_rate": f"{false:,} of {normal:,}",
            "best_f1_on_test": (optimistic := "optimistic: threshold selected on test labels"),
            "pixel_best_f1_on_test": optimistic,
        }
        of = f"{self.percentile:g}th percentile of {n:,} held-out normal images"
        promise = f"{n:,} images promise a false positive rate of {1 / (n + 1):.2g} at best, 1 / ({n:,} + 1)"
        rows = [(name, f"{value:.4f}", notes.get(name, "")) for name, value in self.metrics.items()]
        rows += [("threshold", f"{self.threshold:.4g}", of), ("", "", promise)]
        head = f"{self.title}: {normal:,} normal and {anomalous:,} anomalous test images"
        if self.measures_pixels:
            head += f"\n  pixels of the {self.has_mask.sum()} images whose defects are marked (or that have none)"
            of = f"{PIXEL_PERCENTILE}th percentile of their pixels"
            rows.append(("pixel_threshold", f"{self.pixel_threshold:.4g}", of))
        return "\n".join([head, *(f"  {name:28} {value}  {note}".rstrip() for name, value, note in rows)])


def evaluate(
    model: AnomalyModel, data: OneClassData, percentile: float = 99.0, good: tuple[np.ndarray, np.ndarray] | None = None
) -> Scores:
    """Score test split and held-out normal images, in eval mode, float32 and their order; under DDP all get all.

    good: scores (M,) and maps (M, H, W) of normal images by models that have not seen them, leaving one out, say;
        without them the held-out images are scored.
    """
    test, held_out, start = data.test, data.validation.normal(), time.perf_counter()
    score, maps = scores_and_maps(model, test)
    speed = len(score) / (time.perf_counter() - start)
    label, defect_type = test.label.cpu().numpy(), test.defect_type.cpu().numpy()
    validation, validation_maps = good or scores_and_maps(model, held_out)
    scores = Scores(score, label, defect_type, data.defect_types, validation, data.title, speed, percentile=percentile)
    if maps is not None:
        scores.maps, scores.validation_maps = maps, validation_maps
        scores.masks, scores.has_mask = test.mask.cpu().numpy(), test.has_mask.cpu().numpy()
    return scores


def neighbour_control(data: OneClassData, neighbours: int = 5, side: int = 32) -> np.ndarray:
    """(N,) scores of the test split without labels or training: mean distance to the nearest normal training images.

    Pixel by pixel, images larger than ``side`` shrunk to it.
    """

    def flat(split: Split) -> torch.Tensor:
        parts = [to_float(chunk, data.device) for chunk in split.chunks()]
        return torch.cat([F.interpolate(part, min(side, part.shape[-1]), mode="area") for part in parts]).flatten(1)

    known, parts = flat(data.train.normal()), flat(data.test).split(500)
    count = min(neighbours, len(known))
    distances = [torch.cdist(part, known).topk(count, largest=False).values.mean(1) for part in parts]
    return torch.cat(distances).cpu().double().numpy()


def run_seeds(
    run: Run, train: Callable, seeds: int, first: dict[str, float], measure: Callable | None = None, name: str = ""
) -> dict[str, list[float]]:
    """{metric: [one value per seed]} of trainings that differ in nothing but their seed.

    If nothing is trained, the committed ones, and a line that says what they were measured on.

    train: (name of the training, seed) -> (Trained, data); measure: the same -> {metric: value}, else the test AUROC.
    first: the values of seed 0, trained already.  Seeds 1, 2 ... are trained as ``<name>_seed_<n>``.
    """
    if not run.train:
        known = read_results(run.reference / name)
        print(f"seeds: as committed, measured on {known['dataset']} ({known['subset']})")
        return known["seeds"]
    found, line = [first], Line()
    for seed in range(1, seeds):
        line.show(f"seed {seed + 1} of {seeds}")
        trained, data = train(f"{name}_seed_{seed}".strip("_"), seed)
        found.append(measure(trained, data) if measure else {"auroc": evaluate(trained.model, data).auroc})
    return {metric: [values[metric] for values in found] for metric in first}
