"""Batches without workers: the set is one uint8 tensor on the device, a batch is an index into it."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

SCORING_VALUES = 2_000_000  # of the images scored at once, so that memory does not grow with the images
SCORING_BATCH = 500


@dataclass
class Split:
    """Images of one split.  images: (N, C, H, W) uint8; label: (N,) 0 normal, 1 anomalous; kind: (N,) class index.

    Where defects are marked, mask: (N, H, W) bool, True on a defect, and has_mask: (N,) bool, False for
    anomalous images whose defect nobody marked (their mask is empty and means nothing).
    """

    images: Tensor
    label: Tensor
    kind: Tensor
    mask: Tensor | None = None
    has_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self) -> tuple[Tensor, ...]:
        """The images in their order, in parts small enough to be scored at once."""
        return self.images.split(max(1, min(SCORING_BATCH, SCORING_VALUES // self.images[0].numel())))

    def pick(self, index: Tensor) -> "Split":
        """The images at ``index``, in that order."""
        return Split(*(None if values is None else values[index] for values in vars(self).values()))

    def normal(self) -> "Split":
        """Only the normal images."""
        return self.pick(torch.nonzero(self.label == 0)[:, 0])

    def first_of_each(self, count: int) -> "Split":
        """``count`` normal images, then ``count`` anomalous ones, spread over their kinds.  Always the same ones."""
        order = torch.nonzero(self.label == 0)[:count, 0].tolist()
        anomalous = torch.nonzero(self.label == 1)[:, 0].tolist()
        by_kind: dict[int, list[int]] = {}
        for index in anomalous:
            by_kind.setdefault(int(self.kind[index]), []).append(index)
        rank = {index: place for indices in by_kind.values() for place, index in enumerate(indices)}
        spread = sorted(anomalous, key=lambda index: (rank[index], int(self.kind[index])))
        return self.pick(torch.tensor(order + spread[:count], dtype=torch.long))


def good_and_painted(good: Tensor, painted: Sequence[tuple[Tensor, Tensor, int]]) -> Split:
    """Good images (N, C, H, W), then painted ones, each (image, mask of the defect, kind)."""
    images, masks, kinds = zip(*painted, strict=True)
    kind = torch.tensor([0] * len(good) + list(kinds))
    mask = torch.cat([torch.zeros(len(good), *good.shape[2:], dtype=torch.bool), torch.stack(masks)])
    has_mask = torch.ones(len(kind), dtype=torch.bool)
    return Split(torch.cat([good, torch.stack(images)]), (kind > 0).long(), kind, mask, has_mask)


def to_float(images: Tensor, device: torch.device | None = None) -> Tensor:
    """uint8 images (..., H, W) in [0, 255] as float32 in [-1, 1], on ``device``."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 in [0, 255]; values outside are clipped."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte()


@dataclass(frozen=True)
class Augment:
    """Random changes drawn anew for every image of a batch, computed on the batch's device.

    flip: probability of a horizontal flip; degrees: largest rotation; shift: largest shift as a
    fraction of the side, in whole pixels (so that without rotation nothing is blurred); noise: standard deviation of Gaussian noise (images are in [-1, 1]);
    scale: largest relative change of the size; brightness: largest change of the brightness, as a fraction of its range.
    """

    flip: float = 0.0
    degrees: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [-1, 1]; same shape and range out."""
        count = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, device=images.device).uniform_(low, high)

        def pixels(side: int) -> Tensor:
            return 2 * (uniform(-self.shift, self.shift) * side).round() / side

        if self.degrees or self.shift or self.scale:
            height, width = images.shape[-2:]
            angle = torch.deg2rad(uniform(-self.degrees, self.degrees))
            sign = torch.where(uniform(0, 1) < self.flip, -1.0, 1.0)
            cos, sin = angle.cos(), angle.sin()
            if self.scale:
                size = uniform(1 - self.scale, 1 + self.scale)
                cos, sin = cos / size, sin / size
            # affine_grid maps output to input coordinates, in which a side is 2 long
            rows = [sign * cos, -sin, pixels(width), sign * sin, cos, pixels(height)]
            grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
        elif self.flip:
            images = torch.where((uniform(0, 1) < self.flip).view(-1, 1, 1, 1), images.flip(-1), images)
        if self.brightness:
            light = 2 * uniform(-self.brightness, self.brightness).view(-1, 1, 1, 1)
            images = (images + light).clamp(-1, 1)
        if self.noise:
            images = (images + self.noise * torch.randn_like(images)).clamp_(-1, 1)
        return images


def free_memory(device: torch.device) -> int:
    """Free bytes on a CUDA device, or of this machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = Path("/proc/meminfo")
    if memory.exists():  # Linux: "available" counts what the page cache would give back
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", memory.read_text()).group(1))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many train together: (0, 1) if it is alone."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class Batches:
    """Training batches ``(normal, anomalous)``, each (n, C, H, W) float in [-1, 1] on ``device``.

    The composition of a batch is fixed (``normals`` + ``anomalies`` images), so that a training step
    slices it without asking the device which image is which.  An epoch is a permutation seeded by
    (seed, epoch): each normal image at most once, the last incomplete batch dropped; with ``images_per_epoch``
    so many normal images, each augmented anew whenever it comes again.  Anomalies are repeated where an
    epoch needs more than there are.  Under DDP each process takes every world-th
    batch.  A set of more than half of the free device memory stays on the host and comes through a
    torch DataLoader with workers: the same batches, slower.  The position is part of a checkpoint
    (``state_dict``), so that a resumed epoch goes on with the very next batch.
    """

    def __init__(
        self,
        split: Split,
        normals: int,
        anomalies: int,
        device: torch.device,
        seed: int,
        augment: Augment,
        images_per_epoch: int | None = None,
        workers: int = 2,
    ):
        self.normal_index = torch.nonzero(split.label == 0)[:, 0]
        self.anomalous_index = torch.nonzero(split.label == 1)[:, 0]
        self.normals, self.anomalies = normals, anomalies
        if anomalies and not len(self.anomalous_index):
            raise ValueError(f"each batch is to hold {anomalies} anomalous images, but the training set has none")
        self.images_per_epoch = images_per_epoch or len(self.normal_index)
        len(self)  # refuses sizes that cannot be
        self.device, self.seed, self.augment, self.workers = device, seed, augment, workers
        self.resident = split.images.nbytes <= free_memory(device) / 2
        self.images = split.images.to(device) if self.resident else split.images
        self.sampler = self  # Lightning calls sampler.set_epoch before every epoch
        self._epoch = self._next = 0

    def __len__(self) -> int:
        _, world = rank_and_world()
        count = self.images_per_epoch // (self.normals * world)
        if not count or not len(self.normal_index):  # here, since processes may join after the batches were made
            raise ValueError(
                f"a batch of {self.normals} normal images{f' for each of {world} processes' if world > 1 else ''} is larger "
                f"than the training set ({len(self.normal_index)} normal images, {self.images_per_epoch} an epoch)"
            )
        return count

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; called before each epoch."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The number of the next batch in this epoch."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next epoch at the stored batch instead of at its first."""
        self._next = state["next"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self._next
        for batch, raw in enumerate(self._raw(first), first):
            self._next = (batch + 1) % len(self)  # before the yield: a checkpoint of this batch must not repeat it
            whole = self.augment(to_float(raw, self.device))
            yield whole[: self.normals], whole[self.normals :]

    def _raw(self, first: int) -> Iterator[Tensor]:
        picks = self._picks()[first:]
        if self.resident:
            return (self.images[pick] for pick in picks)
        pin = self.device.type == "cuda"
        # its own generator: seeding the workers must not move the global random state, which a resume restores
        own = torch.Generator()
        return iter(
            DataLoader(
                self.images, sampler=picks, batch_size=None, num_workers=self.workers, pin_memory=pin, generator=own
            )
        )

    def _picks(self) -> Tensor:
        """(batches, batch size) indices of this process for the current epoch, where the images are."""
        rank, world = rank_and_world()
        total = len(self) * world
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._epoch)
        parts = [_stream(self.normal_index, total * self.normals, generator).view(total, self.normals)]
        if self.anomalies:
            parts.append(_stream(self.anomalous_index, total * self.anomalies, generator).view(total, self.anomalies))
        return torch.cat(parts, 1)[rank::world].to(self.images.device)


def _stream(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` entries of ``index`` in random order, all of them once before any a second time."""
    rounds = [index[torch.randperm(len(index), generator=generator)] for _ in range(-(-count // len(index)))]
    return torch.cat(rounds)[:count]


class OneClassData:
    """Splits, batches and names of one data set; each data set is a subclass that fills the splits.

    train, validation, test: Split.  Validation is held out of the training images: its normal ones
    give thresholds, its anomalous ones are only watched.  kinds: class names by index.
    dataset, protocol: how figures and results.json name it.  is_sample: embedded stand-in, not the real data.
    """

    train: Split
    validation: Split
    test: Split
    kinds: tuple[str, ...]
    dataset: str
    protocol: str
    is_sample: bool = False

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        anomalies_per_batch: int,
        seed: int,
        augment: Augment | None = None,
        images_per_epoch: int | None = None,
    ):
        self.device, self.seed, self.images_per_epoch = device, seed, images_per_epoch
        self.normals_per_batch, self.anomalies_per_batch = batch_size - anomalies_per_batch, anomalies_per_batch
        self.augment = augment or Augment()

    @property
    def title(self) -> str:
        """Data set and protocol in one line, for figures."""
        return f"{self.dataset}: {self.protocol}"

    def train_dataloader(self) -> Batches:
        """One epoch of ``(normal, anomalous)`` batches, already on the device."""
        return Batches(
            self.train,
            self.normals_per_batch,
            self.anomalies_per_batch,
            self.device,
            self.seed,
            self.augment,
            self.images_per_epoch,
        )

    def views(self, split: Split, count: int) -> Split:
        """The images of a split: as they are, then ``count`` - 1 times augmented as in training.  Always the same.

        As they are, too, since a rotated image is a little smoother than a photograph.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reseed the GPUs too, for good
            copies = [to_uint8(self.augment(to_float(split.images.cpu()))) for _ in range(count - 1)]
        return Split(torch.cat([split.images.cpu(), *copies]), split.label.repeat(count), split.kind.repeat(count))

    def held_out_views(self, count: int) -> Split:
        """``views`` of the held-out normal images."""
        return self.views(self.validation.normal(), count)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of normal and anomalous images in each split."""
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        return {
            name: {"normal": int((split.label == 0).sum()), "anomalous": int((split.label == 1).sum())}
            for name, split in splits.items()
        }
