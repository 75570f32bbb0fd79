"""No right gradient is called wrong because its loss bends on a scale, or has kinks, that the steps do not see."""

import numpy as np
import pytest

from multilabel_softmax_loss import check_function
from multilabel_softmax_loss.gradient_check.settling import OPEN, REFUTED, SUPPORTED, settle
from multilabel_softmax_loss.gradient_check.slopes import Objective, Probe, direction

SEEDS = range(3)


def normal(center=0.0, size=20):
    return lambda seed: center + np.random.RandomState(seed).randn(size)


def powers(least, size=8):
    return lambda seed: 10.0 ** np.random.RandomState(seed).uniform(least, 1, size)


def in_float32(x):
    return np.asarray(x).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


BENDS = [
    pytest.param(lambda x: np.tanh(x - 1e4).sum(), lambda x: 1 - np.tanh(x - 1e4) ** 2, normal(1e4), id="tanh far off"),
    pytest.param(lambda x: np.sin(3e4 * x).sum(), lambda x: 3e4 * np.cos(3e4 * x), normal(size=10), id="quick sine"),
    pytest.param(lambda x: -np.log(x).sum(), lambda x: -1 / x, powers(-9), id="log next to 0"),
    pytest.param(lambda x: (1 / x).sum(), lambda x: -1 / x**2, powers(-6), id="1/x next to 0"),
    pytest.param(lambda x: np.sqrt(x).sum(), lambda x: 0.5 / np.sqrt(x), powers(-12), id="root next to 0"),
    pytest.param(lambda x: sigmoid(1e6 * (x - 100)).sum(),
                 lambda x: 1e6 * sigmoid(1e6 * (x - 100)) * (1 - sigmoid(1e6 * (x - 100))),
                 lambda seed: 100 + 1e-6 * np.random.RandomState(seed).randn(8), id="a step of a millionth"),
]  # fmt: skip

KINKS = [
    pytest.param(lambda x: float(np.abs(in_float32(x)).sum()), np.sign, id="L1 in float32"),
    pytest.param(lambda x: np.maximum(0, 1 - in_float32(x)).sum(dtype=float), lambda x: -1.0 * (x < 1), id="hinge"),
    pytest.param(lambda x: (np.maximum(0, in_float32(x)) ** 2).sum(dtype=float), lambda x: 2 * np.maximum(0, x),
                 id="squared hinge"),
]  # fmt: skip


@pytest.mark.parametrize("loss, gradient, draw", BENDS)
def test_a_right_gradient_of_a_loss_that_bends_on_a_small_scale_does_not_fail(loss, gradient, draw):
    for seed in SEEDS:
        assert check_function(loss, gradient, draw(seed), seed=seed).verdict != "fail"


@pytest.mark.parametrize("loss, gradient, draw", BENDS[:3])
def test_there_a_wrong_gradient_does_not_pass(loss, gradient, draw):
    for seed in SEEDS:
        assert check_function(loss, lambda x: 1.01 * gradient(x), draw(seed), seed=seed).verdict == "fail"


@pytest.mark.parametrize("size", [20, 2000])
@pytest.mark.parametrize("loss, gradient", KINKS)
def test_directions_that_cross_kinks_fail_no_right_gradient(loss, gradient, size):
    for seed in SEEDS:
        assert check_function(loss, gradient, normal(size=size)(seed), seed=seed).verdict != "fail"


@pytest.mark.parametrize("size", [20, 2000])
@pytest.mark.parametrize("loss, gradient", KINKS)
def test_among_kinks_a_wrong_gradient_still_fails(loss, gradient, size):
    assert check_function(loss, lambda x: 1.02 * gradient(x), normal(size=size)(0)).verdict == "fail"


def test_what_most_coordinates_hide_is_inconclusive():
    x = np.zeros(10)
    x[0] = 4
    report = check_function(lambda x: np.sqrt(x).sum(), lambda x: np.where(x > 0, 0.25, 123.0), x)
    assert report.verdict == "inconclusive"
    assert "no slope that could be measured" in report.findings[-1]


def test_the_largest_coordinate_counts_more_than_the_many():
    """Only the one whose sign is unknown has a gradient worth mentioning."""
    x = np.array([0.0, *np.linspace(1, 2, 9)])
    report = check_function(lambda x: 1e6 * np.abs(x[0]) + x[1:].sum(), lambda x: np.r_[1e6, np.ones(9)], x)
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("claim, outcome", [(1.0, SUPPORTED), (1.001, REFUTED), (0.0, REFUTED)])
def test_a_claim_is_supported_or_refuted(claim, outcome):
    objective = Objective(lambda x: np.array([np.sin(x).sum()]), np.ones(1), np.zeros(3), 0)
    assert settle(objective, Probe(index=0), 1.0, claim, 0.5, 1e-4).outcome == outcome


def test_at_a_kink_and_outside_the_domain_a_claim_is_left_open():
    for function in (lambda x: np.maximum(x, 0).sum(), lambda x: np.sqrt(x).sum()):
        objective = Objective(lambda x, f=function: np.array([f(x)]), np.ones(1), np.array([0.0, 1.0]), 0)
        assert settle(objective, Probe(index=0), 1.0, 1.0, 0.5, 1e-4).outcome == OPEN


def test_a_direction_is_settled_too():
    x = np.random.RandomState(0).randn(30)
    objective = Objective(lambda x: np.array([(x**2).sum()]), np.ones(1), x, 0)
    probe = Probe(vector=direction(x.shape, np.random.RandomState(1)))
    assert settle(objective, probe, 1.0, probe.slope(2 * x), 0.0, 1e-4).outcome == SUPPORTED
    assert settle(objective, probe, 1.0, probe.slope(2.01 * x), 0.0, 1e-4).outcome == REFUTED


def test_a_factor_takes_more_than_a_few_coordinates_of_thousands():
    """Where the others are 0 any factor fits."""
    weights = np.zeros(500)
    weights[:4] = 1, 1e-3, 1e-3, 1e-3
    report = check_function(lambda x: weights @ x, lambda x: 17 * weights, np.random.RandomState(0).randn(500))
    assert report.verdict == "fail"
    assert "wrong-factor" not in report.names
