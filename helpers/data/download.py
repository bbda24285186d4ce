"""Downloads, from the first mirror that delivers what was asked for."""

import lzma
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from helpers.data.photo import DataError

TIMEOUT = 20  # seconds without a byte after which a mirror is given up
FAULTS = (OSError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError)  # of mirrors, disks, archives


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
