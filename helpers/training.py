"""fit, load and evaluate: Lightning's Trainer around a model, a TensorBoard version, a resume."""

import atexit
import hashlib
import logging
import os
import re
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from filelock import FileLock, Timeout  # comes with torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from helpers import runtime
from helpers.callbacks import LAST, AtomicCheckpointIO, Keep, Record, TrainingError, Watch, check_finite
from helpers.data.loader import OneClassData
from helpers.models import AdversarialModel, AnomalyModel, map_images, score_images

# Lightning 2.6 with torch >= 2.13 warns, once per loader, about a class that Lightning itself uses
warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated", module="pytorch_lightning")

CHECKPOINT, RESULTS = "model.ckpt", "results.json"
REFERENCE_VERSIONS = 5  # version_0 .. version_4 belong to the committed reference runs


@dataclass
class Trained:
    """A trained model, its TensorBoard folder, and how it was trained (``history``)."""

    model: AnomalyModel
    folder: Path
    run: runtime.Run
    history: dict = field(default_factory=dict)
    logger: TensorBoardLogger | None = None  # None if it was loaded and has its results: nothing is written


def fit(
    model: AnomalyModel,
    data: OneClassData,
    run: runtime.Run,
    *,
    label: str = "",
    resume: bool = False,
    devices: int | str = "auto",
    strategy: str = "auto",
    num_nodes: int = 1,
    watch_every: int = 100,
    checkpoint_every: int = 200,
    show: bool = True,
) -> Trained:
    """Train ``model`` for ``settings["epochs"]`` epochs and log to TensorBoard.

    The first call of a run takes the next free ``version_N`` under ``run.logs_dir``; further calls
    go to sub-folders of it by their ``label`` (other seeds, other protocols).
    resume: continue the newest unfinished version of this notebook with these settings, with
        optimisers, epoch, batch and random state; what is already trained is loaded.
    devices, strategy, num_nodes: as for Lightning's Trainer; under torchrun they follow its environment.
        Processes that Lightning starts itself know one run: a script with several needs torchrun.
    watch_every, checkpoint_every: in batches.
    show: draw the reconstructions in the notebook too, not only in TensorBoard (repeated seeds need not).

    Raises TrainingError if a loss is not finite, a checkpoint cannot be written, or the folder exists;
    ValueError for a strategy that trains in copies of this process.
    """
    if any(kind in str(strategy) for kind in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"strategy {strategy!r} trains in copies of this process, whose records are lost: use torchrun (README)"
        )
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no hardware advertisements between figures
    settings = dict(model.hparams) | {
        "notebook": run.notebook,
        "model": type(model).__name__,
        "profile": run.profile,
        "dataset": data.dataset,
        "protocol": data.protocol,
    }
    if model.hparams.epochs < 1:
        raise ValueError(f"epochs must be at least 1: got {model.hparams.epochs}")
    _join_group()
    loader = data.train_dataloader()  # before anything is written: it refuses sizes that cannot be
    folder = _folder(run, label, settings, resume)
    if resume and (folder / CHECKPOINT).exists():
        print(f"already trained: {runtime.show_path(folder)} is loaded")
        done = load(model, run, folder)
        if not (folder / RESULTS).exists():  # interrupted before its report, which may still be written
            done.logger = _Logger(folder, None)
        return done
    devices, num_nodes = _torchrun(devices, num_nodes)
    several = devices not in (1, "auto") or num_nodes > 1
    if isinstance(model, AdversarialModel) and several and strategy in ("auto", "ddp"):
        strategy = "ddp_find_unused_parameters_true"  # each of the two backward passes reaches half of the weights
    last = folder / LAST
    behind = _batches_in(last)
    if behind is not None:
        print(f"continuing {runtime.show_path(folder)} after batch {behind}")
    # TensorBoard hides what an interrupted process logged after its last checkpoint: all of it if there is none
    begun = any(folder.glob("events.out.tfevents.*"))
    logger = _Logger(folder, (behind or -1) + 1 if begun else None)
    record, watch = Record(data), Watch(data, every=watch_every, show=show)
    if model.large_convolutions:
        model.to(memory_format=torch.channels_last)
    precision = runtime.best_precision(run.device, model.large_convolutions)
    trainer = pl.Trainer(
        accelerator=run.device.type,
        devices=1 if devices == "auto" else devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision=precision,
        max_epochs=model.hparams.epochs,
        logger=logger,
        log_every_n_steps=min(50, max(1, len(loader))),
        callbacks=[record, watch, Keep(folder / LAST, checkpoint_every, record)],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,  # Batches takes its own slice
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=True,
    )
    if run.device.type == "cuda":  # else the peak would be that of an earlier training of this process
        torch.cuda.reset_peak_memory_stats(run.device)
    trainer.fit(model, train_dataloaders=loader, ckpt_path=last if last.exists() else None, weights_only=True)
    model.to(run.device)  # Lightning moves it to the CPU when it tears down
    history = record.summary() | {
        "dataset": data.dataset,
        "protocol": data.protocol,
        "device": runtime.device_name(run.device),
        "devices": trainer.world_size,
        "precision": precision,
        "epochs": trainer.current_epoch,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "peak_memory_mib": round(runtime.peak_memory_mib(run.device)),
        "frames": watch.frames,
        "frame_batches": watch.frame_batches,
    }
    model.history = history
    check_finite(model)
    trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True)
    if trainer.is_global_zero:
        last.unlink(missing_ok=True)  # the finished model replaces it
    return Trained(model, folder, run, history, logger)


def load(model: AnomalyModel, run: runtime.Run, folder: Path) -> Trained:
    """Fill ``model`` with the weights of a finished version.  Nothing is trained or written.

    Raises TrainingError if there is no checkpoint, if it is broken, or if it belongs to another model or other sizes.
    """
    path = Path(folder) / CHECKPOINT
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
        raise TrainingError(f"{runtime.show_path(path)} was trained with other settings: {reason}") from error
    model.on_load_checkpoint(checkpoint)
    model.to(run.device)
    return Trained(model, Path(folder), run, model.history)


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint.  Raises TrainingError if it is cut short, or another file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found["state_dict"].keys()
        return found
    except Exception as error:  # whatever a broken file makes pickle and zipfile raise
        raise TrainingError(
            f"{runtime.show_path(path)} is broken ({type(error).__name__}): train again, or bring it back from where it came"
        ) from error


@dataclass
class Scores:
    """Anomaly scores of one model: on the test split, and on the held-out normal images.

    score: (N,) float64, higher is more anomalous; label: (N,) 0 or 1; kind: (N,) index into ``kinds``;
    validation: (M,) scores of the held-out normal images, for thresholds; title: data set and protocol;
    images_per_second: speed of scoring the test split.
    Of a model with anomaly maps, where defects are marked: maps (N, H, W) float32, masks (N, H, W) bool,
    has_mask (N,) bool, validation_maps (M, H, W) of the held-out normal images; else None.
    """

    score: np.ndarray
    label: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...]
    validation: np.ndarray
    title: str
    images_per_second: float
    maps: np.ndarray | None = None
    masks: np.ndarray | None = None
    has_mask: np.ndarray | None = None
    validation_maps: np.ndarray | None = None

    @property
    def measures_pixels(self) -> bool:
        """Whether there is at least one marked defect to compare a map with."""
        return self.masks is not None and bool(self.masks[self.has_mask].any())

    def marked(self) -> "Scores":
        """Only the test images whose defects are marked, normal ones included: what pixel metrics may use."""
        of_images = ("score", "label", "kind", "maps", "masks", "has_mask")
        return replace(self, **{name: getattr(self, name)[self.has_mask] for name in of_images})


def evaluate(model: AnomalyModel, data: OneClassData) -> Scores:
    """Score the test split and the held-out normal images, in eval mode and float32, in their order.

    Under DDP every process scores a part and all receive the whole.
    """
    start = time.perf_counter()
    score = score_images(model, data.test, data.device)
    speed = len(score) / (time.perf_counter() - start)
    good = data.validation.normal()
    label, kind = data.test.label.cpu().numpy(), data.test.kind.cpu().numpy()
    scores = Scores(score, label, kind, data.kinds, score_images(model, good, data.device), data.title, speed)
    if model.has_map and data.test.mask is not None:
        scores.maps, scores.validation_maps = (map_images(model, split, data.device) for split in (data.test, good))
        scores.masks, scores.has_mask = data.test.mask.cpu().numpy(), data.test.has_mask.cpu().numpy()
    return scores


class _Logger(TensorBoardLogger):
    """Writes straight into ``folder`` and stays open after training, for ``report``."""

    def __init__(self, folder: Path, purge: int | None):
        super().__init__(str(folder.parent), name="", version=folder.name, default_hp_metric=False, purge_step=purge)

    def finalize(self, status: str) -> None:
        self.experiment.flush()


def _batches_in(checkpoint: Path) -> int | None:
    """How many batches a full checkpoint has behind it; None if there is no checkpoint."""
    if not checkpoint.exists():
        return None
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]["Record"]["batches"]


def _torchrun(devices: int | str, num_nodes: int) -> tuple[int | str, int]:
    """Sizes from torchrun's environment, if it started this process and the caller left them open."""
    if devices == "auto" and "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return devices, num_nodes


def _folder(run: runtime.Run, label: str, settings: dict, resume: bool) -> Path:
    """The folder of this training: claimed, or found again when resuming.  Process 0 decides for all."""
    if label and re.fullmatch(r"[\w-]+", label) is None:
        raise ValueError(f"a label is letters, digits, _ and -: got {label!r}")
    if rank_zero_only.rank == 0:
        if run.version is None and resume and "AD_VERSION" not in os.environ:
            run.version = _unfinished(run, label, settings)
        if run.version is None:
            run.version = _claim(run.logs_dir)
        _prepare(run.version / label, settings, resume)
    run.version = _from_process_0(run.version)
    return run.version / label


@atexit.register
def _leave_group() -> None:
    """Gloo's threads abort the process ("terminate called without an active exception") if the interpreter ends first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _prepare(folder: Path, settings: dict, resume: bool) -> None:
    """Create the folder with its settings; refuse to touch what another training left there."""
    if (folder / "hparams.yaml").exists():
        if not resume:
            raise TrainingError(
                f"{runtime.show_path(folder)} exists: an earlier training is never overwritten. Give another label, or resume=True"
            )
        if _hparams(folder) != settings:
            raise TrainingError(
                f"{runtime.show_path(folder)} was started with other settings: it cannot be resumed with these"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with runtime.whole_file(folder / "hparams.yaml") as part:
            part.write_text(yaml.safe_dump(settings))


def _join_group() -> None:
    """Make the group of torchrun's processes; Lightning then finds it made."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _from_process_0(value: Path | None) -> Path:
    """Process 0's folder in every process of this training."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        # Lightning may start further processes of a script itself: they inherit the environment
        if value is not None:
            os.environ["AD_RUN_FOLDER"] = str(value)
        if "AD_RUN_FOLDER" not in os.environ:
            raise ValueError("several processes, but not started by torchrun or by Lightning: use torchrun (README)")
        return Path(os.environ["AD_RUN_FOLDER"])
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _numbered(logs_dir: Path) -> dict[int, Path]:
    """{N: its folder} of every ``version_N``."""
    return {int(path.name[8:]): path for path in logs_dir.glob("version_*") if path.name[8:].isdigit()}


def _claim(logs_dir: Path) -> Path:
    """Create the next free ``version_N`` (or the one named by ``AD_VERSION``, which must not exist)."""
    named = os.environ.get("AD_VERSION")
    if named is not None and not named.isdigit():
        raise ValueError(f"AD_VERSION is the number of a version: got {named!r}")
    number = int(named or max([REFERENCE_VERSIONS - 1, *_numbered(logs_dir)]) + 1)
    folder = logs_dir / f"version_{number}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if named is None:  # another process took it in between
            return _claim(logs_dir)
        raise TrainingError(
            f"{runtime.show_path(folder)} exists: no earlier run is overwritten. Move it away, or unset AD_VERSION"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"cannot write to the log folder {logs_dir} ({error.strerror}): set AD_LOGS_DIR to a writable folder"
        ) from error
    _is_ours(folder)
    return folder


_LOCKS: dict[Path, FileLock] = {}  # held until this process ends


def _is_ours(version: Path) -> bool:
    """Whether no other living process trains into this version (a second kernel with the same notebook, say)."""
    if version not in _LOCKS:
        name = hashlib.md5(str(version).encode(), usedforsecurity=False).hexdigest()
        lock = FileLock(Path(tempfile.gettempdir()) / f"anomaly-version-{os.getuid()}-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        _LOCKS[version] = lock
    return True


def _unfinished(run: runtime.Run, label: str, settings: dict) -> Path | None:
    """The newest version without results whose training ``label`` has these settings."""
    for _, version in sorted(_numbered(run.logs_dir).items(), reverse=True):
        if not (version / RESULTS).exists() and _hparams(version / label) == settings and _is_ours(version):
            return version
    return None


def _hparams(folder: Path) -> dict | None:
    try:
        return yaml.safe_load((folder / "hparams.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return None
