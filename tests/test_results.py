import json

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.results import (
    log_latents,
    measure,
    print_rows,
    read_results,
    read_table,
    report,
    spread,
    write_json,
    write_table,
)
from helpers.training import evaluate, fit, load
from tests.conftest import make_run

KEYS = [
    "notebook",
    "dataset",
    "protocol",
    "profile",
    "seed",
    "device",
    "epochs",
    "train_seconds",
    "images_per_second",
    "parameters",
    "threshold",
    "metrics",
    "seeds",
    "versions",
]


@pytest.fixture
def reported(run, data, baseline):
    trained = fit(baseline(seed=7), data, run)
    scores = evaluate(trained.model, data)
    return trained, scores, report(scores, trained, seeds={"auroc": [0.5, 0.75]})


def test_results_json_holds_what_a_program_needs(reported):
    trained, scores, returned = reported
    stored = read_results(trained.folder)
    assert stored == json.loads(json.dumps(returned, default=float))
    assert not set(KEYS) - set(stored)
    assert (stored["seed"], stored["epochs"], stored["seeds"]) == (7, 2, {"auroc": [0.5, 0.75]})
    assert stored["dataset"].startswith("SAMPLE DATA"), "nobody may take this for a result on real data"
    assert stored["metrics"]["auroc"] == measure(scores)[0]["auroc"]
    assert stored["parameters"] == sum(p.numel() for p in trained.model.parameters())


def test_the_scores_are_kept_image_by_image(reported):
    trained, scores, _ = reported
    with np.load(trained.folder / "scores.npz", allow_pickle=False) as kept:
        for name in ("score", "label", "kind", "validation"):
            assert np.array_equal(kept[name], getattr(scores, name)), name
        assert tuple(kept["kinds"]) == scores.kinds


def test_tensorboard_gets_metrics_figures_and_hyperparameters(reported):
    trained, _, _ = reported
    found = EventAccumulator(str(trained.folder))
    found.Reload()
    assert "test/auroc" in found.Tags()["scalars"]
    assert {"results/scores", "results/curves", "results/per_kind"} <= set(found.Tags()["images"])
    assert {"scores.png", "reconstructions.png"} <= {path.name for path in trained.folder.iterdir()}
    assert "_hparams_/session_start_info" in found.summary_metadata, "else the HParams tab is empty"
    assert yaml.safe_load((trained.folder / "hparams.yaml").read_text())["hidden"] == 16
    assert len(list(trained.folder.glob("events.*"))) == 1, "one event file: results follow in the one of the training"


def test_a_loaded_model_changes_nothing(reported, data, baseline):
    trained, scores, _ = reported
    before = {path: path.read_bytes() for path in trained.folder.iterdir()}
    loaded = load(baseline(seed=7), make_run(trained.run.logs_dir.parent), trained.folder)
    report(scores, loaded, percentile=50)
    assert before == {path: path.read_bytes() for path in trained.folder.iterdir()}


def test_missing_results_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run its notebook to the end"):
        read_results(tmp_path)


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_spread():
    assert spread([0.5]) == "0.5000 (1 seed)"
    assert spread([0.5, 0.7]) == "0.6000 ± 0.1414 (2 seeds)"


def test_rows_show_the_median_and_the_share_above_0(capsys):
    print_rows("parts", [0, 0, 0, 2], ("good", "never", "bad"), {"ours": np.array([-3.0, -1.0, 1.0, 8.0])})
    title, _, _, good, bad = capsys.readouterr().out.splitlines()
    assert title == "parts"
    assert good.split() == ["good", "-1.00", "33.3%"]
    assert bad.split() == ["bad", "8.00", "100.0%"]


def test_a_table_comes_back_as_it_was_written(tmp_path):
    write_table(tmp_path / "table.csv", [{"idea": "one, two", "auroc": 0.5}, {"idea": "three", "auroc": 1}])
    assert read_table(tmp_path / "table.csv") == [{"idea": "one, two", "auroc": "0.5"}, {"idea": "three", "auroc": "1"}]


def test_a_table_is_whole_or_not_there(tmp_path):
    write_table(tmp_path / "table.csv", [{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="fields not in"):
        write_table(tmp_path / "table.csv", [{"a": 3}, {"b": 4}])  # stops after the first row
    assert read_table(tmp_path / "table.csv") == [{"a": "1"}, {"a": "2"}]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_latents_reach_the_projector_with_names_and_thumbnails(reported, data):
    trained, _, _ = reported
    images = data.test.images[:6]
    log_latents(trained, torch.randn(6, 40), images, [f"part {number}" for number in range(6)])
    config = (trained.folder / "projector_config.pbtxt").read_text()
    assert "latents" in config and "sprite" in config
    (points,) = trained.folder.rglob("tensors.tsv")
    assert len(points.read_text().splitlines()) == 6
    assert "part 5" in next(trained.folder.rglob("metadata.tsv")).read_text()


def test_a_loaded_version_gets_no_latents(reported, data, run, baseline):
    trained, _, _ = reported
    loaded = load(baseline(), run, trained.folder)
    log_latents(loaded, torch.randn(2, 40), data.test.images[:2], ["a", "b"])
    assert not list(trained.folder.rglob("tensors.tsv"))
