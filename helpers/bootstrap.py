"""The first cell of every notebook calls this: add the packages that are missing, touch no other."""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
# what the notebooks import; the rest of requirements.txt runs and checks them, which Colab does by itself
NEEDED = ("torch", "torchvision", "pytorch-lightning", "scikit-learn", "pandas", "matplotlib", "pooch", "tensorboard")
NEEDED += ("ipywidgets",)


def missing() -> list[str]:
    """The requirement lines of ``NEEDED`` that are not installed, in any version."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    by_name = {_name(line): line for line in lines}
    return [by_name[name] for name in NEEDED if not _installed(name)]


def install_missing() -> None:
    """Install what is missing, with every installed package pinned to the version it has.

    Colab's own packages depend on each other's exact versions, so nothing may be upgraded: where the
    missing package cannot live with them, pip refuses, and RuntimeError says so.
    """
    wanted = missing()
    if not wanted:
        return
    pins: dict[str, str] = {}
    for dist in distributions():
        if dist.name:  # of a package found twice, the first on sys.path is the one that is imported
            pins.setdefault(re.sub(r"[-_.]+", "-", dist.name).lower(), dist.version)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "installed.txt"
        constraints.write_text("\n".join(f"{name}=={number}" for name, number in sorted(pins.items())))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *wanted]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-12:]
        raise RuntimeError(
            f"could not add {', '.join(wanted)} without changing installed packages:\n" + "\n".join(reason)
        )
    print("added:", ", ".join(f"{name} {version(name)}" for name in map(_name, wanted)))


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0]


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
