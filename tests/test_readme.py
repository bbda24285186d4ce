"""What the README claims is what the committed versions hold."""

import json
import re
import shutil

import pytest

from helpers.results import spread
from tests.conftest import ROOT
from tools import readme

TEXT = (ROOT / "README.md").read_text()
LOGS = ROOT / "lightning_logs"


def test_tables_and_pictures_are_those_of_the_committed_versions():
    assert readme.text(TEXT) == TEXT, "run `make readme`"


def test_every_reference_result_stands_in_its_row():
    """The same from the other side: by reading the row, not by writing it again."""
    for path in sorted(LOGS.rglob("results.json")):
        result = json.loads(path.read_text())
        name = path.parent.relative_to(LOGS).as_posix()
        if not re.match(r"version_[0-4](/|$)", name):
            continue  # a run of whoever tests
        (row,) = [line for line in TEXT.splitlines() if f"`{name}`" in line and line.startswith("|")]
        for metric in {"auroc", "pixel_auroc", "pixel_average_precision"} & set(result["seeds"]):
            value = spread(result["seeds"][metric]).split(" (")[0]
            assert value in row, f"{name}: README and results.json disagree about {metric}: {value}"
        assert f"{result['metrics']['false_alarm_rate']:.1%} / {result['metrics']['detection_rate']:.1%}" in row
        assert not result["dataset"].startswith("SAMPLE")


@pytest.fixture
def logs(tmp_path):
    """A copy of one version."""
    shutil.copytree(LOGS / "version_0", tmp_path / "version_0", ignore=shutil.ignore_patterns("*.ckpt", "*seed*"))
    return tmp_path


def test_another_result_makes_another_readme(logs):
    path = logs / "version_0" / "one_class" / "results.json"
    before = readme.text(TEXT, logs)
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"seeds": {"auroc": [0.5, 0.6, 0.7]}}))
    after = readme.text(TEXT, logs)
    assert "| 0.6000 ± 0.1000 |" in after
    assert "| 0.6000 ± 0.1000 |" not in before
    assert readme.text(after, logs) == after
    assert "version_1" not in after.split("<!-- gallery")[1].split("<!-- end of gallery")[0]


def test_what_is_missing_is_said(logs):
    (logs / "version_0" / "scores.npz").unlink()
    with pytest.raises(ValueError, match="version_0: no scores.npz"):
        readme.text(TEXT, logs)
    with pytest.raises(ValueError, match="markers of 'results' once, but has them 0 times"):
        readme.text(TEXT.replace("<!-- results", "<!-- other"))
    with pytest.raises(ValueError, match="prints nothing like"):
        readme._printed("01_baseline_gan", "no such line")


def test_pictures_and_notebooks_it_links_exist():
    links = re.findall(r"\]\(((?:lightning_logs|notebooks)/[^)]+)\)", TEXT)
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links)


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z]+)", TEXT)) <= targets
