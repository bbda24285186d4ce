"""Files from mirrors: resumed after a break, checked before they count, never half there."""

import os
import hashlib
import http.client
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock  # comes with torch

CHUNK = 1 << 18


class DataError(RuntimeError):
    """The data is missing, broken or cannot be written; the message says what to do."""


class DamagedFile(DataError):
    """A file that is there is not what it should be."""


def md5_of(path: Path) -> str:
    """MD5 of a file as 32 hex digits, read in chunks."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, md5: str) -> None:
    """Raise DamagedFile, naming file, expected and found MD5, if ``path`` is not the file it should be."""
    found = md5_of(path)
    if found != md5:
        raise DamagedFile(
            f"{path} is damaged or another file: expected MD5 {md5}, found {found} "
            f"({path.stat().st_size:,} bytes). Delete it and run again, or put the right file there."
        )


def make_folder(folder: Path) -> Path:
    """Create ``folder``; DataError that names it and AD_DATA_DIR if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(
            f"cannot write to the data folder {folder} ({error.strerror}): "
            "make it writable, or set AD_DATA_DIR to a folder that is"
        ) from error
    return folder


def download(urls: Sequence[str], path: Path, md5: str, timeout: float = 20.0, progress: bool = True) -> Path:
    """Fetch ``path`` from the first of ``urls`` that delivers it whole.

    Bytes go to ``path.part``, which a later call resumes with an HTTP Range request; the name
    ``path`` appears only after the checksum holds, so a half-finished download never counts as data.
    timeout: seconds without a byte after which a mirror counts as stalled.
    Raises DataError, with each mirror's reason and how to place the file by hand.
    """
    make_folder(path.parent)
    # several processes of one training may want the same file: one fetches, the others then find it
    with FileLock(Path(tempfile.gettempdir()) / f"anomaly-download-{os.getuid()}-{md5}.lock"):
        if not path.exists():
            _from_mirrors(urls, path, md5, timeout, progress)
    return path


def _from_mirrors(urls: Sequence[str], path: Path, md5: str, timeout: float, progress: bool) -> None:
    part = path.with_name(path.name + ".part")
    reasons = []
    for url in urls:
        resumed = part.exists()
        try:
            _fetch(url, part, timeout, progress)
            if resumed and md5_of(part) != md5:  # what was there before may be the fault: once more, whole
                part.unlink()
                _fetch(url, part, timeout, progress)
            verify(part, md5)
        except DataError as error:
            reasons.append(f"  {url}: {error}")
            part.unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as error:
            have = part.stat().st_size if part.exists() else 0
            reasons.append(f"  {url}: {type(error).__name__}: {error} ({have:,} bytes kept for a resume)")
        else:
            part.replace(path)
            return
    raise DataError(
        f"could not download {path.name}:\n" + "\n".join(reasons) + f"\nFetch it by hand and put it at {path} (MD5 {md5})."
    )


def _fetch(url: str, part: Path, timeout: float, progress: bool) -> None:
    """Append what is missing of ``url`` to ``part``; ConnectionError if the server stops early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we hold: the checksum decides whether it is whole
            return
        raise
    with answer:
        if answer.status != 206:  # the server ignored the range and sends all of it
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as file, _bar(part, have, total, progress) as bar:
            while chunk := answer.read1(CHUNK):  # what came before a stall is kept
                file.write(chunk)
                bar.update(len(chunk))
    got = part.stat().st_size
    if total is not None and got < total:
        raise ConnectionError(f"interrupted after {got:,} of {total:,} bytes")


def _bar(part: Path, have: int, total: int | None, progress: bool):
    from tqdm.auto import tqdm  # costs time, and only a download needs it

    return tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=not progress)
