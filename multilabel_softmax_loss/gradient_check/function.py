"""The gradient checker of functions. NumPy only, no Caffe."""

import time
from typing import Any, Callable, List

import numpy as np

from .judgement import Judgement, Question, judge
from .report import BUDGET, PROTOCOL, TOLERANCE, Finding, GradientReport, check_numbers, checked_array, report_of


def check_function(
    loss: Callable[[np.ndarray], float],
    gradient: Any,
    x: Any,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    budget: float = BUDGET,
    name: str = "",
) -> GradientReport:
    """Check the gradient of a scalar function of an array, in float64.

    Parameters
    ----------
    loss : function of a float64 array with the shape of `x`, returning a number
    gradient : function of the same, returning an array of the same shape; or that array at `x`
    x : array
        Where to check; not empty. Infinite entries stay as they are.
    tolerance, seed, budget : float, int, seconds
    name : str
        What to call it in the report.

    Returns
    -------
    report : GradientReport
        An exception of `loss` or `gradient`, or a gradient of another shape, is a finding.

    Raises
    ------
    ValueError, TypeError : an argument is none of the above.

    >>> print(check_function(lambda x: (x ** 2).sum(), lambda x: 2 * x, [1.0, 2.0, 3.0]).verdict)
    pass
    """
    check_numbers(tolerance, budget, seed)
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; expected a function of an array.")
    x = checked_array(x, "x")
    if x.size == 0 or np.isnan(x).any():
        found = f"is empty, of shape {x.shape}" if x.size == 0 else f"has nan at {np.argwhere(np.isnan(x))[0].tolist()}"
        raise ValueError(f"x {found}; expected numbers, or there is no slope to measure.")
    if not callable(gradient):
        gradient = checked_array(gradient, "gradient")
    started = time.monotonic()
    findings: List[Finding] = []
    judged: List[Judgement] = []
    try:
        judged.append(judge(pose_question(loss, gradient, x, findings, tolerance, seed, started + budget)))
    except WrongShape as error:
        findings = [Finding("wrong-shape", str(error))]
    except Exception as error:
        findings.append(Finding("raises", f"{type(error).__name__}: {error}", about=PROTOCOL))
    subject = name or getattr(loss, "__name__", type(loss).__name__)
    return report_of(subject, judged, findings, "the function in float64", tolerance, started)


class WrongShape(ValueError):
    """The gradient is not shaped like the argument."""


def pose_question(loss, gradient, x, findings, tolerance, seed, deadline) -> Question:
    """What to judge. Adds to `findings` where the loss or the gradient breaks a rule, now or in a later call."""

    def outputs(values):
        given = values.copy()
        value = np.asarray(loss(given), dtype=np.float64)
        if value.size != 1:
            raise ValueError(f"the loss has shape {value.shape}; expected one number.")
        if not np.array_equal(given, values, equal_nan=True) and not findings:
            findings.append(Finding("writes-input", "the loss writes into its argument.", about=PROTOCOL))
        return value.reshape(1)

    analytic = gradient
    if callable(gradient):
        given = x.copy()
        analytic = np.array(gradient(given), dtype=np.float64)
        if not np.array_equal(given, x, equal_nan=True):
            findings.append(Finding("writes-input", "the gradient writes into its argument.", about=PROTOCOL))
    if analytic.shape != x.shape:
        raise WrongShape(f"the gradient has shape {analytic.shape}; expected {x.shape}, that of the argument.")
    first, second = outputs(x), outputs(x)
    if not np.array_equal(first, second, equal_nan=True):
        sentence = f"two calls with one argument give {first[0]:g} and {second[0]:g}."
        findings.append(Finding("random-loss", sentence, about=PROTOCOL))
    return Question(
        outputs=outputs, weights=np.ones(1), analytic=analytic, x=x, array="x", tolerance=tolerance, seed=seed,
        deadline=deadline,
    )  # fmt: skip
