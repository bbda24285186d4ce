"""How good are the scores: ranking quality, thresholds from normal images, and what they give."""

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
    """``false_alarm_rate``, ``detection_rate`` and ``f1_at_threshold`` if scores above ``limit`` are flagged."""
    score, label = _checked(score, label)
    flagged = score > limit
    caught, false = int(flagged[label == 1].sum()), int(flagged[label == 0].sum())
    anomalous, normal = int((label == 1).sum()), int((label == 0).sum())
    return {
        "false_alarm_rate": false / normal,
        "detection_rate": caught / anomalous,
        "f1_at_threshold": 2 * caught / (caught + false + anomalous),
    }


def best_f1(score, label) -> float:
    """The largest F1 any threshold gives.  It is chosen on these very labels, so it flatters: say so."""
    from sklearn.metrics import precision_recall_curve

    score, label = _checked(score, label)
    precision, recall, _ = precision_recall_curve(label, score)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def per_kind(score, label, kind, kinds) -> dict[str, float]:
    """AUROC of each kind of anomaly against all normal images, hardest first.

    kind: (N,) index into ``kinds``.  Kinds that do not occur are left out.
    """
    score, label = _checked(score, label)
    kind, normal = np.asarray(kind), label == 0
    found = {}
    for index, name in enumerate(kinds):
        chosen = (kind == index) & (label == 1)
        if chosen.any():
            found[name] = auroc(score[normal | chosen], label[normal | chosen])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def summary(score, label, normal_score, percentile: float = 99.0) -> tuple[dict[str, float], float]:
    """All image metrics under the names of results.json, and the threshold from held-out normal images."""
    limit = threshold(normal_score, percentile)
    values = {"auroc": auroc(score, label), "average_precision": average_precision(score, label)}
    values |= at_threshold(score, label, limit) | {"best_f1_on_test": best_f1(score, label)}
    return values, limit
