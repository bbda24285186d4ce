"""What a run leaves behind: results.json, metrics and figures in its TensorBoard version."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.nn import functional as F

from helpers import metrics, plots, runtime
from helpers.runtime import whole_file
from helpers.training import RESULTS, Scores, Trained

SCORES = "scores.npz"  # beside results.json: score, label, kind (N,), kinds, validation (M,) as in ``Scores``
PIXEL_PERCENTILE = 99.9  # defects are small: one pixel in a thousand of good images may be flagged


def measure(scores: Scores, percentile: float = 99.0) -> tuple[dict[str, float], float]:
    """Print and return the metrics on the test split, and the threshold from held-out normal images.

    percentile: of the held-out normal scores, which becomes the threshold; for the pixels of anomaly maps, where
    the model has them and the data set marks defects, it is ``PIXEL_PERCENTILE``.
    """
    values, limits = _measured(scores, percentile)
    anomalous = int(scores.label.sum())
    print(f"{scores.title}: {len(scores.label) - anomalous:,} normal and {anomalous:,} anomalous test images")
    if scores.measures_pixels:
        print(f"  pixels of the {int(scores.has_mask.sum())} images whose defects are marked (or that have none)")
    for name, value in values.items():
        note = "  chosen on the test set: flatters" if name.endswith("best_f1_on_test") else ""
        print(f"  {name:28} {value:.4f}{note}")
    for name in ("threshold", "pixel_threshold"):
        if name in limits:
            of = "pixels of " if name == "pixel_threshold" else ""
            source = f"{limits[f'{name}_percentile']:g}th percentile of {of}{len(scores.validation):,} held-out normal images"
            print(f"  {name:28} {limits[name]:.4g}  {source}")
    return values, limits["threshold"]


def _measured(scores: Scores, percentile: float) -> tuple[dict[str, float], dict]:
    values, limit = metrics.summary(scores.score, scores.label, scores.validation, percentile)
    limits = {"threshold": limit, "threshold_percentile": percentile}
    if scores.measures_pixels:
        marked = scores.marked()
        of_pixels, limit = metrics.pixel_summary(marked.maps, marked.masks, scores.validation_maps, PIXEL_PERCENTILE)
        values |= of_pixels
        limits |= {"pixel_threshold": limit, "pixel_threshold_percentile": PIXEL_PERCENTILE}
    return values, limits


def report(
    scores: Scores, trained: Trained, percentile: float = 99.0, seeds: dict[str, list[float]] | None = None
) -> dict:
    """Write results.json, scores.npz, metrics and figures into the TensorBoard version of ``trained``.

    seeds: {metric: [one value per seed]} where the training was repeated.
    The version of a model that was loaded is left as it is.  Returns the content of results.json.
    """
    values, limits = _measured(scores, percentile)
    result = {
        "notebook": trained.run.notebook,
        "profile": trained.run.profile,
        "seed": trained.model.hparams.get("seed", 0),
        **{name: value for name, value in trained.history.items() if not name.startswith("frame")},
        "scoring_images_per_second": round(scores.images_per_second),
        **limits,
        "metrics": values,
        "seeds": seeds or {},
        "versions": runtime.versions(),
    }
    if trained.logger is not None and rank_zero_only.rank == 0:
        _log(scores, trained, values, limits["threshold"])
        # image by image, for ROC curves and bootstrap intervals without the data
        kept = {name: getattr(scores, name) for name in ("score", "label", "kind")}
        with whole_file(trained.folder / SCORES) as part, part.open("wb") as file:
            np.savez_compressed(file, **kept, kinds=np.array(scores.kinds), validation=scores.validation)
        write_json(trained.folder / RESULTS, result)
    return result


def read_scores(path: Path, title: str, images_per_second: float) -> Scores:
    """The scores that ``report`` kept; title and speed are not in the file.

    Raises ValueError for a file that holds something else, and whatever NumPy raises for a broken one.
    """
    with path.open("rb") as file:
        kept = np.load(file, allow_pickle=False)
        if not hasattr(kept, "files"):
            raise ValueError("it holds one array instead of five named ones")
        score, label, kind, validation = (kept[name] for name in ("score", "label", "kind", "validation"))
        names = tuple(str(name) for name in kept["kinds"])
    if score.ndim != 1 or not (score.shape == label.shape == kind.shape):
        raise ValueError(f"scores, labels and kinds have different shapes: {score.shape}, {label.shape}, {kind.shape}")
    if len(kind) and not (kind.min() >= 0 and kind.max() < len(names)):
        raise ValueError(f"kinds are no indices into their {len(names)} names")
    return Scores(score, label, kind, names, validation, title, images_per_second)


def _log(scores: Scores, trained: Trained, values: dict, limit: float) -> None:
    writer, step = trained.logger.experiment, trained.history["batches"]
    trained.logger.log_hyperparams(
        dict(trained.model.hparams), {f"test/{name}": value for name, value in values.items()}
    )
    histogram = plots.score_histogram(scores, limit)
    histogram.savefig(trained.folder / "scores.png")
    writer.add_figure("results/scores", histogram, step)
    writer.add_figure("results/curves", plots.roc_and_precision_recall({"this version": scores}, scores.title), step)
    hardest = metrics.per_kind(scores.score, scores.label, scores.kind, scores.kinds)
    writer.add_figure("results/per_kind", plots.bars(hardest, scores.title, "AUROC"), step)
    writer.flush()


def log_latents(trained: Trained, latents: torch.Tensor, images: torch.Tensor, names: list[str]) -> None:
    """Points for TensorBoard's projector, each with a thumbnail and a name.  A loaded version stays as it is.

    latents: (N, D), stored as their first 30 principal components; images: (N, C, H, W) uint8.
    """
    if trained.logger is not None and rank_zero_only.rank == 0:
        thumbnails = F.interpolate(images.float() / 255, 32, mode="area").expand(-1, 3, -1, -1)
        points, step = plots.principal(latents.cpu(), 30), trained.history["batches"]
        trained.logger.experiment.add_embedding(
            points, metadata=names, label_img=thumbnails, tag="latents", global_step=step
        )


def print_rows(title: str, kind, kinds: tuple[str, ...], named: dict[str, np.ndarray]) -> None:
    """Median score and share of scores above 0 for each kind of image, two columns a model."""
    kind = np.asarray(kind)
    print(title)
    print(f"{'':20}" + "".join(f"{name:>28}" for name in named))
    print(f"{'':20}" + f"{'median score':>17}{'above 0':>11}" * len(named))
    for row in np.unique(kind):
        chosen, name = [score[kind == row] for score in named.values()], kinds[row]
        print(f"{name:20}" + "".join(f"{np.median(part):17.2f}{np.mean(part > 0):11.1%}" for part in chosen))


def write_table(path: Path, rows: list[dict]) -> None:
    """A CSV file with a header, for tables that need many runs; whole or not there."""
    with whole_file(Path(path)) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def read_results(folder: Path) -> dict:
    """The results.json of a version.  Raises FileNotFoundError that says what to do if there is none."""
    path = Path(folder) / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"no results in {runtime.show_path(folder)}: run its notebook to the end")
    return json.loads(path.read_text())


def write_json(path: Path, content: dict) -> None:
    """Write JSON; whole or not there."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, default=float) + "\n")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, or the single value, for a table."""
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} ({len(values)} seeds)"
