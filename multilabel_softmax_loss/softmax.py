"""Softmax cross-entropy for several labels per position: formula, loss and gradient, in NumPy."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, Optional, Tuple

import numpy as np

from .blobs import InputError, Layout, real_array
from .options import SoftmaxOptions
from .targets import Labels, Recipe, checked_weights, read_labels, softmax_recipe

# Below this sum of exponentials, whose largest is 1, log(sum) and p - t lose digits to cancellation.
SATURATED = 1 + 1e-3


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
    checked = SoftmaxOptions.make(options)
    scores, labels = real_array(scores, "scores"), real_array(labels, "labels")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if sample_weight is not None:
        sample_weight = real_array(sample_weight, "sample weights")
    weight_shape = None if sample_weight is None else sample_weight.shape
    layout = Layout(scores.shape, labels.shape, weight_shape, checked)
    gradient = np.empty(scores.shape, scores.dtype)
    loss, divisor = evaluate_softmax(scores, labels, sample_weight, layout, checked, gradient)
    gradient *= gradient.dtype.type(1 / divisor if divisor else 0)
    return loss, gradient


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
    weight = checked_weights(sample_weight, layout)
    scores, labels = layout.view(scores, layout.classes), layout.view(labels, layout.label_width)
    gradient = None if gradient is None else layout.view(gradient, layout.classes)
    probs = None if probs is None else layout.view(probs, layout.classes)
    losses, weights = compiled_losses(scores, labels, weight, layout, options, gradient, probs) or numpy_losses(
        scores, labels, weight, layout, options, gradient, probs
    )
    divisor = normalizer(options.normalization, weights, layout)
    loss = float(losses.sum()) / divisor if divisor else 0.0
    if options.nonfinite == "error" and not np.isfinite(loss):
        raise nonfinite_loss(scores, labels, weight, layout, options)
    return loss, divisor


def compiled_losses(
    scores, labels, weight, layout, options, gradient, probs
) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """What `numpy_losses` returns, by the kernels; None where they do not apply or met something odd."""
    backend = kernels()
    if backend is None or not backend.fits(scores, labels, options):
        return None
    done = backend.softmax_losses(scores, labels, weight, layout, options, gradient, probs)
    if done is None or (options.empty == "error" and not done[1].all()):
        return None
    losses, weights = done
    if not np.isnan(losses.sum()):
        return losses, weights
    odd = np.flatnonzero(np.isnan(losses))
    if 2 * len(odd) > layout.positions:
        return None
    # These few positions as a batch of their own, by NumPy.
    picked = np.unravel_index(odd, (layout.outer, layout.inner))
    where = picked[:1] if layout.flat else (picked[0], slice(None), picked[1])
    part = Layout((len(odd), layout.classes), (len(odd), layout.label_width), None, options.on_axis(1))
    outputs = [
        None if array is None else np.empty((len(odd), layout.classes), array.dtype) for array in (gradient, probs)
    ]
    part_weight = None if weight is None else weight.reshape(-1, 1)[odd]
    losses[odd] = numpy_losses(scores[where], labels[where], part_weight, part, options, *outputs)[0].ravel()
    for array, output in zip((gradient, probs), outputs):
        if array is not None:
            array[where] = output
    return losses, weights


def numpy_losses(
    scores: np.ndarray,
    labels: np.ndarray,
    weight: Optional[np.ndarray],
    layout: Layout,
    options: SoftmaxOptions,
    gradient: Optional[np.ndarray] = None,
    probs: Optional[np.ndarray] = None,
) -> Tuple[np.ndarray, np.ndarray]:
    """u L and u of each position, float64; arrays are views of the layout, the gradient is u (m p - t)."""
    read = read_labels(labels, layout, options)
    recipe = softmax_recipe(read, weight, layout, options)
    losses = np.empty(layout.shape(1))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        for where in layout.blocks():
            losses[where] = softmax_block(scores, read, recipe, where, options, gradient, probs)
        return losses * recipe.weight, recipe.weight


def softmax_block(
    scores: np.ndarray,
    labels: Labels,
    recipe: Recipe,
    where: tuple,
    options: SoftmaxOptions,
    gradient: Optional[np.ndarray],
    probs: Optional[np.ndarray],
) -> np.ndarray:
    """L of each position of the block `where`, 0 where its weight is 0; writes the block's gradient and probabilities.

    With z = s - max(s), L = m log(sum_k exp(z_k)) - sum_k t_k z_k: no term is negative, so nothing cancels.
    """
    scale, background, mass, weight = recipe.at(where)
    shifted = scores[where].astype(np.float64)
    unknown = labels.unknown(where)
    if unknown is not None:
        shifted[unknown] = -np.inf
    peak = shifted.max(axis=1, keepdims=True)
    shifted -= np.where(peak == -np.inf, 0, peak)
    exps = np.exp(shifted)  # cannot overflow: the largest is 1
    sums = exps.sum(axis=1, keepdims=True)
    saturated = sums < SATURATED
    log_sums = np.log(sums)
    if saturated.any():
        log_sums[saturated] = np.log1p(sum_of_others(exps, saturated))
    if unknown is not None:
        shifted[unknown] = 0  # their target is 0, and 0 times infinity is not
    losses = mass * log_sums - labels.expect(shifted, where, scale, background)
    if options.divergence == "kl":
        losses += negative_entropy(labels.targets(where, scale, background), mass)
    if probs is not None:
        probs[where] = np.where(sums > 0, exps / sums, 0) if unknown is not None else exps / sums
    if gradient is not None:
        exps *= weight * mass / sums
        labels.subtract_from(exps, where, weight * scale, weight * background)
        if saturated.any():
            balance(exps, shifted, saturated)
        gradient[where] = exps if weight.all() else np.where(weight == 0, 0, exps)
    return losses if weight.all() else np.where(weight == 0, 0, losses)


def sum_of_others(exps: np.ndarray, saturated: np.ndarray) -> np.ndarray:
    """The sum of each saturated position's exponentials without its largest, which is 1."""
    rows = np.moveaxis(exps, 1, -1)[np.moveaxis(saturated, 1, -1)[..., 0]]
    np.put_along_axis(rows, rows.argmax(axis=1)[:, None], 0, axis=1)
    return rows.sum(axis=1)


def balance(gradient: np.ndarray, shifted: np.ndarray, saturated: np.ndarray) -> None:
    """Set the entry of each saturated position's largest score to minus the sum of the others.

    The entries of a position sum to 0; there m p_k - t_k is the difference of two nearly equal numbers.
    """
    rows_of = np.moveaxis(saturated, 1, -1)[..., 0]
    rows = np.moveaxis(gradient, 1, -1)[rows_of]
    best = np.moveaxis(shifted, 1, -1)[rows_of].argmax(axis=1)[:, None]
    np.put_along_axis(rows, best, 0, axis=1)
    np.put_along_axis(rows, best, -rows.sum(axis=1, keepdims=True), axis=1)
    np.moveaxis(gradient, 1, -1)[rows_of] = rows


def negative_entropy(targets: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """sum_k t_k log(t_k / m), with 0 log 0 = 0."""
    ratio = np.divide(targets, mass, out=np.ones_like(targets), where=targets > 0)
    return (targets * np.log(ratio)).sum(axis=1, keepdims=True)


def nonfinite_loss(
    scores: np.ndarray, labels: np.ndarray, weight: Optional[np.ndarray], layout: Layout, options: SoftmaxOptions
) -> InputError:
    """The error that names the score behind the first loss that is not finite."""
    losses, _ = numpy_losses(scores, labels, weight, layout, options)
    position = np.argwhere(~np.isfinite(losses))
    if not len(position):
        return InputError(
            "scores", "the losses are finite but not their sum; {scores} or {sample_weight} are too large"
        )
    outer, _, *inner = position[0]
    where = (slice(outer, outer + 1), slice(None), *(slice(place, place + 1) for place in inner))
    block = scores[where]
    read = read_labels(labels, layout, options)
    scale, background, _, _ = softmax_recipe(read, weight, layout, options).at(where)
    bad = np.isnan(block) | (block == np.inf)
    bad |= (block == -np.inf) & (read.targets(where, scale, background) > 0)
    unknown = read.unknown(where)
    if unknown is not None:
        bad &= ~unknown
    value = losses[tuple(position[0])]
    if not bad.any():
        place = layout.locate(position[0], name_class=False)
        return InputError("scores", f"{{scores}} has no finite value at {place}; the loss there is {value:g}")
    first = np.argwhere(bad)[0]
    return InputError(
        "scores",
        f"{{scores}} has {block[tuple(first)]:g} at {layout.locate(first, where)}; expected finite scores "
        f"(-inf only where the target is 0). The loss there is {value:g}",
    )


def normalizer(normalization: str, weights: np.ndarray, layout: Layout) -> float:
    """What the summed loss and its gradient are divided by; `weights` is 0 at positions that are not counted."""
    if normalization == "VALID":
        return float(weights.sum())
    return float({"FULL": layout.positions, "BATCH_SIZE": layout.outer, "NONE": 1}[normalization])


@lru_cache(maxsize=None)
def kernels() -> Any:
    """The compiled kernels, or None: as MULTILABEL_SOFTMAX_LOSS_KERNELS says, else where numba is installed."""
    wanted = os.environ.get("MULTILABEL_SOFTMAX_LOSS_KERNELS", "")
    if wanted not in ("", "numpy", "numba"):
        raise ValueError(f"MULTILABEL_SOFTMAX_LOSS_KERNELS is {wanted!r}; expected 'numpy' or 'numba', or nothing")
    if wanted == "numpy":
        return None
    try:
        from . import kernels as module
    except ImportError:
        if wanted == "numba":
            raise
        return None
    return module
