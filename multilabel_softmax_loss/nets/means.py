"""Mean images, as compute_image_mean writes them and data layers subtract them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError
from ..files import cannot_be_read, open_file


def read_mean(path: str, named_by: str) -> np.ndarray:
    """The mean image of a .binaryproto file: (channels, height, width), float64.

    Raises
    ------
    UsageError : it cannot be read, is damaged, or holds what is not finite.
    """
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    try:
        with open_file(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, named_by, error) from error
    where = f"{path} ({named_by})"
    try:
        blob = caffe_pb2.BlobProto.FromString(content)
    except (DecodeError, SystemError, RuntimeWarning) as error:
        raise UsageError(f"{where} is torn, or no mean image: it does not parse as a BlobProto.") from error
    shape = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
    values = np.array(blob.data or blob.double_data, np.float64)
    if len(shape) < 3 or any(length != 1 for length in shape[:-3]) or not values.size or values.size != np.prod(shape):
        raise UsageError(
            f"{where} holds {values.size} numbers and says that they are of shape {shape}; expected an image."
        )
    if not np.isfinite(values).all():
        raise UsageError(f"{where} holds numbers that are not finite; expected the mean of images.")
    return values.reshape(shape[-3:])


def check_mean(layer: Any) -> None:
    """Raise a UsageError for a mean_file of a data layer that Caffe would stop at, or worse."""
    if layer.transform_param.mean_file:
        read_mean(layer.transform_param.mean_file, f"mean_file of layer {layer.name!r}")
