"""TensorBoard on the committed versions, in a real browser: what a reader of `make tensorboard` sees."""

import numpy as np
import pytest

pytest.importorskip("selenium")
from tools import screenshots
from tools.notebooks import notebooks

COMMITTED = sorted(path.name for path in screenshots.LOGS.glob("version_[0-4]"))

MISSING = screenshots.missing()

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def tensorboard():
    with screenshots.tensorboard(screenshots.LOGS) as address:
        yield address


@pytest.fixture(scope="module")
def page():
    with screenshots.browser() as browser:
        yield browser


def test_every_committed_version_and_a_scalar_chart_are_seen(tensorboard, page):
    assert COMMITTED[:4] == ["version_0", "version_1", "version_2", "version_3"]
    assert ("version_4" in COMMITTED) == any(path.name.startswith("05") for path in notebooks())
    screenshots.show(page, tensorboard, "timeseries", r"version_[0-4]$", "loss/")
    assert screenshots.until(page, screenshots.shown_runs) == COMMITTED
    chart = np.asarray(screenshots.until(page, screenshots.drawn_chart))
    assert min(chart.shape[:2]) > 100
    assert chart.std() > 5


def test_reconstructions_are_seen(tensorboard, page):
    screenshots.show(page, tensorboard, "timeseries", r"version_1$", "reconstructions/output")
    assert screenshots.until(page, screenshots.shown_runs) == ["version_1"]
    picture = np.asarray(screenshots.until(page, screenshots.drawn_image))
    assert min(picture.shape) > 50
    assert picture.std() > 30  # garments, bright on black


def test_what_is_not_there_is_not_seen(tensorboard, page):
    """Else the tests above could not fail."""
    screenshots.show(page, tensorboard, "timeseries", r"version_2$", "nothing/")
    assert screenshots.until(page, screenshots.shown_runs) == ["version_2"]
    assert screenshots.drawn_chart(page) is None
    assert screenshots.drawn_image(page) is None


def test_a_folder_that_cannot_be_read_ends_in_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(screenshots, "PATIENCE", 2)
    (tmp_path / "version_9").mkdir()
    (tmp_path / "version_9" / "events.out.tfevents.1.x").write_bytes(b"no event file")
    with pytest.raises(TimeoutError, match="version_9"), screenshots.tensorboard(tmp_path):
        pass
