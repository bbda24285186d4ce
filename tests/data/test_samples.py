import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.data import samples
from helpers.data.photo import DataError
from helpers.data.samples import SAMPLES, find_data, sample


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
    copy = tmp_path / "samples"
    shutil.copytree(SAMPLES / "MNIST", copy / "MNIST")
    shutil.copy(SAMPLES / "checksums.txt", copy)
    monkeypatch.setattr(samples, "SAMPLES", copy)
    samples.sample.cache_clear()
    assert samples.sample("MNIST") == copy / "MNIST"
    harm(next((copy / "MNIST" / "raw").glob("t10k-images*")))
    samples.sample.cache_clear()
    with pytest.raises(DataError, match="t10k-images.* is missing or was changed; restore"):
        samples.sample("MNIST")
    samples.sample.cache_clear()


def test_a_sample_is_a_folder_of_the_course():
    assert sample("MNIST") == SAMPLES / "MNIST"
    with pytest.raises(DataError, match="EMNIST is missing; restore the folder with `git checkout samples`"):
        sample("EMNIST")


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


def test_full_downloads_once_what_is_missing(make_run, serve):
    url, seen = serve({"a.gz": b"a", "b.gz": b"b"})
    for _ in range(2):
        folder, embedded = find_data(make_run("full"), "MNIST", source(url))
    assert not embedded and (folder / "raw" / "b.gz").read_bytes() == b"b" and seen == ["a.gz", "b.gz"]
    (folder / "raw" / "a.gz").unlink()
    find_data(make_run("full"), "MNIST", source(url))
    assert seen[2:] == ["a.gz"]


@pytest.mark.parametrize("writable", [True, False])
def test_full_falls_back_to_the_embedded_part_loudly(make_run, serve, capsys, writable):
    run, url = make_run("full"), serve({})[0]
    if not writable:
        run.data_dir.write_text("a file in the way")
    assert find_data(run, "MNIST", source(url)) == (SAMPLES / "MNIST", True)
    said = capsys.readouterr().out
    assert "EMBEDDED PART samples/MNIST: put the data at .../MNIST (docs/data.md)" in said and "!" * 90 in said
    assert (url if writable else str(run.data_dir)) in said


def test_one_of_several_downloads(make_run, serve, monkeypatch):
    url, seen = serve({"a.gz": b"a", "b.gz": b"b"})
    fetch = samples.fetch
    monkeypatch.setattr(samples, "fetch", lambda *args: time.sleep(0.2) or fetch(*args))
    with ThreadPoolExecutor() as pool:  # locks hold for threads as for processes
        found = list(pool.map(lambda _: find_data(make_run("full"), "MNIST", source(url)), range(3)))
    assert seen == ["a.gz", "b.gz"] and not any(embedded for _, embedded in found)
