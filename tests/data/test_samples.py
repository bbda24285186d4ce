import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import FashionMNIST

from helpers.data import samples

NAMES = [f"{stem}-{what}-ubyte.gz" for stem in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """torchvision's root folder with the digits, packed and unpacked."""
    root = tmp_path_factory.mktemp("digits")
    raw = samples.digits_as_fashion_mnist(root / "FashionMNIST" / "raw")
    for packed in list(raw.iterdir()):
        with gzip.open(packed) as source:
            packed.with_suffix("").write_bytes(source.read())
    return root


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 3, 2)])
def test_write_idx_follows_the_format(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    samples.write_idx(tmp_path / "file.gz", array)
    content = gzip.decompress((tmp_path / "file.gz").read_bytes())
    # two zero bytes, 8 for uint8, the number of dimensions; then each dimension as a big-endian integer
    assert content[:4] == bytes([0, 0, 8, len(shape)])
    assert struct.unpack(f">{len(shape)}I", content[4 : 4 + 4 * len(shape)]) == shape
    assert content[4 + 4 * len(shape) :] == bytes(range(array.size))


def test_write_idx_takes_arrays_that_are_not_contiguous(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4).T
    samples.write_idx(tmp_path / "file.gz", array)
    assert gzip.decompress((tmp_path / "file.gz").read_bytes())[12:] == array.tobytes(order="C")


def test_torchvision_reads_every_digit_once(root):
    digits = load_digits()
    train, test = FashionMNIST(str(root), train=True), FashionMNIST(str(root), train=False)
    is_test = np.arange(len(digits.target)) % 4 == 0
    assert train.data.shape == (1347, 28, 28) and test.data.shape == (450, 28, 28)
    np.testing.assert_array_equal(train.targets, digits.target[~is_test])
    np.testing.assert_array_equal(test.targets, digits.target[is_test])


def test_the_images_are_the_digits_enlarged(root):
    digits = load_digits()
    train = FashionMNIST(str(root), train=True).data
    assert train.dtype.itemsize == 1 and train.max() == 255 and train.min() == 0
    assert not train[:, :4].any() and not train[:, :, -4:].any()  # MNIST's margin
    # the mean over the digit's area is kept by the enlargement, up to clipping
    small = digits.images[np.arange(len(digits.images)) % 4 != 0] / 16
    large = train[:, 4:-4, 4:-4].numpy() / 255
    assert np.corrcoef(small.mean((1, 2)), large.mean((1, 2)))[0, 1] > 0.99
    # and so is the picture: each eighth of the side against the digit's own pixel
    coarse = large[:, 1::5, 1::5][:, :4, :4]
    assert np.corrcoef(coarse.ravel(), small[:, ::2, ::2].ravel())[0, 1] > 0.9


def test_a_second_call_writes_nothing(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    assert samples.digits_as_fashion_mnist(folder) == folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == sorted(NAMES)
    (folder / NAMES[0]).write_bytes(b"mine")
    before[NAMES[0]] = (folder / NAMES[0]).stat().st_mtime_ns
    samples.digits_as_fashion_mnist(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["raw"]


def interrupted(folder, monkeypatch):
    """Write the digits, stopped at the second of the four files."""
    whole, calls = samples.write_idx, []

    def stop(path: Path, array):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        whole(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "write_idx", stop)
        with pytest.raises(OSError, match="No space left"):
            samples.digits_as_fashion_mnist(folder)


def test_an_interruption_leaves_no_folder_that_counts(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    interrupted(folder, monkeypatch)
    assert not folder.exists()
    samples.digits_as_fashion_mnist(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_an_interruption_leaves_nothing_at_all(tmp_path, monkeypatch):
    interrupted(tmp_path / "raw", monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_leave_one_folder(tmp_path, monkeypatch):
    # the other process finishes while this one writes: its folder is there when this one renames
    folder, other = tmp_path / "raw", tmp_path / "other"
    samples.digits_as_fashion_mnist(other / "raw")
    whole = samples.write_idx

    def overtaken(path, array):
        whole(path, array)
        if not folder.exists():
            shutil.copytree(other / "raw", folder)

    monkeypatch.setattr(samples, "write_idx", overtaken)
    assert samples.digits_as_fashion_mnist(folder) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "raw"]


def test_keycaps_are_pictures_of_two_keys_each_a_little_different(tmp_path):
    folder = samples.keycaps(tmp_path / "keycaps", good=4, others=3)
    eight, twelve = (
        np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted((folder / legend).iterdir())])
        for legend in samples.LEGENDS
    )
    assert eight.shape == (4, samples.KEY_SIDE, samples.KEY_SIDE, 3) and len(twelve) == 3
    assert len(np.unique(eight.reshape(4, -1), axis=0)) == 4
    middle = slice(samples.KEY_SIDE // 5, -samples.KEY_SIDE // 5)
    assert eight[:, 5, 5].mean() > 2 * eight[:, middle, middle].mean()  # a dark key on a light desk
    # the legends differ by more than two shots of one key do
    between = np.abs(eight.mean(0) - twelve.mean(0))[middle, middle].mean()
    assert between > 1.5 * np.abs(eight[:2].mean(0) - eight[2:].mean(0))[middle, middle].mean()
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*.jpg"))
    samples.keycaps(folder, good=9)
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*.jpg")) == before


def test_keycaps_are_the_same_everywhere(tmp_path):
    first, second = (samples.keycaps(tmp_path / name, good=2, others=1) for name in "ab")
    for path in first.rglob("*.jpg"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
