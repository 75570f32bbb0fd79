"""The batches that one update of the weights is made of, on all ranks and of all iter_size parts, and their divisors.

Caffe adds up the gradients of the iter_size batches of an iteration and divides by iter_size; ranks add up theirs and
divide by their number. That is the gradient of one large batch only where all parts were divided by the same number,
and under VALID that is the number of labelled positions, which differs. So a loss layer asks here what to divide by.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, List, NamedTuple

from .ranks import ranks


class Part(NamedTuple):
    """A batch of a loss: what it alone is divided by, and the batch of all ranks; 0 where that is not known yet."""

    divisor: float
    whole: float


class Window:
    """What the losses of an iteration are divided by. It is open in a training step; else each batch is for itself.

    Where `late`, what counts in all batches of all ranks is asked for only after the last one: until then each batch is
    divided by what counts in the rank's first one, and `scale` and `rest` put the sum of the gradients right, before
    and after the ranks add it up. That is possible where a net has one loss, and needs no message between forward and
    backward.
    """

    def __init__(self) -> None:
        self.is_open = self.late = False
        self.parts: List[Part] = []  # of each loss of each batch, as they were asked for
        self.first = 1.0

    @contextmanager
    def open(self, late: bool) -> Iterator[None]:
        self.is_open, self.late, self.parts, self.first = True, late, [], 1.0
        try:
            yield
        finally:
            self.is_open = False

    def share(self, divisor: float, is_sum: bool) -> float:
        """What to divide the gradient of a batch by that would be divided by `divisor` if it were alone.

        The gradients of the ranks are averaged afterwards. `is_sum` says that nothing divides the loss (normalization
        NONE): then it is a sum over all ranks, too.
        """
        if not self.is_open:
            return divisor
        if is_sum:
            self.parts.append(Part(divisor, divisor))
            return divisor / ranks.size
        if self.late:
            self.first = self.first if any(part.divisor for part in self.parts) else divisor or 1.0
            self.parts.append(Part(divisor, 0.0))
            return self.first
        whole = float(ranks.gather([divisor], "the divisor of a loss").sum()) if ranks.size > 1 else divisor
        self.parts.append(Part(divisor, whole))
        return whole / ranks.size

    def own(self) -> float:
        """The sum of the divisors of this rank's batches that `rest` has to divide by; 0 where none is left to it."""
        return sum(part.divisor for part in self.parts if not part.whole)

    def scale(self) -> float:
        """What to multiply this rank's gradients with before the ranks add them up."""
        return self.first if self.own() else 1.0

    @staticmethod
    def rest(whole: float, batches: int) -> float:
        """What to multiply the sum of the ranks' gradients with, where their `own` add up to `whole`.

        Caffe divides by the number of `batches`, which is iter_size, afterwards.
        """
        return batches / whole if whole else 1 / ranks.size


window = Window()  # of this process
