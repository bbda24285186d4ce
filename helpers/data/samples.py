"""Where data comes from: this machine, a download, or the parts of data sets in samples/."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from helpers.data.download import fetch
from helpers.data.photo import DataError
from helpers.runtime import ROOT, Run, show_path

SAMPLES = ROOT / "samples"


@functools.cache
def sample(name: str) -> Path:
    """The folder ``name`` below samples/, "mvtec_anomaly_detection/hazelnut" for example, compared with its checksums.

    Raises DataError if a file is missing or was changed.
    """
    listed = SAMPLES / "checksums.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    files = [line.split(maxsplit=1) for line in lines if line.split(maxsplit=1)[1].startswith(f"{name}/")]
    wrong = [path for digest, path in files if not _intact(SAMPLES / path, digest)]
    if wrong or not files:
        what = f"{wrong[0]} is missing or was changed" if files else f"{name} is missing"
        raise DataError(f"samples/: {what}; restore the folder with `git checkout samples`, or fetch the course again")
    return SAMPLES / name


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def find_data(run: Run, name: str, sources: dict[str, tuple[Sequence[str], str | None]]) -> tuple[Path, bool]:
    """The folder ``name`` of the data folder, and whether it is the embedded part ``sample(name)`` instead.

    ``smoke``: the embedded part.  ``quick``: what is complete on disk, else the embedded part.
    ``full``: on disk, else downloaded by one process at a time; if that fails, the embedded part with a banner.
    sources: what belongs in the folder, and of each its addresses and MD5 (see ``fetch``).
    """
    folder = run.data_dir / name
    absent = [path for path in sources if not ((folder / path).exists() or (folder / path).with_suffix("").exists())]
    if run.profile == "full" and absent:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                for path in absent:
                    if not (folder / path).exists():  # another process may have been faster
                        fetch(folder / path, *sources[path])
            absent = []
        except (DataError, OSError) as error:
            says = f"Running on the EMBEDDED PART samples/{name}: put the data at {show_path(folder)} (docs/data.md)"
            print("!" * 100, says, "!" * 100, error, sep="\n")
    if run.profile == "smoke" or absent:
        return sample(name), True
    return folder, False
