import torch

from helpers.data.batches import Augment, Split, to_float, to_uint8
from helpers.data.one_class import OneClassData


def split(normal: int, anomalous: int, seed: int = 0) -> Split:
    images = torch.randint(256, (normal + anomalous, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
    label = torch.tensor([0] * normal + [1] * anomalous)
    return Split(images, label, 4 * label)


def make(**options) -> OneClassData:
    data = OneClassData(torch.device("cpu"), **{"batch_size": 6, "anomalies_per_batch": 2, "seed": 3} | options)
    data.train, data.validation, data.test = split(20, 5), split(5, 4, 1), split(7, 3, 2)
    data.dataset, data.subset = "Things", "embedded part: 25 images"
    return data


def test_names_and_fields_say_what_defines_the_task():
    data = make()
    assert data.title == "Things (embedded part: 25 images): good normal, no labels"
    data.normal_class, data.anomaly_fraction = "Bag", 0.05
    assert data.title.endswith(": Bag normal, 5% labelled anomalies")
    assert data.fields() == {
        "dataset": "Things",
        "subset": "embedded part: 25 images",
        "normal_class": "Bag",
        "anomaly_fraction": 0.05,
        "tested_on": "test split",
        "n_train": 25,  # learned and held out
        "n_test_normal": 7,
        "n_test_anomalous": 3,
    }
    assert data.counts()["training"] == {"normal": 20, "anomalous": 5}


def test_the_fingerprint_changes_with_all_that_a_training_sees_and_nothing_else():
    first = make().fingerprint()
    assert make().fingerprint() == first
    changed = [{"seed": 4}, {"batch_size": 7}, {"augment": Augment(noise=0.1)}, {"images_per_epoch": 40}]
    prints = {make(**options).fingerprint() for options in changed}
    data = make()
    data.test = split(1, 1)
    assert data.fingerprint() == first
    data.train.images[3, 0, 0, 0] ^= 1
    prints.add(data.fingerprint())
    assert len(prints | {first}) == 6


def test_views_begin_with_the_images_then_augment_them_always_alike(monkeypatch):
    data, reseeded = make(augment=Augment(noise=0.2)), []
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    views = data.views(data.validation, 3)
    assert torch.equal(state, torch.get_rng_state()) and not reseeded, "the training's random numbers are left alone"
    assert torch.equal(views.images[:9], data.validation.images)
    assert views.label.tolist() == data.validation.label.tolist() * 3 and views.defect_type.tolist()[-1] == 4
    torch.manual_seed(3)
    assert torch.equal(views.images[9:18], to_uint8(data.augment(to_float(views.images[:9]))))
    assert not torch.equal(views.images[9:18], views.images[18:])
