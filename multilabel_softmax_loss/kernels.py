"""The losses' inner passes in compiled form (numba): float32 blobs, float64 inside, one read of each blob.

A kernel treats the ordinary positions; whatever is odd (a bad label, a score beyond +-600, a loss that is almost 0)
it marks and leaves to the NumPy path, which knows how to be exact and what to say. That is also why no maximum of the
scores is needed here: where the kernels apply, exp() of a double cannot overflow.

Each position is passed over twice while it is in the cache: once for the exponentials and all sums, once for the
gradient. The formulas are those of softmax.py and sigmoid.py; what turns labels into softmax targets is compiled from
targets.py itself.
"""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from .losses import Batch, Losses
from .targets import affine_targets, sigmoid_terms

# reassoc lets sums use SIMD lanes. Nothing may assume that there is no NaN or infinity: they must be seen.
FAST = {"reassoc", "nsz", "contract"}
inlined = njit(
    forceinline=True, error_model="numpy", fastmath={"contract"}
)  # no reassoc: it would undo the rounding in exp


def compiled(function: Any) -> Any:
    """The function compiled on its first call; the machine code is kept beside this file, or in the user's cache.

    numba watches this file only: after a change of targets.affine_targets, remove __pycache__.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": FAST}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        warnings.warn(
            "multilabel_softmax_loss cannot keep its compiled kernels, so each process compiles them anew (seconds).\n"
            "    Set NUMBA_CACHE_DIR to a folder that may be written to.",
            RuntimeWarning,
            stacklevel=1,  # this line, so that it is shown once for all kernels
        )
        return njit(**options)(function)


LOG2_E = 1 / math.log(2)
LN_2 = math.log(2)
ROUND = 1.5 * 2.0**52  # added to a double it leaves the nearest integer in the low bits
LOWEST = np.float32(-700)  # its exp() is a normal double, and nothing beside any score that matters
HIGHEST = int(np.float32(600).view(np.int32))  # exp() and sums of it cannot overflow below
SMALLEST_SUM = math.exp(-600)
SMALLEST_LOSS = 1e-4  # below, what is left of log(sum) - s has few digits of its own
FACTORS = 1000  # numbers up to 2 whose product is still a double
ONE = int(np.float32(1).view(np.int32))
SHARED_ENTRIES = 1 << 17  # fewer scores are not worth waking another thread for
TILE_ENTRIES = 1 << 13  # exponentials of the positions that are treated side by side, 64 KiB


def exp_polynomial() -> tuple:
    """c with exp(r) = 1 + r (c_0 + c_1 r + ...) on [-ln(2)/2, ln(2)/2], to 3e-12 relative and exact at 0."""
    half = LN_2 / 2
    chebyshev = np.polynomial.chebyshev
    series = chebyshev.cheb2poly(chebyshev.chebinterpolate(lambda x: np.expm1(x * half) / (x * half), 7))
    return tuple(float(c) for c in series / half ** np.arange(8))


C0, C1, C2, C3, C4, C5, C6, C7 = exp_polynomial()


def log_polynomial() -> tuple:
    """c with log(1 + e) = 2u (1 + u^2 (c_0 + c_1 u^2 + ...)), u = e / (2 + e) <= 1/3, to 1e-12 relative."""
    chebyshev = np.polynomial.chebyshev
    square = 1 / 18  # u^2 is between 0 and twice this; x between -1 and 1

    def rest(x: np.ndarray) -> np.ndarray:
        u = np.sqrt(square * (1 + x))
        return (np.arctanh(u) / u - 1) / u**2

    series = np.polynomial.Polynomial(chebyshev.cheb2poly(chebyshev.chebinterpolate(rest, 7)))
    return tuple(float(c) for c in series(np.polynomial.Polynomial([-1, 1 / square])).coef)


D0, D1, D2, D3, D4, D5, D6, D7 = log_polynomial()


@intrinsic
def use_wide_vectors(typing_context):
    """Ask LLVM for 512-bit vectors in the function that calls this; it prefers 256 where it might cost clock rate.

    At 256 x 1000 the softmax kernel takes 0.67 and the sigmoid kernel 0.8 of the time so. Processors without AVX-512
    are not concerned.
    """

    def generate(context, builder, signature, arguments):
        # llvmlite has no word for this attribute, so its check of words is passed by.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@inlined
def exp(x):
    """e^x of a double within +-700, without a branch, so that LLVM vectorises it. NaN stays NaN."""
    shifted = x * LOG2_E + ROUND
    r = x - (shifted - ROUND) * LN_2
    power = 1.0 + r * (C0 + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7)))))))
    return np.int64(np.float64(power).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)).view(np.float64)


@inlined
def exp_score(score):
    """e^s of a float32 score below 600, as a double: at least e^-700, and NaN for NaN."""
    return exp(np.float64(LOWEST if score < LOWEST else score))


@inlined
def highest_of(highest, score):
    """The largest score so far, as the bits of a float32; those of positive numbers have its order, NaN on top."""
    return np.int32(max(highest, np.float32(score).view(np.int32)))


@inlined
def signs_of(signs, x):
    """The sign bits met so far; as float32 has its sign, so has int32."""
    return np.int32(signs | np.float32(x).view(np.int32))


affine = inlined(affine_targets)


@inlined
def position(
    total, positives, known, weighted_total, weighted_known, dot, score_dot, exp_sum, highest, weight,
    parts, smoothing, uniform,
):  # fmt: skip
    """One position from its sums: u L, u, and the factors of p, y and 1 in u (m p - w (a y + b)).

    L = m log(sum_k exp(s_k)) - sum_k t_k s_k. It is NaN where the NumPy path has to find it, or what is wrong.
    """
    scale, background, mass, counted = affine(
        total, positives, known, weighted_total, weighted_known, parts, smoothing, uniform
    )
    weight = weight if counted else 0.0
    expected = scale * dot
    if background != 0:
        expected += background * score_dot
    if weight == 0:
        return 0.0 if highest < HIGHEST and exp_sum < np.inf else np.nan, 0.0, 0.0, 0.0, 0.0
    loss = mass * math.log(exp_sum) - expected
    exact = highest < HIGHEST and exp_sum > SMALLEST_SUM and loss >= SMALLEST_LOSS * mass and loss < np.inf
    return weight * loss if exact else np.nan, weight, weight * mass / exp_sum, weight * scale, weight * background


@inlined
def is_plain(ignoring, class_weight, parts, smoothing, uniform):
    """Whether a position needs no more than the sum of its labels."""
    return not ignoring and not len(class_weight) and parts != 1 and smoothing == 0 and not uniform


@inlined
def tiling(classes, places):
    """How many places are treated side by side, and in how many tiles that makes of a sample."""
    width = max(16, min(places, TILE_ENTRIES // classes))
    return width, (places + width - 1) // width


@compiled
def dense_rows(
    scores, labels, sample_weight, class_weight, ignoring, ignore_label, parts, smoothing, uniform,
    losses, weights, gradient, probs, start, stop,
):  # fmt: skip
    """Rows start to stop of scores and labels (N, C), float32; False where a label is no label.

    sample_weight (N) or (0), class_weight (C) or (0), float64. Written: losses u L and weights u (N), float64;
    gradient u (m p - t) and probs p, (N, C) or (0, C), float32.
    """
    use_wide_vectors()
    classes = scores.shape[1]
    exps = np.empty(classes)
    plain = is_plain(ignoring, class_weight, parts, smoothing, uniform)
    for n in range(start, stop):
        exp_sum = 0.0
        total = 0.0
        dot = 0.0
        signs = highest = np.int32(0)
        positives = known = float(classes)
        if plain:
            for k in range(classes):
                s = scores[n, k]
                e = exp_score(s)
                y = labels[n, k]
                exps[k] = e
                exp_sum += e
                highest = highest_of(highest, s)
                signs = signs_of(signs, y)
                total += y
                dot += np.float64(s) * y
            weighted_total, weighted_known, score_dot = total, known, 0.0
        else:
            weighted_total = weighted_known = score_dot = positives = known = 0.0
            for k in range(classes):
                s = scores[n, k]
                y = labels[n, k]
                there = 0.0 if ignoring and y == ignore_label else 1.0
                y = y if there == 1.0 else np.float32(0)
                w = class_weight[k] if len(class_weight) else 1.0
                e = there * exp_score(s)
                exps[k] = e
                exp_sum += e
                highest = highest_of(highest, s)
                signs = signs_of(signs, y)
                known += there
                total += y
                positives += 1.0 if y != 0 else 0.0
                weighted_total += w * y
                weighted_known += w * there
                dot += w * y * s
                score_dot += w * there * s
        if signs < 0 or not total < np.inf:
            return False
        losses[n], weights[n], share, scale, background = position(
            total, positives, known, weighted_total, weighted_known, dot, score_dot, exp_sum, highest,
            sample_weight[n] if len(sample_weight) else 1.0, parts, smoothing, uniform,
        )  # fmt: skip
        if len(gradient) and plain:
            for k in range(classes):
                gradient[n, k] = share * exps[k] - scale * labels[n, k]
        elif len(gradient):
            for k in range(classes):
                y = labels[n, k]
                there = 0.0 if ignoring and y == ignore_label else 1.0
                w = class_weight[k] if len(class_weight) else 1.0
                gradient[n, k] = share * exps[k] - there * w * (scale * y + background)
        if len(probs):
            inverse = 1 / exp_sum if exp_sum > 0 else 0.0
            for k in range(classes):
                probs[n, k] = exps[k] * inverse
    return True


# Rows of a tile. Each helper is one loop over few arrays: LLVM must be able to check that they do not overlap.


@inlined
def read_row(labels, ignoring, ignore_label, row, there):
    """The labels as doubles, 0 where unknown, and 1 or 0 for known or not."""
    for j in range(len(labels)):
        y = labels[j]
        known = 0.0 if ignoring and y == ignore_label else 1.0
        there[j] = known
        row[j] = y if known == 1.0 else 0.0


@inlined
def add_exps(scores, there, exps, exp_sum):
    for j in range(len(scores)):
        e = there[j] * exp_score(scores[j])
        exps[j] = e
        exp_sum[j] += e


@inlined
def find_highest(scores, highest):
    for j in range(len(scores)):
        highest[j] = highest_of(highest[j], scores[j])


@inlined
def add(factor, row, total):
    for j in range(len(row)):
        total[j] += factor * row[j]


@inlined
def add_products(factor, row, scores, total):
    for j in range(len(scores)):
        total[j] += factor * row[j] * scores[j]


@inlined
def count_bad(row, highest, bad):
    for j in range(len(bad)):
        bad[j] += 0.0 if row[j] >= 0 and row[j] <= highest else 1.0


@inlined
def count_positive(row, positives):
    for j in range(len(row)):
        positives[j] += 1.0 if row[j] != 0 else 0.0


@inlined
def write_slopes(exps, labels, ignoring, ignore_label, w, share, scale, background, gradient):
    for j in range(len(labels)):
        y = labels[j]
        there = 0.0 if ignoring and y == ignore_label else w
        gradient[j] = share[j] * exps[j] - there * (scale[j] * y + background[j])


@inlined
def write_probs(exps, exp_sum, probs):
    for j in range(len(exp_sum)):
        probs[j] = exps[j] / exp_sum[j] if exp_sum[j] > 0 else 0.0


@compiled
def dense_columns(
    scores, labels, sample_weight, class_weight, ignoring, ignore_label, parts, smoothing, uniform,
    losses, weights, gradient, probs, start, stop,
):  # fmt: skip
    """The same for scores and labels (N, C, S), one softmax for each of the N S places; tiles start to stop.

    A tile is a run of places of one sample, treated side by side: the loops over places are the SIMD loops.
    """
    use_wide_vectors()
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    plain = is_plain(ignoring, class_weight, parts, smoothing, uniform)
    exps = np.empty((classes, width))
    row, there, exp_sum, total, bad = (
        np.empty(width),
        np.empty(width),
        np.empty(width),
        np.empty(width),
        np.empty(width),
    )
    dot, score_dot, positives, known = np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    weighted_total, weighted_known = np.empty(width), np.empty(width)
    share, scale, background = np.empty(width), np.empty(width), np.empty(width)
    highest = np.empty(width, np.int32)
    for tile in range(start, stop):
        n = tile // tiles
        first = (tile % tiles) * width
        count = min(width, places - first)
        for sums in (exp_sum, total, bad, dot, score_dot, positives, known, weighted_total, weighted_known):
            sums[:] = 0
        highest[:] = 0
        for k in range(classes):
            w = class_weight[k] if len(class_weight) else 1.0
            s = scores[n, k, first : first + count]
            read_row(labels[n, k, first : first + count], ignoring, ignore_label, row, there)
            add_exps(s, there, exps[k], exp_sum)
            find_highest(s, highest)
            count_bad(row[:count], np.inf, bad)
            add(1.0, row[:count], total)
            add_products(w, row, s, dot)
            if not plain:
                add(1.0, there[:count], known)
                add(w, row[:count], weighted_total)
                add(w, there[:count], weighted_known)
                add_products(w, there, s, score_dot)
                count_positive(row[:count], positives)
        if plain:
            known[:] = classes
            weighted_total[:] = total
        for j in range(count):
            if bad[j] > 0 or not total[j] < np.inf:
                return False
            place = n * places + first + j
            losses[place], weights[place], share[j], scale[j], background[j] = position(
                total[j], positives[j], known[j], weighted_total[j], weighted_known[j], dot[j], score_dot[j],
                exp_sum[j], highest[j], sample_weight[place] if len(sample_weight) else 1.0, parts, smoothing, uniform,
            )  # fmt: skip
        for k in range(classes):
            w = class_weight[k] if len(class_weight) else 1.0
            if len(gradient):
                given = labels[n, k, first : first + count]
                write_slopes(
                    exps[k], given, ignoring, ignore_label, w, share, scale, background, gradient[n, k, first:]
                )
            if len(probs):
                write_probs(exps[k], exp_sum[:count], probs[n, k, first:])
    return True


@inlined
def distinct(indices, padding, classes, listed):
    """The distinct class indices of one list are put into `listed`; returns how many, or -1 for what is no index."""
    count = 0
    for given in indices:
        if given == padding:
            continue
        if not (given >= 0 and given < classes and given == math.floor(given)):
            return -1
        index = np.int64(given)
        is_new = True
        for k in range(count):
            is_new = is_new and listed[k] != index
        if is_new:
            listed[count] = index
            count += 1
    return count


@compiled
def index_rows(
    scores, indices, sample_weight, class_weight, padding, parts, smoothing, uniform,
    losses, weights, gradient, probs, start, stop,
):  # fmt: skip
    """The same for scores (N, C) and lists of class indices (N, K); only listed classes are visited for targets."""
    use_wide_vectors()
    classes = scores.shape[1]
    exps = np.empty(classes)
    listed = np.empty(indices.shape[1], np.int64)
    weighted = len(class_weight) > 0
    weighted_known = class_weight.sum() if weighted else float(classes)
    for n in range(start, stop):
        exp_sum = 0.0
        highest = np.int32(0)
        for k in range(classes):
            s = scores[n, k]
            e = exp_score(s)
            exps[k] = e
            exp_sum += e
            highest = highest_of(highest, s)
        count = distinct(indices[n], padding, classes, listed)
        if count < 0:
            return False
        weighted_total = dot = 0.0
        for i in range(count):
            w = class_weight[listed[i]] if weighted else 1.0
            weighted_total += w
            dot += w * scores[n, listed[i]]
        score_dot = 0.0
        if smoothing != 0 or uniform:
            for k in range(classes):
                score_dot += (class_weight[k] if weighted else 1.0) * scores[n, k]
        losses[n], weights[n], share, scale, background = position(
            float(count), float(count), float(classes), weighted_total, weighted_known, dot, score_dot, exp_sum,
            highest, sample_weight[n] if len(sample_weight) else 1.0, parts, smoothing, uniform,
        )  # fmt: skip
        if len(gradient):
            if background == 0:
                for k in range(classes):
                    gradient[n, k] = share * exps[k]
            else:
                for k in range(classes):
                    gradient[n, k] = share * exps[k] - background * (class_weight[k] if weighted else 1.0)
            for i in range(count):
                k = listed[i]
                w = class_weight[k] if weighted else 1.0
                gradient[n, k] = share * exps[k] - w * (scale + background)
        if len(probs):
            inverse = 1 / exp_sum
            for k in range(classes):
                probs[n, k] = exps[k] * inverse
    return True


@inlined
def write_unlisted(exps, w, share, background, gradient):
    for j in range(len(share)):
        gradient[j] = share[j] * exps[j] - w * background[j]


@compiled
def index_columns(
    scores, indices, sample_weight, class_weight, padding, parts, smoothing, uniform,
    losses, weights, gradient, probs, start, stop,
):  # fmt: skip
    """The same for scores (N, C, S) and lists of class indices (N, K, S); tiles start to stop as in dense_columns."""
    use_wide_vectors()
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    exps = np.empty((classes, width))
    there, exp_sum, score_dot = np.ones(width), np.empty(width), np.empty(width)
    shares, scales, backgrounds = np.empty(width), np.empty(width), np.empty(width)
    highest = np.empty(width, np.int32)
    listed = np.empty(indices.shape[1], np.int64)
    weighted = len(class_weight) > 0
    weighted_known = class_weight.sum() if weighted else float(classes)
    for tile in range(start, stop):
        n = tile // tiles
        first = (tile % tiles) * width
        count = min(width, places - first)
        exp_sum[:] = 0
        score_dot[:] = 0
        highest[:] = 0
        for k in range(classes):
            w = class_weight[k] if weighted else 1.0
            s = scores[n, k, first : first + count]
            add_exps(s, there, exps[k], exp_sum)
            find_highest(s, highest)
            if smoothing != 0 or uniform:
                add_products(w, there, s, score_dot)
        for j in range(count):
            found = distinct(indices[n, :, first + j], padding, classes, listed)
            if found < 0:
                return False
            weighted_total = dot = 0.0
            for i in range(found):
                w = class_weight[listed[i]] if weighted else 1.0
                weighted_total += w
                dot += w * scores[n, listed[i], first + j]
            place = n * places + first + j
            losses[place], weights[place], share, scale, background = position(
                float(found), float(found), float(classes), weighted_total, weighted_known, dot, score_dot[j],
                exp_sum[j], highest[j], sample_weight[place] if len(sample_weight) else 1.0, parts, smoothing, uniform,
            )  # fmt: skip
            # The places of one class are written side by side, so the listed classes wait until all others are done.
            shares[j], scales[j], backgrounds[j] = share, scale, background
        for k in range(classes):
            w = class_weight[k] if weighted else 1.0
            if len(gradient):
                write_unlisted(exps[k], w, shares[:count], backgrounds, gradient[n, k, first:])
            if len(probs):
                write_probs(exps[k], exp_sum[:count], probs[n, k, first:])
        if len(gradient):
            for j in range(count):
                found = distinct(indices[n, :, first + j], padding, classes, listed)
                for i in range(found):
                    k = listed[i]
                    w = class_weight[k] if weighted else 1.0
                    gradient[n, k, first + j] = shares[j] * exps[k, j] - w * (scales[j] + backgrounds[j])
    return True


@inlined
def log_sigmoids(score):
    """-log p, -log q, p and q of a float32 score, with p its sigmoid and q = 1 - p; NaN for NaN."""
    s = np.float64(score)
    x = -abs(s)
    e = exp(-700.0 if x < -700.0 else x)
    inverse = 1 / ((1 + e) * (2 + e))  # one division for both of 1 / (1 + e) and e / (2 + e)
    larger = (2 + e) * inverse
    smaller = e * larger
    u = e * (1 + e) * inverse
    v = u * u
    log1p = 2 * u * (1 + v * (D0 + v * (D1 + v * (D2 + v * (D3 + v * (D4 + v * (D5 + v * (D6 + v * D7))))))))
    positive = s > 0
    return (
        log1p + (0.0 if positive else -s),
        log1p + (s if positive else 0.0),
        larger if positive else smaller,
        smaller if positive else larger,
    )


@inlined
def power(cost, gamma):
    """p^gamma from -log p."""
    x = -gamma * cost
    result = exp(-700.0 if x < -700.0 else x)
    return 0.0 if x < -700.0 else result


@inlined
def plain_entry(score, positive, negative):
    """L and dL/ds of one entry whose terms -log p and -log q have these weights."""
    p_cost, q_cost, p, q = log_sigmoids(score)
    return positive * p_cost + negative * q_cost, negative * p - positive * q


@inlined
def focal_entry(score, positive, negative, gamma):
    """The same for the terms -q^g log p and -p^g log q."""
    p_cost, q_cost, p, q = log_sigmoids(score)
    q_power, p_power = power(q_cost, gamma), power(p_cost, gamma)
    loss = positive * (q_power * p_cost) + negative * (p_power * q_cost)
    slope = negative * (p_power * (p + gamma * q * q_cost)) - positive * (q_power * (q + gamma * p * p_cost))
    return loss, slope


@inlined
def term_weights(y, positive_weight, negative_weight, scale, background):
    """The weights of the two terms of an entry with label y, and whether it is no label from 0 to 1."""
    t = scale * y + background
    return positive_weight * t, negative_weight * (1 - t), 0 if y >= 0 and y <= 1 else 1


@compiled
def sigmoid_rows(
    scores, labels, sample_weight, positive_weight, negative_weight, dense, ignoring, ignore_label, scale, background,
    gamma, losses, counts, gradient, probs, start, stop,
):  # fmt: skip
    """Rows start to stop of scores (N, C) and labels (N, C) or lists (N, K); False where a label is no label.

    sample_weight (N) or (0), positive_weight and negative_weight (C), float64. Written: losses u L and u times the
    number of known classes (N), float64; gradient u dL/ds and probs (N, C) or (0, C), float32.
    """
    use_wide_vectors()
    classes = scores.shape[1]
    positive, negative, slopes = np.empty(classes), np.empty(classes), np.empty(classes)
    listed = np.empty(labels.shape[1], np.int64)
    for n in range(start, stop):
        known = float(classes)
        if dense:
            bad = 0
            known = 0.0
            for k in range(classes):
                y = np.float64(labels[n, k])
                there = 0.0 if ignoring and y == ignore_label else 1.0
                y = y if there == 1.0 else 0.0
                positive[k], negative[k], is_bad = term_weights(
                    y, there * positive_weight[k], there * negative_weight[k], scale, background
                )
                bad |= is_bad
                known += there
            if bad:
                return False
        else:
            count = distinct(labels[n], ignore_label, classes, listed)
            if count < 0:
                return False
            for k in range(classes):
                positive[k], negative[k], _ = term_weights(
                    0.0, positive_weight[k], negative_weight[k], scale, background
                )
            for i in range(count):
                k = listed[i]
                positive[k], negative[k], _ = term_weights(
                    1.0, positive_weight[k], negative_weight[k], scale, background
                )
        weight = sample_weight[n] if len(sample_weight) else 1.0
        weight = weight if known > 0 else 0.0
        counts[n] = weight * known
        loss = 0.0
        if len(probs):
            for k in range(classes):
                probs[n, k] = log_sigmoids(scores[n, k])[2]
        if gamma == 0:
            for k in range(classes):
                cost, slopes[k] = plain_entry(scores[n, k], positive[k], negative[k])
                loss += cost
        else:
            for k in range(classes):
                cost, slopes[k] = focal_entry(scores[n, k], positive[k], negative[k], gamma)
                loss += cost
        if len(gradient):
            for k in range(classes):
                gradient[n, k] = weight * slopes[k]
        losses[n] = weight * loss if loss < np.inf else np.nan
    return True


@compiled
def plain_sigmoid_rows(scores, labels, sample_weight, scale, background, losses, counts, gradient, probs, start, stop):
    """sigmoid_rows where every entry counts alike: all weights 1, no unknown class, no focal factor.

    With c the probability of the answer that the score speaks against, L = |s| c + log(1 + e^-|s|), and dL/ds is
    c - e^-|s| / (1 + e^-|s|) or minus that. The logarithms of a run of classes are that of one product. Where hardly
    anything is left of L, the NumPy path has to find it.
    """
    use_wide_vectors()
    classes = scores.shape[1]
    slopes = np.empty(classes)
    for n in range(start, stop):
        weight = sample_weight[n] if len(sample_weight) else 1.0
        signs = highest = np.int32(0)
        loss = 0.0
        for first in range(0, classes, FACTORS):
            row, label = scores[n, first : first + FACTORS], labels[n, first : first + FACTORS]
            slope = slopes[first : first + FACTORS]
            product = 1.0
            for k in range(len(row)):
                s = np.float64(row[k])
                y = label[k]
                size = abs(s)
                e = exp(-700.0 if -size < -700.0 else -size)
                t = scale * y + background
                c = 1 - t if s > 0 else t
                product *= 1 + e
                loss += size * c
                signs = signs_of(signs, y)
                highest = highest_of(highest, y)
                rest = c - e / (1 + e)
                slope[k] = rest if s > 0 else -rest
            loss += math.log(product)
        if signs < 0 or highest > ONE:
            return False
        if len(gradient):
            for k in range(classes):
                gradient[n, k] = weight * slopes[k]
        if len(probs):
            for k in range(classes):
                probs[n, k] = log_sigmoids(scores[n, k])[2]
        counts[n] = weight * classes
        losses[n] = weight * loss if loss >= SMALLEST_LOSS and loss < np.inf else np.nan
    return True


@inlined
def weigh_terms(row, there, positive_weight, negative_weight, scale, background, positive, negative):
    for j in range(len(row)):
        t = scale * row[j] + background
        positive[j] = there[j] * positive_weight * t
        negative[j] = there[j] * negative_weight * (1 - t)


@inlined
def add_entries(scores, positive, negative, gamma, loss, slopes):
    if gamma == 0:
        for j in range(len(scores)):
            cost, slopes[j] = plain_entry(scores[j], positive[j], negative[j])
            loss[j] += cost
    else:
        for j in range(len(scores)):
            cost, slopes[j] = focal_entry(scores[j], positive[j], negative[j], gamma)
            loss[j] += cost


@inlined
def multiply(weight, slopes, gradient):
    for j in range(len(weight)):
        gradient[j] = weight[j] * slopes[j]


@inlined
def write_sigmoids(scores, probs):
    for j in range(len(scores)):
        probs[j] = log_sigmoids(scores[j])[2]


@compiled
def sigmoid_columns(
    scores, labels, sample_weight, positive_weight, negative_weight, dense, ignoring, ignore_label, scale, background,
    gamma, losses, counts, gradient, probs, start, stop,
):  # fmt: skip
    """The same for scores (N, C, S) and labels (N, C, S) or (N, K, S); tiles start to stop as in dense_columns."""
    use_wide_vectors()
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    positive, negative = np.empty((classes, width)), np.empty((classes, width))
    loss, weight, slopes = np.empty(width), np.empty(width), np.empty(width)
    row, there, known, bad = np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    listed = np.empty(labels.shape[1], np.int64)
    for tile in range(start, stop):
        n = tile // tiles
        first = (tile % tiles) * width
        count = min(width, places - first)
        loss[:] = 0
        known[:] = 0
        bad[:] = 0
        for k in range(classes):
            if dense:
                read_row(labels[n, k, first : first + count], ignoring, ignore_label, row, there)
            else:
                row[:] = 0
                there[:] = 1
            count_bad(row[:count], 1.0, bad)
            add(1.0, there[:count], known)
            weigh_terms(row, there, positive_weight[k], negative_weight[k], scale, background, positive[k], negative[k])
        for j in range(count):
            if bad[j] > 0:
                return False
            if not dense:
                found = distinct(labels[n, :, first + j], ignore_label, classes, listed)
                if found < 0:
                    return False
                for i in range(found):
                    k = listed[i]
                    t = scale + background
                    positive[k, j], negative[k, j] = positive_weight[k] * t, negative_weight[k] * (1 - t)
            place = n * places + first + j
            weight[j] = sample_weight[place] if len(sample_weight) else 1.0
            weight[j] = weight[j] if known[j] > 0 else 0.0
            counts[place] = weight[j] * known[j]
        for k in range(classes):
            s = scores[n, k, first : first + count]
            add_entries(s, positive[k], negative[k], gamma, loss, slopes)
            if len(gradient):
                multiply(weight[:count], slopes, gradient[n, k, first:])
            if len(probs):
                write_sigmoids(s, probs[n, k, first:])
        for j in range(count):
            losses[n * places + first + j] = weight[j] * loss[j] if loss[j] < np.inf else np.nan
    return True


def count_threads() -> int:
    """As many as NUMBA_NUM_THREADS or OMP_NUM_THREADS allow, else one for each processor this process may use."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """Threads that share the positions of a batch. They sleep between calls: Caffe's BLAS has threads of its own.

    numba's own threads are not used, since its OpenMP layer aborts in a forked child.
    """

    def __init__(self, size: int):
        self.size = size
        self.pool: Optional[ThreadPoolExecutor] = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.pool = None  # a forked child has none of its parent's threads

    def run(self, kernel: Any, arguments: tuple, count: int, entries: int) -> bool:
        """kernel(*arguments, start, stop) over 0 to count in equal parts; whether all of them returned True."""
        size = min(self.size, count)
        if size <= 1 or entries < SHARED_ENTRIES:
            return kernel(*arguments, 0, count)
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.size - 1, "multilabel_softmax_loss")
        bounds = [count * k // size for k in range(size + 1)]
        rest = [self.pool.submit(kernel, *arguments, *part) for part in zip(bounds[1:-1], bounds[2:])]
        return all([kernel(*arguments, 0, bounds[1]), *(part.result() for part in rest)])


TEAM = Team(count_threads())
NOTHING = {True: np.empty((0, 1), np.float32), False: np.empty((0, 1, 1), np.float32)}
NO_WEIGHT = np.empty(0)
NO_CLASS_WEIGHT = np.empty(0)
NO_CLASS_WEIGHT.flags.writeable = False  # as the options' are, so that one compiled form serves both


@compiled
def scale_part(gradient, step, out, start, stop):
    given, part = gradient[start:stop], out[start:stop]
    for k in range(len(given)):
        part[k] = given[k] * step
    return True


def scale(gradient: np.ndarray, step: float, out: np.ndarray) -> None:
    """out = gradient * step, by all threads where the arrays are large."""
    if gradient.size < 8 * SHARED_ENTRIES:
        np.multiply(gradient, np.float32(step), out=out)
    else:
        TEAM.run(scale_part, (gradient.ravel(), np.float32(step), out.ravel()), gradient.size, gradient.size)


@compiled
def add_up(losses, counts):
    total = count = 0.0
    for k in range(len(losses)):
        total += losses[k]
        count += counts[k]
    return total, count


def suits(batch: Batch) -> bool:
    """Whether the batch has the types of Caffe's blobs (lists of indices may be float64), in one piece, not empty."""
    is_list = batch.options.label_format == "indices"
    return bool(
        batch.scores.dtype == np.float32
        and (batch.labels.dtype == np.float32 or (is_list and batch.labels.dtype == np.float64))
        and batch.scores.flags.c_contiguous
        and batch.labels.flags.c_contiguous
        and batch.scores.size
    )


def run(batch: Batch, rows: Any, columns: Any, *options: Any) -> Optional[Losses]:
    """One of two kernels over the whole batch; None where a label is no label."""
    layout = batch.layout
    losses, counts = np.empty(layout.positions), np.empty(layout.positions)
    outputs = [NOTHING[layout.flat] if array is None else array for array in (batch.gradient, batch.probs)]
    weight = NO_WEIGHT if batch.weight is None else batch.weight.ravel()
    arguments = (batch.scores, batch.labels, weight, *options, losses, counts, *outputs)
    count = layout.outer if layout.flat else layout.outer * tiling(layout.classes, layout.inner)[1]
    done = TEAM.run(rows if layout.flat else columns, arguments, count, batch.scores.size)
    return Losses(losses, counts, *add_up(losses, counts)) if done else None


def softmax_losses(batch: Batch) -> Optional[Losses]:
    """softmax.softmax_losses by the kernels; NaN where the NumPy path has to look, None where it must do all.

    "kl" is left to it, since its entropy needs a logarithm more.
    """
    options = batch.options
    if not suits(batch) or options.divergence == "kl":
        return None
    class_weight = NO_CLASS_WEIGHT if options.class_weight is None else options.class_weight
    if options.label_format == "dense":
        ignoring = options.ignore_label is not None
        ignore_label = np.float32(options.ignore_label if ignoring else 0)
        done = run(batch, dense_rows, dense_columns, class_weight, ignoring, ignore_label, *options.affine_arguments)
    else:
        done = run(batch, index_rows, index_columns, class_weight, options.padding, *options.affine_arguments)
    if done is None or (options.empty == "error" and not done.counts.all()):
        return None
    return done


def sigmoid_losses(batch: Batch) -> Optional[Losses]:
    """sigmoid.sigmoid_losses by the kernels, in the same way."""
    options = batch.options
    if not suits(batch):
        return None
    scale, background, positive, negative = sigmoid_terms(options, batch.layout.classes)
    dense = options.label_format == "dense"
    ignoring = dense and options.ignore_label is not None
    ignore_label = batch.labels.dtype.type(options.padding)
    plain = (
        dense and batch.layout.flat and not ignoring and options.class_weight is None and options.pos_weight is None
        and options.focal_gamma == 0 and options.focal_alpha is None
    )  # fmt: skip
    if plain:
        return run(batch, plain_sigmoid_rows, None, scale, background)
    return run(
        batch, sigmoid_rows, sigmoid_columns, positive, negative, dense, ignoring, ignore_label, scale, background,
        options.focal_gamma,
    )  # fmt: skip
