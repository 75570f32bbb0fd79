"""What MultilabelImageDataLayer delivers: batches of images and their labels, straight from the files of an index.

Everything that is drawn, the order, mirroring and crops, follows from the seed and the place in the stream, so a place
is all that is needed to go on from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..param_str import OptionSet, choice, integer, number, option, optional
from .images import BadImage, Geometry, read_image
from .writers import read_index


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("the name of a file")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def at_least(low: int, high: int = 2**31 - 1) -> Any:
    def check(value: Any) -> int:
        if not low <= integer(value) <= high:
            raise ValueError(f"a whole number >= {low}" if value < low else f"a whole number <= {high}")
        return int(value)

    return check


def means(value: Any) -> Tuple[float, ...]:
    """One number, or one per channel."""
    values = value if isinstance(value, (list, tuple)) else [value]
    try:
        return tuple(number()(entry) for entry in values)
    except (TypeError, ValueError) as error:
        raise type(error)("one finite number, or one per channel") from error


TOOL = "this package"
IMAGE_DATA = "Caffe, `image_data_param`"
TRANSFORM = "Caffe, `transform_param`"


@dataclass(frozen=True)
class ImageDataOptions(OptionSet):
    """Options of MultilabelImageDataLayer, as in `param_str`; named as those of Caffe's ImageData layer."""

    source: str = option("", text, "the index that `convert` writes: a text file of images and their labels", TOOL)
    batch_size: int = option(1, at_least(1), "images of a batch", IMAGE_DATA)
    new_height: int = option(0, at_least(0), "resize to this height, with `new_width`; 0: not", IMAGE_DATA)
    new_width: int = option(0, at_least(0), "resize to this width, with `new_height`; 0: not", IMAGE_DATA)
    short_side: int = option(0, at_least(0), "resize the shorter side to this, keep the shape; 0: not", TOOL)
    is_color: bool = option(True, flag, "three channels, BGR; else one", IMAGE_DATA)
    crop_size: int = option(0, at_least(0), "cut out a square: anywhere in TRAIN, the middle in TEST", TRANSFORM)
    mirror: bool = option(False, flag, "show half of the images mirrored, in TRAIN", TRANSFORM)
    mean_value: Tuple[float, ...] = option((0.0,), means, "is subtracted: one number, or one per channel", TRANSFORM)
    scale: float = option(1.0, number(), "is multiplied after that", TRANSFORM)
    shuffle: Optional[bool] = option(None, optional(flag), "anew each epoch; by default in TRAIN", IMAGE_DATA)
    seed: int = option(0, at_least(0, 2**32 - 1), "of the order, mirroring and crops", TOOL)
    label_format: str = option(
        "dense", choice("dense", "indices"), '`"dense"`: N x C; `"indices"`: N x K class indices, padded with -1', TOOL
    )
    workers: Optional[int] = option(
        None,
        optional(at_least(0)),
        "processes that decode ahead; 0: none; by default one less than cores, up to 4",
        TOOL,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ValueError("no option 'source'; expected the index that convert wrote")
        if bool(self.new_height) != bool(self.new_width):
            raise ValueError("one of 'new_height' and 'new_width'; expected both or none")
        if self.new_height and self.short_side:
            raise ValueError("both 'short_side' and 'new_height'; expected one of them")
        if not (self.new_height or self.crop_size):
            raise ValueError("neither 'new_height' and 'new_width' nor 'crop_size'; images of a batch need one size")
        side = self.short_side or min(self.new_height, self.new_width)
        if side and self.crop_size > side:
            raise ValueError(f"option 'crop_size' = {self.crop_size}; expected at most {side}, the size of the images")
        if len(self.mean_value) not in (1, self.channels):
            raise ValueError(f"{len(self.mean_value)} numbers in 'mean_value'; expected 1 or {self.channels}")

    @property
    def channels(self) -> int:
        return 3 if self.is_color else 1

    @property
    def geometry(self) -> Geometry:
        return Geometry((self.new_height, self.new_width) if self.new_height else None, self.short_side or None)

    @property
    def shape(self) -> Tuple[int, int, int]:
        """(channels, height, width) of what is delivered."""
        return (self.channels, self.crop_size or self.new_height, self.crop_size or self.new_width)


class Task(NamedTuple):
    """An image to be made ready: its file, and what was drawn for it: whole numbers for the crop, and mirrored or not.

    Without draws the crop is the middle.
    """

    path: str
    draws: Optional[Tuple[int, int]] = None
    mirrored: bool = False


def prepare(task: Task, options: ImageDataOptions, out: np.ndarray) -> None:
    """Write an image as the net wants it into `out`, float32 of `options.shape`.

    Raises
    ------
    UsageError : the file is bad, or smaller than the crop.
    """
    import cv2

    try:
        image = options.geometry.apply(read_image(task.path, not options.is_color))
    except BadImage as error:
        told = f"{task.path}, listed in {options.source}, is bad ({error}); convert leaves such images out."
        raise UsageError(told) from error
    crop = options.crop_size
    if crop:
        high, wide = image.shape[0] - crop, image.shape[1] - crop
        if high < 0 or wide < 0:
            size = f"{image.shape[0]} x {image.shape[1]}"
            raise UsageError(f"{task.path} is {size}; expected at least crop_size, {crop}.")
        top, left = high // 2, wide // 2
        if task.draws is not None:
            top, left = task.draws[0] % (high + 1), task.draws[1] % (wide + 1)
        image = image[top : top + crop, left : left + crop]
    if task.mirrored:
        image = image[:, ::-1]
    means = options.mean_value * (options.channels if len(options.mean_value) == 1 else 1)
    for plane, mean, channel in zip(cv2.split(image), means, out):  # NumPy's transposition takes far longer
        np.subtract(plane, np.float32(mean), out=channel, dtype=np.float32)
    if options.scale != 1:
        out *= np.float32(options.scale)


class Feed:
    """The stream of one layer: which images and labels batch k has.

    In TRAIN it goes round for ever, and batches run across the ends of epochs; a share (rank, count) of it is each
    count-th image, from the rank-th on. In TEST each round is in order and ends with a smaller batch.

    Parameters
    ----------
    options : ImageDataOptions
    train : bool
    share : (rank, count)

    Raises
    ------
    UsageError : the index cannot be read, or has no images.
    """

    def __init__(self, options: ImageDataOptions, train: bool, share: Tuple[int, int] = (0, 1)):
        self.options, self.train = options, train
        self.share = share if train else (0, 1)
        self.labels = read_index(options.source)
        self.images = len(self.labels.paths)
        if not self.images:
            raise UsageError(f"{options.source} has no images.")
        self.shuffle = train if options.shuffle is None else options.shuffle
        self.epoch = -1
        self.order = np.arange(self.images)
        self.draws = np.zeros((0, 3), np.int32)
        self.width = len(self.labels.classes)
        if options.label_format == "indices":
            if self.labels.absent != 0 or (self.labels.values != 1).any():
                raise UsageError(
                    f'{options.source} has labels that are unknown or weighted; label_format "indices" holds none.'
                )
            self.width = max(int(np.diff(self.labels.start).max()), 1)

    @property
    def batches_per_round(self) -> int:
        return math.ceil(self.images / self.options.batch_size)

    def size(self, batch: int) -> int:
        """How many images a batch has."""
        if self.train:
            return self.options.batch_size
        start = batch % self.batches_per_round * self.options.batch_size
        return min(self.options.batch_size, self.images - start)

    def tasks(self, batch: int) -> Tuple[List[int], List[Task]]:
        """The rows of the index that a batch has, and what is to be done for their images."""
        size = self.size(batch)
        rows, tasks = [], []
        for k in range(size):
            if self.train:
                rank, count = self.share
                epoch, place = divmod((batch * self.options.batch_size + k) * count + rank, self.images)
            else:
                epoch, place = divmod(batch, self.batches_per_round)
                place = place * self.options.batch_size + k
            self.draw(epoch)
            row = int(self.order[place])
            rows.append(row)
            draws = self.draws[place].tolist() if len(self.draws) else [0, 0, 0]
            mirrored = self.options.mirror and self.train and bool(draws[2] & 1)
            crop = (draws[0], draws[1]) if self.train else None
            tasks.append(Task(self.labels.paths[row], crop, mirrored))
        return rows, tasks

    def draw(self, epoch: int) -> None:
        """Draw the order, mirroring and crops of an epoch, unless these are at hand."""
        if epoch == self.epoch:
            return
        rng = np.random.RandomState([self.options.seed, epoch])
        self.epoch = epoch
        self.order = rng.permutation(self.images) if self.shuffle else np.arange(self.images)
        if self.train and (self.options.crop_size or self.options.mirror):
            self.draws = rng.randint(0, 2**31 - 1, (self.images, 3), dtype=np.int32)

    def label_rows(self, rows: Sequence[int]) -> np.ndarray:
        """The labels of rows: (N, C), or (N, K) lists of classes padded with -1."""
        if self.options.label_format == "dense":
            return np.stack([self.labels.dense(row) for row in rows])
        found = np.full((len(rows), self.width), -1, np.float32)
        for k, row in enumerate(rows):
            columns, _ = self.labels.row(row)
            found[k, : len(columns)] = columns
        return found
