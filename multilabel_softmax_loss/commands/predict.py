"""The command `predict`: the labels of images, with their scores."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError, unknown_name
from ..files import read_lines
from ..nets.heads import Head, find_heads, unsaturated
from ..nets.proof import reference_net
from ..nets.python_layers import running
from ..nets.reading import phase_layers, read_prototxt
from ..nets.surgery import deploy_head, deploy_net, input_names
from ..nets.weights import load_net
from ..parallel.ranks import in_turn, ranks
from . import metrics
from .alike import check_net_alike
from .arguments import add_head_arguments
from .preprocessing import CHANNELS, Preprocessing, find_preprocessing
from .terminal import printing_aside, progress_bar
from .thresholds import levels_of, read_thresholds

BATCH = 32

EXAMPLE = """example:
  python -m multilabel_softmax_loss predict deploy.prototxt run/best.caffemodel beach.jpg city.jpg \\
      --classes classes.txt --thresholds thresholds.json --at-least-one

What becomes of an image before the net sees it stands in preprocessing.json beside WEIGHTS:
  {"mean": [104, 117, 123], "scale": 1, "channels": "BGR", "resize": [256, 256], "crop": 227}
input = scale * (pixel - mean), pixels from 0 to 255; "mean" may name a mean image (.binaryproto). "resize" is [height,
width], or null for none; without it images are resized to the net's input. `train` writes what the data layer does in
the TEST phase (ImageData, LMDB of compressed images), proved on its first image; or what --preprocessing says.
"""


def add_arguments(parser: Any) -> None:
    parser.description = "The labels of images, the likeliest first."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="a deploy net, or the training net")
    parser.add_argument("weights", metavar="WEIGHTS", help="a .caffemodel")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files that OpenCV reads (JPEG, PNG, ...)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--top-k", type=int, metavar="K", help="the K likeliest classes (default: 3)")
    choice.add_argument(
        "--threshold", type=float, metavar="T", help="the classes of probability (or ranked score) T or more"
    )
    choice.add_argument("--thresholds", metavar="FILE", help="a threshold per class, from evaluate --tune-thresholds")
    parser.add_argument(
        "--at-least-one", action="store_true", help="the likeliest class where none reaches its threshold"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one per line")
    parser.add_argument("--preprocessing", metavar="FILE", help="default: preprocessing.json beside WEIGHTS")
    parser.add_argument("--json", action="store_true", help="a JSON object per line, in place of a table")
    add_head_arguments(parser)


def run(arguments: Any) -> int:
    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "json")}
    with printing_aside():
        answers = predict(**options)
    if arguments.json:
        print("\n".join(json.dumps(answer) for answer in answers))
    else:
        width = max(len(answer["image"]) for answer in answers)
        for answer in answers:
            labels = "  ".join(f"{label['class']} {label['score']:.3f}" for label in answer["labels"])
            print(f"{answer['image']:{width}}  {labels}".rstrip())
    return 0


def predict(
    net: str,
    weights: str,
    images: Sequence[str],
    top_k: Optional[int] = None,
    threshold: Optional[float] = None,
    thresholds: Optional[str] = None,
    at_least_one: bool = False,
    classes: Optional[str] = None,
    preprocessing: Optional[str] = None,
    scores: Optional[str] = None,
    activation: Optional[str] = None,
) -> List[Dict[str, Any]]:
    """For each image {"image": its path, "labels": [{"class": its name, "score": its probability or score}, ...]}."""
    if os.path.isfile(net) and not os.path.isfile(weights):  # what is wrong with the net is told in reading it
        raise UsageError(f"{weights} is no file; expected weights.")
    recipe = find_preprocessing(weights, preprocessing)
    names = read_lines(classes, "--classes") if classes else None
    tuned = read_thresholds(thresholds) if thresholds else None
    if at_least_one and threshold is None and not thresholds:
        raise UsageError("--at-least-one needs --threshold or --thresholds; the K likeliest are never none.")
    missing = [path for path in images if not os.path.isfile(path)]
    if missing:
        raise UsageError(f"{missing[0]} is no file; expected an image.")
    parameter, loaded, head = prediction_net(net, weights, scores, activation)
    check_net_alike(net, parameter, loaded, head, images, recipe)
    log_odds = run_images(loaded, head, images, recipe, net)
    width = log_odds.shape[1]
    names = names or (tuned and tuned.classes) or [str(k) for k in range(width)]
    if len(names) != width:
        raise UsageError(f"{classes or thresholds} names {len(names)} classes; expected {width}, as the net scores.")
    if tuned and thresholds:
        decided = metrics.above(log_odds, levels_of(tuned, thresholds, width, head, names), at_least_one)
    elif threshold is not None:
        low, high = (-np.inf, np.inf) if head.activation == "none" else (0, 1)
        if not low <= threshold <= high:
            raise UsageError(f"--threshold is {threshold:g}; expected a number from {low} to {high}.")
        decided = metrics.above(log_odds, head.odds_of(np.array(threshold)), at_least_one)
    else:
        k = min(3, width) if top_k is None else top_k
        if not 1 <= k <= width:
            raise UsageError(f"--top-k is {k}; expected 1 to {width}, the number of classes.")
        decided = metrics.top_k(log_odds, k)
    probs = head.probability(log_odds)
    return [
        {
            "image": image,
            "labels": [
                {"class": names[k], "score": round(float(probs[row, k]), 6)}
                for k in np.argsort(-log_odds[row], kind="stable")
                if decided[row, k]
            ],
        }
        for row, image in enumerate(images)
    ]


def prediction_net(
    path: str, weights: str, scores: Optional[str] = None, activation: Optional[str] = None
) -> Tuple[Any, Any, Head]:
    """A net that takes images, its NetParameter first, and its head: the scores before a last Softmax or Sigmoid.

    A training net is turned into its deploy form first.
    """
    net = read_prototxt(path)
    if activation or find_heads(net.layer):
        head = deploy_head(net, path, scores, activation)
        reference = reference_net(net, path, head)
        shapes = {name: (1, *reference.blobs[name].data.shape[1:]) for name in input_names(net, head)}
        net = deploy_net(net, head, shapes)
        scores = net.layer[-1].top[0]
    keep_scores(net)
    loaded = load_net(net, path, "TEST", weights)
    outputs = list(loaded.outputs)
    if scores is not None and scores not in loaded.blobs:
        raise unknown_name("blob", scores, list(loaded.blobs), path)
    if scores is None and len(outputs) != 1:
        raise UsageError(f"{path} has {len(outputs)} outputs ({', '.join(outputs)}); choose one with --scores.")
    return net, loaded, unsaturated(Head(scores or outputs[0], None, "none"), phase_layers(net, "TEST"))


def keep_scores(net: Any) -> None:
    """Have each Softmax and Sigmoid that works in place take its scores from a blob of their own."""
    for index, layer in enumerate(net.layer):
        if layer.type in ("Softmax", "Sigmoid") and layer.bottom[0] == layer.top[0]:
            taken, freed = layer.top[0], f"{layer.top[0]}_before_{layer.name}"
            for names in [layer.bottom, *(names for maker in net.layer[:index] for names in (maker.bottom, maker.top))]:
                names[:] = [freed if name == taken else name for name in names]


def run_images(net: Any, head: Head, images: Sequence[str], recipe: Preprocessing, path: str) -> np.ndarray:
    """The log odds (images, C) of image files."""
    if len(net.inputs) != 1 or net.blobs[net.inputs[0]].data.ndim != 4:
        found = ", ".join(f"{name} {net.blobs[name].data.shape}" for name in net.inputs) or "none"
        raise UsageError(f"{path} has inputs {found}; expected one of shape (N, channels, height, width).")
    blob = net.blobs[net.inputs[0]]
    channels, height, width = blob.data.shape[1:]
    if channels != CHANNELS[recipe.channels]:
        raise UsageError(
            f"{path} takes {channels} channels, and the preprocessing says {recipe.channels!r}; expected one that has "
            f"{channels}. Change channels in the preprocessing file."
        )
    recipe.check_size((height, width))
    parts = []
    starts = range(ranks.rank * BATCH, len(images), ranks.size * BATCH)  # ranks take batches in turn
    with progress_bar(len(starts), "batch") as bar:
        for start in starts:
            batch = [recipe.read_image(name, (height, width)) for name in images[start : start + BATCH]]
            blob.reshape(len(batch), channels, height, width)
            blob.data[...] = batch
            with running(path):
                net.forward()
            scores = net.blobs[head.scores].data
            if scores.shape[:1] != (len(batch),) or scores.size != len(batch) * scores.shape[head.axis]:
                raise UsageError(
                    f"blob {head.scores!r} has shape {scores.shape}; expected one answer per image, (N, classes)."
                )
            if not (scores < np.inf).all():  # -inf masks a class
                raise UsageError(f"blob {head.scores!r} is not finite for images {start} to {start + len(batch) - 1}.")
            parts.append(head.log_odds(scores).reshape(len(batch), -1))
            bar.update()
    return np.concatenate(in_turn(ranks.everyone(parts, "the end of the images")))
