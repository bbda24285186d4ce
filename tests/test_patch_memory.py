"""Notebook 7's detector: the nearest patch, leaving one image out, and a model that learns without gradients."""

import numpy as np
import pytest
import torch

from helpers.data.folder import Folder
from helpers.data.mvtec import MVTec
from helpers.data.samples import sample
from helpers.evaluation import evaluate
from helpers.models import score_images
from helpers.results import read_results, report
from helpers.training import fit
from tests.book import page
from tests.toy import ROOT, make_run

BOOK = page("07_your_parts")
SETTINGS = {"backbone": BOOK["LITE0"], "size": 64, "border": 32, "place": "no", "memory": 60, "share": 0.01, "seed": 0}
PLACE = pytest.mark.parametrize("place", ["no", "yes"])


def make(kind=BOOK["PatchMemory"], **changes):
    return kind(SETTINGS | changes)


class FixedPlaces(BOOK["PatchMemory"]):
    """Keeps the same places of every image, whatever the others are."""

    def choose(self, patches, count):
        return torch.arange(count).expand(len(patches), count)


def features_of(count, seed=0):
    """(N, D, h, w) whose channels differ in mean and spread."""
    values = torch.randn(count, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1, 2, 5, 0.1, 30])[:, None, None] + torch.arange(16.0).view(4, 4)


@PLACE
def test_leaving_one_out_is_exact(place):
    """Each map is that of a detector that was fitted without the image from the start."""
    features, painted = features_of(6), features_of(3, seed=1)
    model = make(FixedPlaces, place=place)
    model.learn_from(features)
    before = model.memory.clone()
    good, copies = BOOK["leave_one_out"](model, features, painted)
    assert torch.equal(model.memory, before), "the detector itself is not changed by it"
    assert good.shape == (6, 32, 32) and copies.shape == (3, 32, 32)
    for left_out in range(6):
        other = make(FixedPlaces, place=place, memory=50)  # ten patches of each image, as before
        other.learn_from(torch.cat([features[:left_out], features[left_out + 1 :]]))
        for maps, seen in ((good, features), (copies, painted)):
            expected = other.heat(seen[left_out : left_out + 1])
            torch.testing.assert_close(maps[left_out : left_out + 1], expected, rtol=1e-4, atol=1e-4)


@PLACE
def test_the_distance_is_that_to_the_nearest_kept_patch(place):
    model, features = make(place=place), features_of(6)
    model.learn_from(features)
    assert model.memory.shape == (60, 5)
    new = features_of(2, seed=3)
    wanted = torch.cdist(model.patches(new), model.memory).amin(-1)
    torch.testing.assert_close(model.distance(new), wanted, rtol=1e-3, atol=1e-3)
    own = model.distance(features).gather(1, model.place)
    assert own.max() < 0.05, "a kept patch is at distance 0 from itself"


def test_with_one_place_for_all_the_same_patch_is_normal_elsewhere():
    """Where the place counts, a patch that is normal at one place is unusual at another."""
    images = 0.01 * torch.randn(8, 1, 4, 4)
    images[:, :, 0, 0] += 5
    models = [make(place=place, memory=128) for place in ("no", "yes")]
    for model in models:
        model.learn_from(images)
    elsewhere, there = (model.distance(images[:1].flip(2, 3))[0, -1] for model in models)
    assert elsewhere < 0.1 < 5 < there


def test_spread_out_takes_the_farthest_each_time():
    patches = torch.randn(3, 20, 4)
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
    run, model = make_run(tmp_path, "07_your_parts"), make()
    trained = fit(model, parts, run)
    assert trained.model is model and not model.training and len(model.memory) == 60
    assert trained.history["images"] == len(parts.train) == 12
    features = BOOK["predict"](model, model.features, parts.train)
    maps, _ = BOOK["leave_one_out"](model, features, features[:0])
    good = BOOK["top_share"](maps, 0.01).double().numpy()
    found = evaluate(model, parts, 90, good=(good, maps.numpy()))
    assert np.array_equal(found.validation, good) and found.n_calibration == 12
    np.testing.assert_allclose(found.score, BOOK["top_share"](torch.from_numpy(found.maps), 0.01).numpy())
    alone = [score_images(model, parts.test.subset(torch.tensor([place])))[0] for place in range(6)]
    np.testing.assert_allclose(found.score[:6], alone, rtol=1e-4)
    report(found, trained, control=("none", 0.5))
    written = read_results(trained.folder)
    assert written["n_calibration"] == 12 and written["n_train"] == 12 and 0.5 < written["auroc"] <= 1
    assert list(trained.folder.glob("events.out.tfevents.*")), "TensorBoard shows it"


def test_learning_again_stays_in_its_version_until_it_is_reported(tmp_path, parts):
    run = make_run(tmp_path, "07_your_parts")
    trained = [fit(make(memory=memory), parts, run) for memory in (60, 60, 24)]
    assert [one.folder.name for one in trained] == ["version_10", "version_10", "version_11"]
    assert [len(one.model.memory) for one in trained] == [60, 60, 24]


def test_a_committed_version_is_learned_again_and_left_as_it_is(tmp_path, parts):
    run = make_run(tmp_path, "07_your_parts", train=False)
    trained = fit(make(), parts, run)
    assert trained.logger is None and len(trained.model.memory) == 60
    assert not run.logs_dir.exists() or not list(run.logs_dir.iterdir())


def test_a_folder_can_keep_nothing_back():
    nuts, run = sample("mvtec_anomaly_detection/hazelnut"), make_run(ROOT / "nowhere")
    alone, tested = (
        Folder(run, nuts / "train" / "good", size=32, held_out=0, test=test) for test in (None, nuts / "test")
    )
    assert (len(alone.train), len(alone.test), len(alone.validation)) == (50, 0, 0)
    assert len(tested.train) == 50 and len(tested.test) == 29
    assert tested.test.has_mask.sum() == 19 and tested.test.mask[tested.test.label == 0].sum() == 0
