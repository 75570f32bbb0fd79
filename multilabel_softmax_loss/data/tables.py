"""Annotation formats that are CSV: a column of tags, a column per class, Open Images."""

from __future__ import annotations

import os
import re
from collections import Counter
from glob import escape, glob
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

from ..errors import UsageError, shortlist
from .stream import UNKNOWN, Say, Stream, declared, is_image
from .text import number_of, table

OPEN_IMAGES = ("ImageID", "LabelName", "Confidence")
NO_LABEL = "no finding"  # the tag of radiologists for an image without any
WORDS = {"true": 1.0, "false": 0.0, "na": UNKNOWN, "nan": UNKNOWN}  # as pandas and R write labels
ELEMENT = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"]+)""")  # of a list as Python, JSON or NumPy print it
IMAGE_NAMES = "image image_name imageid image_id image_index img filename file_name file path filepath image_path id"
TAG_NAMES = (
    "tags tag labels label finding_labels classes class categories category target attribute_ids attributes "
    "class_name label_name category_name class_id classid label_id labelid category_id"
)


class Columns(NamedTuple):
    """The columns of a CSV by what 2,000 rows hold: image, tags (by its name), numbers from -1 to 1, text, nothing."""

    header: List[str]
    image: Optional[int]
    tags: Optional[int]
    numbers: List[int]
    texts: List[int]
    empty: List[int]


def columns_of(path: str) -> Optional[Columns]:
    if not path.lower().endswith((".csv", ".tsv")) or os.path.isdir(path):
        return None
    rows = [row for row, _ in zip(table(path), range(2000))]
    header = [name.strip() for name in rows[0]] if rows else []
    plain = [re.sub(r"\W+", "_", name.lower()) for name in header]
    cells = [[row[k].strip() for row in rows[1:] if k < len(row)] for k in range(len(header))]
    images = [k for k, column in enumerate(cells) if column and all(map(is_image, column))]
    images.sort(key=lambda k: plain[k] not in IMAGE_NAMES.split())  # of two, such as a mask, the one named so
    images += [plain.index(name) for name in IMAGE_NAMES.split() if name in plain]
    image = images[0] if images else None
    others = [k for k in range(len(header)) if k != image]
    numbers = [k for k in others if header[k] and any(cells[k]) and all(in_range(cell) for cell in cells[k])]
    words = [k for k in others if any(cells[k]) and k not in numbers]
    texts = [k for k in words if all(number_of(cell) is None for cell in cells[k] if cell)]
    tags = next((plain.index(name) for name in TAG_NAMES.split() if name in plain and plain.index(name) != image), None)
    empty = [k for k in others if not any(cells[k])]
    return Columns(header, image, tags, numbers, texts, empty)


def in_range(cell: str) -> bool:
    value = WORDS.get(cell.lower(), number_of(cell))
    return not cell or (value is not None and -1 <= value <= 1)


def is_open_images(columns: Optional[Columns]) -> bool:
    return columns is not None and set(OPEN_IMAGES) <= set(columns.header)


def tag_column(path: str) -> Optional[int]:
    columns = columns_of(path)
    if columns is None or columns.image is None or is_open_images(columns):
        return None
    if columns.tags is not None:
        return columns.tags
    return columns.texts[0] if len(columns.texts) == 1 and not columns.numbers else None


def number_columns(path: str) -> List[int]:
    columns = columns_of(path)
    if columns is None or columns.image is None or is_open_images(columns):
        return []
    return [] if columns.tags is not None and columns.tags not in columns.numbers else columns.numbers


def read_csv_tags(path: str, say: Say) -> Stream:
    columns, place = columns_of(path), tag_column(path)
    if columns is None or columns.image is None or place is None:
        raise UsageError(f"{path} has no columns of images and of tags; expected a header such as image,tags.")

    def plain() -> Iterator[str]:
        return (row[place] for row in body(path, columns) if not is_list(row[place]))

    separator = next((mark for mark in "|;," if any(mark in cell for cell in plain())), None)
    whole = columns.header[place].lower().endswith("name") or any(cell.strip().lower() == NO_LABEL for cell in plain())
    separator = "|" if separator is None and whole else separator  # tags of several words
    mark = f"separated by {'blanks' if separator is None else repr(separator)}"
    mark = mark if any(map(str.strip, plain())) else "lists in brackets"
    say(f"The tags of an image are in column {columns.header[place]!r}, {mark}.")
    left_out(columns, [columns.image, place], "The other columns", say)
    for number, row in enumerate(body(path, columns, place), 2):
        tags = tags_of(row[place], separator)
        if [tag.lower() for tag in tags] == ["nan"]:
            say('"NaN" is no tag, but an empty cell.')
            tags = []
        if len(set(tags)) < len(tags) and {number_of(tag) for tag in tags} <= {0, 1}:
            raise UsageError(
                f"{path}, row {number}, has {row[place][:60]!r} for tags; expected names, or a column for each class."
            )
        if NO_LABEL in (tag.lower() for tag in tags):
            say('"No Finding" is no label: an image of that tag alone has none.')
        yield row[columns.image].strip(), {tag: 1.0 for tag in tags if tag.lower() != NO_LABEL}


def is_list(cell: str) -> bool:
    return cell.strip()[:1] + cell.strip()[1:][-1:] in ("[]", "{}")


def tags_of(cell: str, separator: Optional[str]) -> List[str]:
    """The tags in a cell; those of a list in brackets are in quotes, or hold no blanks."""
    tags = map("".join, ELEMENT.findall(cell.strip()[1:-1])) if is_list(cell) else cell.split(separator)
    return [tag.strip() for tag in tags if tag.strip()]


def left_out(columns: Columns, used: Sequence[int], which: str, say: Say) -> None:
    """Say which columns are not used."""
    names = [name or "one without a name" for k, name in enumerate(columns.header) if k not in used]
    if names:
        say(f"{which} are left out: {shortlist(names, 8)}.")


def body(path: str, columns: Columns, *used: int) -> Iterator[List[str]]:
    """The rows below the header, each as wide as it; the image and the cells `used` are of one line."""
    rows = table(path)
    next(rows)
    if columns.image is not None and is_image(columns.header[columns.image]):
        first = columns.header[columns.image]
        raise UsageError(f"{path} has the image {first!r} in its first row; expected names of columns there.")
    checked = [k for k in (columns.image, *used) if k is not None]
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns.header):
            raise UsageError(
                f"{path}, row {number}, has {len(row)} cells; expected {len(columns.header)}, as the header."
            )
        for k in checked:
            if "\n" in row[k] or "\r" in row[k]:
                text = row[k][:60]
                raise UsageError(f"{path}, row {number}, has {text!r}, of several lines; is a quote not closed?")
        yield row


def late_numbers(path: str, columns: Columns) -> List[int]:
    """The columns that begin empty and have numbers from -1 to 1 further down, such as those of a rare class."""
    told: Dict[int, bool] = {}
    for row in body(path, columns) if columns.empty else ():
        for k in columns.empty:
            if row[k].strip():
                told[k] = told.get(k, True) and in_range(row[k].strip())
    return [k for k, numbers in told.items() if numbers]


def minus_one(cells: Iterable[str], say: Say) -> float:
    """What -1 stands for among these cells: unknown beside 0, and no where nothing is 0."""
    signs = {cell for cell in cells if cell[:1] in ("-", "0")}
    minus = UNKNOWN if any(number_of(sign) == 0 for sign in signs) else 0.0
    if any(sign[0] == "-" for sign in signs):
        say(f"-1 is taken for {'unknown' if minus else 'no'}, as there are {'zeros' if minus else 'no zeros'}.")
    return minus


def read_csv_columns(path: str, say: Say) -> Stream:
    columns, numbers = columns_of(path), number_columns(path)
    if columns is None or columns.image is None or not numbers:
        raise UsageError(f"{path} has no columns of images and of 0 and 1; expected a header such as image,cat,dog.")
    numbers = sorted([*numbers, *late_numbers(path, columns)])
    used = {k: columns.header[k] for k in numbers if columns.header[k].lower() != NO_LABEL}
    if len(used) < len(numbers):
        say('"No Finding" is no label: its column is left out.')
    which = "Columns that are empty, or hold other things than 1, 0 and -1,"
    left_out(columns, [columns.image, *numbers], which, say)
    minus = minus_one((row[k].strip() for row in body(path, columns) for k in used), say)
    yield None, declared(used.values(), path)
    for number, row in enumerate(body(path, columns), 2):
        values = {}
        for k, name in used.items():
            cell = row[k].strip()
            if not cell:
                say("Empty cells are absent (--absent).")
                continue
            value = WORDS.get(cell.lower())
            if value == UNKNOWN:
                say('"NA" and "NaN" are taken for unknown.')
            if value is None:
                value = number_of(cell)
                value = minus if value == -1 else value
            if value is None or not (value == UNKNOWN or 0 <= value <= 1):
                raise UsageError(f"{path}, row {number}, has {cell!r} for {name!r}; expected 1, 0, -1 or nothing.")
            values[name] = value
        yield row[columns.image].strip(), values


def read_open_images(path: str, say: Say) -> Stream:
    columns = columns_of(path)
    if columns is None or not is_open_images(columns):
        raise UsageError(f"{path} has no columns {', '.join(OPEN_IMAGES)}; expected a CSV of verified labels.")
    image, label, confidence = (columns.header.index(name) for name in OPEN_IMAGES)
    descriptions = sorted(glob(os.path.join(escape(os.path.dirname(path) or "."), "*class-descriptions*.csv")))
    names = {row[0]: row[1].strip() for file in descriptions for row in table(file) if len(row) > 1}
    uses = Counter(names.values())
    names = {code: name if uses[name] == 1 else f"{name} ({code})" for code, name in names.items()}
    say("Verified labels are yes or no (Confidence 1 and 0); all else is unknown (--absent).")
    for row in body(path, columns):
        value = number_of(row[confidence])
        if value in (0.0, 1.0):
            yield row[image], {names.get(row[label], row[label]): value}
        else:
            say("Labels that only a machine gave (Confidence between 0 and 1) are left unknown.")
            yield row[image], {}
