"""Every figure of the course, in one style: labelled, colour-blind safe, naming its data."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from helpers import metrics

# Okabe and Ito's colours, safe for the common colour-blindnesses
NORMAL, ANOMALOUS, THIRD, FOURTH, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333"
CYCLE = (NORMAL, ANOMALOUS, THIRD, FOURTH, "#E69F00", "#56B4E9", INK)
ERROR_MAP = "magma"
WIDTH = 9.0  # inches: a notebook's width
TILE = 128  # pixels: the largest side of an image in TensorBoard's grids
STYLE = {
    "figure.dpi": 90,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "figure.constrained_layout.use": True,
}


def canvas(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of notebook width, ``height`` inches high, and its (rows, columns) array of axes.

    It is closed for pyplot, so that a notebook shows it once: where it is the value of a cell.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    plt.close(figure)
    return figure, axes


def _image(axis, image: torch.Tensor, **kwargs) -> None:
    """Draw a (C, H, W) uint8 image, grey or colour, without axes."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    grey = pixels.shape[-1] == 1
    if grey:
        kwargs = {"cmap": "gray", "vmin": 0, "vmax": 255} | kwargs
    axis.imshow(pixels[..., 0] if grey else pixels, interpolation="nearest", **kwargs)
    _bare(axis)


def _bare(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def tile(images: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """(N, C, H, W) uint8 images as one (3, H', W') grid, for TensorBoard; large ones are shrunk, as logs must stay small."""
    from torchvision.transforms.functional import resize
    from torchvision.utils import make_grid

    if images.shape[-1] > TILE:
        images = resize(images, [TILE, TILE], antialias=True)
    return make_grid(images.cpu(), nrow=columns, padding=2, pad_value=128)


def gallery(
    images: torch.Tensor, captions: list[str], title: str, columns: int = 10, colours: list[str] | None = None
) -> Figure:
    """A grid of (N, C, H, W) uint8 images, each with a short caption."""
    rows = -(-len(images) // columns)
    figure, axes = canvas(1.1 * rows * (10 / columns) + 0.4, rows, columns)
    for place, axis in enumerate(axes.flat):
        _bare(axis)
        if place < len(images):
            _image(axis, images[place])
            axis.set_title(captions[place], fontsize=8, color=colours[place] if colours else INK, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure


def panels(
    rows: Mapping[str, object],
    captions: list[str],
    title: str,
    colours: list[str] | None = None,
    notes: list[str] | None = None,
    top: float | None = None,
) -> Figure:
    """Pictures in named rows, one column an image: what went in, what came out, what was marked.

    rows: {name: pictures}, as (N, C, H, W) uint8 images, (N, H, W) bool masks, drawn white where True, or
    (N, H, W) float maps, dark at 0 and bright at ``top`` (by default the largest value of the row).
    captions, colours: above each column; notes: below it.
    """
    pictures = {name: torch.as_tensor(row).cpu() for name, row in rows.items()}
    count, (height, width) = len(captions), next(iter(pictures.values())).shape[-2:]
    figure, axes = canvas(WIDTH / count * len(rows) * height / width + 0.7, len(rows), count)
    for line, (name, row) in zip(axes, pictures.items(), strict=True):
        for column, axis in enumerate(line):
            if row.dtype == torch.uint8:
                _image(axis, row[column])
            elif row.dtype == torch.bool:
                _image(axis, row[column][None].byte() * 255)
            else:
                axis.imshow(row[column].float().numpy(), cmap=ERROR_MAP, vmin=0, vmax=top or float(row.max()))
                _bare(axis)
        line[0].set_ylabel(name, fontsize=9)
    for column, caption in enumerate(captions):
        axes[0, column].set_title(caption, fontsize=8, color=colours[column] if colours else INK)
        axes[-1, column].set_xlabel(notes[column] if notes else "", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def reconstructions(inputs: torch.Tensor, rebuilt: torch.Tensor, label: torch.Tensor, title: str) -> Figure:
    """Input, reconstruction and squared error, one column an image; all errors share one scale.

    inputs, rebuilt: (N, C, H, W) uint8, each on any device; label: (N,) 0 or 1.
    """
    inputs, rebuilt = inputs.cpu(), rebuilt.cpu()  # the images of a split are there, what a model makes of them is not
    error = ((inputs.float() - rebuilt.float()) / 127.5).square().mean(1)
    return panels(
        {"input": inputs, "output": rebuilt, "error": error},
        ["anomal." if anomalous else "normal" for anomalous in label.tolist()],
        f"{title}\nbelow each image: its mean squared error",
        [ANOMALOUS if anomalous else NORMAL for anomalous in label.tolist()],
        [f"{value:.3f}" for value in error.mean((1, 2)).tolist()],
        top=2,
    )


def film_strip(
    frames: list[torch.Tensor], batches: list[int], title: str, inputs: torch.Tensor | None = None
) -> Figure:
    """How the reconstructions of the same images developed: one column a moment of training, ``inputs`` before them."""
    captions = [f"batch {batch}" if place == 0 else f"{batch}" for place, batch in enumerate(batches)]
    if inputs is not None:
        frames, captions = [inputs, *frames], ["input", *captions]
    images = len(frames[0])
    figure, axes = canvas(WIDTH / len(frames) * images + 0.6, images, len(frames))
    for column, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        for row in range(images):
            _image(axes[row, column], frame[row])
        axes[0, column].set_title(caption, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def score_histogram(scores, limit: float, title: str = "") -> Figure:
    """Scores of normal and anomalous test images, and the threshold from held-out normal images."""
    score, label = np.asarray(scores.score), np.asarray(scores.label)
    low, high = score.min(), np.quantile(score, 0.995)
    edges = np.linspace(low, high, 61) if high > low else np.linspace(low - 0.5, low + 0.5, 61)
    clipped = np.clip(score, edges[0], edges[-1])
    figure, ((axis,),) = canvas(3.2)
    for value, name, colour in ((0, "normal", NORMAL), (1, "anomalous", ANOMALOUS)):
        chosen = label == value
        axis.hist(
            clipped[chosen],
            edges,
            density=True,
            alpha=0.6,
            color=colour,
            label=f"{name} ({chosen.sum():,} test images)",
        )
    rates = metrics.at_threshold(score, label, limit)
    axis.axvline(limit, color=INK, linestyle="--")
    text = f" threshold {limit:.3g}\n {rates['false_alarm_rate']:.1%} false alarms\n {rates['detection_rate']:.1%} detected"
    axis.annotate(text, (limit, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axis.set(xlabel="anomaly score", ylabel="density", title=title or scores.title)
    axis.legend(loc="upper right")
    return figure


def score_rows(named: Mapping[str, np.ndarray], kind, kinds: tuple[str, ...], title: str) -> Figure:
    """Every score as a dot, one row a kind, one panel a model; the dashed line is the threshold 0."""
    kind = np.asarray(kind)
    figure, axes = canvas(0.35 * len(kinds) + 1.2, 1, len(named))
    for axis, (name, score) in zip(axes[0], named.items(), strict=True):
        for row, colour in zip(range(len(kinds)), CYCLE * 4, strict=False):
            chosen = score[kind == row]
            axis.plot(chosen, row + np.linspace(-0.25, 0.25, len(chosen)), ".", color=colour, alpha=0.6)
        axis.axvline(0, color=INK, linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=max(1e-6, float(np.abs(score[kind == 0]).max())))
        axis.set_yticks(range(len(kinds)), kinds if axis is axes[0, 0] else [""] * len(kinds))
        axis.set(xlabel="anomaly score", title=name, ylim=(len(kinds) - 0.5, -0.5))
    figure.suptitle(title, fontsize=10)
    return figure


def spheres(named: Mapping[str, tuple], kind, kinds: tuple[str, ...], title: str, reach: float = 3.0) -> Figure:
    """Points around a centre in two dimensions, one panel a model; the circle is the sphere.

    named: {name: ((N, D) offsets from the centre, radius)}.  A point's distance on paper is its true one, in
    radii (``reach`` at most); its direction is that of its first two principal components.
    """
    kind = np.asarray(kind)
    figure, axes = canvas(WIDTH / len(named) + 0.3, 1, len(named))
    circle = np.linspace(0, 2 * np.pi, 200)
    for axis, (name, (offsets, radius)) in zip(axes[0], named.items(), strict=True):
        offsets = torch.as_tensor(offsets).float().cpu()
        flat = principal(offsets, 2)
        distance = (offsets.norm(dim=1, keepdim=True) / float(radius)).clamp_max(reach)
        points = (torch.nn.functional.normalize(flat) * distance).numpy()
        for row, colour in zip(range(len(kinds)), CYCLE * 4, strict=False):
            if (kind == row).any():
                axis.plot(*points[kind == row].T, ".", color=colour, alpha=0.7, label=kinds[row])
        axis.plot(np.cos(circle), np.sin(circle), color=INK, linewidth=1)
        axis.set(aspect="equal", title=name, xlabel="distance in radii", xlim=(-1.06 * reach, 1.06 * reach))
        axis.set_ylim(-1.06 * reach, 1.06 * reach)
    axes[0, -1].legend(fontsize=8, loc="upper right")
    figure.suptitle(f"{title}\nthe circle is the sphere; beyond {reach:g} radii drawn at {reach:g}", fontsize=9)
    return figure


def principal(points: torch.Tensor, count: int) -> torch.Tensor:
    """(N, D) -> (N, count): coordinates along the directions in which the points differ most."""
    centred = points - points.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:count].T


def roc_and_precision_recall(named: Mapping[str, object], title: str, rare: bool = False) -> Figure:
    """ROC and precision-recall curves of several score sets over the same test images.

    rare: stretch the false-alarm axis where alarms are rare (linear up to 0.01, logarithmic from there), and put
    the legends below, since the curves may be anywhere.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, ((left, right),) = canvas(3.6 + (0.2 * len(named) if rare else 0), 1, 2)
    for (name, scores), style in zip(named.items(), ("-", "--", ":", "-.") * 4, strict=False):
        false_alarms, detected, _ = roc_curve(scores.label, scores.score)
        left.plot(false_alarms, detected, style, label=f"{name}: {metrics.auroc(scores.score, scores.label):.4f}")
        precision, recall, _ = precision_recall_curve(scores.label, scores.score)
        right.plot(
            recall, precision, style, label=f"{name}: {metrics.average_precision(scores.score, scores.label):.4f}"
        )
    share = float(np.mean(scores.label))
    line = np.linspace(0, 1, 1001)
    left.plot(line, line, color=INK, linewidth=0.8, alpha=0.5, label="chance: 0.5")
    if rare:
        left.set_xscale("symlog", linthresh=0.01)
        left.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    right.axhline(share, color=INK, linewidth=0.8, alpha=0.5, label=f"chance: {share:.2f}")
    left.set(xlabel="false-alarm rate", ylabel="detection rate", title="ROC, with AUROC")
    right.set(xlabel="recall (detection rate)", ylabel="precision", title="precision-recall, with average precision")
    right.set_ylim(min(share, 0.5) - 0.02, 1.01)
    for axis, place in ((left, "lower right"), (right, "lower left")):
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)} if rare else {"loc": place}
        axis.legend(fontsize=9, **where)
    figure.suptitle(title, fontsize=10)
    return figure


def bars(values: Mapping[str, float], title: str, label: str, reference: tuple[str, float] | None = None) -> Figure:
    """Horizontal bars with their values, and a dashed line for a reference value (name, value)."""
    figure, ((axis,),) = canvas(0.28 * len(values) + 1.0)
    drawn = axis.barh(list(values)[::-1], list(values.values())[::-1], color=NORMAL, alpha=0.85)
    axis.bar_label(drawn, fmt="%.3f", padding=3, fontsize=9)
    low = min([*values.values(), reference[1] if reference else 1.0])
    axis.set_xlim(max(0.0, low - 0.1), max([*values.values(), reference[1] if reference else 0.0]) * 1.04)
    if reference:
        axis.axvline(reference[1], color=ANOMALOUS, linestyle="--")
        label = f"{label} (dashed: {reference[0]}, {reference[1]:.3f})"
    axis.set(xlabel=label, title=title)
    axis.grid(axis="y", visible=False)
    return figure


def scalars(folder: Path, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """The curves under ``prefix`` in a version's event files: {name: (batches, values)}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith(prefix):
            # where a resumed training went over a batch again, its later value counts
            values = {
                event.step: event.value for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time)
            }
            found[tag.removeprefix(prefix)] = (sorted(values), [values[step] for step in sorted(values)])
    return found


def curves(folder: Path, prefix: str, title: str, chance: float | None = None) -> Figure:
    """TensorBoard's scalars without TensorBoard: one small panel for each curve under ``prefix``."""
    found = scalars(folder, prefix)
    if not found:
        raise ValueError(f"the event files of {Path(folder).name} hold no scalar under {prefix!r}")
    columns = 4 if len(found) == 4 else min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = canvas(1.9 * rows + 0.4, rows, columns)
    for axis, (name, (steps, values)) in zip(axes.flat, found.items(), strict=False):
        axis.plot(steps, values)
        if chance is not None:
            axis.axhline(chance, color=INK, linestyle=":", linewidth=1)
        axis.set_title(name.replace("_", " "))
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(found) - columns) : len(found)]:  # the lowest of each column
        axis.set_xlabel("batch")
    figure.suptitle(title, fontsize=10)
    return figure


def diagram(
    boxes: Mapping[str, tuple[float, float, str]], arrows: list[tuple[str, str, str]], height: float = 3.0
) -> Figure:
    """A drawing of a model.  boxes: {text: (x, y, colour)} with x, y in [0, 1]; arrows: (from, to, label)."""
    figure, ((axis,),) = canvas(height)
    _bare(axis)
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.12, 1.12))
    drawn = {}
    for text, (x, y, colour) in boxes.items():
        frame = {"boxstyle": "round,pad=0.5", "facecolor": colour, "alpha": 0.18, "edgecolor": colour, "linewidth": 1.5}
        drawn[text] = axis.text(x, y, text, ha="center", va="center", fontsize=9.5, bbox=frame, zorder=3)
    for source, target, label in arrows:
        (x0, y0, _), (x1, y1, _) = boxes[source], boxes[target]
        line = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2}
        axis.annotate(
            "",
            (x1, y1),
            (x0, y0),
            arrowprops=line | {"patchA": drawn[source].get_bbox_patch(), "patchB": drawn[target].get_bbox_patch()},
        )
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.03, label, ha="center", va="bottom", fontsize=8.5, color=INK)
    return figure


class Live:
    """One figure that redraws itself in a notebook cell, at most every ``seconds``; silent elsewhere."""

    def __init__(self, seconds: float = 3.0):
        self.seconds, self.handle, self.last = seconds, None, 0.0
        self.shown = _in_notebook()

    def draw(self, make: Callable[[], Figure], now: bool = False) -> None:
        """Show ``make()``, unless the last drawing is too recent and this one is not wanted ``now``."""
        import time

        if not self.shown or (time.monotonic() - self.last < self.seconds and not now):
            return
        from IPython.display import display

        figure = make()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.last = time.monotonic()


def _in_notebook() -> bool:
    """Whether an IPython kernel shows figures (a plain IPython shell does not)."""
    import sys

    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
