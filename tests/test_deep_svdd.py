"""Notebook 4: guards, folds, p-values, controls, and the trainings that quick leaves out."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import deep_svdd_mnist
from helpers.data.batches import Augment
from helpers.data.folder import Folder
from helpers.data.mvtec import MVTec
from helpers.data.samples import sample
from helpers.models import predict
from tests.book import COMMON, SPHERE, make_data, make_model, page
from tests.toy import ROOT, make_run
from tools.notebooks import definitions

NAME = "04_deep_svdd"
PATH = ROOT / "notebooks" / f"{NAME}.ipynb"
pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_guarded_networks_have_no_bias_and_the_centre_is_not_zero():
    data = make_data(NAME)
    for name in ("one-class", "spheres"):
        model = make_model(name, data)
        assert not any("bias" in weights for weights, _ in model.named_parameters())
        assert not [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.affine]
        assert model.c.abs().min() > 0.0999 and model.c.shape == model(torch.zeros(1, 1, 32, 32)).shape[1:]
    learned = page(NAME)["DeepSVDD"](COMMON | SPHERE | {"norm": "learned", "bias": True})
    assert sum("bias" in weights for weights, _ in learned.named_parameters()) == 10


def test_folds_hold_out_every_image_once_and_train_on_the_others():
    run, held_out, rest = make_run(ROOT / "nowhere"), [], []
    for fold in range(3):
        data = MVTec(run, size=32, grey=True, held_out=0.32, fold=fold)
        held_out.append({image.numpy().tobytes() for image in data.validation.normal().images})
        rest.append({image.numpy().tobytes() for image in data.train.images})
    assert [len(part) for part in held_out] == [16] * 3 and len(set.union(*held_out)) == 48
    assert not any(part & others for part, others in zip(held_out, rest, strict=True))


def test_p_values_count_within_each_network_and_ties_are_no_alarm():
    rows = [(0, True, 1.0), (0, True, 3.0), (0, False, 2.0), (0, False, 3.0)]
    rows += [(1, True, 100.0), (1, True, 300.0), (1, False, 400.0), (1, False, 50.0)]
    table = pd.DataFrame(rows, columns=["seed", "held_out", "score"]).assign(good=[False, False, True, False] * 2)
    p, good, n = page(NAME)["p_values"](table)
    assert n == 4 and good.tolist() == [True, False]
    assert p.tolist() == [(1 + 0 + 1) / 5, (1 + 2 + 1) / 5]
    rate = page(NAME)["nominal_rate"]
    assert [rate(n, 0.05) for n in (10, 19, 48, 204)] == [1 / 11, 1 / 20, 2 / 49, 10 / 205]


@pytest.mark.parametrize(("components", "aligned"), [(0, True), (30, False)])
def test_a_control_finds_a_bright_spot(components, aligned):
    data = make_data(NAME)
    score = definitions(PATH, run=make_run(ROOT / "nowhere"))["no_network"](data, components, aligned)
    good = data.validation.normal()
    spoiled = good.subset(torch.arange(len(good)))
    spoiled.images[:, :, 12:16, 12:16] = 255 - spoiled.images[:, :, 12:16, 12:16]
    model = make_model("autoencoder", data)
    assert (predict(model, score, spoiled) > predict(model, score, good)).all()


def test_trainings_that_only_full_runs(tmp_path):
    """Without guards, and one digit of the appendix; the contrast of its images is normalised."""
    settings = COMMON | SPHERE | {"epochs": 1, "batch_size": 4, "max_images": 12, "held_out": 0.2, "seeds": 1}
    settings |= {"collapse_images": 8}
    given = {"run": make_run(tmp_path, NAME), "settings": settings, "KEYS": sample("keycaps") / "F8"}
    book = definitions(PATH, steady=Augment(noise=0.02), Folder=Folder, **given)
    found = book["collapse"](size=32)
    assert found["network"].tolist() == list(book["NETWORKS"]) and np.isfinite(found[["good", "bad"]].to_numpy()).all()
    parts = [book[name] for name in ("AutoEncoder", "DeepSVDD", "down", "up")]
    assert 0 <= deep_svdd_mnist.digit(3, given["run"], settings, *parts, epochs=1, batch_size=4)["auroc"] <= 1
    model = deep_svdd_mnist.small(*parts[1:])(settings)
    x = model.prepare(torch.rand(2, 1, 28, 28))
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.abs().mean((1, 2, 3)), torch.ones(2))
    assert model(x).shape == (2, *model.c.shape)
