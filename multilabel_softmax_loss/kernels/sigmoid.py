"""Sigmoid cross-entropy, plain or focal, entry by entry in SIMD lanes.

The entries of a line, one after the other in memory, have a class each (a row) or one class for all (a class of a map);
where no option tells entries apart, any run of them is a line. Arrays and what the kernel returns are as in rows.py;
what counts is u for each known entry. `positive` and `negative` (C) are the weights of the two terms of each class.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import ONE, ZERO, farthest_of, log_sigmoids, power, sigmoid_32
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
def weigh_terms(labels, ignoring, ignore_label, smoothing, positive, negative, weight, ups, downs, weights):
    """The weights of the two terms of each entry, and u of each, 0 where unknown; whether all labels are labels.

    `positive`, `negative` and `weight` have one number for each entry.
    """
    use_wide_vectors()
    bad = 0.0
    for j in range(len(labels)):
        y = np.float64(labels[j])
        there = 0.0 if ignoring and labels[j] == ignore_label else 1.0
        y = y if there == 1.0 else 0.0
        bad += 0.0 if y >= 0.0 and y <= 1.0 else 1.0
        t = (1.0 - smoothing) * y + 0.5 * smoothing
        ups[j] = there * positive[j] * t
        downs[j] = there * negative[j] * (1.0 - t)
        weights[j] = there * weight[j]
    return bad == 0.0


@summing
def add_entries(scores, ups, downs, weights, factor, gamma, slopes):
    """Sum u L and sum u of the entries of a line; u dL/ds times factor into `slopes`."""
    use_wide_vectors()
    loss = counted = 0.0
    if gamma == 0:
        for j in range(len(scores)):
            p_cost, q_cost, p, q = log_sigmoids(scores[j])
            up, down, u = ups[j], downs[j], weights[j]
            cost = (up * p_cost if up != 0 else 0.0) + (down * q_cost if down != 0 else 0.0)
            loss += u * cost if u != 0 else 0.0
            counted += u
            slope = (down * p if down != 0 else 0.0) - (up * q if up != 0 else 0.0)
            slopes[j] = factor * u * slope if u != 0 else 0.0
    else:
        for j in range(len(scores)):
            p_cost, q_cost, p, q = log_sigmoids(scores[j])
            up, down, u = ups[j], downs[j], weights[j]
            q_power, p_power = power(q_cost, gamma), power(p_cost, gamma)
            cost = (up * (q_power * p_cost) if up * q_power != 0 else 0.0) + (
                down * (p_power * q_cost) if down * p_power != 0 else 0.0
            )
            loss += u * cost if u != 0 else 0.0
            counted += u
            p_slope = q_power * (q + gamma * p * p_cost) if up * q_power != 0 else 0.0
            q_slope = p_power * (p + gamma * q * q_cost) if down * p_power != 0 else 0.0
            slope = down * q_slope - up * p_slope
            slopes[j] = factor * u * slope if u != 0 else 0.0
    return loss, counted


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
    smoothing, gamma, classes, places, plain, start, stop,
):  # fmt: skip
    """Lines `start` to `stop`: rows (`places` 1), classes of maps, or runs of RUN entries where the loss is `plain`."""
    size = RUN if plain else classes if places == 1 else places
    exps, out = np.empty(RUN, np.float32), np.empty(size, np.float32)
    ups, downs, weights, of_entries = np.empty(size), np.empty(size), np.empty(size), np.ones(size)
    of_positive, of_negative = np.ones(size), np.ones(size)
    if places == 1 and not plain:
        of_positive, of_negative = positive, negative
    listed = np.zeros(size if length else 0, np.float32)
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
        if not (good and weigh_terms(
            y, ignoring, ignore_label, smoothing, of_positive, of_negative, of_entries, ups, downs, weights
        )):  # fmt: skip
            return 0.0, 0.0, False
        loss, counted = add_entries(s, ups[:count], downs[:count], weights[:count], factor, gamma, g)
        loss_sum += loss
        weight_sum += counted
        if length and places == 1:
            spread(labels, at, 1, 0, length, 1, ignore_label, classes, ZERO, listed, 1)
    return loss_sum, weight_sum, True
