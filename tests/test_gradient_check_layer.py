"""The gradient checker on Caffe layers: every defect of the zoo by name, and no right layer failed."""

import os
import random
import sys
import time

import numpy as np
import pytest

if sys.version_info >= (3, 10):
    pytest.skip("Caffe has no wheel for this interpreter", allow_module_level=True)
os.environ.setdefault("GLOG_minloglevel", "2")

import layer_zoo
from layer_zoo import DEFECTS, RIGHT, UNTELLABLE, Cage

from multilabel_softmax_loss import assert_gradient, check_layer

BATCHES = [2, 32, 256]


def check(cage, batch, **arguments):
    arguments = dict(cage.arguments, **arguments)
    return check_layer("layer_zoo", cage.layer.__name__, cage.bottoms(batch), **arguments)


def hold(report, cage, verdict):
    """Whether a report says of a cage what it has to, and nothing else."""
    allowed = {cage.finding} | ({"kink"} if verdict == "inconclusive" else set())
    found = cage.finding is None or any(f.name == cage.finding and cage.says in f for f in report.findings)
    return report.verdict == verdict and found and set(report.names) <= allowed


def cages(group):
    return [pytest.param(cage, id=cage.name + "".join(f" {k}" for k in cage.arguments)) for cage in group]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cage", cages(DEFECTS))
def test_every_defect_is_caught_by_name(cage, batch):
    report = check(cage, batch)
    assert hold(report, cage, "fail"), report


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


def test_fewer_samples_lift_the_signal_out_of_the_rounding():
    report = check(Cage(layer_zoo.RefusesFloat64), 256)
    assert report.verdict == "pass"
    assert "of the 256 samples" in report.mode


@pytest.mark.parametrize("loss_weight", [1e-36, 1e-3, 1e6])
def test_any_loss_weight_will_do(loss_weight):
    """1e-36 puts most of the gradient below what float32 holds in full."""
    assert_gradient(check(Cage(layer_zoo.SoftmaxLoss), 8, loss_weight=loss_weight))
    assert check(Cage(layer_zoo.Twice), 8, loss_weight=loss_weight).names == ["wrong-factor"]


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
    wrong = check(Cage(layer_zoo.ScaleAndShift, feed=layer_zoo.alone), 4, parameters=parameters[:1])
    assert "expected [(10,), (10,)]" in str(wrong)


@pytest.mark.parametrize("arguments, error, match", [
    ({"module": "no_such_module"}, ImportError, "cannot be imported"),
    ({"layer": "NoSuchLayer"}, ImportError, "has no class 'NoSuchLayer'"),
    ({"mode": "gpu"}, ValueError, "mode is 'gpu'; expected"),
    ({"wrt": (2,)}, ValueError, r"wrt is \(2,\); expected indices of the 2 bottoms"),
    ({"loss_weight": 0}, ValueError, "expected one that is not 0"),
    ({"tolerance": -1}, ValueError, "tolerance is -1; expected a positive number"),
])  # fmt: skip
def test_bad_arguments_are_errors(arguments, error, match):
    right = {"module": "layer_zoo", "layer": "SoftmaxLoss", "bottoms": Cage(layer_zoo.SoftmaxLoss).bottoms(2)}
    given = dict(right, **arguments)
    with pytest.raises(error, match=match):
        check_layer(**given)


def test_a_small_layer_takes_half_a_second_and_a_large_one_the_budget():
    for shape, limit in (((8, 20), 0.5), ((256, 1000), 10.0)):
        generator = np.random.RandomState(0)
        bottoms = [generator.randn(*shape), (generator.rand(*shape) < 0.1).astype(float)]
        started = time.monotonic()
        assert_gradient(check_layer("layer_zoo", "SoftmaxLoss", bottoms))
        assert time.monotonic() - started < limit
