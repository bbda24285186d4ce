import gzip
import hashlib

import pytest
import torch
from torchvision import datasets

from helpers.data.fashion_mnist import CLASSES, FashionMNISTOneClass, MNISTOneClass
from helpers.data.photo import DataError
from helpers.data.samples import SAMPLES
from helpers.runtime import data_dir

EACH, TESTED, KEPT = 60, 20, 6  # images of a class in the fixture ``numbered``, and how many are held out


@pytest.fixture
def make(make_run, numbered):
    """``make(**settings)``: the numbered set, of which a tenth of the normal images is held out."""
    return lambda **settings: FashionMNISTOneClass(make_run(), **{"batch_size": 20} | settings)


def numbers(split) -> list[int]:
    """Which images of the numbered set these are: their place, test images from 10,000 on."""
    corner = split.images[:, 0, 0, :3].long()
    return (corner[:, 0] * 256 + corner[:, 1] + 10_000 * corner[:, 2]).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"normal_class": name}, "unknown class .*: choose 0 to 9, or one of T-shirt/top") for name in (-1, 10, "0")),
        ({"anomalous_class": "bag"}, "unknown class 'bag'"),
        ({"anomaly_fraction": 1.0}, r"in \[0, 1\): 1.0"),
        ({"anomaly_fraction": 0.95, "batch_size": 8}, "a batch of 8, 8 of them anomalous, lacks normal images"),
        ({"anomaly_fraction": 0.91, "batch_size": 100}, "asks for 546 of 534 anomalies"),
        ({"held_out": 1}, r"in \(0, 1\): 1"),
        ({"size": 29}, "even, >= 28, not 29"),
        ({"size": 26}, "even, >= 28, not 26"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(("gamma", "anomalies", "in_batch"), [(0, 0, 0), (0.001, 1, 1), (0.1, 6, 2), (0.8, 216, 16)])
def test_counts_and_batches_follow_gamma(make, gamma, anomalies, in_batch):
    data = make(anomaly_fraction=gamma)
    assert data.counts() == {
        "training": {"normal": EACH - KEPT, "anomalous": anomalies},
        "validation": {"normal": KEPT, "anomalous": KEPT},
        "test": {"normal": TESTED, "anomalous": 9 * TESTED},
    }
    normal, anomalous = next(iter(data.train_dataloader()))
    assert (len(normal), len(anomalous)) == (20 - in_batch, in_batch)


def test_no_image_is_in_two_splits(make):
    # 534 of 540 anomalies are free for training; gamma 0.908 wants 533 of them, so that an overlap could not hide
    data = make(normal_class=3, anomaly_fraction=0.908)
    train, validation, test = (numbers(split) for split in (data.train, data.validation, data.test))
    assert (len(train), len(validation)) == (54 + 533, 12)
    assert len({*train, *validation}) == len(train) + len(validation) and max(train + validation) < 10_000
    assert test == list(range(10_000, 10_000 + 10 * TESTED)), "the test split is the test file, in its order"


def test_label_1_is_anomalous_and_the_defect_type_is_the_class(make):
    data = make(normal_class="Dress")
    assert data.title == "Fashion-MNIST (600 + 200 images): Dress normal, 50% labelled anomalies"
    assert data.defect_types == CLASSES
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8 and split.images.shape[1:] == (1, 28, 28)
        assert torch.equal(split.label, (split.defect_type != 3).long())
        assert split.defect_type.tolist() == [number % 10 for number in numbers(split)]


def test_the_seed_alone_decides_what_is_held_out_as_in_the_committed_results(make):
    data, one_class, other = make(seed=1), make(seed=1, anomaly_fraction=0), make(seed=2)
    train, validation = numbers(data.train), numbers(data.validation)
    assert hashlib.sha256(repr(train + validation).encode()).hexdigest()[:12] == "fc831fedd55c"
    assert numbers(one_class.validation) == validation and numbers(one_class.train) == numbers(data.train.normal())
    assert set(numbers(other.train)) != set(train)


def test_max_images_holds_for_each_label_in_each_split(make):
    data = make(anomaly_fraction=0.8, max_images=5)
    assert all(count <= 5 for part in data.counts().values() for count in part.values())
    assert data.subset == "600 + 200 images, at most 5 of each label"
    assert make(max_images=9000).subset == "600 + 200 images", "nothing was cut"


def test_one_class_can_be_the_anomalous_one(make):
    data = make(anomalous_class="Bag", anomaly_fraction=0)
    assert data.title == "Fashion-MNIST (600 + 200 images): all but Bag normal, no labels"
    assert all(torch.equal(split.label, (split.defect_type == 8).long()) for split in (data.train, data.test))
    assert data.counts()["validation"] == {"normal": 9 * KEPT, "anomalous": 9 * KEPT}
    assert data.counts()["test"] == {"normal": 9 * TESTED, "anomalous": TESTED}


def test_a_size_adds_a_black_border(make):
    bare, framed = make().test.images, make(size=32).test.images
    assert torch.equal(framed, torch.nn.functional.pad(bare, (2, 2, 2, 2)))


@pytest.mark.parametrize(("data", "size"), [(FashionMNISTOneClass, "8,000 + 2,000"), (MNISTOneClass, "3,000 + 1,000")])
def test_without_files_the_embedded_part_is_read(make_run, data, size):
    found = data(make_run(), anomaly_fraction=0, max_images=64)
    assert found.subset == f"embedded part: {size} images, at most 64 of each label"
    assert not make_run().data_dir.exists(), "the data folder is left alone"


def test_files_on_disk_are_read_packed_or_not(make, numbered):
    images = make().test.images
    for path in numbered.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert make().subset == "600 + 200 images" and torch.equal(make().test.images, images)


@pytest.mark.parametrize("content", [slice(900), slice(0), slice(1, None)], ids=["cut", "empty", "no gzip file"])
@pytest.mark.parametrize("ending", [".gz", ""])
def test_a_damaged_file_is_named_never_replaced_silently(make_run, numbered, content, ending, capsys):
    packed, path = numbered / "train-images-idx3-ubyte.gz", numbered / f"train-images-idx3-ubyte{ending}"
    path.write_bytes((packed.read_bytes() if ending else gzip.decompress(packed.read_bytes()))[content])
    with pytest.raises(DataError, match=rf"{path.name} is damaged .*: delete it and run again, or replace it"):
        FashionMNISTOneClass(make_run("full"))
    assert path.exists() and capsys.readouterr().out == ""


def test_full_downloads_the_files_whose_checksums_torchvision_knows(make_run, serve, monkeypatch):
    files = {path.name: path.read_bytes() for path in (SAMPLES / "MNIST" / "raw").glob("*.gz")}
    url, seen = serve(files)
    assert {name for name, _ in datasets.MNIST.resources} == set(files) and datasets.FashionMNIST.mirrors
    monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
    sums = [(name, hashlib.md5(content, usedforsecurity=False).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    run = make_run("full")
    for _ in range(2):
        assert MNISTOneClass(run, anomaly_fraction=0).subset == "3,000 + 1,000 images"
    assert sorted(seen) == sorted(files)


@pytest.mark.real_data
def test_complete_fashion_mnist_has_its_known_counts(make_run):
    run = make_run()
    run.data_dir = data_dir()
    if not (run.data_dir / "FashionMNIST" / "raw").is_dir():
        pytest.skip("Fashion-MNIST is not at hand")
    data = FashionMNISTOneClass(run, normal_class="Trouser", anomaly_fraction=0.5)
    assert data.subset == "60,000 + 10,000 images"
    assert data.counts()["training"] == {"normal": 5400, "anomalous": 5400}
