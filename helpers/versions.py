"""TensorBoard versions: which folder a training goes to, and whether it is there already."""

import os
import re
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout  # comes with torch

from helpers import runtime
from helpers.checkpoints import TrainingError

RESULTS = "results.json"  # of a training that was reported; in a version's own folder it closes the version
FIRST_OWN = 10  # version_0 .. version_9 belong to the committed reference runs
CHANGES = {"code_fingerprint": "other code", "data_fingerprint": "other data"}
_LOCKS: dict[Path, FileLock] = {}  # held until this process ends


def find_folder(run: runtime.Run, name: str, identity: dict, resume: bool) -> Path:
    """The folder of this training: the one that holds it already, or a new one.  Process 0 decides for all.

    name: sub-folder of the version for further trainings of a notebook (seeds, protocols), "" for the first.
    identity: settings and fingerprints, as hparams.yaml stores them.  With ``resume`` an unfinished version that
    holds a training with the same identity under this name is used again; anything else gets a folder of its own, in a new
    version where the present one holds another training under this name or has been reported.
    Raises ValueError for a name that is no folder name, TrainingError if the folder cannot be written.
    """
    if name and re.fullmatch(r"[\w-]+", name) is None:
        raise ValueError(f"a name is letters, digits, _ and -: got {name!r}")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        run.version = _choose(run, name, identity, resume)
        folder = run.version / name
        if not (folder / "hparams.yaml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with runtime.atomic_write(folder / "hparams.yaml") as part:
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
        why = next((text for key, text in CHANGES.items() if found.get(key) != identity[key]), "other settings")
        why = why if found != identity else "this training, which was not to be resumed"
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


def _claim(logs_dir: Path) -> Path:
    """Create the next free ``version_N`` (or the one named by ``AD_VERSION``, which must not exist)."""
    named = os.environ.get("AD_VERSION")
    if named is not None and not named.isdigit():
        raise ValueError(f"AD_VERSION is the number of a version: got {named!r}")
    number = int(named or max([FIRST_OWN - 1, *numbered(logs_dir)]) + 1)
    folder = logs_dir / f"version_{number}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if named is None:  # another process took it in between
            return _claim(logs_dir)
        raise TrainingError(
            f"{runtime.show_path(folder)} exists: no earlier run is overwritten. Move it away, or unset AD_VERSION"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"cannot write to the log folder {logs_dir} ({error.strerror}): set AD_LOGS_DIR to a writable folder"
        ) from error
    _lock(folder)
    return folder


def _lock(version: Path) -> bool:
    """Whether no other living process trains into this version (a second kernel with the same notebook, say).

    The lock holds on one machine; two machines that share a drive must not continue one version together.
    """
    if version not in _LOCKS:
        lock = FileLock(version / ".lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # held, or a folder closed to us
            return False
        _LOCKS[version] = lock
    return True
