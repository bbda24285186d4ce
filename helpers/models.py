"""The base class of every model: named losses, and predictions that do not depend on batch, order or mode."""

from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from helpers import runtime
from helpers.data.batches import Split, rank_and_world, to_float
from helpers.progress import Line


class AnomalyModel(pl.LightningModule):
    """What every model has in common.  Images are (N, C, H, W) in [-1, 1]; settings: a flat dict, ``self.hparams``.

    A subclass defines its networks, ``configure_optimizers``, ``training_step(batch, batch_idx)`` with
    batch = (normal, anomalous), ``reconstruct(x)`` -> image like x, ``anomaly_score(x)`` -> (N,), higher is more
    anomalous, and where it can say which pixels are anomalous, ``anomaly_map(x)`` -> (N, H, W); if the score comes
    from the map, ``score_of_map(maps)`` -> (N,) instead of ``anomaly_score``, and both cost one pass.
    A model without gradients defines ``learn(data)`` instead of optimisers, training step and reconstruction.
    """

    large_convolutions = False  # True where they take the time: then channels_last, and fp16 on older GPUs
    n_batches = 0  # of the whole training, for schedules: set by ``fit`` (Lightning's number counts optimiser steps)

    def __init__(self, settings: dict):
        super().__init__()
        self.save_hyperparameters(settings)
        self.batch_losses: list[Tensor] = []  # on the device: read by LossLogger
        self.loss_names: tuple[str, ...] = ()
        self.history: dict = {}  # how it was trained; travels inside the checkpoint

    def _undefined(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    reconstruct = anomaly_map = _undefined
    score_of_map: Callable[[Tensor], Tensor] | None = None

    def anomaly_score(self, x: Tensor) -> Tensor:
        return self.score_of_map(self.anomaly_map(x))

    @property
    def has_map(self) -> bool:
        """Whether the subclass defines ``anomaly_map``."""
        return type(self).anomaly_map is not AnomalyModel.anomaly_map

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum of the losses, each times its ``weight_<name>`` from the settings (1 if there is none)."""
        return sum(self.hparams.get(f"weight_{name}", 1.0) * loss for name, loss in losses.items())

    def record(self, losses: dict[str, Tensor]) -> None:
        """Log this batch's losses under their names; nothing is copied to the host here."""
        self.loss_names = tuple(losses)
        self.batch_losses.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def adam(self, parameters, lr: float) -> torch.optim.Adam:
        """Adam with the settings' ``beta1`` (0.9) and ``weight_decay`` (0); fused, as a small step is mostly overhead."""
        betas, decay = (self.hparams.get("beta1", 0.9), 0.999), self.hparams.get("weight_decay", 0.0)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint |= {"model_class": type(self).__name__, "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history = checkpoint.get("history", {})


def top_share(maps: Tensor, share: float) -> Tensor:
    """(N,) mean of the largest ``share``, in (0, 1], of each map (N, H, W): a defect is small; at least one value."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1]))).values.mean(1)


def score_images(model: AnomalyModel, split: Split) -> np.ndarray:
    """(N,) float64 anomaly scores of a split."""
    return predict(model, model.anomaly_score, split).double().numpy()


def map_images(model: AnomalyModel, split: Split) -> np.ndarray:
    """(N, H, W) float32 anomaly maps of a split."""
    return predict(model, model.anomaly_map, split).float().numpy()


def scores_and_maps(model: AnomalyModel, split: Split) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores and maps of a split; no maps where the model has none, or nobody marked defects to compare them with."""
    maps = map_images(model, split) if model.has_map and split.mask is not None else None
    if maps is None or model.score_of_map is None:
        return score_images(model, split), maps
    return model.score_of_map(torch.from_numpy(maps)).double().numpy(), maps


@torch.no_grad()
def predict(model: AnomalyModel, function: Callable[[Tensor], Tensor], split: Split) -> Tensor:
    """``function`` of all images of a split, in their order, in eval mode and full float32, on the CPU.

    function: (n, C, H, W) in [-1, 1] on the model's device -> (n, ...).  The model stays in eval mode.
    Under DDP each process computes a part and all get the whole.
    """
    rank, world = rank_and_world()
    model.eval()
    mine, chunks, line = [], split.chunks()[rank::world], Line(wait=5)
    with runtime.tf32(False):
        for chunk in chunks:
            mine.append(function(to_float(chunk, model.device)))
            line.show(f"part {len(mine)} of {len(chunks)} of the images")
    if line.visible:
        line.show("", last=True)
    everyone = [[values.cpu() for values in mine]] * world
    if world > 1:
        torch.distributed.all_gather_object(everyone, everyone[rank])
    count = sum(len(part) for part in everyone)
    return torch.cat([everyone[chunk % world][chunk // world] for chunk in range(count)])
