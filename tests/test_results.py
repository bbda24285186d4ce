"""What a run leaves behind, and the table of all runs."""

import json
import shutil

import numpy as np
import pytest

from helpers.evaluation import evaluate
from helpers.results import load_results, mean_std, read_results, read_scores, report, write_json
from helpers.training import fit, load
from tests.toy import ROOT, Toy, ToyModel, WithMap, events
from tools import results as tables

CONTROL = ("5 nearest neighbours on raw pixels", 0.75)


@pytest.fixture(scope="module")
def reported(mapped):
    """(Trained, Scores, what report returned) of a model with maps."""
    found, _, scores = mapped
    return found, scores, report(scores, found, {"auroc": [0.5, 0.75]}, CONTROL)


def test_results_json_is_flat_and_holds_what_a_program_needs(reported):
    found, scores, returned = reported
    stored = read_results(found.folder)
    assert stored == json.loads(json.dumps(returned, default=float))
    nested = {name for name, value in stored.items() if isinstance(value, (dict, list))}
    assert nested == {"seeds", "versions", "true_positive_rate_interval"}
    expected = {"notebook": "01_toy", "model": "WithMap", "profile": "smoke", "seed": 7, "epochs": 3, "batches": 18}
    expected |= {"dataset": "toy", "subset": "48 good images", "normal_class": "good", "anomaly_fraction": 0.5}
    expected |= {"tested_on": "test split", "n_train": 52, "n_test_normal": 10, "n_test_anomalous": 10}
    expected |= {"threshold_percentile": 75, "n_calibration": 4, "lowest_false_positive_rate": 0.2}
    expected |= {"control": CONTROL[0], "control_auroc": 0.75, "seeds": {"auroc": [0.5, 0.75]}}
    expected |= scores.metrics | {"threshold": scores.threshold, "true_positive_rate_interval": list(scores.interval)}
    assert {name: stored[name] for name in expected} == expected
    assert stored["pixel_threshold"] == pytest.approx(scores.pixel_threshold) and "pro" in stored
    assert {"train_seconds", "images_per_second", "device", "parameters", "scoring_images_per_second"} <= set(stored)


def test_without_seeds_control_or_maps_their_fields_say_so(run, trained):
    assert mean_std([0.5]) == "0.5000 (1 seed)"
    assert mean_std([0.5, 0.7]) == "0.6000 ± 0.1414 (2 seeds)"
    found = report(evaluate(trained.model, Toy()), load(ToyModel(), run, trained.folder))
    assert found["seeds"] == {"auroc": [found["auroc"]]}
    assert found["control"] is None and found["control_auroc"] is None
    assert not any("pixel" in name for name in found)


def test_the_scores_are_kept_image_by_image(reported):
    scores, kept = reported[1], read_scores(reported[0].folder)
    for name in ("score", "label", "defect_type", "validation"):
        assert np.array_equal(getattr(kept, name), getattr(scores, name)), name
    assert kept.defect_types == scores.defect_types and kept.auroc == scores.auroc


def test_tensorboard_gets_metrics_figures_and_hyperparameters_in_one_file(reported):
    folder = reported[0].folder
    found = events(folder)
    assert {"test/auroc", "test/pro"} <= set(found.Tags()["scalars"])
    assert {"results/scores", "results/curves", "results/defect_types"} <= set(found.Tags()["images"])
    assert "_hparams_/session_start_info" in found.summary_metadata, "else the HParams tab is empty"
    assert len(list(folder.glob("events.*"))) == 1
    assert {"scores.png", "reconstructions.png"} <= {path.name for path in folder.iterdir()}


def test_a_loaded_version_is_left_as_it_is(reported):
    found, scores, _ = reported
    before = {path: path.read_bytes() for path in found.folder.iterdir()}
    assert report(scores, load(WithMap(seed=7), found.run, found.folder))["seeds"] == {"auroc": [scores.auroc]}
    assert before == {path: path.read_bytes() for path in found.folder.iterdir()}


def test_the_training_without_a_name_is_reported_last(run, no_figures):
    data = Toy()
    main, side = (fit(ToyModel(epochs=1), data, run, name=name, show=False) for name in ("", "side"))
    scores = evaluate(main.model, data)
    report(scores, side)
    report(scores, main)
    with pytest.raises(ValueError, match="version_10 is closed: report the training without a name last"):
        report(scores, side)
    report(scores, main)  # the same cell once more


def test_json_is_whole_or_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results in .*: run its notebook to the end"):
        read_results(tmp_path)
    write_json(tmp_path / "results.json", {"a": np.float32(1)})
    with pytest.raises(TypeError):
        write_json(tmp_path / "results.json", {"a": object()})
    assert read_results(tmp_path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.fixture
def logs(tmp_path, reported):
    """A log folder with version_10, version_10/side and version_9."""
    for name in ("version_10", "version_10/side", "version_9"):
        (tmp_path / name).mkdir()
        for file in ("results.json", "scores.npz"):
            shutil.copy(reported[0].folder / file, tmp_path / name)
    return tmp_path


def test_every_version_and_its_further_trainings_are_rows(logs, capsys):
    (logs / "version_10" / "seed_1").mkdir()  # without results: a repetition
    (logs / "holiday pictures").mkdir()
    shutil.copytree(logs / "version_9", logs / "own" / "version_9")  # a name that is there already
    table = load_results(logs, logs / "nowhere", logs / "own")
    assert table.index.tolist() == ["version_9", "version_10", "version_10/side"]
    assert table["folder"].tolist() == [logs / name for name in table.index]
    assert set(table["auroc_mean"]) == {0.625}
    assert capsys.readouterr().out == ""
    assert len(load_results(logs / "nowhere")) == 0


def test_only_what_has_the_same_task_may_be_compared(logs):
    for name, change in (("version_9", {"subset": "50 of 391 good images"}), ("version_10/side", {"epochs": 99})):
        write_json(logs / name / "results.json", read_results(logs / name) | change)
    assert load_results(logs)["task"].duplicated(keep=False).tolist() == [False, True, True]


DAMAGES = [  # of results.json as a whole, or of fields in it: None takes one away
    (b'{"auroc": ', "Expecting value"),
    (b"\xff\xfe{}", "utf-8"),
    (b"[1, 2]", "version_9: "),
    (b"[" * 100_000, "version_9: "),
    ({"dataset": None, "n_test_normal": None}, "results.json lacks dataset, n_test_normal"),
    ({"seeds": None}, "seeds"),
    ({"auroc": 1.5}, "states an AUROC of 1.5"),
    ({"auroc": "high"}, "version_9: "),
    ({"auroc": float("nan")}, "states an AUROC of nan"),
    ({"seeds": [0.5]}, "version_9: "),
]


@pytest.mark.parametrize(("content", "reason"), DAMAGES, ids=range(len(DAMAGES)))
def test_results_that_cannot_be_read_are_named_and_never_raised(logs, capsys, content, reason):
    path = logs / "version_9" / "results.json"
    if isinstance(content, dict):
        fields = (read_results(path.parent) | content).items()
        content = json.dumps({name: value for name, value in fields if value is not None}).encode()
    path.write_bytes(content)
    assert load_results(logs).index.tolist() == ["version_10", "version_10/side"]
    said = capsys.readouterr().out
    assert said.startswith("left out: version_9: ") and reason in said and said.count("\n") == 1


def test_missing_and_closed_results_are_named(logs, capsys, monkeypatch):
    (logs / "version_9" / "results.json").unlink()
    (logs / "version_11").mkdir()
    (logs / "version_11" / "last.ckpt").touch()
    monkeypatch.setattr("helpers.results.json.loads", lambda text: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert len(load_results(logs)) == 0
    said = capsys.readouterr().out
    assert "version_9: no results.json" in said and "version_11: unfinished, run its notebook again" in said
    assert "version_10: [Errno 13] denied" in said


def changed(**arrays):
    return lambda path: np.savez(path, **dict(np.load(path)) | arrays)


SCORE_DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "text": lambda path: path.write_text("scores"),
    "not finite": changed(score=[np.nan] * 20),
    "pickled": changed(validation=np.array([{}, None])),
}


@pytest.mark.parametrize("damage", SCORE_DAMAGES)
def test_scores_that_cannot_be_read_are_named_and_never_raised(logs, capsys, damage):
    SCORE_DAMAGES[damage](logs / "version_9" / "scores.npz")
    assert read_scores(logs / "version_9") is None
    assert "version_9/scores.npz: " in capsys.readouterr().out


def test_every_committed_version_is_complete(capsys):
    table = load_results(ROOT / "lightning_logs")
    committed = table[table.index.str.match(r"version_[0-4](/|$)")]
    assert "left out: version_0" not in capsys.readouterr().out
    assert {f"version_{number}" for number in range(5)} <= set(committed.index)
    for folder, stated in zip(committed["folder"], committed["auroc"], strict=True):
        assert read_scores(folder).auroc == pytest.approx(stated, abs=1e-4), folder
    assert (committed["profile"] == "full").all()


@pytest.mark.parametrize("name, write", [("RESULTS.md", tables.text), ("README.md", tables.readme)])
def test_the_tables_are_those_of_the_committed_versions(name, write):
    assert (ROOT / name).read_text(encoding="utf-8") == write(ROOT / "lightning_logs"), "python tools/results.py"
