"""Splits, augmentation and batches: a data set is one uint8 tensor on the device, a batch is an index into it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

SCORING_VALUES = 2_000_000  # numbers in the images scored at once, so that memory does not grow with the image size
SCORING_BATCH = 500


def require(*checks: tuple[bool, str]) -> None:
    """ValueError with the message of the first (condition, message) that does not hold."""
    for holds, message in checks:
        if not holds:
            raise ValueError(message)


@dataclass
class Split:
    """Images of one split, (N, C, H, W) uint8, and what is known of each."""

    images: Tensor
    label: Tensor  # (N,) 0 normal, 1 anomalous
    defect_type: Tensor  # (N,) index into the data set's names
    mask: Tensor | None = None  # (N, H, W) bool, True on a defect
    has_mask: Tensor | None = None  # (N,) bool, False for anomalous images whose defect nobody marked

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self) -> tuple[Tensor, ...]:
        """The images in their order, in parts small enough to be scored at once."""
        return self.images.split(max(1, min(SCORING_BATCH, SCORING_VALUES // self.images[0].numel())))

    def subset(self, index: Tensor) -> "Split":
        return Split(*(None if values is None else values[index] for values in vars(self).values()))

    def normal(self) -> "Split":
        """Only the normal images."""
        return self.subset(torch.nonzero(self.label == 0)[:, 0])

    def first_of_each(self, count: int) -> "Split":
        """``count`` normal images, then ``count`` anomalous ones, spread over their types.  Always the same ones."""
        normal = torch.nonzero(self.label == 0)[:count, 0].tolist()
        types = [(self.label == 1) & (self.defect_type == kind) for kind in self.defect_type.unique()]
        in_turn = zip_longest(*(torch.nonzero(of_type)[:, 0].tolist() for of_type in types))
        anomalous = [index for one_of_each in in_turn for index in one_of_each if index is not None]
        return self.subset(torch.tensor(normal + anomalous[:count], dtype=torch.long))


def good_and_painted(good: Tensor, painted: Sequence[tuple[Tensor, Tensor, int]] = ()) -> Split:
    """Good images (N, C, H, W), then painted ones, each (image, mask of the defect, defect type)."""
    images = torch.cat([good, *(image[None] for image, _, _ in painted)])
    unmarked = torch.zeros(len(good), *good.shape[2:], dtype=torch.bool)
    mask = torch.cat([unmarked, *(mask[None] for _, mask, _ in painted)])
    defect_type = torch.tensor([0] * len(good) + [kind for _, _, kind in painted])
    return Split(images, (defect_type > 0).long(), defect_type, mask, torch.ones(len(images), dtype=torch.bool))


def to_float(images: Tensor, device: torch.device | None = None) -> Tensor:
    """uint8 images (..., H, W) in [0, 255] as float32 in [-1, 1], on ``device``."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 in [0, 255]; values outside are clipped."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte()


@dataclass(frozen=True)
class Augment:
    """Random changes drawn anew for every image of a batch.  What they uncover repeats the edge."""

    flip: float = 0.0  # probability of a horizontal flip
    degrees: float = 0.0  # largest rotation
    shift: float = 0.0  # largest shift, as a fraction of the side; whole pixels, so that nothing is blurred
    noise: float = 0.0  # standard deviation of Gaussian noise; images are in [-1, 1]
    scale: float = 0.0  # largest relative change of the size
    brightness: float = 0.0  # largest change of the brightness, as a fraction of its range

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [-1, 1]; same shape and range out."""
        count = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, device=images.device).uniform_(low, high)

        if self.degrees or self.shift or self.scale:
            height, width = images.shape[-2:]
            angle = torch.deg2rad(uniform(-self.degrees, self.degrees))
            sign = torch.where(uniform(0, 1) < self.flip, -1.0, 1.0)
            size = uniform(1 - self.scale, 1 + self.scale) if self.scale else 1.0
            cos, sin = angle.cos() / size, angle.sin() / size
            right, down = (2 * (uniform(-self.shift, self.shift) * side).round() / side for side in (width, height))
            rows = [sign * cos, -sin, right, sign * sin, cos, down]  # from output to input, in which a side is 2 long
            grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
            # clamping repeats the edge, as padding_mode="border" would, which Apple's GPUs lack before torch 2.13
            limit = 1 - 1 / torch.tensor([width, height], device=images.device)
            grid = torch.minimum(torch.maximum(grid, -limit), limit)
            images = F.grid_sample(images, grid.to(images.dtype), align_corners=False)
        elif self.flip:
            images = torch.where((uniform(0, 1) < self.flip).view(-1, 1, 1, 1), images.flip(-1), images)
        if self.brightness:
            images = (images + 2 * uniform(-self.brightness, self.brightness).view(-1, 1, 1, 1)).clamp(-1, 1)
        if self.noise:
            images = (images + self.noise * torch.randn_like(images)).clamp_(-1, 1)
        return images


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many train together: (0, 1) if it is alone."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class Batches:
    """Training batches ``(normal, anomalous)`` of a ``OneClassData``, each (n, C, H, W) float in [-1, 1] on its device.

    An epoch is a permutation of the normal images, or ``images_per_epoch`` of them, without the incomplete batch.
    Random numbers are seeded by (seed, epoch, batch, process), so that a resumed training draws what an uninterrupted
    one draws.  Under DDP each process takes every world-th batch.  Raises ValueError if an epoch has no full batch.
    """

    def __init__(self, data):
        self.normals, self.anomalies = data.normals_per_batch, data.anomalies_per_batch
        self.device, self.seed, self.augment = data.device, data.seed, data.augment
        self.normal_index, self.anomalous_index = (torch.nonzero(data.train.label == label)[:, 0] for label in (0, 1))
        self.images_per_epoch = data.images_per_epoch or len(self.normal_index)
        there = not self.anomalies or len(self.anomalous_index) > 0
        require((there, f"a batch is to hold {self.anomalies} anomalous images, but the training set has none"))
        len(self)  # raises if no batch is full
        self.images = data.train.images.to(self.device)
        self.sampler = self  # Lightning calls sampler.set_epoch before every epoch
        self._epoch = self._next = 0

    def __len__(self) -> int:
        together = self.normals * rank_and_world()[1]  # asked each time: processes may join later
        known = self.images_per_epoch
        require((together <= known, f"a batch of {together} normal images is larger than the training set ({known})"))
        return known // together

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world = rank_and_world()
        seed = self.seed * 1_000_003 + self._epoch
        first = self._next  # read when the first batch is asked for, which is after a checkpoint was loaded
        for batch, indices in enumerate(self._indices(seed)[rank::world][first:], first):
            self._next = (batch + 1) % len(self)  # before the yield: a checkpoint of this batch must not repeat it
            torch.manual_seed(((seed * 1_000_003 + batch) * world + rank) % 2**63)
            images = self.augment(to_float(self.images[indices]))
            yield images[: self.normals], images[self.normals :]

    def _indices(self, seed: int) -> Tensor:
        """(batches of all processes, batch size) indices of one epoch, on the device."""
        total = len(self) * rank_and_world()[1]
        generator, parts = torch.Generator().manual_seed(seed), []
        for index, each in ((self.normal_index, self.normals), (self.anomalous_index, self.anomalies)):
            rounds = math.ceil(total * each / max(1, len(index)))  # all come once before any comes a second time
            order = [index[torch.randperm(len(index), generator=generator)] for _ in range(rounds)]
            parts.append(torch.cat([index[:0], *order])[: total * each].view(total, each))
        return torch.cat(parts, 1).to(self.device)
