"""A detector as one ONNX file: resize, normalise, score, map and threshold are all inside.

``helpers.score`` reads it; so does anything with ONNX Runtime: photo (height, width, 3) uint8, upright and in colour,
of any size, gives score (float), anomalous (bool) and map (h, w), whose longer side is the model's image size.
"""

import copy
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

OPSET = 18  # the first in which Resize can average, as Pillow does, to make an image smaller
TOLERANCE = 1e-3  # of a score, relative


def _around(channels: int, side: int, ir_version: int) -> list:
    """ONNX models: two that prepare a photograph for the network, and one that cuts its map to the photograph's shape."""
    from onnx.compose import add_prefix
    from onnxscript import FLOAT, INT64, UINT8, script
    from onnxscript import opset18 as op

    ones, square = [1, channels], [side, side]

    @script()
    def colour(photo):
        pixels = op.Transpose(photo, perm=[2, 0, 1])
        return pixels  # noqa: RET504  (the name of an output)

    @script()
    def grey(photo):
        parts = op.Cast(photo, to=6) * [19595, 38470, 7471]  # Pillow's rounding of 0.299 red + 0.587 green + 0.114 blue
        pixels = op.Unsqueeze(op.Cast((op.ReduceSum(parts, [2], keepdims=0) + 32768) / 65536, to=2), [0])
        return pixels  # noqa: RET504

    @script()
    def prepare(pixels):  # as helpers.data.images.read_image: the longer side becomes ``side``, edges are repeated
        measured = op.Cast(op.Shape(pixels, start=1), to=1)
        exact = measured * (side / op.ReduceMax(measured, keepdims=1))
        size = op.Cast(op.Max(op.Floor(exact + 0.5), 1.0), to=7)
        batch, shape = op.Unsqueeze(pixels, [0]), op.Concat(ones, size, axis=0)
        resized = op.Resize(batch, None, None, shape, mode="cubic", cubic_coeff_a=-0.5, antialias=1)
        first = (square - size) / 2
        pads = op.Concat([0, 0], first, [0, 0], square - size - first, axis=0)
        image = op.Cast(op.Pad(resized, pads, mode="edge"), to=1) / 127.5 - 1.0
        last = first + size
        return image, first, last

    @script()
    def crop(whole, first, last):
        map = op.Slice(whole, first, last)
        return map  # noqa: RET504

    pixels, places = UINT8[channels, "height", "width"], [INT64[2], INT64[2]]
    parts = {grey if channels == 1 else colour: ([UINT8["height", "width", 3]], [pixels])}
    parts |= {prepare: ([pixels], [FLOAT[1, channels, side, side], *places])}
    parts |= {crop: ([FLOAT[side, side], *places], [FLOAT["h", "w"]])}
    models = [part.to_model_proto(input_types=taken, output_types=given) for part, (taken, given) in parts.items()]
    for model in models:
        model.ir_version = ir_version
        add_prefix(model, f"{model.graph.name}.", rename_inputs=False, rename_outputs=False, inplace=True)
    return models


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
    from onnx.compose import merge_models

    path, (channels, side) = Path(path), images.shape[1:3]
    threshold = float(np.float32(scores.threshold))  # as the file's numbers are
    core = _Core(copy.deepcopy(model).cpu().eval(), threshold)
    options = {"input_names": ["image"], "output_names": ["score", "anomalous", "whole"], "opset_version": OPSET}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        traced = torch.onnx.export(core, (torch.zeros(1, channels, side, side),), dynamo=True, verbose=False, **options)
    traced = traced.model_proto
    pixels, prepare, crop = _around(channels, side, traced.ir_version)
    whole = merge_models(pixels, prepare, [("pixels", "pixels")])
    whole = merge_models(whole, traced, [("image", "image")], outputs=["first", "last", "score", "anomalous", "whole"])
    whole = merge_models(whole, crop, [(name, name) for name in ("first", "last", "whole")])
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
