"""The gradient checker of functions: NumPy only."""

import json

import numpy as np
import pytest

from multilabel_softmax_loss import GradientReport, assert_gradient, check_function
from multilabel_softmax_loss.gradient_check import judgement
from multilabel_softmax_loss.gradient_check.diagnosis import factor_names
from multilabel_softmax_loss.gradient_check.report import Finding
from multilabel_softmax_loss.gradient_check.slopes import Objective, Probe, direction, quantum, scales

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(6, 5)
TARGETS = np.eye(5)[RANDOM.randint(5, size=6)]


def log_softmax(x):
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def loss(x):
    return -np.sum(TARGETS * log_softmax(x)) / len(x)


def gradient(x):
    return (np.exp(log_softmax(x)) - TARGETS) / len(x)


def loss_in_float32(x):
    return float(np.float32(loss(x)))


@pytest.mark.parametrize("function", [loss, loss_in_float32])
def test_a_right_gradient_passes(function):
    report = check_function(function, gradient, X)
    assert_gradient(report)
    assert report.verdict == "pass"
    assert report.relative_error + report.error_bar <= 5e-4
    assert report.factor == pytest.approx(1, abs=1e-4)
    assert report.names == []


@pytest.mark.parametrize("function", [loss, loss_in_float32])
def test_a_gradient_off_by_a_thousandth_fails(function):
    report = check_function(function, lambda x: 1.001 * gradient(x), X)
    assert report.verdict == "fail"
    assert report.factor == pytest.approx(1.001, abs=2e-4)


def only(entries):
    """The gradient, but 0 at these entries."""

    def wrong(x):
        result = gradient(x)
        result[entries] = 0
        return result

    return wrong


@pytest.mark.parametrize("wrong, name, says", [
    pytest.param(lambda x: -gradient(x), "sign-error", "opposite sign", id="sign"),
    pytest.param(lambda x: 2 * gradient(x), "wrong-factor", ": 2.", id="2"),
    pytest.param(lambda x: 6 * gradient(x), "wrong-factor", r"shape[0] with shape[0] = 6", id="N"),
    pytest.param(lambda x: gradient(x) / 5, "wrong-factor", r"1/shape[1] with shape[1] = 5", id="1/C"),
    pytest.param(lambda x: 0 * x, "zero-gradient", "zero everywhere", id="zero"),
    pytest.param(only(np.s_[:, 3]), "wrong-positions", "axis 1, position 3 (right at the other 4 of 5)", id="class"),
    pytest.param(only(np.s_[[0, 4]]), "wrong-positions", "axis 0, position 0, 4 (right at", id="samples"),
    pytest.param(lambda x: np.sin(9 * x), "wrong-gradient", "cosine", id="unrelated"),
    pytest.param(lambda x: gradient(x) + 0.01, "wrong-gradient", "cosine", id="constant along all axes"),
    pytest.param(lambda x: gradient(x)[0], "wrong-shape", "(5,)", id="shape"),
    pytest.param(lambda x: gradient(x) * np.nan, "gradient-not-finite", "nan", id="nan"),
    pytest.param(lambda x: 1 / 0, "raises", "ZeroDivisionError", id="exception"),
])  # fmt: skip
def test_a_wrong_gradient_fails_by_name(wrong, name, says):
    report = check_function(loss, wrong, X)
    assert report.verdict == "fail"
    assert report.names == [name]
    assert says in report.findings[0]


def test_gradients_that_are_both_zero_pass_and_say_so():
    report = check_function(lambda x: 3.0, np.zeros_like, X)
    assert report.verdict == "pass"
    assert report.names == ["both-zero"]


def test_a_small_gradient_has_no_absolute_floor():
    """Twice the gradient of a loss scaled by 1e-9 is as wrong as any."""
    report = check_function(lambda x: 1e-9 * loss(x), lambda x: 2e-9 * gradient(x), X)
    assert report.names == ["wrong-factor"]
    assert_gradient(check_function(lambda x: 1e-9 * loss(x), lambda x: 1e-9 * gradient(x), X))


@pytest.mark.parametrize("hidden", [
    pytest.param(lambda x: loss(x) + 1e14, id="float64"),
    pytest.param(lambda x: float(np.float32(loss(x) + 1e5)), id="float32"),
    pytest.param(lambda x: float(np.float32(3 * loss(x) + 1e5)) / 3, id="float32, divided afterwards"),
    pytest.param(lambda x: round(loss(x), 2), id="decimals"),
])  # fmt: skip
@pytest.mark.parametrize("claimed", [gradient, lambda x: 1.002 * gradient(x)])
def test_what_rounding_hides_is_inconclusive(hidden, claimed):
    report = check_function(hidden, claimed, X)
    assert report.verdict == "inconclusive"
    assert "cannot-tell" in report.names
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        assert_gradient(report)


LARGE = RANDOM.randn(200, 10)
LARGE_TARGETS = np.eye(10)[RANDOM.randint(10, size=200)]


def mean_loss(x):
    return -np.sum(LARGE_TARGETS * log_softmax(x)) / len(x)


def mean_gradient(x):
    return (np.exp(log_softmax(x)) - LARGE_TARGETS) / len(x)


def aside(x):
    """As long as the gradient, and not along it."""
    noise = np.random.RandomState(8).randn(*x.shape)
    return noise * np.linalg.norm(mean_gradient(x)) / np.linalg.norm(noise)


@pytest.mark.parametrize("offset, claimed, verdict", [
    pytest.param(0, mean_gradient, "pass", id="right"),
    pytest.param(30, lambda x: 1.001 * mean_gradient(x), "fail", id="off by a thousandth"),
    pytest.param(300, lambda x: 1.01 * mean_gradient(x), "fail", id="off by a hundredth"),
])  # fmt: skip
def test_more_directions_tell_what_rounding_hides_in_each_coordinate(monkeypatch, offset, claimed, verdict):
    def rounded(x):
        return float(np.float32(mean_loss(x) + offset))

    report = check_function(rounded, claimed, LARGE)
    assert report.verdict == verdict
    assert ("the directions decide" in report.notes[0]) == (verdict == "pass")
    monkeypatch.setattr(judgement, "MORE_DIRECTIONS", 0)
    assert check_function(rounded, claimed, LARGE).verdict == "inconclusive"


def test_the_slope_along_the_gradient_is_no_yardstick_for_other_directions():
    """It is far beyond the norm where a gradient is of many sizes."""
    slopes = np.exp(1.5 * np.random.RandomState(9).randn(4000))
    for offset, verdict in ((1e5, "pass"), (1e6, "inconclusive")):
        report = check_function(lambda x, by=offset: float(np.float32(slopes @ x + by)), slopes, np.ones(4000))
        assert report.verdict == verdict


def test_more_directions_measure_the_factor_where_nothing_can_be_told():
    report = check_function(lambda x: float(np.float32(mean_loss(x) + 3e4)), lambda x: 1.01 * mean_gradient(x), LARGE)
    assert report.verdict == "inconclusive"
    assert report.factor == pytest.approx(1.01, abs=2e-3)


@pytest.mark.parametrize("offset", [0, 4, 30])
@pytest.mark.parametrize("size, verdicts", [(1e-3, {"inconclusive", "fail"}), (1e-2, {"fail"})])
def test_more_directions_pass_no_gradient_that_is_off_sideways(offset, size, verdicts):
    report = check_function(
        lambda x: float(np.float32(mean_loss(x) + offset)), lambda x: mean_gradient(x) + size * aside(x), LARGE
    )
    assert report.verdict in verdicts
    assert "wrong-factor" not in report.names


def absolute(x):
    return np.abs(x).sum()


@pytest.mark.parametrize("distance", [0.0, 1e-9, 1e-5, 1e-3, 1e-2, 0.1])
def test_a_kink_is_resolved_or_reported_and_never_a_failure(distance):
    x = np.array([1.0, -2.0, distance, 0.7, 3.0])
    for function, slope in ((absolute, np.sign), (lambda x: np.maximum(x, 0).sum(), lambda x: (x >= 0) * 1.0)):
        report = check_function(function, slope, x)
        assert report.verdict == "pass"
        if distance == 0:
            assert report.names == ["kink"]
            assert "[2]" in report.findings[0]


def test_a_kink_elsewhere_hides_no_wrong_gradient():
    x = np.array([1.0, -2.0, 0.0, 0.7, 3.0])
    report = check_function(absolute, lambda x: np.sign(x) * [1, 1, 1, 1.1, 1], x)
    assert report.verdict == "fail"
    assert "axis 0, position 3" in str(report)


def test_nothing_but_kinks_is_inconclusive():
    assert check_function(absolute, np.sign, np.zeros(4)).verdict == "inconclusive"


def test_steps_suit_each_coordinate_and_the_domain():
    x = np.array([1e-6, 1e-2, 1.0, 1e4])
    assert_gradient(check_function(lambda x: np.log(x).sum(), lambda x: 1 / x, x))
    assert_gradient(check_function(lambda x: np.sqrt(x).sum(), lambda x: 0.5 / np.sqrt(x), x))


def test_entries_that_are_not_finite_are_left_alone():
    x = X.copy()
    x[0, 1] = -np.inf
    mask = np.where(np.isfinite(x), TARGETS, 0)

    def masked_loss(x):
        return -np.sum(np.where(mask > 0, log_softmax(x), 0))

    def masked_gradient(x):
        return mask.sum(axis=1, keepdims=True) * np.exp(log_softmax(x)) - mask

    assert_gradient(check_function(masked_loss, masked_gradient, x))


@pytest.mark.parametrize("shape", [(100, 12), (12, 100), (10, 6, 4, 5)])
def test_a_large_problem_is_sampled_and_single_positions_still_show(shape):
    x = np.random.RandomState(1).randn(*shape)
    weights = np.random.RandomState(2).uniform(0.5, 1, shape)

    def cubes(x):
        return np.sum(weights * x**3)

    def slopes(x):
        return 3 * weights * x**2

    assert_gradient(check_function(cubes, slopes, x))
    for axis in range(len(shape)):
        last = (slice(None),) * axis + (-1,)

        def wrong(x, last=last):
            result = slopes(x)
            result[last] = 0
            return result

        report = check_function(cubes, wrong, x)
        assert report.verdict == "fail"
        assert f"axis {axis}, position {shape[axis] - 1} (right" in report.findings[0]


def test_what_the_gradient_misses_where_it_is_small_shows():
    """A term of a thousandth of the norm, spread over the coordinates where the gradient claims 0."""
    x = np.random.RandomState(3).randn(200, 20)
    big = np.zeros_like(x)
    big[:, 0] = 1
    report = check_function(lambda x: np.sum(big * x) + 0.02 * np.sum(np.sin(x[:, 1:])), lambda x: big, x)
    assert report.verdict == "fail"


def test_the_budget_is_kept(clock):
    def slow(x):
        clock.now += 0.002
        return float(np.sum(x**2))

    x = np.random.RandomState(4).randn(500)
    report = check_function(slow, lambda x: 2 * x, x, budget=0.5)
    assert clock.now < 0.5  # all coordinates would take 4
    assert report.verdict == "pass"


def test_no_time_is_inconclusive_with_a_sentence(clock):
    def slow(x):
        clock.now += 1
        return loss(x)

    report = check_function(slow, gradient, X, budget=0.5)
    assert report.verdict == "inconclusive"
    assert report.names == ["cannot-tell"]


def test_a_seed_repeats_the_check():
    x = np.random.RandomState(5).randn(50, 30)

    def check(seed):
        return check_function(lambda x: np.sum(x**4), lambda x: 4 * x**3, x, seed=seed)

    assert check(7).worst == check(7).worst != check(8).worst


def test_arguments_that_are_written_to_are_found_and_restored():
    x = X.copy()

    def writes(x):
        value = loss(x)
        x -= 1
        return value

    report = check_function(writes, gradient, x)
    assert report.names == ["writes-input"]
    np.testing.assert_array_equal(x, X)
    assert check_function(loss, lambda x: gradient(np.subtract(x, 1, out=x)), x).names == ["writes-input"]


def test_hidden_randomness_is_found():
    assert "random-loss" in check_function(lambda x: loss(x) + RANDOM.rand(), gradient, X).names


def test_the_report_shows_everything():
    report = check_function(loss, lambda x: 2 * gradient(x), X, name="the loss")
    text = str(report)
    for part in ("FAIL: the loss", "relative error", "factor 2", "wrong-factor: x: ", "analytic", "numeric", "x["):
        assert part in text
    assert report.worst[0].analytic == pytest.approx(2 * report.worst[0].numeric, rel=1e-5)
    as_json = json.loads(json.dumps(report.as_dict()))
    assert as_json["verdict"] == "fail"
    assert as_json["findings"][0]["name"] == "wrong-factor"
    with pytest.raises(AssertionError, match="wrong-factor"):
        assert_gradient(report)
    assert json.loads(json.dumps(GradientReport("nothing", "inconclusive").as_dict()))["factor"] is None


@pytest.mark.parametrize("value, name", [(0, "tolerance"), (float("nan"), "tolerance"), ("1", "tolerance")])
def test_a_tolerance_is_a_positive_number(value, name):
    with pytest.raises(ValueError, match=f"{name} is .*; expected a positive number"):
        check_function(loss, gradient, X, tolerance=value)


@pytest.mark.parametrize("changes, error, match", [
    pytest.param({"seed": -1}, ValueError, "seed is -1; expected a whole number from 0 to 2147483647", id="seed"),
    pytest.param({"seed": 1.5}, ValueError, "seed is 1.5; expected a whole number", id="fractional seed"),
    pytest.param({"loss": 3.0}, TypeError, "loss is 3.0; expected a function", id="no function"),
    pytest.param({"gradient": None}, TypeError, "gradient is None; expected an array of real", id="no gradient"),
    pytest.param({"x": None}, TypeError, "x is None; expected an array of real numbers", id="no x"),
    pytest.param({"x": ["a"]}, TypeError, r"x is \['a'\]; expected an array of real numbers", id="words"),
    pytest.param({"x": [[0.0, np.nan]]}, ValueError, r"x has nan at \[0, 1\]; expected numbers", id="nan"),
    pytest.param({"x": np.zeros((0, 3))}, ValueError, r"x is empty, of shape \(0, 3\)", id="empty"),
])  # fmt: skip
def test_bad_arguments_are_errors_and_no_findings(changes, error, match):
    with pytest.raises(error, match=match):
        check_function(**{"loss": loss, "gradient": gradient, "x": X, **changes})


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (1, 7), (3, 4, 2), (50,)])
def test_directions_are_constant_along_no_axis(shape):
    for seed in range(20):
        vector = direction(shape, np.random.RandomState(seed))
        assert np.sqrt(np.mean(vector**2)) == pytest.approx(1)
        for axis, size in enumerate(shape):
            if size > 1:
                assert (vector.max(axis=axis) > vector.min(axis=axis)).all()


def test_a_slow_loss_is_measured_within_the_budget(clock):
    def loss(x):
        clock.now += 0.1
        return (x**2).sum()

    report = check_function(loss, lambda x: 2 * x, np.arange(1.0, 6), budget=5)
    assert clock.now < 5.5
    assert_gradient(report)


DATA = np.random.RandomState(0).randn(20, 3)
ANSWER = DATA @ np.array([0.3, -1.2, 2.1])


@pytest.mark.parametrize(
    "loss, gradient, x, verdict",
    [
        pytest.param(
            lambda x: np.maximum(0, 1 - x).sum(), lambda x: -1.0 * (x < 1), np.full(5, 4.0), "pass", id="hinge far off"
        ),
        pytest.param(
            lambda x: np.maximum(0, 1 - x).sum(), lambda x: 0 * x, np.array([4.0, 0.0]), "fail", id="hinge half off"
        ),
        pytest.param(
            lambda x: ((DATA @ x - ANSWER) ** 2).mean(), lambda x: 2 * DATA.T @ (DATA @ x - ANSWER) / 20,
            np.array([0.3, -1.2, 2.1]), "inconclusive", id="least squares solved",
        ),
        pytest.param(
            lambda x: ((x - ANSWER) ** 2).sum(), lambda x: 2 * (x - ANSWER), ANSWER, "inconclusive", id="at the minimum"
        ),
        pytest.param(
            lambda x: ((x - ANSWER) ** 2).sum(), lambda x: 2 * (x - ANSWER), ANSWER + 1e-8, "pass", id="near it"
        ),
        pytest.param(
            lambda x: ((x - ANSWER) ** 2).sum(), lambda x: x - ANSWER, ANSWER + 1e-8, "fail", id="near it, half"
        ),
        pytest.param(lambda x: (x**2).sum(), lambda x: 2 * x, np.full(5, 1e-200), "inconclusive", id="loss underflows"),
        pytest.param(lambda x: 1e9 + 1e-6 * x.sum(), lambda x: 0 * x, np.ones(3), "fail", id="hardly a slope"),
    ],
)  # fmt: skip
def test_losses_of_zero_are_neither_failures_nor_passed_blindly(loss, gradient, x, verdict):
    assert check_function(loss, gradient, x).verdict == verdict


def test_the_step_is_the_one_there_is_after_rounding():
    x = np.array([1000.1, 0.3, 1024], dtype=np.float32)
    plus, minus, apart, uneven = Probe(index=0).pair(x, 1e-3)
    assert apart == float(plus[0]) - float(minus[0]) != 2e-3
    assert 0 < uneven < 1e-12  # of float64, for what a function rounds within
    plus, minus, apart, uneven = Probe(index=2).pair(x, 9e-5)  # the float32 below are closer than those above
    assert uneven == abs(float(plus[2]) + float(minus[2]) - 2048) > 1e-5
    assert scales(np.array([1000.1, 0.3, 0.001])).tolist() == [1024, 0.25, 0.25]


@pytest.mark.parametrize("digits", [1e-3, 1e-6, 1e-9])
def test_measured_noise_is_about_that_of_rounding(digits):
    x = np.random.RandomState(6).randn(30)
    objective = Objective(lambda x: np.array([np.round(np.sum(np.sin(x)) / digits) * digits]), np.ones(1), x, 0)
    assert digits / 12 < objective.noise < 12 * digits


def test_a_quantum_is_found_only_where_there_is_one():
    values = np.random.RandomState(7).randn(40)
    assert quantum(np.round(values / 0.03) * 0.03) == pytest.approx(0.03)
    assert quantum(values) == 0
    assert quantum(np.append(values, values)) == 0


def test_a_factor_has_every_name_that_fits():
    assert factor_names(2.0, {"N": 2, "C": 5}, 1e-3) == ["2", "N with N = 2"]
    assert factor_names(-0.2, {"N": 2, "C": 5}, 1e-3) == ["-1/C with C = 5"]
    assert factor_names(1.3, {"N": 2}, 1e-3) == []


def test_a_finding_is_its_sentence_and_survives_copying():
    import copy
    import pickle

    finding = Finding("kink", "here", "note")
    assert finding == "kink: here"
    for other in (copy.deepcopy(finding), pickle.loads(pickle.dumps(finding))):
        assert (other, other.name, other.level, other.fatal) == (finding, "kink", "note", False)
