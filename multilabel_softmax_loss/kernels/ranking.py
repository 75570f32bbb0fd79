"""Ranking losses of positions, one after the other, the classes in SIMD lanes, in float64.

The formulas are those of losses/ranking.py; arrays and their arguments are those of rows.py. Position n has its classes
`places` entries apart: 1 in rows (N, C), S in maps (N, C, S). `ranking` is 0 for pairwise, 1 for WARP, 2 for lsep, 3
for zlpr; with `per_pair` the first two are divided by the number of pairs; `empty` is 2 where a position without label
is an error.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import LOWEST_RANK, ONE, ZERO, exp_negative, of_rank, rank
from .compiling import compiled, inlined, summing, use_wide_vectors
from .labels import spread


@inlined
def gather(values, first, step, out):
    for k in range(len(out)):
        out[k] = values[first + k * step]


@summing
def read_position(scores, labels, class_weight, ignoring, ignore_label, above, below, weights):
    """Part the classes: `above` has the scores of the unlabelled ones, `below` minus those of the labelled, else -inf.

    `weights` has the labels times the class weights. Returns the number of labelled and of other classes, the largest
    of `above` and of `below` where the weight is above 0, whether all scores may be, and whether all labels are labels.
    """
    use_wide_vectors()
    labelled = others = 0
    strange = bad = 0
    high_above = high_below = LOWEST_RANK
    for k in range(len(weights)):
        s = scores[k]
        y = labels[k]
        known = not (ignoring and y == ignore_label)
        y = y if known else ZERO
        bad += 0 if y >= 0 and y < np.inf else 1
        is_label, is_other = y > 0, known and y == 0
        labelled += 1 if is_label else 0
        others += 1 if is_other else 0
        strange += 1 if known and not (s < np.inf and (s > -np.inf or is_other)) else 0
        w = y * (class_weight[k] if len(class_weight) else 1.0)
        above[k] = s if is_other else -np.inf
        below[k] = -s if is_label else -np.inf
        weights[k] = w
        high_above = max(high_above, rank(s) if is_other else LOWEST_RANK)
        high_below = max(high_below, rank(-s) if w > 0 else LOWEST_RANK)
    return labelled, others, np.float64(of_rank(high_above)), np.float64(of_rank(high_below)), strange == 0, bad == 0


@summing
def violations(above, threshold):
    """How many scores are above a threshold, and by how much in all."""
    use_wide_vectors()
    count = excess = 0.0
    for k in range(len(above)):
        x = above[k] - threshold
        count += 1.0 if x > 0 else 0.0
        excess += x if x > 0 else 0.0
    return count, excess


@inlined
def add_violations(above, threshold, factor, slopes):
    use_wide_vectors()
    for k in range(len(above)):
        slopes[k] += factor if above[k] - threshold > 0 else 0.0


@inlined
def hinges(above, below, weights, margin, harmonic, warp, slopes):
    """The sum of the pairs' hinges; their slopes into `slopes`."""
    loss = 0.0
    slopes[:] = 0
    for j in range(len(weights)):
        if below[j] > -np.inf:
            threshold = -below[j] - margin
            count, excess = violations(above, threshold)
            if count > 0:
                factor = weights[j] * (harmonic[np.int64(count)] / count if warp else 1.0)
                loss += factor * excess
                add_violations(above, threshold, factor, slopes)
                slopes[j] -= factor * count
    return loss


@summing
def exp_shares(values, peak, weights, weighted, shares):
    """log(sum_k w_k exp(v_k)), with w_k = 1 unless `weighted`, and the shares of the classes; -inf and 0 for none.

    `peak` is the largest of the values whose weight is above 0.
    """
    use_wide_vectors()
    total = 0.0
    for k in range(len(values)):
        z = values[k] - peak
        e = exp_negative(z) if z > -700.0 else 0.0
        e = e * weights[k] if weighted else e
        shares[k] = e
        total += e
    inverse = 1.0 / total
    for k in range(len(values)):
        shares[k] *= inverse
    return peak + math.log(total)


@inlined
def log1p_exp(x):
    """log(1 + e^x) without overflow, and its slope."""
    if x > 0:
        e = math.exp(-x)
        return x + math.log1p(e), 1.0 / (1.0 + e)
    e = math.exp(x)
    return math.log1p(e), e / (1.0 + e)


@inlined
def log_terms(above, below, weights, high_above, high_below, is_lsep, scratch, slopes):
    """The loss of lsep or zlpr; its slopes into `slopes`."""
    use_wide_vectors()
    a = b = -np.inf
    slopes[:] = 0
    scratch[:] = 0
    if high_above > -np.inf:
        a = exp_shares(above, high_above, weights, False, slopes)
    if high_below > -np.inf:
        b = exp_shares(below, high_below, weights, True, scratch)
    loss, slope_a = log1p_exp(a + b if is_lsep else a)
    slope_b = slope_a
    if not is_lsep:
        loss_b, slope_b = log1p_exp(b)
        loss += loss_b
    for k in range(len(slopes)):
        slopes[k] = slope_a * slopes[k] - slope_b * scratch[k]
    return loss


@inlined
def write_slopes(slopes, factor, step, gradient):
    for k in range(len(slopes)):
        gradient[k * step] = factor * slopes[k]


@compiled
def ranking_positions(
    scores, labels, weight, gradient, probs, factor, class_weight, length, ignoring, ignore_label,
    ranking, margin, per_pair, empty, classes, places, start, stop,
):  # fmt: skip
    """Positions `start` to `stop`; `probs` is there as all kernels are called alike, and is empty."""
    above, below, weights = np.empty(classes), np.empty(classes), np.empty(classes)
    scratch, slopes = np.empty(classes), np.empty(classes)
    s, y = np.empty(classes, np.float32), np.zeros(classes, np.float32)
    harmonic = np.zeros(classes + 1)  # 1 + 1/2 + ... + 1/r at r
    for r in range(1, classes + 1):
        harmonic[r] = harmonic[r - 1] + 1.0 / r
    loss_sum = weight_sum = 0.0
    for n in range(start, stop):
        sample, place = n // places, n % places
        first, listed = sample * classes * places + place, sample * length * places + place
        if length and not spread(labels, listed, places, 0, length, 1, ignore_label, classes, ONE, y, 1):
            return 0.0, 0.0, False
        gather(scores, first, places, s)
        if length == 0:
            gather(labels, first, places, y)
        labelled, others, high_above, high_below, sound, good = read_position(
            s, y, class_weight, ignoring, ignore_label, above, below, weights
        )
        if length:
            spread(labels, listed, places, 0, length, 1, ignore_label, classes, ZERO, y, 1)
        if not good or (empty == 2 and labelled == 0 and others > 0):
            return 0.0, 0.0, False
        u = (weight[n] if len(weight) else 1.0) if labelled > 0 else 0.0
        if not u > 0:
            slopes[:] = 0
        elif not sound:
            return np.nan, 1.0, True  # counted, as a divisor of 0 would make it 0
        else:
            if ranking < 2:
                loss = hinges(above, below, weights, margin, harmonic, ranking == 1, slopes)
            else:
                loss = log_terms(above, below, weights, high_above, high_below, ranking == 2, scratch, slopes)
            pairs = labelled * others if per_pair and ranking < 2 and others > 0 else 1.0
            loss_sum += u * loss / pairs
            weight_sum += u
            u /= pairs
        if len(gradient):
            write_slopes(slopes, factor * u, places, gradient[first:])
    return loss_sum, weight_sum, True
