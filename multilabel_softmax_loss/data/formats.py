"""Annotation formats, each a function from a path to a stream (see stream.py), and how they are recognised."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from glob import escape, glob
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import UsageError, shortlist
from ..files import open_file, search_hint
from .finder import OPTIONS, SPLIT
from .json_lists import json_keys, read_coco, read_imaterialist
from .stream import UNKNOWN, Say, Stream, declared, images_of, is_image
from .tables import (
    columns_of,
    is_open_images,
    minus_one,
    number_columns,
    read_csv_columns,
    read_csv_tags,
    read_open_images,
    tag_column,
)
from .text import head, lines, reading

# PASCAL VOC


def voc_sets(path: str) -> Dict[str, List[str]]:
    """The files of ImageSets/Main by class; those of "train" and "val" left out where "trainval" has both."""
    found: Dict[str, List[str]] = {}
    folder = path if os.path.basename(os.path.normpath(path)) == "Main" else os.path.join(path, "ImageSets", "Main")
    for name in sorted(glob(os.path.join(escape(folder), "*_*.txt"))):
        stem, part = os.path.basename(name)[:-4].rsplit("_", 1)
        if part in ("train", "val", "trainval", "test"):
            found.setdefault(stem, []).append(name)
    for stem, names in found.items():
        if any(name.endswith("_trainval.txt") for name in names):
            found[stem] = [name for name in names if not name.endswith(("_train.txt", "_val.txt"))]
    return found


def read_voc_main(path: str, say: Say) -> Stream:
    meaning = {"1": 1.0, "0": UNKNOWN, "-1": 0.0}
    sets = voc_sets(path)
    yield None, dict.fromkeys(sets, 0.0)
    say("0 in ImageSets/Main (only difficult objects) is taken for unknown.")
    parts = sorted({file[:-4].rpartition("_")[2] for files in sets.values() for file in files})
    if len(parts) > 1:
        kept = os.path.join(os.path.dirname(next(iter(sets.values()))[0]), "test.txt" if "test" in parts else "val.txt")
        say(f"The images of {' and '.join(parts)} are read together; --split-file {kept} keeps them apart.")
    counts = {}
    for name, files in sets.items():
        listed = set()
        for file in files:
            for line in lines(file):
                words = line.rsplit(None, 1)
                if len(words) != 2 or words[1] not in meaning:
                    raise UsageError(f"{file} has the line {line!r}; expected an image and -1, 0 or 1.")
                listed.add(words[0].strip())
                yield words[0].strip(), {name: meaning[words[1]]}
        counts[name] = len(listed)
    most = max(counts.values(), default=0)
    short = [f"{name} {count:,}" for name, count in counts.items() if count < most]
    if short:
        say(f"Classes that list fewer than {most:,} images are absent (--absent) in the others: {shortlist(short)}.")


def voc_annotations(path: str) -> List[str]:
    """The XML files of the first folder that has any: that of a VOC tree, or `path` itself, be images there too."""
    folders = (glob(os.path.join(escape(path), name, "*.xml")) for name in ("Annotations", "annotations", ""))
    return sorted(next(filter(None, folders), []))


def looks_like_voc_xml(path: str) -> bool:
    def is_annotation(file: str) -> bool:  # other tools write XML, too, such as one file of all images
        with open_file(file, "rb") as content:
            return re.search(rb"<annotation[\s>]", content.read(1 << 12)) is not None

    return not voc_sets(path) and any(map(is_annotation, voc_annotations(path)))


def read_voc_xml(path: str, say: Say) -> Stream:
    say("A class whose objects are all difficult is taken for unknown.")
    told: Dict[str, str] = {}
    others: List[str] = []
    for file in voc_annotations(path):
        try:
            root = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise UsageError(f"{file} is no XML: {error}.") from error
        values: Dict[Any, float] = {}
        for item in root.iter("object"):
            name = (item.findtext("name") or "").strip()
            if not name:
                raise UsageError(f"{file} has an object without a name.")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            values[name] = max(values.get(name, UNKNOWN), UNKNOWN if difficult else 1.0)
        own = os.path.basename(file)[:-4]
        image = (root.findtext("filename") or "").strip() or own
        if told.setdefault(image, file) != file:
            raise UsageError(f"{told[image]} and {file} both name the image {image!r}; expected one file for each.")
        if own not in (image, os.path.splitext(image.replace("\\", "/").rpartition("/")[2])[0]):
            others.append(f"{file}: {image}")
        yield image, values
    if others:
        say(f"{len(others):,} annotations tell of an image of another name than theirs: {shortlist(others)}.")


# Text files


def is_celeba(path: str) -> bool:
    first = head(path, 3)
    if len(first) < 3 or not first[0].strip().isdigit() or path.lower().endswith(".csv"):
        return False
    values = list_row(first[2])[1]
    return len(values) == len(first[1].split()) and set(values) <= {"-1", "1"}


def read_celeba(path: str, say: Say) -> Stream:
    rows = lines(path)
    start = list(islice(rows, 2))
    if len(start) < 2:
        raise UsageError(f"{path} has {len(start)} lines; expected the number of images, then the names of attributes.")
    names = start[1].split()
    yield None, declared(names, path)
    count = 0
    for row in rows:
        count += 1
        image, *words = row.rsplit(None, len(names))
        if len(words) != len(names) or not set(words) <= {"-1", "1"} or list_row(image)[1]:
            raise UsageError(f"{path} has the row {row[:60]!r}; expected an image and {len(names)} times -1 or 1.")
        yield image.strip(), {name: float(word == "1") for name, word in zip(names, words)}
    if start[0].strip() != str(count):
        say(f"The first line tells of {start[0].strip()} images; {count} follow.")


def nus_wide_files(path: str) -> Tuple[str, List[str]]:
    """The list of images, and the files of one label per line beside it."""
    images = glob(os.path.join(escape(path), "ImageList", "Imagelist.txt"))
    labels = sorted(glob(os.path.join(escape(path), "Groundtruth", "AllLabels", "Labels_*.txt")))
    return (images[0] if images else ""), labels


def read_nus_wide(path: str, say: Say) -> Stream:
    images, files = nus_wide_files(path)
    if not images or not files:
        lacks = "Groundtruth/AllLabels/Labels_*.txt" if images else "ImageList/Imagelist.txt"
        raise UsageError(f"{path} has no {lacks}; expected the folder of NUS-WIDE.")
    names = [os.path.basename(file)[len("Labels_") : -4] for file in files]
    yield None, dict.fromkeys(names, 0.0)
    rows = [lines(images), *map(lines, files)]
    for image in rows[0]:
        words = [next(row, "nothing").strip() for row in rows[1:]]
        if not set(words) <= {"0", "1"}:
            name, word = next((name, word) for name, word in zip(files, words) if word not in ("0", "1"))
            raise UsageError(f"{name} has {word!r} for {image}; expected 0 or 1, one line for each image.")
        yield image.strip().replace("\\", "/"), {name: float(word) for name, word in zip(names, words)}
    longer = [name for name, row in zip(files, rows[1:]) if next(row, None) is not None]
    if longer:
        raise UsageError(f"{longer[0]} has more lines than {images} has images.")


MOST_CLASSES = 10**7  # a greater index is none; each class up to the greatest takes memory
NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$")
NUMBERS = re.compile(r"(?:[ \t,;]+[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)*[ \t,;]*$")


def list_row(line: str) -> Tuple[str, List[str]]:
    """The image of a line, which may hold blanks, and the numbers behind it."""
    words = line.split()
    if words and is_image(words[0]) and all(map(NUMBER.match, words[1:])):  # most lists are that simple
        return words[0], words[1:]
    suffix = [match for match in re.finditer(r"\.[A-Za-z0-9]{2,4}(?=[ \t,;]|$)", line) if is_image(match.group())]
    end = next((found.end() for found in suffix if NUMBERS.match(line, found.end())), None)
    if end is None:
        match = NUMBERS.search(line)
        end = match.start() if match else len(line)
    return line[:end].strip(), re.split(r"[ \t,;]+", line[end:].strip(" \t,;")) if line[end:].strip(" \t,;") else []


def list_kinds(path: str) -> Tuple[bool, bool]:
    """Whether a text file may be a list of class indices, and whether it may be one of values."""
    if not path.lower().endswith((".txt", ".lst", ".list")) or os.path.isdir(path) or is_celeba(path):
        return False, False
    if os.path.basename(os.path.dirname(os.path.abspath(path))) == "Main":  # of VOC, where 0 is unknown and -1 is no
        return False, False
    rows = [list_row(line)[1] for line in head(path)]
    numbers = [number for row in rows for number in row]
    if not numbers or any(not name for name, _ in map(list_row, head(path))):
        return False, False
    values = len(set(map(len, rows))) == 1 and all(float(n) == -1 or 0 <= float(n) <= 1 for n in numbers)
    indices = all(n.lstrip("+").isdigit() for n in numbers) and all(len(set(row)) == len(row) for row in rows)
    return indices, values


def read_list_indices(path: str, say: Say) -> Stream:
    for line in lines(path):
        image, numbers = list_row(line)
        if not all(number.isdecimal() and int(number) < MOST_CLASSES for number in numbers):
            raise UsageError(f"{path} has the row {line[:60]!r}; expected a path and class indices from 0 on.")
        yield image, {int(number): 1.0 for number in numbers}


def read_list_values(path: str, say: Say) -> Stream:
    minus = minus_one((number for line in lines(path) for number in list_row(line)[1]), say)
    width = None
    for line in lines(path):
        image, numbers = list_row(line)
        values = list(map(float, numbers))
        if width is None:
            width = len(values)
            yield None, dict.fromkeys(range(width), 0.0)
        if len(values) != width or not all(value == -1 or 0 <= value < 1e38 for value in values):
            raise UsageError(f"{path} has the row {line[:60]!r}; expected {width} values of 0, 1 or -1.")
        yield image, {k: minus if value == -1 else value for k, value in enumerate(values)}


# Folders


def class_folders(path: str) -> List[str]:
    """The folders right below `path` that hold images."""
    if not os.path.isdir(path):
        return []
    folders = [name for name in sorted(os.listdir(path)) if os.path.isdir(os.path.join(path, name))]
    return [name for name in folders if images_of(os.listdir(os.path.join(path, name))) and name[0] != "."]


def looks_like_classes(path: str) -> bool:
    """Whether the folders of images below `path` may be classes, not splits, nor one of all images."""
    if voc_sets(path) or looks_like_voc_xml(path) or nus_wide_files(path)[0]:
        return False
    names = class_folders(path)
    return len(names) > 1 and not all(SPLIT.search(name.lower()) for name in names)


def files_left_out(path: str, names: Sequence[str]) -> Iterator[str]:
    """What lies below `path` and is no image right in the folder of a class; conversions are left out."""
    homes = {os.path.join(path, name) for name in names}
    for folder, folders, files in os.walk(path):
        if OPTIONS in files:
            folders[:], files = [], []
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and not (folder in homes and is_image(name)):
                yield os.path.join(folder, name)


def read_folders(path: str, say: Say) -> Stream:
    names = class_folders(path)
    yield None, dict.fromkeys(names, 0.0)
    left = list(files_left_out(path, names))
    if left:
        say(f"{len(left):,} files are no images right in the folder of a class and are left out: {shortlist(left)}.")
    linked: Dict[Tuple[int, int], str] = {}
    for name in names:
        for image in images_of(os.listdir(os.path.join(path, name))):
            file = os.path.realpath(os.path.join(path, name, image))  # a link to another class's image is that image
            if os.path.exists(file) and os.stat(file).st_nlink > 1:
                status = os.stat(file)
                file = linked.setdefault((status.st_dev, status.st_ino), file)
            yield file, {name: 1.0}


class Format(NamedTuple):
    """A format: whether a path looks like it, how to read it, and what follows for its images and labels.

    `images` are folders where its images usually are, beside the source; `complete` says that a row tells all classes.
    """

    what: str
    looks: Callable[[str], Any]
    read: Callable[[str, Say], Stream]
    images: Tuple[str, ...] = ()
    complete: bool = False
    absent: float = 0.0


FORMATS: Dict[str, Format] = {
    "voc-main": Format("PASCAL VOC, ImageSets/Main", voc_sets, read_voc_main, ("JPEGImages", "../../JPEGImages")),
    "voc-xml": Format(
        "XML of PASCAL VOC or LabelImg",
        looks_like_voc_xml,
        read_voc_xml,
        ("JPEGImages", "../JPEGImages", "images", "../images"),
    ),
    "coco": Format(
        "COCO instances",
        lambda path: {"image_id", "category_id"} <= set(json_keys(path)),
        read_coco,
        ("images", "../images", "..", "../train2017", "../val2017", "../train2014", "../val2014"),
    ),
    "imaterialist": Format(
        "iMaterialist",
        lambda path: {"imageId", "labelId"} <= set(json_keys(path)),
        read_imaterialist,
        ("images", "train"),
    ),
    "csv-tags": Format(
        "CSV with a column of tags",
        lambda path: tag_column(path) is not None,
        read_csv_tags,
        ("images", "train", "train-jpg"),
    ),
    "csv-columns": Format(
        "CSV with a column per class", number_columns, read_csv_columns, ("images", "train", ".."), complete=True
    ),
    "open-images": Format(
        "Open Images",
        lambda path: is_open_images(columns_of(path)),
        read_open_images,
        ("images", "train", "validation", "test"),
        absent=UNKNOWN,
    ),
    "celeba": Format(
        "CelebA attributes",
        is_celeba,
        read_celeba,
        ("img_align_celeba", "../Img/img_align_celeba", "../img_align_celeba", "images"),
        complete=True,
    ),
    "nus-wide": Format(
        "NUS-WIDE", lambda path: nus_wide_files(path)[0], read_nus_wide, ("Flickr", "images"), complete=True
    ),
    "list-indices": Format("list of paths and class indices", lambda path: list_kinds(path)[0], read_list_indices),
    "list-values": Format(
        "list of paths and values", lambda path: list_kinds(path)[1], read_list_values, complete=True
    ),
    "folders": Format("a folder per class", looks_like_classes, read_folders),
}


def recognize(path: str, given: Optional[str] = None) -> str:
    """The name of the format of `path`: the one `given`, or the only one that it looks like.

    Raises
    ------
    UsageError : it looks like none, or like several, which are listed.
    """
    if not os.path.exists(path):
        expected = "expected annotations: a file, or a folder of images or of VOC"
        raise UsageError(f"{path} is not there; {expected}.{search_hint(path)}")
    if given is not None:
        return given
    if not os.path.isdir(path):
        with reading(path) as file:
            file.read(1 << 16)
    found = [name for name, form in FORMATS.items() if form.looks(path)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{name} ({FORMATS[name].what})" for name in found or FORMATS)
    if found:
        raise UsageError(f"{path} may be several: {listed}. Say which with --format.")
    remedy = "Say which with --format, or write its labels as one of them, such as a CSV of rows image,tags"
    raise UsageError(f"{path} looks like none of the formats known: {listed}. {remedy}.")
