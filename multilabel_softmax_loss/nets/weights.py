"""Nets with weights: loaded, compared with what a file holds, and found finite."""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..files import search_hint
from .locating import located
from .python_layers import check_python_layers, python_layer_errors
from .reading import phase_layers


def load_net(net: Any, path: str, phase: str = "TEST", weights: Optional[str] = None) -> Any:
    """A caffe.Net of the NetParameter `net`, which came from `path`.

    With `weights` every parameter comes from them; without, the fillers draw the same on every call.
    """
    import caffe

    caffe.set_random_seed(0)
    if weights is not None:
        stored = read_weights(weights)
    check_python_layers(phase_layers(net, phase), path)
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        prototxt = os.path.join(folder, "net.prototxt")
        with open(prototxt, "w", encoding="utf-8") as file:
            file.write(str(located(net, folder)))
        with python_layer_errors(path):
            loaded = caffe.Net(prototxt, getattr(caffe, phase))
    check_layer_names(loaded, path)
    if weights is not None:
        check_layers(loaded, stored, weights, path, "Give the weights of this net.")
        loaded.copy_from(weights)
        check_finite_weights(loaded, weights)
    return loaded


def check_layer_names(net: Any, path: str) -> None:
    """Raise a UsageError for a layer with weights whose name another layer has: Caffe copies weights by name."""
    names = list(net._layer_names)
    for name, layer in zip(names, net.layers):
        if len(layer.blobs) and names.count(name) > 1:
            raise UsageError(
                f"{path} has {names.count(name)} layers of the name {name!r} in one phase, one of which has weights; "
                "these are kept and shared by name, so that another layer would get them. Give each its own name."
            )


def not_finite(net: Any) -> Optional[str]:
    """The first layer of a net that has a weight which is not finite."""
    for name, blobs in net.params.items():
        if not all(np.isfinite(blob.data).all() for blob in blobs):
            return name
    return None


def check_finite_weights(net: Any, weights: str) -> None:
    layer = not_finite(net)
    if layer is not None:
        raise UsageError(
            f"{weights} has weights of layer {layer!r} that are not finite; expected those of a run that did well."
        )


def read_weights(path: str) -> Dict[str, List[Tuple[int, ...]]]:
    """The layers that a weights file has parameters for, and the shapes of these."""
    if not os.path.isfile(path):
        hint = search_hint(path) if path else ""
        raise UsageError(f"{path or repr(path)} is no file; expected weights (.caffemodel, or .caffemodel.h5).{hint}")
    if path.endswith(".h5"):
        return read_hdf5_weights(path)
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    message = caffe_pb2.NetParameter()
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # protobuf only warns where data are left over
            message.ParseFromString(file.read())
    # protobuf 3.20 raises a SystemError for a string that is no UTF-8.
    except (DecodeError, SystemError, RuntimeWarning) as error:
        raise UsageError(f"{path} is torn, or no weights file: it does not parse as a NetParameter.") from error
    layers = [*message.layer, *(layer.layer if layer.HasField("layer") else layer for layer in message.layers)]
    for layer in layers:
        for blob in layer.blobs:
            check_blob(blob, layer.name, path)
    stored = {layer.name: [blob_shape(blob) for blob in layer.blobs] for layer in layers if layer.blobs}
    if not stored:
        raise UsageError(f"{path} holds no weights of any layer; expected a .caffemodel.")
    return stored


def read_hdf5_weights(path: str) -> Dict[str, List[Tuple[int, ...]]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            layers = file.get("data")
            if not isinstance(layers, h5py.Group):
                raise KeyError("it has no group 'data' of layers")
            return {name: [layers[name][key].shape for key in sorted(layers[name], key=int)] for name in layers}
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:  # other groups and data sets
        raise UsageError(f"{path} is torn, or no weights file: {error}.") from error


def blob_shape(blob: Any) -> Tuple[int, ...]:
    """The shape of a stored blob; () for a blob without axes, which Caffe stores without a shape."""
    old = ("num", "channels", "height", "width")  # before Caffe 1.0
    if any(blob.HasField(name) for name in old):
        return tuple(getattr(blob, name) for name in old)
    return tuple(blob.shape.dim)


def check_blob(blob: Any, layer: str, path: str) -> None:
    expected, found = int(np.prod(blob_shape(blob), dtype=object)), max(len(blob.data), len(blob.double_data))
    if expected != found:
        raise UsageError(
            f"{path} is damaged: it has {found} weights of shape {blob_shape(blob)} for layer {layer!r}; expected "
            f"{expected}."
        )


def check_layers(net: Any, stored: Dict[str, List[Tuple[int, ...]]], weights: str, path: str, remedy: str) -> None:
    """Raise a UsageError, which ends in a remedy, unless weights have all layers of the net `path`, in its shapes."""
    missing = [name for name in net.params if name not in stored]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"{weights} has no weights for layer {missing[0]!r} of {path}{more}; it has {shortlist(stored)}. {remedy}"
        )
    check_shapes(net, stored, weights, path, remedy)


def copy_matching(net: Any, weights: str, path: str) -> List[str]:
    """Copy the weights of the layers that have the same names; the names of those that have none there."""
    stored = read_weights(weights)
    fresh = [name for name in net.params if name not in stored]
    if len(fresh) == len(net.params):
        raise UsageError(f"{weights} has no layer of the net of {path}; it has {shortlist(stored)}.")
    check_shapes(net, stored, weights, path, "To learn that layer afresh, give it another name in the net.")
    net.copy_from(weights)
    check_finite_weights(net, weights)
    return fresh


def check_shapes(net: Any, stored: Dict[str, List[Tuple[int, ...]]], weights: str, path: str, remedy: str) -> None:
    for name, blobs in net.params.items():
        if name not in stored:
            continue
        shapes = [tuple(blob.data.shape) for blob in blobs]
        if [without_ones(shape) for shape in shapes] != [without_ones(shape) for shape in stored[name]]:
            raise UsageError(
                f"{weights} has weights of shapes {stored[name]} for layer {name!r}; expected {shapes}, as in {path}. "
                f"{remedy}"
            )


def without_ones(shape: Sequence[int]) -> Tuple[int, ...]:
    """A shape without leading 1s, which weights from before Caffe 1.0 have."""
    shape = tuple(shape)
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape
