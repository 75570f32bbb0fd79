"""Softmax cross-entropy for several labels per position: formula, loss and gradient, in NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any, Optional, Tuple

import numpy as np

from ..errors import InputError
from .evaluate import Batch, Losses, by_blocks, loss_and_gradient, mean_loss, nonfinite_loss
from .layout import Layout, apply_per_position
from .options import SoftmaxOptions
from .targets import Labels, Recipe, read_labels, softmax_recipe

# Below this sum of exponentials, whose largest is 1, log(sum) and p - t lose digits to cancellation.
SATURATED = 1 + 1e-3

BLOCK_ENTRIES = 1 << 16  # with one or two temporaries of this size the overhead of small blocks costs more than caches


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
    return loss_and_gradient(evaluate_softmax, SoftmaxOptions.make(options), scores, labels, sample_weight)


def evaluate_softmax(
    scores: np.ndarray,
    labels: np.ndarray,
    sample_weight: Optional[np.ndarray],
    layout: Layout,
    options: SoftmaxOptions,
    gradient: Optional[np.ndarray] = None,
    probs: Optional[np.ndarray] = None,
) -> Tuple[float, float]:
    """The loss and its divisor; the gradient before the division and the probabilities go where arrays are given.

    Both are C-contiguous, shaped like `scores`. Nothing else of that size is allocated. Where the divisor is 0, the
    loss is 0, and so is the gradient.
    """
    batch = Batch.of(scores, labels, sample_weight, layout, options, gradient, probs)
    divisors = {"FULL": layout.positions, "BATCH_SIZE": layout.outer}
    return mean_loss(batch, "softmax_losses", softmax_losses, divisors, explain_softmax)


def softmax_losses(batch: Batch) -> Losses:
    """u L of each position; VALID counts u."""
    labels = read_labels(batch.labels, batch.layout, batch.options)
    recipe = softmax_recipe(labels, batch.weight, batch.layout, batch.options)
    block = partial(softmax_block, batch, labels, recipe)
    losses = by_blocks(block, recipe.weight, batch.layout, BLOCK_ENTRIES)
    return Losses.add_up(losses, recipe.weight)


def softmax_block(batch: Batch, labels: Labels, recipe: Recipe, where: tuple) -> np.ndarray:
    """L of each position of the block `where`, 0 where its weight is 0; writes the block's gradient and probabilities.

    With z = s - max(s), L = m log(sum_k exp(z_k)) - sum_k t_k z_k: no term is negative, so nothing cancels.
    """
    scale, background, mass, weight = recipe.at(where)
    shifted = batch.scores[where].astype(np.float64)
    unknown = labels.unknown(where)
    if unknown is not None:
        shifted[unknown] = -np.inf
    peak = shifted.max(axis=1, keepdims=True)
    apply_per_position(np.subtract, shifted, np.where(peak == -np.inf, 0, peak))
    if unknown is not None:
        shifted[unknown] = 0  # their target is 0, and 0 times infinity is not
    prepared = labels.prepare(where, scale, background)
    expected = labels.expect(shifted, where, prepared)
    exps = np.exp(shifted, out=shifted)  # cannot overflow: the largest is 1
    if unknown is not None:
        exps[unknown] = 0
    sums = exps.sum(axis=1, keepdims=True)
    saturated = sums < SATURATED
    log_sums = np.log(sums)
    if saturated.any():
        best, others = split_largest(exps, saturated)
        log_sums[saturated] = np.log1p(others)
    losses = mass * log_sums - expected
    if batch.options.divergence == "kl":
        losses += negative_entropy(labels.targets(where, scale, background), mass)
    if batch.probs is not None:
        batch.probs[where] = np.where(sums > 0, exps / sums, 0) if unknown is not None else exps / sums
    if batch.gradient is not None:
        apply_per_position(np.multiply, exps, weight * mass / sums)
        labels.subtract(weight, exps, where, prepared)
        if saturated.any():
            balance(exps, best, saturated)
        batch.gradient[where] = exps if weight.all() else np.where(weight == 0, 0, exps)
    return losses if weight.all() else np.where(weight == 0, 0, losses)


def split_largest(exps: np.ndarray, saturated: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The class of each saturated position's largest exponential, which is 1, and the sum of the others."""
    rows = np.moveaxis(exps, 1, -1)[np.moveaxis(saturated, 1, -1)[..., 0]]
    best = rows.argmax(axis=1)[:, None]
    np.put_along_axis(rows, best, 0, axis=1)
    return best, rows.sum(axis=1)


def balance(gradient: np.ndarray, best: np.ndarray, saturated: np.ndarray) -> None:
    """Set the entry of each saturated position's best class to minus the sum of the others.

    The entries of a position sum to 0; there m p_k - t_k is the difference of two nearly equal numbers.
    """
    rows_of = np.moveaxis(saturated, 1, -1)[..., 0]
    rows = np.moveaxis(gradient, 1, -1)[rows_of]
    np.put_along_axis(rows, best, 0, axis=1)
    np.put_along_axis(rows, best, -rows.sum(axis=1, keepdims=True), axis=1)
    np.moveaxis(gradient, 1, -1)[rows_of] = rows


def negative_entropy(targets: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """sum_k t_k log(t_k / m), with 0 log 0 = 0."""
    ratio = np.divide(targets, mass, out=np.ones_like(targets), where=targets > 0)
    return (targets * np.log(ratio)).sum(axis=1, keepdims=True)


def explain_softmax(batch: Batch) -> InputError:
    labels = read_labels(batch.labels, batch.layout, batch.options)
    recipe = softmax_recipe(labels, batch.weight, batch.layout, batch.options)

    def bad_scores(where: tuple) -> np.ndarray:
        scores, unknown = batch.scores[where], labels.unknown(where)
        targets = labels.targets(where, *recipe.at(where)[:2])
        bad = ~np.isfinite(scores) & ((scores != -np.inf) | (targets > 0))
        return bad if unknown is None else bad & ~unknown

    losses = softmax_losses(batch._replace(gradient=None, probs=None))
    return nonfinite_loss(batch, losses.each, bad_scores, "-inf only where the target is 0")
