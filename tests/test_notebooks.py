"""The form of the notebooks, and what is generated in them."""

import ast
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.toy import ROOT
from tools import notebooks, run

READS_ONLY = "09_from_score_to_decision.ipynb"


def source(cell):
    return "".join(cell["source"])


def code(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(params=notebooks.notebooks(), ids=lambda path: path.stem)
def book(request):
    return json.loads(request.param.read_text(encoding="utf-8")) | {"name": request.param.name}


def test_title_badge_and_the_generated_set_up_cell_come_first(book):
    first = source(book["cells"][0])
    assert first.startswith("# ") and notebooks.badge(book["name"]) in first
    assert source(code(book)[0]) == notebooks.set_up_cell()


def test_words_and_cells_are_few_and_no_warning_is_hidden(book):
    words = [word for cell in book["cells"] if cell["cell_type"] == "markdown" for word in source(cell).split()]
    assert len(words) <= 2500
    cells = [source(cell) for cell in code(book)]
    assert len(cells) <= 45 and max(len(cell.splitlines()) for cell in cells) <= 40
    assert not any("filterwarnings" in cell or "simplefilter" in cell for cell in cells)


def test_outputs_are_those_of_one_clean_run_name_no_machine_and_stay_small(book):
    """From top to bottom, or none at all; without errors and warnings."""
    counts = [cell["execution_count"] for cell in code(book)]
    assert counts in (list(range(1, len(counts) + 1)), [None] * len(counts))
    outputs = [output for cell in code(book) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"], "mend a warning"
    text = json.dumps(book)
    assert len(text) < 3_000_000
    assert not re.search(r"/(?:work|root|home|tmp|content|Users)/\w", text.replace("/content/drive", ""))


def test_every_result_is_reported_beside_a_control(book):
    """(That the training without a name is reported last is for ``report`` to see when the notebook runs.)"""
    calls = [node for cell in code(book) for node in ast.walk(ast.parse(source(cell))) if isinstance(node, ast.Call)]
    reports = [call for call in calls if getattr(call.func, "id", "") == "report"]
    assert bool(reports) == (book["name"] != READS_ONLY), "a version without results is never finished"
    assert all("control" in [keyword.arg for keyword in call.keywords] for call in reports)


def test_the_address_stands_everywhere_and_one_command_changes_it(tmp_path, monkeypatch):
    for name in ("notebooks", "README.md", "CITATION.cff", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    files = [*notebooks.notebooks(), tmp_path / "README.md", tmp_path / "CITATION.cff"]
    before = [path.read_text() for path in files]
    notebooks.refresh()
    assert before == [path.read_text() for path in files], "make address"
    old, project = notebooks.address(), tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace(old, "https://github.com/someone/else.where"))
    notebooks.refresh()
    for text in (path.read_text() for path in files):
        assert "someone/else.where" in text and old not in text
        assert f"{old.removeprefix('https://github.com/')}/blob" not in text


@pytest.mark.parametrize("failure", ["", "cell 3: KeyError"])
def test_a_reference_run_replaces_the_version_only_when_it_is_complete(tmp_path, monkeypatch, failure):
    logs, page = tmp_path / "lightning_logs", tmp_path / "04_deep_svdd.ipynb"
    (logs / "version_3").mkdir(parents=True)
    for name in ("results.json", "mnist.csv"):
        (logs / "version_3" / name).write_text("old")

    def execute(path, target, train=True):
        assert (logs / "version_3" / "mnist.csv").exists(), "the notebook reads the version before meanwhile"
        if train:
            new = Path(os.environ["AD_LOGS_DIR"]) / f"version_{os.environ['AD_VERSION']}"
            new.mkdir(parents=True)
            (new / "results.json").write_text("new")
        target.write_text("{}")
        return failure

    monkeypatch.setenv("AD_LOGS_DIR", str(logs))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "thin", (thinned := []).append)
    assert run.reference(page) == int(bool(failure)) and len(thinned) == int(not failure)
    assert (logs / "version_3" / "results.json").read_text() == ("old" if failure else "new")
    assert (logs / "version_3" / "mnist.csv").read_text() == "old"
    assert os.environ["AD_LOGS_DIR"] == str(logs) and "AD_VERSION" not in os.environ
    assert len(list(logs.glob("replaced_version_3_*"))) == int(not failure)
