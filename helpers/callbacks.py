"""What happens around a training step: losses logged, reconstructions shown, checkpoints written."""

import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from tqdm import tqdm

from helpers import metrics, plots
from helpers.checkpoints import LAST, TrainingError, check_finite
from helpers.data.batches import Batches, rank_and_world, to_float, to_uint8
from helpers.data.one_class import OneClassData
from helpers.models import scores_and_maps
from helpers.progress import Display, Line, in_notebook

WINDOW = 20  # batches between two readings of the losses: the only regular host synchronisation
FRAMES, FRAME_SIDE = 12, 64  # of the film: moments kept, and their largest side in pixels


class LossLogger(pl.Callback):
    """Losses, speed, a line of progress, about ten times the scores of held-out images; all as (batch, name, value) rows.

    Raises TrainingError at the first loss that is not finite, before any checkpoint of it can be written.
    """

    def __init__(self, data: OneClassData, total: int):
        self.data, self.total, self.line = data, total, Line()
        self.seconds, self.batches, self.rows = 0.0, 0, []
        self.batch_size = (data.normals_per_batch + data.anomalies_per_batch) * rank_and_world()[1]

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "batches": self.batches, "rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    def on_train_start(self, trainer, model) -> None:
        model.batch_losses.clear()  # of an earlier fit that was stopped
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if len(model.batch_losses) >= WINDOW:
            self.read(trainer, model)

    def on_train_epoch_end(self, trainer, model) -> None:
        self.read(trainer, model)
        done = trainer.current_epoch + 1
        if done % max(1, trainer.max_epochs // 10) == 0 or done == trainer.max_epochs:
            self.validate(trainer, model)
            model.train()

    def validate(self, trainer, model) -> None:
        """Log the scores of the held-out images, and with maps the best pixel F1 of each type of painted defect."""
        split = self.data.validation
        (scores, maps), label = scores_and_maps(model, split), split.label.cpu().numpy()
        self.add(trainer, "validation/score_normal", scores[label == 0].mean())
        if label.any():
            self.add(trainer, "validation/score_anomalous", scores[label == 1].mean())
            self.add(trainer, "validation/auroc", metrics.auroc(scores, label))
        if maps is not None and split.mask.any():
            step = max(1, maps.shape[-1] // 128)  # a curve to watch: all pixels of large maps would take seconds
            maps, masks = maps[:, ::step, ::step], split.mask.cpu().numpy()[:, ::step, ::step]
            kind = split.defect_type.cpu().numpy()
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
        bad = torch.nonzero(~torch.isfinite(values))
        if len(bad):
            batch, column = bad[0].tolist()
            what = f"loss {model.loss_names[column]!r} became {values[batch, column]:g} at batch {self.batches + batch}"
            kept = Path(trainer.logger.log_dir, LAST).exists()
            kept = "The last good checkpoint stays" if kept else "There is no checkpoint yet"
            raise TrainingError(f"{what} (epoch {trainer.current_epoch}). {kept}; try a smaller learning rate")
        start, self.clock = self.clock, time.perf_counter()
        self.batches, self.seconds = self.batches + len(values), self.seconds + self.clock - start
        speed = len(values) * self.batch_size / max(self.clock - start, 1e-9)
        means = dict(zip(model.loss_names, values.mean(0).tolist(), strict=True))
        for name, mean in means.items():
            self.add(trainer, f"loss/{name}", mean)
        self.add(trainer, "speed/images_per_second", speed)
        left = tqdm.format_interval((self.total - self.batches) * self.seconds / self.batches)
        place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch {self.batches:,}/{self.total:,}"
        losses = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
        self.line.show(f"{place}, {speed:,.0f} images/s, {left} left; {losses}")

    def summary(self) -> dict:
        """Seconds, images and speed of the whole training, over all its interruptions; also shown in place of the line."""
        images, seconds = self.batches * self.batch_size, round(self.seconds, 2)
        speed = round(images / self.seconds) if self.seconds else 0
        self.line.show(f"trained on {images:,} images in {seconds:.0f} s: {speed:,} images/s", last=True)
        return {"train_seconds": seconds, "images": images, "batches": self.batches, "images_per_second": speed}


class ReconstructionLogger(pl.Callback):
    """Reconstructions of the same held-out images every so many batches: in TensorBoard, as a film, and inline.

    Drawing inline takes about 5 % of the time at most: a slow figure comes less often.
    """

    def __init__(self, data: OneClassData, every: int, show: bool):
        self.every, self.title = every, data.title
        self.display = Display(0.0) if show and in_notebook() else None
        fixed = data.validation.first_of_each(4 if data.validation.images.shape[-1] > 2 * FRAME_SIDE else 8)
        self.inputs, self.label = to_float(fixed.images, data.device), fixed.label
        normal = int((fixed.label == 0).sum())
        self.filmed = [*range(min(2, normal)), *range(normal, len(fixed))][:4]
        self.film = {"frames": [], "frame_batches": []}

    def state_dict(self) -> dict:
        return self.film

    def load_state_dict(self, state: dict) -> None:
        self.film.update(state)

    def on_train_batch_start(self, trainer, model, batch, batch_idx) -> None:
        if trainer.fit_loop.total_batch_idx % self.every == 0:
            self.look(trainer, model, trainer.fit_loop.total_batch_idx)

    def on_train_end(self, trainer, model) -> None:
        self.look(trainer, model, trainer.fit_loop.total_batch_idx + 1, last=True)

    @torch.no_grad()
    def look(self, trainer, model, batch: int, last: bool = False) -> None:
        """Reconstruct in eval mode, log, film and redraw."""
        model.eval()
        rebuilt = to_uint8(model.reconstruct(self.inputs).float())
        model.train()
        if not self.film["frames"]:
            trainer.logger.experiment.add_image("reconstructions/input", plots.tile(to_uint8(self.inputs)), 0)
        trainer.logger.experiment.add_image("reconstructions/output", plots.tile(rebuilt), batch)
        self.keep(rebuilt, batch, model.n_batches, last)
        if last or (self.display and self.display.due()):
            start = time.perf_counter()
            heading = f"{self.title}\nepoch {trainer.current_epoch + (not last)} of {trainer.max_epochs}, batch {batch}"
            figure = plots.reconstructions(to_uint8(self.inputs), rebuilt, self.label, heading)
            if self.display:
                self.display.draw(figure)
                self.display.seconds = 20 * (time.perf_counter() - start)
            if last and trainer.is_global_zero:
                figure.savefig(Path(trainer.logger.log_dir) / "reconstructions.png")

    def keep(self, rebuilt: torch.Tensor, batch: int, total: int, last: bool) -> None:
        """Keep a small copy of four of the images, at ``FRAMES`` moments of the training at most."""
        if last or batch * (FRAMES - 1) >= len(self.film["frames"]) * total:
            frame = rebuilt[self.filmed].cpu().float()
            small = F.interpolate(frame, min(FRAME_SIDE, frame.shape[-1]), mode="area")
            self.film["frames"].append(small.round().byte())
            self.film["frame_batches"].append(batch)


class LastCheckpoint(pl.callbacks.Checkpoint):
    """A full checkpoint at most every ``seconds``, the newest kept, also where optimisation is manual.

    There is none at the last batch of an epoch but at the end of that epoch, and none at the end of the last:
    a resumed training would leave out the model's ``on_train_epoch_end`` and ``on_train_end``.
    """

    def __init__(self, path: Path, seconds: float, losses: LossLogger, loader: Batches):
        self.path, self.seconds, self.losses, self.clock = path, seconds, losses, time.monotonic()
        # Lightning restores a loader's position only if nobody asked for its length in configure_optimizers
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        if not trainer.is_last_batch and (trainer.world_size == 1 or batch_idx % 100 == 99):
            self.save(trainer, model)

    def on_train_epoch_end(self, trainer, model) -> None:
        if trainer.current_epoch + 1 < trainer.max_epochs:
            self.save(trainer, model)

    def save(self, trainer, model) -> None:
        """Write the checkpoint if it is time, all processes together."""
        if trainer.strategy.broadcast(time.monotonic() - self.clock >= self.seconds):
            self.losses.read(trainer, model)  # refuses to go on with a loss that is not finite
            check_finite(model)
            trainer.save_checkpoint(self.path)
            self.clock = time.monotonic()
