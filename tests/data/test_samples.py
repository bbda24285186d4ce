import hashlib
import io
import shutil
import socket
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.data import samples
from helpers.data.photo import DataError
from helpers.data.samples import SAMPLES, fetch, find_data


def test_samples_are_as_committed_small_complete_and_each_has_its_licence():
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_500_000
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in (path for path in SAMPLES.iterdir() if path.is_dir()):
        assert any(folder.glob("LICEN[CS]E*")) and folder.name in readme
    listed = dict(line.split(maxsplit=1)[::-1] for line in (SAMPLES / "checksums.txt").read_text().splitlines())
    data = {path.relative_to(SAMPLES).as_posix() for path in files if path.suffix in (".flac", ".gz", ".jpg", ".png")}
    assert data <= set(listed), "every data file has a checksum"
    for name, checksum in listed.items():
        assert hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize("harm", [lambda file: file.write_bytes(b"other"), lambda file: file.unlink()])
def test_a_changed_or_missing_sample_is_one_clear_error(tmp_path, monkeypatch, harm):
    copy, check = tmp_path / "samples", samples.sample.__wrapped__  # which keeps nothing in memory
    shutil.copytree(SAMPLES / "MNIST", copy / "MNIST")
    shutil.copy(SAMPLES / "checksums.txt", copy)
    monkeypatch.setattr(samples, "SAMPLES", copy)
    assert check("MNIST") == copy / "MNIST"
    harm(next((copy / "MNIST" / "raw").glob("t10k-images*")))
    for name, what in (
        ("MNIST", "MNIST/raw/t10k-images.* is missing or was changed"),
        ("EMNIST", "no folder EMNIST, in "),
    ):
        with pytest.raises(DataError, match=f"{what}.* `git checkout samples`"):
            check(name)


def source(url):
    return {"raw/a.gz": ([url + "a.gz"], None), "raw/b.gz": ([url + "b.gz"], None)}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_what_is_complete_on_disk_is_used_except_in_smoke(make_run, capsys, ending):
    folder = make_run().data_dir / "MNIST"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / f"a{ending}").touch()
    assert find_data(make_run("quick"), "MNIST", source("")) == (SAMPLES / "MNIST", True)
    (folder / "raw" / f"b{ending}").touch()
    for profile in ("quick", "full"):
        assert find_data(make_run(profile), "MNIST", source("")) == (folder, False)
    assert find_data(make_run("smoke"), "MNIST", source("")) == (SAMPLES / "MNIST", True)
    assert capsys.readouterr().out == "" and not list(make_run().data_dir.glob(".*"))


@pytest.mark.parametrize("writable", [True, False])
def test_full_falls_back_to_the_embedded_part_loudly(make_run, serve, capsys, writable):
    run, url = make_run("full"), serve({})[0]
    if not writable:
        run.data_dir.write_text("a file in the way")
    assert find_data(run, "MNIST", source(url)) == (SAMPLES / "MNIST", True)
    said = capsys.readouterr().out
    assert "EMBEDDED PART samples/MNIST: put the data at .../MNIST (docs/data.md)" in said and "!" * 90 in said
    assert (url if writable else str(run.data_dir)) in said


def test_full_downloads_what_is_missing_and_of_several_processes_one_does(make_run, serve, monkeypatch):
    (url, seen), folder = serve({"a.gz": b"a", "b.gz": b"b"}), make_run().data_dir / "MNIST"
    (folder / "raw" / ".a.gz.part" / "raw").mkdir(parents=True)  # of a killed attempt
    monkeypatch.setattr(samples, "fetch", lambda *args: time.sleep(0.2) or fetch(*args))
    with ThreadPoolExecutor() as pool:  # locks hold for threads as for processes
        found = list(pool.map(lambda _: find_data(make_run("full"), "MNIST", source(url)), range(3)))
    assert found == [(folder, False)] * 3 and seen == ["a.gz", "b.gz"]
    (folder / "raw" / "a.gz").unlink()
    find_data(make_run("full"), "MNIST", source(url))
    assert seen[2:] == ["a.gz"] and (folder / "raw" / "b.gz").read_bytes() == b"b"


# --- downloads --------------------------------------------------------------------------------------------------------

CONTENT = {"nuts/a.txt": b"a", "nuts/b/c.bin": bytes(range(256)) * 99, "readme.txt": b"beside"}
HTML = b"<!doctype html><html>please log in</html>"


def packed(members):
    """A .tar.xz archive of {name: bytes, or the target of a link}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:xz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname, content = tarfile.SYMTYPE, content, b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


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
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_mirror_without_the_archive_is_passed_over_and_leaves_nothing(serve, tmp_path, capsys, content):
    first, second = (serve({"nuts.tar.xz": file})[0] + "nuts.tar.xz" for file in (content, packed(CONTENT)))
    with pytest.raises(DataError, match=f"could not download nuts\n{first}: "):
        fetch(tmp_path / "nuts", [first])
    assert below(tmp_path) == []
    fetch(tmp_path / "nuts", [first, second])
    assert below(tmp_path) == ["nuts", "nuts/a.txt", "nuts/b", "nuts/b/c.bin"]
    assert (tmp_path / "nuts/b/c.bin").read_bytes() == CONTENT["nuts/b/c.bin"]
    assert "100%" in capsys.readouterr().err


def test_a_stalled_mirror_is_given_up(serve, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(samples, "TIMEOUT", 0.3)
        url, _ = serve({"nuts.tar.xz": packed(CONTENT)})
        fetch(tmp_path / "nuts", [f"http://127.0.0.1:{silent.getsockname()[1]}/nuts.tar.xz", url + "nuts.tar.xz"])
        assert (tmp_path / "nuts").is_dir()
