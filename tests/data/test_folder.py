import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data.folder import CARD, Folder, stress_card
from helpers.data.photo import DataError
from tests.data.test_images import save


def write(folder, count, side=40, seed=0, mode="RGB", ending="png"):
    """``count`` different pictures of a bright square on dark ground."""
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(20, 40, (side, side, 3), dtype=np.uint8)
        pixels[side // 4 : -side // 4, side // 4 : -side // 4] += 150
        save(folder / f"{number:03}.{ending}", pixels, mode)
    return folder


@pytest.fixture
def parts(tmp_path):
    return write(tmp_path / "screws" / "good", 20)


@pytest.fixture
def make(make_run):
    """``make(path, **settings)``: the folder at 32 pixels."""
    return lambda path, **settings: Folder(make_run(), path, **{"size": 32, "batch_size": 4} | settings)


def as_set(split):
    return {image.numpy().tobytes() for image in split.images}


def test_good_images_are_learned_or_held_out_or_on_the_card_never_twice(make, parts):
    data = make(parts)
    sets = [as_set(split.normal()) for split in (data.train, data.validation, data.test)]
    assert [len(one) for one in sets] == [12, 4, 4] and len(set.union(*sets)) == 20
    assert data.defect_types == (*CARD, "painted")
    expected = {"dataset": "screws", "subset": "20 good images", "normal_class": "good", "anomaly_fraction": 0.0}
    expected |= {"tested_on": "stress card", "n_train": 16, "n_test_normal": 4, "n_test_anomalous": 16}
    assert data.fields() == expected
    assert data.title == "screws (20 good images): good normal, no labels"
    assert torch.equal(data.train.images, make(parts).train.images)
    assert as_set(make(parts, seed=1).train) != sets[0]
    with pytest.raises(ValueError, match=r"held_out, .* in \[0, 0.4\]: got 0.5"):
        make(parts, held_out=0.5)


def test_the_watched_anomalies_are_held_out_images_with_marked_defects(make, parts):
    validation = make(parts).validation
    good, painted = validation.subset(torch.arange(4)), validation.subset(torch.arange(4, 8))
    assert good.label.tolist() == [0] * 4 and painted.label.tolist() == [1] * 4
    changed = (good.images != painted.images).any(1)
    assert painted.mask.any((1, 2)).all() and not good.mask.any()
    assert (changed | ~painted.mask).all() and changed.float().mean() < 0.3


def test_a_nested_folder_of_mixed_sizes_and_formats_is_read_and_that_is_said_once(make, parts, capsys):
    make(parts)
    assert capsys.readouterr().out == "", "a whole set of colour images needs no word"
    write(parts / "second_shift", 5, side=64, seed=3, ending="jpg")
    write(parts / "third_shift", 5, side=33, seed=4, mode="L", ending="bmp")
    assert make(parts).subset == make(parts, size=33).subset == "30 good images"
    assert capsys.readouterr().out.count("25 RGB, 5 L images, all converted to colour") == 1
    assert make(parts, grey=True).train.images.shape[1] == 1


def test_test_images_get_the_names_of_their_sub_folders_normal_ones_first(make, parts, tmp_path):
    for name, count in (("OK", 3), ("Dent", 2), ("rust", 4), (".hidden", 1)):
        write(tmp_path / "test" / name, count, seed=20 + count)
    data = make(parts, test=tmp_path / "test")
    assert data.defect_types == ("OK", "Dent", "rust", "painted") and data.tested_on == "Dent, rust"
    assert data.test.defect_type.tolist() == [0] * 3 + [1] * 2 + [2] * 4
    assert data.counts()["training"]["normal"] == 16, "no card: only the images for the threshold are held out"


def test_max_images_holds_in_every_split(make, parts):
    data = make(parts, max_images=2)
    counts = data.counts()
    assert counts["training"]["normal"] == counts["validation"]["normal"] == counts["test"]["normal"] == 2
    assert data.subset == "20 good images, at most 2 of each label"


def test_the_card_has_five_rows_of_the_same_images():
    golden = torch.full((4, 3, 40, 40), 30, dtype=torch.uint8)
    golden[:, :, 10:30, 10:30] = 180
    foreign = torch.full((9, 3, 40, 40), 90, dtype=torch.uint8)
    card = stress_card(golden, foreign)
    assert card.defect_type.tolist() == [row for row in range(5) for _ in range(4)]
    assert card.label.tolist() == [0] * 4 + [1] * 16
    same, darker, handmade, shifted, other = card.images.split(4)
    assert torch.equal(same, golden) and torch.equal(other, foreign[:4])
    assert torch.equal(darker, (golden.float() / 3).round().byte())
    assert 0.002 < (handmade != golden).any(1).float().mean() < 0.2
    for image in shifted:  # the square, by ten pixels in one direction
        rows, columns = (torch.nonzero((image[0] == 180).any(axis))[:, 0] for axis in (1, 0))
        assert (int(rows[0]) - 10, int(columns[0]) - 10) in {(0, 10), (0, -10), (10, 0), (-10, 0)}
    assert torch.equal(card.images, stress_card(golden, foreign).images)
    assert not torch.equal(card.images, stress_card(golden, foreign, seed=1).images)
    assert stress_card(golden, foreign[:3]).defect_type.tolist()[-4:] == [3, 4, 4, 4]


def test_copies_are_left_out_and_what_hardly_differs_is_named(make, parts, capsys):
    shutil.copy(parts / "004.png", parts / "backup.png")
    Image.open(parts / "005.png").save(parts / "same_picture.bmp")  # another file, the same pixels
    Image.open(parts / "003.png").save(parts / "again.jpg", quality=100, subsampling=0)
    assert make(parts).subset == "21 good images"
    said = capsys.readouterr().out
    assert said.count("2 of 23 images are copies and left out") == 1
    assert "2 of 21 photographs hardly differ from another one" in said


def test_too_few_different_images_and_a_black_frame_are_refused(make, tmp_path):
    few = write(tmp_path / "few", 9)
    shutil.copy(few / "000.png", few / "copy.png")
    with pytest.raises(DataError, match="holds 9 different images: 10 are needed"):
        make(few)
    Image.new("RGB", (40, 40)).save(few / "black.png")
    with pytest.raises(DataError, match="black.png shows one flat colour"):
        make(few)


def test_defects_below_the_good_images_are_not_learned(make, parts, tmp_path):
    write(parts.parent / "scratched", 3, seed=1)
    with pytest.raises(DataError, match=r"screws holds good, scratched, .* learned as good: give .*good"):
        make(parts.parent)
    defects = write(parts / "line_2" / "test" / "bent", 3, seed=1).parent
    with pytest.raises(DataError, match="line_2 holds test"):
        make(parts)
    with pytest.raises(DataError, match=r"test lies in .*good, where all images are learned"):
        make(parts, test=defects)


def test_good_test_photographs_must_not_have_been_learned(make, parts, tmp_path):
    test = write(tmp_path / "test" / "bent", 3, seed=1).parent
    write(test / "good", 4, seed=2)
    shutil.copy(parts / "007.png", test / "good" / "copy.png")
    with pytest.raises(DataError, match="1 good photographs in .*test are in .*good, too"):
        make(parts, test=test)
