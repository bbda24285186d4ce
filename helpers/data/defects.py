"""Defects painted onto good images, with exact masks: for samples, for validation, for the stress card."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage  # comes with scikit-learn
from torch import Tensor

FINE = 4  # drawn at four times the size, so that edges are smooth


def object_region(image: Tensor) -> np.ndarray:
    """(H, W) bool: the object in front of a plain background.

    image: (C, H, W) uint8.  What differs from the median colour of the image's border by more than 12 % of
    the range; without a plain background, the middle of the image.
    """
    pixels = image.float().numpy()
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    away = np.abs(pixels - np.median(border, axis=1)[:, None, None]).max(0) > 30
    parts, count = ndimage.label(ndimage.binary_opening(away, iterations=2))
    height, width = away.shape
    if count:
        largest = ndimage.binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
        if 0.05 < largest.mean() < 0.9:
            return largest
    y, x = np.mgrid[:height, :width]
    return ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.3**2


def paint(
    image: Tensor, kind: str, random: np.random.Generator, region: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """A defect of ``kind`` on a good image, somewhere inside the object.

    image: (C, H, W) uint8, grey or colour.  kind: one of ``KINDS``.  region: (H, W) bool, where the object is
    (``object_region(image)`` if None).
    Returns the changed copy and its mask, (H, W) bool.  The same generator state gives the same defect.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of defect {kind!r}: choose one of {', '.join(KINDS)}")
    channels, height, width = image.shape
    side = min(height, width)
    region = object_region(image) if region is None else region
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    inside = np.argwhere(depth > min(0.08 * side, 0.6 * depth.max()))
    y, x = inside[random.integers(len(inside))] + 0.5
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    half = round(0.35 * side)  # drawn on a window that every kind fits into
    corner = (int(x) - half, int(y) - half)
    ink = Image.new("RGBA", (2 * half * FINE, 2 * half * FINE), (0, 0, 0, 0))
    centre = ((x - corner[0]) * FINE, (y - corner[1]) * FINE)
    KINDS[kind](ink, *centre, side * FINE, pixels[int(y), int(x)].astype(float), random)
    layer = ink.resize((2 * half, 2 * half), Image.Resampling.BOX)
    colour, opacity = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    colour.paste(layer.convert("RGB"), corner)
    opacity.paste(layer.getchannel("A"), corner)
    opacity = ImageChops.multiply(opacity, Image.fromarray(np.uint8(255 * region)))  # nothing on the background
    mixed = np.array(Image.composite(colour, Image.fromarray(np.ascontiguousarray(pixels)), opacity))[..., :channels]
    mask = torch.from_numpy(np.asarray(opacity) > 64)
    return torch.from_numpy(mixed).permute(2, 0, 1).contiguous(), mask


def _walk(
    x: float, y: float, step: float, count: int, wobble: float, random: np.random.Generator
) -> list[tuple[float, float]]:
    """A random walk that keeps roughly its direction, with (x, y) in its middle."""
    angles = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, wobble, count))
    steps = step * random.uniform(0.5, 1.5, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    track = np.cumsum(steps, 0)
    return [tuple(point) for point in track - track[count // 2] + (x, y)]


def _blob(x: float, y: float, radius: float, rough: float, random: np.random.Generator) -> list[tuple[float, float]]:
    """A closed outline around (x, y): a circle with a few smooth random waves."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = sum(random.normal(0, rough / k) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in range(2, 7))
    r = radius * np.clip(1 + waves, 0.4, 1.8)
    return list(zip(x + r * np.cos(angle), y + r * np.sin(angle), strict=True))


def _shade(colour: np.ndarray, factor: float, opacity: float = 1.0) -> tuple[int, ...]:
    return (*np.clip(colour * factor, 0, 255).astype(int).tolist(), round(255 * opacity))


def _crack(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(ink)
    main = _walk(x, y, 0.015 * side, int(random.integers(14, 28)), 0.35, random)
    branch = _walk(*main[len(main) // 3], 0.012 * side, 10, 0.4, random)
    width = side * random.uniform(0.006, 0.014)
    draw.line(main, _shade(base, 1.5, 0.5), round(2.2 * width), "curve")
    draw.line(main, _shade(base, 0.25), round(width), "curve")
    draw.line(branch, _shade(base, 0.3), max(FINE, round(0.6 * width)), "curve")


def _cut(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(ink)
    angle, long = random.uniform(0, np.pi), side * random.uniform(0.07, 0.13)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    place = np.linspace(-1, 1, 24)
    half = 0.022 * side * (1 - place**2) * random.uniform(0.5, 1.2, 24) + 0.003 * side
    upper = [tuple((x, y) + long * p * along + h * across) for p, h in zip(place, half, strict=True)]
    lower = [tuple((x, y) + long * p * along - h * across) for p, h in zip(place[::-1], half, strict=True)]
    draw.polygon(upper + lower, fill=_shade(np.array([225.0, 190.0, 140.0]), random.uniform(0.8, 1.05)))
    draw.line([tuple((x, y) + long * p * along) for p in (-0.8, 0.8)], _shade(base, 0.4), round(0.008 * side))


def _hole(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(ink)
    radius = side * random.uniform(0.03, 0.05)
    draw.polygon(
        _blob(x, y, 1.35 * radius, 0.25, random), fill=_shade(np.array([215.0, 175.0, 125.0]), random.uniform(0.6, 1))
    )
    draw.polygon(_blob(x, y, radius, 0.1, random), fill=_shade(base, 0.2))


def _print(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    text = "".join(random.choice(list("ABCEHKMNRTX47")) for _ in range(3))
    font = ImageFont.load_default(side * random.uniform(0.09, 0.13))
    stamp = Image.new("L", (round(0.5 * side),) * 2, 0)
    ImageDraw.Draw(stamp).text((0.25 * side,) * 2, text, 255, font, anchor="mm", stroke_width=round(0.006 * side))
    worn = Image.fromarray((random.random((24, 24)) * 255).astype(np.uint8)).resize(
        stamp.size, Image.Resampling.BICUBIC
    )
    stamp = Image.composite(stamp, Image.new("L", stamp.size), worn.point(lambda value: 255 if value > 70 else 0))
    stamp = stamp.rotate(random.uniform(0, 360), Image.Resampling.BICUBIC)
    ink.paste((225, 222, 218, 255), (round(x - 0.25 * side), round(y - 0.25 * side)), stamp)


def _scratch(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    light = base.mean() < 140
    line = _walk(x, y, 0.02 * side, int(random.integers(10, 22)), 0.08, random)
    width = side * random.uniform(0.008, 0.016)
    colour = np.full(3, 235.0) if light else np.full(3, 25.0)
    ImageDraw.Draw(ink).line(line, _shade(colour, random.uniform(0.85, 1)), round(width), "curve")


def _spot(ink: Image.Image, x: float, y: float, side: int, base: np.ndarray, random: np.random.Generator) -> None:
    light = base.mean() < 100
    colour = np.full(3, 220.0) if light else np.full(3, 20.0)
    outline = _blob(x, y, side * random.uniform(0.025, 0.05), 0.15, random)
    smear = Image.new("RGBA", ink.size, (0, 0, 0, 0))
    ImageDraw.Draw(smear).polygon(outline, fill=_shade(colour, random.uniform(0.8, 1.1)))
    ink.alpha_composite(smear.filter(ImageFilter.GaussianBlur(0.004 * side)))


# the four of MVTec's hazelnut, then two that any part can suffer
KINDS: dict[str, Callable] = {
    "crack": _crack,
    "cut": _cut,
    "hole": _hole,
    "print": _print,
    "scratch": _scratch,
    "spot": _spot,
}
