"""What a run leaves behind: results.json, scores and figures in its TensorBoard version; and all of them as a table."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pytorch_lightning.utilities import rank_zero_only

from helpers import metrics, plots, runtime
from helpers.checkpoints import LAST
from helpers.evaluation import Scores
from helpers.training import Trained
from helpers.versions import RESULTS, numbered, read_hparams, read_results

SCORES = "scores.npz"  # beside results.json: ``KEPT`` and defect_types, as in ``Scores``
KEPT = ("score", "label", "defect_type", "validation")
TASK = ("dataset", "subset", "normal_class", "anomaly_fraction", "tested_on", "n_test_normal", "n_test_anomalous")


def report(scores: Scores, trained: Trained, seeds: dict | None = None, control: tuple | None = None) -> dict:
    """Write results.json, scores.npz, metrics and figures into the TensorBoard version of ``trained``.

    seeds: {metric: [one value per seed]}; control: what it is and its test AUROC, of a method without a network.
    Returns the content of results.json, one flat dict.  The version of a model that was loaded is left as it is.
    Raises ValueError if the version's own training, which closes it, was reported before this one.
    """
    folder, settings = trained.folder, read_hparams(trained.folder) or {}
    result = {
        "notebook": trained.run.notebook,
        "model": type(trained.model).__name__,
        "profile": settings.get("profile", trained.run.profile),
        "seed": trained.model.hparams.get("seed", 0),
        **{name: settings.get(name) for name in (*TASK, "n_train")},
        **{name: value for name, value in trained.history.items() if not name.startswith("frame")},
        "scoring_images_per_second": round(scores.images_per_second),
        "threshold": scores.threshold,
        "threshold_percentile": scores.percentile,
        "n_calibration": scores.n_calibration,
        "lowest_false_positive_rate": 1 / (scores.n_calibration + 1),
        "true_positive_rate_interval": list(scores.interval),
        **({"pixel_threshold": scores.pixel_threshold} if scores.measures_pixels else {}),
        **scores.metrics,
        **dict(zip(("control", "control_auroc"), control or (None, None), strict=True)),
        "seeds": seeds or {"auroc": [scores.metrics["auroc"]]},
        "versions": runtime.versions(),
    }
    if trained.logger is None or rank_zero_only.rank != 0:
        return result
    if folder != (version := _version_of(folder)) and (version / RESULTS).exists():
        why = "report the training without a name last, an interrupted notebook could not go on otherwise"
        raise ValueError(f"{runtime.show_path(version)} is closed: {why}")
    _log(scores, trained)
    with runtime.atomic_write(folder / SCORES) as part, part.open("wb") as file:
        kept = {name: getattr(scores, name) for name in KEPT}
        np.savez_compressed(file, **kept, defect_types=np.array(scores.defect_types))
    write_json(folder / RESULTS, result)
    return result


def _log(scores: Scores, trained: Trained) -> None:
    measured = {f"test/{name}": value for name, value in scores.metrics.items()}
    trained.logger.log_hyperparams(dict(trained.model.hparams), measured)
    writer, step = trained.logger.experiment, trained.history["batches"]
    histogram = plots.score_histogram(scores)
    histogram.savefig(trained.folder / "scores.png")
    writer.add_figure("results/scores", histogram, step)
    writer.add_figure("results/curves", plots.roc_and_precision_recall({"this version": scores}, scores.title), step)
    writer.add_figure("results/defect_types", plots.bars(scores.by_defect_type(), scores.title, "AUROC"), step)
    writer.flush()


def load_results(*logs: Path) -> pd.DataFrame:
    """Every results.json below some log folders as one table, a row a training; what could not be read is printed.

    Index: the path below the log folder, "version_0/one_class"; of one found twice the first counts.  Columns: the
    fields of results.json, ``folder``, ``task`` (what two rows to be compared must share) and ``auroc_mean`` over seeds.
    """
    rows = {}
    for folder in dict.fromkeys(path for parent in logs for path in _folders(Path(parent))):
        name = folder.relative_to(_version_of(folder).parent).as_posix()
        try:
            row = read_results(folder)
            if missing := [key for key in ("notebook", *TASK, "auroc") if key not in row]:
                raise ValueError(f"{RESULTS} lacks {', '.join(missing)}")
            if not 0 <= row["auroc"] <= 1:
                raise ValueError(f"{RESULTS} states an AUROC of {row['auroc']}")
            row |= {"folder": folder, "task": "; ".join(str(row[key]) for key in TASK)}
            rows.setdefault(name, row | {"auroc_mean": float(np.mean(row["seeds"]["auroc"]))})
        except FileNotFoundError:
            found = (folder / LAST).exists()
            print(f"left out: {name}: {'unfinished, run its notebook again' if found else f'no {RESULTS}'}")
        except Exception as error:  # whatever a broken file makes json and NumPy raise
            print(f"left out: {name}: {error}")
    return pd.DataFrame.from_dict(rows, orient="index")


def _folders(logs: Path) -> Iterator[Path]:
    """Every ``version_N``, and the folders in it with a results.json of their own, which are further trainings."""
    for _, version in sorted(numbered(logs).items()):
        yield from (version, *sorted(path.parent for path in version.glob(f"*/{RESULTS}")))


def _version_of(folder: Path) -> Path:
    return folder if folder.name.startswith("version_") else folder.parent


def read_scores(folder: Path) -> Scores | None:
    """The scores that ``report`` kept, without maps; None if the folder has none that can be read."""
    try:
        with (folder / SCORES).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            parts = {name: file[name] for name in KEPT}
            names = tuple(str(name) for name in file["defect_types"])
        metrics.auroc(parts["score"], parts["label"])
    except Exception as error:  # whatever a broken archive makes its readers raise
        print(f"left out: {runtime.show_path(folder)}/{SCORES}: {error}")
        return None
    return Scores(**parts, defect_types=names, title=folder.name, images_per_second=float("nan"))


def write_json(path: Path, content: dict) -> None:
    """Write JSON; complete or not there."""
    with runtime.atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")


def mean_std(values: list[float]) -> str:
    """Mean and standard deviation over seeds, or the single value, for a table."""
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} ({len(values)} seeds)"
