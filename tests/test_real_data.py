"""Short, seeded trainings on the real images, with bounds that a broken model cannot meet."""

import json
import re
import time

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from helpers import metrics
from helpers.data.fashion_mnist import FILES, FashionMNISTOneClass
from helpers.data.mvtec import MVTec
from helpers.models import score_images
from helpers.runtime import data_dir, seed_everything
from helpers.training import evaluate, fit, load
from tests.conftest import ROOT, notebook_definitions

RAW = data_dir() / "FashionMNIST" / "raw"
needs_fashion_mnist = pytest.mark.skipif(
    not all((RAW / name).exists() or (RAW / f"{name}.gz").exists() for name in FILES),
    reason=f"Fashion-MNIST's files are not in {RAW} (set AD_DATA_DIR, or run a notebook once to download them)",
)
HOME = data_dir() / "mvtec_anomaly_detection"
pytestmark = pytest.mark.real_data


def needs_mvtec(category):
    return pytest.mark.skipif(
        not (HOME / category / "train" / "good").is_dir(),
        reason=f"MVTec AD's {category} is not in {HOME} (set AD_DATA_DIR, or run notebook 3 once to download it)",
    )


@pytest.fixture
def real(run, monkeypatch):
    monkeypatch.setenv("AD_DATA", "real")
    run.data_dir = data_dir()
    return run


@needs_fashion_mnist
def test_baseline_gan_in_two_epochs(real, baseline):
    """Untrained it ranks at about 0.5 to 0.8; without the anomalous branch it stays under 0.92."""
    seed_everything(0)
    data = FashionMNISTOneClass(real, anomaly_fraction=0.5)
    model = baseline(hidden=256, latent=32, hidden_discriminator=128, epochs=2)
    scores = evaluate(fit(model, data, real).model, data)
    assert metrics.auroc(scores.score, scores.label) > 0.94


@needs_fashion_mnist
def test_the_committed_weights_give_the_committed_result(real, baseline):
    folder = ROOT / "lightning_logs" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    data = FashionMNISTOneClass(real, anomaly_fraction=0.5, seed=results["seed"])
    loaded = load(baseline(hidden=256, latent=32, hidden_discriminator=128), real, folder)
    scores = evaluate(loaded.model, data)
    assert metrics.auroc(scores.score, scores.label) == pytest.approx(results["metrics"]["auroc"], abs=1e-4)
    assert metrics.threshold(scores.validation) == pytest.approx(results["threshold"], rel=1e-3)
    assert results["metrics"]["auroc"] > 0.93


@needs_fashion_mnist
def test_one_switch_shows_the_reference_without_training(real, monkeypatch, tmp_path):
    """TRAIN = False: every figure of the reference in about a minute, and nothing written."""
    monkeypatch.setenv("AD_LOGS_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("AD_PROFILE", "quick")
    path = ROOT / "notebooks" / "01_baseline_gan.ipynb"
    book = nbformat.read(path, as_version=4)
    (switch,) = [cell for cell in book.cells if "TRAIN = True" in cell.source]
    switch.source = switch.source.replace("TRAIN = True", "TRAIN = False")
    start = time.monotonic()
    NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    print(f"{time.monotonic() - start:.0f} s")
    results = json.loads((ROOT / "lightning_logs" / "version_0" / "results.json").read_text())
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert re.search(rf"auroc +{results['metrics']['auroc']:.4f}", printed)
    assert "(3 seeds)" in printed
    assert "loaded from lightning_logs/version_0" in printed
    assert not (tmp_path / "logs").exists()


@needs_fashion_mnist
def test_the_committed_dcgan_gives_the_committed_result(real):
    folder = ROOT / "lightning_logs" / "version_1"
    results = json.loads((folder / "results.json").read_text())
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    data = FashionMNISTOneClass(real, anomaly_fraction=0.5, seed=results["seed"])
    loaded = load(notebook_definitions("02_dcgan.ipynb")["DCGAN"](settings), real, folder)
    scores = evaluate(loaded.model, data)
    assert metrics.auroc(scores.score, scores.label) == pytest.approx(results["metrics"]["auroc"], abs=1e-4)
    assert metrics.threshold(scores.validation) == pytest.approx(results["threshold"], rel=1e-3)
    assert results["metrics"]["auroc"] > 0.98


@needs_fashion_mnist
def test_the_committed_one_class_dcgan_gives_the_committed_result(real):
    """Its score needs the normal training images: they are looked at again, nothing is trained."""
    folder, page = ROOT / "lightning_logs" / "version_1" / "one_class", notebook_definitions("02_dcgan.ipynb")
    results = json.loads((folder / "results.json").read_text())
    data = FashionMNISTOneClass(real, anomaly_fraction=0.0, seed=results["seed"])
    model = page["DCGAN"](yaml.safe_load((folder / "hparams.yaml").read_text()))
    load(model, real, folder)
    model.normal = page["what_is_normal"](model, data.train.normal().images)
    scores = evaluate(model, data)
    assert metrics.auroc(scores.score, scores.label) == pytest.approx(results["metrics"]["auroc"], abs=1e-4)


@needs_fashion_mnist
def test_ganomaly_in_two_epochs(real):
    """Untrained, or without the encoder loss, the paper's score stays under 0.7."""
    seed_everything(0)
    settings = yaml.safe_load((ROOT / "lightning_logs" / "version_4" / "hparams.yaml").read_text())
    model = notebook_definitions("05_ganomaly.ipynb")["GANomaly"](settings | {"epochs": 2, "score": "plain"})
    data = FashionMNISTOneClass(real, anomaly_fraction=0.0, batch_size=64, size=32)
    fit(model, data, real, show=False)
    score = score_images(model, data.validation, data.device)
    assert metrics.auroc(score, data.validation.label.numpy()) > 0.85


@needs_fashion_mnist
def test_the_committed_ganomaly_gives_the_committed_result(real):
    folder = ROOT / "lightning_logs" / "version_4"
    results = json.loads((folder / "results.json").read_text())
    data = FashionMNISTOneClass(real, anomaly_fraction=0.0, seed=results["seed"], size=32)
    model = notebook_definitions("05_ganomaly.ipynb")["GANomaly"](yaml.safe_load((folder / "hparams.yaml").read_text()))
    scores = evaluate(load(model, real, folder).model, data)
    assert metrics.auroc(scores.score, scores.label) == pytest.approx(results["metrics"]["auroc"], abs=1e-4)
    assert metrics.threshold(scores.validation) == pytest.approx(results["threshold"], rel=1e-3)
    assert results["metrics"]["auroc"] > 0.92  # 5 nearest neighbours on raw pixels: 0.919


def kinds_and_masks(data):
    """{kind: test images}, and the number of masks of defects."""
    kinds = {name: int((data.test.kind == index).sum()) for index, name in enumerate(data.kinds)}
    defective = data.test.label == 1
    assert data.test.mask[defective & data.test.has_mask].any((1, 2)).all(), "every mask marks something"
    assert not data.test.mask[~defective].any()
    return {name: count for name, count in kinds.items() if count}, int((defective & data.test.has_mask).sum())


@needs_mvtec("hazelnut")
def test_the_hazelnuts_are_the_part_or_the_whole_that_the_notebook_names(real):
    data = MVTec(real, "hazelnut", size=64)
    kinds, masks = kinds_and_masks(data)
    good = len(data.train) + len(data.validation.normal())
    part = {"good": 8, "crack": 7, "cut": 3, "hole": 6, "print": 5}
    whole = {"good": 40, "crack": 18, "cut": 17, "hole": 18, "print": 17}
    assert (good, kinds, masks) in ((50, part, 11), (391, whole, 70))
    assert data.title.startswith(f"hazelnut, {good} good images")
    assert not data.is_sample


@needs_mvtec("transistor")
def test_the_transistors_are_complete(real):
    data = MVTec(real, "transistor", size=64)
    kinds, masks = kinds_and_masks(data)
    assert len(data.train) + len(data.validation.normal()) == 213
    assert kinds == {"good": 60, "bent_lead": 10, "cut_lead": 10, "damaged_case": 10, "misplaced": 10}
    assert masks == 40 and data.test.has_mask.all()


@needs_mvtec("hazelnut")
def test_painted_defects_lie_on_real_nuts(real):
    data = MVTec(real, "hazelnut", size=128, held_out=0.2)
    split = data.validation
    count = len(split.normal())
    for place in range(count, len(split)):
        original = split.images[(place - count) % count].float()
        mask = split.mask[place]
        assert mask.any()
        assert (split.images[place] != split.images[(place - count) % count]).any(0)[mask].float().mean() > 0.9
        assert original.mean(0)[mask].mean() > original[:, :8].mean(), "brighter than the background: on the nut"
