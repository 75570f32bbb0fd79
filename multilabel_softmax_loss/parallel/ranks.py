"""What the process beside Caffe knows of the ranks, and asks of its hub; alone, it is rank 0 of 1 and asks nobody."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from .hub import Place, Request
from .meeting import NUMBERS

Stretch = Tuple[str, int, int]  # of numbers in the memory: their dtype, the first one's place in bytes, how many


class Ranks:
    """The ranks as one of them sees them.

    All ranks have to take the same steps in the same order. `name` says at which moment of the run a step is, for
    the messages about ranks that do not come.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.pipe: Optional[Connection] = None
        self.shared = -1
        self.agreed = self.has_terminal = False

    def join(self, place: Place) -> None:
        self.rank, self.size, self.has_terminal = place.rank, place.size, place.has_terminal
        self.pipe, self.shared = Connection(place.pipe), place.memory

    def request(self, do: str, name: str, value: Any = None) -> Any:
        assert self.pipe is not None
        try:
            self.pipe.send(Request(do, name, value))
            return self.pipe.recv()
        except (EOFError, OSError):  # the hub is gone, and ends this process too
            os._exit(2)

    def gather(self, numbers: Any, name: str) -> np.ndarray:
        """The numbers of each rank, float64 (size, len(numbers)), in order of the ranks."""
        numbers = np.array(numbers, np.float64).reshape(-1)
        if self.size == 1:
            return numbers[np.newaxis]
        if len(numbers) > NUMBERS:
            return np.array(self.everyone(numbers, name))
        return self.request("gather", name, numbers)

    def everyone(self, value: Any, name: str) -> List[Any]:
        """The value of each rank."""
        return self.request("everyone", name, value) if self.size > 1 else [value]

    def collect(self, value: Any, name: str) -> List[Any]:
        """For rank 0 the value of each rank; the others get nothing."""
        return self.request("collect", name, value) if self.size > 1 else [value]

    def share(self, value: Any, name: str) -> Any:
        """The value of rank 0."""
        return self.request("share", name, value if self.rank == 0 else None) if self.size > 1 else value

    def any(self, flag: Any, name: str) -> bool:
        """Whether it is so on any rank."""
        return bool(self.gather([bool(flag)], name).any())

    def memory(self, size: int) -> np.ndarray:
        """Bytes that the hub sees too, for `sum` and `broadcast`; there is one such array."""
        if self.size == 1:
            return np.empty(size, np.uint8)
        try:
            os.ftruncate(self.shared, size)
        except OSError as error:  # such as a limit of ulimit -f
            raise UsageError(f"a rank needs {size:,} bytes of memory for its gradients: {error.strerror}.") from error
        self.request("map", "the common memory", size)
        return np.frombuffer(mmap.mmap(self.shared, size), np.uint8)

    def sum(self, places: Sequence[Stretch], numbers: Sequence[float], name: str) -> np.ndarray:
        """Have the numbers at these places of the memory be their sums over the ranks; and gather a few `numbers`."""
        if self.size == 1:
            return self.gather(numbers, name)
        if len(numbers) > NUMBERS:
            told = self.gather(numbers, name)
            self.request("sum", name, (places, ()))
            return told
        return self.request("sum", name, (places, numbers))

    def broadcast(self, places: Sequence[Stretch], name: str) -> None:
        """Have the numbers at these places of the memory be those of rank 0."""
        if self.size > 1:
            self.request("broadcast", name, (places, ()))

    def busy(self, name: str) -> None:
        """Say that this rank is now at work that the others have to wait for, and for longer than usual."""
        if self.size > 1:
            self.request("busy", name)

    def tell(self, text: str) -> bool:
        """Whether the hub takes the reason why this process ends, to be told if this rank is the one at fault."""
        if self.size > 1:
            self.request("tell", "the end", text if self.agreed else f"rank {self.rank}: {text}")
        return self.size > 1

    def agree(self) -> None:
        """From here on all ranks end by themselves, as they know of the same reason."""
        self.agreed = True
        if self.size > 1:
            self.request("agree", "the end")

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """What each rank does for itself; a UsageError of any is one of all, told once.

        Raises
        ------
        UsageError : that of the lowest rank at fault, which is named unless all are.
        """
        error: Optional[UsageError] = None
        try:
            yield
        except UsageError as caught:
            error = caught
        if self.size == 1:
            if error is not None:
                raise error
            return
        texts = self.everyone(None if error is None else str(error), name)
        if any(text is not None for text in texts):
            self.agree()
            rank = next(rank for rank, text in enumerate(texts) if text is not None)
            raise UsageError(texts[rank] if None not in texts else f"rank {rank}: {texts[rank]}") from error


ranks = Ranks()  # of this process


def in_turn(parts: Sequence[Sequence[Any]]) -> List[Any]:
    """What ranks dealt out among themselves, in its order again."""
    most = max(map(len, parts), default=0)
    return [part[place] for place in range(most) for part in parts if place < len(part)]
