"""Before a gradient is called wrong: do the numeric slopes settle against themselves under finer steps? NumPy only.

A loss may bend on a scale far below x (tanh(x - 10000)), or next to a border (-log p at p = 1e-9); a direction may
cross many kinks. Slopes at coarse steps then agree with each other, and with nothing else. So the steps here are the
finest at which rounding lets the difference between claim and slope be seen, and other ones than those that raised the
suspicion.
"""

import math
import time
from typing import Dict, List, NamedTuple, Tuple

import numpy as np

from .diagnosis import Evidence
from .slopes import SIGMAS, Objective, Probe, Slopes, difference, direction

REFUTED, SUPPORTED, OPEN = "refuted", "supported", "open"
ROUNDS = 5
MOST_COORDINATES = 600
MOST_DOUBTFUL = 12
DIRECTIONS = 3  # that have to be refuted where no coordinate is
FRESH_DIRECTIONS = 8  # drawn at most, to have as many
STEPS = 2.0 ** np.arange(3, -1, -1)  # of the finest step
FINEST = 2.0**-48  # of the unit of the steps


class Settled(NamedTuple):
    """What became of a claimed slope: refuted, supported by `value` to within `bar`, or left open."""

    outcome: str
    value: float = math.nan
    bar: float = math.inf


def settle(objective: Objective, probe: Probe, unit: float, claim: float, rough: float, matters: float) -> Settled:
    """Compare the slope that is claimed along a probe with numeric ones at the finest steps that can tell.

    Parameters
    ----------
    unit : float
        The size of what the probe moves.
    claim, rough : float
        The slope claimed, and the numeric one that disagrees.
    matters : float
        By how much a slope may be off.
    """
    for _ in range(ROUNDS):
        distance = abs(claim - rough)
        apart = distance if distance > 2 * matters else max(2 * abs(distance - matters), matters / 4)
        finest = max(8 * SIGMAS * objective.noise / apart, least_step(objective, probe, unit))
        window = slopes_at(objective, probe, finest)
        if window is None:
            return Settled(OPEN)
        slopes, rounding, bend = window
        off, spread, value = np.abs(slopes - claim), float(np.ptp(slopes)), float(slopes[-1])
        if 4 * max(spread, bend) <= off.min() and off.min() - rounding > matters:
            spoken_for = supported_beyond(objective, probe, unit, finest, claim, value)
            return Settled(OPEN if spoken_for else REFUTED)
        if abs(value - claim) + spread + rounding <= matters and bend <= matters:
            return Settled(SUPPORTED, value, spread + rounding)
        if abs(value - claim) > 0.5 * distance and spread <= apart:
            return Settled(OPEN)
        rough = value
    return Settled(OPEN)


def least_step(objective, probe, unit) -> float:
    """The step below which the rounding of x itself hides the slope."""
    moved = np.abs(objective.x.flat[probe.index] if probe.vector is None else objective.x[probe.vector != 0])
    farthest = float(np.max(moved, initial=0))
    return 32 * float(np.spacing(farthest)) if farthest else FINEST * unit


def supported_beyond(objective, probe, unit, step, claim, value) -> bool:
    """Whether steps so fine that rounding should hide the slope speak for the claim, and clearly not for `value`.

    What looks like rounding may be a loss that bends on an even finer scale.
    """
    least = least_step(objective, probe, unit)
    while step > least:
        step = max(step / 32, least)
        window = slopes_at(objective, probe, step)
        if window is None or not window[0].any():  # all 0: the loss does not move there
            continue
        if (np.abs(window[0] - claim) <= 0.1 * abs(claim - value)).all():
            return True
    return False


def slopes_at(objective, probe, finest):
    """Slopes extrapolated from steps down to the finest; their rounding; how far they bend.

    None where the loss has no value there.
    """
    central, jump, sigma = (np.full(len(STEPS), np.nan) for _ in range(3))
    for k, step in enumerate(finest * STEPS):
        found = difference(objective, probe, step)
        if found is None:
            return None
        central[k], jump[k], uneven = found
        sigma[k] = math.hypot(objective.noise / (math.sqrt(2) * step), uneven)
    if not np.isfinite(central).all():
        return None
    slopes = central[1:] + (central[1:] - central[:-1]) / 3
    rounding = SIGMAS * 1.4 * float(sigma.max())
    # Of a smooth loss twice the jump at half the step less that at the whole one vanishes; where there are kinks it
    # is as large as the error that they make.
    left_over = abs(2 * jump[-1] - jump[-2]) - 2 * SIGMAS * math.sqrt(12) * sigma[-1]
    return slopes, rounding, max(float(left_over), 0.0)


def confirm(evidence: Evidence, slopes: Slopes, support: np.ndarray) -> Tuple[bool, Dict[int, Settled]]:
    """Whether probes that look wrong are wrong at the finest steps too: one coordinate, or three directions.

    Where none looks wrong, the few coordinates in doubt are tried. Besides, what became of the probes that were tried
    until the answer was known.
    """
    single = evidence.single
    flagged_or_doubtful = evidence.wrong if evidence.wrong.any() else doubtful(evidence)
    order = np.argsort(np.where(single, evidence.relative_bar - evidence.error, np.inf))
    flagged = [int(j) for j in order if flagged_or_doubtful[j]]
    outcomes: Dict[int, Settled] = {}
    for j in [j for j in flagged if single[j]][:MOST_COORDINATES]:
        if time.monotonic() > evidence.deadline:
            break
        outcomes[j] = settle_probe(evidence, slopes, j)
        if outcomes[j].outcome == REFUTED and evidence.wrong[j]:
            return True, outcomes
    if evidence.right[single].sum() == np.isfinite(slopes.objective.x).sum():
        return False, outcomes  # all coordinates are right: what is wrong along a direction has crossed kinks
    refuted: List[int] = []
    directions = [j for j in flagged if not single[j]]
    tested = 0
    while len(refuted) < DIRECTIONS and time.monotonic() < evidence.deadline:
        if tested < len(directions):
            j = directions[tested]
            outcomes[j] = found = settle_probe(evidence, slopes, j)
        elif refuted and tested < len(directions) + FRESH_DIRECTIONS:
            found = fresh_direction(evidence, slopes, refuted[0], support)
        else:
            break
        tested += 1
        refuted += [j] if found.outcome == REFUTED else []
    needed = max(DIRECTIONS, tested / 3)
    if time.monotonic() >= evidence.deadline and tested > 1:
        needed = min(needed, tested)  # all there was time for
    return len(refuted) >= needed, outcomes


def doubtful(evidence: Evidence) -> np.ndarray:
    """The coordinates that stand between a gradient and its verdict: those where coarse steps see kinks, if these are
    many, and those whose error bar is too large, if these are few."""
    single = evidence.single & (evidence.yardstick > 0)
    unknown = evidence.judged & ~evidence.right & single
    unknown = unknown if unknown.sum() <= MOST_DOUBTFUL else unknown & False
    return unknown | (evidence.kink & single) if evidence.too_few else unknown


def settle_probe(evidence: Evidence, slopes: Slopes, j: int) -> Settled:
    matters = evidence.tolerance * evidence.yardstick[j]
    claim, rough = evidence.slope[j], evidence.value[j]
    return settle(slopes.objective, slopes.probes[j], slopes.unit[j], claim, rough, matters)


def fresh_direction(evidence: Evidence, slopes: Slopes, like: int, support: np.ndarray) -> Settled:
    """The slope along another direction of the kind of the probe `like`, which looks wrong."""
    vector = direction(evidence.analytic.shape, evidence.random, support)
    along = slopes.probes[like].along
    probe = Probe(vector=np.copysign(vector, evidence.analytic) if along else vector, along=along)
    claim = probe.slope(evidence.analytic)
    rough = claim + abs(evidence.slope[like] - evidence.value[like])
    matters = evidence.tolerance * evidence.yardstick[like]
    return settle(slopes.objective, probe, slopes.unit[like], claim, rough, matters)
