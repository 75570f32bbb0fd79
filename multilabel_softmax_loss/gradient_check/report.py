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


class Finding(str):
    """A sentence about a gradient, with a stable `name`; `fatal` ones make the verdict "fail"."""

    name: str
    fatal: bool

    def __new__(cls, name: str, sentence: str, fatal: bool = True) -> "Finding":
        finding = super().__new__(cls, f"{name}: {sentence}")
        finding.name = name
        finding.fatal = fatal
        return finding

    def __getnewargs__(self):  # a string with attributes: copy and pickle need all the arguments
        return self.name, self[len(self.name) + 2 :], self.fatal


class Coordinate(NamedTuple):
    """One entry of a gradient: which array, where, and what was found there."""

    array: str
    position: Tuple[int, ...]
    analytic: float
    numeric: float
    error_bar: float


class GradientReport:
    """What a check found out.

    Attributes
    ----------
    subject : str
        What was checked.
    verdict : "pass", "fail" or "inconclusive"
    relative_error, error_bar : float
        The largest error of a probe, relative to the gradient's largest entry (a coordinate) or norm (a direction).
    factor : float
        The fitted <a, n> / <n, n> of analytic and numeric slopes: 1 where the gradient is right, nan where unknown.
    findings : list of Finding
        Sentences, each with a `name`.
    worst : list of Coordinate
        The coordinates furthest off.
    mode : str
        What was evaluated: the function, the layer in Caffe, or the layer on float64 stand-ins.
    notes : list of str
        What was looked at, and how long it took.
    """

    def __init__(self, subject, verdict, relative_error=math.nan, error_bar=math.nan, factor=math.nan,
                 findings=(), worst=(), mode="", notes=(), tolerance=TOLERANCE):  # fmt: skip
        self.subject = subject
        self.verdict = verdict
        self.relative_error = relative_error
        self.error_bar = error_bar
        self.factor = factor
        self.findings = list(findings)
        self.worst = list(worst)
        self.mode = mode
        self.notes = list(notes)
        self.tolerance = tolerance

    @property
    def names(self) -> List[str]:
        """Names of the findings."""
        return [finding.name for finding in self.findings]

    def as_dict(self) -> Dict[str, Any]:
        """Everything, as JSON knows it; what is not finite becomes None."""

        def plain(number):
            return float(number) if math.isfinite(number) else None

        return {
            "subject": self.subject,
            "verdict": self.verdict,
            "relative_error": plain(self.relative_error),
            "error_bar": plain(self.error_bar),
            "tolerance": self.tolerance,
            "factor": plain(self.factor),
            "findings": [{"name": f.name, "sentence": str(f), "fatal": f.fatal} for f in self.findings],
            "worst": [dict(zip(w._fields, (w.array, list(w.position), *map(plain, w[2:])))) for w in self.worst],
            "mode": self.mode,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        head = f"{self.verdict.upper()}: {self.subject}"
        if math.isfinite(self.relative_error):
            head += (
                f", relative error {self.relative_error:.2g} +- {self.error_bar:.1g}"
                f" (tolerance {self.tolerance:g}), factor {self.factor:.6g}"
            )
        lines = [head] + [f"  {finding}" for finding in self.findings]
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


def assert_gradient(report: GradientReport) -> None:
    """Raise AssertionError with the report's text unless the verdict is "pass"."""
    if report.verdict != "pass":
        raise AssertionError(str(report))


def report_of(subject, judgements, findings, mode, tolerance, started) -> GradientReport:
    """One report from the findings about the whole and the judgement of each array."""
    findings = list(findings)
    for judged in judgements:
        findings += judged.findings
    worst = sorted((w for m in judgements for w in m.worst), key=lambda w: -abs(w.analytic - w.numeric))
    verdict = max([m.verdict for m in judgements] or ["inconclusive"], key=VERDICTS.index)
    if any(finding.fatal for finding in findings):
        verdict = "fail"
    notes = [m.note for m in judgements] + [f"{time.monotonic() - started:.2f} s"]
    known = [m for m in judgements if math.isfinite(m.relative_error)]
    report = GradientReport(subject, verdict, findings=findings, worst=worst[:6], mode=mode, notes=notes,
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
