"""Make .venv from requirements.lock, with nothing but Python and a package index.  Called by make."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
READY = VENV / "ready"
OLDEST = (3, 11)


def main() -> None:
    """Create or update the environment; the marker file is written last."""
    if sys.version_info < OLDEST:
        newer = next((found for minor in (13, 12, 11) if (found := shutil.which(f"python3.{minor}"))), None)
        if newer is None:
            raise SystemExit(
                f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3"
            )
        os.execv(newer, [newer, __file__])
    READY.unlink(missing_ok=True)
    python = VENV / "bin" / "python"
    if not (python.exists() and (VENV / "bin" / "pip").exists()):  # a half-made one is made again
        print("making .venv", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(VENV))
    # uv installs the lock several times faster than pip, from pip's own index and cache settings
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.5")
    print("installing requirements.lock (about 6 GB on Linux, most of it CUDA)", flush=True)
    lock = str(ROOT / "requirements.lock")
    _run(
        str(VENV / "bin" / "uv"),
        "pip",
        "install",
        "--quiet",
        "--compile-bytecode",
        "--python",
        str(python),
        "--requirement",
        lock,
    )
    READY.touch()


def _run(*command: str) -> None:
    if code := subprocess.run(command).returncode:
        raise SystemExit(
            f"set-up failed ({' '.join(command[:4])} ... returned {code}); mend the cause above and run again"
        )


if __name__ == "__main__":
    main()
