"""The README's tables and pictures, written from the committed versions between markers.  Called by `make readme`."""

import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.results import read_table, spread  # noqa: E402
from helpers.versions import Version, groups, markdown, read_versions  # noqa: E402
from tools.notebooks import badge, notebooks  # noqa: E402

README = ROOT / "README.md"
LOGS = ROOT / "lightning_logs"
METRICS = {"auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_average_precision": "pixel AP"}
COLUMNS = ("method", *METRICS.values(), "false alarms / detected", "training", "run")


def text(readme: str, logs: Path = LOGS) -> str:
    """The README with everything between its markers made anew.

    Raises ValueError if a marker is missing or a committed version is not complete.
    """
    versions = read_versions(logs, logs / "none")
    if broken := [f"{version.name}: {version.problem}" for version in versions if version.problem]:
        raise ValueError(f"the committed versions are not complete: {'; '.join(broken)}")
    words = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    parts = {
        "notebooks": notebooks_table(words),
        "results": results_table(versions, words, logs),
        "gallery": gallery(words, logs),
    }
    for name, made in parts.items():
        pattern = re.compile(rf"(<!-- {name}: make readme -->\n).*?(\n<!-- end of {name} -->)", re.S)
        readme, count = pattern.subn(lambda found, made=made: f"{found[1]}\n{made}\n{found[2]}", readme)
        if count != 1:
            raise ValueError(f"the README needs the markers of {name!r} once, but has them {count} times")
    return readme


def notebooks_table(words: dict) -> str:
    """The notebooks that are there, with badges and times."""
    rows = []
    for path in notebooks():
        entry = words["notebooks"][path.stem]
        row = {"": str(int(path.name[:2])), "notebook": f"[{entry['title']}](notebooks/{path.name}): {entry['about']}"}
        rows.append(
            row
            | {"on Colab": badge(path.name), "GPU, `full`": entry["gpu"], "2 CPU cores, `full` / `quick`": entry["cpu"]}
        )
    return markdown(rows)


def results_table(versions: list[Version], words: dict, logs: Path) -> str:
    """One table: per data set and protocol the rows of others, then ours, best first."""
    tasks: dict[tuple[str, str], list[dict]] = {}
    for task, row in (*_others(words), *_ours(versions, words), *_means(words, logs)):
        tasks.setdefault(task, []).append({column: row.get(column, "") for column in COLUMNS})
    order = list(dict.fromkeys([*(version.results["dataset"] for version in versions), *(task[0] for task in tasks)]))
    rows = []
    for (dataset, protocol), lines in sorted(tasks.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        title = f"{words['datasets'].get(dataset, dataset)}: {protocol}"
        rows += [{"data and protocol": title if place == 0 else ""} | line for place, line in enumerate(lines)]
    return markdown(rows)


def _others(words: dict) -> Iterator[tuple[tuple, dict]]:
    """Published numbers, and those that our notebooks measure without training."""
    for entry in words["published"] + words["printed"]:
        notebook = entry.get("notebook")
        found = {
            title: _printed(notebook, entry[metric]) if notebook else entry[metric]
            for metric, title in METRICS.items()
            if metric in entry
        }
        run = f"notebook {int(notebook[:2])}" if notebook else ""
        yield (entry["dataset"], entry["protocol"]), {"method": entry["method"], "run": run} | found


def _ours(versions: list[Version], words: dict) -> Iterator[tuple[tuple, dict]]:
    for task, members in groups(versions).items():
        for member in members:
            m, seeds = member.results["metrics"], member.results["seeds"]
            model = str(member.hparams.get("model", ""))
            name = words["names"].get(member.name) or words["names"].get(model, model)
            row = {
                "method": f"**notebook {int(member.results['notebook'][:2])}, {name}**",
                "false alarms / detected": f"{m['false_alarm_rate']:.1%} / {m['detection_rate']:.1%}",
                "training": f"{member.results['train_seconds']:,.0f} s",
                "run": f"`{member.name}`",
            }
            values = {metric: seeds.get(metric) or [m[metric]] for metric in METRICS if metric in m}
            yield (
                task,
                row | {METRICS[metric]: spread(found).replace(" (3 seeds)", "") for metric, found in values.items()},
            )


def _means(words: dict, logs: Path) -> Iterator[tuple[tuple, dict]]:
    """Means over the rows of a version's CSV files."""
    for entry in words["tables"]:
        if (path := logs / entry["file"]).exists():
            values = [float(line[entry["column"]]) for line in read_table(path)][: entry.get("rows")]
            number = int(entry["file"].split("/")[0].removeprefix("version_")) + 1
            row = {"method": f"**notebook {number}, {entry['method']}**", "run": f"`{entry['file']}`"}
            yield (entry["dataset"], entry["protocol"]), row | {METRICS["auroc"]: f"{statistics.mean(values):.4f}"}


def _printed(notebook: str, pattern: str) -> str:
    """A number that a committed notebook prints.  Raises ValueError if it does not."""
    for cell in json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]:
        for output in cell.get("outputs", []):
            if found := re.search(pattern, "".join(output.get("text", ""))):
                return found[1]
    raise ValueError(f"{notebook} prints nothing like {pattern!r}")


def gallery(words: dict, logs: Path) -> str:
    """Reconstructions and scores of every version whose caption is known, one after the other."""
    parts = []
    for name, caption in words["gallery"].items():
        if (logs / name).exists():
            kinds = ("reconstructions", "scores")
            pictures = "\n".join(f"![{kind}, {name}](lightning_logs/{name}/{kind}.png)" for kind in kinds)
            parts.append(f"**`{name}`** {caption}\n\n{pictures}")
    return "\n\n".join(parts)


def main() -> None:
    """Rewrite the README where it differs."""
    before = README.read_text()
    after = text(before)
    README.write_text(after)
    print("README.md: " + ("as it was" if after == before else "written anew"))


if __name__ == "__main__":
    main()
