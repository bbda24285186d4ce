import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.data import mvtec, samples
from helpers.data.mvtec import ARCHIVES, LICENCE, PAINTED, MVTec, mvtec_root
from helpers.data.samples import SAMPLES
from tests.data.test_samples import packed

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
    assert data.title == "parts (20 good images): good normal, no labels"
    assert "CC BY-NC-SA 4.0" in LICENCE and "Bergmann" in LICENCE


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
    assert read(held_out=0.75).counts()["validation"] == {"normal": 15, "anomalous": 40}
    assert read(held_out=0.01).counts()["validation"]["normal"] == 1
    with pytest.raises(ValueError, match=r"in \[0, 1\): 1"):
        read(held_out=1)


def test_max_images_holds_for_each_type_in_each_split(read):
    data = read(max_images=2, size=16, grey=True)
    assert all(split.images.shape[1:] == (1, 16, 16) for split in (data.train, data.validation, data.test))
    assert data.counts()["training"]["normal"] + data.counts()["validation"]["normal"] == 2
    assert brightness(data.test) == [10, 11, 13, 14, 17, 18]
    assert data.subset == "20 good images, at most 2 of each type"


def test_an_image_without_a_mask_counts_for_image_metrics_only_and_that_is_said_once(read, category, capsys):
    (category / "ground_truth" / "dent" / "001_mask.png").unlink()
    (category / "ground_truth" / "dent" / "002_mask.png").rename(category / "ground_truth" / "dent" / "002.png")
    data = read()
    assert data.test.has_mask.tolist() == [True] * 4 + [False] + [True] * 4 and not data.test.mask[4].any()
    assert "1 defective test images have no mask and count for no pixel metrics" in capsys.readouterr().out
    shutil.rmtree(category / "ground_truth")
    assert read().test.has_mask.sum() == 3


# --- which folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "images"), [("hazelnut", "50 of 391"), ("transistor", "60 of 213")])
def test_quick_and_smoke_take_the_embedded_part(make_run, name, images):
    data = MVTec(make_run("quick"), name, 32)
    assert (data.dataset, data.subset) == (name, f"embedded part: {images} good images")
    assert data.test.mask.any() and (data.test.has_mask.all() == (name == "transistor"))
    assert mvtec_root(make_run("smoke"), name) == (SAMPLES / "mvtec_anomaly_detection" / name, True)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_category_on_disk_comes_first_except_in_smoke(make_run, category, profile):
    folder = shutil.copytree(category, make_run().data_dir / "mvtec_anomaly_detection" / "hazelnut")
    assert mvtec_root(make_run(profile), "hazelnut") == (folder, False)
    assert MVTec(make_run(profile), "hazelnut", SIDE).subset == "20 of 391 good images"
    assert mvtec_root(make_run("smoke"), "hazelnut")[1]


def test_other_categories_and_folders_are_found_by_name_or_path(make_run, category, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert MVTec(make_run("full"), "./parts", SIDE).dataset == "parts"
    for place in ("mvtec_anomaly_detection/screw", "my_parts"):
        folder = shutil.copytree(category, make_run().data_dir / place)
        assert mvtec_root(make_run("smoke"), folder.name) == (folder, False)
    with pytest.raises(ValueError, match="no data set 'bottle': place it in .../data/mvtec_anomaly_detection, or give"):
        MVTec(make_run("full"), "bottle", SIDE)


def test_full_fetches_the_folder_from_the_newer_address(make_run, category, serve, monkeypatch):
    files = [path for path in category.rglob("*") if path.is_file()]
    archive = packed({f"hazelnut/{path.relative_to(category).as_posix()}": path.read_bytes() for path in files})
    url, _ = serve({"hazelnut.tar.xz": archive})
    asked, get = [], samples.fetch
    here = [url + "hazelnut.tar.xz"]
    monkeypatch.setattr(samples, "fetch", lambda target, urls, md5: asked.extend(urls) or get(target, here, md5))
    for _ in range(2):
        assert MVTec(make_run("full"), "hazelnut", SIDE).subset == "20 of 391 good images"
    start, end = "https://www.mydrive.ch/shares/", "/download/420937545-1629959162/hazelnut.tar.xz"
    middle = ("150457/51d49f65e84bdc100ff8035d7dd783ea", "38536/3830184030e49fe74747669442f0f283")
    assert asked == [f"{start}{share}{end}" for share in middle], "the second start finds the folder"
    assert set(ARCHIVES) == set(mvtec.COMPLETE) == {path.name for path in SAMPLES.glob("mvtec*/*") if path.is_dir()}
