"""Sources whose samples meet in a net, such as images and their labels: sample k of one must belong to sample k of all.

Caffe reads each source by itself and compares nothing, so what stands apart there trains on others' labels.
"""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import UsageError, warn
from .databases import database_keys
from .heads import PYTHON_LOSSES
from .text_lists import listed_images

READERS = {"HDF5Data": "hdf5_data_param", "Data": "data_param", "ImageData": "image_data_param"}
RESHAPING = ("Split", "Slice", "Concat", "Reshape", "Flatten", "Permute", "Power", "Reduction", "Tile", "ArgMax")
SAME_KEYS = "Write both in one order, with keys of one width, as b'%08d' % k."

Parts = List[FrozenSet[int]]  # of a blob, along its first axis: the places of the layers that each comes from


def parameter_of(layer: Any) -> Any:
    """What a layer that reads files is told of them: its source, batch_size and order."""
    return getattr(layer, READERS[layer.type])


def groups(layers: Sequence[Any], meeting: Sequence[Tuple[str, str]] = ()) -> List[List[Any]]:
    """The layers that read files, those together whose samples meet: in a layer, or as a pair of blobs in `meeting`.

    Batches that are put one after another (Concat along axis 0) do not meet. Nor do features in a Python layer that is
    not known here: it may compare two sets as a whole.
    """
    parts: Dict[str, Parts] = {}
    raw = set()  # blobs that nothing has been computed of
    leader = list(range(len(layers)))

    def meet(blobs: Sequence[Parts]) -> Parts:
        blobs = [blob for blob in blobs if any(blob)]
        if len({len(blob) for blob in blobs}) > 1:
            return [frozenset().union(*(part for blob in blobs for part in blob))]
        return [frozenset().union(*row) for row in zip(*blobs)]

    def join(rows: Parts) -> None:
        for row in rows:
            first = min((leader[place] for place in row), default=0)
            former = {leader[place] for place in row}
            leader[:] = [first if place in former else place for place in leader]

    for place, layer in enumerate(layers):
        if not layer.bottom:
            parts.update({top: [frozenset([place] if layer.type in READERS else [])] for top in layer.top})
            raw.update(layer.top)
            continue
        blobs = [parts.get(bottom, [frozenset()]) for bottom in layer.bottom]
        plain = [bottom in raw for bottom in layer.bottom]
        found = meet(blobs)
        if layer.type == "Concat" and 0 in (layer.concat_param.axis, layer.concat_param.concat_dim):
            found = [part for blob in blobs for part in blob]
        elif is_meeting(layer, plain):
            join(meet(blobs[:2] if layer.type == "InfogainLoss" else blobs))  # its third is a matrix
        sliced = layer.type == "Slice" and 0 in (layer.slice_param.axis, layer.slice_param.slice_dim)
        for number, top in enumerate(layer.top):
            parts[top] = [found[number]] if sliced and len(found) == len(layer.top) else found
            (raw.add if layer.type in RESHAPING and all(plain) else raw.discard)(top)
    for pair in meeting:
        join(meet([parts.get(blob, [frozenset()]) for blob in pair]))
    found_groups: Dict[int, List[Any]] = {}
    for place, layer in enumerate(layers):
        if layer.type in READERS:
            found_groups.setdefault(leader[place], []).append(layer)
    return list(found_groups.values())


def is_meeting(layer: Any, plain: Sequence[bool]) -> bool:
    if layer.type == "Python" and layer.python_param.layer not in PYTHON_LOSSES:
        return any(plain)
    return layer.type not in ("Silence", "HDF5Output")


def check_pairs(
    layers: Sequence[Any], path: str, count: Callable[[Any], int], meeting: Sequence[Tuple[str, str]] = ()
) -> None:
    """Raise a UsageError for sources of the net `path` that meet and are not in one order, with the reason.

    `count` gives the number of samples of a layer's source.
    """
    for group in groups(layers, meeting):
        # A single sample, again and again, is a constant that all others may meet.
        group = [layer for layer in group if parameter_of(layer).batch_size != 1 or count(layer) != 1]
        if len(group) > 1:
            check_group(group, path, count)


def check_group(group: Sequence[Any], path: str, count: Callable[[Any], int]) -> None:
    first = group[0]
    together = f"{path}: layers {', '.join(repr(layer.name) for layer in group)} bring what belongs together"
    sizes = {layer.name: parameter_of(layer).batch_size for layer in group}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"{together}, in batches of different sizes: {sizes}. Give them one batch_size.")
    counts = {layer.name: count(layer) for layer in group}
    if len(set(counts.values())) > 1:
        raise UsageError(f"{together}, from sources of different lengths: {counts}; expected one label per image.")
    for layer in group:
        parameter = parameter_of(layer)
        for name, remedy in (("shuffle", "Shuffle before writing them"), ("rand_skip", "Take it out")):
            if getattr(parameter, name, 0):
                given = f"{name}: {str(getattr(parameter, name)).lower()}"
                raise UsageError(
                    f"{together}, and {layer.name!r} has {given}, by which each goes its own way. {remedy}."
                )
    for layer in group[1:]:
        check_order(first, layer, together)


# The order of two sources


class Order(NamedTuple):
    """What a source says of its samples, in their order: numbers, names, or both. `listed` where it was not sorted."""

    numbers: Optional[List[str]]
    names: Optional[List[str]]
    listed: bool

    @property
    def counts_up(self) -> bool:
        return self.numbers is not None and all(int(a) < int(b) for a, b in zip(self.numbers, self.numbers[1:]))

    @property
    def runs(self) -> bool:
        """Whether it has running numbers and nothing else, by which whoever wrote it counted a list."""
        numbers = self.numbers
        return numbers is not None and not self.names and self.counts_up and int(numbers[-1]) <= len(numbers)


def order_of(layer: Any) -> Optional[Order]:
    """That of an LMDB or LevelDB, by its keys, or of a list of images; None of HDF5 files, which name nothing."""
    if layer.type == "HDF5Data":
        return None
    if layer.type == "ImageData":
        return read_order([image.name for image in listed_images(layer)], True)
    return read_order([os.fsdecode(key) for key in database_keys(layer)], False)


def read_order(keys: Sequence[str], listed: bool) -> Order:
    numbered = [re.fullmatch(r"(\d{5,})_(.+)", key, re.S) for key in keys]  # as convert_imageset writes them
    if all(numbered):
        numbers, names = zip(*(match.groups() for match in numbered if match))
        return Order([str(int(number)) for number in numbers], bare_names(names), listed)
    stems = [os.path.splitext(key)[0] for key in keys]
    if all(re.fullmatch(r"\d+", stem, re.A) for stem in stems):
        return Order([str(int(stem)) for stem in stems], None, listed)
    return Order(None, bare_names(keys), listed)


def bare_names(names: Sequence[str]) -> List[str]:
    """Names without their suffix and without what all begin and end with: "img/007_rgb.jpg" and "seg/007.png" are 7."""
    stems = [os.path.splitext(name)[0] for name in names]
    start = common_start(stems)
    rests = [stem[start:] for stem in stems]
    end = common_start([rest[::-1] for rest in rests])
    found = [rest[: len(rest) - end] for rest in rests]
    return [str(int(core)) if re.fullmatch(r"\d+", core, re.A) else core for core in found]


def common_start(texts: Sequence[str]) -> int:
    """How many characters all texts begin with."""
    first, last = min(texts), max(texts)  # all others lie between
    return next((place for place, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


def check_order(one: Any, other: Any, together: str) -> None:
    if one.type == other.type == "Data" and database_keys(one) == database_keys(other):
        return  # the usual case, which needs no closer look at what may be millions of keys
    first, second = order_of(one), order_of(other)
    for order, layer, partner in ((first, one, other), (second, other, one)):
        if order is None or order.listed or partner.type == "Data":
            continue
        if order.numbers is not None and not order.counts_up:
            before, after = next(pair for pair in zip(order.numbers, order.numbers[1:]) if int(pair[0]) >= int(pair[1]))
            raise UsageError(
                f"{together}, but the database of {layer.name!r} sorts its keys as text, where {after} comes after "
                f"{before}; {partner.name!r} has an order of its own. {SAME_KEYS}"
            )
        if order.numbers is None and partner.type == "HDF5Data":
            warn(
                f"{together}, and the database of {layer.name!r} is sorted by names; nothing shows that the rows of "
                "the HDF5 files are in that order too."
            )
    if first is not None and second is not None:
        compare(first, second, one, other, together)


def compare(first: Order, second: Order, one: Any, other: Any, together: str) -> None:
    """Raise a UsageError unless the names of two orders agree, or their numbers, or those of one with the other's."""
    if (first.listed and second.runs) or (second.listed and first.runs):
        return
    pairs = (
        (first.names, second.names),
        (first.numbers, second.numbers),
        (first.names, second.numbers),
        (first.numbers, second.names),
    )
    for number, (left, right) in enumerate(pairs):
        if left is None or right is None:
            continue
        if left == right:
            return
        if number == 1 or 2 * len(set(left) & set(right)) >= len(set(left)):
            place = next(place for place, (a, b) in enumerate(zip(left, right)) if a != b)
            remedy = "Write both lists in one order." if first.listed and second.listed else SAME_KEYS
            raise UsageError(
                f"{together}, but sample {place} is {left[place]!r} in the source of {one.name!r} and {right[place]!r} "
                f"in that of {other.name!r}. {remedy}"
            )
    if not (first.listed and second.listed):
        raise UsageError(
            f"{together}, and nothing in the keys or names of {one.name!r} and {other.name!r} shows which belong to "
            "which; a database is sorted by its keys. Write both with the same keys."
        )
