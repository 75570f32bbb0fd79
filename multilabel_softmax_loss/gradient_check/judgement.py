"""Is this gradient the slope of this loss? Analytic slopes beside numeric ones. NumPy only.

Analytic slopes are compared with numeric ones (`slopes`) along coordinates and random directions, relative to the
gradient's own size. A verdict is given only where the error bars are below the tolerance.
"""

import math
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .diagnosis import Evidence, fit, name_failure
from .report import NOTE, Coordinate, Finding
from .settling import SUPPORTED, confirm
from .slopes import SAFETY, SIGMAS, Objective, Probe, Slopes, climb, direction, scales

ALL_COORDINATES = 600
"""Up to this size every coordinate is probed."""

MORE_DIRECTIONS = 16
"""Random directions tried where rounding hides the coordinates."""


class Question(NamedTuple):
    """A gradient, and what it claims to be the gradient of: <weights, outputs(x)>."""

    outputs: Callable[[np.ndarray], np.ndarray]  # this, `weights` and `x` as in `Objective`
    weights: np.ndarray
    analytic: np.ndarray  # float64, shaped like x
    x: np.ndarray
    array: str  # what to call x
    tolerance: float
    seed: int
    deadline: float  # by time.monotonic()
    sizes: Optional[Dict[str, float]] = None  # what a wrong factor may be called; the sizes of the axes where None
    coordinates: bool = True  # False probes random directions only


class Judgement(NamedTuple):
    """What is known of the gradient with respect to one array."""

    verdict: str
    note: str
    findings: List[Finding]
    relative_error: float = math.nan
    error_bar: float = math.nan
    factor: float = math.nan
    factor_bar: float = math.nan
    worst: Sequence[Coordinate] = ()


def judge(question: Question) -> Judgement:
    """Compare an analytic gradient with numeric slopes."""
    array, analytic, x = question.array, question.analytic, question.x

    def stop(verdict, note, *findings):
        return Judgement(verdict, f"{array}: {note}", list(findings))

    if x.size == 0:
        return stop("pass", "empty")
    bad = ~np.isfinite(analytic)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        sentence = f"{array} has {analytic[first]} at {list(first)}, and {int(bad.sum())} such entries of {x.size}."
        return stop("fail", "gradient not finite", Finding("gradient-not-finite", sentence))
    patience = 0.2 * max(question.deadline - time.monotonic(), 0)
    objective = Objective(question.outputs, question.weights, x, question.seed, patience)
    if not math.isfinite(objective.value):
        return stop("fail", "not measured", Finding("loss-not-finite", f"the loss is {objective.value}."))
    evidence = gather_evidence(question, objective)
    if evidence is None:
        why = "no entry is finite"
    elif not evidence.probed.any():
        why = "no slope could be measured within the time and the domain of the loss"
    elif not analytic.any() and evidence.still:
        said = Finding("both-zero", f"{array}: the gradient is zero, and so is every slope of the loss.", NOTE)
        return Judgement("pass", counts(evidence), [said], 0.0, 0.0, math.nan, 0.0)
    elif not evidence.yardstick.any():
        why = "no slope could be told from zero"
    else:
        return conclude(question, evidence)
    return stop("inconclusive", "not measured", Finding("cannot-tell", f"{array}: {why}.", NOTE))


def gather_evidence(question: Question, objective: Objective) -> Optional[Evidence]:
    """Slopes along coordinates and directions; more directions where those leave it open. None without a probe."""
    random = np.random.RandomState(question.seed)
    now = time.monotonic()
    time_left = max(question.deadline - now, 0)
    probes = choose_probes(question, objective.seconds, time_left, random)
    if not probes:
        return None
    slopes = Slopes(objective, probes, now + 0.6 * time_left)
    evidence = weigh_probes(question, slopes, random)
    if evidence.verdict == "inconclusive" and question.coordinates and MORE_DIRECTIONS:
        slopes.deadline = now + 0.85 * time_left
        slopes.add(more_directions(question.analytic, question.x, random))
        evidence = weigh_probes(question, slopes, random, len(probes))
    return evidence


def counts(evidence: Evidence) -> str:
    """A note on how much was looked at."""
    probed, single, objective = evidence.probed, evidence.single, evidence.objective
    return (
        f"{evidence.array} {evidence.analytic.shape}: {int((probed & single).sum())} of {evidence.analytic.size} "
        f"coordinates, {int((probed & ~single).sum())} directions, {objective.evaluations} evaluations, "
        f"noise {objective.noise:.1g}"
    )


def conclude(question: Question, evidence: Evidence) -> Judgement:
    """The verdict in words, with the probes that it rests on."""
    verdict, judged, kink, single = evidence.verdict, evidence.judged, evidence.kink, evidence.single
    note = counts(evidence)
    findings = []
    decided = verdict == "pass" and not evidence.right[judged].all()
    if kink.any() and not decided:  # what bends along no direction at all has no kink: that was noise
        findings.append(kinks(evidence))
    factor, factor_bar = fit(evidence, judged)
    shown = judged if judged.any() else evidence.probed
    if decided:
        note += "; the directions decide, as coordinates hide in rounding"
        shown = judged & evidence.right
    if verdict == "fail":
        x = question.x
        names = question.sizes if question.sizes is not None else {f"shape[{k}]": n for k, n in enumerate(x.shape)}
        findings.append(name_failure(evidence, factor, names))
    elif verdict == "inconclusive":
        sentence = (
            f"{evidence.array}: the error bar exceeds the tolerance along {int((judged & ~evidence.right).sum())} of "
            f"{int(evidence.probed.sum())} probes; rounding of the loss is {evidence.objective.noise:.1g}."
        )
        if evidence.too_few:
            sentence = f"{evidence.array}: {too_few(evidence)}."
        findings.append(Finding("cannot-tell", sentence, NOTE))
    # The probe that decides: the one furthest beyond its bar in a failure, the least certain one otherwise.
    error, relative_bar = evidence.error, evidence.relative_bar
    score = error - relative_bar if verdict == "fail" else error + relative_bar
    head = int(np.argmax(np.where(shown, score, -np.inf)))
    order = [j for j in np.argsort(-np.where(shown & single, error, -1)) if single[j] and shown[j]][:6]
    worst = [
        Coordinate(evidence.array, place(evidence, j), evidence.slope[j], evidence.value[j], evidence.bar[j])
        for j in order
    ]
    measured = float(error[head]), float(relative_bar[head]), factor, factor_bar
    return Judgement(verdict, note, findings, *measured, worst)


def share(slope, part, whole) -> float:
    """What a part of the probes has of the squares of all slopes claimed."""
    relative = (slope / (np.abs(slope[whole]).max(initial=0) or 1.0)) ** 2
    return float(relative[part].sum() / (relative[whole].sum() or 1.0))


def too_few(evidence: Evidence) -> str:
    """Why so many probes are left out that the others do not speak for the gradient."""
    kink, unsettled = int(evidence.kink.sum()), int((evidence.unsettled & ~evidence.kink).sum())
    nowhere = int((~evidence.probed).sum())
    reasons = [f"kinks along {kink}"] if kink else []
    reasons += [f"slopes that do not settle under finer steps along {unsettled}"] if unsettled else []
    reasons += [f"no slope that could be measured along {nowhere}"] if nowhere else []
    return f"{' and '.join(reasons)} of {len(evidence.probes)} probes leave too little to judge"


def place(evidence: Evidence, probe: int) -> Tuple[int, ...]:
    """Where in the array a probe of one coordinate is."""
    return tuple(map(int, np.unravel_index(evidence.probes[probe].index, evidence.analytic.shape)))


def kinks(evidence: Evidence) -> Finding:
    kink = evidence.kink
    where = [list(place(evidence, j)) for j in np.flatnonzero(kink & evidence.single)[:3]]
    sentence = f"{evidence.array}: the one-sided slopes disagree along {int(kink.sum())} of "
    sentence += f"{int(evidence.probed.sum())} probes"
    sentence += f" (at {', '.join(map(str, where))})" if where else ""
    return Finding("kink", sentence + "; left out.", NOTE)


def movable(x) -> np.ndarray:
    """What a direction moves: not what its step would leave as it is, such as a mask of -1e30."""
    finite = np.isfinite(x)
    return finite & (np.spacing(np.abs(np.where(finite, x, 0))) < 2.0**-14 * np.median(scales(x)))


def choose_probes(question, seconds, time_left, random) -> List[Probe]:
    """Directions first, as they see every coordinate; then all coordinates, or the largest ones and random ones."""
    analytic, x, coordinates = question.analytic, question.x, question.coordinates
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


def weigh_probes(question, slopes, random, start=0) -> Evidence:
    """Measure the slopes from the probe `start` on, and judge all; what looks wrong, at finer steps too."""
    yardsticks = Yardsticks(question.analytic, slopes.probes)
    climb(slopes, yardsticks.slope, yardsticks, question.tolerance, start)
    estimate = slopes.estimate()
    evidence = weigh(question, slopes, yardsticks, estimate, random)
    if evidence.verdict == "pass":
        return evidence
    confirmed, outcomes = confirm(evidence, slopes, movable(question.x))
    if confirmed:
        return evidence
    unsettled, smooth = evidence.wrong.copy(), evidence.wrong & False
    value, truncation, rounding = (part.copy() for part in estimate)
    for j, settled in outcomes.items():
        if settled.outcome == SUPPORTED:
            value[j], truncation[j], rounding[j] = settled.value, settled.bar, 0.0
            unsettled[j], smooth[j] = False, True
    evidence = weigh(question, slopes, yardsticks, (value, truncation, rounding), random, unsettled, smooth)
    return evidence if evidence.verdict != "fail" else evidence._replace(verdict="inconclusive")


class Yardsticks:
    """By what the error of a probe is measured: the largest entry for a coordinate, the norm for a direction.

    Of the two gradients, the larger; the numeric one is known from the values so far.
    """

    def __init__(self, analytic, probes):
        self.slope = np.array([probe.slope(analytic) for probe in probes])
        self.support = np.array([probe.support for probe in probes])
        self.single = self.support == 1
        self.spread = ~self.single & ~np.array([probe.along for probe in probes])
        self.largest = float(np.abs(analytic).max())
        self.norm = float(np.linalg.norm(analytic))
        self.size = analytic.size

    def __call__(self, value) -> np.ndarray:
        single, spread = self.single, self.spread
        known = np.where(np.isfinite(value), np.abs(value), 0)
        largest = max(self.largest, known[single].max() if single.any() else 0.0)
        norm = max(self.norm, math.sqrt(np.mean(known[spread] ** 2)) if spread.any() else 0.0)
        if not single.any():
            largest = max(largest, norm / math.sqrt(self.size))
        norm = max(norm, largest)
        own = np.where(single, 0, np.maximum(known, np.abs(self.slope)))
        return np.maximum(np.minimum(norm, largest * np.sqrt(self.support)), own)


def weigh(question, slopes, yardsticks, estimate, random, unsettled=False, smooth=False) -> Evidence:
    """What the slopes say.

    `unsettled` are probes that looked wrong, and did not at finer steps: no verdict there. `smooth` are those whose
    slopes have settled at finer steps, whatever kinks coarser ones see.
    """
    analytic, x, tolerance = question.analytic, question.x, question.tolerance
    value, truncation, rounding = estimate
    slope, single = yardsticks.slope, yardsticks.single
    unsettled, smooth = (np.broadcast_to(mask, slope.shape) for mask in (unsettled, smooth))
    bar = truncation + SIGMAS * rounding
    yardstick = yardsticks(value)
    probed = np.isfinite(value)
    # The analytic gradient is rounded to the dtype of x too, and there is a least number it can hold.
    least = np.nextafter(np.zeros(1, x.dtype), np.ones(1, x.dtype))[0]
    rounded = 8 * np.maximum(np.finfo(x.dtype).eps * np.abs(slope), float(least) * np.sqrt(yardsticks.support))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(slope - value) / yardstick
        relative_bar = (bar + rounded) / yardstick
    bent, kink = slopes.bends(0.5 * tolerance * yardstick)
    # Or a slope that still moves where no smaller step can be told from noise: the loss bends within reach of the step.
    kink = probed & (kink | (bent & (relative_bar > tolerance) & (truncation > SIGMAS * rounding)))
    kink &= ~smooth
    judged = probed & ~kink & ~unsettled
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = judged & (error - relative_bar - (SAFETY - 1) * truncation / yardstick > tolerance)
        wrong &= slopes.least_error(slope) > tolerance * yardstick
        right = judged & (error + relative_bar <= tolerance)
    # A coordinate that was tried and has no slope hides as much as one at a kink.
    tried = slopes.tried.any(axis=0)
    counted = tried & (single if (probed & single).any() else True)
    left_out = counted & ~judged
    # Counted by number, and by what they have of the gradient claimed.
    too_few = bool(2 * left_out.sum() >= counted.sum() or 2 * share(slope, left_out, counted) > 1)
    # Directions answer for the coordinates, if no kink is along them.
    directions = 0 < MORE_DIRECTIONS <= (judged & yardsticks.spread).sum() and not (kink & ~single).any()
    enough = right[judged].all() or (directions and right[judged & ~single].all())
    return Evidence(
        array=question.array, analytic=analytic, probes=slopes.probes, slope=slope, value=value, bar=bar,
        yardstick=yardstick, error=error, relative_bar=relative_bar, single=single, wrong=wrong, right=right,
        judged=judged, kink=kink, unsettled=unsettled, too_few=too_few,
        still=not analytic.any() and slopes.still(tolerance),
        verdict="fail" if wrong.any() else "pass" if enough and not too_few else "inconclusive",
        tolerance=tolerance, objective=slopes.objective, deadline=question.deadline, random=random,
    )  # fmt: skip
