import os
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import images
from helpers.data.download import DamagedFile, DataError
from helpers.data.images import list_images, read_image, read_images, read_mask

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(12, 10)  # 12 high, 10 wide, every pixel another value
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 2)


def save(path, pixels=COLOUR, mode=None, **settings):
    """Writes a picture and returns its path; mode: what Pillow makes of the pixels first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **settings)
    return path


def tensor(pixels):
    """(H, W, 3) array as the (3, H, W) tensor it should be read as."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


# --- which files ----------------------------------------------------------------------------------------------------


def test_images_are_listed_by_name_and_nothing_else(tmp_path):
    for name in ("b.png", "a.JPG", "c.tiff", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    save(tmp_path / "inner" / "d.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.tiff"]


def test_nested_images_are_listed_but_not_hidden_folders(tmp_path):
    for name in ("top.png", "b/2.png", "a/1.png", "a/.ipynb_checkpoints/1.png", ".trash/3.png", "a/._1.png"):
        save(tmp_path / name)
    assert list_images(tmp_path, nested=True) == [tmp_path / name for name in ("a/1.png", "b/2.png", "top.png")]


def test_a_folder_inside_a_hidden_one_is_listed(tmp_path):
    # only what lies below the folder may hide a file: a home like ~/.local/share is no reason
    path = save(tmp_path / ".local" / "parts" / "1.png")
    assert list_images(path.parent, nested=True) == [path]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=f"there is no folder {tmp_path / 'parts'}"):
        list_images(tmp_path / "parts")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=f"no image in {tmp_path}: expected files ending in .png, .jpg"):
        list_images(tmp_path)


# --- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_a_colour_image_is_read_as_it_is(tmp_path, ending):
    found, mode = read_image(save(tmp_path / f"1.{ending}"))
    assert torch.equal(found, tensor(COLOUR)) and found.dtype == torch.uint8
    assert mode == "RGB"


def test_a_grey_image_gets_three_equal_channels_or_stays_grey(tmp_path):
    path = save(tmp_path / "1.png", GREY)
    found, mode = read_image(path)
    assert torch.equal(found, torch.from_numpy(GREY).expand(3, -1, -1)) and mode == "L"
    assert torch.equal(read_image(path, grey=True)[0], torch.from_numpy(GREY)[None])


def test_a_colour_image_can_be_read_as_grey(tmp_path):
    found, mode = read_image(save(tmp_path / "1.png"), grey=True)
    assert found.shape == (1, 12, 10) and mode == "RGB"
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(found[0].float(), (tensor(COLOUR) * weights).sum(0), atol=1, rtol=0)


def test_transparent_pixels_are_put_on_black(tmp_path):
    pixels = np.full((4, 6, 4), (200, 100, 50, 255), dtype=np.uint8)
    pixels[:, 2:4, 3], pixels[:, 4:, 3] = 0, 128
    found, mode = read_image(save(tmp_path / "1.png", pixels))
    assert mode == "RGBA" and found.shape == (3, 4, 6)
    assert found[:, 0, 0].tolist() == [200, 100, 50]
    assert found[:, 0, 2].tolist() == [0, 0, 0]
    assert found[:, 0, 5].tolist() == pytest.approx([100, 50, 25], abs=1)


def test_transparent_grey_is_put_on_black(tmp_path):
    pixels = np.stack([np.full((4, 4), 180), np.eye(4) * 255], 2).astype(np.uint8)
    found, mode = read_image(save(tmp_path / "1.png", pixels), grey=True)
    assert mode == "LA"
    assert torch.equal(found[0], 180 * torch.eye(4, dtype=torch.uint8))


def test_a_palette_gives_its_colours_not_its_numbers(tmp_path):
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 1])
    image.putpalette([10, 20, 30, 250, 0, 0, 0, 240, 5])
    image.save(tmp_path / "1.png")
    found, mode = read_image(tmp_path / "1.png")
    assert mode == "P"
    assert found.permute(1, 2, 0).flatten(0, 1).tolist() == [[10, 20, 30], [250, 0, 0], [0, 240, 5], [250, 0, 0]]
    image.save(tmp_path / "2.png", transparency=1)
    assert read_image(tmp_path / "2.png")[0][:, 0].T.tolist() == [[10, 20, 30], [0, 0, 0]]


def test_cmyk_is_converted_to_the_colours_it_prints(tmp_path):
    flat = np.empty((16, 16, 3), dtype=np.uint8)
    flat[:] = 200, 100, 50
    found, mode = read_image(save(tmp_path / "1.jpg", flat, "CMYK", quality=95))
    assert mode == "CMYK"
    torch.testing.assert_close(found.float(), tensor(flat).float(), atol=6, rtol=0)


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.arange(20).reshape(4, 5) % 3 == 0
    found, mode = read_image(save(tmp_path / "1.png", bits), grey=True)
    assert mode == "1"
    assert torch.equal(found[0], 255 * torch.from_numpy(bits).byte())


@pytest.mark.parametrize("kind", ["16-bit grey", "16-bit grey tiff", "32-bit", "float"])
def test_more_than_8_bits_are_refused_with_the_reason(tmp_path, kind):
    types = {"16-bit grey": np.uint16, "16-bit grey tiff": np.uint16, "32-bit": np.int32, "float": np.float32}
    path = save(tmp_path / ("1.png" if kind == "16-bit grey" else "1.tif"), GREY.astype(types[kind]))
    with pytest.raises(DataError, match="more than 8 bits a channel .* convert it to 8 bits") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, DamagedFile)  # nothing is wrong with the file itself


def test_16_bit_colour_is_refused_too(tmp_path):
    # Pillow would drop the lower 8 bits without a word: a 12-bit camera's picture would come out nearly black
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 12, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        read_image(tmp_path / "1.png")


def rotation_mark(number):
    mark = Image.Exif()
    mark[0x0112] = number
    return mark


def test_the_cameras_rotation_mark_is_obeyed(tmp_path):
    upright, _ = read_image(save(tmp_path / "1.png"))
    turned, _ = read_image(save(tmp_path / "2.png", exif=rotation_mark(6)))  # 6: turn right by 90 degrees to see it
    assert torch.equal(turned, upright.rot90(-1, (1, 2)))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = save(tmp_path / f"1.{ending}", noise).read_bytes()
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedFile, match="cannot be read as an image .* replace or delete it") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "1.png"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="1.png cannot be read as an image"):
        read_image(path)


def test_resizing_squeezes_to_a_square_and_keeps_the_picture(tmp_path):
    halves = np.zeros((40, 64, 3), dtype=np.uint8)
    halves[:, 32:] = 250
    found, _ = read_image(save(tmp_path / "1.png", halves), size=16)
    assert found.shape == (3, 16, 16)
    assert (found[..., :5] == 0).all() and (found[..., 11:] == 250).all()
    wide, _ = read_image(save(tmp_path / "2.png", halves[:, 24:40]), size=48)
    assert wide.shape == (3, 48, 48)


def test_an_image_of_the_right_size_is_not_resampled(tmp_path):
    square = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert torch.equal(read_image(save(tmp_path / "1.png", square), size=9)[0], tensor(square))


# --- masks ----------------------------------------------------------------------------------------------------------


def test_a_mask_is_true_where_it_is_not_black(tmp_path):
    image = save(tmp_path / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    marked = np.zeros((8, 8), dtype=np.uint8)
    marked[2, 3], marked[5, 6] = 255, 1
    found = read_mask(save(tmp_path / "mask.png", marked), image, 8)
    assert found.dtype == torch.bool
    assert found.nonzero().tolist() == [[2, 3], [5, 6]]


def test_a_resized_mask_stays_a_mask_in_its_place(tmp_path):
    image = save(tmp_path / "1.png", np.zeros((40, 80, 3), dtype=np.uint8))
    marked = np.zeros((40, 80), dtype=np.uint8)
    marked[:20, 40:] = 255
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, 8:] = True
    assert torch.equal(read_mask(save(tmp_path / "mask.png", marked), image, 16), expected)


def test_a_mask_of_another_size_names_both_sizes(tmp_path):
    image, mask = save(tmp_path / "1.png"), save(tmp_path / "mask.png", np.zeros((12, 11), dtype=np.uint8))
    with pytest.raises(DataError, match=r"mask.png is 11x12 pixels, its image 1.png is 10x12") as caught:
        read_mask(mask, image, 8)
    assert str(mask) in str(caught.value)


def test_the_mask_of_a_rotated_photograph_is_drawn_as_the_photograph_is_seen(tmp_path):
    marked = np.zeros((10, 12), dtype=np.uint8)  # the picture lies on its side: 12 high, 10 wide in the file
    marked[0, 0] = 255
    image = save(tmp_path / "1.png", exif=rotation_mark(6))
    assert read_image(image)[0].shape[1:] == marked.shape
    assert read_mask(save(tmp_path / "mask.png", marked), image, 30)[:3, :2].all()
    with pytest.raises(DataError, match=r"is 10x12 pixels, its image 1.png is 12x10"):
        read_mask(save(tmp_path / "other.png", marked.T.copy()), image, 30)
    together = save(tmp_path / "both.png", marked.T[:, ::-1].copy(), exif=rotation_mark(8))  # or carries a mark itself
    assert read_mask(together, image, 30).sum() == read_mask(tmp_path / "mask.png", image, 30).sum()


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_an_unreadable_mask_is_named(tmp_path, content):
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(DamagedFile, match="mask.png cannot be read as a mask"):
        read_mask(tmp_path / "mask.png", save(tmp_path / "1.png"), 8)


# --- many files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Twelve pictures, each of its own brightness."""
    return [save(tmp_path / "parts" / f"{n:02}.png", np.full((8, 8, 3), 10 * n, dtype=np.uint8)) for n in range(12)]


def brightness(found):
    return found[:, 0, 0, 0].tolist()


@contextmanager
def no_decoding():
    """Inside, reading a file is an error."""

    def refuse(*args):
        raise AssertionError("a file was decoded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "read_image", refuse)
        yield


def test_images_come_in_the_order_of_their_files(files):
    found = read_images(files, 8)
    assert found.shape == (12, 3, 8, 8) and found.dtype == torch.uint8
    assert brightness(found) == [10 * n for n in range(12)]
    assert brightness(read_images(files[::-1], 8)) == [10 * n for n in range(12)][::-1]
    assert read_images(files, 8, grey=True).shape == (12, 1, 8, 8)


def test_conversions_are_said_once_with_their_numbers(files, capsys):
    read_images(files, 8)
    assert capsys.readouterr().out == ""
    for path in files[:3]:
        save(path, np.zeros((8, 8), dtype=np.uint8))
    save(files[3], np.zeros((8, 8, 4), dtype=np.uint8))
    read_images(files, 8)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "parts: of 12 images converted to colour:" in said
    assert "3 grey" in said and "1 alpha" in said
    read_images(files, 8)  # as every further training does
    assert capsys.readouterr().out == ""


def test_a_whole_set_of_grey_images_needs_no_word(files, capsys):
    for path in files:
        save(path, np.zeros((8, 8), dtype=np.uint8))
    read_images(files, 8)
    read_images(files, 8, grey=True)
    assert capsys.readouterr().out == ""


def test_one_broken_file_among_many_is_named(files):
    files[5].write_bytes(b"")
    with pytest.raises(DamagedFile, match="05.png cannot be read"):
        read_images(files, 8)


@pytest.mark.parametrize("size", [7, 0, -1])
def test_a_size_that_cannot_be_is_refused(files, size):
    with pytest.raises(ValueError, match=f"at least 8: got {size}"):
        read_images(files, size)


def test_the_second_start_decodes_nothing(files, tmp_path):
    first = read_images(files, 8, cache=tmp_path / "cache")
    with no_decoding():
        assert torch.equal(read_images(files, 8, cache=tmp_path / "cache"), first)
        with pytest.raises(AssertionError, match="decoded"):  # another size, another list, another colour: not the same
            read_images(files, 9, cache=tmp_path / "cache")
        with pytest.raises(AssertionError, match="decoded"):
            read_images(files[:-1], 8, cache=tmp_path / "cache")
        with pytest.raises(AssertionError, match="decoded"):
            read_images(files, 8, grey=True, cache=tmp_path / "cache")


def test_without_a_cache_nothing_is_written(files, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    read_images(files, 8)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("change", ["content", "time", "one more", "renamed"])
def test_a_change_is_noticed_and_the_old_cache_removed(files, tmp_path, change):
    cache = tmp_path / "cache"
    read_images(files, 8, cache=cache)
    (old,) = cache.iterdir()
    elsewhere = save(tmp_path / "others" / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    read_images([elsewhere], 8, cache=cache)
    read_images(files, 16, cache=cache)
    others = set(cache.iterdir()) - {old}
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    if change == "content":
        save(files[3], white)
    elif change == "time":  # the same number of bytes
        content = files[4].read_bytes()
        files[3].write_bytes(content)
        os.utime(files[3], ns=(1, 1))
    elif change == "one more":
        files.append(save(files[0].with_name("99.png"), white))
    else:
        files[3] = files[3].rename(files[3].with_name("99.png"))
    found = read_images(files, 8, cache=cache)
    assert torch.equal(found, read_images(files, 8))
    assert not old.exists()
    assert others < set(cache.iterdir()) and len(list(cache.iterdir())) == 3  # those of other folders and sizes stay


@pytest.mark.parametrize("content", [b"", b"not a tensor", "half"])
def test_a_broken_cache_is_decoded_again(files, tmp_path, content):
    whole = read_images(files, 8, cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[: stored.stat().st_size // 2] if content == "half" else content)
    assert torch.equal(read_images(files, 8, cache=tmp_path / "cache"), whole)
    with no_decoding():  # it was repaired
        assert torch.equal(read_images(files, 8, cache=tmp_path / "cache"), whole)


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_cache_that_cannot_be_made_does_no_harm(files, tmp_path, inner):
    (tmp_path / "in_the_way").write_text("a file")
    assert brightness(read_images(files, 8, cache=tmp_path / "in_the_way" / inner)) == [10 * n for n in range(12)]
    assert (tmp_path / "in_the_way").read_text() == "a file"


def test_a_full_disk_does_no_harm_and_leaves_nothing_half_written(files, tmp_path, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")  # torch's words for it

    monkeypatch.setattr(torch, "save", full)
    assert brightness(read_images(files, 8, cache=tmp_path / "cache")) == [10 * n for n in range(12)]
    assert list((tmp_path / "cache").iterdir()) == []
