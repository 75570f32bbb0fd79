"""Labels that are one class each, as Caffe's own losses take them: what is no class reads or writes past its arrays."""

from __future__ import annotations

from typing import Any, Iterator, Optional, Sequence

import numpy as np

from ..errors import UsageError
from .databases import open_database, some_datums
from .hdf5_lists import hdf5_files
from .heads import find_heads
from .text_lists import listed_images

ROWS = 100_000  # of an HDF5 file that are read at a time

# The layers that take a class per sample, by Caffe's index arithmetic, and where their ignore_label and axis stand.
TAKERS = {
    "SoftmaxWithLoss": ("loss_param", "softmax_param"),
    "MultinomialLogisticLoss": ("loss_param", ""),
    "InfogainLoss": ("loss_param", "infogain_loss_param"),
    "HingeLoss": ("", ""),
    "Accuracy": ("accuracy_param", "accuracy_param"),
}
# Layers whose first bottom has as many classes as their top.
KEEPERS = (
    *("ReLU", "PReLU", "ELU", "Swish", "Sigmoid", "TanH", "AbsVal", "BNLL", "Power", "Exp", "Log", "Threshold"),
    *("Dropout", "BatchNorm", "Scale", "Bias", "LRN", "MVN", "Pooling", "Softmax", "Eltwise", "Split"),
)
MAKERS = {
    "InnerProduct": "inner_product_param",
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "Embed": "embed_param",
}


def check_class_labels(layers: Sequence[Any], path: str) -> None:
    """Raise a UsageError where a source brings a label that is no class of the scores it is compared with."""
    makers = {top: layer for layer in layers if not layer.bottom for top in layer.top}
    for taker in layers:
        if taker.type not in TAKERS or len(taker.bottom) < 2 or taker.bottom[1] not in makers:
            continue
        classes = class_count(layers[: position(layers, taker)], taker.bottom[0])
        if classes is None or axis_of(taker) != 1:
            continue
        first = 0
        for labels in labels_of(makers[taker.bottom[1]], taker.bottom[1]):
            bringing = f"{path}: layer {makers[taker.bottom[1]].name!r} brings the label"
            check_classes(taker, labels, classes, first, bringing)
            first += len(labels)


def watch_labels(net: Any, layers: Sequence[Any]) -> None:
    """Have a caffe.Net raise a UsageError before a loss of Caffe's takes a label that it may not be given.

    Sources may have been sampled only, and layers may make labels; those of Python look at their labels themselves.

    `layers` are those of its prototxt. The callback holds blobs, as one that held the net would keep it for ever.
    """
    known = {*TAKERS, "SigmoidCrossEntropyLoss"}
    takers = [taker for taker in layers if taker.type in known and len(taker.bottom) > 1]
    places = [k for k, layer in enumerate(net.layers) if layer.type in known and len(net._bottom_ids(k)) > 1]
    watched = {k - 1: (taker, *(net.blobs[name] for name in taker.bottom[:2])) for k, taker in zip(places, takers)}

    def check(place: int) -> None:
        if place in watched:
            taker, scores, labels = watched[place]
            if taker.type in TAKERS:
                classes = scores.data.shape[axis_of(taker)]
                check_classes(taker, labels.data, classes, 0, f"blob {taker.bottom[1]!r} brings the label")
            else:
                find_heads([taker])[0].check_batch(labels.data)

    if watched:
        net.after_forward(check)


def check_classes(taker: Any, labels: np.ndarray, classes: int, first: int, bringing: str) -> None:
    """Raise a UsageError for a label (samples, ...) that is none of the `classes` of the layer that takes it."""
    ignored = TAKERS[taker.type][0]
    good = (labels >= 0) & (labels < classes) & (labels == np.floor(labels))
    if ignored and getattr(taker, ignored).HasField("ignore_label"):
        good |= labels == getattr(taker, ignored).ignore_label
    if not good.all():
        wrong = np.argmin(good)
        raise UsageError(
            f"{bringing} {labels.flat[wrong]:g} with sample {first + wrong * len(labels) // labels.size}; expected a "
            f"class from 0 to {classes - 1}, as {taker.bottom[0]!r} has {classes} for layer {taker.name!r}. Change the "
            "label, or num_output of the layer that makes the scores."
        )


def axis_of(taker: Any) -> int:
    """The axis of the classes of a layer that takes them."""
    parameter = TAKERS[taker.type][1]
    return getattr(taker, parameter).axis if parameter else 1


def position(layers: Sequence[Any], layer: Any) -> int:
    return next(place for place, found in enumerate(layers) if found is layer)


def class_count(layers: Sequence[Any], blob: str) -> Optional[int]:
    """How many classes a blob has, by the layers that make it; None where these do not tell."""
    for place in reversed(range(len(layers))):
        layer = layers[place]
        if blob in layer.top:
            if layer.type in MAKERS:
                return getattr(layer, MAKERS[layer.type]).num_output
            if layer.type in KEEPERS and layer.bottom:
                return class_count(layers[:place], layer.bottom[0])
            return None
    return None


def labels_of(layer: Any, top: str) -> Iterator[np.ndarray]:
    """The labels that a source brings in its top, some samples at a time; nothing where they are not known."""
    if layer.type == "HDF5Data":
        yield from hdf5_labels(layer, top)
    elif top != layer.top[0] and layer.type == "ImageData":
        yield np.array([image.label for image in listed_images(layer)], float)
    elif top != layer.top[0] and layer.type == "Data":
        with open_database(layer) as database:
            yield np.array([datum.label for _, datum in some_datums(database)], float)


def hdf5_labels(layer: Any, top: str) -> Iterator[np.ndarray]:
    import h5py

    for path in hdf5_files(layer):
        with h5py.File(path, "r") as file:
            for start in range(0, len(file[top]), ROWS):
                yield np.asarray(file[top][start : start + ROWS], float)
