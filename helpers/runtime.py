"""Where am I, and how big may I go: profile, device, precision, paths."""

import functools
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("full", "quick", "smoke")
DATA_MODES = ("auto", "real", "sample")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "tensorboard", "numpy")


@dataclass
class Run:
    """One execution of one notebook: what it may use and where it writes.

    ``version`` is the TensorBoard folder of this run; ``fit`` claims it at the first training.
    """

    notebook: str
    profile: str
    device: torch.device
    data_dir: Path
    logs_dir: Path
    version: Path | None = field(default=None)

    def settings(self, full: dict, *, quick: dict, smoke: dict) -> dict:
        """The settings of this profile: ``full``, with a few values replaced for the smaller ones.

        Returns a new dict.  Raises ValueError if a profile names a setting that ``full`` lacks, or
        if a value is not a plain scalar (checkpoints could then not be loaded safely).
        """
        for name, changes in (("quick", quick), ("smoke", smoke)):
            unknown = sorted(set(changes) - set(full))
            if unknown:
                raise ValueError(f"profile {name!r} changes settings that do not exist: {unknown}")
        chosen = full | {"full": {}, "quick": quick, "smoke": smoke}[self.profile]
        for key, value in chosen.items():
            if not isinstance(value, (bool, int, float, str, type(None))):
                raise ValueError(f"setting {key!r} must be a plain scalar, not {type(value).__name__}")
        return chosen


def start(notebook: str, keep_on_drive: bool = False) -> Run:
    """Seed everything with 0, choose profile, device and folders, and print them.

    notebook: the file name without its ending, e.g. ``"01_baseline_gan"``.
    keep_on_drive: on Colab, write logs and checkpoints to Google Drive, where they outlive a disconnect.
    Raises ValueError for an unknown ``AD_PROFILE`` or ``AD_DATA``.
    """
    if keep_on_drive and on_colab():
        from google.colab import drive

        drive.mount("/content/drive")
        os.environ["AD_LOGS_DIR"] = "/content/drive/MyDrive/image-anomaly-detection/lightning_logs"
    device = best_device()
    profile = current_profile(device)
    data_mode(profile)
    seed_everything(0)
    run = Run(notebook, profile, device, data_dir(), logs_dir(profile))
    print(banner(run))
    return run


def on_colab() -> bool:
    """Whether this is a Google Colab kernel."""
    return "google.colab" in sys.modules


def tensorboard(run: Run) -> None:
    """Open TensorBoard in the notebook on Colab; elsewhere say how to open it beside the notebook."""
    if on_colab():
        from IPython import get_ipython

        get_ipython().run_line_magic("load_ext", "tensorboard")
        get_ipython().run_line_magic("tensorboard", f"--logdir {run.logs_dir}")
    else:
        print(f"In a terminal: make tensorboard   (or: tensorboard --logdir {show_path(run.logs_dir)})")


def current_profile(device: torch.device | None = None) -> str:
    """``AD_PROFILE``, or ``full`` on a GPU and ``quick`` on a CPU."""
    default = "quick" if (device or best_device()).type == "cpu" else "full"
    return _choice("AD_PROFILE", default, PROFILES)


def data_mode(profile: str) -> str:
    """``AD_DATA``: ``auto`` (real, else the sample), ``real`` (real or an error) or ``sample``."""
    return _choice("AD_DATA", "sample" if profile == "smoke" else "auto", DATA_MODES)


def _choice(variable: str, default: str, allowed: tuple) -> str:
    value = os.environ.get(variable) or default
    if value not in allowed:
        raise ValueError(f"{variable}={value!r} is unknown: choose one of {', '.join(allowed)}")
    return value


def data_dir() -> Path:
    """``AD_DATA_DIR``, or ``data/`` beside the notebooks."""
    return Path(os.environ.get("AD_DATA_DIR") or ROOT / "data").expanduser().resolve()


def logs_dir(profile: str) -> Path:
    """``AD_LOGS_DIR``, or ``lightning_logs/``; a new temporary folder in the smoke profile."""
    if os.environ.get("AD_LOGS_DIR"):
        return Path(os.environ["AD_LOGS_DIR"]).expanduser().resolve()
    if profile == "smoke":
        return Path(tempfile.mkdtemp(prefix="anomaly-logs-"))
    return ROOT / "lightning_logs"


def best_device() -> torch.device:
    """CUDA if there is one (under torchrun, the one of this process), else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_precision(device: torch.device, large_convolutions: bool = False) -> str:
    """Lightning's precision: bf16 only where the GPU computes it natively (Ampere and newer).

    A T4 emulates bf16 and would be slower with it, so it trains in float32.  On a CPU with bf16
    instructions it pays for large convolutions only: casting costs more than it saves in small ones.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
    if device.type == "cpu" and large_convolutions:
        has = getattr(torch.cpu, "get_capabilities", dict)()  # torch < 2.10 does not tell: float32 then
        if has.get("avx512_bf16") or has.get("amx_bf16"):
            return "bf16-mixed"
    return "32-true"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """The GPU's product name, or ``CPU (n threads)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the GPU since the last training began, or resident of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; it takes that name at the end, and is removed if anything fails.

    So readers never see half a file, and what was there before stays until the new one is whole.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@functools.cache
def say_once(text: str) -> None:
    """Print ``text`` unless this process has printed it already: data sets are made anew for every training."""
    print(text)


def show_path(path: Path) -> str:
    """``path`` relative to the course's folder where possible, so that outputs name no machine."""
    try:
        return Path(path).resolve().relative_to(ROOT).as_posix() or "."
    except ValueError:
        return f".../{Path(path).name}"


def banner(run: Run) -> str:
    """One block of text that says where and how this run works."""
    why = "AD_PROFILE" if os.environ.get("AD_PROFILE") else f"default on this {run.device.type}"
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items())
    return "\n".join(
        (
            f"notebook   {run.notebook}",
            f"profile    {run.profile} ({why})",
            f"device     {device_name(run.device)}",
            f"data       {show_path(run.data_dir)}",
            f"logs       {show_path(run.logs_dir)}",
            f"versions   {libraries}",
        )
    )
