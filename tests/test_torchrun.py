"""Two processes under torchrun: each image is trained and scored once, and there is one version."""

import atexit
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
        found[name] = {
            "score": torch.from_numpy(evaluate(trained.model, Toy()).score),
            "weights": torch.cat([weights.detach().flatten() for weights in trained.model.parameters()]),
            "devices": trained.history["devices"],
            "frames": len(trained.history["frames"]),
            "folder": str(trained.folder),
        }
    torch.save(found, folder / f"rank_{torch.distributed.get_rank()}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, process.stdout, [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_processes_end_with_the_same_model_in_one_version(ranks):
    folder, _, (first, second) = ranks
    assert [path.name for path in (folder / "logs").iterdir()] == ["version_10"], "one version, not one a process"
    for name in KINDS:
        assert torch.equal(first[name]["weights"], second[name]["weights"])
        assert first[name]["devices"] == second[name]["devices"] == 2
        assert first[name]["frames"] == second[name]["frames"] == 2, "a notebook draws the film in every process"
        assert first[name]["folder"] == second[name]["folder"]


def test_each_image_is_scored_once_and_both_processes_have_all_scores(ranks):
    folder, _, (first, second) = ranks
    for name, kind in KINDS.items():
        assert torch.equal(first[name]["score"], second[name]["score"])
        alone = load(kind(), make_run(folder), Path(first[name]["folder"]))
        np.testing.assert_allclose(first[name]["score"], evaluate(alone.model, Toy()).score, rtol=1e-5)
        assert alone.history["images"] == 3 * (48 // 8 // 2) * 12 * 2


def test_the_group_is_left_at_exit(ranks):
    assert ranks[1].count("in a group at the end: False") == 2, "a group that is not left can abort the process"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
