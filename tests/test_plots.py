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
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def scores(seed: int = 0, count: int = 300):
    """Stands for evaluation.Scores."""
    generator = np.random.default_rng(seed)
    label = np.arange(count) % 2
    return types.SimpleNamespace(score=generator.normal(label * 2.0, 1.0), label=label, title=TITLE, threshold=1.5)


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
    for word in words:
        assert word in texts(figure)


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


def test_a_dark_grey_image_looks_dark():
    figure = plots.gallery(images(2) // 4, ["a", "b"], TITLE)  # matplotlib would stretch each to its own range
    assert [drawn.get_clim() for drawn in drawn_images(figure)] == [(0, 255)] * 2


class Elsewhere(torch.Tensor):
    """Stands for a tensor on a GPU: brought to the CPU by ``cpu()``, and no operand beside a tensor that is there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function is not torch.Tensor.as_subclass and any(type(value) is torch.Tensor for value in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("moved", [0, 1], ids=["inputs", "outputs"])
def test_reconstructions_of_images_on_two_devices(moved):
    pictures = [images(3), images(3)]
    pictures[moved] = pictures[moved].as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match="same device"):
        images(3).as_subclass(Elsewhere).float() - images(3)
    assert "0.000" in texts(plots.reconstructions(*pictures, torch.arange(3) % 2, TITLE))


def test_reconstructions_show_the_error_in_the_units_of_the_loss_on_one_scale():
    black, white = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    figure = plots.reconstructions(torch.cat([black[:1], white[:1]]), black, torch.tensor([0, 1]), TITLE)
    # images are in [-1, 1], so black for white is a squared error of 4
    check(figure, TITLE, "input", "output", "error", "normal", "anomal.", "0.000", "4.000")
    first, second = drawn_images(figure)[4:]
    assert first.get_clim() == second.get_clim() == (0, 2)


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 4)])
def test_panels_draw_images_masks_and_maps_in_named_rows(channels, count):
    some, masks = images(count, channels), images(count)[:, 0] > 128
    maps = torch.rand(count, 12, 12, generator=torch.Generator().manual_seed(0))
    captions, notes = ([f"{word} {n}" for n in range(count)] for word in ("crack", "score"))
    rows = {"Original": some, "Truth": masks, "Map": maps.numpy()}
    kept = some.clone()
    figure = plots.panels(rows, captions, TITLE, [plots.ANOMALOUS] * count, notes)
    check(figure, TITLE, *rows, *captions, *notes)
    shown = [drawn.get_array() for drawn in drawn_images(figure)]
    assert len(shown) == 3 * count and torch.equal(some, kept)
    np.testing.assert_array_equal(shown[0], some[0, 0] if channels == 1 else some[0].permute(1, 2, 0))
    np.testing.assert_array_equal(shown[count], masks[0].numpy())
    np.testing.assert_array_equal(shown[2 * count], maps[0])


def test_maps_of_a_row_share_one_scale_from_0_and_masks_are_black_and_white():
    maps = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.4)])
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)

    def scales(figure):
        return [drawn.get_clim() for drawn in drawn_images(figure)]

    free = plots.panels({"map": maps, "again": 2 * maps, "mask": masks}, ["a", "b"], TITLE)
    expected = [(0, 0.4)] * 2 + [(0, 0.8)] * 2 + [(0, 1)] * 2
    assert scales(free) == [pytest.approx(scale) for scale in expected]
    assert scales(plots.panels({"map": maps}, ["a", "b"], TITLE, top=2.0)) == [(0, 2)] * 2


def test_panels_of_maps_that_are_0_everywhere_are_drawn():
    # a perfect copy, or a threshold above everything
    check(plots.panels({"map": torch.zeros(2, 8, 8), "mask": torch.zeros(2, 8, 8) > 0}, ["a", "b"], TITLE), "map")


def test_panels_of_images_that_are_not_square_keep_their_shape():
    wide = plots.panels({"a": images(4)[:, :, :6], "b": images(4)[:, :, :6]}, list("wxyz"), TITLE)
    square = plots.panels({"a": images(4), "b": images(4)}, list("wxyz"), TITLE)
    assert wide.get_size_inches()[1] < 0.7 * square.get_size_inches()[1]
    assert drawn_images(wide)[0].get_array().shape == (6, 12)


@pytest.mark.parametrize(("channels", "moments"), [(1, 1), (3, 5)])
def test_film_strip(channels, moments):
    frames = [images(4, channels)] * moments
    figure = plots.film_strip(frames, list(range(0, 100 * moments, 100)), TITLE)
    check(figure, TITLE, "batch 0", *(["400"] if moments == 5 else []))
    assert len(drawn_images(figure)) == 4 * moments
    with_inputs = plots.film_strip(frames, list(range(0, 100 * moments, 100)), TITLE, inputs=255 - images(4, channels))
    assert "input" in texts(with_inputs) and len(drawn_images(with_inputs)) == 4 * (moments + 1)
    first, second = (drawn_images(with_inputs)[place].get_array() for place in (0, 1))
    np.testing.assert_array_equal(first, 255 - second)


def test_score_histogram_shows_the_threshold_and_what_it_gives():
    found = scores()
    caught, false = ((found.score[found.label == value] > 1.5).sum() for value in (1, 0))
    figure = plots.score_histogram(found)
    check(figure, TITLE, "threshold 1.5", f"detected: {caught} of 150", f"false alarms: {false} of 150")
    check(figure, "normal (150 test images)", "anomalous (150 test images)")
    assert "another title" in texts(plots.score_histogram(found, "another title"))


def test_score_histogram_keeps_a_far_outlier_from_squeezing_the_rest():
    found = scores()
    found.score[0] = 1e6
    assert plots.score_histogram(found).axes[0].get_xlim()[1] < 100


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_score_histogram_of_a_model_that_scores_everything_alike():
    found = scores()
    found.score[:] = 0.5  # what a collapsed model gives: the picture should say so
    figure = plots.score_histogram(found)
    check(figure, "detected: 0 of 150")
    assert all(np.isfinite(patch.get_height()) for patch in figure.axes[0].patches)


def test_roc_and_precision_recall():
    good, bad = scores(0), scores(1)
    figure = plots.roc_and_precision_recall({"good": good, "bad": bad}, TITLE)
    check(figure, TITLE, f"good: {metrics.auroc(good.score, good.label):.4f}", "false positive rate", "recall")
    check(figure, f"bad: {metrics.average_precision(bad.score, bad.label):.4f}", "chance: 0.50")
    false, true = figure.axes[0].lines[0].get_data()
    assert np.trapezoid(true, false) == pytest.approx(metrics.auroc(good.score, good.label))


@pytest.mark.parametrize("reference", [None, ("kNN", 0.919)])
def test_bars(reference):
    figure = plots.bars({"Shirt": 0.7, "Bag": 0.98, "Sandal": 1.0}, TITLE, "AUROC", reference)
    check(figure, TITLE, "AUROC", "Shirt", "0.700", *(["AUROC (dashed: kNN, 0.919)"] if reference else []))
    # the first is on top
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Sandal", "Bag", "Shirt"]
    low, high = figure.axes[0].get_xlim()
    assert low < 0.7 and high > 1.0


def logged(count):
    rows = [(batch, f"loss/part_{n}", n + batch) for batch in (0, 20, 40) for n in range(count)]
    return pd.DataFrame([*rows, (40, "validation/auroc", 0.9)], columns=["batch", "name", "value"])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_curves_draw_one_panel_for_each_name(count):
    figure = plots.curves(logged(count), "loss/", TITLE)
    check(figure, TITLE, "batch", *(f"part {number}" for number in range(count)))
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == count
    assert panels[-1].lines[0].get_xydata().tolist() == [[b, count - 1 + b] for b in (0, 20, 40)]


def test_curves_may_have_a_line_at_chance_and_must_have_something_to_draw():
    figure = plots.curves(logged(2), "validation/", TITLE, chance=0.5)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [0.9, 0.5]
    with pytest.raises(
        ValueError, match="nothing was logged under 'accuracy/': there are loss/part_0, validation/auroc"
    ):
        plots.curves(logged(1), "accuracy/", TITLE)


def test_diagram():
    boxes = {"image": (0, 0.5, plots.NORMAL), "generator": (0.5, 0.5, plots.INK), "output": (1, 0.5, plots.THIRD)}
    figure = plots.diagram(boxes, [("image", "generator", "784"), ("generator", "output", "64")])
    check(figure, "image", "generator", "output", "784", "64")


def test_tile_is_one_picture_with_a_grey_frame():
    some = images(10, side=12)
    grid = plots.tile(some, columns=4)
    # torchvision makes grey images colour; 3 rows of 4 images, 2 pixels around each
    assert grid.shape == (3, 3 * (12 + 2) + 2, 4 * (12 + 2) + 2) and grid.dtype == torch.uint8
    assert torch.equal(grid[:, 2:14, 16:28], some[1].expand(3, -1, -1))
    assert (grid[:, :2] == 128).all()


def test_tile_shrinks_large_images_so_that_logs_stay_small():
    assert plots.tile(images(3, 3, side=256)).shape == (3, plots.TILE + 4, 3 * (plots.TILE + 2) + 2)


def test_the_colours_of_normal_and_anomalous_differ_in_lightness_too():
    # so that they can be told apart in a grey print and by everyone
    red, green, blue = np.array([matplotlib.colors.to_rgb(c) for c in (plots.NORMAL, plots.ANOMALOUS)]).T
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert abs(light[0] - light[1]) > 0.05
    assert len(set(plots.CYCLE)) == len(plots.CYCLE)
