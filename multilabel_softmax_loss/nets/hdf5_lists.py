"""The files that HDF5Data layers read, looked through as Caffe will read them: each as a whole, with one stride."""

from __future__ import annotations

import errno
import os
from typing import Any, List, Tuple

from ..errors import UsageError, unknown_name, warn
from ..files import cannot_be_read
from .text_lists import read_list

MOST_NUMBERS = 2**31 - 1  # Caffe counts with an int
HOLLOW = 2**28  # from this many bytes on a data set that stores next to nothing is suspicious


def hdf5_files(layer: Any) -> List[str]:
    """The files that the list of an HDF5Data layer names; Caffe splits it at any blank."""
    source = layer.hdf5_data_param.source
    lines = read_list(source, f"source of layer {layer.name!r}")
    for line in lines:
        words = line.split()
        if len(words) > 1 and not all(map(os.path.isfile, words)):
            raise UsageError(
                f"{source} (source of layer {layer.name!r}) has the line {line!r}: Caffe splits such a list at each "
                "blank. Rename the file or its folder, or make a link to it without a blank."
            )
    return [word for line in lines for word in line.split()]


def count_hdf5(layer: Any) -> int:
    """How many samples the files of an HDF5Data layer hold.

    Raises
    ------
    UsageError : a file is missing or torn, lacks a data set, or has one that Caffe cannot read, or reads wrongly.
    """
    import h5py

    source = layer.hdf5_data_param.source
    total = 0
    widths: List[Tuple[str, Tuple[int, ...]]] = []
    for path in hdf5_files(layer):
        try:
            with h5py.File(path, "r") as file:
                shapes = [check_data_set(file, top, layer, path).shape for top in layer.top]
        except FileNotFoundError as error:
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # h5py's own words are long
            raise cannot_be_read(path, f"named in {source}", missing) from error
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{path}, named in {source}, is no readable HDF5 file: {error}.") from error
        lengths = {top: shape[0] for top, shape in zip(layer.top, shapes)}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"{path} has data sets of different lengths: {lengths}; expected one row per sample.")
        if not shapes or not shapes[0][0]:
            raise UsageError(f"{path}, named in {source}, is empty: it holds no sample. Take it out of the list.")
        widths = widths or [(path, shape[1:]) for shape in shapes]
        for top, shape, (first, width) in zip(layer.top, shapes, widths):
            if shape[1:] != width:
                raise UsageError(
                    f"{path} has samples of shape {shape[1:]} in data set {top!r}, and {first} of {width}; expected "
                    f"one shape in all files of {source}, as Caffe reads each by that of the first."
                )
        total += shapes[0][0]
    return total


def check_data_set(file: Any, name: str, layer: Any, path: str) -> Any:
    """The data set of an open HDF5 file that a top is read from, if Caffe can read it."""
    import h5py

    reader = f"layer {layer.name!r}"
    where = f"{path} ({reader})"
    names = list(file)
    if name not in names:  # Caffe looks at the root only
        raise unknown_name("data set", name, names, where)
    try:
        data = file[name]
    except (KeyError, OSError) as error:
        raise UsageError(f"{where}: {link_of(file, name)} leads to nothing: {error.args[0]}.") from error
    if not isinstance(data, h5py.Dataset):
        raise UsageError(f"{path} has a group of the name {name!r} ({reader}); expected a data set.")
    if data.dtype.kind not in "fiu":
        raise UsageError(f"{path} has {data.dtype} in data set {name!r} ({reader}); expected float32.")
    if not data.shape:
        raise UsageError(f"{path} has a single number in data set {name!r} ({reader}); expected one row per sample.")
    check_size(data, name, where)
    return data


def link_of(file: Any, name: str) -> str:
    import h5py

    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"{name!r}, a link to {link.path!r} in {link.filename!r},"
    if isinstance(link, h5py.SoftLink):
        return f"{name!r}, a link to {link.path!r},"
    return repr(name)


def check_size(data: Any, name: str, where: str) -> None:
    """Raise a UsageError for a data set that is too large to be read as a whole, or that claims more than it holds."""
    if data.size > MOST_NUMBERS:
        raise UsageError(
            f"{where} has {data.size:,} numbers in data set {name!r}; Caffe reads {MOST_NUMBERS:,} at most. Split it "
            "into several files, one a line of the list."
        )
    claimed, stored = 4 * data.size, data.id.get_storage_size()
    if data.is_virtual or claimed < HOLLOW:
        return
    if stored * 1000 < claimed:
        raise UsageError(
            f"{where} claims {size(claimed)} in data set {name!r} of shape {data.shape} and stores {size(stored)}: it "
            "was hardly filled. Caffe would read all of it into memory; write the data, or a smaller data set."
        )
    if hasattr(os, "sysconf") and claimed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise UsageError(
            f"{where} needs {size(claimed)} for data set {name!r}, as Caffe reads a file as a whole: more memory than "
            "there is here. Split it into several files, one a line of the list."
        )
    if stored * 20 < claimed:
        warn(f"{where}: data set {name!r} is stored in {size(stored)} and takes {size(claimed)} of memory in Caffe.")


def size(count: float) -> str:
    """A number of bytes in a unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
