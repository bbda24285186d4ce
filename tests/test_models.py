"""The base class, and predictions that depend on nothing but the image."""

import numpy as np
import pytest
import torch

from helpers.data.batches import Split, to_float
from helpers.models import AnomalyModel, map_images, predict, score_images
from tests.toy import SIDE, Toy, ToyModel, WithMap


@pytest.fixture
def model():
    """A model in training mode whose BatchNorm and dropout would show in its scores."""
    found = WithMap()
    with torch.no_grad():
        for _ in range(5):  # BatchNorm collects
            found.reconstruct(torch.rand(8, 1, SIDE, SIDE))
    return found.train()


def test_scores_do_not_depend_on_batch_order_history_or_mode(model):
    test = Toy().test
    whole = score_images(model, test)
    order = torch.randperm(len(test))
    np.testing.assert_allclose(score_images(model.train(), test.subset(order)), whole[order.numpy()], rtol=1e-5)
    score_images(model.train(), test.subset(torch.zeros(7, dtype=torch.long)))
    assert np.array_equal(score_images(model.train(), test), whole)
    assert whole.dtype == np.float64


def test_a_single_image_gets_the_score_it_has_in_the_set(model):
    test = Toy().test
    whole = score_images(model, test)
    alone = [score_images(model.train(), test.subset(torch.tensor([i]))).item() for i in range(len(test))]
    np.testing.assert_allclose(alone, whole, rtol=1e-5)
    assert not np.allclose(model.train().anomaly_score(to_float(test.images)).detach(), whole, rtol=1e-2)


def test_maps_are_those_of_the_images_in_eval_mode(model, monkeypatch):
    monkeypatch.setattr("helpers.data.batches.SCORING_BATCH", 3)
    test = Toy().test
    found = map_images(model, test)
    assert found.shape == (20, SIDE, SIDE) and found.dtype == np.float32
    np.testing.assert_allclose(found, model.eval().anomaly_map(to_float(test.images)).detach(), rtol=1e-4, atol=1e-8)


def test_every_image_is_scored_over_several_chunks_in_their_order(model):
    images = torch.arange(1203).remainder(251).byte().view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    split = Split(images, torch.zeros(1203), torch.zeros(1203))
    assert len(split.chunks()) == 3
    found = predict(model, lambda x: x.mean((1, 2, 3)), split)
    torch.testing.assert_close(found, to_float(images).mean((1, 2, 3)))


def test_predictions_are_full_float32_without_gradients_and_leave_eval_mode(model):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    seen = []

    def function(x):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return model.anomaly_score(x)

    predict(model, function, Toy().test)
    assert seen == [("highest", False, False)]
    assert torch.get_float32_matmul_precision() == "high"
    assert not model.training
    torch.set_float32_matmul_precision(before)


def test_a_model_has_a_map_only_if_its_class_defines_one():
    assert WithMap().has_map and not ToyModel().has_map
    for method in ("anomaly_map", "anomaly_score", "reconstruct"):
        with pytest.raises(NotImplementedError):
            getattr(AnomalyModel({"epochs": 1}), method)(torch.zeros(1, 3, 4, 4))


def test_weights_of_losses_come_from_the_settings_by_name():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(10.0)}
    assert ToyModel(weight_a=3.0).weighted_sum(losses).item() == 13.0


def test_recorded_losses_are_detached_float32_by_name():
    model, loss = ToyModel(), torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    model.record({"a": loss * 2, "b": loss * 3})
    model.record({"a": loss * 4, "b": loss * 5})
    assert model.loss_names == ("a", "b")
    assert [row.tolist() for row in model.batch_losses] == [[2, 3], [4, 5]]
    assert all(row.dtype == torch.float32 and not row.requires_grad for row in model.batch_losses)


def test_adam_takes_beta1_and_weight_decay_from_the_settings():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    plain, set_ = (
        model.adam(weights, 0.5).param_groups[0] for model in (ToyModel(), ToyModel(beta1=0.5, weight_decay=0.25))
    )
    assert (plain["lr"], plain["betas"], plain["weight_decay"]) == (0.5, (0.9, 0.999), 0)
    assert (set_["betas"], set_["weight_decay"]) == ((0.5, 0.999), 0.25)
