"""Softmax cross-entropy of maps (N, C, S), the places in SIMD lanes; formula, arrays and results are those of rows.py.

A tile is a run of places of one sample, treated side by side. Its sums lie in one array at fixed distances, so that
LLVM need not check whether many arrays overlap: beyond a few it gives up SIMD.

A tile whose places have one label each, or none, goes in float32 but for the sums. With y the label, E = exp(s_y) and R
the sum of the other exponentials, L = m log(1 + R / E), dL/ds_y = -m R / (R + E) and dL/ds_k = m exp(s_k) / (R + E), in
which nothing cancels. Other tiles go in float64.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import LN_2, LOG2_E_32, LOWEST_RANK, ONE, ZERO, exp_32, exp_negative, log1p, of_rank, rank, signs_of
from .compiling import compiled, fetch, fetch_for_writing, inlined, summing, use_wide_vectors
from .labels import spread, target_terms
from .rows import CERTAIN, DEPTH, FAR, FEW

PLACES = 384  # at most so many places side by side; the sums of more are memory that is asked of the system each time
TILE_ENTRIES = 1 << 15  # and so many exponentials, 256 KiB, in the second-level cache
REST, TOTAL, DOT, POSITIVES, KNOWN, WEIGHTED, WEIGHTED_KNOWN, SCORE_DOT = range(0, 8 * PLACES, PLACES)
PEAK, WEIGHT, SHARE, SCALE, BACKGROUND, END = range(8 * PLACES, 14 * PLACES, PLACES)
# The numbers of a float32 tile: the highest score but for the label's, the label and its class, ...
HIGH, LABEL, CLASS, ORIGIN, LOW, UNIT, SLOPE, SLOPE_REST, END_32 = range(0, 9 * PLACES, PLACES)
OWN, MASS = TOTAL, DOT  # and beside REST its doubles
NO_CLASS = np.float32(-1)
LARGEST = 1e38  # of float32, about


def tile_width(classes: int, places: int) -> int:
    """How many places are treated side by side."""
    return min(places, max(16, min(PLACES, TILE_ENTRIES // classes) // 16 * 16))


@inlined
def find_best(scores, labels, ignoring, ignore_label, k, high, best):
    """Note class k where its score is the largest so far; `high` has the ranks."""
    use_wide_vectors()
    for j in range(len(scores)):
        number = rank(scores[j])
        number = LOWEST_RANK if ignoring and labels[j] == ignore_label else number
        is_better = number > high[j]
        best[j] = k if is_better else best[j]
        high[j] = number if is_better else high[j]


@inlined
def begin_tile(high, sums):
    use_wide_vectors()
    for j in range(len(high)):
        peak = of_rank(high[j])
        sums[PEAK + j] = 0.0 if peak == -np.inf else np.float64(peak)
    for first in range(0, PEAK, PLACES):
        sums[first : first + len(high)] = 0


@inlined
def add_class(scores, labels, w, ignoring, ignore_label, k, best, exps, sums):
    """One class of a tile, with class weight w and labels that may be unknown; the signs of the labels, as bits."""
    use_wide_vectors()
    signs = np.int32(0)
    for j in range(len(scores)):
        z = np.float64(scores[j]) - sums[PEAK + j]
        y = labels[j]
        there = 0.0 if ignoring and y == ignore_label else 1.0
        y = y if there == 1.0 else ZERO
        e = exp_negative(z)
        e = e if there == 1.0 else 0.0
        exps[j] = e
        signs = signs_of(signs, y)
        sums[REST + j] += 0.0 if best[j] == k else e
        sums[TOTAL + j] += y
        sums[DOT + j] += w * y * z if w * y != 0 else 0.0
        sums[POSITIVES + j] += 1.0 if y != 0 else 0.0
        sums[KNOWN + j] += there
        sums[WEIGHTED + j] += w * y
        sums[WEIGHTED_KNOWN + j] += w * there
        sums[SCORE_DOT + j] += w * z if w * there != 0 else 0.0
    return signs


@inlined
def finish_tile(sums, best, weight, factor, normalization, smoothing, empty):
    """The factors of a tile's gradient; returns sum u L, sum u, how many places have u = 0, and if all is well."""
    use_wide_vectors()
    loss_sum = weight_sum = 0.0
    idle = bad = 0
    for j in range(len(best)):
        total, known, rest = sums[TOTAL + j], sums[KNOWN + j], sums[REST + j]
        scale, background, mass, counted = target_terms(
            total, sums[POSITIVES + j], known, sums[WEIGHTED + j], sums[WEIGHTED_KNOWN + j],
            normalization, smoothing, empty,
        )  # fmt: skip
        bad += 0 if total < np.inf and not (empty == 2 and known > 0 and not total > 0) else 1
        u = weight[j] if len(weight) else 1.0
        u = u if counted else 0.0
        loss = mass * log1p(rest) - scale * sums[DOT + j]
        loss -= background * sums[SCORE_DOT + j] if background != 0 else 0.0
        loss_sum += u * loss if u > 0 else 0.0
        weight_sum += u
        idle += 0 if u > 0 else 1
        sums[WEIGHT + j] = u
        sums[SHARE + j] = factor * u * mass / (rest + (1.0 if best[j] >= 0 else 0.0))
        sums[SCALE + j] = factor * u * scale
        sums[BACKGROUND + j] = factor * u * background
    return loss_sum, weight_sum, idle, bad == 0


@inlined
def write_slopes(exps, labels, ignoring, ignore_label, w, sums, gradient):
    use_wide_vectors()
    for j in range(len(labels)):
        y = labels[j]
        there = 0.0 if ignoring and y == ignore_label else w
        gradient[j] = sums[SHARE + j] * exps[j] - there * (sums[SCALE + j] * y + sums[BACKGROUND + j])


@inlined
def write_probs(exps, best, sums, probs):
    use_wide_vectors()
    for j in range(len(probs)):
        exp_sum = sums[REST + j] + (1.0 if best[j] >= 0 else 0.0)
        probs[j] = exps[j] / exp_sum if exps[j] != 0 else 0.0


@inlined
def mend_slopes(labels, label_at, label_step, class_weight, best, idle, classes, sums, gradient, at, step):
    """What the loops over places leave: the best class of places that are certain, and places that do not count."""
    for j in range(len(best)):
        if sums[WEIGHT + j] > 0:
            if sums[REST + j] < CERTAIN and best[j] >= 0:
                k = np.int64(best[j])
                w = class_weight[k] if len(class_weight) else 1.0
                others = sums[SCALE + j] * (sums[WEIGHTED + j] - w * labels[label_at + k * label_step + j])
                others += sums[BACKGROUND + j] * (sums[WEIGHTED_KNOWN + j] - w)
                gradient[at + k * step + j] = others - sums[SHARE + j] * sums[REST + j]
        elif idle:
            for k in range(classes):
                gradient[at + k * step + j] = 0


@summing
def note_labels(labels, at, step, count, classes, numbers):
    """Note the label of each place of a tile and its class; False where a place has two."""
    use_wide_vectors()
    numbers[LABEL : LABEL + count] = 0
    numbers[CLASS : CLASS + count] = NO_CLASS
    several = ZERO
    for k in range(classes):
        fetch(labels, at + k * step + count, count)  # of the next tile
        given = labels[at + k * step :][:count]
        for j in range(count):
            y, of = given[j], numbers[CLASS + j]
            several += ZERO if y == ZERO or of == NO_CLASS else ONE
            numbers[CLASS + j] = of if y == ZERO else np.float32(k)
            numbers[LABEL + j] += y
        if several > 0:
            return False
    return True


@summing
def note_lists(lists, at, entry_step, place_step, length, count, padding, classes, numbers):
    """The same from lists of class indices; False also where one is none."""
    use_wide_vectors()
    numbers[LABEL : LABEL + count] = 0
    numbers[CLASS : CLASS + count] = NO_CLASS
    odd = ZERO
    for i in range(length):
        given = lists[at + i * entry_step :]
        for j in range(count):
            k, of = given[j * place_step], numbers[CLASS + j]
            is_class = k >= ZERO and k < classes and k == np.floor(k) and of == NO_CLASS
            odd += ZERO if is_class or k == padding else ONE
            numbers[CLASS + j] = of if k == padding else k
            numbers[LABEL + j] += ZERO if k == padding else ONE
        if odd > 0:
            return False
    return True


@inlined
def read_scores(scores, k, copy, numbers):
    """Copy the scores of a class of a tile, and find the highest but for the label's."""
    use_wide_vectors()
    for j in range(len(scores)):
        s, high = scores[j], numbers[HIGH + j]
        copy[j] = s
        high_now = s if s > high else high
        numbers[HIGH + j] = high if numbers[CLASS + j] == k else high_now


@inlined
def set_origins(count, numbers):
    """What is taken from the scores, and the power of 2 that their exponentials are in units of."""
    use_wide_vectors()
    for j in range(count):
        high = numbers[HIGH + j]
        high = high if high > -np.inf else ZERO
        origin = high if abs(high) >= FAR else ZERO
        numbers[ORIGIN + j] = origin
        numbers[LOW + j] = high - origin - DEPTH
        numbers[UNIT + j] = np.floor(np.float32((high - origin) * LOG2_E_32))


@inlined
def make_exps(k, numbers, exps):
    """From the scores of a class of a tile to their exponentials, 0 for the label's."""
    use_wide_vectors()
    for j in range(len(exps)):
        x, low = exps[j] - numbers[ORIGIN + j], numbers[LOW + j]
        e = exp_32(low if x < low else x, numbers[UNIT + j])
        exps[j] = ZERO if x < low or numbers[CLASS + j] == k else e


@inlined
def add_exps(exps, sums):
    use_wide_vectors()
    for j in range(len(exps)):
        sums[REST + j] += exps[j]


@summing
def finish_quick_tile(count, sums, numbers, factor):
    """The factors of the gradient, also of its label's; returns sum u L, and whether all is finite."""
    use_wide_vectors()
    loss_sum = bad = 0.0
    for j in range(count):
        r, mass = sums[REST + j], sums[MASS + j]
        gap = np.float64(numbers[ORIGIN + j]) + np.float64(numbers[UNIT + j]) * LN_2 - sums[OWN + j]
        gap = gap if r > 0 else 0.0  # R / E is r e^gap
        power = exp_negative(-abs(gap))
        x = (r - 1.0) + power if gap > 0 else r * power  # so that 1 + x is R + E over the larger of the units
        loss = mass * ((gap if gap > 0 else 0.0) + log1p(x))
        slope = factor * mass * (1.0 if gap > 0 else power) / (1.0 + x)
        numbers[SLOPE + j] = slope
        numbers[SLOPE_REST + j] = slope - np.float32(slope)
        loss_sum += loss
        bad += 0.0 if r < np.inf and abs(loss) < np.inf and abs(slope) < LARGEST else 1.0
    return loss_sum, bad == 0


@inlined
def write_quick_slopes(exps, numbers, gradient):
    use_wide_vectors()
    for j in range(len(gradient)):  # the factor in two parts, so that the product is rounded once
        gradient[j] = numbers[SLOPE + j] * exps[j] + numbers[SLOPE_REST + j] * exps[j]


@inlined
def quick_tile(
    scores, at, step, class_weight, normalization, classes, weight, factor, count, exps, sums, numbers, gradient,
    out_at,
):  # fmt: skip
    """A tile of places with at most one label each, noted in `numbers`, none unknown: sum u L, sum u, and True.

    False where something is not finite; then softmax_tile() has to do it.
    """
    numbers[HIGH : HIGH + count] = -np.inf
    for k in range(classes):
        fetch(scores, at + k * step + count, count)  # of the next tile
        read_scores(scores[at + k * step :][:count], np.float32(k), exps[k][:count], numbers)
    good = True
    weight_sum = 0.0
    for j in range(count):
        k, y = np.int64(numbers[CLASS + j]), np.float64(numbers[LABEL + j])
        good = good and y >= 0 and y < np.inf
        u = (weight[j] if len(weight) else 1.0) if k >= 0 else 0.0
        weight_sum += u
        mass = 1.0 if normalization == 0 else y
        sums[MASS + j] = u * mass * class_weight[k] if k >= 0 and len(class_weight) else u * mass
        sums[OWN + j] = exps[max(k, 0), j]
    if not good:
        return 0.0, 0.0, False
    set_origins(count, numbers)
    sums[REST : REST + count] = 0
    for k in range(classes):
        fetch_for_writing(gradient, out_at + k * step, count)
        make_exps(np.float32(k), numbers, exps[k][:count])
        add_exps(exps[k][:count], sums)
    loss, good = finish_quick_tile(count, sums, numbers, factor)
    if good and len(gradient):
        for j in range(count):
            if numbers[CLASS + j] != NO_CLASS:
                exps[np.int64(numbers[CLASS + j]), j] = -sums[REST + j]
        for k in range(classes):
            write_quick_slopes(exps[k][:count], numbers, gradient[out_at + k * step :][:count])
    return loss, weight_sum, good


@inlined
def softmax_tile(
    scores, at, step, labels, label_at, label_step, class_weight, ignoring, ignore_label,
    normalization, smoothing, empty, classes, weight, factor, high, best, exps, sums, gradient, probs, out_at,
):  # fmt: skip
    """Any tile, in float64; class k of its scores begins at `at` + k `step`, that of its labels and outputs alike."""
    count = len(best)
    high[:] = LOWEST_RANK
    best[:] = -1
    for k in range(classes):
        fetch(scores, at + k * step + count, count)  # of the next tile
        y = labels[label_at + k * label_step :][:count]
        find_best(scores[at + k * step :][:count], y, ignoring, ignore_label, k, high, best)
    begin_tile(high, sums)
    signs = np.int32(0)
    for k in range(classes):
        s, y = scores[at + k * step :][:count], labels[label_at + k * label_step :][:count]
        w = class_weight[k] if len(class_weight) else 1.0
        fetch_for_writing(gradient, out_at + k * step, count)
        signs |= add_class(s, y, w, ignoring, ignore_label, k, best, exps[k], sums)
    loss, counted, idle, good = finish_tile(sums, best, weight, factor, normalization, smoothing, empty)
    for k in range(classes):
        y = labels[label_at + k * label_step :][:count]
        if len(gradient):
            w = class_weight[k] if len(class_weight) else 1.0
            write_slopes(exps[k], y, ignoring, ignore_label, w, sums, gradient[out_at + k * step :][:count])
        if len(probs):
            write_probs(exps[k], best, sums, probs[out_at + k * step :][:count])
    if len(gradient):
        mend_slopes(labels, label_at, label_step, class_weight, best, idle, classes, sums, gradient, out_at, step)
    return loss, counted, good and signs >= 0


@inlined
def turn(rows, first, count, classes, columns, width):
    """columns[k * width + j] = rows[(first + j) * classes + k]: rows as columns."""
    for j in range(count):
        for k in range(classes):
            columns[k * width + j] = rows[(first + j) * classes + k]


@inlined
def turn_back(columns, width, rows, first, count, classes):
    for j in range(count):
        for k in range(classes):
            rows[(first + j) * classes + k] = columns[k * width + j]


@compiled
def softmax_maps(
    scores, labels, weight, gradient, probs, factor, class_weight, length, ignoring, ignore_label,
    normalization, smoothing, empty, classes, places, width, turned, start, stop,
):  # fmt: skip
    """Tiles `start` to `stop` of `width` places each; `turned` where scores and labels are (S, C), one row a place."""
    tiles = (places + width - 1) // width
    may_be_quick = not ignoring and smoothing == 0 and empty == 0 and classes >= FEW and not len(probs)
    quick, numbers = np.empty((classes, width), np.float32), np.empty(END_32, np.float32)
    exps, sums = np.empty((classes, width)), np.empty(END)
    high, best = np.empty(width, np.int32), np.empty(width, np.int32)
    buffer = classes * width
    columns = np.empty(buffer if turned else 0, np.float32)
    targets = np.zeros(buffer if turned or length else 0, np.float32)
    slopes = np.empty(buffer if turned and len(gradient) else 0, np.float32)
    p = np.empty(buffer if turned and len(probs) else 0, np.float32)
    loss_sum = weight_sum = 0.0
    for tile in range(start, stop):
        n, first = tile // tiles, tile % tiles * width
        count = min(width, places - first)
        place = n * places + first
        entry = n * classes * places + first
        entry_step, place_step, list_at = places, 1, n * length * places + first
        if turned:
            entry_step, place_step, list_at = 1, length, first * length
            turn(scores, first, count, classes, columns, width)
            if not length:
                turn(labels, first, count, classes, targets, width)
        own_labels = turned or length > 0
        s, s_at, s_step = (columns, 0, width) if turned else (scores, entry, places)
        y, y_at, y_step = (targets, 0, width) if own_labels else (labels, entry, places)
        out, p_out = (slopes, p) if turned else (gradient, probs)
        u, good = weight[place : place + count], False
        lists = (labels, list_at, entry_step, place_step, length, count, ignore_label, classes)
        if may_be_quick:
            good = note_lists(*lists, numbers) if length else note_labels(y, y_at, y_step, count, classes, numbers)
        if good:
            loss, counted, good = quick_tile(
                s, s_at, s_step, class_weight, normalization, classes, u, factor, count, quick, sums, numbers, out, s_at
            )
        if not good:
            if length and not spread(*lists, ONE, targets, width):
                return 0.0, 0.0, False
            loss, counted, good = softmax_tile(
                s, s_at, s_step, y, y_at, y_step, class_weight, ignoring, ignore_label,
                normalization, smoothing, empty, classes, u, factor, high[:count], best[:count], exps, sums,
                out, p_out, s_at,
            )  # fmt: skip
            if length:
                spread(*lists, ZERO, targets, width)
        if not good:
            return 0.0, 0.0, False
        loss_sum += loss
        weight_sum += counted
        if turned and len(gradient):
            turn_back(slopes, width, gradient, first, count, classes)
        if turned and len(probs):
            turn_back(p, width, probs, first, count, classes)
    return loss_sum, weight_sum, True
