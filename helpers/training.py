"""fit and load: Lightning's Trainer around a model, a TensorBoard version, a resume."""

import atexit
import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from helpers import runtime
from helpers.callbacks import LastCheckpoint, LossLogger, ReconstructionLogger
from helpers.checkpoints import FINISHED, LAST, AtomicCheckpointIO, TrainingError, check_finite, read_checkpoint
from helpers.data.one_class import OneClassData
from helpers.fingerprint import code_fingerprint
from helpers.models import AnomalyModel
from helpers.versions import find_folder

# Lightning 2.6 with torch >= 2.13 warns, once per loader, about a class that Lightning itself uses
warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated", module="pytorch_lightning")
CURVES = "metrics.csv"  # all that was logged while training: batch, name, value


@dataclass
class Trained:
    """A trained model in eval mode, its folder, how it was trained, and (batch, name, value) of all that was logged."""

    model: AnomalyModel
    folder: Path
    run: runtime.Run
    history: dict
    curves: pd.DataFrame | None
    logger: TensorBoardLogger | None = None  # None if it was loaded and nothing is to be written any more


def fit(
    model: AnomalyModel,
    data: OneClassData,
    run: runtime.Run,
    *,
    name: str = "",
    resume: bool = True,
    show: bool = True,
    watch_every: int = 100,
    checkpoint_seconds: float = 60.0,
    devices: int | str = "auto",
    **trainer_options,
) -> Trained:
    """Train for ``settings["epochs"]`` epochs, or load the reference version if ``run.train`` is False.

    A model with ``learn(data)`` instead of a training step learns each time: nothing is stored, as it takes seconds.
    name: "" for the first training of a run, a sub-folder of its version for each further one.
    resume: continue an interrupted training with the same settings, data and code, on one process to the same weights;
        load a finished one that was not reported.
    show: draw the reconstructions in the notebook too.  watch_every: batches between two of them.
    devices, trainer_options: as for Lightning's Trainer (more callbacks, say); several devices need torchrun.
    Raises TrainingError if a loss is not finite or the log folder cannot be written; ValueError for no epoch, for a
    batch that is larger than the training set, and for several devices without torchrun.
    """
    learns = hasattr(model, "learn")
    if not run.train:
        return _learned(model, data, run, run.reference / name) if learns else load(model, run, run.reference / name)
    if not learns:
        if model.hparams.epochs < 1:
            raise ValueError(f"epochs must be at least 1: got {model.hparams.epochs}")
        options = _processes(devices, model) | trainer_options
        loader = data.train_dataloader()  # before anything is written: it refuses a batch that is too large
    identity = dict(model.hparams) | data.fields()
    identity |= {"notebook": run.notebook, "model": type(model).__name__, "profile": run.profile}
    identity |= {"code_fingerprint": code_fingerprint(model), "data_fingerprint": data.fingerprint()}
    try:
        folder = find_folder(run, name, identity, resume)
        if learns:
            trained, logger = _learned(model, data, run, folder), _logger(folder)
        elif (folder / FINISHED).exists():
            print(f"already trained with these settings, data and code: {runtime.show_path(folder)} is loaded")
            trained, logger = load(model, run, folder), _logger(folder)  # its report is still to be written
        else:
            model.n_batches = len(loader) * model.hparams.epochs
            losses, watch = LossLogger(data, model.n_batches), ReconstructionLogger(data, watch_every, show)
            last = LastCheckpoint(folder / LAST, checkpoint_seconds, losses, loader)
            options["callbacks"] = [losses, watch, last, *options.get("callbacks", [])]
            logger = _train(model, run, folder, loader, losses, watch, options)
            trained = load(model, run, folder)
    except OSError as error:
        where = runtime.show_path((run.version or run.logs_dir) / name)
        advice = "make room or set AD_LOGS_DIR, then run again; the last checkpoint, if there is one, is intact"
        raise TrainingError(f"cannot write to {where} ({error.strerror or error}): {advice}") from error
    trained.logger = logger
    return trained


def _learned(model: AnomalyModel, data: OneClassData, run: runtime.Run, folder: Path) -> Trained:
    """The model after it learned from all training images, without gradients."""
    model.to(run.device).eval()
    start = time.perf_counter()
    with torch.no_grad(), runtime.tf32(False):
        model.learn(data)
    seconds, count = time.perf_counter() - start, len(data.train)
    model.history = {"train_seconds": round(seconds, 2), "images": count, "batches": 0} | _facts(model, run)
    model.history["images_per_second"] = round(count / seconds)
    model.history["parameters"] += sum(values.numel() for values in model.buffers())  # the memory is what it learned
    return Trained(model, folder, run, model.history, None)


def _facts(model: AnomalyModel, run: runtime.Run) -> dict:
    parameters, memory = sum(weights.numel() for weights in model.parameters()), runtime.peak_memory_mib(run.device)
    return {"device": runtime.device_name(run.device), "parameters": parameters, "peak_memory_mib": memory}


def _train(model, run, folder, loader, losses, watch, options) -> TensorBoardLogger:
    """Continue from the last checkpoint of ``folder`` or begin, and leave the finished model there."""
    last, checkpoint, done = folder / LAST, None, -1
    if last.exists():
        try:
            done = read_checkpoint(last)["callbacks"]["LossLogger"]["batches"]
            checkpoint = last
            print(f"continuing {runtime.show_path(folder)} after batch {done:,} of {model.n_batches:,}")
        except (TrainingError, KeyError):
            kept = last.replace(folder / f"broken_{int(time.time())}.ckpt")
            print(f"{runtime.show_path(last)} is broken: kept as {kept.name}, this training begins again")
    # TensorBoard hides what an interrupted process logged after its last checkpoint: all of it if there is none
    logger = _logger(folder, purge=done + 1 if any(folder.glob("events.out.tfevents.*")) else None)
    if model.large_convolutions:
        model.to(memory_format=torch.channels_last)
    precision = runtime.best_precision(run.device, model.large_convolutions)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no hardware advertisements between figures
    if run.device.type == "cuda":  # else the peak would be that of an earlier training of this process
        torch.cuda.reset_peak_memory_stats(run.device)
    fixed = {"accelerator": run.device.type, "precision": precision, "max_epochs": model.hparams.epochs}
    fixed |= {"logger": logger, "log_every_n_steps": min(50, len(loader)), "plugins": [AtomicCheckpointIO()]}
    fixed |= {"enable_progress_bar": False, "enable_model_summary": False, "benchmark": True}
    trainer = pl.Trainer(use_distributed_sampler=False, **fixed, **options)  # Batches takes its own slice
    model.train()
    with runtime.tf32(True):
        trainer.fit(model, train_dataloaders=loader, ckpt_path=checkpoint, weights_only=True)
    model.history = watch.film | losses.summary() | _facts(model, run) | {"devices": trainer.world_size}
    model.history |= {"precision": precision, "epochs": trainer.current_epoch}
    check_finite(model)
    if trainer.is_global_zero:
        with runtime.atomic_write(folder / CURVES) as part:
            pd.DataFrame(losses.rows, columns=["batch", "name", "value"]).to_csv(part, index=False)
    trainer.save_checkpoint(folder / FINISHED, weights_only=True)
    if trainer.is_global_zero:  # the finished model replaces the last checkpoint, whole or half-written
        for path in folder.glob(f"{LAST}*"):
            path.unlink()
    return logger


def load(model: AnomalyModel, run: runtime.Run, folder: Path) -> Trained:
    """Fill ``model`` with the weights of a finished version, in eval mode.  Nothing is trained or written.

    Raises TrainingError if there is no checkpoint, if it is broken, or if it belongs to another model or other sizes.
    """
    path = Path(folder) / FINISHED
    shown, wanted = runtime.show_path(path), type(model).__name__
    if not path.exists():
        raise TrainingError(f"no checkpoint at {shown}: train first, or name a finished version")
    checkpoint = read_checkpoint(path)
    if (found := checkpoint.get("model_class", "unknown model")) != wanted:
        raise TrainingError(f"{shown} holds a {found}, not a {wanted}")
    try:
        model.load_state_dict(checkpoint["state_dict"])  # of half precision too
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise TrainingError(f"{shown} does not fit this model, whose code or settings are others: {why}") from error
    model.on_load_checkpoint(checkpoint)
    model.to(run.device).eval()
    curves = pd.read_csv(path.with_name(CURVES)) if path.with_name(CURVES).exists() else None
    return Trained(model, Path(folder), run, model.history, curves)


def _logger(folder: Path, purge: int | None = None) -> TensorBoardLogger:
    """It writes straight into ``folder`` and stays open after training, for ``report``."""
    logger = TensorBoardLogger(folder.parent, "", folder.name, default_hp_metric=False, purge_step=purge)
    logger.finalize = lambda status: logger.experiment.flush()
    return logger


def _processes(devices: int | str, model: AnomalyModel) -> dict:
    """The Trainer's options for this process alone, or for those of torchrun, whose group it joins."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if devices not in (1, "auto"):
            raise ValueError(f"devices={devices!r}: several devices train under torchrun (docs/multi_gpu.md)")
        return {"devices": 1}
    cuda = torch.cuda.is_available()
    if not torch.distributed.is_initialized():  # Lightning then finds the group made
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
        atexit.register(torch.distributed.destroy_process_group)  # Gloo's threads abort a process that keeps its group
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    # several backward passes a step reach only a part of the weights each
    strategy = "ddp" if model.automatic_optimization else "ddp_find_unused_parameters_true"
    return {"devices": local, "strategy": strategy, "num_nodes": int(os.environ["WORLD_SIZE"]) // local}
