"""Figures that several notebooks use, in one style: labelled, colour-blind safe, naming their data."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor
from torchvision.transforms.functional import resize
from torchvision.utils import make_grid

from helpers import metrics

# Okabe and Ito's colours, safe for the common colour-blindnesses
NORMAL, ANOMALOUS, THIRD, FOURTH, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333"
CYCLE = (NORMAL, ANOMALOUS, THIRD, FOURTH, "#E69F00", "#56B4E9", INK)
WIDTH = 9.0  # inches: a notebook's width
TILE = 128  # pixels: the largest side of an image in TensorBoard's grids
STYLE = {"figure.dpi": 90, "figure.titlesize": 10, "figure.constrained_layout.use": True, "axes.titlesize": 10}
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"legend.frameon": False, "legend.fontsize": 9, "axes.prop_cycle": plt.cycler(color=CYCLE)}
Words = list[str] | None


def canvas(height: float, rows: int = 1, columns: int = 1, title: str | None = None) -> tuple[Figure, np.ndarray]:
    """A figure of notebook width, ``height`` inches high, and its (rows, columns) array of axes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
        if title:
            figure.suptitle(title)
    plt.close(figure)  # for pyplot only: a notebook shows it once, where it is the value of a cell
    return figure, axes


def _picture(axis, image: Tensor | None = None, top: float | None = None) -> None:
    """Draw a (C, H, W) uint8 image, a (H, W) bool mask or a (H, W) float map up to ``top``, without axes."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if image is not None and image.dtype == torch.uint8:
        axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    elif image is not None:
        colours, top = ("gray", 1) if image.dtype == torch.bool else ("magma", top)
        axis.imshow(image.float().numpy(), cmap=colours, vmin=0, vmax=top)


def tile(images: Tensor, columns: int = 8) -> Tensor:
    """(N, C, H, W) uint8 images as one (3, H', W') grid, for TensorBoard; large ones are shrunk."""
    if images.shape[-1] > TILE:
        images = resize(images, [TILE, TILE], antialias=True)
    return make_grid(images.cpu(), nrow=columns, padding=2, pad_value=128)


def gallery(images: Tensor, captions: list[str], title: str, columns: int = 10, colours: Words = None) -> Figure:
    """A grid of (N, C, H, W) uint8 images, each with a short caption."""
    rows = -(-len(images) // columns)
    figure, axes = canvas(11 * rows / columns + 0.4, rows, columns, title)
    for axis in axes.flat[len(images) :]:
        axis.set_axis_off()
    for place, image in enumerate(images.cpu()):
        _picture(axes.flat[place], image)
        axes.flat[place].set_title(captions[place], fontsize=8, color=colours[place] if colours else INK, pad=2)
    return figure


def panels(
    rows: Mapping, captions: list[str], title: str, colours: Words = None, notes: Words = None, top: float = 0.0
) -> Figure:
    """Pictures in named rows, one column an image, with captions above (in ``colours``) and notes below.

    rows: {name: pictures}, as (N, C, H, W) uint8 images, (N, H, W) bool masks, drawn white where True, or
    (N, H, W) float maps, dark at 0 and bright at ``top`` (by default the largest value of the row).
    """
    pictures = {name: torch.as_tensor(row).cpu() for name, row in rows.items()}
    count, (height, width) = len(captions), next(iter(pictures.values())).shape[-2:]
    figure, axes = canvas(WIDTH / count * len(rows) * height / width + 0.7, len(rows), count, title)
    for line, (name, row) in zip(axes, pictures.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for column, axis in enumerate(line):
            _picture(axis, row[column], top or float(row.max()))
    for column, caption in enumerate(captions):
        axes[0, column].set_title(caption, fontsize=8, color=colours[column] if colours else INK)
        axes[-1, column].set_xlabel(notes[column] if notes else "", fontsize=8)
    return figure


def reconstructions(inputs: Tensor, rebuilt: Tensor, label: Tensor, title: str) -> Figure:
    """Input, reconstruction and squared error, one column an image; all errors share one scale.

    inputs, rebuilt: (N, C, H, W) uint8, each on any device; label: (N,) 0 or 1.
    """
    inputs, rebuilt = inputs.cpu(), rebuilt.cpu()
    error = ((inputs.float() - rebuilt.float()) / 127.5).square().mean(1)
    captions = ["anomal." if anomalous else "normal" for anomalous in label.tolist()]
    colours = [ANOMALOUS if anomalous else NORMAL for anomalous in label.tolist()]
    notes = [f"{value:.3f}" for value in error.mean((1, 2)).tolist()]
    title += "\nbelow each image: its mean squared error"
    return panels({"input": inputs, "output": rebuilt, "error": error}, captions, title, colours, notes, top=2)


def film_strip(frames: list[Tensor], batches: list[int], title: str, inputs: Tensor | None = None) -> Figure:
    """How the reconstructions of the same images developed: one column a moment of training, ``inputs`` before them."""
    before = [] if inputs is None else [inputs[: len(frames[0])]]
    captions = ["input"] * len(before) + [f"batch {batches[0]}", *map(str, batches[1:])]
    images = torch.stack([*before, *frames], 1)  # (images, moments, C, H, W)
    return panels({"\u200b" * row: moments for row, moments in enumerate(images)}, captions, title)


def score_histogram(scores, title: str = "") -> Figure:
    """Scores of normal and anomalous test images, and the threshold from held-out normal images."""
    score, label, limit = np.asarray(scores.score), np.asarray(scores.label), scores.threshold
    shown = np.minimum(score, np.quantile(score, 0.995))  # a far outlier would squeeze the rest
    edges = np.histogram_bin_edges(shown, 60)
    figure, ((axis,),) = canvas(3.2)
    sides = (0, "normal", "false alarms", NORMAL), (1, "anomalous", "detected", ANOMALOUS)
    for value, name, flagged, colour in sides:
        some = label == value
        text = f"{name} ({some.sum():,} test images), {flagged}: {(score[some] > limit).sum():,} of {some.sum():,}"
        axis.hist(shown[some], edges, density=True, alpha=0.6, color=colour, label=text)
    axis.axvline(limit, color=INK, linestyle="--", label=f"threshold {limit:.3g}")
    axis.set(xlabel="anomaly score (the last bin holds all above)", ylabel="density", title=title or scores.title)
    axis.legend(loc="best")
    return figure


def roc_and_precision_recall(named: Mapping[str, object], title: str) -> Figure:
    """ROC and precision-recall curves of several ``Scores`` over the same test images."""
    figure, ((left, right),) = canvas(3.6, 1, 2, title)
    for (name, s), style in zip(named.items(), ("-", "--", ":", "-.") * 4, strict=False):
        left.plot(*roc_curve(s.label, s.score)[:2], style, label=f"{name}: {metrics.auroc(s.score, s.label):.4f}")
        precision, recall, _ = precision_recall_curve(s.label, s.score)
        right.plot(recall, precision, style, label=f"{name}: {metrics.average_precision(s.score, s.label):.4f}")
        share = float(np.mean(s.label))
    for axis, ends, chance in ((left, [0, 1], "0.5"), (right, [share, share], f"{share:.2f}")):
        axis.plot([0, 1], ends, color=INK, linewidth=0.8, alpha=0.5, label=f"chance: {chance}")
        axis.legend(loc="lower right" if axis is left else "lower left")
    left.set(xlabel="false positive rate (false alarms)", ylabel="true positive rate", title="ROC, with AUROC")
    right.set(xlabel="recall (true positive rate)", ylabel="precision", ylim=(min(share, 0.5) - 0.02, 1.01))
    right.set_title("precision-recall, with average precision")
    return figure


def bars(values: Mapping[str, float], title: str, label: str, reference: tuple[str, float] | None = None) -> Figure:
    """Horizontal bars with their values, and a dashed line for a reference value (name, value)."""
    figure, ((axis,),) = canvas(0.28 * len(values) + 1.0)
    drawn = axis.barh(list(values)[::-1], list(values.values())[::-1], color=NORMAL, alpha=0.85)
    axis.bar_label(drawn, fmt="%.3f", padding=3, fontsize=9, bbox={"facecolor": "white", "linewidth": 0, "pad": 1})
    shown = list(values.values())
    if reference:
        shown.append(reference[1])
        axis.axvline(reference[1], color=ANOMALOUS, linestyle="--")
        label = f"{label} (dashed: {reference[0]}, {reference[1]:.3f})"
    axis.set(xlabel=label, title=title, xlim=(max(0.0, min(shown) - 0.1), max(shown) * 1.04))
    axis.grid(axis="y", visible=False)
    return figure


def curves(logged: pd.DataFrame, prefix: str, title: str, chance: float | None = None) -> Figure:
    """What was logged while training, a small panel for each name under ``prefix``; ValueError if there is none.

    logged: ``Trained.curves``, with the columns batch, name and value.  chance: a dotted line at this value.
    """
    found = {name: rows for name, rows in logged.groupby("name", sort=False) if name.startswith(prefix)}
    if not found:
        raise ValueError(f"nothing was logged under {prefix!r}: there are {', '.join(logged['name'].unique())}")
    columns = 4 if len(found) == 4 else min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = canvas(2.0 * rows + 0.4, rows, columns, title)
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, (name, points) in zip(axes.flat, found.items(), strict=False):
        axis.plot(points["batch"], points["value"])
        axis.set(title=name.removeprefix(prefix).replace("_", " "), xlabel="batch")
        if chance is not None:
            axis.axhline(chance, color=INK, linestyle=":", linewidth=1)
    return figure


def diagram(boxes: Mapping[str, tuple], arrows: list[tuple[str, str, str]], height: float = 3.0) -> Figure:
    """A drawing of a model.  boxes: {text: (x, y, colour)} with x, y in [0, 1]; arrows: (from, to, label)."""
    figure, ((axis,),) = canvas(height)
    _picture(axis)
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.12, 1.12))
    drawn = {}
    for text, (x, y, colour) in boxes.items():
        frame = {"boxstyle": "round,pad=0.5", "facecolor": colour, "alpha": 0.18, "edgecolor": colour, "linewidth": 1.5}
        drawn[text] = axis.text(x, y, text, ha="center", va="center", fontsize=9.5, bbox=frame, zorder=3)
    for source, target, label in arrows:
        ends = {"patchA": drawn[source].get_bbox_patch(), "patchB": drawn[target].get_bbox_patch()}
        (x0, y0, _), (x1, y1, _) = boxes[source], boxes[target]
        axis.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2} | ends)
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.03, label, ha="center", va="bottom", fontsize=8.5, color=INK)
    return figure
