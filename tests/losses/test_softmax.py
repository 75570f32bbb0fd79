import warnings

import numpy as np
import pytest
from support.reference import reference_softmax

from multilabel_softmax_loss import assert_gradient, check_function, sigmoid_cross_entropy, softmax_cross_entropy
from multilabel_softmax_loss.losses.options import SoftmaxOptions
from multilabel_softmax_loss.losses.softmax import SoftmaxLoss


def random_case(shape=(6, 7), axis=1, seed=0, dtype=np.float64, density=0.4):
    """Scores and non-negative real labels with at least one positive per position."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=3, size=shape).astype(dtype)
    labels = (rng.random(shape) * (rng.random(shape) < density)).astype(dtype)
    np.moveaxis(labels, axis, -1)[..., 0] += dtype(0.25)
    return scores, labels


def multi_hot(indices, classes):
    """The dense form of lists of indices (N, K), padded with -1."""
    labels = np.zeros((len(indices), classes))
    for row, chosen in zip(labels, indices):
        row[[int(k) for k in chosen if k >= 0]] = 1
    return labels


# The formula


@pytest.mark.parametrize(
    "labels, expected",
    [
        pytest.param([0, 1, 0], np.log(3), id="one label"),
        pytest.param([1, 1, 0], np.log(3), id="two labels share one unit"),
        pytest.param([0.2, 5, 0], np.log(3), id="real-valued labels too"),
        pytest.param([0, 0, 0], 0.0, id="no label"),
    ],
)
def test_uniform_scores_cost_log_c(labels, expected):
    loss, _ = softmax_cross_entropy(np.zeros((1, 3)), np.array([labels], float))
    assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "scores, labels, label_normalization, probability_form",
    [
        pytest.param([10, 1, -2], [0, 1, 0], "l1", lambda p: -np.log(p[1]), id="optax's first example"),
        pytest.param([1, 4, 0.2], [1, 0, 0], "l1", lambda p: -np.log(p[0]), id="optax's second example"),
        pytest.param([1, 7, 0, 0, 2], [1, 0, 0, 0, 1], "l1", lambda p: -np.log(p[0] * p[4]) / 2, id="l1"),
        pytest.param([1, 7, 0, 0, 2], [1, 0, 0, 0, 1], "none", lambda p: -np.log(p[0] * p[4]), id="none is twice that"),
        pytest.param([1, 7, 0, 0, 2], [3, 0, 0, 0, 1], "count", lambda p: -np.log(p[0] ** 3 * p[4]) / 2, id="count"),
        pytest.param([1, 7, 0, 0, 2], [3, 0, 0, 0, 1], "l1", lambda p: -np.log(p[0] ** 3 * p[4]) / 4, id="l1, real"),
    ],
)
def test_known_losses(scores, labels, label_normalization, probability_form):
    p = np.exp(scores) / np.exp(scores).sum()
    loss, _ = softmax_cross_entropy([scores], [labels], label_normalization=label_normalization)
    assert loss == pytest.approx(probability_form(p), rel=1e-12)


@pytest.mark.parametrize("label_normalization", ["l1", "count", "none"])
def test_real_valued_labels_have_the_gradient_of_their_loss(label_normalization):
    """The published layer reads real labels in the loss and counts them in the gradient; the checker sees it."""
    scores, labels = random_case()

    def loss(x):
        return softmax_cross_entropy(x, labels, label_normalization=label_normalization)[0]

    def gradient(x):
        return softmax_cross_entropy(x, labels, label_normalization=label_normalization)[1]

    def published(x):
        counted = (labels != 0) / (labels != 0).sum(axis=1, keepdims=True)
        return (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) - counted) / len(x)

    assert_gradient(check_function(loss, gradient, scores, tolerance=1e-7))
    assert check_function(loss, published, scores).names == ["wrong-gradient"]


@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("empty", ["ignore", "uniform"])
@pytest.mark.parametrize("label_normalization", ["l1", "count", "none"])
@pytest.mark.parametrize("divergence", ["cross_entropy", "kl"])
def test_every_combination_equals_the_definition(normalization, empty, label_normalization, divergence):
    scores, labels = random_case((3, 4, 2, 2), seed=5)
    labels[1, :, 0, 1] = 0  # without label
    labels[2, 1:3, 1, 1] = -1  # partly unknown
    labels[0, :, 0, 0] = -1  # all unknown
    weight = np.random.default_rng(6).random((3, 2, 2))
    options = dict(
        normalization=normalization,
        empty=empty,
        label_normalization=label_normalization,
        divergence=divergence,
        ignore_label=-1,
        label_smoothing=0.15,
        class_weight=[1, 0.5, 2, 0],
    )
    loss, gradient = softmax_cross_entropy(scores, labels, weight, **options)
    expected_loss, expected_gradient = reference_softmax(scores, labels, weight, **options)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"divergence": "kl"}], ids=str)
@pytest.mark.parametrize("class_weight", [None, [0.5, 1, 2, 3, 0, 1]], ids=["alike", "weighted"])
@pytest.mark.parametrize("empty", ["ignore", "uniform"])
def test_indices_equal_dense(options, class_weight, empty):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(5, 6))
    indices = np.array([[0, 3, -1], [5, 5, 2], [1, -1, -1], [-1, -1, -1], [-1, 4, 4]])
    weight = rng.random(5)
    options = dict(options, class_weight=class_weight, empty=empty)
    loss, gradient = softmax_cross_entropy(scores, indices, weight, label_format="indices", **options)
    dense_loss, dense_gradient = softmax_cross_entropy(scores, multi_hot(indices, 6), weight, **options)
    assert loss == pytest.approx(dense_loss, rel=1e-13)
    np.testing.assert_allclose(gradient, dense_gradient, rtol=0, atol=1e-16)


def test_spatial_indices_equal_dense():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(2, 5, 3, 4))
    indices = rng.integers(-1, 5, size=(2, 3, 3, 4))
    dense = np.moveaxis(multi_hot(np.moveaxis(indices, 1, -1).reshape(-1, 3), 5).reshape(2, 3, 4, 5), -1, 1)
    options = dict(label_smoothing=0.1, class_weight=[1, 2, 3, 4, 5])
    loss, gradient = softmax_cross_entropy(scores, indices, label_format="indices", **options)
    expected_loss, expected_gradient = softmax_cross_entropy(scores, dense, **options)
    assert loss == pytest.approx(expected_loss, rel=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-16)


def test_padding_may_be_another_number():
    scores = np.random.default_rng(0).normal(size=(2, 4))
    loss, _ = softmax_cross_entropy(scores, [[1, 255], [0, 2]], label_format="indices", ignore_label=255)
    assert loss == softmax_cross_entropy(scores, [[1, -1], [0, 2]], label_format="indices")[0]


# What must be the same


def test_ignoring_a_class_equals_deleting_its_column():
    scores, labels = random_case()
    labels[:, 3] = -1
    options = dict(label_smoothing=0.1, class_weight=np.arange(1.0, 8.0), empty="uniform")
    loss, gradient = softmax_cross_entropy(scores, labels, ignore_label=-1, **options)
    options["class_weight"] = np.delete(options["class_weight"], 3)
    deleted = softmax_cross_entropy(np.delete(scores, 3, 1), np.delete(labels, 3, 1), **options)
    assert loss == pytest.approx(deleted[0], rel=1e-13)
    np.testing.assert_allclose(np.delete(gradient, 3, 1), deleted[1], rtol=0, atol=1e-16)
    assert not gradient[:, 3].any()


def test_ignoring_weighting_zero_and_deleting_a_position_are_the_same_under_valid():
    scores, labels = random_case()
    weight = np.array([1, 0.5, 0, 2, 1, 1])
    unknown = labels.copy()
    unknown[2] = -1
    unlabelled = labels.copy()
    unlabelled[2] = 0
    others = np.delete(np.arange(6), 2)
    expected_loss, expected = softmax_cross_entropy(scores[others], labels[others], weight[others])
    for case, weights in ((labels, weight), (unknown, weight + (weight == 0)), (unlabelled, weight + (weight == 0))):
        loss, gradient = softmax_cross_entropy(scores, case, weights, ignore_label=-1)
        assert loss == pytest.approx(expected_loss, rel=1e-14)
        np.testing.assert_allclose(gradient[others], expected, rtol=1e-14)
        assert not gradient[2].any()


def test_weight_two_equals_the_position_twice():
    scores, labels = random_case()
    loss, gradient = softmax_cross_entropy(scores, labels, [1, 1, 2, 1, 1, 1])
    twice = [0, 1, 2, 2, 3, 4, 5]
    expected_loss, expected = softmax_cross_entropy(scores[twice], labels[twice])
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    np.testing.assert_allclose(gradient[2], 2 * expected[2], rtol=1e-14)


def test_class_weights_equal_scaled_labels_when_labels_are_taken_as_given():
    scores, labels = random_case()
    weights = np.random.default_rng(1).random(7)
    scaled = softmax_cross_entropy(scores, labels * weights, label_normalization="none")
    weighted = softmax_cross_entropy(scores, labels, label_normalization="none", class_weight=weights)
    assert weighted[0] == pytest.approx(scaled[0], rel=1e-14)
    np.testing.assert_allclose(weighted[1], scaled[1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("axis", [1, 2, 3, -1, 0])
def test_spatial_positions_equal_a_batch(axis):
    scores, labels = random_case((3, 4, 5, 2), axis)
    loss, gradient = softmax_cross_entropy(scores, labels, axis=axis)
    flat = [np.moveaxis(array, axis, -1).reshape(-1, scores.shape[axis]) for array in (scores, labels, gradient)]
    flat_loss, flat_gradient = softmax_cross_entropy(*flat[:2])
    assert loss == pytest.approx(flat_loss, rel=1e-14)
    np.testing.assert_allclose(flat[2], flat_gradient, rtol=0, atol=1e-16)


def test_blocks_do_not_show():
    """An array of many blocks equals the sum of its samples."""
    scores, labels = random_case((3, 4, 150, 101), seed=3)
    loss, gradient = softmax_cross_entropy(scores, labels, normalization="NONE")
    parts = [softmax_cross_entropy(scores[k : k + 1], labels[k : k + 1], normalization="NONE") for k in range(3)]
    assert loss == pytest.approx(sum(part for part, _ in parts), rel=1e-13)
    np.testing.assert_allclose(gradient, np.concatenate([part for _, part in parts]), rtol=0, atol=1e-15)


def test_kl_has_the_gradient_of_the_cross_entropy_and_is_zero_at_the_optimum():
    scores, labels = random_case()
    loss, gradient = softmax_cross_entropy(scores, labels, divergence="kl")
    entropy_free, same = softmax_cross_entropy(scores, labels)
    assert loss < entropy_free
    np.testing.assert_array_equal(gradient, same)
    with np.errstate(divide="ignore"):
        optimum = np.log(labels / labels.sum(axis=1, keepdims=True)) + 3  # -inf where the target is 0
    loss, gradient = softmax_cross_entropy(optimum, labels, divergence="kl")
    assert abs(loss) < 1e-15
    assert np.abs(gradient).max() < 1e-16


@pytest.mark.parametrize("function", [softmax_cross_entropy, sigmoid_cross_entropy])
@pytest.mark.parametrize(
    "shape, labels, axis",
    [((4, 7), (4,), 1), ((4, 7, 1, 1), (4,), 1), ((2, 5, 3, 4), (2, 3, 4), 1), ((2, 3, 5), (2, 3), -1)],
)
def test_one_index_per_position_needs_no_axis_of_its_own(function, shape, labels, axis):
    """As Caffe's Data, ImageData and MemoryData make them."""
    rng = np.random.default_rng(0)
    scores, indices = rng.normal(size=shape), rng.integers(0, 5, size=labels)
    loss, gradient = function(scores, indices, axis=axis, label_format="indices")
    with_axis = indices.reshape([1 if k == axis % len(shape) else size for k, size in enumerate(shape)])
    expected_loss, expected = function(scores, with_axis, axis=axis, label_format="indices")
    assert loss == expected_loss > 0
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("shape", [(4, 7, 1, 1), (4, 7, 1), (4, 7)])
def test_labels_of_a_data_layer_have_trailing_ones(shape):
    scores, labels = random_case((4, 7))
    assert (
        softmax_cross_entropy(scores, labels.reshape(shape))[0] == softmax_cross_entropy(scores, labels)[0]
    )  # Caffe's Data layer delivers N x C x 1 x 1


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 2, 2), (3,), (3, 1), (3, 1, 1, 1)])
def test_sample_weights_are_per_position_or_per_sample(shape):
    scores, labels = random_case((3, 4, 2, 2))
    weight = np.random.default_rng(2).random(shape)
    full = np.broadcast_to(weight.reshape((3, 2, 2) if weight.size == 12 else (3, 1, 1)), (3, 2, 2))
    expected = reference_softmax(scores, labels, full)
    loss, gradient = softmax_cross_entropy(scores, labels, weight)
    assert loss == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-16)


# Edges


def test_a_gap_of_ten_thousand_costs_ten_thousand_and_keeps_its_gradient():
    loss, gradient = softmax_cross_entropy(np.array([[1e4, 0.0]], np.float32), [[0, 1]])
    assert loss == 1e4
    np.testing.assert_array_equal(gradient, [[1, -1]])


@pytest.mark.parametrize("gap", [20.0, 60.0, 300.0])
def test_a_confident_right_score_keeps_its_digits(gap):
    loss, gradient = softmax_cross_entropy([[gap, 0.0, 0.0]], [[1, 0, 0]])
    assert loss == pytest.approx(2 * np.exp(-gap), rel=1e-8)
    np.testing.assert_allclose(gradient, [[-2 * np.exp(-gap), np.exp(-gap), np.exp(-gap)]], rtol=1e-8)


@pytest.mark.parametrize("label_format, labels", [("dense", [[1.0, 1, 0]]), ("indices", [[0, 1]])])
def test_minus_infinity_masks_a_class_without_target(label_format, labels):
    loss, gradient = softmax_cross_entropy([[1.0, 2.0, -np.inf]], labels, label_format=label_format)
    assert (loss, *gradient[0, :2]) == pytest.approx(
        [v for part in softmax_cross_entropy([[1.0, 2.0]], [[1, 1]]) for v in np.ravel(part)], rel=1e-14
    )
    assert gradient[0, 2] == 0


@pytest.mark.parametrize("options", [{}, {"normalization": "FULL"}, {"ignore_label": -1}, {"empty": "error"}], ids=str)
def test_an_empty_batch_costs_nothing(options):
    loss, gradient = softmax_cross_entropy(np.zeros((0, 5), np.float32), np.zeros((0, 5)), **options)
    assert loss == 0
    assert gradient.shape == (0, 5)
    loss, _ = softmax_cross_entropy(np.zeros((2, 5, 0, 3)), np.zeros((2, 5, 0, 3)), **options)
    assert loss == 0


def test_one_class_costs_nothing():
    loss, gradient = softmax_cross_entropy([[3.0], [-2.0]], [[1], [0.5]])
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
def test_nothing_labelled_costs_nothing(normalization):
    loss, gradient = softmax_cross_entropy(np.ones((4, 3)), np.zeros((4, 3)), normalization=normalization)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradient_has_the_type_of_the_scores(dtype):
    loss, gradient = softmax_cross_entropy(np.ones((2, 3), dtype), np.eye(2, 3))
    assert gradient.dtype == dtype
    assert type(loss) is float


def test_labels_of_any_real_type_are_read_alike():
    scores, _ = random_case((2, 3))
    expected = softmax_cross_entropy(scores, np.eye(2, 3))[0]
    for dtype in (bool, np.uint8, np.int64, np.float16, np.float32):
        assert softmax_cross_entropy(scores, np.eye(2, 3).astype(dtype))[0] == expected


def test_a_mask_beside_a_uniform_target_of_another_position_is_legal():
    scores = np.array([[0, -np.inf, 0], [0, 0, 0]], np.float32)
    loss, _ = softmax_cross_entropy(scores, [[0], [-1]], label_format="indices", empty="uniform")
    assert loss == pytest.approx((np.log(2) + np.log(3)) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_heavy_position_without_a_label_leaves_the_others_finite(dtype):
    scores, labels = np.array([[0, 1, 0], [0, 1, 0]], dtype), np.array([[0, 0, 0], [1, 0, 0]], dtype)
    _, gradient = softmax_cross_entropy(scores, labels, np.array([1e30, 1e-12]))
    expected = softmax_cross_entropy(scores[1:], labels[1:])[1]
    np.testing.assert_allclose(gradient, np.append(np.zeros((1, 3)), expected, axis=0), rtol=2e-3)


def test_a_gradient_beyond_its_type_is_an_error():
    scores, labels = np.array([[10, 0, 0]], np.float32), np.array([[3e38, 3e38, 3e38]], np.float32)
    options = {"label_normalization": "none", "class_weight": [1, 1e3, 1]}
    with pytest.raises(ValueError, match="the loss is .*, and its gradient is more than float32 holds"):
        softmax_cross_entropy(scores, labels, **options)
    assert np.isfinite(softmax_cross_entropy(scores.astype(float), labels, **options)[1]).all()
    assert not np.isfinite(softmax_cross_entropy(scores, labels, nonfinite="ignore", **options)[1]).all()


@pytest.mark.parametrize("function", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_a_gradient_of_float16_is_divided_before_it_is_stored(function):
    """Before the division, its entries are beyond the 65504 that float16 holds."""
    scores, labels = np.zeros((4, 2), np.float16), np.tile(np.eye(2), (2, 1))
    options = {"class_weight": [2e5, 2e5], "normalization": "VALID"}
    _, gradient = function(scores, labels, **options)
    assert gradient.dtype == np.float16
    np.testing.assert_allclose(gradient, function(scores.astype(float), labels, **options)[1], rtol=1e-3)
    with pytest.raises(ValueError, match="its gradient is more than float16 holds"):
        function(scores, labels, class_weight=[1e7] * 2, normalization="NONE")


def test_strided_input_is_read_as_it_stands():
    scores, labels = random_case((6, 7))
    expected = softmax_cross_entropy(scores, labels)
    for view in (np.asfortranarray(scores), np.repeat(scores, 2, axis=0)[::2], scores[::-1][::-1]):
        loss, gradient = softmax_cross_entropy(view, labels)
        assert loss == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1.2e-7 * np.abs(expected[1]).max())


def test_input_is_left_as_it_came():
    scores, labels = random_case()
    labels[0, 1] = -1
    weight = np.ones(6)
    kept = scores.copy(), labels.copy(), weight.copy()
    softmax_cross_entropy(scores, labels, weight, ignore_label=-1, class_weight=np.ones(7), label_smoothing=0.1)
    for array, before in zip((scores, labels, weight), kept):
        np.testing.assert_array_equal(array, before)


def test_ignore_label_is_compared_as_the_float_it_is():
    scores = np.zeros((1, 3), np.float32)
    labels = np.array([[0.1, 1, 0]], np.float32)
    loss, _ = softmax_cross_entropy(scores, labels, ignore_label=0.1)
    assert loss == pytest.approx(np.log(2))
    loss, _ = softmax_cross_entropy(scores, np.array([[0.9, 1, 0]], np.float32), ignore_label=0.1)
    assert loss == pytest.approx(np.log(3))  # not cut to int


def test_warnings_of_numpy_stay_inside():
    scores, labels = random_case((3, 4))
    labels[0] = 0
    scores[1, 1:] = -np.inf
    labels[1, 1:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"label_normalization": "count"}, {"divergence": "kl"}):
            softmax_cross_entropy(scores * 1e3, labels, **options)


def test_an_unknown_class_gets_no_gradient_where_another_is_almost_certain():
    _, gradient = softmax_cross_entropy([[5.0, 50.0, 0.0]], [[9, 1, 0]], ignore_label=9)
    np.testing.assert_allclose(gradient, [[0, -np.exp(-50.0), np.exp(-50.0)]], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weight", [1e-320, 1e-42, 1e6, 1e300])
def test_the_size_of_the_sample_weights_divides_out(dtype, weight):
    loss, gradient = softmax_cross_entropy(np.zeros((1, 3), dtype), [[1, 1, 0]], [weight])
    assert loss == pytest.approx(np.log(3))
    np.testing.assert_allclose(gradient, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-3)


def test_read_only_arrays_are_read():
    scores, labels = np.ones((2, 3), np.float32), np.eye(2, 3, dtype=np.float32)
    for array in (scores, labels):
        array.flags.writeable = False
    assert softmax_cross_entropy(scores, labels)[0] == pytest.approx(np.log(3))


@pytest.mark.parametrize("ignore_label", [1e300, 1e-300])
def test_an_ignore_label_that_the_labels_cannot_hold_is_refused(ignore_label):
    with pytest.raises(ValueError, match="'ignore_label' = 1e.*; expected a number that labels of float32 can hold"):
        softmax_cross_entropy(np.zeros((1, 3)), np.eye(1, 3, dtype=np.float32), ignore_label=ignore_label)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int64, np.float32])
@pytest.mark.parametrize("padding", [0, 99])
@pytest.mark.parametrize("function", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_lists_of_indices_may_be_of_any_type(function, padding, dtype):
    classes = 100
    lists = np.array([[1, 2, 90], [3, padding, padding], [padding, 1, padding]])
    scores = np.random.default_rng(0).normal(size=(3, classes))
    options = {"label_format": "indices", "ignore_label": padding}
    loss, gradient = function(scores, lists.astype(dtype), **options)
    labels = np.zeros((3, classes))
    for row, chosen in zip(labels, lists):
        row[[k for k in chosen if k != padding]] = 1
    expected_loss, expected = function(scores, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(gradient, expected, atol=1e-15)


@pytest.mark.parametrize("function", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_lists_of_indices_of_maps_larger_than_a_block(function, backend):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 40, 30, 70))
    lists = rng.integers(-1, 40, size=(2, 3, 30, 70))
    labels = (lists[:, :, None] == np.arange(40).reshape(1, 1, 40, 1, 1)).any(axis=1)
    loss, gradient = function(scores, lists, label_format="indices")
    expected_loss, expected = function(scores, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(gradient, expected, atol=1e-15)


def test_a_listed_label_without_weight_may_be_masked(backend):
    scores = np.array([[0.5, -np.inf, 1.5]])
    loss, gradient = softmax_cross_entropy(scores, [[0, 1]], label_format="indices", class_weight=[1, 0, 1])
    expected_loss, expected = softmax_cross_entropy(scores, [[1, 1, 0]], class_weight=[1, 0, 1])
    assert loss == pytest.approx(expected_loss)
    assert gradient == pytest.approx(expected)


# Few labels among many classes


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_a_bad_label_among_few_is_named(bad):
    labels = np.eye(5, 200)
    labels[3, 150] = bad
    with pytest.raises(ValueError, match=f"labels has {bad:g} at sample 3, class 150; expected finite labels >= 0"):
        softmax_cross_entropy(np.zeros((5, 200)), labels)


def test_few_labels_so_large_that_their_sum_overflows():
    labels = np.eye(5, 200)
    labels[3, :2] = 1.7e308
    with pytest.raises(ValueError, match="so large that their sum overflows"):
        softmax_cross_entropy(np.zeros((5, 200)), labels)


# Memory


@pytest.mark.parametrize("dtype", [np.int64, np.float32])  # float32 lists go the way of the kernels
def test_indices_allocate_nothing_as_large_as_the_scores_but_the_gradient(peak_bytes, dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(256, 100000)).astype(np.float32)
    indices = rng.integers(0, 100000, size=(256, 16)).astype(dtype)
    peak = peak_bytes(lambda: softmax_cross_entropy(scores, indices, label_format="indices", label_smoothing=0.1))
    assert peak < 1.1 * scores.nbytes  # the gradient itself, and blocks


def test_the_loss_alone_allocates_blocks_only(backend, peak_bytes):
    scores, labels = random_case((256, 4000), dtype=np.float32)
    loss = SoftmaxLoss(SoftmaxOptions(), scores, labels, None)
    peak = peak_bytes(lambda: loss(scores, labels))
    assert peak < 0.6 * scores.nbytes
    assert peak < 3e6


# Bad input


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        (np.zeros((8, 21)), np.zeros((8, 20)), r"labels has shape \(8, 20\); expected \(8, 21\), the shape of scores"),
        (np.zeros((8, 21)), np.zeros((21, 8)), r"labels has shape \(21, 8\); expected \(8, 21\)"),
        (np.zeros((8, 21)), np.zeros(8), r'of scores, or, for class indices, \(8, 1\) and label_format "indices"$'),
        (
            np.zeros((8, 21)),
            np.zeros((8, 1)),
            r'of scores, or, for class indices, \(8, 1\) and label_format "indices"$',
        ),
        (np.zeros((8, 3, 2, 2)), np.zeros((8, 2, 2)), r'for class indices, \(8, 1, 2, 2\) and label_format "indices"$'),
        (np.zeros((8, 21)), np.zeros((8, 2)), r"the shape of scores$"),
        (np.zeros((8, 3, 2, 2)), np.zeros(8), r"the shape of scores$"),
        (np.zeros(8), np.zeros(8), r"scores has shape \(8,\); expected a class axis 1"),
        (np.zeros((8, 0)), np.zeros((8, 0)), r"at least one class"),
        ([[0, 1]], [[0, -1]], r"labels has -1 at sample 0, class 1; expected finite labels >= 0"),
        ([[0, 1]], [[0, np.nan]], r"labels has nan at sample 0, class 1"),
        ([[0, 1]], [[np.inf, 0]], r"labels has inf at sample 0, class 0"),
        ([[0, np.nan]], [[1, 0]], r"scores has nan at sample 0, class 1; expected finite scores .* loss there is nan"),
        ([[0, np.inf]], [[1, 0]], r"scores has inf at sample 0, class 1"),
        ([[0, -np.inf]], [[1, 1]], r"scores has -inf at sample 0, class 1.* The loss there is inf"),
        ([[-np.inf, -np.inf]], [[0, 1]], r"scores has -inf at sample 0, class 1"),
    ],
)
def test_bad_arrays_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        softmax_cross_entropy(scores, labels)


def test_a_loss_that_overflows_is_named():
    scores, labels = [[0, 0], [0, 1e3]], [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="^the loss at sample 1 overflows; scores or the weights are too large$"):
        softmax_cross_entropy(scores, labels, class_weight=[1e306, 1e306])
    with pytest.raises(
        ValueError, match="^the losses are finite but not their sum; scores or the weights are too large$"
    ):
        softmax_cross_entropy(scores, labels, [1, 1e306], normalization="NONE")


def test_the_culprit_is_named_by_its_place_in_a_spatial_batch():
    scores, labels = random_case((40, 7, 4, 5))
    scores[37, 5, 2, 3] = np.nan
    with pytest.raises(ValueError, match="scores has nan at sample 37, class 5, row 2, column 3; "):
        softmax_cross_entropy(scores, labels)
    scores[37, 5, 2, 3] = 0
    labels[38, 6, 3, 4] = -2
    with pytest.raises(ValueError, match="labels has -2 at sample 38, class 6, row 3, column 4; "):
        softmax_cross_entropy(scores, labels)
    weight = np.ones((40, 4, 5))
    weight[3, 1, 2] = -0.5
    with pytest.raises(ValueError, match="sample_weight has -0.5 at sample 3, row 1, column 2; "):
        softmax_cross_entropy(scores, np.abs(labels), weight)
    empty = np.abs(labels)
    empty[2, :, 1, 0] = 0
    with pytest.raises(ValueError, match="labels has no positive label at sample 2, row 1, column 0"):
        softmax_cross_entropy(scores, empty, empty="error")


def test_the_culprit_is_named_in_a_large_batch_and_with_classes_last():
    scores, labels = random_case((900, 2, 50), axis=2)
    scores[811, 1, 49] = np.inf
    with pytest.raises(ValueError, match="scores has inf at sample 811, axis 1 index 1, class 49"):
        softmax_cross_entropy(scores, labels, axis=2)


@pytest.mark.parametrize("bad, shown", [(4, "4"), (-2, "-2"), (1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_an_impossible_index_is_named(bad, shown):
    labels = np.array([[0.0, 1.0], [2.0, -1.0], [3.0, bad]])
    message = f"labels has {shown} at sample 2, entry 1 of the list; expected whole numbers from 0 to 3, or -1"
    with pytest.raises(ValueError, match=message):
        softmax_cross_entropy(np.zeros((3, 4)), labels, label_format="indices")


@pytest.mark.parametrize("weight", [[1, -1], [1, np.nan], [1, np.inf]])
def test_an_impossible_weight_is_named(weight):
    with pytest.raises(ValueError, match=f"sample_weight has {weight[1]:g} at sample 1; expected finite weights >= 0"):
        softmax_cross_entropy(np.zeros((2, 3)), np.eye(2, 3), weight)


def test_shapes_of_weights_and_lists_are_checked():
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\); expected \(2,\), one per position$"):
        softmax_cross_entropy(np.zeros((2, 3)), np.eye(2, 3), [1, 1, 1])
    with pytest.raises(ValueError, match=r"expected \(2, 4, 4\), one per position, or \(2,\), one per sample"):
        softmax_cross_entropy(np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"labels has shape \(3, 2\); expected \(2, K\), K class indices in place"):
        softmax_cross_entropy(np.zeros((2, 3)), np.zeros((3, 2)), label_format="indices")
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); expected \(2, K\), K class indices in place"):
        softmax_cross_entropy(np.zeros((2, 3)), np.zeros(3), label_format="indices")
    with pytest.raises(ValueError, match="'class_weight' has 2 values; expected 3, one per class of scores"):
        softmax_cross_entropy(np.zeros((2, 3)), np.eye(2, 3), class_weight=[1, 2])


def test_arrays_of_other_things_are_type_errors():
    with pytest.raises(TypeError, match="scores have dtype .*; expected real numbers"):
        softmax_cross_entropy([["a"]], [[1]])
    with pytest.raises(TypeError, match="labels have dtype complex128"):
        softmax_cross_entropy([[1.0]], [[1j]])


@pytest.mark.parametrize("name", ["scores", "labels", "sample_weight"])
@pytest.mark.parametrize("mask", [False, [[True, False]] * 2], ids=["nothing masked", "masked"])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_a_mask_is_not_lost_silently(loss, name, mask):
    arrays = {"scores": np.zeros((2, 2)), "labels": np.eye(2), "sample_weight": np.ones((2, 1))}
    arrays[name] = np.ma.array(arrays[name], mask=np.broadcast_to(mask, (2, 2))[:, : arrays[name].shape[1]])
    with pytest.raises(TypeError, match="are a masked array, .* ignore_label, .* sample_weight of 0$"):
        loss(**arrays)


def test_nonfinite_scores_pass_where_nothing_counts_them():
    scores, labels = random_case((4, 3))
    expected = softmax_cross_entropy(scores[1:], labels[1:])
    scores[0] = [np.nan, np.inf, -np.inf]
    for label, weight in ((0.0, None), (1.0, [0, 1, 1, 1]), (-1.0, None)):
        labels[0] = label
        loss, gradient = softmax_cross_entropy(scores, labels, weight, ignore_label=-1)
        assert loss == pytest.approx(expected[0], rel=1e-14)
        assert not gradient[0].any()
        np.testing.assert_allclose(gradient[1:], expected[1], rtol=1e-14)


def test_nonfinite_ignore_lets_it_pass():
    loss, gradient = softmax_cross_entropy([[0, np.nan], [0, 1]], [[1, 0], [1, 0]], nonfinite="ignore")
    assert np.isnan(loss)
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1]).all()
