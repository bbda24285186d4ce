"""The first cell of every notebook calls this: add the packages that are missing, touch no other."""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
# what the notebooks import; the rest of requirements.txt runs and checks them, which Colab does by itself
NEEDED = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "pandas", "matplotlib", "pooch", "tensorboard")
NEEDED += ("ipywidgets",)


def installed() -> dict[str, str]:
    """{normalised name: version} of every package; of one found twice, the first on sys.path, which is imported."""
    found = [(dist.name, dist.version) for dist in distributions() if dist.name]
    return {re.sub(r"[-_.]+", "-", name).lower(): number for name, number in reversed(found)}


def missing(more: tuple[str, ...] = ()) -> list[str]:
    """The lines of requirements.txt for those of ``NEEDED`` and ``more`` that are not installed, in any version."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    by_name, present = {_name(line): line for line in lines}, installed()
    return [by_name[name] for name in (*NEEDED, *more) if name not in present]


def install_missing(*more: str) -> None:
    """Install what is missing, ``more`` for what only one notebook needs.

    Raises RuntimeError if that would change an installed package: Colab's depend on each other.
    """
    if not (wanted := missing(more)):
        return
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "installed.txt"
        pins.write_text("\n".join(f"{name}=={number}" for name, number in installed().items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins), *wanted]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = "\n".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-12:])
        raise RuntimeError(f"could not add {', '.join(wanted)} without changing installed packages:\n{reason}")
    print("added:", ", ".join(f"{name} {version(name)}" for name in map(_name, wanted)))


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0]
