"""The gradient checker for one Caffe Python layer: in a real Caffe net, and on float64 stand-ins for its blobs.

Caffe's blobs hold float32, whose rounding hides small errors of a gradient. A pycaffe layer touches only `data`,
`diff`, `shape`, `reshape` and the like of a blob, so the same class also runs on arrays of float64, where slopes are
exact to many digits. The stand-ins give the verdict where the layer's outputs and gradients in Caffe agree with those
on them; everywhere else Caffe does, and what float32 hides there is "inconclusive".
"""

import math
import os
import random as python_random
import time
import traceback
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from ..nets.python_layers import find_class
from ..nets.reading import quiet_caffe
from .diagnosis import factor_names
from .judgement import Measurement, measure
from .report import (
    BUDGET,
    TOLERANCE,
    Finding,
    GradientReport,
    check_numbers,
    checked_array,
    report_of,
)
from .runners import CaffeRunner, Spec, StandInRunner, TopWithoutShape, flat

RAISED = (Exception, SystemExit)  # what a layer may raise; sys.exit() in one is a finding, and no way out of a check
METHODS = ("setup", "reshape", "forward", "backward")
SAME = 1e-5  # relative difference of two float32 results that counts as none
LEAST = float(np.nextafter(np.float32(0), np.float32(1)))  # the least float32 above 0
TINY = 1e-30  # a gradient below loses digits in float32, and is lifted
GAIN = 2.0**90  # by a loss weight that many times as large
FEWER = (8, 2, 1)  # samples tried where rounding hides too much in all of them


def check_layer(
    module: str,
    layer: str,
    bottoms: Sequence[Any],
    param_str: str = "",
    loss_weight: Any = 1.0,
    wrt: Sequence[int] = (0,),
    seed: int = 0,
    tops: int = 1,
    mode: str = "auto",
    parameters: Optional[Sequence[Any]] = None,
    tolerance: float = TOLERANCE,
    budget: float = BUDGET,
    name: str = "",
) -> GradientReport:
    """Check the gradients of one Caffe Python layer, and its manners.

    Parameters
    ----------
    module, layer, param_str : str
        As in `python_param`.
    bottoms : list of arrays
        The data of the bottoms, rounded to float32 first; left as they are.
    loss_weight : float, or one per top
        Scales the loss; a top of weight 0 is left out.
    wrt : list of int
        The bottoms whose gradient is checked. Learnable `blobs` always are.
    seed : int
        Of everything random here. The generators of NumPy and Python are put back afterwards.
    tops : int
        How many tops the layer makes. A top that is no scalar, and several tops, are contracted with random weights.
    mode : "auto", "caffe" or "float64"
        Which gives the verdict: the better one, the net only, or the stand-ins only.
    parameters : list of arrays or None
        Values of the learnable blobs; as `setup` leaves them where None.
    tolerance, budget : float, seconds
    name : str
        What to call the layer in the report.

    Returns
    -------
    report : GradientReport
        An exception raised by the layer is a finding, "raises-in-forward" and so on.

    Raises
    ------
    ValueError, TypeError : an argument is none of the above.
    ImportError : no such module or class.
    """
    check_numbers(tolerance, budget, seed)
    if mode not in ("auto", "caffe", "float64"):
        raise ValueError(f"mode is {mode!r}; expected 'auto', 'caffe' or 'float64'.")
    for argument, value in (("module", module), ("layer", layer), ("param_str", param_str)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} is {value!r}; expected a string, as in python_param.")
    if isinstance(bottoms, np.ndarray):
        raise TypeError("bottoms is one array; expected a list of arrays, one per bottom.")
    arrays = [checked_array(bottom, f"bottoms[{i}]").astype(np.float32) for i, bottom in enumerate(bottoms)]
    for i, array in enumerate(arrays):
        if array.size == 0:
            raise ValueError(f"bottoms[{i}] is empty, of shape {array.shape}; Caffe makes no gradient of nothing.")
    wrt = tuple(int(i) for i in wrt)
    if not all(0 <= i < len(arrays) for i in wrt):
        raise ValueError(f"wrt is {wrt}; expected indices of the {len(arrays)} bottoms.")
    loss_weights = tuple(np.broadcast_to(np.asarray(loss_weight, dtype=float), (tops,)).tolist())
    if not any(loss_weights) or not np.isfinite(loss_weights).all():
        raise ValueError(f"loss_weight is {loss_weight}; expected one that is not 0, and all finite.")
    quiet_caffe()
    layer_class = find_class(module, layer)
    if not isinstance(layer_class, type):
        raise ValueError(
            f"{module}.{layer} is a {type(layer_class).__name__}; expected a class derived from caffe.Layer."
        )
    spec = Spec(module, layer, param_str, tops, loss_weights, wrt)
    saved = np.random.get_state(), python_random.getstate()
    try:
        return LayerCheck(spec, layer_class, arrays, parameters, mode, seed, tolerance, budget, name).run()
    finally:
        np.random.set_state(saved[0])
        python_random.setstate(saved[1])


class LayerCheck:
    """One check of one layer: its runs, its manners, its numbers."""

    def __init__(self, spec, layer_class, arrays, parameters, mode, seed, tolerance, budget, name):
        self.spec, self.layer_class, self.arrays, self.mode = spec, layer_class, arrays, mode
        self.seed, self.tolerance = seed, tolerance
        self.subject = name or f"{spec.module}.{spec.layer}"
        self.started = time.monotonic()
        self.budget = budget
        self.deadline = self.started + 0.9 * budget
        self.given_parameters = parameters
        self.parameters: List[np.ndarray] = []
        self.propagate = [i in spec.wrt for i in range(len(arrays))]
        self.findings: List[Finding] = []
        self.reseed = False
        self.gain = 1.0
        self.stand_in_error: Optional[BaseException] = None

    def add(self, name, sentence, fatal=True) -> None:
        if name not in [finding.name for finding in self.findings]:
            self.findings.append(Finding(name, sentence, fatal))

    def has(self, *names) -> bool:
        return any(finding.name in names for finding in self.findings)

    def run(self) -> GradientReport:
        try:
            with np.errstate(all="ignore"):  # training goes on with nan as well; it becomes a finding
                return self.check()
        except BadArgument:
            raise
        except Stop:
            return self.report([], "")
        except RAISED as error:
            self.add(*raised(error))
            return self.report([], "")

    def check(self) -> GradientReport:
        self.set_seed()
        stand_in = self.try_stand_in()
        if isinstance(self.stand_in_error, TopWithoutShape):  # in Caffe, it would end the process
            self.add("top-not-shaped", f"{self.stand_in_error}")
            raise Stop()
        stand_in = None if self.mode == "caffe" else stand_in
        caffe_runner = None if self.mode == "float64" else self.fresh()
        runner = caffe_runner or StandInRunner(self.spec, self.layer_class, self.arrays)
        self.use_parameters(runner)
        self.check_manners(runner)
        if self.has("gradient-not-finite", "loss-not-finite"):
            raise Stop()
        return self.judge(stand_in, caffe_runner)

    def report(self, measurements, mode) -> GradientReport:
        return report_of(self.subject, measurements, self.findings, mode, self.tolerance, self.started)

    def set_seed(self) -> None:
        np.random.seed(self.seed)
        python_random.seed(self.seed)

    def try_stand_in(self) -> Optional[StandInRunner]:
        """The layer on float64, or None where it cannot run there; `stand_in_error` then says why."""
        try:
            runner = StandInRunner(self.spec, self.layer_class, self.arrays)
            runner.backward(self.top_weights(runner.forward(self.arrays)), self.propagate)
            return runner
        except RAISED as error:
            self.stand_in_error = error
            return None

    def fresh(self, arrays=None) -> CaffeRunner:
        """The layer in a new net, with the same parameters."""
        runner = CaffeRunner(self.spec, self.arrays if arrays is None else arrays)
        runner.set_parameters(self.parameters)
        return runner

    def use_parameters(self, runner) -> None:
        """Take the parameters given, or those of the first net for all."""
        if self.given_parameters is not None:
            shapes = [np.shape(value) for value in self.given_parameters]
            own = [value.shape for value in runner.parameters()]
            if shapes != own:
                raise BadArgument(f"parameters have shapes {shapes}; expected {own}, those of the layer's blobs.")
            runner.set_parameters(self.given_parameters)
        self.parameters = runner.parameters()

    def top_weights(self, outputs) -> List[np.ndarray]:
        """The contraction: the loss weight for a single scalar, random weights about as large otherwise. Float32."""
        random = np.random.RandomState(self.seed + 1)
        weights = []
        for output, weight in zip(outputs, self.spec.loss_weights):
            if output.size == 1 and len(outputs) == 1:
                values = np.ones(output.shape)
            else:
                values = random.uniform(0.5, 1.5, output.shape) * random.choice([-1.0, 1.0], output.shape)
            weights.append((self.gain * weight * values).astype(np.float32))
        return weights

    # -- manners ------------------------------------------------------------------------------------------------------

    def check_manners(self, runner) -> None:
        """The protocol of a Caffe layer, each breach a finding by name."""
        self.check_forward(runner)
        if self.has("loss-not-finite"):
            return
        self.weights = self.top_weights(runner.forward(self.arrays))
        steps = [self.lift_loss_weight, self.check_unwritten]
        if self.mode != "float64" and not self.has("random-loss"):
            steps += [self.check_state, self.check_reshape]
        steps += [self.check_second_backward, self.check_linearity, self.check_propagate_down]
        steps += [self.check_parameters] if len(runner.blobs) else []
        for step in steps:
            try:
                step(runner)
            except RAISED as error:
                self.add(*raised(error))
            if self.has("raises-in-forward", "raises-in-backward", "gradient-not-finite"):
                raise Stop()  # what else goes wrong would follow from that
            if self.has("state-leaks"):
                return

    def check_forward(self, runner) -> None:
        """Writes into its bottoms; depends on hidden randomness or on earlier forwards."""
        runner.load(self.arrays)
        runner.run_forward()
        for i, array in enumerate(self.arrays):
            if not np.array_equal(runner.bottoms[i].data, array.astype(runner.dtype), equal_nan=True):
                self.add("writes-bottom-data", f"forward changes the data of bottom[{i}].")
        outputs = [flat([runner.tops[i].data.copy() for i in range(len(runner.tops))])]
        if not np.isfinite(outputs[0]).all():
            self.add("loss-not-finite", f"the top holds {outputs[0][~np.isfinite(outputs[0])][0]}.")
            return
        outputs += [flat(runner.forward(self.arrays)) for _ in range(2)]
        if close(outputs[0], outputs[1]) and close(outputs[0], outputs[2]):
            return
        repeated = []
        for _ in range(3):  # two draws may be alike by chance
            self.set_seed()
            repeated.append(flat(runner.forward(self.arrays)))
        fresh = []
        if self.mode != "float64":
            for seed in (self.seed + 1, self.seed + 2, self.seed + 3):  # not what setup draws, only what forward does
                one = self.fresh()
                np.random.seed(seed)
                python_random.seed(seed)
                fresh.append(flat(one.forward(self.arrays)))
        first, second = float(outputs[0].flat[0]), float(outputs[1].flat[0])
        again = f"{first:g}, then {second:g} on the same data"
        hidden = "the loss depends on hidden randomness"
        if all_close(repeated):
            self.reseed = True
            self.add("random-loss", f"{hidden}: {again}; equal with NumPy's generator seeded.")
        elif fresh and all_close(fresh):
            self.add("state-leaks", f"the loss depends on the forwards before it: {again}.")
        else:
            self.add("random-loss", f"{hidden}: {again}, and new nets differ too.")

    def gradient(self, runner, top_weights=None, fill=0.0, propagate=None) -> List[np.ndarray]:
        return runner.backward(top_weights or self.weights, propagate or self.propagate, fill)

    def forward(self, runner, arrays=None) -> List[np.ndarray]:
        if self.reseed:
            self.set_seed()
        return runner.forward(self.arrays if arrays is None else arrays)

    def names(self, runner) -> List[str]:
        return [f"bottom[{i}]" for i in range(len(self.arrays))] + [f"blobs[{i}]" for i in range(len(runner.blobs))]

    def checked(self, runner) -> List[int]:
        """Which of the arrays of `gradient` are checked: some bottoms, all learnable blobs."""
        return list(self.spec.wrt) + list(range(len(self.arrays), len(self.arrays) + len(runner.blobs)))

    def lift_loss_weight(self, runner) -> None:
        """Raise the loss weight where the gradient underflows in float32.

        Nothing else is lifted by it: the top itself does not hold the loss weight, so the slopes of the loss and their
        rounding are multiplied alike, and so are the normal numbers of a gradient.
        """
        outputs = self.forward(runner)
        gradients = [self.gradient(runner)[i] for i in self.checked(runner)]
        if runner.dtype == np.float32 and max([np.abs(g).max(initial=0) for g in gradients] or [1]) < TINY:
            self.gain = GAIN
            lifted = self.gradient(runner, self.top_weights(outputs))
            self.gain = GAIN if any(lifted[i].any() for i in self.checked(runner)) else 1.0
            self.weights = self.top_weights(outputs)

    def check_unwritten(self, runner) -> None:
        """Poison the diffs before; what backward leaves there or adds to shows."""
        self.forward(runner)
        poisoned = self.gradient(runner, fill=np.nan)
        tops = [runner.tops[i].diff for i in range(len(runner.tops))]
        if not all(np.array_equal(diff, weight) for diff, weight in zip(tops, self.weights)):
            self.add("writes-top-diff", "backward changes top[...].diff, where Caffe keeps loss_weight for good.")
        for i, array in enumerate(self.arrays):
            if not np.array_equal(runner.bottoms[i].data, array.astype(runner.dtype), equal_nan=True):
                self.add("writes-bottom-data", f"backward finds or makes the data of bottom[{i}] changed.")
        for i in self.spec.wrt:
            spoiled = ~np.isfinite(poisoned[i])
            if not spoiled.any():
                continue
            self.forward(runner)
            zero = self.gradient(runner)[i]
            self.forward(runner)
            one = self.gradient(runner, fill=1.0)[i]
            if not np.isfinite(zero).all():
                where = np.argwhere(~np.isfinite(zero))[0].tolist()
                self.add("gradient-not-finite", f"bottom[{i}].diff{where} is {zero[tuple(where)]}.")
            elif (zero[spoiled] == 0).all() and (one[spoiled] == 1).all():
                where = np.argwhere(spoiled)[0].tolist()
                self.add(
                    "unwritten-diff",
                    f"backward leaves {int(spoiled.sum())} of {spoiled.size} entries of bottom[{i}].diff unwritten, "
                    f"such as {where}; Caffe does not clear them.",
                )
            else:
                self.add("accumulates-diff", f"backward adds to what bottom[{i}].diff held instead of replacing it.")

    def check_second_backward(self, runner) -> None:
        self.forward(runner)
        first = self.gradient(runner)
        second = self.gradient(runner)
        for i in self.checked(runner):
            if not close(first[i], second[i]):
                self.add("second-backward-differs", f"a second backward gives another {self.names(runner)[i]}.diff.")
                return

    def check_linearity(self, runner) -> None:
        """The gradient is linear in top.diff, which carries loss_weight: at 1, -3 and 0."""
        results = []
        for scale in (1, -3, 0):
            self.forward(runner)
            results.append(self.gradient(runner, [np.float32(scale) * weight for weight in self.weights]))
        for i in self.checked(runner):
            one, minus_three, zero = (result[i].astype(np.float64) for result in results)
            name = self.names(runner)[i]
            if not one.any():
                continue
            if close(one, minus_three):
                self.add("ignores-loss-weight", f"{name}.diff does not depend on top.diff, which carries loss_weight.")
            elif not close(-3 * one, minus_three) or not close(zero, 0 * one, np.abs(one).max()):
                self.add("not-linear-in-top-diff", f"{name}.diff at -3 times top.diff is not -3 times what it was.")

    def check_propagate_down(self, runner) -> None:
        count = len(self.arrays)
        for i in range(count):
            flags = [k != i and k in self.spec.wrt for k in range(count)]
            self.forward(runner)
            try:
                diffs = self.gradient(runner, fill=np.nan, propagate=flags)
            except RAISED as error:
                self.add("ignores-propagate-down", f"backward raises with propagate_down[{i}] false: {said(error)}.")
                return
            if not np.isnan(diffs[i]).all():
                sentence = f"backward writes bottom[{i}].diff though propagate_down[{i}] is false."
                self.add("ignores-propagate-down", sentence)
        others = [i for i in range(count) if i not in self.spec.wrt]
        if not others:
            return
        self.forward(runner)
        try:
            diffs = self.gradient(runner, fill=np.nan, propagate=[True] * count)
        except RAISED as error:
            self.add("refuses-force-backward", f"with force_backward, backward raises {said(error)}.", fatal=False)
            return
        for i in others:
            if np.isnan(diffs[i]).any():
                self.add(
                    "label-diff-unfilled",
                    f"under force_backward, backward leaves bottom[{i}].diff unfilled; a constant has zeros there.",
                )

    def check_parameters(self, runner) -> None:
        """Caffe clears parameter diffs once per iteration, and expects layers to add to them."""
        self.forward(runner)
        once = self.gradient(runner)
        runner.run_backward(self.propagate)
        for i in range(len(runner.blobs)):
            expected = once[len(self.arrays) + i]
            if expected.any() and close(runner.blobs[i].diff, expected):
                self.add(
                    "overwrites-parameter-diff",
                    f"backward replaces blobs[{i}].diff; iter_size and shared weights need it added to.",
                    fatal=False,
                )

    def others(self) -> Optional[List[np.ndarray]]:
        """Other data of the same kind: the samples in another order, and what is differentiated halved if it may be.

        None where the layer refuses both.
        """
        size = self.batch()
        rolled = [np.roll(array, 1, axis=0) if array.ndim and len(array) == size else array for array in self.arrays]
        halved = [array * np.float32(0.5) if i in self.spec.wrt else array for i, array in enumerate(rolled)]
        for arrays in (halved, rolled):
            try:
                self.gradient(self.run_once(arrays))
                return arrays
            except RAISED:
                continue
        return None

    def run_once(self, arrays) -> CaffeRunner:
        """A new net that went forward on these arrays."""
        runner = self.fresh()
        self.forward(runner, arrays)
        return runner

    def batch(self) -> int:
        first = self.arrays[self.spec.wrt[0] if self.spec.wrt else 0] if self.arrays else np.zeros(())
        return len(first) if first.ndim else 0

    def resized(self, rows) -> List[np.ndarray]:
        """The samples given by `rows`, of every bottom that has one entry per sample."""
        size = self.batch()
        return [array[rows] if array.ndim and len(array) == size else array for array in self.arrays]

    def check_state(self, runner) -> None:
        """Another forward in between changes neither the loss nor the gradient."""
        if self.has("state-leaks"):
            return
        other = self.others()
        if other is None:
            return
        new, used = self.fresh(), self.fresh()
        self.forward(used)
        self.gradient(used)
        for arrays in (other, self.arrays):
            loss = flat(self.forward(new, arrays)), flat(self.forward(used, arrays))
            if not close(*loss):
                self.add("state-leaks", "the loss is another one after a forward on other data.")
                return
            gradients = self.gradient(new), self.gradient(used)
            if not all(close(gradients[0][i], gradients[1][i]) for i in self.checked(runner)):
                self.add("state-leaks", "the gradient is another one after a forward on other data.")
                return
            new = self.fresh()

    def check_reshape(self, runner) -> None:
        """After a reshape to another batch, the layer does what a new one of that batch does."""
        size = self.batch()
        if not size or self.has("state-leaks"):
            return
        for count in (size + 1, max(1, size // 2)):
            smaller = self.resized(np.arange(count) % size)
            try:
                new = self.fresh(smaller)
                loss = self.forward(new, smaller)
                weights = self.top_weights(loss)
                gradient = self.gradient(new, weights)
            except RAISED:
                continue  # a layer may refuse a batch; then there is nothing to compare with
            old = self.fresh()
            self.forward(old)
            self.gradient(old)
            try:
                again = self.forward(old, smaller)
                after = self.gradient(old, weights)
            except RAISED as error:
                sentence = f"after a reshape from batch {size} to {count} it raises {said(error)}."
                self.add("wrong-after-reshape", sentence)
                return
            for what, a, b in [("loss", flat(loss), flat(again))] + [
                (f"{self.names(runner)[i]}.diff", gradient[i], after[i]) for i in self.checked(runner)
            ]:
                if not close(a, b):
                    self.add(
                        "wrong-after-reshape",
                        f"after a reshape from batch {size} to {count}, {what} differs from that of a new layer.",
                    )
                    return

    # -- numbers ------------------------------------------------------------------------------------------------------

    def judge(self, stand_in, caffe_runner) -> GradientReport:
        if self.has("state-leaks") or (self.has("random-loss") and not self.reseed):
            return self.report([], "nothing, as the loss changes by itself")
        if stand_in is None and caffe_runner is None:
            raise self.stand_in_error or RuntimeError("the layer cannot run on stand-ins.")
        if stand_in is not None:
            stand_in.set_parameters(self.parameters)
        measurements, modes = [], []
        targets = self.checked(caffe_runner or stand_in)
        agreement = self.agreement(stand_in, caffe_runner) if stand_in and caffe_runner else []
        # What took long so far may be a compiler at work, once: there is half the budget left at least.
        self.deadline = max(self.deadline, time.monotonic() + 0.5 * self.budget)
        for k, target in enumerate(targets):
            deadline = time.monotonic() + (self.deadline - time.monotonic()) / (len(targets) - k)
            agrees = stand_in is not None and (caffe_runner is None or agreement[target] <= self.tolerance)
            if agrees:
                measured, samples = self.measure_lifted(stand_in, target, deadline)
                mode = "float64 stand-ins" + samples
                if caffe_runner is not None:
                    mode += f", with which Caffe agrees to {max(agreement[target], 1e-9):.1g}"
            else:
                measured, samples = self.measure_lifted(caffe_runner, target, deadline)
                mode = "Caffe, float32" + samples
                if stand_in is not None:
                    mode += "; on float64 stand-ins the layer does something else"
            if self.wrong_factor(measured):
                measured = self.name_by_batch(caffe_runner or stand_in, target, measured, deadline)
            measurements.append(measured)
            modes.append(mode)
        if self.gain != 1:
            modes[-1] += f", at {self.gain:.1g} times the loss weight, as the gradient underflows in float32"
        return self.report(measurements, "; ".join(dict.fromkeys(modes)))

    def agreement(self, stand_in, caffe_runner) -> List[float]:
        """Relative difference of gradients in Caffe and on the stand-ins, that of the outputs included."""
        double, single = self.forward(stand_in), self.forward(caffe_runner)
        outputs = distance(flat(double), flat(single))
        double, single = self.gradient(stand_in), self.gradient(caffe_runner)
        return [max(outputs, distance(a, b)) for a, b in zip(double, single)]

    def measure(self, runner, target, arrays, deadline, coordinates=True) -> Measurement:
        """Analytic and numeric gradient of one array, on one way of running the layer."""
        count = len(arrays)
        weights = self.top_weights(self.forward(runner, arrays))
        analytic = runner.backward(weights, self.propagate)[target].astype(np.float64)
        x = (arrays[target] if target < count else self.parameters[target - count]).astype(runner.dtype)

        def outputs(values):
            if target < count:
                return flat(self.forward(runner, [values if i == target else array for i, array in enumerate(arrays)]))
            runner.blobs[target - count].data[...] = values
            return flat(self.forward(runner, arrays))

        try:
            return measure(outputs, flat(weights).astype(np.float64), analytic, x, self.names(runner)[target],
                           self.tolerance, self.seed, deadline, self.sizes(arrays, target), coordinates)  # fmt: skip
        finally:
            runner.set_parameters(self.parameters)

    def measure_lifted(self, runner, target, deadline) -> Tuple[Measurement, str]:
        """Measure; where rounding hides too much, on fewer samples, each of which weighs more in a mean.

        The other lifts have their place elsewhere: `lift_loss_weight`, and `more_directions` in every measurement.
        """
        now = time.monotonic()
        measured = self.measure(runner, target, self.arrays, now + 0.5 * (deadline - now))
        size = self.batch()
        for count in FEWER:
            if measured.verdict != "inconclusive":
                break
            if count >= size:
                continue
            now = time.monotonic()
            rows = np.random.RandomState(self.seed).choice(size, count, replace=False)
            try:
                part = self.measure(runner, target, self.resized(np.sort(rows)), now + 0.5 * (deadline - now))
            except RAISED:
                continue  # a layer may refuse a batch
            # All samples together need only confirm the scale, which many probes tell better than each.
            confirmed = abs(measured.factor - 1) <= measured.factor_bar < 0.1
            if part.verdict == "fail" or (part.verdict == "pass" and confirmed):
                return part, f" on {count} of the {size} samples, as more hide in rounding"
        return measured, ""

    def sizes(self, arrays, target) -> dict:
        """What a wrong factor may be."""
        shape = arrays[target if target < len(arrays) else 0].shape
        sizes = {name: float(n) for name, n in zip(("N", "C"), shape)}
        if len(shape) > 1:
            sizes["N C"] = float(shape[0] * shape[1])
        if len(shape) > 2:
            sizes["the positions"] = float(np.prod(shape[2:]))
            sizes["N and the positions"] = float(shape[0] * np.prod(shape[2:]))
        weights = set(self.spec.loss_weights)
        if len(weights) == 1:
            sizes["loss_weight"] = abs(weights.pop())
        return sizes

    @staticmethod
    def wrong_factor(measured) -> bool:
        return any(finding.name == "wrong-factor" for finding in measured.findings)

    def name_by_batch(self, runner, target, measured, deadline) -> Measurement:
        """Of the names a wrong factor may have, keep those that also fit at another batch: 2 is N at batch 2 only."""
        size = self.batch()
        finding = next(f for f in measured.findings if f.name == "wrong-factor")
        if finding.count(" or ") == 0 or not size:
            return measured
        arrays = self.resized(np.arange(size + 3) % size)
        try:
            other = self.measure(runner, target, arrays, deadline, coordinates=False)
        except RAISED:
            return measured
        here = factor_names(measured.factor, self.sizes(self.arrays, target), 4 * self.tolerance)
        there = factor_names(other.factor, self.sizes(arrays, target), 4 * self.tolerance)
        kept = [name for name in here if name.split(" with ")[0] in [t.split(" with ")[0] for t in there]]
        if not kept:
            return measured
        sentence = f"{self.names(runner)[target]}: the gradient is {measured.factor:.4g} times the slope of the loss: "
        sentence += f"{' or '.join(kept)}, as another batch confirms."
        findings = [Finding("wrong-factor", sentence) if f is finding else f for f in measured.findings]
        return measured._replace(findings=findings)


class Stop(Exception):
    """The layer raised; what is known is in the findings."""


class BadArgument(ValueError):
    """What the caller gave does not fit the layer, which is no finding."""


def distance(a, b) -> float:
    """Largest difference, relative to the largest entry."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        return math.inf
    largest = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    if not math.isfinite(largest):
        return 0.0 if np.array_equal(a, b, equal_nan=True) else math.inf
    return float(np.abs(a - b).max(initial=0) / largest) if largest else 0.0


def close(a, b, largest=0.0) -> bool:
    """Whether two float32 results are the same but for rounding."""
    largest = largest or max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    if np.shape(a) == np.shape(b) and math.isfinite(largest):
        return bool(np.abs(a - b).max(initial=0) <= SAME * largest + 8 * LEAST)
    return np.array_equal(a, b, equal_nan=True)


def all_close(results) -> bool:
    return all(close(results[0], result) for result in results[1:])


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def raised(error: BaseException) -> Tuple[str, str]:
    """Name and sentence of a finding: in which method of the layer an exception arose."""
    frames = traceback.extract_tb(error.__traceback__)
    method = next((frame.name for frame in frames if frame.name in METHODS and frame.filename != __file__), None)
    if method is None:
        return "raises", said(error)
    last = frames[-1]
    return f"raises-in-{method}", f"{said(error)} ({os.path.basename(last.filename)}, line {last.lineno})."
