import itertools
import warnings

import numpy as np
import pytest
from support.reference import reference_sigmoid

from multilabel_softmax_loss import (
    SigmoidOptions,
    assert_gradient,
    check_function,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from multilabel_softmax_loss.losses.sigmoid import SigmoidLoss

GAMMAS = [0, 0.5, 1, 2, 5]
ASYMMETRIC = [
    {"focal_gamma": {"positive": 0, "negative": 4}, "negative_margin": 0.05},  # of the paper
    {"focal_gamma": {"positive": 1, "negative": 0}},
    {"focal_gamma": {"positive": 0.5, "negative": 2.5}, "negative_margin": 0.3},
]


def random_case(shape=(6, 7), seed=0, dtype=np.float64):
    """Scores, and labels of which some are 0, some 1 and the others in between."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=3, size=shape).astype(dtype)
    return scores, np.clip(rng.uniform(-0.7, 1.7, size=shape), 0, 1).astype(dtype)


def option_combinations(classes):
    """Every combination of the options that change the formula; the normalisations take turns."""
    values = {
        "label_smoothing": [0.0, 0.15],
        "class_weight": [None, np.linspace(0, 2, classes)],
        "pos_weight": [None, 3.0, np.linspace(0.5, 4, classes)],
        "focal_alpha": [None, 0.25],
        "ignore_label": [None, 1.0],
    }
    turns = itertools.cycle(["BATCH_SIZE", "VALID", "FULL", "NONE", "VALID"])
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination), normalization=next(turns))


def assert_same(ours, expected, tolerance=1e-14):
    """Loss and gradient are the same, up to rounding."""
    assert ours[0] == pytest.approx(expected[0], rel=tolerance)
    np.testing.assert_allclose(ours[1], expected[1], rtol=0, atol=tolerance * np.abs(expected[1]).max())


# The formula


def test_a_score_of_zero_costs_log_two_per_class():
    loss, gradient = sigmoid_cross_entropy(np.zeros((2, 3)), [[0, 1, 0.3], [1, 1, 0]])
    assert loss == pytest.approx(3 * np.log(2), rel=1e-15)
    np.testing.assert_allclose(gradient, [[0.25, -0.25, 0.1], [-0.25, -0.25, 0.25]], rtol=1e-15)


@pytest.mark.parametrize(
    "options, form",
    [
        ({}, lambda p, q: -0.3 * np.log(p) - 0.7 * np.log(q)),
        ({"pos_weight": 4}, lambda p, q: -1.2 * np.log(p) - 0.7 * np.log(q)),
        ({"class_weight": [4]}, lambda p, q: -1.2 * np.log(p) - 2.8 * np.log(q)),
        ({"label_smoothing": 0.2}, lambda p, q: -0.34 * np.log(p) - 0.66 * np.log(q)),
        ({"focal_gamma": 2}, lambda p, q: -0.3 * q**2 * np.log(p) - 0.7 * p**2 * np.log(q)),
        ({"focal_alpha": 0.25}, lambda p, q: -0.3 * 0.25 * np.log(p) - 0.7 * 0.75 * np.log(q)),
        (ASYMMETRIC[0], lambda p, q: -0.3 * np.log(p) - 0.7 * (p - 0.05) ** 4 * np.log(q + 0.05)),
        (ASYMMETRIC[1], lambda p, q: -0.3 * q * np.log(p) - 0.7 * np.log(q)),
        ({"negative_margin": 0.9}, lambda p, q: -0.3 * np.log(p)),  # p = 0.85 is below the margin
    ],
    ids=["plain", "pos_weight", "class_weight", "label_smoothing", "gamma", "alpha", "asymmetric", "gammas", "margin"],
)
def test_known_losses(options, form):
    p = 1 / (1 + np.exp(-1.7))
    loss, _ = sigmoid_cross_entropy([[1.7]], [[0.3]], **options)
    assert loss == pytest.approx(form(p, 1 - p), rel=1e-14)


@pytest.mark.parametrize("probability, saving", [(0.9, 100), (0.5, 4)])
def test_focal_loss_costs_an_easy_example_less(probability, saving):
    """At gamma 2 an example with p = 0.9 costs 100 times less, one with p = 0.5 at most 4 times less (Lin et al.)."""
    score = [[np.log(probability / (1 - probability))]]
    plain, focal = (sigmoid_cross_entropy(score, [[1]], focal_gamma=gamma)[0] for gamma in (0, 2))
    assert plain / focal == pytest.approx(saving, rel=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_combination_equals_the_definition(gamma):
    scores, labels = random_case((2, 3, 1, 2), seed=5)
    labels[:, 0, 0, 0] = 1
    weight = np.array([[[0.7, 2]], [[0, 1.3]]])
    for options in option_combinations(3):
        expected = reference_sigmoid(scores, labels, weight, focal_gamma=gamma, **options)
        assert_same(sigmoid_cross_entropy(scores, labels, weight, focal_gamma=gamma, **options), expected, 1e-13)


@pytest.mark.parametrize("asymmetric", [ASYMMETRIC[0], ASYMMETRIC[2]], ids=["whole gammas", "others"])
def test_asymmetric_focusing_with_every_other_option_equals_the_definition(asymmetric):
    scores, labels = random_case((2, 3), seed=5)
    labels[:, 0] = 1, 0
    for options in option_combinations(3):
        expected = reference_sigmoid(scores, labels, [0.7, 1.9], **asymmetric, **options)
        assert_same(sigmoid_cross_entropy(scores, labels, [0.7, 1.9], **asymmetric, **options), expected, 1e-13)


def assert_gradient_of_loss(scores, labels, **options):
    """The gradient is the slope of the loss to 1e-7."""

    def loss(x):
        return sigmoid_cross_entropy(x, labels, **options)[0]

    def gradient(x):
        return sigmoid_cross_entropy(x, labels, **options)[1]

    assert_gradient(check_function(loss, gradient, scores, tolerance=1e-7, name=str(options)))


@pytest.mark.parametrize(
    "label_format, gamma, turn",
    [*(("dense", gamma, k % 3) for k, gamma in enumerate(GAMMAS)), ("indices", 0, 1), ("indices", 2, 2)],
)
def test_every_combination_has_the_gradient_of_its_loss(label_format, gamma, turn):
    """A third of them with each gamma; all of them with all equal the definition, above."""
    scores, labels = random_case((2, 3), seed=6)
    labels[0, 1] = 1
    if label_format == "indices":
        labels = np.array([[1, 2], [0, 1]])
    for options in itertools.islice(option_combinations(3), turn, None, 3):
        options.update(sample_weight=[0.7, 1.9], focal_gamma=gamma, label_format=label_format)
        assert_gradient_of_loss(scores, labels, **options)


@pytest.mark.parametrize("asymmetric", ASYMMETRIC, ids=str)
def test_asymmetric_focusing_has_the_gradient_of_its_loss(asymmetric):
    scores, labels = random_case((2, 3), seed=6)
    labels[0, 1] = 1
    for options in ({}, {"label_smoothing": 0.15, "pos_weight": 3.0, "class_weight": [0, 1, 2], "focal_alpha": 0.25}):
        assert_gradient_of_loss(scores, labels, **asymmetric, **options)


def test_where_the_margin_begins_the_slope_is_that_below_and_the_checker_sees_a_kink():
    """At a score of 0 a margin of 1/2 is reached; without a gamma the slope jumps there from 0 to 1/4."""
    below, above = np.nextafter(0, -1), 1e-9
    for score, slope in ((below, 0), (0.0, 0), (above, 1 / 4)):
        loss, gradient = sigmoid_cross_entropy([[score]], [[0]], negative_margin=0.5)
        assert loss == pytest.approx(slope * score, rel=1e-6)
        assert gradient[0, 0] == pytest.approx(slope, rel=1e-8)

    def report(gamma):
        function, at = sigmoid_cross_entropy, np.linspace(-1, 1, 9)[None]  # the fifth is 0
        options = {"negative_margin": 0.5, "focal_gamma": gamma}
        labels = [[0, 1, 0, 0, 0, 1, 0, 0, 0]]
        return check_function(
            lambda x: function(x, labels, **options)[0], lambda x: function(x, labels, **options)[1], at
        )

    assert report(gamma=0).names == ["kink"]
    assert_gradient(report(gamma=1))  # a gamma rounds it off
    assert report(gamma=1).names == []


@pytest.mark.parametrize("focal", [*({"focal_gamma": gamma} for gamma in GAMMAS), *ASYMMETRIC], ids=str)
@pytest.mark.parametrize(
    "dtype, loss_tolerance, gradient_tolerance", [(np.float32, 1e-6, 2e-7), (np.float64, 1e-13, 1e-14)]
)
def test_accuracy(focal, dtype, loss_tolerance, gradient_tolerance):
    scores, labels = random_case((4, 30), seed=2, dtype=dtype)
    scores *= 10
    loss, gradient = sigmoid_cross_entropy(scores, labels, **focal)
    expected_loss, expected = reference_sigmoid(scores, labels, **focal)
    assert gradient.dtype == dtype
    assert loss == pytest.approx(expected_loss, rel=loss_tolerance)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=gradient_tolerance * np.abs(expected).max())


# What must be the same


@pytest.mark.parametrize(
    "neutral",
    [
        {"focal_gamma": 0},
        {"focal_gamma": {"positive": 0, "negative": 0}},
        {"negative_margin": 0},
        {"pos_weight": 1},
        {"pos_weight": np.ones(7)},
        {"class_weight": np.ones(7)},
        {"label_smoothing": 0.0},
        {"ignore_label": -1},
    ],
    ids=str,
)
@pytest.mark.parametrize("others", [{}, {"focal_gamma": 1.5, "pos_weight": 2, "label_smoothing": 0.1}], ids=str)
def test_neutral_options_change_nothing(neutral, others):
    scores, labels = random_case()
    rest = {name: value for name, value in others.items() if name not in neutral}
    loss, gradient = sigmoid_cross_entropy(scores, labels, **dict(neutral, **rest))
    expected_loss, expected = sigmoid_cross_entropy(scores, labels, **rest)
    assert loss == expected_loss
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_one_gamma_for_both_is_that_gamma(gamma, dtype):
    scores, labels = random_case((3, 40), dtype=dtype)
    both = {"positive": gamma, "negative": gamma}
    loss, gradient = sigmoid_cross_entropy(scores, labels, focal_gamma=both, negative_margin=0.0)
    expected_loss, expected = sigmoid_cross_entropy(scores, labels, focal_gamma=gamma)
    assert loss == expected_loss
    np.testing.assert_array_equal(gradient, expected)


def test_softmax_of_two_classes_equals_one_sigmoid_of_the_difference():
    (scores, _), (_, labels) = random_case((9, 2), seed=1), random_case((9, 1), seed=2)
    loss, gradient = sigmoid_cross_entropy(scores[:, :1] - scores[:, 1:], labels)
    expected_loss, expected = softmax_cross_entropy(scores, np.hstack([labels, 1 - labels]))
    assert_same((loss, np.hstack([gradient, -gradient])), (expected_loss, expected))


def test_each_class_stands_alone():
    scores, labels = random_case()
    parts = [sigmoid_cross_entropy(scores[:, k : k + 1], labels[:, k : k + 1], focal_gamma=2) for k in range(7)]
    together = sum(loss for loss, _ in parts), np.hstack([gradient for _, gradient in parts])
    assert_same(sigmoid_cross_entropy(scores, labels, focal_gamma=2), together)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_turning_labels_and_scores_around_turns_the_gradient_around(gamma):
    scores, labels = random_case()
    labels = labels.round(2)
    loss, gradient = sigmoid_cross_entropy(scores, labels, focal_gamma=gamma, focal_alpha=0.2)
    turned_loss, turned = sigmoid_cross_entropy(-scores, 1 - labels, focal_gamma=gamma, focal_alpha=0.8)
    assert_same((loss, gradient), (turned_loss, -turned))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2},
        {"class_weight": [0.5, 1, 2, 3, 0, 1]},
        {"pos_weight": [1, 2, 3, 4, 5, 6], "focal_gamma": 0.5, "focal_alpha": 0.7},
        {"normalization": "VALID"},
        {"normalization": "FULL"},
    ],
    ids=str,
)
def test_indices_equal_dense(options):
    rng = np.random.default_rng(1)
    scores, weight = rng.normal(size=(4, 6)), rng.random(4)
    indices = np.array([[0, 3, -1], [5, 5, 2], [-1, -1, -1], [-1, 4, 4]])
    dense = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    expected = sigmoid_cross_entropy(scores, dense, weight, **options)
    assert_same(sigmoid_cross_entropy(scores, indices, weight, label_format="indices", **options), expected)
    spatial = sigmoid_cross_entropy(
        *(np.moveaxis(np.stack([array, array]), 1, -1) for array in (scores, indices)),  # (2, 6, 4) and (2, 3, 4)
        np.stack([weight, weight]),
        label_format="indices",
        **dict(options, normalization="NONE"),
    )
    alone = sigmoid_cross_entropy(scores, dense, weight, **dict(options, normalization="NONE"))
    assert_same((spatial[0] / 2, spatial[1][0].T), alone)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "focal_gamma": 1.5, "pos_weight": 2}], ids=str)
def test_an_unknown_entry_has_no_part_in_the_loss(options):
    scores, labels = random_case()
    unknown = np.random.default_rng(1).random(scores.shape) < 0.3
    labels[unknown] = -1
    for normalization, count in (("NONE", 1), ("VALID", (~unknown).sum()), ("FULL", 42), ("BATCH_SIZE", 6)):
        loss, gradient = sigmoid_cross_entropy(scores, labels, ignore_label=-1, normalization=normalization, **options)
        expected_loss, expected = sigmoid_cross_entropy(  # as one column, without the unknown entries
            scores[~unknown][:, None], labels[~unknown][:, None], normalization="NONE", **options
        )
        assert not gradient[unknown].any()
        assert_same((loss, gradient[~unknown][:, None]), (expected_loss / count, expected / count))


def test_weight_two_equals_the_sample_twice():
    scores, labels = random_case()
    twice = [0, 1, 2, 2, 3, 4, 5]
    loss, gradient = sigmoid_cross_entropy(scores, labels, [1, 1, 2, 1, 1, 1], normalization="VALID")
    expected_loss, expected = sigmoid_cross_entropy(scores[twice], labels[twice], normalization="VALID")
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    np.testing.assert_allclose(gradient[2], 2 * expected[2], rtol=1e-14)
    np.testing.assert_allclose(gradient[3:], expected[4:], rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 2, 2), (3,), (3, 1), (3, 1, 1, 1)])
def test_sample_weights_are_per_position_or_per_sample(shape):
    scores, labels = random_case((3, 4, 2, 2))
    weight = np.random.default_rng(2).random(shape)
    full = np.broadcast_to(weight.reshape((3, 2, 2) if weight.size == 12 else (3, 1, 1)), (3, 2, 2))
    expected = reference_sigmoid(scores, labels, full, normalization="VALID")
    assert_same(sigmoid_cross_entropy(scores, labels, weight, normalization="VALID"), expected, 1e-13)


def test_class_weights_scale_the_classes():
    scores, labels = random_case()
    weights = np.random.default_rng(1).random(7)
    parts = [sigmoid_cross_entropy(scores[:, k : k + 1], labels[:, k : k + 1]) for k in range(7)]
    together = sum(w * loss for w, (loss, _) in zip(weights, parts)), weights * np.hstack([g for _, g in parts])
    assert_same(sigmoid_cross_entropy(scores, labels, class_weight=weights), together)


def test_pos_weight_equals_repeating_the_positive_entries():
    scores, labels = random_case((12, 1))
    labels = labels.round()
    repeats = np.where(labels[:, 0] == 1, 3, 1)
    loss, _ = sigmoid_cross_entropy(scores, labels, pos_weight=3, normalization="NONE")
    repeated = sigmoid_cross_entropy(np.repeat(scores, repeats, 0), np.repeat(labels, repeats, 0), normalization="NONE")
    assert loss == pytest.approx(repeated[0], rel=1e-14)
    by_class = sigmoid_cross_entropy(np.hstack([scores] * 2), np.hstack([labels] * 2), pos_weight=[3, 1])
    alone = sigmoid_cross_entropy(scores, labels)
    np.testing.assert_allclose(by_class[1][:, 1:], alone[1], rtol=1e-14)
    np.testing.assert_allclose(by_class[1][:, :1], np.where(labels == 1, 3, 1) * alone[1], rtol=1e-14)


def test_alpha_equals_weights_of_the_two_terms():
    scores, labels = random_case()
    alpha = sigmoid_cross_entropy(scores, labels, focal_alpha=0.2, focal_gamma=2)
    weights = sigmoid_cross_entropy(scores, labels, class_weight=[0.8] * 7, pos_weight=0.25, focal_gamma=2)
    assert_same(alpha, weights)


def test_smoothing_equals_smoothed_labels():
    scores, labels = random_case()
    assert_same(
        sigmoid_cross_entropy(scores, labels, label_smoothing=0.3),
        sigmoid_cross_entropy(scores, 0.7 * labels + 0.15),
    )


@pytest.mark.parametrize("axis", [1, 2, 3, -1, 0])
def test_any_axis_may_hold_the_classes(axis):
    scores, labels = random_case((3, 4, 5, 2))
    weights = np.random.default_rng(1).random(scores.shape[axis])
    for normalization in ("VALID", "BATCH_SIZE"):  # the batch is the first axis, as in Caffe
        options = dict(class_weight=weights, pos_weight=weights + 1, normalization=normalization)
        flat = [np.moveaxis(array, axis, -1).reshape(-1, scores.shape[axis]) for array in (scores, labels)]
        loss, gradient = sigmoid_cross_entropy(*flat, **options)
        loss, gradient = (
            part * (len(flat[0]) / 3 if normalization == "BATCH_SIZE" else 1) for part in (loss, gradient)
        )
        ours = sigmoid_cross_entropy(scores, labels, axis=axis, **options)
        assert_same((ours[0], np.moveaxis(ours[1], axis, -1).reshape(flat[0].shape)), (loss, gradient))


def test_blocks_do_not_show():
    """An array of many blocks equals the sum of its samples."""
    scores, labels = random_case((3, 4, 150, 101), seed=3)
    options = dict(normalization="NONE", pos_weight=[1, 2, 3, 4], label_smoothing=0.1)
    parts = [sigmoid_cross_entropy(scores[k : k + 1], labels[k : k + 1], **options) for k in range(3)]
    together = sum(part for part, _ in parts), np.concatenate([part for _, part in parts])
    assert_same(sigmoid_cross_entropy(scores, labels, **options), together, 1e-13)


# Edges


@pytest.mark.parametrize("focal", [*({"focal_gamma": gamma} for gamma in GAMMAS), *ASYMMETRIC], ids=str)
@pytest.mark.parametrize("label", [0, 0.3, 1])
def test_large_scores_keep_their_digits(focal, label):
    """From 17 on, the published focal layer has a NaN gradient for a negative label."""
    floor = 1e-40 if "negative_margin" in focal else 1e-307  # 50 digits hold no more of 1 - p + margin
    sizes = np.array([1e4, 800, 740, 700, 300, 100, 40, 37, 36, 20, 17, 5, 1e-3])
    for score in np.concatenate([-sizes, [0.0], sizes]):
        loss, gradient = sigmoid_cross_entropy([[score]], [[label]], **focal)
        expected_loss, expected = reference_sigmoid([[score]], [[label]], **focal)
        assert loss == pytest.approx(expected_loss, rel=1e-12, abs=1e-307)  # subnormal numbers have fewer digits
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=floor)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_score_of_ten_thousand_costs_ten_thousand_or_nothing(gamma, dtype):
    scores = np.array([[1e4, -1e4, 1e4, -1e4]], dtype)
    loss, gradient = sigmoid_cross_entropy(scores, [[0, 1, 1, 0]], focal_gamma=gamma)
    assert loss == 2 * float(scores[0, 0])
    np.testing.assert_array_equal(gradient, [[1, -1, 0, 0]])


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("label_format, labels", [("dense", [[1.0, 0, 1]]), ("indices", [[0, 2]])])
def test_infinite_scores_are_legal_where_the_loss_is_finite(gamma, label_format, labels):
    options = dict(focal_gamma=gamma, label_format=label_format)
    loss, gradient = sigmoid_cross_entropy([[np.inf, -np.inf, 0.5]], labels, **options)
    expected_loss, expected = sigmoid_cross_entropy([[0.5]], [[1.0]], focal_gamma=gamma)
    assert loss == expected_loss
    np.testing.assert_array_equal(gradient, [[0, 0, expected[0, 0]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_margin_bounds_what_a_class_that_is_not_there_costs(dtype):
    for gamma in (0, 1.5, 4):
        scores = np.array([[np.inf, 1e4, -np.inf]], dtype)
        loss, gradient = sigmoid_cross_entropy(scores, [[0, 0, 0]], negative_margin=0.1, focal_gamma=gamma)
        assert loss == pytest.approx(2 * 0.9**gamma * np.log(10), rel=1e-11)
        assert float(np.abs(gradient).max()) < 1e-300
    with pytest.raises(ValueError, match="scores has nan at sample 0, class 1; expected finite scores"):
        sigmoid_cross_entropy(np.array([[np.inf, np.nan]], dtype), [[0, 0]], negative_margin=0.1)


def test_nonfinite_scores_pass_where_nothing_counts_them():
    scores, labels = random_case((4, 3))
    expected = sigmoid_cross_entropy(scores[1:], labels[1:], normalization="NONE")
    scores[0] = [np.nan, np.inf, -np.inf]
    for label, weight in ((0.5, [0, 1, 1, 1]), (-1.0, None)):
        labels[0] = label
        loss, gradient = sigmoid_cross_entropy(
            scores, labels, weight, ignore_label=-1, normalization="NONE", focal_gamma=0
        )
        assert not gradient[0].any()
        assert_same((loss, gradient[1:]), expected)
    loss, gradient = sigmoid_cross_entropy([[np.nan, 0]], [[1, 1]], class_weight=[0, 1], focal_gamma=0.5)
    assert np.isfinite(loss)
    assert gradient[0, 0] == 0


@pytest.mark.parametrize("options", [{}, {"normalization": "VALID"}, {"normalization": "NONE"}], ids=str)
def test_an_empty_batch_costs_nothing(options):
    for shape in ((0, 5), (2, 5, 0, 3)):
        loss, gradient = sigmoid_cross_entropy(np.zeros(shape, np.float32), np.zeros(shape), **options)
        assert loss == 0
        assert gradient.shape == shape


@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
def test_nothing_known_costs_nothing(normalization):
    scores, labels = np.ones((4, 3)), np.full((4, 3), 255)
    loss, gradient = sigmoid_cross_entropy(scores, labels, ignore_label=255, normalization=normalization)
    assert loss == 0
    assert not gradient.any()


def test_ignore_label_is_compared_as_the_float_it_is():
    scores = np.zeros((1, 2), np.float32)
    for labels, ignore_label, known in (([0.1, 1], 0.1, 1), ([0.9, 1], 0, 2), ([1.0, 0.5], 1, 1), ([-0.5, 1], -0.5, 1)):
        loss, _ = sigmoid_cross_entropy(scores, np.array([labels], np.float32), ignore_label=ignore_label)
        assert loss == pytest.approx(known * np.log(2))


def test_labels_of_any_real_type_and_trailing_ones_are_read_alike():
    scores, _ = random_case((2, 3))
    expected = sigmoid_cross_entropy(scores, np.eye(2, 3))[0]
    for dtype in (bool, np.uint8, np.int64, np.float16, np.float32):
        assert sigmoid_cross_entropy(scores, np.eye(2, 3).astype(dtype).reshape(2, 3, 1, 1))[0] == expected


def test_gradient_has_the_type_of_the_scores():
    for dtype in (np.float16, np.float32, np.float64):
        loss, gradient = sigmoid_cross_entropy(np.ones((2, 3), dtype), np.eye(2, 3))
        assert gradient.dtype == dtype
        assert type(loss) is float
    assert sigmoid_cross_entropy([[1, 2]], [[1, 0]])[1].dtype == np.float64


def test_strided_input_is_read_as_it_stands():
    scores, labels = random_case((6, 7))
    expected = sigmoid_cross_entropy(scores, labels)
    for view in (np.asfortranarray(scores), np.repeat(scores, 2, axis=0)[::2]):
        assert_same(sigmoid_cross_entropy(view, np.asfortranarray(labels)), expected, 0)


def test_input_is_left_as_it_came():
    scores, labels = random_case()
    labels[0, 1] = -1
    weight, pos_weight = np.ones(6), np.full(7, 2.0)
    kept = [array.copy() for array in (scores, labels, weight, pos_weight)]
    sigmoid_cross_entropy(
        scores, labels, weight, ignore_label=-1, pos_weight=pos_weight, label_smoothing=0.1, focal_gamma=2
    )
    for array, before in zip((scores, labels, weight, pos_weight), kept):
        np.testing.assert_array_equal(array, before)


def test_warnings_of_numpy_stay_inside():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gamma in GAMMAS:
            scores = np.array([[np.inf, -np.inf, 1e4, -1e4, 1e-30]], np.float32)
            sigmoid_cross_entropy(scores, [[1, 0, 0, 1, 0.5]], focal_gamma=gamma)


# Memory


@pytest.mark.parametrize("dtype", [np.int64, np.float32])  # float32 lists go the way of the kernels
def test_indices_allocate_nothing_as_large_as_the_scores_but_the_gradient(peak_bytes, dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(256, 32000)).astype(np.float32)
    indices = rng.integers(0, 32000, size=(256, 16)).astype(dtype)
    peak = peak_bytes(lambda: sigmoid_cross_entropy(scores, indices, label_format="indices", label_smoothing=0.1))
    assert peak < 1.2 * scores.nbytes  # the gradient itself, and blocks


def test_the_loss_alone_allocates_blocks_only(backend, peak_bytes):
    scores, labels = random_case((512, 4000), dtype=np.float32)
    options = SigmoidOptions(focal_gamma=2.0, pos_weight=2.0)
    loss = SigmoidLoss(options, scores, labels, None)
    peak = peak_bytes(lambda: loss(scores, labels))
    assert peak < 0.6 * scores.nbytes
    assert peak < 5e6


# Bad input


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        (np.zeros((8, 21)), np.zeros((8, 20)), r"labels has shape \(8, 20\); expected \(8, 21\), the shape of scores"),
        ([[0, 1]], [[0, -1]], "labels has -1 at sample 0, class 1; expected labels from 0 to 1$"),
        ([[0, 1]], [[0, 1.5]], "labels has 1.5 at sample 0, class 1; expected labels from 0 to 1$"),
        ([[0, 1]], [[0, np.nan]], "labels has nan at sample 0, class 1; expected labels from 0 to 1$"),
        ([[0, 1]], [[np.inf, 0]], "labels has inf at sample 0, class 0"),
        ([[0, np.nan]], [[1, 0]], "scores has nan at sample 0, class 1; expected finite scores .* loss there is nan"),
        (
            [[0, np.inf]],
            [[1, 0.5]],
            r"scores has inf at sample 0, class 1; .*inf only where it is 1\). The loss .* inf$",
        ),
        ([[-np.inf, -np.inf]], [[0, 1e-9]], "scores has -inf at sample 0, class 1; .*-inf only where the target is 0"),
    ],
)
def test_bad_arrays_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_cross_entropy(scores, labels)


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_culprit_is_named_by_its_place_in_a_spatial_batch(gamma, bad):
    scores, labels = random_case((40, 7, 4, 5))
    labels[labels == 1] = 0.5
    labels[labels == 0] = -1
    labels[37, 5, 2, 3] = 0.2
    scores[37, 5, 2, 3] = bad
    scores[labels == -1] = np.nan  # unknown, so not at fault
    with pytest.raises(ValueError, match=f"scores has {bad} at sample 37, class 5, row 2, column 3; "):
        sigmoid_cross_entropy(scores, labels, ignore_label=-1, focal_gamma=gamma)


def test_a_label_out_of_range_is_named_by_its_place_in_a_spatial_batch():
    scores, labels = random_case((40, 7, 40, 5))
    labels[38, 6, 33, 4] = 2
    with pytest.raises(ValueError, match="labels has 2 at sample 38, class 6, row 33, column 4; "):
        sigmoid_cross_entropy(scores, labels)


def test_nonfinite_ignore_lets_it_pass():
    loss, gradient = sigmoid_cross_entropy([[0, np.nan], [0, 1]], [[1, 0], [1, 0]], nonfinite="ignore")
    assert np.isnan(loss)
    assert np.isnan(gradient[0, 1])
    assert np.isfinite(gradient[[0, 1, 1], [0, 0, 1]]).all()  # classes stand alone


def test_a_loss_that_overflows_is_named():
    with pytest.raises(ValueError, match="^the loss at sample 1 overflows; scores or the weights are too large$"):
        sigmoid_cross_entropy([[0], [1e3]], [[0], [0]], class_weight=[1e306])


@pytest.mark.parametrize("name", ["class_weight", "pos_weight"])
def test_weights_of_another_width_are_named(name):
    with pytest.raises(ValueError, match=f"option '{name}' has 2 values; expected 3, one per class of scores"):
        sigmoid_cross_entropy(np.zeros((2, 3)), np.eye(2, 3), **{name: [1, 2]})


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"focal_gamma": -1}, ValueError, "option 'focal_gamma' = -1; expected a finite number >= 0"),
        ({"focal_gamma": np.inf}, ValueError, "option 'focal_gamma' = inf; expected a finite number >= 0"),
        ({"focal_gamma": "2"}, TypeError, "option 'focal_gamma' = '2'; expected a finite number >= 0"),
        (
            {"focal_gamma": {"positive": 1}},
            TypeError,
            r"= {'positive': 1}; expected .* >= 0, or two, as in {\"positive\": 0",
        ),
        (
            {"focal_gamma": {"positive": 1, "negative": -1}},
            ValueError,
            "expected a finite number >= 0, or two, as in {",
        ),
        ({"focal_gamma": [1, 2]}, TypeError, r"option 'focal_gamma' = \[1, 2\]; expected a finite number >= 0, or two"),
        ({"negative_margin": 1.5}, ValueError, "option 'negative_margin' = 1.5; expected a number from 0 to 1"),
        ({"focal_alpha": 1.5}, ValueError, "option 'focal_alpha' = 1.5; expected a number from 0 to 1"),
        ({"pos_weight": -2}, ValueError, "option 'pos_weight' = -2; expected a finite number >= 0"),
        ({"pos_weight": [1, -2]}, ValueError, "expected one finite number >= 0, or a list of finite .*; entry 1 is -2"),
        ({"pos_weight": True}, TypeError, "expected one finite number >= 0, or a list of finite numbers >= 0, one per"),
        ({"pos_weight": "missing.txt"}, ValueError, "or a readable file of one number per class; there is none in /"),
        ({"gamma": 2}, ValueError, "unknown option 'gamma'; did you mean 'focal_gamma'?"),
        ({"label_normalization": "l1"}, ValueError, "unknown option 'label_normalization'"),
        ({"empty": "ignore"}, ValueError, "unknown option 'empty'; expected one of axis, "),
        ({"divergence": "kl"}, ValueError, "unknown option 'divergence'"),
        ({"normalization": "valid"}, ValueError, "expected one of .*; did you mean 'VALID'?"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sigmoid_cross_entropy(np.zeros((2, 2)), np.eye(2), **options)


def test_the_softmax_loss_knows_no_option_of_the_sigmoid_loss():
    with pytest.raises(ValueError, match="unknown option 'pos_weight'"):
        softmax_cross_entropy(np.zeros((2, 2)), np.eye(2), pos_weight=2)
