"""The command `migrate`: an old net brought to the losses of this package, as a diff, with a proof of each loss."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ..errors import UsageError, unknown_name
from ..files import check_output, same_file, write_text
from ..nets.class_labels import class_count
from ..nets.editing import difference, edited, net_edits
from ..nets.hdf5_lists import hdf5_files
from ..nets.heads import PYTHON_LOSSES
from ..nets.python_layers import running
from ..nets.reading import parse, quiet_caffe, read_text
from ..nets.upgrade import upgrade_net
from ..nets.weights import load_net
from ..param_str import parse_literal
from .terminal import printing_aside, warn

EXAMPLE = """example:
  python -m multilabel_softmax_loss migrate train_val.prototxt --layer loss=softmax --out new.prototxt

The diff shows what changes: layers { } of Caffe's old formats, SigmoidCrossEntropyLoss, SoftmaxWithLoss that is given
several labels, and Python losses known by name: CustomSoftmaxLoss, FocalLoss, CustomSigmoidCrossEntropyLossLayer. Then
each loss is computed on random batches, before and after. Comments stay. Exit status 1: the loss would be another one,
and nothing is written. 2: something has to be said by option.
"""

LAYERS = {"softmax": "MultilabelSoftmaxLossLayer", "sigmoid": "MultilabelSigmoidLossLayer"}
NORMALIZATION = {"softmax": "VALID", "sigmoid": "BATCH_SIZE"}  # the defaults, which are Caffe's
SAMPLES = 8
TOLERANCE = 1e-5  # of the loss, and of the largest entry of the gradient; Caffe's own losses add in float32
# Labels of a batch. On real-valued ones some of the former losses are wrong, and may differ.
ONE, HOT, REAL = "one label each", "labels of 0 and 1", "real-valued labels"
FLAWS = {
    "CustomSoftmaxLoss": "before, the gradient left the values of the labels out",
    "FocalLoss": "before, any label but 0 counted as 1",
    "SigmoidCrossEntropyLoss": "before, labels were cut to whole numbers to compare them with ignore_label",
}


class Loss(NamedTuple):
    """A loss of this package, "softmax" or "sigmoid", in place of a layer."""

    kind: str
    options: Dict[str, Any]


def add_arguments(parser: Any) -> None:
    parser.description = "Show what changes in an old net with the losses of this package, prove it, and write it."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="a training net, in any format that Caffe reads")
    parser.add_argument("--out", metavar="FILE", help="write the new net there (default: only show it)")
    parser.add_argument("--replace", action="store_true", help="FILE may be there already, be it NET.prototxt itself")
    kinds = "what the loss of this name becomes: softmax or sigmoid; keep: it stays"
    parser.add_argument("--layer", metavar="NAME=KIND", action="append", default=[], help=kinds)
    labels = "labels of a SoftmaxWithLoss: 0 and 1 for each class, or lists of class indices (default: %(default)s)"
    parser.add_argument("--labels", choices=("dense", "indices"), default="dense", help=labels)
    parser.add_argument("--gamma", type=float, metavar="G", help="the focusing parameter of a focal loss")


def run(arguments: Any) -> int:
    path, out = arguments.net, arguments.out
    if out is not None:
        check_output(out, (".prototxt", ".txt"))
        if os.path.exists(out) and not arguments.replace:
            what = "the net itself" if same_file(out, path) else "there already"
            raise UsageError(f"--out {out} is {what}; choose another name, or add --replace.")
    quiet_caffe()
    text = read_text(path, None)
    whole = one_format(text, parse(text, path, "NetParameter"), path)
    old = parse(whole, path, "NetParameter")
    net = type(old).FromString(old.SerializeToString())
    upgrade_net(net, path)
    choices = parse_choices(arguments.layer, [layer.name for layer in net.layer], path)
    questions, losses = find_losses(net, choices, arguments)
    made = new_text(whole, old, net, new_layers(net, losses), path)
    if made == text and not questions:
        print(f"{path}: nothing to change.")
        return 0
    print(difference(text, made, path, out or "new"), end="")
    status = prove_all(net, losses, choices, questions, path)
    if questions:
        raise UsageError("\n    ".join(dict.fromkeys(questions)))  # a layer of each phase may have the name
    if status == 0 and out is not None:
        write_text(out, made)
        print(f"Written: {out}")
    else:
        print("Not written." if status else "Not written; --out FILE writes it.")
    return status


def one_format(text: str, net: Any, path: str) -> str:
    """The text of a net; where it has layers of both formats, as an old net with a Python layer, of the new one."""
    if not (net.layers and net.layer):
        return text
    old = type(net).FromString(net.SerializeToString())
    old.ClearField("layer")
    new = type(net).FromString(old.SerializeToString())
    upgrade_net(new, path)
    return edited(text, net_edits(text, old, new.layer[len(net.input[:1]) :], new.layer[0] if net.input else None))


def parse_choices(words: Sequence[str], names: Sequence[str], path: str) -> Dict[str, str]:
    """What --layer says, by the names of the layers."""
    choices = {}
    for word in words:
        name, _, kind = word.rpartition("=")
        if kind not in (*LAYERS, "keep") or not name:
            raise UsageError(f"--layer is {word!r}; expected NAME=softmax, NAME=sigmoid or NAME=keep.")
        if name not in names:
            raise unknown_name("layer", name, names, path)
        choices[name] = kind
    return choices


def find_losses(net: Any, choices: Dict[str, str], arguments: Any) -> Tuple[List[str], Dict[int, Loss]]:
    """What has to be asked first, and the losses that change, by the places of their layers."""
    questions: List[str] = []
    losses: Dict[int, Loss] = {}
    used = {bottom for layer in net.layer for bottom in layer.bottom}
    for place, layer in enumerate(net.layer):
        loss = new_loss(layer, net.layer, choices.get(layer.name), arguments)
        if isinstance(loss, str):
            questions.append(loss)
        elif loss is not None:
            losses[place] = loss
            if set(options_of(layer)) - {"focusing_parameter"}:
                warn("migrate", f"layer {layer.name!r}: its param_str {layer.python_param.param_str!r} goes.")
        elif layer.type == "Python" and not is_ours(layer) and len(layer.bottom) > 1 and not used & set(layer.top):
            parameter = layer.python_param
            idle = "" if layer.loss_weight else " It has no loss_weight, so nothing is learned from it."
            other = f" --layer {layer.name}=softmax or {layer.name}=sigmoid replaces it."
            warn(
                "migrate",
                f"layer {layer.name!r} (module {parameter.module!r}, layer {parameter.layer!r}) is no loss known here "
                f"and stays.{idle}{other if len(layer.bottom) == 2 else ''}",
            )
    return questions, losses


def options_of(layer: Any) -> Dict[str, Any]:
    """What the param_str of a Python layer holds; the text itself where that is no dict."""
    text = layer.python_param.param_str
    try:
        return parse_literal(text) if text else {}
    except ValueError:
        return {"param_str": text}


def is_ours(layer: Any) -> bool:
    module, name = layer.python_param.module, layer.python_param.layer
    return module.split(".")[0] == "multilabel_softmax_loss" and name in PYTHON_LOSSES


def new_loss(layer: Any, layers: Sequence[Any], choice: Optional[str], arguments: Any) -> Union[Loss, str, None]:
    """The loss in place of a layer; None where it stays; a question where an option has to say it."""
    name = former(layer)
    if choice == "keep" or (is_ours(layer) and not choice):
        return None
    if len(layer.bottom) != 2:
        if choice:
            raise UsageError(
                f"--layer {layer.name}={choice}: that layer has no two bottoms; expected scores and labels."
            )
        return None
    if name == "SoftmaxWithLoss" and choice in (None, "softmax"):
        return softmax_loss(layer, layers, choice, arguments.labels)
    if name == "SigmoidCrossEntropyLoss" and choice in (None, "sigmoid"):
        options = normalization_of(layer, "sigmoid")
        if layer.loss_param.HasField("ignore_label"):
            options["ignore_label"] = layer.loss_param.ignore_label
        return Loss("sigmoid", options)
    if name == "CustomSoftmaxLoss" and choice in (None, "softmax"):
        return Loss("softmax", {"label_normalization": "count"})  # on labels of 0 and 1 the default is the same
    if name == "CustomSigmoidCrossEntropyLossLayer" and choice in (None, "sigmoid"):
        return Loss("sigmoid", {"normalization": "NONE"})
    gamma = arguments.gamma
    if name == "FocalLoss" and choice in (None, "sigmoid"):
        given = options_of(layer)
        gamma = given.get("focusing_parameter") if gamma is None else gamma
        if gamma is None:
            return f"layer {layer.name!r} (FocalLoss): its param_str has no focusing_parameter; --gamma G says it."
        return Loss("sigmoid", {"focal_gamma": gamma}) if choice or set(given) <= {"focusing_parameter"} else None
    if choice is None:
        return None
    return Loss(choice, {"focal_gamma": gamma} if choice == "sigmoid" and gamma is not None else {})


def softmax_loss(layer: Any, layers: Sequence[Any], choice: Optional[str], labels: str) -> Union[Loss, str, None]:
    width, classes = label_width(layers, layer.bottom[1]), class_count(layers, layer.bottom[0])
    if choice is None and width == 1:
        return None  # one class each, as it takes them
    if choice is None and (width is None or width != classes):
        return (
            f"layer {layer.name!r} (SoftmaxWithLoss): are its labels, {layer.bottom[1]!r}, one class each, as it takes "
            f"them, or several? --layer {layer.name}=keep says one; --layer {layer.name}=softmax says 0 and 1 for each "
            "class, and with --labels indices lists of class indices."
        )
    options = normalization_of(layer, "softmax")
    ignored = layer.loss_param.HasField("ignore_label")
    if layer.softmax_param.axis != 1:
        options["axis"] = layer.softmax_param.axis
    if labels == "indices":
        options.update(
            {"label_format": "indices"}, **{"ignore_label": layer.loss_param.ignore_label} if ignored else {}
        )
    elif ignored:
        text = "ignore_label was a class and goes; among labels of 0 and 1 it marks those that are unknown."
        warn("migrate", f"layer {layer.name!r}: {text}")
    return Loss("softmax", options)


def label_width(layers: Sequence[Any], blob: str) -> Optional[int]:
    """How many labels a sample has, where the layer that brings them tells."""
    import h5py

    for layer in layers:
        if blob in layer.top and layer.type in ("Data", "ImageData") and blob != layer.top[0]:
            return 1
        if blob in layer.top and layer.type == "HDF5Data":
            try:
                with h5py.File(hdf5_files(layer)[0], "r") as file:
                    return int(file[blob][0].size)
            except (UsageError, OSError, KeyError, ValueError):
                return None
    return None


def normalization_of(layer: Any, kind: str) -> Dict[str, Any]:
    """The option `normalization`, where it is not the default, as Caffe understands loss_param."""
    parameter, word = layer.loss_param, NORMALIZATION[kind]
    if parameter.HasField("normalization"):
        word = parameter.NormalizationMode.Name(parameter.normalization)
    elif parameter.HasField("normalize"):
        word = "VALID" if parameter.normalize else "BATCH_SIZE"
    return {} if word == NORMALIZATION[kind] else {"normalization": word}


def former(layer: Any) -> str:
    return layer.python_param.layer if layer.type == "Python" else layer.type


# The new net


def new_layers(net: Any, losses: Dict[int, Loss]) -> List[Any]:
    """The layers with their new losses, each with a loss_weight; None for an Accuracy that cannot take their labels."""
    several = {net.layer[place].bottom[1] for place in losses if net.layer[place].type == "SoftmaxWithLoss"}
    layers = []
    for place, layer in enumerate(net.layer):
        new = with_loss(layer, losses[place]) if place in losses else layer
        if place in losses or (is_ours(layer) and not layer.loss_weight):
            new = type(layer).FromString(new.SerializeToString())
            new.top.extend([] if new.top else [new.name])  # Caffe names those of its own layers itself
            new.loss_weight[:] = [*(new.loss_weight or [1]), *[0] * len(new.top)][: len(new.top)]
        layers.append(None if layer.type == "Accuracy" and layer.bottom[1] in several else new)
    return layers


def with_loss(layer: Any, loss: Loss) -> Any:
    """A copy of a layer that is this loss."""
    new = type(layer).FromString(layer.SerializeToString())
    new.type = "Python"
    for name in ("loss_param", "softmax_param", "sigmoid_param"):
        new.ClearField(name)
    new.python_param.module, new.python_param.layer = "multilabel_softmax_loss", LAYERS[loss.kind]
    new.python_param.ClearField("param_str")
    if loss.options:
        new.python_param.param_str = json.dumps(loss.options)
    return new


def new_text(text: str, old: Any, net: Any, layers: Sequence[Any], path: str) -> str:
    """The text of the net with these layers: the old text where nothing changes, if that can be."""
    meant = type(net).FromString(net.SerializeToString())
    meant.ClearField("layer")
    meant.layer.extend(layer for layer in layers if layer is not None)
    inputs = meant.layer[0] if old.input else None
    rest = layers[1:] if old.input else layers
    if len(rest) == len(old.layers or old.layer):  # else layers of the first format are gone
        made = edited(text, net_edits(text, old, rest, inputs))
        if parse(made, path, "NetParameter") == meant:
            return made
    warn("migrate", f"{path} is written anew from its values, without its comments.")
    return str(meant)


# The proof


def prove_all(net: Any, losses: Dict[int, Loss], choices: Dict[str, str], questions: List[str], path: str) -> int:
    """Say how each new loss compares with the former; 1 if one differs that nobody chose. Asks what is a guess."""
    status = 0
    told: List[Tuple[str, Loss]] = []
    for place, loss in losses.items():
        layer = net.layer[place]
        if (layer.name, loss) in told:  # in another phase
            continue
        told.append((layer.name, loss))
        agrees, ran = prove(layer, loss, class_count(net.layer[:place], layer.bottom[0]) or 20, path)
        options = f"--layer {layer.name}={loss.kind} says so, --layer {layer.name}=keep leaves it"
        if layer.name not in choices and not ran:
            questions.append(f"layer {layer.name!r} is taken for {former(layer)} by its name alone; {options}.")
        elif layer.name not in choices and not agrees:
            status = 1
            print(f"    That is another loss, such as one that weighs classes. If it is meant, {options}.")
    return status


def prove(layer: Any, loss: Loss, classes: int, path: str) -> Tuple[bool, bool]:
    """Print the losses of a layer before and after; whether they agree, and whether the former one could be run."""
    written = f" {json.dumps(loss.options)}" if loss.options else ""
    print(f"layer {layer.name!r}: {former(layer)} becomes {LAYERS[loss.kind]}{written}")
    print(f"    {f'{SAMPLES} samples, {classes} classes':34} loss before loss after gradients apart")
    rows = [(ONE, loss)] if layer.type == "SoftmaxWithLoss" else [(HOT, loss), (REAL, loss)]
    if "label_normalization" in loss.options:
        rows.insert(1, (f"{HOT}, default options", Loss(loss.kind, {})))
    agrees, reason = True, ""
    for labels, now in rows:
        scores, hot = batch(labels, classes, loss.options.get("ignore_label"))
        after, gradient = run_loss(with_loss(layer, now), scores, hot, path)
        apart = 0.0
        try:
            before, slope = run_loss(layer, scores, hot, path)
            apart = float(np.abs(gradient - slope).max() / np.abs(slope).max())
        except Exception as error:  # whatever a layer of that time raises
            before, reason = published_loss(former(layer), loss.options, scores, hot), str(error)
        differs = not (abs(before - after) <= TOLERANCE * abs(before) and apart <= TOLERANCE)
        flaw = f" ({FLAWS[former(layer)]})" if differs and labels == REAL and former(layer) in FLAWS else ""
        former_loss = "-" if np.isnan(before) else f"{before:.6g}"
        print(f"    {labels:34} {former_loss:<11} {after:<10.6g} {'-' if reason else f'{apart:.0e}'}{flaw}")
        agrees = agrees and (labels == REAL or not differs)
    if reason:
        source = "not known" if np.isnan(before) else "by the published formula"
        print(f"    Before is {source}, as the layer itself does not run: {reason}")
    if layer.type == "Python" and layer.loss_weight and layer.loss_weight[0] != 1:
        print(
            f"    loss_weight: {layer.loss_weight[0]:g} now scales the gradient, which the published layers do not do."
        )
    return agrees, not reason


def batch(kind: str, classes: int, ignored: Optional[float]) -> Tuple[np.ndarray, np.ndarray]:
    """Random scores and labels, each (SAMPLES, classes); of labels of 0 and 1 a tenth are `ignored`, if it is given."""
    draw = np.random.RandomState(0)
    scores = 2 * draw.randn(SAMPLES, classes)
    labels = np.zeros(scores.shape)
    for row in labels:
        row[draw.permutation(classes)[: 1 if kind == ONE else draw.randint(1, min(classes, 5) + 1)]] = 1
    if kind == REAL:
        labels *= draw.uniform(0.1, 0.9, labels.shape)
    elif kind != ONE and ignored is not None:
        labels[draw.rand(*labels.shape) < 0.1] = ignored
    return scores.astype(np.float32), labels.astype(np.float32)


def run_loss(layer: Any, scores: np.ndarray, labels: np.ndarray, path: str) -> Tuple[float, np.ndarray]:
    """Loss and gradient of a loss layer in Caffe, with a loss_weight of 1."""
    from caffe.proto import caffe_pb2

    if layer.type == "SoftmaxWithLoss" or "indices" in layer.python_param.param_str:
        labels = labels.argmax(axis=1)[:, np.newaxis]
    net = caffe_pb2.NetParameter()
    net.layer.add(name="scores", type="Parameter", top=["scores"]).parameter_param.shape.dim.extend(scores.shape)
    net.layer.add(name="labels", type="Input", top=["labels"]).input_param.shape.add(dim=labels.shape)
    loss = net.layer.add(name=layer.name, type=layer.type, bottom=["scores", "labels"], top=["loss"], loss_weight=[1])
    for name in ("python_param", "loss_param", "softmax_param"):
        getattr(loss, name).CopyFrom(getattr(layer, name))
    with printing_aside():
        loaded = load_net(net, path, "TRAIN")
        loaded.params["scores"][0].data[...] = scores
        loaded.blobs["labels"].data[...] = labels
        with running(path):
            loaded.forward()
            loaded.backward()
    # Some layers of that time shape the loss (1,).
    return float(np.ravel(loaded.blobs["loss"].data)[0]), loaded.blobs["scores"].diff.copy()


def published_loss(name: str, options: Dict[str, Any], scores: np.ndarray, labels: np.ndarray) -> float:
    """What a known Python loss gives by its published formula; NaN for others."""
    scores = scores.astype(np.float64)
    log_p, log_q = -np.log1p(np.exp(-scores)), -np.log1p(np.exp(scores))
    if name == "CustomSoftmaxLoss":
        log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return float(-((labels * log_probs).sum(axis=1) / np.count_nonzero(labels, axis=1)).mean())
    if name == "CustomSigmoidCrossEntropyLossLayer":
        return float(-(labels * log_p + (1 - labels) * log_q).sum())
    if name == "FocalLoss":
        gamma = options.get("focal_gamma", 0)
        return float(
            -np.where(labels, np.exp(gamma * log_q) * log_p, np.exp(gamma * log_p) * log_q).sum() / len(scores)
        )
    return np.nan
