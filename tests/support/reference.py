"""The losses as their definitions read: one entry at a time, in 50 digits, with none of the package's code."""

import itertools

import mpmath
import numpy as np

DIGITS = 50


def reference_softmax(
    scores,
    labels,
    sample_weight=None,
    axis=1,
    label_format="dense",
    label_normalization="l1",
    normalization="VALID",
    empty="ignore",
    ignore_label=None,
    label_smoothing=0.0,
    class_weight=None,
    divergence="cross_entropy",
):
    """Loss and gradient, rounded to float64 at the very end. Shapes must be exact; weights are one per position."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    axis %= scores.ndim
    rest = scores.shape[:axis] + scores.shape[axis + 1 :]
    total, weight_sum = mpmath.mpf(0), mpmath.mpf(0)
    gradient = np.zeros(scores.shape, dtype=object)
    with mpmath.workdps(DIGITS):
        for place in itertools.product(*map(range, rest)):
            where = place[:axis] + (slice(None),) + place[axis:]
            row = labels[where]
            if label_format == "indices":
                padding = -1 if ignore_label is None else ignore_label
                chosen = {int(index) for index in row if index != padding}
                row, unknown = [float(k in chosen) for k in range(scores.shape[axis])], None
            else:
                unknown = ignore_label
            targets = position_targets(
                row, unknown, label_normalization, empty, mpmath.mpf(label_smoothing), class_weight
            )
            if targets is None:
                continue
            weight = mpmath.mpf(1 if sample_weight is None else float(np.asarray(sample_weight)[place]))
            weight_sum += weight
            loss, slope = position_loss([float(s) for s in scores[where]], targets, divergence)
            total += weight * loss
            gradient[where] = [weight * g for g in slope]
        divisor = {
            "VALID": weight_sum,
            "FULL": mpmath.mpf(int(np.prod(rest))),
            "BATCH_SIZE": mpmath.mpf(int(np.prod(scores.shape[:axis]))),
            "NONE": mpmath.mpf(1),
        }[normalization]
        if divisor == 0:
            return 0.0, np.zeros(scores.shape)
        return float(total / divisor), (gradient / divisor).astype(np.float64)


def position_targets(labels, unknown, label_normalization, empty, smoothing, class_weight):
    """t of one position as a list, None at unknown classes; None where the position is ignored."""
    # A label that is stored as float32 is compared as float32.
    known = [unknown is None or y != np.asarray(unknown, np.asarray(y).dtype) for y in labels]
    y = [mpmath.mpf(float(label)) if k else None for label, k in zip(labels, known)]
    present = [label for label in y if label is not None]
    if not present:
        return None
    if sum(present) == 0:
        if empty == "ignore":
            return None
        targets = [None if label is None else mpmath.mpf(1) / len(present) for label in y]
    else:
        parts = {"l1": sum(present), "count": sum(label != 0 for label in present), "none": 1}[label_normalization]
        targets = [None if label is None else label / parts for label in y]
    mass = sum(t for t in targets if t is not None)
    weights = [1.0] * len(y) if class_weight is None else class_weight
    return [
        None if t is None else mpmath.mpf(float(w)) * ((1 - smoothing) * t + smoothing * mass / len(present))
        for t, w in zip(targets, weights)
    ]


def position_loss(scores, targets, divergence):
    """L and dL/ds of one position."""
    exps = [mpmath.mpf(0) if t is None else mpmath.exp(mpmath.mpf(s)) for s, t in zip(scores, targets)]
    partition = sum(exps)
    mass = sum(t for t in targets if t is not None)
    loss = mpmath.mpf(0)
    for s, t in zip(scores, targets):
        if t:
            loss -= t * (mpmath.mpf(s) - mpmath.log(partition))
            if divergence == "kl":
                loss += t * mpmath.log(t / mass)
    return loss, [0 if t is None else mass * e / partition - t for e, t in zip(exps, targets)]


def reference_sigmoid(
    scores,
    labels,
    sample_weight=None,
    axis=1,
    normalization="BATCH_SIZE",
    ignore_label=None,
    label_smoothing=0.0,
    class_weight=None,
    pos_weight=None,
    focal_gamma=0.0,
    focal_alpha=None,
    negative_margin=0.0,
):
    """Loss and gradient of dense labels, rounded to float64 at the very end; the gradient by differentiating the loss.

    Shapes must be exact; weights are one per position.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    axis %= scores.ndim
    gammas = focal_gamma if isinstance(focal_gamma, dict) else {"positive": focal_gamma, "negative": focal_gamma}
    total, known_weight = mpmath.mpf(0), mpmath.mpf(0)
    gradient = np.zeros(scores.shape, dtype=object)
    with mpmath.workdps(DIGITS):
        for place in np.ndindex(scores.shape):
            if ignore_label is not None and labels[place] == np.asarray(ignore_label, labels.dtype):
                continue
            position = place[:axis] + place[axis + 1 :]
            weight = mpmath.mpf(1 if sample_weight is None else float(np.asarray(sample_weight)[position]))
            known_weight += weight
            smoothing = mpmath.mpf(label_smoothing)
            target = (1 - smoothing) * mpmath.mpf(float(labels[place])) + smoothing / 2
            positive, negative = target, 1 - target
            if class_weight is not None:
                weight *= mpmath.mpf(float(class_weight[place[axis]]))
            if pos_weight is not None:
                positive *= mpmath.mpf(float(np.broadcast_to(pos_weight, scores.shape[axis])[place[axis]]))
            if focal_alpha is not None:
                positive, negative = positive * mpmath.mpf(focal_alpha), negative * (1 - mpmath.mpf(focal_alpha))

            def entry_loss(s, positive=positive, negative=negative):
                p, q = 1 / (1 + mpmath.exp(-s)), 1 / (1 + mpmath.exp(s))
                log_p, log_q = -mpmath.log1p(mpmath.exp(-s)), -mpmath.log1p(mpmath.exp(s))
                if negative_margin:
                    p = max(p - mpmath.mpf(negative_margin), 0)
                    log_q = mpmath.log1p(-p)
                return -positive * q ** gammas["positive"] * log_p - negative * p ** gammas["negative"] * log_q

            score = mpmath.mpf(float(scores[place]))
            total += weight * entry_loss(score)
            gradient[place] = weight * mpmath.diff(entry_loss, score)
        sizes = {"VALID": known_weight, "FULL": scores.size, "BATCH_SIZE": scores.shape[0], "NONE": 1}
        divisor = mpmath.mpf(sizes[normalization])
        if divisor == 0:
            return 0.0, np.zeros(scores.shape)
        return float(total / divisor), (gradient / divisor).astype(np.float64)


def reference_ranking(
    scores,
    labels,
    sample_weight=None,
    axis=1,
    ranking="pairwise",
    margin=1.0,
    pair_normalization="pairs",
    normalization="VALID",
    ignore_label=None,
    class_weight=None,
):
    """Loss and gradient of dense labels, pair by pair, rounded to float64 at the very end.

    Positions without a label are ignored. Shapes must be exact; weights are one per position.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    axis %= scores.ndim
    rest = scores.shape[:axis] + scores.shape[axis + 1 :]
    total, weight_sum = mpmath.mpf(0), mpmath.mpf(0)
    gradient = np.full(scores.shape, mpmath.mpf(0), dtype=object)
    with mpmath.workdps(DIGITS):
        for place in itertools.product(*map(range, rest)):
            where = place[:axis] + (slice(None),) + place[axis:]
            known = [ignore_label is None or y != np.asarray(ignore_label, labels.dtype) for y in labels[where]]
            weights = [1.0] * scores.shape[axis] if class_weight is None else class_weight
            y = [mpmath.mpf(float(w)) * mpmath.mpf(float(label)) for w, label in zip(weights, labels[where])]
            labelled = [k for k, there in enumerate(known) if there and labels[where][k] > 0]
            others = [k for k, there in enumerate(known) if there and labels[where][k] == 0]
            if not labelled:
                continue
            weight = mpmath.mpf(1 if sample_weight is None else float(np.asarray(sample_weight)[place]))
            weight_sum += weight
            s = [mpmath.mpf(float(score)) for score in scores[where]]
            if ranking in ("pairwise", "warp"):
                loss, slope = hinge_pairs(s, y, labelled, others, mpmath.mpf(margin), ranking == "warp")
                pairs = len(labelled) * len(others) if pair_normalization == "pairs" else 1
                loss, slope = loss / (pairs or 1), [g / (pairs or 1) for g in slope]
            else:
                loss, slope = log_pairs(s, y, labelled, others, ranking)
            total += weight * loss
            gradient[where] = [weight * g for g in slope]
        sizes = {"FULL": int(np.prod(rest)), "BATCH_SIZE": int(np.prod(scores.shape[:axis])), "NONE": 1}
        divisor = weight_sum if normalization == "VALID" else mpmath.mpf(sizes[normalization])
        if divisor == 0:
            return 0.0, np.zeros(scores.shape)
        return float(total / divisor), (gradient / divisor).astype(np.float64)


def hinge_pairs(s, y, labelled, others, margin, warp):
    """sum_j y_j W_j sum_k max(0, margin - s_j + s_k), and its gradient with W held constant."""
    loss, slope = mpmath.mpf(0), [mpmath.mpf(0)] * len(s)
    for j in labelled:
        violating = [k for k in others if margin - s[j] + s[k] > 0]
        rank = len(violating)
        factor = y[j]
        if warp and rank:
            factor *= sum(mpmath.mpf(1) / i for i in range(1, rank + 1)) / rank
        for k in violating:
            loss += factor * (margin - s[j] + s[k])
            slope[k] += factor
            slope[j] -= factor
    return loss, slope


def log_pairs(s, y, labelled, others, ranking):
    """log(1 + A B) or log(1 + A) + log(1 + B) with A = sum_k exp(s_k), B = sum_j y_j exp(-s_j), and its gradient."""
    a, b = [mpmath.exp(s[k]) for k in others], [y[j] * mpmath.exp(-s[j]) for j in labelled]
    slope = [mpmath.mpf(0)] * len(s)
    if ranking == "lsep":
        product = sum(a) * sum(b)
        loss = mpmath.log1p(product)
        down, up = sum(a) / (1 + product), sum(b) / (1 + product)
    else:
        loss = mpmath.log1p(sum(a)) + mpmath.log1p(sum(b))
        down, up = 1 / (1 + sum(b)), 1 / (1 + sum(a))
    for k, value in zip(others, a):
        slope[k] = value * up
    for j, value in zip(labelled, b):
        slope[j] = -value * down
    return loss, slope
