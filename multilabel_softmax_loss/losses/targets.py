"""From labels to targets: formats, normalisation, smoothing, empty positions, unknown classes and weights.

Whatever the options, the targets of one position are an affine function of its labels y,

    t_k = w_k (a y_k + b)    over the classes that are known there, 0 elsewhere,

with w the class weights (1 in the sigmoid loss, where they are factors of the loss). So all options together come
down to two numbers per position, `scale` a and `background` b, and no array of targets as large as the scores is ever
needed: the losses read the labels as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import InputError
from .layout import BLOCK_ENTRIES, Layout
from .options import Options, SigmoidOptions, SoftmaxOptions

# Dense labels are listed where at most one of this many is not 0.
FEW = 8


class Statistics(NamedTuple):
    """What the targets need to know of each position's labels; arrays of (outer, 1) or (outer, 1, inner), float64."""

    total: np.ndarray  # sum of the labels
    positives: np.ndarray  # number of non-zero labels, M
    known: np.ndarray  # number of known classes
    weighted_total: np.ndarray  # sum of w_k y_k
    weighted_known: np.ndarray  # sum of w_k over the known classes


class Labels:
    """Labels of either format behind one interface; `where` is a block of Layout.blocks()."""

    layout: Layout
    statistics: Statistics
    class_weight: Optional[np.ndarray]  # shaped to broadcast against a view of the scores

    def unknown(self, where: tuple) -> Optional[np.ndarray]:
        """The mask of the unknown classes of a block, or None where there can be none."""
        raise NotImplementedError

    def targets(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> np.ndarray:
        """t of a block, float64, shaped like the scores' block. For lists the one place where it is made."""
        raise NotImplementedError

    def prepare(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> Any:
        """What `expect` and `subtract` need of a block."""
        raise NotImplementedError

    def expect(self, values: np.ndarray, where: tuple, prepared: Any) -> np.ndarray:
        """sum_k t_k values_k of each position of a block; 0 times infinity is 0."""
        raise NotImplementedError

    def subtract(self, weight: np.ndarray, array: np.ndarray, where: tuple, prepared: Any) -> None:
        """array_k -= weight t_k, in place; `prepared` is used up."""
        raise NotImplementedError


class DenseLabels(Labels):
    """Labels shaped like the scores.

    Raises
    ------
    InputError : a label is negative, too high, or not finite. It names the entry.
    """

    def __init__(self, labels: np.ndarray, layout: Layout, options: Options):
        self.values, self.layout = labels, layout
        weight = options.target_weight
        self.class_weight = None if weight is None else column(weight, layout)
        self.statistics = self._statistics(options)

    def _statistics(self, options: Options) -> Statistics:
        values, layout = self.values, self.layout
        self.highest = options.highest_label
        self.ignore_label: Optional[np.ndarray] = None
        if options.ignore_label is not None:
            # Compared in the type of the labels: 0.1 in a float32 blob is not 0.1 in float64.
            dtype = values.dtype if values.dtype.kind == "f" else np.float64
            self.ignore_label = np.asarray(options.ignore_label, dtype=dtype)
        total, positives, known, weighted_total, weighted_known = np.full((5,) + layout.shape(1), float(layout.classes))
        for where in layout.blocks():
            labels = self._known_labels(where)
            unknown = self.unknown(where)
            total[where] = labels.sum(axis=1, keepdims=True)
            if not (
                labels.min(initial=0) >= 0 and labels.max(initial=0) <= self.highest and np.isfinite(total[where]).all()
            ):
                raise self._bad_label(labels, where)
            if options.counts_labels:
                positives[where] = np.count_nonzero(labels, axis=1, keepdims=True)
            if unknown is not None:
                known[where] -= np.count_nonzero(unknown, axis=1, keepdims=True)
            if self.class_weight is not None:
                weighted_total[where] = (self.class_weight * labels).sum(axis=1, keepdims=True)
                known_weights = self.class_weight * (np.ones(labels.shape) if unknown is None else ~unknown)
                weighted_known[where] = known_weights.sum(axis=1, keepdims=True)
        if self.class_weight is None:
            return Statistics(total, positives, known, total, known)
        return Statistics(total, positives, known, weighted_total, weighted_known)

    def unknown(self, where: tuple) -> Optional[np.ndarray]:
        return None if self.ignore_label is None else self.values[where] == self.ignore_label

    def _known_labels(self, where: tuple) -> np.ndarray:
        labels = self.values[where].astype(np.float64)
        unknown = self.unknown(where)
        if unknown is not None:
            labels[unknown] = 0
        return labels

    def _bad_label(self, labels: np.ndarray, where: tuple) -> InputError:
        bad = np.argwhere(~((labels >= 0) & (labels <= self.highest) & np.isfinite(labels)))
        expected = f"labels from 0 to {self.highest:g}" if np.isfinite(self.highest) else "finite labels >= 0"
        if not len(bad):
            return InputError("labels", "{labels} has values so large that their sum overflows")
        return InputError(
            "labels",
            f"{{labels}} has {labels[tuple(bad[0])]:g} at {self.layout.locate(bad[0], where)}; expected {expected}",
        )

    def targets(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> np.ndarray:
        unknown = self.unknown(where)
        targets = np.multiply(self.values[where], scale, dtype=np.float64)
        if background.any():
            targets += background
        if unknown is not None:
            targets[unknown] = 0
        if self.class_weight is not None:
            targets *= self.class_weight
        return targets

    def prepare(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> Any:
        return self.targets(where, scale, background)

    def expect(self, values: np.ndarray, where: tuple, prepared: Any) -> np.ndarray:
        targets = prepared
        expected = sum_of_products(targets, values)
        if not np.isfinite(expected).all():
            expected = np.where(targets == 0, 0, targets * values).sum(axis=1, keepdims=True)
        return expected

    def subtract(self, weight: np.ndarray, array: np.ndarray, where: tuple, prepared: Any) -> None:
        if (weight != 1).any():
            prepared *= weight
        array -= prepared


def sum_of_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Their products summed over axis 1, which is kept; no array of their size is made."""
    return np.einsum("nk...,nk...->n...", one, other)[:, None]


class ListedLabels(Labels):
    """The labels that are not 0, one after the other; nothing of the size of the scores is made of them.

    Parameters
    ----------
    positions, classes : arrays of intp
        Where each of them is. Positions are counted over outer and inner, and ascend; no class comes twice in one.
    values : array of float64
    """

    def __init__(
        self, positions: np.ndarray, classes: np.ndarray, values: np.ndarray, layout: Layout, options: Options
    ):
        weight = options.target_weight
        self.layout = layout
        self.class_weight = None if weight is None else column(weight, layout)
        class_weight = np.ones(layout.classes) if weight is None else weight
        self.positions, self.classes, self.weights = positions, classes, class_weight[classes] * values
        total, count, weighted_total = (
            sum_by(positions, numbers, layout.positions).reshape(layout.shape(1))
            for numbers in (values, np.ones(values.shape), self.weights)
        )
        known, weighted_known = (np.full(count.shape, number) for number in (float(layout.classes), class_weight.sum()))
        self.statistics = Statistics(total, count, known, weighted_total, weighted_known)

    def unknown(self, where: tuple) -> Optional[np.ndarray]:
        return None

    def targets(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> np.ndarray:
        rows, width = self._extent(where)
        targets = np.zeros((rows, self.layout.classes) if self.layout.flat else (rows, self.layout.classes, width))
        self.subtract(np.array(-1.0), targets, where, self.prepare(where, scale, background))
        return targets

    def prepare(self, where: tuple, scale: np.ndarray, background: np.ndarray) -> Any:
        _, width = self._extent(where)
        columns = self._columns(where)
        first = where[0].start * self.layout.inner + columns.start
        last = (min(where[0].stop, self.layout.outer) - 1) * self.layout.inner + min(columns.stop, self.layout.inner)
        part = slice(*np.searchsorted(self.positions, (first, last)))
        positions, classes = self.positions[part] - first, self.classes[part]
        index = (positions, classes) if self.layout.flat else (positions // width, classes, positions % width)
        return positions, index, each(scale, positions) * self.weights[part], background

    def expect(self, values: np.ndarray, where: tuple, prepared: Any) -> np.ndarray:
        positions, index, targets, background = prepared
        shape = (values.shape[0], 1, *values.shape[2:])
        products = np.where(targets == 0, 0, targets * values[index])
        expected = sum_by(positions, products, values.size // self.layout.classes).reshape(shape)
        if background.any():
            weights = 1.0 if self.class_weight is None else self.class_weight
            totals = np.where(weights == 0, 0, weights * values).sum(axis=1, keepdims=True)
            expected += np.where(background == 0, 0, background * totals)
        return expected

    def subtract(self, weight: np.ndarray, array: np.ndarray, where: tuple, prepared: Any) -> None:
        positions, index, targets, background = prepared
        if background.any():
            array -= weight * background * (1.0 if self.class_weight is None else self.class_weight)
        array[index] -= each(weight, positions) * targets  # distinct places, so each is met once

    def _columns(self, where: tuple) -> slice:
        return where[2] if len(where) > 2 else slice(0, self.layout.inner)

    def _extent(self, where: tuple) -> Tuple[int, int]:
        """How many rows of outer, and of inner, a block has."""
        columns = self._columns(where)
        rows = min(where[0].stop, self.layout.outer) - where[0].start
        return rows, min(columns.stop, self.layout.inner) - columns.start


def each(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The number of each of some positions, of one number for all or one for each."""
    return numbers if numbers.ndim == 0 else numbers.ravel()[positions]


def sum_by(positions: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The sum of the numbers of each of `count` positions."""
    return np.bincount(positions, numbers, count).astype(np.float64)  # of no numbers it makes whole ones


def list_indices(labels: np.ndarray, layout: Layout, options: Options) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, classes and values for ListedLabels, of lists of class indices padded with `options.padding`."""
    given = labels != options.padding
    bad = given & ~((labels >= 0) & (labels < layout.classes) & (labels == np.floor(labels)))
    if bad.any():
        first = np.argwhere(bad)[0]
        raise InputError(
            "labels",
            f"{{labels}} has {labels[bad][0]:g} at {layout.locate(first, name_class=False)}, "
            f"entry {first[1]} of the list; "
            f"expected whole numbers from 0 to {layout.classes - 1}, or {options.padding:g} where the list is over",
        )
    indices = np.where(given, np.where(given, labels, 0).astype(np.intp), -1)
    lists = np.sort(np.moveaxis(indices, 1, -1).reshape(layout.positions, layout.label_width), axis=1)
    present = lists >= 0
    present[:, 1:] &= lists[:, 1:] != lists[:, :-1]  # a repeated index counts once
    positions, place = np.nonzero(present)
    return positions, lists[positions, place], np.ones(len(place))


def list_few(
    labels: np.ndarray, layout: Layout, options: Options
) -> Optional[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same of dense labels, if they are few; None otherwise, and where DenseLabels has to look at them."""
    if options.ignore_label is not None or not layout.flat or layout.classes < FEW**2:
        return None
    found = [np.empty(0, np.intp)]
    for (rows,) in layout.blocks(8 * BLOCK_ENTRIES):  # of truth values, an eighth of as many doubles
        block = labels[rows]
        places = np.flatnonzero(block != 0)
        if FEW * len(places) > block.size:
            return None
        found.append(places + rows.start * layout.classes)
    positions, classes = np.divmod(np.concatenate(found), layout.classes)
    values = labels[positions, classes].astype(np.float64)
    possible = ((values >= 0) & (values <= options.highest_label)).all() and np.isfinite(values.sum())
    return (positions, classes, values) if possible else None


def read_labels(labels: np.ndarray, layout: Layout, options: Options) -> Labels:
    """The labels in the format that the options name."""
    with np.errstate(over="ignore"):  # a sum that overflows is an error with a message
        listed = (list_indices if options.label_format == "indices" else list_few)(labels, layout, options)
        return DenseLabels(labels, layout, options) if listed is None else ListedLabels(*listed, layout, options)


def affine_targets(total, positives, known, weighted_total, weighted_known, parts, smoothing, uniform):
    """The affine function that makes softmax targets of labels; for arrays, and in the kernels for one position.

    With y the labels of a position, M the number of them that are not 0 and C' the number of its known classes::

        a = 1 / sum(y), m0 = 1          label_normalization "l1" (parts 0)
        a = 1 / M,      m0 = sum(y) / M "count" (parts 1)
        a = 1,          m0 = sum(y)     "none" (parts 2)
        t_k = (1-e) a y_k + e m0 / C'   label_smoothing e
        t_k = 1 / C'                    where no label is positive and these are `uniform`, else 0

    and then the class weights.

    Returns
    -------
    scale, background, mass : a, b and m = sum_k t_k, class weights included
    counted : False where the position is ignored

    References
    ----------
    Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, arXiv:1805.00932 ("l1" on multi-hot labels).
    R. Gomez, Understanding Categorical Cross-Entropy Loss, ..., 2018 ("count": real-valued labels for class balancing).
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567 (label smoothing).
    """
    # Truth values are factors here, so that the same lines serve arrays and, compiled, single numbers.
    labelled = 1.0 * (total > 0)
    is_empty = (1.0 - labelled) * (known > 0)
    whole = (parts == 0) * total + (parts == 1) * positives + (parts == 2) * labelled
    scale = labelled * (1 - smoothing) / (whole + (whole == 0))
    mass = total / (whole + (whole == 0))
    background = (labelled * smoothing * mass + is_empty * uniform) / (known + (known == 0))
    counted = labelled + is_empty * uniform > 0
    return scale, background, scale * weighted_total + background * weighted_known, counted


class Recipe(NamedTuple):
    """What turns the labels of a batch into targets and their losses into one; arrays have one entry per position."""

    scale: np.ndarray  # a
    background: np.ndarray  # b
    mass: np.ndarray  # m = sum_k t_k
    weight: np.ndarray  # sample weight u, 0 where the position is not counted

    def at(self, where: tuple) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """scale, background, mass and weight of a block."""
        return self.scale[where], self.background[where], self.mass[where], self.weight[where]


def softmax_recipe(
    labels: Labels, sample_weight: Optional[np.ndarray], layout: Layout, options: SoftmaxOptions
) -> Recipe:
    """Targets of the softmax loss for a whole batch; `sample_weight` as `checked_weights` returns it.

    Raises
    ------
    InputError : a position has no label under empty "error".
    """
    total, positives, known, weighted_total, weighted_known = labels.statistics
    has_positive, has_known = total > 0, known > 0
    if options.empty == "error" and not (has_positive | ~has_known).all():
        first = np.argwhere(~has_positive & has_known)[0]
        raise InputError("empty", f"{{labels}} has no positive label at {layout.locate(first, name_class=False)}")
    with np.errstate(over="ignore"):
        scale, background, mass, counted = affine_targets(
            total, positives, known, weighted_total, weighted_known, *options.affine_arguments
        )
    if np.isinf(scale).any():
        raise InputError("labels", "{labels} has values so small that dividing by their sum overflows")
    weight = np.where(counted, 1.0 if sample_weight is None else sample_weight, 0.0)
    return Recipe(scale, background, mass, weight)


class SigmoidRecipe(NamedTuple):
    """What turns the labels of a batch into the weights of the two terms of each entry, and their losses into one."""

    scale: np.ndarray  # a and b of t = a y + b, the same everywhere
    background: np.ndarray
    positive: np.ndarray  # weights of the terms of t and of 1-t; they broadcast against a view of the scores
    negative: np.ndarray
    weight: np.ndarray  # sample weight u of each position, 0 where no class is known


def sigmoid_terms(options: SigmoidOptions, classes: int) -> Tuple[float, float, np.ndarray, np.ndarray]:
    """How labels become targets of the sigmoid loss, and the weights of the two terms of each class.

    With y the labels, w the class weights, v the positive ones and alpha that of the focal loss (both factors are 1
    without it)::

        t        = a y + b with a = 1 - e, b = e / 2      label_smoothing e
        positive = w v alpha
        negative = w (1 - alpha)

    Returns
    -------
    a, b : float
    positive, negative : (C,) float64 arrays
    """
    smoothing, alpha = options.label_smoothing, options.focal_alpha
    class_weight = np.ones(classes) if options.class_weight is None else options.class_weight
    pos_weight = 1.0 if options.pos_weight is None else options.pos_weight
    positive = class_weight * pos_weight * (1.0 if alpha is None else alpha)
    negative = class_weight * (1.0 if alpha is None else 1 - alpha)
    return 1 - smoothing, smoothing / 2, positive, negative


def sigmoid_recipe(
    labels: Labels, sample_weight: Optional[np.ndarray], layout: Layout, options: SigmoidOptions
) -> SigmoidRecipe:
    """The same for a whole batch; `sample_weight` as `checked_weights` returns it."""
    scale, background, positive, negative = sigmoid_terms(options, layout.classes)
    weight = np.where(labels.statistics.known > 0, 1.0 if sample_weight is None else sample_weight, 0.0)
    return SigmoidRecipe(
        np.asarray(scale), np.asarray(background), column(positive, layout), column(negative, layout), weight
    )


def checked_weights(sample_weight: Optional[np.ndarray], layout: Layout) -> Optional[np.ndarray]:
    """The weight of each position as float64, (outer, 1) or (outer, 1, inner); None for none.

    Raises
    ------
    InputError : a weight is negative or not finite.
    """
    if sample_weight is None:
        return None
    weight = layout.view_weight(sample_weight).astype(np.float64)
    if not ((weight >= 0) & (weight < np.inf)).all():
        bad = np.argwhere(~((weight >= 0) & (weight < np.inf)))[0]
        raise InputError(
            "sample_weight",
            f"{{sample_weight}} has {weight[tuple(bad)]:g} at {layout.locate(bad, name_class=False)}; "
            "expected finite weights >= 0",
        )
    return weight


def column(class_weight: np.ndarray, layout: Layout) -> np.ndarray:
    """Class weights shaped to broadcast against a view of the scores."""
    return class_weight if layout.flat else class_weight.reshape(-1, 1)
