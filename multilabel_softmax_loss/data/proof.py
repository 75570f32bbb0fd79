"""What was written, read back: counts, keys, every row of labels, and a sample of images beside their source."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from .conversion import Plan
from .datum import image_datum, parse_datum
from .images import BadImage, planes
from .writers import KEY, hdf5_name, read_index

SAMPLE = 100  # images, about, that are compared with their source


class Mismatch(UsageError):
    """What was read back is not what was meant."""


def check(plan: Plan, folder: str, written: Dict[str, List[int]]) -> str:
    """Read everything back; a sentence on what was found right.

    Raises
    ------
    Mismatch : a count, key, row of labels or image is wrong.
    """
    worst, images = 0.0, 0
    for split, rows in written.items():
        check_index(plan, os.path.join(folder, f"{split}_index.txt"), rows)
        if plan.target == "index":
            continue
        step = max(-(-sum(map(len, written.values())) // SAMPLE), 1)
        reader = lmdb_rows if plan.target == "lmdb" else hdf5_rows
        for k, (row, (labels, read)) in enumerate(zip_exactly(rows, reader(folder, split, plan), split)):
            if not np.array_equal(labels, plan.labels.dense(row)):
                raise Mismatch(f"{folder}: the labels of {split} image {k} are not those of {plan.labels.paths[row]}.")
            if k % step == 0:
                worst = max(worst, compare(plan, row, read()))
                images += 1
    total = sum(map(len, written.values()))
    if plan.target == "index":
        return f"Read back: {total:,} rows of labels, all right."
    return (
        f"Read back: {total:,} images and as many rows of labels, in one order, all right; {images} images compared "
        f"with their source, from which they differ by {worst:.2f} of 255 on average at most."
    )


def zip_exactly(rows: Sequence[int], read: Iterator[Any], split: str) -> Iterator[Tuple[int, Any]]:
    for row in rows:
        found = next(read, None)
        if found is None:
            raise Mismatch(f"{split}: fewer images were read back than were written.")
        yield row, found
    if next(read, None) is not None:
        raise Mismatch(f"{split}: more images were read back than were written.")


def lmdb_rows(folder: str, split: str, plan: Plan) -> Iterator[Tuple[np.ndarray, Any]]:
    """(labels, a function that gives the image as (channels, height, width)) of each key of a pair of LMDBs."""
    import lmdb

    paths = [os.path.join(folder, f"{split}_{what}") for what in ("images", "labels")]
    if not all(map(os.path.exists, paths)):  # a split whose images are all bad
        return
    environments = [lmdb.open(path, readonly=True, lock=False) for path in paths]
    try:
        with environments[0].begin(buffers=True) as images, environments[1].begin() as labels:
            pairs = zip(images.cursor(), labels.cursor())
            for k, ((key, image), (other, row)) in enumerate(pairs):
                expected = (KEY % k).encode()
                if bytes(key) != expected or other != expected:
                    raise Mismatch(f"{paths[0]} has key {bytes(key)!r}, {paths[1]} {other!r}; expected {expected!r}.")
                yield parse_datum(row)["floats"], lambda image=image: decode_datum(bytes(image), plan)
            if len({environment.stat()["entries"] for environment in environments}) > 1:
                raise Mismatch(f"{paths[0]} and {paths[1]} differ in length.")
    finally:
        for environment in environments:
            environment.close()


def decode_datum(message: bytes, plan: Plan) -> np.ndarray:
    import cv2

    datum = parse_datum(message)
    if not datum["encoded"]:
        return np.frombuffer(datum["data"], np.uint8).reshape(datum["shape"])
    flag = cv2.IMREAD_GRAYSCALE if plan.recipe.gray else cv2.IMREAD_COLOR
    return planes(cv2.imdecode(np.frombuffer(datum["data"], np.uint8), flag))


def hdf5_rows(folder: str, split: str, plan: Plan) -> Iterator[Tuple[np.ndarray, Any]]:
    import h5py

    rows = dict(plan.orders)[split]
    for number in range(-(-len(rows) // plan.block)):
        path = os.path.join(folder, hdf5_name(split, number))
        if not os.path.exists(path):  # a block whose images are all bad
            continue
        with h5py.File(path, "r") as file:
            labels, data = file["labels"], file["pixels"]
            if len(labels) != len(data):
                raise Mismatch(f"{path} has {len(data)} images and {len(labels)} rows of labels.")
            for k, row in enumerate(labels[:]):
                yield row, lambda k=k, data=data: data[k]


def check_index(plan: Plan, path: str, rows: Sequence[int]) -> None:
    found = read_index(path)
    if len(found.paths) != len(rows):
        raise Mismatch(f"{path} has {len(found.paths)} images; expected {len(rows)}.")
    for k, row in enumerate(rows):
        expected = plan.labels.row(row)
        if not all(np.array_equal(one, other) for one, other in zip(found.row(k), expected)):
            raise Mismatch(f"{path}: the labels of image {k} are not those of {plan.labels.paths[row]}.")


def compare(plan: Plan, row: int, image: np.ndarray) -> float:
    """The mean difference of an image read back from its source; what its encoding loses is all that it may lose."""
    path = plan.labels.paths[row]
    try:
        source = plan.recipe.pixels(path)
    except BadImage as error:
        raise Mismatch(f"{path} was written, and is bad now: {error}. Put it back and --resume.") from error
    expected = planes(source)
    if plan.recipe.encoding == "jpg":
        expected = decode_datum(image_datum(plan.recipe.encode(source), expected.shape, True), plan)
    if not np.array_equal(image, expected):
        raise Mismatch(f"{path} was written with other pixels than it has (shape {image.shape}, {expected.shape}).")
    return float(np.abs(image.astype(np.int16) - planes(source)).mean())
