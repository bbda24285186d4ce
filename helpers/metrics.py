"""Ranking quality of scores and maps, thresholds from normal images, and what they give.

Everywhere: score (N,) finite, higher is more anomalous; label (N,) 0 or 1, both present; ValueError otherwise.
"""

import numpy as np
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score


def _checked(score, label) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the scores, in the order of scikit-learn."""
    score, label = np.asarray(score, dtype=np.float64), np.asarray(label)
    if score.shape != label.shape or score.ndim != 1:
        raise ValueError(f"scores and labels must be two vectors of one length: got {score.shape} and {label.shape}")
    if broken := (~np.isfinite(score)).sum():
        raise ValueError(f"{broken:,} of {len(score):,} anomaly scores are not finite")
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("labels (of maps: masks) must hold both normal (0) and anomalous (1)")
    return label, score


def auroc(score, label) -> float:
    """Area under the ROC curve: the probability that an anomalous image scores above a normal one; chance is 0.5."""
    return float(roc_auc_score(*_checked(score, label)))


def average_precision(score, label) -> float:
    """Area under the precision-recall curve, in [0, 1]; chance is the share of anomalous images."""
    return float(average_precision_score(*_checked(score, label)))


def threshold(normal_score, percentile: float = 99.0) -> float:
    """The score that ``percentile`` % of held-out normal images (M,), never test images, do not exceed."""
    normal_score = np.asarray(normal_score, dtype=np.float64)
    if not 0 <= percentile <= 100:
        raise ValueError(f"a percentile is between 0 and 100: got {percentile}")
    if normal_score.size == 0 or not np.isfinite(normal_score).all():
        raise ValueError("a threshold needs the finite scores of some held-out normal images")
    return float(np.percentile(normal_score, percentile, method="higher"))


def best_f1(score, label) -> float:
    """The largest F1 any threshold gives.  Optimistic: the threshold is selected on these labels."""
    precision, recall, _ = precision_recall_curve(*_checked(score, label))
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def precision_recall_f1(score, label, limits) -> dict[str, np.ndarray]:
    """``precision``, ``recall`` and ``f1``, each (K,), if scores above each of ``limits`` (K,) are flagged.

    A limit that flags nothing has precision 1, as the end point of scikit-learn's precision_recall_curve, and F1 0.
    """
    (label, score), limits = _checked(score, label), np.asarray(limits, dtype=np.float64)
    if limits.ndim != 1 or np.isnan(limits).any():
        raise ValueError(f"limits must be a vector without NaN: got shape {limits.shape}")
    anomalous = np.sort(score[label == 1])
    caught = len(anomalous) - np.searchsorted(anomalous, limits, side="right")
    flagged = len(score) - np.searchsorted(np.sort(score), limits, side="right")
    precision = np.where(flagged > 0, caught / np.maximum(flagged, 1), 1.0)
    recall, f1 = caught / len(anomalous), 2 * caught / (flagged + len(anomalous))
    return {"precision": precision, "recall": recall, "f1": f1}


def per_defect_type(score, label, defect_type, names) -> dict[str, float]:
    """AUROC of each type that occurs, (N,) index into ``names``, against all normal images, hardest first."""
    label, score = _checked(score, label)
    chosen = {name: (label == 0) | (np.asarray(defect_type) == index) for index, name in enumerate(names)}
    found = {name: auroc(score[some], label[some]) for name, some in chosen.items() if label[some].any()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def true_positive_rate_interval(
    score, label, normal_score, percentile: float = 99.0, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the detection rate, of which both the anomalies and the threshold are a sample.

    Each draw takes as many held-out normal images as there are, with replacement, and a rate that would find as many.
    """
    label, score = _checked(score, label)
    generator, anomalous = np.random.default_rng(seed), np.sort(score[label == 1])
    drawn = generator.choice(np.asarray(normal_score, dtype=np.float64), (n_bootstrap, len(normal_score)))
    limits = np.percentile(drawn, percentile, axis=1, method="higher")
    found = len(anomalous) - np.searchsorted(anomalous, limits, side="right")
    rates = generator.beta(found + 0.5, len(anomalous) - found + 0.5)  # Jeffreys: all of 6 found is no certainty
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def image_metrics(score, label, limit: float) -> dict[str, float]:
    """All image metrics under the names of results.json; ``limit``: the threshold from held-out normal images."""
    label, score = _checked(score, label)
    found = {name: float(value[0]) for name, value in precision_recall_f1(score, label, [limit]).items()}
    values = {"auroc": auroc(score, label), "average_precision": average_precision(score, label)}
    values |= {"true_positive_rate": found["recall"], "false_positive_rate": float((score[label == 0] > limit).mean())}
    return values | {"f1_at_threshold": found["f1"], "best_f1_on_test": best_f1(score, label)}


def _checked_maps(maps, masks) -> tuple[np.ndarray, np.ndarray]:
    maps, masks = np.asarray(maps, dtype=np.float64), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps and masks must have one shape (N, H, W): got {maps.shape} and {masks.shape}")
    _checked(maps.ravel(), masks.ravel())
    return maps, masks


def pro_score(maps, masks, max_fpr: float = 0.3) -> float:
    """Per-region overlap, integrated over the false-positive rate up to ``max_fpr`` and divided by it, in [0, 1].

    maps: (N, H, W) finite, higher is more anomalous; masks: (N, H, W) bool.  Chance is max_fpr / 2.
    A region is a set of defect pixels that touch, also at corners; each counts the same, whatever its size.
    The rate is that of all defect-free pixels of all images.  Every distinct score is a point: nothing is binned.
    Bergmann et al., CVPR 2020, section 4.2.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"a largest false-positive rate is above 0 and at most 1: got {max_fpr}")
    maps, masks = _checked_maps(maps, masks)
    touching = [np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]  # in the same image only
    region = ndimage.label(masks, touching)[0][masks]
    normal, (score, place) = np.sort(maps[~masks]), np.unique(maps[masks], return_inverse=True)
    covered = np.bincount(place, 1 / np.bincount(region)[region])[::-1].cumsum()  # regions, at each score and above
    # between two scores the curve is level, at one it is straight: these two ends are all its corners
    below = np.stack([np.searchsorted(normal, score[::-1], side) for side in ("right", "left")], 1)
    rate = np.concatenate([[0], 1 - below.ravel() / len(normal), [1]])
    overlap = np.append(0, covered / covered[-1]).repeat(2)
    inside = np.searchsorted(rate, max_fpr, side="right")
    overlap = np.append(overlap[:inside], np.interp(max_fpr, rate, overlap))
    return min(float(auc(np.append(rate[:inside], max_fpr), overlap)) / max_fpr, 1.0)


def pixel_metrics(maps, masks, limit: float) -> dict[str, float]:
    """All pixel metrics of (N, H, W) maps and masks; ``limit``: the threshold from held-out normal pixels."""
    maps, masks = _checked_maps(maps, masks)
    score, label = maps.ravel(), masks.ravel()
    values = {"pixel_auroc": auroc(score, label), "pixel_average_precision": average_precision(score, label)}
    values |= {"pixel_best_f1_on_test": best_f1(score, label), "pro": pro_score(maps, masks)}
    given = precision_recall_f1(score, label, [limit])
    return values | {f"pixel_{name}_at_threshold": float(value[0]) for name, value in given.items()}
