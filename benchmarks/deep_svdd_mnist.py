"""The paper's digits for the appendix of notebook 4: the authors' settings around the notebook's own classes."""

import numpy as np
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

from helpers import runtime
from helpers.data.batches import to_float
from helpers.data.fashion_mnist import MNISTOneClass
from helpers.evaluation import evaluate
from helpers.training import fit


def contrast(x):
    """(N, 1, H, W) -> the same with mean 0 and mean absolute value 1 for every image."""
    x = x - x.mean((1, 2, 3), keepdim=True)
    return x / x.abs().mean((1, 2, 3), keepdim=True)


def small(kind, down, up):
    """``kind``, the notebook's AutoEncoder or DeepSVDD, with the authors' network for MNIST: two blocks, 32 numbers."""

    class Digit(kind):
        def make_networks(self, *guards):
            last = nn.Linear(4 * 7 * 7, 32, bias=False)
            self.encoder = nn.Sequential(down(1, 8, *guards), down(8, 4, *guards), nn.Flatten(), last)
            mirror = [up(2, 4, mode="nearest"), up(4, 8, padding=1, mode="nearest"), nn.Upsample(scale_factor=2)]
            picture = nn.Sequential(*mirror, nn.Conv2d(8, 1, 5, padding=2, bias=False), nn.Sigmoid())
            self.decoder = nn.Sequential(nn.Unflatten(1, (2, 4, 4)), nn.LeakyReLU(), *picture)
            self.register_buffer("range", torch.tensor([0.0, 1.0]))  # of the normal training images

        def shape(self):
            return (32,)

        def prepare(self, x):
            """The contrast normalised, so that the normal training images span [0, 1]."""
            return (contrast(x) - self.range[0]) / (self.range[1] - self.range[0])

        def latent(self, x):
            return self.encoder(self.prepare(x))

        def error(self, x):
            return (self.decoder(self.latent(x)) - self.prepare(x)).square().mean((1, 2, 3))

        def configure_optimizers(self):
            """Adam; the rate drops tenfold, once."""
            adam = self.adam(self.parameters(), self.hparams.lr)
            schedule = MultiStepLR(adam, [round(self.hparams.drop_after * self.n_batches)])
            return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Digit


@torch.no_grad()
def published_weights(model, images, seed):
    """Glorot's rule; the first filters are atoms of a dictionary, of which every 5 x 5 patch is a sparse sum."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        inner = isinstance(layer, nn.Conv2d) and layer is not layers[-1]
        nn.init.xavier_uniform_(layer.weight, gain=2**0.5 if inner else 1)
    patches = F.unfold(images[:500], 5).transpose(1, 2).reshape(-1, 25).cpu().numpy()
    some = np.random.default_rng(seed).choice(len(patches), min(10_000, len(patches)), replace=False)
    patches = ((patches - patches.mean(0)) / patches.std(0))[some]
    learner = MiniBatchDictionaryLearning(n_components=8, alpha=1, batch_size=10, max_iter=1, random_state=seed)
    layers[0].weight.copy_(torch.from_numpy(learner.fit(patches).components_).view(8, 1, 5, 5))


def digit(number, run, settings, AutoEncoder, DeepSVDD, down, up, epochs=150, batch_size=200) -> dict:
    """Test AUROC of the one-class objective with one digit as normal; the classes and blocks are the notebook's."""
    its = MNISTOneClass(run, number, 0.0, batch_size, held_out=0.05, max_images=settings["max_images"])
    published = settings | {"epochs": epochs, "lr": 1e-4, "drop_after": 1 / 3}
    runtime.seed_everything(its.seed)
    # its learning rate never drops; the decay is divided as the published loss sums over pixels, where ours is a mean
    first = small(AutoEncoder, down, up)(published | {"drop_after": 1.0, "weight_decay": 1e-3 / 28**2}).to(run.device)
    first.anomaly_score, images = first.error, to_float(its.train.images, run.device)
    first.range.copy_(torch.stack(contrast(images).aminmax()))
    published_weights(first, first.prepare(images), its.seed)
    fit(first, its, run, name=f"mnist_{number}_autoencoder_seed_0", show=False)
    runtime.seed_everything(its.seed)
    one = small(DeepSVDD, down, up)(published).to(run.device)
    one.init_from_autoencoder(first, its)
    fit(one, its, run, name=f"mnist_{number}_seed_0", show=False)
    return {"digit": number, "auroc": evaluate(one, its).auroc, "seed": its.seed, "epochs": epochs}
