"""Scores, labels and sample weights as arrays: how they are laid out, and what to say when they do not fit."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Iterator, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from .options import Options

# Of one block's entries, at least one position. Smaller ones stay in the caches, larger ones take fewer calls of NumPy.
BLOCK_ENTRIES = 1 << 14


def real_array(array: Any, name: str) -> np.ndarray:
    """`array` as a NumPy array; a TypeError unless it holds real numbers, all of which count."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} are a masked array, whose mask would be lost; expected a plain one. Give unknown labels the value "
            "of ignore_label, as in labels.filled(-1) with ignore_label=-1, and samples that do not count a "
            "sample_weight of 0"
        )
    try:
        array = np.asarray(array)
    except ValueError as error:  # NumPy >= 1.24 says so of rows that differ in length
        raise TypeError(f"{name} are no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} have dtype {array.dtype}; expected real numbers")
    return array


def strip_ones(shape: Sequence[int], keep: int) -> Tuple[int, ...]:
    """`shape` without trailing axes of size 1, but never shorter than `keep` axes."""
    end = len(shape)
    while end > keep and shape[end - 1] == 1:
        end -= 1
    return tuple(shape[:end])


class Layout:
    """How the positions of a score array lie in memory; a *position* has one score per class.

    Every array is seen as (outer, width) or, with axes after the class axis, as (outer, width, inner), where width
    is C for scores and dense labels, K for lists of indices and 1 for what each position has one of. Reductions
    over the classes are then over axis 1 always.

    Parameters
    ----------
    scores, labels, sample_weight : shapes; the last may be None
    options : Options
        Its axis, label_format and what it has one of per class matter here.

    Raises
    ------
    InputError : the shapes do not fit each other.
    """

    def __init__(
        self,
        scores: Tuple[int, ...],
        labels: Tuple[int, ...],
        sample_weight: Optional[Tuple[int, ...]],
        options: Options,
    ):
        axis = options.axis
        if not -len(scores) <= axis < len(scores):
            raise InputError("axis", f"{{scores}} has shape {scores}; expected a class axis {axis} in it")
        self.axis = axis % len(scores)
        self.scores = scores
        self.classes = scores[self.axis]
        if self.classes == 0:
            raise InputError("shape", f"{{scores}} has shape {scores}; expected at least one class on axis {axis}")
        self.outer = int(np.prod(scores[: self.axis], dtype=np.int64))
        self.inner = int(np.prod(scores[self.axis + 1 :], dtype=np.int64))
        self.positions = self.outer * self.inner
        self.flat = self.axis == len(scores) - 1 or self.inner == 1
        self.labels = labels
        self.label_width = self._label_width(labels, options.label_format)
        self.sample_weight = sample_weight
        self._check_weight(sample_weight)
        for name in options.names():
            values = getattr(options, name)
            if isinstance(values, np.ndarray) and len(values) != self.classes:
                raise InputError(
                    "class_weight",
                    f"option {name!r} has {len(values)} values; expected {self.classes}, one per class of {{scores}}",
                )

    def _label_width(self, labels: Tuple[int, ...], label_format: str) -> int:
        """C, or the length K of lists of class indices; one index per position may lack its axis."""
        before, after = self.scores[: self.axis], self.scores[self.axis + 1 :]
        is_list = label_format == "indices"
        width = labels[self.axis] if is_list and len(labels) > self.axis else self.classes
        if strip_ones(labels, self.axis + 1) == strip_ones((*before, width, *after), self.axis + 1):
            return width
        has_one_each = strip_ones(labels, 0) in (strip_ones(before + after, 0), strip_ones((*before, 1, *after), 0))
        if is_list and has_one_each:
            return 1
        if is_list:
            sizes = ["K" if k == self.axis else str(size) for k, size in enumerate(self.scores)]
            wanted = f"({', '.join(sizes)}), K class indices in place of the classes of {{scores}}"
        else:
            wanted = f"{self.scores}, the shape of {{scores}}"
            if has_one_each:
                wanted += f', or, for class indices, {(*before, 1, *after)} and label_format "indices"'
        raise InputError("shape", f"{{labels}} has shape {labels}; expected {wanted}")

    def _check_weight(self, weight: Optional[Tuple[int, ...]]) -> None:
        self.weight_per_sample = False
        if weight is None:
            return
        per_position = self.scores[: self.axis] + self.scores[self.axis + 1 :]
        with_class_axis = self.scores[: self.axis] + (1,) + self.scores[self.axis + 1 :]
        stripped = strip_ones(weight, 0)
        if stripped in (strip_ones(per_position, 0), strip_ones(with_class_axis, 0)):
            return
        if self.axis > 0 and stripped == strip_ones(self.scores[:1], 0):
            self.weight_per_sample = True
            return
        expected = f"{per_position}, one per position"
        if self.axis > 0 and len(per_position) > 1:
            expected += f", or {self.scores[:1]}, one per sample"
        raise InputError("weight_shape", f"{{sample_weight}} has shape {weight}; expected {expected}")

    def shape(self, width: int) -> Tuple[int, ...]:
        return (self.outer, width) if self.flat else (self.outer, width, self.inner)

    def view(self, array: np.ndarray, width: int) -> np.ndarray:
        """`array` as (outer, width) or (outer, width, inner); no copy where it is C-contiguous."""
        shape = self.shape(width)
        return array if array.shape == shape else array.reshape(shape)

    def view_weight(self, weight: np.ndarray) -> np.ndarray:
        """Sample weights as (outer, 1) or (outer, 1, inner), each sample's repeated over its positions."""
        if self.weight_per_sample:
            repeats = self.positions // max(len(self.scores) and self.scores[0], 1)
            weight = np.repeat(weight.reshape(-1), repeats)
        return self.view(weight, 1)

    def blocks(self, entries: int = BLOCK_ENTRIES) -> Iterator[tuple]:
        """Indices that cut the views above into blocks of whole positions, about this many entries each."""
        per_outer = self.classes * (1 if self.flat else self.inner)
        if self.flat or per_outer <= entries:
            step = max(1, entries // max(per_outer, 1))
            for start in range(0, self.outer if per_outer else 0, step):
                yield (slice(start, start + step),)
            return
        step = max(1, entries // self.classes)
        for row in range(self.outer):
            for start in range(0, self.inner, step):
                yield (slice(row, row + 1), slice(None), slice(start, start + step))

    def locate(self, index: Sequence[int], where: tuple = (), name_class: bool = True) -> str:
        """In words, where an entry of a view, or of its block `where`, is: "sample 37, class 5, row 2, column 3"."""
        starts = [part.start or 0 for part in where]
        outer, entry, inner = (*(place + start for place, start in zip_longest(index, starts, fillvalue=0)), 0)[:3]
        before = np.unravel_index(outer, self.scores[: self.axis]) if self.axis else ()
        after = np.unravel_index(inner, self.scores[self.axis + 1 :]) if self.axis + 1 < len(self.scores) else ()
        places = [*before, entry, *after]
        spatial = [k for k in range(1, len(self.scores)) if k != self.axis]
        names = {0: "sample", **({spatial[0]: "row", spatial[1]: "column"} if len(spatial) == 2 else {})}
        names[self.axis] = "class"
        return ", ".join(
            f"{names.get(k, f'axis {k} index')} {place}"
            for k, place in enumerate(places)
            if (name_class if k == self.axis else k in names or self.scores[k] > 1)
        )
