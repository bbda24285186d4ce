"""Notebook 5's model: networks of every size, the losses by hand, both scores, and what it refuses."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.loader import Augment, Split, to_float, to_uint8
from helpers.models import of_images, score_images
from helpers.training import evaluate, fit, load
from tests.conftest import notebook_definitions

SETTINGS = {
    "size": 32,
    "channels": 1,
    "ngf": 4,
    "nz": 6,
    "epochs": 2,
    "batch_size": 16,
    "lr": 2e-4,
    "beta1": 0.5,
    "weight_adversarial": 1.0,
    "weight_contextual": 50.0,
    "weight_encoder": 1.0,
    "score": "whitened",
    "views": 1,
}


@pytest.fixture(scope="module")
def page():
    return notebook_definitions("05_ganomaly.ipynb")


@pytest.fixture
def ganomaly(page):
    def make(**changes):
        torch.manual_seed(0)
        return page["GANomaly"](SETTINGS | changes)

    return make


@pytest.fixture
def data(run):
    """64 images of each label in each split, 32 x 32 pixels."""
    return FashionMNISTOneClass(run, anomaly_fraction=0.0, batch_size=16, limit=64, size=32)


def images(count, seed=0, side=32):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "halvings"), [(32, 3), (64, 4), (128, 5), (256, 6)])
def test_every_power_of_two_is_rebuilt_and_coded_twice(page, size, halvings):
    batch = torch.zeros(2, 3, size, size)
    generator, judge = page["Generator"](size, 3, 2, 5), page["Discriminator"](size, 3, 2)
    made, z, again = generator(batch)
    assert made.shape == batch.shape
    assert z.shape == again.shape == (2, 5)
    assert judge.features(batch).shape == (2, 2 * 2 ** (halvings - 1), 4, 4)
    assert judge(batch).shape == (2,)
    assert page["widths"](size, 2) == [2 * 2**step for step in range(halvings)]


@pytest.mark.parametrize("size", [0, 16, 28, 31, 48, 100, 255, 512, 1024])
def test_any_other_size_is_refused_and_the_possible_ones_are_named(ganomaly, size):
    with pytest.raises(ValueError, match=rf"must be 32, 64, 128 or 256 pixels, not {size}$"):
        ganomaly(size=size)


def test_images_of_another_size_than_the_networks_are_refused(ganomaly):
    with pytest.raises(ValueError, match=r"built for 32 x 32 pixels: got \(64, 64\)"):
        ganomaly().reconstruct(images(2, side=64))


def test_an_unknown_score_is_refused(ganomaly):
    with pytest.raises(ValueError, match="score is plain or whitened: got 'l2'"):
        ganomaly(score="l2")


def test_the_papers_sizes_can_be_built(ganomaly):
    generator = ganomaly(ngf=64, nz=100).generator
    shapes = [tuple(layer.weight.shape) for layer in generator.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (100, 256, 4, 4)]
    shapes = [tuple(layer.weight.shape) for layer in generator.decoder if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert shapes == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 1, 4, 4)]
    assert not any(name.endswith("bias") and weights.ndim > 1 for name, weights in generator.named_parameters())


def test_the_second_encoder_has_weights_of_its_own(ganomaly):
    generator = ganomaly().generator
    pairs = list(zip(generator.encoder.parameters(), generator.second_encoder.parameters(), strict=True))
    assert pairs
    assert not any(a is b for a, b in pairs)
    assert not torch.equal(*pairs[0])


# --- the losses -----------------------------------------------------------------------------------------------------


def test_every_loss_is_its_formula(ganomaly):
    model, x = ganomaly().eval(), images(8)  # eval: features then do not depend on how often they were computed
    made = model.generate(x, x[:0])
    losses = model.generator_losses(x, x[:0], made)
    copied, z, again = model.generator(x)
    features = model.discriminators.features
    expected = {
        "adversarial": (features(x) - features(copied)).square().mean(),
        "contextual": (x - copied).abs().mean(),
        "encoder": (z - again).square().mean(),
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    total = model.weighted_sum(losses).item()
    parts = {name: value.item() for name, value in expected.items()}
    assert total == pytest.approx(parts["adversarial"] + 50 * parts["contextual"] + parts["encoder"], rel=1e-5)
    found = model.discriminator_losses(x, x[:0], made)["discriminator"].item()
    real, rebuilt = model.discriminators(x).sigmoid(), model.discriminators(copied).sigmoid()
    assert found == pytest.approx(-0.5 * (real.log().mean() + (1 - rebuilt).log().mean()).item(), rel=1e-5)


def test_the_discriminator_loss_is_finite_however_sure_it_is(page):
    sure = torch.tensor([-1e4, 1e4], requires_grad=True)
    for real in (0.0, 1.0):
        loss = page["cross_entropy"](sure, real)
        loss.backward()
        assert loss.item() == pytest.approx(5e3)
        assert sure.grad.isfinite().all()


def test_the_encoder_loss_teaches_both_encoders_and_matching_features_teaches_the_decoder(ganomaly):
    model, x = ganomaly(), images(8)
    losses = model.generator_losses(x, x[:0], model.generate(x, x[:0]))
    parts = {
        name: list(getattr(model.generator, name).parameters()) for name in ("encoder", "decoder", "second_encoder")
    }

    def taught(loss):
        return {
            name: any(
                g is not None and g.any() for g in torch.autograd.grad(loss, p, allow_unused=True, retain_graph=True)
            )
            for name, p in parts.items()
        }

    assert taught(losses["encoder"]) == {"encoder": True, "decoder": True, "second_encoder": True}
    assert taught(losses["adversarial"]) == {"encoder": True, "decoder": True, "second_encoder": False}
    assert taught(losses["contextual"]) == {"encoder": True, "decoder": True, "second_encoder": False}


# --- the score ------------------------------------------------------------------------------------------------------


def as_split(x):
    zeros = torch.zeros(len(x), dtype=torch.long)
    return Split(to_uint8(x), zeros, zeros)


def test_the_plain_score_is_the_mean_squared_difference_of_the_codes(ganomaly):
    model, x = ganomaly(score="plain").eval(), images(4)
    _, z, again = model.generator(x)
    assert torch.allclose(model.anomaly_score(x), ((z - again) ** 2).mean(1))


def test_before_the_training_ends_both_scores_are_one(ganomaly):
    x = images(4)
    plain, whitened = (ganomaly(score=score).eval().anomaly_score(x) for score in ("plain", "whitened"))
    assert torch.equal(plain, whitened)


def test_the_whitened_score_is_mahalanobis_distance(ganomaly):
    model, usual, x = ganomaly().eval(), as_split(images(400)), to_float(to_uint8(images(5, seed=1)))
    with torch.inference_mode():
        gaps, new = model.gap(to_float(usual.images)).double().numpy(), model.gap(x).double().numpy()
        model.learn_usual(usual)
        found = model.anomaly_score(x).numpy()
    away = new - gaps.mean(0)
    expected = (away @ np.linalg.inv(np.cov(gaps.T)) * away).sum(1) / 6
    assert found == pytest.approx(expected, rel=0.1)  # Ledoit and Wolf shrink a little
    assert found.std() > 0


def test_fewer_images_than_components_still_give_a_score(ganomaly):
    model = ganomaly(nz=40).eval()
    model.learn_usual(as_split(images(9)))
    assert model.anomaly_score(images(5, seed=1)).isfinite().all()


def test_scores_do_not_depend_on_batch_or_mode_but_would_in_training_mode(ganomaly):
    model, x = ganomaly(), to_float(to_uint8(images(8)))
    for _ in range(3):
        model.generate(x, x[:0])  # BatchNorm collects
    together = score_images(model.train(), as_split(x), torch.device("cpu"))
    alone = [score_images(model.train(), as_split(x[i : i + 1]), torch.device("cpu")).item() for i in range(8)]
    assert together == pytest.approx(alone, rel=1e-4)
    with torch.no_grad():
        in_company = [model.train().anomaly_score(torch.cat([x[:1], others]))[0].item() for others in (x[1:4], x[4:])]
    assert in_company[0] != pytest.approx(in_company[1], rel=1e-3)


# --- training -------------------------------------------------------------------------------------------------------


def test_training_lowers_the_errors_and_ends_by_learning_what_is_usual(ganomaly, data, run):
    model = ganomaly(epochs=20, lr=5e-3)
    model.data = data
    x = to_float(data.validation.normal().images)
    before = (model.eval().reconstruct(x) - x).abs().mean().item()
    model.train()
    trained = fit(model, data, run, show=False)
    after = (model.eval().reconstruct(x) - x).abs().mean().item()
    assert after < 0.5 * before
    assert trained.history["batches"] == 20 * 4
    gaps = of_images(model, model.gap, data.train, torch.device("cpu")).double().numpy()
    expected = LedoitWolf().fit(gaps).mahalanobis(gaps) / 6
    assert score_images(model, data.train, torch.device("cpu")) == pytest.approx(expected, rel=1e-3)
    held_out = evaluate(model, data)
    again = load(ganomaly(epochs=20, lr=5e-3), run, trained.folder)  # the checkpoint knows what is usual
    assert np.array_equal(evaluate(again.model, data).score, held_out.score)
    assert not torch.equal(again.model.whitener, torch.eye(6))


def test_without_data_the_whitened_score_stays_plain(ganomaly, data, run):
    model = ganomaly(epochs=1)
    fit(model, data, run, show=False)
    assert torch.equal(model.whitener, torch.eye(6))


def test_what_is_usual_is_learned_from_augmented_views(ganomaly, run):
    data = FashionMNISTOneClass(run, anomaly_fraction=0.0, limit=8, size=32, augment=Augment(flip=0.5))
    model = ganomaly(views=3).eval()
    model.data, seen = data, []
    model.learn_usual = seen.append
    model.on_train_end()
    assert len(seen[0]) == 24
    assert torch.equal(seen[0].images[:8], data.train.images)
