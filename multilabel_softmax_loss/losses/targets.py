"""From labels to targets: formats, the 1/M rule, smoothing, empty positions, unknown classes and weights.

All of it block by block, so that lists of class indices never become an array as large as the scores. A block is what
one index of Layout.blocks() selects; its arrays are (n, C) or (n, C, S), with numbers per position (n, 1) or (n, 1, S).
"""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from ..errors import InputError
from .layout import Layout
from .options import Options, SigmoidOptions, SoftmaxOptions


def read_labels(
    labels: np.ndarray, where: tuple, layout: Layout, options: Options
) -> Tuple[np.ndarray, Optional[np.ndarray]]:
    """The labels of a block of either format, and which of them are known.

    Returns
    -------
    values : float64 array, (n, C) or (n, C, S)
        0 where unknown. The classes of a list are 1, the others 0; a repeated index counts once.
    known : bool array of that shape, or None where all are

    Raises
    ------
    InputError : a label is negative, too high or not finite, or an index is none; the message names it.
    """
    if options.label_format == "indices":
        return read_lists(labels[where], where, layout, options), None
    block, known = labels[where], None
    values = block.astype(np.float64)
    if options.ignore_label is not None:
        # Compared in the type of the labels: 0.1 in a float32 blob is not 0.1 in float64.
        known = block != np.asarray(options.ignore_label, block.dtype if block.dtype.kind == "f" else np.float64)
        values[~known] = 0
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= min(options.highest_label, np.finfo(float).max)):
        raise bad_label(values, where, layout, options)
    return values, known


def bad_label(values: np.ndarray, where: tuple, layout: Layout, options: Options) -> InputError:
    highest = options.highest_label
    first = np.argwhere(~((values >= 0) & (values <= highest) & np.isfinite(values)))[0]
    expected = f"labels from 0 to {highest:g}" if np.isfinite(highest) else "finite labels >= 0"
    return InputError(
        "labels", f"{{labels}} has {values[tuple(first)]:g} at {layout.locate(first, where)}; expected {expected}"
    )


def read_lists(lists: np.ndarray, where: tuple, layout: Layout, options: Options) -> np.ndarray:
    """Lists of class indices (n, K) or (n, K, S), padded with `options.padding`, as labels of 0 and 1."""
    used = lists != options.padding
    good = (lists >= 0) & (lists < layout.classes) & (lists == np.floor(lists))
    if not (good | ~used).all():
        first = np.argwhere(used & ~good)[0]
        raise InputError(
            "labels",
            f"{{labels}} has {lists[tuple(first)]:g} at {layout.locate(first, where, name_class=False)}, "
            f"entry {first[1]} of the list; "
            f"expected whole numbers from 0 to {layout.classes - 1}, or {options.padding:g} where the list is over",
        )
    values = np.zeros((lists.shape[0], layout.classes + 1, *lists.shape[2:]))
    np.put_along_axis(values, np.where(used, lists, layout.classes).astype(np.intp), 1.0, axis=1)
    return values[:, :-1]  # the last class took the padding


def softmax_targets(
    labels: np.ndarray, known: Optional[np.ndarray], class_weight: Optional[np.ndarray], options: SoftmaxOptions
) -> Tuple[np.ndarray, np.ndarray]:
    """The targets t of labels y as `read_labels` returns them, with M the number of a position's labels that are not 0.

    ======================  ============================================================================
    `label_normalization`   t = y / sum(y), so 1/M on each of M labels of 1; or y / M; or y
    `label_smoothing` e     t <- (1-e) t + e m / C', m = sum(t), over the C' classes that are known
    `empty` "uniform"       t = 1 / C' where no label is positive; such a position is ignored otherwise
    `class_weight` w        t <- w t
    ======================  ============================================================================

    Returns
    -------
    targets : float64 array, the shape of the labels
    counted : bool array, one per position; False where it is ignored

    Raises
    ------
    InputError : the labels of a position are finite, but not their sum.

    References
    ----------
    Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, arXiv:1805.00932 (1/M).
    R. Gomez, Understanding Categorical Cross-Entropy Loss, ..., 2018 (real-valued labels for class balancing).
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567 (smoothing).
    """
    total, count = labels.sum(axis=1, keepdims=True), np.count_nonzero(labels, axis=1, keepdims=True)
    if not np.isfinite(total).all():
        raise InputError("labels", "{labels} has values so large that their sum overflows")
    size = labels.shape[1] if known is None else np.maximum(np.count_nonzero(known, axis=1, keepdims=True), 1)
    parts = {"l1": total, "count": count, "none": 1.0}[options.label_normalization]
    targets = labels / np.where(total > 0, parts, 1)  # the 1/M rule
    if options.label_smoothing:
        mass = targets.sum(axis=1, keepdims=True)
        targets = (1 - options.label_smoothing) * targets + spread(options.label_smoothing * mass / size, known)
    counted = total > 0
    if options.empty == "uniform":
        targets = np.where(counted, targets, spread(np.ones(total.shape) / size, known))
        counted = np.ones(total.shape, bool) if known is None else known.any(axis=1, keepdims=True)
    return targets if class_weight is None else class_weight * targets, counted


def spread(share: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
    """A number per position, for each of its known classes."""
    return share if known is None else share * known


def refuse_empty(counted: np.ndarray, known: Optional[np.ndarray], where: tuple, layout: Layout) -> None:
    """Raise an InputError that names a position of a block which has known classes, but does not count."""
    missing = ~counted if known is None else ~counted & known.any(axis=1, keepdims=True)
    if missing.any():
        place = layout.locate(np.argwhere(missing)[0], where, name_class=False)
        raise InputError("empty", f"{{labels}} has no positive label at {place}")


def sigmoid_weights(options: SigmoidOptions, classes: int) -> Tuple[np.ndarray, np.ndarray]:
    """The weights of the two terms of each class, t log p and (1-t) log(1-p): w v alpha and w (1 - alpha).

    With w `class_weight`, v `pos_weight` and alpha `focal_alpha`; without the last there is no factor of it.

    Returns
    -------
    positive, negative : (C,) float64 arrays
    """
    class_weight = np.ones(classes) if options.class_weight is None else options.class_weight
    pos_weight = 1.0 if options.pos_weight is None else options.pos_weight
    if options.focal_alpha is None:
        return class_weight * pos_weight, class_weight * 1.0
    return class_weight * pos_weight * options.focal_alpha, class_weight * (1 - options.focal_alpha)


def checked_weights(sample_weight: Optional[np.ndarray], layout: Layout) -> Tuple[Optional[np.ndarray], float]:
    """The weight of each position over the largest, float64, (outer, 1) or (outer, 1, inner), and that largest.

    None and 1 for none. Divided so, tiny and huge weights neither lose digits nor overflow.

    Raises
    ------
    InputError : a weight is negative or not finite.
    """
    if sample_weight is None:
        return None, 1.0
    weight = layout.view_weight(sample_weight).astype(np.float64)
    if not ((weight >= 0) & (weight < np.inf)).all():
        bad = np.argwhere(~((weight >= 0) & (weight < np.inf)))[0]
        raise InputError(
            "sample_weight",
            f"{{sample_weight}} has {weight[tuple(bad)]:g} at {layout.locate(bad, name_class=False)}; "
            "expected finite weights >= 0",
        )
    largest = float(weight.max(initial=0)) or 1.0
    return weight / largest, largest


def column(class_weight: np.ndarray, layout: Layout) -> np.ndarray:
    """Class weights shaped to broadcast against a view of the scores."""
    return class_weight if layout.flat else class_weight.reshape(-1, 1)
