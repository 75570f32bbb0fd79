"""Float32 losses within 1e-6 and gradients within 2e-7 of the largest entry, by both paths, far out too."""

import mpmath
import numpy as np
import pytest
from support.reference import reference_softmax

from multilabel_softmax_loss import softmax_cross_entropy

SCALES = [1e-3, 1e-1, 1.0, 10.0, 1e3, 1e4]


def assert_float32_digits(result, expected, floor=1e-45):
    """1e-6 of the loss, 2e-7 of the largest entry of the gradient; `floor` is the rounding of 50 digits."""
    loss, gradient = result
    expected_loss, expected_gradient = expected
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-45)
    assert gradient.dtype == np.float32
    error = np.abs(gradient.astype(np.float64) - expected_gradient).max()
    assert error <= 2e-7 * np.abs(expected_gradient).max() + floor


def exact_labels(shape, rng, smallest=1e-6):
    """Real-valued labels down to 1e-6 of the largest, most of them 0."""
    labels = 10 ** rng.uniform(np.log10(smallest), 0, shape) * (rng.random(shape) < 0.3)
    labels[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = 1
    return labels.astype(np.float32)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("label_normalization", ["l1", "count", "none"])
def test_small_cases_against_fifty_digits(backend, classes, scale, label_normalization):
    rng = np.random.default_rng(classes)
    scores = rng.normal(scale=scale, size=(4, classes)).astype(np.float32)
    labels = exact_labels((4, classes), rng)
    for options in ({}, {"label_smoothing": 0.1}, {"class_weight": rng.random(classes).tolist()}):
        options = dict(options, label_normalization=label_normalization)
        assert_float32_digits(
            softmax_cross_entropy(scores, labels, **options), reference_softmax(scores, labels, **options)
        )


@pytest.mark.parametrize("scale", SCALES)
def test_nearly_right_predictions_against_fifty_digits(backend, scale):
    """Scores whose probabilities are almost the targets: what is left of p - t has to be right as well."""
    rng = np.random.default_rng(0)
    labels = exact_labels((4, 5), rng)
    with np.errstate(divide="ignore"):
        scores = (np.log(labels / labels.sum(axis=1, keepdims=True)) + scale).astype(np.float32)
    scores[labels == 0] = scale - 40
    # The kernels' exp() is right to 3e-12, which shows where p and t agree to nine digits.
    floor = 3e-12 if backend == "numba" else 1e-45
    assert_float32_digits(softmax_cross_entropy(scores, labels), reference_softmax(scores, labels), floor)


@pytest.mark.parametrize("gap", [1, 10, 16, 17, 20, 50, 90, 1e3, 1e4])
def test_any_gap_against_fifty_digits(backend, gap):
    scores = np.array([[gap, 0, 1, 2], [-gap, 0, 0, 0], [gap, gap, 0, 0]], np.float32)
    for row in range(3):
        for label in np.eye(4, dtype=np.float32):
            case = scores[row : row + 1], label[None]
            assert_float32_digits(softmax_cross_entropy(*case), reference_softmax(*case))


@pytest.mark.parametrize("classes", [16, 100, 1000])
@pytest.mark.parametrize("scale", [1e-3, 1, 10])
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 1, None])
def test_few_labels_against_extended_precision(backend, classes, scale, distance):
    """From random scores to those whose probabilities are the targets but for `distance`."""
    rng = np.random.default_rng(classes)
    for count in (1, classes // 8):
        scores = rng.normal(scale=scale, size=(40, classes))
        labels = np.zeros((40, classes), np.float32)
        for row, y in zip(scores, labels):
            listed = rng.choice(classes, count, replace=False)
            y[listed] = rng.uniform(0.1, 1, count) if scale == 1 else 1
            if distance is not None:
                row[listed] = np.log(y[listed]) + distance * rng.normal(size=count) + 12
        scores = np.clip(scores, -60, 60).astype(np.float32)
        for row in range(40):
            case = scores[row : row + 1], labels[row : row + 1]
            assert_float32_digits(softmax_cross_entropy(*case), wide_reference(*case), floor=3e-12)


@pytest.mark.parametrize("classes", [1000, 17000, 100000])
@pytest.mark.parametrize("scale", SCALES)
def test_many_classes_against_extended_precision(backend, classes, scale):
    rng = np.random.default_rng(classes)
    scores = rng.normal(scale=scale, size=(3, classes)).astype(np.float32)
    labels = exact_labels((3, classes), rng)
    assert_float32_digits(softmax_cross_entropy(scores, labels), wide_reference(scores, labels))
    indices = rng.integers(0, classes, size=(3, 16)).astype(np.float32)
    dense = np.zeros((3, classes), np.float32)
    np.put_along_axis(dense, indices.astype(int), 1, axis=1)
    assert_float32_digits(softmax_cross_entropy(scores, indices, label_format="indices"), wide_reference(scores, dense))


def wide_reference(scores, labels):
    """The default loss in NumPy's longdouble (64 bits of mantissa here), summed class by class."""
    scores, labels = scores.astype(np.longdouble), labels.astype(np.longdouble)
    targets = labels / labels.sum(axis=1, keepdims=True)
    shifted = scores - scores.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    log_probs = shifted - np.log(exps.sum(axis=1, keepdims=True))
    gradient = exps / exps.sum(axis=1, keepdims=True) - targets
    return float(-(targets * log_probs).sum() / len(scores)), (gradient / len(scores)).astype(np.float64)


def test_the_wide_reference_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(3, 20)).astype(np.float32), exact_labels((3, 20), rng)
    wide, exact = wide_reference(scores, labels), reference_softmax(scores, labels)
    assert wide[0] == pytest.approx(exact[0], rel=1e-14)
    np.testing.assert_allclose(wide[1], exact[1], rtol=0, atol=1e-16)


def test_the_definition_has_more_digits_than_are_asked_for():
    with mpmath.workdps(50):
        expected = mpmath.log(1 + mpmath.exp(-30))
    assert reference_softmax(np.array([[30.0, 0.0]]), np.array([[1.0, 0.0]]))[0] == float(expected)
