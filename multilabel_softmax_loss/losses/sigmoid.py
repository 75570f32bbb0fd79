"""Sigmoid cross-entropy and focal loss for several labels per position: formula, loss and gradient, in NumPy."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Tuple

import numpy as np

from .evaluate import Block, Loss, loss_and_gradient
from .options import SigmoidOptions
from .targets import column, sigmoid_weights


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
    return loss_and_gradient(SigmoidLoss, options, scores, labels, sample_weight)


class SigmoidLoss(Loss):
    """The sigmoid loss of batches that are laid out alike.

    VALID counts the known entries, FULL all entries, and BATCH_SIZE the first axis, as Caffe's SigmoidCrossEntropyLoss
    does, which knows of no class axis.
    """

    options_class = SigmoidOptions
    options: SigmoidOptions
    legal_scores = "-inf only where the target is 0, inf only where it is 1"

    def sizes(self) -> Mapping[str, float]:
        layout = self.layout
        return {"FULL": layout.positions * layout.classes, "BATCH_SIZE": layout.scores[0], "NONE": 1}

    def plan(self, kernels: Any) -> Any:
        options, layout = self.options, self.layout
        positive, negative = sigmoid_weights(options, layout.classes)
        return kernels.plan_sigmoid(
            (layout.outer, layout.classes, layout.inner),
            lists=layout.label_width if options.label_format == "indices" else None,
            ignore_label=options.padding if options.label_format == "indices" else options.ignore_label,
            positive=positive,
            negative=negative,
            smoothing=options.label_smoothing,
            gamma=options.focal_gamma,
            weighted=layout.sample_weight is not None,
        )

    def block(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray], where: tuple) -> Block:
        positive, negative = self.terms(labels, known)
        losses, gradient, probs = sigmoid_terms(scores, positive, negative, self.options.focal_gamma)
        count = np.full(losses.shape, labels.shape[1]) if known is None else known.sum(axis=1, keepdims=True)
        return Block(losses, count, gradient, probs)

    def faults(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
        positive, negative = self.terms(labels, known)
        below, above = scores < np.inf, scores > -np.inf  # both are false for NaN
        return (~above & (positive > 0)) | (~below & (negative > 0))

    def terms(self, labels: np.ndarray, known: Optional[np.ndarray]) -> Tuple[np.ndarray, np.ndarray]:
        """The weights of -q^g log p and -p^g log q of each entry, from its target t = (1-e) y + e/2."""
        smoothing = self.options.label_smoothing
        targets = (1 - smoothing) * labels + smoothing / 2
        of_class = sigmoid_weights(self.options, self.layout.classes)
        positive, negative = (column(weight, self.layout) for weight in of_class)
        positive, negative = positive * targets, negative * (1 - targets)
        if known is not None:
            positive[~known] = negative[~known] = 0
        return positive, negative


def sigmoid_terms(
    scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, gamma: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss of each position, its gradient and the probabilities p; the formula is that of sigmoid_cross_entropy().

    Parameters
    ----------
    scores, positive, negative : float64 arrays, (n, C) or (n, C, S)
        The last two are the weights of -q^g log p and -p^g log q of each entry.
    gamma : float

    Returns
    -------
    losses : (n, 1) or (n, 1, S)
        Summed over the classes.
    gradient, probs : the shape of the scores
    """
    exps = np.exp(-np.abs(scores))  # cannot overflow
    log1p_exps = np.log1p(exps)
    p_cost, q_cost = np.maximum(-scores, 0) + log1p_exps, np.maximum(scores, 0) + log1p_exps  # -log p and -log q
    larger, smaller = 1 / (1 + exps), exps / (1 + exps)
    p, q = np.where(scores < 0, smaller, larger), np.where(scores < 0, larger, smaller)
    p_slope, q_slope = q, p
    if gamma:
        q_power, p_power = np.exp(-gamma * q_cost), np.exp(-gamma * p_cost)
        p_slope, q_slope = q_power * (q + gamma * p * p_cost), p_power * (p + gamma * q * q_cost)
        p_cost, q_cost = q_power * p_cost, p_power * q_cost
    losses = (weigh(positive, p_cost) + weigh(negative, q_cost)).sum(axis=1, keepdims=True)
    return losses, weigh(negative, q_slope) - weigh(positive, p_slope), p


def weigh(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Their product; 0 where the weight is 0, even if the value is infinite or NaN."""
    product = weights * values
    return product if np.isfinite(product.sum()) else np.where(weights == 0, 0, product)
