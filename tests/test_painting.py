"""Notebook 6: what its painter marks, leaves alone and refuses, and what its network learns from that."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers.data.batches import to_float
from tests.book import PAINTED, make_data, page

NAME = "06_denoising_autoencoder"
BOOK = page(NAME)
SETTINGS = PAINTED | {"window": 64, "epochs": 1, "lr": 1e-3}


def disc(count=16, side=64, colour=(0.4, -0.2, -0.6), radius=0.35):
    """(N, 3, side, side): a plain disc on a dark ground, with a little noise; and where it is."""
    place = torch.linspace(-1, 1, side)
    inside = (place.square() + place[:, None].square()).sqrt() < 2 * radius
    x = torch.where(inside, torch.tensor(colour)[:, None, None], torch.tensor(-0.8)).repeat(count, 1, 1, 1)
    return x + 0.01 * torch.randn_like(x), inside


def painted(x, corruption="defects", **changes):
    """The damaged images and their masks; without changes to that, all of them are damaged and nothing is moved."""
    s = SimpleNamespace(**SETTINGS | {"clean": 0.0, "moved": 0.0} | changes)
    return BOOK["CORRUPTIONS"][corruption](x, BOOK["paintable"](x, s), s)


def images():
    return make_data(NAME).train.images.clone()


def test_the_object_is_found_and_nothing_else():
    x, inside = disc()
    region = BOOK["object_region"](x)[:, 0]
    assert (region == inside).float().mean() > 0.93  # in tiles of 8 pixels
    assert not BOOK["object_region"](torch.zeros(2, 3, 64, 64)).any()


def test_defects_are_on_the_object_and_the_mask_is_what_changed():
    x, _ = disc()
    damaged, mask = painted(x)
    region, change = BOOK["object_region"](x), (damaged - x).abs().amax(1, keepdim=True)
    assert not (change > 0)[~region].any(), "outside of the object nothing changes"
    assert set(mask.unique().tolist()) == {0, 1} and mask.shape == (16, 1, 64, 64)
    assert (change[mask == 1] > 0.02).float().mean() > 0.9, "what is marked is changed"
    assert (mask[change > 0.3] == 1).float().mean() >= 0.8, "what is changed much is marked"
    assert mask.flatten(1).any(1).float().mean() > 0.7


@pytest.mark.parametrize(
    ("clean", "moved", "untouched"), [(0.25, 0.0, 4), (0.5, 0.25, 8), (1.0, 0.0, 15), (0.0, 0.5, 0)]
)
def test_a_share_of_the_batch_stays_clean(clean, moved, untouched):
    x, _ = disc()
    damaged, mask = painted(x, clean=clean, moved=moved)
    same = (damaged == x).flatten(1).all(1)
    assert same[:untouched].all() and not mask[:untouched].any()
    assert (~same[untouched:]).float().mean() > 0.6


def test_anywhere_is_painted_where_no_object_is_asked_for():
    _, mask = painted(torch.zeros(16, 3, 64, 64), on_object=False)
    assert mask.flatten(1).any(1).float().mean() > 0.4  # another blank image, or its own pieces, change nothing


def test_faint_is_faint_and_opaque_is_opaque():
    (x, _), largest = disc(), []
    for faintest in (0.01, 1.0):
        torch.manual_seed(0)
        damaged, _ = painted(x, faintest=faintest)
        largest.append((damaged - x).abs().flatten(1).amax(1).mean())
    assert largest[0] < 0.8 * largest[1]


def test_strokes_are_thin_and_blobs_are_as_large_as_asked():
    def pixels(kind, **sizes):
        s = SimpleNamespace(**SETTINGS | {"size": 256} | sizes)
        return (BOOK[kind](torch.ones(64, 1, 128, 128, dtype=torch.bool), s) > 0.5).float().sum((1, 2, 3))

    assert pixels("strokes").max() < 7 * 0.3 * 256, "at most 6 pixels wide"
    small, large = pixels("blobs", smallest=0.01, largest=0.02), pixels("blobs", smallest=0.1, largest=0.12)
    assert small.median() < 80 < 800 < large.median()


def test_grey_images_get_grey_defects():
    x = disc(colour=(0.3, 0.3, 0.3))[0].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    damaged, _ = painted(x)
    assert (damaged != x).any() and torch.allclose(damaged[:, :1], damaged[:, 1:2], atol=1e-6)


@pytest.mark.parametrize("name", ["none", "gaussian", "coarse", "stains", "defects"])
def test_every_corruption_gives_images_and_masks(name):
    x, _ = disc(4)
    damaged, mask = painted(x, name, clean=0.25, moved=0.25)
    assert damaged.shape == x.shape and mask.shape == (4, 1, 64, 64) and damaged.isfinite().all()
    assert torch.equal(damaged, x) == (name == "none") == (not mask.any())


def test_a_window_is_the_same_part_of_images_and_regions():
    pixels = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(4, -1, -1, -1)
    part, region = BOOK["window"](pixels, pixels > 2000, 32)
    assert part.shape == region.shape == (4, 1, 32, 32) and torch.equal(part > 2000, region)
    assert (part.diff(dim=3) == 1).all() and (part.diff(dim=2) == 64).all(), "a part as it is, not mirrored"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"faintest": value}, "above 0 and at most 1") for value in (0.0, 1.2, float("nan"))),
        ({"clean": -0.1}, "clean is a share"),
        ({"strokes": 1.5}, "strokes is a share"),
        ({"clean": 0.7, "moved": 0.5}, "together at most 1"),
        *(({"smallest": value, "largest": 0.1}, "smallest is above 0, at most largest") for value in (0.0, 0.2)),
        ({"largest": 0.5}, "larger than an object: at most 0.*, or set on_object to False"),
        ({"corruption": "rust"}, "corruption is one of none, .*: got 'rust'"),
        ({"heads": "all"}, "heads is both, restore or mark"),
        ({"window": 128}, "window is at most size, 64 pixels: got 128"),
        ({"window": 20}, "multiples of 8"),
        ({"window": 32, "companion": 3}, "a companion needs whole images: set window to 64"),
    ],
)
def test_settings_that_cannot_be_painted_get_one_sentence(changes, words):
    BOOK["check_settings"](images(), SETTINGS)
    with pytest.raises(ValueError, match=words) as caught:
        BOOK["check_settings"](images(), SETTINGS | changes)
    assert "\n" not in str(caught.value)


def test_images_without_an_object_are_named():
    plain = images()
    plain[1] = 100
    with pytest.raises(ValueError, match=r"training images 1 \(1 in all\): set on_object to False"):
        BOOK["check_settings"](plain, SETTINGS)
    for changes in ({"on_object": False}, {"corruption": "stains"}):
        BOOK["check_settings"](plain, SETTINGS | changes)


def test_the_map_of_a_network_that_only_repairs_is_its_error():
    model = BOOK["DenoisingAutoencoder"](SETTINGS | {"heads": "restore"}).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        error = (x - model.reconstruct(x)).abs().mean(1)
        heat = model.anomaly_map(x)
    assert heat[0, 20, 30] == pytest.approx(error[0, 18:23, 28:33].mean().item(), rel=1e-4)
    assert torch.allclose(BOOK["top_share"](heat, 1.0), heat.mean((1, 2)))


def test_a_companion_is_rebuilt_from_good_images_and_the_network_sees_it():
    good, same = to_float(images()[:4]), partial(torch.testing.assert_close, atol=1e-3, rtol=0)
    model = BOOK["DenoisingAutoencoder"](SETTINGS | {"companion": 3}).eval()
    model.companion.learn(good)
    same(model.companion(good), good, msg="four images span three directions")
    broken, there = good.clone(), (..., slice(28, 36), slice(28, 36))
    broken[there] = -broken[there].sign()
    left = (model.companion(broken) - good)[there].abs().mean()
    assert left < 0.5 * (broken - good)[there].abs().mean(), "a defect is no part of it"
    with torch.no_grad():
        before = model.anomaly_map(broken)
        model.companion.centre.add_(0.5)
        assert not torch.allclose(before, model.anomaly_map(broken))
    assert {"companion.centre", "companion.basis"} <= set(model.state_dict()), "it travels with the weights"
    few = BOOK["Companion"](3, 64, 9)
    few.learn(good)
    same(few(good), good, msg="more components than images")


def test_a_damaged_pixel_counts_three_times_but_a_large_region_no_more_than_a_small_one():
    mask = torch.zeros(3, 1, 10, 10)
    mask[1, 0, :1, :4], mask[2, 0, :5] = 1, 1
    weight = BOOK["pixel_weights"](mask, 3.0)
    assert (weight[mask == 0] == 1).all() and weight[1, 0, 0, 0] == 3
    assert (weight * mask)[2].sum() == pytest.approx(3 * 0.05 * 100)


def test_the_target_is_the_good_image_and_the_weighted_mask():
    model = BOOK["DenoisingAutoencoder"](SETTINGS | {"window": 32}).train()
    normal, seen = to_float(images()[:4]), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.manual_seed(3)
    total = model.training_step((normal, None), 0)
    torch.manual_seed(3)
    part, region = BOOK["window"](normal, BOOK["paintable"](normal, model.hparams), 32)
    _, mask = BOOK["defects"](part, region, model.hparams)
    ((repaired, logit),) = seen
    each = torch.nn.functional.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    expected = (part - repaired).abs().mean() + (each * BOOK["pixel_weights"](mask, 3.0)).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert mask.any()


def test_another_image_comes_from_another_place_where_no_object_is_asked_for():
    x = torch.zeros(2, 3, 64, 64)
    x[0, :, 10, 20] = 1
    filling = {}
    for elsewhere in ((0, 0), (5, 60)):
        torch.manual_seed(0)
        filling[elsewhere] = torch.cat([BOOK["fillings"](x, x[:, :1] > -1, 0, elsewhere) for _ in range(20)])
    assert (filling[0, 0][:, 0, 10, 20] == 1).any() and (filling[5, 60][:, 0, 15, 16] == 1).any()
    assert not (filling[5, 60][1::2, 0, 10, 20] == 1).all()
