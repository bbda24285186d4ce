"""Small stand-ins for machines without the real data, written in the real file formats."""

import gzip
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from helpers.data.download import DamagedFile, DataError, make_folder
from helpers.runtime import Run, data_mode


def real_or_sample(
    run: Run, real: Callable[[], Path], sample: Callable[[Path], Path], shows: str, how: str
) -> tuple[Path, bool]:
    """The folder of the real data, or of its embedded stand-in, and whether it is the stand-in.

    real: finds or fetches the real data, or raises DataError; sample: writes the stand-in below a folder.
    shows: what the stand-in shows; how: how to place the real data by hand.
    Follows ``AD_DATA``: ``auto`` tries the real data, then says loudly that it uses the sample;
    ``real`` raises the DataError instead; ``sample`` never looks for the real data.
    """
    mode = data_mode(run.profile)
    if mode != "sample":
        try:
            return real(), False
        except DamagedFile:  # a mistake to mend, not a reason for another data set
            raise
        except DataError as error:
            if mode == "real":
                raise
            line = "!" * 96
            print(f"{line}\n!!  REAL DATA NOT FOUND: running on EMBEDDED SAMPLE DATA ({shows}). Numbers mean nothing.")
            print(f"!!  {how}, or set AD_DATA_DIR.\n{line}\nreason: {error}")
    return sample(sample_folder(run)), True


def sample_folder(run: Run) -> Path:
    """Where samples are written: in the data folder; in the smoke profile in the system's temporary folder."""
    temporary = Path(tempfile.gettempdir()) / f"anomaly-samples-{os.getuid()}"
    return make_folder(temporary if run.profile == "smoke" else run.data_dir / "sample")


@contextmanager
def written_whole(folder: Path):
    """Yields a folder beside ``folder`` that takes its name at the end; removed if anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    unfinished.mkdir(exist_ok=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster: its folder is the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array of any shape as a gzip-compressed idx file, the format of MNIST's files."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + np.ascontiguousarray(array, dtype=np.uint8).tobytes())


def digits_as_fashion_mnist(folder: Path) -> Path:
    """scikit-learn's 1,797 handwritten digits (real scans) as Fashion-MNIST's four files in ``folder``.

    The 8x8 images are enlarged to 28x28; the test files hold every fourth image.  Nothing is
    written if the folder is there.  Returns ``folder``.
    """
    if folder.exists():
        return folder
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    large = torch.nn.functional.interpolate(small, size=20, mode="bicubic").clamp(0, 1)
    images = torch.nn.functional.pad(large, [4] * 4).mul(255).round().byte().squeeze(1).numpy()
    test = np.arange(len(images)) % 4 == 0
    with written_whole(folder) as unfinished:
        for stem, chosen in (("train", ~test), ("t10k", test)):
            write_idx(unfinished / f"{stem}-images-idx3-ubyte.gz", images[chosen])
            write_idx(unfinished / f"{stem}-labels-idx1-ubyte.gz", digits.target[chosen].astype(np.uint8))
    return folder


def hazelnuts_as_mvtec(folder: Path, train: int = 40, good: int = 6, each_kind: int = 4, size: int = 256) -> Path:
    """Rendered hazelnuts in MVTec's layout in ``folder``: good ones, and four kinds of defects with exact masks.

    train, good, each_kind: images in train/good, in test/good and in each test/<kind>.
    Nothing is written if the folder is there.  Returns ``folder``.
    """
    if folder.exists():
        return folder
    import torch

    from helpers.data.defects import paint

    def save(image: torch.Tensor, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(path)

    random = np.random.default_rng(0)
    with written_whole(folder) as unfinished:
        for part, count in (("train", train), ("test", good)):
            for number in range(count):
                save(_hazelnut(size, random)[0], unfinished / part / "good" / f"{number:03}.png")
        for kind in ("crack", "cut", "hole", "print"):
            for number in range(each_kind):
                nut, region = _hazelnut(size, random)
                image, mask = paint(nut, kind, random, region)
                save(image, unfinished / "test" / kind / f"{number:03}.png")
                save(mask.byte().mul(255)[None], unfinished / "ground_truth" / kind / f"{number:03}_mask.png")
    return folder


def _hazelnut(size: int, random: np.random.Generator):
    """A rendered hazelnut, (3, size, size) uint8, and where it is, (size, size) bool."""
    import torch
    from scipy import ndimage

    def noise(blur: float) -> np.ndarray:
        field = ndimage.gaussian_filter(random.normal(size=(size, size)), blur, mode="wrap")
        return field / field.std()

    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    y, x = y - random.uniform(-0.03, 0.03), x - random.uniform(-0.03, 0.03)
    turn = random.uniform(0, 2 * np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    half = random.uniform(0.3, 0.34)
    angle = np.arctan2(across, along)
    outline = half * (1 + 0.13 * np.exp(-((angle / 0.3) ** 2)) + 0.02 * np.cos(3 * angle))  # a tip at angle 0
    distance = np.hypot(along, across) / outline
    region = distance < 1
    height = np.sqrt(np.clip(1 - distance**2, 0, 1))
    light = np.clip(0.35 + 0.55 * height - 0.35 * (x + y) / half * 0.5, 0.1, 1.1)
    ribs = np.cos(
        14 * np.arcsin(np.clip(across / outline / np.sqrt(np.clip(1 - (along / outline) ** 2, 0.05, 1)), -1, 1))
        + 0.5 * noise(6)
    )
    edge = -0.5 + 0.05 * noise(5)
    cap = 1 / (1 + np.exp((along / half - edge) / 0.02))  # the rough base, where the nut grew
    shell = light * (1 + 0.09 * ribs + 0.03 * noise(1.5))
    base = light * (1 + 0.14 * noise(1)) * 0.85
    colour = (1 - cap)[..., None] * shell[..., None] * [205, 105, 62] + cap[..., None] * base[..., None] * [
        190,
        145,
        105,
    ]
    soft = np.clip((1 - distance) * size / 8, 0, 1)[..., None]
    background = np.array([33, 34, 41]) + noise(20)[..., None]
    image = soft * colour + (1 - soft) * background + random.normal(0, 1.5, (size, size, 1))
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous(), region


KEY_SIDE = 160  # pixels of a keycap picture
LEGENDS = ("F8", "F12")


def keycaps(folder: Path, good: int = 240, others: int = 48) -> Path:
    """Pictures of a dark key with the legend F8 in ``folder``/F8, and of another key in ``folder``/F12.

    Rendered like photographs from a fixed camera: light, position, rotation, focus and noise vary a little,
    as they do between two shots.  JPEG files, the same ones at every call.  Nothing is written if the folder
    is there.  Returns ``folder``.
    """
    if folder.exists():
        return folder
    with written_whole(folder) as unfinished:
        for row, (legend, count) in enumerate(zip(LEGENDS, (good, others), strict=True)):
            (unfinished / legend).mkdir()
            key = _keycap(legend)
            for number in range(count):
                picture = _shot(key, np.random.default_rng((row, number)))
                picture.save(unfinished / legend / f"{number:03}.jpg", quality=92)
    return folder


def _keycap(legend: str) -> Image.Image:
    """The key on a desk: base, four bevels, a slightly dished top and the legend, lit from the upper left."""
    side = 2 * KEY_SIDE  # drawn at twice the size, so that edges are smooth
    y, x = np.mgrid[:side, :side] / side - 0.5
    desk = 150 + 14 * (x - y) + 5 * np.sin(40 * y + 3 * np.sin(5 * x))
    shadow = _rounded(side, (0.19, 0.21, 0.87, 0.89), 0.1, blur=0.02)
    key = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(key)
    outer, inner = (0.15, 0.15, 0.85, 0.85), (0.25, 0.21, 0.75, 0.71)
    (a, b, c, d), (e, f, g, h) = ([side * edge for edge in box] for box in (outer, inner))
    draw.rounded_rectangle((a, b, c, d), 0.07 * side, fill=38)
    for corners, grey in (
        (((a, b), (c, b), (g, f), (e, f)), 78),
        (((a, b), (e, f), (e, h), (a, d)), 66),
        (((c, b), (c, d), (g, h), (g, f)), 40),
        (((a, d), (e, h), (g, h), (c, d)), 30),
    ):
        draw.polygon(corners, fill=grey)
    draw.rounded_rectangle((e - 4, f - 4, g + 4, h + 4), 0.06 * side, fill=72)
    body = _rounded(side, outer, 0.07)
    pixels = np.asarray(key.filter(ImageFilter.GaussianBlur(3)), dtype=float)
    top = _rounded(side, inner, 0.05, blur=0.01)
    pixels = pixels * (1 - top) + top * (58 - 30 * (x + y) + 90 * (x**2 + (y + 0.04) ** 2))
    font = ImageFont.load_default(0.2 * side)
    print_ = Image.new("L", (side, side), 0)
    ImageDraw.Draw(print_).text((0.5 * side, 0.46 * side), legend, 255, font, anchor="mm", stroke_width=1)
    ink = np.asarray(print_.filter(ImageFilter.GaussianBlur(1)), dtype=float) / 255
    pixels = pixels * (1 - ink) + 205 * ink
    pixels = (desk * (1 - 0.55 * shadow)) * (1 - body) + pixels * body
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _rounded(side: int, box: tuple[float, ...], radius: float, blur: float = 0.003) -> np.ndarray:
    """(side, side) in [0, 1]: a rounded rectangle with soft edges; all lengths as fractions of the side."""
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle([side * edge for edge in box], radius * side, fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(blur * side)), dtype=float) / 255


def _shot(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """What differs between two shots by the same camera: pose, light, focus, grain, white balance."""
    side = picture.width
    shift = random.normal(0, 0.006, 2) * side
    picture = picture.rotate(
        random.normal(0, 1.2), Image.Resampling.BICUBIC, translate=tuple(shift), fillcolor=150
    ).filter(ImageFilter.GaussianBlur(random.uniform(0.6, 1.6)))
    picture = picture.resize((KEY_SIDE, KEY_SIDE), Image.Resampling.BOX)
    y, x = np.mgrid[:KEY_SIDE, :KEY_SIDE] / KEY_SIDE - 0.5
    angle = random.uniform(0, 2 * np.pi)
    light = random.normal(1, 0.04) + random.uniform(0, 0.1) * (x * np.cos(angle) + y * np.sin(angle))
    colour = np.array([1.02, 1.0, 0.95]) * random.normal(1, 0.01, 3)
    pixels = np.asarray(picture, dtype=float)[..., None] * light[..., None] * colour
    pixels += random.normal(0, 3.0, pixels.shape[:2])[..., None] + random.normal(0, 1.5, pixels.shape)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
