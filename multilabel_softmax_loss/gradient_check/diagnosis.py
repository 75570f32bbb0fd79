"""What kind of wrong a gradient is: nothing at all, one factor, some positions, or no relation. NumPy only."""

import math
import time
from typing import Dict, List, NamedTuple, Tuple

import numpy as np

from .report import Finding
from .slopes import SAFETY, SIGMAS, Objective, Probe, Slopes, climb, direction


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
    kink: np.ndarray
    unsettled: np.ndarray  # looked wrong, and did not at finer steps
    too_few: bool  # so many probes are left out that the others do not speak for the gradient
    still: bool  # no probe changes the objective at all
    verdict: str
    tolerance: float
    objective: Objective
    deadline: float
    random: np.random.RandomState

    @property
    def probed(self) -> np.ndarray:
        return np.isfinite(self.value)


def fit(evidence, which) -> Tuple[float, float]:
    """The factor f of analytic = f numeric in least squares, each probe as precise as it is; and its bar."""
    unit = np.maximum(evidence.bar, evidence.tolerance * evidence.yardstick)[which]
    a, n, b = (part[which] / unit for part in (evidence.slope, evidence.value, evidence.bar))
    square = float(n @ n)
    if square == 0:
        return math.nan, math.nan
    factor = float(a @ n) / square
    return factor, (1 + abs(factor)) * math.sqrt(float((n * b) @ (n * b))) / square


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
    """Whether analytic = factor x numeric along (nearly) every one of these probes, and enough of them can tell.

    Where both are 0 any factor fits: a few coordinates of thousands make none.
    """
    if not math.isfinite(factor) or not which.any():
        return False
    size = np.maximum(np.abs(evidence.slope), np.abs(evidence.value))
    telling = which & (size > 4 * (evidence.bar + evidence.tolerance * 1e-3 * evidence.yardstick))
    if telling.sum() < 0.1 * which.sum():
        return False
    allowed = max(1.0, abs(factor)) * (4 * evidence.tolerance * evidence.yardstick + evidence.bar)
    fits = np.abs(evidence.slope - factor * evidence.value) <= allowed
    # And by its own size, as an error that is small beside the largest entry fits any factor too.
    own = np.abs(evidence.slope - factor * evidence.value) <= 0.1 * max(1.0, abs(factor)) * size + 4 * evidence.bar
    return bool(np.mean(fits[which]) > 0.95 and np.mean(own[telling]) > 0.9)


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
