"""Checkpoints: written complete or not at all, read without executing code."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.utils._pytree import tree_map

from helpers.runtime import atomic_write, show_path

LAST, FINISHED = "last.ckpt", "model.ckpt"  # of an unfinished training, of a finished one


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


def check_finite(model: torch.nn.Module) -> None:
    """Raise TrainingError if a weight is not finite: such a model must not replace a good checkpoint."""
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise TrainingError(f"the weights of {name} are no longer finite; try a smaller learning rate")


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint.  Raises TrainingError if it is cut short, or another file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found["state_dict"].keys()
        return found
    except Exception as error:  # whatever a broken file makes pickle and zipfile raise
        problem = f"{show_path(path)} is broken ({type(error).__name__})"
        raise TrainingError(f"{problem}: train again, or bring it back from where it came") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or not there, also on another disk, to which Lightning's own writer copies."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        path, buffer = Path(path), io.BytesIO()
        # NumPy scalars, of a learning-rate schedule for instance, could not be loaded with weights_only=True
        torch.save(tree_map(lambda value: value.item() if isinstance(value, np.generic) else value, checkpoint), buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
