import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import callbacks
from helpers.callbacks import TrainingError
from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.loader import Split
from helpers.results import report
from helpers.training import evaluate, fit, load, score_images
from tests import train_once
from tests.conftest import ROOT, make_run

SCRIPT = ROOT / "tests" / "train_once.py"
ENVIRONMENT = os.environ | {"AD_DATA": "sample", "OMP_NUM_THREADS": str(torch.get_num_threads())}


def weights(trained):
    return torch.load(trained.folder / "model.ckpt", weights_only=True)["state_dict"]


def test_killed_in_the_middle_of_an_epoch_resumes_to_the_same_weights(tmp_path, run):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # 64 images in batches of 8 + 8: 8 batches an epoch; it dies in batch 12, its last checkpoint is after batch 10
    process = subprocess.run(
        [sys.executable, SCRIPT, "kill", killed, "12"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert process.returncode == -9, process.stderr
    version = killed / "logs" / "version_5"
    assert (version / "last.ckpt").exists()
    assert not (version / "model.ckpt").exists()

    new_run, model, data = train_once.objects(killed)
    torch.manual_seed(987)  # a fresh process has another random state
    resumed = fit(model, data, new_run, resume=True, checkpoint_every=train_once.CHECKPOINT_EVERY)
    other_run, model, data = train_once.objects(whole)
    uninterrupted = fit(model, data, other_run, checkpoint_every=train_once.CHECKPOINT_EVERY)

    assert resumed.folder == version
    assert not (version / "last.ckpt").exists()
    for history in (resumed.history, uninterrupted.history):
        assert (history["batches"], history["epochs"]) == (32, 4)
    first, second = weights(resumed), weights(uninterrupted)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_resume_continues_even_if_nothing_was_saved_yet(run, data, baseline):
    model = baseline()
    model.generator_losses = lambda *_: os._exit  # cannot be summed: dies in the first batch
    with pytest.raises(AttributeError):
        fit(model, data, run)
    again = make_run(run.logs_dir.parent)
    assert fit(baseline(), data, again, resume=True).folder == run.version


def test_what_was_logged_before_the_first_checkpoint_is_hidden_by_a_resume(run, data, baseline):
    model = baseline(epochs=3)
    losses, batch = model.generator_losses, iter(range(100))
    model.generator_losses = lambda *args: os._exit if next(batch) == 20 else losses(*args)  # cannot be summed
    with pytest.raises(AttributeError):
        fit(model, data, run)
    assert not (run.version / "last.ckpt").exists()
    trained = fit(baseline(epochs=3), data, make_run(run.logs_dir.parent), resume=True)
    assert trained.folder == run.version and len(list(trained.folder.glob("events.*"))) == 2
    found = EventAccumulator(str(trained.folder))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/reconstruction")] == [8, 16, 24]


def test_a_finished_training_is_loaded_and_reported_runs_are_left_alone(run, data, baseline):
    first = fit(baseline(), data, run)
    again = make_run(run.logs_dir.parent)
    untrained = baseline(lr=1e-3)
    second = fit(untrained, data, again, resume=True)
    assert second.folder == first.folder
    assert second.logger is not None, "interrupted before its report: that can still be written"
    assert torch.equal(untrained.generator.encoder[1].weight, first.model.generator.encoder[1].weight)
    report(evaluate(untrained, data), second)
    assert (first.folder / "results.json").exists()
    third = fit(baseline(), data, make_run(run.logs_dir.parent), resume=True)
    assert third.folder != first.folder, "a version with results is finished: a new run takes the next one"


def test_labels_are_sub_folders_with_their_own_settings(run, data, baseline):
    main = fit(baseline(), data, run)
    side = fit(baseline(lr=1e-4), data, run, label="slow")
    assert side.folder == main.folder / "slow"
    assert yaml.safe_load((side.folder / "hparams.yaml").read_text())["lr"] == 1e-4
    with pytest.raises(TrainingError, match="never overwritten"):
        fit(baseline(), data, run, label="slow")
    with pytest.raises(TrainingError, match="other settings"):
        fit(baseline(), data, run, label="slow", resume=True)
    with pytest.raises(ValueError, match="label"):
        fit(baseline(), data, run, label="../elsewhere")


def test_versions_start_after_the_reference_runs_and_count_up(run, data, baseline):
    assert fit(baseline(epochs=1), data, run).folder.name == "version_5"
    (run.logs_dir / "version_11").mkdir()
    assert fit(baseline(epochs=1), data, make_run(run.logs_dir.parent)).folder.name == "version_12"


def test_a_named_version_that_exists_is_refused(run, data, baseline, monkeypatch):
    kept = run.logs_dir / "version_0" / "results.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("precious")
    monkeypatch.setenv("AD_VERSION", "0")
    with pytest.raises(TrainingError, match="version_0 exists"):
        fit(baseline(), data, run)
    assert kept.read_text() == "precious"


def test_log_folder_that_cannot_be_made(run, data, baseline):
    run.logs_dir.write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match="AD_LOGS_DIR"):
        fit(baseline(), data, run)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(run, data, baseline):
    model = baseline(epochs=4)
    losses, batch = model.generator_losses, iter(range(100))

    def poisoned(*args):
        found = losses(*args)
        return found | {"repulsion": found["repulsion"] * (float("nan") if next(batch) == 13 else 1)}

    model.generator_losses = poisoned
    with pytest.raises(TrainingError, match=r"'repulsion' became nan at batch 13 \(epoch 1\)"):
        fit(model, data, run, checkpoint_every=5)
    kept = torch.load(run.version / "last.ckpt", weights_only=True)
    assert kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 10
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_disk_full_while_checkpointing_keeps_the_previous_checkpoint(run, data, baseline, monkeypatch):
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks.os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device.*previous one is intact.*resume=True"):
        fit(baseline(), data, run, checkpoint_every=3)
    assert torch.load(run.version / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not list(run.version.glob("*.part"))


def test_checkpoint_of_another_model_or_size(run, data, baseline):
    trained = fit(baseline(epochs=1), data, run)
    with pytest.raises(TrainingError, match="trained with other settings.*size mismatch"):
        load(baseline(hidden=17), run, trained.folder)
    path = trained.folder / "model.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"model_class": "DeepSVDD"}, path)
    with pytest.raises(TrainingError, match="holds a DeepSVDD, not a BaselineGAN"):
        load(baseline(), run, trained.folder)
    with pytest.raises(TrainingError, match="no checkpoint"):
        load(baseline(), run, run.logs_dir / "version_77")
    for damaged in (path.read_bytes()[:-500], b"<html>", b""):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="model.ckpt is broken .*train again"):
            load(baseline(), run, trained.folder)
    torch.save([1, 2], path)
    with pytest.raises(TrainingError, match="is broken"):
        load(baseline(), run, trained.folder)


def test_loading_gives_the_same_scores_and_history(run, data, baseline):
    trained = fit(baseline(), data, run)
    loaded = load(baseline(), make_run(run.logs_dir.parent), trained.folder)
    assert np.array_equal(evaluate(loaded.model, data).score, evaluate(trained.model, data).score)
    assert loaded.history["batches"] == trained.history["batches"] == 16
    assert loaded.history["frame_batches"] == [0, 16]


def test_scores_depend_on_nothing_but_the_image(run, data, baseline):
    class WithDropout(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x).view_as(x)

    model = baseline()
    # batch statistics and dropout are what makes scores wander when a model is not in eval mode
    model.generator = WithDropout(
        torch.nn.Flatten(), torch.nn.Linear(784, 784), torch.nn.BatchNorm1d(784), torch.nn.Dropout(0.5)
    )
    model.train()
    whole = score_images(model, data.test, data.device)
    again = score_images(model, data.test, data.device)
    order = torch.randperm(len(data.test))
    shuffled = score_images(model, data.test.pick(order), data.device)
    one_by_one = [score_images(model, data.test.pick(torch.tensor([i])), data.device)[0] for i in range(8)]
    assert np.array_equal(whole, again)
    np.testing.assert_allclose(shuffled, whole[order.numpy()], rtol=1e-5)
    np.testing.assert_allclose(one_by_one, whole[:8], rtol=1e-5)
    assert model.training, "scoring gives the model back as it was"


def test_every_image_is_scored_over_several_chunks(baseline):
    images = torch.randint(0, 256, (1203, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.zeros(1203), torch.zeros(1203))
    assert score_images(baseline(), split, torch.device("cpu")).shape == (1203,)


def test_training_learns(run, baseline):
    """An AUROC that neither an untrained model nor one that ignores its labels reaches."""
    data = FashionMNISTOneClass(run, normal_class=0, batch_size=32, limit=None)
    untrained = baseline(hidden=64, latent=8, epochs=12)
    before = score_images(untrained, data.test, data.device)
    trained = fit(untrained, data, run)
    after = evaluate(trained.model, data)
    normal = after.label == 0
    assert np.median(after.score[normal]) < 0.3 * np.median(before[normal]), "it copies normal images"
    assert np.median(after.score[~normal]) > 2 * np.median(after.score[normal]), "and does not copy anomalies"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["torchrun", "lightning"])
def test_two_processes_train_and_score_each_image_once(tmp_path, kind):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if kind == "torchrun" else []
    command = [sys.executable, *torchrun, str(SCRIPT), kind, str(tmp_path)]
    process = subprocess.run(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("in a group at the end: False") == 2, "a group that is not left can abort the process"
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["devices"] == second["devices"] == 2
    assert first["frames"] == second["frames"] == 2, "a notebook draws the film in every process"
    assert first["folder"] == second["folder"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["version_5"], "one version, not one a process"
    assert torch.equal(first["score"], second["score"])

    run, model, data = train_once.objects(tmp_path)
    alone = load(model, run, Path(first["folder"]))
    assert len(first["score"]) == len(data.test)
    np.testing.assert_allclose(first["score"], evaluate(alone.model, data).score, rtol=1e-6)
    assert alone.history["images"] == 4 * (64 // 8 // 2) * 16 * 2


def test_strategies_that_copy_the_process_are_refused(run, data, baseline):
    with pytest.raises(ValueError, match="ddp_notebook.*torchrun"):
        fit(baseline(), data, run, devices=2, strategy="ddp_notebook")


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(run, data, baseline):
    """A finite loss with an infinite gradient: seen in the weights before the losses show it."""
    model = baseline(epochs=4)
    step, batch = model.step_schedulers, iter(range(100))

    def poison():
        if next(batch) == 9:  # the last batch before the second checkpoint
            model.generator.encoder[1].weight.data[0, 0] = float("inf")
        step()

    model.step_schedulers = poison
    with pytest.raises(TrainingError, match=r"encoder.1.weight are no longer finite"):
        fit(model, data, run, checkpoint_every=5)
    kept = torch.load(run.version / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_impossible_sizes_leave_no_folder(run, data, baseline):
    data.normals_per_batch = 1000
    with pytest.raises(ValueError, match="larger than the training set"):
        fit(baseline(), data, run)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fit(baseline(epochs=0), data, run)
    assert not run.logs_dir.exists()


def test_a_version_that_another_process_trains_is_not_resumed(run, data, baseline):
    """Two kernels with the same notebook: the second must not write into the first one's folder."""
    mine = fit(baseline(), data, run).folder
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from helpers import training\n"
        f"version = Path({str(mine)!r})\n"
        "settings = training._hparams(version)\n"
        f"run = training.runtime.Run('01_baseline_gan', 'smoke', None, None, version.parent)\n"
        "print(training._unfinished(run, '', settings))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "None", result.stderr
    assert fit(baseline(), data, make_run(run.logs_dir.parent), resume=True).folder == mine, "this process may"


def test_a_reference_run_never_resumes_another_version(run, data, baseline, monkeypatch):
    fit(baseline(), data, run)
    monkeypatch.setenv("AD_VERSION", "0")
    assert fit(baseline(), data, make_run(run.logs_dir.parent), resume=True).folder.name == "version_0"
