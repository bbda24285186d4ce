"""Base classes: a notebook states networks, losses by name and a score; the steps are taken here."""

from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from helpers.data.loader import Split, rank_and_world, to_float


class AnomalyModel(pl.LightningModule):
    """What every model of the course has in common; see its two subclasses.

    settings: one flat dict of plain scalars; it is stored in checkpoints and in hparams.yaml.
    A notebook's class defines its networks, its losses, ``reconstruct(x)`` -> image like x, and
    ``anomaly_score(x)`` -> (N,), higher is more anomalous; where it can say which pixels are anomalous,
    ``anomaly_map(x)`` -> (N, H, W) too.  Images are (N, C, H, W) in [-1, 1].
    A loss named ``a`` is multiplied by the setting ``weight_a`` (1 if there is none).
    """

    automatic_optimization = False  # one loop for one and for two optimisers
    large_convolutions = False  # True where they take the time: then channels_last, and bf16 on CPUs that have it

    def __init__(self, settings: dict):
        super().__init__()
        self.save_hyperparameters(settings)
        self.batch_losses: list[Tensor] = []  # unweighted, on the device: read by the Record callback
        self.loss_names: tuple[str, ...] = ()
        self.history: dict = {}  # how it was trained; travels inside the checkpoint

    def reconstruct(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def anomaly_score(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def anomaly_map(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def has_map(self) -> bool:
        """Whether the notebook's class defines ``anomaly_map``."""
        return type(self).anomaly_map is not AnomalyModel.anomaly_map

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum of the losses, each times its ``weight_<name>`` from the settings."""
        return sum(self.hparams.get(f"weight_{name}", 1.0) * loss for name, loss in losses.items())

    def remember(self, losses: dict[str, Tensor]) -> None:
        """Keep this batch's losses on the device; nothing is copied to the host here."""
        self.loss_names = tuple(losses)
        self.batch_losses.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def descend(self, optimizer, loss: Tensor) -> None:
        """One gradient step, without Lightning's wrappers around backward() and step().

        They would cost as much as the network itself where that is small, for hooks that nobody uses;
        what DDP needs before a backward pass is called here.
        """
        optimizer.zero_grad()
        self.trainer.strategy.pre_backward(loss)
        loss.backward()
        optimizer.step()

    def step_schedulers(self) -> None:
        """Advance learning-rate schedules, if the model has any, by one batch."""
        schedulers = self.lr_schedulers() or ()
        for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else (schedulers,):
            scheduler.step()

    def adam(self, parameters, lr: float):
        """Adam with the settings' ``beta1`` and ``weight_decay``; fused, as a small network's step is mostly overhead."""
        betas, decay = (self.hparams.get("beta1", 0.9), 0.999), self.hparams.get("weight_decay", 0.0)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # it was cut on the device

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["model_class"] = type(self).__name__
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history = checkpoint.get("history", {})


class OneLossModel(AnomalyModel):
    """A model trained by one optimiser.  Define ``losses(normal, anomalous) -> {name: scalar}``.

    Settings read here: ``lr``, ``beta1`` (0.9), ``weight_decay`` (0).
    """

    def losses(self, normal: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def configure_optimizers(self):
        return self.adam(self.parameters(), self.hparams.lr)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        losses = self.losses(*batch)
        self.descend(self.optimizers(use_pl_optimizer=False), self.weighted_sum(losses))
        self.step_schedulers()
        self.remember(losses)


class AdversarialModel(AnomalyModel):
    """A generator against discriminators: two optimisers, one forward pass of the generator per batch.

    The notebook's class holds the networks as ``self.generator`` and ``self.discriminators`` and defines
    ``generate(normal, anomalous) -> {name: tensor}``, what the generator makes of the batch, and
    ``discriminator_losses(normal, anomalous, made)`` (``made`` detached) and
    ``generator_losses(normal, anomalous, made)`` (discriminators frozen), each ``-> {name: scalar}``.
    Settings read here: ``lr``, ``lr_discriminator`` (lr), ``beta1`` (0.9), ``weight_decay`` (0).
    """

    generator: torch.nn.Module
    discriminators: torch.nn.Module

    def generate(self, normal: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def discriminator_losses(self, normal: Tensor, anomalous: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def generator_losses(self, normal: Tensor, anomalous: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def configure_optimizers(self):
        lr = self.hparams.lr
        return [
            self.adam(self.generator.parameters(), lr),
            self.adam(self.discriminators.parameters(), self.hparams.get("lr_discriminator", lr)),
        ]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for_generator, for_discriminators = self.optimizers(use_pl_optimizer=False)
        made = self.generate(*batch)
        found = self.discriminator_losses(*batch, {name: value.detach() for name, value in made.items()})
        self.descend(for_discriminators, self.weighted_sum(found))
        self.discriminators.requires_grad_(False)  # the generator's step needs no gradients of their weights
        fooled = self.generator_losses(*batch, made)
        self.descend(for_generator, self.weighted_sum(fooled))
        self.discriminators.requires_grad_(True)
        self.step_schedulers()
        self.remember(fooled | found)


def score_images(model: AnomalyModel, split: Split, device: torch.device) -> np.ndarray:
    """(N,) float64 anomaly scores of a split, independent of batches and of the training mode."""
    return of_images(model, model.anomaly_score, split, device).double().numpy()


def map_images(model: AnomalyModel, split: Split, device: torch.device) -> np.ndarray:
    """(N, H, W) float32 anomaly maps of a split, independent of batches and of the training mode."""
    return of_images(model, model.anomaly_map, split, device).float().numpy()


def of_images(model: AnomalyModel, function: Callable[[Tensor], Tensor], split: Split, device: torch.device) -> Tensor:
    """``function`` of all images of a split, on the CPU; under DDP each process computes a part and all get the whole."""
    rank, world = rank_and_world()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        mine = [function(to_float(chunk, device)) for chunk in split.chunks()[rank::world]]
    model.train(was_training)
    mine = [values.cpu() for values in mine]
    if world == 1:
        return torch.cat(mine)
    everyone: list = [None] * world
    torch.distributed.all_gather_object(everyone, mine)
    count = sum(len(part) for part in everyone)
    return torch.cat([everyone[chunk % world][chunk // world] for chunk in range(count)])
