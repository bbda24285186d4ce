import types

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.metrics import roc_auc_score

from helpers import comparison, metrics
from helpers.versions import Version

matplotlib.use("Agg")
LABEL = np.repeat([0, 1], [200, 300])


@pytest.fixture(autouse=True)
def pyplot_is_left_empty():
    yield
    assert plt.get_fignums() == []


def shifted(by, seed=0, label=LABEL):
    """Scores whose AUROC grows with ``by``."""
    return np.random.default_rng(seed).normal(by * label, 1.0)


def version(name, score=None, seeds=(), label=LABEL, protocol="one-class", losses=None, **results):
    """A version with just what a comparison reads."""
    scores = None
    auroc = 0.5
    if score is not None:
        scores = types.SimpleNamespace(score=score, label=label, kind=label, kinds=("good", "bad"))
        auroc = metrics.auroc(score, label)
    found = {"dataset": "hazelnut", "protocol": protocol, "metrics": {"auroc": auroc}, "seeds": {"auroc": list(seeds)}}
    return Version(name, None, found | {"device": "CPU"} | results, {}, losses or {}, scores)


def test_the_bootstrap_is_the_auroc_of_resampled_test_sets():
    """Draw by draw against scikit-learn's weighted AUROC, ties included."""
    scores = np.stack([shifted(1).round(1), shifted(2, seed=1)])
    found = metrics.bootstrap_auroc(scores, LABEL, draws=5, seed=3)
    generator = np.random.default_rng(3)
    for draw in range(5):
        weight = np.empty(500)
        for value, count in ((0, 200), (1, 300)):
            weight[value == LABEL] = np.bincount(generator.integers(count, size=count), minlength=count)
        for model in range(2):
            assert found[model, draw] == pytest.approx(roc_auc_score(LABEL, scores[model], sample_weight=weight))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Normal scores a deviation apart: the true AUROC is known.  A 50 % interval must cover it about half of the time."""
    truth = 0.760249938906523  # Phi(1 / sqrt(2))
    covered = {50: 0, 95: 0}
    for seed in range(150):
        label = np.repeat([0, 1], 60)
        drawn = metrics.bootstrap_auroc([shifted(1, seed, label)], label, draws=150, seed=seed)[0]
        for share in covered:
            low, high = np.percentile(drawn, [50 - share / 2, 50 + share / 2])
            covered[share] += low <= truth <= high
    assert 0.9 <= covered[95] / 150 <= 0.99
    assert 0.38 <= covered[50] / 150 <= 0.62


def test_pairs_cancel_what_is_hard_for_both():
    hard = shifted(1)
    scores = [hard, hard + 0.05 * LABEL + 0.01 * shifted(0, seed=1)]
    drawn = metrics.bootstrap_auroc(scores, LABEL)
    assert (drawn[1] - drawn[0]).std() < 0.2 * drawn[0].std()


@pytest.mark.parametrize(("score", "value"), [(LABEL.astype(float), 1.0), (np.zeros(500), 0.5)])
def test_the_bootstrap_of_perfect_and_of_constant_scores(score, value):
    assert (metrics.bootstrap_auroc([score], LABEL, draws=10) == value).all()


def test_the_bootstrap_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="not finite"):
        metrics.bootstrap_auroc([np.full(500, np.nan)], LABEL)
    with pytest.raises(ValueError, match="both normal"):
        metrics.bootstrap_auroc([np.zeros(4)], np.zeros(4))
    with pytest.raises(ValueError, match="at least one"):
        metrics.bootstrap_auroc([shifted(1)], LABEL, draws=0)


def verdict(first, second):
    (found,) = comparison.differences([first, second], draws=200)
    return found.verdict


def test_verdicts_say_what_may_be_said():
    good, bad, same = shifted(2.5), shifted(0.5, seed=1), shifted(2.4, seed=2)
    a, b = version("a", good, [0.96, 0.95]), version("b", bad, [0.64, 0.66])
    assert verdict(a, b) == "beyond the noise of test images and seeds"
    assert verdict(a, version("c", same, [0.955, 0.95])) == "within the noise of the test images"
    assert verdict(a, version("d", bad, [0.64, 0.97])) == "beyond the noise of the test images, but seeds overlap"
    assert "one seed" in verdict(a, version("e", bad))
    assert verdict(a, version("f", good, [0.96, 0.95])) == "no difference on these test images"


def test_nothing_is_ranked_across_data_or_protocols():
    with pytest.raises(ValueError, match="different data or protocols are not ranked"):
        comparison.differences([version("a", shifted(1)), version("b", shifted(1), protocol="labelled")])


def test_other_test_images_are_not_compared():
    few = np.repeat([0, 1], [20, 30])
    members = [version("a", shifted(1)), version("b", shifted(1, label=few), label=few), version("c")]
    assert comparison.differences(members) == []
    assert set(comparison.intervals(members, draws=50)) == {"a", "b"}


def test_advice_names_the_best_its_rivals_and_the_cheapest():
    best = version("a", shifted(2.5), [0.96, 0.95], train_seconds=100, parameters=5)
    rival = version("b", shifted(2.4, seed=2), [0.955, 0.95], train_seconds=10, parameters=50)
    worse = version("c", shifted(0.5, seed=1), [0.64, 0.66], train_seconds=1, parameters=1)
    assert "its lead is beyond noise" in comparison.advice([best, worse], 200)
    said = comparison.advice([best, rival, worse], 200)
    assert said.startswith("a, AUROC 0.9550")
    assert "not to be told from it: b; cheapest of these: b, 10 s of training (pretraining not counted)" in said
    rival.results["device"] = "GPU"  # seconds of different devices do not compare
    assert "cheapest of these: a, 5 parameters" in comparison.advice([best, rival, worse], 200)
    assert "not compared image by image: d" in comparison.advice([best, version("d")], 200)


def test_versions_are_called_by_their_notebook_and_model():
    member = version("version_2", shifted(2.5), [0.96], notebook="03_hazelnut_autoencoder")
    assert comparison.called(member) == "notebook 3, hazelnut autoencoder (version_2)"
    member.hparams["model"] = "HazelnutAutoencoder"
    assert comparison.advice([member]).startswith("notebook 3, HazelnutAutoencoder (version_2), AUROC 0.96")
    assert comparison.called(version("version_9")) == "version_9"  # nothing is known of it
    assert comparison.model_name(version("version_9")) == "–"


def test_unbeaten_are_those_whose_price_buys_something():
    members = [
        version(name, seeds=[quality], train_seconds=cost)
        for name, quality, cost in (("a", 0.9, 100), ("b", 0.8, 10), ("c", 0.7, 50))
    ]
    assert [m.name for m in comparison.unbeaten([*members, version("d", seeds=[0.99])], "train_seconds")] == ["b", "a"]


def words(figure):
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_the_figures_name_what_they_show():
    losses = {"l1": ([10, 20], [1.0, 0.5]), "abc": ([10, 20], [-2.0, 0.0])}
    a = version("version_0", shifted(2), [0.9, 0.92], losses=losses, train_seconds=3, parameters=2e6)
    b = version("version_1", shifted(1), [0.7], losses={"l1": ([5], [0.2])}, train_seconds=4)
    group = {("hazelnut", "one-class"): [a, b]}
    figures = [
        comparison.loss_curves([a, b], "hazelnut"),
        comparison.normalised_losses([a, b], "hazelnut"),
        comparison.interval_chart(group, 50),
        comparison.quality_against_cost(group),
    ]
    for figure in figures:
        assert "hazelnut" in words(figure)
        assert "version_0" in words(figure)
        figure.canvas.draw()
    panel = figures[1].axes[0]
    assert panel.get_lines()[1].get_ydata().tolist() == [-1.0, 0.0]
    assert len(figures[3].axes[1].get_legend().get_texts()) == 1  # nobody knows the parameters of the other
    with pytest.raises(ValueError, match="no loss occurs in more than one"):
        comparison.loss_curves([a], "hazelnut")


def test_many_curves_look_different():
    assert len({tuple(comparison._look(place).items()) for place in range(28)}) == 28
