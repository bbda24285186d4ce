"""What happens around a training step: curves, reconstructions, the film, and what all that costs."""

import types

import numpy as np
import pytest
import torch

from helpers import metrics, plots
from helpers.callbacks import LossLogger, ReconstructionLogger
from helpers.models import map_images
from helpers.training import fit
from tests.toy import Adversarial, Toy, ToyModel, WithMap, events, make_run, stopped


def test_losses_and_pictures_stand_under_their_names_on_the_batch_axis(run):
    watched = fit(Adversarial(epochs=6), Toy(), run, show=False, watch_every=10)
    found = events(watched.folder)
    losses = {tag for tag in found.Tags()["scalars"] if tag.startswith("loss/")}
    assert losses == {"loss/reconstruction", "loss/adversarial", "loss/discriminator"}
    # two optimisers step in every batch: Lightning's own counter would end at 72
    for name in ("loss/adversarial", "validation/auroc", "speed/images_per_second"):
        assert [event.step for event in found.Scalars(name)] == [6, 12, 18, 24, 30, 36]
        logged = watched.curves[watched.curves["name"] == name]["value"].tolist()
        assert logged == pytest.approx([event.value for event in found.Scalars(name)])
    for name, steps in (("output", [0, 10, 20, 30, 36]), ("input", [0])):
        assert [event.step for event in found.Images(f"reconstructions/{name}")] == steps
    assert watched.history["frame_batches"] == [0, 10, 20, 30, 36]


def test_what_was_logged_before_the_first_checkpoint_is_hidden_by_a_resume(run, no_figures):
    with pytest.raises(RuntimeError, match="stopped"):
        fit(stopped(ToyModel(), 14), Toy(), run, show=False)
    assert not (run.version / "last.ckpt").exists()
    again = fit(ToyModel(), Toy(), make_run(run.logs_dir.parent), show=False)
    assert len(list(again.folder.glob("events.*"))) == 2
    assert [event.step for event in events(again.folder).Scalars("loss/repulsion")] == [6, 12, 18]


def test_long_trainings_are_validated_about_ten_times_and_at_the_end(run, no_figures):
    curves = fit(ToyModel(epochs=25), Toy(), run, show=False).curves
    assert curves.query("name == 'validation/auroc'")["batch"].tolist() == [12 * n for n in range(1, 13)] + [150]


def test_the_pixel_f1_of_each_defect_type_is_logged_with_false_alarms_on_good_images(run, no_figures):
    data = Toy(masks=True)
    data.validation.images[0, :, 2:6, 2:6] = 255  # a good image that looks defective
    found = fit(WithMap(epochs=1), data, run, show=False)
    curves = found.curves[found.curves["name"].str.contains("pixel")].set_index("name")["value"]
    assert sorted(curves.index) == ["validation/best_pixel_f1_dent", "validation/best_pixel_f1_scratch"]
    maps, types = map_images(found.model, data.validation), data.validation.defect_type.numpy()
    chosen = (types == 0) | (types == 2)
    expected = metrics.best_f1(maps[chosen].ravel(), data.validation.mask.numpy()[chosen].ravel())
    assert curves["validation/best_pixel_f1_scratch"] == pytest.approx(expected)


@pytest.mark.parametrize("total", [7, 330, 4950])
def test_the_film_has_at_most_12_small_frames_evenly_spaced(total):
    watch = ReconstructionLogger(Toy(), 100, show=False)
    pictures, every = torch.zeros(8, 3, 200, 200, dtype=torch.uint8), 100 if total > 330 else 1
    for batch in range(0, total, every):
        watch.keep(pictures, batch, total, last=False)
    watch.keep(pictures, total, total, last=True)
    frames, moments = watch.film["frames"], watch.film["frame_batches"]
    assert len(frames) == len(moments) == min(12, total + 1) and (moments[0], moments[-1]) == (0, total)
    assert np.ptp(np.diff(moments)) <= every
    assert frames[0].shape == (4, 3, 64, 64)


@pytest.mark.parametrize("normal, anomalous", [(1, 0), (3, 0), (1, 1), (3, 3)])
def test_the_film_shows_at_most_two_images_of_each_kind(normal, anomalous):
    data = Toy()  # whose held-out images are four normal ones, then four anomalous ones
    data.validation = data.validation.subset(torch.tensor([*range(normal), *range(4, 4 + anomalous)]))
    watch = ReconstructionLogger(data, 100, show=False)
    watch.keep(torch.zeros(len(watch.inputs), 3, 64, 64, dtype=torch.uint8), 0, 10, last=False)
    assert len(watch.film["frames"][0]) == min(2, normal) + min(2, anomalous)


def stand_in(**experiment):
    """For the Trainer."""
    logger = types.SimpleNamespace(experiment=types.SimpleNamespace(**experiment))
    return types.SimpleNamespace(logger=logger, current_epoch=0, max_epochs=2, world_size=1, is_global_zero=False)


def test_a_slow_figure_comes_less_often_so_that_drawing_takes_about_5_percent(monkeypatch):
    """A clock that moves by a second in a hundred batches, and by two for every figure."""
    now, drawn = [1000.0], []

    def draw(*args):
        drawn.append(now[0])
        now[0] += 2
        return plots.canvas(1.0)[0]

    monkeypatch.setattr(plots, "reconstructions", draw)
    monkeypatch.setattr("helpers.callbacks.in_notebook", lambda: True)
    for clock in ("helpers.progress.time.monotonic", "helpers.callbacks.time.perf_counter"):
        monkeypatch.setattr(clock, lambda: now[0])
    watch, model = ReconstructionLogger(Toy(), 100, show=True), ToyModel()
    model.n_batches = 60_000
    for batch in range(0, 60_000, 100):
        watch.look(stand_in(add_image=lambda *args: None), model, batch)
        now[0] += 1
    assert 0.03 < 2 * len(drawn) / (now[0] - 1000) < 0.06
    assert drawn[0] == 1000, "the first one is drawn at once"


@pytest.mark.parametrize(("show", "notebook", "more"), [(True, True, True), (False, True, False), (True, False, False)])
def test_figures_are_made_where_they_are_shown_and_change_nothing(run, monkeypatch, show, notebook, more, trained):
    made = []
    monkeypatch.setattr(plots, "reconstructions", lambda *args: made.append(args) or plots.canvas(1.0)[0])
    for module in ("progress", "callbacks"):
        monkeypatch.setattr(f"helpers.{module}.in_notebook", lambda: notebook)
    found = fit(ToyModel(), Toy(), run, show=show, watch_every=1)
    assert (len(made) > 1) is more, "the last one is for the version's folder"
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), trained.model.parameters(), strict=True))


def test_losses_of_many_batches_are_read_together_and_averaged():
    """Every reading makes a GPU wait for the host."""
    logger, written, model = LossLogger(Toy(), 40), [], ToyModel()
    trainer = stand_in(add_scalar=lambda *point: written.append(point))
    logger.on_train_start(trainer, model)
    for batch in range(40):
        model.record({"a": torch.tensor(float(batch))})
        logger.on_train_batch_end(trainer, model, None, None, batch)
    assert [point for point in written if point[0] == "loss/a"] == [("loss/a", 9.5, 20), ("loss/a", 29.5, 40)]
    assert [row[:2] for row in logger.rows][::2] == [[20, "loss/a"], [40, "loss/a"]]
    assert logger.summary()["images"] == 40 * 12
