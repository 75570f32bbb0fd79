"""Numeric slopes of a function with error bars: finite differences, extrapolated.

The slope along a probe (one coordinate, or one random direction) comes from central differences at steps that halve,
extrapolated to step zero. Every slope carries an error bar: truncation, from how much the extrapolation still moves,
and rounding, from the measured noise of the function.

References
----------
Ridders, *Accurate computation of F'(x) and F'(x)F''(x)*, 1982: the extrapolation and its error estimate.
More and Wild, *Estimating computational noise*, 2011: the noise of a function from its high-order differences.
"""

import math
import time

import numpy as np

SIGMAS = 4.0  # the maximum of a few hundred normal errors stays below this
SAFETY = 5.0  # a failure must exceed its truncation by this, as an extrapolation across a kink may look settled
LADDER = 2.0 ** np.arange(0, -31, -1)  # steps relative to the size of a coordinate, coarse to fine
ORDERS = 4  # extrapolations per window of steps


class Objective:
    """F(x) = <weights, outputs(x)>, and how much rounding makes it jitter.

    Parameters
    ----------
    outputs : function of an array like `x`, returning a vector, float32 or float64
        What rounds: the spacing of its dtype is the least noise assumed.
    weights : float64 vector
        Contracts the outputs, in float64, so that no sum adds rounding of its own.
    x : float32 or float64 array
        Where; its dtype is the one that steps are rounded to.
    seed : int
    patience : seconds
        Once the noise takes longer to measure, fewer moves of x have to do.
    """

    def __init__(self, outputs, weights, x, seed, patience=math.inf):
        self.outputs = outputs
        self.weights = weights
        self.x = x
        self.evaluations = 0
        started = time.monotonic()
        self.center = self.values(x)
        self.value = float(self.weights @ self.center)
        self.noise = self.estimate_noise(np.random.RandomState(seed), started + patience)
        self.seconds = (time.monotonic() - started) / self.evaluations

    def values(self, x) -> np.ndarray:
        """The outputs at `x` in float64; nan where the loss has none, as a step may leave its domain."""
        self.evaluations += 1
        try:
            with np.errstate(all="ignore"):
                values = np.asarray(self.outputs(x))
        except Exception:
            if self.evaluations == 1:
                raise
            return np.full_like(self.center, np.nan)
        if self.evaluations == 1:
            self.spacing = np.spacing(np.abs(values)).astype(np.float64)
        elif values.shape != self.center.shape:  # such as rows that follow the data
            return np.full_like(self.center, np.nan)
        return values.astype(np.float64)

    def estimate_noise(self, random, deadline) -> float:
        """Standard deviation of F under tiny moves of x: that of the outputs' rounding, or more where measured."""
        jitters, near, far = [], [], []
        for reach in (18, 18, 18, 12, 6, 2):
            line = self.line(random, reach)
            contracted = (line - self.center) @ self.weights
            if reach == 18:
                near += list(line)
                jitters.append(jitter(contracted))
            far += contracted.tolist()
            if time.monotonic() > deadline:
                break
        with np.errstate(all="ignore"):
            single = np.asarray(near).astype(np.float32)
            if np.array_equal(single, near) and not np.array_equal(single, single[:1].repeat(len(near), 0)):
                # Float64 that only ever holds float32: that is where it was rounded.
                self.spacing = np.maximum(self.spacing, np.spacing(np.abs(self.center.astype(np.float32))))
        each = np.nan_to_num(np.abs(self.weights * self.spacing))
        largest = float(each.max(initial=0)) or 1.0
        rounding = largest * math.sqrt(float(np.sum((each / largest) ** 2)) / 12)  # whose squares may underflow
        rounding = rounding or largest * float(each.any())
        finite = [value for value in jitters if math.isfinite(value)]
        measured = self.without_bends(float(np.median(finite)) if finite else 0.0, rounding, random, deadline)
        return max(rounding, 1.5 * measured, quantum(far) / math.sqrt(12))

    def line(self, random, reach) -> np.ndarray:
        """The outputs at nine points in a row, 2^-reach of x apart."""
        # Relative to each entry itself, lest the move leave the domain; odd distances, lest they be exact by accident.
        size = np.abs(np.where(np.isfinite(self.x), self.x, 0)) if np.any(self.x) else np.ones(self.x.shape)
        move = size * random.choice([-1.0, 1.0], self.x.shape) * random.uniform(0.5, 1.5, self.x.shape) * 2.0**-reach
        # From one step on, so that a kink at x itself is no noise.
        return np.asarray([self.values((self.x + k * move).astype(self.x.dtype)) for k in range(1, 10)])

    def without_bends(self, measured, rounding, random, deadline) -> float:
        """The jitter at moves so tiny that a loss which bends on their scale no longer looks noisy.

        There the differences of a smooth loss fall by a power of the move, and those of rounding stay; values that
        repeat are steps of a rounded one.
        """
        for reach in (23, 28, 33):
            if measured <= 8 * rounding or time.monotonic() > deadline:
                break
            lines = [(self.line(random, reach) - self.center) @ self.weights for _ in range(3)]
            finer = max(jitter(line) for line in lines)
            repeats = any(len(np.unique(line)) < len(line) for line in lines)
            if repeats or not finer < measured / 100:
                break
            measured = finer
        return measured


def jitter(values) -> float:
    """The noise in values in a row: the k-th difference of a smooth function is its noise, times a known factor."""
    order = 6
    gain = math.factorial(order) ** 2 / math.factorial(2 * order)
    return math.sqrt(gain * float(np.mean(np.diff(values, order) ** 2)))


def quantum(values) -> float:
    """The height of the steps where values only ever differ by whole ones, as after rounding at some scale; else 0."""
    finite = np.unique([value for value in values if math.isfinite(value)])
    gaps = np.diff(finite)
    if len(finite) == len(values) or len(gaps) < 3:  # no two values alike, or too few to see a pattern
        return 0.0
    for parts in range(1, 9):
        multiples = gaps / gaps.min() * parts
        if np.allclose(multiples, np.round(multiples), rtol=0, atol=1e-3):
            return float(gaps.min()) / parts
    return 0.0


def scales(x) -> np.ndarray:
    """The size of each coordinate, as a power of two: its own or the typical one, whichever is larger.

    But not so much larger than its own that no step would stay on its side of 0, where a loss may have its border.
    """
    magnitude = np.abs(np.where(np.isfinite(x), x, 0).astype(np.float64))
    positive = magnitude[magnitude > 0]
    typical = float(np.median(positive)) if positive.size else 1.0
    near = np.where(magnitude > 0, np.minimum(typical, 2.0**16 * magnitude), typical)
    # Powers of two, so that a step is exact wherever x itself has bits to spare.
    return 2.0 ** np.round(np.log2(np.maximum(magnitude, near)))


class Probe:
    """A coordinate (`index`) or a direction (`vector`, root mean square 1 over its support).

    `along` says that the direction follows the gradient to be checked, and is not random.
    """

    def __init__(self, index=None, vector=None, along=False):
        self.index = index
        self.vector = vector
        self.along = along
        self.support = 1 if vector is None else int(np.count_nonzero(vector))

    def slope(self, gradient) -> float:
        if self.vector is None:
            return float(gradient.flat[self.index])
        return float(np.vdot(gradient[self.vector != 0], self.vector[self.vector != 0]))

    def unit(self, size) -> float:
        """The unit of the ladder of steps, by the sizes of the coordinates."""
        return size.flat[self.index] if self.vector is None else float(np.median(size))

    def pair(self, x, step):
        """x moved one way and the other, rounded to its dtype; the distance that the two really have, and how uneven.

        Uneven is by how much one way is longer than the other, as a multiple of the direction's length, and at least a
        rounding of x in float64, such as happens within a function.
        """
        if self.vector is None:
            plus, minus = x.copy(), x.copy()
            plus.flat[self.index] = float(x.flat[self.index]) + step
            minus.flat[self.index] = float(x.flat[self.index]) - step
            here, there, back = (float(array.flat[self.index]) for array in (x, plus, minus))
            return plus, minus, there - back, max(abs((there - here) - (here - back)), float(np.spacing(abs(here))))
        plus = (x + step * self.vector).astype(x.dtype)
        minus = (x - step * self.vector).astype(x.dtype)
        moves = self.vector != 0
        here, there, back = (array[moves].astype(np.float64) for array in (x, plus, minus))
        along = self.vector[moves]
        length = float(np.linalg.norm(along))
        uneven = float(np.linalg.norm(np.maximum(np.abs((there - here) - (here - back)), np.spacing(np.abs(here)))))
        return plus, minus, float(np.vdot(there - back, along)) / length**2, uneven / length


def direction(shape, random, support=None) -> np.ndarray:
    """A random direction that is constant along no axis, so that no invariance of a loss hides in it.

    A loss of softmax, for one, does not change when all scores of a position move together.
    """
    vector = random.choice([-1.0, 1.0], shape) * random.uniform(0.5, 1.5, shape)
    if support is not None:
        vector = np.where(support, vector, 0.0)
    return vector * math.sqrt(np.count_nonzero(vector) / max(float(np.vdot(vector, vector)), 1e-300))


def difference(objective, probe, step):
    """Along a probe: the central slope, the right slope less the left one, and what rounding of x does to the slope.

    None where the step is too small to move x.
    """
    plus, minus, apart, uneven = probe.pair(objective.x, step)
    if apart <= 0:
        return None
    forth = objective.values(plus) - objective.center
    back = objective.values(minus) - objective.center
    jump = objective.weights @ (forth + back) / (apart / 2)
    return objective.weights @ (forth - back) / apart, jump, abs(jump) * uneven / apart


class Slopes:
    """Slopes of an objective along probes: central differences on a ladder of steps, extrapolated to step zero."""

    def __init__(self, objective, probes, deadline):
        self.objective = objective
        self.probes = []
        self.deadline = deadline
        self.size = scales(objective.x)
        self.unit = np.zeros(0)
        self.central = np.zeros((len(LADDER), 0))  # (F(x+h) - F(x-h)) / 2h
        self.jump = np.zeros((len(LADDER), 0))  # right slope minus left slope
        self.uneven = np.zeros((len(LADDER), 0))  # what rounding of x itself does to a slope, by the curvature
        self.tried = np.zeros((len(LADDER), 0), dtype=bool)
        self.add(probes)

    def add(self, probes) -> None:
        unknown = np.full((len(LADDER), len(probes)), np.nan)
        self.probes = self.probes + probes
        self.unit = np.append(self.unit, [probe.unit(self.size) for probe in probes])
        self.central, self.jump = np.hstack([self.central, unknown]), np.hstack([self.jump, unknown])
        self.uneven = np.hstack([self.uneven, unknown])
        self.tried = np.hstack([self.tried, np.isfinite(unknown)])

    def still(self, tolerance) -> bool:
        """Whether the objective changes nowhere, or only far away: along no probe at its two finest steps.

        These must be long enough for a slope of `tolerance` times the steepest one met far away to show.
        """
        steepest = float(np.nan_to_num(np.abs(self.central)).max(initial=0))
        for j, unit in enumerate(self.unit):
            near = np.flatnonzero(np.isfinite(self.central[:, j]))[-2:]
            hidden = self.objective.noise / (LADDER[near] * unit)
            moves = self.central[near, j].any() or self.jump[near, j].any()
            if moves or (steepest and hidden.max(initial=0) > tolerance * steepest):
                return False
        return True

    def evaluate(self, j, level) -> None:
        if not 0 <= level < len(LADDER) or self.tried[level, j] or time.monotonic() > self.deadline:
            return
        self.tried[level, j] = True
        found = difference(self.objective, self.probes[j], LADDER[level] * self.unit[j])
        if found is not None:
            self.central[level, j], self.jump[level, j], self.uneven[level, j] = found

    def estimate(self):
        """Value, truncation and rounding (one sigma) of each slope, by the window of steps with the least error."""
        steps = LADDER[:, None] * self.unit
        sigma = np.hypot(self.objective.noise / (math.sqrt(2) * steps), self.uneven)
        sigma = np.where(np.isfinite(self.central), sigma, np.nan)
        table, rounding, weights = self.central, sigma, np.ones(1)
        values, truncations, roundings = [], [], []
        for order in range(ORDERS):
            coarse, fine = table[:-1], table[1:]
            # Noise may hide the difference: it is only known to this much.
            blur = 2 * np.hypot(rounding[:-1], rounding[1:])
            if order == 0:
                values.append(fine)
                truncations.append(np.abs(fine - coarse) + blur)
                roundings.append(sigma[1:])
            shrink = 4.0 ** (order + 1) - 1
            table = fine + (fine - coarse) / shrink  # Neville's scheme in h^2
            weights = np.append(0.0, weights) * (1 + 1 / shrink) - np.append(weights, 0.0) / shrink
            squares = sum((w * sigma[k : len(sigma) - len(weights) + 1 + k]) ** 2 for k, w in enumerate(weights))
            values.append(table)
            truncations.append((np.abs(fine - coarse) + blur) / 2)
            rounding = np.sqrt(squares)
            roundings.append(rounding)
        value, truncation, rounding = (np.concatenate(parts) for parts in (values, truncations, roundings))
        total = truncation + SIGMAS * rounding
        total = np.where(np.isfinite(total), total, np.inf)
        self.windows = value, total
        best = total.argmin(axis=0), np.arange(total.shape[1])
        unknown = ~np.isfinite(total[best])
        return (np.where(unknown, np.nan, value[best]), np.where(unknown, np.inf, truncation[best]),
                np.where(unknown, np.inf, rounding[best]))  # fmt: skip

    def least_error(self, slope) -> np.ndarray:
        """How far a slope is outside the error bars of every window that is nearly as good as the best one.

        Of many windows the best may be best by luck; a slope that is wrong is wrong by the others too.
        """
        value, total = self.windows
        near = np.isfinite(total) & (total <= 4 * total.min(axis=0))
        return np.where(near, np.abs(value - slope) - total, np.inf).min(axis=0)

    def bends(self, matters):
        """Where the one-sided slopes disagree by more than `matters`: (at the finest steps, and still as they shrink).

        For a smooth function their difference is proportional to the step, so twice that at h/2 less that at h
        vanishes like h^3; at a kink it stays.
        """
        count = len(self.probes)
        steps = LADDER[:, None] * self.unit
        sigma = np.hypot(self.objective.noise * math.sqrt(6) / steps, 2 * self.uneven)
        left_over = 2 * self.jump[1:] - self.jump[:-1]
        # The noise of a difference of slopes may be that of one jump between two rounded values: hence twice.
        bar = 2 * SIGMAS * np.hypot(2 * sigma[1:], sigma[:-1])
        largest = np.nan_to_num(np.abs(left_over)).max(axis=0)
        finite = np.isfinite(left_over) & (bar <= np.maximum(matters, 0.25 * largest))
        last = np.where(finite.any(axis=0), len(left_over) - 1 - finite[::-1].argmax(axis=0), 1)
        columns = np.arange(count)
        now, before = left_over[last, columns], left_over[np.maximum(last - 1, 0), columns]
        with np.errstate(invalid="ignore"):
            bent = np.abs(now) > np.maximum(bar[last, columns], matters)
            stays = bent & (last > 0) & (np.abs(before) > matters) & (np.abs(now) > 0.5 * np.abs(before))
        return bent, stays


def climb(slopes, slope, yardsticks, tolerance, start=0) -> None:
    """Evaluate the probes from `start` on at two or three steps, then at others where the error bars ask for them."""
    count = len(slope)
    roots = np.sqrt([probe.support for probe in slopes.probes])
    zero = int(np.flatnonzero(LADDER == 1)[0])
    entry = yardsticks(slope) / roots
    if not slope.any():  # no idea of the size of the slopes yet
        slopes.evaluate(0, zero + 3)
        entry = np.abs(np.nan_to_num(slopes.central[zero + 3, 0])) / roots[0] + 0 * roots
    # The step at which rounding is a tenth of the tolerance; never finer than 2^-8, where truncation is below it.
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = 10 * SIGMAS * slopes.objective.noise / (entry * slopes.unit * tolerance)
        wanted = np.where(np.isnan(wanted), 1.0, wanted)  # no noise, and no slope
    first = np.clip(np.ceil(np.log2(np.clip(wanted, 1e-30, 1e30))), -8, 0)
    plan = [range(int(zero - e), int(zero - e) + (2 if e < -5 else 3)) for e in first]
    open_ = np.arange(count) >= start
    for attempt in range(7):
        for j in np.flatnonzero(open_):
            for level in plan[j]:
                slopes.evaluate(j, level)
        value, truncation, rounding = slopes.estimate()
        yardstick = yardsticks(value)
        bar = truncation + SIGMAS * rounding
        bent, _ = slopes.bends(0.5 * tolerance * yardstick)
        with np.errstate(invalid="ignore"):
            enough = bar <= np.maximum(0.2 * tolerance * yardstick, 0.02 * np.abs(slope - value))
            finer = bent | ~np.isfinite(value) | (truncation > SIGMAS * rounding)
        open_ = (~enough | bent) & (np.arange(count) >= start)
        for j in np.flatnonzero(open_):
            levels = np.flatnonzero(slopes.tried[:, j])
            if not levels.size:
                open_[j] = False
            elif finer[j]:
                level = levels[-1] + 1 + (3 * attempt if not np.isfinite(value[j]) or attempt > 1 else 0)
                plan[j] = range(level, level + (2 if attempt == 0 and not bent[j] else 3))
            elif levels[0] == 0:
                open_[j] = False
            else:
                plan[j] = range(levels[0] - 1, levels[0])
