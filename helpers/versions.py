"""TensorBoard versions: which folder a training goes to, and whether it is there already."""

import json
import os
import re
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout  # comes with torch

from helpers import runtime
from helpers.checkpoints import TrainingError
from helpers.data.batches import rank_and_world

RESULTS = "results.json"  # of a training that was reported; in a version's own folder it closes the version
FIRST_OWN = 10  # version_0 .. version_9 belong to the committed reference runs
_LOCKS: dict[Path, FileLock] = {}  # held until this process ends


def find_folder(run: runtime.Run, name: str, identity: dict, resume: bool) -> Path:
    """The folder of this training under ``run.version``: one that holds it unfinished (``resume``), or a new one.

    name: sub-folder for further trainings, "" for the first; identity: settings and fingerprints, as in hparams.yaml.
    Raises ValueError for a name that is no folder name, OSError if the folder cannot be written.
    """
    if name and re.fullmatch(r"[\w-]+", name) is None:
        raise ValueError(f"a name is letters, digits, _ and -: got {name!r}")
    if rank_and_world()[0] == 0:
        run.version = _choose(run, name, identity, resume)
        settings = run.version / name / "hparams.yaml"
        if not settings.exists():
            settings.parent.mkdir(parents=True, exist_ok=True)
            with runtime.atomic_write(settings) as part:
                part.write_text(yaml.safe_dump(identity), encoding="utf-8")
    if torch.distributed.is_initialized():
        box = [run.version]
        torch.distributed.broadcast_object_list(box, src=0)
        run.version = box[0]
    return run.version / name


def _choose(run: runtime.Run, name: str, identity: dict, resume: bool) -> Path:
    if run.version is not None and not (run.version / RESULTS).exists():
        found = read_hparams(run.version / name)
        if found is None or (resume and found == identity):
            return run.version
        why = "other settings" if found != identity else "this training, which was not to be resumed"
        for part in ("data", "code"):
            if found.get(f"{part}_fingerprint") != identity[f"{part}_fingerprint"]:
                why = f"other {part}"
        print(f"{runtime.show_path(run.version / name)} holds {why}: a new version begins")
    elif run.version is None and resume and "AD_VERSION" not in os.environ:
        for _, version in sorted(numbered(run.logs_dir).items(), reverse=True):
            unfinished = not (version / RESULTS).exists()
            if unfinished and read_hparams(version / name) == identity and _lock(version):
                return version
    return _claim(run.logs_dir)


def numbered(logs_dir: Path) -> dict[int, Path]:
    """{N: its folder} of every ``version_N``."""
    return {int(path.name[8:]): path for path in logs_dir.glob("version_*") if path.name[8:].isdigit()}


def read_hparams(folder: Path) -> dict | None:
    """The settings in a folder; None if there are none or they cannot be read."""
    try:
        return yaml.safe_load((folder / "hparams.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # a neighbour's broken file must not stop a training
        return None


def read_results(folder: Path) -> dict:
    """The results.json of a version.  Raises FileNotFoundError that says what to do if there is none."""
    path = Path(folder) / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"no results in {runtime.show_path(folder)}: run its notebook to the end")
    return json.loads(path.read_text(encoding="utf-8"))


def _claim(logs_dir: Path) -> Path:
    """Create the next free ``version_N``, or the one named by ``AD_VERSION``, which must not exist."""
    named = os.environ.get("AD_VERSION")
    if named is not None and not named.isdigit():
        raise ValueError(f"AD_VERSION is the number of a version: got {named!r}")
    folder = logs_dir / f"version_{int(named or max([FIRST_OWN - 1, *numbered(logs_dir)]) + 1)}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if named is None:  # another process took it in between
            return _claim(logs_dir)
        raise TrainingError(f"{folder.name} exists: no run is overwritten. Move it away, or unset AD_VERSION") from None
    _lock(folder)
    return folder


def _lock(version: Path) -> bool:
    """Whether no other living process of this machine trains into this version (a second kernel, say)."""
    try:
        _LOCKS.setdefault(version, FileLock(version / ".lock")).acquire(timeout=0)
    except (Timeout, OSError):  # held, or a folder closed to us
        return False
    return True
