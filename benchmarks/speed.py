"""Training and scoring speed, side by side: make bench

From one process and with interleaved repeats, images per second of
  ours       fit() of this course: logging, checkpoints and reconstructions included
  plain      a plain PyTorch loop over the same networks and the same resident data; nothing else
  customary  torchvision data set + DataLoader (2 workers) + the same Lightning module, without any logging
and the time to score the test images.
"""

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers import metrics, runtime  # noqa: E402
from helpers.data.fashion_mnist import FashionMNISTOneClass, fashion_mnist_root  # noqa: E402
from helpers.data.loader import Augment, to_float  # noqa: E402
from helpers.data.mvtec import MVTec, mvtec_root  # noqa: E402
from helpers.models import AdversarialModel  # noqa: E402
from helpers.training import fit, score_images  # noqa: E402
from helpers.versions import definitions  # noqa: E402

REPEATS = 9  # many short rounds: another program on the machine then spoils few of them


def fashion(run, settings):
    """Fashion-MNIST as the first two notebooks read it."""
    return FashionMNISTOneClass(run, batch_size=settings["batch_size"])


def tshirts(run, settings):
    """Fashion-MNIST as the fifth notebook reads it: T-shirts alone, with a border."""
    sizes = {name: settings[name] for name in ("batch_size", "size", "images_per_epoch")}
    return FashionMNISTOneClass(run, anomaly_fraction=0.0, **sizes)


def mvtec(run, settings):
    """MVTec as the third and fourth notebooks read it, with their augmentation."""
    augment = Augment(**{name: settings[name] for name in ("flip", "degrees", "shift", "noise")})
    names = ("dataset", "size", "batch_size", "images_per_epoch")
    return MVTec(run, augment=augment, grey=settings.get("grey", False), **{name: settings[name] for name in names})


def around_any_centre(model: type) -> type:
    """Deep SVDD with an arbitrary centre: where it is does not change what a step costs."""

    class Begun(model):
        def __init__(self, settings):
            super().__init__(settings)
            self.centre.fill_(0.1)
            self.radius.zero_()

        def on_train_end(self):
            """Nothing: there are no data to choose the radius from."""

    return Begun


SHORT = {"dataset": "hazelnut", "epochs": 1, "images_per_epoch": 480}
PAPER = {"epochs": 1, "ngf": 64, "nz": 100, "images_per_epoch": 1280}
NUTS = SHORT | {"flip": 0.5, "degrees": 180, "shift": 0.03, "noise": 0.02}
# notebook, model, version, data, changed settings, rounds
MODELS = (
    ("01_baseline_gan", "BaselineGAN", "version_0", fashion, {"epochs": 2}, REPEATS),
    ("02_dcgan", "DCGAN", "version_1", fashion, {"epochs": 1}, 5),
    ("03_hazelnut_autoencoder", "HazelnutAutoencoder", "version_2", mvtec, SHORT, 5),
    ("04_deep_svdd", "DeepSVDD", "version_3", mvtec, NUTS, 5),
    ("05_ganomaly", "GANomaly", "version_4", tshirts, PAPER, 5),
)


def main() -> None:
    """One table for each notebook; name some to run only these: python benchmarks/speed.py 02"""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for notebook, model, *rest in MODELS:
        if len(sys.argv) < 2 or notebook[:2] in sys.argv[1:]:
            found = definitions(ROOT / "notebooks" / f"{notebook}.ipynb")[model]
            compare(notebook, around_any_centre(found) if model == "DeepSVDD" else found, *rest)


def compare(notebook: str, model: type, version: str, make_data, changes: dict, repeats: int) -> None:
    """Print the table of one notebook's model, with the settings of its reference run."""
    device = runtime.best_device()
    folder = Path(tempfile.mkdtemp(prefix="anomaly-bench-"))
    settings = yaml.safe_load((ROOT / "lightning_logs" / version / "hparams.yaml").read_text()) | changes
    run = runtime.Run("bench", "full", device, runtime.data_dir(), folder)
    data = make_data(run, settings)
    print(
        f"{data.title}; {runtime.device_name(device)}; {_precision(model(settings))}; batch {settings['batch_size']}, {repeats} repeats"
    )

    contenders = {"ours": ours, "plain": plain, "customary": customary}
    for contender in contenders.values():  # warm up: kernels, caches, imports
        contender(model, settings, data, run)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            found[name].append(contender(model, settings, data, run))
    print_table(notebook, found)

    seconds = []
    network = model(settings).to(device)
    for _ in range(repeats):
        start = time.perf_counter()
        score_images(network, data.test, device)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(f"\nscoring {len(data.test):,} test images: {median:.2f} s, {len(data.test) / median:,.0f} images/s")
    if data.test.mask is not None:
        maps = np.random.default_rng(0).random((110, 256, 256), dtype=np.float32)
        start = time.perf_counter()
        metrics.pro_score(maps, maps > 0.99)
        print(f"per-region overlap (PRO) over 110 maps of 256 x 256 pixels: {time.perf_counter() - start:.1f} s")
    print(
        f"peak memory: {runtime.peak_memory_mib(device):,.0f} MiB ({'GPU' if device.type == 'cuda' else 'process'})\n"
    )


def print_table(heading: str, found: dict[str, list[float]]) -> None:
    """Images per second of each contender, one value a round."""
    print(f"\n| {heading} | images/s (median) | slowest to fastest round | ours / this (median of rounds) |")
    print("|---|---|---|---|")
    for name, speeds in found.items():
        ratio = statistics.median(mine / its for mine, its in zip(found["ours"], speeds, strict=True))
        print(f"| {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} | {ratio:.2f} |")


def ours(model, settings, data, run) -> float:
    """Images per second of fit(), everything it does while training included."""
    run.version = None
    return fit(model(settings), data, run).history["images_per_second"]


def plain(model, settings, data, run) -> float:
    """The loop one would write by hand, as fast as it goes."""
    network = model(settings).to(run.device).train()
    if network.large_convolutions:
        network.to(memory_format=torch.channels_last)
    split, device = data.train, run.device
    images = split.images.to(device)
    normal, anomalous = (torch.nonzero(split.label == value)[:, 0].to(device) for value in (0, 1))
    per_epoch = data.images_per_epoch or len(normal)
    count = per_epoch // data.normals_per_batch
    stand_in = SimpleNamespace(estimated_stepping_batches=settings["epochs"] * count)  # all that a schedule asks for
    network.trainer = stand_in
    made = network.configure_optimizers()
    optimizers, schedulers = made if isinstance(made, tuple) else (made, ())
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    step = adversarial_step if issubclass(model, AdversarialModel) else one_loss_step
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_precision(network) == "bf16-mixed")
    start = _now(device)
    for _ in range(settings["epochs"]):
        rounds = -(-per_epoch // len(normal))
        first = torch.cat([normal[torch.randperm(len(normal), device=device)] for _ in range(rounds)])
        second = anomalous[torch.randperm(len(anomalous), device=device)]
        for batch in range(count):
            n = first[batch * data.normals_per_batch : (batch + 1) * data.normals_per_batch]
            a = second[batch * data.anomalies_per_batch : (batch + 1) * data.anomalies_per_batch]
            step(network, optimizers, data.augment(to_float(images[n])), to_float(images[a]), autocast)
            for scheduler in schedulers:
                scheduler.step()
    return settings["epochs"] * count * (data.normals_per_batch + data.anomalies_per_batch) / (_now(device) - start)


def one_loss_step(network, optimizers, x, y, autocast) -> None:
    """One batch of a model with a single loss."""
    with autocast:
        loss = network.weighted_sum(network.losses(x, y))
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()


def adversarial_step(network, optimizers, x, y, autocast) -> None:
    """One batch of a generator and its discriminators."""
    generator, discriminators = optimizers
    with autocast:
        made = network.generate(x, y)
        loss = network.weighted_sum(network.discriminator_losses(x, y, {k: v.detach() for k, v in made.items()}))
    discriminators.zero_grad()
    loss.backward()
    discriminators.step()
    network.discriminators.requires_grad_(False)
    with autocast:
        loss = network.weighted_sum(network.generator_losses(x, y, made))
    generator.zero_grad()
    loss.backward()
    generator.step()
    network.discriminators.requires_grad_(True)


def customary(model, settings, data, run) -> float:
    """What most tutorials do: decode and transform image by image in workers, split the batch by label."""

    class Customary(model):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            images, labels = (part.to(device) for part in batch)
            return images[labels == 0], images[labels != 0]

        def on_train_end(self):
            """Nothing: only the loop is compared."""

    chosen = files(settings, data, run) if isinstance(data, MVTec) else garments(data, run)
    size = data.normals_per_batch + data.anomalies_per_batch
    loader = DataLoader(chosen, batch_size=size, shuffle=True, drop_last=True, num_workers=2)
    module, clock = Customary(settings), _Clock(run.device)
    trainer = pl.Trainer(
        accelerator=run.device.type,
        devices=1,
        precision=_precision(module),
        max_epochs=settings["epochs"],
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return settings["epochs"] * len(loader) * size / clock.seconds


def garments(data, run) -> Subset:
    """Fashion-MNIST, transformed image by image; the images of one label that training uses."""
    root, _ = fashion_mnist_root(run)
    border = (data.train.images.shape[-1] - 28) // 2
    transform = transforms.Compose([transforms.Pad(border), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    everything = datasets.FashionMNIST(str(root), train=True, transform=transform)
    normal = torch.nonzero(everything.targets == 0)[: len(data.train.normal()), 0]
    others = torch.nonzero(everything.targets != 0)[: len(data.train) - len(normal), 0]
    return Subset(everything, torch.cat([normal, others])[: data.images_per_epoch].tolist())


def files(settings, data, run) -> Subset:
    """MVTec's files, decoded and augmented one by one, repeated to the length of an epoch."""
    root, _ = mvtec_root(run, settings["dataset"])
    steps = [transforms.Grayscale()] if settings.get("grey") else []
    steps += [transforms.Resize((settings["size"],) * 2), transforms.RandomHorizontalFlip(settings["flip"])]
    steps += [transforms.RandomAffine(settings["degrees"], (settings["shift"],) * 2), transforms.ToTensor()]
    everything = datasets.ImageFolder(str(root / "train"), transforms.Compose([*steps, transforms.Normalize(0.5, 0.5)]))
    return Subset(everything, [index % len(everything) for index in range(data.images_per_epoch)])


def _precision(model) -> str:
    return runtime.best_precision(runtime.best_device(), model.large_convolutions)


class _Clock(pl.Callback):
    def __init__(self, device):
        self.device = device

    def on_train_start(self, trainer, model):
        self.start = _now(self.device)

    def on_train_end(self, trainer, model):
        self.seconds = _now(self.device) - self.start


def _now(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
