"""Is this gradient the slope of this loss? The judgement, and the checker of functions. NumPy only, no Caffe.

Analytic slopes are compared with numeric ones (`gradient_check_slopes`) along coordinates and random directions,
relative to the gradient's own size. A verdict is given only where the error bars are below the tolerance.
"""

import math
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np

from .slopes import SAFETY, SIGMAS, Objective, Probe, Slopes, climb, direction, scales

TOLERANCE = 5e-4
"""Largest relative error that passes: half a thousandth, so that an error of a thousandth is a failure."""

BUDGET = 10.0
"""Seconds a check may take."""

ALL_COORDINATES = 600
"""Up to this size every coordinate is probed."""

SEEDS = 2**31
"""The number of seeds: half as many as NumPy has, as a check also draws from the seeds after its own."""

MORE_DIRECTIONS = 16
"""Random directions tried where rounding hides the coordinates."""

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
    subject = name or getattr(loss, "__name__", type(loss).__name__)
    started = time.monotonic()
    findings: List[Finding] = []

    def outputs(values):
        given = values.copy()
        value = np.asarray(loss(given), dtype=np.float64)
        if value.size != 1:
            raise ValueError(f"the loss has shape {value.shape}; expected one number.")
        if not np.array_equal(given, values, equal_nan=True) and not findings:
            findings.append(Finding("writes-input", "the loss writes into its argument."))
        return value.reshape(1)

    try:
        if callable(gradient):
            given = x.copy()
            analytic = np.array(gradient(given), dtype=np.float64)
            if not np.array_equal(given, x, equal_nan=True):
                findings.append(Finding("writes-input", "the gradient writes into its argument."))
        else:
            analytic = gradient
        if analytic.shape != x.shape:
            sentence = f"the gradient has shape {analytic.shape}; expected {x.shape}, that of the argument."
            return GradientReport(subject, "fail", findings=[Finding("wrong-shape", sentence)], tolerance=tolerance)
        first, second = outputs(x), outputs(x)
        if not np.array_equal(first, second, equal_nan=True):
            findings.append(Finding("random-loss", f"two calls with one argument give {first[0]:g} and {second[0]:g}."))
        measured = measure(outputs, np.ones(1), analytic, x, "x", tolerance, seed, started + budget)
    except Exception as error:
        sentence = f"{type(error).__name__}: {error}"
        return GradientReport(subject, "fail", findings=findings + [Finding("raises", sentence)], tolerance=tolerance)
    return report_of(subject, [measured], findings, "the function in float64", tolerance, started)


def report_of(subject, measurements, findings, mode, tolerance, started) -> GradientReport:
    """One report from the findings about the whole and the measurement of each array."""
    findings = list(findings)
    for measured in measurements:
        findings += measured.findings
    worst = sorted((w for m in measurements for w in m.worst), key=lambda w: -abs(w.analytic - w.numeric))
    verdict = max([m.verdict for m in measurements] or ["inconclusive"], key=VERDICTS.index)
    if any(finding.fatal for finding in findings):
        verdict = "fail"
    notes = [m.note for m in measurements] + [f"{time.monotonic() - started:.2f} s"]
    known = [m for m in measurements if math.isfinite(m.relative_error)]
    if not known:
        return GradientReport(subject, verdict, findings=findings, worst=worst[:6], mode=mode, notes=notes,
                              tolerance=tolerance)  # fmt: skip
    head = max(known, key=lambda m: (VERDICTS.index(m.verdict), m.relative_error))
    return GradientReport(subject, verdict, head.relative_error, head.error_bar, head.factor, findings, worst[:6],
                          mode, notes, tolerance)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Judgement


class Measurement(NamedTuple):
    """The judgement of the gradient with respect to one array."""

    verdict: str
    relative_error: float
    error_bar: float
    factor: float
    factor_bar: float
    findings: List[Finding]
    worst: List[Coordinate]
    note: str


def measure(outputs, weights, analytic, x, array, tolerance, seed, deadline, sizes=None, coordinates=True):
    """Compare an analytic gradient with numeric slopes of <weights, outputs(x)>.

    Parameters
    ----------
    outputs, weights, x : see Objective
    analytic : array shaped like `x`
    array : str
        What to call `x`.
    deadline : float
        By time.monotonic().
    sizes : {name: number} or None
        What a wrong factor may be called; the sizes of the axes where None.
    coordinates : bool
        False probes random directions only.

    Returns
    -------
    measured : Measurement
    """
    analytic = np.asarray(analytic, dtype=np.float64)

    def stop(verdict, note, *findings):
        return Measurement(verdict, math.nan, math.nan, math.nan, math.nan, list(findings), [], f"{array}: {note}")

    def untold(why):
        return stop("inconclusive", "not measured", Finding("cannot-tell", f"{array}: {why}.", fatal=False))

    if x.size == 0:
        return stop("pass", "empty")
    bad = ~np.isfinite(analytic)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        sentence = f"{array} has {analytic[first]} at {list(first)}, and {int(bad.sum())} such entries of {x.size}."
        return stop("fail", "gradient not finite", Finding("gradient-not-finite", sentence))
    objective = Objective(outputs, weights, x, seed, 0.2 * max(deadline - time.monotonic(), 0))
    if not math.isfinite(objective.value):
        return stop("fail", "not measured", Finding("loss-not-finite", f"the loss is {objective.value}."))

    random = np.random.RandomState(seed)
    now = time.monotonic()
    time_left = max(deadline - now, 0)
    probes = choose_probes(analytic, x, objective.seconds, time_left, random, coordinates)
    if not probes:
        return untold("no entry is finite")
    slopes = Slopes(objective, probes, now + 0.6 * time_left)
    evidence = weigh(array, analytic, slopes, tolerance, deadline, random)
    if evidence.verdict == "inconclusive" and coordinates and MORE_DIRECTIONS:
        slopes.deadline = now + 0.85 * time_left
        slopes.add(more_directions(analytic, x, random))
        evidence = weigh(array, analytic, slopes, tolerance, deadline, random, len(probes))
    verdict, probes, value, single = evidence.verdict, slopes.probes, evidence.value, evidence.single
    probed = np.isfinite(value)
    counts = (
        f"{array} {x.shape}: {int((probed & single).sum())} of {x.size} coordinates, "
        f"{int((probed & ~single).sum())} directions, {objective.evaluations} evaluations, noise {objective.noise:.1g}"
    )
    if not probed.any():
        return untold("no slope could be measured within the time and the domain of the loss")
    if not analytic.any() and slopes.still(tolerance):
        said = Finding("both-zero", f"{array}: the gradient is zero, and so is every slope of the loss.", fatal=False)
        return Measurement("pass", 0.0, 0.0, math.nan, 0.0, [said], [], counts)
    if not evidence.yardstick.any():
        return untold("no slope could be told from zero")

    kink, judged = probed & ~evidence.judged, evidence.judged
    decided = verdict == "pass" and not evidence.right[judged].all()
    findings = []
    if kink.any() and not decided:  # what bends along no direction at all has no kink: that was noise
        where = [list(map(int, np.unravel_index(probes[j].index, x.shape))) for j in np.flatnonzero(kink & single)[:3]]
        sentence = f"{array}: the one-sided slopes disagree along {int(kink.sum())} of {int(probed.sum())} probes"
        sentence += f" (at {', '.join(map(str, where))})" if where else ""
        findings.append(Finding("kink", sentence + "; left out.", fatal=False))
    factor, factor_bar = fit(evidence, judged)
    shown = judged if judged.any() else probed
    if decided:
        counts += "; the directions decide, as coordinates hide in rounding"
        shown = judged & evidence.right
    # The probe that decides: the one furthest beyond its bar in a failure, the least certain one otherwise.
    error, relative_bar = evidence.error, evidence.relative_bar
    score = error - relative_bar if verdict == "fail" else error + relative_bar
    head = int(np.argmax(np.where(shown, score, -np.inf)))
    order = [j for j in np.argsort(-np.where(shown & single, error, -1)) if single[j] and shown[j]][:6]
    worst = [
        Coordinate(array, tuple(map(int, np.unravel_index(probes[j].index, x.shape))),
                   evidence.slope[j], value[j], evidence.bar[j])
        for j in order
    ]  # fmt: skip
    if verdict == "fail":
        names = sizes if sizes is not None else {f"shape[{k}]": n for k, n in enumerate(x.shape)}
        findings.append(name_failure(evidence, factor, names))
    elif verdict == "inconclusive":
        sentence = (
            f"{array}: the error bar exceeds the tolerance along {int((judged & ~evidence.right).sum())} of "
            f"{int(probed.sum())} probes; rounding of the loss is {objective.noise:.1g}."
        )
        if evidence.too_kinked:
            sentence = f"{array}: kinks along {kink.sum()} of {probed.sum()} probes leave too little to judge."
        findings.append(Finding("cannot-tell", sentence, fatal=False))
    return Measurement(
        verdict, float(error[head]), float(relative_bar[head]), factor, factor_bar, findings, worst, counts
    )


def movable(x) -> np.ndarray:
    """What a direction moves: not what its step would leave as it is, such as a mask of -1e30."""
    finite = np.isfinite(x)
    return finite & (np.spacing(np.abs(np.where(finite, x, 0))) < 2.0**-14 * np.median(scales(x)))


def choose_probes(analytic, x, seconds, time_left, random, coordinates) -> List[Probe]:
    """Directions first, as they see every coordinate; then all coordinates, or the largest ones and random ones."""
    candidates = np.flatnonzero(np.isfinite(x))
    if not candidates.size:
        return []
    affordable = 0.4 * time_left / max(6 * seconds, 1e-9)
    everything = candidates.size <= min(ALL_COORDINATES, affordable) and coordinates
    count = 2 if everything else int(np.clip(affordable / 8, 4, 12))
    support = movable(x)
    probes = []
    if np.count_nonzero(support) > 1:
        probes = [Probe(vector=direction(x.shape, random, support)) for _ in range(count)]
    if not coordinates and probes:
        return probes
    if not everything:
        count = int(min(np.clip(affordable, 12, 96), candidates.size))
        largest = candidates[np.argsort(-np.abs(analytic.flat[candidates]), kind="stable")[: count // 3]]
        others = np.setdiff1d(candidates, largest)
        candidates = np.concatenate([largest, random.permutation(others)[: count - largest.size]])
    return probes + [Probe(index=int(i)) for i in candidates]


def more_directions(analytic, x, random) -> List[Probe]:
    """What lifts the signal of N coordinates out of a noise that hides each: directions that move all of them.

    Along the signs of the gradient itself the slopes of all coordinates add up, to sqrt(N) times that of a random
    direction: a wrong scale shows there first, and nothing else does. Random directions see the norm of any error:
    sixteen of them within the tolerance leave 1 chance in 5,000,000 to an error of twice the tolerance.
    """
    support = movable(x)
    if np.count_nonzero(support) < 2:
        return []
    vectors = [direction(x.shape, random, support) for _ in range(MORE_DIRECTIONS)]
    along = np.copysign(direction(x.shape, random, support), analytic)
    return [Probe(vector=along, along=True)] + [Probe(vector=vector) for vector in vectors]


def weigh(array, analytic, slopes, tolerance, deadline, random, start=0) -> "Evidence":
    """Measure the slopes from the probe `start` on, and judge all."""
    probes, x = slopes.probes, slopes.objective.x
    slope = np.array([probe.slope(analytic) for probe in probes])
    support = np.array([probe.support for probe in probes])
    single = support == 1
    spread = ~single & ~np.array([probe.along for probe in probes])

    def yardsticks(value):
        """The largest entry for a coordinate, the norm for a direction; of the two gradients, the larger."""
        known = np.where(np.isfinite(value), np.abs(value), 0)
        largest = max(np.abs(analytic).max(), known[single].max() if single.any() else 0.0)
        norm = max(float(np.linalg.norm(analytic)), math.sqrt(np.mean(known[spread] ** 2)) if spread.any() else 0.0)
        if not single.any():
            largest = max(largest, norm / math.sqrt(x.size))
        norm = max(norm, largest)
        own = np.where(single, 0, np.maximum(known, np.abs(slope)))
        return np.maximum(np.minimum(norm, largest * np.sqrt(support)), own)

    climb(slopes, slope, yardsticks, tolerance, start)
    value, truncation, rounding = slopes.estimate()
    bar = truncation + SIGMAS * rounding
    yardstick = yardsticks(value)
    probed = np.isfinite(value)
    # The analytic gradient is rounded to the dtype of x too, and there is a least number it can hold.
    least = np.nextafter(np.zeros(1, x.dtype), np.ones(1, x.dtype))[0]
    rounded = 8 * np.maximum(np.finfo(x.dtype).eps * np.abs(slope), float(least) * np.sqrt(support))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(slope - value) / yardstick
        relative_bar = (bar + rounded) / yardstick
    bent, kink = slopes.bends(0.5 * tolerance * yardstick)
    # Or a slope that still moves where no smaller step can be told from noise: the loss bends within reach of the step.
    kink = probed & (kink | (bent & (relative_bar > tolerance) & (truncation > SIGMAS * rounding)))
    judged = probed & ~kink
    counted = probed & (single if (probed & single).any() else True)
    too_kinked = bool(2 * (kink & counted).sum() >= counted.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = judged & (error - relative_bar - (SAFETY - 1) * truncation / yardstick > tolerance)
        wrong &= slopes.least_error(slope) > tolerance * yardstick
        right = judged & (error + relative_bar <= tolerance)
    # Directions answer for the coordinates, if no kink is along them.
    directions = 0 < MORE_DIRECTIONS <= (judged & spread).sum() and not (kink & ~single).any()
    enough = right[judged].all() or (directions and right[judged & ~single].all())
    verdict = "fail" if wrong.any() else "pass" if enough and not too_kinked else "inconclusive"
    return Evidence(array, analytic, probes, slope, value, bar, yardstick, error, relative_bar, single, wrong, right,
                    judged, too_kinked, verdict, tolerance, slopes.objective, deadline, random)  # fmt: skip


def fit(evidence, which) -> Tuple[float, float]:
    """The factor f of analytic = f numeric in least squares, each probe as precise as it is; and its bar."""
    unit = np.maximum(evidence.bar, evidence.tolerance * evidence.yardstick)[which]
    a, n, b = (part[which] / unit for part in (evidence.slope, evidence.value, evidence.bar))
    square = float(n @ n)
    if square == 0:
        return math.nan, math.nan
    factor = float(a @ n) / square
    return factor, (1 + abs(factor)) * math.sqrt(float((n * b) @ (n * b))) / square


class Evidence(NamedTuple):
    """What the probes say of a gradient. Arrays without a shape in this list have one entry per probe."""

    array: str
    analytic: np.ndarray  # shaped like x
    probes: List[Probe]
    slope: np.ndarray
    value: np.ndarray
    bar: np.ndarray
    yardstick: np.ndarray
    error: np.ndarray  # relative to the yardstick, as is the next
    relative_bar: np.ndarray
    single: np.ndarray  # a coordinate, no direction
    wrong: np.ndarray
    right: np.ndarray
    judged: np.ndarray  # measured, and no kink
    too_kinked: bool
    verdict: str
    tolerance: float
    objective: Objective
    deadline: float
    random: np.random.RandomState


def name_failure(evidence: Evidence, factor: float, sizes: Dict[str, float]) -> Finding:
    """What kind of wrong: nothing at all, one factor, some positions, or no relation."""
    array, tolerance, judged = evidence.array, evidence.tolerance, evidence.judged
    if not evidence.analytic.any():
        return Finding("zero-gradient", f"{array}: the gradient is zero everywhere, the slope of the loss is not.")
    if abs(factor - 1) > tolerance and is_uniform(evidence, judged, factor):
        if abs(factor + 1) <= 4 * tolerance:
            return Finding("sign-error", f"{array}: the gradient is the slope of the loss with the opposite sign.")
        called = factor_names(factor, sizes, 4 * tolerance)
        sentence = f"{array}: the gradient is {factor:.4g} times the slope of the loss"
        return Finding("wrong-factor", sentence + (f": {' or '.join(called)}." if called else "."))
    wrong = evidence.wrong & evidence.single
    share = f"{wrong.sum()} of {(judged & evidence.single).sum()} coordinates probed are wrong"
    share += "" if wrong.any() else ", random directions are"
    partial, _ = fit(evidence, wrong)
    if wrong.sum() > 1 and is_uniform(evidence, wrong, partial):
        called = factor_names(partial, sizes, 4 * tolerance)
        named = f" ({' or '.join(called)})" if called else ""
        share += ", where it is 0" if abs(partial) <= 4 * tolerance else f", by a factor of {partial:.4g}{named}"
    places = locate(evidence, wrong)
    if places:
        return Finding("wrong-positions", f"{array}: wrong at {'; '.join(places)}. {share}.")
    a, n = ((part / evidence.yardstick)[judged] for part in (evidence.slope, evidence.value))
    length = float(np.linalg.norm(a) * np.linalg.norm(n))
    cosine = float(a @ n) / length if length else 0.0
    related = "has nothing to do with" if abs(cosine) < 0.1 else "is not"
    return Finding(
        "wrong-gradient", f"{array}: the gradient {related} the slope of the loss: {share}, cosine {cosine:.3f}."
    )


def is_uniform(evidence, which, factor) -> bool:
    """Whether analytic = factor x numeric along (nearly) every one of these probes."""
    if not math.isfinite(factor) or not which.any():
        return False
    allowed = max(1.0, abs(factor)) * (4 * evidence.tolerance * evidence.yardstick + evidence.bar)
    return bool(np.mean((np.abs(evidence.slope - factor * evidence.value) <= allowed)[which]) > 0.95)


def factor_names(factor: float, sizes: Dict[str, float], tolerance: float) -> List[str]:
    """What a factor may be called: every name that fits, as 2 and N are the same at batch 2."""
    names = []
    known: List[Tuple[str, float]] = [("2", 2.0)] + [(name, float(size)) for name, size in sizes.items() if size]
    sign = "-" if factor < 0 else ""
    for name, size in known:
        for text, number in ((name, size), (f"1/{name}", 1 / size)):
            shown = f"{sign}{text}" if name == "2" else f"{sign}{text} with {name} = {size:g}"
            if size not in (0.0, 1.0) and abs(abs(factor) - number) <= tolerance * number and shown not in names:
                names.append(shown)
    return names


def locate(evidence: Evidence, wrong: np.ndarray) -> List[str]:
    """Positions along an axis where (nearly) all is wrong, while the others are right.

    Where not every coordinate was probed, groups of positions are, and the wrong ones split.
    """
    shape = evidence.analytic.shape
    index = np.array([probe.index if probe.vector is None else -1 for probe in evidence.probes])
    single = index >= 0
    complete = single.sum() == evidence.analytic.size and not (single & ~evidence.judged).any()
    # A slope of about 0 is right either way, and tells nothing of its position.
    size = np.maximum(np.abs(evidence.slope), np.abs(evidence.value))
    telling = evidence.right & single & (size > 20 * evidence.tolerance * evidence.yardstick)
    state = np.zeros(shape, dtype=int)
    state.flat[index[telling]] = 1
    state.flat[index[wrong]] = -1
    places = []
    for axis, size in enumerate(shape):
        if size < 2:
            continue
        failing = (state < 0).any(axis=tuple(k for k in range(len(shape)) if k != axis))
        if not complete:
            failing |= wrong_positions(evidence, axis)
        share = failing.mean()
        inside = state.swapaxes(0, axis)[failing]
        if 0 < share <= 0.75 and (inside < 0).sum() >= 0.9 * (inside != 0).sum():
            where = np.flatnonzero(failing)
            text = ", ".join(map(str, where[:12])) + (", ..." if where.size > 12 else "")
            places.append((share, f"axis {axis}, position {text} (right at the other {size - where.size} of {size})"))
    return [text for _, text in sorted(places)]


def wrong_positions(evidence: Evidence, axis: int) -> np.ndarray:
    """Which positions of an axis fail: one random direction per group of positions, the failing groups split again."""
    analytic, objective = evidence.analytic, evidence.objective
    size = analytic.shape[axis]
    failing = np.zeros(size, dtype=bool)
    largest = float(np.max(evidence.yardstick[evidence.single], initial=0))
    norm = max(float(np.linalg.norm(analytic)), largest)
    time_left = max(evidence.deadline - time.monotonic(), 0)
    one_by_one = size * 6 * objective.seconds < 0.5 * time_left
    groups = np.array_split(np.arange(size), size if one_by_one else min(size, 16))
    deadline = time.monotonic() + 0.6 * time_left
    while groups and time.monotonic() < deadline:
        probes = []
        for group in groups:
            support = np.zeros(analytic.shape, dtype=bool)
            support[(slice(None),) * axis + (group,)] = True
            probes.append(Probe(vector=direction(analytic.shape, evidence.random, support & np.isfinite(objective.x))))
        slope = np.array([probe.slope(analytic) for probe in probes])
        yardstick = np.minimum(norm, largest * np.sqrt([max(probe.support, 1) for probe in probes]))
        slopes = Slopes(objective, probes, deadline)
        climb(slopes, slope, lambda value, fixed=yardstick: fixed, evidence.tolerance)
        value, truncation, rounding = slopes.estimate()
        with np.errstate(invalid="ignore"):
            error = np.abs(slope - value) - SAFETY * truncation - SIGMAS * rounding
            off = error > evidence.tolerance * yardstick
        if not np.isfinite(value).all() or (off.all() and 1 < len(groups) < size):
            return np.ones(size, dtype=bool)  # everywhere, as far as there is time to tell
        for group in [group for group, is_off in zip(groups, off) if is_off and len(group) == 1]:
            failing[group] = True
        split = [group for group, is_off in zip(groups, off) if is_off and len(group) > 1][:16]
        groups = [part for group in split for part in np.array_split(group, min(len(group), 4))]
    return failing


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
