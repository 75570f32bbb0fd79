"""The compiled kernels against the NumPy path, which test_softmax.py holds to the definition."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from multilabel_softmax_loss import kernels, sigmoid_cross_entropy, softmax_cross_entropy
from multilabel_softmax_loss.kernels import arithmetic, compiling
from multilabel_softmax_loss.kernels.threads import Team
from multilabel_softmax_loss.losses import evaluate as losses
from multilabel_softmax_loss.losses.options import SoftmaxOptions
from multilabel_softmax_loss.losses.softmax import SoftmaxLoss


def both(scores, labels, sample_weight=None, loss=softmax_cross_entropy, **options):
    """Loss and gradient by the NumPy path and by the kernels."""
    results = []
    for name in ("numpy", "numba"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MULTILABEL_SOFTMAX_LOSS_KERNELS", name)
            losses.kernels.cache_clear()
            results.append(loss(scores, labels, sample_weight, **options))
            losses.kernels.cache_clear()
    return results


def assert_agree(numpy, numba):
    assert numba[0] == pytest.approx(numpy[0], rel=1e-9, abs=1e-300)
    scale = np.abs(numpy[1]).max(initial=0)
    np.testing.assert_allclose(numba[1], numpy[1], rtol=0, atol=1.2e-7 * scale)


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that finished a batch, so that no test passes because NumPy did it."""
    seen = []
    run = kernels.Plan.__call__

    def watched(plan, *arguments):
        sums = run(plan, *arguments)
        seen.append(plan.kernel.__name__.split("-")[0] if sums is not None else None)
        return sums

    monkeypatch.setattr(kernels.Plan, "__call__", watched)
    return seen


def random_case(shape, seed=0, scale=3):
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=scale, size=shape).astype(np.float32)
    labels = (rng.random(shape) * (rng.random(shape) < 0.4)).astype(np.float32)
    return scores, labels


OPTIONS = [
    {},
    {"label_normalization": "count"},
    {"label_normalization": "none", "normalization": "FULL"},
    {"label_smoothing": 0.1},
    {"empty": "uniform", "label_smoothing": 0.3, "label_normalization": "none"},
    {"class_weight": [0.5, 0, 2, 1, 3, 1, 1]},
    {"class_weight": [0.5, 0, 2, 1, 3, 1, 1], "label_smoothing": 0.2, "label_normalization": "count"},
]


@pytest.mark.parametrize(
    "shape, kernel",
    [
        ((6, 7), "softmax_rows"),
        ((64, 7), "softmax_maps"),
        ((1500, 7), "softmax_maps"),
        ((3, 7, 5, 4), "softmax_maps"),
        ((2, 7, 40, 41), "softmax_maps"),
    ],
    ids=str,
)
@pytest.mark.parametrize("ignoring", [False, True], ids=["known", "partly unknown"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dense_kernels_equal_the_numpy_path(calls, shape, kernel, ignoring, options):
    scores, labels = random_case(shape)
    np.moveaxis(labels, 1, -1)[1:2, ..., :] = 0
    weight = np.random.default_rng(1).random((len(scores), *scores.shape[2:]))
    if ignoring:
        labels[labels > 0.7] = -1
        labels[0] = -1
        options = dict(options, ignore_label=-1)
    for sample_weight in (None, weight):
        assert_agree(*both(scores, labels, sample_weight, **options))
    assert calls == [kernel] * 2


@pytest.mark.parametrize("shape", [(6, 7), (3, 7, 5, 4)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padding", [-1, 9])
def test_index_kernels_equal_the_numpy_path(calls, shape, options, padding):
    scores, _ = random_case(shape)
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 7, size=(shape[0], 4, *shape[2:])).astype(np.float32)
    indices[rng.random(indices.shape) < 0.4] = padding
    indices[0] = padding
    weight = rng.random((shape[0], *shape[2:]))
    options = dict(options, label_format="indices", **({} if padding == -1 else {"ignore_label": padding}))
    for sample_weight in (None, weight):
        assert_agree(*both(scores, indices, sample_weight, **options))
    assert calls == ["softmax_rows" if len(shape) == 2 else "softmax_maps"] * 2


@pytest.mark.parametrize("shape", [(40, 5), (64, 5), (2, 5, 4, 5)], ids=str)
@pytest.mark.parametrize("label_format", ["dense", "indices"])
def test_masked_certain_and_enormous_scores_take_the_same_way(calls, shape, label_format):
    scores, labels = random_case(shape)
    if label_format == "indices":
        labels = labels.argmax(axis=1).astype(np.float32)[:, None]
    rows = np.moveaxis(scores, 1, -1).reshape(-1, 5)
    rows[3] = [1, 2, -np.inf, 0, 1]
    rows[7] = [3000, -4000, 0, 0, 1]
    rows[8] = [-3000, -3000, -3001, -3002, -3000]
    rows[11, :] = 0
    rows[11, 2] = 60
    scores = np.ascontiguousarray(np.moveaxis(rows.reshape(*shape[:1], *shape[2:], 5), -1, 1))
    if label_format == "dense":
        flat = np.moveaxis(labels, 1, -1).reshape(-1, 5).copy()
        flat[3] = [1, 1, 0, 0, 0]
        flat[11] = [0, 0, 1, 0, 0]
        labels = np.ascontiguousarray(np.moveaxis(flat.reshape(*shape[:1], *shape[2:], 5), -1, 1))
    else:
        flat = labels.reshape(shape[0], -1)
        flat[np.unravel_index([3, 11], flat.shape)] = [0, 2]
    numpy, numba = both(scores, labels, label_format=label_format)
    assert_agree(numpy, numba)
    gradient = np.moveaxis(numba[1], 1, -1).reshape(-1, 5)
    assert gradient[11, 2] == pytest.approx(-4 * np.exp(-60.0) / len(gradient), rel=1e-6)
    assert calls == ["softmax_maps" if shape != (40, 5) else "softmax_rows"]


# All options at once


def any_case(rng):
    """Scores, labels, sample weights and options at random, all of which the kernels take."""
    classes = int(rng.choice([1, 2, 5, 9, 21, 70]))
    shape = (*(int(rng.integers(1, 80)), classes), *[(), (), (1,), (3, 4), (7, 9)][rng.integers(5)])
    while np.prod(shape) > 5000:
        shape = (max(1, shape[0] // 2), *shape[1:])
    scores = rng.normal(scale=10 ** rng.uniform(-3, 1), size=shape)
    index = rng.integers(0, classes, size=(shape[0], int(rng.choice([1, 1, 1, 3])), *shape[2:]))
    options = {
        "label_normalization": str(rng.choice(["l1", "l1", "count", "none"])),
        "normalization": str(rng.choice(["VALID", "VALID", "FULL", "BATCH_SIZE", "NONE"])),
        "empty": str(rng.choice(["ignore", "ignore", "ignore", "uniform"])),
        "label_smoothing": float(rng.choice([0, 0, 0, 0.1])),
    }
    if rng.random() < 0.3:
        options["class_weight"] = (rng.random(classes) * (rng.random(classes) < 0.8)).tolist()
    if rng.random() < 0.4:
        options["label_format"] = "indices"
        labels = np.where(rng.random(index.shape) < 0.2, -1, index)
        kept = index
    else:
        labels = np.zeros(shape)
        np.put_along_axis(labels, index, rng.choice([1, 0.3, 2]), axis=1)
        if rng.random() < 0.2:
            labels *= rng.random(shape)
        labels *= rng.random((shape[0], 1, *shape[2:])) < 0.9  # else empty
        kept = index
        if rng.random() < 0.25:
            options["ignore_label"] = float(rng.choice([-1, 255, 0]))
            labels[rng.random(shape) < 0.2] = options["ignore_label"]
    kind = rng.integers(5)
    if kind == 0:  # a net that is certain
        np.put_along_axis(scores, kept, scores.max() + rng.choice([15, 100, 1000]), axis=1)
    elif kind == 1:  # and one that is certain of something else
        np.put_along_axis(scores, rng.integers(0, classes, size=(shape[0], 1, *shape[2:])), 1e4, axis=1)
    elif kind == 2:
        scores[rng.random(shape) < 0.1] = -1e4
    elif kind == 3 and not options["label_smoothing"] and options["empty"] == "ignore":
        masked = rng.random(shape) < 0.2
        np.put_along_axis(masked, kept, False, axis=1)
        scores[masked] = -np.inf
    weight = rng.random((shape[0], *shape[2:])) * (rng.random() < 0.9) if rng.random() < 0.3 else None
    return scores.astype(np.float32), labels.astype(np.float32), weight, options


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_options_the_kernels_equal_the_numpy_path(calls, seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        scores, labels, weight, options = any_case(rng)
        before = scores.copy(), labels.copy()
        case = f"{scores.shape}, labels {labels.shape}, weights {weight is not None}, {options}"
        (loss, gradient), (fast_loss, fast_gradient) = both(scores, labels, weight, **options)
        assert fast_loss == pytest.approx(loss, rel=1e-6, abs=1e-40), case
        largest = np.abs(gradient).max()
        rounding = 1e-40 if largest > 0 else 1e-15  # of float64, where one class is left and p and t cancel
        assert np.abs(fast_gradient - gradient).max() <= 2e-7 * largest + rounding, case
        p, fast_p = probabilities(scores, labels, **options)
        np.testing.assert_allclose(fast_p, p, rtol=0, atol=2e-7, err_msg=case)
        assert (scores == before[0]).all()
        assert (labels == before[1]).all()
    assert None not in calls
    assert {"softmax_rows", "softmax_maps"} <= set(calls)


# The quick way of rows, in float32


def assert_agree_as_float32(numpy, numba):
    """To the digits of float32, but not to more: those of float64 would mean that the quick way was not gone."""
    assert numba[0] == pytest.approx(numpy[0], rel=2e-7)
    assert numba[0] == 0 or numba[0] != pytest.approx(numpy[0], rel=1e-12, abs=0)
    np.testing.assert_allclose(numba[1], numpy[1], rtol=0, atol=2e-7 * np.abs(numpy[1]).max())


def few_labels(classes, seed=0, scale=3):
    """Eight rows with up to classes / 8 labels among zeros, one row with none."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=scale, size=(8, classes)).astype(np.float32)
    labels = np.zeros((8, classes), np.float32)
    for row in range(1, 8):
        labels[row, rng.choice(classes, row * (classes // 8) // 7, replace=False)] = rng.uniform(0.1, 1)
    return scores, labels


@pytest.mark.parametrize("classes", [8, 63, 64, 65, 200, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_normalization": "count", "normalization": "FULL"},
        {"label_normalization": "none", "normalization": "NONE"},
        {"class_weight": True},
        {"ignore_label": -1},
        {"ignore_label": 0.5, "class_weight": True, "label_normalization": "count"},
    ],
    ids=str,
)
def test_rows_with_few_labels_equal_the_numpy_path(classes, options):
    scores, labels = few_labels(classes)
    rng = np.random.default_rng(1)
    if "class_weight" in options:
        options = dict(options, class_weight=rng.random(classes).tolist())
    if "ignore_label" in options:
        labels[(labels > 0) & (rng.random(labels.shape) < 0.5)] = options["ignore_label"]
    for weight in (None, rng.random(8)):
        assert_agree_as_float32(*both(scores, labels, weight, **options))


@pytest.mark.parametrize("classes", [32, 100, 1000])
@pytest.mark.parametrize("options", [{}, {"class_weight": True, "label_normalization": "count"}], ids=str)
def test_short_lists_equal_the_numpy_path(classes, options):
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=3, size=(8, classes)).astype(np.float32)
    indices = rng.integers(-1, classes, size=(8, 4)).astype(np.float32)
    indices[:, 3] = indices[:, 0]
    if options:
        options = dict(options, class_weight=rng.random(classes).tolist())
    for weight in (None, rng.random(8)):
        assert_agree_as_float32(*both(scores, indices, weight, label_format="indices", **options))


@pytest.mark.parametrize(
    "options, label",
    [({"label_smoothing": 0.1}, 1), ({"empty": "uniform"}, 1), ({"ignore_label": 0}, 1), ({}, 0.01)],
    ids=str,
)
def test_targets_in_most_classes_are_treated_in_float64(options, label):
    scores, labels = few_labels(100)
    labels[1:] = np.where(labels[1:], 1, 0 if label == 1 else label)
    assert_agree(*both(scores, labels, **options))


@pytest.mark.parametrize("score", [65, -65, 599, 3e4, -1e30, -np.inf])
@pytest.mark.parametrize("labelled", [False, True])
def test_rows_with_scores_far_apart_take_the_same_way(calls, score, labelled):
    """The class far apart has no label, or is the only one of some rows."""
    scores, labels = few_labels(100)
    scores[:, 5] = score
    labels[:, 5] = 0
    if labelled:
        labels[4:] = 0
        labels[4:, 5 if score > 0 else 6] = 1
    (loss, gradient), (found, slopes) = both(scores, labels)
    assert found == pytest.approx(loss, rel=2e-7)
    np.testing.assert_allclose(slopes, gradient, rtol=0, atol=2e-7 * np.abs(gradient).max())
    assert calls == ["softmax_rows"]


@pytest.mark.parametrize("offset", [0, 250, -250, 1e4])
@pytest.mark.parametrize("gap", [5, 20, 60, 90, 100, 700])
@pytest.mark.parametrize("label_format", ["dense", "indices"])
def test_certain_positions_keep_their_digits(calls, gap, offset, label_format):
    """The gradient of each position is right to its own largest entry, however small that is."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 200)).astype(np.float32) + np.float32(offset)
    labels = np.zeros((5, 200), np.float32)
    indices = [0, 7, 63, 64, 199]
    labels[np.arange(5), indices] = 1
    scores += gap * labels
    if label_format == "indices":
        labels = np.array(indices, np.float32)[:, None]
    for as_map in (False, True):
        arrays = [array.T[np.newaxis].copy() if as_map else array for array in (scores, labels)]
        (expected_loss, expected), (loss, gradient) = both(*arrays, label_format=label_format)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for right, found in zip(expected[0].T if as_map else expected, gradient[0].T if as_map else gradient):
            subnormal = 1.5e-44  # some units of what is below the normal range of float32
            np.testing.assert_allclose(found, right, rtol=0, atol=2.2e-7 * np.abs(right).max() + subnormal)
    assert calls == ["softmax_rows", "softmax_maps"]


@pytest.mark.parametrize("score", [65, -65, 599])
def test_entries_of_the_sigmoid_far_out_are_treated_in_float64(score):
    scores, labels = few_labels(100)
    scores[:, 5] = score
    assert_agree(*both(scores, np.ceil(labels), None, sigmoid_cross_entropy))


@pytest.mark.parametrize("classes", [1, 15, 511, 512, 513, 1000, 2500])
def test_multi_hot_rows_of_the_sigmoid_equal_the_numpy_path(classes):
    scores, labels = random_case((3, classes))
    assert_agree_as_float32(*both(scores, np.ceil(labels), None, sigmoid_cross_entropy))
    assert_agree(*both(scores, np.ceil(labels), np.random.default_rng(1).random(3), sigmoid_cross_entropy))


def test_multi_hot_maps_of_the_sigmoid_equal_the_numpy_path():
    scores, labels = random_case((2, 3, 16, 18))
    assert_agree_as_float32(*both(scores, np.ceil(labels), None, sigmoid_cross_entropy))
    scores[1, 2, 3, 4] = 100  # this run of entries is treated in float64
    assert_agree_as_float32(*both(scores, np.ceil(labels), None, sigmoid_cross_entropy))


@pytest.mark.parametrize("label_format", ["dense", "indices"])
@pytest.mark.parametrize("score, weight", [(-64, 1e12), (-40, 1e20), (64, 1e-18), (63.5, 1e-30)])
def test_weights_beyond_float32_beside_the_exponentials_are_harmless(label_format, score, weight):
    scores = np.full((3, 100), score, np.float32)
    scores[:, 7] -= 1
    labels = np.zeros((3, 100), np.float32)
    labels[:, 5] = 1
    if label_format == "indices":
        labels = np.full((3, 1), 5, np.float32)
    options = {"class_weight": [weight] * 100, "label_format": label_format}
    numpy, numba = both(scores, labels, **options)
    assert numba[0] == pytest.approx(numpy[0], rel=2e-7)
    np.testing.assert_allclose(numba[1], numpy[1], rtol=0, atol=2e-7 * np.abs(numpy[1]).max())
    assert np.count_nonzero(numba[1]) == 300


SIGMOID_OPTIONS = [
    {},
    {"label_smoothing": 0.1, "normalization": "VALID"},
    {"class_weight": [0.5, 0, 2, 1, 3, 1, 1], "pos_weight": 3},
    {"focal_gamma": 2, "focal_alpha": 0.25},
    {"focal_gamma": 0.5, "pos_weight": [1, 2, 3, 4, 5, 6, 7], "label_smoothing": 0.2},
    {"focal_gamma": {"positive": 0, "negative": 7}, "negative_margin": 0.05, "pos_weight": 3},
    {"focal_gamma": {"positive": 8, "negative": 2.5}, "negative_margin": 0.3, "label_smoothing": 0.2},
]


@pytest.mark.parametrize("shape", [(6, 7), (3, 7, 5, 4), (2, 7, 40, 41)], ids=str)
@pytest.mark.parametrize("ignoring", [False, True], ids=["known", "partly unknown"])
@pytest.mark.parametrize("options", SIGMOID_OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1, 1e4])
def test_sigmoid_kernels_equal_the_numpy_path(calls, shape, ignoring, options, scale):
    scores, labels = random_case(shape, scale=scale)
    weight = np.random.default_rng(1).random((len(scores), *scores.shape[2:]))
    if ignoring:
        labels[labels > 0.7] = -1
        labels[0] = -1
        options = dict(options, ignore_label=-1)
    for sample_weight in (None, weight):
        assert_agree(*both(scores, labels, sample_weight, sigmoid_cross_entropy, **options))
    assert calls == ["sigmoid_lines"] * 2


@pytest.mark.parametrize("shape", [(6, 7), (3, 7, 5, 4)], ids=str)
@pytest.mark.parametrize("options", SIGMOID_OPTIONS, ids=str)
def test_sigmoid_kernels_read_lists(calls, shape, options):
    scores, _ = random_case(shape)
    indices = np.random.default_rng(1).integers(-1, 7, size=(shape[0], 4, *shape[2:])).astype(np.float32)
    assert_agree(*both(scores, indices, None, sigmoid_cross_entropy, label_format="indices", **options))
    assert calls == ["sigmoid_lines"]


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_infinite_entries_of_the_sigmoid_take_the_same_way(calls, gamma):
    for shape in ((6, 7), (6, 7, 3)):
        scores, labels = random_case(shape)
        scores[1, 2], labels[1, 2] = -np.inf, 0
        scores[3, 4], labels[3, 4] = np.inf, 1
        assert_agree(*both(scores, labels, None, sigmoid_cross_entropy, focal_gamma=gamma))
        scores[5, 6] = np.nan
        with pytest.raises(ValueError, match="scores has nan at sample 5, class 6"):
            sigmoid_cross_entropy(scores, labels, focal_gamma=gamma)
    assert calls == ["sigmoid_lines"] * 4


@pytest.mark.parametrize("bad", [-0.5, 1.5, np.nan])
def test_bad_labels_of_the_sigmoid_are_found_by_the_kernels(calls, bad):
    for shape in ((6, 7), (6, 7, 3)):
        scores, labels = random_case(shape)
        labels[4, 3] = bad
        with pytest.raises(ValueError, match=f"labels has {bad:g} at sample 4, class 3"):
            sigmoid_cross_entropy(scores, labels)
    assert calls == [None, None]


def test_small_losses_above_a_tiny_margin_keep_their_digits(calls):
    """What is left of p there is some 1e-13, and 1 minus that has lost most of its digits."""
    scores = np.linspace(-32, -28, 12, dtype=np.float32).reshape(3, 4)
    results = both(scores, np.zeros_like(scores), loss=sigmoid_cross_entropy, negative_margin=1e-17)
    assert 0 < results[0][0] < 1e-11
    assert_agree(*results)
    assert calls == ["sigmoid_lines"]


def test_the_logarithm_keeps_the_digits_of_small_losses():
    for score in (5.0, 20.0, 80.0):
        loss, gradient = sigmoid_cross_entropy(np.array([[score]], np.float32), np.ones((1, 1), np.float32))
        assert loss == pytest.approx(np.log1p(np.exp(-score)), rel=1e-11)
        assert gradient[0, 0] == pytest.approx(-np.exp(-score) / (1 + np.exp(-score)), rel=1e-7)


def probabilities(scores, labels, **options):
    """The probabilities by NumPy and by the kernels."""
    loss = SoftmaxLoss(SoftmaxOptions.make(options), scores, labels, None)
    probs = [np.full(scores.shape, np.nan, np.float32) for _ in range(2)]
    loss.by_blocks(scores, labels, None, None, probs[0], 1.0)
    assert loss.kernel(scores, labels, None, None, probs[1], 1.0) is not None
    return probs


def test_the_probabilities_agree():
    for shape in ((6, 7), (64, 7), (2, 7, 5, 5)):
        scores, labels = random_case(shape)
        labels[0] = -1
        labels[1, 2] = -1
        numpy, numba = probabilities(scores, labels, ignore_label=-1)
        np.testing.assert_allclose(numba, numpy, rtol=1.2e-7, atol=0)


def test_the_probabilities_of_the_quick_way_agree():
    scores, labels = few_labels(100)
    labels[2, 5] = -1
    numpy, numba = probabilities(scores, labels, ignore_label=-1)
    np.testing.assert_allclose(numba, numpy, rtol=2.5e-7, atol=0)
    assert (numba != numpy).any()
    assert numba[2, 5] == 0


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(6, 7), (64, 7), (2, 7, 3, 3)], ids=str)
def test_bad_labels_are_found_by_the_kernels_and_named_by_numpy(calls, bad, shape):
    scores, labels = random_case(shape)
    labels[1, 3] = bad
    with pytest.raises(ValueError, match=f"labels has {bad:g} at sample 1, class 3"):
        softmax_cross_entropy(scores, labels)
    assert calls == [None]


@pytest.mark.parametrize("bad", [9, -2, 0.5, np.nan])
@pytest.mark.parametrize("others", [0, -1], ids=["several labels", "at most one"])
def test_bad_indices_are_found_by_the_kernels_and_named_by_numpy(calls, bad, others):
    for shape in ((6, 9), (6, 9, 3)):
        indices = np.full((6, 2, *shape[2:]), others, np.float32)
        indices[4, 1] = bad
        with pytest.raises(ValueError, match=f"labels has {bad:g} at sample 4, .*entry 1 of the list"):
            softmax_cross_entropy(random_case(shape)[0], indices, label_format="indices")
    assert calls == [None, None]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("label_format", ["dense", "indices"])
def test_nonfinite_scores_are_found_by_the_kernels_and_named_by_numpy(calls, bad, label_format):
    for shape in ((6, 7), (6, 7, 3)):
        scores, labels = random_case(shape)
        if label_format == "indices":
            labels = np.zeros((6, 1, *shape[2:]), np.float32)
        scores[4, 5] = bad
        with pytest.raises(ValueError, match="scores has (nan|inf) at sample 4, class 5"):
            softmax_cross_entropy(scores, labels, label_format=label_format)
    assert len(calls) == 2


def test_nothing_is_read_from_positions_that_do_not_count():
    for shape in ((6, 7), (6, 7, 3)):
        scores, labels = random_case(shape)
        scores[4, 5], labels[4] = np.nan, 0
        scores[2, 1], labels[2] = np.inf, 0
        numpy, numba = both(scores, labels)
        assert_agree(numpy, numba)
        assert not numba[1][[2, 4]].any()


# The exponential


@njit
def exponentials(scores):
    return np.array([arithmetic.exp_negative(np.float64(score)) for score in scores])


def test_exp_is_within_half_an_ulp_of_float32_over_its_range():
    scores = np.random.default_rng(0).uniform(-87, 88, 300000).astype(np.float32)
    exact = np.exp(scores.astype(np.longdouble))
    assert np.abs(exponentials(scores) / exact - 1).max() < 1e-11
    error = np.abs(exponentials(scores).astype(np.float32).astype(np.longdouble) - exact)
    assert (error / np.spacing(exact.astype(np.float32))).max() < 0.501


def test_exp_is_right_far_out_and_exact_at_zero():
    scores = np.linspace(-699, 600, 20001).astype(np.float32)
    assert np.abs(exponentials(scores) / np.exp(scores.astype(np.longdouble)) - 1).max() < 1e-11
    assert exponentials(np.zeros(1, np.float32))[0] == 1
    assert exponentials(np.array([-np.inf, -1e30], np.float32)).max() < 1e-300
    assert np.isnan(exponentials(np.array([np.nan, -np.nan], np.float32))).all()


@njit
def exponentials_32(scores):
    return np.array([arithmetic.exp_32(score, np.float32(0)) for score in scores])


def test_exp_in_float32_is_within_two_ulp_and_exact_at_zero():
    scores = np.append(np.linspace(-87, 88, 2_000_001), [0, -0.0]).astype(np.float32)
    found, exact = exponentials_32(scores), np.exp(scores.astype(np.longdouble))
    assert found.dtype == np.float32
    assert np.abs((found - exact) / np.spacing(exact.astype(np.float32))).max() < 1.2
    assert np.abs(found / exact - 1).max() < 1e-7
    assert (found[scores == 0] == 1).all()
    assert np.isnan(exponentials_32(np.array([np.nan], np.float32))).all()


@njit
def sigmoids_32(scores):
    return np.array([arithmetic.sigmoid_32(-abs(score), score > 0)[0] for score in scores])


def test_the_sigmoid_in_float32_is_within_an_ulp():
    scores = np.linspace(-64, 64, 2_000_001).astype(np.float32)
    exact = 1 / (1 + np.exp(-scores.astype(np.longdouble)))
    found = sigmoids_32(scores)
    assert found.dtype == np.float32
    assert np.abs((found - exact) / np.spacing(exact.astype(np.float32))).max() < 1.1
    assert np.abs(found / exact - 1).max() < 1e-7


@njit
def logarithms(numbers):
    return np.array([arithmetic.log(number) for number in numbers])


def test_log_is_right_over_the_range_of_sums():
    numbers = np.exp(np.append(np.linspace(-600, 700, 100001), np.linspace(-1e-3, 1e-3, 10001)))
    exact = np.log(numbers.astype(np.longdouble))
    assert np.abs(logarithms(numbers) - exact).max() < 2e-13
    assert np.abs(logarithms(numbers[100001:]) - exact[100001:]).max() < 1e-15
    assert logarithms(np.ones(1))[0] == 0


@njit
def logarithms_of_sums(numbers):
    return np.array([arithmetic.log1p(number) for number in numbers])


def test_log1p_keeps_the_digits_of_what_is_far_below_one():
    numbers = np.exp(np.linspace(-700, 12, 100001))
    assert np.abs(logarithms_of_sums(numbers) / np.log1p(numbers) - 1).max() < 1e-12
    assert np.isnan(logarithms_of_sums(np.array([np.nan]))).all()


@pytest.mark.parametrize("shape", [(7,), (3, 5, 41), (1100, 1000)], ids=str)
def test_scaling_rounds_once(shape):
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    exact = gradient.astype(np.float64) / 3
    kernels.scale(gradient, 1 / 3)
    np.testing.assert_allclose(gradient, exact, rtol=0.501 * 2**-23, atol=0)


# Threads, processes and the cache


def test_threads_change_nothing(monkeypatch):
    for shape in ((1100, 1000), (3, 21, 130, 131)):
        scores, labels = random_case(shape)
        results = []
        for size in (1, 2, 3):
            monkeypatch.setattr(kernels, "TEAM", kernels.Team(size))
            results.append(softmax_cross_entropy(scores, labels))
        for loss, gradient in results[1:]:
            assert loss == results[0][0]
            np.testing.assert_array_equal(gradient, results[0][1])


def part_of(start, stop):
    """A kernel that does nothing."""
    return start, stop


def test_every_position_is_in_one_part():
    for count in (1, 5, 16, 100):
        parts = Team(3).run(part_of, (), count)
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == count


def test_a_helper_that_has_no_time_is_not_waited_for():
    team, busy = Team(2), threading.Event()
    team.pool.submit(busy.wait)
    assert len(team.run(part_of, (), 100)) == 16
    busy.set()


def test_a_helper_without_memory_is_the_error_of_the_caller():
    failed = threading.Event()

    def kernel(start, stop):
        if threading.current_thread() is not threading.main_thread():
            failed.set()
            raise MemoryError("no memory")
        assert failed.wait(60)

    with pytest.raises(MemoryError, match="no memory"):
        Team(2).run(kernel, (), 100)


def test_many_callers_share_the_helpers(monkeypatch):
    monkeypatch.setattr(kernels, "TEAM", kernels.Team(3))
    monkeypatch.setattr(kernels, "SHARED_ENTRIES", 1)
    scores, labels = random_case((300, 200))
    results = []
    callers = [
        threading.Thread(target=lambda: [results.append(softmax_cross_entropy(scores, labels)) for _ in range(20)])
        for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 120
    for loss, gradient in results:
        assert loss == results[0][0]
        np.testing.assert_array_equal(gradient, results[0][1])


def test_where_no_thread_can_be_started_the_caller_does_it_alone(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert len(Team(3).run(part_of, (), 100)) == 16


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2),
    ],
)
def test_the_number_of_threads_obeys_the_environment(monkeypatch, variables, expected):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert kernels.count_threads() == expected


def run_python(code, cwd=None, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, timeout=600)


PRINT_LOSS = """
import numpy as np
from multilabel_softmax_loss import softmax_cross_entropy
print(softmax_cross_entropy(np.zeros((1100, 1000), np.float32), np.ones((1100, 1000), np.float32))[0])
"""


def test_a_forked_child_can_use_the_kernels():
    code = PRINT_LOSS + (
        "import os, sys\nsys.stdout.flush()\nchild = os.fork()\nif child == 0:\n"
        "    " + PRINT_LOSS.strip().replace("\n", "\n    ") + "\n    sys.stdout.flush()\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    done = run_python(code, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr.decode()
    assert [float(line) for line in done.stdout.split()] == [pytest.approx(np.log(1000), rel=1e-12)] * 2


def test_an_installation_that_cannot_be_written_works_and_says_so_once(tmp_path, monkeypatch):
    """Root may write anywhere, so a file stands where the cache's folder would be made."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    copy = tmp_path / "multilabel_softmax_loss"
    shutil.copytree(Path(kernels.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "__pycache__").write_text("")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import numpy as np; from multilabel_softmax_loss.kernels import scale; "
    done = run_python(
        code + "gradient = np.ones(3, np.float32); scale(gradient, 2.5); print(gradient)", cwd=tmp_path, **nowhere
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"[2.5 2.5 2.5]\n"
    assert done.stderr.decode().count("cannot keep its compiled kernels") == 1


def test_the_environment_chooses():
    code = "from multilabel_softmax_loss.losses.evaluate import kernels; print(kernels() is None)"
    assert run_python(code, MULTILABEL_SOFTMAX_LOSS_KERNELS="numpy").stdout.split() == [b"True"]
    assert run_python(code, MULTILABEL_SOFTMAX_LOSS_KERNELS="numba").stdout.split() == [b"False"]
    assert run_python(code, MULTILABEL_SOFTMAX_LOSS_KERNELS="").stdout.split() == [b"False"]
    wrong = run_python(code, MULTILABEL_SOFTMAX_LOSS_KERNELS="cuda")
    assert b"MULTILABEL_SOFTMAX_LOSS_KERNELS is 'cuda'; expected 'numpy' or 'numba'" in wrong.stderr


def test_read_only_arrays_take_a_kernel_and_unaligned_ones_numpy(calls):
    scores, labels = random_case((6, 7))
    expected = softmax_cross_entropy(scores, labels)
    scores.flags.writeable = labels.flags.writeable = False
    unaligned = np.frombuffer(b" " + scores.tobytes(), np.float32, offset=1).reshape(6, 7)
    for given in (scores, unaligned):
        assert_agree(expected, softmax_cross_entropy(given, labels))
    assert calls == ["softmax_rows"] * 2


@pytest.mark.parametrize("shape", [(6, 7), (70, 7), (3, 7, 4, 5)], ids=str)
@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_weights_may_lie_in_memory_in_any_way(calls, shape, loss):
    scores, labels = random_case(shape)
    rng = np.random.default_rng(1)
    weight = rng.random((2 * shape[0], *shape[2:]))
    for sample_weight in (weight[::2], weight[shape[0] - 1 :: -1], np.asfortranarray(weight[: shape[0]])):
        class_weight = rng.random(14)[::-2]
        given = loss(scores, labels, sample_weight, class_weight=class_weight)
        copied = loss(scores, labels, sample_weight.copy(), class_weight=class_weight.tolist())
        assert_agree(copied, given)
    assert len(calls) == 6
    assert None not in calls


def test_without_numba_the_numpy_path_serves():
    code = "import sys; sys.modules['numba'] = None\n" + PRINT_LOSS
    done = run_python(code)
    assert float(done.stdout) == pytest.approx(np.log(1000), rel=1e-12)
    assert run_python(code, MULTILABEL_SOFTMAX_LOSS_KERNELS="numba").returncode != 0


def test_float64_scores_keep_their_digits(calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, labels = random_case((6, 7))
        softmax_cross_entropy(scores.astype(np.float64), labels)
    assert not calls


TINY_MODULE = """
from multilabel_softmax_loss.kernels.compiling import compiled

@compiled
def increment(x):
    return x + 1.0
"""


def load_increment(path):
    """increment() of a module, as a new process finds it, called once: how often it was in the cache, and its files."""
    spec = importlib.util.spec_from_file_location("tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.increment(1.0) == 2.0
    stats = module.increment.stats
    return sum(stats.cache_hits.values()), sorted(Path(stats.cache_path).glob("tiny.increment-*.nb[ic]"))


def test_a_torn_file_of_the_cache_is_compiled_anew(tmp_path):
    """Cut short anywhere, emptied, or overwritten in its middle."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY_MODULE)
    assert load_increment(path)[0] == 0
    hits, files = load_increment(path)
    assert hits == 1
    assert len(files) == 2
    for file in files:
        whole = file.read_bytes()
        cuts = [whole[: len(whole) * k // 8] for k in range(8)]
        for torn in (*cuts, whole[:-1], whole[:100] + bytes(50) + whole[150:], b"\x80\x05garbage"):
            file.write_bytes(torn)
            assert load_increment(path)[0] == 0
            assert load_increment(path)[0] == 1  # it has been written again
            file.write_bytes(whole)


def test_a_change_in_any_file_of_the_room_gives_the_cache_other_names(tmp_path):
    assert compiling.SOURCES[:16] in kernels.softmax_rows.py_func.__qualname__
    copy = tmp_path / "multilabel_softmax_loss"
    shutil.copytree(Path(kernels.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from multilabel_softmax_loss.kernels import compiling; print(compiling.SOURCES)"
    assert run_python(code, cwd=tmp_path).stdout.decode().strip() == compiling.SOURCES
    labels = copy / "kernels" / "labels.py"
    labels.write_text(labels.read_text() + "\n")
    assert run_python(code, cwd=tmp_path).stdout.decode().strip() != compiling.SOURCES


def test_where_numba_may_not_compile_the_numpy_path_serves():
    done = run_python(PRINT_LOSS, NUMBA_DISABLE_JIT="1")
    assert float(done.stdout) == pytest.approx(np.log(1000), rel=1e-12)


@pytest.mark.parametrize("number", ["abc", "0", "-1"])
def test_an_impossible_number_of_threads_is_named(number):
    done = run_python(PRINT_LOSS, NUMBA_NUM_THREADS=number)
    message = f"ValueError: NUMBA_NUM_THREADS is {number!r}; expected a number of threads from 1 on, or nothing"
    assert done.stderr.decode().splitlines()[-1] == message
