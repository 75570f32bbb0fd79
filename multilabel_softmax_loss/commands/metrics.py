"""Multi-label metrics of class scores, in NumPy and scikit-learn; thresholds per class; trivial baselines.

Everywhere `truth` (n, C) is boolean, n samples with C classes; `scores` (n, C) is any finite score that grows with the
belief in a class (the commands take log odds, which do not saturate); `known` (n, C) is False where a label is unknown,
or None: unknown entries count nowhere.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

import numpy as np


def average_precisions(truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray] = None) -> np.ndarray:
    """The average precision of each class, NaN for a class without positives, where it is undefined."""
    from sklearn.metrics import average_precision_score

    result = np.full(truth.shape[1], np.nan)
    for k in range(truth.shape[1]):
        rows = slice(None) if known is None else known[:, k]
        if truth[rows, k].any():
            result[k] = average_precision_score(truth[rows, k], scores[rows, k])
    return result


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def label_ranking(truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray] = None) -> Dict[str, float]:
    """Label-ranking average precision and coverage error, over the samples that have a label.

    Coverage is how far down the ranking of its classes one has to go, on average, to meet all labels of a sample.
    (scikit-learn counts a sample without labels as perfect in both, which says nothing of the ranking.)
    """
    from sklearn.metrics import coverage_error, label_ranking_average_precision_score

    labelled = truth.any(axis=1)
    if not labelled.any():
        return {"LRAP": float("nan"), "coverage": float("nan")}
    if known is not None:
        scores = np.where(known, scores, -2e300)  # behind all that is known, and its sums are finite
    truth, scores = truth[labelled], scores[labelled]
    return {
        "LRAP": float(label_ranking_average_precision_score(truth, scores)),
        "coverage": float(coverage_error(truth, scores)),
    }


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """True on the k likeliest classes of each sample; of equals the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    decided = np.zeros(scores.shape, bool)
    np.put_along_axis(decided, order, True, axis=1)
    return decided


def above(scores: np.ndarray, thresholds: Any, at_least_one: bool = False) -> np.ndarray:
    """True where a score reaches its class's threshold; optionally on the likeliest class if none does."""
    decided = scores >= np.asarray(thresholds, dtype=np.float64)
    if at_least_one:
        empty = ~decided.any(axis=1)
        decided[empty] = top_k(scores[empty], 1)
    return decided


def precision_recall_f1(
    truth: np.ndarray, decided: np.ndarray, known: Optional[np.ndarray] = None
) -> Dict[str, np.ndarray]:
    """Precision, recall and F1 of each class; 0 where nothing was decided, NaN for a class without positives."""
    from sklearn.metrics import precision_recall_fscore_support

    if known is not None:
        decided = decided & known
    values = precision_recall_fscore_support(truth, decided, average=None, zero_division=0)[:3]
    has_positives = truth.any(axis=0)
    return {name: np.where(has_positives, value, np.nan) for name, value in zip(("precision", "recall", "F1"), values)}


def decision_metrics(truth: np.ndarray, decided: np.ndarray, known: Optional[np.ndarray] = None) -> Dict[str, float]:
    """How decisions agree with the labels: Gong et al.'s protocol, exact match and hamming accuracy.

    With N_c the labels of class c, D_c the decisions for it and R_c the right ones::

        CP  = mean_c R_c / D_c       CR  = mean_c R_c / N_c       CF1 = 2 CP CR / (CP + CR)
        OP  = sum R_c / sum D_c      OR  = sum R_c / sum N_c      OF1 = 2 OP OR / (OP + OR)

    The means are over the classes that have a label; one that is never decided for has precision 0. N+ is the share of
    these classes with R_c > 0. CF1 is not the mean of the classes' F1 (scikit-learn's macro F1).

    References
    ----------
    Gong et al., Deep Convolutional Ranking for Multilabel Image Annotation, arXiv:1312.4894 (per-class and overall
    precision and recall at k, N+). Wang et al., CNN-RNN: A Unified Framework for Multi-label Image Classification,
    arXiv:1604.04573 (the F1 of them; C-P, C-R, C-F1, O-P, O-R, O-F1).
    """
    if known is not None:
        decided = decided & known
    right = np.count_nonzero(truth & decided)
    per_class = precision_recall_f1(truth, decided)
    cp, cr = mean_of_defined(per_class["precision"]), mean_of_defined(per_class["recall"])
    op, or_ = ratio(right, np.count_nonzero(decided)), ratio(right, np.count_nonzero(truth))
    wrong = truth != decided
    entries = truth.size if known is None else np.count_nonzero(known)
    return {
        "CP": cp,
        "CR": cr,
        "CF1": ratio(2 * cp * cr, cp + cr),
        "OP": op,
        "OR": or_,
        "OF1": ratio(2 * op * or_, op + or_),
        "N+": ratio(np.count_nonzero((truth & decided).any(axis=0)), np.count_nonzero(truth.any(axis=0))),
        "exact match": 1 - ratio(np.count_nonzero(wrong.any(axis=1)), len(truth)),
        "hamming accuracy": 1 - ratio(np.count_nonzero(wrong), entries),
    }


def ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def ranking_metrics(truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray] = None) -> Dict[str, float]:
    """mAP over the classes that have a label, label-ranking average precision and coverage."""
    return {"mAP": mean_of_defined(average_precisions(truth, scores, known)), **label_ranking(truth, scores, known)}


def baselines(truth: np.ndarray, k: int, known: Optional[np.ndarray] = None) -> Dict[str, Dict[str, float]]:
    """The metrics of two answers that never look at an image: nothing, and always the k most frequent classes."""
    weights = np.ones(truth.shape) if known is None else known
    frequencies = truth.sum(axis=0) / np.maximum(weights.sum(axis=0), 1)
    frequent = np.broadcast_to(frequencies, truth.shape)
    zeros = np.zeros(truth.shape)
    return {
        f"most frequent {k}": {
            **ranking_metrics(truth, frequent, known),
            **decision_metrics(truth, top_k(frequent, k), known),
        },
        "all zeros": {**ranking_metrics(truth, zeros, known), **decision_metrics(truth, zeros > 0, known)},
    }


def tune_thresholds(
    truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray] = None, block: int = 64
) -> np.ndarray:
    """For each class the threshold whose decisions, scores >= threshold, have the highest F1 on this set.

    With the samples sorted by falling score, cutting after the i-th decides for i samples, of which TP_i are
    right, and F1_i = 2 TP_i / (i + P), P being the positives. A threshold lies half way to the next score. Of
    equal F1 the highest threshold is taken; a class without positives gets infinity, which nothing reaches.
    """
    result = np.full(truth.shape[1], np.inf)
    for start in range(0, truth.shape[1], block):
        columns = slice(start, start + block)
        part = scores[:, columns].astype(np.float64)
        if known is not None:
            part = np.where(known[:, columns], part, -np.inf)  # sorted to the end, and no cut is made there
        order = np.argsort(-part, axis=0)
        ranked = np.take_along_axis(part, order, axis=0)
        right = np.cumsum(np.take_along_axis(truth[:, columns], order, axis=0), axis=0)
        decided = np.arange(1, len(ranked) + 1)[:, None]
        f1 = 2 * right / (decided + right[-1])
        following = np.vstack([ranked[1:], np.full((1, ranked.shape[1]), -np.inf)])
        f1[(ranked == following) | (ranked == -np.inf)] = -1  # equals cannot be cut apart
        best = f1.argmax(axis=0)[None]
        at, after = np.take_along_axis(ranked, best, axis=0)[0], np.take_along_axis(following, best, axis=0)[0]
        middle = np.where(np.isfinite(after), at / 2 + np.where(np.isfinite(after), after, 0) / 2, at)
        middle = np.where(middle > after, middle, at)  # neighbours among the floats have no middle
        result[columns] = np.where(right[-1] > 0, middle, np.inf)
    return result
