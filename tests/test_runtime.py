"""Profile, device, precision, seed, paths; and what an import needs and leaves out."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

from helpers import runtime
from tests.toy import CPU, ROOT, make_run

CUDA = torch.device("cuda")


def test_the_profile_follows_the_device_and_the_variable(monkeypatch):
    assert runtime.current_profile(CPU) == "quick"
    assert runtime.current_profile(CUDA) == "full"
    monkeypatch.setenv("AD_PROFILE", "smoke")
    assert runtime.current_profile(CUDA) == "smoke"
    monkeypatch.setenv("AD_PROFILE", "fast")
    with pytest.raises(ValueError, match="AD_PROFILE='fast'.*full, quick, smoke"):
        runtime.start("01_baseline_gan")


def test_smoke_logs_go_to_a_temporary_folder():
    assert ROOT not in runtime.logs_dir("smoke").parents
    assert runtime.logs_dir("quick") == ROOT / "lightning_logs"


def test_settings_replace_only_what_exists(tmp_path):
    full = {"a": 1, "b": 2}
    run = make_run(tmp_path)
    for profile, expected in (("full", full), ("quick", {"a": 1, "b": 3}), ("smoke", {"a": 0, "b": 2})):
        run.profile = profile
        assert run.settings(full, quick={"b": 3}, smoke={"a": 0}) == expected
    assert full == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="'c'"):
        run.settings({"a": 1}, quick={}, smoke={"c": 1})
    with pytest.raises(ValueError, match="'a' must be a plain scalar, not list"):
        run.settings({"a": [1]}, quick={}, smoke={})


@pytest.mark.parametrize(("notebook", "number"), [("01_baseline_gan", 0), ("05_ganomaly", 4), ("10_own", 9)])
def test_each_notebook_has_its_reference_version(tmp_path, notebook, number):
    assert make_run(tmp_path, notebook).reference == ROOT / "lightning_logs" / f"version_{number}"


def test_seeding_repeats_numpy_and_torch():
    drawn = []
    for _ in range(2):
        runtime.seed_everything(5)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


PRECISIONS = [
    ((9, 0), True, "bf16-mixed"),
    ((8, 0), False, "bf16-mixed"),
    ((7, 5), True, "16-mixed"),  # a T4 emulates bf16, and says that it has it
    ((7, 5), False, "32-true"),
    ((6, 1), True, "16-mixed"),
]


@pytest.mark.parametrize(("capability", "large", "precision"), PRECISIONS)
def test_the_precision_is_one_that_the_card_computes_natively(monkeypatch, capability, large, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime.best_precision(CUDA, large) == precision
    for other in (CPU, torch.device("mps")):
        assert runtime.best_precision(other, large) == "32-true"


def test_tf32_holds_inside_of_its_block_only():
    def state():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = state()
    with runtime.tf32(True):
        assert state() == ("high", True)
        with pytest.raises(ZeroDivisionError), runtime.tf32(False):
            assert state() == ("highest", False)
            _ = 1 / 0
        assert state() == ("high", True)
    assert state() == before


def test_what_start_prints_names_no_folder_of_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AD_LOGS_DIR", str(tmp_path))
    monkeypatch.setenv("AD_DATA_DIR", str(tmp_path / "mine"))
    run = runtime.start("01_baseline_gan")
    said = capsys.readouterr().out
    assert "01_baseline_gan\n" in said and f"torch {version('torch')}" in said and ".../mine" in said
    assert str(ROOT) not in said and str(tmp_path.parent) not in said
    runtime.tensorboard(run)
    assert f"--logdir .../{tmp_path.name})" in capsys.readouterr().out
    runtime.start("01_baseline_gan", train=False)
    assert "01_baseline_gan, loading lightning_logs/version_0" in capsys.readouterr().out


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    for text in ("old", "new"):
        with runtime.atomic_write(path) as part:
            part.write_text(text)
    with pytest.raises(ZeroDivisionError), runtime.atomic_write(path) as part:
        part.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_peak_memory_of_this_process_is_measured_where_the_system_tells(monkeypatch):
    assert 50 < runtime.peak_memory_mib(CPU) < 100_000
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert runtime.peak_memory_mib(CPU) is None


# --- imports ----------------------------------------------------------------------------------------------------------


def in_a_new_interpreter(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "helpers").rglob("[a-z]*.py")
)


def test_every_module_works_where_posix_is_missing(tmp_path):
    """As on Windows: no ``resource``, no ``fcntl``, no ``os.getuid``.  What torch itself needs is imported before."""
    code = """
import importlib, json, os, sys
import pytorch_lightning, torch, torchvision, matplotlib.pyplot, sklearn.metrics, pandas, tensorboard, filelock
import torch.utils.tensorboard
for name in ("resource", "fcntl", "pwd", "grp"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getgid", "sysconf", "fork", "uname", "mkfifo", "chown"):
    if hasattr(os, name):
        delattr(os, name)
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
from tests.toy import Toy, ToyModel, make_run
from helpers.evaluation import evaluate
from helpers.training import fit
from pathlib import Path
found = fit(ToyModel(epochs=1), Toy(), make_run(Path(sys.argv[2])), show=False)
print(found.history["peak_memory_mib"], len(evaluate(found.model, Toy()).score))
"""
    assert in_a_new_interpreter(code, json.dumps(MODULES), str(tmp_path)).endswith("None 20\n")


def test_modules_import_only_what_they_use():
    """One after the other in a new interpreter: what each must not have dragged in."""
    code = """
import importlib, json, sys
for module, names in json.loads(sys.argv[1]).items():
    importlib.import_module(module)
    for name in names:
        assert name not in sys.modules, f"{module} imports {name}"
"""
    forbidden = {
        "helpers.bootstrap": ("torch", "numpy"),
        "helpers.metrics": ("torch", "sklearn", "matplotlib", "scipy"),
    }
    in_a_new_interpreter(code, json.dumps(forbidden))
