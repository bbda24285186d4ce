import gzip
import shutil
from pathlib import Path

import pytest
import torch

from helpers import runtime
from helpers.data import fashion_mnist, samples
from helpers.data.download import DataError, checksum_of
from helpers.data.fashion_mnist import (
    CLASSES,
    FASHION_MNIST,
    FILES,
    MNIST,
    FashionMNISTOneClass,
    MNISTOneClass,
    fashion_mnist_root,
)
from helpers.data.loader import Split

TRAIN_EACH, TEST_EACH = 60, 20  # as in the fixture ``numbered``
KEPT = 6  # a tenth of the normal images is held out, and as many anomalous ones


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A data folder with the embedded sample already in it, for tests that do not ask how it got there."""
    folder = tmp_path_factory.mktemp("data")
    samples.digits_as_fashion_mnist(folder / "sample" / "FashionMNIST" / "raw")
    return folder


@pytest.fixture
def digits(digits_dir, make_run, monkeypatch):
    """``digits(**settings)``: the one-class set on the embedded sample."""
    monkeypatch.setenv("AD_DATA", "sample")
    return lambda **settings: FashionMNISTOneClass(make_run(data_dir=digits_dir), **settings)


@pytest.fixture
def real_dir(tmp_path, numbered, monkeypatch):
    """A data folder with the real names, the numbered images, and the checksums that go with them."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    shutil.copytree(numbered, raw)
    monkeypatch.setattr(FASHION_MNIST, "files", expected(raw))
    monkeypatch.setenv("AD_DATA", "real")
    return raw


@pytest.fixture
def offline(dead_url, monkeypatch):
    """All mirrors are dead."""
    monkeypatch.setattr(FASHION_MNIST, "mirrors", (dead_url,))
    return dead_url


def expected(raw: Path) -> dict:
    packed = {name: raw / f"{name}.gz" for name in FILES}
    return {name: (checksum_of(path, "md5"), len(gzip.decompress(path.read_bytes()))) for name, path in packed.items()}


def numbers(split: Split) -> list[int]:
    """Which images of the numbered set these are: their place, test images from 10,000 on."""
    corner = split.images[:, 0, 0, :3].long()
    return (corner[:, 0] * 256 + corner[:, 1] + 10_000 * corner[:, 2]).tolist()


def tree(folder: Path) -> dict:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [-1, 10, "Shoe", "t-shirt/top", "0", 1.0, True, None])
def test_an_unknown_class_lists_the_choices(digits, name):
    with pytest.raises(ValueError, match=r"unknown class .*0 T-shirt/top.*9 Ankle boot"):
        digits(normal_class=name)


@pytest.mark.parametrize("gamma", [-0.1, 1.0, 1.5, float("nan")])
def test_gamma_outside_its_range(digits, gamma):
    with pytest.raises(ValueError, match=r"\[0, 1\).*got"):
        digits(anomaly_fraction=gamma)


def test_settings_are_checked_before_any_file_is_touched(make_run, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    wrongs = [{"normal_class": "Shoe"}, {"anomaly_fraction": 1.0}, {"anomaly_fraction": 0.9, "batch_size": 4}]
    wrongs += [{"anomalous_class": "Shoe"}, {"size": 27}, {"rare_class": 3}, {"rare_class": 0, "rare_share": 0.0}]
    for wrong in wrongs:
        with pytest.raises(ValueError):
            FashionMNISTOneClass(make_run(), **wrong)
    assert not (tmp_path / "data").exists()


def test_a_batch_without_place_for_a_normal_image(digits):
    with pytest.raises(ValueError, match="no place for a normal image"):
        digits(anomaly_fraction=0.95, batch_size=8)


def test_a_class_by_name_is_the_class_by_number(real_dir, make_run):
    by_name = FashionMNISTOneClass(make_run(), normal_class="Ankle boot")
    by_number = FashionMNISTOneClass(make_run(), normal_class=9)
    assert numbers(by_name.train) == numbers(by_number.train)
    assert set(by_name.train.normal().kind.tolist()) == {9}
    assert by_name.protocol == by_number.protocol == "Ankle boot normal, 50% labelled anomalies"


def test_more_anomalies_than_exist(real_dir, make_run):
    # of the nine other classes 9 * 60 - 6 = 534 images are left: enough for gamma 0.9, which wants 9 * 54 = 486
    assert (
        FashionMNISTOneClass(make_run(), anomaly_fraction=0.9, batch_size=10).counts()["training"]["anomalous"] == 486
    )
    with pytest.raises(ValueError, match="asks for 546 labelled anomalies beside 54 normal.*only 534 exist"):
        FashionMNISTOneClass(make_run(), anomaly_fraction=0.91, batch_size=100)


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "anomalies"), [(0, 0), (0.1, 6), (0.5, 54), (0.8, 216)])
def test_counts_follow_gamma(real_dir, make_run, gamma, anomalies):
    data = FashionMNISTOneClass(make_run(), anomaly_fraction=gamma, batch_size=20)
    assert data.counts() == {
        "training": {"normal": TRAIN_EACH - KEPT, "anomalous": anomalies},
        "validation": {"normal": KEPT, "anomalous": KEPT},
        "test": {"normal": TEST_EACH, "anomalous": 9 * TEST_EACH},
    }


@pytest.mark.parametrize(("gamma", "batch_size", "anomalies"), [(0, 64, 0), (0.1, 64, 6), (0.5, 128, 64), (0.01, 8, 1)])
def test_a_batch_has_its_share_of_anomalies(digits, gamma, batch_size, anomalies):
    data = digits(anomaly_fraction=gamma, batch_size=batch_size)
    normal, anomalous = next(iter(data.train_dataloader()))
    assert (len(normal), len(anomalous)) == (batch_size - anomalies, anomalies)


def test_a_tiny_gamma_keeps_one_anomaly(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), anomaly_fraction=0.001, batch_size=8)
    assert data.counts()["training"]["anomalous"] == 1


def test_no_image_is_in_two_splits(real_dir, make_run):
    # 534 of 540 anomalies are free for training; gamma 0.908 wants 533 of them, so that an overlap could not hide
    data = FashionMNISTOneClass(make_run(), normal_class=3, anomaly_fraction=0.908, batch_size=20)
    train, validation, test = (numbers(split) for split in (data.train, data.validation, data.test))
    assert (len(train), len(validation)) == (54 + 533, 12)
    assert len({*train, *validation, *test}) == len(train) + len(validation) + len(test)
    assert max(train + validation) < 10_000  # training and validation come from the training files only
    assert test == list(range(10_000, 10_000 + 10 * TEST_EACH))  # the test split is the test file, in its order


def test_label_1_is_anomalous_and_images_keep_their_class(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), normal_class=3)
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8 and split.images.shape[1:] == (1, 28, 28)
        assert torch.equal(split.label, (split.kind != 3).long())
        assert split.kind.tolist() == [number % 10 for number in numbers(split)]  # as the fixture numbers them
        assert len(set(split.kind.tolist())) > 3  # anomalies are drawn from all the other classes


def test_the_held_out_share_can_be_chosen(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), held_out=0.25, anomaly_fraction=0)
    assert data.counts()["validation"] == {"normal": 15, "anomalous": 15}
    assert data.counts()["training"] == {"normal": 45, "anomalous": 0}


def test_a_seed_gives_the_same_splits_and_another_seed_others(real_dir, make_run):
    first, again, other = (FashionMNISTOneClass(make_run(), seed=seed) for seed in (1, 1, 2))
    for split in ("train", "validation"):
        assert numbers(getattr(first, split)) == numbers(getattr(again, split))
        assert set(numbers(getattr(first, split))) != set(numbers(getattr(other, split)))
    assert numbers(first.test) == numbers(other.test)


def test_gamma_does_not_change_which_normal_images_are_held_out(real_dir, make_run):
    # so that thresholds and protocols can be compared
    one_class, balanced = (FashionMNISTOneClass(make_run(), anomaly_fraction=gamma) for gamma in (0, 0.5))
    assert numbers(one_class.validation) == numbers(balanced.validation)
    assert numbers(one_class.train) == numbers(balanced.train.normal())


def test_splits_do_not_depend_on_the_global_random_state(real_dir, make_run):
    torch.manual_seed(1)
    first = FashionMNISTOneClass(make_run())
    state = torch.get_rng_state()
    second = FashionMNISTOneClass(make_run())
    assert numbers(first.train) == numbers(second.train)
    assert torch.equal(state, torch.get_rng_state())


def test_limit_shortens_every_split(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), anomaly_fraction=0.5, batch_size=4, limit=5)
    five = {"normal": 5, "anomalous": 5}
    assert data.counts() == {"training": five, "validation": five, "test": five}
    whole = FashionMNISTOneClass(make_run(), anomaly_fraction=0.5, batch_size=4)
    for split in ("train", "validation", "test"):
        assert set(numbers(getattr(data, split))) <= set(numbers(getattr(whole, split)))


def test_limit_holds_for_anomalies_too(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), anomaly_fraction=0.8, batch_size=5, limit=5)
    assert data.counts()["training"]["anomalous"] <= 5


# --- nine normal classes, one anomalous -----------------------------------------------------------------------------


def test_one_class_can_be_the_anomalous_one(real_dir, make_run):
    data = FashionMNISTOneClass(make_run(), anomalous_class="Bag", anomaly_fraction=0, batch_size=20)
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.label, (split.kind == 8).long())
    assert set(data.train.kind.tolist()) == set(range(10)) - {8}
    kept = 9 * KEPT  # of the nine normal classes; as many anomalous images to watch
    assert data.counts() == {
        "training": {"normal": 9 * TRAIN_EACH - kept, "anomalous": 0},
        "validation": {"normal": kept, "anomalous": kept},
        "test": {"normal": 9 * TEST_EACH, "anomalous": TEST_EACH},
    }
    assert not set(numbers(data.train)) & set(numbers(data.validation))
    assert data.protocol == "Bag anomalous, one-class (no labels)"


def test_normal_class_and_anomalous_class_exclude_each_other(digits):
    with pytest.raises(ValueError, match="normal_class or anomalous_class, not both"):
        digits(normal_class=1, anomalous_class=2)


@pytest.mark.parametrize("size", [28, 30, 32, 64])
def test_a_size_adds_a_black_border(digits, size):
    bare, framed = digits(anomaly_fraction=0), digits(anomaly_fraction=0, size=size)
    edge = (size - 28) // 2
    for split in ("train", "validation", "test"):
        images = getattr(framed, split).images
        assert images.shape[1:] == (1, size, size)
        assert images.dtype == torch.uint8
        inside = images[..., edge : size - edge, edge : size - edge]
        assert torch.equal(inside, getattr(bare, split).images)
        assert images.sum() == inside.sum()


@pytest.mark.parametrize("size", [0, 27, 29, 26])
def test_a_size_that_has_no_even_border_is_refused(digits, size):
    with pytest.raises(ValueError, match=f"even and at least 28, not {size}"):
        digits(size=size)


def test_an_epoch_can_be_a_part_of_the_set(digits):
    data = digits(anomaly_fraction=0, batch_size=16, images_per_epoch=48)
    assert sum(len(normal) for normal, _ in data.train_dataloader()) == 48
    assert len(data.train) > 48


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_normal_class_can_be_made_rare_everywhere_but_in_the_test(real_dir, make_run, share):
    options = {"anomalous_class": 8, "anomaly_fraction": 0, "batch_size": 20}
    data = FashionMNISTOneClass(make_run(), rare_class="Coat", rare_share=share, **options)
    there = torch.cat([data.train.kind, data.validation.normal().kind])
    assert (there == 4).sum() == round(share * TRAIN_EACH)
    assert all((there == other).sum() == TRAIN_EACH for other in range(10) if other not in (4, 8))
    assert numbers(data.test) == numbers(FashionMNISTOneClass(make_run(), **options).test)
    assert data.protocol.endswith(f", {share:.0%} of Coat")


def test_only_a_normal_class_can_be_rare_and_only_by_a_share(digits):
    with pytest.raises(ValueError, match="rare_class must be normal: Sandal is anomalous"):
        digits(normal_class=3, rare_class=5)
    for share in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"rare_share .* in \(0, 1\]: got"):
            digits(rare_class=0, rare_share=share)


# --- which data -----------------------------------------------------------------------------------------------------


def test_the_sample_says_what_it_is(digits):
    data = digits(normal_class=8, anomaly_fraction=0)
    assert data.is_sample
    assert data.title == "SAMPLE DATA (handwritten digits): 8 normal, one-class (no labels)"
    assert data.kinds == tuple("0123456789")
    assert data.counts()["test"] == {"normal": 44, "anomalous": 406}  # every fourth of scikit-learn's digits


def test_the_sample_is_written_and_unpacked_once(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("AD_DATA", "sample")
    FashionMNISTOneClass(make_run())
    before = tree(tmp_path / "data" / "sample")
    assert {Path(name).name for name in before if "ubyte" in name} == {*FILES, *(f"{name}.gz" for name in FILES)}
    FashionMNISTOneClass(make_run())
    assert tree(tmp_path / "data" / "sample") == before


def test_the_smoke_profile_takes_the_sample_and_leaves_the_data_folder_alone(make_run, tmp_path, monkeypatch):
    monkeypatch.delenv("AD_DATA", raising=False)
    monkeypatch.setattr(samples.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    data = FashionMNISTOneClass(make_run("smoke"), limit=3)
    assert data.is_sample
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "tmp").iterdir()] == ["anomaly-samples"]
    assert not (tmp_path / "data").exists()


def test_real_files_at_hand_need_no_network(real_dir, make_run, offline):
    data = FashionMNISTOneClass(make_run(), normal_class=0)
    assert not data.is_sample
    assert data.title == "Fashion-MNIST: T-shirt/top normal, 50% labelled anomalies"
    assert data.kinds == CLASSES
    # unpacked files are enough, and are not unpacked again
    for packed in real_dir.glob("*.gz"):
        packed.unlink()
    before = tree(real_dir)
    assert fashion_mnist_root(make_run()) == (real_dir.parents[1], False)
    assert tree(real_dir) == before


def test_missing_files_are_downloaded_from_the_mirrors(real_dir, make_run, serve, dead_url, monkeypatch):
    server = serve({path.name: path.read_bytes() for path in real_dir.iterdir()})
    shutil.rmtree(real_dir)
    monkeypatch.setattr(FASHION_MNIST, "mirrors", (dead_url, server.url))
    assert FashionMNISTOneClass(make_run()).counts()["test"] == {"normal": TEST_EACH, "anomalous": 9 * TEST_EACH}
    assert sorted(path.name for path in real_dir.iterdir()) == sorted([*FILES, *(f"{name}.gz" for name in FILES)])
    FashionMNISTOneClass(make_run())
    assert len(server.seen) == 4  # the second time nothing is asked for


def test_real_data_that_cannot_be_had_names_url_and_folder(make_run, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    with pytest.raises(DataError) as caught:
        FashionMNISTOneClass(make_run())
    assert f"{offline}train-images-idx3-ubyte.gz" in str(caught.value)
    assert str(tmp_path / "data" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz") in str(caught.value)
    assert not (tmp_path / "data" / "sample").exists()


def test_auto_falls_back_to_the_sample_loudly(make_run, offline, monkeypatch, capsys):
    monkeypatch.setenv("AD_DATA", "auto")
    data = FashionMNISTOneClass(make_run())
    shown = capsys.readouterr().out
    assert "REAL DATA NOT FOUND" in shown and "EMBEDDED SAMPLE DATA" in shown and "AD_DATA_DIR" in shown
    assert "!" * 90 in shown
    assert offline in shown  # the reason
    assert data.is_sample and data.title.startswith("SAMPLE DATA")


def test_auto_takes_the_real_files_silently(real_dir, make_run, offline, monkeypatch, capsys):
    monkeypatch.setenv("AD_DATA", "auto")
    assert not FashionMNISTOneClass(make_run()).is_sample
    assert capsys.readouterr().out == ""


def test_mnist_has_its_own_folder_names_and_files(numbered, make_run, tmp_path, monkeypatch):
    raw = tmp_path / "data" / "MNIST" / "raw"
    shutil.copytree(numbered, raw)
    monkeypatch.setattr(MNIST, "files", expected(raw))
    monkeypatch.setenv("AD_DATA", "real")
    data = MNISTOneClass(make_run(), normal_class="3", anomaly_fraction=0)
    assert data.title == "MNIST: 3 normal, one-class (no labels)"
    assert data.counts()["training"] == {"normal": TRAIN_EACH - KEPT, "anomalous": 0}
    assert set(data.train.kind.tolist()) == {3}


def test_mnist_falls_back_to_the_digits_and_names_its_own_folder(make_run, dead_url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MNIST, "mirrors", (dead_url,))
    monkeypatch.setenv("AD_DATA", "auto")
    data = MNISTOneClass(make_run(), normal_class=3, anomaly_fraction=0)
    assert data.is_sample and data.kinds == tuple("0123456789")
    assert "Put the four .gz files of MNIST into .../raw" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown class 'Bag': choose one of 0 0, 1 1"):
        MNISTOneClass(make_run(), normal_class="Bag")


def test_mnist_and_fashion_mnist_differ_in_their_checksums():
    assert FASHION_MNIST.files.keys() == MNIST.files.keys()
    assert not {md5 for md5, _ in FASHION_MNIST.files.values()} & {md5 for md5, _ in MNIST.files.values()}


# --- broken files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["real", "auto"])
@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_broken_gz_is_named_with_both_checksums(real_dir, make_run, offline, monkeypatch, mode, damage, name):
    monkeypatch.setenv("AD_DATA", mode)
    packed = real_dir / f"{name}.gz"
    content = packed.read_bytes()
    middle = len(content) // 2
    broken = content[:middle] if damage == "truncated" else content[:middle] + b"\0ops" + content[middle + 4 :]
    packed.write_bytes(broken)
    with pytest.raises(DataError) as caught:
        FashionMNISTOneClass(make_run())
    expected_md5 = FASHION_MNIST.files[name][0]
    for part in (str(packed), f"expected MD5 {expected_md5}", f"found {checksum_of(packed, 'md5')}"):
        assert part in str(caught.value)
    assert packed.read_bytes() == broken  # the user's file is theirs to delete
    assert not (real_dir / name).exists() and not list(real_dir.glob("*.part"))
    assert not (real_dir.parents[1] / "sample").exists()


def test_the_official_checksums_refuse_a_file_that_only_has_the_name(make_run, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not images"))
    with pytest.raises(DataError, match="expected MD5 8d4fb7e6c68d591d4c3dfef9ec88bf0d, found"):
        FashionMNISTOneClass(make_run())


def test_a_truncated_unpacked_file_is_unpacked_again(real_dir, make_run, offline):
    fashion_mnist_root(make_run())
    unpacked = real_dir / "train-images-idx3-ubyte"
    whole = unpacked.read_bytes()
    unpacked.write_bytes(whole[:-1000])
    FashionMNISTOneClass(make_run())
    assert unpacked.read_bytes() == whole
    assert not list(real_dir.glob("*.part"))


def test_an_interrupted_unpacking_leaves_no_file_that_counts(real_dir, make_run, monkeypatch):
    def stop(source, sink, length):
        sink.write(source.read(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist.shutil, "copyfileobj", stop)
        with pytest.raises(KeyboardInterrupt):
            FashionMNISTOneClass(make_run())
    assert sorted(path.name for path in real_dir.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    FashionMNISTOneClass(make_run())


@pytest.mark.parametrize("mode", ["real", "auto", "sample"])
def test_a_data_folder_that_cannot_be_written_is_named(make_run, offline, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("AD_DATA", mode)
    in_the_way = tmp_path / "a_file"
    in_the_way.write_text("not a folder")
    with pytest.raises(DataError, match="cannot write to the data folder.*AD_DATA_DIR") as caught:
        FashionMNISTOneClass(make_run(data_dir=in_the_way / "data"))
    assert str(in_the_way) in str(caught.value)


# --- the real data --------------------------------------------------------------------------------------------------


@pytest.fixture
def official(make_run, offline, monkeypatch):
    """``official(**settings)``: the one-class set on the real files.  Never touches the network."""
    folder = runtime.data_dir()
    raw = folder / "FashionMNIST" / "raw"
    missing = [name for name in FILES if not (raw / name).exists() and not (raw / f"{name}.gz").exists()]
    if missing:
        pytest.skip(f"real Fashion-MNIST is not in {raw} (missing {', '.join(missing)})")
    monkeypatch.setenv("AD_DATA", "real")
    return lambda **settings: FashionMNISTOneClass(make_run(data_dir=folder), **settings)


@pytest.mark.real_data
def test_real_fashion_mnist_has_its_known_counts(official):
    data = official(normal_class="T-shirt/top", anomaly_fraction=0.5)
    assert data.counts() == {
        "training": {"normal": 5400, "anomalous": 5400},
        "validation": {"normal": 600, "anomalous": 600},
        "test": {"normal": 1000, "anomalous": 9000},
    }
    assert data.title == "Fashion-MNIST: T-shirt/top normal, 50% labelled anomalies"
    assert data.kinds == CLASSES and len(data.kinds) == 10
    for split in (data.train, data.validation, data.test):
        assert set(split.kind.tolist()) == set(range(10))
    assert torch.bincount(data.test.kind).tolist() == [1000] * 10


@pytest.mark.real_data
def test_real_mnist_has_its_known_counts(make_run, dead_url, monkeypatch):
    folder = runtime.data_dir()
    if not all((MNIST.raw(folder) / name).exists() for name in FILES):
        pytest.skip(f"real MNIST is not in {MNIST.raw(folder)}")
    monkeypatch.setattr(MNIST, "mirrors", (dead_url,))
    monkeypatch.setenv("AD_DATA", "real")
    data = MNISTOneClass(make_run(data_dir=folder), normal_class=5, anomaly_fraction=0)
    assert data.counts()["training"]["normal"] + data.counts()["validation"]["normal"] == 5421
    assert data.counts()["test"] == {"normal": 892, "anomalous": 9108}


@pytest.mark.real_data
def test_real_trousers_look_like_trousers(official):
    # a mix-up of images and labels would show: trousers are dark at the sides and light in the middle
    data = official(normal_class="Trouser", anomaly_fraction=0)
    mean = data.test.normal().images.float().mean((0, 1))
    assert mean[:, 10:18].mean() > 10 * mean[:, :5].mean()
    assert data.counts()["training"] == {"normal": 5400, "anomalous": 0}
