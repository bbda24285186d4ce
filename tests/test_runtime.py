"""Profile, device, precision, paths; and Windows."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from helpers import runtime
from tests.toy import CPU, ROOT, make_run

CUDA = torch.device("cuda")


def test_the_profile_follows_the_device_and_the_variable_and_smoke_logs_nowhere(monkeypatch):
    assert runtime.current_profile(CPU) == "quick"
    assert runtime.current_profile(CUDA) == "full"
    monkeypatch.setenv("AD_PROFILE", "smoke")
    assert runtime.current_profile(CUDA) == "smoke"
    assert ROOT not in runtime.logs_dir("smoke").parents
    assert runtime.logs_dir("quick") == ROOT / "lightning_logs"
    monkeypatch.setenv("AD_PROFILE", "fast")
    with pytest.raises(ValueError, match="AD_PROFILE='fast'.*full, quick, smoke"):
        runtime.start("01_baseline_gan")


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


T4 = (7, 5)  # it emulates bf16, and says that it has it
CARDS = [((9, 0), True, "bf16-mixed"), ((8, 0), False, "bf16-mixed"), (T4, True, "16-mixed"), (T4, False, "32-true")]


@pytest.mark.parametrize(("capability", "large", "precision"), CARDS)
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
    assert f"tensorboard --logdir {tmp_path}\n" in capsys.readouterr().out, "but a command must work"
    runtime.tensorboard(run, beside=ROOT / "lightning_logs")
    assert f"tensorboard --logdir_spec own:{tmp_path},course:lightning_logs\n" in capsys.readouterr().out
    runtime.start("01_baseline_gan", train=False)
    assert "01_baseline_gan, loading lightning_logs/version_0" in capsys.readouterr().out


def test_everything_works_where_posix_is_missing(tmp_path):
    """As on Windows: no ``resource``, no ``fcntl``, no ``os.getuid``.  What torch itself needs is imported before."""
    code = """
import importlib, os, pkgutil, sys
import pytorch_lightning, torchvision, matplotlib.pyplot, sklearn.metrics, pandas, torch.utils.tensorboard, filelock
from pathlib import Path
sys.modules.update(dict.fromkeys(("resource", "fcntl", "pwd", "grp")))
for name in ("getuid", "geteuid", "getgid", "sysconf", "fork", "uname", "mkfifo", "chown"):
    delattr(os, name)
import helpers
for module in pkgutil.walk_packages(helpers.__path__, "helpers."):
    importlib.import_module(module.name)
from tests.toy import Toy, ToyModel, make_run
from helpers.evaluation import evaluate
from helpers.training import fit
found = fit(ToyModel(epochs=1), Toy(), make_run(Path(sys.argv[1])), show=False)
print(found.history["peak_memory_mib"], len(evaluate(found.model, Toy()).score))
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("None 20\n"), result.stderr
