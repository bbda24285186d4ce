"""A training that a test starts as its own process, to kill it or to run it twice in parallel."""

import atexit
import os
import signal
import sys
from pathlib import Path

import torch

# registered before the helpers, so called after whatever they do at the end
# in one piece, since two processes write into one pipe
atexit.register(lambda: print(f"in a group at the end: {torch.distributed.is_initialized()}\n", end="", flush=True))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.data.fashion_mnist import FashionMNISTOneClass  # noqa: E402
from helpers.data.loader import Augment  # noqa: E402
from helpers.training import evaluate, fit  # noqa: E402
from tests.conftest import SETTINGS, make_run, notebook_definitions  # noqa: E402

CHECKPOINT_EVERY = 5


def objects(folder: Path, kill_at: int | None = None):
    """Run, model and data, all seeded; the model dies by SIGKILL in batch ``kill_at``."""
    base = notebook_definitions("01_baseline_gan.ipynb")["BaselineGAN"]
    torch.manual_seed(0)

    class Mortal(base):
        steps = 0

        def training_step(self, batch, batch_idx):
            if kill_at is not None and self.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.steps += 1
            super().training_step(batch, batch_idx)

    run = make_run(folder)
    model = Mortal(SETTINGS | {"epochs": 4})
    # noise makes every batch depend on the global random state, which a resume has to restore
    data = FashionMNISTOneClass(run, batch_size=16, limit=64, augment=Augment(flip=0.5, noise=0.2))
    return run, model, data


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "kill":
        run, model, data = objects(folder, kill_at=int(sys.argv[3]))
        fit(model, data, run, checkpoint_every=CHECKPOINT_EVERY)
    else:
        run, model, data = objects(folder)
        trained = fit(model, data, run) if kind == "torchrun" else fit(model, data, run, devices=2, strategy="ddp")
        scores = evaluate(trained.model, data)
        found = {
            "score": torch.from_numpy(scores.score),
            "folder": str(trained.folder),
            "devices": trained.history["devices"],
            "frames": len(trained.history["frames"]),
        }
        torch.save(found, folder / f"rank_{torch.distributed.get_rank()}.pt")
