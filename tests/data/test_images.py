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


def test_images_are_listed_by_name_and_what_is_left_out_is_named_once(tmp_path, capsys):
    folder = tmp_path / ".local"  # that the folder itself is a hidden one does not matter
    for name in ("b.png", "a.JPG", ".hidden.png", "x/c.tiff", "x/.ipynb_checkpoints/1.png", ".trash/3.png"):
        save(folder / name)
    for name in ("1.heic", "2.HEIC", "3.gif", "notes"):
        (folder / name).write_bytes(b"x")
    for _ in range(2):
        assert [path.name for path in list_images(folder)] == ["a.JPG", "b.png"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and ".local: .png, .jpg" in said
    assert said.endswith("left out: 1 without ending, 1 .gif, 2 .heic\n")
    found = list_images(folder, nested=True)
    assert [path.relative_to(folder).as_posix() for path in found] == ["a.JPG", "b.png", "x/c.tiff"]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="there is no folder .*parts"):
        list_images(tmp_path / "parts")
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match="no image in .*: .png, .jpg.* are read; left out: 1 .heic"):
        list_images(tmp_path)


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
    found, _ = read_image(save(tmp_path / f"3.{ending}", COLOUR[:10]), 10)
    assert torch.equal(found, torch.from_numpy(COLOUR[:10]).permute(2, 0, 1)), "it has this size already"
    found, _ = read_image(tmp_path / f"1.{ending}", grey=True)
    assert found.float().numpy() == pytest.approx((COLOUR @ [0.299, 0.587, 0.114])[None], abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_put_on_black(tmp_path, mode):
    pixels = np.full((8, 9, 4), 200, dtype=np.uint8)
    pixels[..., 3] = [255, 255, 255, 0, 0, 0, 128, 128, 128]
    row = read_image(save(tmp_path / "1.png", pixels, mode))[0][0, 0].tolist()
    assert row[:6] == [200] * 3 + [0] * 3 and row[8] in {100, 101}


def test_more_than_8_bits_are_refused(tmp_path):
    for dtype, ending in ((np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")):
        save(tmp_path / f"{dtype.__name__}.{ending}", GREY.astype(dtype))
    path = save(tmp_path / "colour.png", np.zeros((16, 32, 3), dtype=np.uint8))
    png = bytearray(path.read_bytes())
    png[16:20], png[24] = struct.pack(">I", 16), 16  # half as wide, with 16 bits a channel, which Pillow would cut
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    path.write_bytes(png)
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=f"{path.name} has more than 8 bits a channel: convert all images to 8"):
            read_image(path)


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


def test_a_mask_is_true_above_half_of_its_range(tmp_path):
    for dtype, dark, bright in ((bool, 0, 1), (np.uint8, 127, 128)):
        marked = np.full((8, 8), dark, dtype=dtype)
        marked[2, 3] = bright
        found = read_mask(save(tmp_path / "mask.png", marked), 8)
        assert found.dtype == torch.bool and found.nonzero().tolist() == [[2, 3]]
    assert not read_mask(save(tmp_path / "black.png", GREY * 0), 12).any()
    with pytest.raises(DataError, match="mask.png marks nothing: its brightest value is 1 of 255"):
        read_mask(save(tmp_path / "mask.png", (GREY > 100).astype(np.uint8)), 12)


def test_images_are_decoded_once_until_a_file_changes_and_safe_from_their_callers(tmp_path, monkeypatch):
    def brightness():
        return read_images(files, 8)[:, 0, 0, 0].tolist()

    files = [save(tmp_path / f"{n}.png", np.full((8, 8, 3), 10 * n, dtype=np.uint8)) for n in range(6)]
    found = read_images(files, 8).zero_()
    assert found.shape == (6, 3, 8, 8) and found.dtype == torch.uint8
    with monkeypatch.context() as patched:
        patched.setattr(images, "read_image", lambda *args: pytest.fail("decoded again"))
        assert brightness() == [0, 10, 20, 30, 40, 50]
    files[3].write_bytes(files[4].read_bytes())
    os.utime(files[3], ns=(1, 1))
    assert brightness() == [0, 10, 20, 40, 40, 50]
    files[5] = files[5].rename(files[5].with_name("99.png"))
    assert brightness() == [0, 10, 20, 40, 40, 50]
