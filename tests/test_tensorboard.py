"""Notebook 10's exercise, and TensorBoard on the committed versions and its own, in a real browser."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

import pandas as pd
import pytest

from helpers.results import load_results, read_results
from helpers.runtime import ROOT
from helpers.versions import numbered
from tests.toy import make_run
from tools.notebooks import definitions

COMMITTED = ROOT / "lightning_logs"
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
ADDRESS = f"http://127.0.0.1:{PORT}"
WALK = """
const walk = root => [...root.querySelectorAll('*')].flatMap(e => [e, ...(e.shadowRoot ? walk(e.shadowRoot) : [])]);
return """  # the dashboards live in nested shadow roots: all elements in them
TEXT = WALK + "document.body.innerText + walk(document).map(e => e.shadowRoot?.textContent ?? '').join(' ')"
PICTURES = WALK + "walk(document).filter(e => e.tagName == 'IMG' && e.naturalWidth > 50).length"
PLAYERS = WALK + "walk(document).filter(e => e.tagName == 'AUDIO').length"
pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The two versions of the exercise: as it is, with the small margin."""
    run = make_run(tmp_path_factory.mktemp("own"), "10_compare_versions")
    given = {"run": run, "course": ROOT, "settings": {"exercise_epochs": 10, "coverage": 95}}
    page = definitions(ROOT / "notebooks" / "10_compare_versions.ipynb", **given)
    return [page["train_small"](changes) for changes in ({}, page["CHANGED"])]


@pytest.fixture(scope="module")
def page(small, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    wait = pytest.importorskip("selenium.webdriver.support.wait")
    if shutil.which("chromedriver") is None:
        pytest.skip("needs Chromium and its driver")
    both = tmp_path_factory.mktemp("both")
    for name, logs in (("course", COMMITTED), ("own", small[0].parent)):
        (both / name).symlink_to(logs)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(both), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:  # ``until`` asks again and again for a minute, then raises
        browser.until = wait.WebDriverWait(browser, 60, 0.5, [Exception]).until
        yield browser
    finally:
        browser.quit()
        server.terminate()
        server.wait()


def show(page, runs, tags):
    page.until(lambda page: urllib.request.urlopen(ADDRESS).status == 200)
    page.get(f"{ADDRESS}/?runFilter={quote(runs)}&tagFilter={quote(tags)}#timeseries")


def seen(page, *words):
    return page.until(lambda page: all(word in page.execute_script(TEXT) for word in words))


def test_the_answers_of_the_exercise_hold(small):
    """The smaller margin lowers both losses, and the detector gets worse; each is a version with results."""
    curves = [pd.read_csv(folder / "metrics.csv").groupby("name")["value"].last() for folder in small]
    for loss in ("loss/reconstruction", "loss/repulsion"):
        assert curves[1][loss] < curves[0][loss]
    assert curves[1]["validation/auroc"] < curves[0]["validation/auroc"] - 0.02
    assert curves[1]["validation/score_anomalous"] < curves[0]["validation/score_anomalous"]
    assert read_results(small[1])["auroc"] < read_results(small[0])["auroc"]
    table = load_results(small[0].parent)
    assert list(table.index) == ["version_10", "version_11"] and table["task"].nunique() == 1
    assert table["task"].iloc[0] not in set(load_results(COMMITTED)["task"]), "no row beside the complete data"


def test_every_committed_version_is_listed_and_a_loss_is_drawn(page):
    show(page, r"version_\d$", "loss")
    names = [f"version_{number}" for number in sorted(numbered(COMMITTED)) if number < 10]
    assert len(names) >= 5 and seen(page, *names, "adversarial_anomalous")


def test_the_exercise_is_seen(page):
    show(page, runs := r"version_\d\d$", "loss/re")
    assert seen(page, "own/version_10", "own/version_11", "repulsion", "reconstruction")
    assert "course/version_1" not in page.execute_script(TEXT)
    show(page, runs, "reconstructions/output")
    assert page.until(lambda page: page.execute_script(PICTURES) >= 2)


def test_reconstructions_of_a_committed_version_are_seen(page):
    show(page, "version_1$", "reconstructions/output")
    assert page.until(lambda page: page.execute_script(PICTURES) > 0)


def test_a_normal_and_an_anomalous_recording_can_be_played(page):
    show(page, "version_7$", "loss")
    page.get(f"{ADDRESS}/#audio&regexInput={quote('version_7$')}")
    assert page.until(lambda page: page.execute_script(PLAYERS) == 2)


def test_what_is_not_there_is_not_seen(page):
    """Else the tests above could not fail."""
    show(page, "version_1$", "nothing")
    time.sleep(8)
    assert page.execute_script(PICTURES) == 0
