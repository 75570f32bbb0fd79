"""What the commands know of the layers that bring data into nets: how much there is, and what is wrong with it."""

from __future__ import annotations

import math
import os
from typing import Any, Dict, List, Optional, Sequence

from ..errors import UsageError, unknown_name
from ..files import read_lines


def sources(layers: Sequence[Any]) -> List[Any]:
    """The layers that bring data into a net: those without bottoms, fixed parameters apart."""
    return [layer for layer in layers if not layer.bottom and layer.type != "Parameter"]


def count_samples(layer: Any) -> int:
    """How many samples the source of an HDF5Data or Data layer holds, each file looked at.

    Raises
    ------
    UsageError : a file is missing, torn, foreign or empty, or its data sets differ in length.
    """
    if layer.type == "HDF5Data":
        return count_hdf5(layer)
    if layer.type == "Data":
        return count_lmdb(layer)
    raise UsageError(f"layer {layer.name!r} is of type {layer.type}; expected HDF5Data, or Data of an LMDB.")


def count_hdf5(layer: Any) -> int:
    import h5py

    source = layer.hdf5_data_param.source
    total = 0
    for path in read_lines(source, f"source of layer {layer.name!r}"):
        try:
            with h5py.File(path, "r") as file:
                missing = [top for top in layer.top if top not in file]
                if missing:
                    raise unknown_name("data set", missing[0], list(file), f"{path} (layer {layer.name!r})")
                check_numbers(file, layer, path)
                lengths = {top: file[top].shape[0] for top in layer.top}
        except OSError as error:
            raise UsageError(f"{path}, named in {source}, is no readable HDF5 file: {error}.") from error
        if len(set(lengths.values())) > 1:
            raise UsageError(f"{path} has data sets of different lengths: {lengths}; expected one row per sample.")
        total += next(iter(lengths.values()))
    if total == 0:
        raise UsageError(f"{source} (source of layer {layer.name!r}) is an empty set; expected at least one sample.")
    return total


def check_numbers(file: Any, layer: Any, path: str) -> None:
    """Raise a UsageError for a data set of an HDF5 file that Caffe cannot read."""
    for top in layer.top:
        data = file[top]
        if not hasattr(data, "dtype"):
            raise UsageError(f"{path} has a group of the name {top!r} (layer {layer.name!r}); expected a data set.")
        if data.dtype.kind not in "fiu":
            raise UsageError(f"{path} has {data.dtype} in data set {top!r} (layer {layer.name!r}); expected float32.")
        if not data.shape:
            raise UsageError(
                f"{path} has a single number in data set {top!r} (layer {layer.name!r}); expected one row per sample."
            )


def count_lmdb(layer: Any) -> int:
    import lmdb

    source = layer.data_param.source
    if not is_lmdb(layer):
        raise UsageError(f"layer {layer.name!r} reads a LevelDB, whose length cannot be told; expected an LMDB.")
    if not os.path.exists(os.path.join(source, "data.mdb")):
        raise UsageError(f"{source} (source of layer {layer.name!r}) is no LMDB: no data.mdb is in it.")
    try:
        with lmdb.open(source, readonly=True, lock=False) as environment:
            total = environment.stat()["entries"]
    except lmdb.Error as error:
        raise UsageError(f"{source} (source of layer {layer.name!r}) is no readable LMDB: {error}.") from error
    if total == 0:
        raise UsageError(f"{source} (source of layer {layer.name!r}) is an empty set; expected at least one sample.")
    return total


def check_data(layers: Sequence[Any], path: str) -> None:
    """Raise a UsageError for a source of the net `path` that is missing, empty or torn, or is not as long as another.

    Two data layers of one top each are one set, of samples and of labels; with tops of their own for both they may be
    two sets of any length.
    """
    lengths = {}
    for layer in sources(layers):
        if layer.type == "HDF5Data" or is_lmdb(layer):
            lengths[layer.name] = count_samples(layer)
            if batch_size(layer) < 1:
                raise UsageError(
                    f"{path}: layer {layer.name!r} has batch_size {batch_size(layer)}; expected at least 1."
                )
        elif layer.type == "ImageData":
            read_lines(layer.image_data_param.source, f"source of layer {layer.name!r}")
    if all(len(layer.top) == 1 for layer in sources(layers)):
        check_lengths(lengths, path)


def check_lengths(lengths: Dict[str, int], path: str) -> None:
    if len(set(lengths.values())) > 1:
        raise UsageError(f"{path} reads sources of different lengths: {lengths}; expected one label per image.")


def is_lmdb(layer: Any) -> bool:
    return layer.type == "Data" and layer.data_param.backend == layer.data_param.LMDB


def batch_size(layer: Any) -> int:
    return layer.hdf5_data_param.batch_size if layer.type == "HDF5Data" else layer.data_param.batch_size


def period(layer: Any) -> Optional[int]:
    """After how many forwards a data layer delivers its first batch again; None where chance or code decides."""
    transform = layer.transform_param
    if layer.type == "HDF5Data" and not layer.hdf5_data_param.shuffle:
        return steps_around(count_samples(layer), batch_size(layer))
    if is_lmdb(layer) and not (layer.data_param.rand_skip or transform.mirror or transform.crop_size):
        return steps_around(count_samples(layer), batch_size(layer))
    return None


def steps_around(samples: int, batch: int) -> int:
    return samples // math.gcd(samples, batch)
