"""A detector as one file: the same scores as the model's, on photographs of any size, and one sentence for bad files."""

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
from helpers.data.photo import DataError, open_photo
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


def scores_of(model, threshold=1.2):
    validation = np.full(20, threshold)
    nothing = np.array([0, 1])
    maps = np.full((2, SIDE, SIDE), 0.5, dtype=np.float32)
    return Scores(nothing + 0.0, nothing, nothing, ("good", "bad"), validation, "toy", 1.0, validation_maps=maps)


def picture(width, height, channels=3):
    """Smooth, with something on it."""
    small = RANDOM.integers(0, 255, (5, 7, channels), dtype=np.uint8)
    return Image.fromarray(small[..., 0] if channels == 1 else small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def toy(request, tmp_path_factory):
    """A detector and the model it was made from, for colour and for grey images."""
    model = Brightest({})
    images = torch.from_numpy(RANDOM.integers(0, 255, (4, request.param, SIDE, SIDE), dtype=np.uint8))
    path = export(model, scores_of(model), images, tmp_path_factory.mktemp("toy") / "toy.onnx", photo_side=60)
    return model, path, request.param == 1


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (640, 301), (201, 480), (50, 33), (1200, 900), (600, 200)])
def test_a_photograph_of_any_size_scores_as_in_the_course(toy, tmp_path, size):
    model, path, grey = toy
    picture(*size).save(tmp_path / "photo.png")
    x = to_float(read_image(tmp_path / "photo.png", SIDE, grey)[0][None])
    detector = score.Detector(path)
    found = detector(detector.read(tmp_path / "photo.png"))
    step = 2 / 255  # resizing may round a pixel otherwise, and this score compares two single pixels
    assert found.score == pytest.approx(model.anomaly_score(x).item(), abs=1e-5 if size == (64, 64) else 2 * step)
    assert found.anomalous == (found.score > np.float32(1.2))  # the file holds the threshold in single precision
    longest = max(size)
    assert found.map.shape == tuple(int(side * SIDE / longest + 0.5) for side in size[::-1])
    top, left = ((SIDE - side) // 2 for side in found.map.shape)
    inside = model.anomaly_map(x)[0, top : top + found.map.shape[0], left : left + found.map.shape[1]]
    np.testing.assert_allclose(found.map, inside, atol=2 * step)


@pytest.mark.parametrize(
    "name",
    [
        "hazelnut autoencoder",
        "hazelnut autoencoder, SSIM",
        "one-class",
        "spheres",
        "DCGAN",
        "denoising, with a companion",
    ],
)
def test_the_models_of_other_notebooks_export_too(tmp_path, name):
    """``export`` compares every score and verdict itself."""
    data = make_data(MODELS[name][0])
    model = make_model(name, data).eval()
    some = data.test.first_of_each(3)
    found = evaluate(model, data)
    path = export(model, found, some.images, tmp_path / "detector.onnx")
    note = score.Detector(path).note
    assert note["model"] == type(model).__name__ and float(note["threshold"]) == pytest.approx(found.threshold)
    assert note["n_calibration"] == str(found.n_calibration)


def test_a_detector_that_scores_otherwise_is_not_written(tmp_path, monkeypatch):
    model, images = Brightest({}), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    images[:, :, :9] = 200
    monkeypatch.setattr(exporting, "score_images", lambda model, split: np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="differs from the model"):
        export(model, scores_of(model), images, tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


def run_main(*arguments):
    return score.main([str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    """Two flat photographs, which are normal, and in a folder one with a spot, which is anomalous."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.png", "2.jpg"):
        Image.new("RGB", (80, 60), (90, 90, 90)).save(folder / name)
    odd = Image.new("RGB", (80, 60), (0, 0, 0))
    odd.paste((255, 255, 255), (0, 0, 30, 30))
    (tmp_path / "odd").mkdir()
    odd.save(tmp_path / "odd" / "3.png")
    return folder


def test_the_exit_status_says_what_was_found(toy, photos, capsys):
    _, path, _ = toy
    assert run_main(path, photos) == 0
    assert "2 photographs: 2 normal, 0 ANOMALOUS, 0 unreadable" in capsys.readouterr().out
    assert run_main(path, photos, photos.parent / "odd" / "3.png") == 1
    (photos / "3.png").write_bytes(b"no image")
    assert run_main(path, photos, photos.parent / "odd") == 2
    printed = capsys.readouterr()
    assert "ANOMALOUS" in printed.out and "normal" in printed.out, "the others are scored all the same"
    assert len(printed.err.splitlines()) == 1 and "3.png cannot be read" in printed.err


def test_a_table_and_pictures_are_written(toy, photos, tmp_path):
    _, path, _ = toy
    table, maps = tmp_path / "out.csv", tmp_path / "maps"
    run_main(path, photos, photos.parent / "odd", "--csv", table, "--maps", maps)
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "file,verdict,score,threshold" and len(lines) == 4
    assert [line.split(",")[1] for line in lines[1:]] == ["normal", "normal", "ANOMALOUS"]
    pictures = sorted(maps.iterdir())
    pixels = [open_photo(one)[0] for one in pictures]
    assert [one.size for one in pixels] == [(80, 60)] * 3
    plain, _, marked = (np.asarray(one).astype(int) for one in pixels)
    assert (plain == plain[0, 0]).all(), "nothing is red on a normal one"
    assert (marked[..., 0] - marked[..., 2]).max() > 50, "something is red"


def test_hidden_files_and_its_own_pictures_are_not_scored(toy, photos, capsys):
    _, path, _ = toy
    (photos / "._1.png").write_bytes(b"of a Mac")
    (photos / ".cache").mkdir()
    Image.new("RGB", (80, 60)).save(photos / ".cache" / "3.png")
    for _ in range(2):
        assert run_main(path, photos, "--maps", photos / "maps") == 0
        assert "2 photographs: 2 normal" in capsys.readouterr().out


def test_a_table_that_cannot_be_written_stops_the_run_before_it_scores(toy, photos, tmp_path, capsys):
    _, path, _ = toy
    assert run_main(path, photos, "--csv", tmp_path / "nowhere" / "out.csv") == 2
    printed = capsys.readouterr()
    assert "nowhere" in printed.err and not printed.out


def test_a_console_without_the_letters_of_a_name_does_not_stop_the_run(toy, photos, tmp_path):
    _, path, _ = toy
    (photos / "1.png").rename(photos / "Łódź.png")
    command = [sys.executable, "-m", "helpers.score", str(path), str(photos)]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert found.returncode == 0 and b"2 photographs: 2 normal" in found.stdout, found.stderr


def test_a_large_photograph_gets_a_smaller_picture():
    photo = np.zeros((2000, 4000, 3), np.uint8)
    assert score.overlay(photo, np.zeros((128, 256), np.float32), 1.0).size == (1600, 800)


def test_a_turned_photograph_is_scored_upright(toy, tmp_path):
    _, path, _ = toy
    upright = picture(90, 60)
    upright.save(tmp_path / "1.png")
    mark = Image.Exif()
    mark[0x0112] = 6  # to be turned by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "2.png", exif=mark)
    detector = score.Detector(path)
    one, two = (detector(detector.read(tmp_path / name)) for name in ("1.png", "2.png"))
    assert one.score == two.score and np.array_equal(one.map, two.map)


def test_bad_files_get_one_sentence(toy, photos, tmp_path, capsys):
    _, path, _ = toy
    Image.new("RGB", (20, 29)).save(photos / "small.png")
    assert run_main(path, photos / "small.png") == 2
    assert "20 x 29 pixels; the detector learned from photographs of 60" in capsys.readouterr().err
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-300])
    assert run_main(tmp_path / "cut.onnx", photos) == 2
    assert "cut.onnx cannot be read as a detector" in capsys.readouterr().err
    other = onnx.load(path)
    other.metadata_props[0].value = "image-anomaly-detection detector 0"
    onnx.save(other, tmp_path / "other.onnx")
    assert run_main(tmp_path / "other.onnx", photos) == 2
    assert "export it again with this version of the course" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_main(path, tmp_path / "empty") == 2
    assert "no photograph in" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"absent\.onnx cannot be read"):
        score.Detector(tmp_path / "absent.onnx")


def test_scoring_needs_no_torch(toy, photos):
    """The command imports onnxruntime, NumPy and Pillow, and nothing that the course needs else."""
    _, path, _ = toy
    code = (
        "import sys; from helpers import score; status = score.main(sys.argv[1:]);"
        "print(sorted({'torch', 'pandas', 'matplotlib', 'pytorch_lightning', 'sklearn'} & set(sys.modules)), status)"
    )
    command = [sys.executable, "-c", code, str(path), str(photos)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[] 0", found.stderr
