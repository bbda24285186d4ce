import hashlib
import io
import socket
import tarfile

import pytest

from helpers.data import download
from helpers.data.download import fetch
from helpers.data.photo import DataError

CONTENT = {"nuts/a.txt": b"a", "nuts/b/c.bin": bytes(range(256)) * 99, "readme.txt": b"beside"}
HTML = b"<!doctype html><html>please log in</html>"


def packed(members):
    """A .tar.xz archive of {name: bytes, or the target of a link}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:xz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_unpacked_under_its_name_and_leftovers_go(serve, tmp_path, capsys):
    url, _ = serve({"archive.tar.xz": packed(CONTENT)})
    (tmp_path / ".nuts.part" / "nuts").mkdir(parents=True)  # of a killed attempt
    fetch(tmp_path / "nuts", [url + "archive.tar.xz"])
    assert below(tmp_path) == ["nuts", "nuts/a.txt", "nuts/b", "nuts/b/c.bin"]
    assert (tmp_path / "nuts/b/c.bin").read_bytes() == CONTENT["nuts/b/c.bin"]
    assert "100%" in capsys.readouterr().err


def test_a_file_must_have_its_checksum(serve, tmp_path):
    bad, good = (serve({"labels.gz": content})[0] + "labels.gz" for content in (HTML, b"labels"))
    md5 = hashlib.md5(b"labels", usedforsecurity=False).hexdigest()
    fetch(tmp_path / "raw" / "labels.gz", [bad, good], md5)
    assert (tmp_path / "raw" / "labels.gz").read_bytes() == b"labels"
    with pytest.raises(DataError, match="could not download labels.gz\n.*another checksum than published"):
        fetch(tmp_path / "labels.gz", [bad], md5)
    assert below(tmp_path) == ["raw", "raw/labels.gz"]


WRONG = {
    "html": HTML,
    "nothing": b"",
    "cut short": packed(CONTENT)[:-40],
    "a changed byte": (whole := packed(CONTENT))[:200] + bytes([whole[200] ^ 0xFF]) + whole[201:],
    "another folder": packed({"nuts_2/a.txt": b"a"}),
    "a way out": packed(CONTENT | {"nuts/../../../evil.txt": b"x"}),
    "a link out": packed(CONTENT | {"nuts/link": "/etc"}),
    "404": None,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_mirror_without_the_archive_is_passed_over_and_leaves_nothing(serve, tmp_path, fault):
    files = {} if WRONG[fault] is None else {"nuts.tar.xz": WRONG[fault]}
    first, second = serve(files)[0], serve({"nuts.tar.xz": packed(CONTENT)})[0]
    with pytest.raises(DataError, match=f"could not download nuts\n{first}nuts.tar.xz: "):
        fetch(tmp_path / "out" / "nuts", [first + "nuts.tar.xz"])
    assert below(tmp_path) == ["out"]
    fetch(tmp_path / "out" / "nuts", [first + "nuts.tar.xz", second + "nuts.tar.xz"])
    assert (tmp_path / "out" / "nuts" / "a.txt").read_bytes() == b"a"


def test_a_stalled_mirror_is_given_up(serve, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(download, "TIMEOUT", 0.3)
        url, _ = serve({"nuts.tar.xz": packed(CONTENT)})
        fetch(tmp_path / "nuts", [f"http://127.0.0.1:{silent.getsockname()[1]}/nuts.tar.xz", url + "nuts.tar.xz"])
        assert (tmp_path / "nuts").is_dir()
