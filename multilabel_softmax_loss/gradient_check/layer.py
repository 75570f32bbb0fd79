"""The gradient checker for one Caffe Python layer: in a real Caffe net, and on float64 stand-ins for its blobs.

Caffe's blobs hold float32, whose rounding hides small errors of a gradient. A pycaffe layer touches only `data`,
`diff`, `shape`, `reshape` and the like of a blob, so the same class also runs on arrays of float64, where slopes are
exact to many digits. The stand-ins give the verdict where the layer's outputs and gradients in Caffe agree with those
on them; everywhere else Caffe does, and what float32 hides there is "inconclusive".
"""

import time
from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np

from ..nets.python_layers import find_class
from ..nets.reading import quiet_caffe
from .generators import kept
from .measurement import Measurement
from .protocol import check_protocol
from .report import BUDGET, PROTOCOL, TOLERANCE, Finding, GradientReport, check_numbers, checked_array, report_of
from .runners import Spec, TopWithoutShape
from .subject import RAISED, BadArgument, Circumstances, Subject, does_nothing, raised

NO_BACKWARD = "its backward is empty: nothing below it learns from it. A metric needs none, and no loss_weight either."


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
    force_backward: bool = False,
) -> GradientReport:
    """Check the gradients of one Caffe Python layer, and whether it keeps Caffe's protocol.

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
        How many tops the layer makes. A scalar counts with its loss weight, every entry of another top with a random
        weight about as large.
    mode : "auto", "caffe" or "float64"
        Which gives the verdict: the better one, the net only, or the stand-ins only.
    parameters : list of arrays or None
        Values of the learnable blobs; as `setup` leaves them where None.
    tolerance, budget : float, seconds
    name : str
        What to call the layer in the report.
    force_backward : bool
        Whether the net has it: then what a layer does wrong under it is a fault, and no warning.

    Returns
    -------
    report : GradientReport
        An exception raised by the layer is a finding, "raises-in-forward" and so on.

    Raises
    ------
    ValueError, TypeError : an argument is none of the above.
    ImportError : no such module or class.

    >>> print(check_layer("multilabel_softmax_loss", "MultilabelSoftmaxLossLayer", [[[0.5, 2]], [[1, 0]]]).verdict)
    pass
    """
    limits = Limits(seed, tolerance, budget, mode)
    spec = Spec(module, layer, param_str, tops, loss_weight, tuple(wrt))
    circumstances = Circumstances(force_backward=bool(force_backward))
    return check_spec(spec, bottoms, parameters, circumstances, limits, name or f"{module}.{layer}")


class Limits(NamedTuple):
    """What every check is given: see `check_layer`."""

    seed: int
    tolerance: float
    budget: float
    mode: str = "auto"


def check_spec(spec, bottoms, parameters, circumstances, limits: Limits, name) -> GradientReport:
    """Check one layer as `check_layer` does, in the circumstances of a net."""
    check_numbers(limits.tolerance, limits.budget, limits.seed)
    if limits.mode not in ("auto", "caffe", "float64"):
        raise ValueError(f"mode is {limits.mode!r}; expected 'auto', 'caffe' or 'float64'.")
    arrays = checked_bottoms(spec.module, spec.layer, spec.param_str, bottoms)
    spec = checked_spec(spec, arrays)
    layer_class = checked_class(spec.module, spec.layer)
    in_caffe = limits.mode != "float64"
    subject = Subject(spec, layer_class, arrays, parameters, limits.seed, in_caffe, circumstances)
    with kept():
        return check_subject(subject, limits, name)


def checked_spec(spec: Spec, arrays) -> Spec:
    """A spec with one loss weight per top; an error unless it fits the bottoms."""
    wrt = tuple(int(i) for i in spec.wrt)
    if not all(0 <= i < len(arrays) for i in wrt):
        raise ValueError(f"wrt is {wrt}; expected indices of the {len(arrays)} bottoms.")
    loss_weights = tuple(np.broadcast_to(np.asarray(spec.loss_weights, dtype=float), (spec.tops,)).tolist())
    if not any(loss_weights) or not np.isfinite(loss_weights).all():
        raise ValueError(f"loss_weight is {spec.loss_weights}; expected one that is not 0, and all finite.")
    return spec._replace(wrt=wrt, loss_weights=loss_weights)


def checked_bottoms(module, layer, param_str, bottoms) -> List[np.ndarray]:
    """The bottoms as float32; an error unless they, and the words of python_param, are what they have to be."""
    for argument, value in (("module", module), ("layer", layer), ("param_str", param_str)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} is {value!r}; expected a string, as in python_param.")
    if isinstance(bottoms, np.ndarray):
        raise TypeError("bottoms is one array; expected a list of arrays, one per bottom.")
    arrays = [checked_array(bottom, f"bottoms[{i}]").astype(np.float32) for i, bottom in enumerate(bottoms)]
    for i, array in enumerate(arrays):
        if array.size == 0:
            raise ValueError(f"bottoms[{i}] is empty, of shape {array.shape}; Caffe makes no gradient of nothing.")
    return arrays


def checked_class(module, layer) -> type:
    quiet_caffe()
    found = find_class(module, layer)
    if not isinstance(found, type):
        raise ValueError(f"{module}.{layer} is a {type(found).__name__}; expected a class derived from caffe.Layer.")
    return found


def check_subject(subject: Subject, limits: Limits, name: str) -> GradientReport:
    """First the protocol, then the numbers."""
    tolerance, budget, started = limits.tolerance, limits.budget, time.monotonic()
    findings: List[Finding] = []

    def report(judgements=(), judged_on=""):
        return report_of(name, judgements, findings, judged_on, tolerance, started)

    try:
        with np.errstate(all="ignore"):  # training goes on with nan as well; it becomes a finding
            subject.set_seed()
            stand_in = subject.stand_in()
            if isinstance(subject.stand_in_error, TopWithoutShape):  # in Caffe, it would end the process
                findings.append(Finding("top-not-shaped", str(subject.stand_in_error), about=PROTOCOL))
                return report()
            if does_nothing(getattr(subject.layer_class, "backward", None)):
                findings.append(Finding("no-backward", NO_BACKWARD, about=PROTOCOL))
                return report()
            runner = subject.fresh()
            subject.use_parameters(runner)
            findings += check_protocol(subject, runner)
            names = {finding.name for finding in findings}
            if names & {"gradient-not-finite", "loss-not-finite"} or any(n.startswith("raises") for n in names):
                return report()
            if "state-leaks" in names or ("random-loss" in names and not subject.repeats):
                return report([], "nothing, as the loss changes by itself")
            stand_in = None if limits.mode == "caffe" else stand_in
            if stand_in is None and not subject.in_caffe:
                raise subject.stand_in_error or RuntimeError("the layer cannot run on stand-ins.")
            if stand_in is not None:
                stand_in.set_parameters(subject.parameters)
            # What took long so far may be a compiler at work, once: there is half the budget left at least.
            deadline = max(started + 0.9 * budget, time.monotonic() + 0.5 * budget)
            in_caffe = runner if subject.in_caffe else None
            return report(*Measurement(subject, stand_in, in_caffe, tolerance, deadline).judge_all())
    except BadArgument:
        raise
    except RAISED as error:
        findings.append(raised(error))
        return report()
