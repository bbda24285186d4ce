import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers import runtime
from tests.conftest import ROOT


def test_profile_follows_the_device_and_the_variable(monkeypatch):
    monkeypatch.delenv("AD_PROFILE", raising=False)
    assert runtime.current_profile(torch.device("cpu")) == "quick"
    assert runtime.current_profile(torch.device("cuda")) == "full"
    monkeypatch.setenv("AD_PROFILE", "smoke")
    assert runtime.current_profile(torch.device("cuda")) == "smoke"


@pytest.mark.parametrize(
    ("variable", "choices"), [("AD_PROFILE", "full, quick, smoke"), ("AD_DATA", "auto, real, sample")]
)
def test_unknown_values_name_the_choices(monkeypatch, variable, choices):
    monkeypatch.setenv(variable, "fast")
    with pytest.raises(ValueError, match=f"{variable}='fast'.*{choices}"):
        runtime.start("01_baseline_gan")


def test_smoke_uses_samples_and_a_temporary_log_folder(monkeypatch):
    for name in ("AD_DATA", "AD_LOGS_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.data_mode("smoke") == "sample"
    assert runtime.data_mode("full") == "auto"
    assert runtime.ROOT not in runtime.logs_dir("smoke").parents
    assert runtime.logs_dir("quick") == ROOT / "lightning_logs"


def test_settings_replace_only_what_exists():
    run = runtime.Run("x", "quick", torch.device("cpu"), ROOT, ROOT)
    assert run.settings({"a": 1, "b": 2}, quick={"b": 3}, smoke={}) == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="smoke.*'c'"):
        run.settings({"a": 1}, quick={}, smoke={"c": 1})
    with pytest.raises(ValueError, match="'a' must be a plain scalar, not list"):
        run.settings({"a": [1]}, quick={}, smoke={})


def test_seeding_repeats_numpy_and_torch():
    runtime.seed_everything(5)
    first = (np.random.rand(), torch.rand(1).item())
    runtime.seed_everything(5)
    assert (np.random.rand(), torch.rand(1).item()) == first


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bf16_only_where_the_gpu_has_it(monkeypatch, native, precision):
    # a T4 answers True unless emulation is excluded
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    assert runtime.best_precision(torch.device("cuda")) == precision
    assert runtime.best_precision(torch.device("cpu")) == "32-true"


def test_banner_names_no_machine_path(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AD_LOGS_DIR", str(tmp_path))
    monkeypatch.setenv("AD_PROFILE", "quick")
    run = runtime.start("01_baseline_gan")
    said = capsys.readouterr().out
    assert "01_baseline_gan\n" in said
    assert "seed" not in said and "precision" not in said, "a model's settings and its training choose them"
    assert str(ROOT) not in said
    assert str(tmp_path.parent) not in said
    runtime.tensorboard(run)
    assert f"--logdir .../{tmp_path.name})" in capsys.readouterr().out


def test_modules_import_only_what_they_use():
    """Each module in a fresh interpreter: what it must not drag in."""
    forbidden = {
        "helpers.bootstrap": ("torch", "numpy"),
        "helpers.data.download": ("torch", "numpy", "tqdm"),
        "helpers.metrics": ("torch", "sklearn", "matplotlib"),
        "helpers.runtime": ("pytorch_lightning", "matplotlib", "sklearn", "tensorboard"),
        "helpers.plots": ("pytorch_lightning", "tensorboard", "sklearn"),
    }
    code = (
        "import sys, importlib, json\n"
        "for module, names in json.loads(sys.argv[1]).items():\n"
        "    importlib.import_module(module)\n"
        "    for name in names:\n"
        "        assert name not in sys.modules, f'{module} imports {name}'\n"
    )
    import json

    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(forbidden)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
