"""Lists in text files that Caffe reads for itself: of HDF5 files, and of images with a class each."""

from __future__ import annotations

import codecs
import os
import re
from typing import Any, List, NamedTuple

from ..errors import UsageError
from ..files import cannot_be_read, open_file
from .image_files import file_ends_too_early

LOOKED_FOR = 20_000  # images: whether they are there, and to their end, is asked of so many


def read_list(path: str, what: str) -> List[str]:
    """The lines of a list, as Caffe sees them.

    Raises
    ------
    UsageError : it cannot be read, is empty, or has a byte order mark, which Caffe takes for part of the first name.
    """
    try:
        with open_file(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, what, error) from error
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(
            f"{path} ({what}) begins with a byte order mark, which Caffe takes for part of the first name; save it as "
            "UTF-8 without one."
        )
    if b"\0" in content:
        raise UsageError(f"{path} ({what}) is no text file: it has NUL bytes in it.")
    if not content.strip():
        raise UsageError(f"{path} ({what}) is empty.")
    return os.fsdecode(content).replace("\r", "").rstrip("\n").split("\n")


class ListedImage(NamedTuple):
    """A line of an ImageData list."""

    name: str
    label: int


def listed_images(layer: Any) -> List[ListedImage]:
    """The lines of the list of an ImageData layer: a file name, one blank, and one whole number.

    Caffe takes what is behind the last blank for the label, and a text there for the number it begins with, or 0.

    Raises
    ------
    UsageError : a line has no label, more than one, or one that is no whole number; an image is missing or cut.
    """
    parameter = layer.image_data_param
    where = f"{parameter.source} (source of layer {layer.name!r})"
    images = []
    for number, line in enumerate(read_list(parameter.source, f"source of layer {layer.name!r}"), 1):
        name, blank, label = line.rpartition(" ")
        place = f"{where}, line {number}: {line[:80]!r}"
        if not blank or not name.strip():
            raise UsageError(f"{place} has no label; expected a file name, a blank and a whole number.")
        if not re.fullmatch("[+-]?[0-9]{1,9}", label):
            raise UsageError(f"{place} has the label {label!r}; expected a file name, a blank and a whole number.")
        if re.search(r"\s[+-]?\d+$", name) and not os.path.isfile(parameter.root_folder + name):
            raise UsageError(
                f"{place} has several labels; ImageData takes one, and {name!r} for the name of the file. Bring the "
                "labels by a layer of their own, HDF5Data or Data, in the order of this list."
            )
        if number <= LOOKED_FOR:
            check_image(parameter.root_folder + name, f"{where}, line {number}")
        images.append(ListedImage(name, int(label)))
    return images


def check_image(path: str, named_by: str) -> None:
    try:
        too_early = file_ends_too_early(path)
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, named_by, error) from error
    if too_early:
        raise UsageError(f"{path} ({named_by}) ends too early: Caffe would fill it up. Copy it anew, or leave it out.")
