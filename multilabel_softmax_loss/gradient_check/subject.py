"""The layer under test: the ways to run it on the same data, parameters and seeds, and what it raises."""

import math
import os
import random as python_random
import traceback
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .runners import CaffeRunner, Runner, Spec, StandInRunner

RAISED = (Exception, SystemExit)  # what a layer may raise; sys.exit() in one is a finding, and no way out of a check
METHODS = ("setup", "reshape", "forward", "backward")
SAME = 1e-5  # relative difference of two float32 results that counts as none
LEAST = float(np.nextafter(np.float32(0), np.float32(1)))  # the least float32 above 0
UNDERFLOWS = 1e-30  # a gradient below loses digits in float32, and is lifted
GAIN = 2.0**90  # by a loss weight that many times as large


class BadArgument(ValueError):
    """What the caller gave does not fit the layer, which is no finding."""


class Subject:
    """One layer on one set of bottoms: every runner made here gets the same parameters and sees the same seeds.

    Parameters
    ----------
    spec : Spec
    layer_class : type
        The class that `spec` names.
    arrays : list of float32 arrays
        The data of the bottoms.
    parameters : list of arrays or None
        Values of the learnable blobs; as `setup` leaves them where None.
    seed : int
    in_caffe : bool
        False never makes a net: the layer runs on stand-ins only.
    """

    def __init__(self, spec: Spec, layer_class: type, arrays: List[np.ndarray], parameters: Optional[Sequence[Any]],
                 seed: int, in_caffe: bool = True):  # fmt: skip
        self.spec, self.layer_class, self.arrays, self.seed = spec, layer_class, arrays, seed
        self.in_caffe = in_caffe
        self.given_parameters = parameters
        self.parameters: List[np.ndarray] = []
        self.propagate = [i in spec.wrt for i in range(len(arrays))]
        self.reseed = False  # seed the generators before every forward, as the layer draws from them
        self.gain = 1.0
        self.weights: List[np.ndarray] = []
        self.stand_in_error: Optional[BaseException] = None

    def set_seed(self, offset: int = 0) -> None:
        np.random.seed(self.seed + offset)
        python_random.seed(self.seed + offset)

    def stand_in(self) -> Optional[StandInRunner]:
        """The layer on float64, or None where it cannot run there; `stand_in_error` then says why."""
        try:
            runner = StandInRunner(self.spec, self.layer_class, self.arrays)
            runner.backward(self.top_weights(runner.forward(self.arrays)), self.propagate)
            return runner
        except RAISED as error:
            self.stand_in_error = error
            return None

    def fresh(self, arrays: Optional[List[np.ndarray]] = None) -> Runner:
        """The layer anew, in a net or on stand-ins, with the same parameters."""
        arrays = self.arrays if arrays is None else arrays
        if not self.in_caffe:
            return StandInRunner(self.spec, self.layer_class, arrays)
        runner = CaffeRunner(self.spec, arrays)
        runner.set_parameters(self.parameters)
        return runner

    def use_parameters(self, runner: Runner) -> None:
        """Take the parameters given, or those of the first net for all."""
        if self.given_parameters is not None:
            shapes = [np.shape(value) for value in self.given_parameters]
            own = [value.shape for value in runner.parameters()]
            if shapes != own:
                raise BadArgument(f"parameters have shapes {shapes}; expected {own}, those of the layer's blobs.")
            runner.set_parameters(self.given_parameters)
        self.parameters = runner.parameters()

    def top_weights(self, outputs: Sequence[np.ndarray]) -> List[np.ndarray]:
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

    def forward(self, runner: Runner, arrays: Optional[List[np.ndarray]] = None) -> List[np.ndarray]:
        if self.reseed:
            self.set_seed()
        return runner.forward(self.arrays if arrays is None else arrays)

    def gradient(self, runner: Runner, top_weights=None, fill=0.0, propagate=None) -> List[np.ndarray]:
        """The diffs of the bottoms and the learnable blobs after the last forward."""
        return runner.backward(top_weights or self.weights, propagate or self.propagate, fill)

    def names(self, runner: Runner) -> List[str]:
        return [f"bottom[{i}]" for i in range(len(self.arrays))] + [f"blobs[{i}]" for i in range(len(runner.blobs))]

    def checked(self, runner: Runner) -> List[int]:
        """Which of the arrays of `gradient` are checked: some bottoms, all learnable blobs."""
        return list(self.spec.wrt) + list(range(len(self.arrays), len(self.arrays) + len(runner.blobs)))

    def lift_loss_weight(self, runner: Runner) -> None:
        """Choose the weights of the tops: raise the loss weight where the gradient underflows in float32.

        Nothing else is lifted by it: the top itself does not hold the loss weight, so the slopes of the loss and their
        rounding are multiplied alike, and so are the normal numbers of a gradient.
        """
        outputs = self.forward(runner)
        self.weights = self.top_weights(outputs)
        gradients = [self.gradient(runner)[i] for i in self.checked(runner)]
        if runner.dtype == np.float32 and max([np.abs(g).max(initial=0) for g in gradients] or [1]) < UNDERFLOWS:
            self.gain = GAIN
            lifted = self.gradient(runner, self.top_weights(outputs))
            self.gain = GAIN if any(lifted[i].any() for i in self.checked(runner)) else 1.0
            self.weights = self.top_weights(outputs)

    def others(self) -> Optional[List[np.ndarray]]:
        """Other data of the same kind: the samples in another order, and what is differentiated halved if it may be.

        None where the layer refuses both.
        """
        size = self.batch()
        rolled = [np.roll(array, 1, axis=0) if array.ndim and len(array) == size else array for array in self.arrays]
        halved = [array * np.float32(0.5) if i in self.spec.wrt else array for i, array in enumerate(rolled)]
        for arrays in (halved, rolled):
            try:
                runner = self.fresh()
                self.forward(runner, arrays)
                self.gradient(runner)
                return arrays
            except RAISED:
                continue
        return None

    def batch(self) -> int:
        first = self.arrays[self.spec.wrt[0] if self.spec.wrt else 0] if self.arrays else np.zeros(())
        return len(first) if first.ndim else 0

    def resized(self, rows: np.ndarray) -> List[np.ndarray]:
        """The samples given by `rows`, of every bottom that has one entry per sample."""
        size = self.batch()
        return [array[rows] if array.ndim and len(array) == size else array for array in self.arrays]

    def sizes(self, arrays: List[np.ndarray], target: int) -> Dict[str, float]:
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
    here = os.path.dirname(__file__)
    method = next((f.name for f in frames if f.name in METHODS and os.path.dirname(f.filename) != here), None)
    if method is None:
        return "raises", said(error)
    last = frames[-1]
    return f"raises-in-{method}", f"{said(error)} ({os.path.basename(last.filename)}, line {last.lineno})."
