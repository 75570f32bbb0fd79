"""What a net was trained on, as a small JSON file beside its weights: mean, scale and channel order of its images."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import write_text

NAME = "preprocessing.json"
SAMPLE = '{"mean": [104, 117, 123], "scale": 1, "channels": "BGR"}'
CHANNELS = {"BGR": 3, "RGB": 3, "GRAY": 1}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels from 0 to 255 become a net's input: scale * (pixel - mean), as Caffe's transform_param has it.

    `channels` is the order, "BGR" (OpenCV's, and that of Caffe's own tools), "RGB" or "GRAY"; `mean` has one number, or
    one per channel in that order.
    """

    mean: Tuple[float, ...]
    scale: float
    channels: str

    @classmethod
    def read(cls, path: str) -> Preprocessing:
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"{path} is no JSON ({error}); expected such as {SAMPLE}.") from error
        return cls.make(content, path)

    @classmethod
    def make(cls, content: Any, path: str) -> Preprocessing:
        expected = f"expected such as {SAMPLE}"
        if not isinstance(content, dict) or set(content) != {"mean", "scale", "channels"}:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise UsageError(f"{path} holds {found}; {expected}.")
        channels = content["channels"]
        if channels not in CHANNELS:
            raise UsageError(f"{path} has channels {channels!r}; expected one of {', '.join(CHANNELS)}.")
        mean = content["mean"] if isinstance(content["mean"], list) else [content["mean"]]
        numbers = [*mean, content["scale"]]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
            raise UsageError(f"{path} has a mean or a scale that is no finite number; {expected}.")
        if len(mean) not in (1, CHANNELS[channels]):
            raise UsageError(f"{path} has {len(mean)} means for {channels}; expected 1 or {CHANNELS[channels]}.")
        return cls(tuple(map(float, mean)), float(content["scale"]), channels)

    def apply(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """An image as OpenCV reads it, (H, W, 3) BGR, as the net wants it: (channels, height, width), float32."""
        import cv2

        if self.channels == "GRAY":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        elif self.channels == "RGB":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if image.shape[:2] != (height, width):
            smaller = height * width < image.shape[0] * image.shape[1]
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        planes = image.reshape(height, width, -1).transpose(2, 0, 1).astype(np.float32)
        mean = np.array(self.mean, np.float32).reshape(-1, 1, 1)
        return (planes - mean) * np.float32(self.scale)


def find_preprocessing(weights: str, given: Optional[str]) -> Preprocessing:
    """That of the file `given`, else of preprocessing.json beside the weights."""
    path = given or os.path.join(os.path.dirname(weights), NAME)
    if not os.path.exists(path):
        raise UsageError(
            f"{path} is missing: the mean, scale and channel order that the net was trained with are not guessed. "
            f"Write them there, such as {SAMPLE}, or name the file with --preprocessing."
        )
    return Preprocessing.read(path)


def write_preprocessing(folder: str, layers: Sequence[Any], given: Optional[str] = None) -> None:
    """Put preprocessing.json into a run's folder: a copy of the file `given`, else what the data layers tell."""
    if given is not None:
        preprocessing: Optional[Preprocessing] = Preprocessing.read(given)
    else:
        known = [found for found in map(from_layer, layers) if found is not None]
        preprocessing = known[0] if len(known) == 1 else None
    if preprocessing is not None:
        content: Dict[str, Any] = {
            "mean": list(preprocessing.mean),
            "scale": preprocessing.scale,
            "channels": preprocessing.channels,
        }
        write_text(os.path.join(folder, NAME), json.dumps(content) + "\n")


def from_layer(layer: Any) -> Optional[Preprocessing]:
    """What a data layer does to images; None where its prototxt and data leave the channel order open.

    An ImageData layer reads files and a Data layer decodes compressed images with OpenCV: BGR. Raw pixels of an LMDB or
    an HDF5 file may have any order.
    """
    transform = layer.transform_param
    if layer.type == "ImageData":
        channels = "BGR" if layer.image_data_param.is_color else "GRAY"
    elif layer.type == "Data" and first_datum_is_compressed(layer):
        channels = "GRAY" if transform.force_gray else "BGR"
    else:
        return None
    if transform.mean_file:
        mean: List[float] = mean_of_file(transform.mean_file)
    else:
        mean = list(transform.mean_value) or [0.0]
    return Preprocessing(tuple(mean), transform.scale, channels)


def mean_of_file(path: str) -> List[float]:
    """The mean image of a .binaryproto, averaged over each channel."""
    from caffe.proto import caffe_pb2

    blob = caffe_pb2.BlobProto()
    with open(path, "rb") as file:
        blob.ParseFromString(file.read())
    channels = blob.shape.dim[-3] if blob.HasField("shape") else blob.channels
    return np.array(blob.data, np.float64).reshape(channels, -1).mean(axis=1).tolist()


def first_datum_is_compressed(layer: Any) -> bool:
    import lmdb
    from caffe.proto import caffe_pb2

    if layer.data_param.backend != layer.data_param.LMDB:
        return False
    with lmdb.open(layer.data_param.source, readonly=True, lock=False) as environment, environment.begin() as reader:
        for _, value in reader.cursor():
            return caffe_pb2.Datum.FromString(value).encoded
    return False
