import numpy as np
import pytest
import torch

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


WITH_LIMIT = [metrics.auroc, metrics.average_precision, metrics.best_f1, lambda s, y: metrics.at_threshold(s, y, 0.0)]
NAMES = ["auroc", "average_precision", "best_f1", "at_threshold"]


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
