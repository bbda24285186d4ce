"""Run the notebooks from top to bottom with Jupyter's own executor.

python tools/run.py [01 ...]               executed copies and a results table go to runs/<time>/
python tools/run.py --reference [01 ...]   full training into version_0 .. version_4; outputs into notebooks/
"""

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image, ImageColor

ROOT = Path(__file__).resolve().parents[1]
LARGE = 80_000  # characters of a figure in a notebook
sys.path.insert(0, str(ROOT))

from helpers import runtime  # noqa: E402
from helpers.plots import ANOMALOUS, NORMAL  # noqa: E402
from helpers.versions import markdown, read_version, row  # noqa: E402
from tools.notebooks import notebooks, trains  # noqa: E402


def main() -> int:
    """Parse arguments, run, print the table and where everything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="notebook numbers, e.g. 01 (default: all)")
    parser.add_argument("--reference", action="store_true")
    arguments = parser.parse_args()
    chosen = [path for path in notebooks() if not arguments.numbers or path.name[:2] in arguments.numbers]
    if not chosen:
        known = ", ".join(path.name[:2] for path in notebooks())
        raise SystemExit(f"no notebook {' '.join(arguments.numbers)}: there are {known}")
    if arguments.reference:
        return max(reference(path) for path in chosen)
    folder = ROOT / "runs" / time.strftime("%Y-%m-%d_%H%M%S")
    folder.mkdir(parents=True)
    profile = runtime.current_profile()
    if profile == "smoke":
        os.environ.setdefault("AD_LOGS_DIR", str(folder / "lightning_logs"))
    logs = runtime.logs_dir(profile)
    failed, written = 0, []
    for path in chosen:
        before = results(logs)
        failed |= execute(path, folder / path.name)
        written += [found for found, _ in sorted(results(logs).items() - before.items())]
    text = table(written, logs)
    (folder / "results.md").write_text(text + "\n")
    print(f"\n{text}\n\nexecuted notebooks and results.md: {folder}")
    return failed


def execute(source: Path, target: Path) -> int:
    """Run one notebook and write it with its outputs to ``target``; 0 if no cell failed."""
    book = nbformat.read(source, as_version=4)
    started = time.monotonic()
    cells = len(book.cells)

    def tell(cell, cell_index):
        if sys.stdout.isatty():  # a log file needs no counter
            print(
                f"\r{source.stem}: cell {cell_index + 1} of {cells}, {time.monotonic() - started:.0f} s",
                end="",
                flush=True,
            )

    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
        store_widget_state=False,
        on_cell_start=tell,
    )
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        print(f"\n{source.stem} FAILED:\n{error}")
        nbformat.write(book, target)
        return 1
    shrink(book)
    nbformat.write(book, target)
    print(f"\r{source.stem}: done in {time.monotonic() - started:.0f} s" + " " * 20)
    return 0


def shrink(book: nbformat.NotebookNode) -> None:
    """Write large figures with a palette of 256 colours, so that notebooks full of photographs stay below 3 MB."""
    for cell in book.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png", "")
            if len(png) > LARGE:
                smaller = io.BytesIO()
                figure = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
                _few_colours(figure).save(smaller, "PNG", optimize=True)
                output["data"]["image/png"] = base64.b64encode(smaller.getvalue()).decode()


def _few_colours(figure: Image.Image) -> Image.Image:
    """A figure in 256 colours: its own, and those of the captions, whose few pixels would otherwise turn grey."""
    captions = [ImageColor.getrgb(colour) for colour in (NORMAL, ANOMALOUS)]
    tones = [[255 + (part - 255) * ink for part in rgb] for rgb in captions for ink in (1, 0.75, 0.5, 0.25)]
    coarse = figure.quantize(256 - len(tones), dither=Image.Dither.NONE)
    pixels, chosen = np.asarray(figure, dtype=int), np.array(coarse)
    error = ((pixels - np.asarray(coarse.convert("RGB"), dtype=int)) ** 2).sum(-1)
    for place, tone in enumerate(np.array(tones, dtype=int), 256 - len(tones)):
        distance = ((pixels - tone) ** 2).sum(-1)
        chosen[distance < error] = place
        error = np.minimum(error, distance)
    few = Image.fromarray(chosen)
    photographs = coarse.getpalette()[: 3 * (256 - len(tones))]
    photographs += [0] * (3 * (256 - len(tones)) - len(photographs))
    few.putpalette([*photographs, *np.array(tones, dtype=int).flatten().tolist()])
    return few


def reference(path: Path) -> int:
    """Replace the outputs of one notebook and, if it trains, the committed version; keep the old ones if it fails."""
    return _train_again(path) if trains(path) else _read_again(path)


def _read_again(path: Path) -> int:
    """A notebook that trains nothing reads the committed versions, and no other: the outputs must not depend on mine."""
    unfinished, before = path.with_suffix(".unfinished"), dict(os.environ)
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"AD_PROFILE": "full", "AD_DATA": "real", "AD_LOGS_DIR": f"{empty}/lightning_logs"}
        failed = execute(path, unfinished)
    os.environ.clear()
    os.environ.update(before)
    if failed:
        print(f"outputs up to the failure: {unfinished}; {path.name} is as it was")
    else:
        unfinished.replace(path)
    return failed


def _train_again(path: Path) -> int:
    number = int(path.name[:2]) - 1
    logs = runtime.logs_dir("full")
    version, old = logs / f"version_{number}", logs / f"replaced_version_{number}_{int(time.time())}"
    if version.exists():
        version.rename(old)
        print(f"the version before is kept as {old.name}")
    os.environ |= {"AD_PROFILE": "full", "AD_DATA": "real", "AD_VERSION": str(number)}
    unfinished = path.with_suffix(".unfinished")
    failed = 1
    try:
        failed = execute(path, unfinished) or int(not (version / "results.json").exists())
    finally:
        if failed and old.exists():
            if version.exists():
                version.rename(logs / f"failed_version_{number}_{int(time.time())}")
            old.rename(version)
    if failed:
        print(f"outputs up to the failure: {unfinished}; {path.name} and {version.name} are as they were")
    else:
        unfinished.replace(path)
        print(table(sorted(results(version)), logs))
    return failed


def results(folder: Path) -> dict[Path, float]:
    """Every results.json below a folder, with the time it was written."""
    return {path: path.stat().st_mtime for path in folder.rglob("results.json")}


def table(written: list[Path], logs: Path) -> str:
    """The versions of these results.json as a Markdown table."""
    found = [read_version(path.parent, path.parent.relative_to(logs).as_posix()) for path in written]
    rows = [{"data and protocol": ": ".join(version.task)} | row(version) for version in found if version.results]
    return markdown(rows) if rows else "no new results"


if __name__ == "__main__":
    raise SystemExit(main())
