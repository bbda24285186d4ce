"""Every metric against scikit-learn, brute force or numbers by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from helpers import metrics

SEEDS = pytest.mark.parametrize("seed", range(4))


def ties(seed, count=200):
    """Scores on a coarse grid, so that many are equal, and labels that go with them only loosely."""
    generator = np.random.default_rng(seed)
    label = generator.random(count) < 0.3
    return np.round(generator.normal(label * 1.0, 1.0), 1), label.astype(int)


@SEEDS
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    score, label = ties(seed)
    limits = np.random.default_rng(seed).permutation([*score[:15], *score[:5], -np.inf, 0.01, np.inf])
    found = metrics.precision_recall_f1(score, label, limits)
    for k, limit in enumerate(limits):
        flagged = score > limit
        expected = (
            precision_score(label, flagged, zero_division=1),
            recall_score(label, flagged),
            f1_score(label, flagged),
        )
        assert [found[name][k] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("percentile", [0, 50, 95, 99, 99.5, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 101, 1000])
def test_a_threshold_is_the_lowest_score_exceeded_by_no_more_than_allowed(percentile, count):
    scores = np.round(np.random.default_rng(count).normal(size=count), 2)
    allowed = (100 - percentile) / 100 * (count - 1) + 1e-9
    limit = metrics.threshold(scores, percentile)
    assert limit in scores
    assert (scores > limit).sum() <= allowed
    below = scores[scores < limit]
    assert not len(below) or (scores > below.max()).sum() > allowed or percentile == 0


@pytest.mark.parametrize(("unfit", "percentile"), [([], 99), ([1.0, np.nan], 99), ([1.0], 100.1)])
def test_a_threshold_needs_scores_and_a_percentile(unfit, percentile):
    with pytest.raises(ValueError, match="held-out" if percentile == 99 else "between 0 and 100"):
        metrics.threshold(unfit, percentile)


def test_image_metrics_have_the_names_of_results_json_and_are_plain_floats():
    score, label = ties(0)
    values = metrics.image_metrics(torch.tensor(score), torch.tensor(label), 0.5)
    expected = {"auroc": roc_auc_score(label, score), "average_precision": average_precision_score(label, score)}
    flagged = score > 0.5
    expected |= {"true_positive_rate": flagged[label == 1].mean(), "false_positive_rate": flagged[label == 0].mean()}
    expected["f1_at_threshold"] = f1_score(label, flagged)
    expected["best_f1_on_test"] = max(f1_score(label, score >= at) for at in set(score))
    assert values == pytest.approx(expected, abs=1e-12)
    assert {type(value) for value in values.values()} == {float}


WITH_LABELS = [metrics.auroc, metrics.average_precision, metrics.best_f1]
WITH_LABELS += [
    lambda s, y: metrics.image_metrics(s, y, 0.0),
    lambda s, y: metrics.precision_recall_f1(s, y, [0.0]),
    lambda s, y: metrics.true_positive_rate_interval(s, y, [0.0, 1.0]),
]
UNFIT = [
    ([1.0, 2.0], [0, 0], "both normal"),
    ([], [], "both normal"),
    ([1.0, 2.0, 3.0], [0, 1, 2], "both normal"),
    ([1.0, 2.0, 3.0], [0, 1], r"\(3,\) and \(2,\)"),
    ([[1.0], [2.0]], [[0], [1]], "two vectors"),
    ([1.0, float("nan")], [0, 1], "1 of 2 anomaly scores are not finite"),
]


@pytest.mark.parametrize("function", WITH_LABELS, ids=range(6))
@pytest.mark.parametrize(("score", "label", "reason"), UNFIT)
def test_scores_and_labels_that_cannot_be_measured(function, score, label, reason):
    with pytest.raises(ValueError, match=reason):
        function(score, label)


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    """Normal scores N(0, 1), anomalous N(2.5, 1), threshold at the 90th percentile: the expected rate is known."""
    rng, covered, trials = np.random.default_rng(0), 0, 120
    for seed in range(trials):
        score = np.concatenate([rng.normal(size=60), rng.normal(2.5, 1, size=60)])
        held_out = rng.normal(size=80)
        low, high = metrics.true_positive_rate_interval(score, np.repeat([0, 1], 60), held_out, 90, 200, seed)
        covered += low <= 0.8885 <= high  # P(N(2.5, 1) > 1.2816)
    assert 0.88 <= covered / trials < 1, "it counts that both the anomalies and the held-out images are few"


def test_all_found_of_a_few_is_no_certainty():
    score, label = np.array([0.0, *[9.0] * 6]), np.array([0, *[1] * 6])
    low, high = metrics.true_positive_rate_interval(score, label, [0.0, 1.0])
    assert 0.55 < low < 0.75 and high > 0.99, "the exact interval of 6 of 6 is 0.54 to 1"


def pictures(seed, step=0.5, count=5, size=9):
    """Maps on a grid of ``step`` (None: no ties), masks with several regions each, the last two without a defect."""
    generator = np.random.default_rng(seed)
    masks = generator.random((count, size, size)) < 0.15
    masks[:, :3, 2:5] |= generator.random((count, 1, 1)) < 0.5
    masks[-2:] = False
    maps = generator.normal(masks * 1.0, 1.0)
    return (np.round(maps / step) * step if step else maps), masks


def slow_pro(maps, masks, max_fpr):
    """One pass over all images and regions for each threshold, then the area under straight lines."""
    curve, regions = [(0.0, 0.0)], []
    for index, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(index, labelled == number) for number in range(1, count + 1)]
    for limit in sorted(set(maps.ravel()), reverse=True):
        overlap = np.mean([(maps[index] >= limit)[region].mean() for index, region in regions])
        curve.append(((maps >= limit)[~masks].mean(), overlap))
    rate, height = np.array(curve).T
    inside, at_end = rate <= max_fpr, np.interp(max_fpr, rate, height)
    return np.trapezoid(np.append(height[inside], at_end), np.append(rate[inside], max_fpr)) / max_fpr


@pytest.mark.parametrize("max_fpr", [0.001, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("step", [2.0, 0.5, None])
@SEEDS
def test_pro_is_the_area_under_the_curve_of_all_thresholds(seed, step, max_fpr):
    maps, masks = pictures(seed, step)
    assert metrics.pro_score(maps, masks, max_fpr) == pytest.approx(slow_pro(maps, masks, max_fpr), abs=1e-12)


def test_pro_depends_on_the_order_of_the_scores_only_and_rounds_nothing():
    maps, masks = pictures(3)
    for other in (np.exp(maps), maps.astype(np.float32), (2 * maps).astype(int), torch.tensor(maps)):
        assert metrics.pro_score(other, masks) == pytest.approx(metrics.pro_score(maps, masks), abs=1e-12)
    assert metrics.pro_score([[[1 + 1e-12, 1.0, 1.0, 1.0]]], [[[1, 0, 0, 0]]]) == 1.0


def test_pixel_metrics_have_the_names_of_results_json_and_leave_their_arguments_alone():
    maps, masks = pictures(0)
    before, limit = maps.copy(), 0.5  # at which many pixels are: they are not flagged
    values = metrics.pixel_metrics(maps, masks, limit)
    score, label = maps.ravel(), masks.ravel()
    expected = {
        "pixel_auroc": roc_auc_score(label, score),
        "pixel_average_precision": average_precision_score(label, score),
        "pixel_best_f1_on_test": max(f1_score(label, score >= at) for at in set(score)),
        "pro": slow_pro(maps, masks, 0.3),
        "pixel_precision_at_threshold": precision_score(label, score > limit),
        "pixel_recall_at_threshold": recall_score(label, score > limit),
        "pixel_f1_at_threshold": f1_score(label, score > limit),
    }
    assert values == pytest.approx(expected, abs=1e-12)
    assert {type(value) for value in values.values()} == {float}
    assert (maps == before).all()


def test_maps_and_masks_that_cannot_be_measured():
    maps, some = np.zeros((3, 2, 2)), np.arange(12).reshape(3, 2, 2) % 5 == 0
    broken = np.where(some, np.nan, maps)
    for values, masks, reason in (
        (maps, some[:2], r"got \(3, 2, 2\) and \(2, 2, 2\)"),
        (maps[0], some[0], r"one shape \(N, H, W\)"),
        (broken, some, "3 of 12 anomaly scores are not finite"),
        (maps, ~(some | True), "masks. must hold both"),
        (maps, some | True, "masks. must hold both"),
    ):
        for function in (metrics.pro_score, lambda a, m: metrics.pixel_metrics(a, m, 0.5)):
            with pytest.raises(ValueError, match=reason):
                function(values, masks)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        metrics.pro_score(maps, some, 0)
