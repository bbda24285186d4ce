"""A detector as one ONNX file: resize, normalise, score, map and threshold are all inside.

``helpers.score`` reads it; so does anything with ONNX Runtime: photo (height, width, 3) uint8, upright and in colour,
of any size, gives score (float), anomalous (bool) and map (h, w), whose longer side is the model's image size.
"""

import copy
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers.data.batches import good_and_painted
from helpers.evaluation import Scores
from helpers.models import AnomalyModel, score_images
from helpers.runtime import atomic_write, show_path
from helpers.score import FORMAT, Detector

OPSET = 18  # the first in which Resize can average, as Pillow does, when it makes an image smaller
TOLERANCE = 1e-3  # of a score, relative

# the rule of helpers.data.images.read_image: the longer side becomes SIDE, edges are repeated to make a square
PREPARE = """
<ir_version: 8, opset_import: ["": 18]>
prepare (uint8[height, width, 3] photo) => (float[1, CHANNELS, SIDE, SIDE] image, int64[2] first, int64[2] last)
<int64[1] zero = {0}, float[1] side = {SIDE.0}, float half = {0.5}, float one = {1}, int64[2] ones = {1, CHANNELS},
 int64[2] square = {SIDE, SIDE}, int64[2] none = {0, 0}, int64 two = {2}, float middle = {127.5}CONSTANTS>
{
  coloured = Transpose<perm = [2, 0, 1]>(photo)
  BRIGHTNESS
  batch = Unsqueeze(channels, zero)
  height_width = Shape<start = 2, end = 4>(batch)
  measured = Cast<to = 1>(height_width)
  longest = ReduceMax<keepdims = 1>(measured)
  factor = Div(side, longest)
  exact = Mul(measured, factor)
  more = Add(exact, half)
  floored = Floor(more)
  at_least = Max(floored, one)
  size = Cast<to = 7>(at_least)
  new_shape = Concat<axis = 0>(ones, size)
  resized = Resize<mode = "cubic", cubic_coeff_a = -0.5, antialias = 1>(batch, , , new_shape)
  missing = Sub(square, size)
  first = Div(missing, two)
  after = Sub(missing, first)
  pads = Concat<axis = 0>(none, first, none, after)
  padded = Pad<mode = "edge">(resized, pads)
  last = Add(first, size)
  numbers = Cast<to = 1>(padded)
  scaled = Div(numbers, middle)
  image = Sub(scaled, one)
}
"""
COLOUR = "channels = Identity(coloured)"
# Pillow's rounding of 0.299 red + 0.587 green + 0.114 blue
GREY = """wide = Cast<to = 6>(coloured)
  parts = Mul(wide, weights)
  total = ReduceSum(parts, zero)
  rounded = Add(total, rounding)
  brightness = Div(rounded, share)
  channels = Cast<to = 2>(brightness)"""
OF_GREY = ", int32[3, 1, 1] weights = {19595, 38470, 7471}, int32 rounding = {32768}, int32 share = {65536}"
CROP = """
<ir_version: 8, opset_import: ["": 18]>
crop (float[SIDE, SIDE] whole, int64[2] first, int64[2] last) => (float[h, w] map) {
  map = Slice(whole, first, last)
}
"""


class _Core(nn.Module):
    """Score, verdict and map of one prepared image."""

    def __init__(self, model: AnomalyModel, threshold: float):
        super().__init__()
        self.model, self.threshold = model, threshold

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heat = self.model.anomaly_map(image) if self.model.has_map else image[:, 0] * 0
        shared = self.model.score_of_map is not None
        score = (self.model.score_of_map(heat) if shared else self.model.anomaly_score(image))[0].float()
        return score, score > self.threshold, heat[0].float()


def export(
    model: AnomalyModel, scores: Scores, images: Tensor, path: Path | str, photo_side: int | None = None
) -> Path:
    """Write the detector to ``path``, and compare it with the model on ``images``, (N, C, H, W) uint8 as the model takes.

    scores: of this model, for its threshold and what is known of it.  photo_side: the longer side of the photographs
    it learned from, in pixels, by default that of ``images``; much smaller ones will be refused.
    Raises ValueError if a score differs by more than 1 in 1,000, or a verdict; nothing is then written.
    """
    import onnx  # these two are needed by nobody else
    from onnx import compose, parser

    path, (channels, side) = Path(path), images.shape[1:3]
    threshold = float(np.float32(scores.threshold))  # as the file's numbers are
    core = _Core(copy.deepcopy(model).cpu().eval(), threshold)
    grey, colour = {"BRIGHTNESS": GREY, "CONSTANTS": OF_GREY}, {"BRIGHTNESS": COLOUR, "CONSTANTS": ""}
    fill = {"CHANNELS": str(channels), "SIDE": str(side)} | (grey if channels == 1 else colour)
    prepare, crop = (parser.parse_model(_filled(text, fill)) for text in (PREPARE, CROP))
    traced = onnx.load_from_string(_traced(core, torch.zeros(1, channels, side, side)))
    prepare.ir_version = crop.ir_version = traced.ir_version
    kept = ["first", "last", "score", "anomalous", "whole"]
    whole = compose.merge_models(prepare, traced, [("image", "image")], outputs=kept)
    whole = compose.merge_models(whole, crop, [(name, name) for name in ("first", "last", "whole")])
    top = 1.0 if scores.validation_maps is None else scores.pixel_threshold
    note = {"format": FORMAT, "title": scores.title, "model": type(model).__name__, "threshold": threshold}
    note |= {"percentile": scores.percentile, "n_calibration": scores.n_calibration}
    note |= {"map_top": top, "photo_side": photo_side or side}
    onnx.helper.set_model_props(whole, {name: str(value) for name, value in note.items()})
    onnx.checker.check_model(whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(whole.SerializeToString())
        worst = _compare(model, Detector(part), images)
    said = f"{len(images)} images scored as by the model (within {worst:.0e})"
    print(f"{show_path(path)}: {path.stat().st_size / 1e6:.1f} MB; {said}")
    return path


def _traced(core: nn.Module, example: Tensor) -> bytes:
    """The network as ONNX, by PyTorch's exporter."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        names = {"input_names": ["image"], "output_names": ["score", "anomalous", "whole"]}
        torch.onnx.export(core, (example,), buffer, opset_version=OPSET, dynamo=True, verbose=False, **names)
    return buffer.getvalue()


def _filled(text: str, fill: dict[str, str]) -> str:
    for name, value in fill.items():
        text = text.replace(name, value)
    return text


def _compare(model: AnomalyModel, detector: Detector, images: Tensor) -> float:
    """The largest relative difference of a score.  Raises ValueError if it or a verdict is not the model's."""
    wanted = score_images(model, good_and_painted(images.cpu()))
    photos = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    found = [detector(photo) for photo in photos]
    worst = max(abs(one.score - score) / max(abs(score), 1e-12) for one, score in zip(found, wanted, strict=True))
    other = sum(one.anomalous != (score > detector.threshold) for one, score in zip(found, wanted, strict=True))
    if worst > TOLERANCE or other:
        what = f"a score by {worst:.2g}, relative; {other} of {len(found)} verdicts"
        raise ValueError(f"the exported detector differs from the model: {what}; it is not written")
    return worst
