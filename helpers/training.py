"""fit and load: Lightning's Trainer around a model, a TensorBoard version, a resume."""

import atexit
import csv
import logging
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from helpers import runtime
from helpers.callbacks import LossLogger, ReconstructionLogger
from helpers.checkpoints import (
    FINISHED,
    LAST,
    AtomicCheckpointIO,
    LastCheckpoint,
    TrainingError,
    check_finite,
    read_checkpoint,
)
from helpers.data.one_class import OneClassData
from helpers.fingerprint import code_fingerprint
from helpers.models import AnomalyModel
from helpers.versions import find_folder

# Lightning 2.6 with torch >= 2.13 warns, once per loader, about a class that Lightning itself uses
warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated", module="pytorch_lightning")

CURVES = "metrics.csv"  # all that was logged while training: batch, name, value


@dataclass
class Trained:
    """A trained model in eval mode, its TensorBoard folder, and how it was trained.

    history: seconds, images, device ...; curves: DataFrame with batch, name and value of every logged number.
    logger: None if it was loaded and has its results: nothing is written any more.
    """

    model: AnomalyModel
    folder: Path
    run: runtime.Run
    history: dict = field(default_factory=dict)
    curves: pd.DataFrame | None = None
    logger: TensorBoardLogger | None = None


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
    """Train ``model`` for ``settings["epochs"]`` epochs and log to TensorBoard; it comes back in eval mode.

    name: "" for the first training of a run, a sub-folder of its version for each further one.
    resume: a training with the same settings, data and code that was interrupted is continued, with optimisers,
        epoch and batch, and one that was finished but not reported is loaded; see ``versions.find_folder``.
        On one process a resumed training ends with the weights of the uninterrupted one.
    show: draw the reconstructions in the notebook too, not only in TensorBoard (repeated seeds need not).
    watch_every: batches between two reconstructions.  checkpoint_seconds: between two checkpoints.
    devices, trainer_options: as for Lightning's Trainer (further callbacks, for example); several devices need torchrun.

    With ``run.train`` False the reference version is loaded instead.
    Raises TrainingError if a loss is not finite or the log folder cannot be written; ValueError for no epoch, for a
    batch that is larger than the training set, and for several devices without torchrun.
    """
    if not run.train:
        return load(model, run, run.reference / name)
    if model.hparams.epochs < 1:
        raise ValueError(f"epochs must be at least 1: got {model.hparams.epochs}")
    devices, options = _torchrun(devices, model, trainer_options)
    loader = data.train_dataloader()  # before anything is written: it refuses a batch that is too large
    identity = dict(model.hparams) | data.fields()
    identity |= {"notebook": run.notebook, "model": type(model).__name__, "profile": run.profile}
    identity |= {"code_fingerprint": code_fingerprint(model), "data_fingerprint": data.fingerprint()}
    folder = find_folder(run, name, identity, resume)
    try:
        if (folder / FINISHED).exists():
            print(f"already trained with these settings, data and code: {runtime.show_path(folder)} is loaded")
            done = load(model, run, folder)
            done.logger = _Logger(folder, None)  # its report is still to be written
            return done
        model.n_batches = len(loader) * model.hparams.epochs
        losses = LossLogger(data, model.n_batches)
        return _fit(model, data, run, folder, loader, losses, show, watch_every, checkpoint_seconds, devices, options)
    except OSError as error:
        raise TrainingError(
            f"cannot write to {runtime.show_path(folder)} ({error.strerror or error}): make room or set AD_LOGS_DIR, "
            "then run again; the last checkpoint is intact"
        ) from error


def _fit(model, data, run, folder, loader, losses, show, watch_every, checkpoint_seconds, devices, options) -> Trained:
    last, checkpoint = folder / LAST, None
    if last.exists():
        try:
            behind = read_checkpoint(last)["callbacks"]["LossLogger"]["batches"]
            checkpoint = last
            print(f"continuing {runtime.show_path(folder)} after batch {behind:,} of {model.n_batches:,}")
        except (TrainingError, KeyError):
            kept = last.replace(folder / f"broken_{int(time.time())}.ckpt")
            print(f"{runtime.show_path(last)} is broken: kept as {kept.name}, this training begins again")
    # TensorBoard hides what an interrupted process logged after its last checkpoint: all of it if there is none
    begun = any(folder.glob("events.out.tfevents.*"))
    logger = _Logger(folder, (behind + 1 if checkpoint else 0) if begun else None)
    watch = ReconstructionLogger(data, watch_every, show)
    if model.large_convolutions:
        model.to(memory_format=torch.channels_last)
    precision = runtime.best_precision(run.device, model.large_convolutions)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no hardware advertisements between figures
    if run.device.type == "cuda":  # else the peak would be that of an earlier training of this process
        torch.cuda.reset_peak_memory_stats(run.device)
    trainer = pl.Trainer(
        accelerator=run.device.type,
        devices=devices,
        precision=precision,
        max_epochs=model.hparams.epochs,
        logger=logger,
        log_every_n_steps=min(50, len(loader)),
        callbacks=[
            losses,
            watch,
            LastCheckpoint(last, checkpoint_seconds, losses, loader),
            *options.pop("callbacks", []),
        ],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,  # Batches takes its own slice
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=True,
        **options,
    )
    model.train()
    with runtime.tf32(True):
        trainer.fit(model, train_dataloaders=loader, ckpt_path=checkpoint, weights_only=True)
    model.to(run.device).eval()  # Lightning moves it to the CPU when it tears down
    model.history = losses.summary() | {
        "device": runtime.device_name(run.device),
        "devices": trainer.world_size,
        "precision": precision,
        "epochs": trainer.current_epoch,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "peak_memory_mib": runtime.peak_memory_mib(run.device),
        "frames": watch.frames,
        "frame_batches": watch.frame_batches,
    }
    check_finite(model)
    if trainer.is_global_zero:
        with runtime.atomic_write(folder / CURVES) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([("batch", "name", "value"), *losses.rows])
    trainer.save_checkpoint(folder / FINISHED, weights_only=True)
    if trainer.is_global_zero:
        last.unlink(missing_ok=True)  # the finished model replaces it
    return Trained(model, folder, run, model.history, _curves(folder), logger)


def load(model: AnomalyModel, run: runtime.Run, folder: Path) -> Trained:
    """Fill ``model`` with the weights of a finished version, in eval mode.  Nothing is trained or written.

    Weights stored in half precision are used in single precision.
    Raises TrainingError if there is no checkpoint, if it is broken, or if it belongs to another model or other sizes.
    """
    path = Path(folder) / FINISHED
    if not path.exists():
        raise TrainingError(f"no checkpoint at {runtime.show_path(path)}: train first, or name a finished version")
    checkpoint = read_checkpoint(path)
    found, wanted = checkpoint.get("model_class", "unknown model"), type(model).__name__
    if found != wanted:
        raise TrainingError(f"{runtime.show_path(path)} holds a {found}, not a {wanted}")
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainingError(
            f"{runtime.show_path(path)} does not fit this model, whose code or settings are others: {reason}"
        ) from error
    model.on_load_checkpoint(checkpoint)
    model.to(run.device).eval()
    return Trained(model, Path(folder), run, model.history, _curves(Path(folder)))


def _curves(folder: Path) -> pd.DataFrame | None:
    return pd.read_csv(folder / CURVES) if (folder / CURVES).exists() else None


class _Logger(TensorBoardLogger):
    """Writes straight into ``folder`` and stays open after training, for ``report``."""

    def __init__(self, folder: Path, purge: int | None):
        super().__init__(str(folder.parent), name="", version=folder.name, default_hp_metric=False, purge_step=purge)

    def finalize(self, status: str) -> None:
        self.experiment.flush()


def _torchrun(devices: int | str, model: AnomalyModel, options: dict) -> tuple[int | str, dict]:
    """Join torchrun's processes, if it started this one; sizes from its environment."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if devices not in (1, "auto"):
            raise ValueError(f"devices={devices!r}: several devices train under torchrun (docs/multi_gpu.md)")
        return 1, options
    cuda = torch.cuda.is_available()
    if not torch.distributed.is_initialized():  # Lightning then finds the group made
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    # several backward passes a step reach only a part of the weights each
    strategy = "ddp" if model.automatic_optimization else "ddp_find_unused_parameters_true"
    return local, {"strategy": strategy, "num_nodes": int(os.environ["WORLD_SIZE"]) // local} | options


@atexit.register
def _leave_group() -> None:
    """Gloo's threads abort the process ("terminate called without an active exception") if the interpreter ends first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
