"""The command `deploy`: the deploy prototxt of a training net, proved by running both, in Caffe and in OpenCV."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import check_output, write_text
from ..nets.python_layers import running
from ..nets.reading import read_prototxt
from ..nets.surgery import deploy_head, deploy_net, index_limits, input_names, reference_net
from ..nets.weights import load_net
from .arguments import add_head_arguments

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


# The proof


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
