"""Fixtures that several test files share."""

import functools
from pathlib import Path

import pytest
import torch

from helpers import runtime
from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.versions import definitions

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def notebook_definitions(name: str) -> dict:
    """The classes and functions of a committed notebook."""
    return definitions(ROOT / "notebooks" / name)


SETTINGS = {
    "epochs": 2,
    "hidden": 16,
    "latent": 4,
    "hidden_discriminator": 8,
    "lr": 1e-3,
    "beta1": 0.5,
    "margin": 0.25,
    "weight_adversarial_normal": 0.1,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on embedded samples whose logs go to a temporary folder."""
    monkeypatch.setenv("AD_DATA", "sample")
    monkeypatch.delenv("AD_VERSION", raising=False)
    return make_run(tmp_path)


def make_run(folder: Path, notebook: str = "01_baseline_gan") -> runtime.Run:
    """Another run with the same folders."""
    return runtime.Run(notebook, "smoke", torch.device("cpu"), folder / "data", folder / "logs")


@pytest.fixture
def data(run):
    """64 images of each label in each split, batches of 16."""
    return FashionMNISTOneClass(run, normal_class=0, batch_size=16, limit=64)


@pytest.fixture
def baseline():
    """Makes notebook 01's model in a small size: ``baseline(lr=...)``."""
    model = notebook_definitions("01_baseline_gan.ipynb")["BaselineGAN"]

    def make(**changes):
        torch.manual_seed(0)
        return model(SETTINGS | changes)

    return make
