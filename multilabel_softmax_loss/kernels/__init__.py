"""The losses' inner passes, compiled by numba: float32 arrays, numbers and a range go in, sums come out.

    =================  ===================================================  ====================
    kernel             when                                                 range
    =================  ===================================================  ====================
    softmax_rows       softmax, (N, C), one position after the other        rows
    softmax_maps       softmax, (N, C, S), and (N, C) of many short rows,   tiles of places
                       which are read as one map (1, C, N)
    sigmoid_lines      sigmoid; a line is a row, one class of a map, or,    lines
                       where no option tells entries apart, any run of
                       them
    ranking_positions  ranking losses                                       positions
    scale_entries      multiplies a gradient                                entries
    None               float64 and other types, arrays that are not in C    NumPy does it
                       order, empty ones, "kl"; a bad label or a position
                       that must not be empty: NumPy says which
    =================  ===================================================  ====================

The formulas are those of the same names in losses/, written a second time; tests compare them. Nothing here knows the
rest of the package. Kernels know nothing of threads: those of a large batch get a range each.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

from .compiling import compiled, machine_code, use_wide_vectors
from .maps import softmax_maps, tile_width
from .ranking import ranking_positions
from .rows import softmax_rows
from .sigmoid import RUN, sigmoid_lines
from .threads import Team, count_threads

TEAM = Team(count_threads())
SHARED_ENTRIES = 1 << 20  # fewer scores are not worth another thread, which is asleep while other work is done
SHORT = 64  # rows of fewer classes are read as a map, if there are at least so many rows
NO_ENTRIES, NO_WEIGHT = np.empty(0, np.float32), np.empty(0)


class Plan(NamedTuple):
    """A kernel with all of its arguments that do not change from batch to batch."""

    kernel: Any
    constants: tuple
    positions: int  # what the kernel's range counts: rows, tiles or lines
    entries: int

    def __call__(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        weight: Optional[np.ndarray],
        gradient: Optional[np.ndarray],
        probs: Optional[np.ndarray],
        factor: float,
    ) -> Optional[Tuple[float, float]]:
        """The sums of u L and of what VALID counts, or None where NumPy has to look at the labels.

        `weight` is float64, one per position; the gradient, times `factor`, and the probabilities are written.
        """
        arguments = (
            scores.reshape(-1),
            labels.reshape(-1),
            NO_WEIGHT if weight is None else weight.reshape(-1),
            NO_ENTRIES if gradient is None else gradient.reshape(-1),
            NO_ENTRIES if probs is None else probs.reshape(-1),
            factor,
            *self.constants,
        )
        if self.entries < SHARED_ENTRIES:
            total, counted, good = self.kernel(*arguments, 0, self.positions)
            return (total, counted) if good else None
        totals, counts, goods = zip(*TEAM.run(self.kernel, arguments, self.positions))
        return (sum(totals), sum(counts)) if all(goods) else None


def suits(scores: np.ndarray, labels: np.ndarray) -> bool:
    """Whether arrays are of the one kind that the kernels are compiled for, that of Caffe's blobs."""
    return bool(
        scores.dtype == labels.dtype == np.float32
        and scores.flags.c_contiguous
        and labels.flags.c_contiguous
        and scores.flags.aligned
        and labels.flags.aligned
        and scores.size
        and labels.size
    )


def label_constants(lists: Optional[int], ignore_label: Optional[float]) -> tuple:
    """length, ignoring and ignore_label as the kernels take them."""
    return lists or 0, lists is None and ignore_label is not None, ignore_label or 0


def plan_softmax(
    shape: Tuple[int, int, int],
    *,
    lists: Optional[int],
    ignore_label: Optional[float],
    class_weight: Optional[np.ndarray],
    normalization: int,
    smoothing: float,
    empty: int,
) -> Plan:
    """The softmax loss of scores (N, C, S); labels are lists of so many class indices, or shaped like the scores.

    `normalization` is 0 for labels over their sum, 1 over their number, 2 as they are; `empty` is 0 to ignore positions
    without label, 1 for uniform targets, 2 where they are an error.
    """
    outer, classes, inner = shape
    entries = outer * classes * inner
    class_weight = NO_WEIGHT if class_weight is None else class_weight
    options = (class_weight, *label_constants(lists, ignore_label), normalization, smoothing, empty, classes)
    if inner == 1 and not (classes < SHORT and outer >= SHORT):
        return Plan(machine_code(softmax_rows), options, outer, entries)
    turned = inner == 1
    outer, places = (1, outer) if turned else (outer, inner)
    width = tile_width(classes, places)
    return Plan(machine_code(softmax_maps), (*options, places, width, turned), outer * -(-places // width), entries)


def plan_sigmoid(
    shape: Tuple[int, int, int],
    *,
    lists: Optional[int],
    ignore_label: Optional[float],
    positive: np.ndarray,
    negative: np.ndarray,
    smoothing: float,
    gammas: Tuple[float, float],
    margin: float,
    weighted: bool,
) -> Plan:
    """The sigmoid loss of scores (N, C, S), with labels as in plan_softmax().

    `positive` and `negative` (C) are the weights of the two terms of each class, `gammas` their powers; `weighted` says
    whether there are sample weights.
    """
    outer, classes, inner = shape
    entries = outer * classes * inner
    alike = bool((positive == 1).all() and (negative == 1).all())
    focal = (*gammas, margin)
    plain = lists is None and ignore_label is None and alike and smoothing == 0 and not any(focal) and not weighted
    lines = -(-entries // RUN) if plain else outer if inner == 1 else outer * classes
    constants = (positive, negative, *label_constants(lists, ignore_label), smoothing, *focal)
    return Plan(machine_code(sigmoid_lines), (*constants, classes, inner, plain), lines, entries)


def plan_ranking(
    shape: Tuple[int, int, int],
    *,
    lists: Optional[int],
    ignore_label: Optional[float],
    class_weight: Optional[np.ndarray],
    ranking: int,
    margin: float,
    per_pair: bool,
    empty: int,
) -> Plan:
    """A ranking loss of scores (N, C, S), with labels as in plan_softmax(); the rest is explained in ranking.py."""
    outer, classes, inner = shape
    class_weight = NO_WEIGHT if class_weight is None else class_weight
    options = (class_weight, *label_constants(lists, ignore_label), ranking, margin, per_pair, empty, classes, inner)
    return Plan(machine_code(ranking_positions), options, outer * inner, outer * classes * inner)


@compiled
def scale_entries(gradient, step, start, stop):
    use_wide_vectors()
    for k in range(start, stop):
        gradient[k] = step * gradient[k]
    return 0.0, 0.0, True


def scale(gradient: np.ndarray, step: float) -> None:
    """Multiply a float32 array in C order by a number, in place; each product is rounded once."""
    kernel, arguments, entries = machine_code(scale_entries), (gradient.reshape(-1), step), gradient.size
    if entries < SHARED_ENTRIES:
        kernel(*arguments, 0, entries)
    else:
        TEAM.run(kernel, arguments, entries)
