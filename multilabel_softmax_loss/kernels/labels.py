"""Labels in the kernels: lists of class indices spread into rows, rows listed, and what turns them into targets."""

from __future__ import annotations

import math

import numpy as np

from .compiling import inlined, lowest_mark, nonzero_marks


@inlined
def spread(lists, at, entry_step, place_step, length, count, padding, classes, value, out, width):
    """Write `value` to out[k * width + j] for each class k in the list of place j; False where an index is none.

    The list of place j is lists[at + i * entry_step + j * place_step], i < length; entries equal to `padding` are none.
    """
    good = True
    for j in range(count):
        for i in range(length):
            given = lists[at + i * entry_step + j * place_step]
            if given != padding:
                if given >= 0 and given < classes and given == math.floor(given):
                    out[np.int64(given) * width + j] = value
                else:
                    good = False
    return good


@inlined
def are_indices(lists, padding, classes):
    """Whether each entry is the index of a class, or padding."""
    bad = 0
    for given in lists:
        bad += 0 if given == padding or (given >= 0 and given < classes and given == math.floor(given)) else 1
    return bad == 0


@inlined
def list_labels(labels, listed):
    """Fill `listed` with the places of a row's labels that are not 0; how many, or -1 for more than it holds."""
    limit = len(listed)
    count = 0
    whole = len(labels) - len(labels) % 64
    for first in range(0, whole, 64):
        marks = nonzero_marks(labels, first)
        while marks != 0:
            if count == limit:
                return -1
            listed[count] = first + lowest_mark(marks)
            count += 1
            marks &= marks - np.uint64(1)
    for k in range(whole, len(labels)):
        if labels[k] != 0:
            if count == limit:
                return -1
            listed[count] = k
            count += 1
    return count


@inlined
def target_terms(total, count, known, weighted, weighted_known, normalization, smoothing, empty):
    """How the labels y of a position become its targets, t_k = w_k (a y_k + b) over the classes that are known.

    From sum(y), the number of labels that are not 0, that of the known classes, and the sums of w y and of w over them.
    `normalization` is 0 for y / sum(y), 1 for y / M, 2 for y; `empty` is 1 for uniform targets where no label is
    positive.

    Returns
    -------
    a, b, m = sum(t), and whether the position counts
    """
    labelled = total > 0
    parts = total if normalization == 0 else count if normalization == 1 else 1.0
    parts = parts if labelled else 1.0
    size = known if known > 0 else 1.0
    uniform = 1.0 / size if empty == 1 and known > 0 else 0.0
    scale = (1.0 - smoothing) / parts if labelled else 0.0
    background = smoothing * (total / parts) / size if labelled else uniform
    return scale, background, scale * weighted + background * weighted_known, labelled or uniform > 0
