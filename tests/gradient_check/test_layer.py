"""The gradient checker on Caffe layers and nets: every defect of the zoo by name, and no right layer failed."""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import layer_zoo
import numpy as np
import pytest
from layer_zoo import DEFECTS, RIGHT, UNTELLABLE, WARNED, Cage

from multilabel_softmax_loss import assert_gradient, check_layer, check_net
from multilabel_softmax_loss.gradient_check import judgement, measurement, subject

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "gradient_check"
BATCHES = [2, 256]  # every coordinate is probed, or a sample of them


def check(cage, batch, **arguments):
    arguments = dict(cage.arguments, **arguments)
    return check_layer(cage.module, cage.layer.__name__, cage.bottoms(batch), **arguments)


def hold(report, cage, verdict):
    """Whether a report says of a cage what it has to, and nothing else."""
    allowed = {cage.finding, *cage.also} | ({"kink"} if verdict == "inconclusive" else set())
    found = cage.finding is None or any(f.name == cage.finding and cage.says in f for f in report.findings)
    return report.verdict == verdict and found and set(report.names) <= allowed


def let_forward_take(monkeypatch, clock, seconds):
    """By the checker's clock each forward of the zoo's softmax losses takes that long, and all else no time."""

    def forward(self, bottom, top, forward=layer_zoo.SoftmaxLoss.forward):
        clock.now += seconds
        forward(self, bottom, top)

    monkeypatch.setattr(layer_zoo.SoftmaxLoss, "forward", forward)


def scores_and_labels(shape):
    generator = np.random.RandomState(0)
    return [generator.randn(*shape), (generator.rand(*shape) < 0.1).astype(float)]


def cages(group):
    return [pytest.param(cage, id=" ".join([cage.name, *map(str, cage.arguments.values())])) for cage in group]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cage", cages(DEFECTS))
def test_every_defect_is_caught_by_name(cage, batch):
    report = check(cage, batch)
    assert hold(report, cage, "fail"), report


@pytest.mark.parametrize("batch", [2, 32])
@pytest.mark.parametrize("cage", cages(WARNED))
def test_what_does_harm_in_other_nets_only_is_a_warning(cage, batch):
    report = check(cage, batch)
    assert hold(report, cage, "pass"), report
    assert report.gradient == "pass"
    assert report.in_words == "gradient right; 1 warning"
    assert_gradient(report)
    with pytest.raises(AssertionError, match=cage.finding):
        assert_gradient(report, strict=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cage", cages(RIGHT))
def test_no_right_layer_fails(cage, batch):
    report = check(cage, batch)
    assert hold(report, cage, "pass"), report


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cage", cages(UNTELLABLE))
def test_what_cannot_be_told_is_inconclusive(cage, batch):
    report = check(cage, batch)
    assert hold(report, cage, "inconclusive"), report


def test_the_zoo_is_as_large_as_promised():
    assert len({cage.layer for cage in DEFECTS}) >= 25
    assert len({cage.layer for cage in RIGHT}) >= 10
    assert not {cage.layer for cage in DEFECTS} & {cage.layer for cage in RIGHT}


def test_holding_a_cage_can_fail():
    right, twice = Cage(layer_zoo.SoftmaxLoss), Cage(layer_zoo.Twice, "wrong-factor", ": 2")
    report = check(twice, 4)
    assert hold(report, twice, "fail")
    assert not hold(report, twice, "pass")
    assert not hold(report, right, "fail")
    assert not hold(report, Cage(layer_zoo.Twice, "sign-error"), "fail")
    assert not hold(report, Cage(layer_zoo.Twice, "wrong-factor", "1/2"), "fail")
    assert not hold(check(right, 4), twice, "fail")


@pytest.mark.parametrize("layer, answer", [
    (layer_zoo.SoftmaxLoss, "pass"),
    (layer_zoo.Twice, "fail"),
    (layer_zoo.RaisesInSetup, "raises"),
    (layer_zoo.TopWithoutShape, "aborts"),
])  # fmt: skip
def test_the_example_hears_what_becomes_of_a_layer_under_caffes_criterion(monkeypatch, layer, answer):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    zoo = importlib.import_module("zoo")
    assert zoo.by_child(zoo.caffe_says, Cage(layer), 2) == answer


def test_a_layer_with_all_the_published_faults_has_them_all_named():
    report = check(Cage(layer_zoo.AsPublished, feed=layer_zoo.weighted), 8)
    expected = {"ignores-loss-weight", "writes-bottom-data", "second-backward-differs", "ignores-propagate-down"}
    assert expected | {"label-diff-unfilled", "wrong-gradient"} <= set(report.names)


@pytest.mark.parametrize("mode, judged_on", [("caffe", "Caffe, float32"), ("float64", "float64 stand-ins"),
                                             ("auto", "float64 stand-ins, with which Caffe agrees")])  # fmt: skip
@pytest.mark.parametrize("layer, finding", [(layer_zoo.SoftmaxLoss, None), (layer_zoo.Half, "wrong-factor")])
def test_each_mode_gives_a_verdict_and_says_which_it_was(mode, judged_on, layer, finding):
    report = check(Cage(layer, finding), 8, mode=mode)
    assert report.mode.startswith(judged_on)
    assert report.names == ([finding] if finding else [])
    assert report.verdict == ("fail" if finding else "pass")


@pytest.mark.parametrize("layer, lift, off, batch, arguments, says", [
    (layer_zoo.FarFromZero, (measurement, "FEWER_SAMPLES"), (), 256, {"mode": "caffe"},
     "of the 256 samples, as more hide in rounding"),
    (layer_zoo.SoftmaxLoss, (subject, "GAIN"), 1.0, 8, {"loss_weight": 1e-41}, "1e+27 times the loss weight"),
])  # fmt: skip
def test_each_lift_decides_what_would_be_inconclusive(monkeypatch, layer, lift, off, batch, arguments, says):
    report = check(Cage(layer), batch, **arguments)
    assert_gradient(report)
    assert says in report.mode
    monkeypatch.setattr(*lift, off)
    assert check(Cage(layer), batch, **arguments).verdict == "inconclusive"


def test_a_gradient_of_zero_is_no_reason_for_another_loss_weight():
    for layer in (layer_zoo.Zero, layer_zoo.Constant):
        assert "loss weight" not in check(Cage(layer), 8).mode


def test_more_directions_decide_on_all_samples_of_a_layer_for_float32(monkeypatch):
    report = check(Cage(layer_zoo.RefusesFloat64), 256)
    assert_gradient(report)
    assert report.mode == "Caffe, float32"
    monkeypatch.setattr(judgement, "MORE_DIRECTIONS", 0)
    assert "of the 256 samples" in check(Cage(layer_zoo.RefusesFloat64), 256).mode


@pytest.mark.parametrize("layer, classes, forward, name", [
    ("SoftmaxLoss", 300, 0.002, None), ("Twice", 300, 0.02, "wrong-factor"),
    ("LastSampleForgotten", 1000, 0.02, "wrong-gradient"),
])  # fmt: skip
def test_a_large_layer_is_judged_in_caffe_alone_within_the_budget(monkeypatch, clock, layer, classes, forward, name):
    let_forward_take(monkeypatch, clock, forward)
    report = check_layer("layer_zoo", layer, scores_and_labels((256, classes)), mode="caffe")
    assert clock.now < 10
    assert report.verdict == ("fail" if name else "pass"), report
    assert set(report.names) <= {name, "kink"}


@pytest.mark.parametrize("loss_weight", [1e-41, 1e-36, 1e-3, 1e6])
def test_any_loss_weight_will_do(loss_weight):
    """1e-36 puts most of the gradient below what float32 holds in full, 1e-41 all of it."""
    assert_gradient(check(Cage(layer_zoo.SoftmaxLoss), 8, loss_weight=loss_weight))
    assert check(Cage(layer_zoo.Twice), 8, loss_weight=loss_weight).names == ["wrong-factor"]


def test_a_slow_start_leaves_time_to_measure(monkeypatch, clock):
    """A layer may compile itself in its first forward."""
    started = []

    def slow_once(self, scores, labels, loss=layer_zoo.SoftmaxLoss.loss):
        clock.now += 1e-4 if scores.dtype in started else 0.6
        if scores.dtype not in started:
            started.append(scores.dtype)
        return loss(self, scores, labels)

    monkeypatch.setattr(layer_zoo.SoftmaxLoss, "loss", slow_once)
    assert_gradient(check(Cage(layer_zoo.SoftmaxLoss), 2, budget=0.5))
    assert len(started) == 2


def test_the_data_and_the_generators_are_restored():
    cage = Cage(layer_zoo.WritesScores)
    bottoms = cage.bottoms(4)
    before = [bottom.copy() for bottom in bottoms]
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    assert check_layer("layer_zoo", "WritesScores", bottoms).verdict == "fail"
    assert (np.random.rand(), random.random()) == expected
    for bottom, old in zip(bottoms, before):
        np.testing.assert_array_equal(bottom, old)


def test_learnable_blobs_are_checked_at_the_values_given():
    parameters = [np.full(layer_zoo.CLASSES, 3.0), np.zeros(layer_zoo.CLASSES)]
    report = check(Cage(layer_zoo.ScaleAndShift, feed=layer_zoo.alone), 4, parameters=parameters)
    assert_gradient(report)
    assert [note.split(" (")[0] for note in report.notes[:3]] == ["bottom[0]", "blobs[0]", "blobs[1]"]
    with pytest.raises(ValueError, match=r"expected \[\(10,\), \(10,\)\], those of the layer's blobs"):
        check(Cage(layer_zoo.ScaleAndShift, feed=layer_zoo.alone), 4, parameters=parameters[:1])


@pytest.mark.parametrize("arguments, error, match", [
    ({"module": "no_such_module"}, ImportError, "cannot be imported"),
    ({"layer": "NoSuchLayer"}, ImportError, "has no class 'NoSuchLayer'"),
    ({"mode": "gpu"}, ValueError, "mode is 'gpu'; expected"),
    ({"wrt": (2,)}, ValueError, r"wrt is \(2,\); expected indices of the 2 bottoms"),
    ({"layer": "np"}, ValueError, "layer_zoo.np is a module; expected a class"),
    ({"layer": int}, TypeError, "layer is <class 'int'>; expected a string"),
    ({"param_str": {}}, TypeError, "param_str is {}; expected a string"),
    ({"bottoms": np.ones((2, 3))}, TypeError, "bottoms is one array; expected a list"),
    ({"bottoms": [np.zeros((0, 3))]}, ValueError, r"bottoms\[0\] is empty, of shape \(0, 3\)"),
    ({"loss_weight": np.nan}, ValueError, "loss_weight is nan"),
    ({"loss_weight": 0}, ValueError, "expected one that is not 0"),
    ({"tolerance": -1}, ValueError, "tolerance is -1; expected a positive number"),
    ({"seed": -1}, ValueError, "seed is -1; expected a whole number from 0 to"),
    ({"bottoms": [None]}, TypeError, r"bottoms\[0\] is None; expected an array of real numbers"),
])  # fmt: skip
def test_bad_arguments_are_errors(arguments, error, match):
    right = {"module": "layer_zoo", "layer": "SoftmaxLoss", "bottoms": Cage(layer_zoo.SoftmaxLoss).bottoms(2)}
    given = dict(right, **arguments)
    with pytest.raises(error, match=match):
        check_layer(**given)


@pytest.mark.parametrize("shape, forward, limit", [((8, 20), 1e-4, 0.1), ((256, 1000), 5e-3, 3)])
def test_a_check_takes_as_many_forwards_as_promised(monkeypatch, clock, shape, forward, limit):
    let_forward_take(monkeypatch, clock, forward)
    started = time.process_time()
    assert_gradient(check_layer("layer_zoo", "SoftmaxLoss", scores_and_labels(shape)))
    assert clock.now < limit
    assert time.process_time() - started < 20 * limit  # with what the checker itself computes, on a slow machine


@pytest.mark.parametrize("text, match", [
    ("raise SystemExit(3)", r"cannot be imported: SystemExit: 3 \(odd_module.py, line 1\)"),
    ("import nothing_of_that_name",
     "No module named 'nothing_of_that_name'. 'odd_module' needs it: install it for .*python"),
    ("from . import neighbour", r"imports its neighbours relatively: .* module: 'FOLDER.odd_module'"),
    ("import cPickle", "'cPickle' is a module of Python 2: convert 'odd_module' with 2to3"),
    ("print 'loss', 3", r"SyntaxError: .* \(odd_module.py, line 1\). That is Python 2: convert it with 2to3"),
    ("try:\n    pass\nexcept KeyError, error:\n    pass", "line 3.*That is Python 2"),
    ("import sys\nsys.no_such_name", r"cannot be imported: AttributeError: .* \(odd_module.py, line 2\)"),
    ("def f(:", r"cannot be imported: SyntaxError: .* \(odd_module.py, line 1\)"),
    ("class OddLayers: pass", "has no class 'OddLayer'; did you mean 'OddLayers'?"),
])  # fmt: skip
def test_a_module_that_cannot_be_imported_is_an_error(tmp_path, monkeypatch, text, match):
    (tmp_path / "odd_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_module", raising=False)
    with pytest.raises(ImportError, match=match):
        check_layer("odd_module", "OddLayer", [np.zeros((2, 3))])


@pytest.mark.parametrize("method", ["setup", "reshape", "forward", "backward"])
def test_a_layer_that_calls_sys_exit_is_a_finding(monkeypatch, method):
    monkeypatch.setattr(layer_zoo.SoftmaxLoss, method, lambda *arguments: sys.exit(0), raising=False)
    report = check(Cage(layer_zoo.SoftmaxLoss), 4)
    assert report.verdict == "fail"
    assert report.findings[-1].startswith(("raises: SystemExit: 0", f"raises-in-{method}: SystemExit: 0"))


# ---- whole nets ------------------------------------------------------------------------------------------------------

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 8 dim: 6 } } }
layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 8 dim: 10 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "scores"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "scale" type: "Python" bottom: "scores" top: "scaled"
        python_param { module: "layer_zoo" layer: "ScaleAndShift" } }
layer { name: "loss" type: "Python" bottom: "scaled" bottom: "y" top: "loss" loss_weight: 0.5
        python_param { module: "layer_zoo" layer: "LAYER" } }
layer { name: "watch" type: "Python" bottom: "scaled" top: "watch"
        python_param { module: "test_layer" layer: "Watch" } }
"""
FILL = ["--fill", "x=gaussian", "--fill", "y=multihot"]


class Watch(layer_zoo.caffe.Layer):
    """Shows something; has no gradient."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        print("watching")
        os.write(1, b"past Python\n")
        top[0].data[...] = bottom[0].data.mean()

    def backward(self, top, propagate_down, bottom):
        pass


class Above1(layer_zoo.ManualLoss):
    """sum log(x), for those who are sure that x > 1."""

    def forward(self, bottom, top):
        if not (bottom[0].data > 1).all():
            raise ValueError("x must be above 1")
        top[0].data[...] = np.log(bottom[0].data).sum()

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff / bottom[0].data


class Square(Watch):
    """x^2, and its gradient where the top is another blob than the bottom."""

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data ** 2

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff


class OnlyADocstring(Watch):
    def backward(self, top, propagate_down, bottom):
        """Nothing to do for a metric."""


class Averages(Watch):
    """A right loss, and as its second top the mean of each column."""

    def reshape(self, bottom, top):
        top[0].reshape(1)
        top[1].reshape(bottom[0].data.shape[1])

    def forward(self, bottom, top):
        top[0].data[...] = (bottom[0].data ** 2).sum()
        top[1].data[...] = bottom[0].data.mean(axis=0)

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * top[0].diff * bottom[0].data


class ReadsAFile(Watch):
    def forward(self, bottom, top):
        Path("no_such_anchors.txt").read_text()

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 0


class LooksUp(ReadsAFile):
    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data[0, int(bottom[0].data[0, 0])]


class InPython2(ReadsAFile):
    def forward(self, bottom, top):
        top[0].data[...] = sum(xrange(3))  # noqa: F821


class WithoutTops(Watch):
    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        pass

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 0


class NoBackward(Watch):
    def backward(self, top, propagate_down, bottom):
        raise NotImplementedError("accuracy has no gradient")


def test_a_layer_is_not_blamed_for_data_that_it_refuses(tmp_path):
    x = np.random.RandomState(0).uniform(1.2, 1.9, (4, 5))
    assert_gradient(check_layer("test_layer", "Above1", [x]))


def test_a_top_that_is_only_looked_at_is_pointed_out():
    x = [np.random.RandomState(0).randn(4, 5)]
    report = check_layer("test_layer", "Averages", x, tops=2)
    assert report.verdict == "fail"
    assert "right for top[0] alone; if nothing learns from top[1]" in str(report)
    assert_gradient(check_layer("test_layer", "Averages", x, tops=2, loss_weight=(1, 0)), strict=True)


@pytest.mark.parametrize("layer, says", [
    ("ReadsAFile", "It reads a file: paths start from the folder of the command"),
    ("LooksUp", "Where it needs integer labels, indices or boxes, feed it such: --fill BLOB=index:C"),
    ("InPython2", "That is Python 2: convert the layer with 2to3."),
])  # fmt: skip
def test_what_a_layer_raises_comes_with_a_remedy(layer, says):
    report = check_layer("test_layer", layer, [np.full((2, 3), 77.0)])
    assert report.names == ["raises-in-forward"]
    assert says in report.findings[0]


def python_layer(name, kind, bottom, top, more=""):
    return (
        f'layer {{ name: "{name}" type: "Python" bottom: "{bottom}" top: "{top}" {more}\n'
        f'  python_param {{ module: "test_layer" layer: "{kind}" }} }}\n'
    )


@pytest.mark.parametrize("layers, verdict, names", [
    pytest.param(python_layer("square", "Square", "x", "y", "loss_weight: 1"), "pass", [], id="apart"),
    pytest.param(python_layer("square", "Square", "x", "x", "loss_weight: 1"), "inconclusive", ["in-place"],
                 id="in place"),
    pytest.param(python_layer("square", "Square", "x", "y", "loss_weight: 1")
                 + python_layer("never", "Absent", "x", "z", 'include { stage: "never" }'), "pass", [],
                 id="a layer of another stage"),
    pytest.param('layer { name: "i" type: "Input" top: "i" input_param { shape { dim: 2 } } include { stage: "no" } }'
                 + python_layer("square", "Square", "x", "y", "loss_weight: 1"), "pass", [],
                 id="an input of another stage"),
    pytest.param(python_layer("square", "Square", "x", "y", "loss_weight: 1")
                 + python_layer("watch", "NoBackward", "x", "z"), "pass", [], id="a metric whose backward raises"),
    pytest.param(python_layer("square", "Square", "x", "y", "loss_weight: 1")
                 + python_layer("watch", "OnlyADocstring", "x", "z"), "pass", [], id="a backward of a docstring"),
    pytest.param(python_layer("square", "Square", "x", "y", "loss_weight: 1")
                 + python_layer("watch", "WithoutTops", "y", "z").replace('top: "z"', ""), "pass", [],
                 id="without tops"),
])  # fmt: skip
def test_nets_of_all_kinds_are_checked(tmp_path, layers, verdict, names):
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 4 } } }\n' + layers)
    np.save(str(tmp_path / "x.npy"), np.random.RandomState(0).uniform(1.5, 2.5, (3, 4)))
    checked = check_net(str(path), fill={"x": str(tmp_path / "x.npy")})
    assert {name: report.verdict for name, report in checked.reports.items()} == {"square": verdict}
    assert [name for name in checked.reports["square"].names if name != "not-a-loss"] == names


def written(tmp_path, layer="SoftmaxLoss", old="", new=""):
    assert old in NET
    path = tmp_path / "net.prototxt"
    path.write_text(NET.replace("LAYER", layer).replace(old, new) if old else NET.replace("LAYER", layer))
    return str(path)


def command(*arguments):
    """Exit status and output of the command in a process of its own."""
    path = os.pathsep.join([str(EXAMPLE), str(Path(__file__).parent)])
    environment = dict(os.environ, PYTHONPATH=path)
    done = subprocess.run(
        [sys.executable, "-m", "multilabel_softmax_loss", "check-gradient"] + [str(a) for a in arguments],
        capture_output=True, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def command_here(run_here):
    """As `command`, in this process."""

    def run(*arguments):
        ended = run_here("check-gradient", *arguments, folder=os.curdir)
        return ended.returncode, ended.stdout, ended.stderr

    return run


def test_a_net_is_checked_layer_by_layer(tmp_path):
    checked = check_net(written(tmp_path, "NoMean"), fill={"x": "gaussian", "y": "multihot"})
    assert {name: report.verdict for name, report in checked.reports.items()} == {"scale": "pass", "loss": "fail"}
    assert checked.verdict == "fail"
    assert checked.skipped == {"watch": "its backward is empty, and nothing asks for it"}
    assert "N with N = 8" in str(checked.reports["loss"])
    assert any(note.startswith("blobs[1]") for note in checked.reports["scale"].notes)


def test_a_net_feeds_itself(tmp_path):
    """Data layers, here a DummyData, need no --fill."""
    old = 'type: "Input" top: "x" input_param { shape { dim: 8 dim: 6 } }'
    new = 'type: "DummyData" top: "x" dummy_data_param { shape { dim: 8 dim: 6 } data_filler { type: "gaussian" } }'
    checked = check_net(written(tmp_path, old=old, new=new), layers=["loss"], fill={"y": "multihot"})
    assert_gradient(checked.reports["loss"])


@pytest.mark.parametrize("layer, changes, protocol", [
    pytest.param("IgnoresTopDiff", {"loss_weight: 0.5": "loss_weight: 1"}, "warnings", id="weight 1"),
    pytest.param("IgnoresTopDiff", {}, "fail", id="weight 0.5"),
    pytest.param("LabelDiffUnfilled", {}, "warnings", id="no force_backward"),
    pytest.param("LabelDiffUnfilled", {'layer { name: "x"': 'force_backward: true layer { name: "x"'}, "fail",
                 id="force_backward"),
    pytest.param("IgnoresPropagateDown", {'name: "loss"': 'name: "loss" propagate_down: false propagate_down: false'},
                 "fail", id="a gradient that the net stops"),
    pytest.param("WritesScores", {}, "fail", id="data that others read"),
    pytest.param("WritesScores", {'bottom: "scaled" bottom: "y"': 'bottom: "alone" bottom: "y"'}, "warnings",
                 id="data that nobody reads"),
])  # fmt: skip
def test_the_circumstances_of_the_net_decide_what_is_a_fault(tmp_path, layer, changes, protocol):
    own = ('layer { name: "alone" type: "InnerProduct" bottom: "x" top: "alone" '
           'inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }\n')  # fmt: skip
    path = Path(written(tmp_path, layer))
    text = path.read_text().replace('layer { name: "loss"', own + 'layer { name: "loss"')
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    report = check_net(str(path), ["loss"], {"x": "gaussian", "y": "multihot"}).reports["loss"]
    assert report.protocol == protocol, report


def test_warnings_are_status_0_and_with_strict_1(tmp_path, command_here):
    path = written(tmp_path, "ScalesItsBufferInBackward")
    code, shown, _ = command_here(path, *FILL)
    assert code == 0
    assert "PASS: loss (layer_zoo.ScalesItsBufferInBackward): gradient right; 1 warning" in shown
    assert command_here(path, *FILL, "--strict", "--layer", "loss")[0] == 1


def test_a_loss_without_loss_weight_is_pointed_out(tmp_path):
    net = written(tmp_path, old="loss_weight: 0.5", new=" ")
    checked = check_net(net, ["loss"], {"x": "gaussian", "y": "multihot"})
    assert checked.reports["loss"].names == ["no-loss-weight"]
    assert checked.reports["loss"].verdict == "pass"


def test_a_layer_that_raises_in_the_net_is_the_finding(tmp_path):
    checked = check_net(written(tmp_path, "RaisesInForward"), fill={"x": "gaussian", "y": "multihot"})
    assert checked.reports["loss"].names == ["raises-in-forward"]
    assert checked.verdict == "fail"


@pytest.mark.parametrize("layer, method", [("RaisesInSetup", "setup"), ("RaisesInReshape", "reshape")])
def test_a_layer_that_keeps_a_net_from_being_built_is_an_error(tmp_path, layer, method):
    with pytest.raises(ValueError, match=f"net.prototxt: layer 'loss' raises in {method}: "):
        check_net(written(tmp_path, layer), fill={"x": "gaussian", "y": "multihot"})


@pytest.mark.parametrize("layer, changes, status, says", [
    pytest.param("RaisesInReshape", {}, 2, "layer 'loss' raises in reshape: ", id="reshape"),
    pytest.param("RaisesInForward", {}, 2, "raises-in-forward", id="forward"),
    pytest.param("RaisesInBackward", {}, 1, "raises-in-backward", id="backward"),
    pytest.param("RaisesInForward", {"ScaleAndShift": "ScaleAveraged"}, 1, "wrong-factor", id="one wrong, one raises"),
    pytest.param("MultilabelSoftmaxLossLayer", {"dim: 8 dim: 10": "dim: 8 dim: 9"}, 2,
                 "bottom[1] (labels) has shape (8, 9); expected (8, 10)", id="shapes"),
])  # fmt: skip
def test_only_a_wrong_gradient_is_status_1(tmp_path, command_here, layer, changes, status, says):
    path = Path(written(tmp_path, layer))
    for old, new in changes.items():
        path.write_text(path.read_text().replace(old, new))
    code, shown, errors = command_here(path, *FILL)
    assert code == status
    assert says in shown + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("fill, match", [
    ({"x": "gaussian"}, "nothing feeds the Input blob 'y'; add --fill y=KIND"),
    ({"x": "gaussian", "y": "binary"}, "--fill y=binary; expected gaussian"),
    ({"x": "gaussian", "y": "index:0"}, "--fill y=index:0; expected gaussian"),
    ({"x": "gaussian", "scores": "uniform"}, "--fill names 'scores'; the net's Input blobs are x, y"),
    ({"x": "gaussian", "y": "absent.npy"}, "absent.npy"),
])  # fmt: skip
def test_a_bad_fill_is_an_error(tmp_path, fill, match):
    with pytest.raises(ValueError, match=match):
        check_net(written(tmp_path), fill=fill)


def test_arrays_are_read_from_npy_files(tmp_path):
    labels = np.zeros((8, 10))
    labels[:, 0] = 0.5
    np.save(str(tmp_path / "labels.npy"), labels)
    fill = {"x": "uniform", "y": str(tmp_path / "labels.npy")}
    checked = check_net(written(tmp_path, "LabelValuesIgnored"), ["loss"], fill)
    assert "slope of the loss: 2" in str(checked.reports["loss"])
    np.save(str(tmp_path / "labels.npy"), labels[:4])
    with pytest.raises(ValueError, match=r"has shape \(4, 10\); expected \(8, 10\)"):
        check_net(written(tmp_path), ["loss"], fill)


@pytest.mark.parametrize("layer, status, apart", [("SoftmaxLoss", 0, False), ("Negated", 1, False),
                                                  ("HiddenEverywhere", 3, True)])  # fmt: skip
def test_the_command_says_yes_no_or_cannot_tell(tmp_path, monkeypatch, command_here, layer, status, apart):
    monkeypatch.chdir(tmp_path)
    code, shown, errors = (command if apart else command_here)(written(tmp_path, layer), *FILL)
    assert code == status
    assert shown.splitlines()[0].split() == ["layer", "gradient", "protocol", "relative", "error", "factor", "findings"]
    assert "analytic         numeric" in shown
    for printed in ("watching", "past Python"):
        assert printed in errors
        assert printed not in shown
    assert sorted(os.listdir(str(tmp_path))) == ["net.prototxt"]


def test_the_command_prints_json(tmp_path, command_here):
    code, shown, _ = command_here(written(tmp_path, "Negated"), *(FILL + ["--json", "--layer", "loss"]))
    answer = json.loads(shown)
    assert code == 1
    assert answer["verdict"] == "fail"
    assert [layer["name"] for layer in answer["layers"]] == ["loss"]
    assert answer["layers"][0]["findings"][0]["name"] == "sign-error"


@pytest.mark.parametrize("old, new, says", [
    pytest.param('bottom: "x"', 'bottom: "z"', "Unknown bottom blob 'z' (layer 'ip', bottom index 0)", id="bottom"),
    pytest.param('"InnerProduct"', '"InnerProdukt"', "Unknown layer type: InnerProdukt", id="layer type"),
])  # fmt: skip
def test_a_net_that_caffe_rejects_ends_with_one_sentence(tmp_path, old, new, says):
    code, shown, errors = command(written(tmp_path, old=old, new=new), *FILL)
    assert code == 2
    assert shown == ""
    assert len(errors.splitlines()) == 1
    assert says in errors


@pytest.mark.parametrize("old, new, error, match", [
    pytest.param("num_output: 10", "num_output 10", ValueError, 'is no NetParameter .*Expected ":"', id="syntax"),
    pytest.param("num_output:", "number:", ValueError, 'no field named "number"', id="field"),
    pytest.param('module: "layer_zoo"', 'module: "layer_zo"', ValueError,
                 "net.prototxt: layer 'scale': python_param .* cannot be imported: No module named 'lay", id="module"),
])  # fmt: skip
def test_a_net_that_makes_no_sense_is_an_error(tmp_path, old, new, error, match):
    with pytest.raises(error, match=match):
        check_net(written(tmp_path, old=old, new=new), fill={"x": "gaussian", "y": "multihot"})


@pytest.mark.parametrize("old, new, match", [
    pytest.param('name: "watch"', 'name: "loss"', "has 2 layers 'loss'; give each Python layer", id="twice"),
    pytest.param('layer: "ScaleAndShift"', 'layer: "Cage"', "'scale': <class 'layer_zoo.Cage'> is no class derived",
                 id="no layer"),
])  # fmt: skip
def test_a_net_that_cannot_be_checked_is_an_error(tmp_path, old, new, match):
    with pytest.raises(ValueError, match=match):
        check_net(written(tmp_path, old=old, new=new), fill={"x": "gaussian", "y": "multihot"})


def several_arrays(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


@pytest.mark.parametrize("make, match", [
    pytest.param(lambda path: path.write_bytes(b""), "labels.npy: ", id="empty"),
    pytest.param(lambda path: np.save(path, np.zeros((8, 10), complex)), "holds complex128; expected", id="complex"),
    pytest.param(several_arrays, "holds several arrays; expected an array", id="npz"),
])  # fmt: skip
def test_a_file_that_holds_no_numbers_is_an_error(tmp_path, make, match):
    make(tmp_path / "labels.npy")
    with pytest.raises(ValueError, match=match):
        check_net(written(tmp_path), fill={"x": "gaussian", "y": str(tmp_path / "labels.npy")})


def test_foreign_weights_are_an_error(tmp_path):
    net = written(tmp_path)
    with pytest.raises(ValueError, match="is torn, or no weights file"):
        check_net(net, fill={"x": "gaussian", "y": "multihot"}, weights=net)


def test_layers_and_files_that_are_not_there_are_errors(tmp_path):
    with pytest.raises(ValueError, match="has no Python layer 'ip'; its Python layers are scale, loss, watch"):
        check_net(written(tmp_path), ["ip"])
    with pytest.raises(ValueError, match="absent.prototxt cannot be read: No such file"):
        check_net("absent.prototxt")
    with pytest.raises(ValueError, match="absent.caffemodel is no file; expected weights"):
        check_net(written(tmp_path), weights="absent.caffemodel")


@pytest.mark.parametrize("arguments, says", [
    (["net.prototxt", "--fill", "x"], "expected BLOB=KIND"),
    (["net.prototxt", "--tolerance", "0"], "expected a positive number"),
    (["net.prototxt", "--seed", "-5"], "seed is -5; expected a whole number from 0 to"),
])  # fmt: skip
def test_bad_usage_is_status_2(tmp_path, monkeypatch, command_here, arguments, says):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, errors = command_here(*arguments)
    assert code == 2
    assert errors.startswith("python -m multilabel_softmax_loss check-gradient: error: ")
    assert says in errors


def test_the_command_line_explains_itself(capsys):
    from multilabel_softmax_loss.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["check-gradient", "-h"])
    assert stopped.value.code == 0
    assert "example:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "\npython -m multilabel_softmax_loss: error: expected a command: convert, train, " in capsys.readouterr().err
