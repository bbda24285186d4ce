"""What makes a committed version small, and what it must not change."""

import io

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from helpers.checkpoints import FINISHED, read_checkpoint
from tools.thin import MOMENTS, smaller, thin


def picture(side):
    """A picture full of detail, as PNG."""
    ramp = np.add.outer(np.arange(side), np.arange(side))[..., None] / side * [90, 60, 30]
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(ramp + 60 * np.random.default_rng(0).random((side, side, 1)))).save(buffer, "PNG")
    return buffer.getvalue()


def test_weights_are_halved_and_statistics_are_not_and_only_the_own_film_is_whole(tmp_path):
    weights = {"weight": torch.randn(300, 300), "mean": torch.randn(5)}
    history = {"frames": [torch.full((3,), moment) for moment in range(5)], "frame_batches": [0, 1, 2, 3, 4]}
    for folder in (version := tmp_path / "version_0", version / "seed_1"):
        folder.mkdir()
        torch.save({"state_dict": weights, "history": history}, folder / FINISHED)
    size = (version / FINISHED).stat().st_size
    thin(version)
    assert (version / FINISHED).stat().st_size < 0.5 * size
    own, further = (read_checkpoint(folder / FINISHED) for folder in (version, version / "seed_1"))
    torch.testing.assert_close(further["state_dict"]["weight"].float(), weights["weight"], rtol=1e-3, atol=1e-4)
    assert torch.equal(further["state_dict"]["mean"], weights["mean"])
    assert own["history"]["frame_batches"] == [0, 1, 2, 3, 4] and further["history"]["frame_batches"] == [0, 4]
    assert torch.equal(further["history"]["frames"][1], history["frames"][4])


def test_events_keep_all_numbers_and_pictures_of_the_whole_training(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(0, 300, 10):
            writer.add_scalar("loss", step, step)
            writer.add_image("output", torch.rand(3, 64, 64), step)
    (file,) = tmp_path.glob("events*")
    size = file.stat().st_size
    thin(tmp_path)
    found = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    steps = [event.step for event in found.Images("output")]
    assert len(steps) == MOMENTS and steps[0] == 0 and steps[-1] == 290 and max(np.diff(steps)) <= 30
    assert [event.value for event in found.Scalars("loss")] == list(range(0, 300, 10))
    assert file.stat().st_size < 0.5 * size


def test_pictures_look_the_same():
    for side, kind in ((100, "PNG"), (300, "JPEG")):
        less = smaller(png := picture(side))
        one, other = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (png, less))
        assert len(less) < len(png) and Image.open(io.BytesIO(less)).format == kind
        assert np.abs(one - other).mean() < 12
    assert smaller(less) == less
