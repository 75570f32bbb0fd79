"""The solver and its nets: what is refused before the first iteration, and what Caffe's own loop would compute."""

import re
from pathlib import Path

import caffe
import numpy as np
import pytest
from support.tiny_nets import (
    OURS,
    SIGMOID,
    body,
    listing,
    make_labels,
    make_run,
    rows_of,
    weights_of,
    write_hdf5,
    write_lmdb,
    write_solver,
)

from multilabel_softmax_loss.commands import checks
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.reading import read_prototxt
from multilabel_softmax_loss.nets.weights import load_net


def test_without_chance_the_weights_are_those_of_caffes_own_loop(tmp_path, no_pictures):
    solver = make_run(tmp_path, shuffle=False, dropout=False)
    summary = train(solver)
    plain = caffe.get_solver(solver)
    plain.step(40)
    for (name, k), values in weights_of(summary["weights"]).items():
        assert np.array_equal(plain.net.params[name][k].data.ravel(), values.astype(np.float32))


@pytest.mark.parametrize("lengths", [(20, 18), (20, 0)])
def test_lmdbs_that_are_no_pair_are_told(tmp_path, lengths):
    x, y = make_labels(np.random.RandomState(0), 20)
    net = "".join(
        f'layer {{ name: "{top}" type: "Data" top: "{top}" data_param {{ source: "{source}" batch_size: 8 '
        "backend: LMDB } }\n"
        for top, source in (
            ("data", write_lmdb(tmp_path / "x", x[: lengths[0]])),
            ("label", write_lmdb(tmp_path / "y", y[: lengths[1]])),
        )
    )
    (tmp_path / "net.prototxt").write_text(net + body() + OURS % "")
    message = "is an empty set" if 0 in lengths else r"different lengths: {'data': 20, 'label': 18}; expected one label"
    with pytest.raises(UsageError, match=message):
        train(write_solver(tmp_path, tmp_path / "net.prototxt", test=False), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


INPUT = 'layer { name: "%s" type: "Input" top: "%s" input_param { shape { dim: 8 dim: %d } } }\n'


def test_a_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path, test=False)
    net = tmp_path / "train_val.prototxt"
    net.write_text(INPUT % ("data", "data", 5) + INPUT % ("label", "label", 6) + body() + OURS % "")
    before = listing(tmp_path)
    message = "train_val.prototxt: nothing feeds the Input blob 'data' of the TRAIN net, which is all zeros. Expected"
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    fields = 'input: "data" input: "label" input_shape { dim: 8 dim: 5 } input_shape { dim: 8 dim: 6 }\n'
    net.write_text(fields + body() + OURS % "")
    before["train_val.prototxt"] = net.read_bytes()
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    assert listing(tmp_path) == before


def test_a_test_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    rule = " include { phase: TEST } input_param"
    inputs = (INPUT % ("x", "data", 5) + INPUT % ("y", "label", 6)).replace(" input_param", rule)
    net.write_text(inputs + net.read_text().replace("phase: TEST }", 'phase: TEST stage: "never" }'))
    with pytest.raises(UsageError, match="nothing feeds the Input blob 'data' of the TEST net"):
        train(solver, out=str(tmp_path / "run"))


def test_zeros_beside_data_are_a_warning(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, test=False, max_iter=1)
    net = tmp_path / "train_val.prototxt"
    silence = 'layer { name: "silence" type: "Silence" bottom: "state" }\n'
    net.write_text(net.read_text() + INPUT % ("state", "state", 5) + silence)
    train(solver, out=str(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "train: warning: " in said
    assert "nothing feeds the Input blob 'state' of the TRAIN net, which is all zeros.\n" in said


@pytest.mark.parametrize(
    "fields, message",
    [
        pytest.param('lr_policy: "step" stepsize: 5', "and no gamma; add gamma: to it", id="step without gamma"),
        pytest.param('lr_policy: "step" gamma: 0.1', "and no stepsize; add", id="step without stepsize"),
        pytest.param('lr_policy: "step" gamma: 0.1 stepsize: 0', "and stepsize 0; expected more than 0", id="no step"),
        pytest.param('lr_policy: "exp"', "base_lr times gamma^i, and no gamma", id="exp without gamma"),
        pytest.param('lr_policy: "exp" gamma: -0.5', "and gamma -0.5; expected more than 0", id="negative gamma"),
        pytest.param('lr_policy: "inv" gamma: 0.1', "and no power; add power: to it", id="inv without power"),
        pytest.param('lr_policy: "poly"', "and no power", id="poly without power"),
        pytest.param('lr_policy: "sigmoid" gamma: 0.1', "and no stepsize", id="sigmoid without stepsize"),
        pytest.param('lr_policy: "multistep" stepvalue: 5', "and no gamma", id="multistep without gamma"),
        pytest.param('lr_policy: "multistep" gamma: 0.1', "and no stepvalue", id="multistep without stepvalue"),
        pytest.param(
            'lr_policy: "multistep" gamma: 0.1 stepvalue: 9 stepvalue: 4',
            "has stepvalue 9, 4; expected iterations in ascending order",
            id="descending",
        ),
        pytest.param("momentum2: 1", "has momentum2 1; expected at least 0 and less than 1", id="momentum2"),
        pytest.param("weight_decay: -1", "has weight_decay -1; expected no negative number", id="weight_decay"),
        pytest.param("delta: nan", "has delta nan; expected a finite number", id="not a number"),
        pytest.param('regularization_type: "L3"', "has regularization_type 'L3'", id="regularization"),
        pytest.param(
            "test_iter: 2 test_iter: 2 test_net_param { }", "1 test nets and 2 lines of test_iter", id="test_iter"
        ),
        pytest.param("test_iter: -1 test_interval: 2", "has test_iter -1", id="negative test_iter"),
        pytest.param("test_iter: 1 test_state { } test_state { }", "2 of test_state for 1 tests", id="test_state"),
    ],
)
def test_numbers_of_a_solver_with_which_nothing_right_can_be_learned_are_refused(tmp_path, fields, message):
    solver = Path(make_run(tmp_path, test=False))
    text = solver.read_text()
    text = text.replace('lr_policy: "fixed"', "") if "lr_policy" in fields else text
    text = text.replace(f'net: "{tmp_path}', f'train_net: "{tmp_path}') if "test_net_param" in fields else text
    fields = fields.replace("net_param { }", 'net_param { layer { name: "x" type: "DummyData" top: "x" } }')
    solver.write_text(text + fields)
    with pytest.raises(UsageError, match=re.escape(message)):
        train(str(solver), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_test_iter_of_0_is_no_test_and_said(tmp_path, capsys, no_pictures):
    solver = Path(make_run(tmp_path, max_iter=2))
    solver.write_text(solver.read_text().replace("test_iter: 4", "test_iter: 0"))
    train(str(solver), out=str(tmp_path / "run"))
    assert "has test_iter 0; that net is never tested" in capsys.readouterr().err
    assert not any(name.startswith("test") for name in rows_of(tmp_path / "run")[0])


NORM = 'layer { name: "norm" type: "BatchNorm" bottom: "hidden" top: "hidden" %s }\n'


def test_a_batch_norm_that_this_caffe_cannot_train_is_refused(tmp_path, no_pictures):
    """The wheel is a fork in whose phase TRAIN BatchNorm neither normalises nor stores statistics."""
    solver = make_run(tmp_path, test=False, max_iter=1)
    net = tmp_path / "train_val.prototxt"
    text = net.read_text()
    relu = 'layer { name: "relu"'
    net.write_text(text.replace(relu, NORM % "" + relu))
    with pytest.raises(UsageError, match="layer 'norm' is a BatchNorm .* use_global_stats: true"):
        train(solver, out=str(tmp_path / "run"))
    net.write_text(net.read_text().replace(NORM % "", NORM % "batch_norm_param { use_global_stats: true }"))
    assert train(solver, out=str(tmp_path / "run"))["iteration"] == 1


RIGHT_NORM = """import caffe

class RightNorm(caffe.Layer):
    def setup(self, bottom, top):
        for size in (3, 3, 1):
            self.blobs.add_blob(size)
            self.blobs[len(self.blobs) - 1].data[...] = 0

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        x = bottom[0].data
        top[0].data[...] = (x - x.mean(axis=0)) / x.std(axis=0)
        for blob, value in zip(self.blobs, (x.mean(axis=0), x.var(axis=0), 1)):
            blob.data[...] = 0.999 * blob.data + value

    def backward(self, *arguments): pass
"""


@pytest.mark.parametrize("kept", [pytest.param(True, id="right"), pytest.param(False, id="no statistics")])
def test_the_probe_of_batch_norm_passes_one_that_is_right(tmp_path, monkeypatch, kept):
    """As other builds of Caffe have it; here a layer in Python stands for it."""
    module = f"right_norm_{kept}"
    (tmp_path / f"{module}.py").write_text(RIGHT_NORM if kept else RIGHT_NORM.replace("+ value", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = f'type: "Python" python_param {{ module: "{module}" layer: "RightNorm" }}'
    monkeypatch.setattr(checks, "BATCH_NORM", checks.BATCH_NORM.replace('type: "BatchNorm"', own))
    assert checks.batch_norm_learns() == kept


@pytest.mark.parametrize("given", ["nothing", "weights"])
def test_a_layer_that_begins_with_zeros_is_a_warning(tmp_path, capsys, no_pictures, given):
    solver = make_run(tmp_path, test=False, max_iter=1)
    net = tmp_path / "train_val.prototxt"
    caffe.Net(str(net), caffe.TRAIN).save(str(tmp_path / "w.caffemodel"))
    net.write_text(net.read_text().replace('weight_filler { type: "xavier" }', "", 1))
    train(solver, out=str(tmp_path / "run"), weights=None if given == "nothing" else str(tmp_path / "w.caffemodel"))
    said = capsys.readouterr().err
    assert ("no weight_filler in hidden, whose weights so begin as zeros" in said) == (given == "nothing")


def test_the_recorded_loss_is_that_of_the_whole_iteration(tmp_path, no_pictures):
    solver = make_run(tmp_path, shuffle=False, dropout=False, base_lr=0, max_iter=2, test=False, solver="iter_size: 4")
    weights = train(solver, out=str(tmp_path / "run"))["weights"]
    large = tmp_path / "large.prototxt"
    large.write_text((tmp_path / "train_val.prototxt").read_text().replace("batch_size: 8", "batch_size: 32"))
    net = caffe.Net(str(large), weights, caffe.TRAIN)
    recorded = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert recorded == pytest.approx([float(net.forward()["loss"]) for _ in range(2)], rel=1e-6)


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param(('name: "hidden"', 'name: "scores"'), "'scores'", id="two with weights"),
        pytest.param(('name: "relu"', 'name: "hidden"'), "'hidden'", id="one without"),
    ],
)
def test_a_layer_with_weights_has_a_name_of_its_own(tmp_path, old, new):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    caffe.Net(str(net), caffe.TEST).save(str(tmp_path / "w.caffemodel"))
    net.write_text(net.read_text().replace(*old))
    with pytest.raises(UsageError, match=f"has 2 layers of the name {new} in one phase"):
        train(solver, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=f"has 2 layers of the name {new} in one phase"):
        load_net(read_prototxt(str(net)), str(net), "TEST", str(tmp_path / "w.caffemodel"))


def test_training_labels_that_a_loss_of_caffes_own_may_not_be_given_end_the_run(tmp_path, no_pictures):
    solver = make_run(tmp_path, loss=SIGMOID, test=False, shuffle=False)
    x, y = make_labels(np.random.RandomState(0), 90)
    y[20, 2] = 2
    write_hdf5(tmp_path / "train", data=x, label=y)
    with pytest.raises(UsageError, match="holds 2 .class 2, row 4 of a batch.; expected labels"):
        train(solver, out=str(tmp_path / "run"))
