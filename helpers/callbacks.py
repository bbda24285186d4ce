"""What happens around a training step: losses recorded, reconstructions shown, checkpoints kept."""

import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.nn import functional as F

from helpers import metrics, plots
from helpers.data.loader import OneClassData, to_float, to_uint8
from helpers.models import map_images, score_images

LAST = "last.ckpt"  # of an unfinished training
WINDOW = 20  # batches between two readings of the losses: the only regular host synchronisation
FRAMES = 12
FRAME_SIDE = 64


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside, flushed to disk, then renamed.

    Lightning's own writer moves the file over from the system's temporary folder, which is a copy,
    and so can be cut short, when the logs are on another disk (Colab's Drive).
    """

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        path = Path(path)
        unfinished = path.with_name(path.name + ".part")
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
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
                f"could not write the checkpoint {path.name} ({error.strerror}); {kept}. Make room, then fit(..., resume=True)"
            ) from error


def check_finite(model: torch.nn.Module) -> None:
    """Raise TrainingError if a weight is not finite: such a model must not replace a good checkpoint."""
    bad = [name for name, weights in model.named_parameters() if not torch.isfinite(weights).all()]
    if bad:
        raise TrainingError(
            f"the weights of {bad[0]} are no longer finite: training stopped; try a smaller learning rate"
        )


class Record(pl.Callback):
    """Every loss under its name, the speed, and about ten times the scores of the held-out images.

    Losses stay on the device and are read once per ``WINDOW`` batches.  Raises TrainingError at the
    first loss that is not finite, before any checkpoint of it can be written.
    """

    def __init__(self, data: OneClassData):
        self.data = data
        self.seconds, self.batches = 0.0, 0
        self.batch_size = data.normals_per_batch + data.anomalies_per_batch

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "batches": self.batches}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.batches = state["seconds"], state["batches"]

    def on_train_start(self, trainer, model) -> None:
        model.batch_losses.clear()  # of an earlier fit that was stopped
        self.world = trainer.world_size
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if len(model.batch_losses) >= WINDOW:
            self.read(trainer, model)

    def on_train_epoch_end(self, trainer, model) -> None:
        self.read(trainer, model)
        done = trainer.current_epoch + 1
        if done % max(1, trainer.max_epochs // 10) and done < trainer.max_epochs:
            return  # about ten points make a curve; more would only cost time
        split = self.data.validation
        scores, label = score_images(model, split, self.data.device), split.label.cpu().numpy()
        writer, step = trainer.logger.experiment, self.batches  # on the other processes it does nothing
        writer.add_scalar("validation/score_normal", scores[label == 0].mean(), step)
        if label.any():
            writer.add_scalar("validation/score_anomalous", scores[label == 1].mean(), step)
            writer.add_scalar("validation/auroc", metrics.auroc(scores, label), step)
        if model.has_map and split.mask is not None and split.mask.any():
            self.pixels(trainer, model)

    def pixels(self, trainer, model) -> None:
        """Log the best pixel F1 of each kind of defect among the held-out images."""
        split = self.data.validation
        maps, kind = map_images(model, split, self.data.device), split.kind.cpu().numpy()
        masks, label = split.mask.cpu().numpy(), split.label.cpu().numpy()
        for index in np.unique(kind[label == 1]):
            chosen = (label == 0) | (kind == index)
            value = metrics.best_f1(maps[chosen].ravel(), masks[chosen].ravel())
            trainer.logger.experiment.add_scalar(
                f"validation/best_pixel_f1_{self.data.kinds[index]}", value, self.batches
            )

    def read(self, trainer, model) -> None:
        """Bring the losses since the last reading to the host, check them, and log their means."""
        if not model.batch_losses:
            return
        values = torch.stack(model.batch_losses).cpu()
        model.batch_losses.clear()
        first = self.batches
        now = time.perf_counter()
        speed = len(values) * self.batch_size * self.world / max(now - self.clock, 1e-9)
        self.batches += len(values)
        self.seconds += now - self.clock
        self.clock = now
        bad = torch.nonzero(~torch.isfinite(values))
        if len(bad):
            batch, column = bad[0].tolist()
            kept = (Path(trainer.logger.log_dir) / LAST).exists()
            raise TrainingError(
                f"loss {model.loss_names[column]!r} became {values[batch, column]:g} at batch {first + batch} "
                f"(epoch {trainer.current_epoch}): training stopped. "
                f"{'The last good checkpoint stays' if kept else 'There is no checkpoint yet'}; try a smaller learning rate"
            )
        for name, mean in zip(model.loss_names, values.mean(0).tolist(), strict=True):
            trainer.logger.experiment.add_scalar(f"loss/{name}", mean, self.batches)
        trainer.logger.experiment.add_scalar("speed/images_per_second", speed, self.batches)

    def summary(self) -> dict:
        """Seconds, images and speed of the whole training, over all its interruptions."""
        images = self.batches * self.batch_size * self.world
        return {
            "train_seconds": round(self.seconds, 2),
            "images": images,
            "batches": self.batches,
            "images_per_second": round(images / self.seconds) if self.seconds else 0,
        }


class Watch(pl.Callback):
    """Reconstructions of the same held-out images at batch 0, 100, 200 ...: in TensorBoard, inline, and as a film.

    The film (``frames``, at most ``FRAMES`` of them, evenly spaced) becomes part of the checkpoint.  Under DDP every
    process films: a notebook that draws the film runs in all of them.
    """

    def __init__(self, data: OneClassData, every: int, show: bool = True):
        self.every, self.show = every, show
        self.title = data.title
        large = data.validation.images.shape[-1] > 2 * FRAME_SIDE
        fixed = data.validation.first_of_each(4 if large else 8)
        self.inputs, self.label = to_float(fixed.images, data.device), fixed.label
        self.filmed = [*range(2), *range(int((fixed.label == 0).sum()), len(fixed))][:4]
        self.frames: list[torch.Tensor] = []
        self.frame_batches: list[int] = []
        self.spacing = every

    def state_dict(self) -> dict:
        return {"frames": self.frames, "batches": self.frame_batches, "spacing": self.spacing}

    def load_state_dict(self, state: dict) -> None:
        self.frames, self.frame_batches, self.spacing = state["frames"], state["batches"], state["spacing"]

    def on_train_start(self, trainer, model) -> None:
        self.live = plots.Live() if self.show else None
        if not self.frames:
            trainer.logger.experiment.add_image("reconstructions/input", plots.tile(to_uint8(self.inputs)), 0)

    def on_train_batch_start(self, trainer, model, batch, batch_idx) -> None:
        done = trainer.fit_loop.total_batch_idx
        if done % self.every == 0:
            self.look(trainer, model, done)

    def on_train_end(self, trainer, model) -> None:
        self.look(trainer, model, trainer.fit_loop.total_batch_idx + 1, last=True)

    def look(self, trainer, model, batch: int, last: bool = False) -> None:
        """Reconstruct in eval mode, log, film and redraw."""
        model.eval()
        with torch.inference_mode():
            rebuilt = to_uint8(model.reconstruct(self.inputs).float())
        model.train()
        trainer.logger.experiment.add_image("reconstructions/output", plots.tile(rebuilt), batch)
        self._film(rebuilt, batch, last)
        heading = f"{self.title}; epoch {trainer.current_epoch + (not last)} of {trainer.max_epochs}, batch {batch}"

        def figure():
            return plots.reconstructions(to_uint8(self.inputs), rebuilt, self.label, heading)

        if self.live:
            self.live.draw(figure, now=last)
        if last and trainer.is_global_zero:  # one file
            figure().savefig(Path(trainer.logger.log_dir) / "reconstructions.png")

    def _film(self, rebuilt: torch.Tensor, batch: int, last: bool) -> None:
        if batch % self.spacing and not last:
            return
        frame = rebuilt[self.filmed].cpu()
        if frame.shape[-1] > FRAME_SIDE:
            frame = F.interpolate(frame.float(), FRAME_SIDE, mode="area").round().byte()
        self.frames.append(frame)
        self.frame_batches.append(batch)
        if len(self.frames) > FRAMES:  # keep the film short: every second frame, at twice the spacing
            self.spacing *= 2
            kept = [
                place
                for place, number in enumerate(self.frame_batches)
                if number % self.spacing == 0 or (last and number == batch)
            ]
            self.frames = [self.frames[place] for place in kept]
            self.frame_batches = [self.frame_batches[place] for place in kept]


class Keep(pl.Callback):
    """A full checkpoint (optimisers, position, random states) every ``every`` batches, the newest kept.

    A resumed training repeats the uninterrupted one exactly on one process; several processes go on
    with new random numbers.  After a checkpoint of the last batch of an epoch, Lightning goes on with the next epoch:
    what ``on_train_epoch_end`` does is then left out once (a validation point, a model's own hook).
    """

    def __init__(self, path: Path, every: int, record: Record):
        self.path, self.every, self.record = path, every, record
        self.restored: dict | None = None

    def state_dict(self) -> dict:
        _, keys, position, has_gauss, gauss = np.random.get_state()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
            "python": random.getstate(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.restored = state

    def on_train_start(self, trainer, model) -> None:
        if self.restored:
            torch.set_rng_state(self.restored["torch"].cpu())
            if self.restored["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.restored["cuda"].cpu())
            keys, position, has_gauss, gauss = self.restored["numpy"]
            np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
            random.setstate(self.restored["python"])
        if trainer.world_size > 1:  # else every process would draw the same augmentation
            torch.manual_seed(torch.initial_seed() + trainer.global_rank + trainer.current_epoch * trainer.world_size)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % self.every == 0:
            self.record.read(trainer, model)  # refuses to go on with a loss that is not finite
            check_finite(model)
            trainer.save_checkpoint(self.path)
