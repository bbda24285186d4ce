"""Every metric against scikit-learn, brute force or numbers by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from helpers import metrics

SEEDS = pytest.mark.parametrize("seed", range(4))


def ties(seed, count=200):
    """Scores on a coarse grid, so that many are equal, and labels that go with them only loosely."""
    generator = np.random.default_rng(seed)
    label = generator.random(count) < 0.3
    return np.round(generator.normal(label * 1.0, 1.0), 1), label.astype(int)


@SEEDS
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed):
    score, label = ties(seed)
    anomalous, normal = score[label == 1][:, None], score[label == 0][None]
    pairs = (anomalous > normal).mean() + (anomalous == normal).mean() / 2
    assert metrics.auroc(score, label) == pytest.approx(pairs, abs=1e-12)


@SEEDS
def test_average_precision_is_the_sum_of_precision_times_gain_in_recall(seed):
    score, label = ties(seed)
    total, recall_before = 0.0, 0.0
    for limit in sorted(set(score), reverse=True):
        flagged = score >= limit
        recall = label[flagged].sum() / label.sum()
        total += label[flagged].mean() * (recall - recall_before)
        recall_before = recall
    assert metrics.average_precision(score, label) == pytest.approx(total, abs=1e-12)


@SEEDS
def test_best_f1_is_the_best_of_all_thresholds(seed):
    score, label = ties(seed)
    best = max(f1_score(label, score > limit) for limit in {-np.inf, *score})
    assert metrics.best_f1(score, label) == pytest.approx(best, abs=1e-12)


def test_perfect_chance_and_inverted_scores():
    label = np.array([0, 0, 1, 1])
    for function in (metrics.auroc, metrics.average_precision, metrics.best_f1):
        assert function([1.0, 2.0, 3.0, 4.0], label) == 1.0
    assert metrics.auroc([4.0, 3.0, 2.0, 1.0], label) == 0.0
    assert metrics.auroc([5.0] * 4, label) == metrics.average_precision([5.0] * 4, label) == 0.5


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


@pytest.mark.parametrize("percentile", [-0.1, 100.1, float("nan")])
def test_a_percentile_out_of_bounds(percentile):
    with pytest.raises(ValueError, match="between 0 and 100"):
        metrics.threshold([1.0, 2.0], percentile)


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_a_threshold_needs_finite_scores(scores):
    with pytest.raises(ValueError, match="held-out normal images"):
        metrics.threshold(scores)


def test_rates_at_a_threshold_by_hand():
    score = [1.0, 2.0, 3.0, 4.0, 2.0, 3.5, 5.0, 6.0, 3.0]
    label = [0, 0, 0, 0, 1, 1, 1, 1, 1]
    # above 3: one normal of four (4.0), three anomalous of five; a score equal to the limit is not flagged
    rates = metrics.at_threshold(score, label, 3.0)
    assert rates == {"true_positive_rate": 0.6, "false_positive_rate": 0.25, "f1_at_threshold": 6 / (6 + 1 + 2)}
    assert metrics.at_threshold(score, label, 9.0) == dict.fromkeys(rates, 0.0)


@SEEDS
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    score, label = ties(seed)
    limits = np.random.default_rng(seed).permutation([*score[:15], *score[:5], -np.inf, 0.01, np.inf])
    found = metrics.precision_recall_f1(score, label, limits)
    for k, limit in enumerate(limits):
        flagged = score > limit
        assert found["precision"][k] == pytest.approx(precision_score(label, flagged, zero_division=1), abs=1e-12)
        assert found["recall"][k] == pytest.approx(recall_score(label, flagged), abs=1e-12)
        assert found["f1"][k] == pytest.approx(f1_score(label, flagged), abs=1e-12)


@pytest.mark.parametrize("limits", [0.5, [[0.5]], [0.5, float("nan")]], ids=["number", "matrix", "nan"])
def test_limits_that_cannot_be_used(limits):
    with pytest.raises(ValueError, match="limits must be a vector"):
        metrics.precision_recall_f1([0.0, 1.0], [0, 1], limits)


def test_each_defect_type_is_compared_with_all_normals_hardest_first():
    score = np.array([0.0, 1.0, 2.0, 3.0, 0.5, 2.5, 9.0, 9.0])
    label, defect_type = np.repeat([0, 1], 4), np.array([0, 0, 0, 0, 3, 3, 1, 1])
    found = metrics.per_defect_type(score, label, defect_type, ("shirt", "shoe", "never there", "bag"))
    assert list(found.items()) == [("bag", 0.5), ("shoe", 1.0)]


def test_image_metrics_have_the_names_of_results_json_and_are_plain_floats():
    score, label = ties(0)
    values = metrics.image_metrics(torch.tensor(score), torch.tensor(label), 0.5)
    expected = {
        "auroc": metrics.auroc,
        "average_precision": metrics.average_precision,
        "best_f1_on_test": metrics.best_f1,
    }
    assert values == {name: f(score, label) for name, f in expected.items()} | metrics.at_threshold(score, label, 0.5)
    assert {type(value) for value in values.values()} == {float}


WITH_LABELS = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "best_f1": metrics.best_f1,
    "at_threshold": lambda s, y: metrics.at_threshold(s, y, 0.0),
    "precision_recall_f1": lambda s, y: metrics.precision_recall_f1(s, y, [0.0]),
    "interval": lambda s, y: metrics.true_positive_rate_interval(s, y, [0.0, 1.0]),
}


@pytest.mark.parametrize("function", WITH_LABELS.values(), ids=WITH_LABELS)
@pytest.mark.parametrize(
    ("score", "label", "reason"),
    [
        ([1.0, 2.0], [0, 0], "both normal"),
        ([1.0, 2.0], [1, 1], "both normal"),
        ([1.0, 2.0, 3.0], [0, 1, 2], "both normal"),
        ([], [], "both normal"),
        ([1.0, 2.0, 3.0], [0, 1], r"\(3,\) and \(2,\)"),
        ([[1.0], [2.0]], [[0], [1]], "two vectors"),
        ([1.0, float("nan")], [0, 1], "1 of 2 anomaly scores are not finite"),
    ],
    ids=["only normal", "only anomalous", "third label", "empty", "lengths", "matrix", "nan"],
)
def test_scores_and_labels_that_cannot_be_measured(function, score, label, reason):
    with pytest.raises(ValueError, match=reason):
        function(score, label)


# --- the interval of the true positive rate -------------------------------------------------------------------------


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    """Normal scores N(0, 1), anomalous N(2.5, 1), threshold at the 90th percentile: the rate in expectation is known."""
    rng, covered, trials = np.random.default_rng(0), 0, 120
    for seed in range(trials):
        score = np.concatenate([rng.normal(size=60), rng.normal(2.5, 1, size=60)])
        held_out = rng.normal(size=80)
        low, high = metrics.true_positive_rate_interval(score, np.repeat([0, 1], 60), held_out, 90, 200, seed)
        covered += low <= 0.8885 <= high  # P(N(2.5, 1) > 1.2816)
    assert 0.88 <= covered / trials <= 1


def test_the_interval_counts_both_the_anomalies_and_the_held_out_images():
    def width(anomalous, held_out):
        score = np.concatenate([normal(50), normal(anomalous) + 2])
        label = np.repeat([0, 1], [50, anomalous])
        low, high = metrics.true_positive_rate_interval(score, label, normal(held_out), 90)
        rate = metrics.at_threshold(score, label, metrics.threshold(normal(held_out), 90))["true_positive_rate"]
        assert 0 <= low < rate < high <= 1
        return high - low

    def normal(count):
        return stats.norm.ppf((np.arange(count) + 0.5) / count)

    assert width(400, 20) > 1.5 * width(400, 1000)
    assert width(20, 1000) > 1.5 * width(400, 1000)


# --- maps -------------------------------------------------------------------------------------------------------------


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
    inside = rate <= max_fpr
    rate = np.append(rate[inside], max_fpr)
    return np.trapezoid(np.append(height[inside], np.interp(max_fpr, *np.array(curve).T)), rate) / max_fpr


@pytest.mark.parametrize("max_fpr", [0.001, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("step", [2.0, 0.5, None])
@SEEDS
def test_pro_is_the_area_under_the_curve_of_all_thresholds(seed, step, max_fpr):
    maps, masks = pictures(seed, step)
    assert metrics.pro_score(maps, masks, max_fpr) == pytest.approx(slow_pro(maps, masks, max_fpr), abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0.01, 0.3, 1.0])
def test_pro_of_perfect_constant_and_inverted_maps(max_fpr):
    masks = pictures(0)[1]
    assert metrics.pro_score(masks * 1.0, masks, max_fpr) == pytest.approx(1.0, abs=1e-12)
    assert metrics.pro_score(masks * 0.0, masks, max_fpr) == pytest.approx(max_fpr / 2, abs=1e-12)
    assert metrics.pro_score(masks * -1.0, masks, max_fpr) == pytest.approx(0.0, abs=1e-12)


def test_pro_by_hand():
    # two regions of 1 and 4 pixels; the defect-free pixels are 0 but for two of ten, which are 2 and 5
    maps = np.array([[[9.0, 0, 2, 0, 0], [0, 5, 0, 0, 0], [0, 3, 3, 1, 1]]])
    masks = np.array([[[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]], dtype=bool)
    # overlap 1/2 up to a rate of 0.1, 3/4 up to 0.2, then 1
    assert metrics.pro_score(maps, masks, 0.15) == pytest.approx((0.1 * 0.5 + 0.05 * 0.75) / 0.15)
    assert metrics.pro_score(maps, masks) == pytest.approx((0.1 * 0.5 + 0.1 * 0.75 + 0.1 * 1) / 0.3)


def test_pro_joins_pixels_at_corners_but_not_across_images():
    corner = np.array([[[1, 0], [0, 1]], [[1, 0], [0, 0]]], dtype=bool)  # two regions: one diagonal, one below it
    maps = np.where(corner, [[[2.0, 1], [1, 0]], [[2.0, 1], [1, 0]]], 1.0)
    assert metrics.pro_score(maps, corner) == pytest.approx((1 / 2 + 1) / 2)


def test_pro_counts_the_pixels_of_normal_images():
    masks = np.zeros((2, 1, 4), dtype=bool)
    masks[0, 0, 0] = True
    maps = np.array([[[1.0, 2, 0, 0]], [[0, 0, 0, 0]]])  # one of seven defect-free pixels is above the defect
    assert metrics.pro_score(maps, masks, 0.5) == pytest.approx((0.5 - 1 / 7) / 0.5)


@SEEDS
def test_pro_of_a_single_region_is_the_area_under_the_roc_curve(seed):
    maps, masks = pictures(seed)
    masks[:] = False
    masks[0, 2:5, 3:8] = True
    assert metrics.pro_score(maps, masks, 1) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_pro_depends_on_the_order_of_the_scores_only_and_rounds_nothing():
    maps, masks = pictures(3)
    value = metrics.pro_score(maps, masks)
    shuffled = np.random.default_rng(0).permutation(len(maps))
    for other in (3 * maps - 7, np.exp(maps), maps.astype(np.float32), (2 * maps).astype(int), torch.tensor(maps)):
        assert metrics.pro_score(other, masks) == pytest.approx(value, abs=1e-12)
    assert metrics.pro_score(maps[shuffled], masks[shuffled]) == pytest.approx(value, abs=1e-12)
    assert metrics.pro_score([[[1 + 1e-12, 1.0, 1.0, 1.0]]], [[[1, 0, 0, 0]]]) == 1.0


def test_pixel_metrics_have_the_names_of_results_json_and_leave_their_arguments_alone():
    maps, masks = pictures(0)
    before, limit = maps.copy(), 0.5
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_pixel_at_the_threshold_is_not_flagged(dtype):
    normal = np.array([[[0.1, 0.3, 0.7]]], dtype=dtype)
    limit = metrics.threshold(normal.ravel(), 50)
    assert limit == float(dtype(0.3))
    assert metrics.pixel_metrics(normal, [[[0, 0, 1]]], limit)["pixel_precision_at_threshold"] == 1.0


BROKEN = np.zeros((3, 2, 2))
BROKEN[0, 0, 0], BROKEN[2, 0] = np.nan, -np.inf
SOME = np.arange(12).reshape(3, 2, 2) % 5 == 0


@pytest.mark.parametrize(
    "function", [metrics.pro_score, lambda a, m: metrics.pixel_metrics(a, m, 0.5)], ids=["pro", "all"]
)
@pytest.mark.parametrize(
    ("maps", "masks", "reason"),
    [
        (np.zeros((3, 2, 2)), SOME[:2], r"got \(3, 2, 2\) and \(2, 2, 2\)"),
        (np.zeros((2, 2)), SOME[0], r"one shape \(N, H, W\)"),
        (BROKEN, SOME, "2 of 3 anomaly maps are not finite"),
        (np.zeros((3, 2, 2)), np.zeros_like(SOME), "no mask has a defect"),
        (np.zeros((0, 2, 2)), SOME[:0], "no mask has a defect"),
        (np.zeros((3, 2, 2)), np.ones_like(SOME), "no defect-free pixel"),
    ],
    ids=["count", "one image", "not finite", "no defect", "no image", "only defects"],
)
def test_maps_and_masks_that_cannot_be_measured(function, maps, masks, reason):
    with pytest.raises(ValueError, match=reason):
        function(maps, masks)


@pytest.mark.parametrize("max_fpr", [0, 1.01, float("nan")])
def test_a_largest_false_positive_rate_out_of_bounds(max_fpr):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        metrics.pro_score(*pictures(0), max_fpr)
