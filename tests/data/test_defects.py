import numpy as np
import pytest
import torch

from helpers.data.defects import KINDS, object_region, paint

SIDE = 160


def disc(radius=0.35, centre=(0.5, 0.5), side=SIDE):
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def part(region=None, channels=3, side=SIDE):
    """A brown, slightly uneven object on a dark background."""
    region = disc(side=side) if region is None else region
    noise = np.random.default_rng(0).normal(0, 3, (side, side))
    pixels = np.where(region, np.array([170.0, 120, 80])[:channels, None, None], 30.0) + noise
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def painted(kind, seed=0, channels=3):
    """Image before, image after, mask, and where the pixels became others."""
    before = part(channels=channels)
    after, mask = paint(before, kind, np.random.default_rng(seed), disc())
    return before, after, mask, (after.int() - before.int()).abs().amax(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_stays_on_the_object_and_its_mask_is_where_pixels_changed(kind, channels):
    inside, faint = torch.from_numpy(disc()), 0
    for seed in range(8):
        before, after, mask, difference = painted(kind, seed, channels)
        assert after.shape == before.shape and after.dtype == torch.uint8 and after.is_contiguous()
        assert mask.shape == (SIDE, SIDE) and mask.dtype == torch.bool
        assert not difference[~inside].any() and not mask[~inside].any()
        assert 8 < mask.sum() < 0.25 * inside.sum()
        clear, any_change = difference > 50, difference > 0
        assert (clear & mask).sum() > 0.9 * clear.sum(), "what can be seen is marked"
        assert (any_change & mask).sum() > 0.9 * mask.sum(), "what is marked was changed"
        assert mask.sum() > 0.5 * any_change.sum(), "all but the soft edge of a defect is marked"
        faint += int((any_change & ~mask).sum())
    assert faint > 0, "but not its faintest pixels"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_state_gives_the_same_defect(kind):
    first, again, other = painted(kind, 1), painted(kind, 1), painted(kind, 2)
    assert torch.equal(first[1], again[1]) and torch.equal(first[2], again[2])
    assert not torch.equal(first[2], other[2])


def test_defects_lie_in_many_places():
    masks = torch.stack([painted("hole", seed)[2] for seed in range(40)]).float()
    weight = masks.sum((1, 2))
    x = (masks.sum(1) * torch.arange(SIDE)).sum(1) / weight
    y = (masks.sum(2) * torch.arange(SIDE)).sum(1) / weight
    for place in (x, y):
        assert place.min() < 0.35 * SIDE and place.max() > 0.65 * SIDE


def test_the_good_image_is_left_alone():
    before = part()
    kept = before.clone()
    paint(before, "crack", np.random.default_rng(0))
    assert torch.equal(before, kept)


def test_without_a_region_the_object_is_found():
    region = disc(0.25, (0.4, 0.55))
    image = part(region)
    given = paint(image, "hole", np.random.default_rng(3), object_region(image))
    found = paint(image, "hole", np.random.default_rng(3))
    assert torch.equal(given[0], found[0]) and torch.equal(given[1], found[1])
    assert not found[1][~torch.from_numpy(disc(0.28, (0.4, 0.55)))].any()


@pytest.mark.parametrize("kind", KINDS)
def test_small_and_oblong_images_can_be_painted(kind):
    for height, width in ((48, 48), (40, 120), (64, 41)):
        image = torch.full((3, height, width), 120, dtype=torch.uint8)
        after, mask = paint(image, kind, np.random.default_rng(0))
        assert after.shape == image.shape and mask.shape == (height, width)
        assert mask.any() and ((after != image).any(0) & mask).any()


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(ValueError, match="unknown kind of defect 'dent'.*crack, cut, hole, print, scratch, spot"):
        paint(part(), "dent", np.random.default_rng(0))


# --- where the object is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("centre", "radius"), [((0.5, 0.5), 0.35), ((0.4, 0.6), 0.2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_disc_is_found_where_it_is(centre, radius, channels):
    region = disc(radius, centre)
    found = object_region(part(region, channels))
    assert found.dtype == bool and found.shape == region.shape
    assert (found & region).sum() > 0.95 * (found | region).sum()


def test_a_dark_object_on_a_bright_background_is_found():
    region = disc(0.3)
    found = object_region(255 - part(region))
    assert (found & region).sum() > 0.95 * (found | region).sum()


def test_a_hole_is_part_of_the_object_and_specks_are_not():
    image = part(disc(0.35))
    image[:, 72:88, 72:88] = 30  # as dark as the background
    image[:, 4:8, 4:8] = 255
    found = object_region(image)
    assert found[80, 80] and not found[:12, :12].any()


def nothing_there():
    return torch.full((3, SIDE, SIDE), 90, dtype=torch.uint8)


def a_texture():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))


def a_speck():
    return part(disc(0.08))


def object_everywhere():
    return part(disc(2.0))


@pytest.mark.parametrize("picture", [nothing_there, a_texture, a_speck, object_everywhere])
def test_without_an_object_it_is_the_middle_of_the_image(picture):
    found = object_region(picture())
    middle = disc(0.3)
    assert (found & middle).sum() > 0.95 * (found | middle).sum()
