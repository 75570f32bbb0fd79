"""The layers that bring data into nets: how much there is, and what is wrong with it, before Caffe reads it."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence, Tuple

from ..errors import UsageError, warn
from .class_labels import check_class_labels
from .databases import check_datums, count_database
from .hdf5_lists import count_hdf5
from .image_index import change_options, count_index, index_batch_size, reads_index
from .means import check_mean
from .pairing import READERS, check_pairs, parameter_of
from .text_lists import LOOKED_FOR, listed_images


def sources(layers: Sequence[Any]) -> List[Any]:
    """The layers that bring data into a net: those without bottoms, fixed parameters apart."""
    return [layer for layer in layers if not layer.bottom and layer.type != "Parameter"]


def places_of_sources(net: Any) -> List[int]:
    """The places in a caffe.Net of the layers that bring data into it."""
    return [
        place
        for place, layer in enumerate(net.layers)
        if not len(net._bottom_ids(place)) and layer.type not in ("Input", "Parameter")
    ]


def pass_over_batch(net: Any, places: Sequence[int]) -> None:
    """Have the layers at these places, which bring data into a caffe.Net, be at their next batch."""
    for place in places:
        layer = net.layers[place]
        layer.skip(1) if hasattr(layer, "skip") else net._forward(place, place)


def readers(layers: Sequence[Any]) -> List[Any]:
    """Those of the layers that read files: HDF5Data, Data and ImageData."""
    return [layer for layer in layers if layer.type in READERS]


def counted(layers: Sequence[Any]) -> List[Any]:
    """Those of the layers whose files tell how many samples there are: `readers`, and MultilabelImageDataLayer."""
    return [layer for layer in layers if layer.type in READERS or reads_index(layer)]


def count_samples(layer: Any) -> int:
    """How many samples the source of an HDF5Data, Data, ImageData or MultilabelImageDataLayer holds.

    Raises
    ------
    UsageError : a file is missing, torn, foreign or empty, or its data sets differ in length; or the layer is of
        another type.
    """
    if layer.type == "HDF5Data":
        return count_hdf5(layer)
    if layer.type == "Data":
        return count_database(layer)
    if layer.type == "ImageData":
        return len(listed_images(layer))
    if reads_index(layer):
        return count_index(layer)
    raise UsageError(f"layer {layer.name!r} is of type {layer.type}; expected {', '.join(READERS)}.")


def batch_size(layer: Any) -> int:
    """That of a layer that `count_samples` knows."""
    return index_batch_size(layer) if reads_index(layer) else parameter_of(layer).batch_size


def limit_batches(layers: Sequence[Any], most: int) -> None:
    """Have each of the layers that `batch_size` knows bring at most so many samples at once."""
    for layer in counted(layers):
        size = min(batch_size(layer), most)
        if reads_index(layer):
            change_options(layer, batch_size=size)
        else:
            parameter_of(layer).batch_size = size


def check_data(layers: Sequence[Any], path: str, meeting: Sequence[Tuple[str, str]] = ()) -> None:
    """Look through all that the layers of the net `path` read from files.

    Sources whose samples meet in a layer, or as a pair of blobs in `meeting`, have to be in one order. Labels that are
    classes have to be some of the scores.

    Raises
    ------
    UsageError : a source is missing, empty, torn, or not as Caffe needs it; or does not belong to another.
    """
    layers = list(layers)  # once, so that each is one object
    counts = {}
    for layer in counted(layers):
        if batch_size(layer) < 1:
            raise UsageError(f"{path}: layer {layer.name!r} has batch_size {batch_size(layer)}; expected at least 1.")
        counts[id(layer)] = count_samples(layer)
        if layer.type == "Data":
            check_datums(layer)
        if layer.type == "ImageData" and counts[id(layer)] > LOOKED_FOR:
            told = (
                f"{layer.image_data_param.source} (source of layer {layer.name!r}) names {counts[id(layer)]:,} images"
            )
            warn(f"{told}: only the first {LOOKED_FOR:,} were looked for before the net reads them.")
        check_mean(layer)
    check_pairs(layers, path, lambda layer: counts[id(layer)], meeting)
    check_class_labels(layers, path)


def period(layer: Any, ranks: int = 1) -> Optional[int]:
    """After how many forwards a data layer delivers its first batch again; None where chance or code decides.

    Where several `ranks` share the samples, each leaves out those of the others.
    """
    transform = layer.transform_param
    if layer.type == "HDF5Data" and not layer.hdf5_data_param.shuffle:
        return steps_around(count_samples(layer), ranks * batch_size(layer))
    if layer.type == "Data" and not (layer.data_param.rand_skip or transform.mirror or transform.crop_size):
        return steps_around(count_samples(layer), ranks * batch_size(layer))
    return None


def steps_around(samples: int, batch: int) -> int:
    return samples // math.gcd(samples, batch)
