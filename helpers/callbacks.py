"""What happens around a training step: losses logged, reconstructions shown."""

import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from helpers import metrics, plots
from helpers.checkpoints import LAST, TrainingError
from helpers.data.batches import to_float, to_uint8
from helpers.data.one_class import OneClassData
from helpers.models import map_images, score_images
from helpers.progress import Display, Line, clock

WINDOW = 20  # batches between two readings of the losses: the only regular host synchronisation
FRAMES, FRAME_SIDE = 12, 64  # of the film: moments kept, and their largest side in pixels


class LossLogger(pl.Callback):
    """Every loss under its name, the speed, a line of progress, and about ten times the scores of held-out images.

    Losses stay on the device and are read once per ``WINDOW`` batches.  ``rows`` holds (batch, name, value) of all
    that was logged; it is part of the checkpoint, so a resumed training continues its curves.
    Raises TrainingError at the first loss that is not finite, before any checkpoint of it can be written.
    """

    def __init__(self, data: OneClassData, total: int):
        self.data, self.total, self.line = data, total, Line()
        self.seconds, self.batches, self.rows = 0.0, 0, []
        self.batch_size = data.normals_per_batch + data.anomalies_per_batch

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "batches": self.batches, "rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.batches, self.rows = state["seconds"], state["batches"], state["rows"]

    def on_train_start(self, trainer, model) -> None:
        model.batch_losses.clear()  # of an earlier fit that was stopped
        self.batch_size *= trainer.world_size
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if len(model.batch_losses) >= WINDOW:
            self.read(trainer, model)

    def on_train_epoch_end(self, trainer, model) -> None:
        self.read(trainer, model)
        done = trainer.current_epoch + 1
        if done % max(1, trainer.max_epochs // 10) == 0 or done == trainer.max_epochs:
            self.validate(trainer, model)  # about ten points make a curve; more would only cost time
            model.train()

    def validate(self, trainer, model) -> None:
        """Log the scores of the held-out images, and with maps the best pixel F1 of each type of painted defect."""
        split = self.data.validation
        scores, label = score_images(model, split), split.label.cpu().numpy()
        self.add(trainer, "validation/score_normal", scores[label == 0].mean())
        if label.any():
            self.add(trainer, "validation/score_anomalous", scores[label == 1].mean())
            self.add(trainer, "validation/auroc", metrics.auroc(scores, label))
        if model.has_map and split.mask is not None and split.mask.any():
            maps, kind, masks = map_images(model, split), split.defect_type.cpu().numpy(), split.mask.cpu().numpy()
            for index in np.unique(kind[label == 1]):
                chosen = (label == 0) | (kind == index)
                value = metrics.best_f1(maps[chosen].ravel(), masks[chosen].ravel())
                self.add(trainer, f"validation/best_pixel_f1_{self.data.defect_types[index]}", value)

    def add(self, trainer, name: str, value: float) -> None:
        """One point of a curve: in TensorBoard, and in ``rows``."""
        trainer.logger.experiment.add_scalar(name, value, self.batches)
        self.rows.append([self.batches, name, float(value)])

    def read(self, trainer, model) -> None:
        """Bring the losses since the last reading to the host, check them, and log their means."""
        if not model.batch_losses:
            return
        values = torch.stack(model.batch_losses).cpu()
        model.batch_losses.clear()
        first, now = self.batches, time.perf_counter()
        self.batches += len(values)
        self.seconds += now - self.clock
        speed = len(values) * self.batch_size / max(now - self.clock, 1e-9)
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
        means = dict(zip(model.loss_names, values.mean(0).tolist(), strict=True))
        for name, mean in means.items():
            self.add(trainer, f"loss/{name}", mean)
        self.add(trainer, "speed/images_per_second", speed)
        left = (self.total - self.batches) * self.seconds / self.batches
        self.line.show(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch {self.batches:,}/{self.total:,}, "
            f"{speed:,.0f} images/s, {clock(left)} left; " + ", ".join(f"{k} {v:.3g}" for k, v in means.items())
        )

    def summary(self) -> dict:
        """Seconds, images and speed of the whole training, over all its interruptions; also shown in place of the line."""
        images = self.batches * self.batch_size
        speed = round(images / self.seconds) if self.seconds else 0
        self.line.show(f"trained on {images:,} images in {self.seconds:.0f} s: {speed:,} images/s", last=True)
        seconds = round(self.seconds, 2)
        return {"train_seconds": seconds, "images": images, "batches": self.batches, "images_per_second": speed}


class ReconstructionLogger(pl.Callback):
    """Reconstructions of the same held-out images at batch 0, 100, 200 ...: in TensorBoard, inline, and as a film.

    The film (``frames``, at most ``FRAMES`` of them, evenly spaced) becomes part of the checkpoint.
    Drawing inline takes about 5 % of the time at most: a slow figure comes less often.
    """

    def __init__(self, data: OneClassData, every: int, show: bool):
        self.every, self.title = every, data.title
        self.display = Display(0.0) if show else None
        large = data.validation.images.shape[-1] > 2 * FRAME_SIDE
        fixed = data.validation.first_of_each(4 if large else 8)
        self.inputs, self.label = to_float(fixed.images, data.device), fixed.label
        self.filmed = [*range(2), *range(int((fixed.label == 0).sum()), len(fixed))][:4]
        self.frames: list[torch.Tensor] = []
        self.frame_batches: list[int] = []

    def state_dict(self) -> dict:
        return {"frames": self.frames, "batches": self.frame_batches}

    def load_state_dict(self, state: dict) -> None:
        self.frames, self.frame_batches = state["frames"], state["batches"]

    def on_train_start(self, trainer, model) -> None:
        if not self.frames:
            trainer.logger.experiment.add_image("reconstructions/input", plots.tile(to_uint8(self.inputs)), 0)

    def on_train_batch_start(self, trainer, model, batch, batch_idx) -> None:
        done = trainer.fit_loop.total_batch_idx
        if done % self.every == 0:
            self.look(trainer, model, done)

    def on_train_end(self, trainer, model) -> None:
        self.look(trainer, model, trainer.fit_loop.total_batch_idx + 1, last=True)

    @torch.no_grad()
    def look(self, trainer, model, batch: int, last: bool = False) -> None:
        """Reconstruct in eval mode, log, film and redraw."""
        model.eval()
        rebuilt = to_uint8(model.reconstruct(self.inputs).float())
        model.train()
        trainer.logger.experiment.add_image("reconstructions/output", plots.tile(rebuilt), batch)
        self.film(rebuilt, batch, model.n_batches, last)
        if last or (self.display and self.display.due()):
            start = time.perf_counter()
            heading = f"{self.title}\nepoch {trainer.current_epoch + (not last)} of {trainer.max_epochs}, batch {batch}"
            figure = plots.reconstructions(to_uint8(self.inputs), rebuilt, self.label, heading)
            if self.display:
                self.display.draw(figure)
                self.display.seconds = 20 * (time.perf_counter() - start)
            if last and trainer.is_global_zero:
                figure.savefig(Path(trainer.logger.log_dir) / "reconstructions.png")

    def film(self, rebuilt: torch.Tensor, batch: int, total: int, last: bool) -> None:
        """Keep a small copy of four of the images, at ``FRAMES`` moments of the training at most."""
        if last or batch * (FRAMES - 1) >= len(self.frames) * total:
            frame = rebuilt[self.filmed].cpu()
            if frame.shape[-1] > FRAME_SIDE:
                frame = F.interpolate(frame.float(), FRAME_SIDE, mode="area").round().byte()
            self.frames.append(frame)
            self.frame_batches.append(batch)
