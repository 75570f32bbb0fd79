"""Sigmoid cross-entropy, plain, focal or asymmetric, for several labels per position: loss and gradient, in NumPy."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Tuple

import numpy as np

from .evaluate import Block, Loss, loss_and_gradient
from .options import SigmoidOptions
from .targets import column, sigmoid_weights


def sigmoid_cross_entropy(
    scores: Any, labels: Any, sample_weight: Any = None, **options: Any
) -> Tuple[float, np.ndarray]:
    """Sigmoid cross-entropy of labels that do not exclude each other, plain, focal or asymmetric, and its gradient.

    With t the target of an entry, p the sigmoid of its score s, q = 1 - p, w the class weight, v `pos_weight`,
    u the sample weight, g and h the `focal_gamma` of the positive and of the negative term, a = max(p - m, 0) with m
    `negative_margin`, b = 1 - a, and alpha and 1 - alpha the focal weights (both 1 without `focal_alpha`)::

        L        = -w [v alpha t q^g log p + (1 - alpha) (1 - t) a^h log b]
        loss     = sum over entries of u L / divisor
        dL/ds    = w [(1 - alpha) (1 - t) a^h (1/b - h/a log b) p q - v alpha t q^g (q - g p log p)]
        gradient = u dL/ds / divisor

    The gradient follows from dp/ds = p q: the derivative of q^g is -g q^g p and that of log p is q, so that of
    q^g log p is q^g (q - g p log p). Without a margin the negative term is its mirror image, p^h (p - h q log q); for
    g = h = 0, all weights 1 and no alpha the gradient is p - t. Where p <= m the negative term and its gradient are 0;
    for h = 0 its slope jumps to m (1 - m) beyond, and at p = m it is 0, that of the side below. Each of the two terms
    is a product of numbers >= 0, made of log p = -log(1 + exp(-s)) and log b = -log(1 + a/b), so none loses digits or
    overflows, whatever the scores and g, but those of p - m where the two are nearly equal.

    By default targets are the labels, and the divisor is the batch size.

    Parameters
    ----------
    scores : array, (N, C), (N, C, H, W) or any shape with a class axis
        Log-odds. -inf is legal where the target is 0, +inf where it is 1 or there is a margin.
    labels : array, the shape of `scores`; with ``label_format="indices"`` K class indices in place of C classes
        From 0 to 1; the classes of a list are 1, the others 0.
    sample_weight : array, one entry per position or per sample, optional
        Finite and >= 0.
    **options
        The fields of :class:`SigmoidOptions`: axis, label_format, normalization, ignore_label, label_smoothing,
        class_weight, pos_weight, focal_gamma, focal_alpha, negative_margin, nonfinite.

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
    Ridnik et al., Asymmetric Loss for Multi-Label Classification, arXiv:2009.14119 (g, h and m).
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
            **self.label_arguments(),
            positive=positive,
            negative=negative,
            smoothing=options.label_smoothing,
            gammas=options.gammas,
            margin=options.negative_margin,
            weighted=layout.sample_weight is not None,
        )

    def block(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray], where: tuple) -> Block:
        positive, negative = self.terms(labels, known)
        losses, gradient, probs = sigmoid_terms(
            scores, positive, negative, self.options.gammas, self.options.negative_margin
        )
        count = np.full(losses.shape, labels.shape[1]) if known is None else known.sum(axis=1, keepdims=True)
        return Block(losses, count, gradient, probs)

    def faults(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
        positive, negative = self.terms(labels, known)
        # Both are false for NaN. With a margin log(1 - p + m) is finite everywhere.
        below, above = scores < np.inf if self.options.negative_margin == 0 else scores == scores, scores > -np.inf
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
    scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, gammas: Tuple[float, float], margin: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss of each position, its gradient and the probabilities p; the formula is that of sigmoid_cross_entropy().

    Parameters
    ----------
    scores, positive, negative : float64 arrays, (n, C) or (n, C, S)
        The last two are the weights of -q^g log p and -a^h log b of each entry.
    gammas : g and h
    margin : float

    Returns
    -------
    losses : (n, 1) or (n, 1, S)
        Summed over the classes.
    gradient, probs : the shape of the scores
    """
    exps = np.exp(-np.abs(scores))  # cannot overflow
    log1p_exps = np.log1p(exps)
    minus_log_p, minus_log_q = np.maximum(-scores, 0) + log1p_exps, np.maximum(scores, 0) + log1p_exps
    larger, smaller = 1 / (1 + exps), exps / (1 + exps)
    p, q = np.where(scores < 0, smaller, larger), np.where(scores < 0, larger, smaller)
    p_cost, p_slope = focal_term(q, p, minus_log_q, minus_log_p, gammas[0])
    if margin:
        q_cost, q_slope = shifted_term(p, q, gammas[1], margin)
    else:
        q_cost, q_slope = focal_term(p, q, minus_log_p, minus_log_q, gammas[1])
    losses = (weigh(positive, p_cost) + weigh(negative, q_cost)).sum(axis=1, keepdims=True)
    return losses, weigh(negative, q_slope) - weigh(positive, p_slope), p


def focal_term(
    p: np.ndarray, q: np.ndarray, minus_log_p: np.ndarray, minus_log_q: np.ndarray, gamma: float
) -> Tuple[np.ndarray, np.ndarray]:
    """-p^gamma log q and its slope in the score whose sigmoid is p."""
    if not gamma:
        return minus_log_q, p
    power = np.exp(-gamma * minus_log_p)
    return power * minus_log_q, power * (p + gamma * q * minus_log_q)


def shifted_term(p: np.ndarray, q: np.ndarray, gamma: float, margin: float) -> Tuple[np.ndarray, np.ndarray]:
    """-a^gamma log b and its slope in the score whose sigmoid is p; both are 0 where p <= margin."""
    a, b = p - margin, q + margin
    minus_log_b = np.log1p(a / b)  # b = 1 / (1 + a / b), as a + b = 1; so no small a loses digits
    power, inside = a**gamma, ~(a <= 0)  # NaN is inside
    slope = power * (p * q) * (1 / b + gamma * minus_log_b / a)
    return np.where(inside, power * minus_log_b, 0), np.where(inside, slope, 0)


def weigh(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Their product; 0 where the weight is 0, even if the value is infinite or NaN."""
    product = weights * values
    return product if np.isfinite(product.sum()) else np.where(weights == 0, 0, product)
