import hashlib
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import mvtec
from helpers.data.errors import DamagedFile, DataError
from helpers.data.mvtec import ARCHIVES, CATEGORIES, LICENCE, PAINTED, PAINTED_IMAGES, MVTec, mvtec_root
from helpers.data.samples import SAMPLES
from tests.data.test_download import HTML, packed

SIDE = 24
GOOD = 20  # training images, of brightness 100, 101, ...
TESTED = {"good": 3, "dent": 4, "scratch": 2}


def write(path, brightness=0, side=SIDE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (brightness,) * 3).save(path)


@pytest.fixture
def category(tmp_path):
    """A folder in MVTec's layout in which brightness tells the images apart; the n-th mask marks row n."""
    root = tmp_path / "parts"
    for number in range(GOOD):
        write(root / "train" / "good" / f"{number:03}.png", 100 + number)
    brightness = 10
    for name, count in TESTED.items():
        for number in range(count):
            write(root / "test" / name / f"{number:03}.png", brightness)
            brightness += 1
            if name != "good":
                path = root / "ground_truth" / name / f"{number:03}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(255 * (np.arange(SIDE) == number)[:, None].repeat(SIDE, 1).astype(np.uint8)).save(path)
    return root


@pytest.fixture
def read(make_run, category):
    """``read(**settings)``: the data set in ``category``."""
    return lambda **settings: MVTec(make_run(), **{"dataset": str(category), "size": SIDE} | settings)


def brightness(split):
    """The value that most pixels of each image have."""
    return split.images.flatten(1).mode(1).values.tolist()


def test_test_images_come_with_their_types_and_masks(read):
    data = read()
    assert data.defect_types == ("good", "dent", "scratch", "crack", "cut", "hole", "print")
    assert data.test.images.shape == (9, 3, SIDE, SIDE) and brightness(data.test) == list(range(10, 19))
    assert data.test.label.tolist() == [0] * 3 + [1] * 6
    assert data.test.defect_type.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert data.test.has_mask.all() and data.test.mask.sum((1, 2)).tolist() == [0] * 3 + [SIDE] * 6
    assert [mask.nonzero()[0, 0].item() for mask in data.test.mask[3:]] == [0, 1, 2, 3, 0, 1]


def test_names_and_counts_say_what_it_is(read):
    data = read()
    assert data.title == "parts (20 good images): good normal, no labels"
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


def test_every_good_image_is_trained_on_or_held_out_never_both(read):
    data = read(held_out=0.25)
    trained, kept = brightness(data.train), brightness(data.validation.normal())
    assert (len(trained), len(kept)) == (15, 5) and sorted(trained + kept) == list(range(100, 100 + GOOD))
    assert brightness(read(held_out=0.25, seed=1).validation.normal()) != kept


def test_defects_are_painted_on_held_out_images_only(read):
    data, count = read(held_out=0.25), 5
    split = data.validation
    types = [data.defect_types[index] for index in split.defect_type[count:]]
    assert types == [name for name in PAINTED for _ in range(count)]
    for place in range(count, len(split)):
        changed = (split.images[place] != split.images[(place - count) % count]).any(0)
        mask = split.mask[place]
        assert mask.any() and (changed & mask).sum() > 0.8 * mask.sum() and mask.sum() < 0.3 * mask.numel()
    assert not split.mask[:count].any() and not data.train.mask.any()


def test_a_type_that_is_painted_and_tested_has_one_number(read, category):
    for folder in ("test", "ground_truth"):
        (category / folder / "dent").rename(category / folder / "hole")
    data = read()
    assert data.defect_types == ("good", "hole", "scratch", "crack", "cut", "print")
    assert set(data.validation.defect_type.tolist()) == {0, 1, 3, 4, 5}


def test_painting_stops_at_a_few_images_and_one_image_is_always_left(read):
    assert read(held_out=0.75).counts()["validation"] == {"normal": 15, "anomalous": 4 * PAINTED_IMAGES}
    assert read(held_out=0.01).counts()["validation"]["normal"] == 1
    for share in (0, 1):
        with pytest.raises(ValueError, match=rf"in \(0, 1\): got {share}"):
            read(held_out=share)


def test_max_images_holds_for_each_type_in_each_split(read):
    data = read(max_images=2)
    assert data.counts()["training"]["normal"] + data.counts()["validation"]["normal"] == 2
    assert brightness(data.test) == [10, 11, 13, 14, 17, 18]
    assert data.subset == "20 good images, at most 2 of each type"


def test_an_image_without_a_mask_counts_for_image_metrics_only_and_that_is_said_once(read, category, capsys):
    (category / "ground_truth" / "dent" / "001_mask.png").unlink()
    (category / "ground_truth" / "dent" / "002_mask.png").rename(category / "ground_truth" / "dent" / "002.png")
    data = read()
    assert data.test.has_mask.tolist() == [True] * 4 + [False] + [True] * 4 and not data.test.mask[4].any()
    assert "1 defective test images have no mask: they count for image metrics only" in capsys.readouterr().out
    shutil.rmtree(category / "ground_truth")
    assert read().test.has_mask.sum() == 3


def rm(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


FAULTS = {
    "no train/good": (rm("train/good"), "parts has no folder train/good: expected MVTec's layout"),
    "no test": (rm("test"), "parts has no folder test: expected"),
    "no defects": (rm("test/dent", "test/scratch"), "test needs a folder good and one for each defect type"),
    "no good test images": (rm("test/good"), "test needs a folder good and"),
    "an empty type": (lambda root: (root / "test" / "rust").mkdir(), "no image in .*rust: expected files ending"),
    "one training image": (
        lambda root: [path.unlink() for path in sorted((root / "train" / "good").iterdir())[1:]],
        "good: one image is too few for training and thresholds",
    ),
    "a damaged image": (lambda root: (root / "test/dent/001.png").write_bytes(b"x"), "001.png cannot be read as an"),
    "a mask of another size": (
        lambda root: write(root / "ground_truth/scratch/000_mask.png", side=30),
        f"000_mask.png is 30x30 pixels, its image 000.png is {SIDE}x{SIDE}",
    ),
    "a mask without its image": (
        lambda root: (root / "test/scratch/001.png").unlink(),
        "001_mask.png belongs to no image: there is no 001 in .*scratch",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gives_one_clear_message(read, category, fault):
    spoil, message = FAULTS[fault]
    spoil(category)
    with pytest.raises(DataError, match=message) as caught:
        read()
    assert "\n" not in str(caught.value)


# --- which folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(mvtec, "fetch", lambda *args: pytest.fail("a download was started"))


def place(category, run, *names):
    return shutil.copytree(category, run.data_dir.joinpath(*names))


@pytest.mark.parametrize(
    ("name", "subset"), [("hazelnut", "50 of 391 good images"), ("transistor", "60 of 213 good images")]
)
def test_quick_and_smoke_take_the_embedded_part_and_never_download(make_run, no_download, name, subset):
    data = MVTec(make_run("quick"), name, 32)
    assert (data.dataset, data.subset) == (name, f"embedded part: {subset}")
    assert data.test.mask.any() and (data.test.has_mask.all() == (name == "transistor"))
    assert mvtec_root(make_run("smoke"), name) == (SAMPLES / "mvtec_anomaly_detection" / name, True)


@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize("names", [("mvtec_anomaly_detection", "hazelnut"), ("hazelnut",)])
def test_a_category_on_disk_comes_first_except_in_smoke(make_run, category, no_download, profile, names):
    folder = place(category, make_run(), *names)
    assert mvtec_root(make_run(profile), "hazelnut") == (folder, False)
    assert MVTec(make_run(profile), "hazelnut", SIDE).subset == "20 of 391 good images"
    assert mvtec_root(make_run("smoke"), "hazelnut")[1]


@pytest.mark.parametrize("profile", ["quick", "full", "smoke"])
def test_a_path_is_a_folder_anywhere_but_a_bare_name_is_not(make_run, category, monkeypatch, tmp_path, profile):
    monkeypatch.chdir(tmp_path)
    assert MVTec(make_run(profile), "./parts", SIDE).dataset == "parts"
    with pytest.raises(ValueError, match="no data set 'parts'"):
        MVTec(make_run(profile), "parts", SIDE)


@pytest.mark.parametrize(("profile", "name"), [("quick", "bottle"), ("smoke", "bottle"), ("full", "hazlenut")])
def test_a_name_that_cannot_be_had_lists_what_is_at_hand(make_run, category, no_download, profile, name):
    for names in (("mvtec_anomaly_detection", "screw"), ("my_parts",)):
        place(category, make_run(), *names)
    with pytest.raises(ValueError, match=rf"no data set '{name}'. At hand in .../data: my_parts, screw; embedded: haz"):
        MVTec(make_run(profile), name, SIDE)


def archive_of(category, name="hazelnut"):
    files = [path for path in category.rglob("*") if path.is_file()]
    return packed({f"{name}/{path.relative_to(category).as_posix()}": path.read_bytes() for path in files})


def test_full_fetches_unpacks_and_removes_the_archive(make_run, serve, category, monkeypatch):
    bad, _ = serve({"hazelnut.tar.xz": HTML})
    good, seen = serve({"hazelnut.tar.xz": archive_of(category)})
    monkeypatch.setattr(mvtec, "ARCHIVES", {"hazelnut": [url + "hazelnut.tar.xz" for url in (bad, good)]})
    run = make_run("full")
    for _ in range(2):
        assert MVTec(run, "hazelnut", SIDE).subset == "20 of 391 good images"
    assert len(seen) == 1, "the second start finds the folder"
    there = {path.name for path in run.data_dir.iterdir() if path.suffix != ".lock"}
    assert there == {"hazelnut.tar.xz.sha256", "mvtec_anomaly_detection"}


def test_a_category_without_its_own_archive_comes_out_of_the_whole_set(make_run, serve, category, monkeypatch):
    content = archive_of(category, "screw")
    url, _ = serve({"whole.tar.xz": content})
    monkeypatch.setattr(mvtec, "WHOLE", (url + "whole.tar.xz", "0" * 64))
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}"):
        MVTec(make_run("full"), "screw", SIDE)
    monkeypatch.setattr(mvtec, "WHOLE", (url + "whole.tar.xz", hashlib.sha256(content).hexdigest()))
    assert MVTec(make_run("full"), "screw", SIDE).subset == "20 good images"
    assert (make_run().data_dir / "whole.tar.xz").exists(), "other categories are in it"


def test_full_falls_back_to_the_embedded_part_loudly(make_run, dead_url, monkeypatch, capsys):
    monkeypatch.setattr(mvtec, "ARCHIVES", {"transistor": (dead_url + "transistor.tar.xz",)})
    data = MVTec(make_run("full"), "transistor", 32)
    said = capsys.readouterr().out
    assert data.subset == "embedded part: 60 of 213 good images"
    assert "EMBEDDED PART samples/mvtec_anomaly_detection/transistor" in said and dead_url in said
    assert "Put the category's folder at .../transistor, or set AD_DATA_DIR" in said


def test_a_damaged_archive_is_named_and_no_other_data_taken(make_run, category, monkeypatch, capsys):
    run = make_run("full")
    run.data_dir.mkdir()
    (run.data_dir / "hazelnut.tar.xz").write_bytes(archive_of(category)[:-100])
    with pytest.raises(DamagedFile, match="hazelnut.tar.xz is no whole tar archive"):
        MVTec(run, "hazelnut", SIDE)
    assert "EMBEDDED" not in capsys.readouterr().out


def test_the_published_addresses_are_whole():
    assert set(ARCHIVES) == {"hazelnut", "transistor"}, "the notebooks read these: without them, 5 GB are fetched"
    assert set(ARCHIVES) == set(mvtec.COMPLETE) <= set(CATEGORIES) and len(CATEGORIES) == 15
    for name, urls in ARCHIVES.items():
        assert all(re.fullmatch(rf"https://\S+/{name}\.tar\.xz", url) for url in urls)
    assert re.fullmatch(r"[0-9a-f]{64}", mvtec.WHOLE[1])


def test_the_fingerprint_changes_with_a_file_added_to_training(read, category):
    first = read().fingerprint()
    write(category / "test" / "dent" / "010.png", 77)
    assert read().fingerprint() == first, "the test split is no part of a training"
    write(category / "train" / "good" / "020.png", 120)
    assert read().fingerprint() != first and torch.equal(read().train.label, torch.zeros(19).long())
