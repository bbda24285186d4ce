"""Scores and what they are worth, the control without a network, repeated seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from helpers import metrics
from helpers.evaluation import PIXEL_PERCENTILE, Scores, evaluate, neighbour_control, run_seeds
from helpers.models import map_images, score_images
from helpers.results import read_results
from tests.toy import ROOT, Toy, ToyModel, make_run


def test_evaluate_scores_test_and_held_out_normal_images_in_their_order(trained):
    data = Toy()
    found = evaluate(trained.model, data, 50)
    np.testing.assert_allclose(found.score, score_images(trained.model, data.test))
    np.testing.assert_allclose(found.validation, score_images(trained.model, data.validation.normal()))
    assert found.label.tolist() == data.test.label.tolist() and found.title == data.title
    assert found.threshold == metrics.threshold(found.validation, 50)
    assert found.images_per_second > 0
    assert (found.maps, found.masks, found.has_mask, found.validation_maps) == (None,) * 4


def test_evaluate_brings_maps_where_defects_are_marked(mapped):
    found, data, scores = mapped
    np.testing.assert_array_equal(scores.maps, map_images(found.model, data.test))
    np.testing.assert_array_equal(scores.masks, data.test.mask)
    np.testing.assert_array_equal(scores.validation_maps, map_images(found.model, data.validation.normal()))
    assert len(scores.validation) == len(scores.validation_maps) == 4, "painted defects give no threshold"
    assert evaluate(found.model, Toy()).maps is None, "no masks"
    assert evaluate(ToyModel(), data).maps is None, "no map"


def test_pixel_metrics_use_the_marked_images_and_their_own_threshold(mapped):
    _, _, scores = mapped
    maps, masks = scores.maps[:-1], scores.masks[:-1]  # nobody marked the last defect
    assert scores.measures_pixels and len(scores.marked().score) == 19
    limit = np.percentile(scores.validation_maps, PIXEL_PERCENTILE, method="higher")
    assert scores.pixel_threshold == pytest.approx(limit)
    expected = metrics.image_metrics(scores.score, scores.label, scores.threshold)
    assert scores.metrics == expected | metrics.pixel_metrics(maps, masks, limit)
    assert "pixels of the 19 images whose defects are marked" in str(scores)
    assert f"{PIXEL_PERCENTILE}th percentile of their pixels" in str(scores)


def test_a_set_whose_defects_nobody_marked_measures_no_pixels(mapped):
    _, _, scores = mapped
    blind = replace(scores, masks=np.zeros_like(scores.masks), has_mask=scores.label == 0)
    assert not blind.measures_pixels and "pixel" not in str(blind)
    assert not any("pixel" in name or name == "pro" for name in blind.metrics)
    assert blind.maps is not None, "the maps can still be looked at"


def test_the_table_names_n_what_it_promises_the_interval_and_what_is_optimistic():
    rng, label = np.random.default_rng(0), np.repeat([0, 1], [8, 12])
    score, validation = rng.normal(3.0 * label, 1), rng.normal(size=40)
    scores = Scores(score, label, label, ("good", "bad"), validation, "toys", 123.0, percentile=90)
    table = str(scores)
    lines = {line.split()[0]: line for line in table.splitlines() if line.split()}
    low, high = scores.interval
    found, caught = scores.metrics, int((scores.score[label == 1] > scores.threshold).sum())
    assert "toys: 8 normal and 12 anomalous test images" in table
    assert f"{caught} of 12; 95 % interval {low:.3f} to {high:.3f}" in lines["true_positive_rate"]
    assert f"{round(8 * found['false_positive_rate'])} of 8" in lines["false_positive_rate"]
    assert f"auroc {' ' * 22} {found['auroc']:.4f}" in lines["auroc"]
    assert "40 images promise a false positive rate of 0.024 at best, 1 / (40 + 1)" in table
    assert [name for name, line in lines.items() if "optimistic" in line] == ["best_f1_on_test"]
    assert low <= found["true_positive_rate"] <= high


def test_the_control_is_the_mean_distance_to_the_nearest_normal_training_images():
    data = Toy()
    flat = [split.images.flatten(1).double().numpy() / 127.5 - 1 for split in (data.train.normal(), data.test)]
    distances, _ = NearestNeighbors(n_neighbors=3).fit(flat[0]).kneighbors(flat[1])
    found = neighbour_control(data, neighbours=3)
    np.testing.assert_allclose(found, distances.mean(1), rtol=1e-4)
    assert found.dtype == np.float64 and metrics.auroc(found, data.test.label) > 0.9


def test_the_control_shrinks_large_images_and_takes_what_neighbours_there_are():
    data = Toy()
    small = neighbour_control(data, side=8)
    for split in (data.train, data.test):
        split.images = split.images.repeat_interleave(8, 2).repeat_interleave(8, 3)
    np.testing.assert_allclose(neighbour_control(data, side=8), small, rtol=1e-4)
    data.train = data.train.subset(torch.arange(2))
    assert np.isfinite(neighbour_control(data)).all()


@pytest.mark.parametrize(("name", "before"), [("", ""), ("one", "one_")])
def test_seeds_differ_in_nothing_but_their_seed_and_have_folders_of_their_own(run, trained, name, before):
    seen, first = [], {"auroc": 0.0, "pro": 0.25}

    def train(name, seed):
        seen.append((name, seed))
        return seed, "data"

    found = run_seeds(run, train, 3, first, lambda trained, data: {"auroc": trained / 10, "pro": 0.5}, name)
    assert found == {"auroc": [0.0, 0.1, 0.2], "pro": [0.25, 0.5, 0.5]}
    assert seen == [(f"{before}seed_1", 1), (f"{before}seed_2", 2)]
    found = run_seeds(run, lambda name, seed: (trained, Toy()), 2, {"auroc": 0.5})
    assert found["auroc"] == [0.5, evaluate(trained.model, Toy()).auroc], "without a measure"


def test_without_training_the_committed_values_are_read(tmp_path):
    run, committed = make_run(tmp_path, train=False), read_results(ROOT / "lightning_logs" / "version_0" / "one_class")
    assert run_seeds(run, None, 3, {}, name="one_class") == committed["seeds"]
