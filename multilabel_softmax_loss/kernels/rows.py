"""Softmax cross-entropy of rows (N, C), one after the other, the classes in SIMD lanes.

With b the class of the highest score, z = s - s_b, R the sum of exp(z) over the other classes, t the targets of
labels.py and m their sum::

    L        = m log(1 + R) - sum_k t_k z_k        no term is negative, so nothing cancels
    p_k      = exp(z_k) / (1 + R)
    dL/ds_k  = m p_k - t_k, but of b the sum of the other t_k minus m R / (1 + R)

So positions that are certain keep their digits, and all take the same way, in float64: p and t may nearly cancel in
any class. What targets are made of is summed only where there are labels; most runs of classes have none.

Arrays are flat. `weight` (positions) and `class_weight` (C) are float64, the first may be empty for ones; `gradient`
and `probs` may be empty where they are not wanted. With `length` above 0 labels are lists of so many class indices,
padded with `padding`; labels equal to `unknown`, which may be NaN, are unknown. The gradient is written times `factor`.
The kernels return sum u L, the sum of the weights u of the positions that count, and False where a label is none.

In the loops all is read before anything is written, and no two values are chosen by the same branch: LLVM would make
no SIMD of them.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import LOWEST_RANK, ONE, ZERO, exp_negative, of_rank, rank
from .compiling import LINE, compiled, inlined, prefetch, prefetch_for_writing, summing, use_wide_vectors
from .labels import any_label, spread, target_terms

RUN = 128  # classes that are treated together
# What is summed over the classes of a row: R; of the labels the sum, how many are not 0, w y of all classes but b and
# of b, and w y z; of the known classes the number, w of all but b and of b, and w z.
REST, TOTAL, POSITIVES, OTHERS, OWN, DOT, KNOWN, KNOWN_OTHERS, KNOWN_OWN, KNOWN_DOT, SUMS = range(11)


@inlined
def finish(sums, weight, factor, normalization, smoothing, empty):
    """What the sums of a row come to.

    Returns
    -------
    u L, u, whether its labels are labels; with the factor: u m / (1 + R), a and b of the targets, and the slope of the
    best class. All are 0 where the row does not count.
    """
    rest, total, known, others, known_others = sums[REST], sums[TOTAL], sums[KNOWN], sums[OTHERS], sums[KNOWN_OTHERS]
    good = total < np.inf and not (empty == 2 and known > 0 and not total > 0)
    scale, ground, counted = target_terms(total, sums[POSITIVES], known, normalization, smoothing, empty)
    if not (counted and weight > 0):
        return 0.0, 0.0, good, 0.0, 0.0, 0.0, 0.0
    mass = scale * (others + sums[OWN]) + ground * (known_others + sums[KNOWN_OWN])
    loss = mass * math.log1p(rest) - scale * sums[DOT] - (ground * sums[KNOWN_DOT] if ground != 0 else 0.0)
    u = factor * weight
    share = u * mass / (1.0 + rest)
    best_slope = u * (scale * others + ground * known_others) - share * rest
    return weight * loss, weight, good, share, u * scale, u * ground, best_slope


@inlined
def highest_known(scores, labels, unknown):
    use_wide_vectors()
    high = LOWEST_RANK
    for k in range(len(scores)):
        high = max(high, LOWEST_RANK if labels[k] == unknown else rank(scores[k]))
    peak = np.float64(of_rank(high))
    return 0.0 if peak == -np.inf else peak


@inlined
def find_best(scores, labels, unknown, peak):
    """The last class with that score; -1 for none."""
    use_wide_vectors()
    best = -1
    for k in range(len(scores)):
        best = max(best, k if scores[k] == peak and labels[k] != unknown else -1)
    return best


@summing
def add_exps(scores, labels, unknown, peak, best, exps):
    """exps = exp(s - peak), 0 where unknown; returns their sum but for the best class."""
    use_wide_vectors()
    rest = 0.0
    for k in range(len(scores)):
        s = -np.inf if labels[k] == unknown else np.float64(scores[k])
        e = exp_negative(s - peak)
        rest += 0.0 if k == best else e
        exps[k] = e
    return rest


@summing
def add_labels(scores, labels, class_weight, unknown, peak, best, sums):
    """Add the labels of a run of classes to the sums of its row; returns how many are none."""
    use_wide_vectors()
    total = positives = others = dot = known = known_others = known_dot = bad = 0.0
    for k in range(len(scores)):
        given, w = labels[k], class_weight[k]
        z = np.float64(scores[k]) - peak
        y = 0.0 if given == unknown else np.float64(given)
        there = 0.0 if given == unknown else 1.0
        w *= there
        t = w * y
        bad += 0.0 if y >= 0.0 else 1.0
        total += y
        positives += 1.0 if y != 0.0 else 0.0
        others += 0.0 if k == best else t
        dot += t * z if t != 0.0 else 0.0
        known += there
        known_others += 0.0 if k == best else w
        known_dot += w * z if w != 0.0 else 0.0
    sums[TOTAL] += total
    sums[POSITIVES] += positives
    sums[OTHERS] += others
    sums[DOT] += dot
    sums[KNOWN] += known
    sums[KNOWN_OTHERS] += known_others
    sums[KNOWN_DOT] += known_dot
    if best >= 0 and best < len(labels):
        sums[OWN], sums[KNOWN_OWN] = class_weight[best] * labels[best], class_weight[best]
    return bad


@inlined
def write_scaled(factor, exps, out):
    use_wide_vectors()
    for k in range(len(exps)):
        out[k] = factor * exps[k]


@inlined
def write_slopes(exps, labels, class_weight, unknown, share, scale, ground, gradient):
    use_wide_vectors()
    for k in range(len(exps)):
        y, w = labels[k], class_weight[k]
        t = w * (scale * y + ground)
        t = 0.0 if y == unknown else t
        gradient[k] = share * exps[k] - t


@compiled
def softmax_rows(
    scores, labels, weight, gradient, probs, factor, class_weight, length, padding, unknown,
    normalization, smoothing, empty, classes, start, stop,
):  # fmt: skip
    """Rows `start` to `stop`."""
    exps, sums = np.empty(classes), np.empty(SUMS)
    listed = np.zeros(classes if length else 0, np.float32)
    has_targets = np.zeros(classes // RUN + 1, np.bool_)
    everywhere = smoothing > 0 or empty > 0
    loss_sum = weight_sum = 0.0
    for n in range(start, stop):
        first = n * classes
        if length and not spread(labels, n * length, 1, 0, length, 1, padding, classes, ONE, listed, 1):
            return 0.0, 0.0, False
        s, y = scores[first : first + classes], listed[:] if length else labels[first : first + classes]
        peak = highest_known(s, y, unknown)
        best = find_best(s, y, unknown, peak)
        sums[:] = 0
        bad = 0.0
        for a in range(0, classes, RUN):
            b = min(a + RUN, classes)
            # Meanwhile the next row comes into the cache, and what this one's gradient is written to.
            for k in range(first + a, first + b, LINE):
                if k + classes < len(scores):
                    prefetch(scores, k + classes)
                    if not length:
                        prefetch(labels, k + classes)
                if len(gradient):
                    prefetch_for_writing(gradient, k)
            sums[REST] += add_exps(s[a:b], y[a:b], unknown, peak, best - a, exps[a:b])
            has_targets[a // RUN] = everywhere or any_label(y[a:b])
            if has_targets[a // RUN]:
                bad += add_labels(s[a:b], y[a:b], class_weight[a:b], unknown, peak, best - a, sums)
        u = weight[n] if len(weight) else 1.0
        loss, u, good, share, scale, ground, best_slope = finish(sums, u, factor, normalization, smoothing, empty)
        if bad > 0 or not good:
            return 0.0, 0.0, False
        loss_sum += loss
        weight_sum += u
        if len(probs):
            write_scaled(1.0 / (1.0 + sums[REST]), exps, probs[first : first + classes])
        if len(gradient):
            g = gradient[first : first + classes]
            for a in range(0, classes, RUN):
                b = min(a + RUN, classes)
                if u == 0:  # nothing may be read from it
                    g[a:b] = 0
                elif has_targets[a // RUN]:
                    write_slopes(exps[a:b], y[a:b], class_weight[a:b], unknown, share, scale, ground, g[a:b])
                else:
                    write_scaled(share, exps[a:b], g[a:b])
            if best >= 0 and u > 0:
                g[best] = best_slope
        if length:
            spread(labels, n * length, 1, 0, length, 1, padding, classes, ZERO, listed, 1)
    return loss_sum, weight_sum, True
