"""Where data comes from: this machine, a download, or the parts of data sets in samples/."""

import functools
import hashlib
import lzma
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from helpers.data.photo import DataError
from helpers.runtime import ROOT, Run, show_path

SAMPLES = ROOT / "samples"
TIMEOUT = 20  # seconds without a byte after which a mirror is given up
FAULTS = (OSError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError)  # of mirrors, disks, archives


@functools.cache
def sample(name: str) -> Path:
    """The folder ``name`` below samples/, "mvtec_anomaly_detection/hazelnut" for example, compared with its checksums.

    Raises DataError if a file is missing or was changed.
    """
    listed = SAMPLES / "checksums.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    files = [line.split(maxsplit=1) for line in lines if line.split(maxsplit=1)[1].startswith(f"{name}/")]
    mend = "restore the folder with `git checkout samples`, or fetch the course again"
    if not files:
        raise DataError(f"there is no folder {name}, in samples/ or elsewhere; if it is a part of the course, {mend}")
    for digest, path in files:
        if not (file := SAMPLES / path).is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise DataError(f"samples/: {path} is missing or was changed; {mend}")
    return SAMPLES / name


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


def fetch(target: Path, urls: Sequence[str], md5: str | None = None) -> None:
    """Make ``target``, a file or the folder in a .tar.xz archive, from the first of ``urls`` that works.

    It appears only when it is complete.  Raises DataError with each mirror's reason.
    """
    import pooch  # imports requests, which takes time

    get = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT, chunk_size=1 << 18)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an attempt that was killed
    reasons = []
    for url in urls:
        file = part / url.rpartition("/")[2]
        try:
            part.mkdir(parents=True)
            get(url, str(file), None)
            if md5 is not None and pooch.file_hash(str(file), "md5") != md5:
                raise ValueError("another checksum than published")
            if file.name != target.name:
                with tarfile.open(file, "r:xz") as archive:
                    archive.extractall(part, filter="data")  # refuses what would land elsewhere
            (part / target.name).replace(target)
            return
        except FAULTS as error:
            reasons.append(f"{url}: {error}")
        finally:
            shutil.rmtree(part, ignore_errors=True)
    raise DataError("\n".join([f"could not download {target.name}", *reasons]))
