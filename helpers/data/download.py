"""Files from mirrors: resumed after a break, checked before they count, never half there."""

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock  # comes with torch

CHUNK = 1 << 18


class DataError(RuntimeError):
    """The data is missing, broken or cannot be written; the message says what to do."""


class DamagedFile(DataError):
    """A file that is there is not what it should be."""


def checksum_of(path: Path, algorithm: str) -> str:
    """``md5`` or ``sha256`` of a file in hex digits, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def verify(path: Path, checksum: str | None) -> None:
    """Raise DamagedFile, naming file, expected and found checksum, if ``path`` is not the file it should be.

    checksum: MD5 (32 hex digits) or SHA-256 (64); None where none is published, and nothing is checked.
    """
    if checksum is None:
        return
    algorithm = {32: "md5", 64: "sha256"}[len(checksum)]
    found = checksum_of(path, algorithm)
    if found != checksum:
        raise DamagedFile(
            f"{path} is damaged or another file: expected {algorithm.upper()} {checksum}, found {found} "
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


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Several processes of one training may want the same file or folder: one makes it, the others then find it."""
    name = hashlib.md5(str(path).encode(), usedforsecurity=False).hexdigest()
    with FileLock(Path(tempfile.gettempdir()) / f"anomaly-download-{os.getuid()}-{name}.lock"):
        yield


def download(urls: Sequence[str], path: Path, checksum: str | None, timeout: float = 20.0) -> Path:
    """Fetch ``path`` from the first of ``urls`` that delivers it whole.

    Bytes go to ``path.part``, which a later call resumes with an HTTP Range request; the name
    ``path`` appears only after the checksum holds, so a half-finished download never counts as data.
    checksum: as for ``verify``; without one, the length that the server announced has to hold.
    timeout: seconds without a byte after which a mirror counts as stalled.
    Raises DataError, with each mirror's reason and how to place the file by hand.
    """
    make_folder(path.parent)
    with one_at_a_time(path):
        if not path.exists():
            _from_mirrors(urls, path, checksum, timeout)
    return path


def _from_mirrors(urls: Sequence[str], path: Path, checksum: str | None, timeout: float) -> None:
    part = path.with_name(path.name + ".part")
    reasons = []
    for url in urls:
        resumed = part.exists()
        try:
            _fetch(url, part, timeout)
            try:
                verify(part, checksum)
            except DamagedFile:
                if not resumed:
                    raise
                part.unlink()  # what was there before may be the fault: once more, whole
                _fetch(url, part, timeout)
                verify(part, checksum)
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
        f"could not download {path.name}:\n"
        + "\n".join(reasons)
        + f"\nFetch it by hand and put it at {path}"
        + (f" (checksum {checksum})." if checksum else ".")
    )


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Append what is missing of ``url`` to ``part``; ConnectionError if the server stops early."""
    from tqdm.auto import tqdm  # costs time, and only a download needs it

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
        bar = tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := answer.read1(CHUNK):  # what came before a stall is kept
                file.write(chunk)
                bar.update(len(chunk))
    got = part.stat().st_size
    if total is not None and got < total:
        raise ConnectionError(f"interrupted after {got:,} of {total:,} bytes")


def unpack(archive: Path, inner: str, target: Path) -> None:
    """Unpack the folder ``inner`` of a tar archive as ``target``, which appears only when it is whole.

    Members that would land outside of the folder are refused (tarfile's "data" filter).
    Raises DamagedFile, after removing the archive, if it is cut short, damaged or without such a folder.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(unfinished, (member for member in tar if member.name.startswith(f"{inner}/")), filter="data")
        (unfinished / inner).replace(target)
    except (tarfile.TarError, lzma.LZMAError, EOFError, FileNotFoundError, zlib.error) as error:
        archive.unlink(missing_ok=True)
        raise DamagedFile(
            f"{archive.name} is damaged, or holds no folder {inner} ({error}): it was removed, run again to fetch it anew"
        ) from error
    except OSError as error:
        raise DataError(
            f"could not unpack {archive.name} to {target} ({error.strerror}): make room, then run again"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
