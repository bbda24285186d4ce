import pytest
import torch

from helpers.data import batches as module
from helpers.data.batches import Augment, Batches, Split, to_float, to_uint8
from helpers.data.one_class import OneClassData
from tests.toy import CPU


def numbered_split(normal: int, anomalous: int) -> Split:
    """Images that hold their own number, mixed up: normal ones from 0 on, anomalous ones from 128 on."""
    number = torch.cat([torch.arange(normal), 128 + torch.arange(anomalous)])
    number = number[torch.randperm(len(number), generator=torch.Generator().manual_seed(0))]
    label = (number >= 128).long()
    images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Split(images, label, torch.where(label == 1, 1 + number % 3, 0))


def make(normal=50, anomalous=20, anomalies=4, **settings) -> Batches:
    """Batches of 8 normal images and some anomalous ones."""
    data = OneClassData(CPU, 8 + anomalies, anomalies, **settings)
    data.train = numbered_split(normal, anomalous)
    return data.train_dataloader()


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


def test_an_epoch_without_a_full_batch_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="4 anomalous images, but the training set has none"):
        make(anomalous=0)
    for settings in ({"normal": 7}, {"images_per_epoch": 7}):
        with pytest.raises(ValueError, match="batch of 8 normal images is larger than the training set .7."):
            make(**settings)
    source = make()
    monkeypatch.setattr(module, "rank_and_world", lambda: (0, 7))
    with pytest.raises(ValueError, match="a batch of 56 normal images is larger"):
        len(source)  # processes may join after the batches were made


@pytest.mark.parametrize("done", [1, 5])
def test_a_resumed_epoch_goes_on_with_the_same_images_and_random_numbers(done):
    def rest(source):
        source.set_epoch(2)
        return [(*batch, torch.rand(3)) for batch in source]  # as a model's dropout draws

    whole, interrupted, resumed = (make(augment=Augment(0.5, 20, 0.1, 0.2, 0.1, 0.2)) for _ in range(3))
    interrupted.set_epoch(2)
    for _ in zip(range(done), interrupted, strict=False):
        resumed.load_state_dict(interrupted.state_dict())
    torch.manual_seed(99)  # whatever happened before
    torch.testing.assert_close(rest(resumed), rest(whole)[done:], rtol=0, atol=0)
    assert resumed.state_dict() == make().state_dict(), "the next epoch is whole again"


@pytest.mark.parametrize("images", [None, 80])
def test_processes_share_an_epoch_without_overlap_and_draw_different_random_numbers(monkeypatch, images):
    alone, shares, drawn = epoch(make(images_per_epoch=images), 1), [], []
    for rank in range(2):
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        shares.append(epoch(make(images_per_epoch=images), 1))
        drawn.append(torch.rand(3))
    together = [batch for pair in zip(*shares, strict=True) for batch in pair]
    assert together == alone[: len(together)] and len(alone) - len(together) < 2
    assert not torch.equal(*drawn)


def test_all_256_values_survive_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    there = to_float(values)
    assert there.min() == -1 and there.max() == 1 and torch.equal(to_uint8(there), values)
    assert to_uint8(torch.tensor([-5.0, 0.004, 5.0])).tolist() == [0, 128, 255], "outside it is clipped"


@pytest.mark.parametrize("rotation", [0, 1e-4])
def test_flip_is_decided_for_each_image_with_its_probability(rotation):
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(400, -1, -1, -1)
    out = Augment(flip=0.25, degrees=rotation)(images)
    flipped, kept = ((out - other).abs().amax((1, 2, 3)) < 1e-3 for other in (images.flip(-1), images))
    assert (flipped ^ kept).all() and 60 <= int(flipped.sum()) <= 140


def changed(augment, x=slice(20, 60), y=slice(20, 60), side=80):
    """Of 200 images with a white rectangle: x and y of its middle, from that of the image, and its area."""
    images = torch.full((200, 1, side, side), -1.0)
    images[:, :, y, x] = 1
    out, axis = (augment(images)[:, 0] + 1) / 2, torch.arange(side) - (side - 1) / 2
    area = out.sum((1, 2))
    return (out.sum(1) * axis).sum(1) / area, (out.sum(2) * axis).sum(1) / area, area


def test_a_rotation_turns_by_at_most_the_angle():
    x, y, _ = changed(Augment(degrees=30), slice(57, 60), slice(31, 34), side=65)  # 26 pixels right of the middle
    angle = torch.rad2deg(torch.atan2(y, x))
    assert 25 < angle.max() < 31 and -31 < angle.min() < -25
    torch.testing.assert_close(torch.hypot(x, y), torch.full((200,), 26.0), atol=0.5, rtol=0)


def test_a_shift_moves_by_whole_pixels_up_to_the_fraction_of_the_side():
    for moved in changed(Augment(shift=0.1))[:2]:
        assert moved.max() == pytest.approx(8, abs=1e-3) and moved.min() == pytest.approx(-8, abs=1e-3)
        torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)


def test_a_scale_and_a_brightness_change_by_at_most_their_fraction():
    side = changed(Augment(scale=0.2))[2].sqrt() / 40
    assert 1.17 < side.max() < 1.21 and 0.79 < side.min() < 0.83
    light = (Augment(brightness=0.2)(torch.zeros(200, 1, 8, 8)) + 1) / 2
    assert 0.69 < light.max() <= 0.7 and 0.3 <= light.min() < 0.31
    assert (light.amax((1, 2, 3)) == light.amin((1, 2, 3))).all(), "one light for the whole image"


def test_noise_has_its_strength_and_keeps_the_range():
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
    assert split.normal().mask is None
    split.mask, split.has_mask = torch.eye(16, dtype=torch.bool)[:10].view(10, 4, 4), torch.arange(10) != 4
    chosen = split.subset(torch.tensor([7, 2, 2]))
    for name in ("images", "label", "defect_type", "mask", "has_mask"):
        assert torch.equal(getattr(chosen, name), getattr(split, name)[[7, 2, 2]])
    assert torch.equal(split.normal().mask, split.mask[split.label == 0])


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
