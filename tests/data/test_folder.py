import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import folder as module
from helpers.data.download import DamagedFile, DataError
from helpers.data.folder import CARD, Folder, stress_card
from helpers.runtime import data_dir


def write(folder, count, side=40, seed=0, mode="RGB", ending="png"):
    """``count`` different pictures of a bright square on dark ground."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(20, 40, (side, side, 3))
        pixels[side // 4 : -side // 4, side // 4 : -side // 4] += 150
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / f"{number:03}.{ending}")
    return folder


@pytest.fixture
def parts(tmp_path):
    return write(tmp_path / "screws" / "good", 20)


@pytest.fixture
def keys(tmp_path):
    return write(tmp_path / "keys", 8, seed=9)


@pytest.fixture
def make(make_run, keys):
    """``make(path, **settings)``: the folder at 32 pixels, with another object at hand."""
    return lambda path, **settings: Folder(make_run(), path, **{"size": 32, "batch_size": 4, "other": keys} | settings)


def as_set(images):
    return {image.numpy().tobytes() for image in images}


# --- splits ---------------------------------------------------------------------------------------------------------


def test_good_images_are_learned_or_held_out_or_on_the_card_never_twice(make, parts):
    data = make(parts)
    learned, held, golden = (as_set(split.normal().images) for split in (data.train, data.validation, data.test))
    assert (len(learned), len(held), len(golden)) == (12, 4, 4)
    assert len(learned | held | golden) == 20
    assert data.title == "screws: one-class (no labels), tested on stress card"
    again, other = make(parts), make(parts, seed=1)
    assert torch.equal(data.train.images, again.train.images)
    assert as_set(other.train.images) != learned
    assert data.train_dataloader().images.shape == (12, 3, 32, 32)


def test_the_watched_anomalies_are_held_out_images_with_marked_defects(make, parts):
    validation = make(parts).validation
    good, painted = validation.pick(torch.arange(4)), validation.pick(torch.arange(4, 8))
    assert good.label.tolist() == [0] * 4 and painted.label.tolist() == [1] * 4
    changed = (good.images != painted.images).any(1)
    assert painted.mask.any((1, 2)).all() and not good.mask.any()
    assert (changed | ~painted.mask).all()  # every marked pixel was painted
    assert changed.float().mean() < 0.3


def test_a_nested_folder_of_mixed_sizes_and_formats(make, parts, capsys):
    write(parts / "second_shift", 5, side=64, seed=3, ending="jpg")
    write(parts / "third_shift", 5, side=33, seed=4, ending="bmp")
    data = make(parts)
    assert sum(count["normal"] for count in data.counts().values()) == 30
    assert capsys.readouterr().out == ""


def test_mixed_grey_and_colour_is_said_once(make, parts, capsys):
    write(parts, 3, seed=5, mode="L", ending="tif")
    make(parts)
    assert capsys.readouterr().out.count("converted to colour: 3 grey") == 1
    assert make(parts, grey=True).train.images.shape[1] == 1


def test_test_images_get_the_names_of_their_sub_folders(make, parts, tmp_path):
    for kind, count in (("OK", 3), ("dent", 2), ("rust", 4)):
        write(tmp_path / "test" / kind, count, seed=20 + count)
    data = make(parts, test=tmp_path / "test")
    assert data.kinds == ("OK", "dent", "rust", "painted")
    assert data.test.kind.tolist() == [0] * 3 + [1] * 2 + [2] * 4
    assert data.test.label.tolist() == [0] * 3 + [1] * 6
    assert data.counts()["training"]["normal"] == 16  # no card: only the images for the threshold are held out


def test_limit_holds_in_every_split(make, parts):
    data = make(parts, limit=2)
    assert all(max(count.values()) <= 2 * (len(CARD) - 1) for count in data.counts().values())
    assert data.counts()["training"]["normal"] == data.counts()["test"]["normal"] == 2


def test_without_another_object_the_rendered_keys_are_it(make, parts, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "keycaps", lambda folder: drawn.append(folder) or write(folder / "F12", 6).parent)
    data = make(parts, other=None)
    assert drawn == [tmp_path / "data" / "sample" / "keycaps"]
    assert int((data.test.kind == CARD.index("another object")).sum()) == 4


# --- the stress card ------------------------------------------------------------------------------------------------


def test_the_card_has_five_rows_of_the_same_images():
    golden = torch.full((4, 3, 40, 40), 30, dtype=torch.uint8)
    golden[:, :, 10:30, 10:30] = 180
    foreign = torch.full((9, 3, 40, 40), 90, dtype=torch.uint8)
    card = stress_card(golden, foreign)
    assert card.kind.tolist() == [row for row in range(5) for _ in range(4)]
    assert card.label.tolist() == [0] * 4 + [1] * 16
    same, darker, handmade, shifted, other = card.images.split(4)
    assert torch.equal(same, golden)
    assert torch.equal(darker, (golden.float() / 3).round().byte())
    assert 0.002 < (handmade != golden).any(1).float().mean() < 0.2
    assert len({image.numpy().tobytes() for image in handmade}) == 4
    assert torch.equal(other, foreign[:4])
    for image in shifted:  # the square, by ten pixels in one direction
        rows, columns = (torch.nonzero((image[0] == 180).any(axis))[:, 0] for axis in (1, 0))
        assert (int(rows[0]) - 10, int(columns[0]) - 10) in {(0, 10), (0, -10), (10, 0), (-10, 0)}
    assert torch.equal(card.images, stress_card(golden, foreign).images)
    assert not torch.equal(card.images, stress_card(golden, foreign, seed=1).images)


# --- bad input: one clear message each ------------------------------------------------------------------------------


def test_fewer_than_ten_images(make, tmp_path):
    with pytest.raises(DataError, match="holds 9 different images: at least 10 are needed, most to learn"):
        make(write(tmp_path / "few", 9))
    assert make(write(tmp_path / "enough", 10)).counts()["validation"]["normal"] == 2


def test_copies_are_counted_named_and_left_out(make, parts, capsys):
    shutil.copy(parts / "004.png", parts / "backup.png")
    Image.open(parts / "005.png").save(parts / "same_picture.bmp")  # another file, the same pixels
    data = make(parts)
    shown = capsys.readouterr().out
    assert shown.count("2 of 22 images are copies of others and left out (backup.png, same_picture.bmp)") == 1
    assert sum(count["normal"] for count in data.counts().values()) == 20


def test_copies_do_not_count_as_images(make, tmp_path):
    few = write(tmp_path / "few", 6)
    for number in range(6):
        shutil.copy(few / f"{number:03}.png", few / f"copy_{number}.png")
    with pytest.raises(DataError, match="holds 6 different images: at least 10"):
        make(few)


def test_no_images(make, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match="no image in .*empty"):
        make(tmp_path / "empty")
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        make(tmp_path / "nowhere")


def test_tiny_images(make, parts):
    write(parts, 2, side=7, seed=8, ending="bmp")
    with pytest.raises(DataError, match=r"2 of 22 images in .* are smaller than 8 pixels \(000.bmp, 001.bmp\)"):
        make(parts)


def test_an_all_black_folder(make, tmp_path):
    (tmp_path / "dark").mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40)).save(tmp_path / "dark" / f"{number}.png")
    with pytest.raises(DataError, match=r"12 of 12 images .* one flat colour \(0.png, 1.png, 10.png and 9 more\)"):
        make(tmp_path / "dark")


def test_one_flat_image_among_good_ones_is_named(make, parts):
    Image.new("RGB", (40, 40), (200, 10, 10)).save(parts / "lens_cap.png")
    with pytest.raises(DataError, match=r"1 of 21 images .* \(lens_cap.png\)"):
        make(parts)


def test_a_damaged_file_is_named(make, parts):
    (parts / "001.png").write_bytes((parts / "001.png").read_bytes()[:60])
    with pytest.raises(DamagedFile, match="001.png cannot be read as an image"):
        make(parts)


@pytest.mark.parametrize("kinds", [("dent",), ("good",), ("good", "ok", "dent"), ()])
def test_a_test_folder_needs_normal_and_anomalous_images(make, parts, tmp_path, kinds):
    (tmp_path / "test").mkdir()
    for kind in kinds:
        write(tmp_path / "test" / kind, 2)
    with pytest.raises(DataError, match="needs one sub-folder named good, ok or normal, and one for each kind"):
        make(parts, test=tmp_path / "test")
    with pytest.raises(DataError, match="there is no test folder"):
        make(parts, test=tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0, 0.5, -1])
def test_a_share_that_leaves_nothing_to_learn_from(make, parts, share):
    with pytest.raises(ValueError, match="held_out is the share"):
        make(parts, held_out=share)


# --- the real data --------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_hazelnuts_of_a_folder_nobody_prepared(make_run):
    root = data_dir() / "hazelnut_adfi"
    if not root.is_dir():
        pytest.skip(f"{root} is not at hand")
    data = Folder(make_run(), root / "train" / "good", size=64, test=root / "test")
    assert data.dataset == "hazelnut_adfi"
    assert data.counts() == {
        "training": {"normal": 40, "anomalous": 0},
        "validation": {"normal": 10, "anomalous": 10},
        "test": {"normal": 25, "anomalous": 15},
    }
    assert data.kinds == ("good", "crack", "painted")
