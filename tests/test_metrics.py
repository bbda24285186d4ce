import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from helpers import metrics


def ties(seed, count=200):
    """Scores on a coarse grid, so that many are equal, and labels that go with them only loosely."""
    generator = np.random.default_rng(seed)
    label = generator.random(count) < 0.3
    return np.round(generator.normal(label * 1.0, 1.0), 1), label.astype(int)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed):
    score, label = ties(seed)
    anomalous, normal = score[label == 1][:, None], score[label == 0][None]
    pairs = (anomalous > normal).mean() + (anomalous == normal).mean() / 2
    assert metrics.auroc(score, label) == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_sum_of_precision_times_gain_in_recall(seed):
    score, label = ties(seed)
    total, recall_before = 0.0, 0.0
    for limit in sorted(set(score), reverse=True):
        flagged = score >= limit
        recall = label[flagged].sum() / label.sum()
        total += label[flagged].mean() * (recall - recall_before)
        recall_before = recall
    assert metrics.average_precision(score, label) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_best_f1_is_the_best_of_all_thresholds(seed):
    score, label = ties(seed)
    limits = [-np.inf, *score]
    best = max(metrics.at_threshold(score, label, limit)["f1_at_threshold"] for limit in limits)
    assert metrics.best_f1(score, label) == pytest.approx(best, abs=1e-12)


def test_perfect_chance_and_inverted_scores():
    label = np.array([0, 0, 1, 1])
    for function in (metrics.auroc, metrics.average_precision, metrics.best_f1):
        assert function([1.0, 2.0, 3.0, 4.0], label) == 1.0
    assert metrics.auroc([4.0, 3.0, 2.0, 1.0], label) == 0.0
    assert metrics.auroc([5.0] * 4, label) == 0.5
    assert metrics.average_precision([5.0] * 4, label) == 0.5


def test_metrics_are_plain_floats_and_take_torch_tensors():
    score, label = torch.tensor([0.1, 0.9, 0.4, 0.3]), torch.tensor([0, 1, 1, 0])
    values, limit = metrics.summary(score, label, score[label == 0])
    assert type(limit) is float
    assert {type(value) for value in values.values()} == {float}


@pytest.mark.parametrize("percentile", [0, 50, 90, 95, 99, 99.5, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 101, 600, 1000])
def test_a_threshold_is_exceeded_by_no_more_of_its_normals_than_allowed(percentile, count):
    scores = np.round(np.random.default_rng(count).normal(size=count), 2)
    limit = metrics.threshold(scores, percentile)
    assert limit in scores
    assert (scores > limit).sum() <= (100 - percentile) / 100 * count + 1e-9


def test_a_threshold_is_the_lowest_score_that_keeps_the_promise():
    scores = np.arange(100.0)
    assert metrics.threshold(scores) == 99.0  # of 100 images, linear ranks put the 99th percentile at 98.01
    assert metrics.threshold(np.arange(101.0)) == 99.0
    assert metrics.threshold(scores, 0) == 0.0
    assert metrics.threshold(scores, 100) == 99.0


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
    assert rates == {"false_alarm_rate": 0.25, "detection_rate": 0.6, "f1_at_threshold": 2 * 3 / (2 * 3 + 1 + 2)}
    assert metrics.at_threshold(score, label, 9.0) == dict.fromkeys(rates, 0.0)
    assert metrics.at_threshold(score, label, 0.0)["false_alarm_rate"] == 1.0


def test_per_kind_compares_each_kind_with_all_normals_hardest_first():
    score = np.array([0.0, 1.0, 2.0, 3.0, 0.5, 2.5, 9.0, 9.0])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    kind = np.array([0, 0, 0, 0, 3, 3, 1, 1])
    found = metrics.per_kind(score, label, kind, ("shirt", "shoe", "never there", "bag"))
    assert list(found.items()) == [("bag", 0.5), ("shoe", 1.0)]


def test_summary_has_the_names_of_results_json_and_the_values_of_its_parts():
    score, label = ties(0)
    held_out = ties(1)[0]
    values, limit = metrics.summary(score, label, held_out, 90)
    assert limit == metrics.threshold(held_out, 90)
    assert values == {
        "auroc": metrics.auroc(score, label),
        "average_precision": metrics.average_precision(score, label),
        "best_f1_on_test": metrics.best_f1(score, label),
        **metrics.at_threshold(score, label, limit),
    }
    names = {"auroc", "average_precision", "f1_at_threshold", "best_f1_on_test", "false_alarm_rate", "detection_rate"}
    assert set(values) == names
    assert all(0 <= value <= 1 for value in values.values())


WITH_LIMIT = [
    metrics.auroc,
    metrics.average_precision,
    metrics.best_f1,
    lambda s, y: metrics.at_threshold(s, y, 0.0),
    lambda s, y: metrics.precision_recall_f1(s, y, [0.0]),
]
NAMES = ["auroc", "average_precision", "best_f1", "at_threshold", "precision_recall_f1"]


@pytest.mark.parametrize("function", WITH_LIMIT, ids=NAMES)
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
        ([float("inf"), 1.0], [0, 1], "1 of 2 anomaly scores are not finite"),
    ],
    ids=["only normal", "only anomalous", "third label", "empty", "lengths", "matrix", "nan", "infinite"],
)
def test_scores_and_labels_that_cannot_be_measured(function, score, label, reason):
    with pytest.raises(ValueError, match=reason):
        function(score, label)


@pytest.mark.parametrize("seed", range(4))
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    score, label = ties(seed)
    limits = np.random.default_rng(seed).permutation([*score, *score, -np.inf, -9.0, 0.01, 9.0, np.inf])
    found = metrics.precision_recall_f1(score, label, limits)
    for k, limit in enumerate(limits):
        flagged = score > limit
        assert found["precision"][k] == pytest.approx(precision_score(label, flagged, zero_division=1), abs=1e-12)
        assert found["recall"][k] == pytest.approx(recall_score(label, flagged), abs=1e-12)
        assert found["f1"][k] == pytest.approx(f1_score(label, flagged), abs=1e-12)
        assert found["recall"][k] == metrics.at_threshold(score, label, limit)["detection_rate"]


def test_precision_recall_and_f1_by_hand():
    found = metrics.precision_recall_f1([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1], [3.0, 2.0, 1.0, 0.0])
    assert found["precision"].tolist() == [1.0, 1.0, 2 / 3, 0.5]  # above 3 there is nothing
    assert found["recall"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert found["f1"].tolist() == [0.0, 2 / 3, 0.8, 2 / 3]
    none = metrics.precision_recall_f1([1.0, 2.0], [0, 1], [])
    assert [none[name].shape for name in ("precision", "recall", "f1")] == [(0,)] * 3


@pytest.mark.parametrize("limits", [0.5, [[0.5]], [0.5, float("nan")]], ids=["number", "matrix", "nan"])
def test_limits_that_cannot_be_used(limits):
    with pytest.raises(ValueError, match="limits must be a vector"):
        metrics.precision_recall_f1([0.0, 1.0], [0, 1], limits)


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
    curve = [(0.0, 0.0)]
    regions = []
    for index, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(index, labelled == number) for number in range(1, count + 1)]
    for limit in sorted(set(maps.ravel()), reverse=True):
        overlap = np.mean([(maps[index] >= limit)[region].mean() for index, region in regions])
        curve.append(((maps >= limit)[~masks].mean(), overlap))
    area = 0.0
    for (left, low), (right, high) in zip(curve, curve[1:], strict=False):
        if right > max_fpr:
            if left < max_fpr:
                at_end = low + (high - low) * (max_fpr - left) / (right - left)
                area += (max_fpr - left) * (low + at_end) / 2
            break
        area += (right - left) * (low + high) / 2
    return area / max_fpr


@pytest.mark.parametrize("max_fpr", [0.001, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("step", [2.0, 0.5, None])
@pytest.mark.parametrize("seed", range(4))
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
    assert metrics.pro_score(maps, masks, 0.1) == pytest.approx(0.5)
    assert metrics.pro_score(maps, masks, 0.15) == pytest.approx((0.1 * 0.5 + 0.05 * 0.75) / 0.15)
    assert metrics.pro_score(maps, masks) == pytest.approx((0.1 * 0.5 + 0.1 * 0.75 + 0.1 * 1) / 0.3)
    # a tie of a defect and two defect-free pixels of four is a straight line from (0, 0) to (0.5, 1), cut at 0.3
    assert metrics.pro_score([[[1.0, 1, 1, 0, 0]]], [[[1, 0, 0, 0, 0]]]) == pytest.approx(0.3)


def test_pro_joins_pixels_at_corners_but_not_across_images():
    corner = np.array([[[1, 0], [0, 1]], [[1, 0], [0, 0]]], dtype=bool)  # two regions: one diagonal, one below it
    maps = np.where(corner, [[[2.0, 1], [1, 0]], [[2.0, 1], [1, 0]]], 1.0)
    assert metrics.pro_score(maps, corner) == pytest.approx((1 / 2 + 1) / 2)


def test_pro_counts_the_pixels_of_normal_images():
    masks = np.zeros((2, 1, 4), dtype=bool)
    masks[0, 0, 0] = True
    maps = np.array([[[1.0, 2, 0, 0]], [[0, 0, 0, 0]]])  # one of seven defect-free pixels is above the defect
    assert metrics.pro_score(maps, masks, 0.5) == pytest.approx((0.5 - 1 / 7) / 0.5)
    assert metrics.pro_score(maps[:1], masks[:1], 0.5) == pytest.approx((0.5 - 1 / 3) / 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_pro_of_a_single_region_is_the_area_under_the_roc_curve(seed):
    maps, masks = pictures(seed)
    masks[:] = False
    masks[0, 2:5, 3:8] = True
    assert metrics.pro_score(maps, masks, 1) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_pro_depends_on_the_order_of_the_scores_only():
    maps, masks = pictures(3)
    value = metrics.pro_score(maps, masks)
    for other in (3 * maps - 7, np.exp(maps), maps.astype(np.float32), maps.astype(np.float16), (2 * maps).astype(int)):
        assert metrics.pro_score(other, masks) == pytest.approx(value, abs=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(maps))
    assert metrics.pro_score(maps[shuffled], masks[shuffled]) == pytest.approx(value, abs=1e-12)
    assert metrics.pro_score(torch.tensor(maps), torch.tensor(masks)) == pytest.approx(value, abs=1e-12)


def test_pro_does_not_round_scores_of_double_precision():
    maps = np.array([[[1 + 1e-12, 1.0, 1.0, 1.0]]])
    assert metrics.pro_score(maps, [[[1, 0, 0, 0]]]) == 1.0


def test_pro_leaves_its_arguments_as_they_are():
    maps, masks = pictures(0)
    before = maps.copy(), masks.copy()
    metrics.pixel_summary(maps, masks, maps)
    assert (maps == before[0]).all()
    assert (masks == before[1]).all()


def test_pixel_summary_has_the_names_of_results_json_and_the_values_of_its_parts():
    maps, masks = pictures(0)
    held_out = pictures(1, step=None)[0][-2:]
    values, limit = metrics.pixel_summary(maps, masks, held_out, 90)
    assert limit == metrics.threshold(held_out.ravel(), 90)
    score, label = maps.ravel(), masks.ravel()
    assert values == pytest.approx(
        {
            "pixel_auroc": roc_auc_score(label, score),
            "pixel_average_precision": average_precision_score(label, score),
            "pixel_best_f1_on_test": max(f1_score(label, score >= at) for at in set(score)),
            "pro": slow_pro(maps, masks, 0.3),
            "pixel_precision_at_threshold": precision_score(label, score > limit),
            "pixel_recall_at_threshold": recall_score(label, score > limit),
            "pixel_f1_at_threshold": f1_score(label, score > limit),
        },
        abs=1e-12,
    )
    assert type(limit) is float
    assert {type(value) for value in values.values()} == {float}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_pixel_at_the_threshold_is_not_flagged(dtype):
    normal = np.array([[[0.1, 0.3, 0.7]]], dtype=dtype)
    values, limit = metrics.pixel_summary(normal, [[[0, 0, 1]]], normal, 50)
    assert limit == float(dtype(0.3))
    assert values["pixel_precision_at_threshold"] == values["pixel_recall_at_threshold"] == 1.0


def test_pixel_summary_needs_maps_of_held_out_normal_images():
    maps, masks = pictures(0)
    for normal in (maps[:0], np.full((1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="held-out normal images"):
            metrics.pixel_summary(maps, masks, normal)
    with pytest.raises(ValueError, match="between 0 and 100"):
        metrics.pixel_summary(maps, masks, maps, 101)


BROKEN = np.zeros((3, 2, 2))
BROKEN[0, 0, 0], BROKEN[2, 0] = np.nan, -np.inf
SOME = np.arange(12).reshape(3, 2, 2) % 5 == 0


@pytest.mark.parametrize(
    "function", [metrics.pro_score, lambda a, m: metrics.pixel_summary(a, m, np.ones((1, 2, 2)))], ids=["pro", "all"]
)
@pytest.mark.parametrize(
    ("maps", "masks", "reason"),
    [
        (np.zeros((3, 2, 2)), SOME[:2], r"got \(3, 2, 2\) and \(2, 2, 2\)"),
        (np.zeros((3, 1, 4)), SOME, r"got \(3, 1, 4\) and \(3, 2, 2\)"),
        (np.zeros((2, 2)), SOME[0], r"one shape \(N, H, W\)"),
        (np.zeros((3, 1, 2, 2)), SOME[:, None], r"one shape \(N, H, W\)"),
        (BROKEN, SOME, "2 of 3 anomaly maps are not finite"),
        (np.zeros((3, 2, 2)), np.zeros_like(SOME), "no mask has a defect"),
        (np.zeros((0, 2, 2)), SOME[:0], "no mask has a defect"),
        (np.zeros((3, 2, 2)), np.ones_like(SOME), "no defect-free pixel"),
    ],
    ids=["count", "size", "one image", "channels", "not finite", "no defect", "no image", "only defects"],
)
def test_maps_and_masks_that_cannot_be_measured(function, maps, masks, reason):
    with pytest.raises(ValueError, match=reason):
        function(maps, masks)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.01, float("nan")])
def test_a_false_positive_rate_out_of_bounds(max_fpr):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        metrics.pro_score(*pictures(0), max_fpr)


# --- conformal p-values -----------------------------------------------------------------------------------------------


def test_p_values_count_the_held_out_scores_at_or_above():
    held_out = [1.0, 2.0, 2.0, 3.0]
    found = metrics.conformal_p_values([0.0, 1.0, 2.0, 2.5, 3.0, 9.0], held_out)
    assert found.tolist() == pytest.approx([5 / 5, 5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5])


def test_a_higher_score_never_has_a_higher_p_value():
    rng = np.random.default_rng(0)
    score = np.sort(rng.normal(size=100).round(1))
    found = metrics.conformal_p_values(score, rng.normal(size=37).round(1))
    assert (np.diff(found) <= 0).all()
    assert found.min() >= 1 / 38
    assert found.max() <= 1


def rates(alphas, new, held_out):
    """How often p <= alpha, for each alpha: each row of ``held_out`` with the new normal score of that row."""
    p = np.array([metrics.conformal_p_values(row[:1], others)[0] for row, others in zip(new, held_out, strict=True)])
    return (p[:, None] <= alphas + 1e-12).mean(0)


DRAWS, ALPHAS = 8000, np.array([0.05, 0.1, 0.25, 0.5, 0.9])
NOISE = 4 * np.sqrt(ALPHAS * (1 - ALPHAS) / DRAWS)  # four standard errors


@pytest.mark.parametrize("count", [9, 19, 50])
@pytest.mark.parametrize("ties", [False, True])
def test_the_false_alarm_rate_is_the_promised_one_whatever_the_distribution(count, ties):
    rng = np.random.default_rng(count)
    scores = rng.gamma(0.5, size=(DRAWS, count + 1))  # skewed, as scores are
    scores = scores.round(1) if ties else scores
    found = rates(ALPHAS, scores[:, :1], scores[:, 1:])
    assert (found <= ALPHAS + NOISE).all()
    if not ties:  # and no more careful than it must be: exactly the share of ranks that are small enough
        assert found == pytest.approx(np.floor(ALPHAS * (count + 1) + 1e-9) / (count + 1), abs=NOISE.max())


def test_the_promise_is_empty_if_the_held_out_images_are_of_another_kind():
    rng = np.random.default_rng(0)  # scores of training images, say, which a model finds a little too normal
    found = rates(ALPHAS, rng.gamma(0.5, size=(DRAWS, 1)), 0.7 * rng.gamma(0.5, size=(DRAWS, 50)))
    assert (found[:3] > ALPHAS[:3] + NOISE[:3]).all()


@pytest.mark.parametrize(
    ("score", "held_out", "message"),
    [
        ([1.0], [], "a vector of scores and one of held-out"),
        ([[1.0]], [1.0], r"got \(1, 1\)"),
        ([1.0], [[1.0]], r"\(1, 1\)$"),
        ([np.nan], [1.0], "finite"),
        ([1.0], [np.inf], "finite"),
    ],
)
def test_p_values_refuse_what_cannot_be_ranked(score, held_out, message):
    with pytest.raises(ValueError, match=message):
        metrics.conformal_p_values(score, held_out)
