"""Notebook 3: its tables, its losses, every step of its map, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from helpers.data import samples
from helpers.data.loader import Augment, to_float
from helpers.data.mvtec import MVTec
from helpers.models import map_images, score_images
from helpers.training import evaluate, fit, load
from tests.conftest import make_run, notebook_definitions

SETTINGS = {
    "size": 256,
    "latent": 8,
    "loss": "l2",
    "epochs": 1,
    "lr": 5e-3,
    "background": 15.0,
    "smooth": 2.0,
    "aligned": False,
    "top": 300,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def page():
    return notebook_definitions("03_hazelnut_autoencoder.ipynb")


@pytest.fixture
def autoencoder(page):
    def make(**changes):
        torch.manual_seed(0)
        return page["HazelnutAutoencoder"](SETTINGS | changes)

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.hazelnuts_as_mvtec(tmp_path_factory.mktemp("nuts") / "nuts", train=5, good=2, each_kind=1, size=64)


@pytest.fixture
def nuts(run, folder, monkeypatch):
    """Four nuts to train on, one held out and painted four times, a good and a defective one to test."""
    monkeypatch.setenv("AD_DATA", "real")
    data = MVTec(run, str(folder), batch_size=2, images_per_epoch=2, augment=Augment(flip=0.5, degrees=180))
    data.test = data.test.pick(torch.tensor([0, 4]))
    return data


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the network ----------------------------------------------------------------------------------------------------


def test_the_printed_decoder_ends_at_128_pixels_and_the_missing_row_mends_it(page):
    assert page["sides"](page["PRINTED"], 1, up=True)[-1] == 128
    assert page["sides"](page["DECODER"], 1, up=True)[-1] == 256
    assert page["sides"](page["ENCODER"], 256, up=False) == [128, 64, 32, 32, 16, 16, 8, 8, 8, 1]
    assert len(page["DECODER"]) == len(page["PRINTED"]) + 1 == len(page["ENCODER"])
    for rows in (page["ENCODER"], page["DECODER"]):  # each row takes what the one before gives
        assert [row[1] for row in rows[:-1]] == [row[0] for row in rows[1:]]


def test_every_layer_is_its_row_of_the_tables(page, autoencoder):
    model = autoencoder(latent=500)
    for part, rows, x, up in (
        (model.encoder, page["ENCODER"], torch.zeros(2, 3, 256, 256), False),
        (model.decoder, page["DECODER"], torch.zeros(2, 500, 1, 1), True),
    ):
        expected = iter(zip(rows, page["sides"](rows, x.shape[-1], up), strict=True))
        for layer in part:
            x = layer(x)
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                (before, after, kernel, stride), side = next(expected)
                assert (layer.in_channels, layer.out_channels) == (before, after)
                assert (layer.kernel_size, layer.stride) == ((kernel, kernel), (stride, stride))
                assert x.shape == (2, after, side, side)
        assert next(expected, None) is None
    assert x.shape == (2, 3, 256, 256)


def test_the_number_of_weights_is_that_of_the_tables(autoencoder):
    assert sum(weights.numel() for weights in autoencoder(latent=500).parameters()) == 2_691_095


@pytest.mark.parametrize("latent", [16, 32, 64, 500])
def test_all_but_the_latent_vector_and_the_last_layer_are_activated(autoencoder, latent):
    model = autoencoder(latent=latent)
    encoder, decoder = ([type(layer) for layer in part] for part in (model.encoder, model.decoder))
    assert encoder == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 9 + [nn.Conv2d, nn.BatchNorm2d]
    assert decoder == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU] * 9 + [nn.ConvTranspose2d]
    assert {layer.eps for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-6}
    assert {layer.negative_slope for layer in model.modules() if isinstance(layer, nn.LeakyReLU)} == {0.01}
    assert model.encoder[-2].out_channels == model.decoder[0].in_channels == latent


def test_the_comparison_with_the_table_prints_every_row_and_notices_a_wrong_one(page, capsys):
    encoder = nn.Sequential(*page["layers"](page["ENCODER"], 500, nn.Conv2d))
    decoder = nn.Sequential(*page["layers"](page["DECODER"], 500, nn.ConvTranspose2d))
    code = page["compare_with_table"](encoder, page["ENCODER"], torch.zeros(2, 3, 256, 256), up=False)
    assert code.shape == (2, 500, 1, 1)
    assert page["compare_with_table"](decoder, page["DECODER"], code, up=True).shape == (2, 3, 256, 256)
    said = capsys.readouterr().out
    assert said.count("\n") == 20 and said.count("the missing row") == 1
    with pytest.raises((AssertionError, StopIteration)):
        page["compare_with_table"](decoder, page["PRINTED"], code, up=True)


@pytest.mark.parametrize("changes", [{"size": 128}, {"size": 255}, {"loss": "l1"}, {"loss": "SSIM"}])
def test_settings_that_cannot_be_are_refused(autoencoder, changes):
    with pytest.raises(ValueError, match="the tables are for 256 x 256 pixels, loss is l2 or ssim"):
        autoencoder(**changes)


# --- the losses -----------------------------------------------------------------------------------------------------


def test_ssim_is_that_of_torchmetrics(page):
    x = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, 3, 40, 48)), (0, 0, 2, 2))
    x = torch.from_numpy(x / np.abs(x).max()).float()
    for y in ((x + 0.2 * noise(*x.shape)).clamp(-1, 1), x.flip(-1), 0.5 * x, torch.zeros_like(x)):
        settings = {"gaussian_kernel": False, "kernel_size": 11, "data_range": 1.0, "return_full_image": True}
        _, expected = structural_similarity_index_measure((x + 1) / 2, (y + 1) / 2, **settings)
        found = page["ssim"](x, y)
        assert found.shape == x.shape
        torch.testing.assert_close(found[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=2e-4, rtol=1e-3)


def test_ssim_is_1_for_equal_images_and_never_more(page):
    x, y = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(page["ssim"](x, x), torch.ones_like(x), atol=1e-4, rtol=0)
    assert page["ssim"](x, y).max() <= 1 + 1e-4
    torch.testing.assert_close(page["ssim"](x, y), page["ssim"](y, x))
    black, white = -torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert page["ssim"](black, white).abs().max() < 1e-3


@pytest.mark.parametrize("loss", ["l2", "ssim"])
def test_the_loss_is_its_formula(autoencoder, page, loss):
    model, x = autoencoder(loss=loss).eval(), torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        made, found = model.reconstruct(x), model.losses(x, x[:0])
    expected = {"l2": ((x - made) / 2).square().sum(1).mean(), "ssim": 1 - page["ssim"](x, made).mean()}
    assert set(found) == {loss}
    assert found[loss].item() == pytest.approx(expected[loss].item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["l2", "ssim"])
def test_the_loss_falls(autoencoder, nuts, loss):
    model = autoencoder(loss=loss)
    x = to_float(nuts.train.images[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = []
    for _ in range(5):
        value = model.losses(x, x[:0])[loss]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[-1] < 0.95 * found[0]
    assert all(weights.grad.abs().sum() > 0 for weights in model.parameters()), "every layer learns"


# --- from residuals to maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 2.0, 15.0])
def test_blur_is_a_gaussian(page, sigma):
    x = noise(2, 3, 100, 100).double()
    found = page["blur"](x, sigma)
    reach = round(3 * sigma)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, reach, reach))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    untruncated = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma))[..., 48:52, 48:52]
    np.testing.assert_allclose(found[..., 48:52, 48:52], untruncated, atol=0.02 / sigma)


def test_blur_keeps_constants_means_and_channels_apart(page):
    flat = torch.tensor([0.3, -2.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 40, 40)
    torch.testing.assert_close(page["blur"](flat, 15.0), flat)
    assert torch.equal(page["blur"](flat, 0), flat)
    dot = torch.zeros(1, 3, 41, 41)
    dot[0, 1, 20, 20] = 1
    spread = page["blur"](dot, 3.0)
    assert not spread[0, [0, 2]].any()
    assert spread.sum().item() == pytest.approx(1)
    torch.testing.assert_close(spread, spread.flip(-1))
    torch.testing.assert_close(spread, spread.transpose(-1, -2))


def test_blur_of_an_image_smaller_than_the_gaussian(page):
    assert page["blur"](noise(1, 1, 16, 16), 15.0).shape == (1, 1, 16, 16)


def test_detail_is_what_differs_from_the_surroundings(page):
    flat = torch.full((1, 3, 64, 64), 0.7)
    torch.testing.assert_close(page["detail"](flat, 15.0), torch.zeros_like(flat), atol=1e-6, rtol=0)
    assert torch.equal(page["detail"](flat, 0.0), flat)
    dot = torch.zeros(1, 3, 128, 128)
    dot[..., 60:63, 60:63] = 1
    left = page["detail"](dot + 0.7, 15.0)
    assert left[..., 61, 61].min() > 0.95, "a small defect stays"
    assert left[..., :40, :40].abs().max() < 0.01, "what is far from it does not notice"


def test_weighted_square_is_the_quadratic_form_of_each_pixel(page):
    r, factor = noise(2, 3, 5, 7), noise(3, 3, 5, 7, seed=1)
    weights = torch.einsum("abhw,cbhw->achw", factor, factor)
    for w in (weights, weights[..., :1, :1]):
        found = page["weighted_square"](r, w)
        whole = np.broadcast_to(w.numpy(), (3, 3, 5, 7))
        expected = np.einsum("nahw,abhw,nbhw->nhw", r.numpy(), whole, r.numpy())
        assert found.shape == (2, 1, 5, 7)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    plain = page["weighted_square"](r, torch.eye(3)[..., None, None])
    torch.testing.assert_close(plain, r.square().sum(1, keepdim=True))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_white_noise_needs_no_weights(page, size):
    found = page["colour_weights"](size * noise(8, 3, 64, 64), aligned=False)
    assert found.shape == (3, 3, 1, 1)
    torch.testing.assert_close(found[..., 0, 0], torch.eye(3), atol=0.03, rtol=0)


def test_weights_undo_the_covariance_and_keep_the_size_of_a_usual_error(page):
    mix = torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0.2, 0.1, 3.0]])
    r = torch.einsum("ab,nbhw->nahw", mix, noise(8, 3, 64, 64))
    weights = page["colour_weights"](r, aligned=False)
    covariance = mix @ mix.T
    usual = covariance.diagonal().mean()
    expected = torch.linalg.inv(covariance / usual + 0.01 * torch.eye(3))
    torch.testing.assert_close(weights[..., 0, 0], expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(page["colour_weights"](7 * r, aligned=False), weights, rtol=1e-3, atol=1e-3)
    kept = page["weighted_square"](r, weights).mean() / r.square().sum(1).mean()
    assert 0.8 < kept < 1.0, "but for what the small constant takes away"


def test_aligned_weights_know_where_errors_are_usual(page):
    r = noise(64, 3, 40, 40)
    r[..., :20] *= 5
    weights = page["colour_weights"](r, aligned=True)
    assert weights.shape == (3, 3, 40, 40)
    loud, quiet = (weights[..., columns].diagonal().mean() for columns in (slice(2, 10), slice(30, 38)))
    assert quiet / loud == pytest.approx(25, rel=0.25)
    maps = page["weighted_square"](r, weights)
    assert maps[..., :10].mean() / maps[..., 30:].mean() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("changes", [{}, {"loss": "ssim"}, {"aligned": True}, {"background": 0.0, "smooth": 0.0}])
def test_a_map_has_a_value_for_each_pixel_and_none_is_negative(autoencoder, nuts, changes):
    model = autoencoder(**changes).eval()
    x = to_float(nuts.test.images[:2])
    with torch.inference_mode():
        found = model.anomaly_map(x)
        score = model.anomaly_score(x)
    assert found.shape == (2, 256, 256) and found.isfinite().all()
    assert found.min() >= -1e-5 and found.max() > 0
    brightest = found.flatten(1).sort(1, descending=True).values[:, :300].mean(1)
    torch.testing.assert_close(score, brightest)


def test_the_map_is_the_sum_of_its_steps(autoencoder, nuts, page):
    model = autoencoder().eval()
    model.weights.copy_(page["colour_weights"](noise(2, 3, 16, 16) * torch.tensor([1, 2, 3])[:, None, None], False))
    x = to_float(nuts.test.images[:2])
    found = page["steps"](model, x)
    with torch.inference_mode():
        r = 0.5 * (x - model.reconstruct(x))
        torch.testing.assert_close(found["... and weighed"], model.anomaly_map(x))
    torch.testing.assert_close(found["plain"], r.square().sum(1))
    names = ["plain", "smoothed", "minus local mean, smoothed", "... and weighed"]
    assert list(found) == names
    assert not any(torch.allclose(found[a], found[b]) for a, b in zip(names, names[1:], strict=False))


def test_scores_and_maps_depend_on_nothing_but_the_image(autoencoder, nuts):
    model = autoencoder().train()
    whole, maps = score_images(model, nuts.test, CPU), map_images(model, nuts.test, CPU)
    swapped = score_images(model, nuts.test.pick(torch.tensor([1, 0])), CPU)
    np.testing.assert_allclose(swapped, whole[::-1], rtol=1e-4)
    alone = map_images(model, nuts.test.pick(torch.tensor([1])), CPU)
    np.testing.assert_allclose(alone, maps[1:], rtol=1e-3, atol=1e-6)
    assert model.training


# --- the whole way --------------------------------------------------------------------------------------------------


def test_training_learns_what_is_usual_and_keeps_it_in_the_checkpoint(autoencoder, page, nuts, run):
    model = autoencoder()
    plain = model.weights.clone()
    trained = fit(model, nuts, run, show=False)
    assert not torch.allclose(model.weights, plain, atol=1e-3)
    with torch.inference_mode():
        errors = model.eval().residual(to_float(nuts.train.images))
    torch.testing.assert_close(model.weights, page["colour_weights"](errors, False), rtol=1e-3, atol=1e-3)
    stored = torch.load(trained.folder / "model.ckpt", weights_only=True)["state_dict"]["weights"]
    assert torch.equal(stored, model.weights)
    assert trained.history["batches"] == 1

    scores = evaluate(model, nuts)
    assert scores.maps.shape == (2, 256, 256) and scores.measures_pixels
    again = load(autoencoder(), make_run(run.logs_dir.parent), trained.folder)
    reloaded = evaluate(again.model, nuts)  # the memory layout is another, so the last digit may be
    np.testing.assert_allclose(reloaded.maps, scores.maps, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(reloaded.score, scores.score, rtol=1e-5)


def trained_on(images, steps=10):
    """Stands for the Trainer."""
    return SimpleNamespace(estimated_stepping_batches=steps, train_dataloader=SimpleNamespace(images=images))


@pytest.mark.parametrize(("aligned", "side", "count"), [(False, 1, 17), (True, 256, 3)])
def test_what_is_usual_comes_from_all_training_images(autoencoder, page, nuts, aligned, side, count):
    model = autoencoder(aligned=aligned)
    images = nuts.train.images.repeat(5, 1, 1, 1)[:count]  # 17 are more than are looked at at once
    model.trainer = trained_on(images)
    model.on_train_end()
    assert model.weights.shape == (3, 3, side, side)
    with torch.inference_mode():
        errors = model.eval().residual(to_float(images))
    torch.testing.assert_close(model.weights, page["colour_weights"](errors, aligned), rtol=1e-3, atol=1e-3)


def test_the_control_without_a_network_copies_the_mean_image(page, nuts):
    control = page["NoNetwork"](SETTINGS, nuts.train.images).eval()
    x = to_float(nuts.test.images)
    mean = to_float(nuts.train.images).mean(0)
    torch.testing.assert_close(control.reconstruct(x), mean.expand_as(x))
    assert not torch.allclose(control.weights[..., 0, 0], torch.eye(3), atol=1e-3)
    found = page["steps"](control, x)
    torch.testing.assert_close(found["plain"], (0.5 * (x - mean)).square().sum(1))


def test_the_learning_rate_rises_and_falls_over_the_whole_training(autoencoder):
    model = autoencoder(lr=1e-2)
    model.trainer = trained_on(None, steps=50)
    (optimizer,), (schedule,) = model.configure_optimizers()
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < 1e-3 and rates[-1] < 1e-5
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-2, rel=0.01) and top == pytest.approx(10, abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
