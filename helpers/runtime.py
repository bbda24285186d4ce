"""Runtime configuration: profile, device, precision, seed, paths."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("full", "quick", "smoke")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "tensorboard", "numpy")

seed_everything = partial(pl.seed_everything, verbose=False)  # Python, NumPy and torch on all devices
say_once = cache(print)  # once in a process: data sets are made anew for every training


@dataclass
class Run:
    """One execution of one notebook: what it may use and where it writes."""

    notebook: str
    profile: str
    device: torch.device
    data_dir: Path
    logs_dir: Path
    train: bool = True  # False loads the committed reference version instead
    version: Path | None = None  # the TensorBoard folder of this run; ``fit`` claims it at the first training

    @property
    def reference(self) -> Path:
        """The committed version of this notebook: ``version_0`` for notebook 1, and so on."""
        return ROOT / "lightning_logs" / f"version_{int(self.notebook[:2]) - 1}"

    def settings(self, full: dict, *, quick: dict, smoke: dict) -> dict:
        """``full`` with this profile's changes.  ValueError for unknown names, and values that are no plain scalars."""
        if unknown := sorted({*quick, *smoke} - set(full)):
            raise ValueError(f"a profile changes settings that do not exist: {unknown}")
        chosen = full | {"full": {}, "quick": quick, "smoke": smoke}[self.profile]
        for key, value in chosen.items():
            if not isinstance(value, (int, float, str, type(None))):
                raise ValueError(f"setting {key!r} must be a plain scalar, not {type(value).__name__}")
        return chosen


def start(notebook: str, *, train: bool = True, keep_on_drive: bool = False) -> Run:
    """Seed everything with 0, choose profile, device and folders, and print them.

    notebook: its file name without the ending.  keep_on_drive: on Colab, logs go to Google Drive, which outlives it.
    """
    if keep_on_drive and "google.colab" in sys.modules:
        from google.colab import drive

        drive.mount("/content/drive")
        os.environ["AD_LOGS_DIR"] = "/content/drive/MyDrive/image-anomaly-detection/lightning_logs"
    device = best_device()
    profile = current_profile(device)
    seed_everything(0)
    run = Run(notebook, profile, device, data_dir(), logs_dir(profile), train)
    lines = {
        "notebook": notebook if train else f"{notebook}, loading {show_path(run.reference)}",
        "profile": f"{profile} ({'AD_PROFILE' if os.environ.get('AD_PROFILE') else f'default on this {device.type}'})",
        "device": device_name(device) + (", TF32 while training" if device.type == "cuda" else ""),
        "data": show_path(run.data_dir),
        "logs": show_path(run.logs_dir),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    print("\n".join(f"{name:11}{value}" for name, value in lines.items()))
    return run


def tensorboard(run: Run, beside: Path | None = None) -> None:
    """Open TensorBoard in the notebook on Colab; elsewhere print the command for a terminal in the course's folder.

    It shows the logs of this run, or the committed ones where nothing is trained; and those in ``beside``.
    """

    colab = "google.colab" in sys.modules

    def typed(path: Path) -> str:
        text = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) and not colab else path)
        return f'"{text}"' if " " in text else text

    mine = run.logs_dir if run.train else run.reference.parent
    other = (beside or mine).resolve()
    folders = f"--logdir {typed(mine)}" if mine == other else f"--logdir_spec own:{typed(mine)},course:{typed(other)}"
    if colab:
        from tensorboard import notebook

        notebook.start(folders)
    else:
        program = shutil.which("tensorboard", path=str(Path(sys.executable).parent)) or "tensorboard"
        print(f"In a terminal: {typed(Path(program))} {folders}")


def current_profile(device: torch.device | None = None) -> str:
    """``AD_PROFILE``, or ``full`` on a CUDA GPU and ``quick`` elsewhere."""
    profile = os.environ.get("AD_PROFILE") or ("full" if (device or best_device()).type == "cuda" else "quick")
    if profile not in PROFILES:
        raise ValueError(f"AD_PROFILE={profile!r} is unknown: choose one of {', '.join(PROFILES)}")
    return profile


def data_dir() -> Path:
    """``AD_DATA_DIR``, or ``data/`` beside the notebooks."""
    return Path(os.environ.get("AD_DATA_DIR") or ROOT / "data").expanduser().resolve()


def logs_dir(profile: str) -> Path:
    """``AD_LOGS_DIR``, or ``lightning_logs/``; a new temporary folder in the smoke profile."""
    if os.environ.get("AD_LOGS_DIR"):
        return Path(os.environ["AD_LOGS_DIR"]).expanduser().resolve()
    return Path(tempfile.mkdtemp(prefix="anomaly-logs-")) if profile == "smoke" else ROOT / "lightning_logs"


def best_device() -> torch.device:
    """CUDA if there is one (under torchrun, the one of this process), else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_precision(device: torch.device, large_convolutions: bool = False) -> str:
    """Lightning's precision for training: the fastest that the device computes natively."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "bf16-mixed"  # Ampere and newer; older cards emulate it
    return "16-mixed" if device.type == "cuda" and large_convolutions else "32-true"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow (to train) or forbid (to score alike on all cards) Ampere's shortened float32 inside a ``with`` block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """The GPU's product name, or ``CPU (n threads)``."""
    names = {"cpu": f"CPU ({torch.get_num_threads()} threads)", "mps": "mps"}
    return names.get(device.type) or torch.cuda.get_device_name(device)


def peak_memory_mib(device: torch.device) -> int | None:
    """Peak MiB: allocated on the GPU since the last training began, or resident on the CPU (None on Windows)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to: it takes that name at the end, and is removed if anything fails."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def show_path(path: Path) -> str:
    """``path`` relative to the course's folder where possible, so that outputs name no machine."""
    resolved = Path(path).resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else f".../{Path(path).name}"
