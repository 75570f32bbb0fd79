"""The layer under test: the ways to run it on the same data, parameters and seeds, and what it raises."""

import dis
import math
import os
import re
import traceback
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .generators import seed_all
from .report import PROTOCOL, Finding
from .runners import CaffeRunner, Runner, Spec, StandInRunner

RAISED = (Exception, SystemExit)  # what a layer may raise; sys.exit() in one is a finding, and no way out of a check
METHODS = ("setup", "reshape", "forward", "backward")
SAME = 1e-5  # relative difference of two float32 results that counts as none
LEAST = float(np.nextafter(np.float32(0), np.float32(1)))  # the least float32 above 0
UNDERFLOWS = 1e-30  # a gradient below loses digits in float32, and is lifted
GAIN = 2.0**90  # by a loss weight that many times as large


class BadArgument(ValueError):
    """What the caller gave does not fit the layer, which is no finding."""


class Circumstances(NamedTuple):
    """What of a net decides whether a breach of the protocol does harm in it."""

    force_backward: bool = False
    passes_on: bool = False  # other layers use a top, whose diff then is what they send, and no loss weight
    stops: Tuple[int, ...] = ()  # bottoms whose propagate_down: false keeps a gradient from something that learns
    private: Tuple[int, ...] = ()  # bottoms that nobody else reads, and that are filled anew before every forward
    shares_parameters: bool = False


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
    circumstances : Circumstances
    """

    def __init__(self, spec: Spec, layer_class: type, arrays: List[np.ndarray], parameters: Optional[Sequence[Any]],
                 seed: int, in_caffe: bool, circumstances: Circumstances):  # fmt: skip
        self.circumstances = circumstances
        self.spec, self.layer_class, self.arrays, self.seed = spec, layer_class, arrays, seed
        self.in_caffe = in_caffe
        self.given_parameters = parameters
        self.parameters: List[np.ndarray] = []
        self.propagate = [i in spec.wrt for i in range(len(arrays))]
        self.reseed = False  # seed the generators before every forward, as the layer draws from them
        self.repeats = True  # the same forward gives the same loss, once seeded
        self.gain = 1.0
        self.stand_in_error: Optional[BaseException] = None

    def set_seed(self, runner: Optional[Runner] = None, offset: int = 0) -> None:
        seed_all(runner.layer if runner else None, self.seed + offset)

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
        """The contraction: a scalar's own loss weight; random weights about as large where a top is none. Float32."""
        random = np.random.RandomState(self.seed + 1)
        weights = []
        for output, weight in zip(outputs, self.spec.loss_weights):
            values = np.ones(output.shape)
            if output.size != 1:
                values = random.uniform(0.5, 1.5, output.shape) * random.choice([-1.0, 1.0], output.shape)
            weights.append((self.gain * weight * values).astype(np.float32))
        return weights

    def weights(self, runner: Runner) -> List[np.ndarray]:
        """The contraction of what the last forward made."""
        return self.top_weights([runner.tops[i].data for i in range(len(runner.tops))])

    def diffs_vary(self, runner: Runner) -> bool:
        """Whether what the tops' diffs hold is no loss weight of 1, but another number, or what other layers send."""
        weighted = [(self.spec.loss_weights[i], runner.tops[i].data.size) for i in range(len(runner.tops))]
        return self.circumstances.passes_on or any(
            weight not in (0, 1) or size != 1 for weight, size in weighted if weight
        )

    def forward(self, runner: Runner, arrays: Optional[List[np.ndarray]] = None) -> List[np.ndarray]:
        if self.reseed:
            self.set_seed(runner)
        return runner.forward(self.arrays if arrays is None else arrays)

    def gradient(self, runner: Runner, top_weights=None, fill=0.0, propagate=None) -> List[np.ndarray]:
        """The diffs of the bottoms and the learnable blobs after the last forward."""
        return runner.backward(top_weights or self.weights(runner), propagate or self.propagate, fill)

    def names(self, runner: Runner) -> List[str]:
        return [f"bottom[{i}]" for i in range(len(self.arrays))] + [f"blobs[{i}]" for i in range(len(runner.blobs))]

    def checked(self, runner: Runner) -> List[int]:
        """Which of the arrays of `gradient` are checked: some bottoms, all learnable blobs."""
        return list(self.spec.wrt) + list(range(len(self.arrays), len(self.arrays) + len(runner.blobs)))

    def lift_loss_weight(self, runner: Runner) -> None:
        """Raise the loss weight where the gradient underflows in float32.

        Nothing else is lifted by it: the top itself does not hold the loss weight, so the slopes of the loss and their
        rounding are multiplied alike, and so are the normal numbers of a gradient.
        """
        self.forward(runner)
        gradients = [self.gradient(runner)[i] for i in self.checked(runner)]
        if runner.dtype == np.float32 and max([np.abs(g).max(initial=0) for g in gradients] or [1]) < UNDERFLOWS:
            self.gain = GAIN
            lifted = self.gradient(runner)
            self.gain = GAIN if any(lifted[i].any() for i in self.checked(runner)) else 1.0

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
    first, *rest = str(error).split("\n")
    return f"{type(error).__name__}: {first}{' ...' if rest else ''}"


def raised(error: BaseException) -> Finding:
    """In which method of the layer an exception arose, and what may be done about it."""
    frames = traceback.extract_tb(error.__traceback__)
    here = os.path.dirname(__file__)
    method = next((f.name for f in frames if f.name in METHODS and os.path.dirname(f.filename) != here), None)
    if method is None:
        return Finding("raises", said(error), about=PROTOCOL)
    last = frames[-1]
    sentence = f"{said(error)} ({os.path.basename(last.filename)}, line {last.lineno}). {advice(error)}"
    return Finding(f"raises-in-{method}", sentence.rstrip(), about=PROTOCOL)


def does_nothing(method: Any) -> bool:
    """Whether a method only holds `pass`, `return` or a docstring."""
    code = getattr(method, "__code__", None)
    harmless = {"LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "POP_TOP", "NOP", "RESUME"}
    return code is not None and all(step.opname in harmless for step in dis.get_instructions(code))


PYTHON_2 = r"\b(xrange|unicode|raw_input|basestring|iteritems|itervalues|has_key|long|reduce)\b"
FEED = "--fill BLOB=index:C or BLOB=FILE.npy, or `bottoms` of check_layer"


def advice(error: BaseException) -> str:
    """What may be done about an exception of a layer, in one sentence; empty where nothing is known."""
    text = str(error)
    if isinstance(error, (NameError, AttributeError)) and re.search(PYTHON_2, text):
        return "That is Python 2: convert the layer with 2to3."
    if isinstance(error, AttributeError) and "'numpy' has no attribute" in text:
        return "NumPy has dropped that name: use the one of Python or of today's NumPy."
    if isinstance(error, TypeError) and "'float' object cannot be interpreted as an integer" in text:
        return "In Python 3 a / b of whole numbers is a float: write a // b."
    if isinstance(error, OSError):
        return f"It reads a file: paths start from the folder of the command, {os.getcwd()}."
    if isinstance(error, (IndexError, KeyError)):
        return f"Where it needs integer labels, indices or boxes, feed it such: {FEED}."
    if isinstance(error, (ValueError, AssertionError)) or type(error) is Exception:
        return f"If that is its own check of its data, feed it what it asks for: {FEED}."
    return ""
