"""The form of the committed notebooks, and the tools that generate parts of them."""

import csv
import json
import os
import re
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image

from helpers import runtime
from helpers.results import read_table
from helpers.versions import definitions
from tests.conftest import ROOT
from tools import notebooks
from tools import run as tools_run

PATHS = notebooks.notebooks()
BOOKS = {path.name: json.loads(path.read_text()) for path in PATHS}


def code(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@pytest.fixture(params=BOOKS)
def book(request):
    return BOOKS[request.param] | {"name": request.param}


def test_there_are_notebooks():
    assert "01_baseline_gan.ipynb" in BOOKS


def test_title_and_badge_come_first(book):
    first = source(book["cells"][0])
    assert first.startswith("# ")
    assert notebooks.badge(book["name"]) in first


def test_the_set_up_cell_is_the_generated_one(book):
    assert source(code(book)[0]) == notebooks.set_up_cell()


def test_cells_are_short(book):
    lengths = [len(source(cell).splitlines()) for cell in code(book)]
    assert 25 <= len(lengths) <= 40
    assert statistics.median(lengths) < 15
    assert max(lengths) <= 45


def test_outputs_are_those_of_one_clean_run(book):
    counts = [cell["execution_count"] for cell in code(book)]
    assert counts == list(range(1, len(counts) + 1)), "run `make reference` for this notebook"
    kinds = [output["output_type"] for cell in code(book) for output in cell["outputs"]]
    assert "error" not in kinds
    streams = [output for cell in code(book) for output in cell["outputs"] if output.get("name") == "stderr"]
    assert not streams, "a warning is to be mended, not committed"


def test_outputs_name_no_machine_and_stay_small(book):
    text = json.dumps(book)
    assert len(text) < 3_000_000
    assert not re.search(r"/(?:work|root|home|tmp|content|Users)/\w", text.replace("/content/drive", ""))


def test_warnings_are_not_hidden(book):
    assert not any("filterwarnings" in source(cell) or "simplefilter" in source(cell) for cell in code(book))


def test_there_are_three_exercises(book):
    last = source(book["cells"][-1])
    assert "## Try this" in last
    assert len(re.findall(r"^\d\. ", last, re.M)) == 3


# notebook: sub-folders of its reference version whose mean over seeds is printed, too
PROTOCOLS = {
    "01_baseline_gan.ipynb": ("", "one_class", "no_discriminators"),
    "02_dcgan.ipynb": ("", "one_class"),
    "03_hazelnut_autoencoder.ipynb": ("", "transistor"),
    "04_deep_svdd.ipynb": ("", "hazelnut_plain", "hazelnut_adfi", "transistor"),
    "05_ganomaly.ipynb": ("", "hazelnut"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_results_of_the_reference_run_are_the_ones_printed(name):
    """Number by number: what the notebook shows is what its version holds."""
    version = ROOT / "lightning_logs" / f"version_{int(name[:2]) - 1}"
    printed = "".join(str(output.get("text", "")) for cell in code(BOOKS[name]) for output in cell["outputs"])
    for protocol in PROTOCOLS[name]:
        results = json.loads((version / protocol / "results.json").read_text())
        assert "SAMPLE" not in results["dataset"]
        assert results["profile"] == "full"
        assert len(results["seeds"]["auroc"]) >= 3
        for values in results["seeds"].values():
            assert f"{statistics.mean(values):.4f} ±" in printed
    results = json.loads((version / "results.json").read_text())
    for metric, value in results["metrics"].items():
        assert re.search(rf"{metric} +{value:.4f}", printed), metric


def test_the_tables_of_the_dcgan_are_the_committed_ones():
    version = ROOT / "lightning_logs" / "version_1"
    printed = "".join(str(o.get("text", "")) for cell in code(BOOKS["02_dcgan.ipynb"]) for o in cell["outputs"])
    for name, length in (("ten_classes", 10), ("gamma", 6), ("ablation", 8)):
        with (version / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == length
        assert set(rows[0]) >= {"setting", "seed", "auroc", "epochs", "train_seconds"}
        if name == "ten_classes":
            assert f"{statistics.mean(float(row['auroc']) for row in rows):.4f}" in printed
        else:
            assert all(f"{float(row['auroc']):.4f}" in printed for row in rows)


def test_the_tables_of_deep_svdd_are_the_committed_ones():
    version = ROOT / "lightning_logs" / "version_3"
    printed = "".join(str(o.get("text", "")) for cell in code(BOOKS["04_deep_svdd.ipynb"]) for o in cell["outputs"])
    digits = read_table(version / "mnist.csv")
    assert [row["digit"] for row in digits] == [str(digit) for digit in range(10)]
    assert all(f"{float(row['auroc']):.4f}" in printed for row in digits)
    assert f"{statistics.mean(float(row['auroc']) for row in digits):.4f}" in printed
    assert len(read_table(version / "tried.csv")) == 8


def test_the_tables_of_ganomaly_are_the_committed_ones():
    version = ROOT / "lightning_logs" / "version_4"
    outputs = [output for cell in code(BOOKS["05_ganomaly.ipynb"]) for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    tables = {name: read_table(version / f"{name}.csv") for name in ("tried", "ten_classes", "mnist")}
    assert {name: len(rows) for name, rows in tables.items()} == {"tried": 7, "ten_classes": 10, "mnist": 11}
    *digits, skewed = tables["mnist"]
    for rows, name in ((tables["tried"], "change"), (tables["ten_classes"], "normal"), (digits, "anomalous")):
        for row in rows:
            numbers = " +".join(f"{float(row[score]):.4f}" for score in ("plain", "whitened"))
            assert re.search(rf"^ *{re.escape(row[name])} +{numbers}", printed, re.M), row[name]
    for row, name in ((digits[0], "complete"), (skewed, "4 is rare")):
        shares = ", ".join(f"{digit} {float(row[f'digit_{digit}']):.1%}" for digit in range(1, 10))
        assert re.search(rf"{name} +{re.escape(shares)}, all {float(row['normal']):.1%}", printed)


def test_the_latent_table_is_the_committed_one():
    version = ROOT / "lightning_logs" / "version_2"
    book = BOOKS["03_hazelnut_autoencoder.ipynb"]
    printed = "".join(str(o.get("text", "")) for cell in code(book) for o in cell["outputs"])
    with (version / "latent.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == [f"latent {n}" for n in (16, 64, 256, 500, 1000)] + ["latent 500, SSIM"]
    for row in rows:
        numbers = [f"{float(row[name]):.3f}" for name in ("pixel_auroc", "pixel_average_precision", "auroc")]
        assert re.search(rf"{row['setting']} .*" + " +".join(numbers), printed), row["setting"]


def test_the_address_stands_everywhere_and_one_command_changes_it(tmp_path, monkeypatch):
    for name in ("notebooks", "README.md", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    old = notebooks.address()
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    before = {path.name: path.read_text() for path in (*notebooks.notebooks(), tmp_path / "README.md")}
    assert all(old in text or old.removeprefix("https://github.com/") in text for text in before.values())
    notebooks.refresh()
    assert before == {path.name: path.read_text() for path in (*notebooks.notebooks(), tmp_path / "README.md")}, (
        "make address"
    )
    notebooks.change("someone/else.where")
    for path in (*notebooks.notebooks(), tmp_path / "README.md", tmp_path / "pyproject.toml"):
        text = path.read_text()
        assert "someone/else.where" in text
        assert old not in text
        assert f"{old.removeprefix('https://github.com/')}/blob" not in text
    with pytest.raises(SystemExit, match="owner/name"):
        notebooks.change("https://github.com/a/b")


def test_definitions_run_without_running_the_notebook():
    for path, model in zip(PATHS, ("BaselineGAN", "DCGAN"), strict=False):
        scope = definitions(path)
        assert model in scope
        assert "trained" not in scope


def test_notebooks_that_train_are_told_from_those_that_only_read():
    assert [path.name for path in PATHS if not notebooks.trains(path)] == ["06_compare.ipynb"]


@pytest.mark.parametrize("failed", [0, 1])
def test_a_reading_notebook_is_run_again_without_anybodys_own_versions(tmp_path, monkeypatch, failed):
    book = tmp_path / "06_compare.ipynb"
    shutil.copy(ROOT / "notebooks" / book.name, book)
    before = book.read_text()
    seen = {}

    def execute(source, target):
        seen.update(os.environ)
        target.write_text("executed")
        return failed

    monkeypatch.setattr(tools_run, "execute", execute)
    monkeypatch.setenv("AD_LOGS_DIR", "mine")
    assert tools_run.reference(book) == failed
    assert (seen["AD_PROFILE"], seen["AD_DATA"]) == ("full", "real")
    assert seen["AD_LOGS_DIR"].endswith("/lightning_logs")
    assert os.environ["AD_LOGS_DIR"] == "mine"
    assert book.read_text() == (before if failed else "executed")


def test_captions_keep_their_colour_where_photographs_take_the_palette():
    pixels = np.random.default_rng(0).integers(256, size=(100, 100, 1)).repeat(3, axis=2).astype(np.uint8)
    pixels[:, 50:] = np.arange(5000).reshape(100, 50, 1) // np.array([20, 40, 80])
    pixels[0, :3] = [0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00], [255, 255, 255]
    few = tools_run._few_colours(Image.fromarray(pixels))
    assert len(few.getcolors()) <= 256
    found = np.asarray(few.convert("RGB"), dtype=int)
    assert (found[0, :2] == pixels[0, :2]).all()
    assert np.abs(found - pixels).mean() < 3


def test_every_notebook_that_trains_has_its_reference_version():
    for path in filter(notebooks.trains, PATHS):
        version = runtime.ROOT / "lightning_logs" / f"version_{int(path.name[:2]) - 1}"
        assert (version / "model.ckpt").exists(), f"make reference NB={path.name[:2]}"
        assert list(version.glob("events.*"))
        assert (version / "hparams.yaml").exists()
