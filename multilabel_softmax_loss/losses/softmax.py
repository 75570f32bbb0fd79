"""Softmax cross-entropy for several labels per position: formula, loss and gradient, in NumPy."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from .evaluate import Block, Loss, loss_and_gradient
from .options import SoftmaxOptions
from .targets import column, refuse_empty, softmax_targets


def softmax_cross_entropy(
    scores: Any, labels: Any, sample_weight: Any = None, **options: Any
) -> Tuple[float, np.ndarray]:
    """Softmax cross-entropy with several labels per position, and its gradient.

    With t the targets made of the labels, p the softmax of the scores s over the classes, m = sum_k t_k and u the
    sample weight of a position::

        L        = -sum_k t_k log p_k
        loss     = sum over positions of u L / divisor
        gradient = u (m p_k - t_k) / divisor

    By default t is 1/M on each of a position's M labels, and the divisor is the number of positions with a label.

    Parameters
    ----------
    scores : array, (N, C), (N, C, H, W) or any shape with a class axis
        Unnormalised log-probabilities; -inf masks a class whose target is 0.
    labels : array, the shape of `scores`; with ``label_format="indices"`` K class indices in place of C classes
        Multi-hot or real-valued, finite and >= 0.
    sample_weight : array, one entry per position or per sample, optional
        Finite and >= 0.
    **options
        The fields of :class:`SoftmaxOptions`: axis, label_format, label_normalization, normalization, empty,
        ignore_label, label_smoothing, class_weight, divergence, nonfinite.

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
    Z. Tian, Softmax With Loss (for Multi Label Learning), 2016.
    Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, arXiv:1805.00932.

    Examples
    --------
    >>> loss, gradient = softmax_cross_entropy([[0.0, 0.0, 0.0]], [[1, 1, 0]])
    >>> print(round(loss, 4), gradient.round(3))  # log 3, since every class has probability 1/3
    1.0986 [[-0.167 -0.167  0.333]]
    """
    return loss_and_gradient(SoftmaxLoss, options, scores, labels, sample_weight)


class SoftmaxLoss(Loss):
    """The softmax loss of batches that are laid out alike."""

    options_class = SoftmaxOptions
    options: SoftmaxOptions
    legal_scores = "-inf only where the target is 0"

    def plan(self, kernels: Any) -> Any:
        options = self.options
        if options.divergence == "kl":  # its entropy needs another logarithm, and few use it
            return None
        return kernels.plan_softmax(
            **self.label_arguments(),
            class_weight=options.class_weight,
            normalization=("l1", "count", "none").index(options.label_normalization),
            smoothing=options.label_smoothing,
            empty=("ignore", "uniform", "error").index(options.empty),
        )

    def block(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray], where: tuple) -> Block:
        targets, counted = self.targets(labels, known)
        if self.options.empty == "error":
            refuse_empty(counted, known, where, self.layout)
        losses, gradient, probs = softmax_terms(scores, targets, known)
        if self.options.divergence == "kl":
            losses -= entropy(targets)
        return Block(losses, counted, gradient, probs)

    def faults(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
        targets, _ = self.targets(labels, known)
        known = np.ones(scores.shape, bool) if known is None else known
        bad = known & ~np.isfinite(scores) & ((scores != -np.inf) | (targets > 0))
        none_left = ~(known & (scores > -np.inf)).any(axis=1, keepdims=True)
        return bad | (known & none_left & ~bad.any(axis=1, keepdims=True))

    def targets(self, labels: np.ndarray, known: Optional[np.ndarray]) -> Tuple[np.ndarray, np.ndarray]:
        weight = self.options.class_weight
        return softmax_targets(labels, known, None if weight is None else column(weight, self.layout), self.options)


def softmax_terms(
    scores: np.ndarray, targets: np.ndarray, known: Optional[np.ndarray] = None
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Softmax cross-entropy of each position, its gradient, and the probabilities.

    With z = s - max(s), so that no exponential overflows, and R = sum_k exp(z_k) over all classes but the best one,
    whose exponential is 1::

        L        = m log(1 + R) - sum_k t_k z_k        no term is negative, so nothing cancels
        p_k      = exp(z_k) / (1 + R)
        dL/ds_k  = m p_k - t_k; of the best class minus the sum of the others, since all sum to 0

    Parameters
    ----------
    scores, targets : float64 arrays, (n, C) or (n, C, S)
    known : bool array of that shape
        False for classes that are not in the softmax.

    Returns
    -------
    losses : (n, 1) or (n, 1, S)
    gradient, probs : the shape of the scores
    """
    shifted = scores if known is None else np.where(known, scores, -np.inf)
    best = shifted.argmax(axis=1)[:, None]
    peak = np.take_along_axis(shifted, best, axis=1)
    shifted = shifted - np.where(peak == -np.inf, 0, peak)
    exps = np.exp(shifted)
    one = np.take_along_axis(exps, best, axis=1)  # 0 where every score is -inf
    np.put_along_axis(exps, best, 0, axis=1)
    rest = exps.sum(axis=1, keepdims=True)
    np.put_along_axis(exps, best, one, axis=1)
    mass = targets.sum(axis=1, keepdims=True)
    losses = mass * np.log1p(rest) - sum_of_products(targets, shifted)
    losses[~(one > 0) & np.isfinite(losses)] = np.nan  # no finite score is the best, so that there are no probabilities
    probs = np.divide(exps, one + rest, out=exps)
    if known is not None:
        probs[~known] = 0
    gradient = mass * probs - targets
    np.put_along_axis(gradient, best, 0, axis=1)
    np.put_along_axis(gradient, best, -gradient.sum(axis=1, keepdims=True), axis=1)
    return losses, gradient, probs


def sum_of_products(targets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """sum_k t_k v_k of each position, with 0 for 0 times infinity."""
    total = np.einsum("nk...,nk...->n...", targets, values)[:, None]
    return total if np.isfinite(total).all() else np.where(targets == 0, 0, targets * values).sum(axis=1, keepdims=True)


def entropy(targets: np.ndarray) -> np.ndarray:
    """-sum_k t_k log(t_k / m) of each position, with 0 log 0 = 0."""
    mass = targets.sum(axis=1, keepdims=True)
    ratio = np.divide(targets, mass, out=np.ones_like(targets), where=targets > 0)
    return -(targets * np.log(ratio)).sum(axis=1, keepdims=True)
