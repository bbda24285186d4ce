"""Notebook 4's model: the five steps by hand, the guards against collapse, the variation, and what they refuse."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from helpers import metrics
from helpers.data.folder import CARD, Folder
from helpers.data.images import list_images
from helpers.data.loader import Augment, to_float
from helpers.data.mvtec import MVTec
from helpers.data.samples import keycaps
from helpers.models import of_images, score_images
from helpers.runtime import data_dir
from helpers.training import TrainingError, evaluate, fit, load
from tests.conftest import ROOT, notebook_definitions

SETTINGS = {
    "network": "large",
    "size": 128,
    "grey": True,
    "objective": "one-class",
    "nu": 0.1,
    "warm_up": 0.5,
    "false_alarms": 0.01,
    "views": 1,
    "epochs": 1,
    "lr": 1e-3,
    "weight_decay": 1e-6,
    "batch_size": 4,
    "seed": 0,
}
SMALL = {"network": "small", "size": 28}


@pytest.fixture(scope="module")
def page():
    return notebook_definitions("04_deep_svdd.ipynb")


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return keycaps(tmp_path_factory.mktemp("samples") / "keycaps", good=16, others=4)


@pytest.fixture
def data(run, keys):
    """Eight keys to train with, four held out, four on the stress card."""
    augment = Augment(degrees=2, noise=0.02)
    return Folder(run, keys / "F8", grey=True, other=keys / "F12", batch_size=4, held_out=0.25, augment=augment)


@pytest.fixture
def begun(page, data):
    """``begun(kind, **settings)``: a model around what an untrained autoencoder knows, not yet trained itself."""

    def make(kind="DeepSVDD", **changes):
        torch.manual_seed(0)
        model = page[kind](SETTINGS | changes)
        model.begin(page["AutoEncoder"](SETTINGS | changes), data)
        return model

    return make


# --- the networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "side", "latent"), [({}, 128, 512), (SMALL, 28, 32), ({"grey": False}, 128, 512)])
def test_nothing_in_the_encoder_can_hold_a_constant(page, changes, side, latent):
    model = page["AutoEncoder"](SETTINGS | changes)
    layers = list(model.encoder.modules())
    assert not any(getattr(layer, "bias", None) is not None for layer in layers)
    assert not any(layer.affine for layer in layers if isinstance(layer, nn.BatchNorm2d))
    assert not any(isinstance(layer, (nn.Tanh, nn.Sigmoid)) for layer in layers)
    x = torch.randn(2, 3 if changes == {"grey": False} else 1, side, side)
    assert model.latent(x).shape == (2, latent)
    assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("size", [{}, SMALL])
def test_the_unguarded_encoder_can(page, size):
    model = page["AutoEncoder"](SETTINGS | size | {"bias": True, "batch_norm": False})
    assert any("bias" in name for name, _ in model.encoder.named_parameters())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.encoder.modules())


def test_with_biases_the_trivial_solution_exists_and_without_it_does_not(page):
    """All weights zero: the biases alone put every image at the centre."""
    centre = torch.linspace(0.2, 1, 32)
    for bias in (True, False):
        encoder = page["AutoEncoder"](SETTINGS | SMALL | {"bias": bias, "batch_norm": False}).encoder
        with torch.no_grad():
            for weights in encoder.parameters():
                weights.zero_()
            if bias:
                encoder.last.bias.copy_(centre)
            found = encoder(torch.randn(4, 1, 28, 28))
        assert torch.equal(found, centre.expand(4, -1)) == bias


def test_contrast_normalisation_by_hand(page):
    norm, x = page["ContrastNormalisation"](), torch.tensor([0.0, 1.0, 1.0, 6.0]).view(1, 1, 2, 2)
    norm.learn(torch.cat([x, -x]))  # mean 2, mean absolute deviation 2: -1, -0.5, -0.5, 2, and their negatives
    assert norm(x).flatten().tolist() == pytest.approx([0.25, 0.375, 0.375, 1.0])
    torch.testing.assert_close(norm(5 * x - 3), norm(x))  # neither light nor contrast counts


# --- centre, distance, radius ---------------------------------------------------------------------------------------


def test_the_dictionary_is_learned_from_the_images(page):
    """Images of horizontal stripes: the atoms vary from row to row, hardly within a row, and have length one."""
    rows = torch.rand(40, 1, 28, 1, generator=torch.Generator().manual_seed(0))
    images = rows.expand(-1, -1, -1, 28) + 0.01 * torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    atoms = page["dictionary"](images, seed=3)
    assert atoms.shape == (8, 1, 5, 5) and atoms.dtype == torch.float32
    assert atoms.std(2).mean() > 5 * atoms.std(3).mean(), "stripes"
    torch.testing.assert_close(atoms.flatten(1).norm(dim=1), torch.ones(8), rtol=0.01, atol=0)
    assert torch.equal(atoms, page["dictionary"](images, seed=3))
    assert not torch.equal(atoms, page["dictionary"](images, seed=4))


@pytest.mark.parametrize("share", [1 / 3, 1.0, None])
def test_the_learning_rate_drops_once_or_goes_through_a_cycle(page, share):
    model = page["AutoEncoder"](SETTINGS | SMALL | {"drop_after": share, "lr": 0.01})
    model.trainer = SimpleNamespace(estimated_stepping_batches=30)
    (optimizer,), (schedule,) = model.configure_optimizers()
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    if share is None:
        assert rates[0] < rates[4] == pytest.approx(0.01, rel=0.05) and rates[-1] < 1e-4
    else:
        drop = round(30 * share)
        assert rates == pytest.approx([0.01] * drop + [0.001] * (30 - drop))


def test_the_centre_is_the_mean_kept_away_from_zero(page):
    latents = torch.tensor([[1.0, 0.0, 0.2, -0.02], [3.0, 0.1, -0.1, -0.06]])
    assert page["centre_of"](latents).tolist() == pytest.approx([2.0, 0.1, 0.1, -0.1])
    assert page["centre_of"](torch.zeros(3, 2)).abs().tolist() == pytest.approx([0.1, 0.1])


def test_a_zero_centre_is_refused(begun):
    model = begun()
    for centre in (torch.zeros(512), torch.full((512,), torch.nan)):
        with pytest.raises(ValueError, match="centre must be finite and not zero"):
            model.put_centre(centre)


def test_step_2_takes_over_the_encoder_and_step_3_its_mean(page, data):
    autoencoder, model = page["AutoEncoder"](SETTINGS), page["DeepSVDD"](SETTINGS)
    model.begin(autoencoder, data)
    ours, theirs = (dict(one.encoder.named_parameters()) for one in (model, autoencoder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    latents = of_images(autoencoder, autoencoder.latent, data.train, model.device)
    far = latents.mean(0).abs() >= 0.1
    torch.testing.assert_close(model.centre[far], latents.mean(0)[far])


def test_score_is_squared_distance_minus_squared_radius(begun, data):
    model = begun().eval()
    model.radius.fill_(2.0)
    x = to_float(data.test.images[:3])
    by_hand = (model.encoder(x) - model.centre).pow(2).sum(1) - 4
    torch.testing.assert_close(model.anomaly_score(x), by_hand)


def test_the_objectives_by_hand(begun, data):
    x, nobody = to_float(data.train.images[:4]), torch.zeros(0)
    model = begun()
    distance = model.distance(x).detach()
    assert model.losses(x, nobody)["distance"].item() == pytest.approx(distance.mean().item(), rel=1e-4)
    soft = begun(objective="soft-boundary", nu=0.5)
    soft.radius.copy_(distance.median().sqrt())
    found = soft.losses(x, nobody)
    outside = (distance - distance.median()).clamp_min(0).mean() / 0.5
    assert found["radius_squared"].item() == pytest.approx(distance.median().item(), rel=1e-4)
    assert found["outside"].item() == pytest.approx(outside.item(), rel=1e-3)


def test_the_radius_is_the_quantile_over_the_whole_set(begun, data):
    model = begun()
    model.put_radius(data.train, 0.3)
    distance = of_images(model, model.distance, data.train, model.device).numpy()
    assert model.radius.item() ** 2 == pytest.approx(np.quantile(distance, 0.7, method="higher"), rel=1e-4)
    score = score_images(model, data.train, model.device)
    assert (score > 0).sum() == 2, "the image that defines the radius is inside, whatever the rounding"


def test_the_radius_waits_for_the_warm_up_and_ends_on_held_out_views(begun, data, run, monkeypatch):
    model, calls = begun(objective="soft-boundary", epochs=3, warm_up=0.6, false_alarms=0.05), []
    whole = model.put_radius
    monkeypatch.setattr(
        model, "put_radius", lambda split, outside: calls.append((len(split), outside)) or whole(split, outside)
    )
    fit(model, data, run)
    assert calls == [(8, 0.1), (8, 0.1), (4, 0.05)]  # epochs 2 and 3, then the views of the held-out images
    distance = of_images(model, model.distance, data.held_out_views(1), model.device).numpy()
    assert model.radius.item() ** 2 == pytest.approx(np.quantile(distance, 0.95, method="higher"), rel=1e-3)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DeepSVDD", "Spheres"])
def test_training_shrinks_the_distances_and_leaves_centre_and_decoder_alone(begun, data, run, kind):
    model = begun(kind, epochs=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = to_float(data.train.images)
    distance = model.train().distance(x).mean()  # by the statistics of this batch, as while training
    scores = evaluate(fit(model, data, run).model, data)
    after = model.state_dict()
    assert not torch.equal(before["encoder.blocks.0.0.weight"], after["encoder.blocks.0.0.weight"])
    assert torch.equal(before["centre"], after["centre"])
    assert all(
        torch.equal(before[name], after[name]) for name in after if name.startswith("decoder.") and "weight" in name
    )
    assert model.train().distance(x).mean() < distance
    assert np.isfinite(scores.score).all()
    assert scores.score.std() > 1e-3 * abs(scores.score.mean())  # not collapsed


@pytest.mark.parametrize("kind", ["DeepSVDD", "Spheres"])
def test_a_version_holds_all_that_a_score_needs(page, begun, data, run, kind):
    trained = fit(begun(kind), data, run)
    state = torch.load(trained.folder / "model.ckpt", weights_only=True)["state_dict"]
    assert {"centre", "radius"} <= state.keys() and not any(name.startswith("decoder.") for name in state)
    again = load(page[kind](yaml.safe_load((trained.folder / "hparams.yaml").read_text())), run, trained.folder)
    np.testing.assert_allclose(
        score_images(again.model, data.test, run.device),
        score_images(trained.model, data.test, run.device),
        rtol=1e-4,
        atol=1e-4,
    )


# --- the variation --------------------------------------------------------------------------------------------------


def test_imagined_defects_change_only_what_their_mask_covers(page):
    torch.manual_seed(0)
    x = torch.rand(6, 1, 128, 128) * 2 - 1
    changed, mask = page["imagine"](x)
    assert mask.shape == (6, 1, 128, 128) and mask.amin() >= 0 and mask.amax() <= 1
    assert torch.equal(changed[mask == 0], x[mask == 0])
    share = (mask > 0.4).float().mean((1, 2, 3))
    assert (share < 0.2).all() and (share > 0).sum() >= 5
    assert (changed[mask > 0.9] != x[mask > 0.9]).float().mean() > 0.9
    assert changed.abs().amax() <= 1


def test_the_map_and_the_score_of_the_spheres_by_hand(begun, data):
    model, x = begun("Spheres").eval(), to_float(data.test.images[:2])
    with torch.no_grad():
        places, whole = model.distances(x)
    assert places.shape == (2, 16, 16)
    top = places.flatten(1).sort(1, descending=True).values[:, :3].mean(1)
    expected = torch.maximum(top / model.radius[0] ** 2, whole / model.radius[1] ** 2) - 1
    torch.testing.assert_close(model.anomaly_score(x), expected)
    assert model.anomaly_map(x).shape == (2, 128, 128)
    assert model.anomaly_map(x).amax().item() == pytest.approx(
        float((places / model.radius[0] ** 2 - 1).max()), rel=0.2
    )


def test_only_covered_places_and_misplaced_images_are_pushed(begun, data, page, monkeypatch):
    model, x = begun("Spheres"), to_float(data.train.images[:4])
    mask = torch.zeros(4, 1, 128, 128)
    mask[:, :, 64:, 64:] = 1
    monkeypatch.setitem(type(model).losses.__globals__, "imagine", lambda x: (x, mask))
    monkeypatch.setitem(type(model).losses.__globals__, "misplaced", lambda x: -x)
    found = model.losses(x, torch.zeros(0))
    places, whole = model.distances(torch.cat([x, x, -x[::2]]))
    h, of_whole = (places + 1).sqrt() - 1, (whole / 512 + 1).sqrt() - 1
    inside = h[4:8].clone()
    inside[:, 8:, 8:] = torch.nan
    expected = {
        "places": h[:4].mean() + inside.nanmean(),
        "imagined": -torch.log(1 - torch.exp(-h[4:8, 8:, 8:])).mean(),
        "whole": of_whole[:4].mean(),
        "misplaced": -torch.log(1 - torch.exp(-of_whole[8:])).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_a_misplaced_image_is_moved_or_in_another_light(page):
    torch.manual_seed(0)
    x = torch.full((64, 1, 32, 32), -1.0)
    x[:, :, 12:20, 12:20] = 0.0
    centres, light = [], []
    for wrong in page["misplaced"](x):
        bright = torch.nonzero(wrong[0] > -0.99).float()
        light.append(wrong.max().item() + 1)
        centres.append((wrong[0, 12:20, 12:20] > -0.99).all().item())  # still where it was
        assert len(bright) == 64
    same = [abs(value - 1) < 1e-6 for value in light]
    assert 10 < sum(same) < 54
    assert all(stays != unchanged for stays, unchanged in zip(centres, same, strict=True)), (
        "either moved or in another light"
    )
    assert all(
        0.2 <= value <= 0.7 or 1.3 <= value <= 2 for value, unchanged in zip(light, same, strict=True) if not unchanged
    )


# --- bad input: one clear message each ------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [0, -0.1, 1.5])
def test_nu_outside_of_its_range_is_refused(page, nu):
    with pytest.raises(ValueError, match=r"nu is the share of training images .* in \(0, 1\]: got"):
        page["DeepSVDD"](SETTINGS | {"nu": nu})


def test_an_unknown_objective_is_refused(page):
    with pytest.raises(ValueError, match="objective is one-class or soft-boundary: got 'hard'"):
        page["DeepSVDD"](SETTINGS | {"objective": "hard"})


@pytest.mark.parametrize("lost", [("centre",), ("radius",), ("centre", "radius")])
def test_an_encoder_without_centre_or_radius_is_refused(page, begun, lost):
    state = {name: value for name, value in begun().state_dict().items() if name not in lost}
    with pytest.raises(ValueError, match=f"an encoder without its {' and '.join(lost)} cannot score"):
        page["DeepSVDD"](SETTINGS).load_state_dict(state)
    untouched = page["DeepSVDD"](SETTINGS)
    with pytest.raises(ValueError, match="without its centre and radius cannot score"):
        untouched.load_state_dict(page["DeepSVDD"](SETTINGS).state_dict())  # never begun


def test_a_version_of_the_autoencoder_is_refused(page, data, run):
    trained = fit(page["AutoEncoder"](SETTINGS), data, run)
    with pytest.raises(TrainingError, match="holds a AutoEncoder, not a DeepSVDD"):
        load(page["DeepSVDD"](SETTINGS), run, trained.folder)


# --- the committed versions -----------------------------------------------------------------------------------------

VERSION = ROOT / "lightning_logs" / "version_3"
NUTS = data_dir() / "mvtec_anomaly_detection" / "hazelnut"
needs_nuts = pytest.mark.skipif(not NUTS.is_dir(), reason=f"the hazelnuts are not in {NUTS}")


@pytest.fixture
def committed(page, run, monkeypatch):
    """``committed(name)``: the model of a committed version, by the notebook's own function."""
    monkeypatch.setitem(page, "run", run)
    return lambda name="": page["load_version"](VERSION / name)


def test_the_committed_keys_pass_the_stress_card(committed, run, tmp_path):
    """Rendered anew from the recipe: every golden sample inside, nearly all of the rest outside."""
    keys = keycaps(tmp_path / "keycaps")
    data = Folder(
        run,
        keys / "F8",
        grey=True,
        other=keys / "F12",
        seed=json.loads((VERSION / "keys" / "results.json").read_text())["seed"],
    )
    score, kind = score_images(committed("keys"), data.test, run.device), data.test.kind.numpy()
    shares = {CARD[row]: (score[kind == row] > 0).mean() for row in range(len(CARD))}
    assert shares.pop("golden sample") == 0
    assert min(shares.values()) >= 0.95, shares


@pytest.mark.real_data
@needs_nuts
@pytest.mark.parametrize("name", ["", "hazelnut_plain"])
def test_the_committed_hazelnuts_give_the_committed_result(committed, run, monkeypatch, name):
    monkeypatch.setenv("AD_DATA", "real")
    run.data_dir = data_dir()
    results = json.loads((VERSION / name / "results.json").read_text())
    model = committed(name)
    data = MVTec(run, "hazelnut", size=128, grey=True, held_out=0.2, seed=results["seed"])
    scores = evaluate(model, data)
    assert metrics.auroc(scores.score, scores.label) == pytest.approx(results["metrics"]["auroc"], abs=1e-3)
    assert results["metrics"]["auroc"] > 0.75


@pytest.mark.real_data
@needs_nuts
def test_one_image_in_score_verdict_and_map_out(committed, page):
    model = committed()
    path = list_images(NUTS / "test" / "print")[0]
    page["score_image"](path, model)  # the first call of a process loads kernels
    start = time.perf_counter()
    found = page["score_image"](path, model)
    assert time.perf_counter() - start < 1
    assert found["verdict"] == "anomaly" and found["score"] > 0
    assert found["map"].shape == (128, 128)
