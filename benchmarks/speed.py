"""Training speed beside a plain PyTorch loop, the price of the live picture, and the time to import: make bench

python benchmarks/speed.py [01 ...]

From one process and with interleaved rounds, images per second of
  fit    the course's own: logging, checkpoints and reconstructions included
  plain  a plain PyTorch loop over the same training step and the same resident data; nothing else
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers import plots, runtime  # noqa: E402
from helpers.data.batches import Augment, to_float, to_uint8  # noqa: E402
from helpers.data.fashion_mnist import FashionMNISTOneClass  # noqa: E402
from helpers.data.mvtec import MVTec  # noqa: E402
from helpers.data.sound import Recordings  # noqa: E402
from helpers.models import predict, score_images  # noqa: E402
from helpers.training import fit  # noqa: E402
from tools.notebooks import definitions  # noqa: E402

NUTS = {"dataset": "hazelnut", "epochs": 1, "images_per_epoch": 480}
NUTS |= {"flip": 0.5, "degrees": 180, "shift": 0.03, "noise": 0.02}
# notebook, model, changed settings, rounds
MODELS = (
    ("01_baseline_gan", "BaselineGAN", {"epochs": 2}, 9),
    ("02_dcgan", "DCGAN", {"epochs": 1}, 5),
    ("03_hazelnut_autoencoder", "HazelnutAutoencoder", NUTS, 3),
    ("04_deep_svdd", "DeepSVDD", NUTS | {"soft": False}, 3),
    ("05_ganomaly", "GANomaly", {"epochs": 1, "images_per_epoch": 2560}, 3),
    ("06_denoising_autoencoder", "DenoisingAutoencoder", NUTS | {"images_per_epoch": 720}, 3),
    ("08_machine_sound", "SoundAutoencoder", {}, 3),
)


def make_data(run: runtime.Run, settings: dict, page: dict):
    """The data of a notebook, which defines ``page``, at its own size."""
    names = ("batch_size", "size", "images_per_epoch")
    sizes = {name: settings[name] for name in names if name in settings}
    if "seconds" in settings:
        return Recordings(run, page["spectrogram"], **sizes)
    if "degrees" not in settings:
        gamma = settings.get("anomaly_fraction", 0.0)
        return FashionMNISTOneClass(run, normal_class="T-shirt/top", anomaly_fraction=gamma, **sizes)
    augment = Augment(**{name: settings[name] for name in ("flip", "degrees", "shift", "noise")})
    return MVTec(run, "hazelnut", augment=augment, grey=settings.get("grey", False), **sizes)


def make_model(model: type, settings: dict, data):
    """A new model; Deep SVDD around a centre of its own, whose place does not change what a step costs."""
    runtime.seed_everything(0)
    made = model(settings)
    if hasattr(made, "c"):
        made.c.fill_(0.1)
        made.R.zero_()
    made.on_train_end = lambda: None  # what a notebook measures after training is not part of the loop
    made.data = data
    return made


def plain(model, data, settings: dict, device: torch.device) -> float:
    """Images per second of the loop one would write by hand around the same training step."""
    network, loader = model.to(device).train(), data.train_dataloader()
    if network.large_convolutions:
        network.to(memory_format=torch.channels_last)
    network.n_batches = settings["epochs"] * len(loader)
    optimizers, schedulers = configured(network.configure_optimizers())
    network.record = lambda losses: None
    network.manual_backward = lambda loss: loss.backward()
    network.optimizers = lambda: optimizers
    network.lr_schedulers = lambda: schedulers[0] if len(schedulers) == 1 else schedulers
    precision = runtime.best_precision(device, network.large_convolutions)
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    start, images = now(device), 0
    for epoch in range(settings["epochs"]):
        loader.set_epoch(epoch)
        for normal, anomalous in loader:
            with torch.autocast(device.type, kind, enabled=precision.endswith("mixed")):
                loss = network.training_step((normal, anomalous), 0)
            if network.automatic_optimization:
                optimizers[0].zero_grad()
                loss.backward()
                optimizers[0].step()
                for scheduler in schedulers:
                    scheduler.step()
            images += len(normal) + len(anomalous)
    return images / (now(device) - start)


def configured(found) -> tuple[list, list]:
    """Optimisers and schedulers, in the forms that the notebooks return: a dict, two lists, or optimisers only."""
    if isinstance(found, dict):
        return [found["optimizer"]], [found["lr_scheduler"]["scheduler"]] if "lr_scheduler" in found else []
    if isinstance(found, tuple) and isinstance(found[0], list):
        return found[0], [s["scheduler"] if isinstance(s, dict) else s for s in found[1]]
    return list(found) if isinstance(found, (tuple, list)) else [found], []


def now(device: torch.device) -> float:
    """Seconds, after all that was started on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compare(notebook: str, name: str, changes: dict, rounds: int) -> str:
    """One row: images per second of both, median of the ratios, live picture, scoring, memory."""
    device = runtime.best_device()
    run = runtime.Run("bench", "full", device, runtime.data_dir(), Path(tempfile.mkdtemp(prefix="anomaly-bench-")))
    version = {"04": "version_3/hazelnut_plain"}.get(notebook[:2], f"version_{int(notebook[:2]) - 1}")
    settings = yaml.safe_load((ROOT / "lightning_logs" / version / "hparams.yaml").read_text()) | changes
    page = definitions(ROOT / "notebooks" / f"{notebook}.ipynb", settings=settings)
    model, data, speeds = page[name], make_data(run, settings, page), {"fit": [], "plain": []}
    for round_ in range(rounds + 1):  # the first one warms up
        run.version = None
        mine = fit(make_model(model, settings, data), data, run, resume=False).history["images_per_second"]
        other = plain(make_model(model, settings, data), data, settings, device)
        if round_:
            speeds["fit"].append(mine)
            speeds["plain"].append(other)
    ratio = statistics.median(a / b for a, b in zip(speeds["fit"], speeds["plain"], strict=True))
    network, some = make_model(model, settings, data).to(device), data.validation.first_of_each(4)
    start = now(device)
    score_images(network, data.test)
    scoring = len(data.test) / (now(device) - start)
    start = now(device)
    copies = to_uint8(predict(network, network.reconstruct, some))
    plots.reconstructions(to_uint8(to_float(some.images)), copies, some.label, "live").canvas.draw()
    picture = now(device) - start
    fit_, plain_ = (f"{statistics.median(s):,.0f} ({min(s):,.0f} to {max(s):,.0f})" for s in speeds.values())
    memory = runtime.peak_memory_mib(device) or float("nan")
    return f"| {notebook} | {fit_} | {plain_} | {ratio:.2f} | {picture:.2f} s | {scoring:,.0f} | {memory:,.0f} |"


def import_seconds() -> float:
    """Seconds that importing all of helpers takes beyond torch, Lightning, pandas and matplotlib; median of five."""
    base = "import time, torch, pytorch_lightning, pandas, matplotlib.pyplot; start = time.perf_counter(); "
    ours = (
        "import helpers.results, helpers.evaluation, helpers.training, helpers.data.folder, helpers.data.fashion_mnist"
    )
    code = f"{base}{ours}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return statistics.median(float(subprocess.check_output(command, cwd=ROOT, text=True)) for _ in range(5))


def main() -> None:
    """A table, one row a notebook; a slow picture is drawn at most every 20 times its own duration."""
    device = runtime.best_device()
    print(f"{runtime.device_name(device)}, torch {torch.__version__}; helpers import in {import_seconds():.2f} s\n")
    rows = [compare(*row) for row in MODELS if len(sys.argv) < 2 or row[0][:2] in sys.argv[1:]]
    print("\n| notebook | fit, images/s (slowest to fastest) | plain loop | fit / plain | one live picture | scoring, images/s | peak MiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
