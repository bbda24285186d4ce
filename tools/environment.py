"""Make .venv from requirements.lock, with nothing but Python and a package index.  Called by make."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")


def run(*command: str) -> None:
    """Run a command; stop with one sentence if it fails."""
    if code := subprocess.run(command).returncode:
        raise SystemExit(f"set-up failed ({' '.join(command[:4])} ... returned {code}): mend it and run again")


if sys.version_info < (3, 11):
    newer = next((found for minor in (13, 12, 11) if (found := shutil.which(f"python3.{minor}"))), None)
    if newer is None:
        raise SystemExit(f"Python 3.11 or newer is needed, not {sys.version.split()[0]}: make PYTHON=/path/to/python3")
    os.execv(newer, [newer, __file__])
(VENV / "ready").unlink(missing_ok=True)
if not list(BIN.glob("pip*")):  # a half-made one is made again
    print("making .venv", flush=True)
    run(sys.executable, "-m", "venv", "--clear", str(VENV))
# uv installs the lock several times faster than pip, from pip's own index and cache settings
run(str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.5")
print("installing requirements.lock (about 6 GB on Linux, most of it CUDA)", flush=True)
lock = str(ROOT / "requirements.lock")
run(str(BIN / "uv"), "pip", "install", "--quiet", "--python", str(BIN / "python"), "--requirement", lock)
(VENV / "ready").touch()
