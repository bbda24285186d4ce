import pytest
import torch
from torch.nn import functional as F

from helpers.data import loader
from helpers.data.loader import Augment, Batches, OneClassData, Split, to_float, to_uint8

CPU = torch.device("cpu")


def numbered_split(normal: int, anomalous: int, kinds: int = 3) -> Split:
    """Images that hold their own number: normal ones from 0 on, anomalous ones from 128 on, mixed up."""
    number = torch.cat([torch.arange(normal), 128 + torch.arange(anomalous)])
    number = number[torch.randperm(len(number), generator=torch.Generator().manual_seed(0))]
    label = (number >= 128).long()
    kind = torch.where(label == 1, 1 + number % kinds, 0)
    return Split(number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), label, kind)


def batches(normal=50, anomalous=20, normals=8, anomalies=4, seed=0, augment=None, **kwargs) -> Batches:
    return Batches(numbered_split(normal, anomalous), normals, anomalies, CPU, seed, augment or Augment(), **kwargs)


def numbers(images) -> list[int]:
    return to_uint8(images)[:, 0, 0, 0].tolist()


def epoch(source: Batches, number: int | None = None) -> list[tuple[list[int], list[int]]]:
    """The numbers of the images in each batch of one epoch."""
    if number is not None:
        source.set_epoch(number)
    return [(numbers(normal), numbers(anomalous)) for normal, anomalous in source]


def flat(lists) -> list[int]:
    return [value for values in lists for value in values]


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_float_in_the_range_of_the_networks():
    normal, anomalous = next(iter(batches()))
    assert normal.shape == (8, 1, 4, 4) and anomalous.shape == (4, 1, 4, 4)
    assert normal.dtype == anomalous.dtype == torch.float32
    assert normal.min() >= -1 and anomalous.max() <= 1


def test_every_batch_has_the_same_composition():
    for normal, anomalous in epoch(batches()):
        assert len(normal) == 8 and max(normal) < 128
        assert len(anomalous) == 4 and min(anomalous) >= 128


def test_an_epoch_shows_each_normal_image_at_most_once_and_drops_the_incomplete_batch():
    source = batches(normal=50, normals=8)
    seen = flat(normal for normal, _ in epoch(source))
    assert len(source) == 6
    assert len(seen) == len(set(seen)) == 48
    whole = flat(normal for normal, _ in epoch(batches(normal=48, normals=8)))
    assert sorted(whole) == list(range(48))


def test_epochs_differ_and_depend_only_on_seed_and_number():
    torch.manual_seed(1)
    first = [epoch(batches(), number) for number in range(3)]
    torch.manual_seed(2)
    source = batches()
    again = [epoch(source, number) for number in (2, 1, 0)][::-1]
    assert first == again
    assert first[0] != first[1] != first[2] != first[0]
    assert epoch(batches(seed=1), 0) != first[0]
    # other images are left out each time
    assert {*flat(normal for normal, _ in first[0])} != {*flat(normal for normal, _ in first[1])}


def test_epochs_do_not_move_the_global_random_state():
    state = torch.get_rng_state()
    epoch(batches(), 3)
    assert torch.equal(state, torch.get_rng_state())


def test_few_anomalies_are_repeated_all_equally_often():
    seen = flat(anomalous for _, anomalous in epoch(batches(anomalous=3, anomalies=4)))
    assert len(seen) == 6 * 4
    assert [seen.count(number) for number in (128, 129, 130)] == [8, 8, 8]
    assert seen[:3] != seen[3:6] or seen[3:6] != seen[6:9]  # in a new order each time


def test_many_anomalies_are_not_repeated():
    seen = flat(anomalous for _, anomalous in epoch(batches(anomalous=40, anomalies=4)))
    assert len(seen) == len(set(seen)) == 24


def test_without_anomalies_the_second_part_is_empty():
    for anomalous in (0, 20):  # one-class training ignores those that are there
        _, part = next(iter(batches(anomalous=anomalous, anomalies=0)))
        assert part.shape == (0, 1, 4, 4)


def test_anomalies_are_wanted_but_there_are_none():
    with pytest.raises(ValueError, match="4 anomalous images, but the training set has none"):
        batches(anomalous=0, anomalies=4)


def test_a_batch_larger_than_the_set():
    with pytest.raises(ValueError, match="batch of 8 normal images is larger than the training set .7"):
        batches(normal=7, normals=8)
    assert len(epoch(batches(normal=8, normals=8))) == 1


def test_augmentation_reaches_every_image_of_a_batch():
    plain, noisy = next(iter(batches())), next(iter(batches(augment=Augment(noise=0.1))))
    for before, after in zip(plain, noisy, strict=True):
        assert ((before - after).abs().amax((1, 2, 3)) > 0).all()


# --- interruptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 3, 5])
def test_a_stored_position_gives_exactly_the_remaining_batches(done):
    whole, next_epoch = epoch(batches(), 2), epoch(batches(), 3)
    source = batches()
    source.set_epoch(2)
    running = iter(source)
    for _ in range(done):
        next(running)
    state = source.state_dict()

    resumed = batches()
    resumed.load_state_dict(state)
    assert epoch(resumed, 2) == whole[done:]
    assert epoch(resumed, 3) == next_epoch  # whole again


def test_a_position_stored_after_the_last_batch_starts_the_next_epoch():
    source = batches()
    epoch(source, 0)
    state = source.state_dict()
    resumed = batches()
    resumed.load_state_dict(state)
    assert epoch(resumed, 1) == epoch(batches(), 1)


def test_a_position_stored_at_the_last_batch_does_not_repeat_it():
    # as a checkpoint does that is written inside the loop, before the iterator is asked again
    source = batches()
    running = iter(source)
    for _ in range(len(source)):
        next(running)
    assert source.state_dict() == batches().state_dict()


# --- the set that does not fit --------------------------------------------------------------------------------------


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(loader, "free_memory", lambda device: 0)


def test_a_small_set_lives_on_the_device():
    assert batches().resident


def test_the_set_may_take_half_of_the_free_memory(monkeypatch):
    size = 70 * 4 * 4  # bytes of 50 + 20 images
    monkeypatch.setattr(loader, "free_memory", lambda device: 2 * size)
    assert batches().resident
    monkeypatch.setattr(loader, "free_memory", lambda device: 2 * size - 2)
    assert not batches().resident


def test_free_memory_is_a_plausible_number_of_bytes():
    assert 2**20 < loader.free_memory(CPU) < 2**50


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_bring_the_same_batches(no_memory, workers):
    source = batches(workers=workers)
    assert not source.resident
    state = torch.get_rng_state()
    found = epoch(source, 1)
    assert torch.equal(state, torch.get_rng_state())  # a resume restores it, so workers must not move it
    resident = Batches.__new__(Batches)
    resident.__dict__ = source.__dict__ | {"resident": True}
    assert found == epoch(resident, 1)
    normal, _ = next(iter(source))
    assert normal.dtype == torch.float32 and normal.shape == (8, 1, 4, 4)


def test_a_position_with_workers_counts_what_was_used_not_what_was_fetched(no_memory):
    source = batches(workers=1)
    running = iter(source)
    first = [next(running) for _ in range(2)]
    state = source.state_dict()
    del running
    resumed = batches(workers=1)
    resumed.load_state_dict(state)
    rest = epoch(resumed, 0)
    assert [(numbers(normal), numbers(anomalous)) for normal, anomalous in first] + rest == epoch(batches(workers=0), 0)


# --- several processes ----------------------------------------------------------------------------------------------


def test_processes_share_an_epoch_without_overlap(monkeypatch):
    alone = epoch(batches(), 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        source = batches()
        assert len(source) == 3
        shares.append(epoch(source, 1))
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == alone


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_all_256_values_survive_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    there = to_float(values)
    assert there.dtype == torch.float32
    assert there.min() == -1 and there.max() == 1
    assert torch.equal(to_uint8(there), values)
    assert torch.equal(values, torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16))  # in its own memory


def test_to_uint8_clips_and_rounds():
    found = to_uint8(torch.tensor([-5.0, -1.0, 0.004, 1.0, 5.0]))
    assert found.dtype == torch.uint8
    assert found.tolist() == [0, 0, 128, 255, 255]


def test_to_uint8_leaves_its_input_alone():
    images = torch.tensor([0.5])
    to_uint8(images)
    assert images.item() == 0.5


# --- augmentation ---------------------------------------------------------------------------------------------------


def pictures(count=6, channels=1, side=16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


EVERYTHING = Augment(flip=0.5, degrees=20, shift=0.1, noise=0.2, scale=0.1, brightness=0.2)


def test_no_augmentation_is_the_identity():
    images = pictures()
    state = torch.get_rng_state()
    assert torch.equal(Augment()(images), images)
    assert torch.equal(state, torch.get_rng_state())


def test_flip_1_mirrors_left_and_right():
    images = pictures(channels=3)
    assert torch.equal(Augment(flip=1.0)(images), images.flip(-1))


def test_flip_is_the_same_beside_a_rotation():
    images = pictures(channels=3)
    torch.testing.assert_close(Augment(flip=1.0, degrees=1e-4)(images), images.flip(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"degrees": 1e-4}])
def test_flip_is_decided_for_each_image_with_its_probability(settings):
    torch.manual_seed(0)
    images = pictures(count=1).expand(400, -1, -1, -1)
    out = Augment(flip=0.25, **settings)(images)
    flipped = (out - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-3
    kept = (out - images).abs().amax((1, 2, 3)) < 1e-3
    assert (flipped ^ kept).all()
    assert 60 <= int(flipped.sum()) <= 140


def test_a_rotation_turns_by_at_most_the_angle():
    # a bright dot right of the centre: where it goes gives the angle
    side, torch_side = 65, 26
    image = torch.full((1, 1, side, side), -1.0)
    image[:, :, 31:34, 32 + torch_side - 1 : 32 + torch_side + 2] = 1
    torch.manual_seed(0)
    out = Augment(degrees=30)(image.expand(200, -1, -1, -1)) + 1
    axis = torch.arange(side) - 32.0
    mass = out.sum((1, 2, 3))
    x, y = (out.sum((1, 2)) * axis).sum(1) / mass, (out.sum((1, 3)) * axis).sum(1) / mass
    angle = torch.rad2deg(torch.atan2(y, x))
    assert 25 < angle.max() < 31 and -31 < angle.min() < -25
    torch.testing.assert_close(torch.hypot(x, y), torch.full((200,), float(torch_side)), atol=0.5, rtol=0)


def test_a_shift_moves_by_at_most_the_fraction_of_the_side():
    image = torch.full((1, 1, 40, 40), -1.0)
    image[:, :, 19:21, 19:21] = 1
    torch.manual_seed(0)
    out = Augment(shift=0.1)(image.expand(200, -1, -1, -1)) + 1
    axis, mass = torch.arange(40) - 19.5, out.sum((1, 2, 3))
    for moved in ((out.sum((1, 2)) * axis).sum(1) / mass, (out.sum((1, 3)) * axis).sum(1) / mass):
        assert 3.5 < moved.max() < 4.1 and -4.1 < moved.min() < -3.5  # a tenth of 40


def test_a_scale_changes_the_size_by_at_most_its_fraction():
    image = torch.full((1, 1, 80, 80), -1.0)
    image[:, :, 20:60, 20:60] = 1
    torch.manual_seed(0)
    out = Augment(scale=0.2)(image.expand(200, -1, -1, -1)) + 1
    side = (out.sum((1, 2, 3)) / 2).sqrt() / 40
    assert 1.17 < side.max() < 1.21 and 0.79 < side.min() < 0.83
    torch.testing.assert_close(out, out.flip(-1), atol=1e-4, rtol=0)  # around the middle


def test_brightness_changes_by_at_most_its_fraction_of_the_range():
    torch.manual_seed(0)
    out = (Augment(brightness=0.2)(torch.zeros(200, 1, 8, 8)) + 1) / 2
    assert 0.69 < out.max() <= 0.7 and 0.3 <= out.min() < 0.31
    assert (out.amax((1, 2, 3)) == out.amin((1, 2, 3))).all()  # one light for the whole image


@pytest.mark.parametrize("setting", ["flip", "degrees", "shift", "noise", "scale", "brightness"])
def test_images_of_a_batch_get_different_changes(setting):
    torch.manual_seed(0)
    images = pictures(count=1).expand(8, -1, -1, -1)
    strength = {"flip": 0.5, "degrees": 20, "shift": 0.2, "noise": 0.1, "scale": 0.2, "brightness": 0.2}[setting]
    out = Augment(**{setting: strength})(images)
    different = len({tuple(image.flatten().tolist()) for image in out})
    assert different == (2 if setting == "flip" else 8)


def test_noise_has_its_strength_and_keeps_the_range():
    torch.manual_seed(0)
    grey = torch.zeros(4, 1, 64, 64)
    assert Augment(noise=0.1)(grey).std().item() == pytest.approx(0.1, rel=0.05)
    assert not grey.any()  # the set itself must not change
    loud = Augment(noise=3.0)(grey)
    assert loud.min() == -1 and loud.max() == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment", [Augment(shift=0.3), Augment(degrees=45), EVERYTHING], ids=["shift", "degrees", "all"]
)
def test_shape_type_and_range_stay(augment, channels):
    torch.manual_seed(0)
    images = pictures(channels=channels).sign()  # the extremes, where an overshoot would show
    out = augment(images)
    assert out.shape == images.shape and out.dtype == images.dtype
    assert out.min() >= -1 - 1e-6 and out.max() <= 1 + 1e-6


def test_borders_are_continued_not_filled():
    torch.manual_seed(0)
    white = torch.ones(16, 1, 8, 8)
    torch.testing.assert_close(Augment(degrees=45, shift=0.3)(white), white)


def test_augmentation_is_reproducible():
    images, found = pictures(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(EVERYTHING(images))
    assert torch.equal(found[0], found[1])
    assert F.mse_loss(found[0], found[2]) > 1e-3


# --- epochs longer or shorter than the set --------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "expected"), [(None, 6), (8, 1), (40, 5), (47, 5), (400, 50), (2016, 252)])
def test_an_epoch_has_the_images_that_were_asked_for(images, expected):
    source = batches(normal=50, normals=8, images_per_epoch=images)
    assert len(source) == len(list(source)) == expected


def test_a_long_epoch_shows_each_image_about_equally_often():
    source = batches(normal=50, normals=8, images_per_epoch=400)
    seen = flat(normal for normal, _ in epoch(source, 0))
    assert len(seen) == 400
    assert torch.bincount(torch.tensor(seen)).tolist() == [8] * 50
    uneven = torch.bincount(torch.tensor(flat(normal for normal, _ in epoch(batches(images_per_epoch=424), 0))))
    assert len(uneven) == 50 and set(uneven.tolist()) == {8, 9}
    # no image comes a second time before every other one has come
    rounds = [seen[start : start + 50] for start in range(0, 400, 50)]
    assert all(sorted(part) == list(range(50)) for part in rounds)
    assert rounds[0] != rounds[1]


def test_a_short_epoch_shows_other_images_each_time():
    source = batches(normal=50, normals=8, images_per_epoch=16)
    shown = [flat(normal for normal, _ in epoch(source, number)) for number in range(10)]
    assert all(len(set(part)) == 16 for part in shown)
    assert len(set(flat(shown))) > 40


def test_long_epochs_depend_only_on_seed_and_number_and_go_on_where_they_stopped():
    first, again = (epoch(batches(images_per_epoch=400), 3) for _ in range(2))
    assert first == again != epoch(batches(images_per_epoch=400), 4)
    resumed = batches(images_per_epoch=400)
    resumed.load_state_dict({"next": 30})
    assert epoch(resumed, 3) == first[30:]


def test_each_time_an_image_comes_it_is_augmented_anew():
    torch.manual_seed(0)
    source = batches(normal=4, normals=4, anomalies=0, images_per_epoch=80, augment=Augment(noise=0.1))
    seen = torch.cat([normal for normal, _ in source])
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 80


def test_a_batch_larger_than_a_short_epoch():
    with pytest.raises(ValueError, match=r"a batch of 8 normal images is larger .* \(50 normal images, 7 an epoch\)"):
        batches(normal=50, normals=8, images_per_epoch=7)


def test_processes_that_join_after_the_batches_were_made_are_counted(monkeypatch):
    source = batches(normal=50, normals=8)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 6)
    assert len(source) == 1
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 7)
    with pytest.raises(ValueError, match="a batch of 8 normal images for each of 7 processes is larger .*50 normal"):
        len(source)


def test_a_batch_may_be_larger_than_a_small_set_if_the_epoch_is_long():
    seen = flat(normal for normal, _ in epoch(batches(normal=5, normals=8, anomalies=0, images_per_epoch=40)))
    assert torch.bincount(torch.tensor(seen)).tolist() == [8] * 5


def test_without_normal_images_there_is_no_epoch():
    with pytest.raises(ValueError, match="larger than the training set"):
        batches(normal=0, images_per_epoch=100)


def test_long_epochs_are_shared_by_processes(monkeypatch):
    alone = epoch(batches(images_per_epoch=80), 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(epoch(batches(images_per_epoch=80), 1))
    assert [len(share) for share in shares] == [5, 5]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == alone


# --- splits ---------------------------------------------------------------------------------------------------------


def test_pick_keeps_images_labels_and_kinds_together_in_order():
    split = numbered_split(5, 5)
    chosen = split.pick(torch.tensor([7, 2, 2]))
    assert len(chosen) == 3
    for name in ("images", "label", "kind"):
        assert torch.equal(getattr(chosen, name), getattr(split, name)[[7, 2, 2]])


def test_normal_keeps_the_order():
    split = numbered_split(5, 5)
    kept = split.images[split.label == 0]
    assert len(split.normal()) == 5
    assert torch.equal(split.normal().images, kept)


def masked_split(count=6) -> Split:
    """The n-th mask marks pixel n; every third image is normal, the fifth has no mask."""
    split = numbered_split(0, count)
    split.label = (torch.arange(count) % 3 > 0).long()
    split.mask = torch.eye(16, dtype=torch.bool)[:count].view(count, 4, 4)
    split.has_mask = torch.arange(count) != 4
    return split


def test_pick_takes_masks_along():
    split = masked_split()
    chosen = split.pick(torch.tensor([4, 1, 1]))
    assert torch.equal(chosen.mask, split.mask[[4, 1, 1]])
    assert chosen.has_mask.tolist() == [False, True, True]
    assert numbered_split(2, 2).pick(torch.tensor([0])).mask is None


def test_normal_and_first_of_each_take_masks_along():
    split = masked_split()
    assert torch.equal(split.normal().mask, split.mask[[0, 3]])
    assert split.normal().has_mask.tolist() == [True, True]
    for chosen in (split.first_of_each(2), split.first_of_each(9)):
        for image, mask in zip(chosen.images, chosen.mask, strict=True):
            (place,) = [n for n in range(6) if torch.equal(split.images[n], image)]
            assert torch.equal(mask, split.mask[place])


@pytest.mark.parametrize(
    ("count", "shape", "largest"),
    [(1203, (1, 28, 28), 500), (7, (1, 2, 2), 500), (25, (3, 256, 256), 10), (3, (3, 1024, 1024), 1)],
)
def test_chunks_are_in_order_whole_and_small_enough(count, shape, largest):
    images = torch.zeros(1, dtype=torch.uint8).expand(count, *shape)  # takes no memory
    chunks = Split(images, torch.zeros(count), torch.zeros(count)).chunks()
    assert sum(len(chunk) for chunk in chunks) == count
    assert max(len(chunk) for chunk in chunks) == min(largest, count)
    assert len(chunks) == -(-count // largest)


def test_chunks_keep_the_order():
    split = numbered_split(60, 60)
    assert torch.equal(torch.cat(split.chunks()), split.images)


def test_first_of_each_is_normal_first_and_spread_over_kinds():
    kind = torch.tensor([2, 2, 2, 0, 1, 2, 3, 0, 3, 0])
    split = Split(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), (kind != 0).long(), kind)
    assert split.first_of_each(2).images.flatten().tolist() == [3, 7, 4, 0]
    assert split.first_of_each(4).images.flatten().tolist() == [
        3,
        7,
        9,
        4,
        0,
        6,
        1,
    ]  # one of each kind, then second ones
    assert split.first_of_each(4).kind.tolist() == [0, 0, 0, 1, 2, 3, 2]
    assert len(split.first_of_each(100)) == 10  # never more than there are


def test_first_of_each_is_always_the_same():
    split = numbered_split(30, 60)
    torch.manual_seed(1)
    first = split.first_of_each(9).images
    torch.manual_seed(2)
    assert torch.equal(first, split.first_of_each(9).images)
    assert torch.bincount(split.first_of_each(9).kind).tolist() == [9, 3, 3, 3]


def test_first_of_each_without_anomalies():
    assert len(numbered_split(5, 0).first_of_each(3)) == 3


# --- the data module ------------------------------------------------------------------------------------------------


def test_the_data_module_gives_batches_counts_and_a_title():
    data = OneClassData(CPU, batch_size=12, anomalies_per_batch=4, seed=3)
    data.train, data.validation, data.test = numbered_split(50, 20), numbered_split(5, 6), numbered_split(7, 0)
    data.dataset, data.protocol = "Things", "one normal"
    assert data.title == "Things: one normal"
    assert data.counts() == {
        "training": {"normal": 50, "anomalous": 20},
        "validation": {"normal": 5, "anomalous": 6},
        "test": {"normal": 7, "anomalous": 0},
    }
    assert epoch(data.train_dataloader(), 0) == epoch(batches(seed=3), 0)


def test_held_out_views_are_augmented_copies_of_the_held_out_normal_images():
    data = OneClassData(CPU, 4, 0, seed=3, augment=Augment(noise=0.2))
    data.validation = numbered_split(5, 4)
    state = torch.get_rng_state()
    views = data.held_out_views(3)
    assert torch.equal(state, torch.get_rng_state())
    assert len(views) == 15 and not views.label.any()
    good = data.validation.normal()
    assert torch.equal(views.kind, good.kind.repeat(3))
    assert torch.equal(views.images[:5], good.images)
    assert not torch.equal(views.images[5:10], good.images)
    assert not torch.equal(views.images[5:10], views.images[10:])
    assert torch.equal(views.images, data.held_out_views(3).images)
    data.augment = Augment()
    assert torch.equal(data.held_out_views(2).images, good.images.repeat(2, 1, 1, 1))


def test_views_leave_the_random_state_of_gpus_alone(monkeypatch):
    data = OneClassData(CPU, 4, 0, seed=3, augment=Augment(noise=0.2))
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    torch.manual_seed(5)
    assert reseeded == [5], "this is how torch seeds them"
    views = data.views(numbered_split(5, 4), 3)
    assert reseeded == [5]
    torch.manual_seed(3)
    first = to_uint8(data.augment(to_float(views.images[:9])))
    assert torch.equal(views.images[9:18], first), "drawn from the seed of the data"


def test_views_of_any_split_begin_with_its_images():
    data = OneClassData(torch.device("cpu"), 2, 0, seed=3, augment=Augment(noise=0.3))
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    split = Split(images, torch.tensor([0, 1]), torch.tensor([4, 7]))
    views = data.views(split, 3)
    assert torch.equal(views.images[:2], images)
    assert not torch.equal(views.images[2:4], images)
    assert views.label.tolist() == [0, 1] * 3
    assert views.kind.tolist() == [4, 7] * 3
