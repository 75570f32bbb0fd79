"""Batches decoded ahead by processes of their own, which share memory with this one.

Caffe holds Python's lock through the forward and backward passes of its native layers, so threads of this process would
stand still for most of the time.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import Any, Deque, List, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import UsageError
from ..files import file_in_memory
from .feed import Feed, Task, prepare
from .images import prepare_process

WORKER = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from multilabel_softmax_loss.data.ahead import work; work()"
)
PER_WORKER = 2  # batches under way in each


class Job(NamedTuple):
    """What a worker is told: the number of the batch's place in shared memory, and the images."""

    slot: int
    tasks: List[Task]


class Asked(NamedTuple):
    """A batch under way: its number, its rows of the index, who prepares it, and its place in shared memory."""

    batch: int
    rows: List[int]
    process: Any
    slot: int


def work() -> None:
    """A worker: batches are prepared as they are asked for on the standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the standard input ends it
    prepare_process()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    options, handle, shape = pickle.load(requests)
    slots = shared(handle, shape)
    while True:
        try:
            job: Job = pickle.load(requests)
        except EOFError:
            return
        error: Optional[str] = None
        try:
            for task, out in zip(job.tasks, slots[job.slot]):
                prepare(task, options, out)
        except Exception as raised:
            error = str(raised) if isinstance(raised, UsageError) else f"{type(raised).__name__}: {raised}"
        pickle.dump(error, answers)
        answers.flush()


def shared(handle: int, shape: Tuple[int, ...]) -> np.ndarray:
    """The array (slots, images, channels, height, width) that lies in a file, or in memory without a name."""
    return np.frombuffer(mmap.mmap(handle, int(np.prod(shape)) * 4), np.float32).reshape(shape)


class Ahead:
    """Delivers the batches of a feed in turn; `workers` processes prepare those that come next.

    Parameters
    ----------
    feed : Feed
    workers : int
        0 prepares each batch when it is asked for, in this process.
    """

    def __init__(self, feed: Feed, workers: Optional[int] = None):
        self.feed, self.options = feed, feed.options
        self.next = 0  # the batch that is delivered next
        self.step = 1  # how far apart the batches are that are asked for
        self.last: Optional[int] = None  # the batch delivered last
        self.asked: Deque[Asked] = deque()  # the batches under way
        self.jobs = 0  # how many were asked for in all
        self.processes: List[Any] = []
        self.workers = default_workers() if workers is None else workers
        if not hasattr(os, "fork"):  # Windows passes no file descriptors on
            self.workers = 0

    def start(self, count: int) -> None:
        shape = (count * PER_WORKER, self.options.batch_size, *self.options.shape)
        with file_in_memory() as file:  # which is not needed once all have mapped it
            handle = file.fileno()
            file.truncate(int(np.prod(shape)) * 4)
            self.slots = shared(handle, shape)
            for _ in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", WORKER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[handle],
                )
                self.processes.append(process)
                self.tell(process, sys.path)
                self.tell(process, (self.options, handle, shape))

    def tell(self, process: Any, message: Any) -> None:
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self.dead() from error

    def dead(self) -> UsageError:
        return UsageError(f"{self.options.source}: a process that decodes images died; try fewer workers.")

    def skip(self, batches: int) -> None:
        """Go on as if so many batches had been delivered."""
        self.next += batches

    def ask(self) -> None:
        """Have the workers begin all batches that there is room for, if they are as far apart as the last two were."""
        while len(self.asked) < len(self.slots):
            batch = self.asked[-1].batch + self.step if self.asked else self.next
            rows, tasks = self.feed.tasks(batch)
            process, slot = self.processes[self.jobs % len(self.processes)], self.jobs % len(self.slots)
            self.jobs += 1
            self.tell(process, Job(slot, tasks))
            self.asked.append(Asked(batch, rows, process, slot))

    def wait(self) -> Asked:
        """Until the oldest batch asked for is ready."""
        asked = self.asked.popleft()
        try:
            error = pickle.load(asked.process.stdout)
        except EOFError as ended:
            raise self.dead() from ended
        if error is not None and asked.batch == self.next:
            raise UsageError(error)
        return asked

    @property
    def size(self) -> int:
        """How many images the next batch has."""
        return self.feed.size(self.next)

    def deliver(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Fill arrays (N, channels, height, width) and (N, C) with the next batch."""
        if self.workers:
            if not self.processes:
                self.start(self.workers)
            while self.asked and self.asked[0].batch != self.next:
                self.wait()  # one that was passed over
            self.ask()
            found = self.wait()
            rows = found.rows
            images[...] = self.slots[found.slot][: len(rows)]
        else:
            rows, tasks = self.feed.tasks(self.next)
            for task, out in zip(tasks, images):
                prepare(task, self.options, out)
        labels[...] = self.feed.label_rows(rows)
        self.step = 1 if self.last is None else self.next - self.last
        self.last = self.next
        self.next += 1
        if self.processes:
            self.ask()

    def close(self) -> None:
        for process in self.processes:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # a dead process takes no more of what was still to be told to it
                    stream.close()
            process.wait()
        self.processes = []

    def __del__(self) -> None:
        self.close()


def default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - 1, 1), 4)
