"""Notebook 8: its faults, its scores by hand, and what its network expects."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.data.batches import to_float
from helpers.data.sound import RATE
from tests.book import make_data, make_model, page

BOOK = page("08_machine_sound")
BANDS, HOP, WINDOW = (BOOK[name] for name in ("BANDS", "HOP", "WINDOW"))


def tone(note, loudness):
    return (loudness * np.sin(2 * np.pi * note * np.arange(RATE // 2) / RATE)).astype(np.float32)


def test_a_tone_is_a_line_in_its_band_at_its_loudness():
    loud, quiet = (BOOK["spectrogram"](tone(1000, loudness)) for loudness in (0.1, 0.01))
    assert loud.shape == (1, BANDS, 1 + (RATE // 2 - WINDOW) // HOP) and loud.dtype == torch.uint8
    brightest = BANDS - 1 - int(loud[0].float().mean(1).argmax())  # the lowest band is the last row
    assert brightest == np.abs(BOOK["band_notes"]() - 1000).argmin()
    steps = 255 / (BOOK["LOUD"] - BOOK["QUIET"])
    assert (loud.float() - quiet.float()).max() == pytest.approx(20 * steps, abs=1)  # a tenth is 20 decibels


def test_mel_filters_are_triangles_on_the_scale_of_the_formula():
    weights, middle = BOOK["mel_filters"](), BOOK["band_notes"]()
    assert weights.shape == (BANDS, WINDOW // 2 + 1) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(BANDS))
    notes = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    for band in (40, 90, 127):
        assert abs(notes[int(weights[band].argmax())] - middle[band]) <= notes[1] / 2
    mel = 2595 * np.log10(1 + middle / 700)
    np.testing.assert_allclose(np.diff(mel), np.diff(mel)[0])


@pytest.mark.parametrize("name", BOOK["FAULTS"])
def test_a_fault_changes_a_clip_and_is_drawn_from_its_generator_alone(name):
    clip = 0.01 * np.random.default_rng(0).normal(size=2 * RATE)
    one, two, other = (BOOK["FAULTS"][name](clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert len(one) == len(clip) and np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, clip, atol=1e-5) and not np.allclose(one, other, atol=1e-5)


def test_five_scores_are_what_the_table_says():
    data = make_data("08_machine_sound")
    control = BOOK["MeanSpectrum"]({"score": "flicker"})
    control.learn(data)
    train, some = (to_float(split.images)[:, 0].double().numpy() for split in (data.train, data.validation))
    mean, deviation = train.mean((0, 2)), train.std((0, 2), ddof=1) + 1e-3
    usual, r = ((x - mean[:, None]) / deviation[:, None] for x in (train, some))
    covariance = np.cov(usual.transpose(1, 0, 2).reshape(BANDS, -1))
    precision = np.linalg.inv(covariance + 0.1 * np.diag(covariance).mean() * np.eye(BANDS))
    expected = [(r**2).mean((1, 2)), np.percentile((r**2).mean(1), 99, axis=1)]
    expected.append(np.einsum("nbt,bc,nct->nt", r, precision, r).mean(1) / BANDS)
    for of in (lambda x: x.mean(2), lambda x: x.std(2, ddof=1)):
        clips = of(usual)
        expected.append((((of(r) - clips.mean(0)) / (clips.std(0, ddof=1) + 0.1)) ** 2).mean(1))
    found = control.all_scores(to_float(data.validation.images))
    np.testing.assert_allclose(found.numpy(), np.stack(expected, 1), rtol=2e-3)
    np.testing.assert_array_equal(control.anomaly_score(to_float(data.validation.images)), found[:, 4])
    one, other = (control.reconstruct(to_float(split.images)) for split in (data.test, data.train))
    assert torch.equal(one[0], other[1])


def test_the_expected_spectrogram_is_the_mean_over_overlapping_windows():
    model = make_model("sound autoencoder", make_data("08_machine_sound"))
    z = torch.randn(2, 1, BANDS, 12)
    model.net = nn.Identity()
    torch.testing.assert_close(model.expected(z), z)

    class Position(nn.Module):
        """Says of each value of a window in which of its frames it lies."""

        def forward(self, windows):
            return torch.arange(5.0).repeat(BANDS).expand_as(windows)

    model.net = Position()
    by_frame = [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2.5, 3, 3.5, 4]
    torch.testing.assert_close(model.expected(z)[0, 0, 7], torch.tensor(by_frame))


def test_training_windows_are_pieces_of_the_clips_with_their_bands_in_order():
    data, seen = make_data("08_machine_sound"), []
    model = make_model("sound autoencoder", data)
    model.hparams.corruption = "none"
    model.net = nn.Sequential(nn.Flatten())
    model.net.register_forward_hook(lambda module, inputs, output: seen.append(output))
    batch = next(iter(data.train_dataloader()))
    assert model.training_step(batch, 0) == 0  # nothing is damaged and all is copied
    pieces = batch[0].unfold(3, 5, 1)[:, 0].transpose(1, 2).flatten(0, 1).flatten(1)
    assert len(seen[0]) == 2 * 4 and all((pieces == window).all(1).any() for window in seen[0])


def test_damage_is_what_its_name_says():
    damaged, windows = BOOK["damaged"], torch.zeros(400, BANDS, 5)
    assert damaged(windows, "none", 0.5) is windows
    assert damaged(windows, "noise", 0.5).std() == pytest.approx(0.5, abs=0.01)
    touched = damaged(windows, "events", 0.5) != 0
    assert 0.35 < touched.flatten(1).any(1).float().mean() < 0.6
    whole_bands = (touched == touched[:, :, :1]).flatten(1).all(1)
    whole_frames = (touched == touched[:, :1]).flatten(1).all(1)
    assert (whole_bands | whole_frames).all() and not whole_bands.all() and not whole_frames.all()
    with pytest.raises(ValueError, match="none, noise or events: got 'rain'"):
        damaged(windows, "rain", 0.5)
