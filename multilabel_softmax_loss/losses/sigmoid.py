"""Sigmoid cross-entropy and focal loss for several labels per position: formula, loss and gradient, in NumPy."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from ..errors import InputError
from .evaluate import Batch, Losses, by_blocks, loss_and_gradient, mean_loss, nonfinite_loss
from .layout import Layout
from .options import SigmoidOptions
from .targets import Labels, SigmoidRecipe, read_labels, sigmoid_recipe


def sigmoid_cross_entropy(
    scores: Any, labels: Any, sample_weight: Any = None, **options: Any
) -> Tuple[float, np.ndarray]:
    """Sigmoid cross-entropy of labels that do not exclude each other, plain or focal, and its gradient.

    With t the target of an entry, p the sigmoid of its score s, q = 1 - p, w the class weight, v `pos_weight`,
    u the sample weight, g `focal_gamma`, and alpha and 1 - alpha the focal weights (both 1 without `focal_alpha`)::

        L        = -w [v alpha t q^g log p + (1 - alpha) (1 - t) p^g log q]
        loss     = sum over entries of u L / divisor
        dL/ds    = w [(1 - alpha) (1 - t) p^g (p - g q log q) - v alpha t q^g (q - g p log p)]
        gradient = u dL/ds / divisor

    The gradient follows from dp/ds = p q: the derivative of q^g is -g q^g p and that of log p is q, so that of
    q^g log p is q^g (q - g p log p); the other term is its mirror image, with p and q exchanged and the sign of s
    turned. For g = 0, all weights 1 and no alpha it is p - t. Each of the two terms is a product of numbers >= 0, made
    of log p = -log(1 + exp(-s)), so none loses digits or overflows, whatever the scores and g.

    By default targets are the labels, and the divisor is the batch size.

    Parameters
    ----------
    scores : array, (N, C), (N, C, H, W) or any shape with a class axis
        Log-odds. -inf is legal where the target is 0, +inf where it is 1.
    labels : array, the shape of `scores`; with ``label_format="indices"`` K class indices in place of C classes
        From 0 to 1; the classes of a list are 1, the others 0.
    sample_weight : array, one entry per position or per sample, optional
        Finite and >= 0.
    **options
        The fields of :class:`SigmoidOptions`: axis, label_format, normalization, ignore_label, label_smoothing,
        class_weight, pos_weight, focal_gamma, focal_alpha, nonfinite.

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
    Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002 (for t of 0 and 1; here linear in t).
    R. Gomez, Understanding Categorical Cross-Entropy Loss, ..., 2018.

    Examples
    --------
    >>> loss, gradient = sigmoid_cross_entropy([[0.0, 0.0, 0.0]], [[1, 1, 0]])
    >>> print(round(loss, 4), gradient)  # 3 log 2, since every class has probability 1/2
    2.0794 [[-0.5 -0.5  0.5]]
    """
    return loss_and_gradient(evaluate_sigmoid, SigmoidOptions.make(options), scores, labels, sample_weight)


def evaluate_sigmoid(
    scores: np.ndarray,
    labels: np.ndarray,
    sample_weight: Optional[np.ndarray],
    layout: Layout,
    options: SigmoidOptions,
    gradient: Optional[np.ndarray] = None,
    probs: Optional[np.ndarray] = None,
) -> Tuple[float, float]:
    """The loss and its divisor; the gradient before the division and the probabilities go where arrays are given.

    Both are C-contiguous, shaped like `scores`. Nothing else of that size is allocated. Where the divisor is 0, the
    loss is 0, and so is the gradient. VALID counts the known entries, FULL all entries, and BATCH_SIZE the first axis,
    as Caffe's SigmoidCrossEntropyLoss does, which knows of no class axis.
    """
    batch = Batch.of(scores, labels, sample_weight, layout, options, gradient, probs)
    divisors = {"FULL": layout.positions * layout.classes, "BATCH_SIZE": layout.scores[0]}
    return mean_loss(batch, "sigmoid_losses", sigmoid_losses, divisors, explain_sigmoid)


def sigmoid_losses(batch: Batch) -> Losses:
    """u L of each position, summed over its classes; VALID counts u times the number of known ones."""
    labels = read_labels(batch.labels, batch.layout, batch.options)
    recipe = sigmoid_recipe(labels, batch.weight, batch.layout, batch.options)
    losses = by_blocks(lambda where: sigmoid_block(batch, labels, recipe, where), recipe.weight, batch.layout)
    return Losses.add_up(losses, recipe.weight * labels.statistics.known)


def sigmoid_block(batch: Batch, labels: Labels, recipe: SigmoidRecipe, where: tuple) -> np.ndarray:
    """L of each position of the block `where`, 0 where its weight is 0; writes the block's gradient and probabilities.

    L of a position is the sum of L over its classes.
    """
    positive, negative = term_weights(labels, recipe, where)
    block = batch.scores[where].astype(np.float64)
    exps = np.exp(-np.abs(block))  # cannot overflow
    log1p_exps = np.log1p(exps)
    p_cost, q_cost = np.maximum(-block, 0) + log1p_exps, np.maximum(block, 0) + log1p_exps  # -log p and -log q
    larger, smaller = 1 / (1 + exps), exps / (1 + exps)
    p, q = np.where(block < 0, smaller, larger), np.where(block < 0, larger, smaller)
    p_slope, q_slope = q, p
    if batch.probs is not None:
        batch.probs[where] = p
    gamma = batch.options.focal_gamma
    if gamma:
        q_power, p_power = np.exp(-gamma * q_cost), np.exp(-gamma * p_cost)
        p_slope, q_slope = q_power * (q + gamma * p * p_cost), p_power * (p + gamma * q * q_cost)
        p_cost, q_cost = q_power * p_cost, p_power * q_cost
    losses = (weigh(positive, p_cost) + weigh(negative, q_cost)).sum(axis=1, keepdims=True)
    weight = recipe.weight[where]
    if batch.gradient is not None:
        slopes = weigh(negative, q_slope) - weigh(positive, p_slope)
        slopes *= weight
        batch.gradient[where] = slopes if weight.all() else np.where(weight == 0, 0, slopes)
    return losses if weight.all() else np.where(weight == 0, 0, losses)


def term_weights(labels: Labels, recipe: SigmoidRecipe, where: tuple) -> Tuple[np.ndarray, np.ndarray]:
    """What -q^g log p and -p^g log q of each entry of a block are multiplied by; 0 where the label is unknown."""
    targets = labels.targets(where, recipe.scale, recipe.background)
    negative = recipe.negative * (1 - targets)
    unknown = labels.unknown(where)
    if unknown is not None:
        negative[unknown] = 0  # as the targets are already
    targets *= recipe.positive
    return targets, negative


def weigh(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Their product; 0 where the weight is 0, even if the value is infinite or NaN."""
    product = weights * values
    return product if np.isfinite(product.sum()) else np.where(weights == 0, 0, product)


def explain_sigmoid(batch: Batch) -> InputError:
    labels = read_labels(batch.labels, batch.layout, batch.options)
    recipe = sigmoid_recipe(labels, batch.weight, batch.layout, batch.options)

    def bad_scores(where: tuple) -> np.ndarray:
        positive, negative = term_weights(labels, recipe, where)
        below, above = batch.scores[where] < np.inf, batch.scores[where] > -np.inf  # both are false for NaN
        return (~above & (positive > 0)) | (~below & (negative > 0))

    losses = sigmoid_losses(batch._replace(gradient=None, probs=None))
    return nonfinite_loss(batch, losses.each, bad_scores, "-inf only where the target is 0, inf only where it is 1")
