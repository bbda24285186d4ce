import hashlib
import subprocess
import sys

import pytest

from helpers.data.download import DataError
from helpers.data.samples import SAMPLES, find_data, sample
from helpers.runtime import ROOT


def test_samples_are_as_committed_small_complete_and_each_has_its_licence():
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in (path for path in SAMPLES.iterdir() if path.is_dir()):
        assert any(folder.glob("LICEN[CS]E*")) and folder.name in readme
    listed = dict(line.split(maxsplit=1)[::-1] for line in (SAMPLES / "checksums.txt").read_text().splitlines())
    data = {path.relative_to(SAMPLES).as_posix() for path in files if path.suffix in (".gz", ".jpg", ".png")}
    assert data <= set(listed), "every data file has a checksum"
    for name, checksum in listed.items():
        assert hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() == checksum


def test_a_sample_is_a_folder_of_the_course():
    assert sample("MNIST") == SAMPLES / "MNIST"
    with pytest.raises(DataError, match="EMNIST is missing: restore it with `git checkout samples`"):
        sample("EMNIST")


def source(url):
    return {"raw/a.gz": ([url + "a.gz"], None), "raw/b.gz": ([url + "b.gz"], None)}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_what_is_complete_on_disk_is_used_except_in_smoke(make_run, dead_url, capsys, ending):
    folder = make_run().data_dir / "MNIST"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / f"a{ending}").touch()
    assert find_data(make_run("quick"), "MNIST", source(dead_url)) == (SAMPLES / "MNIST", True)
    (folder / "raw" / f"b{ending}").touch()
    for profile in ("quick", "full"):
        assert find_data(make_run(profile), "MNIST", source(dead_url)) == (folder, False)
    assert find_data(make_run("smoke"), "MNIST", source(dead_url)) == (SAMPLES / "MNIST", True)
    assert capsys.readouterr().out == "" and not list(make_run().data_dir.glob(".*"))


def test_full_downloads_once_what_is_missing(make_run, serve):
    url, seen = serve({"a.gz": b"a", "b.gz": b"b"})
    for _ in range(2):
        folder, embedded = find_data(make_run("full"), "MNIST", source(url))
    assert not embedded and (folder / "raw" / "b.gz").read_bytes() == b"b" and seen == ["a.gz", "b.gz"]
    (folder / "raw" / "a.gz").unlink()
    find_data(make_run("full"), "MNIST", source(url))
    assert seen[2:] == ["a.gz"]


@pytest.mark.parametrize("writable", [True, False])
def test_full_falls_back_to_the_embedded_part_loudly(make_run, dead_url, capsys, writable):
    run = make_run("full")
    if not writable:
        run.data_dir.write_text("a file in the way")
    assert find_data(run, "MNIST", source(dead_url)) == (SAMPLES / "MNIST", True)
    said = capsys.readouterr().out
    assert "EMBEDDED PART samples/MNIST: put the data at .../MNIST (docs/data.md)" in said and "!" * 90 in said
    assert (dead_url if writable else str(run.data_dir)) in said


def test_several_processes_download_once(make_run, serve):
    url, seen = serve({"nuts.gz": b"nuts"})
    code = """
import sys, time
from pathlib import Path
from helpers.data import samples
from helpers.runtime import Run
fetch = samples.fetch
samples.fetch = lambda *args: time.sleep(0.5) or fetch(*args)
run = Run("01_test", "full", None, Path(sys.argv[1]), None)
samples.find_data(run, "MNIST", {"nuts.gz": ([sys.argv[2] + "nuts.gz"], None)})
"""
    command = [sys.executable, "-c", code, str(make_run().data_dir), url]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [b"", b""] and seen == ["nuts.gz"]
