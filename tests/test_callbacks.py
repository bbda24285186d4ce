import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.callbacks import FRAMES, Watch
from helpers.training import fit
from tests.conftest import ROOT


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def test_everything_stands_on_the_batch_axis(run, data, baseline):
    trained = fit(baseline(epochs=6), data, run, watch_every=20)  # 8 batches an epoch, 48 in all
    found = events(trained.folder)
    losses = {tag for tag in found.Tags()["scalars"] if tag.startswith("loss/")}
    assert losses == {
        f"loss/{name}"
        for name in (
            "reconstruction",
            "repulsion",
            "adversarial_normal",
            "adversarial_anomalous",
            "discriminator_normal",
            "discriminator_anomalous",
        )
    }
    # two optimisers step in every batch: Lightning's own counter would have ended at 96
    assert [event.step for event in found.Scalars("loss/reconstruction")] == [8, 16, 24, 32, 40, 48]
    assert [event.step for event in found.Scalars("validation/auroc")] == [8, 16, 24, 32, 40, 48]
    assert [event.step for event in found.Images("reconstructions/output")] == [0, 20, 40, 48]
    assert found.Scalars("speed/images_per_second")[-1].value > 0
    assert trained.history["images"] == 48 * 16


def test_the_watched_images_are_held_out_and_of_both_kinds(data):
    watch = Watch(data, every=100)
    assert watch.label.tolist() == [0] * 8 + [1] * 8
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in seen for image in data.validation.first_of_each(8).images)


def test_the_film_stays_short_and_evenly_spaced(data):
    watch = Watch(data, every=1)
    frame = torch.zeros(16, 3, 200, 200, dtype=torch.uint8)
    for batch in range(0, 5000, 100):
        watch.spacing = max(watch.spacing, 100)
        watch._film(frame, batch, last=False)
    watch._film(frame, 4950, last=True)
    gaps = {b - a for a, b in zip(watch.frame_batches[:-2], watch.frame_batches[1:-1], strict=True)}
    assert len(watch.frames) == len(watch.frame_batches) <= FRAMES
    assert watch.frame_batches[0] == 0
    assert watch.frame_batches[-1] == 4950
    assert len(gaps) == 1
    assert watch.frames[0].shape == (4, 3, 64, 64)


def test_looking_at_reconstructions_does_not_change_the_training(tmp_path, run, data, baseline):
    from tests.conftest import make_run

    often = fit(baseline(), data, run, watch_every=1).model
    never = fit(baseline(), data, make_run(tmp_path / "other"), watch_every=10_000).model
    assert all(torch.equal(a, b) for a, b in zip(often.parameters(), never.parameters(), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the file size work on Linux")
def test_a_disk_that_really_ends_leaves_the_old_checkpoint(tmp_path):
    """The operating system itself refuses the write: no half-written file, the old one as it was."""
    code = f"""
import resource, torch, sys
sys.path.insert(0, {str(ROOT)!r})
from helpers.callbacks import AtomicCheckpointIO, TrainingError
path = sys.argv[1] + "/last.ckpt"
AtomicCheckpointIO().save_checkpoint({{"w": torch.ones(10)}}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    AtomicCheckpointIO().save_checkpoint({{"w": torch.ones(100_000)}}, path)
except TrainingError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "previous one is intact" in result.stdout, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["w"].sum() == 10


def test_long_trainings_validate_about_ten_times(run, data, baseline):
    trained = fit(baseline(epochs=24), data, run)
    steps = [event.step // 8 for event in events(trained.folder).Scalars("validation/auroc")]
    assert steps == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24]


def test_the_host_reads_the_losses_once_per_window_and_nothing_else(run, data, baseline):
    """Every .item() or .cpu() in a step would make a GPU wait for the host.  Counted, not timed.

    With SGD, since fused Adam reads its step counters where they are on the CPU (on a GPU the kernel does).
    """
    from torch.profiler import ProfilerActivity, profile

    def reads(epochs, folder):
        from tests.conftest import make_run

        model = baseline(epochs=epochs)
        model.adam = torch.optim.SGD
        with profile(activities=[ProfilerActivity.CPU]) as found:
            fit(model, data, make_run(folder), watch_every=10_000)
        return sum(event.count for event in found.key_averages() if event.key == "aten::_local_scalar_dense")

    few, many = reads(2, run.logs_dir / "a"), reads(12, run.logs_dir / "b")
    steps = (12 - 2) * 8
    assert (many - few) / steps < 0.5, "per step: reading losses and validating, spread over the steps"
