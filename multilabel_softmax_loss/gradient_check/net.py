"""The gradient checker for the Python layers of a whole net.

The net runs forward once, layer by layer; every Python layer is then checked on its own, on the data it was given.
"""

import traceback
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ..nets.python_layers import check_python_layers, find_class
from ..nets.reading import phase_layers, read_prototxt
from ..nets.weights import copy_matching
from .fill import fill_inputs
from .layer import Limits, check_spec
from .report import BUDGET, NOTE, PROTOCOL, TOLERANCE, VERDICTS, WARNING, Finding, GradientReport, check_numbers
from .runners import Spec
from .subject import RAISED, Circumstances, does_nothing, raised

STATUS = {"pass": 0, "fail": 1, "inconclusive": 3}
REFUSALS = {"raises", "raises-in-setup", "raises-in-reshape", "raises-in-forward"}  # there is no gradient to judge
# Layers that fill their tops before every forward, and do not look at them in backward.
MADE_ANEW = {
    *("Data", "HDF5Data", "ImageData", "WindowData", "MemoryData"),
    *("InnerProduct", "Convolution", "Deconvolution"),
}


class NetReport(NamedTuple):
    """Reports by layer name, and why other Python layers were left out."""

    reports: Dict[str, GradientReport]
    skipped: Dict[str, str]

    @property
    def verdict(self) -> str:
        return max((report.verdict for report in self.reports.values()), key=VERDICTS.index)

    def status(self, strict: bool = False) -> int:
        """The exit status: 2 where layers fail only in that they refuse their input; 1 for warnings with `strict`."""
        failed = [report for report in self.reports.values() if report.verdict == "fail"]
        fatal = {finding.name for report in failed for finding in report.findings if finding.fatal}
        if failed and fatal <= REFUSALS:
            return 2
        warned = strict and any(report.warnings for report in self.reports.values())
        return 1 if warned else STATUS[self.verdict]

    def __str__(self) -> str:
        return show(self.as_dict(), [str(report) for report in self.reports.values()])

    def as_dict(self) -> Dict[str, Any]:
        return {
            "verdict": self.verdict,
            "layers": [dict(report.as_dict(), name=name) for name, report in self.reports.items()],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped.items()],
        }


def check_net(
    net: str,
    layers: Optional[Sequence[str]] = None,
    fill: Optional[Mapping[str, str]] = None,
    weights: Optional[str] = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    budget: float = BUDGET,
) -> NetReport:
    """Check every Python layer of a net that has a backward, on the net's own data, shapes, parameters, loss weights.

    Parameters
    ----------
    net : path of a prototxt
        Run in phase TRAIN.
    layers : list of layer names, or None for all
    fill : {blob: kind} or None
        What to put into blobs of Input layers: gaussian, uniform, multihot, index:C or the path of a .npy file.
    weights : path of a .caffemodel, or None
    seed, tolerance, budget : see `check_layer`; the budget is that of one layer

    Returns
    -------
    reports : NetReport

    Raises
    ------
    ValueError : the net, a name or a fill does not suit, or a Python layer's class is not there or raises in setup or
        reshape, or a file cannot be read.
    Where Caffe itself rejects the prototxt it ends the process; the command line runs this in a child for that reason.

    Examples
    --------
    >>> kinds = {"features": "gaussian", "labels": "multihot"}
    >>> print(check_net("examples/gradient_check/net.prototxt", ["loss"], kinds).status())  # 0: all pass
    0
    """
    check_numbers(tolerance, budget, seed)
    parameter = read_prototxt(str(net))
    present = phase_layers(parameter, "TRAIN")
    python = {layer.name: layer for layer in present if layer.type == "Python"}
    unknown = [name for name in layers or [] if name not in python]
    if unknown:
        known = ", ".join(python) or "none"
        raise ValueError(f"{net} has no Python layer {unknown[0]!r}; its Python layers are {known}.")
    check_names(python, present, net)
    check_python_layers(present, net)
    loaded = load(net, python, seed)
    if weights:
        copy_matching(loaded, str(weights), net)
    inputs = [*parameter.input, *(top for layer in present if layer.type == "Input" for top in layer.top)]
    fill_inputs(loaded, inputs, fill or {}, np.random.RandomState(seed))
    found = check_layers(loaded, parameter, python, layers, Limits(seed, tolerance, budget))
    if not found.reports:
        reasons = "".join(f" {name}: {reason}." for name, reason in found.skipped.items())
        raise ValueError(f"{net} has no Python layer whose gradient could be checked.{reasons}")
    return found


def load(path, python, seed):
    """The net in Caffe; a ValueError that names the Python layer which keeps it from being built."""
    import caffe

    caffe.set_random_seed(seed)
    np.random.seed(seed)
    try:
        return caffe.Net(str(path), caffe.TRAIN)
    except RAISED as error:
        raise ValueError(f"{path}: {blame(error, python)}") from error


def check_layers(net, parameter, python, wanted, limits: Limits) -> NetReport:
    """Run the net layer by layer, and check each Python layer that is wanted on what it was given."""
    reports: Dict[str, GradientReport] = {}
    skipped: Dict[str, str] = {}
    names = list(net._layer_names)
    paths = backward_paths(net, parameter)
    for i, name in enumerate(names):
        bottoms = [net.blobs[bottom].data.copy() for bottom in net.bottom_names[name]]
        parameters = [net.layers[i].blobs[k].data.copy() for k in range(len(net.layers[i].blobs))]
        try:
            net._forward(i, i)
        except RAISED as error:
            if name not in python:
                raise
            reports[name] = failed(python[name], raised(error), "inconclusive", limits)
            skipped.update({other: f"the net does not get past {name}" for other in names[i + 1 :] if other in python})
            break
        if name in python and (not wanted or name in wanted):
            place = Place(net, parameter, python[name], net.layers[i], bottoms, parameters, *paths)
            report = check_place(place, limits)
            if isinstance(report, str):
                skipped[name] = report
            else:
                reports[name] = report
    return NetReport(reports, skipped)


class Place(NamedTuple):
    """A Python layer where it stands in a net."""

    net: Any
    message: Any  # the NetParameter of the net
    layer: Any  # the LayerParameter of the layer
    instance: Any
    bottoms: List[np.ndarray]
    parameters: List[np.ndarray]
    learns: set  # blobs that something learnable feeds
    losses: set  # blobs that feed a loss

    def loss_weights(self) -> List[float]:
        """Of each top: its own, or 1 where a loss is further up."""
        given = self.layer.loss_weight
        tops = self.net.top_names[self.layer.name]
        return [(given[k] if k < len(given) else 0.0) or float(top in self.losses) for k, top in enumerate(tops)]

    def wrt(self) -> List[int]:
        """The bottoms that get a gradient."""
        if self.layer.propagate_down:
            return [k for k, wanted in enumerate(self.layer.propagate_down) if wanted]
        return [k for k, bottom in enumerate(self.net.bottom_names[self.layer.name]) if bottom in self.learns]


def check_place(place: Place, limits: Limits) -> Union[GradientReport, str]:
    """The report on one layer, or why there is none."""
    layer, weights = place.layer, place.loss_weights()
    wanted = any(weights)
    reason = no_gradient(type(place.instance), place.bottoms, weights, wanted)
    if reason:
        return reason
    if set(layer.top) & set(layer.bottom):
        sentence = "it works in place; give its top a name of its own, so that it can be checked."
        return failed(layer, Finding("in-place", sentence, NOTE), "inconclusive", limits)
    spec = Spec(
        layer.python_param.module, layer.python_param.layer, layer.python_param.param_str, len(weights),
        tuple(weights) if wanted else (1.0,) + (0.0,) * (len(weights) - 1),
        tuple(place.wrt() or (() if place.parameters else (0,))),
    )  # fmt: skip
    report = check_spec(spec, place.bottoms, place.parameters, circumstances(place), limits, title(layer))
    if not wanted:
        if "raises-in-backward" in report.names:
            return f"nothing asks for its backward, which raises {report.findings[0].partition(': ')[2]}"
        sentence = "without loss_weight Caffe never calls its backward; checked as if it were 1."
        report.findings.append(Finding("no-loss-weight", sentence, WARNING, PROTOCOL))
    return report


def circumstances(place: Place) -> Circumstances:
    """What of the net decides whether a breach of the protocol does harm."""
    net, layer, message = place.net, place.layer, place.message
    bottoms = net.bottom_names[layer.name]
    stops = [k for k, wanted in enumerate(layer.propagate_down) if not wanted and bottoms[k] in place.learns]
    makers = {top: other for other in message.layer for top in other.top}
    readers = [bottom for other in message.layer for bottom in other.bottom]
    private = [
        k for k, bottom in enumerate(layer.bottom)
        if readers.count(bottom) == 1 and bottom in makers and makers[bottom].type in MADE_ANEW
    ]  # fmt: skip
    names = [spec.name for other in message.layer for spec in other.param if spec.name]
    return Circumstances(
        force_backward=message.force_backward,
        passes_on=any(top in place.losses for top in net.top_names[layer.name]),
        stops=tuple(stops),
        private=tuple(private),
        shares_parameters=any(names.count(spec.name) > 1 for spec in layer.param if spec.name),
    )


def failed(layer, finding, verdict, limits) -> GradientReport:
    return GradientReport(title(layer), verdict, findings=[finding], tolerance=limits.tolerance)


def title(layer) -> str:
    return f"{layer.name} ({layer.python_param.module}.{layer.python_param.layer})"


def check_names(python, layers, path) -> None:
    """Raise ValueError where a Python layer shares its name with another layer, as pycaffe then mixes them up."""
    names = [layer.name for layer in layers]
    for name in python:
        if names.count(name) > 1:
            raise ValueError(f"{path} has {names.count(name)} layers {name!r}; give each Python layer its own name.")


def backward_paths(net, parameter) -> Tuple[set, set]:
    """Blobs that something learnable feeds, and blobs that feed a loss: where Caffe runs backward, both meet."""
    frozen = {layer.name for layer in parameter.layer if layer.param and not any(spec.lr_mult for spec in layer.param)}
    learns = set()
    names = list(net._layer_names)
    for i, name in enumerate(names):
        learnable = len(net.layers[i].blobs) and name not in frozen
        if learnable or any(bottom in learns for bottom in net.bottom_names[name]):
            learns.update(net.top_names[name])
    weighted = {blob for blob, weight in net.blob_loss_weights.items() if weight}
    losses: set = set()
    for name in reversed(names):
        if any(top in weighted or top in losses for top in net.top_names[name]):
            losses.update(net.bottom_names[name])
    return learns, losses


def no_gradient(layer_class, bottoms, tops, wanted) -> str:
    """Why a layer has no gradient to check; empty where it has one."""
    import caffe

    backward = getattr(layer_class, "backward", None)
    if not bottoms or not tops:
        return f"it has no {'tops' if bottoms else 'bottoms'}"
    if backward is None or backward is getattr(caffe.Layer, "backward", None):
        return "it has no backward"
    if not wanted and does_nothing(backward):
        return "its backward is empty, and nothing asks for it"
    return ""


def blame(error, python) -> str:
    """Whose setup or reshape kept the net from being built, and why."""
    owner = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = type(frame.f_locals.get("self")) if "self" in frame.f_locals else owner
    guilty = [
        name for name, layer in python.items()
        if owner is not None and find_class(layer.python_param.module, layer.python_param.layer) is owner
    ]  # fmt: skip
    finding = raised(error)
    who = f"layer {' or '.join(map(repr, guilty))}" if guilty else "a layer"
    return f"{who} {finding.name.replace('-', ' ')}: {finding.partition(': ')[2]}"


def show(answer, texts) -> str:
    """A table of all layers, then each report."""
    rows = [("layer", "gradient", "protocol", "relative error", "factor", "findings")]
    for layer in answer["layers"]:
        error, factor = layer["relative_error"], layer["factor"]
        rows.append((
            layer["name"], layer["gradient"], layer["protocol"],
            "-" if error is None else f"{error:.2g} +- {layer['error_bar'] or 0:.1g}",
            "-" if factor is None else f"{factor:.4g}", ", ".join(f["name"] for f in layer["findings"]) or "-",
        ))  # fmt: skip
    rows += [(skip["name"], "skipped", "-", "-", "-", skip["reason"]) for skip in answer["skipped"]]
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    table = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(table + [""] + texts)
