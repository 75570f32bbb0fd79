"""What a check found out: findings by name, the report, and the numbers a check is given. Pure Python."""

import math
import time
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

TOLERANCE = 5e-4
"""Largest relative error that passes: half a thousandth, so that an error of a thousandth is a failure."""

BUDGET = 10.0
"""Seconds a check may take."""

SEEDS = 2**31
"""The number of seeds: half as many as NumPy has, as a check also draws from the seeds after its own."""

VERDICTS = ("pass", "inconclusive", "fail")


FAULT, WARNING, NOTE = "fault", "warning", "note"
GRADIENT, PROTOCOL = "gradient", "protocol"


class Finding(str):
    """A sentence about a layer or a function.

    Attributes
    ----------
    name : str
        Stable, such as "wrong-factor".
    level : "fault", "warning" or "note"
        A fault makes the verdict "fail". A warning does harm in other circumstances than those that were checked. A
        note says what was, or was not, looked at.
    about : "gradient" or "protocol"
    """

    name: str
    level: str
    about: str

    def __new__(cls, name: str, sentence: str, level: str = FAULT, about: str = GRADIENT) -> "Finding":
        finding = super().__new__(cls, f"{name}: {sentence}")
        finding.name, finding.level, finding.about = name, level, about
        return finding

    def __getnewargs__(self):  # a string with attributes: copy and pickle need all the arguments
        return self.name, self[len(self.name) + 2 :], self.level, self.about

    @property
    def fatal(self) -> bool:
        return self.level == FAULT


class Coordinate(NamedTuple):
    """One entry of a gradient: which array, where, and what was found there."""

    array: str
    position: Tuple[int, ...]
    analytic: float
    numeric: float
    error_bar: float


GRADIENT_IN_WORDS = {"pass": "gradient right", "fail": "gradient wrong", "inconclusive": "gradient cannot be told"}


class GradientReport:
    """What a check found out: one verdict on the gradient, one on the protocol.

    Attributes
    ----------
    subject : str
        What was checked.
    gradient : "pass", "fail" or "inconclusive"
        Whether it is the slope of the loss.
    protocol : "pass", "warnings" or "fail"
        Whether the layer keeps the rules of Caffe; a breach that does no harm as things stand is a warning.
    verdict : "pass", "fail" or "inconclusive"
        Of both together: "pass" with warnings, too.
    relative_error, error_bar : float
        The largest error of a probe, relative to the gradient's largest entry (a coordinate) or norm (a direction).
    factor : float
        The fitted <a, n> / <n, n> of analytic and numeric slopes: 1 where the gradient is right, nan where unknown.
    findings : list of Finding
        Sentences, each with a `name` and a `level`.
    worst : list of Coordinate
        The coordinates furthest off.
    mode : str
        What was evaluated: the function, the layer in Caffe, or the layer on float64 stand-ins.
    notes : list of str
        What was looked at, and how long it took.

    Examples
    --------
    >>> from multilabel_softmax_loss import check_function
    >>> report = check_function(lambda x: (x**2).sum(), lambda x: x, [1.0, 2.0, 3.0])
    >>> print(report.verdict, report.findings[0].name, round(report.factor, 3))
    fail wrong-factor 0.5
    """

    def __init__(self, subject, gradient, relative_error=math.nan, error_bar=math.nan, factor=math.nan,
                 findings=(), worst=(), mode="", notes=(), tolerance=TOLERANCE):  # fmt: skip
        self.subject = subject
        self.gradient = gradient
        self.relative_error = relative_error
        self.error_bar = error_bar
        self.factor = factor
        self.findings = list(findings)
        self.worst = list(worst)
        self.mode = mode
        self.notes = list(notes)
        self.tolerance = tolerance

    @property
    def verdict(self) -> str:
        return "fail" if any(finding.fatal for finding in self.findings) else self.gradient

    @property
    def warnings(self) -> List[Finding]:
        return [finding for finding in self.findings if finding.level == WARNING]

    @property
    def faults(self) -> List[Finding]:
        """The breaches of the protocol that do harm."""
        return [finding for finding in self.findings if finding.fatal and finding.about == PROTOCOL]

    @property
    def protocol(self) -> str:
        return "fail" if self.faults else "warnings" if self.warnings else "pass"

    @property
    def names(self) -> List[str]:
        """Names of the findings."""
        return [finding.name for finding in self.findings]

    @property
    def in_words(self) -> str:
        """Both verdicts, such as "gradient right; 2 warnings"."""
        counts = [
            f"{len(found)} {word}{'s' if len(found) > 1 else ''}"
            for found, word in ((self.faults, "fault"), (self.warnings, "warning")) if found
        ]  # fmt: skip
        return f"{GRADIENT_IN_WORDS[self.gradient]}; {', '.join(counts) or 'no warnings'}"

    def as_dict(self) -> Dict[str, Any]:
        """Everything, as JSON knows it; what is not finite becomes None."""

        def plain(number):
            return float(number) if math.isfinite(number) else None

        return {
            "subject": self.subject,
            "verdict": self.verdict,
            "gradient": self.gradient,
            "protocol": self.protocol,
            "relative_error": plain(self.relative_error),
            "error_bar": plain(self.error_bar),
            "tolerance": self.tolerance,
            "factor": plain(self.factor),
            "findings": [
                {"name": f.name, "sentence": str(f), "level": f.level, "about": f.about, "fatal": f.fatal}
                for f in self.findings
            ],
            "worst": [dict(zip(w._fields, (w.array, list(w.position), *map(plain, w[2:])))) for w in self.worst],
            "mode": self.mode,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper()}: {self.subject}: {self.in_words}"]
        if math.isfinite(self.relative_error):
            lines.append(
                f"  relative error {self.relative_error:.2g} +- {self.error_bar:.1g}"
                f" (tolerance {self.tolerance:g}), factor {self.factor:.6g}"
            )
        for level in (FAULT, WARNING, NOTE):
            lines += [f"  {level} {finding}" for finding in self.findings if finding.level == level]
        if self.mode:
            lines.append(f"  judged on: {self.mode}")
        lines += [f"  {note}" for note in self.notes]
        if self.worst:
            names = [f"{w.array}[{', '.join(map(str, w.position))}]" for w in self.worst]
            width = max([len("worst coordinates")] + [len(name) for name in names])
            lines.append(f"  {'worst coordinates':{width}}  {'analytic':>14}  {'numeric':>14}  {'+-':>8}")
            for name, w in zip(names, self.worst):
                lines.append(f"  {name:{width}}  {w.analytic:14.7g}  {w.numeric:14.7g}  {w.error_bar:8.1g}")
        return "\n".join(lines)

    __repr__ = __str__


def assert_gradient(report: GradientReport, strict: bool = False) -> None:
    """Raise AssertionError with the report's text unless the verdict is "pass"; with `strict`, for a warning too.

    >>> from multilabel_softmax_loss import check_function
    >>> assert_gradient(check_function(lambda x: (x**2).sum(), lambda x: 2 * x, [1.0, 2.0, 3.0]))
    """
    if report.verdict != "pass" or (strict and report.warnings):
        raise AssertionError(str(report))


def report_of(subject, judgements, findings, mode, tolerance, started) -> GradientReport:
    """One report from the findings about the whole and the judgement of each array."""
    findings = list(findings)
    for judged in judgements:
        findings += judged.findings
    worst = sorted((w for m in judgements for w in m.worst), key=lambda w: -abs(w.analytic - w.numeric))
    gradient = max([m.verdict for m in judgements] or ["inconclusive"], key=VERDICTS.index)
    if any(finding.fatal and finding.about == GRADIENT for finding in findings):
        gradient = "fail"
    notes = [m.note for m in judgements] + [f"{time.monotonic() - started:.2f} s"]
    known = [m for m in judgements if math.isfinite(m.relative_error)]
    report = GradientReport(subject, gradient, findings=findings, worst=worst[:6], mode=mode, notes=notes,
                            tolerance=tolerance)  # fmt: skip
    if known:
        head = max(known, key=lambda m: (VERDICTS.index(m.verdict), m.relative_error))
        report.relative_error, report.error_bar, report.factor = head.relative_error, head.error_bar, head.factor
    return report


def check_numbers(tolerance: float, budget: float, seed: int) -> None:
    """Raise ValueError for a tolerance or a budget that is not a positive number, or for no seed."""
    for name, number in (("tolerance", tolerance), ("budget", budget)):
        if not (isinstance(number, (int, float)) and math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number!r}; expected a positive number.")
    if not (isinstance(seed, (int, np.integer)) and 0 <= seed < SEEDS):
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to {SEEDS - 1}.")


def checked_array(array: Any, name: str) -> np.ndarray:
    """A float64 copy; a TypeError unless it holds real numbers."""
    try:
        if np.asarray(array).dtype.kind in "fiub":
            return np.array(array, dtype=np.float64)
    except ValueError:  # rows that differ in length
        pass
    raise TypeError(f"{name} is {array!r:.80}; expected an array of real numbers.")
