"""The base class, and predictions that depend on nothing but the image."""

import numpy as np
import pytest
import torch

from helpers import runtime
from helpers.data.batches import Split, to_float
from helpers.models import map_images, predict, score_images
from tests.toy import SIDE, Toy, ToyModel, WithMap


@pytest.fixture
def model():
    """A model in training mode whose BatchNorm and dropout would show in its scores."""
    found = WithMap()
    with torch.no_grad():
        for _ in range(5):  # BatchNorm collects
            found.reconstruct(torch.rand(8, 1, SIDE, SIDE))
    return found.train()


def test_scores_depend_on_nothing_but_the_image(model):
    """Alone, in another order, after others, and in a model that was left in training mode."""
    test = Toy().test
    whole = score_images(model, test)
    for places in (torch.randperm(20), torch.zeros(7, dtype=torch.long), *torch.arange(20).split(1)):
        np.testing.assert_allclose(score_images(model.train(), test.subset(places)), whole[places], rtol=1e-5)
    assert np.array_equal(score_images(model.train(), test), whole) and whole.dtype == np.float64
    assert not np.allclose(model.train().anomaly_score(to_float(test.images)).detach(), whole, rtol=1e-2)


def test_every_image_is_scored_over_several_chunks_in_their_order(model):
    test = Toy().test
    maps = map_images(model, test)
    np.testing.assert_allclose(maps, model.eval().anomaly_map(to_float(test.images)).detach(), rtol=1e-4, atol=1e-8)
    assert maps.shape == (20, SIDE, SIDE) and maps.dtype == np.float32
    assert WithMap().has_map and not ToyModel().has_map
    images = torch.arange(1203).remainder(251).byte().view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    split = Split(images, torch.zeros(1203), torch.zeros(1203))
    assert len(split.chunks()) == 3
    found = predict(model, lambda x: x.mean((1, 2, 3)), split)
    torch.testing.assert_close(found, to_float(images).mean((1, 2, 3)))


def test_predictions_are_full_float32_without_gradients_and_leave_eval_mode(model):
    seen = []

    def function(x):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return model.anomaly_score(x)

    with runtime.tf32(True):
        predict(model, function, Toy().test)
        assert torch.get_float32_matmul_precision() == "high", "as before"
    assert seen == [("highest", False, False)] and not model.training


def test_recorded_losses_are_detached_float32_by_name_and_weighted_by_the_settings():
    model, loss = ToyModel(weight_a=3.0), torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    assert model.weighted_sum({"a": loss, "b": loss * 10}).item() == 13
    (group,) = ToyModel(beta1=0.5, weight_decay=0.25).adam([torch.nn.Parameter(torch.zeros(1))], 0.1).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.999), 0.25)
    model.record({"a": loss * 2, "b": loss * 3})
    model.record({"a": loss * 4, "b": loss * 5})
    assert model.loss_names == ("a", "b")
    assert [row.tolist() for row in model.batch_losses] == [[2, 3], [4, 5]]
    assert all(row.dtype == torch.float32 and not row.requires_grad for row in model.batch_losses)
