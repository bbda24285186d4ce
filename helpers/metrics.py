"""Ranking quality of scores and maps, thresholds from normal images, and what they give."""

import numpy as np


def _checked(score, label) -> tuple[np.ndarray, np.ndarray]:
    score, label = np.asarray(score, dtype=np.float64), np.asarray(label)
    if score.shape != label.shape or score.ndim != 1:
        raise ValueError(f"scores and labels must be two vectors of one length: got {score.shape} and {label.shape}")
    if not np.isfinite(score).all():
        raise ValueError(f"{(~np.isfinite(score)).sum()} of {len(score)} anomaly scores are not finite")
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("labels must hold both normal (0) and anomalous (1) images")
    return score, label


def auroc(score, label) -> float:
    """Area under the ROC curve: the probability that an anomalous image scores above a normal one.

    score: (N,) finite, higher is more anomalous.  label: (N,) 0 or 1, both present.
    Returns a float in [0, 1]; 0.5 is chance.  Raises ValueError otherwise, as all functions here.
    """
    from sklearn.metrics import roc_auc_score

    score, label = _checked(score, label)
    return float(roc_auc_score(label, score))


def average_precision(score, label) -> float:
    """Area under the precision-recall curve, in [0, 1]; chance is the share of anomalous images."""
    from sklearn.metrics import average_precision_score

    score, label = _checked(score, label)
    return float(average_precision_score(label, score))


def threshold(normal_score, percentile: float = 99.0) -> float:
    """The score that ``percentile`` % of held-out normal images do not exceed.

    normal_score: (M,) scores of normal images that were not trained on, never of test images.
    The (100 - percentile) % above it are the false alarms to expect.
    """
    normal_score = np.asarray(normal_score, dtype=np.float64)
    if not 0 <= percentile <= 100:
        raise ValueError(f"a percentile is between 0 and 100: got {percentile}")
    if normal_score.size == 0 or not np.isfinite(normal_score).all():
        raise ValueError("a threshold needs the finite scores of some held-out normal images")
    return float(np.percentile(normal_score, percentile, method="higher"))


def at_threshold(score, label, limit: float) -> dict[str, float]:
    """``true_positive_rate`` (detections), ``false_positive_rate`` (false alarms) and ``f1_at_threshold``.

    Scores above ``limit`` are flagged.
    """
    score, label = _checked(score, label)
    flagged = score > limit
    caught, false = int(flagged[label == 1].sum()), int(flagged[label == 0].sum())
    anomalous, normal = int((label == 1).sum()), int((label == 0).sum())
    return {
        "true_positive_rate": caught / anomalous,
        "false_positive_rate": false / normal,
        "f1_at_threshold": 2 * caught / (caught + false + anomalous),
    }


def best_f1(score, label) -> float:
    """The largest F1 any threshold gives.  Optimistic: the threshold is selected on these labels."""
    from sklearn.metrics import precision_recall_curve

    score, label = _checked(score, label)
    precision, recall, _ = precision_recall_curve(label, score)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def precision_recall_f1(score, label, limits) -> dict[str, np.ndarray]:
    """``precision``, ``recall`` and ``f1``, each (K,), if scores above each of ``limits`` are flagged.

    score: (N,) finite.  label: (N,) 0 or 1, both present.  limits: (K,) in any order, infinite ones included.
    A limit that flags nothing has precision 1, as the end point of scikit-learn's precision_recall_curve, and F1 0.
    """
    score, label = _checked(score, label)
    limits = np.asarray(limits, dtype=np.float64)
    if limits.ndim != 1 or np.isnan(limits).any():
        raise ValueError(f"limits must be a vector without NaN: got shape {limits.shape}")
    caught, flagged = (
        len(part) - np.searchsorted(np.sort(part), limits, side="right") for part in (score[label == 1], score)
    )
    anomalous = np.count_nonzero(label)
    precision = np.where(flagged > 0, caught / np.maximum(flagged, 1), 1.0)
    return {"precision": precision, "recall": caught / anomalous, "f1": 2 * caught / (flagged + anomalous)}


def per_defect_type(score, label, defect_type, names) -> dict[str, float]:
    """AUROC of each type of anomaly against all normal images, hardest first.

    defect_type: (N,) index into ``names``.  Types that do not occur are left out.
    """
    score, label = _checked(score, label)
    defect_type, normal = np.asarray(defect_type), label == 0
    found = {}
    for index, name in enumerate(names):
        chosen = (defect_type == index) & (label == 1)
        if chosen.any():
            found[name] = auroc(score[normal | chosen], label[normal | chosen])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def true_positive_rate_interval(
    score, label, normal_score, percentile: float = 99.0, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the detection rate, of which both the anomalies and the threshold are a sample.

    normal_score: (M,) held-out normal scores.  Each of ``n_bootstrap`` draws takes as many of them with replacement,
    sets the threshold by them, and applies it to as many anomalous test images, also drawn with replacement.
    """
    score, label = _checked(score, label)
    generator, anomalous = np.random.default_rng(seed), np.sort(score[label == 1])
    normal_score = np.asarray(normal_score, dtype=np.float64)
    drawn = generator.choice(normal_score, (n_bootstrap, len(normal_score)))
    limits = np.percentile(drawn, percentile, axis=1, method="higher")
    share = 1 - np.searchsorted(anomalous, limits, side="right") / len(anomalous)
    low, high = np.percentile(generator.binomial(len(anomalous), share) / len(anomalous), [2.5, 97.5])
    return float(low), float(high)


def image_metrics(score, label, limit: float) -> dict[str, float]:
    """All image metrics under the names of results.json; ``limit``: the threshold from held-out normal images."""
    values = {"auroc": auroc(score, label), "average_precision": average_precision(score, label)}
    return values | at_threshold(score, label, limit) | {"best_f1_on_test": best_f1(score, label)}


def _checked_maps(maps, masks) -> tuple[np.ndarray, np.ndarray]:
    maps, masks = np.asarray(maps), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps and masks must have one shape (N, H, W): got {maps.shape} and {masks.shape}")
    if maps.dtype != np.float32:  # which sorts faster and stays as it is; nothing is ever rounded to it
        maps = maps.astype(np.float64, copy=False)
    finite = np.isfinite(maps).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} of {len(maps)} anomaly maps are not finite")
    if not masks.any():
        raise ValueError("no mask has a defect")
    if masks.all():
        raise ValueError("the masks leave no defect-free pixel")
    return maps, masks


def _overlap_shares(masks: np.ndarray) -> np.ndarray:
    """What each defect pixel adds to the mean overlap of the regions: 1 / (size of its region * number of regions)."""
    from scipy.ndimage import label

    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # the eight around a pixel, in its own image only
    region, count = label(masks, neighbours)
    region = region[masks]
    return 1 / (np.bincount(region)[region] * count)


def pro_score(maps, masks, max_fpr: float = 0.3) -> float:
    """Per-region overlap, integrated over the false-positive rate up to ``max_fpr`` and divided by it.

    maps: (N, H, W) finite, higher is more anomalous.  masks: (N, H, W) bool, True on defects.
    A region is a set of defect pixels that touch, also at corners; each counts the same, whatever its size.
    The false-positive rate is that of all defect-free pixels of all images, those of normal images included.
    Every distinct score is a point of the curve: nothing is binned.
    Returns a float in [0, 1]; chance is max_fpr / 2.
    Raises ValueError otherwise, and if no mask has a defect, no pixel is free of defects or max_fpr is not in (0, 1].
    Bergmann et al., CVPR 2020, section 4.2.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"a largest false-positive rate is above 0 and at most 1: got {max_fpr}")
    maps, masks = _checked_maps(maps, masks)
    normal, score = np.sort(maps[~masks]), maps[masks]
    order = np.argsort(score)[::-1]
    score, share = score[order], _overlap_shares(masks)[order]
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)  # of each run of equal scores
    # between two runs the curve is level, along a run it is straight: the two ends of each run are all its corners
    kept = [np.searchsorted(normal, score[last], side) for side in ("right", "left")]
    rate = np.concatenate(([0], 1 - np.stack(kept, axis=1).ravel() / len(normal), [1]))
    overlap = np.append(0, share.cumsum()[last] / share.sum()).repeat(2)
    inside = np.searchsorted(rate, max_fpr, side="right")
    height = np.append(overlap[:inside], np.interp(max_fpr, rate, overlap))
    width = np.diff(np.append(rate[:inside], max_fpr))
    return min(float((height[1:] + height[:-1]) @ width / 2 / max_fpr), 1.0)


def pixel_metrics(maps, masks, limit: float) -> dict[str, float]:
    """All pixel metrics under the names of results.json.

    maps: (N, H, W) finite, of the test images.  masks: (N, H, W) bool, True on defects.
    limit: the threshold from pixels of held-out normal images.
    """
    maps, masks = _checked_maps(maps, masks)
    score, label = maps.ravel().astype(np.float64, copy=False), masks.ravel()
    values = {"pixel_auroc": auroc(score, label), "pixel_average_precision": average_precision(score, label)}
    values |= {"pixel_best_f1_on_test": best_f1(score, label), "pro": pro_score(maps, masks)}
    given = precision_recall_f1(score, label, [limit])
    return values | {f"pixel_{name}_at_threshold": float(value[0]) for name, value in given.items()}
