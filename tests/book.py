"""The models of the notebooks, without running the notebooks."""

import functools
import json
import re

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from helpers.data.batches import Augment
from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.folder import Folder
from helpers.data.mvtec import MVTec
from helpers.data.samples import sample
from helpers.data.sound import Recordings
from tests.toy import ROOT, make_run
from tools.notebooks import definitions


@functools.cache
def page(name: str) -> dict:
    """What a notebook defines: so tests use its very model."""
    return definitions(ROOT / "notebooks" / f"{name}.ipynb")


def solutions(name: str) -> list[str]:
    """The code of the folded solutions of a notebook's exercises."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    folded = re.findall(r"<summary>Solution</summary>(.*?)</details>", text, re.S)
    return ["\n".join(re.findall(r"```python\n(.*?)```", part, re.S)) for part in folded]


COMMON = {"epochs": 3, "seed": 0, "lr": 1e-3, "lr_discriminator": 5e-4, "beta1": 0.5, "latent": 4}
GAN = {"hidden": 16, "hidden_discriminator": 8, "margin": 0.25}
DECODED = {"anomaly_fraction": 0.5, "width": 4, "width_decoder": 4, "width_discriminator": 2, "warm_up": 0.25}
DECODED |= {"patch": 7, "worst": 4, "scale": 10.0, "score": "patch_means"}
NUTS = {"size": 256, "loss": "l2", "background": 15.0, "ridge": 0.1, "smooth": 2.0, "aligned": False, "top": 300}
NUTS |= {"map": "weighed"}
SPHERE = {"size": 32, "grey": True, "objective": "one-class", "nu": 0.25, "warm_up": 0.5}
SPHERE |= {"weight_decay": 1e-6, "aligned": True}
CODES = {"size": 32, "channels": 1, "ngf": 4, "nz": 6, "score": "whitened", "views": 1, "weight_contextual": 50.0}
SEARCHED = {"size": 32, "channels": 1, "ngf": 4, "nz": 6, "steps": 4, "watch_steps": 2, "search_lr": 0.1, "restarts": 2}
SEARCHED |= {"share": 0.1, "encoder_epochs": 3}
PAINTED = {"size": 64, "window": 32, "widths": "4 8", "corruption": "defects", "heads": "both", "clean": 0.25}
PAINTED |= {"strokes": 0.4, "moved": 0.25, "on_object": True, "smallest": 0.02, "largest": 0.1, "faintest": 0.2}
PAINTED |= {"mark_positive": 3.0, "share": 0.01, "frozen_from": 0.4, "companion": 0}
BESIDE = PAINTED | {"window": 64, "on_object": False, "companion": 3}
SOUND = {"size": 128, "frames": 5, "width": 8, "latent": 3, "windows": 4, "score": "bands", "corruption": "noise"}
SOUND |= {"noise": 0.5}
MODELS = {  # name: page, class, settings
    "baseline GAN": ("01_baseline_gan", "BaselineGAN", GAN),
    "DCGAN": ("02_dcgan", "DCGAN", DECODED),
    "hazelnut autoencoder": ("03_hazelnut_autoencoder", "HazelnutAutoencoder", NUTS),
    "hazelnut autoencoder, SSIM": ("03_hazelnut_autoencoder", "HazelnutAutoencoder", NUTS | {"loss": "ssim"}),
    "autoencoder": ("04_deep_svdd", "AutoEncoder", SPHERE),
    "one-class": ("04_deep_svdd", "DeepSVDD", SPHERE),
    "soft boundary": ("04_deep_svdd", "DeepSVDD", SPHERE | {"objective": "soft-boundary"}),
    "spheres": ("04_deep_svdd", "Spheres", SPHERE),
    "GANomaly": ("05_ganomaly", "GANomaly", CODES),
    "AnoGAN": ("05_ganomaly", "AnoGAN", SEARCHED),
    "f-AnoGAN": ("05_ganomaly", "FAnoGAN", SEARCHED),
    "denoising autoencoder": ("06_denoising_autoencoder", "DenoisingAutoencoder", PAINTED),
    "denoising, repairs only": ("06_denoising_autoencoder", "DenoisingAutoencoder", PAINTED | {"heads": "restore"}),
    "denoising, with a companion": ("06_denoising_autoencoder", "DenoisingAutoencoder", BESIDE),
    "sound autoencoder": ("08_machine_sound", "SoundAutoencoder", SOUND),
    "sound autoencoder, events only": ("08_machine_sound", "SoundAutoencoder", SOUND | {"corruption": "events"}),
}


@functools.cache
def make_data(name: str):
    """Three batches an epoch of the embedded samples (two of the large images), for the models of one notebook."""
    run, augment = make_run(ROOT / "nowhere", name), Augment(flip=0.5, degrees=10, noise=0.1)
    if name.startswith(("03", "06")):
        sizes = {"size": 64, "batch_size": 4, "images_per_epoch": 12} if name.startswith("06") else {}
        return MVTec(run, augment=augment, **{"batch_size": 2, "images_per_epoch": 4, "max_images": 4} | sizes)
    if name.startswith("08"):
        sizes = {"folds": 3, "seconds": 2.0, "batch_size": 2, "images_per_epoch": 6, "max_clips": 6}
        return Recordings(run, page(name)["spectrogram"], faults=page(name)["FAULTS"], **sizes)
    if name.startswith("04"):
        sizes = {"size": 32, "grey": True, "batch_size": 4, "images_per_epoch": 12, "max_images": 8}
        return Folder(run, sample("keycaps") / "F8", augment=augment, **sizes)
    sizes = {"batch_size": 8, "images_per_epoch": 12, "max_images": 32, "augment": augment}
    codes = {"size": 32, "anomaly_fraction": 0.0, "images_per_epoch": 24} if name.startswith("05") else {}
    return FashionMNISTOneClass(run, **sizes | codes)


def make_model(name: str, data, move=None):
    """A model as its notebook makes it, with its own first weights.  ``move``: brings it to its device."""
    book, kind, settings = MODELS[name]
    torch.manual_seed(0)
    with unset_fake_temporarily():
        kinds = [kind, "AutoEncoder"] if book.startswith("04") else [kind]
        model, *autoencoder = (page(book)[part](COMMON | settings) for part in kinds)
    for part in (model, *autoencoder) if move else ():
        move(part)
    if hasattr(model, "init_from_autoencoder"):
        model.init_from_autoencoder(*autoencoder, data)
    if kind == "GANomaly":
        model.data = data
    return model
