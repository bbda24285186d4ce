"""Synthetic defects painted onto good images, with exact masks: for validation and for the stress card."""

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage  # comes with scikit-learn
from torch import Tensor

DEFECT_TYPES = ("crack", "cut", "hole", "print", "scratch", "spot")  # four of MVTec's hazelnut, then two of any part
FINE = 4  # drawn at four times the size, so that edges are smooth
FLESH, WOOD, STAMP = (225, 190, 140), (215, 175, 125), (225, 222, 218)  # colours of cuts, holes and prints


def object_region(image: Tensor) -> np.ndarray:
    """(H, W) bool: what is not plain background in an image, (C, H, W) uint8; without an object, its middle."""
    pixels = image.float().numpy()
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    away = np.abs(pixels - np.median(border, axis=1)[:, None, None]).max(0) > 30  # 12 % of the range
    parts, count = ndimage.label(ndimage.binary_opening(away, iterations=2))
    if count:
        largest = ndimage.binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
        if 0.05 < largest.mean() < 0.9:
            return largest
    y, x = (place / side - 0.5 for place, side in zip(np.indices(away.shape), away.shape, strict=True))
    return x**2 + y**2 < 0.3**2


def paint(image: Tensor, defect_type: str, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A good image, (C, H, W) uint8, with a defect on its object, and the mask of this defect, (H, W) bool."""
    if defect_type not in DEFECT_TYPES:
        raise ValueError(f"unknown defect type {defect_type!r}: choose one of {', '.join(DEFECT_TYPES)}")
    channels, height, width = image.shape
    side = min(height, width)
    region = object_region(image)
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    inside = np.argwhere(depth > min(0.08 * side, 0.6 * depth.max()))
    y, x = inside[random.integers(len(inside))]
    pixels = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    half = round(0.35 * side)  # of the window, into which every defect fits
    window = _draw(defect_type, half * FINE, side * FINE, pixels[y, x].astype(float), random)
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(window.resize((2 * half, 2 * half), Image.Resampling.BOX), (int(x) - half, int(y) - half))
    opacity = ImageChops.multiply(canvas.getchannel("A"), Image.fromarray(np.uint8(255 * region)))  # on the object only
    mixed = np.array(Image.composite(canvas.convert("RGB"), Image.fromarray(pixels), opacity))[..., :channels]
    mask = torch.from_numpy(np.asarray(opacity) > 64)
    return torch.from_numpy(mixed).permute(2, 0, 1).contiguous(), mask


def _draw(defect_type: str, half: int, side: int, base: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A transparent window, 2 ``half`` wide, with a defect on it.  side: of the image, base: the object's colour."""
    window = Image.new("RGBA", (2 * half, 2 * half), (0, 0, 0, 0))
    draw, centre = ImageDraw.Draw(window), np.full(2, half + 0.5 * FINE)

    def shape(points: np.ndarray, colour: np.ndarray, shade: float, width: float = 0, opacity: float = 1) -> None:
        """A line of this width, or an area without one, in a darker or lighter shade of the colour."""
        ink = (*np.clip(np.multiply(colour, shade), 0, 255).astype(int).tolist(), round(255 * opacity))
        points = [tuple(point) for point in points]
        if width:
            draw.line(points, ink, round(width), "curve")
        else:
            draw.polygon(points, fill=ink)

    def walk(middle: np.ndarray, step: float, count: int, wobble: float) -> np.ndarray:
        """A random walk that keeps roughly its direction, through ``middle``."""
        angles = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, wobble, count))
        steps = step * side * random.uniform(0.5, 1.5, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        track = np.cumsum(steps, 0)
        return track - track[count // 2] + middle

    def blob(radius: float, rough: float) -> np.ndarray:
        """A closed outline around the centre: a circle with a few smooth random waves."""
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        waves = sum(random.normal(0, rough / k) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in range(2, 7))
        return centre + radius * np.clip(1 + waves, 0.4, 1.8)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)

    match defect_type:
        case "crack":
            main = walk(centre, 0.015, int(random.integers(14, 28)), 0.35)
            branch = walk(main[len(main) // 3], 0.012, 10, 0.4)
            width = side * random.uniform(0.006, 0.014)
            shape(main, base, 1.5, 2.2 * width, 0.5)
            shape(main, base, 0.25, width)
            shape(branch, base, 0.3, max(FINE, 0.6 * width))
        case "cut":
            angle, long = random.uniform(0, np.pi), side * random.uniform(0.07, 0.13)
            along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
            place = np.linspace(-1, 1, 24)[:, None]
            half = 0.022 * side * (1 - place**2) * random.uniform(0.5, 1.2, 24)[:, None] + 0.003 * side
            upper, lower = centre + long * place * along, centre + long * place[::-1] * along
            shape([*upper + half * across, *lower - half * across], FLESH, random.uniform(0.8, 1.05))
            shape([centre - 0.8 * long * along, centre + 0.8 * long * along], base, 0.4, 0.008 * side)
        case "hole":
            radius = side * random.uniform(0.03, 0.05)
            shape(blob(1.35 * radius, 0.25), WOOD, random.uniform(0.6, 1))
            shape(blob(radius, 0.1), base, 0.2)
        case "print":
            text = "".join(random.choice(list("ABCEHKMNRTX47"), 3))
            font, middle = ImageFont.load_default(side * random.uniform(0.09, 0.13)), 0.25 * side
            stamp = Image.new("L", (round(0.5 * side),) * 2, 0)
            ImageDraw.Draw(stamp).text((middle, middle), text, 255, font, "mm", stroke_width=round(0.006 * side))
            worn = Image.fromarray((random.random((24, 24)) * 255).astype(np.uint8))
            worn = worn.resize(stamp.size, Image.Resampling.BICUBIC).point(lambda value: 255 if value > 70 else 0)
            stamp = ImageChops.darker(stamp, worn).rotate(random.uniform(0, 360), Image.Resampling.BICUBIC)
            window.paste((*STAMP, 255), (round(centre[0] - middle), round(centre[1] - middle)), stamp)
        case "scratch":
            points = walk(centre, 0.02, int(random.integers(10, 22)), 0.08)
            width = side * random.uniform(0.008, 0.016)
            shape(points, np.full(3, 235 if base.mean() < 140 else 25), random.uniform(0.85, 1), width)
        case "spot":
            outline = blob(side * random.uniform(0.025, 0.05), 0.15)
            shape(outline, np.full(3, 220 if base.mean() < 100 else 20), random.uniform(0.8, 1.1))
            window = window.filter(ImageFilter.GaussianBlur(0.004 * side))
    return window
