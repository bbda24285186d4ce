import io
import sys
import types

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from helpers import metrics, plots

matplotlib.use("Agg")
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
    """Stands for training.Scores."""
    generator = np.random.default_rng(seed)
    label = (generator.random(count) < 0.5).astype(int)
    return types.SimpleNamespace(score=generator.normal(label * 2.0, 1.0), label=label, title=TITLE)


def texts(figure: Figure) -> str:
    """All words of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def pixels(figure: Figure) -> np.ndarray:
    """The rendered figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return plt.imread(file)


def check(figure: Figure, *words: str) -> None:
    assert isinstance(figure, Figure)
    drawn = pixels(figure)
    assert drawn[..., :3].std() > 0.01  # not a blank page
    assert drawn.shape[1] == pytest.approx(plots.WIDTH * plots.STYLE["figure.dpi"], rel=0.2)
    for word in words:
        assert word in texts(figure)


def drawn_images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(drawn.get_array()) for axis in figure.axes for drawn in axis.get_images()]


def test_canvas_is_notebook_wide_and_always_gives_a_grid():
    figure, axes = plots.canvas(2.0)
    assert axes.shape == (1, 1)
    assert figure.get_size_inches().tolist() == [plots.WIDTH, 2.0]
    assert plots.canvas(3.0, 2, 3)[1].shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery(channels):
    some = images(13, channels)
    figure = plots.gallery(some, [f"caption {n}" for n in range(13)], TITLE, colours=[plots.NORMAL] * 13)
    check(figure, TITLE, "caption 0", "caption 12")
    shown = drawn_images(figure)
    assert len(shown) == 13  # the seven empty places of the second row stay empty
    np.testing.assert_array_equal(shown[3], some[3, 0] if channels == 1 else some[3].permute(1, 2, 0))


def test_grey_images_share_one_scale():
    # a dark image must look dark: matplotlib would stretch each to its own range
    figure = plots.gallery(images(2) // 4, ["a", "b"], TITLE)
    assert [drawn.get_clim() for axis in figure.axes for drawn in axis.get_images()] == [(0, 255)] * 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_reconstructions(channels, count):
    inputs, rebuilt = images(count, channels), images(count, channels).flip(-1)
    figure = plots.reconstructions(inputs, rebuilt, torch.arange(count) % 2, TITLE)
    check(figure, TITLE, "input", "output", "error", "normal", *(["anomal."] if count > 1 else []))
    assert len(drawn_images(figure)) == 3 * count


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


def test_reconstructions_show_the_error_in_the_units_of_the_loss():
    black, white = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    figure = plots.reconstructions(torch.cat([black[:1], white[:1]]), black, torch.tensor([0, 1]), TITLE)
    # images are in [-1, 1], so black for white is a squared error of 4
    assert "0.000" in texts(figure) and "4.000" in texts(figure)
    first, second = (figure.axes[place].get_images()[0] for place in (4, 5))
    assert first.get_clim() == second.get_clim()


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 4)])
def test_panels_draw_images_masks_and_maps_in_named_rows(channels, count):
    some, masks = images(count, channels), images(count)[:, 0] > 128
    maps = torch.rand(count, 12, 12, generator=torch.Generator().manual_seed(0))
    captions, notes = ([f"{word} {n}" for n in range(count)] for word in ("crack", "score"))
    rows = {"Original": some, "Truth": masks, "Map": maps.numpy()}
    figure = plots.panels(rows, captions, TITLE, [plots.ANOMALOUS] * count, notes)
    check(figure, TITLE, *rows, *captions, *notes)
    shown = drawn_images(figure)
    assert len(shown) == 3 * count
    np.testing.assert_array_equal(shown[0], some[0, 0] if channels == 1 else some[0].permute(1, 2, 0))
    np.testing.assert_array_equal(shown[count], 255 * masks[0].numpy())
    np.testing.assert_array_equal(shown[2 * count], maps[0])
    assert figure.axes[0].title.get_color() == plots.ANOMALOUS


def test_maps_of_a_row_share_one_scale_from_0_and_masks_are_black_and_white():
    maps = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.4)])
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)

    def scales(figure):
        return [drawn.get_clim() for axis in figure.axes for drawn in axis.get_images()]

    free = plots.panels({"map": maps, "again": 2 * maps, "mask": masks}, ["a", "b"], TITLE)
    expected = [(0, 0.4)] * 2 + [(0, 0.8)] * 2 + [(0, 255)] * 2
    assert scales(free) == [pytest.approx(scale) for scale in expected]
    assert scales(plots.panels({"map": maps}, ["a", "b"], TITLE, top=2.0)) == [(0, 2)] * 2


def test_panels_of_maps_that_are_0_everywhere_are_drawn():
    # a perfect copy, or a threshold above everything
    check(plots.panels({"map": torch.zeros(2, 8, 8), "mask": torch.zeros(2, 8, 8) > 0}, ["a", "b"], TITLE), "map")


def test_panels_of_images_that_are_not_square_keep_their_shape():
    wide = plots.panels({"a": images(4)[:, :, :6], "b": images(4)[:, :, :6]}, list("wxyz"), TITLE)
    square = plots.panels({"a": images(4), "b": images(4)}, list("wxyz"), TITLE)
    assert wide.get_size_inches()[1] < 0.7 * square.get_size_inches()[1]
    assert drawn_images(wide)[0].shape == (6, 12)


def test_panels_leave_the_pictures_alone():
    some = images(2)
    kept = some.clone()
    plots.panels({"image": some, "half": some.float()[:, 0] / 2}, ["a", "b"], TITLE)
    assert torch.equal(some, kept)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("moments", [1, 5])
def test_film_strip(channels, moments):
    figure = plots.film_strip([images(4, channels)] * moments, list(range(0, 100 * moments, 100)), TITLE)
    check(figure, TITLE, "batch 0", *(["400"] if moments == 5 else []))
    assert len(drawn_images(figure)) == 4 * moments


def test_film_strip_begins_with_the_inputs_if_they_are_given():
    figure = plots.film_strip([images(4, 1)] * 2, [0, 100], TITLE, inputs=images(4, 1))
    check(figure, "input", "batch 0", "100")
    assert len(drawn_images(figure)) == 12


def test_score_histogram_shows_the_threshold_and_what_it_gives():
    found = scores()
    rates = metrics.at_threshold(found.score, found.label, 1.5)
    figure = plots.score_histogram(found, 1.5)
    check(figure, TITLE, "threshold 1.5", f"{rates['false_alarm_rate']:.1%} false alarms")
    check(figure, f"{rates['detection_rate']:.1%} detected", f"normal ({(found.label == 0).sum()} test images)")
    check(plots.score_histogram(found, 1.5, "another title"), "another title")


def test_score_histogram_keeps_a_far_outlier_from_squeezing_the_rest():
    found = scores()
    found.score[0] = 1e6
    figure = plots.score_histogram(found, 1.5)
    assert figure.axes[0].get_xlim()[1] < 100


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_score_histogram_of_a_model_that_scores_everything_alike():
    # what a collapsed model gives: the picture should say so
    found = scores()
    found.score[:] = 0.5
    figure = plots.score_histogram(found, 0.5)
    check(figure, "0.0% detected")
    assert all(np.isfinite(patch.get_height()) for patch in figure.axes[0].patches)


def test_roc_and_precision_recall():
    good, bad = scores(0), scores(1)
    bad.label = good.label
    figure = plots.roc_and_precision_recall({"good": good, "bad": bad}, TITLE)
    check(figure, TITLE, f"good: {metrics.auroc(good.score, good.label):.4f}", "false-alarm rate", "recall")
    check(figure, f"bad: {metrics.average_precision(bad.score, bad.label):.4f}", f"chance: {good.label.mean():.2f}")
    assert figure.axes[0].get_xscale() == "linear"
    stretched = plots.roc_and_precision_recall({"good": good}, TITLE, rare=True)
    check(stretched, TITLE, "0.01")
    assert stretched.axes[0].get_xscale() == "symlog"
    lines = stretched.axes[0].lines  # chance keeps to the diagonal of the stretched axis
    assert len(lines[-1].get_xdata()) > 100


@pytest.mark.parametrize("reference", [None, ("kNN", 0.919)])
def test_bars(reference):
    values = {"Shirt": 0.7, "Bag": 0.98, "Sandal": 1.0}
    figure = plots.bars(values, TITLE, "AUROC", reference)
    check(figure, TITLE, "AUROC", "Shirt", "0.700", *(["AUROC (dashed: kNN, 0.919)"] if reference else []))
    # the first is on top
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Sandal", "Bag", "Shirt"]
    low, high = figure.axes[0].get_xlim()
    assert low < 0.7 and high > 1.0


@pytest.fixture
def events(tmp_path):
    """A version folder with event files, as TensorBoard's own writer makes them."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(0, 100, 20):
            writer.add_scalar("loss/reconstruction", 1 / (1 + step), step)
            writer.add_scalar("loss/adversarial", 0.5, step)
            writer.add_scalar("validation/auroc", step / 100, step)
        writer.add_image("reconstructions/input", torch.zeros(1, 4, 4), 0)
    return tmp_path


def test_scalars_are_read_back(events):
    found = plots.scalars(events, "loss/")
    assert sorted(found) == ["adversarial", "reconstruction"]
    steps, values = found["reconstruction"]
    assert steps == [0, 20, 40, 60, 80]
    assert values == pytest.approx([1 / (1 + step) for step in steps])
    assert list(plots.scalars(events, "validation/")) == ["auroc"]
    assert plots.scalars(events, "nothing/") == {}


def test_scalars_keep_every_value_of_a_long_training(tmp_path):
    # TensorBoard's reader thins out long curves unless it is told not to
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(11_000):
            writer.add_scalar("loss/total", step, step)
    assert len(plots.scalars(tmp_path, "loss/")["total"][0]) == 11_000


def test_scalars_go_on_over_the_files_of_a_resumed_training(events):
    with SummaryWriter(str(events), filename_suffix=".resumed") as writer:
        writer.add_scalar("loss/adversarial", 0.25, 100)
    assert plots.scalars(events, "loss/")["adversarial"][0] == [0, 20, 40, 60, 80, 100]


def test_curves_draw_one_panel_for_each_scalar(events):
    figure = plots.curves(events, "loss/", TITLE)
    check(figure, TITLE, "reconstruction", "adversarial", "batch")
    assert [len(axis.lines) for axis in figure.axes] == [1, 1]
    assert figure.axes[1].lines[0].get_ydata()[0] in (0.5, 1.0)
    check(plots.curves(events, "validation/", TITLE, chance=0.5), TITLE, "auroc")


@pytest.mark.parametrize(("count", "labelled"), [(4, [0, 1, 2, 3]), (5, [2, 3, 4])])
def test_curves_of_more_than_three_panels(tmp_path, count, labelled):
    with SummaryWriter(str(tmp_path)) as writer:
        for number in range(count):
            writer.add_scalar(f"loss/part_{number}", 1.0, 0)
    figure = plots.curves(tmp_path, "loss/", TITLE)
    check(figure, TITLE, *(f"part {number}" for number in range(count)))
    assert sum(axis.axison for axis in figure.axes) == count
    assert [place for place, axis in enumerate(figure.axes) if axis.get_xlabel()] == labelled  # the lowest of a column


def test_curves_without_such_scalars(events):
    with pytest.raises(ValueError, match=f"{events.name} hold no scalar under 'accuracy/'"):
        plots.curves(events, "accuracy/", TITLE)


def test_diagram():
    boxes = {"image": (0, 0.5, plots.NORMAL), "generator": (0.5, 0.5, plots.INK), "output": (1, 0.5, plots.THIRD)}
    figure = plots.diagram(boxes, [("image", "generator", "784"), ("generator", "output", "64")])
    check(figure, "image", "generator", "output", "784", "64")


@pytest.mark.parametrize("channels", [1, 3])
def test_tile_is_one_picture_with_a_grey_frame(channels):
    some = images(10, channels, side=12)
    grid = plots.tile(some, columns=4)
    # torchvision makes grey images colour; 3 rows of 4 images, 2 pixels around each
    assert grid.shape == (3, 3 * (12 + 2) + 2, 4 * (12 + 2) + 2)
    assert grid.dtype == torch.uint8
    assert torch.equal(grid[:, 2:14, 16:28], some[1].expand(3, -1, -1))
    assert (grid[:, :2] == 128).all()


def test_tile_shrinks_large_images_so_that_logs_stay_small():
    grid = plots.tile(images(3, 3, side=256), columns=8)
    assert grid.shape == (3, plots.TILE + 4, 3 * (plots.TILE + 2) + 2)
    kept = images(2, 3, side=plots.TILE)
    assert torch.equal(plots.tile(kept)[:, 2:-2, 2 : 2 + plots.TILE], kept[0])


def test_the_colours_of_normal_and_anomalous_differ_in_lightness_too():
    # so that they can be told apart in a grey print and by everyone
    red, green, blue = np.array([matplotlib.colors.to_rgb(c) for c in (plots.NORMAL, plots.ANOMALOUS)]).T
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert abs(light[0] - light[1]) > 0.05
    assert len(set(plots.CYCLE)) == len(plots.CYCLE)


def test_live_draws_nothing_outside_a_notebook():
    def never():
        raise AssertionError("drawn")

    live = plots.Live()
    live.draw(never)
    live.draw(never, now=True)


def test_live_in_a_plain_ipython_shell_draws_nothing(monkeypatch):
    shell = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert not plots.Live().shown
    shell.kernel = object()
    assert plots.Live().shown


def test_live_updates_one_display_and_not_too_often(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown, updated = [], []

    def show(figure, display_id):
        shown.append(figure)
        return types.SimpleNamespace(update=updated.append)

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(plots, "_in_notebook", lambda: True)
    live = plots.Live(seconds=1000)
    live.draw(lambda: "first", now=True)
    live.draw(lambda: "too soon")
    live.draw(lambda: "last", now=True)
    assert (shown, updated) == (["first"], ["last"])
    eager = plots.Live(seconds=0)
    eager.draw(lambda: "a")
    eager.draw(lambda: "b")
    assert (shown, updated) == (["first", "a"], ["last", "b"])


def test_principal_finds_the_direction_of_the_largest_spread():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator) * torch.tensor([0.1, 5.0, 0.1, 1.0, 0.1]) + 3
    flat = plots.principal(points, 2)
    assert flat.shape == (200, 2)
    assert abs(np.corrcoef(flat[:, 0], points[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(flat[:, 1], points[:, 3])[0, 1]) > 0.99


def test_spheres_keep_the_true_distance_up_to_their_reach():
    offsets = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    offsets = offsets / offsets.norm(dim=1, keepdim=True) * torch.linspace(0.5, 20, 30)[:, None]
    figure = plots.spheres({"before": (offsets, 2.0)}, [0] * 15 + [1] * 15, ("good", "bad"), TITLE, reach=4.0)
    drawn = np.concatenate([np.stack(line.get_data(), 1) for line in figure.axes[0].lines[:2]])
    expected = (torch.linspace(0.5, 20, 30) / 2).clamp_max(4).numpy()
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), expected, rtol=1e-3)
    circle = np.stack(figure.axes[0].lines[2].get_data(), 1)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1)
    assert TITLE in texts(figure) and "4 radii" in texts(figure)


def test_score_rows_show_every_score_and_the_threshold():
    score, kind = np.array([-1.0, -0.5, 7.0, 300.0]), np.array([0, 0, 1, 1])
    figure = plots.score_rows({"before": score, "after": score / 2}, kind, ("good", "bad"), TITLE)
    left, right = figure.axes
    assert [line.get_xdata().tolist() for line in left.lines[:2]] == [[-1.0, -0.5], [7.0, 300.0]]
    assert right.lines[1].get_xdata().tolist() == [3.5, 150.0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["good", "bad"]
    assert TITLE in texts(figure)
