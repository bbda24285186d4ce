"""What a run leaves behind: results.json, scores and figures in its TensorBoard version; and all of them as a table."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pytorch_lightning.utilities import rank_zero_only

from helpers import metrics, plots, runtime
from helpers.checkpoints import LAST
from helpers.runtime import atomic_write
from helpers.versions import RESULTS, numbered, read_hparams

if TYPE_CHECKING:
    from helpers.evaluation import Scores
    from helpers.training import Trained

SCORES = (
    "scores.npz"  # beside results.json: score, label, defect_type (N,), defect_types, validation (M,) as in ``Scores``
)
TASK = ("dataset", "subset", "normal_class", "anomaly_fraction", "tested_on", "n_test_normal", "n_test_anomalous")
NEEDED = ("notebook", *TASK, "auroc")


def report(
    scores: "Scores",
    trained: "Trained",
    seeds: dict[str, list[float]] | None = None,
    control: tuple[str, float] | None = None,
) -> dict:
    """Write results.json, scores.npz, metrics and figures into the TensorBoard version of ``trained``.

    seeds: {metric: [one value per seed]} where the training was repeated.
    control: what it is and its test AUROC, of a method without a network on the same images.
    Returns the content of results.json, one flat dict.  The version of a model that was loaded is left as it is.
    Raises ValueError if the version's own training, which closes it, was reported before this one.
    """
    result = result_fields(scores, trained, seeds, control)
    version = _version_of(trained.folder)
    if trained.logger is None or rank_zero_only.rank != 0:
        return result
    if trained.folder != version and (version / RESULTS).exists():
        raise ValueError(
            f"{runtime.show_path(version)} is closed: report the training without a name last, "
            "an interrupted notebook could not go on otherwise"
        )
    _log(scores, trained)
    kept = {name: getattr(scores, name) for name in ("score", "label", "defect_type", "validation")}
    with atomic_write(trained.folder / SCORES) as part, part.open("wb") as file:
        np.savez_compressed(file, **kept, defect_types=np.array(scores.defect_types))
    write_json(trained.folder / RESULTS, result)
    return result


def result_fields(scores, trained, seeds=None, control=None) -> dict:
    """The content of results.json; see ``report``."""
    settings = read_hparams(trained.folder) or {}
    history = {name: value for name, value in trained.history.items() if not name.startswith("frame")}
    limits = {"threshold": scores.threshold, "threshold_percentile": scores.percentile}
    limits |= {"n_calibration": scores.n_calibration, "lowest_false_positive_rate": 1 / (scores.n_calibration + 1)}
    limits |= {"true_positive_rate_interval": list(scores.interval)}
    if scores.measures_pixels:
        limits["pixel_threshold"] = scores.pixel_threshold
    return {
        "notebook": trained.run.notebook,
        "model": type(trained.model).__name__,
        "profile": settings.get("profile", trained.run.profile),
        "seed": trained.model.hparams.get("seed", 0),
        **{name: settings.get(name) for name in (*TASK, "n_train")},
        **history,
        "scoring_images_per_second": round(scores.images_per_second),
        **limits,
        **scores.metrics,
        "control": control[0] if control else None,
        "control_auroc": control[1] if control else None,
        "seeds": seeds or {"auroc": [scores.metrics["auroc"]]},
        "versions": runtime.versions(),
    }


def _log(scores: "Scores", trained: "Trained") -> None:
    writer, step = trained.logger.experiment, trained.history["batches"]
    trained.logger.log_hyperparams(
        dict(trained.model.hparams), {f"test/{name}": value for name, value in scores.metrics.items()}
    )
    histogram = plots.score_histogram(scores)
    histogram.savefig(trained.folder / "scores.png")
    writer.add_figure("results/scores", histogram, step)
    writer.add_figure("results/curves", plots.roc_and_precision_recall({"this version": scores}, scores.title), step)
    writer.add_figure("results/defect_types", plots.bars(scores.by_defect_type(), scores.title, "AUROC"), step)
    writer.flush()


def read_results(folder: Path) -> dict:
    """The results.json of a version.  Raises FileNotFoundError that says what to do if there is none."""
    path = Path(folder) / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"no results in {runtime.show_path(folder)}: run its notebook to the end")
    return json.loads(path.read_text(encoding="utf-8"))


def load_results(*logs: Path) -> pd.DataFrame:
    """Every results.json below some log folders as one table, a row a training; what could not be read is printed.

    A version is a folder ``version_N``; folders in it with a results.json of their own are further trainings of it.
    Index: the path below the log folder, "version_0/one_class".  Columns: the fields of results.json, and
    ``folder``, ``task`` (what has to agree before two rows may be compared, as one string), ``auroc_mean``
    over the seeds.  Of a folder given twice the first counts.  Nothing that is found in a folder raises an error.
    """
    rows, problems = {}, []
    for folder in dict.fromkeys(path for parent in logs for path in _folders(Path(parent))):
        name = folder.relative_to(_version_of(folder).parent).as_posix()
        try:
            row = read_results(folder)
            if missing := [key for key in NEEDED if key not in row]:
                raise ValueError(f"{RESULTS} lacks {', '.join(missing)}")
            if not 0 <= row["auroc"] <= 1:
                raise ValueError(f"{RESULTS} states an AUROC of {row['auroc']}")
            row |= {"folder": folder, "task": "; ".join(str(row[key]) for key in TASK)}
            row["auroc_mean"] = float(np.mean(row["seeds"]["auroc"]))
            rows.setdefault(name, row)
        except FileNotFoundError:
            problems.append(
                f"{name}: " + ("unfinished, run its notebook again" if (folder / LAST).exists() else f"no {RESULTS}")
            )
        except Exception as error:  # whatever a broken file makes json and NumPy raise
            problems.append(f"{name}: {error}")
    for problem in problems:
        print(f"left out: {problem}")
    return pd.DataFrame.from_dict(rows, orient="index")


def _folders(logs: Path) -> Iterable[Path]:
    for _, version in sorted(numbered(logs).items()):
        yield version
        yield from sorted(path.parent for path in version.glob(f"*/{RESULTS}"))


def _version_of(folder: Path) -> Path:
    return folder if folder.name.startswith("version_") else folder.parent


def read_scores(folder: Path) -> "Scores | None":
    """The scores that ``report`` kept, without maps; None if the folder has none that can be read."""
    from helpers.evaluation import Scores

    try:
        with np.load(folder / SCORES, allow_pickle=False) as file:
            parts = {name: file[name] for name in ("score", "label", "defect_type", "validation")}
            names = tuple(str(name) for name in file["defect_types"])
        metrics.auroc(parts["score"], parts["label"])
    except Exception as error:  # whatever a broken archive makes its readers raise
        print(f"left out: {runtime.show_path(folder)}/{SCORES}: {error}")
        return None
    return Scores(**parts, defect_types=names, title=folder.name, images_per_second=float("nan"))


def write_json(path: Path, content: dict) -> None:
    """Write JSON; complete or not there."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")


def mean_std(values: list[float]) -> str:
    """Mean and standard deviation over seeds, or the single value, for a table."""
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} ({len(values)} seeds)"
