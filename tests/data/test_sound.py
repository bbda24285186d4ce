import numpy as np
import pytest
import soundfile
import torch

from helpers.data.photo import DataError
from helpers.data.sound import RATE, Recordings, list_clips, read_clip

SECONDS, PIECE = 0.5, 100


def picture(clip):
    """(1, 51, frames) uint8: a row for every 160 Hz; two grey levels are a decibel."""
    loudness = np.abs(np.fft.rfft(clip.reshape(-1, PIECE))).T
    return torch.from_numpy((40 * np.log10(loudness + 1e-3) + 130).clip(0, 255).astype(np.uint8))[None]


def tone(note=440.0, seconds=SECONDS, rate=RATE, loudness=0.1):
    return loudness * np.sin(2 * np.pi * note * np.arange(int(seconds * rate)) / rate)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def machine(tmp_path):
    """Eight normal and three anomalous recordings in MIMII's layout."""
    random = np.random.default_rng(0)
    for place, name in [(place, name) for name, count in (("normal", 8), ("abnormal", 3)) for place in range(count)]:
        samples = tone() + 0.01 * random.normal(size=int(SECONDS * RATE))
        write(tmp_path / "fan" / name / f"{place:08}.wav", samples + (name == "abnormal") * tone(2000))
    return tmp_path / "fan"


def double(clip, random):
    return clip + tone(3000, loudness=random.uniform(0.05, 0.1))


@pytest.fixture
def make(make_run, machine):
    run = make_run()
    run.profile = "quick"
    return lambda **changes: Recordings(
        run, dataset=machine, **{"picture": picture, "folds": 8, "seconds": SECONDS, "batch_size": 4} | changes
    )


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def test_each_normal_recording_is_left_out_once_and_never_in_its_own_training(make):
    seen = []
    for fold in range(8):
        data = make(fold=fold)
        left_out = as_set(data.test.normal().images)
        assert left_out == as_set(data.validation.normal().images) and len(left_out) == 1
        assert not left_out & as_set(data.train.images) and len(data.train) == 7
        assert (
            data.test.label.tolist() == [0, 1, 1, 1]
            and [path.parent.name for path in data.files["test"]][0] == "normal"
        )
        seen += left_out
    assert len(set(seen)) == 8
    assert data.fields() | {"n_train": 8, "n_test_normal": 8, "n_test_anomalous": 3} == data.fields()
    with pytest.raises(ValueError, match="fold is one of 0 to 7: got 8"):
        make(fold=8)


def test_faults_are_mixed_into_held_out_recordings_and_their_masks_are_what_changed(make):
    data = make(folds=4, faults={"double": double})
    assert data.validation.label.tolist() == [0, 0, 1, 1] and data.defect_types[2] == "double"
    line = round(3000 / (RATE / PIECE))
    changed = data.validation.mask[2:].float().mean((0, 2))
    assert data.validation.mask[:2].sum() == 0 and changed[line] == 1 and changed[:3].sum() == 0
    again = make(folds=4, faults={"double": double})
    assert torch.equal(again.validation.images, data.validation.images)
    assert again.fingerprint() == data.fingerprint() != make(folds=4, fold=1).fingerprint()


def test_layout_of_dcase_is_read_and_its_own_test_clips_are_the_test(make_run, tmp_path):
    for name, count in (("train/normal", 5), ("test/normal", 2), ("test/anomaly", 3)):
        for place in range(count):
            write(tmp_path / "pump" / f"{name}_id_00_{place:08}.wav", tone(300 + 20 * place))
    run = make_run()
    run.profile = "quick"
    data = Recordings(run, picture, tmp_path / "pump", folds=5, seconds=SECONDS, batch_size=2)
    assert data.test.label.tolist() == [0, 0, 1, 1, 1] and len(data.train) == 4 and data.tested_on == "clips kept apart"


def test_every_rate_and_channel_is_read_alike(tmp_path, capsys):
    one = read_clip(write(tmp_path / "one.wav", tone(500)), SECONDS)
    fast = read_clip(write(tmp_path / "fast.flac", tone(500, rate=48_000), 48_000), SECONDS)
    two = read_clip(write(tmp_path / "two.wav", np.stack([tone(500), tone(90)], 1)), SECONDS)
    assert len(one) == len(fast) == len(two) == SECONDS * RATE
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one[100:-100], fast[100:-100], atol=2e-3)
    assert "several channels, the first is used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "rate", "says"),
    [
        (np.zeros(8000), RATE, "is silent"),
        (np.clip(tone(loudness=5.0), -1, 1), RATE, "clipped"),
        (tone(seconds=0.2), RATE, "lasts 0.2 s: at least 0.5 s are needed"),
        (tone(rate=8000), 8000, "8,000 samples a second: 16,000 are needed"),
    ],
)
def test_an_unusable_recording_is_refused_in_one_sentence(tmp_path, samples, rate, says):
    with pytest.raises(DataError, match=says) as error:
        read_clip(write(tmp_path / "clip.wav", samples, rate), SECONDS)
    assert "clip.wav" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    (tmp_path / "note.wav").write_text("this is text")
    whole = write(tmp_path / "whole.wav", tone()).read_bytes()
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(60) + whole[64:])
    for name in ("note.wav", "broken.wav", "absent.wav"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a recording"):
            read_clip(tmp_path / name, SECONDS)


def test_too_few_recordings_or_another_layout_are_refused(tmp_path):
    write(tmp_path / "a.wav", tone())
    with pytest.raises(DataError, match="normal/ and abnormal/, or as train/normal_.*found 0 and 0"):
        list_clips(tmp_path)


def test_the_embedded_recordings_are_real(make_run):
    data = Recordings(make_run(), picture, folds=12, max_clips=4, seconds=10.0)
    assert data.train.images.shape == (3, 1, 51, 1600) and "embedded part: 4 normal and 4 anomalous" in data.name
    assert len(as_set(data.train.images)) == 3 and (data.train.images == 0).float().mean() < 0.5


def test_another_picture_of_the_same_file_is_made_anew(make):
    assert torch.equal(make(picture=lambda clip: 255 - picture(clip)).test.images, 255 - make().test.images)
