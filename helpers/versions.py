"""Every version below a logs folder: results, settings, losses and scores, or the reason why they are missing."""

import ast
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from helpers import metrics, runtime
from helpers.models import AnomalyModel
from helpers.plots import scalars
from helpers.results import SCORES, read_scores, spread
from helpers.training import CHECKPOINT, LAST, REFERENCE_VERSIONS, RESULTS, Scores, TrainingError, load, read_checkpoint

NAME = re.compile(r"version_(\d+)")
EXPECTED = {  # of results.json, beside what is needed for a rank: data set, protocol and AUROC
    "notebook": str,
    "profile": str,
    "device": str,
    "epochs": (int, float),
    "train_seconds": (int, float),
    "images_per_second": (int, float),
    "parameters": (int, float),
    "seeds": dict,
}
COST = "scoring_images_per_second"
AGREE = 1e-4  # AUROC of scores.npz and of results.json


@dataclass
class Version:
    """One training with its results, as far as they could be read.

    name: its path below the logs folder.  results: content of results.json, empty if it cannot be ranked.
    losses: {name: (batches, values)}.  scores: of the test images; None if they are missing.
    problem: the first thing that is missing or broken, in words; empty if nothing is.
    """

    name: str
    folder: Path
    results: dict = field(default_factory=dict)
    hparams: dict = field(default_factory=dict)
    losses: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    scores: Scores | None = None
    problem: str = ""

    @property
    def seeds(self) -> list[float]:
        """AUROC of every seed."""
        return self.results["seeds"].get("auroc") or [self.results["metrics"]["auroc"]]

    @property
    def quality(self) -> float:
        """Mean AUROC over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def task(self) -> tuple[str, str]:
        """Data set and protocol; only versions with the same task may be ranked.

        The size to which a method shrinks the photographs belongs to the method, not to the task.  A test set
        cut down by the setting ``limit`` is another test set.
        """
        protocol = re.sub(r"(?:^|, )\d+x\d+(?=,|$)", "", self.results["protocol"])
        limit = self.hparams.get("limit")
        return self.results["dataset"], protocol + (f", at most {limit} images of each label" if limit else "")


def read_versions(course: Path, own: Path) -> list[Version]:
    """The committed versions of the course, then all others in the reader's own logs folder, in their order.

    A version is a folder ``version_<number>``, or a folder in it with a results.json of its own (another protocol
    or another data set).  Folders with other names are listed with their problem; nothing that is found in
    the folders raises an error.  A name that is taken gets ``(2)`` behind it.
    """
    committed = [
        (course, part)
        for part in _parts(course)
        if (number := _number_of(part, course)) is not None and number < REFERENCE_VERSIONS
    ]
    known = {part.resolve() for _, part in committed}
    found: dict[str, Version] = {}
    for logs, part in committed + [(own, part) for part in _parts(own) if part.resolve() not in known]:
        name, copies = part.relative_to(logs).as_posix(), 1
        while (unique := name if copies == 1 else f"{name} ({copies})") in found:
            copies += 1
        found[unique] = read_version(part, unique)
    return list(found.values())


def _number_of(part: Path, logs: Path) -> int | None:
    """N of ``version_N`` for it and for the folders in it; None for folders with other names."""
    name = NAME.fullmatch(part.relative_to(logs).parts[0])
    return int(name[1]) if name else None


def _parts(folder: Path) -> list[Path]:
    try:
        top = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []  # no such folder, or closed to us: there are no versions in it
    numbered = sorted((path for path in top if NAME.fullmatch(path.name)), key=lambda path: int(path.name[8:]))
    others = sorted(path for path in top if not NAME.fullmatch(path.name))
    inner = {path: sorted(result.parent for result in path.glob(f"*/{RESULTS}")) for path in numbered}
    return [part for path in numbered for part in (path, *inner[path])] + others


def read_version(folder: Path, name: str) -> Version:
    """What one folder holds; what is missing or broken is said in ``problem``, the worst first."""
    version = Version(name, folder)
    if not any(NAME.fullmatch(part) for part in (folder.name, folder.parent.name)):
        version.problem = "not a version: its name is not version_<number>"
        return version
    if not any(folder.iterdir()):
        version.problem = "empty folder"
        return version
    problems = []
    for fill in (_read_results, _read_hparams, _read_losses, _read_scores):
        try:
            problems.append(fill(version))
        except OSError as error:
            problems.append(f"{Path(error.filename or folder).name} cannot be read ({error.strerror})")
    version.problem = next(filter(None, problems), "")
    return version


def _read_results(version: Version) -> str:
    path = version.folder / RESULTS
    if not path.exists():
        unfinished = (version.folder / LAST).exists()
        return "unfinished: run its notebook again to continue it" if unfinished else f"no {RESULTS}"
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return f"{RESULTS} is broken: no JSON"
    if not isinstance(found, dict):
        return f"{RESULTS} is broken: no table of results"
    measured = found.get("metrics")
    if not (_is_share(measured.get("auroc")) if isinstance(measured, dict) else False):
        return f"{RESULTS} holds no AUROC between 0 and 1"
    if missing := [key for key in ("dataset", "protocol") if not isinstance(found.get(key), str)]:
        return f"{RESULTS} of an older format: no {', '.join(missing)}"
    missing = [key for key, kind in EXPECTED.items() if not isinstance(found.get(key), kind)]
    version.results = {key: value for key, value in found.items() if key not in missing}
    version.results["metrics"] = {name: value for name, value in measured.items() if isinstance(value, (int, float))}
    values = found.get("seeds") if "seeds" not in missing else {}
    sound = all(isinstance(each, list) and all(map(_is_share, each)) for each in values.values())
    version.results["seeds"] = values if sound else {}
    if missing:
        return f"{RESULTS} of an older format: no {', '.join(missing)}"
    return "" if sound else f"{RESULTS}: the seeds are no lists of numbers between 0 and 1"


def _is_share(value) -> bool:
    """Whether a metric is what a metric can be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _read_hparams(version: Version) -> str:
    path = version.folder / "hparams.yaml"
    if not path.exists():
        return "no hparams.yaml"
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return "hparams.yaml is broken: no YAML"
    if not isinstance(found, dict):
        return "hparams.yaml is broken: no table of settings"
    version.hparams = found
    return ""


def _read_losses(version: Version) -> str:
    files = sorted(version.folder.glob("events.out.tfevents.*"))
    problems = [problem for path in files if (problem := event_file_problem(path))]
    if len(problems) < len(files) or any("cut short" in problem for problem in problems):
        try:
            version.losses = scalars(version.folder, "loss/")
        except Exception as error:  # whatever wrong bytes make TensorBoard's reader raise
            problems.append(f"event file is broken: {type(error).__name__}")
    return "no event file" if not files else next(iter(problems), "")


def event_file_problem(path: Path) -> str:
    """Why TensorBoard cannot read the whole of an event file; empty if it can.

    The file is a row of records: length (8 bytes), its checksum (4), content, checksum of the content (4).
    Only the lengths are looked at, so this takes no time.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    size, position, records = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(12)
            if len(head) == 12 and struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                return "event file is broken" if records else "event file is broken: it is none of TensorBoard's"
            position += 16 + struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if position > size or len(head) < 12:
                return f"event file is cut short after {records} records"
            records += 1
    return "" if records else "empty event file"


def _read_scores(version: Version) -> str:
    path = version.folder / SCORES
    if not path.exists():
        return f"no {SCORES} (an older format): no ROC curve" if version.results else f"no {SCORES}"
    try:
        scores = read_scores(
            path, ": ".join(version.task) if version.results else "", version.results.get(COST, math.nan)
        )
        auroc = metrics.auroc(scores.score, scores.label)
        metrics.threshold(scores.validation)
    except Exception as error:  # whatever a broken archive makes its readers raise
        return f"{SCORES} is broken: {error}"
    stated = version.results["metrics"]["auroc"] if version.results else auroc
    if abs(auroc - stated) > AGREE:
        return f"{SCORES} and {RESULTS} disagree: AUROC {auroc:.4f} and {stated:.4f}"
    version.scores = scores
    return ""


def groups(versions: Iterable[Version]) -> dict[tuple[str, str], list[Version]]:
    """{(data set, protocol): its versions, best mean AUROC first}: only within a group may anything be ranked.

    Versions without results are left out.
    """
    found: dict[tuple[str, str], list[Version]] = {}
    for version in versions:
        if version.results:
            found.setdefault(version.task, []).append(version)
    return {task: sorted(members, key=lambda version: -version.quality) for task, members in sorted(found.items())}


def same_images(first: Version, second: Version) -> bool:
    """Whether two versions have scores of the same test images in the same order, as far as labels and kinds tell."""
    one, two = first.scores, second.scores
    if one is None or two is None or len(one.label) != len(two.label):
        return False
    return bool((one.label == two.label).all()) and _names(one) == _names(two)


def _names(scores: Scores) -> list[str]:
    return [scores.kinds[kind] for kind in scores.kind]


def row(version: Version) -> dict[str, str]:
    """One version as text for a table: quality over seeds, cost, device; a dash where nothing is known."""
    result = version.results
    return {
        "version": f"`{version.name}`",
        "notebook": str(result.get("notebook", "–")),
        "model": str(version.hparams.get("model", "–")),
        "AUROC": spread(version.seeds),
        "parameters": _number(result.get("parameters"), ",.0f"),
        "training s": _number(result.get("train_seconds"), ",.0f"),
        "images/s": _number(result.get("images_per_second"), ",.0f"),
        "scoring images/s": _number(result.get(COST), ",.0f"),
        "epochs": _number(result.get("epochs"), ".0f"),
        "device": str(result.get("device", "–")),
        "profile": str(result.get("profile", "–")),
    }


def _number(value, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows of one form as a Markdown table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(each.values()) for each in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def rebuild(version: Version, run: runtime.Run, notebooks: Path) -> AnomalyModel:
    """The trained model: its class from the notebook that defined it, settings and weights from the version.

    notebooks: folder with the notebooks.  Raises TrainingError that says what is missing.
    """
    path = version.folder / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{version.name} has no {CHECKPOINT}")
    page = notebooks / f"{version.hparams.get('notebook')}.ipynb"
    if not page.exists():
        raise TrainingError(f"{version.name} was made by a notebook that is not here: {page.stem}")
    name = read_checkpoint(path).get("model_class")
    found = definitions(page).get(name)
    if found is None:
        raise TrainingError(f"{page.name} defines no {name}, which {version.name} holds")
    try:
        model = found(version.hparams)
    except Exception as error:  # a notebook's class raises what it likes
        raise TrainingError(f"{version.name}: {name} cannot be made from its settings: {error}") from error
    return load(model, run, version.folder).model.eval()


def definitions(path: Path) -> dict:
    """Imports, functions, classes and literal CONSTANTS of a notebook, executed; so others use its very model."""
    scope: dict = {"__name__": path.stem}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, DEFINITIONS) or _is_constant(node, scope):
                    exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def _is_constant(node: ast.stmt, scope: dict) -> bool:
    """Whether a statement gives a NAME in capitals a value made of literals and of such names."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    if not targets or not all(isinstance(target, ast.Name) and target.id.isupper() for target in targets):
        return False
    parts = list(ast.walk(node.value))
    known = all(part.id in scope for part in parts if isinstance(part, ast.Name))
    return known and not any(isinstance(part, (ast.Call, ast.Attribute)) for part in parts)


DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
