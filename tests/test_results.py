"""What a run leaves behind, and the table of all runs."""

import json
import shutil

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.evaluation import evaluate
from helpers.results import load_results, mean_std, read_results, read_scores, report, write_json
from helpers.training import fit, load
from tests.toy import ROOT, Toy, ToyModel, WithMap, make_run

CONTROL = ("5 nearest neighbours on raw pixels", 0.75)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """(Trained, Scores, what report returned) of a model with maps, three views of each held-out image."""
    data = Toy(masks=True)
    found = fit(WithMap(seed=7), data, make_run(tmp_path_factory.mktemp("reported")), show=False)
    scores = evaluate(found.model, data, percentile=75)
    scores.validation, scores.views = np.tile(scores.validation, 3), 3
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
    assert {name: stored[name] for name in expected} == expected
    assert stored["true_positive_rate_interval"] == list(scores.interval)
    assert {name: stored[name] for name in scores.metrics} == scores.metrics and "pro" in stored
    assert (stored["threshold"], stored["pixel_threshold"]) == (scores.threshold, pytest.approx(scores.pixel_threshold))
    assert {"train_seconds", "images_per_second", "device", "parameters", "scoring_images_per_second"} <= set(stored)


def test_without_seeds_or_control_their_fields_say_so(run, trained):
    found = report(evaluate(trained.model, Toy()), load(ToyModel(), run, trained.folder))
    assert found["seeds"] == {"auroc": [found["auroc"]]}
    assert found["control"] is None and found["control_auroc"] is None
    assert not any("pixel" in name for name in found)


def test_the_scores_are_kept_image_by_image(reported):
    found, scores, _ = reported
    kept = read_scores(found.folder)
    for name in ("score", "label", "defect_type", "validation"):
        assert np.array_equal(getattr(kept, name), getattr(scores, name)), name
    assert kept.defect_types == scores.defect_types and kept.auroc == scores.auroc


def test_tensorboard_gets_metrics_figures_and_hyperparameters_in_one_file(reported):
    folder = reported[0].folder
    found = EventAccumulator(str(folder))
    found.Reload()
    assert {"test/auroc", "test/pro"} <= set(found.Tags()["scalars"])
    assert {"results/scores", "results/curves", "results/defect_types"} <= set(found.Tags()["images"])
    assert "_hparams_/session_start_info" in found.summary_metadata, "else the HParams tab is empty"
    assert len(list(folder.glob("events.*"))) == 1
    assert {"scores.png", "reconstructions.png"} <= {path.name for path in folder.iterdir()}
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["weight_repulsion"] == 0.1


def test_a_loaded_version_is_left_as_it_is(reported):
    found, scores, returned = reported
    before = {path: path.read_bytes() for path in found.folder.iterdir()}
    loaded = load(WithMap(seed=7), found.run, found.folder)
    scores.percentile, kept = 50, scores.percentile
    assert report(scores, loaded)["threshold_percentile"] == 50
    scores.percentile = kept
    assert before == {path: path.read_bytes() for path in found.folder.iterdir()}
    assert returned["threshold_percentile"] == 75


def test_the_training_without_a_name_is_reported_last(run, no_figures, monkeypatch):
    monkeypatch.setattr("helpers.results._log", lambda *args: None)
    data = Toy()
    main, side = (fit(ToyModel(epochs=1), data, run, name=name, show=False) for name in ("", "side"))
    scores = evaluate(main.model, data)
    report(scores, side)
    report(scores, main)
    with pytest.raises(ValueError, match="version_10 is closed: report the training without a name last"):
        report(scores, side)
    report(scores, main)  # the same cell once more


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": np.float32(1)})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_missing_results_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results in .*: run its notebook to the end"):
        read_results(tmp_path)


def test_mean_std():
    assert mean_std([0.5]) == "0.5000 (1 seed)"
    assert mean_std([0.5, 0.7]) == "0.6000 ± 0.1414 (2 seeds)"


# --- all versions as one table ----------------------------------------------------------------------------------------


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
    table = load_results(logs, logs / "nowhere", logs)
    assert table.index.tolist() == ["version_9", "version_10", "version_10/side"]
    assert table.loc["version_10/side", "folder"] == logs / "version_10" / "side"
    assert set(table["auroc_mean"]) == {0.625}
    assert capsys.readouterr().out == ""
    assert len(load_results(logs / "nowhere")) == 0


def test_only_what_has_the_same_task_may_be_compared(logs):
    for name, change in (("version_9", {"subset": "50 of 391 good images"}), ("version_10/side", {"epochs": 99})):
        write_json(logs / name / "results.json", read_results(logs / name) | change)
    assert load_results(logs)["task"].duplicated(keep=False).tolist() == [False, True, True]


def test_of_a_folder_given_twice_the_first_counts(logs, tmp_path_factory):
    own = tmp_path_factory.mktemp("own")
    shutil.copytree(logs / "version_9", own / "version_9")
    shutil.copytree(logs / "version_9", own / "version_11")
    table = load_results(logs, own)
    assert table["folder"]["version_9"] == logs / "version_9" and "version_11" in table.index


def without(*names):
    def change(folder):
        kept = read_results(folder)
        write_json(folder / "results.json", {name: value for name, value in kept.items() if name not in names})

    return change


def results(**changes):
    return lambda folder: (folder / "results.json").write_text(json.dumps(read_results(folder) | changes))


def content(data):
    return lambda folder: (folder / "results.json").write_bytes(data)


def unfinished(folder):
    (folder / "results.json").rename(folder / "last.ckpt")


DAMAGES = [
    (lambda folder: (folder / "results.json").unlink(), "no results.json"),
    (unfinished, "unfinished, run its notebook again"),
    (content(b'{"auroc": '), "Expecting value"),
    (content(b""), "Expecting value"),
    (content(b"\xff\xfe{}"), "utf-8"),
    (content(b"[1, 2]"), "version_9: "),
    (content(b"null"), "version_9: "),
    (content(b"[" * 100_000), "version_9: "),
    (without("dataset", "n_test_normal"), "results.json lacks dataset, n_test_normal"),
    (without("auroc"), "results.json lacks auroc"),
    (without("seeds"), "seeds"),
    (results(auroc=1.5), "states an AUROC of 1.5"),
    (results(auroc="high"), "version_9: "),
    (results(auroc=float("nan")), "states an AUROC of nan"),
    (results(auroc=None), "version_9: "),
    (results(seeds=[0.5]), "version_9: "),
    (results(seeds={"auroc": "many"}), "version_9: "),
    (results(seeds={"auroc": {}}), "version_9: "),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[f"{n} {reason}" for n, (_, reason) in enumerate(DAMAGES)])
def test_what_cannot_be_read_is_named_and_never_raised(logs, capsys, damage, reason):
    damage(logs / "version_9")
    assert load_results(logs).index.tolist() == ["version_10", "version_10/side"]
    said = capsys.readouterr().out
    assert said.startswith("left out: version_9: ") and reason in said and said.count("\n") == 1


def test_a_folder_that_is_closed_is_named(logs, capsys, monkeypatch):
    read = type(logs).read_text

    def refuse(path, *args, **kwargs):
        if path.parent.name == "version_9":
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(type(logs), "read_text", refuse)
    assert "version_9" not in load_results(logs).index
    assert "left out: version_9: [Errno 13] Permission denied" in capsys.readouterr().out


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


SCORE_DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("scores"),
    "other arrays": lambda path: np.savez(path, other=[1]),
    "lengths": lambda path: np.savez(path, **arrays(score=[0.0, 1.0])),
    "not finite": lambda path: np.savez(path, **arrays(score=[0.0, np.nan, 1.0, 2.0])),
    "one label": lambda path: np.savez(path, **arrays(label=[0, 0, 0, 0])),
    "pickled": lambda path: np.savez(path, **arrays(validation=np.array([{}, None]))),
}


def arrays(**changes):
    known = {"score": [0.0, 2.0, 1.0, 3.0], "label": [0, 0, 1, 1], "defect_type": [0, 0, 1, 1]}
    return known | {"defect_types": ["good", "bad"], "validation": [0.0, 0.5]} | changes


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
