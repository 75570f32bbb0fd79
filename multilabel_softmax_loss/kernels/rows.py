"""Softmax cross-entropy of rows (N, C), one after the other, the classes in SIMD lanes.

With z = s - max(s) and R the sum of exp(z) over all classes but the best one, L = m log(1 + R) - sum_k t_k z_k, and the
gradient is m p_k - t_k. Where R is small, that of the best class is the sum of the other t_k minus m R / (1 + R), so
that rows that are certain keep their digits. Positions take the same way whatever their scores.

Arrays are flat. `weight` (positions) and `class_weight` (C) are float64 and may be empty for ones; `gradient` and
`probs` may be empty where they are not wanted. With `length` above 0 labels are lists of so many class indices, padded
with `ignore_label`; otherwise, with `ignoring`, labels equal to it are unknown. The gradient is written times `factor`.
The kernels return sum u L, the sum of the weights u of the positions that count, and False where a label is none.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import LN_2, LOG2_E_32, LOWEST_RANK, ONE, ZERO, exp_32, exp_negative, of_rank, rank, sum_of
from .compiling import LINE, compiled, inlined, prefetch, prefetch_for_writing, summing, use_wide_vectors
from .labels import list_labels, spread, target_terms

FEW = 8  # a row with at most one label among so many classes is treated in float32, its labels apart
DEPTH = np.float32(86)  # exponentials so far below the largest are 0 in float32
FAR = np.float32(256)  # differences of scores from here on are exact in float32, where their exponentials matter
AHEAD = 1 << 15  # rows of more classes leave the second-level cache no room for the next one
CERTAIN = 1e-6  # R below which p - t of the best class would lose digits, and is made of the others


@inlined
def highest_unlabelled(scores, labels):
    """The largest score of the classes without a label."""
    use_wide_vectors()
    high = LOWEST_RANK
    for k in range(len(scores)):
        number = rank(scores[k])
        high = max(high, number if labels[k] == ZERO else LOWEST_RANK)
    return of_rank(high)


@inlined
def exps_below(scores, origin, low, unit, exps):
    """exps = exp(s - origin) / 2^unit in float32, 0 where s - origin is below `low`."""
    use_wide_vectors()
    for k in range(len(scores)):
        x = scores[k] - origin
        e = exp_32(low if x < low else x, unit)
        exps[k] = ZERO if x < low else e


@inlined
def write_scaled(share, exps, out):
    use_wide_vectors()
    for k in range(len(exps)):
        out[k] = share * exps[k]


@inlined
def quick_row(
    scores, labels, class_weight, ignoring, ignore_label, normalization, weight, factor, listed, count, high,
    own, targets, exps, gradient, probs,
):  # fmt: skip
    """A row with few labels and no target elsewhere, float32 but for its labelled classes, where p and t may cancel.

    `listed` has the places of its labels, `count` of them, and `high` is the largest score elsewhere. Returns u L, u,
    and 1; or -1 where a label is none.
    """
    classes = len(scores)
    high = high if high > -np.inf else ZERO
    origin = high if abs(high) >= FAR else ZERO
    unit = np.float32(math.floor(np.float32((high - origin) * LOG2_E_32)))
    exps_below(scores, origin, np.float32(high - origin - DEPTH), unit, exps)
    best = -1
    peak = np.float64(high)
    total = positives = weighted = 0.0
    good = True
    for i in range(count):
        k = listed[i]
        y = labels[k]
        exps[k] = 0
        known = not (ignoring and y == ignore_label)
        y = y if known else ZERO
        good = good and y >= 0
        total += y
        positives += 1.0 if known else 0.0
        targets[i] = (class_weight[k] if len(class_weight) else 1.0) * y
        weighted += targets[i]
        own[i] = scores[k] if known else -np.inf
        if own[i] > peak:
            peak, best = own[i], i
    if not (good and total < np.inf):
        return 0.0, 0.0, -1
    scale, _, mass, counted = target_terms(total, positives, float(classes), weighted, 0.0, normalization, 0.0, 0)
    weight = weight if counted else 0.0
    ratio = math.exp(np.float64(origin) + np.float64(unit) * LN_2 - peak)
    rest = sum_of(exps) * ratio
    loss = others = 0.0
    for i in range(count):
        targets[i] *= scale
        gap = own[i] - peak
        own[i] = exp_negative(gap) if gap > -700.0 or gap != gap else 0.0
        rest += own[i] if i != best else 0.0
        others += targets[i] if i != best else 0.0
        loss -= targets[i] * gap if targets[i] > 0 else 0.0
    exp_sum = rest + (1.0 if best >= 0 else 0.0)
    loss += mass * (math.log1p(rest) if best >= 0 else math.log(rest))
    if len(probs):
        write_scaled(ratio / exp_sum, exps, probs)
        for i in range(count):
            probs[listed[i]] = own[i] / exp_sum
    if weight > 0:
        if len(gradient):
            factor *= weight
            share = factor * mass / exp_sum
            write_scaled(share * ratio, exps, gradient)
            for i in range(count):
                gradient[listed[i]] = share * own[i] - factor * targets[i]
            if best >= 0 and rest < CERTAIN:
                gradient[listed[best]] = factor * others - share * rest
        return weight * loss, weight, 1
    gradient[:] = 0
    return 0.0, 0.0, 1


@summing
def full_row(
    scores, labels, class_weight, ignoring, ignore_label, normalization, smoothing, empty, weight, factor, exps,
    gradient, probs,
):  # fmt: skip
    """Any row, in float64: u L, u, and whether all labels are labels."""
    use_wide_vectors()
    classes = len(scores)
    high = LOWEST_RANK
    for k in range(classes):
        number = rank(scores[k])
        high = max(high, LOWEST_RANK if ignoring and labels[k] == ignore_label else number)
    peak = np.float64(of_rank(high))
    peak = 0.0 if peak == -np.inf else peak
    bad = rest = ties = total = positives = known = weighted = weighted_known = dot = score_dot = 0.0
    for k in range(classes):
        z = np.float64(scores[k]) - peak
        y = labels[k]
        there = 0.0 if ignoring and y == ignore_label else 1.0
        y = y if there == 1.0 else ZERO
        w = class_weight[k] if len(class_weight) else 1.0
        e = exp_negative(z)
        e = e if there == 1.0 else 0.0
        exps[k] = e
        ties += 1.0 if e == 1.0 else 0.0
        rest += 0.0 if e == 1.0 else e
        bad += 0.0 if y >= ZERO else 1.0
        known += there
        total += y
        positives += 1.0 if y != 0 else 0.0
        weighted += w * y
        weighted_known += w * there
        dot += w * y * z if w * y != 0 else 0.0
        score_dot += w * z if w * there != 0 else 0.0
    if not (bad == 0 and total < np.inf) or (empty == 2 and known > 0 and not total > 0):
        return 0.0, 0.0, False
    scale, background, mass, counted = target_terms(
        total, positives, known, weighted, weighted_known, normalization, smoothing, empty
    )
    weight = weight if counted else 0.0
    exp_sum = rest + ties
    if len(probs):
        for k in range(classes):
            probs[k] = exps[k] / exp_sum if exps[k] != 0 else 0.0
    if not weight > 0:
        gradient[:] = 0
        return 0.0, 0.0, True
    if len(gradient):
        factor *= weight
        share, scaled, ground = factor * mass / exp_sum, factor * scale, factor * background
        for k in range(classes):
            y = labels[k]
            w = class_weight[k] if len(class_weight) else 1.0
            w = 0.0 if ignoring and y == ignore_label else w
            gradient[k] = share * exps[k] - w * (scaled * y + ground)
        if ties == 1.0 and rest < CERTAIN:
            best = 0
            for k in range(classes):
                best = k if exps[k] == 1.0 else best
            w = class_weight[best] if len(class_weight) else 1.0
            others = scaled * (weighted - w * labels[best]) + ground * (weighted_known - w)
            gradient[best] = others - share * rest
    others = rest if ties == 1.0 else rest + (ties - 1.0)  # apart, as a reassociated sum would lose a small rest
    loss = mass * math.log1p(others) - scale * dot - (background * score_dot if background != 0 else 0.0)
    return weight * loss, weight, True


@inlined
def fetch_ahead(third, scores, labels, gradient, first, last):
    """Ask for a third of the next row, and of where the gradient of this one goes; a whole row at once would be more
    than the processor can wait for beside its work."""
    classes = last - first
    if classes <= AHEAD:
        for k in range(classes * third // 3, classes * (third + 1) // 3, LINE):
            if last < len(scores):
                prefetch(scores, last + k)
            if last < len(labels):
                prefetch(labels, last + k)
            if len(gradient):
                prefetch_for_writing(gradient, first + k)


@compiled
def softmax_rows(
    scores, labels, weight, gradient, probs, factor, class_weight, length, ignoring, ignore_label,
    normalization, smoothing, empty, classes, start, stop,
):  # fmt: skip
    """Rows `start` to `stop`."""
    exps, quick = np.empty(classes), np.empty(classes, np.float32)
    limit = classes // FEW
    listed, own, targets = np.empty(limit, np.int64), np.empty(limit), np.empty(limit)
    lists = np.zeros(classes if length else 0, np.float32)
    # Without a target everywhere, and with 0 for no label, the labels are where p and t may cancel.
    may_be_quick = smoothing == 0 and empty == 0 and not (ignoring and ignore_label == 0)
    none = np.empty(0, np.float32)
    loss_sum = weight_sum = 0.0
    for n in range(start, stop):
        first, last = n * classes, (n + 1) * classes
        if length and not spread(labels, n * length, 1, 0, length, 1, ignore_label, classes, ONE, lists, 1):
            return 0.0, 0.0, False
        s, y = scores[first:last], lists[:] if length else labels[first:last]
        row = (scores, none if length else labels, gradient, first, last)
        fetch_ahead(0, *row)
        u = weight[n] if len(weight) else 1.0
        g = gradient[first:last] if len(gradient) else none
        p = probs[first:last] if len(probs) else none
        loss, counted, done = 0.0, 0.0, 0
        count, high = -1, ZERO
        if may_be_quick:
            count = list_labels(y, listed)
            fetch_ahead(1, *row)
            high = highest_unlabelled(s, y)
        fetch_ahead(2, *row)
        if count >= 0 and high < np.inf:
            loss, counted, done = quick_row(
                s, y, class_weight, ignoring, ignore_label, normalization, u, factor, listed, count, high,
                own, targets, quick, g, p,
            )  # fmt: skip
        if done == 0:
            loss, counted, good = full_row(
                s, y, class_weight, ignoring, ignore_label, normalization, smoothing, empty, u, factor, exps, g, p
            )
            done = 1 if good else -1
        if done < 0:
            return 0.0, 0.0, False
        loss_sum += loss
        weight_sum += counted
        if length:
            spread(labels, n * length, 1, 0, length, 1, ignore_label, classes, ZERO, lists, 1)
    return loss_sum, weight_sum, True
