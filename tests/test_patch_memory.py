"""Notebook 7's detector: the nearest patch, leaving one image out, and a model that learns without gradients."""

import json

import numpy as np
import pytest
import torch

from helpers.data.folder import Folder
from helpers.data.mvtec import MVTec
from helpers.data.samples import sample
from helpers.evaluation import evaluate
from helpers.results import report
from helpers.training import fit
from tests.book import page
from tests.toy import ROOT, make_run

BOOK = page("07_your_parts")
SETTINGS = {"backbone": BOOK["LITE0"], "size": 64, "border": 32, "place": "no", "memory": 60, "share": 0.01, "seed": 0}


class FixedPlaces(BOOK["PatchMemory"]):
    """Keeps the same places of every image, whatever the others are."""

    def choose(self, patches, count):
        return torch.arange(count).expand(len(patches), count)


def features_of(count, seed=0):
    """(N, D, h, w) whose channels differ in mean and spread."""
    values = torch.randn(count, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1, 2, 5, 0.1, 30])[:, None, None] + torch.arange(16.0).view(4, 4)


@pytest.mark.parametrize("place", ["no", "yes"])
def test_leaving_one_out_is_exact(place):
    """Each map is that of a detector that was fitted without the image from the start."""
    features, painted = features_of(6), features_of(3, seed=1)
    model = FixedPlaces(SETTINGS | {"place": place})
    model.learn_from(features)
    before = model.memory.clone()
    good, copies = BOOK["leave_one_out"](model, features, painted)
    assert torch.equal(model.memory, before), "the detector itself is not changed by it"
    assert good.shape == (6, 32, 32) and copies.shape == (3, 32, 32)
    for left_out in range(6):
        rest = torch.cat([features[:left_out], features[left_out + 1 :]])
        other = FixedPlaces(SETTINGS | {"place": place, "memory": 50})  # ten patches of each image, as before
        other.learn_from(rest)
        torch.testing.assert_close(good[left_out], other.heat(features[[left_out]])[0], rtol=1e-4, atol=1e-4)
        if left_out < 3:
            torch.testing.assert_close(copies[left_out], other.heat(painted[[left_out]])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["no", "yes"])
def test_the_distance_is_that_to_the_nearest_kept_patch(place):
    model, features = BOOK["PatchMemory"](SETTINGS | {"place": place}), features_of(6)
    model.learn_from(features)
    assert model.memory.shape == (60, 5)
    new = features_of(2, seed=3)
    wanted = torch.cdist(model.patches(new), model.memory).amin(-1)
    torch.testing.assert_close(model.distance(new), wanted, rtol=1e-3, atol=1e-3)
    own = model.distance(features).gather(1, model.place)
    assert own.max() < 0.05, "a kept patch is at distance 0 from itself"


def test_with_one_place_for_all_the_same_patch_is_normal_elsewhere():
    """Where the place counts, a patch that is normal at one place is unusual at another."""
    images = torch.zeros(8, 1, 4, 4)
    images[:, :, 0, 0] = 5
    images += 0.01 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    moved = torch.zeros(1, 1, 4, 4)
    moved[:, :, 3, 3] = 5
    found = {}
    for place in ("no", "yes"):
        model = BOOK["PatchMemory"](SETTINGS | {"place": place, "memory": 128})
        model.learn_from(images)
        found[place] = model.distance(moved)[0, -1].item()
    assert found["no"] < 0.1 < 5 < found["yes"]


def test_spread_out_takes_the_farthest_each_time():
    patches = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    for points, chosen in zip(patches, BOOK["spread_out"](patches, 6), strict=True):
        wanted = [int((points - points.mean(0)).norm(dim=1).argmax())]
        for _ in range(5):
            wanted.append(int(torch.cdist(points, points[wanted]).amin(1).argmax()))
        assert chosen.tolist() == wanted


def test_top_share_is_the_mean_of_the_largest():
    maps = torch.arange(200.0).view(2, 10, 10)
    assert BOOK["top_share"](maps, 0.03).tolist() == pytest.approx([98, 198])
    assert BOOK["top_share"](maps, 0.0001).tolist() == [99, 199], "at least one"


@pytest.fixture(scope="module")
def parts():
    """Twelve embedded nuts, all of them to learn from."""
    return MVTec(make_run(ROOT / "nowhere"), "hazelnut", size=64, held_out=0, max_images=12)


def test_a_model_that_learns_goes_the_way_of_all_models(tmp_path, parts):
    run, model = make_run(tmp_path, "07_your_parts"), BOOK["PatchMemory"](SETTINGS)
    trained = fit(model, parts, run)
    assert trained.model is model and not model.training and len(model.memory) == 60
    assert trained.history["images"] == len(parts.train) == 12
    features = BOOK["predict"](model, model.features, parts.train)
    maps, _ = BOOK["leave_one_out"](model, features, features[:0])
    good = BOOK["top_share"](maps, 0.01).double().numpy()
    found = evaluate(model, parts, 90, good=(good, maps.numpy()))
    assert np.array_equal(found.validation, good) and found.n_calibration == 12
    np.testing.assert_allclose(found.score, BOOK["top_share"](torch.from_numpy(found.maps), 0.01).numpy())
    report(found, trained, control=("none", 0.5))
    written = json.loads((run.logs_dir / "version_10" / "results.json").read_text())
    assert written["n_calibration"] == 12 and written["n_train"] == 12 and 0.5 < written["auroc"] <= 1
    assert list((run.logs_dir / "version_10").glob("events.out.tfevents.*")), "TensorBoard shows it"


def test_learning_again_stays_in_its_version_until_it_is_reported(tmp_path, parts):
    run = make_run(tmp_path, "07_your_parts")
    folders = [fit(BOOK["PatchMemory"](SETTINGS), parts, run).folder.name for _ in range(2)]
    other = fit(BOOK["PatchMemory"](SETTINGS | {"memory": 24}), parts, run)
    assert [*folders, other.folder.name] == ["version_10", "version_10", "version_11"]
    assert len(other.model.memory) == 24


def test_a_committed_version_is_learned_again_and_left_as_it_is(tmp_path, parts):
    run = make_run(tmp_path, "07_your_parts", train=False)
    trained = fit(BOOK["PatchMemory"](SETTINGS), parts, run)
    assert trained.logger is None and len(trained.model.memory) == 60
    assert not run.logs_dir.exists() or not list(run.logs_dir.iterdir())


def test_scores_do_not_depend_on_the_batch(parts):
    model = BOOK["PatchMemory"](SETTINGS).eval()
    with torch.no_grad():
        model.learn(parts)
        x = BOOK["to_float"](parts.test.images[:6])
        whole = model.anomaly_score(x)
        single = torch.cat([model.anomaly_score(x[[place]]) for place in range(6)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)


def test_a_folder_can_keep_nothing_back():
    nuts, run = sample("mvtec_anomaly_detection/hazelnut"), make_run(ROOT / "nowhere")
    alone = Folder(run, nuts / "train" / "good", size=32, held_out=0)
    assert (len(alone.train), len(alone.test), len(alone.validation)) == (50, 0, 0)
    tested = Folder(run, nuts / "train" / "good", size=32, held_out=0, test=nuts / "test")
    assert len(tested.train) == 50 and len(tested.test) == 29
    assert tested.test.has_mask.sum() == 19 and tested.test.mask[tested.test.label == 0].sum() == 0
