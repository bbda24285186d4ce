import shutil

import numpy as np
import pytest

from helpers.data import mvtec, samples
from helpers.data.mvtec import ARCHIVES, LICENCE, PAINTED, MVTec, mvtec_root
from helpers.data.samples import SAMPLES
from tests.data.test_images import save
from tests.data.test_samples import packed

SIDE = 24
GOOD = 20  # training images, of brightness 100, 101, ...
TESTED = ["good"] * 3 + ["dent"] * 4 + ["hole"] * 2  # of brightness 10, 11, ...; the n-th one's mask marks row n


def plain(value):
    return np.full((SIDE, SIDE, 3), value, dtype=np.uint8)


@pytest.fixture
def category(tmp_path):
    """A folder in MVTec's layout in which brightness tells the images apart."""
    root = tmp_path / "parts"
    for number in range(GOOD):
        save(root / "train" / "good" / f"{number:03}.png", plain(100 + number))
    for number, name in enumerate(TESTED):
        save(root / "test" / name / f"{number:03}.png", plain(10 + number))
        if name != "good":
            mask = plain(0)[..., 0]
            mask[number] = 255
            save(root / "ground_truth" / name / f"{number:03}_mask.png", mask)
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
    assert data.defect_types == ("good", "dent", "hole", "crack", "cut", "print"), "hole is tested and painted"
    assert data.test.images.shape == (9, 3, SIDE, SIDE) and brightness(data.test) == list(range(10, 19))
    assert data.test.label.tolist() == [0] * 3 + [1] * 6
    assert data.test.defect_type.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert data.test.has_mask.all() and data.test.mask.sum((1, 2)).tolist() == [0] * 3 + [SIDE] * 6
    assert [mask.nonzero()[0, 0].item() for mask in data.test.mask[3:]] == [3, 4, 5, 6, 7, 8]
    assert data.title == "parts (20 good images): good normal, no labels"
    assert "CC BY-NC-SA 4.0" in LICENCE and "Bergmann" in LICENCE


def test_every_good_image_is_trained_on_or_held_out_never_both(read):
    data = read(held_out=0.25)
    trained, kept = brightness(data.train), brightness(data.validation.normal())
    assert (len(trained), len(kept)) == (15, 5) and sorted(trained + kept) == list(range(100, 100 + GOOD))
    assert brightness(read(held_out=0.25, seed=1).validation.normal()) != kept
    assert read(held_out=0.01).counts()["validation"]["normal"] == 1
    with pytest.raises(ValueError, match=r"in \[0, 1\): 1"):
        read(held_out=1)


def test_defects_are_painted_on_held_out_images_only(read):
    data, count = read(held_out=0.25), 5
    split = data.validation
    types = [data.defect_types[index] for index in split.defect_type[count:]]
    assert types == [name for name in PAINTED for _ in range(count)]
    for place in range(count, len(split)):
        changed = (split.images[place] != split.images[(place - count) % count]).any(0)
        mask = split.mask[place]
        assert mask.any() and (changed & mask).sum() > 0.8 * mask.sum() and mask.sum() < 0.3 * mask.numel()
    assert not split.mask[:count].any() and not data.train.mask.any() and split.has_mask.all()
    assert read(held_out=0.75).counts()["validation"] == {"normal": 15, "anomalous": 40}, "ten of each, and no more"


def test_max_images_holds_for_each_type_in_each_split(read):
    data = read(max_images=2, size=16, grey=True)
    assert all(split.images.shape[1:] == (1, 16, 16) for split in (data.train, data.validation, data.test))
    assert data.counts()["training"]["normal"] + data.counts()["validation"]["normal"] == 2
    assert brightness(data.test) == [10, 11, 13, 14, 17, 18]
    assert data.subset == "20 good images, at most 2 of each type"


def test_an_image_without_a_mask_counts_for_image_metrics_only_and_that_is_said_once(read, category, capsys):
    masks = category / "ground_truth"
    (masks / "dent" / "004_mask.png").unlink()
    (masks / "dent" / "005_mask.png").rename(masks / "dent" / "005.png")
    data = read()
    assert data.test.has_mask.tolist() == [True] * 4 + [False] + [True] * 4 and not data.test.mask[4].any()
    assert "1 defective test images have no mask and count for no pixel metrics" in capsys.readouterr().out
    shutil.rmtree(masks)
    assert read().test.has_mask.sum() == 3


@pytest.mark.parametrize(("name", "images"), [("hazelnut", "50 of 391"), ("transistor", "60 of 213")])
def test_quick_and_smoke_take_the_embedded_part(make_run, name, images):
    data = MVTec(make_run("quick"), name, 32)
    assert (data.dataset, data.subset) == (name, f"embedded part: {images} good images")
    assert data.test.mask.any() and (data.test.has_mask.all() == (name == "transistor"))
    assert mvtec_root(make_run("smoke"), name) == (SAMPLES / "mvtec_anomaly_detection" / name, True)


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
    here, asked, get = [serve({"hazelnut.tar.xz": archive})[0] + "hazelnut.tar.xz"], [], samples.fetch
    monkeypatch.setattr(samples, "fetch", lambda target, urls, md5: asked.extend(urls) or get(target, here, md5))
    for profile in ("full", "full", "quick"):
        assert MVTec(make_run(profile), "hazelnut", SIDE).subset == "20 of 391 good images"
    start, end = "https://www.mydrive.ch/shares/", "/download/420937545-1629959162/hazelnut.tar.xz"
    middle = ("150457/51d49f65e84bdc100ff8035d7dd783ea", "38536/3830184030e49fe74747669442f0f283")
    assert asked == [f"{start}{share}{end}" for share in middle], "the second start finds the folder"
    assert mvtec_root(make_run(), "hazelnut") == (make_run().data_dir / "mvtec_anomaly_detection" / "hazelnut", False)
    assert set(ARCHIVES) == set(mvtec.COMPLETE) == {path.name for path in SAMPLES.glob("mvtec*/*") if path.is_dir()}
