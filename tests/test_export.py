"""A detector as one file: the model's scores, on photographs of any size, and one sentence for bad files."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from helpers import export as exporting
from helpers import score
from helpers.data.batches import to_float
from helpers.data.images import read_image
from helpers.data.photo import open_photo
from helpers.evaluation import Scores, evaluate
from helpers.export import export
from helpers.models import AnomalyModel
from tests.book import MODELS, make_data, make_model
from tests.toy import ROOT

SIDE = 64
RANDOM = np.random.default_rng(0)


class Brightest(AnomalyModel):
    """The map is the difference between the image and its middle; the score is its largest value."""

    def anomaly_map(self, x):
        return (x - x[..., SIDE // 2, SIDE // 2][..., None, None]).abs().mean(1)

    def score_of_map(self, maps):
        return maps.flatten(1).amax(1)


LABEL, MAPS = np.array([0, 1]), np.full((2, SIDE, SIDE), 0.5, dtype=np.float32)
SCORES = Scores(LABEL + 0.0, LABEL, LABEL, ("good", "bad"), np.full(20, 1.2), "toy", 1.0, validation_maps=MAPS)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def toy(request, tmp_path_factory):
    """A detector and the model it was made from, for colour and for grey images."""
    model = Brightest({})
    images = torch.from_numpy(RANDOM.integers(0, 255, (4, request.param, SIDE, SIDE), dtype=np.uint8))
    path = export(model, SCORES, images, tmp_path_factory.mktemp("toy") / "toy.onnx", photo_side=60)
    return model, path, request.param == 1


@pytest.fixture
def path(toy):
    return toy[1]


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (640, 301), (201, 480), (50, 33), (1200, 900), (600, 200)])
def test_a_turned_photograph_of_any_size_scores_as_the_upright_one_in_the_course(toy, tmp_path, size):
    model, path, grey = toy
    small = Image.fromarray(RANDOM.integers(0, 255, (5, 7, 3), dtype=np.uint8))
    upright, mark = small.resize(size, Image.Resampling.BICUBIC), Image.Exif()  # smooth, with something on it
    mark[0x0112] = 6  # to be turned by 90 degrees
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=mark)
    x = to_float(read_image(tmp_path / "upright.png", SIDE, grey)[0][None])
    detector = score.Detector(path)
    found = detector(detector.read(tmp_path / "turned.png"))
    step = 2 / 255  # resizing may round a pixel otherwise, and this score compares two single pixels
    assert found.score == pytest.approx(model.anomaly_score(x).item(), abs=1e-5 if size == (64, 64) else 2 * step)
    assert found.anomalous == (found.score > np.float32(1.2))  # the file holds the threshold in single precision
    assert found.map.shape == tuple(int(side * SIDE / max(size) + 0.5) for side in size[::-1])
    top, left = ((SIDE - side) // 2 for side in found.map.shape)
    inside = model.anomaly_map(x)[0, top : top + found.map.shape[0], left : left + found.map.shape[1]]
    np.testing.assert_allclose(found.map, inside, atol=2 * step)


NAMES = ["hazelnut autoencoder", "hazelnut autoencoder, SSIM", "one-class", "spheres", "DCGAN"]


@pytest.mark.parametrize("name", [*NAMES, "denoising, with a companion"])
def test_the_models_of_other_notebooks_export_too(tmp_path, name):
    """``export`` compares every score and verdict itself."""
    data = make_data(MODELS[name][0])
    model = make_model(name, data).eval()
    found = evaluate(model, data)
    note = score.Detector(export(model, found, data.test.first_of_each(3).images, tmp_path / "detector.onnx")).note
    assert note["model"] == type(model).__name__ and float(note["threshold"]) == pytest.approx(found.threshold)
    assert note["n_calibration"] == str(found.n_calibration)


def test_a_detector_that_scores_otherwise_is_not_written(tmp_path, monkeypatch):
    model, images = Brightest({}), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    images[:, :, :9] = 200
    monkeypatch.setattr(exporting, "score_images", lambda model, split: np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="differs from the model"):
        export(model, SCORES, images, tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


def run_main(*arguments):
    return score.main([str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    """Two flat photographs, which are normal; in the folder ``odd`` beside them one with a spot, which is anomalous."""
    for name, spot in (("photos/1.png", 90), ("photos/2.jpg", 90), ("odd/3.png", 255)):
        photo = Image.new("RGB", (80, 60), (90, 90, 90) if spot == 90 else (0, 0, 0))
        photo.paste((spot,) * 3, (0, 0, 30, 30))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name)
    return tmp_path / "photos"


def test_the_exit_status_says_what_was_found(path, photos, capsys):
    assert run_main(path, photos) == 0
    assert "2 photographs: 2 normal, 0 ANOMALOUS, 0 unreadable" in capsys.readouterr().out
    assert run_main(path, photos, photos.parent / "odd" / "3.png") == 1
    (photos / "3.png").write_bytes(b"no image")
    assert run_main(path, photos, photos.parent / "odd") == 2
    printed = capsys.readouterr()
    assert "ANOMALOUS" in printed.out and "normal" in printed.out, "the others are scored all the same"
    assert len(printed.err.splitlines()) == 1 and "3.png cannot be read" in printed.err


def test_a_table_and_pictures_are_written(path, photos, tmp_path):
    table, maps = tmp_path / "out.csv", tmp_path / "maps"
    run_main(path, photos, photos.parent / "odd", "--csv", table, "--maps", maps)
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "file,verdict,score,threshold" and len(lines) == 4
    assert [line.split(",")[1] for line in lines[1:]] == ["normal", "normal", "ANOMALOUS"]
    plain, _, marked = pixels = [np.asarray(open_photo(one)[0]).astype(int) for one in sorted(maps.iterdir())]
    assert [one.shape for one in pixels] == [(60, 80, 3)] * 3
    assert (plain == 90).all(), "nothing is red on a normal one"
    assert (marked[..., 0] - marked[..., 2]).max() > 50, "something is red"


def test_hidden_files_and_its_own_pictures_are_not_scored(path, photos, capsys):
    (photos / "._1.png").write_bytes(b"of a Mac")
    (photos / ".cache").mkdir()
    Image.new("RGB", (80, 60)).save(photos / ".cache" / "3.png")
    for _ in range(2):
        assert run_main(path, photos, "--maps", photos / "maps") == 0
        assert "2 photographs: 2 normal" in capsys.readouterr().out


def test_the_command_needs_no_torch_and_no_console_that_has_the_letters_of_a_name(path, photos):
    """It imports onnxruntime, NumPy and Pillow, and nothing that the course needs else."""
    (photos / "1.png").rename(photos / "Łódź.png")
    command = [sys.executable, "-X", "importtime", "-m", "helpers.score", path, photos]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert found.returncode == 0 and b"2 photographs: 2 normal" in found.stdout, found.stderr
    imported = {line.split(b"|")[-1].strip() for line in found.stderr.splitlines()}
    assert b"onnxruntime" in imported
    assert not imported & {b"torch", b"pandas", b"matplotlib", b"pytorch_lightning", b"sklearn"}


def test_a_large_photograph_gets_a_smaller_picture():
    photo = np.zeros((2000, 4000, 3), np.uint8)
    assert score.overlay(photo, np.zeros((128, 256), np.float32), 1.0).size == (1600, 800)


def test_what_cannot_be_scored_gets_one_sentence(path, photos, tmp_path, capsys):
    Image.new("RGB", (20, 29)).save(tmp_path / "small.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-300])
    other = onnx.load(path)
    other.metadata_props[0].value = "image-anomaly-detection detector 0"
    onnx.save(other, tmp_path / "other.onnx")
    for arguments, words in (
        ((path, tmp_path / "small.png"), "20 x 29 pixels; the detector learned from photographs of 60"),
        ((path, tmp_path / "empty"), "no photograph in"),
        ((path, photos, "--csv", tmp_path / "nowhere" / "out.csv"), "nowhere"),
        ((tmp_path / "cut.onnx", photos), "cut.onnx cannot be read as a detector"),
        ((tmp_path / "absent.onnx", photos), "absent.onnx cannot be read as a detector"),
        ((tmp_path / "other.onnx", photos), "export it again with this version of the course"),
    ):
        assert run_main(*arguments) == 2
        printed = capsys.readouterr()
        assert words in printed.err and len(printed.err.splitlines()) == 1
        assert printed.out in ("", "1 photographs: 0 normal, 0 ANOMALOUS, 1 unreadable\n"), "nothing else is scored"
