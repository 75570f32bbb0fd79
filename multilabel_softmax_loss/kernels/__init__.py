"""The losses' inner passes in compiled form (numba): float32 blobs, one read of each.

A kernel treats the ordinary positions; whatever is odd (a bad label, a score beyond +-600, a loss that is almost 0)
it marks and leaves to the NumPy path, which knows how to be exact and what to say. That is also why no maximum of the
scores is needed here: where the kernels apply, exp() of a double cannot overflow.

Each position is passed over twice while it is in the cache: once for the exponentials and all sums, once for the
gradient. Rows with few labels among many classes go a quick way, in float32: digits are lost only where p and t almost
cancel, which is where the labels are, so that these alone need float64. So do labels of 0 and 1 under the sigmoid,
where nothing cancels. All else is in float64. The formulas are those of softmax.py and sigmoid.py; what turns labels
into softmax targets is compiled from targets.py itself.

Each kernel ends with `work` and `helper`: it takes parts of the batch until none is left, beside other threads that do
the same (threads.py).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, List, Optional

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..losses.evaluate import Batch, Losses
from ..losses.targets import affine_targets, sigmoid_terms
from .threads import COUNT, PARTS, SHARED_ENTRIES, Team, count_threads, enter, leave, next_part

# reassoc lets sums use SIMD lanes. Nothing may assume that there is no NaN or infinity: they must be seen.
FAST = {"reassoc", "nsz", "contract"}
summing = njit(forceinline=True, error_model="numpy", fastmath=FAST)
inlined = njit(
    forceinline=True, error_model="numpy", fastmath={"contract"}
)  # no reassoc: it would undo the rounding in exp


def compiled(function: Any) -> Any:
    """The function compiled on its first call; the machine code is kept beside this file, or in the user's cache.

    numba watches this file only: after a change of targets.affine_targets or threads.py, remove __pycache__.
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
QUICK = int(np.float32(64).view(np.int32))  # scores beyond +-64 are too far apart for float32
RUN = 512  # the product of so many numbers up to 2 is a double
SHORT = 64  # rows of fewer classes are turned, if there are at least so many rows
FEW = 8  # the quick way is for at most one labelled class in so many
PLACES = 1024  # at most so many positions are treated side by side
TILE_ENTRIES = 1 << 15  # and so many exponentials, 256 KiB, in the second-level cache

ZERO, ONE = np.float32(0), np.float32(1)
HALF_ROOT_BITS = int(np.float64(math.sqrt(0.5)).view(np.int64))
MANTISSA = (1 << 52) - 1
MAGNITUDE = np.int32(0x7FFFFFFF)  # the bits of a float32 but for its sign
LOG2_E_32, LN_2_32 = np.float32(LOG2_E), np.float32(0.693359375)  # the latter times an integer is exact
LN_2_REST = np.float32(LN_2 - 0.693359375)
ROUND_32 = np.float32(1.5 * 2**23)
ONE_BITS = np.int32(ONE.view(np.int32))


def exp_polynomial(degree: int) -> list:
    """c with exp(r) = 1 + r (c_0 + c_1 r + ...) on [-ln(2)/2, ln(2)/2]: 3e-12 relative for degree 7, 2e-9 for 5."""
    half = LN_2 / 2
    chebyshev = np.polynomial.chebyshev
    series = chebyshev.cheb2poly(chebyshev.chebinterpolate(lambda x: np.expm1(x * half) / (x * half), degree))
    return [float(c) for c in series / half ** np.arange(degree + 1)]


C0, C1, C2, C3, C4, C5, C6, C7 = exp_polynomial(7)
_, B1, B2, B3, B4, B5 = (np.float32(c) for c in exp_polynomial(5))


def arctanh_polynomial(highest: float, degree: int) -> List[float]:
    """c with arctanh(u) = u (1 + u^2 (c_0 + c_1 u^2 + ...)) for u up to `highest`."""
    chebyshev = np.polynomial.chebyshev
    square = highest**2 / 2  # u^2 is between 0 and twice this; x between -1 and 1

    def rest(x: np.ndarray) -> np.ndarray:
        u = np.sqrt(square * (1 + x))
        return (np.arctanh(u) / u - 1) / u**2

    series = np.polynomial.Polynomial(chebyshev.cheb2poly(chebyshev.chebinterpolate(rest, degree)))
    return [float(c) for c in series(np.polynomial.Polynomial([-1, 1 / square])).coef]


# log(1 + e) = 2 arctanh(u), u = e / (2 + e) <= 1/3, to 1e-12 relative.
D0, D1, D2, D3, D4, D5, D6, D7 = arctanh_polynomial(1 / 3, 7)
# log(m) = 2 arctanh(u), u = (m - 1) / (m + 1), sqrt(1/2) <= m < sqrt(2), to 1e-13.
E0, E1, E2, E3, E4, E5 = arctanh_polynomial((math.sqrt(2) - 1) ** 2, 5)


@intrinsic
def use_wide_vectors(typing_context):
    """Ask LLVM for 512-bit vectors in the function that calls this; it prefers 256 where it might cost clock rate.

    At 256 x 1000 the sigmoid kernel takes 0.8 of the time so, and the softmax kernel, now mostly float32, no more than
    before. Processors without AVX-512 are not concerned.
    """

    def generate(context, builder, signature, arguments):
        # llvmlite has no word for this attribute, so its check of words is passed by.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def nonzero_marks(typing_context, row, first):
    """64 bits that say which of row[first : first + 64], float32, are not 0; NaN is not."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), 64)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        values = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()), align=4)
        return builder.bitcast(builder.fcmp_unordered("!=", values, ir.Constant(vector, [0.0] * 64)), ir.IntType(64))

    return types.uint64(row, types.intp), generate


@intrinsic
def lowest_mark(typing_context, marks):
    """The number of the lowest bit that is 1; there must be one."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@inlined
def exp(x):
    """e^x of a double within +-700, without a branch, so that LLVM vectorises it. NaN stays NaN."""
    shifted = x * LOG2_E + ROUND
    r = x - (shifted - ROUND) * LN_2
    power = 1.0 + r * (C0 + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7)))))))
    return np.int64(np.float64(power).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)).view(np.float64)


@inlined
def log(x):
    """The natural logarithm of a normal double > 0, without a branch; what it returns for others means nothing."""
    bits = np.float64(x).view(np.int64) - HALF_ROOT_BITS
    whole = bits >> 52
    m = np.int64((bits & MANTISSA) + HALF_ROOT_BITS).view(np.float64)
    u = (m - 1.0) / (m + 1.0)
    v = u * u
    arctanh = u + u * v * (E0 + v * (E1 + v * (E2 + v * (E3 + v * (E4 + v * E5)))))
    return whole * LN_2 + 2.0 * arctanh


@inlined
def power_32(x):
    """e^x - 1 after x has lost a whole number of ln 2, and that number, in the low bits of a float32."""
    shifted = x * LOG2_E_32 + ROUND_32
    whole = shifted - ROUND_32
    r = x - whole * LN_2_32
    r = r - whole * LN_2_REST
    return r + r * r * (B1 + r * (B2 + r * (B3 + r * (B4 + r * B5)))), shifted


@inlined
def exp_32(x):
    """e^x in float32, within +-87: to 1.1 ulp, and 1 at 0."""
    power, shifted = power_32(x)
    bits = np.float32(ONE + power).view(np.int32) + (np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(bits).view(np.float32)


@inlined
def sigmoid_32(x, upper):
    """e^x / (1 + e^x) of a float32 from -64 to 0, to 1 ulp, or 1 minus that if `upper`; and e^x.

    With the errors of three roundings a gradient would miss 2e-7, so what they lose is added to the quotient.
    """
    power, shifted = power_32(x)
    scale = np.int32(ONE_BITS + (np.float32(shifted).view(np.int32) << np.int32(23))).view(np.float32)
    whole = ONE + power
    e, e_rest = whole * scale, (power - (whole - ONE)) * scale
    d = ONE + e
    d_rest = e - (d - ONE) + e_rest
    q = e / d
    q += (e - q * d + (e_rest - q * d_rest)) * (ONE - q)  # 1 / (1 + e) is 1 - q
    return ONE - q if upper else q, e


@inlined
def exp_score(score):
    """e^s of a float32 score below 600, as a double: at least e^-700, and NaN for NaN."""
    return exp(np.float64(LOWEST if score < LOWEST else score))


@inlined
def highest_of(highest, score):
    """The largest score so far, as the bits of a float32; those of positive numbers have its order, NaN on top."""
    return np.int32(max(highest, np.float32(score).view(np.int32)))


@inlined
def farthest_of(farthest, score):
    """The same of the sizes of the scores."""
    return np.int32(max(farthest, np.float32(score).view(np.int32) & MAGNITUDE))


@inlined
def signs_of(signs, x):
    """The sign bits met so far; as float32 has its sign, so has int32."""
    return np.int32(signs | np.float32(x).view(np.int32))


@summing
def sum_of(values):
    """The sum of float32 numbers as a double. In float32 even the few roundings of SIMD lanes would show."""
    use_wide_vectors()
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total


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
    loss = mass * log(exp_sum) - (scale * dot + (background * score_dot if background != 0 else 0.0))
    whole = (highest < HIGHEST) & (exp_sum < np.inf) & (scale < np.inf)
    exact = whole & (exp_sum > SMALLEST_SUM) & (loss >= SMALLEST_LOSS * mass) & (loss < np.inf)
    loss = weight * loss if exact else np.nan
    share = weight * mass / exp_sum if exp_sum > 0 else 0.0
    return loss if weight > 0 else 0.0 if whole else np.nan, weight, share, weight * scale, weight * background


# The quick way of a row. `listed` has the classes with a label, `amounts` w y and `factors` 1 of each of them; both are
# 0 of an unknown class, which has no place in the softmax.


@inlined
def list_labels(labels, ignoring, ignore_label, class_weight, listed, amounts, factors):
    """Fills the lists from a row of labels; returns their number, the sum, the positives, and False for no label.

    The number is -1 where the labels are too many for the quick way.
    """
    classes = len(labels)
    limit = classes // FEW
    count = 0
    whole = classes - classes % 64
    for first in range(0, whole, 64):
        marks = nonzero_marks(labels, first)
        while marks != 0:
            if count == limit:
                return -1, 0.0, 0.0, True
            listed[count] = first + lowest_mark(marks)
            count += 1
            marks &= marks - np.uint64(1)
    for k in range(whole, classes):
        if labels[k] != 0:
            if count == limit:
                return -1, 0.0, 0.0, True
            listed[count] = k
            count += 1
    total = positives = 0.0
    good = True
    for i in range(count):
        k = listed[i]
        y = labels[k]
        there = 0.0 if ignoring and y == ignore_label else 1.0
        y = y if there == 1.0 else ZERO
        good = good and y >= 0
        total += y
        positives += there
        amounts[i] = (class_weight[k] if len(class_weight) else 1.0) * y
        factors[i] = there
    return count, total, positives, good and total < np.inf


@inlined
def quick_exps(scores, exps):
    """exp() of a row of scores; whether all of them are near enough to 0 for that."""
    use_wide_vectors()
    farthest = np.int32(0)
    for k in range(len(scores)):
        s = scores[k]
        exps[k] = exp_32(s)
        farthest = farthest_of(farthest, s)
    return farthest <= QUICK


@inlined
def quick_sums(scores, exps, listed, amounts, factors, count):
    """sum exp(s), sum w y s and sum w y; the listed classes' exps are taken out into `factors`."""
    exp_sum = dot = weighted_total = 0.0
    for i in range(count):
        k = listed[i]
        s = scores[k]
        factors[i] *= exp_score(s)
        exps[k] = 0
        exp_sum += factors[i]
        weighted_total += amounts[i]
        dot += amounts[i] * s
    return exp_sum + sum_of(exps), dot, weighted_total


@inlined
def splits(number):
    """Whether a double is the sum of two float32 numbers to many digits."""
    return number == 0 or (abs(number) > 1e-30 and abs(number) < 1e30)


@inlined
def product(high, low, x):
    """(high + low) x, rounded once."""
    return high * x + low * x


@inlined
def quick_write(share, exps, listed, factors, count, scale, amounts, out):
    """out = share exps - scale amounts."""
    use_wide_vectors()
    high = np.float32(share)
    low = np.float32(share - high)
    for k in range(len(out)):
        out[k] = product(high, low, exps[k])
    for i in range(count):
        out[listed[i]] = share * factors[i] - scale * amounts[i]


@compiled
def dense_rows(
    scores, labels, sample_weight, class_weight, ignoring, ignore_label, parts, smoothing, uniform,
    losses, weights, gradient, probs, work, helper,
):  # fmt: skip
    """Rows of scores and labels (N, C), float32; False where a label is no label.

    sample_weight (N) or (0), class_weight (C) or (0), float64. Written: losses u L and weights u (N), float64;
    gradient u (m p - t) and probs p, (N, C) or (0, C), float32.
    """
    use_wide_vectors()
    enter(work, helper)
    classes = scores.shape[1]
    exps, quick = np.empty(classes), np.empty(classes, np.float32)
    limit = classes // FEW
    listed, amounts, factors = np.empty(limit, np.int64), np.empty(limit), np.empty(limit)
    # Without a target everywhere, and with 0 for no label, the labels are where p and t may cancel.
    may_be_quick = smoothing == 0 and not uniform and not (ignoring and ignore_label == 0)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for n in range(start, stop):
            u = sample_weight[n] if len(sample_weight) else 1.0
            if may_be_quick:
                count, total, positives, good = list_labels(
                    labels[n], ignoring, ignore_label, class_weight, listed, amounts, factors
                )
                if not good:
                    break
                if count >= 0 and quick_exps(scores[n], quick):
                    exp_sum, dot, weighted_total = quick_sums(scores[n], quick, listed, amounts, factors, count)
                    losses[n], weights[n], share, scale, _ = position(
                        total, positives, float(classes), weighted_total, 0.0, dot, 0.0, exp_sum, 0, u,
                        parts, 0.0, False,
                    )  # fmt: skip
                    if splits(share):
                        if len(gradient):
                            quick_write(share, quick, listed, factors, count, scale, amounts, gradient[n])
                        if len(probs):
                            inverse = 1 / exp_sum if exp_sum > 0 else 0.0
                            quick_write(inverse, quick, listed, factors, count, 0.0, amounts, probs[n])
                        continue
            signs = highest = np.int32(0)
            exp_sum = total = positives = known = weighted_total = weighted_known = dot = score_dot = 0.0
            for k in range(classes):
                s = scores[n, k]
                y = labels[n, k]
                there = 0.0 if ignoring and y == ignore_label else 1.0
                y = y if there == 1.0 else ZERO
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
            good = signs >= 0 and total < np.inf
            if not good:
                break
            losses[n], weights[n], share, scale, background = position(
                total, positives, known, weighted_total, weighted_known, dot, score_dot, exp_sum, highest, u,
                parts, smoothing, uniform,
            )  # fmt: skip
            if len(gradient):
                for k in range(classes):
                    y = labels[n, k]
                    there = 0.0 if ignoring and y == ignore_label else 1.0
                    w = class_weight[k] if len(class_weight) else 1.0
                    gradient[n, k] = share * exps[k] - there * w * (scale * y + background)
            if len(probs):
                inverse = 1 / exp_sum if exp_sum > 0 else 0.0
                for k in range(classes):
                    probs[n, k] = exps[k] * inverse
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


# Places side by side. The sums of a tile's places lie in one array at fixed distances, so that LLVM need not check
# whether many arrays overlap: beyond a few it gives up SIMD.

EXP_SUM, TOTAL, DOT, POSITIVES, KNOWN, WEIGHTED_TOTAL, WEIGHTED_KNOWN, SCORE_DOT = range(0, 8 * PLACES, PLACES)
WEIGHT, LOSS, SHARE, SCALE, BACKGROUND, END = range(8 * PLACES, 14 * PLACES, PLACES)


@inlined
def tiling(classes, places):
    """How many places are treated side by side, and in how many tiles that makes of a sample."""
    width = max(16, min(places, PLACES, TILE_ENTRIES // classes))
    return width, (places + width - 1) // width


@inlined
def clear(sums, count):
    """Zero the sums of as many places, from EXP_SUM to SCORE_DOT."""
    for first in range(0, WEIGHT, PLACES):
        sums[first : first + count] = 0


@inlined
def add_plain_class(scores, labels, exps, sums):
    """One class of a tile; the largest score and the signs of the labels, as bits."""
    use_wide_vectors()
    signs = highest = np.int32(0)
    for j in range(len(scores)):
        s = scores[j]
        y = labels[j]
        e = exp_score(s)
        exps[j] = e
        highest = highest_of(highest, s)
        signs = signs_of(signs, y)
        sums[EXP_SUM + j] += e
        sums[TOTAL + j] += y
        sums[DOT + j] += np.float64(s) * y
    return highest, signs


@inlined
def add_class(scores, labels, w, ignoring, ignore_label, exps, sums):
    """The same with class weight w, and labels that may be unknown."""
    use_wide_vectors()
    signs = highest = np.int32(0)
    for j in range(len(scores)):
        s = scores[j]
        y = labels[j]
        there = 0.0 if ignoring and y == ignore_label else 1.0
        y = y if there == 1.0 else ZERO
        e = there * exp_score(s)
        exps[j] = e
        highest = highest_of(highest, s)
        signs = signs_of(signs, y)
        sums[EXP_SUM + j] += e
        sums[TOTAL + j] += y
        sums[DOT + j] += w * y * s
        sums[POSITIVES + j] += 1.0 if y != 0 else 0.0
        sums[KNOWN + j] += there
        sums[WEIGHTED_TOTAL + j] += w * y
        sums[WEIGHTED_KNOWN + j] += w * there
        sums[SCORE_DOT + j] += w * there * s
    return highest, signs


@inlined
def finish(sums, highest, parts, smoothing, uniform, first, sample_weight, losses, weights):
    """From the sums of a tile to its losses and weights, which are written from `first` on, and factors."""
    use_wide_vectors()
    count = len(losses)
    if len(sample_weight):
        sums[WEIGHT : WEIGHT + count] = sample_weight[first : first + count]
    else:
        sums[WEIGHT : WEIGHT + count] = 1
    for j in range(count):
        sums[LOSS + j], sums[WEIGHT + j], sums[SHARE + j], sums[SCALE + j], sums[BACKGROUND + j] = position(
            sums[TOTAL + j], sums[POSITIVES + j], sums[KNOWN + j], sums[WEIGHTED_TOTAL + j], sums[WEIGHTED_KNOWN + j],
            sums[DOT + j], sums[SCORE_DOT + j], sums[EXP_SUM + j], highest, sums[WEIGHT + j],
            parts, smoothing, uniform,
        )  # fmt: skip
    losses[:] = sums[LOSS : LOSS + count]
    weights[:] = sums[WEIGHT : WEIGHT + count]


@inlined
def write_plain_slopes(exps, labels, sums, gradient):
    use_wide_vectors()
    for j in range(len(labels)):
        gradient[j] = sums[SHARE + j] * exps[j] - sums[SCALE + j] * labels[j]


@inlined
def write_slopes(exps, labels, ignoring, ignore_label, w, sums, gradient):
    use_wide_vectors()
    for j in range(len(labels)):
        y = labels[j]
        there = 0.0 if ignoring and y == ignore_label else w
        gradient[j] = sums[SHARE + j] * exps[j] - there * (sums[SCALE + j] * y + sums[BACKGROUND + j])


@inlined
def write_probs(exps, sums, probs):
    use_wide_vectors()
    for j in range(len(probs)):
        probs[j] = exps[j] / sums[EXP_SUM + j] if sums[EXP_SUM + j] > 0 else 0.0


@compiled
def dense_columns(
    scores, labels, sample_weight, class_weight, ignoring, ignore_label, parts, smoothing, uniform,
    losses, weights, gradient, probs, work, helper,
):  # fmt: skip
    """The same for scores and labels (N, C, S), one softmax for each of the N S places.

    A tile is a run of places of one sample, treated side by side: the loops over places are the SIMD loops.
    """
    use_wide_vectors()
    enter(work, helper)
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    plain = not ignoring and not len(class_weight) and parts != 1 and smoothing == 0 and not uniform
    exps = np.empty((classes, width))
    sums = np.empty(END)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for tile in range(start, stop):
            n = tile // tiles
            first = (tile % tiles) * width
            count = min(width, places - first)
            clear(sums, count)
            signs = highest = np.int32(0)
            for k in range(classes):
                s, y = scores[n, k, first : first + count], labels[n, k, first : first + count]
                if plain:
                    high, sign = add_plain_class(s, y, exps[k], sums)
                else:
                    w = class_weight[k] if len(class_weight) else 1.0
                    high, sign = add_class(s, y, w, ignoring, ignore_label, exps[k], sums)
                highest = max(highest, high)
                signs |= sign
            good = signs >= 0
            for j in range(count):
                good = good and sums[TOTAL + j] < np.inf
            if not good:
                break
            if plain:
                sums[KNOWN : KNOWN + count] = classes
                sums[WEIGHTED_TOTAL : WEIGHTED_TOTAL + count] = sums[TOTAL : TOTAL + count]
            place = n * places + first
            finish(
                sums, highest, parts, smoothing, uniform, place, sample_weight,
                losses[place : place + count], weights[place : place + count],
            )  # fmt: skip
            for k in range(classes):
                y = labels[n, k, first : first + count]
                if len(gradient) and plain:
                    write_plain_slopes(exps[k], y, sums, gradient[n, k, first:])
                elif len(gradient):
                    w = class_weight[k] if len(class_weight) else 1.0
                    write_slopes(exps[k], y, ignoring, ignore_label, w, sums, gradient[n, k, first:])
                if len(probs):
                    write_probs(exps[k], sums, probs[n, k, first : first + count])
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


@inlined
def turn(rows, first, last):
    """rows[first:last] as columns, (1, C, last - first)."""
    columns = np.empty((1, rows.shape[1], last - first), np.float32)
    for n in range(first, last):
        for k in range(rows.shape[1]):
            columns[0, k, n - first] = rows[n, k]
    return columns


@inlined
def turn_back(columns, rows, first):
    """The same the other way, into rows[first:]."""
    for n in range(columns.shape[2]):
        for k in range(columns.shape[1]):
            rows[first + n, k] = columns[0, k, n]


@compiled
def dense_short_rows(
    scores, labels, sample_weight, class_weight, ignoring, ignore_label, parts, smoothing, uniform,
    losses, weights, gradient, probs, work, helper,
):  # fmt: skip
    """dense_rows for few classes, whose loops are too short for SIMD: runs of rows are turned into columns."""
    enter(work, helper)
    classes = scores.shape[1]
    alone = np.empty(9, np.int64)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        step, _ = tiling(classes, stop - start)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            slopes = np.empty((1 if len(gradient) else 0, classes, last - first), np.float32)
            p = np.empty((1 if len(probs) else 0, classes, last - first), np.float32)
            alone[:] = 0
            alone[PARTS] = alone[COUNT] = 1
            good = dense_columns(
                turn(scores, first, last), turn(labels, first, last), sample_weight[first:last], class_weight,
                ignoring, ignore_label, parts, smoothing, uniform, losses[first:last], weights[first:last],
                slopes, p, alone, np.bool_(False),
            )  # fmt: skip
            if not good:
                break
            if len(gradient):
                turn_back(slopes, gradient, first)
            if len(probs):
                turn_back(p, probs, first)
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


@inlined
def distinct(indices, padding, classes, seen, stamp, listed):
    """The distinct class indices of one list are put into `listed`; returns how many, or -1 for what is no index.

    seen[k] = stamp notes class k; each list needs a stamp of its own.
    """
    count = 0
    for given in indices:
        if given == padding:
            continue
        if not (given >= 0 and given < classes and given == math.floor(given)):
            return -1
        index = np.int64(given)
        if seen[index] != stamp:
            seen[index] = stamp
            listed[count] = index
            count += 1
    return count


@compiled
def index_rows(
    scores, indices, sample_weight, class_weight, padding, parts, smoothing, uniform,
    losses, weights, gradient, probs, work, helper,
):  # fmt: skip
    """The same for scores (N, C) and lists of class indices (N, K); only listed classes are visited for targets."""
    use_wide_vectors()
    enter(work, helper)
    classes, length = scores.shape[1], indices.shape[1]
    exps, quick = np.empty(classes), np.empty(classes, np.float32)
    listed, amounts, factors = np.empty(length, np.int64), np.empty(length), np.empty(length)
    seen = np.zeros(classes, np.int64)
    weighted = len(class_weight) > 0
    weighted_known = class_weight.sum() if weighted else float(classes)
    may_be_quick = smoothing == 0 and not uniform
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for n in range(start, stop):
            u = sample_weight[n] if len(sample_weight) else 1.0
            count = distinct(indices[n], padding, classes, seen, n + 1, listed)
            good = count >= 0
            if not good:
                break
            for i in range(count):
                amounts[i] = class_weight[listed[i]] if weighted else 1.0
                factors[i] = 1
            if may_be_quick and count <= classes // FEW and quick_exps(scores[n], quick):
                exp_sum, dot, weighted_total = quick_sums(scores[n], quick, listed, amounts, factors, count)
                losses[n], weights[n], share, scale, _ = position(
                    float(count), float(count), float(classes), weighted_total, 0.0, dot, 0.0, exp_sum, 0, u,
                    parts, 0.0, False,
                )  # fmt: skip
                if splits(share):
                    if len(gradient):
                        quick_write(share, quick, listed, factors, count, scale, amounts, gradient[n])
                    if len(probs):
                        quick_write(1 / exp_sum, quick, listed, factors, count, 0.0, amounts, probs[n])
                    continue
            exp_sum = score_dot = weighted_total = dot = 0.0
            highest = np.int32(0)
            for k in range(classes):
                s = scores[n, k]
                e = exp_score(s)
                exps[k] = e
                exp_sum += e
                score_dot += (class_weight[k] if weighted else 1.0) * s
                highest = highest_of(highest, s)
            for i in range(count):
                weighted_total += amounts[i]
                dot += amounts[i] * scores[n, listed[i]]
            losses[n], weights[n], share, scale, background = position(
                float(count), float(count), float(classes), weighted_total, weighted_known, dot, score_dot, exp_sum,
                highest, u, parts, smoothing, uniform,
            )  # fmt: skip
            if len(gradient):
                for k in range(classes):
                    gradient[n, k] = share * exps[k] - background * (class_weight[k] if weighted else 1.0)
                for i in range(count):
                    k = listed[i]
                    gradient[n, k] = share * exps[k] - amounts[i] * (scale + background)
            if len(probs):
                inverse = 1 / exp_sum
                for k in range(classes):
                    probs[n, k] = exps[k] * inverse
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


@inlined
def add_unlabelled_class(scores, w, exps, sums):
    """One class of a tile before its labels are known; the largest score, as bits."""
    use_wide_vectors()
    highest = np.int32(0)
    for j in range(len(scores)):
        s = scores[j]
        e = exp_score(s)
        exps[j] = e
        highest = highest_of(highest, s)
        sums[EXP_SUM + j] += e
        sums[SCORE_DOT + j] += w * s
    return highest


@inlined
def write_unlisted(exps, w, sums, gradient):
    use_wide_vectors()
    for j in range(len(gradient)):
        gradient[j] = sums[SHARE + j] * exps[j] - w * sums[BACKGROUND + j]


@compiled
def index_columns(
    scores, indices, sample_weight, class_weight, padding, parts, smoothing, uniform,
    losses, weights, gradient, probs, work, helper,
):  # fmt: skip
    """The same for scores (N, C, S) and lists of class indices (N, K, S), by tiles as in dense_columns."""
    use_wide_vectors()
    enter(work, helper)
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    exps = np.empty((classes, width))
    sums = np.empty(END)
    listed = np.empty(indices.shape[1], np.int64)
    seen = np.zeros(classes, np.int64)
    stamp = 0
    weighted = len(class_weight) > 0
    weighted_known = class_weight.sum() if weighted else float(classes)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for tile in range(start, stop):
            n = tile // tiles
            first = (tile % tiles) * width
            count = min(width, places - first)
            clear(sums, count)
            highest = np.int32(0)
            for k in range(classes):
                w = class_weight[k] if weighted else 1.0
                highest = max(highest, add_unlabelled_class(scores[n, k, first : first + count], w, exps[k], sums))
            for j in range(count):
                stamp += 1
                found = distinct(indices[n, :, first + j], padding, classes, seen, stamp, listed)
                good = good and found >= 0
                sums[TOTAL + j] = sums[POSITIVES + j] = found
                for i in range(found):
                    w = class_weight[listed[i]] if weighted else 1.0
                    sums[WEIGHTED_TOTAL + j] += w
                    sums[DOT + j] += w * scores[n, listed[i], first + j]
            if not good:
                break
            sums[KNOWN : KNOWN + count] = classes
            sums[WEIGHTED_KNOWN : WEIGHTED_KNOWN + count] = weighted_known
            place = n * places + first
            finish(
                sums, highest, parts, smoothing, uniform, place, sample_weight,
                losses[place : place + count], weights[place : place + count],
            )  # fmt: skip
            for k in range(classes):
                w = class_weight[k] if weighted else 1.0
                if len(gradient):
                    write_unlisted(exps[k], w, sums, gradient[n, k, first : first + count])
                if len(probs):
                    write_probs(exps[k], sums, probs[n, k, first : first + count])
            # The places of one class were written side by side, so the listed classes had to wait.
            for j in range(count if len(gradient) else 0):
                stamp += 1
                found = distinct(indices[n, :, first + j], padding, classes, seen, stamp, listed)
                for i in range(found):
                    k = listed[i]
                    w = class_weight[k] if weighted else 1.0
                    target = w * (sums[SCALE + j] + sums[BACKGROUND + j])
                    gradient[n, k, first + j] = sums[SHARE + j] * exps[k, j] - target
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


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


@inlined
def write_sigmoids(scores, probs):
    use_wide_vectors()
    for j in range(len(scores)):
        probs[j] = log_sigmoids(scores[j])[2]


@summing
def quick_run(scores, labels, exps, out):
    """Up to RUN plain entries in float32: their summed L, and dL/ds into `out`; False where that will not do.

    It does for labels that are 0 or 1 and for scores within +-64. With z = s for label 0 and -s for label 1,
    L = max(z, 0) + log(1 + e^-|z|); the logarithms are that of one product.
    """
    use_wide_vectors()
    farthest = np.int32(0)
    upward = odd = ZERO
    for k in range(len(scores)):
        s = scores[k]
        y = labels[k]
        z = s if y == ZERO else -s
        slope, e = sigmoid_32(-abs(s), z > ZERO)
        exps[k] = e
        upward += z if z > ZERO else ZERO
        out[k] = slope if y == ZERO else -slope
        farthest = farthest_of(farthest, s)
        odd += ZERO if y in (ZERO, ONE) else ONE
    product = 1.0
    for k in range(len(scores)):  # apart, since the doubles would halve the SIMD lanes of the rest
        product *= 1.0 + exps[k]
    loss = upward + math.log(product)
    return loss, farthest <= QUICK and odd == ZERO and loss >= SMALLEST_LOSS


@inlined
def exact_run(scores, labels, out):
    """The same in float64 for all scores, and how many labels are none."""
    use_wide_vectors()
    loss = 0.0
    bad = 0
    for k in range(len(scores)):
        y = np.float64(labels[k])
        cost, out[k] = plain_entry(scores[k], y, 1 - y)
        loss += cost
        bad += 0 if y >= 0 and y <= 1 else 1
    return loss, bad


@compiled
def sigmoid_entries(scores, labels, losses, gradient, probs, work, helper):
    """Entries that no option tells apart, scores and labels (E); False where a label is no label.

    Written: L of each run of RUN entries (E / RUN, rounded up) or NaN, float64; gradient and probs (E) or (0), float32.
    """
    use_wide_vectors()
    enter(work, helper)
    exps, unused = np.empty(RUN, np.float32), np.empty(RUN, np.float32)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for run in range(start, stop):
            first, last = run * RUN, min((run + 1) * RUN, len(scores))
            s, y = scores[first:last], labels[first:last]
            out = gradient[first:last] if len(gradient) else unused[: last - first]
            loss, will_do = quick_run(s, y, exps, out)
            if not will_do:
                loss, bad = exact_run(s, y, out)
                good = bad == 0
                if not good:
                    break
            losses[run] = loss if loss < np.inf else np.nan
            if len(probs):
                write_sigmoids(s, probs[first:last])
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


@compiled
def sigmoid_rows(
    scores, labels, sample_weight, positive_weight, negative_weight, dense, ignoring, ignore_label, scale, background,
    gamma, losses, counts, gradient, probs, work, helper,
):  # fmt: skip
    """Rows of scores (N, C) and labels (N, C) or lists (N, K); False where a label is no label.

    sample_weight (N) or (0), positive_weight and negative_weight (C), float64. Written: losses u L and u times the
    number of known classes (N), float64; gradient u dL/ds and probs (N, C) or (0, C), float32.
    """
    use_wide_vectors()
    enter(work, helper)
    classes = scores.shape[1]
    positive, negative, slopes = np.empty(classes), np.empty(classes), np.empty(classes)
    listed, seen = np.empty(labels.shape[1], np.int64), np.zeros(1 if dense else classes, np.int64)
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for n in range(start, stop):
            weight = sample_weight[n] if len(sample_weight) else 1.0
            if len(probs):
                write_sigmoids(scores[n], probs[n])
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
                good = bad == 0
                count = 0
            else:
                for k in range(classes):
                    positive[k], negative[k], _ = term_weights(
                        0.0, positive_weight[k], negative_weight[k], scale, background
                    )
                count = distinct(labels[n], ignore_label, classes, seen, n + 1, listed)
                good = count >= 0
            if not good:
                break
            for i in range(count):
                k = listed[i]
                positive[k], negative[k], _ = term_weights(
                    1.0, positive_weight[k], negative_weight[k], scale, background
                )
            weight = weight if known > 0 else 0.0
            counts[n] = weight * known
            loss = 0.0
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
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


@inlined
def read_class(labels, ignoring, ignore_label, row, there):
    """The labels as doubles, 0 where unknown, and 1 or 0 for known or not; how many are no labels from 0 to 1."""
    use_wide_vectors()
    bad = 0
    for j in range(len(labels)):
        y = np.float64(labels[j])
        known = 0.0 if ignoring and y == ignore_label else 1.0
        there[j] = known
        y = y if known == 1.0 else 0.0
        row[j] = y
        bad += 0 if y >= 0 and y <= 1 else 1
    return bad


@inlined
def weigh_terms(row, there, positive_weight, negative_weight, scale, background, positive, negative):
    use_wide_vectors()
    for j in range(len(row)):
        t = scale * row[j] + background
        positive[j] = there[j] * positive_weight * t
        negative[j] = there[j] * negative_weight * (1 - t)


@inlined
def add_to(total, row):
    use_wide_vectors()
    for j in range(len(row)):
        total[j] += row[j]


@inlined
def add_entries(scores, positive, negative, gamma, loss, slopes):
    use_wide_vectors()
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
    use_wide_vectors()
    for j in range(len(weight)):
        gradient[j] = weight[j] * slopes[j]


@compiled
def sigmoid_columns(
    scores, labels, sample_weight, positive_weight, negative_weight, dense, ignoring, ignore_label, scale, background,
    gamma, losses, counts, gradient, probs, work, helper,
):  # fmt: skip
    """The same for scores (N, C, S) and labels (N, C, S) or (N, K, S), by tiles as in dense_columns."""
    use_wide_vectors()
    enter(work, helper)
    _, classes, places = scores.shape
    width, tiles = tiling(classes, places)
    positive, negative = np.empty((classes, width)), np.empty((classes, width))
    loss, weight, slopes = np.empty(width), np.empty(width), np.empty(width)
    row, there, known = np.empty(width), np.empty(width), np.empty(width)
    listed, seen = np.empty(labels.shape[1], np.int64), np.zeros(1 if dense else classes, np.int64)
    stamp = 0
    good = True
    start, stop = next_part(work, helper)
    while start < stop and good:
        for tile in range(start, stop):
            n = tile // tiles
            first = (tile % tiles) * width
            count = min(width, places - first)
            loss[:] = 0
            known[:] = 0
            bad = 0
            for k in range(classes):
                if dense:
                    bad += read_class(labels[n, k, first : first + count], ignoring, ignore_label, row, there)
                else:
                    row[:] = 0
                    there[:] = 1
                add_to(known, there[:count])
                weigh_terms(
                    row, there, positive_weight[k], negative_weight[k], scale, background, positive[k], negative[k]
                )
            good = bad == 0
            for j in range(count):
                if not dense:
                    stamp += 1
                    found = distinct(labels[n, :, first + j], ignore_label, classes, seen, stamp, listed)
                    good = good and found >= 0
                    for i in range(found):
                        k = listed[i]
                        t = scale + background
                        positive[k, j], negative[k, j] = positive_weight[k] * t, negative_weight[k] * (1 - t)
                place = n * places + first + j
                weight[j] = sample_weight[place] if len(sample_weight) else 1.0
                weight[j] = weight[j] if known[j] > 0 else 0.0
                counts[place] = weight[j] * known[j]
            if not good:
                break
            for k in range(classes):
                s = scores[n, k, first : first + count]
                add_entries(s, positive[k], negative[k], gamma, loss, slopes)
                if len(gradient):
                    multiply(weight[:count], slopes, gradient[n, k, first:])
                if len(probs):
                    write_sigmoids(s, probs[n, k, first:])
            for j in range(count):
                losses[n * places + first + j] = weight[j] * loss[j] if loss[j] < np.inf else np.nan
        start, stop = next_part(work, helper)
    return leave(work, helper, good)


TEAM = Team(count_threads())
NOTHING = {True: np.empty((0, 1), np.float32), False: np.empty((0, 1, 1), np.float32)}
NO_ENTRIES = np.empty(0, np.float32)
NO_WEIGHT = np.empty(0)
NO_CLASS_WEIGHT = np.empty(0)
NO_CLASS_WEIGHT.flags.writeable = False  # as the options' are, so that one compiled form serves both


@inlined
def multiply_by(step, gradient, out):
    use_wide_vectors()
    high = np.float32(step)
    low = np.float32(step - high)
    for k in range(len(gradient)):
        out[k] = product(high, low, gradient[k])


@compiled
def scale_few(gradient, step, out):
    multiply_by(step, gradient, out)


@compiled
def scale_parts(gradient, step, out, work, helper):
    enter(work, helper)
    start, stop = next_part(work, helper)
    while start < stop:
        multiply_by(step, gradient[start:stop], out[start:stop])
        start, stop = next_part(work, helper)
    return leave(work, helper, True)


def scale(gradient: np.ndarray, step: float, out: np.ndarray) -> None:
    """out = gradient * step, by all threads where the arrays are large."""
    arguments = gradient.reshape(-1), step, out.reshape(-1)
    if gradient.size < SHARED_ENTRIES:
        scale_few(*arguments)
    else:
        TEAM.run(scale_parts, arguments, gradient.size, gradient.size)


@compiled
def add_up(losses, counts):
    total = count = 0.0
    for k in range(len(losses)):
        total += losses[k]
        count += counts[k]
    return total, count


def suits(batch: Batch) -> bool:
    """Whether the batch has the types of Caffe's blobs (lists of indices may be float64) and is not empty."""
    is_list = batch.options.label_format == "indices"
    return bool(
        batch.scores.dtype == np.float32
        and (batch.labels.dtype == np.float32 or (is_list and batch.labels.dtype == np.float64))
        and batch.scores.flags.c_contiguous
        and batch.labels.flags.c_contiguous
        and batch.scores.flags.writeable  # each kernel has one compiled form, and it is for such arrays
        and batch.labels.flags.writeable
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


def run_entries(batch: Batch) -> Optional[Losses]:
    """sigmoid_entries over the whole batch; None where a label is no label."""
    outputs = [NO_ENTRIES if array is None else array.reshape(-1) for array in (batch.gradient, batch.probs)]
    losses = np.empty(-(-batch.scores.size // RUN))
    arguments = (batch.scores.reshape(-1), batch.labels.reshape(-1), losses, *outputs)
    done = TEAM.run(sigmoid_entries, arguments, len(losses), batch.scores.size)
    return Losses(losses, NO_WEIGHT, float(losses.sum()), float(batch.scores.size)) if done else None


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
        ignore_label = np.float32(options.ignore_label) if ignoring else ZERO
        few_classes = batch.layout.classes < SHORT and batch.layout.outer >= SHORT
        rows = dense_short_rows if few_classes else dense_rows
        done = run(batch, rows, dense_columns, class_weight, ignoring, ignore_label, *options.affine_arguments)
    else:
        done = run(batch, index_rows, index_columns, class_weight, options.padding, *options.affine_arguments)
    if done is None or (options.empty == "error" and np.count_nonzero(done.counts) < len(done.counts)):
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
    plain = bool(
        dense and batch.weight is None and not ignoring and options.class_weight is None and options.pos_weight is None
        and options.focal_gamma == 0 and options.focal_alpha is None and scale == 1
    )  # fmt: skip
    if plain:
        done = run_entries(batch)
        if done is None or not math.isnan(done.total):
            return done
    return run(
        batch, sigmoid_rows, sigmoid_columns, positive, negative,
        dense, ignoring, ignore_label, scale, background, options.focal_gamma,
    )  # fmt: skip
