"""Write RESULTS.md, and the table in README.md, from the committed versions and docs/published.csv."""

import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.results import load_results, mean_std  # noqa: E402

METRICS = {"auroc": "AUROC", "pixel_auroc": "pixel AUROC", "pixel_average_precision": "pixel AP"}
COLUMNS = ("method", *METRICS.values(), "detected", "false alarms", "calibrated on", "training", "version")
MEANS = (  # table of a version, column, what it is the mean of, published beside it
    ("version_1/ten_classes.csv", "auroc", "Fashion-MNIST, ten classes in turn, 50% labelled anomalies: DCGAN", "0.986, Kim et al. 2020"),
    ("version_4/ten_classes.csv", "whitened", "Fashion-MNIST, ten classes in turn, no labels: GANomaly, whitened score", ""),
    ("version_4/ten_classes.csv", "plain", "the same, the paper's score", ""),
    ("version_3/mnist.csv", "auroc", "MNIST, ten digits in turn normal: Deep SVDD, the paper's network", "0.948, Ruff et al. 2018"),
    ("version_4/mnist.csv", "whitened", "MNIST, ten digits in turn anomalous: GANomaly, whitened score", ""),
)  # fmt: skip


def task_table(rows: pd.DataFrame, published: pd.DataFrame) -> list[dict]:
    """The control, what others report, and our versions, best mean AUROC first."""
    lines = [{"method": f"{row.control} (no network, notebook {int(row.notebook[:2])})", "AUROC": f"{row.control_auroc:.4f}"}
             for row in rows.assign(rounded=rows["control_auroc"].round(4)).dropna(subset="control_auroc").drop_duplicates(["control", "rounded"]).itertuples()]  # fmt: skip
    lines += [{"method": f"*{row['method']}*"} | {title: row[name] for name, title in METRICS.items()}
              for row in published.to_dict("records")]  # fmt: skip
    for name, row in rows.sort_values("auroc_mean", ascending=False).iterrows():
        line = {"method": f"**{row['model']}**, notebook {int(row['notebook'][:2])}", "version": f"`{name}`"}
        for metric, title in METRICS.items():
            if row.get(metric) == row.get(metric):  # not NaN
                line[title] = mean_std(row["seeds"].get(metric) or [row[metric]])
        for rate, title, count in (("true", "detected", "anomalous"), ("false", "false alarms", "normal")):
            of = row[f"n_test_{count}"]
            line[title] = f"{round(row[f'{rate}_positive_rate'] * of):,} of {of:,}"
        low, high = row["true_positive_rate_interval"]
        line["detected"] += f" ({low:.2f} to {high:.2f})"
        line |= {"calibrated on": f"{row['n_calibration']:,} images", "training": f"{row['train_seconds']:,.0f} s"}
        lines.append(line)
    return lines


def markdown(lines: list[dict], columns: tuple = COLUMNS) -> str:
    """Rows as a Markdown table; missing values stay empty."""
    rows = [columns, ["---"] * len(columns), *([str(line.get(column, "")) for column in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def text(logs: Path) -> str:
    """RESULTS.md: its head stays, the tables are made anew."""
    published, parts = pd.read_csv(ROOT / "docs" / "published.csv", dtype=str, keep_default_na=False), []
    for _, rows in load_results(logs).groupby("task", sort=False):
        first = rows.iloc[0]
        share, normal = first["anomaly_fraction"], first["normal_class"]
        others = published[(published["dataset"] == first["dataset"]) & (published["task"] == f"{normal} {share}")]
        labels = f"{share:.0%} labelled anomalies" if share else "no labels"
        title = f"{first['dataset']} ({first['subset']}): {normal} normal, {labels}, {first['tested_on']}"
        parts.append(f"## {title}\n\n{markdown(task_table(rows, others))}")
    means = [{"mean of": what, "AUROC": mean_of(pd.read_csv(logs / file), column), "published": other, "table": f"`{file}`"}
             for file, column, what, other in MEANS if (logs / file).exists()]  # fmt: skip
    means = markdown(means, ("mean of", "AUROC", "published", "table"))
    parts.append(f"## Means over classes\n\n{means}")
    head = (ROOT / "RESULTS.md").read_text(encoding="utf-8").split("\n## ")[0].rstrip()
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join([head, *parts])) + "\n"


def mean_of(table: pd.DataFrame, column: str) -> str:
    """The mean over classes of each seed, as mean and standard deviation over the seeds; rare classes do not count."""
    usual = table[table["rare"].isna()] if "rare" in table else table
    return mean_std(usual.groupby("seed")[column].mean().tolist())


def overview(logs: Path) -> str:
    """The README's table: of each task the best version, the best control on the same images, the best published."""
    table, published = load_results(logs), pd.read_csv(ROOT / "docs" / "published.csv")
    rows, shown = [], table[table["tested_on"] != "stress card"]
    for _, group in shown.groupby(["dataset", "normal_class", "anomaly_fraction"], sort=False):
        group = group[group["n_test_normal"] == group["n_test_normal"].max()]  # not a part of the test images
        best, control = group.loc[group["auroc_mean"].idxmax()], group.loc[group["control_auroc"].idxmax()]
        normal, share = best["normal_class"], best["anomaly_fraction"]
        title = best["dataset"] + f", {normal} normal" * int(normal != "good") + ", labelled anomalies" * int(share > 0)
        others = published[(published["dataset"] == best["dataset"]) & (published["task"] == f"{normal} {share}")]
        others = others.dropna(subset="auroc")
        other = others.loc[others["auroc"].idxmax()] if len(others) else None
        values = [f"{best['auroc_mean']:.3f}", f"{control['control_auroc']:.3f}"]
        bold = [f"**{value}**" if value == max(values) else value for value in values]
        rows.append({
            "task": f"{title} ({best['n_test_normal']:,} + {best['n_test_anomalous']:,} test images)",
            "best here": f"{bold[0]} {best['model']}, notebook {int(best['notebook'][:2])}",
            "best without a network": f"{bold[1]} {control['control']}",
            "published": "" if other is None else f"{other['auroc']:.3f} {other['method']}",
        })  # fmt: skip
    return markdown(rows, ("task", "best here", "best without a network", "published"))


def readme(logs: Path) -> str:
    """README.md with its table made anew."""
    before, rest = (ROOT / "README.md").read_text(encoding="utf-8").split(f"{(mark := '<!-- results -->')}\n", 1)
    return f"{before}{mark}\n{overview(logs)}\n{mark}{rest.split(mark, 1)[1]}"


if __name__ == "__main__":
    for name, write in (("RESULTS.md", text), ("README.md", readme)):
        (ROOT / name).write_text(write(ROOT / "lightning_logs"), encoding="utf-8")
