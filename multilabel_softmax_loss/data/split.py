"""Which images train and which validate: by a list, or drawn so that each class keeps its share on both sides."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..files import open_file
from .finder import composed
from .source import Labels
from .text import lines

SPLITS = ("train", "val", "test")
ROW = re.compile(r"(.+?)[\s,;]+([^\s,;]+)")  # of a list, or of a table of CSV
WORDS = {"0": "train", "1": "val", "2": "test", **{name: name for name in SPLITS}}
EDGE = 4096


def duplicates(paths: Sequence[str]) -> List[List[int]]:
    """Groups of images whose files have the same content; files of a size of their own are not read."""
    groups: Iterable[List[int]] = [list(range(len(paths)))]
    for key in (size_of, lambda path: digest_of(path, EDGE), digest_of):
        groups = [part for group in groups for part in parts_by(key, group, paths)]
    return sorted(groups)


def parts_by(key: Any, group: Sequence[int], paths: Sequence[str]) -> List[List[int]]:
    found: Dict[Any, List[int]] = {}
    for k in group:
        value = key(paths[k])
        if value:  # a file that is empty or cannot be read is like no other
            found.setdefault(value, []).append(k)
    return [part for part in found.values() if len(part) > 1]


def size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):  # the latter for a name with a NUL byte
        return 0


def digest_of(path: str, most: int = -1) -> bytes:
    """A digest of a file's content, or of its last `most` bytes."""
    try:
        with open_file(path, "rb") as file:
            if most > 0:
                file.seek(max(os.path.getsize(path) - most, 0))
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return b""


def stratified(labels: Labels, share: float, groups: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """Draw a `share` of the images so that it has that share of each class' images; images of a group stay together.

    Iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011): of the classes not yet
    dealt out, the rarest goes first; each of its images goes to the side that still wants most of that class.

    Returns
    -------
    bool array (images,) : True where drawn
    """
    rng = np.random.RandomState(seed)
    leader = np.arange(len(labels.paths))
    for group in groups:
        leader[list(group)] = group[0]
    row, column = labels.positives()
    pairs = np.unique(np.stack([leader[row], column]), axis=1)  # ordered by rows
    units = np.unique(leader)
    order = rng.permutation(units)
    rank = np.zeros(len(leader), np.int64)
    rank[order] = np.arange(len(order))
    by_row = np.searchsorted(pairs[0], np.arange(len(leader) + 1))
    pairs_by_class = pairs[:, np.lexsort((rank[pairs[0]], pairs[1]))]
    by_class = np.searchsorted(pairs_by_class[1], np.arange(len(labels.classes) + 1))
    left = np.bincount(pairs[1], minlength=len(labels.classes)).astype(float)
    wanted = np.stack([left * (1 - share), left * share])
    room = [len(units) * (1 - share), len(units) * share]
    side = np.full(len(leader), -1, np.int8)

    def deal(unit: int, sides: Sequence[float]) -> None:
        chosen = int(sides[1] > sides[0] or (sides[1] == sides[0] and room[1] > room[0]))
        columns = pairs[1, by_row[unit] : by_row[unit + 1]]
        side[unit] = chosen
        wanted[chosen, columns] -= 1
        left[columns] -= 1
        room[chosen] -= 1

    dealt = np.zeros(len(labels.classes), bool)
    while not dealt.all():
        rarest = int(np.argmin(np.where(dealt | (left <= 0), np.inf, left)))
        if dealt[rarest] or left[rarest] <= 0:
            break
        for unit in pairs_by_class[0, by_class[rarest] : by_class[rarest + 1]]:
            if side[unit] < 0:
                deal(unit, wanted[:, rarest])
        dealt[rarest] = True
    for unit in order:
        if side[unit] < 0:
            deal(unit, room)
    return side[leader] == 1


def listed(paths: Sequence[str], file: str) -> Tuple[List[str], List[str]]:
    """The split of each image as a file says: names of those that validate, or rows of a name and train, val or test;
    and the names that are no image's.

    A name is a path, or its end, with or without the suffix of the image.

    Raises
    ------
    UsageError : a name has two splits or fits two images, no name fits any, or some images of a file of rows have none.
    """
    found = ((line, ROW.fullmatch(line.strip())) for line in lines(file))
    rows = [match.groups() if match and match.group(2) in WORDS else (line, "val") for line, match in found]
    told: Dict[str, str] = {}
    for written, word in rows:
        entry = os.path.normpath(composed(written.strip()).replace("\\", "/"))
        if told.setdefault(entry, WORDS[word]) != WORDS[word]:
            raise UsageError(
                f"{file} has {entry} in both {told[entry]} and {WORDS[word]}; expected one split for each."
            )
    if not told:
        raise UsageError(f"{file} is empty; expected names of images.")
    plain = all(word == "val" for _, word in rows)
    splits: List[str] = []
    used: Dict[str, str] = {}
    for path in paths:
        name = next((name for name in names_of(path) if name in told), None)
        if name is None and not plain:
            raise UsageError(f"{file} does not list {path}; expected train, val or test for each image.")
        if name is not None and used.setdefault(name, path) != path:
            raise UsageError(f"{file} lists {name}, which is both {used[name]} and {path}; expected more of its path.")
        splits.append("train" if name is None else told[name])
    unused = [name for name in told if name not in used]
    if len(unused) == len(told):
        raise UsageError(f"{file} lists {shortlist(told)}, and no image of the source has such a name.")
    return splits, unused


def names_of(path: str) -> Iterable[str]:
    """What an image may be called: its path and each end of it, with and without suffix."""
    parts = os.path.normpath(composed(path)).split(os.sep)
    for k in range(len(parts)):
        name = "/".join(parts[k:])
        yield name
        yield os.path.splitext(name)[0]


def orders(splits: Dict[str, np.ndarray], seed: int, shuffle: bool) -> List[Tuple[str, np.ndarray]]:
    """The rows of each split in the order in which they are written."""
    rng = np.random.RandomState(seed)
    return [(name, rng.permutation(rows) if shuffle else rows) for name, rows in splits.items() if len(rows)]
