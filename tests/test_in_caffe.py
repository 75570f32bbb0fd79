"""The layers in real Caffe: equal to native layers where they exist, and well-behaved where Caffe is not."""

import re
import warnings

import caffe
import numpy as np
import pytest
from support.caffe_nets import (
    fill,
    input_layer,
    loss_and_gradient,
    loss_layer,
    loss_net,
    make_net,
    native_output,
    random_scores,
)

from multilabel_softmax_loss import assert_gradient, check_layer, sigmoid_cross_entropy, softmax_cross_entropy
from multilabel_softmax_loss.param_str import parse_literal

NORMALIZATIONS = ["VALID", "FULL", "BATCH_SIZE", "NONE"]
SOFTMAX, SIGMOID = "MultilabelSoftmaxLossLayer", "MultilabelSigmoidLossLayer"
FUNCTIONS = {SOFTMAX: softmax_cross_entropy, SIGMOID: sigmoid_cross_entropy}
either_layer = pytest.mark.parametrize("layer", FUNCTIONS)


def one_hot(classes, count, axis=1):
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, axis)


def random_labels(shape, seed=0):
    """Real-valued labels up to 1, at least one positive per position of axis 1."""
    rng = np.random.default_rng(seed)
    labels = rng.random(shape) * (rng.random(shape) < 0.3)
    labels[:, 0] = np.maximum(labels[:, 0], 0.1)
    return labels.astype(np.float32)


def assert_same(ours, native, tolerance=1e-6):
    assert ours[0] == pytest.approx(native[0], rel=tolerance)
    np.testing.assert_allclose(ours[1], native[1], rtol=0, atol=tolerance * np.abs(native[1]).max())


# Equal to native layers


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape, axis", [((6, 5), 1), ((2, 5, 3, 4), 1), ((2, 3, 5), 2), ((2, 3, 5), -1)], ids=str)
@pytest.mark.parametrize("ignoring", [False, True], ids=["all labelled", "some ignored"])
def test_one_hot_labels_equal_softmax_with_loss(normalization, shape, axis, ignoring):
    scores = random_scores(shape)
    positions = shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :]
    classes = np.random.default_rng(1).integers(0, 5, size=positions)
    labels = one_hot(classes, 5, axis)
    if ignoring:
        first = (0,) * len(positions)
        classes[first] = 255
        np.moveaxis(labels, axis, -1)[first] = 255
    native = native_output(
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "labels" top: "loss" loss_weight: 3\n'
        f"softmax_param {{ axis: {axis} }} loss_param {{ normalization: {normalization} ignore_label: 255 }} }}",
        {"scores": scores, "labels": classes},
    )
    param_str = f'{{"normalization": "{normalization}", "axis": {axis}, "ignore_label": 255}}'
    net = loss_net({"scores": scores, "labels": labels}, param_str=param_str, loss_weight="loss_weight: 3")
    assert_same(loss_and_gradient(net), native)


@pytest.mark.parametrize("label_normalization", ["l1", "count", "none"])
def test_fractional_targets_equal_infogain_loss_with_rows_of_targets(label_normalization):
    """InfogainLoss reads row n of its matrix for label n, so the rows can be the targets of up to C samples."""
    scores, labels = random_scores((6, 8)), random_labels((6, 8))
    parts = {
        "l1": labels.sum(axis=1, keepdims=True),
        "count": np.count_nonzero(labels, axis=1)[:, None],
        "none": 1,
    }[label_normalization]
    matrix = np.zeros((1, 1, 8, 8), np.float32)
    matrix[0, 0, :6] = labels / parts
    native = native_output(
        'layer { name: "loss" type: "InfogainLoss" bottom: "scores" bottom: "rows" bottom: "matrix" top: "loss" '
        "loss_weight: 3 propagate_down: true propagate_down: false propagate_down: false }",
        {"scores": scores, "rows": np.arange(6, dtype=np.float32), "matrix": matrix},
    )
    param_str = f'{{"label_normalization": "{label_normalization}"}}'
    net = loss_net({"scores": scores, "labels": labels}, param_str=param_str, loss_weight="loss_weight: 3")
    assert_same(loss_and_gradient(net), native)


def test_multi_hot_labels_equal_a_tiled_softmax_with_loss():
    """K copies of the scores, each with one label; K a common multiple of the label counts."""
    scores = random_scores((5, 6))
    chosen = [[1], [0, 5], [2, 3, 4], [5], [1, 2]]
    copies = 6
    repeated = np.array([np.repeat(classes, copies // len(classes)) for classes in chosen], np.float32)
    labels = np.array([one_hot(classes, 6).sum(axis=0) for classes in chosen])
    native = native_output(
        f"""
        layer {{ name: "row" type: "Reshape" bottom: "scores" top: "row"
            reshape_param {{ shape {{ dim: 0 dim: 1 dim: -1 }} }} }}
        layer {{ name: "tile" type: "Tile" bottom: "row" top: "tiled" tile_param {{ axis: 1 tiles: {copies} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "tiled" bottom: "repeated" top: "loss" loss_weight: 3
            softmax_param {{ axis: 2 }} loss_param {{ normalization: FULL }} }}""",
        {"scores": scores, "repeated": repeated},
    )
    net = loss_net({"scores": scores, "labels": labels}, loss_weight="loss_weight: 3")
    assert_same(loss_and_gradient(net), native)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4), (3, 1)], ids=str)
@pytest.mark.parametrize("ignore_label", [None, 255, 0], ids=["all labelled", "some ignored", "zeros ignored"])
def test_the_sigmoid_loss_equals_sigmoid_cross_entropy_loss(normalization, shape, ignore_label):
    """The native layer cuts labels to whole numbers before it compares them with ignore_label, so here they are."""
    scores, labels = random_scores(shape, scale=5), random_labels(shape)
    ignoring = ""
    if ignore_label is not None:
        labels = labels.round()
        labels.flat[::4] = ignore_label
        ignoring = f"ignore_label: {ignore_label}"
    native = native_output(
        'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "labels" top: "loss" '
        f"loss_weight: 3 loss_param {{ normalization: {normalization} {ignoring} }} }}",
        {"scores": scores, "labels": labels},
    )
    net = loss_net(
        {"scores": scores, "labels": labels},
        layer=SIGMOID,
        param_str=str({"normalization": normalization, "ignore_label": ignore_label}),
        loss_weight="loss_weight: 3",
    )
    assert_same(loss_and_gradient(net), native)


def test_the_sigmoid_loss_is_normalised_as_sigmoid_cross_entropy_loss_by_default():
    arrays = {"scores": random_scores((6, 5)), "labels": random_labels((6, 5))}
    native = native_output(
        'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "labels" top: "loss" }', arrays
    )
    assert_same(loss_and_gradient(loss_net(arrays, layer=SIGMOID)), native)


@pytest.mark.parametrize(
    "layer, param_str",
    [
        (SOFTMAX, '{"label_smoothing": 0.1, "empty": "uniform"}'),
        (SOFTMAX, "{'ignore_label': -1, 'class_weight': [1, 2, 3, 4, 5]}"),
        (SOFTMAX, '{"divergence": "kl", "label_normalization": "count", "normalization": "FULL"}'),
        (SIGMOID, '{"label_smoothing": 0.1, "focal_gamma": 0.5, "focal_alpha": 0.25}'),
        (SIGMOID, '{"focal_gamma": {"positive": 0, "negative": 4}, "negative_margin": 0.05}'),
        (SIGMOID, "{'ignore_label': -1, 'class_weight': [1, 2, 3, 4, 5], 'pos_weight': 3}"),
        (SIGMOID, '{"pos_weight": [1, 2, 3, 4, 5], "normalization": "VALID", "focal_gamma": 2}'),
    ],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_the_layer_is_the_function(layer, param_str, weighted):
    scores, labels = random_scores((4, 5, 2, 3)), random_labels((4, 5, 2, 3))
    labels[1, :, 0, 0] = 0
    labels[2, 3] = -1 if "ignore" in param_str else 0
    arrays = {"scores": scores, "labels": labels}
    weight = np.array([1, 0.5, 0, 2], np.float32) if weighted else None
    if weighted:
        arrays["weight"] = weight
    net = loss_net(arrays, layer=layer, param_str=param_str, loss_weight="loss_weight: -2")
    loss, gradient = FUNCTIONS[layer](scores, labels, weight, **parse_literal(param_str))
    assert_same(loss_and_gradient(net), (loss, -2 * gradient), tolerance=3e-7)


# A good citizen


@either_layer
def test_steps_of_a_solver_move_the_weights_and_lower_the_loss(tmp_path, layer):
    arrays = {"data": random_scores((16, 10)), "labels": random_labels((16, 5))}
    (tmp_path / "net.prototxt").write_text(
        "".join(input_layer(name, array.shape) for name, array in arrays.items())
        + 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "scores" '
        'inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }\n'
        + loss_layer(["scores", "labels"], layer=layer)
    )
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.5 lr_policy: "fixed" momentum: 0.9 random_seed: 1 '
        "snapshot_after_train: false"
    )
    solver = caffe.get_solver(str(tmp_path / "solver.prototxt"))
    fill(solver.net, arrays)
    solver.net.forward()
    before = float(solver.net.blobs["loss"].data), solver.net.params["ip"][0].data.copy()
    solver.step(10)
    solver.net.forward()
    assert np.abs(solver.net.params["ip"][0].data - before[1]).max() > 0.01
    assert float(solver.net.blobs["loss"].data) < 0.9 * before[0]


@either_layer
def test_force_backward_gets_zeros_for_labels_and_weights(layer):
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5)), "weight": np.ones(4, np.float32)}
    net = loss_net(arrays, layer=layer)
    for name in ("labels", "weight"):
        net.blobs[name].diff[...] = np.nan
    net.forward()
    net.backward()
    assert not net.blobs["labels"].diff.any()
    assert not net.blobs["weight"].diff.any()
    assert net.blobs["scores"].diff.any()


@either_layer
def test_backward_is_right_each_time(layer):
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    net = loss_net(arrays, layer=layer, loss_weight="loss_weight: 3")
    _, first = loss_and_gradient(net)
    net.backward()
    np.testing.assert_array_equal(net.blobs["scores"].diff, first)

    net.blobs["scores"].data[...] = random_scores((4, 5), seed=9)
    net.forward()  # another forward, then the first data again
    fill(net, arrays)
    _, again = loss_and_gradient(net)
    np.testing.assert_array_equal(again, first)


@either_layer
def test_the_gradient_is_right_whatever_happens_to_it_between_forward_and_backward(layer):
    """Forward in TRAIN leaves it in the scores' diff; a script may clear or poison that, or change loss_weight."""
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    net = loss_net(arrays, layer=layer, loss_weight="loss_weight: 3")
    _, expected = loss_and_gradient(net)
    diff = net.blobs["scores"].diff

    def clear():
        diff[...] = 0

    def poison():
        diff[...] = np.nan

    def double():
        net.blobs["loss"].diff[...] = 6

    for change, factor in ((clear, 1), (poison, 1), (double, 2)):
        net.forward()
        np.testing.assert_array_equal(diff, expected)
        change()
        net.backward()
        np.testing.assert_allclose(diff, factor * expected, rtol=2e-7)
        net.blobs["loss"].diff[...] = 3


@pytest.mark.parametrize(
    "counts", [(4, 1, 3, 0, 4), (1, 4, 4)], ids=["fewer and more positions count", "the first batch is the smallest"]
)
@pytest.mark.parametrize("weight", [1, 1e-30, 1e30])
def test_a_divisor_that_changes_from_batch_to_batch_is_the_one_of_its_batch(counts, weight):
    """Under VALID the gradient is written before the divisor is known."""
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5)), "weight": np.ones(4, np.float32)}
    net = loss_net(arrays)
    for k, count in enumerate(counts):
        labels = arrays["labels"].copy()
        labels[count:] = 0
        net.blobs["labels"].data[...] = labels
        net.blobs["weight"].data[...] = weight if k % 2 else 1
        loss, gradient = softmax_cross_entropy(arrays["scores"], labels)
        assert_same(loss_and_gradient(net), (loss, gradient), tolerance=3e-7)


def test_an_upstream_layer_may_work_in_place_on_the_gradient():
    """After the first backward the diff of the scores is that layer's; a second one must not believe it."""
    arrays = {"scores": random_scores((4, 5)) + 0.5, "labels": random_labels((4, 5))}
    text = "force_backward: true\n" + "".join(input_layer(name, array.shape) for name, array in arrays.items())
    text += 'layer { name: "copy" type: "Power" bottom: "scores" top: "s" power_param { scale: 1 } }\n'
    text += 'layer { name: "relu" type: "ReLU" bottom: "s" top: "s" relu_param { negative_slope: 0.5 } }\n'
    net = make_net(text + loss_layer(["s", "labels"]))
    fill(net, arrays)
    _, first = loss_and_gradient(net)
    net.backward()
    np.testing.assert_array_equal(net.blobs["scores"].diff, first)


@either_layer
def test_one_index_per_sample_may_come_without_an_axis(layer):
    arrays = {"scores": random_scores((4, 5)), "labels": np.array([0, 3, 4, 1], np.float32)}
    net = loss_net(arrays, layer=layer, param_str='{"label_format": "indices"}')
    dense = loss_net({**arrays, "labels": one_hot(arrays["labels"].astype(int), 5)}, layer=layer)
    assert_same(loss_and_gradient(net), loss_and_gradient(dense))


@either_layer
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_bottom_data_is_left_as_it_came(phase, layer):
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5)), "weight": np.ones(4, np.float32)}
    arrays["labels"][0, 1] = -1
    net = loss_net(arrays, layer=layer, phase=phase, param_str='{"ignore_label": -1}')
    loss_and_gradient(net)
    for name, array in arrays.items():
        np.testing.assert_array_equal(net.blobs[name].data, array)


@either_layer
def test_test_phase_keeps_no_buffer_and_still_has_the_gradient(layer):
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    trained = loss_and_gradient(loss_net(arrays, layer=layer, loss_weight="loss_weight: 3"))
    net = loss_net(arrays, layer=layer, phase=caffe.TEST, loss_weight="loss_weight: 3")
    assert_same(loss_and_gradient(net), trained, tolerance=2e-7)
    kept = [value for value in vars(net.layer_dict["loss"]).values() if isinstance(value, np.ndarray)]
    assert not kept


@pytest.mark.parametrize("layer, native", [(SOFTMAX, "Softmax"), (SIGMOID, "Sigmoid")])
def test_the_loss_is_a_scalar_and_the_probabilities_are_the_second_top(layer, native):
    arrays = {"scores": random_scores((4, 5, 2, 2)), "labels": random_labels((4, 5, 2, 2))}
    net = loss_net(arrays, tops=("loss", "probs"), layer=layer, loss_weight="loss_weight: 1 loss_weight: 0")
    alone = loss_and_gradient(loss_net(arrays, layer=layer))
    assert_same(loss_and_gradient(net), alone, tolerance=1e-7)
    assert net.blobs["loss"].data.shape == ()
    activation = make_net(
        input_layer("scores", (4, 5, 2, 2)) + f'layer {{ name: "p" type: "{native}" bottom: "scores" top: "probs" }}'
    )
    activation.blobs["scores"].data[...] = arrays["scores"]
    np.testing.assert_allclose(net.blobs["probs"].data, activation.forward()["probs"], rtol=1e-6)


@either_layer
def test_a_gradient_into_the_probabilities_is_refused(layer):
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    net = loss_net(arrays, tops=("loss", "probs"), layer=layer, loss_weight="loss_weight: 1 loss_weight: 1")
    net.forward()
    with pytest.raises(ValueError, match=r"top\[1\] \(probabilities\) has a gradient; none flows through it"):
        net.backward()


@either_layer
def test_a_net_reshapes_between_iterations(layer):
    small = {"scores": random_scores((2, 5)), "labels": random_labels((2, 5))}
    large = {"scores": random_scores((9, 5), seed=3), "labels": random_labels((9, 5), seed=3)}
    net = loss_net(small, layer=layer)
    for arrays in (large, small, {name: array[:0] for name, array in small.items()}, large):
        fill(net, arrays)
        loss, gradient = loss_and_gradient(net)
        expected_loss, expected = FUNCTIONS[layer](arrays["scores"], arrays["labels"])
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)


@either_layer
def test_the_loss_may_feed_another_layer(layer):
    """Behind a Power layer top.diff is 0 in forward and set in backward."""
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    text = "force_backward: true\n" + "".join(input_layer(name, array.shape) for name, array in arrays.items())
    text += loss_layer(["scores", "labels"], tops=["raw"], layer=layer, loss_weight="")
    text += 'layer { name: "double" type: "Power" bottom: "raw" top: "loss" power_param { scale: 2 } loss_weight: 5 }'
    net = make_net(text)
    fill(net, arrays)
    with pytest.warns(RuntimeWarning, match="loss_weight is 0 in the TRAIN phase"):
        net.forward()
    _, gradient = loss_and_gradient(net)
    expected = FUNCTIONS[layer](arrays["scores"], arrays["labels"])[1]
    np.testing.assert_allclose(gradient, 10 * expected, rtol=0, atol=1e-6)


# The gradient, by the checker


CHECKED = [
    (SOFTMAX, {}),
    (SOFTMAX, {"label_normalization": "count", "normalization": "FULL", "class_weight": [1, 0.5, 2, 3, 1]}),
    (SOFTMAX, {"label_normalization": "none", "normalization": "NONE", "label_smoothing": 0.1}),
    (SOFTMAX, {"divergence": "kl", "empty": "uniform", "ignore_label": 0.5}),
    (SIGMOID, {}),
    (SIGMOID, {"focal_gamma": 2, "focal_alpha": 0.25, "normalization": "VALID", "ignore_label": 0.5}),
    (SIGMOID, {"pos_weight": 3, "class_weight": [1, 0.5, 2, 3, 1], "normalization": "FULL"}),
    (SIGMOID, {"label_smoothing": 0.2, "normalization": "NONE", "focal_gamma": 0.5}),
    (SIGMOID, {"focal_gamma": {"positive": 1, "negative": 4}, "negative_margin": 0.05}),
]


@pytest.mark.parametrize("layer, options", CHECKED, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 2)], ids=str)
def test_the_checker_passes_the_gradient_and_the_manners(layer, options, shape):
    labels = random_labels(shape)
    labels[1, 2] = 0.5
    weight = np.random.default_rng(2).uniform(0.2, 2, (shape[0], *shape[2:]))
    report = check_layer(
        "multilabel_softmax_loss", layer, [random_scores(shape), labels, weight], str(options), loss_weight=-1.5
    )
    assert_gradient(report, strict=True)
    assert report.names == []


# Bad input


def small_net(**layer):
    return loss_net({"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}, **layer)


def test_a_missing_loss_weight_is_warned_of_once():
    net = small_net(loss_weight="")
    with pytest.warns(RuntimeWarning, match="loss_weight is 0 in the TRAIN phase.*\n.*Add loss_weight: 1") as caught:
        loss_and_gradient(net)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.forward()


@either_layer
def test_labels_per_class_that_are_read_as_indices_are_warned_of_once(layer):
    with pytest.warns(RuntimeWarning, match='taken for class indices.*\n.*need label_format "dense"') as caught:
        net = small_net(layer=layer, param_str='{"label_format": "indices"}')
    net.reshape()
    assert len(caught) == 1


@pytest.mark.parametrize("layer", [{"phase": caffe.TEST, "loss_weight": ""}, {}], ids=["TEST", "with loss_weight"])
def test_nothing_is_warned_of_where_all_is_well(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_net(**layer).forward()


@pytest.mark.parametrize(
    "bottoms, tops, message",
    [
        (["scores"], ["loss"], r"it has 1 bottom; expected 2 \(scores, labels\) or 3"),
        (["scores"] * 4, ["loss"], "it has 4 bottoms; expected 2"),
        (["scores", "labels"], [], r"it has 0 tops; expected 1 \(the loss\) or 2 \(the loss, the probabilities\)"),
        (["scores", "labels"], ["a", "b", "c"], "it has 3 tops; expected 1"),
    ],
)
def test_wrong_numbers_of_blobs(bottoms, tops, message):
    text = input_layer("scores", (4, 5)) + input_layer("labels", (4, 5))
    with pytest.raises(
        ValueError, match=f"MultilabelSoftmaxLossLayer: {message}.*\n    Change the (bottom|top): lines"
    ):
        make_net(text + loss_layer(bottoms, tops, loss_weight=""))


@pytest.mark.parametrize(
    "param_str, error, message",
    [
        ('{"normalisation": "VALID"}', ValueError, "unknown option 'normalisation'; did you mean 'normalization'\\?"),
        ('{"axis": "one"}', TypeError, "option 'axis' = 'one'; expected an integer."),
        ('{"empty": "drop"}', ValueError, "option 'empty' = 'drop'; expected one of 'ignore', 'uniform', 'error'."),
        ("label_normalization=count", ValueError, ".*neither JSON nor a Python dict literal"),
        ('__import__("os").abort()', ValueError, ".*neither JSON nor a Python dict literal"),
    ],
)
def test_a_bad_param_str_is_named(param_str, error, message):
    where = "\n    Change python_param { param_str: ... } of this layer."
    with pytest.raises(error, match=f"^MultilabelSoftmaxLossLayer: param_str has {message}") as caught:
        small_net(param_str=param_str)
    assert str(caught.value).endswith(where)


def test_a_bad_param_str_of_the_sigmoid_loss_is_named():
    message = (
        "^MultilabelSigmoidLossLayer: param_str has option 'focal_gamma' = -2; expected a finite number >= 0, or two, "
        """as in {"positive": 0, "negative": 4}.\n    Change"""
    )
    with pytest.raises(ValueError, match=message):
        small_net(layer=SIGMOID, param_str='{"focal_gamma": -2}')


def test_shapes_that_differ_are_named_also_after_a_reshape():
    message = (
        r"^MultilabelSoftmaxLossLayer: bottom\[1\] \(labels\) has shape \(4, 5\); "
        r"expected \(4, 6\), the shape of bottom\[0\] \(scores\)\.\n    Change num_output of the layer"
    )
    with pytest.raises(ValueError, match=message):
        loss_net({"scores": random_scores((4, 6)), "labels": random_labels((4, 5))})
    hint = r', or, for class indices, \(4, 1\) and label_format "indices"\.\n    Change'
    with pytest.raises(ValueError, match=hint):
        loss_net({"scores": random_scores((4, 6)), "labels": np.zeros((4, 1, 1, 1))})
    net = small_net()
    net.forward()
    net.blobs["scores"].reshape(4, 6)
    with pytest.raises(ValueError, match=message):
        net.forward()


@pytest.mark.parametrize(
    "layer, blob, index, value, param_str, message",
    [
        (SOFTMAX, "labels", (2, 3), -1, "", "has -1 at sample 2, class 3; expected finite labels >= 0"),
        (SOFTMAX, "labels", (2, 3), np.nan, "", "has nan at sample 2, class 3"),
        (SOFTMAX, "labels", (2, 3), np.inf, "", "has inf at sample 2, class 3"),
        (SOFTMAX, "scores", (1, 4), np.nan, "", "has nan at sample 1, class 4; expected finite scores"),
        (SOFTMAX, "scores", (1, 4), np.inf, "", "has inf at sample 1, class 4"),
        (SOFTMAX, "labels", (3,), 0, '{"empty": "error"}', "has no positive label at sample 3"),
        (SOFTMAX, "weight", (0,), -1, "", "has -1 at sample 0; expected finite weights"),
        (SIGMOID, "labels", (2, 3), 1.5, "", "has 1.5 at sample 2, class 3; expected labels from 0 to 1"),
        (SIGMOID, "scores", (1, 4), np.nan, "", "has nan at sample 1, class 4; expected finite scores"),
        (SIGMOID, "scores", (1, 0), np.inf, "", "has inf at sample 1, class 0; expected finite scores"),
        (SIGMOID, "weight", (0,), -1, "", "has -1 at sample 0; expected finite weights"),
    ],
)
def test_bad_data_is_named_and_training_goes_on(layer, blob, index, value, param_str, message):
    bottom = {"scores": "bottom[0] (scores)", "labels": "bottom[1] (labels)", "weight": "bottom[2] (sample weights)"}
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5)), "weight": np.ones(4, np.float32)}
    net = loss_net(arrays, layer=layer, param_str=param_str)
    expected = loss_and_gradient(net)
    net.blobs[blob].data[index] = value
    with pytest.raises(ValueError, match=f"^{layer}: {re.escape(bottom[blob])} {message}.*\n    [A-Z]"):
        net.forward()
    fill(net, arrays)
    loss, gradient = loss_and_gradient(net)
    assert loss == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


@pytest.mark.parametrize(
    "layer, name",
    [
        (SOFTMAX, "class_weight"),
        (SIGMOID, "class_weight"),
        (SIGMOID, "pos_weight"),
    ],
)
def test_class_weights_of_another_width_are_named(layer, name):
    message = rf"'{name}' has 2 values; expected 5, one per class of bottom\[0\] \(scores\).\n    Change this option in"
    with pytest.raises(ValueError, match=message):
        small_net(layer=layer, param_str=str({name: [1, 2]}))


def test_nonfinite_ignore_lets_a_nan_pass():
    net = small_net(param_str='{"nonfinite": "ignore"}')
    net.blobs["scores"].data[0, 0] = np.nan
    assert np.isnan(net.forward()["loss"])


# Odd moments


def test_backward_without_a_forward_or_after_a_reshape_is_of_the_data_that_are_there():
    large = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    small = {name: array[:2] for name, array in large.items()}
    expected = softmax_cross_entropy(**large)[1]
    net = loss_net(large)
    net.backward()
    np.testing.assert_allclose(net.blobs["scores"].diff, expected, rtol=0, atol=1e-7)
    for reshape in (lambda net: net.reshape(), lambda net: None):
        net = loss_net(small)
        net.forward()
        fill(net, large)
        reshape(net)
        net.backward()
        np.testing.assert_allclose(net.blobs["scores"].diff, expected, rtol=0, atol=1e-7)


def test_a_net_may_begin_with_an_empty_batch():
    """Caffe aborts where the data of an empty blob are asked for."""
    net = make_net(input_layer("scores", (0, 3)) + input_layer("labels", (0, 3)) + loss_layer(["scores", "labels"]))
    assert net.forward()["loss"] == 0


def test_a_loss_beyond_float32_is_an_error():
    param_str = '{"label_normalization": "none", "normalization": "NONE"}'
    net = small_net(param_str=param_str)
    net.blobs["labels"].data[...] = 3e38
    with pytest.raises(
        ValueError, match="^MultilabelSoftmaxLossLayer: the loss is .* more than float32 holds.\n    Change"
    ):
        net.forward()


def test_tiny_sample_weights_divide_out():
    arrays = {"scores": random_scores((4, 5)), "labels": random_labels((4, 5))}
    expected = loss_and_gradient(loss_net(arrays))
    assert_same(loss_and_gradient(loss_net({**arrays, "weight": np.full(4, 1e-39, np.float32)})), expected)


def test_padding_of_zero_and_no_empty_lists():
    arrays = {"scores": random_scores((2, 4)), "labels": np.array([[2, 0, 0]] * 2, np.float32)}
    net = loss_net(arrays, param_str='{"label_format": "indices", "empty": "error", "ignore_label": 0}')
    assert np.isfinite(net.forward()["loss"])


def test_an_axis_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r'expected a class axis 5 in it.\n    Change "axis" in param_str'):
        small_net(param_str='{"axis": 5}')
