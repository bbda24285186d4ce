"""Figures: what they show, in words and in pixels."""

import io
import types

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from helpers import metrics, plots

TITLE = "Fashion-MNIST: Trouser normal"


@pytest.fixture(autouse=True)
def pyplot_is_left_empty():
    """A figure that stays open is shown twice by a notebook, and is never freed."""
    before = dict(plt.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before  # the style is the course's, not the reader's


def images(count: int, channels: int = 1, side: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()


def scores(seed: int = 0):
    """Stands for evaluation.Scores."""
    label = np.arange(300) % 2
    score = np.random.default_rng(seed).normal(label * 2.0, 1.0)
    return types.SimpleNamespace(score=score, label=label, title=TITLE, threshold=1.5)


def texts(figure: Figure) -> str:
    """All words of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def check(figure: Figure, *words: str) -> None:
    """It can be drawn at the width of a notebook, is no blank page, and says ``words``."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    drawn = plt.imread(file)
    assert drawn[..., :3].std() > 0.01
    assert drawn.shape[1] == pytest.approx(plots.WIDTH * plots.STYLE["figure.dpi"], rel=0.2)
    assert not [word for word in words if word not in texts(figure)]


def drawn_images(figure: Figure) -> list:
    return [drawn for axis in figure.axes for drawn in axis.get_images()]


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery(channels):
    some = images(13, channels)
    figure = plots.gallery(some, [f"caption {n}" for n in range(13)], TITLE, colours=[plots.ANOMALOUS] * 13)
    check(figure, TITLE, "caption 0", "caption 12")
    shown = drawn_images(figure)
    assert len(shown) == 13  # the seven empty places of the second row stay empty
    np.testing.assert_array_equal(shown[3].get_array(), some[3, 0] if channels == 1 else some[3].permute(1, 2, 0))
    assert figure.axes[0].title.get_color() == plots.ANOMALOUS
    if channels == 1:  # a dark image must look dark: matplotlib would stretch each to its own range
        assert {drawn.get_clim() for drawn in shown} == {(0, 255)}


def test_reconstructions_show_the_error_in_the_units_of_the_loss_on_one_scale():
    black, white = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    figure = plots.reconstructions(torch.cat([black[:1], white[:1]]), black, torch.tensor([0, 1]), TITLE)
    # images are in [-1, 1], so black for white is a squared error of 4
    check(figure, TITLE, "input", "output", "error", "normal", "anomal.", "0.000", "4.000")
    assert {drawn.get_clim() for drawn in drawn_images(figure)[4:]} == {(0, 2)}


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 4)])
def test_panels_draw_images_masks_and_maps_in_named_rows(channels, count):
    some, masks, maps = images(count, channels), images(count)[:, 0] > 128, torch.rand(count, 12, 12)
    captions, notes = ([f"{word} {n}" for n in range(count)] for word in ("crack", "score"))
    rows, kept = {"Original": some, "Truth": masks, "Map": maps.numpy()}, some.clone()
    figure = plots.panels(rows, captions, TITLE, [plots.ANOMALOUS] * count, notes)
    check(figure, TITLE, *rows, *captions, *notes)
    shown = [drawn.get_array() for drawn in drawn_images(figure)]
    assert len(shown) == 3 * count and torch.equal(some, kept)
    for place, expected in enumerate((some[0, 0] if channels == 1 else some[0].permute(1, 2, 0), masks[0], maps[0])):
        np.testing.assert_array_equal(shown[place * count], expected)


def test_maps_of_a_row_share_one_scale_from_0_and_masks_are_black_and_white():
    maps = torch.stack([torch.full((8, 8), 0.25), torch.full((8, 8), 0.5)])
    rows = {"map": maps, "again": 2 * maps, "mask": maps > 1}
    scales = [drawn.get_clim() for drawn in drawn_images(plots.panels(rows, ["a", "b"], TITLE))]
    assert scales == [(0, 0.5)] * 2 + [(0, 1)] * 4
    assert drawn_images(plots.panels({"map": maps}, ["a", "b"], TITLE, top=2.0))[0].get_clim() == (0, 2)
    check(plots.panels({"map": 0 * maps}, ["a", "b"], TITLE), "map")  # of a perfect copy, say


def test_film_strip_has_a_column_for_each_moment_and_one_for_the_inputs():
    frames, moments = [images(4, 3)] * 5, list(range(0, 500, 100))
    figure = plots.film_strip(frames, moments, TITLE)
    check(figure, TITLE, "batch 0", "400")
    assert len(drawn_images(figure)) == 4 * 5
    figure = plots.film_strip(frames, moments, TITLE, inputs=255 - images(4, 3))
    first, second, *others = (drawn.get_array() for drawn in drawn_images(figure))
    assert "input" in texts(figure) and len(others) == 4 * 6 - 2
    np.testing.assert_array_equal(first, 255 - second)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_score_histogram_shows_the_threshold_and_what_it_gives():
    found = scores()
    caught, false = ((found.score[found.label == value] > 1.5).sum() for value in (1, 0))
    figure = plots.score_histogram(found)
    check(figure, TITLE, "threshold 1.5", f"detected: {caught} of 150", f"false alarms: {false} of 150")
    check(figure, "normal (150 test images)", "anomalous (150 test images)")
    assert "another title" in texts(plots.score_histogram(found, "another title"))
    found.score[0] = 1e6  # a far outlier does not squeeze the rest
    assert plots.score_histogram(found).axes[0].get_xlim()[1] < 100
    found.score[:] = 0.5  # what a collapsed model gives: the picture should say so
    check(plots.score_histogram(found), "detected: 0 of 150")


def test_roc_and_precision_recall():
    good, bad = scores(0), scores(1)
    figure = plots.roc_and_precision_recall({"good": good, "bad": bad}, TITLE)
    check(figure, TITLE, f"good: {metrics.auroc(good.score, good.label):.4f}", "false positive rate", "recall")
    check(figure, f"bad: {metrics.average_precision(bad.score, bad.label):.4f}", "chance: 0.50")
    false, true = figure.axes[0].lines[0].get_data()
    assert np.trapezoid(true, false) == pytest.approx(metrics.auroc(good.score, good.label))


def test_bars():
    figure = plots.bars({"Shirt": 0.7, "Bag": 0.98, "Sandal": 1.0}, TITLE, "AUROC", ("kNN", 0.919))
    check(figure, TITLE, "Shirt", "0.700", "AUROC (dashed: kNN, 0.919)")
    # the first is on top
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Sandal", "Bag", "Shirt"]
    low, high = figure.axes[0].get_xlim()
    assert low < 0.7 and high > 1.0


@pytest.mark.parametrize("count", [1, 4, 5])
def test_curves_draw_one_panel_for_each_name_and_a_line_at_chance(count):
    rows = [(batch, f"loss/part_{n}", n + batch) for batch in (0, 20, 40) for n in range(count)]
    logged = pd.DataFrame([*rows, (40, "validation/auroc", 0.9)], columns=["batch", "name", "value"])
    figure = plots.curves(logged, "loss/", TITLE, chance=0.5)
    check(figure, TITLE, "batch", *(f"part {number}" for number in range(count)))
    panels = [axis for axis in figure.axes if axis.axison]
    curve, chance = panels[-1].lines
    assert len(panels) == count and chance.get_ydata()[0] == 0.5
    assert curve.get_xydata().tolist() == [[b, count - 1 + b] for b in (0, 20, 40)]
    with pytest.raises(ValueError, match="nothing was logged under 'accuracy/': there are loss/part_0, "):
        plots.curves(logged, "accuracy/", TITLE)
