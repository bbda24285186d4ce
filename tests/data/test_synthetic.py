import numpy as np
import pytest
import torch

from helpers.data.synthetic import DEFECT_TYPES, object_region, paint

SIDE = 160


def disc(radius=0.35, centre=(0.5, 0.5)):
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def part(region=None, channels=3):
    """A brown, slightly uneven object on a dark background."""
    region = disc() if region is None else region
    noise = np.random.default_rng(0).normal(0, 3, (SIDE, SIDE))
    pixels = np.where(region, np.array([170.0, 120, 80])[:channels, None, None], 30.0) + noise
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_defect_stays_on_the_object_and_its_mask_is_where_pixels_changed(defect_type, channels):
    before, kept = part(channels=channels), part(channels=channels)
    inside = torch.from_numpy(object_region(before))
    for seed in range(2):
        after, mask = paint(before, defect_type, np.random.default_rng(seed))
        difference = (after.int() - before.int()).abs().amax(0)
        assert after.shape == before.shape and after.dtype == torch.uint8 and mask.dtype == torch.bool
        assert not difference[~inside].any() and not mask[~inside].any()
        assert 8 < mask.sum() < 0.25 * inside.sum()
        clear, changed = difference > 50, difference > 0
        assert (clear & mask).sum() > 0.9 * clear.sum(), "what can be seen is marked"
        assert (changed & mask).sum() > 0.9 * mask.sum(), "what is marked was changed"
    assert torch.equal(before, kept)


# sums of the pixels and of the mask of one defect each: validation sets must stay what they are
KNOWN = {"crack": (5007180, 219), "cut": (5045927, 177), "hole": (4978034, 331)}
KNOWN |= {"print": (5098097, 287), "scratch": (5058145, 122), "spot": (4972235, 190)}


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_defects_are_the_ones_of_the_committed_results(defect_type):
    after, mask = paint(part(), defect_type, np.random.default_rng(5))
    pixels, marked = KNOWN[defect_type]
    assert int(after.sum()) == pytest.approx(pixels, rel=1e-3)
    assert int(mask.sum()) == pytest.approx(marked, rel=0.03), "other versions of Pillow may round otherwise"


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_small_and_oblong_images_can_be_painted(defect_type):
    for height, width in ((48, 48), (40, 120), (64, 41)):
        image = torch.full((3, height, width), 120, dtype=torch.uint8)
        after, mask = paint(image, defect_type, np.random.default_rng(0))
        assert mask.shape == (height, width) and ((after != image).any(0) & mask).any()
    with pytest.raises(ValueError, match="unknown defect type 'dent'.*crack, cut, hole, print, scratch, spot"):
        paint(image, "dent", np.random.default_rng(0))


def same(found, expected):
    return (found & expected).sum() > 0.95 * (found | expected).sum()


def test_an_object_is_found_dark_or_bright_with_its_holes_and_without_specks():
    for region in (disc(), disc(0.2, (0.4, 0.6))):
        for image in (part(region), part(region, channels=1), 255 - part(region)):
            assert same(object_region(image), region)
    image = part()
    image[:, 72:88, 72:88] = 30  # as dark as the background
    image[:, 4:8, 4:8] = 255
    found = object_region(image)
    assert found[80, 80] and not found[:12, :12].any()


def test_without_an_object_it_is_the_middle_of_the_image():
    empty, texture = torch.full((3, SIDE, SIDE), 90).byte(), torch.randint(256, (3, SIDE, SIDE)).byte()
    for image in (empty, texture, part(disc(0.08)), part(disc(2.0))):  # a speck is none, nor is what is everywhere
        assert same(object_region(image), disc(0.3))
