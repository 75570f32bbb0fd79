"""The command `deploy`: the deploy prototxt of a training net, proved by running both, in Caffe and in OpenCV."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

from ..errors import UsageError, unknown_name
from ..files import check_apart, check_output, write_text
from ..nets.hdf5_lists import MOST_NUMBERS
from ..nets.proof import TOLERANCE, Proof, prove, reference_net
from ..nets.reading import read_prototxt
from ..nets.surgery import Shape, deploy_head, deploy_net, input_names
from .arguments import add_head_arguments

EXAMPLE = """example:
  python -m multilabel_softmax_loss deploy train_val.prototxt --weights run/best.caffemodel

Data layers become Input, the loss becomes Softmax or Sigmoid (blob "prob"; none for a ranking loss, which leaves raw
scores), and what only training needs goes: fillers, learning rates, Dropout, and all that the scores do not depend on.
The file is written if, on random input, its probabilities are those of the training net to 1e-5, in Caffe and in
OpenCV. Without --weights random ones serve for the proof. Exit status 1: they differ, nothing is written. 3: OpenCV
cannot run the net; the file is written.
"""


def add_arguments(parser: Any) -> None:
    parser.description = "Write the deploy prototxt of a training net, and prove that it computes the same."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="TRAIN_VAL.prototxt", help="the training net")
    parser.add_argument("--weights", metavar="M", help="a .caffemodel to prove with")
    parser.add_argument("--out", metavar="FILE", help="default: deploy.prototxt beside TRAIN_VAL.prototxt")
    parser.add_argument(
        "--input-shape",
        metavar="[BLOB=]N,C,H,W",
        action="append",
        default=[],
        help="shape of the input, or with its blob of each of several (default: what the data layer delivers, N = 1)",
    )
    add_head_arguments(parser)


def run(arguments: Any) -> int:
    out = arguments.out or os.path.join(os.path.dirname(arguments.net), "deploy.prototxt")
    check_output(out, (".prototxt", ".txt"))
    check_apart({"--out": out, "the training net": arguments.net, "--weights": arguments.weights}, "--out")
    shapes = parse_shapes(arguments.input_shape)
    head = (arguments.scores, arguments.activation)
    return deploy(arguments.net, out, arguments.weights, shapes, *head, replace=arguments.out is not None)


def parse_shapes(words: Sequence[str]) -> Dict[str, Shape]:
    """The shapes that --input-shape gives, by blob; that of the blob "" is for the only input."""
    shapes: Dict[str, Shape] = {}
    for word in words:
        blob, _, text = word.rpartition("=")
        if blob in shapes:
            raise UsageError(f"--input-shape gives {f'blob {blob!r}' if blob else 'the only input'} twice.")
        shapes[blob] = parse_shape(text)
    return shapes


def parse_shape(text: str) -> Shape:
    try:
        shape = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--input-shape is {text!r}; expected whole numbers such as 1,3,224,224.") from error
    if min(shape) < 1:
        raise UsageError(f"--input-shape is {text!r}; expected numbers of at least 1.")
    if np.prod(shape, dtype=float) > MOST_NUMBERS:
        raise UsageError(f"--input-shape is {text!r}; expected no more than {MOST_NUMBERS:,} numbers in all.")
    return shape


def deploy(
    path: str,
    out: str,
    weights: Optional[str] = None,
    shapes: Optional[Mapping[str, Shape]] = None,
    scores: Optional[str] = None,
    activation: Optional[str] = None,
    replace: bool = True,
) -> int:
    """Write the deploy prototxt `out` of the training net `path`; the exit status.

    `shapes` are those of its inputs, by blob ("" is the only one), where they are not what the data layers deliver.
    Without `replace` a file that says anything else stays.
    """
    net = read_prototxt(path)
    head = deploy_head(net, path, scores, activation)
    given = named_shapes(shapes or {}, input_names(net, head), path)
    reference = reference_net(net, path, head, given, weights)
    delivered = {name: (1, *reference.blobs[name].data.shape[1:]) for name in input_names(net, head)}
    deployed = deploy_net(net, head, given or delivered)
    text = str(deployed)
    if not replace and os.path.isfile(out) and str(read_prototxt(out)) != text:
        raise UsageError(f"{out} is there already, and differs; --out {out} replaces it.")
    proof = prove(reference, deployed, head, path, out)
    tell_proof(proof, out, "scores" if head.activation == "none" else "probabilities")
    if proof.status == 1:
        print(f"{out} is not written.")
    else:
        write_text(out, text)
        raw = f"; it leaves {head.scores!r} as they are, and makes no probabilities of them"
        print(f"Written: {out}{raw if head.activation == 'none' else ''}")
    return proof.status


def named_shapes(shapes: Mapping[str, Shape], names: Sequence[str], path: str) -> Dict[str, Shape]:
    """The shapes of all inputs of a net, in their order, or none."""
    if not (shapes and names):
        return {}
    if len(names) == 1:
        shapes = {names[0] if name == "" else name: shape for name, shape in shapes.items()}
    wrong = [name for name in shapes if name and name not in names]
    if wrong:
        raise unknown_name("input", wrong[0], names, path)
    if set(shapes) != set(names):
        each = " ".join(f"--input-shape {name}=N,..." for name in names)
        raise UsageError(f"{path} has several inputs ({', '.join(names)}); give the shape of each: {each}.")
    return {name: shapes[name] for name in names}


def tell_proof(proof: Proof, out: str, quantity: str) -> None:
    described = ", ".join(f"{name} {'x'.join(map(str, values.shape))}" for name, values in proof.inputs.items())
    span = f"{proof.expected.min():.4f} to {proof.expected.max():.4f}"
    print(f"Random input ({described}); the training net's {quantity}, {span}, differ by at most")
    for reader, values in proof.found.items():
        if isinstance(values, str):
            print(f"    {reader}: cannot run this net: {values}")
        else:
            remark = "" if proof.agrees(values) else f", more than {TOLERANCE:g}"
            print(f"    {proof.difference(values):.1e} from those of {out} in {reader}{remark}")
