"""Threads of the standard library that share the positions of a large batch."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Deque, List

PARTS = 16  # of a large batch, however many threads there are, so that its sums are added up in one order


def count_threads() -> int:
    """As many as NUMBA_NUM_THREADS or OMP_NUM_THREADS allow, else one for each processor this process may use."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """The caller and its helpers. A helper that comes too late finds no part left, and nobody waits for it."""

    def __init__(self, size: int):
        self.size = min(size, PARTS)
        self.make_pool()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.make_pool)  # a child has none of its parent's threads

    def make_pool(self) -> None:
        self.pool = ThreadPoolExecutor(max(1, self.size - 1), "multilabel_softmax_loss")  # starts no thread yet

    def run(self, kernel: Any, arguments: tuple, count: int) -> List[Any]:
        """What kernel(*arguments, start, stop) returns for each part of the positions 0 to `count`."""
        parts = min(PARTS, count)
        waiting: Deque[int] = deque(range(parts))
        results: List[Any] = [None] * parts

        def work() -> None:
            with suppress(IndexError):  # none is left
                while True:
                    part = waiting.popleft()
                    results[part] = kernel(*arguments, count * part // parts, count * (part + 1) // parts)

        helpers: list = []
        with suppress(RuntimeError):  # no more threads can be started, or the interpreter is about to end
            helpers.extend(self.pool.submit(work) for _ in range(min(self.size, parts) - 1))
        try:
            work()
        finally:
            waiting.clear()
            errors = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in filter(None, errors):  # such as a lack of memory
            raise error
        return results
