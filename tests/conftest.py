"""Fixtures that several test files share."""

import matplotlib
import pytest
import torch

from helpers import plots
from helpers.evaluation import evaluate
from helpers.training import fit
from tests.toy import Toy, ToyModel, WithMap, make_run

matplotlib.use("Agg")
torch.set_num_threads(1)  # two workers share two cores


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:.*LeafSpec.*is deprecated")  # as in helpers.training


@pytest.fixture(autouse=True)
def the_same_for_all(monkeypatch):
    """Random numbers; and no variable of whoever tests chooses a profile or a folder."""
    torch.manual_seed(0)
    for name in ("AD_PROFILE", "AD_LOGS_DIR", "AD_VERSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time of a small training."""
    monkeypatch.setattr(plots, "reconstructions", lambda *args: plots.canvas(1.0)[0])
    monkeypatch.setattr("helpers.results._log", lambda *args: None)


@pytest.fixture
def run(tmp_path):
    """A run whose logs go to a temporary folder."""
    return make_run(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished training without a report; it is only read."""
    return fit(ToyModel(), Toy(), make_run(tmp_path_factory.mktemp("trained")), show=False)


@pytest.fixture(scope="session")
def mapped(tmp_path_factory):
    """(Trained, data, Scores) of a model with maps on data with masks; they are only read."""
    data = Toy(masks=True)
    found = fit(WithMap(seed=7), data, make_run(tmp_path_factory.mktemp("mapped")), show=False)
    return found, data, evaluate(found.model, data, percentile=75)
