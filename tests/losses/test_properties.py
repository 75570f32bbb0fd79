"""Claims that hold for every input, tried on drawn ones; `make fuzz` draws many more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference import reference_softmax

from multilabel_softmax_loss import softmax_cross_entropy

OPTIONS = {
    "label_normalization": st.sampled_from(["l1", "count", "none"]),
    "normalization": st.sampled_from(["FULL", "VALID", "BATCH_SIZE", "NONE"]),
    "empty": st.sampled_from(["ignore", "uniform"]),
    "label_smoothing": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "divergence": st.sampled_from(["cross_entropy", "kl"]),
}

# What m p - t and t log t lose where they are differences of nearly equal numbers up to 1, by type of the scores.
ROUNDING = {np.dtype(np.float32): 3e-12, np.dtype(np.float64): 1e-14}


@st.composite
def cases(draw, dtype=None):
    """scores, labels, sample weights or None, and options of any combination."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = dtype or draw(st.sampled_from([np.float32, np.float64]))
    scores = (rng.normal(size=shape) * 10.0 ** draw(st.integers(-3, 4))).astype(dtype)
    options = {name: draw(values) for name, values in OPTIONS.items()}
    options["axis"] = axis
    classes = shape[axis]
    rest = [size for k, size in enumerate(shape) if k != axis % len(shape)]
    if draw(st.booleans()):
        options["class_weight"] = (rng.random(classes) * (rng.random(classes) < 0.8)).tolist()
    if draw(st.booleans()):
        options["label_format"] = "indices"
        length = draw(st.integers(1, 4))
        labels = rng.integers(-1, classes, size=[length if k == axis % len(shape) else n for k, n in enumerate(shape)])
        labels = labels.astype(draw(st.sampled_from([np.float32, np.int64])))
    else:
        labels = rng.random(shape) * (rng.random(shape) < draw(st.sampled_from([0.2, 0.6, 1.0])))
        labels = (np.ceil(labels) if draw(st.booleans()) else labels).astype(dtype)
        if draw(st.booleans()):
            labels[rng.random(shape) < 0.3] = -1
            options["ignore_label"] = -1
    weight = rng.random(rest) * (rng.random(rest) < 0.8) if draw(st.booleans()) else None
    return scores, labels, weight, options


def move(array, axis):
    return np.moveaxis(array, axis, -1)


@given(cases())
def test_it_is_what_the_definition_says(case):
    scores, labels, weight, options = case
    loss, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    expected_loss, expected = reference_softmax(scores, labels, weight, **options)
    digits = 2e-7 if scores.dtype == np.float32 else 1e-12
    # "kl" is a difference of two sums: its digits are those of the larger.
    whole = reference_softmax(scores, labels, weight, **dict(options, divergence="cross_entropy"))[0]
    # Of float32 scores the kernels find a loss of 1e-4 and more, to 1e-12.
    bar = 1e-7 if scores.dtype == np.float32 else 1e-9
    assert loss == pytest.approx(expected_loss, rel=bar, abs=1e-13 * abs(whole) + ROUNDING[scores.dtype])
    assert (
        np.abs(gradient - expected).max(initial=0) <= digits * np.abs(expected).max(initial=0) + ROUNDING[scores.dtype]
    )


@given(cases(np.float64), st.floats(-100, 100))
def test_shifting_the_scores_changes_nothing(case, shift):
    scores, labels, weight, options = case
    loss, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    shifted_loss, shifted = softmax_cross_entropy(scores + shift, labels, weight, **options)
    size = max(np.abs(scores).max(), 100)  # adding rounds the scores by this times 1e-16
    assert shifted_loss == pytest.approx(loss, rel=1e-12, abs=1e-14 * size * max(np.abs(gradient).sum(), 1))
    np.testing.assert_allclose(shifted, gradient, rtol=0, atol=1e-14 * size * max(np.abs(gradient).max(), 1))


@given(cases(), st.randoms(use_true_random=False))
def test_permuting_the_classes_permutes_the_gradient(case, random):
    scores, labels, weight, options = case
    axis, classes = options["axis"], scores.shape[options["axis"]]
    order = list(range(classes))
    random.shuffle(order)
    loss, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    if "class_weight" in options:
        options = dict(options, class_weight=[options["class_weight"][k] for k in order])
    if options.get("label_format") == "indices":
        permuted_labels = np.array([*np.argsort(order), -1])[labels.astype(int)].astype(labels.dtype)
    else:
        permuted_labels = np.take(labels, order, axis)
    permuted_loss, permuted = softmax_cross_entropy(np.take(scores, order, axis), permuted_labels, weight, **options)
    digits = 2e-7 if scores.dtype == np.float32 else 1e-12
    assert permuted_loss == pytest.approx(loss, rel=1e-7 if scores.dtype == np.float32 else 1e-9, abs=1e-12)
    np.testing.assert_allclose(
        permuted,
        np.take(gradient, order, axis),
        rtol=0,
        atol=digits * np.abs(gradient).max(initial=0) + ROUNDING[scores.dtype],
    )


@given(cases())
def test_the_gradient_of_a_position_sums_to_zero(case):
    scores, labels, weight, options = case
    _, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    sums = gradient.sum(axis=options["axis"], dtype=np.float64)
    digits = 2e-7 if scores.dtype == np.float32 else 1e-12
    size = np.abs(gradient).sum(axis=options["axis"]).max(initial=0)
    assert np.abs(sums).max(initial=0) <= digits * size + ROUNDING[scores.dtype]


@given(cases(np.float64), st.integers(0, 2**32 - 1))
def test_the_loss_is_convex_along_segments(case, seed):
    start, labels, weight, options = case
    end = np.random.default_rng(seed).normal(size=start.shape) * max(np.abs(start).max(), 1)
    losses = [
        softmax_cross_entropy((1 - x) * start + x * end, labels, weight, **options)[0] for x in (0, 0.25, 0.5, 0.75, 1)
    ]
    slack = 1e-12 * max(map(abs, losses))
    for left, middle, right in zip(losses, losses[1:], losses[2:]):
        assert middle <= (left + right) / 2 + slack


@given(cases(np.float64))
def test_finite_differences_agree(case):
    """Five-point central differences of the loss along every coordinate, to 1e-7 of the largest entry."""
    scores, labels, weight, options = case
    scores = scores / max(np.abs(scores).max() / 5, 1)  # beyond, the curvature is below the rounding of the loss
    _, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    step = 2e-3
    numeric, largest_loss = np.empty_like(scores), 0.0
    for index in np.ndindex(scores.shape):
        values = []
        for multiple in (-2, -1, 1, 2):
            moved = scores.copy()
            moved[index] += multiple * step
            values.append(softmax_cross_entropy(moved, labels, weight, **options)[0])
        largest_loss = max(largest_loss, *map(abs, values))
        numeric[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    rounding = 2e-15 * largest_loss / step
    assert np.abs(gradient - numeric).max(initial=0) <= 1e-7 * np.abs(gradient).max(initial=0) + rounding


@given(cases())
def test_the_input_is_left_as_it_came(case):
    scores, labels, weight, options = case
    kept = [None if array is None else array.copy() for array in (scores, labels, weight)]
    softmax_cross_entropy(scores, labels, weight, **options)
    for array, before in zip((scores, labels, weight), kept):
        if before is not None:
            np.testing.assert_array_equal(array, before)
