"""Two processes under torchrun: each image is trained and scored once, and there is one version."""

import atexit
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

if __name__ == "__main__":
    # registered before the helpers, so called after whatever they do at the end; in one piece, as two share a pipe
    atexit.register(lambda: print(f"in a group at the end: {torch.distributed.is_initialized()}\n", end="", flush=True))

from helpers.evaluation import evaluate
from helpers.training import fit, load
from tests.toy import ROOT, Adversarial, Toy, ToyModel, make_run

KINDS = {"automatic": ToyModel, "adversarial": Adversarial}


def main(folder: Path) -> None:
    """What torchrun starts twice."""
    torch.set_num_threads(1)
    run, found = make_run(folder), {}
    for name, kind in KINDS.items():
        trained = fit(kind(), Toy(), run, name=name, show=False, checkpoint_seconds=0)
        facts = (trained.history["devices"], len(trained.history["frames"]), str(trained.folder))
        weights = parameters_to_vector(trained.model.parameters()).detach()
        found[name] = {"facts": facts, "weights": weights, "score": torch.tensor(evaluate(trained.model, Toy()).score)}
    torch.save(found, folder / f"rank_{torch.distributed.get_rank()}.pt")


def test_two_processes_end_with_the_same_model_in_one_version_and_score_each_image_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("in a group at the end: False") == 2, "a group that is not left can abort the process"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["version_10"], "one version, not one a process"
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, kind in KINDS.items():
        for what in ("weights", "score"):
            assert torch.equal(first[name][what], second[name][what]), what
        # a notebook draws the film in every process
        assert {found[name]["facts"] for found in (first, second)} == {(2, 2, str(tmp_path / "logs/version_10" / name))}
        alone = load(kind(), make_run(tmp_path), tmp_path / "logs/version_10" / name)
        np.testing.assert_allclose(first[name]["score"], evaluate(alone.model, Toy()).score, rtol=1e-5)
        assert alone.history["images"] == 3 * (48 // 8 // 2) * 12 * 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
