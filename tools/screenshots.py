"""TensorBoard as a browser shows it: the page that the tests look at, and the pictures in notebook 6.

python tools/screenshots.py          write notebooks/images/tensorboard_*.png from the committed versions
"""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "lightning_logs"
IMAGES = ROOT / "notebooks" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
SIZE = (1100, 700)  # pixels
PATIENCE = 60  # seconds for a page, on a busy machine
COLOURS = 128  # of a picture's palette

# of the HParams tab's columns, those the picture shows
COLUMNS = ("epochs", "lr", "test/auroc", "test/average_precision", "test/detection_rate")
# what the pictures show: {name: (tab, runs, tags)}, the last two as regular expressions
VIEWS = {
    "select": ("timeseries", r"version_\d+$", "validation/auroc|speed/"),
    "scalars": ("timeseries", r"version_1(/seed_\d)?$", "loss/(abc|l1)"),
    "images": ("timeseries", r"version_[01]$", "reconstructions/output"),
    "hparams": ("hparams", "", ""),
    "projector": ("projector", "", ""),
}


def missing() -> str:
    """What is not installed for this, in words; empty if all is."""
    if shutil.which(DRIVER) is None:
        return f"no {DRIVER} (Debian: apt-get install chromium chromium-driver)"
    return "" if _browser() else f"no browser of the same version as {DRIVER}: looked for {', '.join(BROWSERS)}"


def _browser() -> str | None:
    """The first browser that the installed driver can drive: both have the same major version."""
    wanted = _major(DRIVER)
    return next((name for name in BROWSERS if shutil.which(name) and _major(name) == wanted), None)


def _major(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    return re.search(r"(\d+)\.|$", said)[1]


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard on ``logs`` that has read all of its runs; it ends with the context.

    Raises TimeoutError if it does not start or cannot read them.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs.name, "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, cwd=logs.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = []
        for line in server.stderr:  # it names the port that was free
            said.append(line)
            if found := re.search(r" at (http://127\.0\.0\.1:\d+/)", line):
                break
        else:
            raise TimeoutError(f"TensorBoard did not start: {''.join(said)[-500:]}")
        wanted = {path.parent.relative_to(logs).as_posix() for path in logs.rglob("events.out.tfevents.*")}
        _wait_for_runs(found[1], wanted)
        yield found[1]
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()


def _wait_for_runs(address: str, wanted: set[str]) -> None:
    """Return when every run is known and no further tags are coming."""
    before, deadline = None, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with urlopen(f"{address}data/runs") as runs, urlopen(f"{address}data/plugin/images/tags") as tags:
            now = json.load(runs), json.load(tags)
        if wanted <= set(now[0]) and now == before:
            return
        before = now
        time.sleep(1)
    raise TimeoutError(f"TensorBoard has not read {sorted(wanted - set(before[0]))} after {PATIENCE} s")


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium of ``SIZE`` pixels; it ends with the context."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(_browser())
    # root, as in a container, has no sandbox; /dev/shm is small there; the projector draws with WebGL in software
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "enable-unsafe-swiftshader"):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--window-size={SIZE[0]},{SIZE[1]}")
    # naming the driver keeps selenium from looking for one on the network
    page = webdriver.Chrome(options=options, service=Service(shutil.which(DRIVER)))
    try:
        yield page
    finally:
        page.quit()


def show(page: webdriver.Chrome, address: str, tab: str, runs: str = "", tags: str = "") -> None:
    """Open one of TensorBoard's tabs, with the runs and tags that these regular expressions find."""
    page.get("about:blank")  # else a new fragment would not load the page again
    page.get(f"{address}?{urlencode({'runFilter': runs, 'tagFilter': tags})}#{tab}")


def until(page: webdriver.Chrome, condition: Callable):
    """The first true value of ``condition(page)``.  Raises selenium's TimeoutException after ``PATIENCE`` seconds."""
    replaced = (StaleElementReferenceException,)  # while we looked at it
    return WebDriverWait(page, PATIENCE, poll_frequency=0.3, ignored_exceptions=replaced).until(condition)


def find_all(page: webdriver.Chrome, selector: str) -> list:
    """All elements of the page that a CSS selector finds, those inside of TensorBoard's own elements included."""
    script = """
        const found = [];
        const walk = root => {
            for (const element of root.querySelectorAll("*")) {
                if (element.matches(arguments[0])) found.push(element);
                if (element.shadowRoot) walk(element.shadowRoot);
            }
        };
        walk(document);
        return found;"""
    return page.execute_script(script, selector)


def shown_runs(page: webdriver.Chrome) -> list[str]:
    """Names in the list of runs of the Time Series tab."""
    return [found.text.strip() for found in find_all(page, "runs-data-table tb-data-table-content-row")]


def drawn_chart(page: webdriver.Chrome) -> Image.Image | None:
    """The first scalar chart as the browser paints it, once there are lines in it."""
    for chart in find_all(page, "scalar-card line-chart canvas"):
        picture = Image.open(io.BytesIO(chart.screenshot_as_png)).convert("HSV")
        coloured = sum(picture.getchannel("S").histogram()[100:])  # the grid is grey
        if coloured > 100:
            return picture.convert("RGB")
    return None


def drawn_image(page: webdriver.Chrome) -> Image.Image | None:
    """The first logged image as the browser paints it, once it has arrived."""
    for found in find_all(page, "image-card img"):
        if page.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", found):
            return Image.open(io.BytesIO(found.screenshot_as_png)).convert("L")
    return None


def take(page: webdriver.Chrome, address: str, name: str) -> Image.Image:
    """The picture of one of ``VIEWS``, with a small palette."""
    tab, runs, tags = VIEWS[name]
    show(page, address, tab, runs, tags)
    if tab == "timeseries":
        until(page, drawn_image if name == "images" else drawn_chart)
        page.execute_script("document.querySelectorAll('*').forEach(element => element.scrollTop = 0)")
        if "Card Width" in page.find_element("tag name", "body").text:  # open at first, then as it was left
            find_all(page, '[aria-label="Toggle settings side pane"]')[0].click()
    elif tab == "hparams":
        boxes = until(page, lambda page: find_all(page, ".hparam-checkbox, .metric-checkbox"))
        for box in boxes:
            if (box.get_attribute("aria-checked") == "true") != (box.text.strip() in COLUMNS):
                page.execute_script("arguments[0].click()", box)
    else:
        for _ in range(2):  # it is a page in a page in the page
            page.switch_to.frame(until(page, lambda page: find_all(page, "iframe"))[0])
        until(page, lambda page: find_all(page, "canvas"))
        page.switch_to.default_content()
    time.sleep(3)  # animations
    picture = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
    return picture.quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    """Write all pictures."""
    if reason := missing():
        raise SystemExit(reason)
    IMAGES.mkdir(exist_ok=True)
    with tensorboard(LOGS) as address, browser() as page:
        for name in VIEWS:
            path = IMAGES / f"tensorboard_{name}.png"
            take(page, address, name).save(path, optimize=True)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
