"""What becomes of an image before a net sees it, as a small JSON file beside the weights."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from ..data import images
from ..data.datum import mean_blob
from ..data.images import Geometry
from ..errors import UsageError, unknown_name
from ..files import is_number, read_json, replacing, write_text
from ..nets import means

NAME = "preprocessing.json"
MEAN_NAME = "mean.binaryproto"
SAMPLE = '{"mean": [104, 117, 123], "scale": 1, "channels": "BGR"}'
EXPECTED = f"expected such as {SAMPLE}"
CHANNELS = {"BGR": 3, "RGB": 3, "GRAY": 1}
KEYS = ("mean", "scale", "channels", "resize", "crop", "turned", "transparent")
LARGEST = 1e30  # of a mean or a scale: products fit into Caffe's float32
TO_NET = "to the net's input"


@dataclass(frozen=True)
class Preprocessing:
    """How pixels from 0 to 255 become a net's input, in this order, as Caffe's data layers do it in the TEST phase.

    turned : the image is turned as its EXIF data say.
    white : what is transparent in it stands over white, as `convert` has it; Caffe itself ignores transparency.
    channels : "BGR" (OpenCV's order, and that of Caffe's own tools), "RGB" or "GRAY".
    resize : (height, width) to which it is resized by bilinear interpolation; a number, that its shorter side becomes;
        None, it stays as it is; or "to the net's input", by area where that is smaller (which is not Caffe's way, but a
        good one where the net's is not known).
    crop : the middle square of so many pixels is kept; 0, all is.
    mean : one number, one per channel in that order, or an image (channels, height, width) of the size before the crop.
    scale : input = scale * (pixel - mean).
    """

    mean: Union[Tuple[float, ...], np.ndarray] = field(compare=False)
    scale: float
    channels: str
    resize: Union[str, int, Tuple[int, int], None] = TO_NET
    crop: int = 0
    turned: bool = True
    white: bool = False

    @classmethod
    def read(cls, path: str) -> Preprocessing:
        """What a file says; the name of a mean image in it counts from its folder."""
        return cls.make(read_json(path, EXPECTED), path)

    @classmethod
    def make(cls, content: Any, path: str) -> Preprocessing:
        """That of a dict as the JSON file `path` holds it."""
        if not isinstance(content, dict) or not {"mean", "scale", "channels"} <= set(content):
            found = sorted(content) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise UsageError(f"{path} holds {found}; {EXPECTED}.")
        for name in content:
            if name not in KEYS:
                raise unknown_name("use for", name, KEYS, path)
        channels, crop, turned = content["channels"], content.get("crop", 0), content.get("turned", True)
        if not isinstance(channels, str) or channels not in CHANNELS:
            raise UsageError(f"{path} has channels {channels!a}; expected one of {', '.join(CHANNELS)}.")
        if is_number(content["scale"]) and not 1 / LARGEST <= abs(content["scale"]) <= LARGEST:
            raise UsageError(f"{path} has scale {content['scale']!a:.80}, by which all is 0 or infinite; {EXPECTED}.")
        if not is_number(content["scale"]):
            raise UsageError(f"{path} has scale {content['scale']!a}, which is no finite number; {EXPECTED}.")
        if type(crop) is not int or crop < 0:
            raise UsageError(f"{path} has crop {crop!a}; expected a whole number of pixels, or 0 for none.")
        if type(turned) is not bool:
            raise UsageError(f"{path} has turned {turned!a}; expected true or false.")
        if content.get("transparent", "white") != "white":
            raise UsageError(f'{path} has transparent {content["transparent"]!a}; expected "white", or nothing.')
        resize = read_size(content["resize"], path) if "resize" in content else TO_NET
        if crop and resize == TO_NET:
            raise UsageError(f'{path} has a crop without "resize"; expected [height, width] there, or null for none.')
        mean = read_mean(content["mean"], CHANNELS[channels], channels, path)
        return cls(mean, float(content["scale"]), channels, resize, crop, turned, "transparent" in content)

    def content(self) -> Dict[str, Any]:
        """The dict that the JSON file holds; a mean image is in a file beside it."""
        content: Dict[str, Any] = {
            "mean": MEAN_NAME if isinstance(self.mean, np.ndarray) else list(self.mean),
            "scale": self.scale,
            "channels": self.channels,
        }
        if self.resize != TO_NET:
            resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
            content.update(resize=resize, crop=self.crop)
        content.update({} if self.turned else {"turned": False}, **({"transparent": "white"} if self.white else {}))
        return content

    def write(self, folder: str) -> None:
        if isinstance(self.mean, np.ndarray):
            with replacing(os.path.join(folder, MEAN_NAME)) as temporary, open(temporary, "wb") as file:
                file.write(mean_blob(self.mean))
        write_text(os.path.join(folder, NAME), json.dumps(self.content()) + "\n")

    def read_image(self, path: str, size: Tuple[int, int]) -> np.ndarray:
        """An image file as a net of input (height, width) wants it: float32, (channels, height, width)."""
        gray = self.channels == "GRAY"
        with good(path):
            content = images.read_bytes(path)
            white = self.white
            image = images.decode(content, gray) if white else images.as_caffe_reads(content, gray, self.turned)
        return self.apply(image, size, path)

    def apply(self, image: np.ndarray, size: Tuple[int, int], name: str) -> np.ndarray:
        """What becomes of an image as it is read, turned and gray if need be.

        Raises
        ------
        UsageError : it does not become an image of `size`, or does not fit the mean image. It is called `name` there.
        """
        self.check_size(size)
        image = image[:, :, ::-1] if self.channels == "RGB" else image
        if isinstance(self.resize, int):
            image = Geometry(short_side=self.resize).apply(image)
        elif self.resize is not None:
            image = resized(image, size if isinstance(self.resize, str) else self.resize, by_area=self.resize == TO_NET)
        planes = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1).astype(np.float32)
        mean = self.mean
        if isinstance(mean, np.ndarray) and mean.shape != planes.shape:
            raise UsageError(f"{name} has shape {planes.shape}; expected {mean.shape}, that of the mean image.")
        if self.crop:
            planes = middle(planes, self.crop, name)
            mean = middle(mean, self.crop, name) if isinstance(mean, np.ndarray) else mean
        if planes.shape[1:] != tuple(size):
            (height, width), expected = planes.shape[1:], "{} x {}".format(*size)
            raise UsageError(
                f"{name} is {height} x {width} pixels as the net would see it; expected {expected}, the net's input, "
                'as its data layer resizes nothing. Resize the image, or say "resize": [height, width] in the '
                "preprocessing file."
            )
        mean = mean if isinstance(mean, np.ndarray) else np.array(mean, np.float32).reshape(-1, 1, 1)
        return (planes - mean) * np.float32(self.scale)

    def check_size(self, size: Tuple[int, int]) -> None:
        """Raise a UsageError where no image can become one of `size`, (height, width)."""
        made = (self.crop, self.crop) if self.crop else self.resize
        if isinstance(made, tuple) and made != tuple(size):
            raise UsageError(
                f"the preprocessing makes images of {made[0]} x {made[1]} pixels; expected {size[0]} x {size[1]}, the "
                "net's input. Change resize or crop in the preprocessing file, or the input of the net."
            )


def resized(image: np.ndarray, size: Tuple[int, int], by_area: bool) -> np.ndarray:
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    smaller = by_area and size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def middle(planes: np.ndarray, crop: int, name: str) -> np.ndarray:
    """The middle square of planes (channels, height, width), where Caffe has it."""
    height, width = planes.shape[1:]
    if min(height, width) < crop:
        raise UsageError(f"{name} is {height} x {width} pixels; expected at least {crop} x {crop}, the crop.")
    top, left = (height - crop) // 2, (width - crop) // 2
    return planes[:, top : top + crop, left : left + crop]


@contextmanager
def good(name: str) -> Iterator[None]:
    """Turn a BadImage into a UsageError that names it."""
    try:
        yield
    except images.BadImage as error:
        raise UsageError(f"{name} is bad ({error}).") from error


def read_size(value: Any, path: str) -> Union[int, Tuple[int, int], None]:
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    wanted = 2 if isinstance(value, list) else 1
    if len(numbers) != wanted or not all(type(n) is int and 0 < n < 2**15 for n in numbers):
        raise UsageError(
            f"{path} has resize {value!a}; expected [height, width] in pixels, a number for the shorter side, or null "
            "for none."
        )
    return (value[0], value[1]) if isinstance(value, list) else value


def read_mean(value: Any, count: int, channels: str, path: str) -> Union[Tuple[float, ...], np.ndarray]:
    """The mean that a preprocessing file gives: numbers, or the name of a mean image."""
    if isinstance(value, str):
        mean = means.read_mean(os.path.join(os.path.dirname(path), value), "a mean image").astype(np.float32)
        if len(mean) != count:
            raise UsageError(f"{path} has a mean image of {len(mean)} channels for {channels}; expected {count}.")
        return mean
    values: List[Any] = value if isinstance(value, list) else [value]
    if not all(is_number(number) and abs(number) <= LARGEST for number in values):
        raise UsageError(f"{path} has mean {value!a:.80}, not all of which is a finite number; {EXPECTED}.")
    if len(values) not in (1, count):
        raise UsageError(f"{path} has {len(values)} means for {channels}; expected 1 or {count}.")
    return tuple(map(float, values))


def find_preprocessing(weights: str, given: Optional[str]) -> Preprocessing:
    """That of the file `given`, else of preprocessing.json beside the weights."""
    path = given or os.path.join(os.path.dirname(weights), NAME)
    if not os.path.exists(path):
        raise UsageError(
            f"{path} is missing: the mean, scale and channel order that the net was trained with are not guessed. "
            f"Write them there, such as {SAMPLE}, or name the file with --preprocessing."
        )
    return Preprocessing.read(path)
