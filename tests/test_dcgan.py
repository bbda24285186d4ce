"""Notebook 2's model: every loss by hand, the schedule, the scores, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.loader import to_float
from helpers.training import evaluate, fit, score_images
from tests.conftest import notebook_definitions

SETTINGS = {
    "anomaly_fraction": 0.5,
    "epochs": 2,
    "width": 4,
    "width_decoder": 4,
    "width_discriminator": 2,
    "latent": 4,
    "lr": 1e-3,
    "beta1": 0.5,
    "warm_up": 0.25,
    "patch": 7,
    "worst": 4,
    "scale": 10.0,
    "score": "patch_means",
}


@pytest.fixture(scope="module")
def page():
    return notebook_definitions("02_dcgan.ipynb")


@pytest.fixture
def dcgan(page):
    def make(**changes):
        torch.manual_seed(0)
        return page["DCGAN"](SETTINGS | changes)

    return make


def one_class_data(run, **changes):
    return FashionMNISTOneClass(run, batch_size=16, limit=64, **changes)


def test_residual_is_a_fraction_of_the_grey_range(page):
    white, black = torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)
    assert torch.equal(page["residual"](white, black), white)


def test_distance_compares_patch_means(page):
    difference = torch.zeros(1, 1, 4, 4)
    difference[..., :2, :2] = torch.tensor([[0.5, -0.5], [0.5, -0.5]])  # cancels within its patch
    difference[..., 2:, 2:] = 0.4
    assert page["distance"](difference, 2, 10.0).tolist() == pytest.approx([10 * 0.4**2 / 4])


def test_worst_patches_averages_the_largest_of_each_image(page):
    difference = torch.zeros(2, 1, 4, 4)
    difference[0, :, :2, :2], difference[0, :, 2:, :2], difference[1, :, :2, 2:] = -0.8, 0.4, 0.2
    assert page["worst_patches"](difference, 2, 2).item() == pytest.approx(((0.8 + 0.4) / 2 + (0.2 + 0) / 2) / 2)


def test_abc_is_its_formula_where_that_can_be_computed_and_finite_elsewhere(page):
    d = torch.tensor([0.1, 1.0, 3.0])
    expected = [-math.log(1 - math.exp(-value)) for value in d.tolist()]
    assert page["abc"](d).tolist() == pytest.approx(expected, rel=1e-5)
    extreme = torch.tensor([0.0, 1e-30, 80.0, 1e30], requires_grad=True)
    page["abc"](extreme).sum().backward()
    assert page["abc"](extreme).isfinite().all()
    assert extreme.grad.isfinite().all()
    assert (page["abc"](extreme) >= 0).all()


def test_least_squares_against_a_matrix(page):
    assert page["least_squares"](torch.tensor([[1.0, 0.0], [0.5, 1.0]]), 1).item() == pytest.approx(1.25 / 4)


def test_the_losses_of_a_batch_are_their_formulas(dcgan, page):
    model = dcgan()
    normal, anomalous = torch.rand(3, 1, 28, 28) * 2 - 1, torch.rand(2, 1, 28, 28) * 2 - 1
    made = model.generate(normal, anomalous)
    found = model.generator_losses(normal, anomalous, made)
    difference = (normal - made["normal"]) / 2
    far = 10 * torch.nn.functional.avg_pool2d((anomalous - made["anomalous"]) / 2, 7).square().mean((1, 2, 3))
    expected = {
        "l1": difference.abs().mean(),
        "abc_normal": 10 * torch.nn.functional.avg_pool2d(difference, 7).square().mean(),
        "abc_anomalous": -torch.log(1 - torch.exp(-far)).mean(),
        "adversarial_normal": (model.discriminators["normal"](made["normal"]) - 1).square().mean(),
        "adversarial_anomalous": model.discriminators["anomalous"](made["anomalous"]).square().mean(),
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert set(found) == {*expected, "patch", "latent"}
    real, fake = (model.discriminators["anomalous"](x) for x in (anomalous, made["anomalous"]))
    judged = model.discriminator_losses(normal, anomalous, made)["discriminator_anomalous"]
    assert judged.item() == pytest.approx(
        (0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()).item(), rel=1e-4
    )


def test_the_latent_loss_leaves_batch_norm_alone(dcgan):
    model = dcgan()
    norm = next(layer for layer in model.generator.encoder if isinstance(layer, torch.nn.BatchNorm2d))
    made = model.generate(torch.rand(4, 1, 28, 28), torch.rand(4, 1, 28, 28))
    before = norm.running_mean.clone()
    model.generator_losses(torch.rand(4, 1, 28, 28), torch.rand(4, 1, 28, 28), made)["latent"].backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.training
    assert model.generator.encoder[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("side", [30, 27])
def test_sizes_that_cannot_be_halved_are_refused(dcgan, side):
    with pytest.raises(ValueError, match=f"side of {side} pixels cannot be divided by 4"):
        dcgan(side=side)


def test_images_of_another_size_are_refused(dcgan):
    with pytest.raises(ValueError, match=r"built for images of 28 x 28 pixels: got \(30, 30\)"):
        dcgan().generate(torch.zeros(2, 1, 30, 30), torch.zeros(2, 1, 30, 30))


def test_more_worst_patches_than_patches_are_refused_before_training(dcgan):
    with pytest.raises(ValueError, match="17 worst patches are asked for, but an image has only 16 of 7 x 7"):
        dcgan(worst=17)


def test_a_batch_without_anomalies_is_refused_where_there_should_be_some(dcgan, run):
    with pytest.raises(ValueError, match="a batch holds no anomalies"):
        dcgan().generate(torch.zeros(2, 1, 28, 28), torch.zeros(0, 1, 28, 28))
    data = one_class_data(run)
    data.train = data.train.normal()
    with pytest.raises(ValueError, match="the training set has none"):
        fit(dcgan(), data, run)


def test_more_anomalies_than_exist_are_refused(run):
    with pytest.raises(ValueError, match="labelled anomalies beside .* only .* exist"):
        FashionMNISTOneClass(run, anomaly_fraction=0.99, batch_size=500)


def test_gamma_0_switches_the_anomalous_branch_off(dcgan, run):
    model = dcgan(anomaly_fraction=0.0)
    untouched = model.discriminators["anomalous"][0].weight.detach().clone()
    trained = fit(model, one_class_data(run, anomaly_fraction=0.0), run)
    assert set(model.loss_names) == {"l1", "patch", "latent", "adversarial_normal", "discriminator_normal"}
    assert torch.equal(trained.model.discriminators["anomalous"][0].weight.cpu(), untouched)


def test_the_learning_rate_rises_and_falls_over_the_whole_training(dcgan, page, run):
    factor = page["warm_up_and_cosine"]
    assert [factor(0.0, 0.2), factor(0.1, 0.2), factor(0.2, 0.2)] == pytest.approx([1e-3, 0.5, 1.0])
    assert factor(0.6, 0.2) == pytest.approx(0.5)
    assert factor(1.0, 0.2) == pytest.approx(0.0)
    model = dcgan()
    rates = []
    model.on_train_batch_end = lambda *_: rates.append(model.optimizers()[0].param_groups[0]["lr"])
    fit(model, one_class_data(run), run)
    assert len(rates) == 16
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)


def test_every_score_is_a_finite_number_per_image_and_ignores_the_batch(dcgan, page, run):
    data = one_class_data(run)
    model = dcgan()
    model.normal = page["what_is_normal"](model, data.train.normal().images)
    for name in model.SCORES:
        page["score_by"](model, name)
        scores = score_images(model, data.test, run.device)
        assert scores.shape == (len(data.test),)
        assert np.isfinite(scores).all()
        alone = model.eval().anomaly_score(to_float(data.test.images[:1], run.device))
        assert alone.item() == pytest.approx(scores[0], rel=1e-3)
    assert set(page["on_validation"](model, data)) == set(model.SCORES)


def test_a_training_image_is_its_own_neighbour(dcgan, page, run):
    data = one_class_data(run, anomaly_fraction=0.0)
    model = dcgan(anomaly_fraction=0.0, score="neighbours_both").eval()
    model.normal = page["what_is_normal"](model, data.train.normal().images)
    inside = model.anomaly_score(to_float(data.train.images[:8], run.device))
    outside = evaluate(model, data)
    assert inside.mean() < outside.score[outside.label == 1].mean()
