import io
import json
import time

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from helpers import versions
from helpers.training import TrainingError
from helpers.versions import groups, markdown, read_versions, rebuild, row, same_images
from tests.conftest import ROOT, make_run

RESULTS = {
    "notebook": "01_baseline_gan",
    "profile": "full",
    "dataset": "hazelnut",
    "protocol": "one-class, 256x256",
    "epochs": 2,
    "train_seconds": 12.5,
    "images_per_second": 300,
    "parameters": 1234,
    "device": "CPU (1 threads)",
    "metrics": {"auroc": 0.75},
    "seeds": {"auroc": [0.75, 0.85]},
}
LABEL = np.array([0, 0, 1, 1])
BUFFER = io.BytesIO()
np.save(BUFFER, LABEL)
ONE_ARRAY = BUFFER.getvalue()


def make_version(folder, scores=True, **changes):
    """A version as ``fit`` and ``report`` leave it, small; ``changes`` of its results."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS | changes))
    (folder / "hparams.yaml").write_text(yaml.safe_dump({"notebook": "01_baseline_gan", "model": "BaselineGAN"}))
    with SummaryWriter(folder) as writer:
        for batch in range(0, 100, 20):
            writer.add_scalar("loss/reconstruction", 1 / (1 + batch), batch)
            writer.add_scalar("speed/images_per_second", 300, batch)
    if scores:
        save_scores(folder)
    return folder


def save_scores(folder, **changes):
    """scores.npz with an AUROC of 0.75."""
    content = {"score": [0.0, 2.0, 1.0, 3.0], "label": LABEL, "kind": LABEL, "kinds": ["good", "crack"]}
    np.savez_compressed(folder / "scores.npz", **content | {"validation": [0.0, 0.5]} | changes)


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "lightning_logs"


def only(logs):
    (version,) = read_versions(logs, logs)
    return version


def test_a_whole_version_is_read(logs):
    make_version(logs / "version_7")
    version = only(logs)
    assert (version.name, version.problem) == ("version_7", "")
    assert version.losses == {
        "reconstruction": ([0, 20, 40, 60, 80], pytest.approx([1, 1 / 21, 1 / 41, 1 / 61, 1 / 81]))
    }
    assert version.scores.score.tolist() == [0, 2, 1, 3]
    assert version.scores.kinds == ("good", "crack")
    assert version.seeds == [0.75, 0.85]
    assert version.quality == pytest.approx(0.8)
    assert version.hparams["model"] == "BaselineGAN"


def remove(name):
    def change(folder):
        for path in folder.glob(name):
            path.unlink()

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, keep):
    def change(folder):
        for path in folder.glob(name):
            path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return change


def results(**changes):
    return lambda folder: (folder / "results.json").write_text(json.dumps(RESULTS | changes))


def without(*keys):
    kept = {key: value for key, value in RESULTS.items() if key not in keys}
    return lambda folder: (folder / "results.json").write_text(json.dumps(kept))


def flip_a_byte(folder):
    (path,) = folder.glob("events*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGES = [
    (remove("results.json"), "no results.json", False),
    (lambda folder: (remove("results.json")(folder), write("last.ckpt", b"x")(folder)), "unfinished", False),
    (write("results.json", b'{"metrics": '), "results.json is broken: no JSON", False),
    (write("results.json", b"\xff\xfe"), "results.json is broken", False),
    (write("results.json", b"[1, 2]"), "results.json is broken: no table", False),
    (results(metrics={}), "no AUROC between 0 and 1", False),
    (results(metrics={"auroc": "high"}), "no AUROC between 0 and 1", False),
    (results(metrics={"auroc": float("nan")}), "no AUROC between 0 and 1", False),
    (results(metrics=None), "no AUROC between 0 and 1", False),
    (without("protocol", "dataset"), "of an older format: no dataset, protocol", False),
    (without("seeds", "device"), "of an older format: no device, seeds", True),
    (results(seeds=[0.5]), "of an older format: no seeds", True),
    (results(train_seconds="long", epochs=None), "of an older format: no epochs, train_seconds", True),
    (results(metrics={"auroc": 0.75, "pro": "good"}), "", True),
    (results(seeds={"auroc": "many"}), "the seeds are no lists of numbers", True),
    (results(seeds={"auroc": [0.5, 7]}), "the seeds are no lists of numbers", True),
    (remove("hparams.yaml"), "no hparams.yaml", True),
    (write("hparams.yaml", b"a: [1, 2"), "hparams.yaml is broken: no YAML", True),
    (write("hparams.yaml", b"!!python/object:os.system {}"), "hparams.yaml is broken: no YAML", True),
    (write("hparams.yaml", b"just words"), "hparams.yaml is broken: no table", True),
    (remove("events*"), "no event file", True),
    (cut("events*", 0), "empty event file", True),
    (cut("events*", 0.5), "event file is cut short after", True),
    (write("events.out.tfevents.9.x", b"these are no events at all"), "it is none of TensorBoard's", True),
    (remove("scores.npz"), "no scores.npz (an older format)", True),
    (cut("scores.npz", 0.5), "scores.npz is broken", True),
    (cut("scores.npz", 0), "scores.npz is broken", True),
    (lambda folder: np.savez(folder / "scores.npz", other=[1]), "scores.npz is broken", True),
    (lambda folder: (folder / "scores.npz").write_bytes(ONE_ARRAY), "it holds one array", True),
    (lambda folder: save_scores(folder, validation=[]), "held-out normal images", True),
    (lambda folder: save_scores(folder, score=0.5), "scores.npz is broken", True),
    (lambda folder: save_scores(folder, score=[0.0, 1.0]), "scores.npz is broken", True),
    (lambda folder: save_scores(folder, kind=[0, 0, 1, 9]), "scores.npz is broken", True),
    (lambda folder: save_scores(folder, score=[0.0, 1.0, 2.0, np.nan]), "scores.npz is broken", True),
    (lambda folder: save_scores(folder, score=[0.0, 1.0, 2.0, 3.0]), "disagree: AUROC 1.0000 and 0.7500", True),
]


@pytest.mark.parametrize(
    ("damage", "reason", "ranked"), DAMAGES, ids=[f"{n}-{reason}" for n, (_, reason, _) in enumerate(DAMAGES)]
)
def test_what_is_wrong_is_said_and_never_raised(logs, damage, reason, ranked):
    damage(make_version(logs / "version_5"))
    version = only(logs)
    assert reason in version.problem
    assert bool(reason) == bool(version.problem)
    assert bool(version.results) is ranked
    assert (list(groups([version]).values()) == [[version]]) is ranked
    if ranked:
        assert markdown([row(version)]).count("\n") == 2


def test_a_training_that_was_cut_short_keeps_its_losses_up_to_there(logs):
    cut("events*", 0.7)(make_version(logs / "version_5"))
    batches, _ = only(logs).losses["reconstruction"]
    assert 0 < len(batches) < 5


def test_a_wrong_byte_in_an_event_file_is_survived(logs):
    flip_a_byte(make_version(logs / "version_5"))
    assert len(only(logs).losses.get("reconstruction", ([], []))[0]) < 5


def test_empty_and_foreign_folders_are_listed(logs):
    for name in ("version_6", "holiday pictures", "version_x", ".hidden"):
        (logs / name).mkdir(parents=True)
    (logs / "a file").write_text("x")
    found = {version.name: version.problem for version in read_versions(logs, logs)}
    assert found["version_6"] == "empty folder"
    assert set(found) == {"version_6", "holiday pictures", "version_x"}
    assert found["version_x"] == found["holiday pictures"] == "not a version: its name is not version_<number>"
    assert read_versions(logs / "nowhere", logs / "nothing") == []


def test_protocols_are_versions_and_seeds_are_not(logs):
    make_version(logs / "version_10")
    make_version(logs / "version_9")
    make_version(logs / "version_9" / "transistor", dataset="transistor")
    (make_version(logs / "version_9" / "seed_1") / "results.json").unlink()
    assert [version.name for version in read_versions(logs, logs)] == [
        "version_9",
        "version_9/transistor",
        "version_10",
    ]


def test_the_course_gives_its_versions_and_the_reader_all_others(tmp_path):
    course, own = tmp_path / "course", tmp_path / "drive"
    for folder in (course / "version_0", course / "version_7", own / "version_5", own / "version_0"):
        make_version(folder)
    found = {version.name: version.folder for version in read_versions(course, own)}
    assert list(found) == ["version_0", "version_0 (2)", "version_5"]
    assert found["version_0 (2)"] == own / "version_0"
    assert [version.name for version in read_versions(course, course)] == ["version_0", "version_7"]


def test_only_the_same_data_and_protocol_make_a_group(logs):
    make_version(logs / "version_5")
    make_version(logs / "version_6", protocol="one-class, 128x128", metrics={"auroc": 0.9}, seeds={})
    make_version(logs / "version_7", protocol="one-class, 50% labelled anomalies")
    make_version(logs / "version_8", dataset="SAMPLE DATA (hazelnuts)")
    limited = make_version(logs / "version_9")
    (limited / "hparams.yaml").write_text("limit: 64")
    (make_version(logs / "version_10") / "results.json").unlink()
    found = {task: [version.name for version in members] for task, members in groups(read_versions(logs, logs)).items()}
    assert found == {
        ("SAMPLE DATA (hazelnuts)", "one-class"): ["version_8"],
        ("hazelnut", "one-class"): ["version_6", "version_5"],  # best first; the size belongs to the method
        ("hazelnut", "one-class, 50% labelled anomalies"): ["version_7"],
        ("hazelnut", "one-class, at most 64 images of each label"): ["version_9"],
    }


def test_same_images_are_told_from_others(logs):
    make_version(logs / "version_5")
    save_scores(make_version(logs / "version_6"), score=[5.0, 7.0, 6.0, 8.0])
    save_scores(make_version(logs / "version_7"), kinds=["good", "cut"])
    save_scores(make_version(logs / "version_8"), label=[0, 1, 0, 1], score=[0.0, 1.0, 2.0, 3.0])
    make_version(logs / "version_9", scores=False)
    first, same, *others = read_versions(logs, logs)
    assert same_images(first, same)
    assert not any(same_images(first, other) for other in others)


def test_a_table_has_a_dash_where_nothing_is_known(logs):
    make_version(logs / "version_5")
    without("parameters", "epochs")(make_version(logs / "version_6"))
    rows = [row(version) for version in read_versions(logs, logs)]
    assert (rows[0]["AUROC"], rows[0]["parameters"], rows[0]["training s"]) == (
        "0.8000 ± 0.0707 (2 seeds)",
        "1,234",
        "12",
    )
    assert (rows[1]["parameters"], rows[1]["epochs"]) == ("–", "–")
    lines = markdown(rows).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(rows[0]) + 1}


def test_every_committed_version_is_complete_and_quickly_read():
    start = time.perf_counter()
    found = read_versions(ROOT / "lightning_logs", ROOT / "nowhere")
    assert time.perf_counter() - start < 15
    assert {version.name: version.problem for version in found if version.problem} == {}
    assert {"version_0", "version_1/one_class", "version_2", "version_3"} <= {version.name for version in found}
    assert all(version.losses and version.scores is not None for version in found)


@pytest.mark.parametrize(("name", "model"), [("version_0", "BaselineGAN"), ("version_1/one_class", "DCGAN")])
def test_models_are_rebuilt_from_notebook_and_version(tmp_path, name, model):
    version = versions.read_version(ROOT / "lightning_logs" / name, name)
    rebuilt = rebuild(version, make_run(tmp_path), ROOT / "notebooks")
    assert type(rebuilt).__name__ == model
    assert not rebuilt.training
    assert rebuilt.history["epochs"] == version.results["epochs"]


def test_what_cannot_be_rebuilt_is_said(tmp_path):
    version = versions.read_version(ROOT / "lightning_logs" / "version_0", "version_0")
    run, pages = make_run(tmp_path), ROOT / "notebooks"
    with pytest.raises(TrainingError, match="a notebook that is not here: 01_baseline_gan"):
        rebuild(version, run, tmp_path)
    (tmp_path / "01_baseline_gan.ipynb").write_text('{"cells": []}')
    with pytest.raises(TrainingError, match="defines no BaselineGAN"):
        rebuild(version, run, tmp_path)
    kept, version.hparams = version.hparams, {"notebook": "01_baseline_gan"}
    with pytest.raises(TrainingError, match="BaselineGAN cannot be made from its settings"):
        rebuild(version, run, pages)
    version.hparams = kept | {"hidden": 16}
    with pytest.raises(TrainingError, match="trained with other settings"):
        rebuild(version, run, pages)
    version.folder = tmp_path
    with pytest.raises(TrainingError, match="has no model.ckpt"):
        rebuild(version, run, pages)
    (tmp_path / "model.ckpt").write_bytes(b"junk")
    with pytest.raises(TrainingError, match="model.ckpt is broken"):
        rebuild(version, run, pages)
