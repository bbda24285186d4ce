from types import SimpleNamespace

import pytest
import torch

from helpers.data import batches as module
from helpers.data.batches import Augment, Batches, Split, good_and_painted, to_float, to_uint8

EVERYTHING = Augment(flip=0.5, degrees=20, shift=0.1, noise=0.2, scale=0.1, brightness=0.2)


def numbered_split(normal: int, anomalous: int) -> Split:
    """Images that hold their own number, mixed up: normal ones from 0 on, anomalous ones from 128 on."""
    number = torch.cat([torch.arange(normal), 128 + torch.arange(anomalous)])
    number = number[torch.randperm(len(number), generator=torch.Generator().manual_seed(0))]
    label = (number >= 128).long()
    images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Split(images, label, torch.where(label == 1, 1 + number % 3, 0))


def make(normal=50, anomalous=20, normals=8, anomalies=4, seed=0, augment=None, images_per_epoch=None) -> Batches:
    settings = {"device": torch.device("cpu"), "seed": seed, "images_per_epoch": images_per_epoch}
    settings |= {"normals_per_batch": normals, "anomalies_per_batch": anomalies, "augment": augment or Augment()}
    return Batches(SimpleNamespace(train=numbered_split(normal, anomalous), **settings))


def epoch(source: Batches, number: int = 0) -> list[tuple[list[int], list[int]]]:
    """The numbers of the images in each batch of one epoch."""
    source.set_epoch(number)
    return [tuple(to_uint8(part)[:, 0, 0, 0].tolist() for part in batch) for batch in source]


def test_a_batch_has_its_composition_as_floats_in_range():
    for normal, anomalous in make():
        assert normal.shape == (8, 1, 4, 4) and anomalous.shape == (4, 1, 4, 4)
        assert normal.dtype == torch.float32 and normal.min() >= -1 and anomalous.max() <= 1
        assert to_uint8(normal).max() < 128 <= to_uint8(anomalous).min()
    assert all(anomalous.shape == (0, 1, 4, 4) for _, anomalous in make(anomalies=0, seed=2**40))


def test_epochs_differ_and_depend_only_on_seed_and_number():
    first = [epoch(make(), number) for number in range(3)]
    torch.manual_seed(2)
    source = make()
    assert first == [epoch(source, number) for number in (2, 1, 0)][::-1]
    assert first[0] != first[1] and epoch(make(seed=1)) != first[0]


@pytest.mark.parametrize("anomalous", [3, 40])
def test_anomalies_are_repeated_only_if_there_are_few_and_then_equally_often(anomalous):
    seen = torch.tensor([number for _, part in epoch(make(anomalous=anomalous)) for number in part])
    counts = torch.bincount(seen - 128, minlength=anomalous)
    assert len(seen) == 24 and counts.max() - counts.min() <= (anomalous > 24 or 0)


@pytest.mark.parametrize(("images", "expected"), [(None, 6), (8, 1), (47, 5), (400, 50)])
def test_an_epoch_can_be_shorter_or_longer_than_the_set(images, expected):
    source = make(images_per_epoch=images)
    assert len(source) == len(epoch(source)) == expected
    rounds = [number for normal, _ in epoch(source) for number in normal][:50]
    assert len(rounds) == len(set(rounds)), "all come once before any comes again"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anomalous": 0}, "4 anomalous images, but the training set has none"),
        ({"normal": 7}, "batch of 8 normal images is larger than the training set .7."),
        ({"images_per_epoch": 7}, "larger than the training set"),
    ],
)
def test_an_epoch_without_a_full_batch_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("done", [1, 5])
@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["plain", "augmented"])
def test_a_resumed_epoch_goes_on_with_the_same_images_and_random_numbers(done, augment):
    def rest(source):
        return [(normal, anomalous, torch.rand(3)) for normal, anomalous in source]  # as a model's dropout draws

    whole = make(augment=augment)
    whole.set_epoch(2)
    expected = rest(whole)

    interrupted = make(augment=augment)
    interrupted.set_epoch(2)
    running = iter(interrupted)
    for _ in range(done):
        next(running)
    resumed = make(augment=augment)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.set_epoch(2)
    torch.manual_seed(99)  # whatever happened before
    for found, there in zip(rest(resumed), expected[done:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, there, strict=True))
    assert resumed.state_dict() == make().state_dict(), "the next epoch is whole again"


@pytest.mark.parametrize("images", [None, 80])
def test_processes_share_an_epoch_without_overlap(monkeypatch, images):
    alone, shares = epoch(make(images_per_epoch=images), 1), []
    for rank in range(2):
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        shares.append(epoch(make(images_per_epoch=images), 1))
    together = [batch for pair in zip(*shares, strict=True) for batch in pair]
    assert together == alone[: len(together)] and len(alone) - len(together) < 2


def test_processes_draw_different_random_numbers(monkeypatch):
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        next(iter(make()))
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)
    source = make()
    monkeypatch.setattr(module, "rank_and_world", lambda: (0, 7))
    with pytest.raises(ValueError, match="a batch of 56 normal images is larger"):
        len(source)  # processes may join after the batches were made


def test_all_256_values_survive_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    there = to_float(values)
    assert there.min() == -1 and there.max() == 1 and torch.equal(to_uint8(there), values)
    assert to_uint8(torch.tensor([-5.0, 0.004, 5.0])).tolist() == [0, 128, 255], "outside it is clipped"


def pictures(count=6, channels=1, side=16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("rotation", [0, 1e-4])
def test_flip_is_decided_for_each_image_with_its_probability(rotation):
    torch.manual_seed(0)
    images = pictures(count=1, channels=3).expand(400, -1, -1, -1)
    out = Augment(flip=0.25, degrees=rotation)(images)
    flipped, kept = ((out - other).abs().amax((1, 2, 3)) < 1e-3 for other in (images.flip(-1), images))
    assert (flipped ^ kept).all() and 60 <= int(flipped.sum()) <= 140


def centre_of_mass(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of the bright part of square images, from the middle."""
    axis, mass = torch.arange(out.shape[-1]) - (out.shape[-1] - 1) / 2, (out + 1).sum((1, 2, 3))
    return ((out + 1).sum((1, 2)) * axis).sum(1) / mass, ((out + 1).sum((1, 3)) * axis).sum(1) / mass


def test_a_rotation_turns_by_at_most_the_angle():
    image = torch.full((1, 1, 65, 65), -1.0)
    image[:, :, 31:34, 57:60] = 1  # 26 pixels right of the middle
    torch.manual_seed(0)
    x, y = centre_of_mass(Augment(degrees=30)(image.expand(200, -1, -1, -1)))
    angle = torch.rad2deg(torch.atan2(y, x))
    assert 25 < angle.max() < 31 and -31 < angle.min() < -25
    torch.testing.assert_close(torch.hypot(x, y), torch.full((200,), 26.0), atol=0.5, rtol=0)


def test_a_shift_moves_by_whole_pixels_up_to_the_fraction_of_the_side():
    image = torch.full((1, 1, 40, 40), -1.0)
    image[:, :, 19:21, 19:21] = 1
    torch.manual_seed(0)
    for moved in centre_of_mass(Augment(shift=0.1)(image.expand(200, -1, -1, -1))):
        assert moved.max() == pytest.approx(4, abs=1e-3) and moved.min() == pytest.approx(-4, abs=1e-3)
        torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)


def test_a_scale_and_a_brightness_change_by_at_most_their_fraction():
    image = torch.full((1, 1, 80, 80), -1.0)
    image[:, :, 20:60, 20:60] = 1
    torch.manual_seed(0)
    side = ((Augment(scale=0.2)(image.expand(200, -1, -1, -1)) + 1).sum((1, 2, 3)) / 2).sqrt() / 40
    assert 1.17 < side.max() < 1.21 and 0.79 < side.min() < 0.83
    light = (Augment(brightness=0.2)(torch.zeros(200, 1, 8, 8)) + 1) / 2
    assert 0.69 < light.max() <= 0.7 and 0.3 <= light.min() < 0.31
    assert (light.amax((1, 2, 3)) == light.amin((1, 2, 3))).all(), "one light for the whole image"


def test_noise_has_its_strength_and_keeps_the_range():
    torch.manual_seed(0)
    grey = torch.zeros(4, 1, 64, 64)
    assert Augment(noise=0.1)(grey).std().item() == pytest.approx(0.1, rel=0.05)
    assert not grey.any() and Augment(noise=3.0)(grey).abs().max() == 1


def test_what_a_change_uncovers_repeats_the_edge():
    bright = torch.full((50, 1, 16, 20), 0.8)
    assert torch.allclose(Augment(degrees=45, shift=0.3)(bright), bright, atol=1e-5)
    state = torch.get_rng_state()
    assert torch.equal(Augment()(bright), bright) and torch.equal(state, torch.get_rng_state()), "nothing is drawn"


def test_subset_and_normal_keep_everything_together_in_order():
    split = numbered_split(5, 5)
    split.mask, split.has_mask = torch.eye(16, dtype=torch.bool)[:10].view(10, 4, 4), torch.arange(10) != 4
    chosen = split.subset(torch.tensor([7, 2, 2]))
    for name in ("images", "label", "defect_type", "mask", "has_mask"):
        assert torch.equal(getattr(chosen, name), getattr(split, name)[[7, 2, 2]])
    assert torch.equal(split.normal().mask, split.mask[split.label == 0])
    assert numbered_split(2, 2).normal().mask is None


@pytest.mark.parametrize(("count", "shape", "largest"), [(1203, (1, 28, 28), 500), (25, (3, 256, 256), 10)])
def test_chunks_are_whole_and_small_enough(count, shape, largest):
    images = torch.zeros(1, dtype=torch.uint8).expand(count, *shape)  # takes no memory
    chunks = Split(images, torch.zeros(count), torch.zeros(count)).chunks()
    assert sum(map(len, chunks)) == count and max(map(len, chunks)) == largest


def test_first_of_each_is_normal_first_and_spread_over_the_types():
    types = torch.tensor([2, 2, 2, 0, 1, 2, 3, 0, 3, 0])
    split = Split(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), (types != 0).long(), types)
    assert split.first_of_each(2).images.flatten().tolist() == [3, 7, 4, 0]
    assert split.first_of_each(4).images.flatten().tolist() == [3, 7, 9, 4, 0, 6, 1]
    assert len(split.first_of_each(100)) == 10 and len(numbered_split(5, 0).first_of_each(3)) == 3


def test_painted_images_come_after_good_ones_with_their_masks():
    good, image, mask = torch.zeros(2, 1, 4, 4).byte(), torch.ones(1, 4, 4).byte(), torch.eye(4).bool()
    split = good_and_painted(good, [(image, mask, 3)])
    assert split.label.tolist() == [0, 0, 1] and split.defect_type.tolist() == [0, 0, 3]
    assert not split.mask[:2].any() and torch.equal(split.mask[2], mask) and split.has_mask.all()
    assert good_and_painted(good).mask.shape == (2, 4, 4)
