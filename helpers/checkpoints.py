"""Checkpoints: written complete or not at all, found again after a kill, read without executing code."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.utils._pytree import tree_map

from helpers.data.batches import Batches
from helpers.runtime import show_path

LAST, FINISHED = "last.ckpt", "model.ckpt"  # of an unfinished training, of a finished one


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


def check_finite(model: torch.nn.Module) -> None:
    """Raise TrainingError if a weight is not finite: such a model must not replace a good checkpoint."""
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise TrainingError(
                f"the weights of {name} are no longer finite: training stopped; try a smaller learning rate"
            )


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint.  Raises TrainingError if it is cut short, or another file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found["state_dict"].keys()
        return found
    except Exception as error:  # whatever a broken file makes pickle and zipfile raise
        raise TrainingError(
            f"{show_path(path)} is broken ({type(error).__name__}): train again, or bring it back from where it came"
        ) from error


class LastCheckpoint(pl.callbacks.Checkpoint):
    """A full checkpoint (weights, optimisers, position, logs) at most every ``seconds``, the newest kept.

    Lightning's ModelCheckpoint saves by time only where optimisation is automatic.  No checkpoint is written at the
    last batch of an epoch but at the end of that epoch, after the model's ``on_train_epoch_end``, which a resumed
    training would otherwise leave out.
    """

    def __init__(self, path: Path, seconds: float, losses, loader: Batches):
        self.path, self.seconds, self.losses, self.loader = path, seconds, losses, loader

    def state_dict(self) -> dict:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict) -> None:
        # Lightning restores a loader's position only if nobody asked for its length in configure_optimizers
        self.loader.load_state_dict(state)

    def on_train_start(self, trainer, model) -> None:
        self.clock = time.monotonic()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if not trainer.is_last_batch and (trainer.world_size == 1 or batch_idx % 100 == 99):
            self.save(trainer, model)

    def on_train_epoch_end(self, trainer, model) -> None:
        self.save(trainer, model)

    def save(self, trainer, model) -> None:
        """Write the checkpoint if it is time, all processes together."""
        if trainer.strategy.broadcast(time.monotonic() - self.clock >= self.seconds):
            self.losses.read(trainer, model)  # refuses to go on with a loss that is not finite
            check_finite(model)
            trainer.save_checkpoint(self.path)
            self.clock = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or not there: written beside, flushed to disk, then renamed.

    Lightning's own writer moves the file over from the system's temporary folder, which is a copy,
    and so can be cut short, when the logs are on another disk (Colab's Drive).
    """

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        path, buffer = Path(path), io.BytesIO()
        # NumPy scalars, of a learning-rate schedule for instance, could not be loaded with weights_only=True
        torch.save(tree_map(lambda value: value.item() if isinstance(value, np.generic) else value, checkpoint), buffer)
        unfinished = path.with_name(path.name + ".part")
        try:
            with unfinished.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            kept = "the previous one is intact" if path.exists() else "there is no earlier one"
            raise TrainingError(
                f"could not write the checkpoint {path.name} ({error.strerror}); {kept}. Make room, then run again"
            ) from error
