"""Every notebook's own model: killed and continued, on another device; losses and scores by hand; folded solutions."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch.nn.utils import parameters_to_vector
from torchmetrics.functional.image import structural_similarity_index_measure

from helpers.data.batches import Split, to_float, to_uint8
from helpers.data.fashion_mnist import FashionMNISTOneClass
from helpers.data.mvtec import MVTec
from helpers.evaluation import evaluate
from helpers.models import score_images
from helpers.results import read_results
from helpers.runtime import data_dir
from helpers.training import fit, load
from tests.book import MODELS, make_data, make_model, page, solutions
from tests.toy import ROOT, assert_same, make_run, stopped

pytestmark = pytest.mark.usefixtures("no_figures")
KILLED = [name for name in MODELS if "SSIM" not in name and "only" not in name]
# in each attempt: the hook, and how many of its calls it lives through
KILLS = [("on_train_batch_start", 1), ("on_train_batch_end", 1), ("on_train_epoch_end", 1), ("on_train_end", 0)]


@pytest.mark.parametrize("name", KILLED)
def test_a_training_killed_four_times_ends_as_if_it_had_not_been(tmp_path, name):
    """In the middle of an epoch, at its last batch, at its end and at the training's end; each time a new kernel."""
    data, options = make_data(MODELS[name][0]), {"show": False, "checkpoint_seconds": 0}
    whole = fit(make_model(name, data), data, make_run(tmp_path / "whole"), **options)
    for attempt, (hook, calls) in enumerate(KILLS):
        model, run = make_model(name, data), make_run(tmp_path / "killed")
        torch.manual_seed(987 + attempt)  # a new process has another random state
        with pytest.raises(RuntimeError, match="stopped"):
            fit(stopped(model, calls, hook=hook), data, run, **options)
    again = fit(make_model(name, data), data, make_run(tmp_path / "killed"), **options)
    assert again.folder.name == "version_10" and again.history["batches"] == whole.history["batches"]
    assert_same(again, whole)
    loaded, some = load(make_model(name, data), run, whole.folder).model, data.test.first_of_each(2)
    np.testing.assert_allclose(score_images(loaded, some), score_images(again.model, some), rtol=1e-4, atol=1e-6)


def test_nothing_meets_on_two_devices_and_no_step_waits_for_the_gpu():
    process = subprocess.run([sys.executable, "-m", "tests.fake_gpu"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert {name: faults.pop("none") for name, faults in found.items()} == dict.fromkeys(MODELS, "nothing")
    faults = dict.fromkeys(("in the score", "in the loss", "in the backward pass"), "two devices")
    faults |= {"a value is read": "a value on the GPU", "a mask is an index": "nonzero"}
    for name in ("baseline GAN", "autoencoder"):  # else the test above could not fail
        assert {fault: words in found[name][fault] for fault, words in faults.items()} == dict.fromkeys(faults, True)


@pytest.mark.parametrize("name", ["baseline GAN", "DCGAN", "GANomaly", "AnoGAN"])
def test_each_adversarial_step_moves_only_its_own_side(name):
    data = make_data(MODELS[name][0])
    model, seen = make_model(name, data), []
    sides = [list(side.parameters()) for side in (model.generator, model.discriminators)]

    class Step(torch.optim.SGD):
        def step(self):
            before = [parameters_to_vector(side) for side in sides]
            super().step()
            moved = [not torch.equal(a, parameters_to_vector(b)) for a, b in zip(before, sides, strict=True)]
            seen.append((moved, torch.cat([weights.grad.flatten() for weights in sides[1]])))

    optimizers = [Step(side, lr=0.1) for side in sides]
    model.optimizers, model.manual_backward = lambda: optimizers, torch.Tensor.backward
    model.lr_schedulers = lambda: SimpleNamespace(step=lambda: None)
    model.training_step(next(iter(data.train_dataloader())), 0)
    assert [moved for moved, _ in seen] == [[False, True], [True, False]], "discriminators first"
    assert torch.equal(seen[0][1], seen[1][1]), "the generator's step leaves their gradients alone"
    assert all(weights.requires_grad for weights in model.parameters())


# --- the committed versions -------------------------------------------------------------------------------------------

RAW, HAZELNUT = data_dir() / "FashionMNIST" / "raw", data_dir() / "mvtec_anomaly_detection" / "hazelnut"
KINDS = dict(enumerate(("BaselineGAN", "DCGAN", "HazelnutAutoencoder", "Spheres", "GANomaly", "DenoisingAutoencoder")))
KINDS[7] = "SoundAutoencoder"  # (version_6 has no weights)


@pytest.mark.parametrize("number", KINDS)
def test_the_committed_weights_give_the_committed_result(tmp_path, number):
    """The weights are always loaded; the result is measured where the real data are at hand."""
    folder = ROOT / "lightning_logs" / f"version_{number}"
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    run = make_run(tmp_path, settings["notebook"])
    loaded = load(page(run.notebook)[KINDS[number]](settings), run, folder)
    assert not loaded.model.training and len(loaded.curves)
    assert all(weights.dtype == torch.float32 for weights in loaded.model.parameters())
    run.data_dir, run.profile = data_dir(), "full"
    if number in (2, 3, 5) and HAZELNUT.is_dir():
        resampling, held_out = "lanczos" if number == 2 else "bicubic", settings.get("held_out", 0.1)
        data = MVTec(run, size=settings["size"], grey=number == 3, held_out=held_out, resampling=resampling)
    elif number in (0, 1, 4) and len(list(RAW.glob("*-ubyte*"))) >= 4:
        data = FashionMNISTOneClass(run, anomaly_fraction=settings["anomaly_fraction"], size=settings.get("size", 28))
    else:
        return
    stored = read_results(folder)
    if data.fields()["n_test_anomalous"] == stored["n_test_anomalous"]:
        assert evaluate(loaded.model, data).auroc == pytest.approx(stored["auroc"], abs=1e-3)


# --- folded solutions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["03_hazelnut_autoencoder", "04_deep_svdd", "06_denoising_autoencoder"])
def test_each_of_three_solutions_passes_its_own_checks(name):
    assert ["assert" in solution for solution in solutions(name)] == [True] * 3
    for number, solution in enumerate(solutions(name), 1):
        exec(compile(solution, f"solution {number} of {name}", "exec"), dict(page(name)))


def solved(name):
    """What the three solutions of a notebook define, beside its own definitions."""
    found, scope = solutions(name), dict(page(name))
    exec("\n".join(found), scope)
    assert len(found) == 3
    return scope


def test_the_solutions_of_notebook_1_hold():
    found = solved("01_baseline_gan")
    sides = [torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Sequential(torch.nn.Linear(4, 1))]
    before = [parameters_to_vector(side.parameters()).clone() for side in sides]
    found["step"](*sides, *(torch.optim.SGD(side.parameters(), 0.1) for side in sides), torch.randn(6, 4))
    for side, old in zip(sides, before, strict=True):
        assert not torch.equal(parameters_to_vector(side.parameters()), old)
        assert all(weights.requires_grad for weights in side.parameters())
    assert [found["images_needed"](rate) for rate in (1 / 200, 0.01, 0.5)] == [199, 99, 1]
    for name, gradient in (("endless", -1.0), ("repulsion", 0.0)):
        error = torch.tensor([0.5], requires_grad=True)
        found[name](error, 0.25).sum().backward()
        assert error.grad.item() == gradient


def test_the_solutions_of_notebook_2_hold():
    found = solved("02_dcgan")
    net, x = found["make_discriminator"](4), torch.randn(1, 1, 28, 28, requires_grad=True)
    net(x)[0, 0, 3, 3].backward()
    rows = torch.nonzero(x.grad[0, 0].abs().sum(1))[:, 0]
    layers = [(layer.kernel_size[0], layer.stride[0]) for layer in net if hasattr(layer, "stride")]
    assert found["window"](layers) == rows.max() - rows.min() + 1 == 18
    assert found["trimmed"](torch.arange(100.0), 0.05).sum() == 95
    assert found["mean_rank"](np.array([3, 1, 2]), np.array([10, -5, 900])).tolist() == [2.5, 1.0, 2.5]


# --- losses, maps and scores by hand ----------------------------------------------------------------------------------


def test_a_photograph_is_bright_on_black_whatever_its_background(tmp_path):
    dark = np.full((300, 200), 240, np.uint8)
    dark[60:240, 50:150] = 20
    for pixels in (dark, 255 - dark):
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        image = page("01_baseline_gan")["read_garment"](tmp_path / "photo.png").images
        assert image.shape == (1, 1, 28, 28) and image.dtype == torch.uint8
        assert image[0, 0, 14, 14] > 200 and image[0, 0, 0, 0] < 30


def test_abc_is_its_formula_where_that_can_be_computed_and_finite_elsewhere():
    abc = page("02_dcgan")["abc"]
    d = torch.tensor([0.1, 1.0, 3.0])
    assert abc(d).tolist() == pytest.approx([-math.log(1 - math.exp(-value)) for value in d.tolist()], rel=1e-5)
    extreme = torch.tensor([0.0, 1e-30, 80.0, 1e30], requires_grad=True)
    abc(extreme).sum().backward()
    assert abc(extreme).isfinite().all() and extreme.grad.isfinite().all() and (abc(extreme) >= 0).all()


def test_ssim_is_that_of_torchmetrics():
    x = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, 3, 48, 48)), (0, 0, 2, 2))
    x = torch.from_numpy(x / np.abs(x).max()).float()
    for y in ((x + 0.2 * torch.randn(*x.shape)).clamp(-1, 1), x.flip(-1), 0.5 * x):
        settings = {"gaussian_kernel": False, "kernel_size": 11, "data_range": 1.0, "return_full_image": True}
        _, expected = structural_similarity_index_measure((x + 1) / 2, (y + 1) / 2, **settings)
        found = page("03_hazelnut_autoencoder")["ssim"](x, y)
        torch.testing.assert_close(found[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("sigma", "side"), [(1.0, 100), (15.0, 100), (15.0, 16)])
def test_blur_is_a_gaussian(sigma, side):
    x, reach = torch.randn(2, 3, side, side).double(), min(round(3 * sigma), side - 1)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, reach, reach))
    np.testing.assert_allclose(page("03_hazelnut_autoencoder")["blur"](x, sigma), expected, atol=1e-6)


def test_the_maps_of_the_hazelnut_autoencoder_are_one_step_apart():
    book, name = page("03_hazelnut_autoencoder"), "hazelnut autoencoder"
    model, x = make_model(name, make_data("03_hazelnut_autoencoder")).eval(), torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        maps = dict(zip(book["MAPS"], model.all_maps(x).unbind(1), strict=True))
        torch.testing.assert_close(maps["plain"], (0.5 * (x - model.reconstruct(x))).square().sum(1))
        torch.testing.assert_close(maps["smoothed"], book["blur"](maps["plain"][:, None], 2.0)[:, 0])
        torch.testing.assert_close(maps["weighed"], maps["minus local mean"])  # the weights are not learned yet
        torch.testing.assert_close(model.anomaly_map(x), maps["weighed"])


def test_weights_undo_the_covariance_and_keep_the_size_of_a_usual_error():
    book, mix = page("03_hazelnut_autoencoder"), torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0.2, 0.1, 3.0]])
    r = torch.einsum("ab,nbhw->nahw", mix, torch.randn(8, 3, 64, 64))
    weights = book["colour_weights"](r, aligned=False, ridge=0.01)
    usual = (mix @ mix.T).diagonal().mean()
    expected = torch.linalg.inv(mix @ mix.T / usual + 0.01 * torch.eye(3))
    torch.testing.assert_close(weights[..., 0, 0], expected, rtol=0.1, atol=0.1)
    found = book["weighted_square"](r, weights)
    by_hand = torch.einsum("nahw,ab,nbhw->nhw", r, weights[..., 0, 0], r)
    torch.testing.assert_close(found[:, 0], by_hand, rtol=1e-4, atol=1e-5)
    assert 0.8 < found.mean() / r.square().sum(1).mean() < 1.0, "but for what the small constant takes away"


def test_the_objectives_and_the_radius_of_deep_svdd_by_hand():
    data = make_data("04_deep_svdd")
    x = to_float(data.train.images[:4])
    one, soft = (make_model(name, data) for name in ("one-class", "soft boundary"))
    distance = (one.train().encoder(x) - one.c).square().sum(1).detach()
    assert one.losses(x)["distance"].item() == pytest.approx(distance.mean().item(), rel=1e-4)
    soft.train().R.copy_(distance.median().sqrt())
    found = soft.losses(x)
    assert found["radius_squared"].item() == pytest.approx(distance.median().item(), rel=1e-4)
    outside = (distance - distance.median()).clamp_min(0).mean() / 0.25
    assert found["outside"].item() == pytest.approx(outside.item(), rel=1e-3)
    one.R.copy_(one.get_radius(data.train, 0.25))
    score = score_images(one, data.train)
    assert (score > 0).sum() == math.floor(0.25 * (len(score) - 1)), "the image that defines the radius is inside"


def test_the_whitened_score_of_ganomaly_is_mahalanobis_distance():
    data = make_data("05_ganomaly")
    model = make_model("GANomaly", data).eval()
    x, zeros = [torch.rand(count, 1, 32, 32) * 2 - 1 for count in (400, 5)], torch.zeros(400, dtype=torch.long)
    usual = Split(to_uint8(x[0]), zeros, zeros)
    with torch.inference_mode():
        gaps, new = model.gap(to_float(usual.images)).double().numpy(), model.gap(x[1]).double().numpy()
    model.learn_usual(usual)
    away = new - gaps.mean(0)
    expected = (away @ np.linalg.inv(np.cov(gaps.T)) * away).sum(1) / 6
    found = model.anomaly_score(x[1]).detach().numpy()
    assert found == pytest.approx(expected, rel=0.1), "but for a little: Ledoit and Wolf shrink the covariance"


def test_the_usual_gap_is_that_of_training_images_and_the_same_views_every_time():
    data, seen = make_data("05_ganomaly"), []
    model, good, state = make_model("GANomaly", data), data.train.normal().images, torch.get_rng_state()
    model.hparams.views, model.learn_usual = 3, lambda split: seen.append(split.images)
    for _ in range(2):
        model.on_train_end()
    assert torch.equal(state, torch.get_rng_state()), "the training's random numbers are left alone"
    images, first, second = seen[0].split(len(good))
    assert torch.equal(images, good) and not torch.equal(first, images) and not torch.equal(first, second)
    assert torch.equal(seen[0], seen[1])


def test_a_search_gives_an_image_the_same_score_alone_in_a_batch_and_again():
    data = make_data("05_ganomaly")
    model = make_model("AnoGAN", data)
    for _ in range(3):  # BatchNorm's averages are not those of its first weights
        model.train().generate(torch.randn(16, 6))
    model.hparams.search_lr, some = 0.5, data.test.first_of_each(4)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    together = score_images(model, some)
    alone = [score_images(model, some.subset(torch.tensor([place])))[0] for place in range(len(some))]
    backwards = score_images(model, some.subset(torch.arange(len(some)).flip(0)))[::-1]
    for found in (np.array(alone), backwards, score_images(model, some)):
        np.testing.assert_allclose(found, together, rtol=1e-4)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert not [weights for weights in model.parameters() if weights.grad is not None]


def test_a_search_minimises_its_loss_and_the_best_start_counts():
    data = make_data("05_ganomaly")
    model, x = make_model("AnoGAN", data).eval(), to_float(data.test.images[:5])
    ends = []
    for start in model.starts:
        steps = [loss for _, loss in model.search(x, start, 30)]
        assert len(steps) == 31 and (steps[-1] < steps[0]).all()
        ends.append(steps[4])  # as many as in the settings
    copies, score = model.best(x)
    torch.testing.assert_close(score, torch.minimum(*ends))
    with torch.no_grad():
        seen, wanted = model.discriminators.features(copies), model.discriminators.features(x)
        by_hand = 0.9 * (x - copies).abs().mean((1, 2, 3)) + 0.1 * (seen - wanted).abs().mean((1, 2, 3))
    torch.testing.assert_close(score, by_hand)


def test_the_encoder_of_f_anogan_is_all_that_its_training_changes(tmp_path):
    data = make_data("05_ganomaly")
    gan, model = make_model("AnoGAN", data), make_model("f-AnoGAN", data)
    gan.generator[0].weight.data += 0.1
    model.init_from(gan)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    trained = fit(model, data, make_run(tmp_path), show=False).model
    changed = {name.split(".")[0] for name, values in trained.state_dict().items() if not values.equal(before[name])}
    assert changed == {"encoder"}
    assert torch.equal(trained.generator[0].weight, gan.generator[0].weight)


def test_the_bootstrap_is_the_auroc_of_resampled_test_sets():
    """Draw by draw against scikit-learn's weighted AUROC, ties included."""
    label, rng = np.repeat([0, 1], [200, 300]), np.random.default_rng(0)
    scores = np.stack([rng.normal(label, 1.0).round(1), rng.normal(2 * label, 1.0)])
    found = page("10_compare_versions")["bootstrap_auroc"](scores, label, 5, seed=3)
    generator = np.random.default_rng(3)
    for draw in range(5):
        weight = np.empty(500)
        for value, count in ((0, 200), (1, 300)):
            weight[value == label] = np.bincount(generator.integers(count, size=count), minlength=count)
        expected = [roc_auc_score(label, score, sample_weight=weight) for score in scores]
        assert found[:, draw] == pytest.approx(expected)


def test_a_p_value_counts_held_out_scores_at_or_above():
    p_values, held_out = page("09_from_score_to_decision")["p_values"], np.array([3.0, 1.0, 2.0, 2.0])
    assert p_values(np.array([0.0, 2.0, 2.5, 9.0]), held_out).tolist() == [1.0, 4 / 5, 2 / 5, 1 / 5]


def test_the_rank_of_a_threshold_promises_what_is_wanted():
    asked = [(0.05, 19), (0.05, 18), (0.05, 600), (0.1, 39), (0.01, 99)]  # the rate, and how many images are held out
    assert [page("09_from_score_to_decision")["rank_for"](*one) for one in asked] == [1, 0, 30, 4, 1]


def test_costs_are_those_of_misses_and_false_alarms():
    images = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0])
    found = page("09_from_score_to_decision")["cost_of"]([3.5, 0.0, 9.0], images, 10, 0.1)
    assert found.tolist() == pytest.approx([0.1 * 10 * 0.5 + 0.9 * 0.25, 0.9, 1.0])
