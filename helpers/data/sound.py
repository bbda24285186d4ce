"""Recordings of a machine as images, which a function of the notebook makes of them."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor

from helpers.data.batches import Split, good_and_painted, require
from helpers.data.one_class import OneClassData
from helpers.data.photo import DataError
from helpers.data.samples import SAMPLES, sample
from helpers.runtime import Run, say_once, show_path

ENDINGS = (".flac", ".ogg", ".wav")
RATE = 16_000  # samples a second
FEWEST = 4  # normal recordings
Picture = Callable[[np.ndarray], Tensor]  # a clip, (samples,) float32, as an image, (1, H, W) uint8
Fault = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # a clip with a fault in it


def read_clip(path: Path | str, seconds: float = 10.0) -> np.ndarray:
    """The first channel of a recording, cut to ``seconds``, as (samples,) float32 in [-1, 1] at ``RATE``.

    Raises DataError if it cannot be read, is too short, silent or clipped, or was sampled more slowly.
    """
    try:
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{path} cannot be read as a recording: {error}") from error
    if rate < RATE:
        raise DataError(f"{path} has {rate:,} samples a second: {RATE:,} are needed, its high notes are missing")
    if len(sound) < seconds * rate:
        raise DataError(f"{path} lasts {len(sound) / rate:.1f} s: at least {seconds:g} s are needed")
    if sound.shape[1] > 1:
        say_once(f"{show_path(Path(path).parent)}: recordings with several channels, the first is used")
    sound = sound[: round(seconds * rate), 0]
    loud = np.abs(sound)
    if not np.isfinite(loud).all() or loud.max() < 1e-4:
        raise DataError(f"{path} is silent: its largest value is {loud.max():.1g} of 1; check the microphone")
    if (loud > 0.999).mean() > 1e-3:
        raise DataError(f"{path} is clipped: {(loud > 0.999).mean():.1%} at full scale; record at a lower level")
    return sound if rate == RATE else resample_poly(sound, RATE, rate).astype(np.float32)


def list_clips(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Normal recordings to learn from; normal ones to test, if these are kept apart; anomalous ones.

    Layouts: MIMII's (``normal``, ``abnormal``), and DCASE's (``train``, ``test``, names that begin with ``normal_``
    or ``anomaly_``).  Raises DataError for any other.
    """
    found = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))}
    found = {path: name for path, name in found.items() if path.suffix.lower() in ENDINGS}
    parts = [[path for path, name in found.items() if name.startswith(kinds)]
             for kinds in (("normal/", "train/normal"), ("test/normal",), ("abnormal/", "test/anomaly"))]  # fmt: skip
    if len(parts[0]) < FEWEST or not parts[2]:
        where = "in normal/ and abnormal/, or as train/normal_*, test/normal_* and test/anomaly_*"
        needed = f"{FEWEST} normal recordings or more ({', '.join(ENDINGS)}), and some anomalous ones: {where}"
        raise DataError(f"{folder} needs {needed}; found {len(parts[0])} and {len(parts[2])}")
    return tuple(parts)


class Recordings(OneClassData):
    """Images (N, 1, H, W) of a folder of recordings, with every ``folds``-th normal one left out.

    Those left out, from the ``fold``-th on, are tested with the anomalous ones (where no normal ones are kept apart
    for the test), and make the validation split together with copies that have a fault in them.
    picture: makes the image of a clip; after a change of what it uses, define it anew.
    dataset: a folder below the data folder or the samples, or a path; see ``list_clips``.
    faults: {name: function}, for the validation split.
    marked: grey levels of 255 by which a fault must change a pixel to count as its mask.
    folds: at most as many as there are normal recordings, which leaves out one at a time.
    max_clips: at most so many of each kind.
    """

    normal_class = "good"

    def __init__(
        self,
        run: Run,
        picture: Picture,
        dataset: str = "mimii_fan/fan/id_00",
        faults: Mapping[str, Fault] | None = None,
        fold: int = 0,
        folds: int = 14,
        seconds: float = 10.0,
        batch_size: int = 8,
        images_per_epoch: int | None = None,
        seed: int = 0,
        max_clips: int | None = None,
        marked: float = 8.5,
    ):
        super().__init__(run.device, batch_size, 0, seed, None, images_per_epoch)
        known = [path for path in (run.data_dir / dataset, Path(dataset).expanduser()) if path.is_dir()]
        folder = known[0] if known and run.profile != "smoke" else sample(dataset)
        self.picture, self.seconds, self.marked = picture, seconds, marked
        normal, tested, anomalous = (part[:max_clips] for part in list_clips(folder))
        self.folds = min(folds, len(normal))
        require((0 <= fold < self.folds, f"fold is one of 0 to {self.folds - 1}: got {fold}"))
        left_out = normal[fold :: self.folds]
        self.files = {"train": [path for path in normal if path not in left_out]}
        self.files |= {"validation": left_out, "test": [*(tested or left_out), *anomalous]}
        self.defect_types, random = ("normal", "anomalous", *(faults or ())), np.random.default_rng([seed, fold])
        images = {name: torch.stack([_read(path, path.stat().st_mtime_ns, seconds, picture) for path in paths])
                  for name, paths in self.files.items()}  # fmt: skip
        faulty = [self._with_fault(path, image, fault, 2 + kind, random) for kind, fault in enumerate((faults or {}).values())
                  for path, image in zip(left_out, images["validation"], strict=True)]  # fmt: skip
        self.train, self.validation = good_and_painted(images["train"]), good_and_painted(images["validation"], faulty)
        label = (torch.arange(len(self.files["test"])) >= len(tested or left_out)).long()
        self.test, self.counted = Split(images["test"], label, label), {"n_train": len(normal)}
        self.counted |= {"n_test_normal": len(tested or normal), "n_test_anomalous": len(anomalous)}
        part = "embedded part: " if SAMPLES in folder.parents else ""
        self.dataset = " ".join(Path(dataset).parts[-2:])
        self.subset = f"{part}{len(normal) + len(tested)} normal and {len(anomalous)} anomalous clips of {seconds:g} s"
        self.tested_on = "clips kept apart" if tested else f"normal clips left out in {self.folds} folds"

    def fields(self) -> dict:
        """As of every data set, of all folds together, in which each normal clip is tested once."""
        return super().fields() | self.counted

    def _with_fault(self, path: Path, image: Tensor, fault: Fault, kind: int, random: np.random.Generator) -> tuple:
        """The image with a fault, the mask of what it changed, and the number of its kind."""
        faulty = self.picture(fault(read_clip(path, self.seconds), random).astype(np.float32))
        return faulty, (faulty[0].float() - image[0].float()).abs() > self.marked, kind


@functools.lru_cache(maxsize=4096)  # kept in memory until the file changes or the function is defined anew
def _read(path: Path, changed: int, seconds: float, picture: Picture) -> Tensor:
    return picture(read_clip(path, seconds))
