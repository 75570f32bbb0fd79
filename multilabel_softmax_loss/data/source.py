"""Annotations as one table: every source's stream merged into images, classes and sparse labels."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..files import cannot_be_read
from .finder import ImageFinder, composed
from .formats import FORMATS, recognize
from .stream import UNKNOWN
from .text import reading


class Labels(NamedTuple):
    """The labels of n images over C classes, in the order of the source.

    Row k has the classes `columns[start[k] : start[k + 1]]`, ascending, of these `values` (float32: 1, 0, UNKNOWN or a
    weight); all other classes are `absent`, 0 or UNKNOWN.
    """

    paths: List[str]
    classes: List[str]
    start: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    absent: float

    def row(self, k: int) -> Tuple[np.ndarray, np.ndarray]:
        part = slice(self.start[k], self.start[k + 1])
        return self.columns[part], self.values[part]

    def dense(self, k: int) -> np.ndarray:
        """Row k as C float32 values."""
        values = np.full(len(self.classes), self.absent, np.float32)
        columns, given = self.row(k)
        values[columns] = given
        return values

    @property
    def has_unknown(self) -> bool:
        return bool(self.absent == UNKNOWN or (self.values == UNKNOWN).any())

    def positives(self) -> Tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the entries above 0, ordered by rows."""
        rows = np.repeat(np.arange(len(self.paths)), np.diff(self.start))
        some = self.values > 0
        return rows[some], self.columns[some]

    def counts(self, rows: Sequence[int]) -> np.ndarray:
        """How many of these rows have each class."""
        chosen = np.zeros(len(self.paths), bool)
        chosen[np.asarray(rows, np.int64)] = True
        row, column = self.positives()
        return np.bincount(column[chosen[row]], minlength=len(self.classes))

    def fingerprint(self) -> str:
        """Differs where any image, class or label differs."""
        digest = hashlib.sha256(repr((self.classes, self.absent)).encode())
        for path in self.paths:
            digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        for numbers in (self.start, self.columns, self.values):
            digest.update(np.ascontiguousarray(numbers).tobytes())
        return digest.hexdigest()


class Found(NamedTuple):
    """What sources hold: their labels, which rows came from the --val source, and what is to be said of them."""

    labels: Labels
    from_val: np.ndarray
    formats: List[str]
    notes: List[str]


class Gathering:
    """Collects streams: rows by image, columns by class, and each value as a triple of numbers."""

    def __init__(self, classes: Optional[List[str]], notes: List[str]):
        self.given = classes
        self.columns: Dict[Any, int] = {name: k for k, name in enumerate(classes or [])}
        self.ordered = classes is not None
        self.left_out: Counter = Counter()  # how many images have each class that is not wanted
        self.paths: List[str] = []
        self.rows: Dict[str, int] = {}
        self.told: List[Tuple[Set[int], array]] = []  # sources that tell all of their classes: which, how often by row
        self.row, self.column, self.value = array("i"), array("i"), array("f")
        self.notes = notes
        self.finder: Any = None  # of the source read last
        self.clashes: List[str] = []
        self.declared: List[Tuple[str, Set[Any]]] = []  # the classes that sources tell of before their images

    def say(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def column_of(self, name: Any) -> Optional[int]:
        if self.given is not None and isinstance(name, int):
            if name >= len(self.given):
                raise UsageError(f"class {name} is listed, and --classes names {len(self.given)}, from 0 on.")
            return name
        column = self.columns.get(name)
        if column is None:
            spelled = one_spelling(name)
            column = self.columns.get(spelled)
            if column is None and self.given is not None:
                self.left_out[name] += 0
            elif column is None:
                check_name(spelled)
                column = self.columns[spelled] = len(self.columns)
        return column

    def read(
        self, source: str, given: Optional[str], images: Optional[str], absent: Optional[float]
    ) -> Tuple[str, set]:
        """Add one source; returns its format, and the rows of its images."""
        name = recognize(source, given)
        form = FORMATS[name]
        finder = ImageFinder(source, form.images, images, self.say)
        default = form.absent if absent is None else absent
        names: Dict[str, int] = {}
        self.finder = finder
        columns: Set[int] = set()
        times = array("i", [0]) * len(self.paths)
        for image, values in form.read(source, self.say):
            if image is None:
                self.ordered |= self.given is None
                self.declared.append((source, set(map(one_spelling, values))))
                if self.given is not None and 0 in values and len(values) != len(self.given):
                    told = f"{source} has {len(values)} values for each image, and --classes names {len(self.given)}"
                    raise UsageError(f"{told}; expected as many.")
                columns = {column for column in map(self.column_of, values) if column is not None}
                continue
            row = names.get(image)
            if row is None:
                path = finder.find(image)
                row = names[image] = self.rows.setdefault(path, len(self.paths))
                if row == len(self.paths):
                    self.paths.append(path)
                    times.append(0)
            times[row] += 1
            for key, value in values.items():
                column = self.column_of(key)
                if column is None:
                    self.left_out[key] += value > 0
                elif not (form.complete and value == default):
                    self.row.append(row)
                    self.column.append(column)
                    self.value.append(value)
        finder.check({image: self.paths[row] for image, row in names.items()} if finder.shortened else {})
        if form.complete:
            self.told.append((columns, times))
        return name, set(names.values())

    def tellings(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How often each (image, class) was told by sources that tell all of their classes of each image."""
        count = np.zeros(len(rows), np.int64)
        for known, times in self.told:
            has = np.zeros(len(self.columns), bool)
            has[list(known)] = True
            by_row = np.zeros(len(self.paths), np.int64)
            by_row[: len(times)] = times
            count += by_row[rows] * has[columns]
        return count

    def labels(self, absent: float) -> Labels:
        """Everything told, each (image, class) once; values that contradict each other become unknown."""
        order = np.lexsort((np.asarray(self.column), np.asarray(self.row)))
        rows, columns = np.asarray(self.row)[order], np.asarray(self.column)[order]
        values = np.asarray(self.value)[order]
        first = np.flatnonzero(np.r_[True, (np.diff(rows) != 0) | (np.diff(columns) != 0)][: len(rows)])
        if len(first):
            low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
            clash = low != high
            # A value equal to the default was not kept where a row tells all classes.
            clash |= np.diff(np.r_[first, len(rows)]) < self.tellings(rows[first], columns[first])
            rows, columns, values = rows[first], columns[first], np.where(clash, np.float32(UNKNOWN), low)
            self.clashes = [self.paths[row] for row in np.unique(rows[clash])]
            kept = values != absent
            rows, columns, values = rows[kept], columns[kept], values[kept]
        start = np.zeros(len(self.paths) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(self.paths)), out=start[1:])
        names, place = self.naming()
        columns = place[columns]
        order = np.lexsort((columns, rows))
        return Labels(self.paths, names, start, columns[order].astype(np.int32), values[order], absent)

    def naming(self) -> Tuple[List[str], np.ndarray]:
        """The names of the classes in their order, and the place there of each column."""
        if all(isinstance(name, int) for name in self.columns):  # an index that no image has is a class all the same
            return [str(k) for k in range(max(self.columns, default=-1) + 1)], np.array([*self.columns], np.int64)
        told = [str(name) for name in self.columns]
        names = told if self.ordered else sorted(told, key=natural)
        places = {name: k for k, name in enumerate(names)}
        return names, np.array([places[name] for name in told], np.int64)


def one_spelling(name: Any) -> Any:
    """The name of a class, whose letters some write as two characters; or its index."""
    return composed(name) if isinstance(name, str) else name


def check_name(name: Any) -> None:
    """Raise a UsageError for the name of a class that cannot stand in a line of classes.txt."""
    text = str(name)
    if not text.strip() or any(mark in text for mark in "\r\n\0") or text != text.encode("utf-8", "replace").decode():
        raise UsageError(f"a class has the name {text!r}; expected a line of text.")


def natural(text: str) -> List[Any]:
    """A key that sorts numbers in names by their value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text)]


def gather(
    sources: Sequence[str],
    val: Sequence[str] = (),
    given: Optional[str] = None,
    images: Optional[str] = None,
    classes: Optional[str] = None,
    absent: Optional[float] = None,
) -> Found:
    """Read annotations.

    Parameters
    ----------
    sources, val : paths of annotations; `val` is another source, for validation.
    given : the name of the format; recognised if None.
    images : the folder that images are named from; looked for if None.
    classes : a file of class names, one per line, in the order wanted.
    absent : what a class is that is not told, 0 or UNKNOWN; by the format if None.

    Raises
    ------
    UsageError : nothing is there, or it is not as its format has it.
    """
    if images is not None and not os.path.isdir(images):
        raise UsageError(f"--images {images} is no folder.")
    names = class_names(classes) if classes else None
    notes: List[str] = []
    gathering = Gathering(names, notes)
    try:
        formats = [gathering.read(source, given, images, absent)[0] for source in sources]
        known, images_before = set(gathering.columns), len(gathering.paths)
        indices = max([name for name in known if isinstance(name, int)], default=-1)
        both: Set[int] = set()
        for source in val:
            form, rows = gathering.read(source, given, images, absent)
            formats.append(form)
            both |= {row for row in rows if row < images_before}
    except OSError as error:  # such as a link to a file that is not there
        raise cannot_be_read(str(error.filename), None, error) from error
    # An index below the greatest is a class, whether or not an image has it.
    extra = [
        str(name) for name in gathering.columns if name not in known and not (isinstance(name, int) and name < indices)
    ]
    if val and extra:
        raise UsageError(f"--val has classes that the source has not: {shortlist(extra)}. Name all with --classes.")
    if len(set(map(type, gathering.columns))) > 1:
        raise UsageError("some sources number their classes and others name them; say with --classes what is what.")
    defaults = {FORMATS[name].absent for name in formats}
    if absent is None and len(defaults) > 1:
        raise UsageError("the sources differ in what an absent class means; say it with --absent.")
    labels = gathering.labels(defaults.pop() if absent is None else absent)
    if not labels.paths or not labels.classes:
        raise UsageError(f"{sources[0]} holds no {'classes' if labels.paths else 'images'}.")
    if not (labels.values > 0).any():
        others = f"; the classes that it has are not in {classes}: " + shortlist(map(str, gathering.left_out))
        raise UsageError(f"no image of {sources[0]} has a label{others if gathering.left_out else ''}.")
    notes += remarks(gathering, labels, both, classes)
    from_val = np.zeros(len(labels.paths), bool)
    from_val[images_before:] = True
    return Found(labels, from_val, formats, notes)


def remarks(gathering: Gathering, labels: Labels, both: Set[int], classes: Optional[str]) -> List[str]:
    """What is to be said of sources taken together; `both` are rows of the source and of --val."""
    notes: List[str] = []
    images = gathering.finder.images
    if images:
        unused = [path for path in gathering.finder.below() if path not in gathering.rows]
        known = set(map(os.path.realpath, gathering.rows if unused else ()))  # rows may name it otherwise, or by a link
        unused = [path for path in unused if os.path.realpath(path) not in known]
        if unused:
            notes.append(f"{len(unused):,} images in {images} have no row and are left out: {shortlist(unused)}.")
    if both:
        listed = shortlist(gathering.paths[row] for row in sorted(both))
        notes.append(f"{len(both):,} images of --val are in the source too, and train: {listed}.")
    for source, told in gathering.declared:
        unknown = [str(name) for name in gathering.columns if name not in told]
        if unknown and not (gathering.given and 0 in told):  # which are as many as the names given
            word = "unknown" if labels.absent == UNKNOWN else "absent"
            notes.append(
                f"{source} does not tell of {len(unknown)} classes, which are {word} there: {shortlist(unknown)}."
            )
    if gathering.clashes:
        notes.append(
            f"{len(gathering.clashes):,} images are told twice and differently; what differs is taken for unknown: "
            f"{shortlist(gathering.clashes)}."
        )
    if labels.absent == UNKNOWN and not (labels.values == 0).any():
        notes.append("no class is known to be absent from any image, so a net cannot learn to tell classes apart.")
    if gathering.left_out:
        listed = shortlist(f"{name} ({count:,})" for name, count in gathering.left_out.most_common())
        notes.append(f"{len(gathering.left_out)} classes are not in {classes} and are left out: {listed}.")
    return notes


def class_names(path: str) -> List[str]:
    """The names in a file, one per line."""
    with reading(path) as file:
        rows = [composed(row.strip()) for row in file]
    names = list(filter(None, rows))
    if not names:
        raise UsageError(f"{path} (--classes) is empty.")
    if "" in rows[: len(names)]:
        raise UsageError(
            f"{path} has an empty line, {rows.index('') + 1}, before its last name; expected a name in each."
        )
    if len(set(names)) < len(names):
        raise UsageError(f"{path} names a class twice: {Counter(names).most_common(1)[0][0]!r}.")
    return names


def summary(found: Found) -> str:
    """What was read, to be checked by eye."""
    labels = found.labels
    images, classes = len(labels.paths), len(labels.classes)
    counts = labels.counts(range(images))
    order = np.argsort(-counts, kind="stable")
    per_image = np.bincount(labels.positives()[0], minlength=images)
    example = int(np.argmax(per_image > 0))
    row = [(labels.classes[column], value) for column, value in zip(*labels.row(example))]
    told = [name if value == 1 else f"{name} {value:g}" for name, value in row if value != UNKNOWN]
    hidden = [name for name, value in row if value == UNKNOWN]

    def listed(chosen: Iterable[int]) -> str:
        return ", ".join(f"{labels.classes[k]} {counts[k]:,}" for k in chosen)

    unknown = int((labels.values == UNKNOWN).sum())
    if labels.absent == UNKNOWN:
        unknown = images * classes - int((labels.values != UNKNOWN).sum())
    named = ", ".join(dict.fromkeys(f"{name} ({FORMATS[name].what})" for name in found.formats))
    lines = [
        f"format      {named}",
        f"images      {images:,}, of which {int((per_image == 0).sum()):,} have no label",
        f"classes     {classes:,}, of which {int((counts == 0).sum()):,} have no image",
        f"labels      {per_image.mean():.2f} per image, at most {per_image.max()}",
        f"frequent    {listed(order[:5])}",
        f"rare        {listed(order[::-1][:5])}",
        f"unknown     {unknown:,} of {images * classes:,} labels",
        f"example     {labels.paths[example]}: {', '.join(told)}{'; unknown: ' if hidden else ''}{', '.join(hidden)}",
    ]
    return "\n".join([*lines, *(f"note        {note}" for note in found.notes)])
