"""Several versions beside each other: which differences are more than noise, and the figures that show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from helpers import metrics, plots
from helpers.results import spread
from helpers.versions import Version, same_images

COVERAGE = 95  # % of the resampled test sets that an interval covers
NAMES = 8  # font size of version names


@dataclass
class Difference:
    """AUROC of ``first`` minus that of ``second`` on the same test images, and its bootstrap interval."""

    first: Version
    second: Version
    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Whether other test images of the same kind, or another seed, might turn the difference round."""
        return self.low <= 0 <= self.high or self.seeds_overlap

    @property
    def seeds_overlap(self) -> bool:
        """Whether the worst seed of the first is no better than the best seed of the second."""
        return min(self.first.seeds) <= max(self.second.seeds)

    @property
    def verdict(self) -> str:
        """What may be said about the difference, in words."""
        if self.low == self.high == 0:
            return "no difference on these test images"
        if self.low <= 0 <= self.high:
            return "within the noise of the test images"
        if self.seeds_overlap:
            return "beyond the noise of the test images, but seeds overlap"
        if min(len(self.first.seeds), len(self.second.seeds)) == 1:
            return "beyond the noise of the test images; one seed, so luck is not excluded"
        return "beyond the noise of test images and seeds"


def _drawn(members: Sequence[Version], draws: int) -> dict[str, np.ndarray]:
    """{name: (draws,) AUROC on resampled test sets}, the same sets for all with the same test images."""
    alike: list[list[Version]] = []
    for member in members:
        if member.scores is not None:
            part = next((part for part in alike if same_images(part[0], member)), None)
            alike.append([member]) if part is None else part.append(member)
    found = {}
    for part in alike:
        values = metrics.bootstrap_auroc([member.scores.score for member in part], part[0].scores.label, draws)
        found |= {member.name: value for member, value in zip(part, values, strict=True)}
    return found


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [50 - COVERAGE / 2, 50 + COVERAGE / 2])
    return float(low), float(high)


def intervals(members: Sequence[Version], draws: int = 1000) -> dict[str, tuple[float, float]]:
    """{name: (low, high)} around the AUROC of the first seed; versions without scores are left out."""
    return {name: _interval(values) for name, values in _drawn(members, draws).items()}


def differences(members: Sequence[Version], draws: int = 1000) -> list[Difference]:
    """Every pair with the same test images, in the order of ``members``, by a paired bootstrap.

    members: versions of one task (``versions.groups``).  Raises ValueError if their tasks differ.
    """
    if len(tasks := {member.task for member in members}) > 1:
        raise ValueError(f"versions with different data or protocols are not ranked: {sorted(tasks)}")
    drawn, found = _drawn(members, draws), []
    for first, second in combinations(members, 2):
        if same_images(first, second):
            value = first.results["metrics"]["auroc"] - second.results["metrics"]["auroc"]
            found.append(Difference(first, second, value, *_interval(drawn[first.name] - drawn[second.name])))
    return found


def model_name(version: Version) -> str:
    """The model as the settings name it, else the notebook's own words."""
    return str(version.hparams.get("model") or _notebook(version)[1] or "–")


def called(version: Version) -> str:
    """A version in words: notebook, model, and its own name in brackets."""
    number = _notebook(version)[0]
    return f"notebook {number}, {model_name(version)} ({version.name})" if number else version.name


def _notebook(version: Version) -> tuple[int, str]:
    """Number and words of the notebook that made a version; 0 if it is not known."""
    number, _, words = str(version.results.get("notebook", "")).partition("_")
    return (int(number), words.replace("_", " ")) if number.isdecimal() else (0, "")


def advice(members: Sequence[Version], draws: int = 1000) -> str:
    """The best of a task, what cannot be told from it, and the cheapest of these, in one sentence.

    Cheapest is the shortest training where all ran on the same device, else the fewest parameters.
    """
    best, *others = members
    pairs = {pair.second.name: pair for pair in differences(members, draws) if pair.first is best}
    close = [best, *(other for other in others if other.name in pairs and pairs[other.name].within_noise)]
    said = f"{called(best)}, AUROC {spread(best.seeds)}"
    if unknown := [other.name for other in others if other.name not in pairs]:
        said += f"; not compared image by image: {', '.join(unknown)}"
    if len(close) == 1:
        return said if unknown else f"{said}; its lead is beyond noise"
    same_device = len({member.results.get("device") for member in close}) == 1
    key, unit = "parameters", "parameters"
    if same_device:
        key, unit = "train_seconds", "s of training (pretraining not counted)"
    costs = [
        (member.results[key], member.name) for member in close if isinstance(member.results.get(key), (int, float))
    ]
    said += f"; not to be told from it: {', '.join(called(member) for member in close[1:])}"
    return said + (f"; cheapest of these: {min(costs)[1]}, {min(costs)[0]:,.0f} {unit}" if costs else "")


def unbeaten(members: Sequence[Version], key: str) -> list[Version]:
    """Those that no other beats in quality without a higher cost ``key`` (of results.json), cheapest first."""
    known = [member for member in members if isinstance(member.results.get(key), (int, float))]
    known.sort(key=lambda member: (member.results[key], -member.quality))
    found: list[Version] = []
    for member in known:
        if not found or member.quality > found[-1].quality:
            found.append(member)
    return found


def loss_curves(versions: Sequence[Version], title: str) -> Figure:
    """Losses by their names, one panel a name that several versions have; the training runs from 0 to 1.

    Raises ValueError if there is no such name.
    """
    names = [name for version in versions for name in version.losses]
    shared = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if not shared:
        raise ValueError(f"{title}: no loss occurs in more than one version")
    figure, axes = _panels(len(shared), 3, 1.9)
    for axis, name in zip(axes, shared, strict=True):
        for place, version in enumerate(versions):
            if name in version.losses:
                batches, values = version.losses[name]
                axis.plot(
                    np.array(batches) / max(batches[-1], 1), values, label=version.name, alpha=0.85, **_look(place)
                )
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlim(0, 1)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=NAMES)
    figure.suptitle(f"{title}\nacross: share of the training", fontsize=10)
    return figure


def normalised_losses(versions: Sequence[Version], title: str) -> Figure:
    """One panel a version, each of its losses as a fraction of its largest size."""
    shown = [version for version in versions if version.losses]
    figure, axes = _panels(len(shown), 2, 2.1)
    for axis, version in zip(axes, shown, strict=True):
        for place, (name, (batches, values)) in enumerate(version.losses.items()):
            size = max(np.abs(values).max(), 1e-12)
            axis.plot(batches, np.array(values) / size, label=name.replace("_", " "), linewidth=1.2, **_look(place))
        axis.set_title(version.name, fontsize=9)
        axis.legend(fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel("batch", fontsize=9)
    figure.suptitle(f"{title}\neach loss as a fraction of its largest size", fontsize=10)
    return figure


def _look(place: int) -> dict[str, str]:
    """Colour and line style of the n-th curve: no two alike among 28."""
    count = len(plots.CYCLE)
    return {"color": plots.CYCLE[place % count], "linestyle": ("-", "--", ":", "-.")[place // count % 4]}


def _panels(count: int, columns: int, height: float) -> tuple[Figure, list]:
    """A figure with ``count`` small axes, and these."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure, axes = plots.canvas(height * rows + 0.7, rows, columns)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def interval_chart(groups: Mapping[tuple[str, str], Sequence[Version]], draws: int = 1000) -> Figure:
    """AUROC of the first seed with its bootstrap interval, and of all seeds (crosses); one panel a task."""
    counts = [len(members) for members in groups.values()]
    figure, axes = plots.canvas(0.3 * sum(counts) + 0.75 * len(counts) + 0.3, len(counts), 1)
    axes[0, 0].get_gridspec().set_height_ratios([count + 1 for count in counts])
    for axis, (task, members) in zip(axes[:, 0], groups.items(), strict=True):
        bars = intervals(members, draws)
        for row, member in enumerate(members):
            if member.name in bars:
                look = {"linewidth": 5, "alpha": 0.35, "solid_capstyle": "butt"}  # which ends where the interval ends
                axis.plot(bars[member.name], [row, row], color=plots.NORMAL, **look)
            axis.plot(member.results["metrics"]["auroc"], row, "o", color=plots.NORMAL)
            axis.plot(member.seeds, [row] * len(member.seeds), "x", color=plots.ANOMALOUS, markersize=6)
        axis.set_yticks(range(len(members)), [member.name for member in members], fontsize=NAMES)
        axis.set_ylim(len(members) - 0.5, -0.5)
        axis.set_title(": ".join(task), fontsize=9, loc="left")
    axes[-1, 0].set_xlabel(f"test AUROC; dot: first seed, bar: {COVERAGE} % of resampled test sets, crosses: all seeds")
    return figure


def quality_against_cost(groups: Mapping[tuple[str, str], Sequence[Version]]) -> Figure:
    """Mean AUROC over seeds (bar: worst to best seed) against training time and against parameters, one row a task."""
    figure, axes = plots.canvas(1.9 * len(groups) + 0.3, len(groups), 2)
    for line, (task, members) in zip(axes, groups.items(), strict=True):
        devices = sorted({str(member.results.get("device", "unknown device")) for member in members})
        labels = {"train_seconds": f"training seconds, {', '.join(devices)}", "parameters": "million parameters"}
        for axis, (key, label) in zip(line, labels.items(), strict=True):
            for place, member in enumerate(members):
                if isinstance(cost := member.results.get(key), (int, float)):
                    reach = [[member.quality - min(member.seeds)], [max(member.seeds) - member.quality]]
                    size = cost / 1e6 if key == "parameters" else cost
                    axis.errorbar(size, member.quality, reach, fmt="o", color=_look(place)["color"], label=member.name)
            axis.set_xlim(0, 1.1 * axis.get_xlim()[1])
            axis.set_xlabel(label, fontsize=NAMES)
        line[0].set_ylabel("test AUROC", fontsize=NAMES)
        line[0].set_title(": ".join(task), fontsize=9, loc="left")
        line[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
