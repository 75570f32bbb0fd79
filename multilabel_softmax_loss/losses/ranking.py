"""Ranking losses for several labels per position: labelled classes are to score above the others; in NumPy."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from .evaluate import Block, Loss, loss_and_gradient
from .layout import BLOCK_ENTRIES
from .options import RankingOptions
from .targets import column, refuse_empty


def ranking_loss(scores: Any, labels: Any, sample_weight: Any = None, **options: Any) -> Tuple[float, np.ndarray]:
    """A loss that compares the scores of a position's labelled classes with those of its other classes.

    With P the classes of a position whose label y is not 0, N the others that are known, s the scores, and y_j
    standing for the label times its `class_weight`, the loss of a position is, by the option `ranking`::

        "pairwise"   sum_{j in P} sum_{k in N} y_j max(0, margin - s_j + s_k)
        "warp"       the same, the terms of j times (1 + 1/2 + ... + 1/r_j) / r_j, where r_j is the number of
                     classes k in N whose term is not 0
        "lsep"       log(1 + sum_{j in P} sum_{k in N} y_j exp(s_k - s_j))
        "zlpr"       log(1 + sum_{k in N} exp(s_k)) + log(1 + sum_{j in P} y_j exp(-s_j))

    The first two are divided by |P| |N|, the number of pairs, unless `pair_normalization` is "none". The weights of
    "warp" are held constant in the gradient; at a tie, where a term is just 0, its class does not count as violating,
    and the gradient is that of the side without it. Under "zlpr" a score of 0 parts the labelled classes from the
    others; the other losses know differences of scores only.

    Parameters
    ----------
    scores : array, (N, C), (N, C, H, W) or any shape with a class axis
        Any real numbers; -inf masks a class that is not labelled.
    labels : array, the shape of `scores`; with ``label_format="indices"`` K class indices in place of C classes
        Multi-hot or real-valued, finite and >= 0.
    sample_weight : array, one entry per position or per sample, optional
        Finite and >= 0.
    **options
        The fields of :class:`RankingOptions`: ranking, margin, pair_normalization, axis, label_format, normalization,
        empty, ignore_label, class_weight, nonfinite.

    Returns
    -------
    loss : float
    gradient : array with the shape and dtype of `scores` (float64 for integers and lists)

    Raises
    ------
    ValueError : an option, a shape, a label, a weight or a score is impossible; the message names the entry.
    TypeError : an option or an array has the wrong type.

    References
    ----------
    Gong et al., Deep Convolutional Ranking for Multilabel Image Annotation, arXiv:1312.4894 ("pairwise", "warp"; their
    print of the latter lacks the division by r_j).
    Weston, Bengio and Usunier, WSABIE: Scaling Up To Large Vocabulary Image Annotation, IJCAI 2011 ("warp", there with
    a rank that is sampled; here it is counted).
    Li, Song and Luo, Improving Pairwise Ranking for Multi-label Image Classification, arXiv:1704.03135 ("lsep").
    Su et al., ZLPR: A Novel Loss for Multi-label Classification, arXiv:2208.02955 ("zlpr").

    Examples
    --------
    >>> loss, gradient = ranking_loss([[0.0, 0.0, 0.0]], [[1, 1, 0]])
    >>> print(loss, gradient)  # each of two pairs misses the margin by 1
    1.0 [[-0.5 -0.5  1. ]]
    """
    return loss_and_gradient(RankingLoss, options, scores, labels, sample_weight)


class RankingLoss(Loss):
    """The ranking loss of batches that are laid out alike."""

    options_class = RankingOptions
    options: RankingOptions
    legal_scores = "-inf only where no label is"

    def plan(self, kernels: Any) -> Any:
        options = self.options
        return kernels.plan_ranking(
            **self.label_arguments(),
            class_weight=options.class_weight,
            ranking=("pairwise", "warp", "lsep", "zlpr").index(options.ranking),
            margin=options.margin,
            per_pair=options.pair_normalization == "pairs",
            empty=("ignore", "", "error").index(options.empty),
        )

    def block(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray], where: tuple) -> Block:
        counted = (labels > 0).any(axis=1, keepdims=True)
        if self.options.empty == "error":
            refuse_empty(counted, known, where, self.layout)
        weight = self.options.class_weight
        weights = labels if weight is None else labels * column(weight, self.layout)
        others = labels == 0 if known is None else (labels == 0) & known
        if self.options.ranking in ("pairwise", "warp"):
            losses, gradient = self.hinges(scores, weights, labels > 0, others)
        else:
            losses, gradient = log_terms(scores, weights, others, self.options.ranking == "lsep")
        broken = self.faults(scores, labels, known).any(axis=1, keepdims=True)
        return Block(np.where(broken, np.nan, losses), counted, gradient, None)

    def faults(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
        bad = ~np.isfinite(scores) & ((scores != -np.inf) | (labels > 0))
        return bad if known is None else bad & known

    def hinges(
        self, scores: np.ndarray, weights: np.ndarray, labelled: np.ndarray, others: np.ndarray
    ) -> Tuple[np.ndarray, np.ndarray]:
        """hinge_terms() of positions that need not be rows, divided by the number of pairs."""
        arrays = (scores, weights, labelled, others)
        rows, weights, labelled, others = (np.moveaxis(array, 1, -1).reshape(-1, scores.shape[1]) for array in arrays)
        options = self.options
        losses, gradient = hinge_terms(rows, weights, labelled, others, options.margin, options.ranking == "warp")
        if options.pair_normalization == "pairs":
            pairs = np.maximum(labelled.sum(axis=1) * others.sum(axis=1), 1)
            losses, gradient = losses / pairs, gradient / pairs[:, None]
        turned = np.moveaxis(scores, 1, -1).shape
        return losses.reshape(turned[:-1])[:, None], np.moveaxis(gradient.reshape(turned), -1, 1)


def hinge_terms(
    scores: np.ndarray, weights: np.ndarray, labelled: np.ndarray, others: np.ndarray, margin: float, warp: bool
) -> Tuple[np.ndarray, np.ndarray]:
    """The pairwise or WARP loss of each row and its gradient, not divided by the number of pairs.

    Parameters
    ----------
    scores, weights : float64 arrays, (n, C)
        y_j of ranking_loss() where `labelled`.
    labelled, others : bool arrays, (n, C)
        P and N.

    Returns
    -------
    losses : (n,)
    gradient : (n, C)
    """
    classes = scores.shape[1]
    losses, gradient = np.zeros(len(scores)), np.zeros(scores.shape)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, classes + 1))])  # 1 + 1/2 + ... + 1/r at r
    rows, places = np.nonzero(labelled)
    step = max(1, BLOCK_ENTRIES // classes)
    for start in range(0, len(rows), step):  # so many labels against all other classes of their rows
        row, j = rows[start : start + step], places[start : start + step]
        excess = scores[row] + (margin - scores[row, j])[:, None]
        violating = (excess > 0) & others[row]
        rank = violating.sum(axis=1)
        factor = weights[row, j] * (harmonic[rank] / np.maximum(rank, 1) if warp else 1)
        losses += np.bincount(row, factor * np.where(violating, excess, 0).sum(axis=1), len(scores))
        first = np.flatnonzero(np.diff(row, prepend=-1))  # of the labels of each row
        gradient[row[first]] += np.add.reduceat(factor[:, None] * violating, first, axis=0)
        gradient[row, j] -= factor * rank
    return losses, gradient


def log_terms(
    scores: np.ndarray, weights: np.ndarray, others: np.ndarray, is_lsep: bool
) -> Tuple[np.ndarray, np.ndarray]:
    """The "lsep" or "zlpr" loss of each position and its gradient, in log space: nothing overflows or cancels.

    With A = sum_k exp(s_k) over N and B = sum_j y_j exp(-s_j) over P, both of a + b = log(A B) and of a, b alone.

    Parameters
    ----------
    scores, weights : float64 arrays, (n, C) or (n, C, S)
        y_j of ranking_loss(), 0 where no label is.
    others : bool array of that shape
        N.

    Returns
    -------
    losses : (n, 1) or (n, 1, S)
    gradient : the shape of the scores
    """
    a, share_of_a = log_sum(np.where(others, scores, -np.inf))
    b, share_of_b = log_sum(np.where(weights > 0, np.log(weights) - scores, -np.inf))
    if is_lsep:
        losses = np.logaddexp(0, a + b)
        slope_a = slope_b = np.exp(a + b - losses)
    else:
        log_a, log_b = np.logaddexp(0, a), np.logaddexp(0, b)
        losses = log_a + log_b
        slope_a, slope_b = np.exp(a - log_a), np.exp(b - log_b)
    return losses, slope_a * share_of_a - slope_b * share_of_b


def log_sum(values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """log(sum_k exp(v_k)) over axis 1, which is kept, and the share of each class in the sum; -inf and 0 for none."""
    peak = values.max(axis=1, keepdims=True)
    peak = np.where(peak == -np.inf, 0, peak)
    exps = np.exp(values - peak)
    total = exps.sum(axis=1, keepdims=True)
    return peak + np.log(total), exps / np.where(total == 0, 1, total)
