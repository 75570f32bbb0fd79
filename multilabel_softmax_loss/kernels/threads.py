"""Threads that share the positions of a batch, while each of them is busy with compiled code.

A call's `work` is an array of a few numbers that all threads see. Each takes parts of the positions until none is left,
the caller from the front and the helpers from the back, so that each meets again in its cache what it had before. No
thread waits for one that has not begun: a helper that comes too late finds nothing to do.

After each call the helpers listen for another one for about a tenth of a millisecond, since to wake a thread takes as
long as a small batch; then they sleep, for the cores belong to the threads of Caffe's BLAS as well. numba's own threads
are not used, since its OpenMP layer aborts in a forked child.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from contextlib import suppress
from typing import Any, List, Optional

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

TAKEN, PARTS, FRONT, BACK, COUNT, BUSY, FAILED, BELL, LISTENERS = range(9)
RINGS, READY = range(2)  # of the bell: how often it rang, and how many helpers listen
ALONE = np.array([0, 1, 0, 0, 0, 0, 0, 0, 0])  # the `work` of a caller without helpers, but for its COUNT
PARTS_PER_THREAD = 8
SHARED_ENTRIES = 1 << 17  # fewer scores are not worth another thread
LISTEN = 50_000  # looks at the bell before a helper goes to sleep
WAIT = 1_000_000  # looks at the helpers before the caller gives way to others
YIELD = 5_000  # looks while they go back to listening


@intrinsic
def fetch_add(typing_context, array, index, amount):
    """Add to an entry of an int64 array at once, and return what it was before; other threads' changes are seen."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def look(typing_context, array, index):
    """An entry of an int64 array as it is now."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def fetch_add_at(typing_context, address, amount):
    """fetch_add on the int64 at an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


inlined = njit(forceinline=True)


@inlined
def enter(work, helper):
    """A thread begins. The caller rings here, where it has let go of the interpreter that the helpers need."""
    if helper:
        fetch_add(work, BUSY, 1)
    elif work[BELL] != 0:
        work[LISTENERS] = fetch_add_at(work[BELL] + 8 * READY, 0)
        fetch_add_at(work[BELL] + 8 * RINGS, 1)


@inlined
def next_part(work, helper):
    """Start and stop of positions that no thread has taken yet; equal if there are none."""
    if fetch_add(work, TAKEN, 1) >= work[PARTS]:
        return 0, 0
    k = work[PARTS] - 1 - fetch_add(work, BACK, 1) if helper else fetch_add(work, FRONT, 1)
    return work[COUNT] * k // work[PARTS], work[COUNT] * (k + 1) // work[PARTS]


@inlined
def leave(work, helper, good):
    """A thread is done, the caller when all are, or have taken suspiciously long; whether all went well so far.

    The caller lets the helpers take the interpreter first: they need it for a few microseconds before they listen
    again, and a thread that has to wait for it goes to sleep.
    """
    if not good:
        fetch_add(work, FAILED, 1)
    if helper:
        fetch_add(work, BUSY, -1)
    else:
        looks = 0
        while look(work, BUSY) != 0 and looks < WAIT:
            looks += 1
        if work[BELL] != 0:
            looks = 0
            while fetch_add_at(work[BELL] + 8 * READY, 0) < work[LISTENERS] and looks < YIELD:
                looks += 1
    return look(work, FAILED) == 0


@njit(nogil=True)
def listen(bell, heard):
    """Whether the bell rings within a moment."""
    fetch_add(bell, READY, 1)
    looks = 0
    while look(bell, RINGS) == heard and looks < LISTEN:
        looks += 1
    fetch_add(bell, READY, -1)
    return looks < LISTEN


def count_threads() -> int:
    """As many as NUMBA_NUM_THREADS or OMP_NUM_THREADS allow, else one for each processor this process may use."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """The caller and its helpers."""

    def __init__(self, size: int):
        self.size = size
        self.helpers: List[Helper] = []
        self.hiring = threading.Lock()
        self.bell = np.zeros(2, np.int64)
        self.task: Optional[tuple] = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)
        atexit.register(self.stop)

    def forget(self) -> None:
        """A forked child has none of its parent's threads."""
        self.helpers.clear()
        self.hiring = threading.Lock()
        self.bell[READY] = 0

    def run(self, kernel: Any, arguments: tuple, count: int, entries: int) -> bool:
        """kernel(*arguments, work, helper) by several threads, over positions 0 to count; whether all returned True."""
        size = min(self.size, count)
        if size <= 1 or entries < SHARED_ENTRIES:
            work = ALONE.copy()
            work[COUNT] = count
            return kernel(*arguments, work, False)
        if len(self.helpers) < self.size - 1:
            self.hire()
        parts = min(count, PARTS_PER_THREAD * size)
        work = np.array([0, parts, 0, 0, count, 0, 0, self.bell.ctypes.data, 0])
        self.task = task = kernel, arguments, work
        for helper in self.helpers:
            helper.wake()
        kernel(*arguments, work, False)
        if self.task is task:
            self.task = None
        while work[BUSY]:
            time.sleep(0)
        return not work[FAILED]

    def hire(self) -> None:
        with self.hiring:
            try:
                while len(self.helpers) < self.size - 1:
                    self.helpers.append(Helper(self))
            except RuntimeError:  # no more threads can be started
                self.size = 1 + len(self.helpers)

    def stop(self) -> None:
        self.task = None
        for helper in self.helpers:
            helper.is_wanted = False
            helper.wake()
        for helper in self.helpers:
            helper.join(timeout=1)
        self.helpers.clear()


class Helper(threading.Thread):
    """Sleeps unless there is work."""

    def __init__(self, team: Team):
        super().__init__(name="multilabel_softmax_loss", daemon=True)
        self.team = team
        self.is_wanted = True
        self.is_asleep = False
        self.alarm = threading.Lock()
        self.alarm.acquire()
        self.start()

    def wake(self) -> None:
        if self.is_asleep:
            with suppress(RuntimeError):  # another caller was faster
                self.alarm.release()

    def run(self) -> None:
        heard = self.team.bell[RINGS]
        while self.is_wanted:
            if not listen(self.team.bell, heard):
                self.is_asleep = True
                if self.is_wanted:  # looked at after is_asleep is set, as stop() does it the other way round
                    self.alarm.acquire()
                self.is_asleep = False
            heard = self.team.bell[RINGS]
            task = self.team.task
            if task is not None:
                kernel, arguments, work = task
                kernel(*arguments, work, True)
