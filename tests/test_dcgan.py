"""Notebook 2: kinds that may be labelled, equal updates, the cleaned bank, and its tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.data.batches import to_float
from helpers.data.fashion_mnist import CLASSES, FashionMNISTOneClass
from tests.book import COMMON, DECODED, make_data, make_model, page
from tests.toy import ROOT, make_run
from tools.notebooks import definitions

NAME = "02_dcgan"


def lab(folder) -> dict:
    """The notebook's functions with small settings and two updates a short training."""
    settings = COMMON | DECODED | {"normal_class": 0, "batch_size": 8, "images_per_epoch": 8, "max_images": 20}
    losses = "l1 patch latent adversarial_normal adversarial_anomalous abc_normal abc_anomalous"
    settings |= {"watch_every": 100, "epochs": 1} | {f"weight_{loss}": 1.0 for loss in losses.split()}
    scope = definitions(ROOT / "notebooks" / f"{NAME}.ipynb", settings=settings, run=make_run(folder, NAME))
    scope["UPDATES"] = 2
    return scope


def test_only_the_kinds_that_may_be_labelled_are_in_training_and_validation(tmp_path):
    data = FashionMNISTOneClass(make_run(tmp_path, NAME), anomaly_fraction=0.2, labelled=("Bag",))
    for split in (data.train, data.validation):
        assert set(split.defect_type[split.label == 1].tolist()) == {CLASSES.index("Bag")}
    assert data.train.label.sum() == round(0.25 * len(data.train.normal())), "as many as without the restriction"
    assert set(data.test.defect_type.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="anomaly_fraction asks for"):
        FashionMNISTOneClass(make_run(tmp_path, NAME), anomaly_fraction=0.6, labelled=("Bag",))


def test_every_short_training_has_as_many_updates_and_the_tables_hold_what_is_planned(tmp_path):
    scope = lab(tmp_path)
    for gamma in (0.0, 0.01, 0.2, 0.5):
        chosen = scope["settings"] | scope["short"](gamma) | {"max_images": None}
        assert len(scope["make_data"](chosen).train_dataloader()) == 2
    for table, rows in scope["plan"]().items():
        kept = pd.read_csv(ROOT / "lightning_logs" / "version_1" / f"{table}.csv")
        assert list(zip(kept["setting"], kept["seed"], strict=True)) == [row[:2] for row in rows]
        assert kept["auroc"].between(0.5, 1).all()


def test_a_row_of_a_table_counts_its_labels(tmp_path, no_figures):
    scope = lab(tmp_path)
    row = scope["measure"]("some", 0, scope["short"](0.5, labelled=("Bag",)) | {"max_images": None})
    assert row["labels"] == 720 and {"auroc", "neighbours", "Bag", "Shirt"} < set(row)
    assert 0 < scope["measure_classifier"]("other", 0, scope["short"](labelled=("Bag",)))["auroc"] <= 1


def test_the_bank_keeps_what_the_network_holds_for_normal():
    model, images = make_model("DCGAN", make_data(NAME)).eval(), make_data(NAME).train.normal()
    with torch.no_grad():
        x = to_float(images.images)
        means = ((x - model.reconstruct(x)) / 2).unfold(2, 7, 7).unfold(3, 7, 7).mean((4, 5)).square().mean((1, 2, 3))
    model.hparams.scale = float(np.log(2) / means.quantile(0.6))
    expected = torch.exp(-model.hparams.scale * means) >= 0.5
    kept = page(NAME)["looks_normal"](model, images)
    assert kept.tolist() == expected.tolist() and 0 < kept.sum() < len(kept)
