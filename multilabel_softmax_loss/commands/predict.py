"""The command `predict`: the labels of images, with their scores."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError, unknown_name
from ..files import read_lines
from ..nets.heads import find_heads
from ..nets.proof import reference_net
from ..nets.python_layers import running
from ..nets.reading import phase_layers, read_prototxt
from ..nets.surgery import deploy_head, deploy_net, input_names
from ..nets.weights import load_net
from . import metrics
from .arguments import add_head_arguments
from .preprocessing import CHANNELS, Preprocessing, find_preprocessing
from .thresholds import check_thresholds, read_thresholds

BATCH = 32

EXAMPLE = """example:
  python -m multilabel_softmax_loss predict deploy.prototxt run/best.caffemodel beach.jpg city.jpg \\
      --classes classes.txt --thresholds thresholds.json --at-least-one

The images are resized to the net's input. Mean, scale and channel order are those of preprocessing.json beside WEIGHTS:
  {"mean": [104, 117, 123], "scale": 1, "channels": "BGR"}     input = scale * (pixel - mean), pixels from 0 to 255
`train` writes that file where the data layer tells (ImageData, LMDB of compressed images), or as --preprocessing says.
"""


def add_arguments(parser: Any) -> None:
    parser.description = "The labels of images, the likeliest first."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="a deploy net, or the training net")
    parser.add_argument("weights", metavar="WEIGHTS", help="a .caffemodel")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files that OpenCV reads (JPEG, PNG, ...)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--top-k", type=int, metavar="K", help="the K likeliest classes (default: 3)")
    choice.add_argument("--threshold", type=float, metavar="T", help="the classes of probability T or more")
    choice.add_argument("--thresholds", metavar="FILE", help="a threshold per class, from evaluate --tune-thresholds")
    parser.add_argument(
        "--at-least-one", action="store_true", help="the likeliest class where none reaches its threshold"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one per line")
    parser.add_argument("--preprocessing", metavar="FILE", help="default: preprocessing.json beside WEIGHTS")
    parser.add_argument("--json", action="store_true", help="a JSON object per line, in place of a table")
    add_head_arguments(parser)


def run(arguments: Any) -> int:
    answers = predict(
        arguments.net,
        arguments.weights,
        arguments.images,
        top_k=arguments.top_k,
        threshold=arguments.threshold,
        thresholds=arguments.thresholds,
        at_least_one=arguments.at_least_one,
        classes=arguments.classes,
        preprocessing=arguments.preprocessing,
        scores=arguments.scores,
        activation=arguments.activation,
    )
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
    """For each image {"image": its path, "labels": [{"class": its name, "score": its probability}, ...]}."""
    if os.path.isfile(net) and not os.path.isfile(weights):  # what is wrong with the net is told in reading it
        raise UsageError(f"{weights} is no file; expected weights.")
    recipe = find_preprocessing(weights, preprocessing)
    names = read_lines(classes, "--classes") if classes else None
    tuned = read_thresholds(thresholds) if thresholds else None
    levels = tuned.values if tuned else threshold
    if at_least_one and levels is None:
        raise UsageError("--at-least-one needs --threshold or --thresholds; the K likeliest are never none.")
    missing = [path for path in images if not os.path.isfile(path)]
    if missing:
        raise UsageError(f"{missing[0]} is no file; expected an image.")
    loaded, output, kind = prediction_net(net, weights, scores, activation)
    probs = run_images(loaded, output, images, recipe, net)
    width = probs.shape[1]
    names = names or (tuned and tuned.classes) or [str(k) for k in range(width)]
    if len(names) != width:
        raise UsageError(f"{classes or thresholds} names {len(names)} classes; expected {width}, as the net scores.")
    if levels is None:
        k = min(3, width) if top_k is None else top_k
        if not 1 <= k <= width:
            raise UsageError(f"--top-k is {k}; expected 1 to {width}, the number of classes.")
        decided = metrics.top_k(probs, k)
    else:
        if tuned and thresholds:
            check_thresholds(tuned, thresholds, width, kind)
        elif threshold is not None:
            low, high = (0, 1) if kind else (-np.inf, np.inf)  # what no layer made probabilities may be any numbers
            if not low <= threshold <= high:
                raise UsageError(f"--threshold is {threshold:g}; expected a number from {low} to {high}.")
        decided = metrics.above(probs, levels, at_least_one)
    return [
        {
            "image": image,
            "labels": [
                {"class": names[k], "score": round(float(row[k]), 6)}
                for k in np.argsort(-row, kind="stable")
                if chosen[k]
            ],
        }
        for image, row, chosen in zip(images, probs, decided)
    ]


def prediction_net(
    path: str, weights: str, scores: Optional[str] = None, activation: Optional[str] = None
) -> Tuple[Any, str, Optional[str]]:
    """A net that takes images: (caffe.Net, its output blob, "softmax" or "sigmoid" where that is known).

    A training net is turned into its deploy form first.
    """
    net = read_prototxt(path)
    if activation or find_heads(net.layer):
        head = deploy_head(net, path, scores, activation)
        reference = reference_net(net, path, head)
        shapes = {name: (1, *reference.blobs[name].data.shape[1:]) for name in input_names(net, head)}
        net = deploy_net(net, head, shapes)
        scores = net.layer[-1].top[0]
    loaded = load_net(net, path, "TEST", weights)
    outputs = list(loaded.outputs)
    if scores is not None and scores not in loaded.blobs:
        raise unknown_name("blob", scores, list(loaded.blobs), path)
    if scores is None and len(outputs) != 1:
        raise UsageError(f"{path} has {len(outputs)} outputs ({', '.join(outputs)}); choose one with --scores.")
    output = scores or outputs[0]
    kinds = {top: layer.type.lower() for layer in phase_layers(net, "TEST") for top in layer.top}
    return loaded, output, kinds[output] if kinds.get(output) in ("softmax", "sigmoid") else None


def run_images(net: Any, output: str, images: Sequence[str], recipe: Preprocessing, path: str) -> np.ndarray:
    """The probabilities (images, C) of image files."""
    import cv2
    from tqdm import tqdm

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
    parts = []
    for start in tqdm(range(0, len(images), BATCH), unit="batch", leave=False, disable=not sys.stderr.isatty()):
        batch = []
        for name in images[start : start + BATCH]:
            image = cv2.imread(name, cv2.IMREAD_COLOR)
            if image is None:
                raise UsageError(f"{name} is torn, or no image that OpenCV reads.")
            batch.append(recipe.apply(image, height, width))
        blob.reshape(len(batch), channels, height, width)
        blob.data[...] = batch
        with running(path):
            net.forward()
        probs = net.blobs[output].data.astype(np.float64)
        if probs.size != len(batch) * probs.shape[1]:
            raise UsageError(f"blob {output!r} has shape {probs.shape}; expected one answer per image, (N, classes).")
        if not np.isfinite(probs).all():
            raise UsageError(f"blob {output!r} is not finite for images {start} to {start + len(batch) - 1}.")
        parts.append(probs.reshape(len(batch), -1))
    return np.concatenate(parts)
