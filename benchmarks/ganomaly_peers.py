"""GANomaly's training speed beside anomalib's, on the same images, in one process and with interleaved rounds.

An optional benchmark with requirements of its own; from the repository's folder:
    uv venv --python 3.11 .venv-peers && uv pip install --python .venv-peers -r benchmarks/requirements-peers.txt
    .venv-peers/bin/python benchmarks/ganomaly_peers.py

The paper's size: 32 x 32, batch 64, ngf 64, nz 100; Fashion-MNIST's T-shirts, in three channels since anomalib's model
has no other.  Both run as their own users run them: ours is fit() with logging, checkpoints and reconstructions;
anomalib reads the images from a folder of PNG files with two workers.  Neither scores anything in between.
"""

import logging
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Ganomaly
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchvision.io import write_png
from torchvision.transforms.v2 import Compose, Normalize, Resize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import print_table  # noqa: E402
from helpers import runtime  # noqa: E402
from helpers.data.fashion_mnist import FashionMNISTOneClass  # noqa: E402
from helpers.data.loader import Split  # noqa: E402
from helpers.training import fit  # noqa: E402
from helpers.versions import definitions  # noqa: E402

ROUNDS, IMAGES = 5, 1280
PAPER = {"size": 32, "channels": 3, "ngf": 64, "nz": 100, "batch_size": 64, "lr": 2e-4, "beta1": 0.5, "epochs": 1}


def main() -> None:
    """Print one table."""
    for name in ("pytorch_lightning", "lightning.pytorch", "anomalib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="anomaly-bench-"))
    device = runtime.best_device()
    run = runtime.Run("bench", "full", device, runtime.data_dir(), folder / "logs")
    data = FashionMNISTOneClass(run, anomaly_fraction=0.0, batch_size=64, size=32, images_per_epoch=IMAGES)
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        setattr(data, name, Split(split.images.repeat(1, 3, 1, 1), split.label, split.kind))
    images = folder / "images" / "good"
    images.mkdir(parents=True)
    for index, image in enumerate(data.train.images[:IMAGES]):
        write_png(image, str(images / f"{index:05}.png"))

    contenders = {"ours": lambda: ours(data, run), f"anomalib {version('anomalib')}": lambda: theirs(images, folder)}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):  # the first round warms up
        for name, contender in contenders.items():
            speed = contender()
            if number:
                found[name].append(speed)
    print(
        f"{data.title}; {runtime.device_name(device)}; 32 x 32, batch 64, ngf 64, nz 100; {ROUNDS} rounds of {IMAGES} images"
    )
    print_table("GANomaly", found)


def ours(data, run) -> float:
    """Images per second of fit(), everything it does while training included."""
    stored = yaml.safe_load((ROOT / "lightning_logs" / "version_4" / "hparams.yaml").read_text())
    run.version = None
    model = definitions(ROOT / "notebooks" / "05_ganomaly.ipynb")["GANomaly"](stored | PAPER)
    return fit(model, data, run, show=False).history["images_per_second"]


def theirs(images: Path, folder: Path) -> float:
    """Images per second of anomalib's Engine, from the first batch to the last."""
    torch.manual_seed(0)
    prepare = PreProcessor(transform=Compose([Resize((32, 32)), Normalize([0.5] * 3, [0.5] * 3)]))
    model = Ganomaly(
        batch_size=64, n_features=64, latent_vec_size=100, pre_processor=prepare, evaluator=False, visualizer=False
    )
    data = Folder(
        "tshirts", images, train_batch_size=64, num_workers=2, test_split_mode="none", val_split_mode="none", seed=0
    )
    clock = Clock()
    engine = Engine(
        max_epochs=1,
        callbacks=[clock],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder / "anomalib"),
    )
    engine.fit(model, datamodule=data)
    return clock.images / clock.seconds


class Clock(Callback):
    """Seconds and images from the start of training to its end."""

    def on_train_start(self, trainer, model):
        self.images, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.images += len(batch.image)

    def on_train_end(self, trainer, model):
        self.seconds = time.perf_counter() - self.start


if __name__ == "__main__":
    main()
