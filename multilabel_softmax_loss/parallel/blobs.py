"""Blobs of a net as one message: all their numbers in one array, which the ranks add up or rank 0 gives out."""

from __future__ import annotations

import zlib
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np

from .ranks import Ranks, Stretch

ALIGNMENT = 64  # bytes


class FusedBlobs:
    """Learnable blobs, each once, though layers may share it, in one array per dtype."""

    def __init__(self, blobs: Sequence[Any], ranks: Ranks):
        self.ranks = ranks
        by_place = {blob.data.__array_interface__["data"][0]: blob for blob in blobs if blob.count}
        self.groups: List[Tuple[Stretch, List[Any]]] = []  # the blobs of a dtype, and their place in the memory
        end = 0
        for dtype in dict.fromkeys(blob.data.dtype for blob in by_place.values()):
            chosen = [blob for blob in by_place.values() if blob.data.dtype == dtype]
            count = sum(blob.count for blob in chosen)
            self.groups.append(((dtype.str, end, count), chosen))
            end += -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.memory = ranks.memory(max(end, ALIGNMENT))
        self.places = [place for place, _ in self.groups]

    def parts(self, kind: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Each blob's "data" or "diff", and its place in the memory, in the same shape."""
        for (dtype, start, count), blobs in self.groups:
            flat = self.memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)
            at = 0
            for blob in blobs:
                values = getattr(blob, kind)
                yield values, flat[at : at + values.size].reshape(values.shape)
                at += values.size

    def add_up(
        self, kind: str, scale: float, rest: Callable[[np.ndarray], float], numbers: Sequence[float], name: str
    ) -> np.ndarray:
        """Replace the blobs by their sum over the ranks, times ``rest(sums)``; each rank's count `scale` times.

        `sums` are those of the ranks' `numbers`, which travel along with the blobs, and are returned.
        """
        if self.ranks.size == 1:
            sums = np.array(numbers, np.float64)
            factor = scale * rest(sums)
            for values, _ in self.parts(kind) if factor != 1 else ():
                np.multiply(values, values.dtype.type(factor), out=values)
            return sums
        for values, place in self.parts(kind):
            np.multiply(values, values.dtype.type(scale), out=place)
        sums = self.ranks.sum(self.places, numbers, name).sum(axis=0)
        factor = rest(sums)
        for values, place in self.parts(kind):
            np.multiply(place, values.dtype.type(factor), out=values)
        return sums

    def give_out(self, kind: str, name: str) -> None:
        """Have the blobs of all ranks be those of rank 0."""
        if self.ranks.size == 1:
            return
        for values, place in self.parts(kind):
            place[...] = values
        self.ranks.broadcast(self.places, name)
        for values, place in self.parts(kind):
            values[...] = place


def checksum(blobs: Sequence[Any]) -> int:
    """The same on two ranks where all data of these blobs are, bit for bit."""
    total = 0
    for blob in blobs:
        total = zlib.crc32(blob.data.tobytes() if blob.count else b"", total)
    return total
