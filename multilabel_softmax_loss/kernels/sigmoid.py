"""Sigmoid cross-entropy, plain, focal or asymmetric, entry by entry in SIMD lanes.

The entries of a line, one after the other in memory, have a class each (a row) or one class for all (a class of a map);
where no option tells entries apart, any run of them is a line. Arrays and what the kernel returns are as in rows.py;
what counts is u for each known entry. `positive` and `negative` (C) are the weights of the two terms of each class.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import ONE, ZERO, farthest_of, log, log_sigmoids, minus_log_rest, power, sigmoid_32
from .compiling import compiled, inlined, summing, use_wide_vectors
from .labels import are_indices, spread

RUN = 512  # the product of so many numbers up to 2 is a double
QUICK = int(np.float32(64).view(np.int32))  # scores beyond +-64 are too far apart for float32
SMALLEST_LOSS = 1e-4  # below, what is left of the logarithm of a product has few digits of its own


@inlined
def write_sigmoids(scores, probs):
    use_wide_vectors()
    for j in range(len(scores)):
        probs[j] = log_sigmoids(scores[j])[2]


@summing
def quick_run(scores, labels, factor, exps, out):
    """Up to RUN plain entries in float32: summed L, and dL/ds times factor into `out`.

    Also whether that will do, and whether the labels are such that it may.
    It will for labels that are 0 or 1 and for scores within +-64. With z = s for label 0 and -s for label 1,
    L = max(z, 0) + log(1 + e^-|z|); the logarithms are that of one product.
    """
    use_wide_vectors()
    high = np.float32(factor)  # in two parts, so that the product is rounded once
    low = np.float32(factor - high)
    farthest = np.int32(0)
    upward = odd = ZERO
    for k in range(len(scores)):
        s = scores[k]
        y = labels[k]
        z = s if y == ZERO else -s
        slope, e = sigmoid_32(-abs(s), z > ZERO)
        exps[k] = e
        upward += z if z > ZERO else ZERO
        slope = slope if y == ZERO else -slope
        out[k] = high * slope + low * slope
        farthest = farthest_of(farthest, s)
        odd += ZERO if y in (ZERO, ONE) else ONE
    product = 1.0
    for k in range(len(scores)):  # apart, since the doubles would halve the SIMD lanes of the rest
        product *= 1.0 + exps[k]
    loss = upward + math.log(product)
    return loss, farthest <= QUICK and odd == ZERO and loss >= SMALLEST_LOSS, odd == ZERO


@inlined
def weights_of(y, ignoring, ignore_label, smoothing, positive, negative):
    """The weights of the two terms of an entry, 1 for a label that is known, else 0, and 1 for one that is none."""
    known = 0.0 if ignoring and y == ignore_label else 1.0
    label = np.float64(y) if known == 1.0 else 0.0
    t = (1.0 - smoothing) * label + 0.5 * smoothing
    bad = 0.0 if label >= 0.0 and label <= 1.0 else 1.0
    return known * positive * t, known * negative * (1.0 - t), known, bad


@inlined
def is_whole(gamma):
    """Whether power_of() can do without an exponential."""
    return gamma < 8 and gamma == math.floor(gamma)


@inlined
def power_of(p, minus_log_p, gamma, whole):
    """p^gamma, by products if it is `whole`."""
    if not whole:
        return power(minus_log_p, gamma)
    bits = np.int64(gamma)
    p2 = p * p
    return (p if bits & 1 else 1.0) * (p2 if bits & 2 else 1.0) * (p2 * p2 if bits & 4 else 1.0)


@summing
def add_entries(
    scores, labels, ignoring, ignore_label, smoothing, positive, negative, weights, factor, up_gamma, down_gamma,
    margin, focal, whole, shifted, slopes,
):  # fmt: skip
    """Sum u L and sum u of a line's entries, and whether all labels are labels; u dL/ds times factor into `slopes`.

    `positive`, `negative` and `weights` have one number for each entry. `focal`, `whole` and `shifted`, which say what
    the gammas and the margin need, are constants where this is called, so that LLVM makes a loop for each case.
    """
    use_wide_vectors()
    loss = counted = bad = 0.0
    for j in range(len(scores)):
        up, down, known, odd = weights_of(labels[j], ignoring, ignore_label, smoothing, positive[j], negative[j])
        u = known * weights[j]
        bad += odd
        p_cost, q_cost, p, q = log_sigmoids(scores[j])
        p_slope, q_slope = q, p
        if focal:
            q_power = power_of(q, q_cost, up_gamma, whole)
            p_slope = q_power * (q + up_gamma * p * p_cost)
            a, minus_log_a = p, p_cost
            q_slope = p + down_gamma * q * q_cost
            if shifted:  # a is what is left of p, and b = 1 - a
                a, b = p - margin, q + margin
                minus_log_a = 0.0 if whole else -log(a)
                inverse = 1.0 / (a * b)
                q_cost = minus_log_rest(a, b, a * inverse)
                q_slope = p * q * (a * inverse + down_gamma * q_cost * b * inverse)
            a_power = 0.0 if a <= 0 else power_of(a, minus_log_a, down_gamma, whole)
            q_slope *= a_power
            p_cost *= q_power
            q_cost *= a_power
            up = up if q_power != 0 else 0.0
            down = down if a_power != 0 else 0.0
        cost = (up * p_cost if up != 0 else 0.0) + (down * q_cost if down != 0 else 0.0)
        loss += u * cost if u != 0 else 0.0
        counted += u
        slope = (down * q_slope if down != 0 else 0.0) - (up * p_slope if up != 0 else 0.0)
        slopes[j] = factor * u * slope if u != 0 else 0.0
    return loss, counted, bad == 0.0


@inlined
def mark_listed(lists, at, step, length, k, row):
    """row = 1 at the places in whose list class k is, else 0."""
    use_wide_vectors()
    row[:] = 0
    for i in range(length):
        given = lists[at + i * step :][: len(row)]
        for j in range(len(row)):
            row[j] = ONE if given[j] == k else row[j]


@compiled
def sigmoid_lines(
    scores, labels, weight, gradient, probs, factor, positive, negative, length, ignoring, ignore_label,
    smoothing, up_gamma, down_gamma, margin, classes, places, plain, start, stop,
):  # fmt: skip
    """Lines `start` to `stop`: rows (`places` 1), classes of maps, or runs of RUN entries where the loss is `plain`."""
    size = RUN if plain else classes if places == 1 else places
    exps, out = np.empty(RUN, np.float32), np.empty(size, np.float32)
    of_positive, of_negative, of_entries = np.ones(size), np.ones(size), np.ones(size)
    if places == 1 and not plain:
        of_positive, of_negative = positive, negative
    listed = np.zeros(size if length else 0, np.float32)
    focal = margin > 0 or up_gamma > 0 or down_gamma > 0
    whole = is_whole(up_gamma) and is_whole(down_gamma)
    may_be_quick = plain and abs(factor) > 1e-30 and abs(factor) < 1e30
    loss_sum = weight_sum = 0.0
    for line in range(start, stop):
        first, last = line * size, min((line + 1) * size, len(scores))
        count = last - first
        s, y = scores[first:last], listed[:] if length else labels[first:last]
        g = gradient[first:last] if len(gradient) else out[:count]
        if len(probs):
            write_sigmoids(s, probs[first:last])
        if may_be_quick:
            # Where one label lies between 0 and 1 the others of the batch do too; they are not tried in vain.
            loss, done, may_be_quick = quick_run(s, y, factor, exps, g)
            if done:
                loss_sum += loss
                weight_sum += count
                continue
        n, k = (line, 0) if places == 1 else (line // classes, line % classes)
        if not plain and places == 1 and len(weight):
            of_entries[:] = weight[n]
        elif not plain and places > 1:
            of_positive[:], of_negative[:] = positive[k], negative[k]
            if len(weight):
                of_entries[:] = weight[n * places : (n + 1) * places]
        good = True
        at = n * length * places
        if length and places == 1:
            good = spread(labels, at, 1, 0, length, 1, ignore_label, classes, ONE, listed, 1)
        elif length:
            good = k > 0 or are_indices(labels[at : at + length * places], ignore_label, classes)
            mark_listed(labels, at, places, length, k, listed)
        if not good:
            return 0.0, 0.0, False
        entries = (s, y, ignoring, ignore_label, smoothing, of_positive, of_negative, of_entries, factor)
        if not focal:
            loss, counted, good = add_entries(*entries, up_gamma, down_gamma, margin, False, False, False, g)
        elif margin == 0 and whole:
            loss, counted, good = add_entries(*entries, up_gamma, down_gamma, margin, True, True, False, g)
        elif margin == 0:
            loss, counted, good = add_entries(*entries, up_gamma, down_gamma, margin, True, False, False, g)
        elif whole:
            loss, counted, good = add_entries(*entries, up_gamma, down_gamma, margin, True, True, True, g)
        else:
            loss, counted, good = add_entries(*entries, up_gamma, down_gamma, margin, True, False, True, g)
        if not good:
            return 0.0, 0.0, False
        loss_sum += loss
        weight_sum += counted
        if length and places == 1:
            spread(labels, at, 1, 0, length, 1, ignore_label, classes, ZERO, listed, 1)
    return loss_sum, weight_sum, True
