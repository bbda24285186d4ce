"""fit and load: what comes back, what a kill leaves, and what goes wrong in one clear error."""

import errno
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from helpers import checkpoints, runtime
from helpers.checkpoints import TrainingError
from helpers.metrics import auroc
from helpers.models import score_images
from helpers.training import fit, load
from tests.toy import BATCHES, ROOT, Adversarial, Toy, ToyModel, assert_same, make_run, stopped

pytestmark = pytest.mark.usefixtures("no_figures")
KINDS = pytest.mark.parametrize("kind", [ToyModel, Adversarial])


def train(model, run, data=None, **options):
    return fit(model, data or Toy(), run, show=False, **{"checkpoint_seconds": 0} | options)


def interrupt(model, run, *when, **how):
    """A training of ``model`` that is stopped (see ``stopped``)."""
    with pytest.raises(RuntimeError, match="stopped"):
        train(stopped(model, *when, **how), run)


def test_a_trained_and_a_loaded_model_have_learned_and_are_in_eval_mode_and_score_alike(trained, run):
    loaded, test = load(ToyModel(), run, trained.folder), Toy().test
    assert not any(module.training for found in (trained, loaded) for module in found.model.modules())
    assert np.array_equal(*(score_images(found.model, test) for found in (trained, loaded)))
    untrained, after = (auroc(score_images(model, test), test.label) for model in (ToyModel(), trained.model))
    assert after > 0.95 > untrained


def test_history_and_curves_travel_with_the_version(trained, run):
    loaded = load(ToyModel(), run, trained.folder)
    assert (loaded.history["batches"], loaded.history["images"], loaded.history["epochs"]) == (18, 18 * 12, 3)
    assert loaded.history["parameters"] == sum(weights.numel() for weights in trained.model.parameters())
    assert loaded.history["frame_batches"] == [0, 18] and loaded.history["precision"] == "32-true"
    assert loaded.curves.query("name == 'loss/repulsion'")["batch"].tolist() == [6, 12, 18]
    names = sorted(path.name.split(".")[0] for path in trained.folder.iterdir() if path.name != ".lock")
    assert names == ["events", "hparams", "metrics", "model", "reconstructions"]


def test_without_training_the_reference_is_loaded_by_its_name(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    folder = tmp_path / "lightning_logs" / "version_2" / "seed_1"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(trained.folder)
    run = make_run(tmp_path, "03_toy", train=False)
    assert train(ToyModel(), run, name="seed_1").folder == folder
    assert not run.logs_dir.exists()


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@KINDS
def test_lightning_counts_every_step_for_its_own_callbacks_and_the_schedule_every_batch(run, kind):
    stock = ModelCheckpoint(run.logs_dir / "stock", "{step}", every_n_train_steps=4, save_top_k=-1)
    model = train(kind(epochs=2), run, callbacks=[stock], limit_val_batches=7).model
    assert model.trainer.limit_val_batches == 7, "its other options are its own, too"
    steps = 2 * BATCHES * len(model.trainer.optimizers)
    assert model.n_batches == 2 * BATCHES
    expected = {f"step={step}.ckpt" for step in range(4, steps + 1, 4)}
    assert {path.name for path in (run.logs_dir / "stock").iterdir()} == expected
    if kind is ToyModel:
        assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 / (2 * BATCHES + 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, trained):
    """Uninterrupted trainings by their class, with checkpoints as often as the interrupted ones."""
    found = {kind: train(kind(), make_run(tmp_path_factory.mktemp("whole"))) for kind in (ToyModel, Adversarial)}
    rare = trained.model.state_dict()  # checkpoints do not change a training
    assert all(torch.equal(rare[name], value) for name, value in found[ToyModel].model.state_dict().items())
    return found


BEFORE, AFTER = "on_train_batch_start", "on_train_batch_end"
STOPS = [(0, BEFORE), (8, BEFORE), (12, BEFORE), (11, AFTER), (17, AFTER)]  # 11 and 17 are the last of an epoch
STOPS += [(1, "on_train_epoch_end"), (2, "on_train_epoch_end"), (0, "on_train_end")]


@pytest.mark.parametrize(("calls", "hook"), STOPS)
@KINDS
def test_a_training_stopped_anywhere_ends_with_the_same_weights_and_curves(run, whole, kind, calls, hook):
    interrupt(kind(), run, calls, hook=hook)
    torch.manual_seed(987)  # a new process has another random state
    again = train(kind(), make_run(run.logs_dir.parent))
    assert again.folder == run.version and again.history["batches"] == 3 * BATCHES
    assert_same(again, whole[kind])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_the_stop_button_leaves_a_training_to_continue(run, whole, capsys, error):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(stopped(ToyModel(), 8, error), run)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on; a notebook sets it for each cell
    assert_same(train(ToyModel(), run), whole[ToyModel])
    assert "after batch 8 of 18" in capsys.readouterr().out


def test_a_killed_process_is_continued_to_the_same_weights(tmp_path, whole):
    code = (
        "import os, signal, sys, torch\nfrom pathlib import Path\ntorch.set_num_threads(1)\n"
        "from helpers.training import fit\nfrom tests.toy import Adversarial, Toy, make_run\n"
        "model, count = Adversarial(), iter(range(99))\n"
        "model.on_train_batch_start = lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(count) == 11 else None\n"
        "fit(model, Toy(), make_run(Path(sys.argv[1])), show=False, checkpoint_seconds=0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    last = tmp_path / "logs" / "version_10" / "last.ckpt"
    assert last.exists()
    again = train(Adversarial(), make_run(tmp_path))
    assert again.folder == last.parent and not last.exists()
    assert_same(again, whole[Adversarial])


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "html": lambda path: path.write_bytes(b"<html>"),
    "foreign": lambda path: torch.save({"state_dict": {}, "callbacks": {}}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_kept_aside_and_the_training_begins_again(run, whole, capsys, damage):
    interrupt(ToyModel(), run, 8)
    DAMAGES[damage](run.version / "last.ckpt")
    broken = (run.version / "last.ckpt").read_bytes()
    again = train(ToyModel(), make_run(run.logs_dir.parent))
    assert "is broken: kept as broken_" in capsys.readouterr().out
    (aside,) = again.folder.glob("broken_*.ckpt")
    assert aside.read_bytes() == broken
    aside.unlink()
    assert_same(again, whole[ToyModel])


def poisoned(model, batch, value):
    """``model``, whose second loss becomes ``value`` in the ``batch``-th batch."""
    record = model.record

    def spoil(losses):
        name = list(losses)[1]
        record(losses | {name: losses[name] * (value if model.trainer.fit_loop.total_batch_idx == batch else 1)})

    model.record = spoil
    return model


@KINDS
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(run, kind):
    with pytest.raises(TrainingError, match=r"'\w+' became nan at batch 8 \(epoch 1\).*last good checkpoint stays"):
        train(poisoned(kind(), 8, float("nan")), run)
    kept = torch.load(run.version / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["LossLogger"]["batches"] == 8
    with pytest.raises(TrainingError, match="inf at batch 2 .*There is no checkpoint yet"):
        train(poisoned(kind(), 2, float("inf")), run, checkpoint_seconds=60, resume=False)


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(run):
    """A finite loss with an infinite gradient: seen in the weights before the losses show it."""
    model = ToyModel()

    def poison(*args):
        if model.trainer.fit_loop.total_batch_idx == 9:
            model.last.weight.data[0, 0] = float("inf")

    model.on_before_zero_grad = poison
    with pytest.raises(TrainingError, match="weights of .* are no longer finite"):
        train(model, run)
    kept = torch.load(run.version / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_a_disk_that_fills_while_checkpointing_keeps_the_previous_checkpoint(run, whole, monkeypatch):
    calls = iter(range(99))

    def full(descriptor):
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot write to .*version_10 \(No space.*AD_LOGS_DIR.*, is intact"):
        train(ToyModel(), run)
    assert not list(run.version.glob("*.part"))
    assert_same(train(ToyModel(), make_run(run.logs_dir.parent)), whole[ToyModel])


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer is a thread
@pytest.mark.parametrize("size", [100, 3000])
def test_a_disk_that_really_ends_is_one_clear_error(run, size):
    """The operating system refuses to write: at first the settings, later TensorBoard's events or a checkpoint."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(TrainingError, match="cannot write to"):
            train(ToyModel(), run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train(ToyModel(), make_run(run.logs_dir.parent)).history["batches"] == 18


def test_impossible_sizes_leave_no_folder(run):
    data = Toy()
    data.normals_per_batch = 1000
    with pytest.raises(ValueError, match="a batch of 1000 normal images"):
        train(ToyModel(), run, data)
    with pytest.raises(ValueError, match="epochs must be at least 1: got 0"):
        train(ToyModel(epochs=0), run)
    with pytest.raises(ValueError, match="several devices train under torchrun"):
        train(ToyModel(), run, devices=2)
    assert not run.logs_dir.exists()


def test_a_checkpoint_that_is_broken_or_does_not_fit_is_one_clear_error(trained, run, tmp_path):
    wider = ToyModel()
    wider.last = torch.nn.Linear(8, 65)  # as after an edit of the class
    with pytest.raises(TrainingError, match="does not fit this model, whose code or settings .*: size mismatch"):
        load(wider, run, trained.folder)
    with pytest.raises(TrainingError, match="holds a ToyModel, not a Adversarial"):
        load(Adversarial(), run, trained.folder)
    with pytest.raises(TrainingError, match="no checkpoint at .*: train first"):
        load(ToyModel(), run, tmp_path)
    for content in (b"<html>", b"", pickle.dumps([1, 2], 2)):
        (tmp_path / "model.ckpt").write_bytes(content)
        with pytest.raises(TrainingError, match="model.ckpt is broken .*train again, or bring it back"):
            load(ToyModel(), run, tmp_path)
