"""TensorBoard on the committed versions, in a real browser: what a reader of `make tensorboard` sees."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from helpers.runtime import ROOT
from helpers.versions import numbered

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
# the dashboards live in nested shadow roots: all text and the largest drawn picture in them
TEXT = """
const walk = root => [...root.querySelectorAll('*')].map(e => (e.shadowRoot ? walk(e.shadowRoot) : '')).join(' ')
  + (root.body ? root.body.innerText : [...root.childNodes].map(n => n.textContent).join(' '));
return walk(document)"""
PICTURES = """
const walk = root => [...root.querySelectorAll('*')].flatMap(e => [e, ...(e.shadowRoot ? walk(e.shadowRoot) : [])]);
return walk(document).filter(e => e.tagName == 'IMG' && e.naturalWidth > 50).length"""


@pytest.fixture(scope="module")
def page():
    logs = ROOT / "lightning_logs"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    try:
        yield browser
    finally:
        browser.quit()
        server.terminate()
        server.wait()


def until(ask, seconds=60):
    """The first true answer, asked again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(Exception):
            if found := ask():
                return found
        time.sleep(0.5)
    return ask()


def show(page, filters):
    assert until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{PORT}").status == 200)
    page.get(f"http://127.0.0.1:{PORT}/?{filters}#timeseries")


@pytest.mark.timeout(200)
def test_every_committed_version_is_listed_and_a_loss_is_drawn(page):
    show(page, r"runFilter=version_%5Cd%24&tagFilter=loss")
    names = [f"version_{number}" for number in sorted(numbered(ROOT / "lightning_logs")) if number < 10]
    assert len(names) >= 5
    for name in (*names, "adversarial_anomalous"):
        assert until(lambda name=name: name in page.execute_script(TEXT)), name


@pytest.mark.timeout(200)
def test_reconstructions_are_seen(page):
    show(page, r"runFilter=version_1%24&tagFilter=reconstructions%2Foutput")
    assert until(lambda: page.execute_script(PICTURES)) > 0


@pytest.mark.timeout(100)
def test_what_is_not_there_is_not_seen(page):
    """Else the test above could not fail."""
    show(page, r"runFilter=version_1%24&tagFilter=nothing")
    time.sleep(8)
    assert page.execute_script(PICTURES) == 0
