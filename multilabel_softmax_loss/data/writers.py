"""What a conversion writes, block by block: two LMDBs side by side, HDF5 files, or nothing but the index."""

from __future__ import annotations

import json
import os
from array import array
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import cannot_be_written, open_file, replacing, reserve
from .datum import image_datum, label_datum
from .source import Labels
from .stream import UNKNOWN

KEY = "%010d"
PAGE = 4096


class Prepared(NamedTuple):
    """An image ready to be written: its bytes and (channels, height, width), or why it is bad."""

    data: bytes
    shape: Tuple[int, ...]
    bad: Optional[str] = None


class Block(NamedTuple):
    """Images that are written at once: their keys, rows of labels, and bytes; bad ones are left out."""

    number: int
    keys: List[int]
    rows: List[int]
    images: List[Prepared]


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Turn a full disk and the like into a UsageError."""
    import lmdb

    try:
        yield
    except (OSError, lmdb.Error) as error:
        told = (
            cannot_be_written(folder, error) if isinstance(error, OSError) else f"{folder} cannot be written: {error}."
        )
        raise UsageError(f"{told} Make room, and go on with --resume.") from error


class Writer:
    """Writes blocks of one split into a folder. Writing a block again, after a crash, changes nothing."""

    def __init__(self, folder: str, split: str, labels: Labels, encoding: str):
        self.folder, self.split, self.labels, self.encoding = folder, split, labels, encoding

    def write(self, block: Block, before: Dict[str, int]) -> None:
        """Write a block; `before` has the number of "images" and "bytes" of the blocks before it."""


class LmdbWriter(Writer):
    """`split`_images and `split`_labels, the same keys in both; labels are written first.

    Each commit opens its database anew, so that a run that was killed leaves the same bytes as one that was not: what
    is left in memory of one commit would else fill the unused parts of the pages of the next.
    """

    def write(self, block: Block, before: Dict[str, int]) -> None:
        if not block.keys:
            return
        reserve(self.folder, [volume(block)], before["bytes"])
        keys = [(KEY % key).encode() for key in block.keys]

        def rows() -> Iterator[bytes]:
            return (label_datum(self.labels.dense(row)) for row in block.rows)

        def datums() -> Iterator[bytes]:
            return (image_datum(image.data, image.shape, self.encoding != "raw") for image in block.images)

        size = (before["images"] + len(keys)) * (5 * len(self.labels.classes) + PAGE)
        self.commit("labels", keys, rows, before["images"], map_size(size))
        self.commit("images", keys, datums, before["images"], map_size(before["bytes"] + volume(block)))

    def commit(
        self, what: str, keys: Sequence[bytes], values: Callable[[], Iterator[bytes]], before: int, size: int
    ) -> None:
        import lmdb

        path = os.path.join(self.folder, f"{self.split}_{what}")
        while True:
            try:
                with lmdb.open(path, map_size=size, lock=False) as environment:
                    entries = environment.stat()["entries"]
                    if entries == before + len(keys):
                        return  # committed by a run that died before it said so
                    if entries != before:
                        raise UsageError(
                            f"{path} has {entries:,} entries; expected {before:,}. It was changed: begin anew."
                        )
                    with environment.begin(write=True) as transaction:
                        for key, value in zip(keys, values()):
                            transaction.put(key, value, append=True)
                return
            except lmdb.MapFullError:
                size *= 2


def map_size(size: int) -> int:
    """A power of two that holds `size` bytes and what a database adds; only what is used takes room on disk."""
    return 1 << max(24, (2 * size).bit_length())


def volume(block: Block) -> int:
    """More bytes than a block takes in a database."""
    return sum(len(image.data) + 2 * PAGE for image in block.images)


class Hdf5Writer(Writer):
    """`split`_0000.h5 and so on, one a block: "pixels" (N, channels, height, width) uint8, "labels" (N, C)."""

    def write(self, block: Block, before: Dict[str, int]) -> None:
        import h5py

        if not block.keys:
            return
        reserve(self.folder, [volume(block) + 4 * len(block.keys) * len(self.labels.classes)])
        path = os.path.join(self.folder, hdf5_name(self.split, block.number))
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            shape = (len(block.keys), *block.images[0].shape)
            data = file.create_dataset("pixels", shape, np.uint8, track_times=False)
            for k, image in enumerate(block.images):
                data[k] = np.frombuffer(image.data, np.uint8).reshape(image.shape)
            rows = np.stack([self.labels.dense(row) for row in block.rows])
            file.create_dataset("labels", data=rows, track_times=False)


def hdf5_name(split: str, number: int) -> str:
    return f"{split}_{number:04d}.h5"


WRITERS = {"lmdb": LmdbWriter, "hdf5": Hdf5Writer, "index": Writer}


# The index

INDEX = "# multilabel index: path, tab, classes from 0 on (k, or k:value)"


def write_index(path: str, labels: Labels, rows: Sequence[int]) -> None:
    """A text file of images, paths relative to it, and their labels; the data layer reads it, and so do people."""
    home = os.path.dirname(os.path.realpath(path))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{INDEX}; classes={len(labels.classes)} absent={labels.absent:g}\n")
        for row in rows:
            name = os.path.relpath(os.path.abspath(labels.paths[row]), home)
            if any(mark in name for mark in '\t\n\r"'):
                name = json.dumps(name)
            columns, values = labels.row(row)
            words = (f"{k}" if value == 1 else f"{k}:{value:.9g}" for k, value in zip(columns, values))
            file.write(f"{name}\t{' '.join(words)}\n")


def read_index(path: str) -> Labels:
    """The labels that an index holds; classes have no names there, and paths can be opened as they are.

    Raises
    ------
    UsageError : it cannot be read, or is no index.
    """
    home = os.path.dirname(os.path.abspath(path))
    paths: List[str] = []
    start, columns, values = array("q", [0]), array("i"), array("f")
    try:
        with open_file(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            head = file.readline()
            if not head.startswith(INDEX.split(":")[0]):
                raise ValueError(f"its first line is {head[:60]!r}")
            options = dict(word.split("=") for word in head.split(";")[1].split())
            classes, absent = int(options["classes"]), float(options["absent"])
            for number, line in enumerate(file, 2):
                if not line.strip():  # it may have been edited by hand
                    continue
                name, tab, words = line.rstrip("\n").rpartition("\t")
                try:
                    paths.append(os.path.join(home, json.loads(name) if name.startswith('"') else name))
                    for word in words.split():
                        column, _, value = word.partition(":")
                        columns.append(int(column))
                        values.append(float(value or 1))
                except (ValueError, OverflowError):
                    tab = ""
                if not tab:
                    told = f"line {number} is {line.rstrip()[:60]!r}"
                    raise ValueError(f"{told}; expected an image, a tab, and classes, such as k or k:value")
                start.append(len(columns))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"{path} is no index of images and labels ({error}); convert writes such.") from error
    for column in (min(columns, default=0), max(columns, default=0)):
        if columns and not 0 <= column < classes:
            raise UsageError(f"{path} has class {column}; expected 0 to {classes - 1}.")
    found = np.append(np.array(values, np.float32), np.float32(absent))
    wrong = found[~(np.isfinite(found) & ((found >= 0) | (found == UNKNOWN)))]
    if len(wrong):
        raise UsageError(f"{path} has the value {wrong[0]:g}; expected 0, 1, a weight, or {UNKNOWN:g} for unknown.")
    return Labels(
        paths,
        [str(k) for k in range(classes)],
        np.array(start, np.int64),
        np.array(columns, np.int32),
        found[:-1],
        absent,
    )
