import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import mvtec, samples
from helpers.data.download import DamagedFile, DataError
from helpers.data.mvtec import LICENCE, PAINTED, PAINTED_IMAGES, MVTec
from tests.conftest import ROOT

SIDE = 24
GOOD = 20  # training images, of brightness 100, 101, ...
TESTED = {"good": 3, "dent": 4, "scratch": 2}


def write(path, brightness=0, side=SIDE, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), brightness).convert(mode).save(path)
    return path


def write_mask(path, row):
    """A mask that marks one row."""
    write(path)
    marked = np.zeros((SIDE, SIDE), dtype=np.uint8)
    marked[row] = 255
    Image.fromarray(marked).save(path)


@pytest.fixture
def category(tmp_path):
    """A folder in MVTec's layout in which brightness tells the images apart; the n-th mask marks row n."""
    root = tmp_path / "parts"
    for number in range(GOOD):
        write(root / "train" / "good" / f"{number:03}.png", 100 + number)
    brightness = 10
    for kind, count in TESTED.items():
        for number in range(count):
            write(root / "test" / kind / f"{number:03}.png", brightness)
            brightness += 1
            if kind != "good":
                write_mask(root / "ground_truth" / kind / f"{number:03}_mask.png", number)
    return root


@pytest.fixture
def read(make_run, category, monkeypatch):
    """``read(**settings)``: the data set in ``category``."""
    monkeypatch.delenv("AD_DATA", raising=False)
    return lambda **settings: MVTec(make_run(), **{"dataset": str(category), "size": SIDE} | settings)


def brightness(split):
    """The value that most pixels of each image have."""
    return split.images.flatten(1).mode(1).values.tolist()


# --- the layout -----------------------------------------------------------------------------------------------------


def test_test_images_come_with_their_kinds_and_masks(read):
    data = read()
    assert data.kinds == ("good", "dent", "scratch", "crack", "cut", "hole", "print")
    assert data.test.images.shape == (9, 3, SIDE, SIDE) and data.test.images.dtype == torch.uint8
    assert brightness(data.test) == list(range(10, 19))
    assert data.test.label.tolist() == [0] * 3 + [1] * 6
    assert data.test.kind.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert data.test.has_mask.tolist() == [True] * 9
    assert data.test.mask.dtype == torch.bool
    rows = [set(mask.nonzero()[:, 0].tolist()) for mask in data.test.mask]
    assert rows == [set(), set(), set(), {0}, {1}, {2}, {3}, {0}, {1}]
    assert data.test.mask.sum((1, 2)).tolist() == [0] * 3 + [SIDE] * 6


def test_the_name_counts_and_licence_can_be_shown(read):
    data = read()
    assert data.title == f"parts, {GOOD} good images: one-class, {SIDE}x{SIDE}"
    assert not data.is_sample
    assert data.counts() == {
        "training": {"normal": 18, "anomalous": 0},
        "validation": {"normal": 2, "anomalous": 8},
        "test": {"normal": 3, "anomalous": 6},
    }
    assert "CC BY-NC-SA 4.0" in LICENCE and "Bergmann" in LICENCE


def test_size_and_colour_are_those_asked_for(read):
    data = read(size=16, grey=True)
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (1, 16, 16) and split.mask.shape[1:] == (16, 16)
        assert len(split.images) == len(split.label) == len(split.kind) == len(split.mask) == len(split.has_mask)


def test_names_of_masks_need_no_suffix_and_images_may_have_any_ending(read, category):
    (category / "ground_truth" / "dent" / "002_mask.png").rename(category / "ground_truth" / "dent" / "002.png")
    Image.open(category / "test" / "dent" / "001.png").save(category / "test" / "dent" / "001.bmp")
    (category / "test" / "dent" / "001.png").unlink()
    assert read().test.has_mask.all()


def test_batches_are_normal_only_and_an_epoch_may_be_longer_than_the_set(read):
    data = read(batch_size=8, images_per_epoch=64)
    batches = list(data.train_dataloader())
    assert len(batches) == 8
    assert all(normal.shape == (8, 3, SIDE, SIDE) and len(anomalous) == 0 for normal, anomalous in batches)
    assert batches[0][0].min() >= -1 and batches[0][0].max() <= 1


# --- held out -------------------------------------------------------------------------------------------------------


def test_every_good_image_is_trained_on_or_held_out_never_both(read):
    data = read(held_out=0.25)
    trained, kept = brightness(data.train), brightness(data.validation.normal())
    assert len(kept) == 5 and len(trained) == 15
    assert sorted(trained + kept) == list(range(100, 100 + GOOD))
    assert not data.train.label.any() and not data.train.mask.any()


def test_defects_are_painted_on_held_out_images_only(read):
    data = read(held_out=0.25)
    split, count = data.validation, 5
    assert split.label.tolist() == [0] * count + [1] * 4 * count
    assert [data.kinds[kind] for kind in split.kind[count:].tolist()] == [name for name in PAINTED for _ in range(5)]
    assert split.has_mask.all()
    good, painted = split.images[:count], split.images[count:]
    for place, image in enumerate(painted):
        mask, original = split.mask[count + place], good[place % count]
        changed = (image != original).any(0)
        assert mask.any() and (changed & mask).sum() > 0.8 * mask.sum()
        assert mask.sum() < 0.3 * mask.numel()
    assert not split.mask[:count].any()


def test_a_kind_that_is_painted_and_tested_has_one_number(read, category):
    (category / "test" / "dent").rename(category / "test" / "hole")
    (category / "ground_truth" / "dent").rename(category / "ground_truth" / "hole")
    data = read()
    assert data.kinds == ("good", "hole", "scratch", "crack", "cut", "print")
    assert set(data.validation.kind.tolist()) == {0, 1, 3, 4, 5}


def test_painting_stops_at_a_few_images(read):
    assert read(held_out=0.75).counts()["validation"] == {"normal": 15, "anomalous": 4 * PAINTED_IMAGES}


def test_the_seed_decides_what_is_held_out_and_painted(read):
    first, again, other = read(seed=1), read(seed=1), read(seed=2)
    assert torch.equal(first.validation.images, again.validation.images)
    assert torch.equal(first.validation.mask, again.validation.mask)
    assert torch.equal(first.train.images, again.train.images)
    assert brightness(first.validation.normal()) != brightness(other.validation.normal())
    assert torch.equal(first.test.images, other.test.images)


def test_at_least_one_image_is_held_out_and_one_trained_on(read, category):
    for path in sorted((category / "train" / "good").iterdir())[2:]:
        path.unlink()
    for share in (0.01, 0.5):
        counts = read(held_out=share, batch_size=1).counts()
        assert counts["training"]["normal"] == counts["validation"]["normal"] == 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_a_share_that_cannot_be_is_refused(read, share):
    with pytest.raises(ValueError, match=rf"in \(0, 1\): got {share}"):
        read(held_out=share)


def test_a_limit_holds_for_each_kind_in_each_split(read):
    data = read(limit=2)
    assert data.counts()["training"]["normal"] + data.counts()["validation"]["normal"] == 2
    assert data.test.kind.tolist() == [0, 0, 1, 1, 2, 2]
    assert brightness(data.test) == [10, 11, 13, 14, 17, 18]


# --- defects that nobody marked -------------------------------------------------------------------------------------


def test_an_image_without_a_mask_counts_for_image_metrics_only_and_that_is_said_once(read, category, capsys):
    (category / "ground_truth" / "dent" / "001_mask.png").unlink()
    data = read()
    assert data.test.has_mask.tolist() == [True] * 4 + [False] + [True] * 4
    assert data.test.label[4] == 1 and not data.test.mask[4].any()
    assert data.test.mask[3, 0].all() and data.test.mask[5, 2].all()  # its neighbours keep theirs
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "1 defective test images have no mask: they count for image metrics only" in said
    read()  # as every further training does
    assert capsys.readouterr().out == ""


def test_a_folder_without_any_masks_is_read(read, category, capsys):
    shutil.rmtree(category / "ground_truth")
    data = read()
    assert data.test.has_mask.tolist() == [True] * 3 + [False] * 6
    assert not data.test.mask.any()
    assert "6 defective test images have no mask" in capsys.readouterr().out


def test_nothing_is_said_of_a_folder_without_fault(read, capsys):
    read()
    assert capsys.readouterr().out == ""


# --- what can be wrong with a folder --------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:50])


def sixteen_bit(path):
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint16)).save(path)


FAULTS = {
    "no train/good": (lambda root: shutil.rmtree(root / "train" / "good"), "parts has no folder train/good: expected"),
    "an empty folder": (lambda root: [shutil.rmtree(root), root.mkdir()], "parts has no folder train/good: expected"),
    "no training images": (
        lambda root: [shutil.rmtree(root / "train/good"), (root / "train/good").mkdir()],
        "no image in .*train/good: expected files ending in .png",
    ),
    "one training image": (
        lambda root: [path.unlink() for path in sorted((root / "train" / "good").iterdir())[1:]],
        "train/good holds one image: some for training and some for thresholds",
    ),
    "no test folder": (lambda root: shutil.rmtree(root / "test"), "parts has no folder test: expected"),
    "no defects": (
        lambda root: [shutil.rmtree(root / "test" / name) for name in ("dent", "scratch")],
        "test needs a folder good and at least one folder of a defect",
    ),
    "no good test images": (lambda root: shutil.rmtree(root / "test" / "good"), "test needs a folder good and"),
    "an empty kind": (
        lambda root: [path.unlink() for path in (root / "test" / "dent").iterdir()],
        "no image in .*test/dent: expected files ending",
    ),
    "an unreadable image": (
        lambda root: (root / "train/good/003.png").write_bytes(b"no picture"),
        "train/good/003.png cannot be read as an image",
    ),
    "a truncated image": (lambda root: truncate(root / "test/dent/001.png"), "test/dent/001.png cannot be read as an"),
    "an empty image beside its mask": (
        lambda root: (root / "test/dent/001.png").write_bytes(b""),
        "test/dent/001.png cannot be read as an image",
    ),
    "a truncated mask": (
        lambda root: truncate(root / "ground_truth/dent/001_mask.png"),
        "ground_truth/dent/001_mask.png cannot be read as a mask",
    ),
    "a 16-bit image": (lambda root: sixteen_bit(root / "test/good/001.png"), "test/good/001.png has more than 8 bits"),
    "a mask of another size": (
        lambda root: write(root / "ground_truth/scratch/000_mask.png", side=30),
        f"scratch/000_mask.png is 30x30 pixels, its image 000.png is {SIDE}x{SIDE}",
    ),
    "a mask without its image": (
        lambda root: (root / "test/scratch/001.png").unlink(),
        "scratch/001_mask.png belongs to no image: there is no 001 in .*test/scratch",
    ),
}


@pytest.mark.parametrize("mode", ["auto", "real"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gives_one_clear_message_and_never_the_sample(read, category, monkeypatch, capsys, fault, mode):
    monkeypatch.setenv("AD_DATA", mode)
    spoil, message = FAULTS[fault]
    spoil(category)
    with pytest.raises(DataError, match=message) as caught:
        read()
    assert str(category) in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_other_kinds_of_images_are_converted_and_that_is_said(read, category, capsys):
    for number, mode in enumerate(("L", "RGBA", "P", "1")):
        write(category / "train" / "good" / f"{number:03}.png", 255, mode=mode)
    data = read()
    assert data.train.images.shape[1] == 3
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"of {GOOD} images converted to colour" in said
    for name in ("1 grey", "1 alpha", "1 palette", "1 black and white"):
        assert name in said


# --- which folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_sample(monkeypatch):
    """The sample is a few small hazelnuts, so that no test has to wait for all of them."""

    def small(folder):
        return render(folder, train=4, good=2, each_kind=1, size=48)

    monkeypatch.setattr(samples, "hazelnuts_as_mvtec", small)


render = samples.hazelnuts_as_mvtec


def place(category, run, *names):
    target = run.data_dir.joinpath(*names)
    shutil.copytree(category, target)
    return target


def test_a_category_in_the_data_folder_is_found(make_run, category):
    run = make_run()
    place(category, run, "mvtec_anomaly_detection", "bottle")
    data = MVTec(run, "bottle", SIDE)
    assert data.dataset == f"bottle, {GOOD} good images" and not data.is_sample
    place(category, run, "my_parts")
    assert MVTec(run, "my_parts", SIDE).dataset.startswith("my_parts, ")


def test_a_path_is_a_folder_anywhere_but_a_bare_name_is_not(make_run, category, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert MVTec(make_run(), "./parts", SIDE).dataset == f"parts, {GOOD} good images"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MVTec(make_run(), "~/parts", SIDE).dataset == f"parts, {GOOD} good images"
    with pytest.raises(ValueError, match="no data set 'parts'"):
        MVTec(make_run(), "parts", SIDE)


@pytest.mark.parametrize("mode", ["auto", "real"])
def test_a_name_that_does_not_exist_lists_what_is_at_hand(make_run, category, monkeypatch, capsys, mode):
    monkeypatch.setenv("AD_DATA", mode)
    run = make_run()
    with pytest.raises(ValueError, match="At hand in .*: none. MVTec AD has bottle, cable"):
        MVTec(run, "hazlenut", SIDE)
    for names in (("mvtec_anomaly_detection", "screw"), ("my_parts",), ("mvtec_anomaly_detection", "bottle")):
        place(category, run, *names)
    (run.data_dir / "mvtec_anomaly_detection" / "half" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="no data set 'hazlenut': neither a folder nor a category.*hazelnut") as caught:
        MVTec(run, "hazlenut", SIDE)
    assert "At hand in .../data: bottle, my_parts, screw. " in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.fixture
def mirror(monkeypatch):
    """``mirror(url)`` is the only address of the hazelnuts."""

    def use(url):
        monkeypatch.setattr(mvtec, "ARCHIVES", {"hazelnut": (url + "hazelnut.tar.xz",)})
        return url + "hazelnut.tar.xz"

    return use


def test_without_data_and_network_the_sample_comes_with_a_banner(
    make_run, dead_url, mirror, small_sample, monkeypatch, capsys
):
    monkeypatch.setenv("AD_DATA", "auto")
    url = mirror(dead_url)
    data = MVTec(make_run(), "hazelnut", 48)
    said = capsys.readouterr().out
    assert "REAL DATA NOT FOUND: running on EMBEDDED SAMPLE DATA (rendered hazelnuts)" in said
    assert url in said and ".../hazelnut" in said and "AD_DATA_DIR" in said
    assert data.is_sample
    assert data.dataset == "SAMPLE DATA (rendered hazelnuts), 4 good images"
    assert data.test.has_mask.all() and data.test.mask.any()


def test_real_forbids_the_sample_and_names_address_and_file(make_run, dead_url, mirror, monkeypatch, small_sample):
    monkeypatch.setenv("AD_DATA", "real")
    url, run = mirror(dead_url), make_run()
    with pytest.raises(DataError, match="could not download hazelnut.tar.xz") as caught:
        MVTec(run, "hazelnut", 48)
    assert url in str(caught.value) and str(run.data_dir / "hazelnut.tar.xz") in str(caught.value)
    assert not (run.data_dir / "sample").exists()


def test_sample_never_looks_for_real_data(make_run, serve, mirror, monkeypatch, small_sample, category, capsys):
    monkeypatch.setenv("AD_DATA", "sample")
    server, run = serve({}), make_run()
    mirror(server.url)
    place(category, run, "mvtec_anomaly_detection", "hazelnut")
    data = MVTec(run, "hazelnut", 48)
    assert data.is_sample and server.seen == []
    assert "REAL DATA NOT FOUND" not in capsys.readouterr().out


# --- download -------------------------------------------------------------------------------------------------------


def packed(folders, compression="xz"):
    """A tar archive of {name inside: folder, bytes, or a link's target}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as tar:
        for name, content in folders.items():
            if isinstance(content, str):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            elif isinstance(content, bytes):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                tar.add(content, name)
    return file.getvalue()


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def fetch(make_run, serve, mirror, monkeypatch):
    """``fetch(archive bytes)``: reads the hazelnuts from a server that has them; gives data, run and server."""
    monkeypatch.setenv("AD_DATA", "auto")

    def get(content):
        server, run = serve({"hazelnut.tar.xz": content}), make_run()
        mirror(server.url)
        return lambda: MVTec(run, "hazelnut", SIDE), run, server

    return get


def test_the_archive_is_fetched_unpacked_noted_and_removed(fetch, category, capsys):
    content = packed({"hazelnut": category})
    start, run, server = fetch(content)
    data = start()
    assert not data.is_sample and data.dataset == f"hazelnut, {GOOD} good images"
    home = run.data_dir / "mvtec_anomaly_detection"
    assert below(home / "hazelnut") == sorted([*below(category), "archive.sha256"])
    noted = (home / "hazelnut" / "archive.sha256").read_text()
    assert noted == f"{hashlib.sha256(content).hexdigest()}  hazelnut.tar.xz\n"
    assert [path.name for path in home.iterdir()] == ["hazelnut"]
    assert sorted(path.name for path in run.data_dir.iterdir()) == ["cache", "mvtec_anomaly_detection"]
    assert "REAL DATA NOT FOUND" not in capsys.readouterr().out
    start()
    assert len(server.seen) == 1, "the second start finds the folder"


@pytest.mark.timeout(600)
def test_two_processes_unpack_a_category_once(make_run, serve, category, tmp_path):
    """Each waits in ``unpack`` for the other: both get there only if nothing keeps them apart."""
    server, run = serve({"hazelnut.tar.xz": packed({"hazelnut": category})}), make_run()
    code = f"""
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from helpers.data import mvtec

def meet(place, seconds):
    (Path(sys.argv[1]) / f"{{place}}.{{os.getpid()}}").touch()
    end = time.monotonic() + seconds
    while len(list(Path(sys.argv[1]).glob(f"{{place}}.*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)

def unpack(*arguments, original=mvtec.unpack):
    meet("unpacking", 1)
    original(*arguments)

mvtec.unpack, mvtec.ARCHIVES = unpack, {{"hazelnut": ({server.url + "hazelnut.tar.xz"!r},)}}
run = SimpleNamespace(profile="quick", data_dir=Path({str(run.data_dir)!r}))
meet("ready", 120)
print(mvtec.mvtec_root(run, "hazelnut"))
"""
    command, environment = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"AD_DATA": "auto"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    said = [process.communicate() for process in both]
    found = run.data_dir / "mvtec_anomaly_detection" / "hazelnut"
    assert [printed for printed, _ in said] == [f"({found!r}, False)\n"] * 2, said
    assert len(list(tmp_path.glob("unpacking.*"))) == len(server.seen) == 1
    assert below(found) == sorted([*below(category), "archive.sha256"])


def test_an_archive_put_there_by_hand_is_used(make_run, category, dead_url, mirror, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    mirror(dead_url)
    run = make_run()
    run.data_dir.mkdir()
    (run.data_dir / "hazelnut.tar.xz").write_bytes(packed({"hazelnut": category}))
    assert MVTec(run, "hazelnut", SIDE).dataset == f"hazelnut, {GOOD} good images"


def test_a_broken_download_goes_on_where_it_stopped(fetch, category, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    start, run, server = fetch(packed({"hazelnut": category}))
    server.cuts = [700]
    with pytest.raises(DataError, match="700 bytes kept for a resume"):
        start()
    assert not (run.data_dir / "mvtec_anomaly_detection" / "hazelnut").exists()
    assert len(start().test) == 9
    assert server.ranges_seen() == [None, "bytes=700-"]


BROKEN = {
    "cut short": lambda root: packed({"hazelnut": root})[:-400],
    "no archive": lambda root: b"<html>please log in</html>",
    "another folder": lambda root: packed({"bottle": root}),
    "a way out": lambda root: packed({"hazelnut": root, "hazelnut/../../../evil.txt": b"x"}),
    "an absolute link": lambda root: packed({"hazelnut": root, "hazelnut/link": "/etc"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_damaged_archive_is_removed_with_a_message(fetch, category, tmp_path, fault, capsys):
    start, run, server = fetch(BROKEN[fault](category))
    with pytest.raises(DamagedFile, match="(?s)hazelnut.tar.xz is damaged, or holds no folder hazelnut .*run again"):
        start()
    assert below(run.data_dir) == ["mvtec_anomaly_detection"], "nothing half-written is left"
    assert not list(tmp_path.rglob("evil.txt"))
    assert "SAMPLE" not in capsys.readouterr().out
    server.files["hazelnut.tar.xz"] = packed({"hazelnut": category})
    assert len(start().train) == 18, "the next start fetches it anew"


def test_a_category_without_its_own_archive_comes_out_of_the_whole_set(make_run, serve, category, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    content = packed({"bottle": category, "screw": category, "license.txt": b"free"})
    server, run = serve({"whole.tar.xz": content}), make_run()
    monkeypatch.setattr(mvtec, "WHOLE", (server.url + "whole.tar.xz", hashlib.sha256(content).hexdigest()))
    assert MVTec(run, "screw", SIDE).dataset == f"screw, {GOOD} good images"
    assert not (run.data_dir / "mvtec_anomaly_detection" / "bottle").exists()
    assert (run.data_dir / "whole.tar.xz").exists(), "other categories are in it"
    MVTec(run, "bottle", SIDE)
    assert len(server.seen) == 1


def test_the_whole_set_is_checked_against_its_published_checksum(make_run, serve, category, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    server, run = serve({"whole.tar.xz": packed({"bottle": category})}), make_run()
    monkeypatch.setattr(mvtec, "WHOLE", (server.url + "whole.tar.xz", "0" * 64))
    with pytest.raises(DataError, match=f"expected SHA256 {'0' * 64}"):
        MVTec(run, "bottle", SIDE)
    assert below(run.data_dir) == []


def test_the_published_addresses_are_whole():
    assert set(mvtec.ARCHIVES) == {"hazelnut", "transistor"}, "the notebooks read these: without them, 5 GB are fetched"
    assert set(mvtec.ARCHIVES) <= set(mvtec.CATEGORIES) and len(mvtec.CATEGORIES) == 15
    for category, urls in mvtec.ARCHIVES.items():
        assert all(re.fullmatch(rf"https://\S+/{category}\.tar\.xz", url) for url in urls)
    assert re.fullmatch(r"[0-9a-f]{64}", mvtec.WHOLE[1])


# --- the cache ------------------------------------------------------------------------------------------------------


def test_the_second_start_decodes_nothing_and_smoke_runs_keep_no_cache(make_run, read, category, monkeypatch):
    first = read()
    assert len(list((make_run().data_dir / "cache").iterdir())) == 2

    def refuse(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr("helpers.data.images.read_image", refuse)
    again = read()
    assert torch.equal(again.train.images, first.train.images) and torch.equal(again.test.images, first.test.images)
    monkeypatch.setenv("AD_DATA", "real")
    with pytest.raises(AssertionError, match="decoded"):
        MVTec(make_run("smoke"), str(category), SIDE)


# --- the rendered sample --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nuts(tmp_path_factory):
    return render(tmp_path_factory.mktemp("rendered") / "hazelnut", train=4, good=2, each_kind=3, size=128)


def test_the_sample_has_mvtecs_layout(nuts):
    kinds = ("crack", "cut", "hole", "print")
    expected = [f"train/good/{n:03}.png" for n in range(4)] + [f"test/good/{n:03}.png" for n in range(2)]
    expected += [f"test/{kind}/{n:03}.png" for kind in kinds for n in range(3)]
    expected += [f"ground_truth/{kind}/{n:03}_mask.png" for kind in kinds for n in range(3)]
    assert [name for name in below(nuts) if name.endswith(".png")] == sorted(expected)
    for name in expected:
        with Image.open(nuts / name) as file:
            assert file.size == (128, 128) and file.mode == ("L" if "mask" in name else "RGB")


def test_the_samples_masks_are_exact_and_inside_the_nut(nuts):
    for path in sorted((nuts / "ground_truth").rglob("*.png")):
        mask = np.asarray(Image.open(path))
        assert set(np.unique(mask)) == {0, 255}
        y, x = np.nonzero(mask)
        assert (np.hypot(x - 63.5, y - 63.5) < 0.45 * 128).all(), "a nut fills about two thirds of the picture"
        assert mask.mean() / 255 < 0.1


def test_the_samples_defects_can_be_seen(nuts):
    """Where the mask is, the picture differs from its surroundings on the nut."""
    for kind in ("crack", "cut", "hole", "print"):
        contrast = []
        for number in range(3):
            image = np.asarray(Image.open(nuts / f"test/{kind}/{number:03}.png").convert("L")).astype(float)
            mask = np.asarray(Image.open(nuts / f"ground_truth/{kind}/{number:03}_mask.png")) > 0
            contrast.append(image[mask].std())
        good = np.asarray(Image.open(nuts / "test/good/000.png").convert("L")).astype(float)[48:80, 48:80].std()
        assert max(contrast) > 1.3 * good, kind


def test_good_nuts_are_all_different_and_on_a_dark_background(nuts):
    pictures = [np.asarray(Image.open(path)) for path in sorted(nuts.glob("*/good/*.png"))]
    assert len({picture.tobytes() for picture in pictures}) == 6
    for picture in pictures:
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert border.mean() < 50 < picture[48:80, 48:80].mean()


def test_the_sample_is_always_the_same_and_written_once(nuts, tmp_path):
    again = render(tmp_path / "hazelnut", train=4, good=2, each_kind=3, size=128)
    assert below(again) == below(nuts)
    assert all((again / name).read_bytes() == (nuts / name).read_bytes() for name in below(nuts) if "." in name)
    (again / "test" / "good" / "000.png").unlink()
    render(tmp_path / "hazelnut")
    assert not (again / "test" / "good" / "000.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hazelnut"]


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("helpers.data.defects.paint", full)
    with pytest.raises(OSError, match="No space left"):
        render(tmp_path / "hazelnut", train=1, good=1, each_kind=1, size=32)
    assert list(tmp_path.iterdir()) == []
