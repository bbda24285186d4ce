"""Every notebook's own model: killed and continued, on another device, and its losses and scores by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn.covariance import LedoitWolf
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torchmetrics.functional.image import structural_similarity_index_measure

from helpers.data.batches import Augment, Split, to_float, to_uint8
from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.folder import Folder
from helpers.data.mvtec import MVTec
from helpers.data.samples import sample
from helpers.models import map_images, predict, score_images
from helpers.training import fit, load
from tests.book import definitions
from tests.toy import CPU, ROOT, make_run, stopped

pytestmark = pytest.mark.usefixtures("no_figures")
PAGES = ("01_baseline_gan", "02_dcgan", "03_hazelnut_autoencoder", "04_deep_svdd", "05_ganomaly")
COMMON = {"epochs": 3, "seed": 0, "lr": 1e-3, "beta1": 0.5}
GAN = {"hidden": 16, "latent": 4, "hidden_discriminator": 8, "lr_discriminator": 5e-4, "margin": 0.25}
CONVOLUTIONS = {"anomaly_fraction": 0.5, "width": 4, "width_decoder": 4, "width_discriminator": 2, "latent": 4}
CONVOLUTIONS |= {
    "lr_discriminator": 5e-4,
    "warm_up": 0.25,
    "patch": 7,
    "worst": 4,
    "scale": 10.0,
    "score": "patch_means",
}
NUTS = {"size": 256, "latent": 8, "loss": "l2", "background": 15.0, "smooth": 2.0, "aligned": False, "top": 300}
SPHERE = {"network": "large", "size": 64, "grey": True, "objective": "one-class", "nu": 0.25, "warm_up": 0.5}
SPHERE |= {"false_alarms": 0.01, "views": 2, "weight_decay": 1e-6, "weight_whole": 10.0}
CODES = {"size": 32, "channels": 1, "ngf": 4, "nz": 6, "score": "whitened", "views": 1, "weight_contextual": 50.0}
MODELS = {  # name: page, class, settings
    "baseline GAN": ("01_baseline_gan", "BaselineGAN", GAN),
    "DCGAN": ("02_dcgan", "DCGAN", CONVOLUTIONS),
    "hazelnut autoencoder": ("03_hazelnut_autoencoder", "HazelnutAutoencoder", NUTS),
    "hazelnut autoencoder, SSIM": ("03_hazelnut_autoencoder", "HazelnutAutoencoder", NUTS | {"loss": "ssim"}),
    "autoencoder": ("04_deep_svdd", "AutoEncoder", SPHERE),
    "one-class": ("04_deep_svdd", "DeepSVDD", SPHERE),
    "soft boundary": ("04_deep_svdd", "DeepSVDD", SPHERE | {"objective": "soft-boundary"}),
    "spheres": ("04_deep_svdd", "Spheres", SPHERE),
    "GANomaly": ("05_ganomaly", "GANomaly", CODES),
}


def page(name):
    return definitions(ROOT / "notebooks" / f"{name}.ipynb")


def make_data(name, run):
    """Three batches an epoch (two of the large images) of the embedded samples."""
    augment = Augment(flip=0.5, degrees=10, noise=0.1)
    if name == "03_hazelnut_autoencoder":
        return MVTec(run, "hazelnut", batch_size=2, images_per_epoch=4, augment=augment, max_images=4)
    if name == "04_deep_svdd":
        keys, sizes = sample("keycaps") / "F8", {"size": 64, "grey": True, "max_images": 8}
        return Folder(run, keys, batch_size=4, images_per_epoch=12, augment=augment, **sizes)
    sizes = {"size": 32, "anomaly_fraction": 0.0} if name == "05_ganomaly" else {}
    return FashionMNISTOneClass(
        run, batch_size=8, images_per_epoch=12 if not sizes else 24, augment=augment, max_images=32, **sizes
    )


def make_model(name, data, move=None):
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


# --- killed and continued ---------------------------------------------------------------------------------------------

# in each attempt: the hook, and how many of its calls it lives through
KILLS = [("on_train_batch_start", 1), ("on_train_batch_end", 1), ("on_train_epoch_end", 1), ("on_train_end", 0)]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_killed_four_times_ends_as_if_it_had_not_been(tmp_path, name):
    """In the middle of an epoch, at its last batch, at its end and at the end of the training; each time a new kernel."""
    data = make_data(MODELS[name][0], make_run(tmp_path / "killed"))
    whole = fit(make_model(name, data), data, make_run(tmp_path / "whole"), show=False, checkpoint_seconds=0)
    for attempt, (hook, calls) in enumerate([*KILLS, (None, 0)]):
        model = make_model(name, data)
        torch.manual_seed(987 + attempt)  # a new process has another random state
        if hook:
            with pytest.raises(RuntimeError, match="stopped"):
                fit(
                    stopped(model, calls, hook=hook),
                    data,
                    make_run(tmp_path / "killed"),
                    show=False,
                    checkpoint_seconds=0,
                )
    again = fit(model, data, make_run(tmp_path / "killed"), show=False, checkpoint_seconds=0)
    assert again.folder.name == "version_10" and again.history["batches"] == whole.history["batches"]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key
    one, two = (found.curves.query("name != 'speed/images_per_second'") for found in (again, whole))
    pd.testing.assert_frame_equal(one, two)
    loaded = load(make_model(name, data), make_run(tmp_path / "whole"), whole.folder).model
    assert not loaded.training
    np.testing.assert_allclose(score_images(loaded, data.test), score_images(again.model, data.test), rtol=1e-4)


# --- on another device --------------------------------------------------------------------------------------------------


class Steps:
    """Stands for the trainer's optimisers and schedules."""

    def zero_grad(self):
        pass

    step = zero_grad


def on_cuda(model):
    """``model.to("cuda")`` for tensors without content; it needs no GPU."""
    for module in model.modules():
        for name, weights in list(module._parameters.items()):
            if weights is not None:
                module._parameters[name] = torch.nn.Parameter(weights.detach().to("cuda"), weights.requires_grad)
        for name, values in list(module._buffers.items()):
            module._buffers[name] = values.to("cuda")
    model._device = torch.device("cuda", 0)  # what Lightning's ``to`` sets
    return model


def whole_way(name, change=lambda model: None):
    """Augmentation, training step with backward, scores and maps, all on "cuda" with tensors that have a device only."""
    book, _, settings = MODELS[name]
    side = settings.get("size", 28)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images, zeros = torch.zeros(4, 3 if book.startswith("03") else 1, side, side, dtype=torch.uint8), torch.zeros(4)
        data = type("Data", (), {"train": Split(images, zeros, zeros)})
        model = make_model(name, data, on_cuda)
        change(model)
        model.optimizers, model.lr_schedulers = lambda: (Steps(), Steps()), Steps
        model.manual_backward = torch.Tensor.backward
        augment = Augment(flip=0.5, degrees=5, shift=0.1, noise=0.1, scale=0.1, brightness=0.1)
        normal = augment(to_float(images, model.device))
        loss = model.train().training_step((normal, normal), 0)
        if model.automatic_optimization:
            loss.backward()
        assert {weights.grad.device.type for weights in model.parameters() if weights.grad is not None} == {"cuda"}
        assert model.batch_losses[0].device.type == "cuda", "nothing is copied to the host"
        for function in (model.reconstruct, model.anomaly_score, *([model.anomaly_map] if model.has_map else [])):
            assert len(predict(model, function, data.train)) == 4
        if hasattr(model, "get_radius"):
            model.R.copy_(model.get_radius(data.train, 0.1))
        if book.startswith("03"):
            model.learn_usual(images)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_meets_on_two_devices(name):
    whole_way(name)


def in_the_score(model):
    score = model.anomaly_score
    model.anomaly_score = lambda x: score(x) + torch.ones(len(x))


def in_the_loss(model):
    model.weighted_sum = lambda losses: sum(losses.values()) * torch.ones(1)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.ones(1)


def in_the_backward_pass(model):
    weighted_sum = model.weighted_sum
    model.weighted_sum = lambda losses: Backwards.apply(weighted_sum(losses))


@pytest.mark.parametrize("plant", [in_the_score, in_the_loss, in_the_backward_pass])
@pytest.mark.parametrize("name", ["baseline GAN", "autoencoder"])
def test_a_planted_mismatch_is_found(name, plant):
    with pytest.raises(RuntimeError, match="different devices cuda:0, cpu|found two different devices"):
        whole_way(name, plant)
