"""Every notebook's model on a GPU that does not exist: prints {model: {planted fault: what was found}} as JSON.

In a process of its own (python -m tests.fake_gpu), since the device must be there before anything is computed.
Tensors of torch's FakeTensorMode have a shape and a device, but no content: operations check both and compute nothing.
"""

import json
import os
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from helpers.data.batches import Augment, Split, to_float
from helpers.models import predict
from tests.book import MODELS, make_model


def move(model, device):
    """``model.to(device)``, which tensors without content cannot do in place."""
    for module in model.modules():
        for name, weights in list(module._parameters.items()):
            if weights is not None:
                module._parameters[name] = torch.nn.Parameter(weights.detach().to(device), weights.requires_grad)
        for name, values in list(module._buffers.items()):
            module._buffers[name] = values.detach().to(device)
    model._device = device  # what Lightning's ``to`` sets


class Watch(TorchFunctionMode):
    """Refuses to read a value from the GPU, which would make the host wait.  What was drawn on the CPU is 3 or 0.3."""

    READS = {getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "__int__", "__float__", "__bool__")}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.READS:
            assert args[0].device.type == "cpu", f"{function.__name__} of a value on the GPU"
            with unset_fake_temporarily():
                return function(torch.full(args[0].shape, 0.3 if args[0].is_floating_point() else 3))
        if function is torch.tensor:  # which a device that does not exist cannot do in one step
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device", "cpu"))
        return function(*args, **kwargs)


def whole_way(name, gpu, changed, change):
    """With one function of the model changed: augmentation, training step with backward, scores and maps."""
    book, _, settings = MODELS[name]
    side = settings.get("size", 28)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch():
        channels = 3 if book.startswith(("03", "06")) else 1
        images = torch.zeros(4, channels, side, side, dtype=torch.uint8)
        data = SimpleNamespace(train=Split(images, torch.zeros(4), torch.zeros(4)))
        model = make_model(name, data, lambda part: move(part, gpu))
        unchanged = getattr(model, changed)
        setattr(model, changed, lambda given: change(unchanged(given)))
        nothing = SimpleNamespace(step=lambda: None, zero_grad=lambda: None)  # for the trainer's optimisers
        model.optimizers, model.lr_schedulers = lambda: (nothing, nothing), lambda: nothing
        model.manual_backward = torch.Tensor.backward
        augment = Augment(flip=0.5, degrees=5, shift=0.1, noise=0.1, scale=0.1, brightness=0.1)
        normal = augment(to_float(images, gpu))
        loss = model.train().training_step((normal, normal), 0)
        if model.automatic_optimization:
            loss.backward()
        assert {weights.grad.device for weights in model.parameters() if weights.grad is not None} == {gpu}
        for function in (model.reconstruct, model.anomaly_score, *([model.anomaly_map] if model.has_map else [])):
            assert len(predict(model, function, data.train)) == 4
        if hasattr(model, "get_radius"):
            model.R.copy_(model.get_radius(data.train, 0.1))
        if book.startswith("03"):
            model.learn_usual(images)
    return "nothing"


class Backwards(torch.autograd.Function):
    """Does nothing, and multiplies its gradient with a tensor on the CPU."""

    forward = staticmethod(lambda ctx, loss: loss.clone())
    backward = staticmethod(lambda ctx, gradient: gradient * torch.ones(1))


FAULTS = {  # name: the function of the model that is changed, and what is made of its result
    "none": ("weighted_sum", lambda loss: loss),
    "in the score": ("anomaly_score", lambda score: score + torch.ones(len(score))),
    "in the loss": ("weighted_sum", lambda loss: loss * torch.ones(1)),
    "in the backward pass": ("weighted_sum", Backwards.apply),
    "a value is read": ("weighted_sum", lambda loss: loss if loss > 0 else None),
    "a mask is an index": ("weighted_sum", lambda loss: loss.view(1)[loss.view(1) > 0].sum()),
}


def main() -> None:
    if torch.cuda.is_available():
        gpu = torch.device("cuda", 0)
    else:  # torch's autograd knows no "cuda" without a GPU
        torch.utils.backend_registration._setup_privateuseone_for_python_backend("nowhere")
        torch.nowhere.get_amp_supported_dtype = lambda: [torch.bfloat16]  # else autocast cannot even be turned off
        gpu = torch.device("nowhere", 0)
    found: dict = {name: {} for name in MODELS}
    for name in MODELS:
        for fault in FAULTS if name in ("baseline GAN", "autoencoder") else ["none"]:
            try:
                found[name][fault] = whole_way(name, gpu, *FAULTS[fault])
            except Exception as error:  # whatever it is, the test compares it
                found[name][fault] = f"{type(error).__name__}: {error}"
    print(json.dumps(found), flush=True)
    os._exit(0)  # autograd's thread for the device cannot end


if __name__ == "__main__":
    main()
