"""Run the notebooks from top to bottom with Jupyter's own executor.

python tools/run.py [01 ...]               executed copies and a table of results go to runs/<time>/
python tools/run.py --reference [01 ...]   full training into version_0, version_1 ...; outputs go into notebooks/
python tools/run.py --outputs [01 ...]     outputs in notebooks/ made anew from the committed versions, nothing trained
"""

import argparse
import base64
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers import results, runtime  # noqa: E402
from helpers.progress import Line  # noqa: E402
from tools.notebooks import notebooks, source  # noqa: E402
from tools.thin import PNG, smaller, thin  # noqa: E402


class Client(NotebookClient):
    """Jupyter's executor; it shows the cell at work and the notebook's own line of progress."""

    line, working = Line(), {}  # shared: what each notebook at work says

    def tell(self, **where) -> None:
        self.where = where.get("cell_index", 0) + 1
        self.show("")

    def show(self, text: str) -> None:
        place = f"{self.title}: cell {self.where} of {len(self.nb.cells)}"
        self.working[self.title] = f"{place}, {tqdm.format_interval(time.monotonic() - self.started)}  {text}"
        each = 150 // len(self.working)
        self.line.show("  ".join(said[: each - 2].ljust(each - 2) for said in list(self.working.values())))

    def close(self, text: str) -> None:
        self.working.pop(self.title, None)
        self.line.show(text.ljust(150), last=True)

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        if msg["msg_type"] in ("display_data", "update_display_data") and list(content["data"]) == ["text/plain"]:
            self.show(content["data"]["text/plain"])
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, target: Path, train: bool = True) -> str:
    """Run one notebook and write it with its outputs to ``target``; what went wrong, if anything."""
    book = nbformat.read(path, as_version=4)
    written = [cell.source for cell in book.cells]
    for cell in book.cells if not train else ():
        cell.source = re.sub(r"^TRAIN = True", "TRAIN = False", cell.source, flags=re.M)
    # sockets in a folder of their own, as TCP is open to every user of the machine
    sockets = {"transport": "ipc", "ip": f"{tempfile.mkdtemp(prefix='kernel-')}/socket"} if os.name != "nt" else {}
    options = {"timeout": None, "record_timing": False, "store_widget_state": False}
    options |= {"resources": {"metadata": {"path": str(path.parent)}}, "config": Config(KernelManager=sockets)}
    client = Client(book, **options)
    client.title, client.where, client.started = path.stem, 0, time.monotonic()
    client.on_cell_start = client.tell
    failure = ""
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        said = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        failure = f"cell {client.where}: " + said.partition("\n")[0]
    seconds = time.monotonic() - client.started
    for cell, text in zip(book.cells, written, strict=True):
        cell.source = text
        for output in cell.get("outputs", []):
            shrink(output.get("data", {}))
    nbformat.write(book, target)
    client.close(f"{path.stem}: {'FAILED in ' + failure if failure else 'ok'}, {seconds:.0f} s")
    return failure


def shrink(data: dict) -> None:
    """Store a figure with fewer colours, or as JPEG, where that is smaller."""
    if png := data.pop("image/png", None):
        less = smaller(base64.b64decode(png))
        data["image/png" if less.startswith(PNG) else "image/jpeg"] = base64.b64encode(less).decode()


def run(chosen: list[Path]) -> int:
    """Run notebooks at the profile of this machine; a table of what they measured, and one line for each failure."""
    folder, profile = ROOT / "runs" / time.strftime("%Y-%m-%d_%H%M%S"), runtime.current_profile()
    folder.mkdir(parents=True)
    if profile == "smoke":
        os.environ.setdefault("AD_LOGS_DIR", str(folder / "lightning_logs"))
    logs, begun = runtime.logs_dir(profile), time.time()
    print(f"profile {profile}; data: {runtime.show_path(runtime.data_dir())}, else the embedded samples")
    pool = ThreadPoolExecutor(at_once(len(chosen)))
    try:
        failures = list(pool.map(lambda path: execute(path, folder / path.name), chosen))
    except KeyboardInterrupt:
        print("\nstopped; run it again to go on with unfinished trainings")
        os._exit(130)  # the pool would wait for all notebooks; kernels end with the process that started them
    new = [path.parent for path in logs.glob("version_*/**/results.json") if path.stat().st_mtime >= begun - 1]
    print("\n" + (text := summary(results.load_results(logs), new)))
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    for path, why in zip(chosen, failures, strict=True):
        if why:
            print(f"FAILED {path.stem}, {why}; see {runtime.show_path(folder / path.name)}")
    ok, copies = failures.count(""), f"executed copies: {runtime.show_path(folder)}"
    print(f"\n{ok} of {len(chosen)} notebooks ok in {time.time() - begun:.0f} s; {copies}")
    return int(ok < len(chosen))


def at_once(notebooks: int) -> int:
    """How many notebooks run together: on a CPU two, which share its cores; much of each start-up uses one core."""
    cores = os.cpu_count() or 1
    if notebooks < 2 or cores < 2 or runtime.best_device().type != "cpu":
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // 2))
    return 2


def summary(table: pd.DataFrame, folders: list[Path]) -> str:
    """The new versions as a table: what was measured on what, beside a control without a network."""
    if table.empty or (rows := table[table["folder"].isin(folders)]).empty:
        return "no new results"
    shown = pd.DataFrame({
        "version": rows.index,
        "notebook": rows["notebook"],
        "data": rows["dataset"] + " (" + rows["subset"] + ")",
        "normal": rows["normal_class"],
        "labelled": [f"{share:.0%}" if share else "none" for share in rows["anomaly_fraction"]],
        "AUROC": [f"{value:.3f}" for value in rows["auroc"]],
        "no network": [f"{value:.3f}" if value == value and value is not None else "" for value in rows["control_auroc"]],
        "train s": [f"{value:.0f}" for value in rows["train_seconds"]],
    })  # fmt: skip
    said = "Test AUROC of these trainings, and of a control without a network on the same images"
    return f"{said}\n{shown.to_string(index=False)}"


def reference(path: Path) -> int:
    """Train one notebook in full, then put its version in the place of the committed one, which it may read till then.

    The version before is kept under another name; tables of long runs that were not made again are taken over.
    """
    version = runtime.logs_dir("full") / f"version_{int(path.name[:2]) - 1}"
    old = version.with_name(f"replaced_{version.name}_{int(time.time())}")
    folder = ROOT / "runs" / old.name.replace("replaced", "reference")
    folder.mkdir(parents=True)
    names = {"AD_PROFILE": "full", "AD_VERSION": version.name[8:], "AD_LOGS_DIR": str(folder / "lightning_logs")}
    with patch.dict(os.environ, names):
        failure = execute(path, folder / path.name)
    trained = folder / "lightning_logs" / version.name
    if failure or not (trained / "results.json").exists():
        print(f"what was done is in {runtime.show_path(folder)}; {path.name} and {version.name} are as they were")
        return 1
    thin(trained)
    if version.exists():
        version.rename(old)
        print(f"the version before is kept as {old.name}")
    shutil.move(trained, version)
    for table in (*old.glob("*.csv"), *old.glob("*.npz")):
        if not (version / table.name).exists():
            shutil.copy(table, version)
    return outputs(path)


def outputs(path: Path) -> int:
    """Run one notebook on the committed versions alone, and keep its outputs."""
    unfinished, empty = path.with_suffix(".unfinished"), ROOT / "runs" / "outputs" / path.stem[:2] / "lightning_logs"
    with patch.dict(os.environ, {"AD_PROFILE": "full", "AD_LOGS_DIR": str(empty)}):
        failure = execute(path, unfinished, train=False)
    shutil.rmtree(empty, ignore_errors=True)
    if not failure:
        text, both = unfinished.read_text(encoding="utf-8"), "_spec own:lightning_logs,course:lightning_logs"
        text = text.replace(runtime.show_path(empty), "lightning_logs").replace(both, " lightning_logs")  # a reader's
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    return int(bool(failure))


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="notebook numbers, e.g. 01 (default: all)")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--outputs", action="store_true")
    arguments = parser.parse_args()
    known = {path.name[:2]: path for path in notebooks()}
    chosen = [path for number, path in known.items() if number in (arguments.numbers or known)]
    if not chosen:
        raise SystemExit(f"no notebook {' '.join(arguments.numbers)}: there are {', '.join(known)}")
    if arguments.reference:
        return max(reference(path) for path in chosen if "fit(" in source(path))
    return max(outputs(path) for path in chosen) if arguments.outputs else run(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
