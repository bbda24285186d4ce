"""Anomaly maps through scoring, training, evaluation and the report, with a model that can be computed by hand."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import callbacks, metrics, runtime
from helpers.data.loader import OneClassData, Split, to_float
from helpers.models import OneLossModel, map_images
from helpers.results import PIXEL_PERCENTILE, measure, read_results, report
from helpers.training import evaluate, fit, load
from tests.conftest import make_run

SIDE = 16
CPU = torch.device("cpu")
KINDS = ("good", "dent", "scratch")


class Darkness(OneLossModel):
    """Copies images through one convolution; its map is the distance of a pixel from the copy."""

    def __init__(self, **settings):
        super().__init__({"epochs": 2, "lr": 1e-3} | settings)
        torch.manual_seed(0)
        norm, drop = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)  # what makes maps wander outside of eval mode
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), norm, drop)

    def losses(self, normal, anomalous):
        return {"l2": (normal - self.reconstruct(normal)).square().mean()}

    def reconstruct(self, x):
        return self.net(x)

    def anomaly_map(self, x):
        return (x - self.reconstruct(x)).square().mean(1)

    def anomaly_score(self, x):
        return self.anomaly_map(x).flatten(1).amax(1)


class WithoutMap(Darkness):
    """The same, but it cannot say where."""

    anomaly_map = OneLossModel.anomaly_map

    def anomaly_score(self, x):
        return (x - self.reconstruct(x)).square().flatten(1).mean(1)


class Large(Darkness):
    """The same, with convolutions that take the time."""

    large_convolutions = True


def split(good: int, defective: int, seed: int, masks: bool = True) -> Split:
    """Grey noise; defective images have a bright square, marked by their masks, in one of two sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(90, 160, (good + defective, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(len(images), SIDE, SIDE, dtype=torch.bool)
    kind = torch.tensor([0] * good + [1 + n % 2 for n in range(defective)])
    for place in range(good, len(images)):
        end = 4 + 3 * int(kind[place])
        images[place, :, 4:end, 4:end], mask[place, 4:end, 4:end] = 255, True
    label = (kind > 0).long()
    return Split(images, label, kind, *((mask, torch.ones(len(images), dtype=torch.bool)) if masks else ()))


@pytest.fixture
def parts():
    """``parts()``: a data set of which the last test image has a defect that nobody marked."""

    def make(masks=True):
        data = OneClassData(CPU, 4, 0, 0)
        data.train, data.validation, data.test = split(16, 0, 0), split(4, 4, 1, masks), split(5, 6, 2, masks)
        if masks:
            data.test.has_mask[-1] = False
            data.test.mask[-1] = False
        data.kinds, data.dataset, data.protocol = KINDS, "parts", "one-class"
        return data

    return make


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


# --- scoring --------------------------------------------------------------------------------------------------------


def test_a_model_has_a_map_only_if_its_class_defines_one():
    assert Darkness().has_map
    assert not WithoutMap().has_map
    with pytest.raises(NotImplementedError):
        WithoutMap().anomaly_map(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("training", [True, False])
def test_maps_depend_on_nothing_but_the_image(parts, training, monkeypatch):
    data, model = parts(), Darkness().train(training)
    whole = map_images(model, data.test, CPU)
    assert whole.shape == (11, SIDE, SIDE) and whole.dtype == np.float32
    assert model.training is training, "scoring gives the model back as it was"
    order = torch.randperm(11)
    np.testing.assert_allclose(map_images(model, data.test.pick(order), CPU), whole[order.numpy()], rtol=1e-5)
    monkeypatch.setattr("helpers.data.loader.SCORING_BATCH", 2)
    assert len(data.test.chunks()) == 6
    np.testing.assert_allclose(map_images(model, data.test, CPU), whole, rtol=1e-5)
    expected = model.eval().anomaly_map(to_float(data.test.images)).detach().numpy()
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


def test_evaluate_brings_maps_masks_and_held_out_maps_in_their_order(parts):
    data, model = parts(), Darkness()
    scores = evaluate(model, data)
    np.testing.assert_array_equal(scores.maps, map_images(model, data.test, CPU))
    np.testing.assert_array_equal(scores.masks, data.test.mask)
    assert scores.has_mask.tolist() == [True] * 10 + [False]
    np.testing.assert_array_equal(scores.validation_maps, map_images(model, data.validation.normal(), CPU))
    assert len(scores.validation) == len(scores.validation_maps) == 4, "painted defects give no threshold"
    np.testing.assert_allclose(scores.score, scores.maps.max((1, 2)), rtol=1e-5)
    assert scores.measures_pixels


def test_without_a_map_or_without_masks_there_are_only_scores(parts):
    for scores in (evaluate(WithoutMap(), parts()), evaluate(Darkness(), parts(masks=False))):
        assert (scores.maps, scores.masks, scores.has_mask, scores.validation_maps) == (None,) * 4
        assert not scores.measures_pixels
        assert scores.score.shape == (11,)


def test_marked_keeps_good_images_and_those_with_masks(parts):
    scores = evaluate(Darkness(), parts())
    marked = scores.marked()
    for name in ("score", "label", "kind", "maps", "masks", "has_mask"):
        np.testing.assert_array_equal(getattr(marked, name), getattr(scores, name)[:10])
    assert marked.label.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(marked.validation_maps, scores.validation_maps)
    assert len(scores.score) == 11, "the scores themselves stay whole"


def test_a_set_whose_defects_nobody_marked_measures_no_pixels(parts):
    data = parts()
    data.test.mask[:] = False
    data.test.has_mask = data.test.label == 0
    scores = evaluate(Darkness(), data)
    assert not scores.measures_pixels
    assert scores.maps is not None, "the maps can still be looked at"


# --- the report -----------------------------------------------------------------------------------------------------

PIXEL_METRICS = {
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_best_f1_on_test",
    "pro",
    "pixel_precision_at_threshold",
    "pixel_recall_at_threshold",
    "pixel_f1_at_threshold",
}


def test_the_report_holds_pixel_metrics_of_the_marked_images_and_the_pixel_threshold(parts, run):
    data = parts()
    trained = fit(Darkness(), data, run, show=False)
    scores = evaluate(trained.model, data)
    report(scores, trained)
    stored = read_results(trained.folder)
    assert set(stored["metrics"]) >= PIXEL_METRICS | {"auroc", "f1_at_threshold"}
    maps, masks = scores.maps[:10].ravel(), scores.masks[:10].ravel()
    assert stored["metrics"]["pixel_auroc"] == pytest.approx(metrics.auroc(maps, masks))
    assert stored["metrics"]["pro"] == pytest.approx(metrics.pro_score(scores.maps[:10], scores.masks[:10]))
    limit = np.percentile(scores.validation_maps, PIXEL_PERCENTILE, method="higher")
    assert stored["pixel_threshold"] == pytest.approx(limit)
    assert stored["pixel_threshold_percentile"] == PIXEL_PERCENTILE
    flagged = maps > limit
    assert stored["metrics"]["pixel_recall_at_threshold"] == pytest.approx(flagged[masks].mean())
    assert stored["metrics"]["auroc"] == pytest.approx(metrics.auroc(scores.score, scores.label)), "all 11 images"
    assert "test/pro" in events(trained.folder).Tags()["scalars"]
    assert all(0 <= value <= 1 for value in stored["metrics"].values())


def test_the_percentile_asked_for_is_that_of_the_images(parts, run):
    data = parts()
    trained = fit(Darkness(epochs=1), data, run, show=False)
    scores = evaluate(trained.model, data)
    found = report(scores, trained, percentile=50)
    assert found["pixel_threshold"] == metrics.threshold(scores.validation_maps.ravel(), PIXEL_PERCENTILE)
    assert found["threshold"] == metrics.threshold(scores.validation, 50)
    assert (found["threshold_percentile"], found["pixel_threshold_percentile"]) == (50, PIXEL_PERCENTILE)


@pytest.mark.parametrize("masks", ["none at all", "none of a defect"])
def test_where_no_masks_exist_the_report_says_nothing_of_pixels(parts, run, masks, capsys):
    data = parts(masks=masks != "none at all")
    if masks == "none of a defect":
        data.test.mask[:] = False
        data.test.has_mask = data.test.label == 0
    trained = fit(Darkness(epochs=1), data, run, show=False)
    scores = evaluate(trained.model, data)
    report(scores, trained)
    capsys.readouterr()
    measure(scores)
    assert "pixel" not in capsys.readouterr().out
    stored = json.dumps(read_results(trained.folder))
    assert "pixel" not in stored and 'pro"' not in stored


def test_measure_prints_the_pixel_metrics_and_where_both_thresholds_come_from(parts, capsys):
    scores = evaluate(Darkness(), parts())
    values, limit = measure(scores, percentile=95)
    said = capsys.readouterr().out
    assert "parts: one-class: 5 normal and 6 anomalous test images" in said
    assert "pixels of the 10 images whose defects are marked" in said
    for name in PIXEL_METRICS:
        (line,) = [line for line in said.splitlines() if line.strip().startswith(f"{name} ")]
        assert f"{values[name]:.4f}" in line
        assert ("flatters" in line) == (name == "pixel_best_f1_on_test")
    assert "95th percentile of 4 held-out normal images" in said
    assert "99.9th percentile of pixels of 4 held-out normal images" in said
    assert limit == metrics.threshold(scores.validation, 95)


# --- while training -------------------------------------------------------------------------------------------------


def test_the_pixel_f1_of_each_kind_is_logged_while_training(parts, run):
    data = parts()
    data.validation.images[0, :, 8:14, 8:14] = 255  # a good image that looks defective: false alarms count
    trained = fit(Darkness(), data, run, show=False)
    found = events(trained.folder)
    logged = {tag for tag in found.Tags()["scalars"] if "pixel" in tag}
    assert logged == {"validation/best_pixel_f1_dent", "validation/best_pixel_f1_scratch"}
    curve = found.Scalars("validation/best_pixel_f1_scratch")
    assert [event.step for event in curve] == [4, 8]
    maps, kind = map_images(trained.model, data.validation, CPU), data.validation.kind.numpy()
    chosen = (kind == 0) | (kind == 2)
    last = metrics.best_f1(maps[chosen].ravel(), data.validation.mask.numpy()[chosen].ravel())
    assert curve[-1].value == pytest.approx(last, rel=1e-5)
    alone = metrics.best_f1(maps[kind == 2].ravel(), data.validation.mask.numpy()[kind == 2].ravel())
    assert last < alone - 0.01


def test_without_maps_or_masks_no_pixel_f1_is_logged(parts, run, tmp_path):
    data = parts()
    data.validation.mask[:] = False
    for number, (model, some) in enumerate([(WithoutMap(), parts()), (Darkness(), parts(False)), (Darkness(), data)]):
        trained = fit(model, some, make_run(tmp_path / str(number)), show=False)
        assert not any("pixel" in tag for tag in events(trained.folder).Tags()["scalars"])


@pytest.mark.parametrize("show", [True, False])
def test_show_decides_whether_a_notebook_draws(parts, run, monkeypatch, show):
    drawn = []

    class Screen:
        def draw(self, make, now=False):
            drawn.append(now)

    monkeypatch.setattr(callbacks.plots, "Live", Screen)
    trained = fit(Darkness(epochs=1), parts(), run, show=show)
    assert bool(drawn) is show
    assert "reconstructions/output" in events(trained.folder).Tags()["images"]
    assert (trained.folder / "reconstructions.png").exists() and len(trained.history["frames"]) == 2


# --- large convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16-mixed"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_a_cpu_trains_large_convolutions_in_bf16_only_if_it_has_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert runtime.best_precision(CPU, large_convolutions=True) == precision
    assert runtime.best_precision(CPU, large_convolutions=False) == "32-true"
    assert runtime.best_precision(CPU) == "32-true"


def test_a_torch_that_does_not_tell_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert runtime.best_precision(CPU, large_convolutions=True) == "32-true"


@pytest.mark.parametrize(
    ("model", "native", "precision"),
    [(Large, True, "bf16-mixed"), (Large, False, "32-true"), (Darkness, True, "32-true")],
)
def test_fit_chooses_layout_and_precision_for_large_convolutions(parts, run, monkeypatch, model, native, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)
    data = parts()
    trained = fit(model(epochs=1), data, run, show=False)
    weights = trained.model.net[0].weight
    assert weights.is_contiguous(memory_format=torch.channels_last) is (model is Large)
    assert trained.history["precision"] == precision
    assert weights.dtype == torch.float32
    loaded = load(model(), make_run(run.logs_dir.parent), trained.folder)
    np.testing.assert_allclose(evaluate(loaded.model, data).maps, evaluate(trained.model, data).maps, rtol=1e-4)
