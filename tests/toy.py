"""A small data set and small models that every part of the course works with; most tests use nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from helpers import runtime
from helpers.data.batches import Augment, Split, to_float
from helpers.data.one_class import OneClassData
from helpers.models import AnomalyModel

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SIDE = 8
SETTINGS = {"epochs": 3, "lr": 0.01, "weight_repulsion": 0.1, "seed": 0}
BATCHES = 6  # in an epoch of ``Toy``


def make_run(folder: Path, notebook: str = "01_toy", **changes) -> runtime.Run:
    """As a new kernel on the machine that ``folder`` stands for makes it."""
    return runtime.Run(notebook, "smoke", CPU, folder / "data", folder / "logs", **changes)


class Toy(OneClassData):
    """Dark noise; anomalous images have a bright square.  ``masks`` mark them, but for that of the last test image."""

    dataset, subset, anomaly_fraction = "toy", "48 good images", 0.5
    defect_types = ("good", "dent", "scratch")

    def __init__(self, seed: int = 0, masks: bool = False):
        super().__init__(CPU, 12, 4, seed, Augment(flip=0.5, shift=0.2, noise=0.1))
        self.train, self.validation, self.test = squares(48, seed), squares(4, seed + 1, masks), squares(10, 2, masks)
        if masks:
            self.test.has_mask[-1] = self.test.mask[-1] = False


def squares(count: int, seed: int, masks: bool = False) -> Split:
    """``count`` normal images, then as many anomalous ones."""
    both, generator = 2 * count, torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (both, 1, SIDE, SIDE), generator=generator).byte()
    defect_type = torch.tensor([0] * count + [1 + place % 2 for place in range(count)])
    mask = torch.zeros(both, SIDE, SIDE, dtype=torch.bool)
    mask[count:, 2:4, 2:4], mask[defect_type == 2, 2:6, 2:6] = True, True
    images[mask[:, None]] = 250
    return Split(images, (defect_type > 0).long(), defect_type, *((mask, torch.ones(both) > 0) if masks else ()))


class ToyModel(AnomalyModel):
    """One optimiser, a schedule of NumPy's numbers, scores relative to the training images'; the mode counts."""

    def __init__(self, **changes):
        super().__init__(SETTINGS | changes)
        torch.manual_seed(self.hparams.seed)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.last = nn.Linear(8, SIDE**2)
        self.register_buffer("usual", torch.ones(()))  # learned when the training ends

    def configure_optimizers(self):
        optimizer = self.adam(self.parameters(), self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches + 1  # it sets the loader up before its position is known
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: np.float64(1 - batch / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        normal, anomalous = batch
        losses = {"reconstruction": error(self, normal).mean()}
        losses["repulsion"] = torch.relu(1 - error(self, anomalous)).mean()
        self.record(losses)
        return self.weighted_sum(losses)

    def on_train_end(self):
        with torch.no_grad():
            self.usual.copy_(error(self.eval(), to_float(self.trainer.train_dataloader.images)).mean())

    def reconstruct(self, x):
        return self.last(self.net(x)).view_as(x)

    def anomaly_score(self, x):
        return error(self, x) / self.usual


def error(model: AnomalyModel, x: torch.Tensor) -> torch.Tensor:
    return (x - model.reconstruct(x)).square().mean((1, 2, 3))


class WithMap(ToyModel):
    """It can also say where."""

    def anomaly_map(self, x):
        return (x - self.reconstruct(x)).square().mean(1)


class Adversarial(ToyModel):
    """Two optimisers that step by hand."""

    automatic_optimization = False

    def __init__(self, **changes):
        super().__init__(**changes)
        self.decide = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 1))

    def configure_optimizers(self):
        generator = [*self.net.parameters(), *self.last.parameters()]
        return [self.adam(part, self.hparams.lr) for part in (generator, self.decide.parameters())]

    def training_step(self, batch, batch_idx):
        normal, fake = batch[0], self.reconstruct(batch[0])
        losses = {"reconstruction": (normal - fake).square().mean()}
        losses["adversarial"] = (self.decide(fake) - 1).square().mean()
        real_or_fake = (self.decide(normal) - 1).square().mean() + self.decide(fake.detach()).square().mean()
        for optimizer, loss in zip(self.optimizers(), (self.weighted_sum(losses), real_or_fake), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.record(losses | {"discriminator": real_or_fake})


def events(folder: Path) -> EventAccumulator:
    """All that TensorBoard has of a version."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def stopped(model: AnomalyModel, batch: int, error: BaseException | None = None, hook: str = "on_train_batch_start"):
    """``model``, whose training ends with ``error`` in ``hook`` when that is called for the ``batch``-th time, from 0."""
    before, calls = getattr(model, hook), iter(range(10**9))

    def stop(*args):
        if next(calls) == batch:
            raise error or RuntimeError("stopped")
        return before(*args)

    setattr(model, hook, stop)
    return model


def assert_same(first, second):
    """The same weights and the same curves, but for the speed; and not because it began again."""
    assert not list(first.folder.glob("broken*"))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    one, two = (found.curves.query("name != 'speed/images_per_second'") for found in (first, second))
    pd.testing.assert_frame_equal(one, two)
