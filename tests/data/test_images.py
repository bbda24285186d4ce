import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import images
from helpers.data.images import list_images, list_types, read_image, read_images, read_mask
from helpers.data.photo import DataError

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(12, 10)  # 12 high, 10 wide, every pixel another value
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 2)


def save(path, pixels=COLOUR, mode=None, **settings):
    """Writes a picture and returns its path; mode: what Pillow makes of the pixels first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **settings)
    return path


def test_images_are_listed_by_name_without_hidden_ones(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "x/c.tiff", "x/.ipynb_checkpoints/1.png", ".trash/3.png"):
        save(tmp_path / ".local" / name)  # that the folder itself is in a hidden one does not matter
    assert [path.name for path in list_images(tmp_path / ".local")] == ["a.JPG", "b.png"]
    found = list_images(tmp_path / ".local", nested=True)
    assert [path.relative_to(tmp_path / ".local").as_posix() for path in found] == ["a.JPG", "b.png", "x/c.tiff"]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="there is no folder .*parts"):
        list_images(tmp_path / "parts")
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match="no image in .*: .png, .jpg.* are read; left out: 1 .heic"):
        list_images(tmp_path)


def test_files_that_are_left_out_are_named_once(tmp_path, capsys):
    save(tmp_path / "parts" / "1.png")
    for name in ("1.heic", "2.HEIC", "3.gif", "notes"):
        (tmp_path / "parts" / name).write_bytes(b"x")
    for _ in range(2):
        assert len(list_images(tmp_path / "parts")) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "parts: .png, .jpg" in said
    assert said.endswith("left out: 1 without ending, 1 .gif, 2 .heic\n")


def test_types_are_sub_folders_the_normal_one_first(tmp_path):
    for name, count in (("dent", 3), ("OK", 2), ("a_crack", 1), (".hidden", 1)):
        for number in range(count):
            save(tmp_path / name / f"{number}.png")
    paths, defect_type, names = list_types(tmp_path)
    assert names == ("OK", "a_crack", "dent") and defect_type.tolist() == [0, 0, 1, 2, 2, 2]
    assert [path.parent.name for path in paths] == ["OK", "OK", "a_crack", "dent", "dent", "dent"]
    assert list_types(tmp_path, max_images=1)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("names", [("dent",), ("good",), ("good", "ok", "dent"), ()])
def test_types_need_one_normal_and_one_anomalous_folder(tmp_path, names):
    for name in names:
        save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="needs a sub-folder named good, ok or normal, and one for each defect: found"):
        list_types(tmp_path)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_an_image_is_read_as_it_is_or_converted_to_grey_or_colour(tmp_path, ending):
    found, mode = read_image(save(tmp_path / f"1.{ending}"))
    assert torch.equal(found, torch.from_numpy(COLOUR).permute(2, 0, 1)) and mode == "RGB"
    path = save(tmp_path / f"2.{ending}", GREY)
    assert torch.equal(read_image(path)[0], torch.from_numpy(GREY).expand(3, -1, -1))
    assert torch.equal(read_image(path, grey=True)[0], torch.from_numpy(GREY)[None])
    found, _ = read_image(tmp_path / f"1.{ending}", grey=True)
    assert found.float().numpy() == pytest.approx((COLOUR @ [0.299, 0.587, 0.114])[None], abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_put_on_black(tmp_path, mode):
    pixels = np.full((8, 9, 4), 200, dtype=np.uint8)
    pixels[..., 3] = [255, 255, 255, 0, 0, 0, 128, 128, 128]
    row = read_image(save(tmp_path / "1.png", pixels, mode))[0][0, 0].tolist()
    assert row[:6] == [200] * 3 + [0] * 3 and row[8] in {100, 101}


@pytest.mark.parametrize(("dtype", "ending"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_more_than_8_bits_are_refused(tmp_path, dtype, ending):
    with pytest.raises(DataError, match="1.* has more than 8 bits a channel: convert all images to 8 bits"):
        read_image(save(tmp_path / f"1.{ending}", GREY.astype(dtype)))


def test_16_bit_colour_which_pillow_would_cut_is_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header, rows = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0), b"".join(b"\0" + bytes(16 * 6) for _ in range(16))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "1.png").write_bytes(png)
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "1.png")


@pytest.mark.parametrize(("shape", "size"), [((7, 40), None), ((2, 2), 8), ((15, 30), 64)])
def test_a_tiny_picture_is_refused(tmp_path, shape, size):
    path = save(tmp_path / "1.png", np.zeros((*shape, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=rf"1.png has \({shape[1]}, {shape[0]}\) pixels: take a larger picture"):
        read_image(path, size)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = save(tmp_path / f"1.{ending}", noise)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"1.{ending} cannot be read as an image .* replace or delete it"):
        read_image(path)


@pytest.mark.parametrize("wide", [True, False])
def test_resizing_keeps_the_proportions_and_repeats_the_edge(tmp_path, wide):
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:20], pixels[:, :8] = 250, 100  # the upper half, and a stripe of an eighth
    mask = np.full((40, 64), 255, dtype=np.uint8)
    pixels, mask = (array if wide else array.swapaxes(0, 1).copy() for array in (pixels, mask))
    found, _ = read_image(save(tmp_path / "1.png", pixels), size=16)
    marked = read_mask(save(tmp_path / "mask.png", mask), 16)
    found, marked = (found, marked) if wide else (found.mT, marked.T)
    assert found.shape == (3, 16, 16)
    assert (found[:, :7, 4:] > 240).all() and (found[:, 9:, 4:] < 10).all(), "10 of 16 rows, 3 repeated on both sides"
    assert all((found[:, a : a + 3] == found[:, b : b + 1]).all() for a, b in ((0, 3), (13, 12)))
    assert marked[3:13].all() and not marked[:3].any() and not marked[13:].any(), "no defect is repeated"


def test_the_right_size_is_left_alone(tmp_path):
    square = COLOUR[:10]
    assert torch.equal(read_image(save(tmp_path / "2.png", square), 10)[0], torch.from_numpy(square).permute(2, 0, 1))


@pytest.mark.parametrize(("dtype", "dark", "bright"), [(bool, 0, 1), (np.uint8, 127, 128)])
def test_a_mask_is_true_above_half_of_its_range(tmp_path, dtype, dark, bright):
    marked = np.full((8, 8), dark, dtype=dtype)
    marked[2, 3] = bright
    found = read_mask(save(tmp_path / "mask.png", marked), 8)
    assert found.dtype == torch.bool and found.nonzero().tolist() == [[2, 3]]


def test_a_mask_of_zeros_and_ones_is_refused_and_a_black_one_is_empty(tmp_path):
    with pytest.raises(DataError, match="mask.png marks nothing: its brightest value is 1 of 255"):
        read_mask(save(tmp_path / "mask.png", (GREY > 100).astype(np.uint8)), 12)
    assert not read_mask(save(tmp_path / "black.png", GREY * 0), 12).any()


@pytest.fixture
def files(tmp_path):
    """Twelve pictures, each of its own brightness."""
    return [save(tmp_path / "parts" / f"{n:02}.png", np.full((8, 8, 3), 10 * n, dtype=np.uint8)) for n in range(12)]


def brightness(found):
    return found[:, 0, 0, 0].tolist()


def test_images_are_decoded_once_and_safe_from_their_callers(files, monkeypatch):
    found = read_images(files, 8).zero_()
    assert found.shape == (12, 3, 8, 8) and found.dtype == torch.uint8
    monkeypatch.setattr(images, "read_image", lambda *args: pytest.fail("decoded again"))
    assert brightness(read_images(files, 8)) == [10 * n for n in range(12)]


def test_a_changed_file_is_decoded_again(files):
    read_images(files, 8)
    files[3].write_bytes(files[4].read_bytes())
    os.utime(files[3], ns=(1, 1))
    files[5] = files[5].rename(files[5].with_name("99.png"))
    assert brightness(read_images(files, 8))[3:6] == [40, 40, 50]


def test_mixed_images_are_said_once_with_their_numbers(files, capsys):
    for path in files[:3]:
        save(path, np.zeros((8, 8), dtype=np.uint8))
    for size in (8, 9):
        read_images(files, size)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "parts: 3 L, 9 RGB images, all converted to colour" in said
    read_images(files[:3], 8)
    assert capsys.readouterr().out == "", "a whole set of grey images needs no word"
