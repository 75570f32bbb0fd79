"""Labels that are one class each, as Caffe's own losses take them: what is no class reads or writes past its arrays."""

from __future__ import annotations

from typing import Any, Iterator, Optional, Sequence

import numpy as np

from ..errors import UsageError
from .databases import open_database, some_datums
from .hdf5_lists import hdf5_files
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
        ignored, axis = TAKERS[taker.type]
        classes = class_count(layers[: position(layers, taker)], taker.bottom[0])
        if classes is None or (axis and getattr(taker, axis).axis != 1):
            continue
        ignore = None
        if ignored and getattr(taker, ignored).HasField("ignore_label"):
            ignore = getattr(taker, ignored).ignore_label
        first = 0
        for labels in labels_of(makers[taker.bottom[1]], taker.bottom[1]):
            good = (labels >= 0) & (labels < classes) & (labels == np.floor(labels))
            wrong = np.flatnonzero(~(good if ignore is None else good | (labels == ignore)).reshape(len(labels), -1))
            if wrong.size:
                value = labels.reshape(-1)[wrong[0]]
                sample = first + wrong[0] * len(labels) // labels.size
                raise UsageError(
                    f"{path}: layer {makers[taker.bottom[1]].name!r} brings the label {value:g} with sample {sample}; "
                    f"expected a class from 0 to {classes - 1}, as {taker.bottom[0]!r} has {classes} for layer "
                    f"{taker.name!r}. Change the label, or num_output of the layer that makes the scores."
                )
            first += len(labels)


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
