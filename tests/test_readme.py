"""What the README claims is what the committed versions hold."""

import json
import re
import statistics

from helpers.results import spread
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_every_reference_auroc_stands_in_its_row():
    for path in sorted((ROOT / "lightning_logs").rglob("results.json")):
        result = json.loads(path.read_text())
        name = path.parent.relative_to(ROOT / "lightning_logs").as_posix()
        (row,) = [line for line in TEXT.splitlines() if f"`{name}`" in line and line.startswith("|")]
        for metric in {"auroc", "pixel_auroc", "pixel_average_precision"} & set(result["seeds"]):
            value = spread(result["seeds"][metric]).split(" (")[0]
            assert value in row, f"{name}: README and results.json disagree about {metric}: {value}"
        assert result["dataset"].startswith("SAMPLE") is False
        assert statistics.mean(result["seeds"]["auroc"]) > 0.5


def test_threshold_rates_are_those_of_version_0():
    metrics = json.loads((ROOT / "lightning_logs" / "version_0" / "results.json").read_text())["metrics"]
    assert f"flags {metrics['false_alarm_rate']:.1%} of the normal" in TEXT
    assert f"and {metrics['detection_rate']:.1%} of the anomalous" in TEXT


def test_pictures_and_notebooks_it_links_exist():
    links = re.findall(r"\]\(((?:lightning_logs|notebooks)/[^)]+)\)", TEXT)
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links)


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z]+)", TEXT)) <= targets
