"""What notebook 9 computes from scores, on scores whose answers are known."""

import numpy as np
import pytest

from tests.book import page

NAME = "09_from_score_to_decision"
BOOK = page(NAME)


def test_p_values_count_held_out_scores_at_or_above():
    found = BOOK["p_values"](np.array([0.0, 2.0, 2.5, 9.0]), np.array([3.0, 1.0, 2.0, 2.0]))
    assert found.tolist() == [1.0, 4 / 5, 2 / 5, 1 / 5]


def test_p_values_of_good_images_are_at_most_alpha_as_often_as_guaranteed():
    random, alpha = np.random.default_rng(0), 0.1
    shares = [(BOOK["p_values"](random.normal(size=50), random.normal(size=39)) <= alpha).mean() for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(alpha, abs=0.005)  # 4 of 40 places: exact


@pytest.mark.parametrize(
    "wanted, n, rank", [(0.05, 19, 1), (0.05, 18, 0), (0.05, 600, 30), (0.1, 39, 4), (0.01, 99, 1)]
)
def test_the_rank_of_a_threshold_promises_what_is_wanted(wanted, n, rank):
    assert BOOK["rank_for"](wanted, n) == rank and rank / (n + 1) <= wanted


def test_costs_are_those_of_misses_and_false_alarms():
    images = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0])
    cost = BOOK["cost_of"]
    assert cost([3.5], images, 10, 0.1).tolist() == [pytest.approx(0.1 * 10 * 0.5 + 0.9 * 0.25)]
    assert cost([0.0, 9.0], images, 10, 0.1).tolist() == [pytest.approx(0.9), pytest.approx(1.0)]
