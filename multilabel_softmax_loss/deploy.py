"""The command `deploy`: the deploy prototxt of a training net, proved by running both, in Caffe and in OpenCV."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .data_layers import sources
from .native import UsageError, guarded
from .nets import (
    Head,
    add_head_arguments,
    check_output,
    choose_head,
    find_heads,
    load_net,
    phase_layers,
    read_prototxt,
    running,
    write_text,
)

TOLERANCE = 1e-5
LARGEST_BLOB = 2**31 - 1  # Caffe counts with an int

EXAMPLE = """example:
  python -m multilabel_softmax_loss deploy train_val.prototxt --weights run/best.caffemodel

Data layers become Input, the loss becomes Softmax or Sigmoid (blob "prob"), and what only training needs goes: fillers,
learning rates, Dropout, and all that the scores do not depend on. The file is written if, on random input, its
probabilities are those of the training net to 1e-5, in Caffe and in OpenCV. Without --weights random ones serve for
the proof. Exit status 1: they differ, nothing is written. 3: OpenCV cannot run the net; the file is written.
"""


def add_arguments(parser: Any) -> None:
    parser.description = "Write the deploy prototxt of a training net, and prove that it computes the same."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="TRAIN_VAL.prototxt", help="the training net")
    parser.add_argument("--weights", metavar="M", help="a .caffemodel to prove with")
    parser.add_argument("--out", metavar="FILE", help="default: deploy.prototxt beside TRAIN_VAL.prototxt")
    parser.add_argument(
        "--input-shape", metavar="N,C,H,W", help="shape of the input (default: what the data layer delivers, N = 1)"
    )
    add_head_arguments(parser)


def run(arguments: Any) -> int:
    return guarded(run_here, arguments)


def run_here(arguments: Any) -> int:
    out = arguments.out or os.path.join(os.path.dirname(arguments.net), "deploy.prototxt")
    check_output(out, (".prototxt", ".txt"))
    if os.path.abspath(out) == os.path.abspath(arguments.net):
        raise UsageError(f"--out {out} is the training net itself; choose another name.")
    shape = parse_shape(arguments.input_shape) if arguments.input_shape else None
    return deploy(
        arguments.net,
        out,
        arguments.weights,
        shape,
        arguments.scores,
        arguments.activation,
        replace=arguments.out is not None,
    )


def parse_shape(text: str) -> Tuple[int, ...]:
    try:
        shape = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--input-shape is {text!r}; expected whole numbers such as 1,3,224,224.") from error
    if min(shape) < 1:
        raise UsageError(f"--input-shape is {text!r}; expected numbers of at least 1.")
    if np.prod(shape, dtype=float) > LARGEST_BLOB:
        raise UsageError(f"--input-shape is {text!r}; expected no more than {LARGEST_BLOB:,} numbers in all.")
    return shape


def deploy(
    path: str,
    out: str,
    weights: Optional[str] = None,
    shape: Optional[Tuple[int, ...]] = None,
    scores: Optional[str] = None,
    activation: Optional[str] = None,
    replace: bool = True,
) -> int:
    """Write the deploy prototxt `out` of the training net `path`; the exit status.

    Without `replace` a file that says anything else stays.
    """
    import cv2

    net = read_prototxt(path)
    head = deploy_head(net, path, scores, activation)
    reference = reference_net(net, path, head, shape, weights)
    shapes = {name: shape or (1, *reference.blobs[name].data.shape[1:]) for name in input_names(net, head)}
    deployed = deploy_net(net, head, shapes)
    text = str(deployed)
    if not replace and os.path.isfile(out) and str(read_prototxt(out)) != text:
        raise UsageError(f"{out} is there already, and differs; --out {out} replaces it.")
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        model = os.path.join(folder, "proof.caffemodel")
        reference.save(model)
        inputs = random_inputs(reference, list(shapes), path, index_limits(deployed))
        found_scores = run_reference(reference, inputs, head.scores, path)
        with running(path):  # as the axis of its loss may be none of the scores
            expected = head.probs(found_scores)
        if not np.isfinite(expected).all():
            raise UsageError(
                f"{path} gives {expected[~np.isfinite(expected)][0]} for random input, which proves nothing."
            )
        found: Dict[str, Any] = {"Caffe": run_caffe(deployed, out, model, inputs)}
        found["OpenCV"] = run_opencv(text, model, inputs)
        if not agree(found["OpenCV"], expected) and hasattr(cv2.dnn.Net, "enableWinograd"):
            # OpenCV's fast convolutions of 3 x 3 round more; they are its own, and can be turned off.
            found["OpenCV without Winograd convolutions"] = run_opencv(text, model, inputs, winograd=False)
    described = ", ".join(f"{name} {'x'.join(map(str, values.shape))}" for name, values in inputs.items())
    span = f"{expected.min():.4f} to {expected.max():.4f}"
    print(f"Random input ({described}); the training net's probabilities, {span}, differ by at most")
    for reader, values in found.items():
        if isinstance(values, str):
            print(f"    {reader}: cannot run this net: {values}")
        else:
            remark = "" if agree(values, expected) else f", more than {TOLERANCE:g}"
            print(f"    {difference(values, expected):.1e} from those of {out} in {reader}{remark}")
    by_opencv = list(found.values())[-1]
    status = 3 if isinstance(by_opencv, str) else 0
    if not agree(found["Caffe"], expected) or not (status or agree(by_opencv, expected)):
        status = 1
    if status == 1:
        print(f"{out} is not written.")
        return 1
    write_text(out, text)
    print(f"Written: {out}")
    return status


def difference(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(values.reshape(expected.shape) - expected).max())


def agree(values: Any, expected: np.ndarray) -> bool:
    return not isinstance(values, str) and difference(values, expected) <= TOLERANCE


def deploy_head(net: Any, path: str, scores: Optional[str] = None, activation: Optional[str] = None) -> Head:
    """The scores to deploy: of the TEST phase's loss, or of the TRAIN phase's where only that has one."""
    tests = phase_layers(net, "TEST")
    if not find_heads(tests):
        tops = {top for layer in tests for top in layer.top}
        tests += [layer for layer in phase_layers(net, "TRAIN") if layer.bottom and layer.bottom[0] in tops]
    return choose_head(tests, path, scores, activation=activation, needs_labels=False)


def ancestors(layers: Sequence[Any], blob: str) -> List[Any]:
    """The layers that `blob` depends on, in their order."""
    needed, kept = {blob}, []
    for layer in reversed(layers):
        if needed.intersection(layer.top):
            kept.append(layer)
            needed.update(layer.bottom)
    return kept[::-1]


def input_names(net: Any, head: Head) -> List[str]:
    """The blobs that the data layers bring and the scores depend on."""
    kept = ancestors(phase_layers(net, "TEST"), head.scores)
    used = {bottom for layer in kept for bottom in layer.bottom}
    return [top for top in (*net.input, *(top for layer in sources(kept) for top in layer.top)) if top in used]


def deploy_net(net: Any, head: Head, shapes: Dict[str, Tuple[int, ...]]) -> Any:
    """The deploy NetParameter of a training net: from its inputs of these shapes to the blob "prob"."""
    deployed = type(net)(name=net.name)
    for name, shape in shapes.items():
        layer = deployed.layer.add(name=name, type="Input", top=[name])
        layer.input_param.shape.add(dim=shape)
    renamed: Dict[str, str] = {}
    for source in ancestors(phase_layers(net, "TEST"), head.scores):
        if not source.bottom and source.type != "Parameter":
            continue
        bottoms = [renamed.get(bottom, bottom) for bottom in source.bottom]
        if source.type == "Dropout":
            renamed[source.top[0]] = bottoms[0]
            continue
        layer = deployed.layer.add()
        layer.CopyFrom(source)
        layer.bottom[:] = bottoms
        for top in source.top:
            renamed.pop(top, None)
        strip_training(layer)
    scores = renamed.get(head.scores, head.scores)
    if head.activation != "none":
        taken = {top for layer in deployed.layer for top in layer.top}
        name = "prob" if "prob" not in taken else f"{scores}_prob"
        layer = deployed.layer.add(name=name, type=head.activation.capitalize(), bottom=[scores], top=[name])
        if head.activation == "softmax" and head.axis != 1:
            layer.softmax_param.axis = head.axis
    elif deployed.layer[-1].top[0] != scores:  # so that the last layer gives the answer
        deployed.layer.add(name=f"{scores}_out", type="Power", bottom=[scores], top=[f"{scores}_out"])
    return deployed


def strip_training(layer: Any) -> None:
    """Take out what only training needs: fillers, learning rates, loss weights, phases."""
    for name in ("include", "exclude", "loss_weight", "propagate_down", "phase", "blobs"):
        layer.ClearField(name)
    for parameter in layer.param:
        parameter.ClearField("lr_mult")
        parameter.ClearField("decay_mult")
    if not any(parameter.name for parameter in layer.param):  # a name shares weights between layers
        layer.ClearField("param")
    for field, value in layer.ListFields():
        if field.name.endswith("_param"):
            for name in ("weight_filler", "bias_filler", "filler"):
                if name in value.DESCRIPTOR.fields_by_name:
                    value.ClearField(name)


# The proof


def reference_net(
    net: Any, path: str, head: Head, shape: Optional[Tuple[int, ...]] = None, weights: Optional[str] = None
) -> Any:
    """The training net in its TEST phase; with an input shape, without its data and what follows the scores."""
    reference = type(net)()
    reference.CopyFrom(net)
    names = input_names(net, head)
    if not names:
        raise UsageError(f"{path}: no data layer of the TEST phase leads to {head.scores!r}.")
    if shape is not None:
        if len(names) > 1:
            raise UsageError(f"{path} has several inputs ({', '.join(names)}); --input-shape can give one only.")
        layers = [
            layer
            for layer in ancestors(phase_layers(net, "TEST"), head.scores)
            if layer.bottom or layer.type == "Parameter"
        ]
        for field in ("layer", "input", "input_dim", "input_shape"):
            reference.ClearField(field)
        entry = reference.layer.add(name=names[0], type="Input", top=names)
        entry.input_param.shape.add(dim=shape)
        reference.layer.extend(layers)
    loaded = load_net(reference, path, "TEST", weights)
    if weights is None:
        fill_zeros(loaded)
    return loaded


def fill_zeros(net: Any) -> None:
    """Random weights where a net without fillers has none, and random statistics: zeros would prove nothing.

    An untrained BatchNorm divides by the root of its eps alone; the scores would be in the hundreds, and their
    rounding more than what a proof is about.
    """
    draw = np.random.RandomState(1)
    for layer, blobs in zip(net.params, net.params.values()):
        weights = blobs[0].data
        if net.layer_dict[layer].type == "BatchNorm":
            mean, variance, count = (blob.data for blob in blobs)
            mean[...] = 0.1 * draw.randn(*mean.shape)
            variance[...] = draw.uniform(0.5, 1.5, variance.shape)
            count[...] = 1
        elif not weights.any():
            weights[...] = draw.randn(*weights.shape) / np.sqrt(max(np.prod(weights.shape[1:]), 1))


def index_limits(deployed: Any) -> Dict[str, int]:
    """The blobs that Embed layers take indices from, and how many indices there are."""
    return {layer.bottom[0]: layer.embed_param.input_dim for layer in deployed.layer if layer.type == "Embed"}


def random_inputs(net: Any, names: Sequence[str], path: str, limits: Dict[str, int]) -> Dict[str, np.ndarray]:
    """Gaussian noise with mean and deviation of the net's first batch, and within its range: a layer may take no other.

    Where the batch is of whole numbers, so is the noise. Where the net has no data, of mean 0 and deviation 1.
    """
    draw = np.random.RandomState(0)
    with running(path):
        net.forward()
    inputs = {}
    for name in names:
        values = net.blobs[name].data
        low, high = float(values.min()), float(values.max())
        if name in limits:
            noise = draw.randint(limits[name], size=values.shape)
        elif low == high:
            noise = low + draw.randn(*values.shape)
        else:
            noise = np.clip(values.mean() + values.std() * draw.randn(*values.shape), low, high)
            noise = np.round(noise) if np.array_equal(values, np.round(values)) else noise
        inputs[name] = np.asarray(noise, np.float32)
    return inputs


def run_reference(net: Any, inputs: Dict[str, np.ndarray], scores: str, path: str) -> np.ndarray:
    """The scores that a training net gives for inputs put in place of its data; its labels stay what they are."""
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    for index in range(len(net.layers)):  # not by name, as layers may share one
        if len(net._bottom_ids(index)):
            with running(path):
                net._forward(index, index)
    return net.blobs[scores].data.copy()


def run_caffe(deployed: Any, path: str, model: str, inputs: Dict[str, np.ndarray]) -> np.ndarray:
    net = load_net(deployed, path, "TEST", model)
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
    with running(path):
        net.forward()
    return net.blobs[deployed.layer[-1].top[0]].data.copy()


def run_opencv(text: str, model: str, inputs: Dict[str, np.ndarray], winograd: bool = True) -> Any:
    """The output of OpenCV's dnn module, or the reason why there is none."""
    import cv2

    try:
        net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.fromfile(model, np.uint8))
        if not winograd:
            net.enableWinograd(False)
        for name, values in inputs.items():
            net.setInput(values, name)
        return net.forward()
    except cv2.error as error:
        return " ".join(error.err.split())
