"""The hub of a rank: it speaks MPI for a child process that trains, and sees to it that all ranks end together.

Every step that ranks take together begins with a header from each: its name, and a few numbers. A rank whose child has
ended, or was killed, or does not come, answers the next header with its end; then all ranks end, with one status, and
the rank at fault says why. No step waits for longer than PATIENCE for a rank: then it is asked, and the answer told.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from .launcher import abort_before_init, cores, environment_of_child

PATIENCE = "MULTILABEL_SOFTMAX_LOSS_PATIENCE"  # the environment variable; seconds
NUMBERS = 8  # that a header has room for
STEP, END = 0, 1  # kinds of header
FAULT, ASK, ANSWER = 11, 12, 13  # tags of what ranks tell each other besides
TICK = 0.05  # seconds between two looks at what other ranks tell, while the child works
GRACE = 3.0  # seconds for an answer
NOBODY = -1


class Ended(Exception):
    """All ranks have met and end now, with this status; `speaker` says why."""

    def __init__(self, status: int, speaker: int):
        super().__init__(status, speaker)
        self.status, self.speaker = status, speaker


class Fault(Ended):
    """A rank told of its end, by which all have to meet."""


class Request(NamedTuple):
    """What a child asks of its hub: what to do, at which moment of the run, with what."""

    do: str
    name: str
    value: Any = None


class Place(NamedTuple):
    """Where a child finds its hub: file descriptors of the pipe to it, and of the memory that both see."""

    rank: int
    size: int
    pipe: int
    memory: int


class Hub:
    """One rank among the others.

    Parameters
    ----------
    rank, size : as the launcher says.
    title : what to put before a reason.

    Raises
    ------
    UsageError : mpi4py is missing, or belongs to another MPI than the launcher.
    """

    def __init__(self, rank: int, size: int, title: str):
        self.title = title
        self.patience = patience()
        self.mpi = import_mpi(rank, size)
        self.comm = self.mpi.COMM_WORLD
        self.rank, self.size = rank, size
        if self.comm.size != size:
            raise UsageError(
                f"the launcher started {size} ranks, but mpi4py sees {self.comm.size}: it belongs to another MPI. "
                "Start with the mpiexec of mpi4py's MPI (that of the mpich package is beside this Python)."
            )
        self.words: List[str] = []  # why this rank ends
        self.agreed = False  # all ranks know that they end now
        self.process: Optional[subprocess.Popen] = None
        self.told = False  # the other ranks of a fault here
        self.answers: Dict[int, str] = {}
        self.sent: List[Any] = []  # messages, kept until they are read
        self.doing = "starting"
        self.memory = np.empty(0, np.uint8)
        self.begun = time.monotonic()

    def threads(self) -> int:
        """How many threads this rank may use: its share of the cores that it has in common with others of its node."""
        node = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        others = node.allgather(cores())
        node.Free()
        return max(1, int(sum(1 / sum(core in other for other in others) for core in cores()) + 0.01))

    # Steps of all ranks

    def gather(self, kind: int, name: str, numbers: Any = ()) -> np.ndarray:
        """The numbers of all ranks, (size, NUMBERS), once all have come to the step `name`.

        Raises
        ------
        Ended : a rank has ended instead.
        """
        sent = np.zeros(2 + NUMBERS)
        sent[:2] = kind, zlib.crc32(name.encode())
        sent[2 : 2 + len(numbers)] = numbers
        got = np.empty((self.size, 2 + NUMBERS))
        self.wait(self.comm.Iallgather(sent, got), name, self.patience * (10 if kind == END else 1))
        if (got[:, 0] == END).any():
            raise Ended(*self.verdict(got))
        if (got[:, 1] != got[0, 1]).any():
            names = self.comm.allgather(name)
            other = next(k for k, word in enumerate(names) if word != names[0])
            self.words = [f"the ranks do not take the same steps: rank 0 {names[0]!r}, rank {other} {names[other]!r}"]
            raise Ended(2, 0)
        return got[:, 2:]

    def verdict(self, headers: np.ndarray) -> Tuple[int, int]:
        """Status and speaker of the end, from the headers of all ranks: the lowest rank at fault speaks."""
        ends = [(int(row[3]), int(row[2])) for row in headers if row[0] == END]
        bad = sorted(end for end in ends if end[1])
        if bad:
            speaker, status = bad[0]
            own = headers[speaker]
            return int(own[2]) or status if own[0] == END else status, speaker
        if len(ends) < self.size:  # a rank has finished, and others have not
            early = int(np.flatnonzero(headers[:, 0] == END)[0])
            if early == self.rank:
                self.words = [f"rank {early} ended while others go on"]
            return 2, early
        return 0, NOBODY

    def wait(self, request: Any, name: str, patience: float) -> None:
        """Wait until all ranks have come, and look meanwhile at what they tell, and at the child."""
        for _ in range(100):
            if request.Test():
                return
        pause, waited, last = 2e-5, 0.0, time.monotonic()
        while not request.Test():
            time.sleep(pause)
            pause = min(1.2 * pause, 2e-3)
            now = time.monotonic()
            waited, last = waited + min(now - last, 0.5), now  # a job that was stopped and goes on has not waited
            self.listen(f"waits for others at {name}")
            if self.process is not None and self.process.returncode is None and self.process.poll() is not None:
                self.tell_fault(2, self.rank)
            if waited > patience:
                self.ask(request, name, waited)
                waited = 0.0

    def finish_large(self, request: Any, name: str) -> None:
        """Wait for a step to end to which all ranks have come; they do nothing else until it does."""
        last = time.monotonic()
        while not request.Test():
            if time.monotonic() - last > self.patience:
                self.abort(f"a rank does not answer any more at {name}, to which all {self.size} had come")

    # What ranks tell each other besides

    def listen(self, state: str) -> Optional[Fault]:
        """Read what others tell; what they tell of an end."""
        ended = None
        status = self.mpi.Status()
        while self.comm.Iprobe(self.mpi.ANY_SOURCE, self.mpi.ANY_TAG, status):
            text = self.comm.recv(source=status.source, tag=status.tag)
            if status.tag == FAULT:
                ended = Fault(*text)
            elif status.tag == ASK:
                self.comm.send(state, status.source, ANSWER)
            else:
                self.answers[status.source] = text
        return ended

    def tell_fault(self, status: int, speaker: int) -> None:
        """Tell the other ranks, busy as they may be, that all end now."""
        if not self.told:
            self.told = True
            for other in range(self.size):
                if other != self.rank:
                    self.sent.append(self.comm.isend((status, speaker), other, FAULT))

    def ask(self, request: Any, name: str, waited: float) -> None:
        """Find out which ranks are missing, and have all ranks end."""
        self.answers = {}
        others = [other for other in range(self.size) if other != self.rank]
        for other in others:
            self.sent.append(self.comm.isend(None, other, ASK))
        end = time.monotonic() + GRACE
        state = f"waits for others at {name}"
        while time.monotonic() < end and len(self.answers) < len(others):
            if request.Test():
                return
            self.listen(state)
            time.sleep(1e-3)
        missing = [other for other in others if self.answers.get(other) != state]
        waiting = [other for other in others if other not in missing]
        if not missing or min([*waiting, self.rank]) != self.rank:
            return  # another rank speaks
        text = "; ".join(f"rank {other} {self.answers.get(other, 'does not answer')}" for other in missing)
        self.words = [f"no answer at {name} for {waited:.0f} s: {text}. All ranks end. ({PATIENCE} sets the seconds.)"]
        self.tell_fault(2, self.rank)
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if request.Test():
                return
            self.listen(state)
            time.sleep(1e-3)
        self.abort(self.words[0])

    def abort(self, text: str) -> None:
        """End all ranks where one does not answer any more, so that they cannot end together."""
        self.say_why([text])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI has words of its own
        if self.process is not None:
            self.process.kill()
        self.comm.Abort(2)

    def say_why(self, words: Sequence[str]) -> None:
        for text in words:
            sys.stderr.write(f"{self.title}{text}\n")
        sys.stderr.flush()

    # The child

    def open(self) -> Place:
        """Where a child finds this hub, for the file descriptors it is to inherit."""
        here, there = socket.socketpair()
        self.pipe = Connection(here.detach())
        place = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.shared = tempfile.TemporaryFile(dir=place)  # noqa: SIM115, to the end
        return Place(self.rank, self.size, there.detach(), self.shared.fileno())

    def environment(self) -> Dict[str, str]:
        return environment_of_child(self.threads())

    def serve(self, process: subprocess.Popen) -> Optional[Ended]:
        """Do what the child asks until it ends; or what ended all ranks meanwhile."""
        self.process, connection = process, self.pipe
        try:
            while True:
                if connection.poll(TICK):
                    request = connection.recv()
                    connection.send(self.do(request))
                    self.doing, self.begun = f"is at work since {request.name}", time.monotonic()
                elif process.poll() is not None:
                    return None
                ended = self.listen(f"{self.doing}, {time.monotonic() - self.begun:.0f} s ago")
                if ended is not None:
                    raise ended
        except (EOFError, OSError):  # the child has ended
            return None
        except Ended as ended:
            process.kill()
            return ended

    def do(self, request: Request) -> Any:
        do, name, value = request
        if do == "tell":
            return self.words.append(value)
        if do == "agree":
            self.agreed = True
            return None
        if do == "map":
            self.memory = np.frombuffer(mmap.mmap(self.shared.fileno(), value), np.uint8)
            return None
        if do == "gather":
            return self.gather(STEP, name, value)[:, : len(value)]
        self.gather(STEP, f"{do} {name}")
        if do == "everyone":
            return self.comm.allgather(value)
        if do == "share":
            return self.comm.bcast(value, 0)
        kind, offset, count = value
        array = self.memory[offset : offset + count * np.dtype(kind).itemsize].view(kind)
        if do == "sum":
            self.finish_large(self.comm.Iallreduce(self.mpi.IN_PLACE, array), name)
        else:
            self.finish_large(self.comm.Ibcast(array, 0), name)
        return None

    # The end

    def end(self, status: int, ended: Optional[Ended] = None, words: str = "") -> int:
        """The status of all ranks, once each has come to its end; the rank at fault says why.

        `status` is that of the child, `ended` what ended it, if that was another rank, `words` why it ended.
        """
        if words:
            self.words.append(words)
        if ended is None:
            if status and not self.agreed:
                self.tell_fault(status, self.rank)
            ended = Fault(status, self.rank)
        if isinstance(ended, Fault):
            try:
                self.gather(END, "the end", [ended.status, ended.speaker])
            except Ended as verdict:
                ended = verdict
        if ended.speaker == self.rank:
            self.say_why(self.words)
        self.close()
        return ended.status

    def close(self) -> None:
        """Leave MPI when all ranks do, with nothing left unread."""
        request = self.comm.Ibarrier()
        end = time.monotonic() + GRACE
        while not request.Test() and time.monotonic() < end:
            self.listen("ends")
            time.sleep(1e-4)
        self.listen("ends")
        if time.monotonic() < end:
            self.mpi.Finalize()


def patience() -> float:
    """For how many seconds a rank is waited for."""
    text = os.environ.get(PATIENCE, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"{PATIENCE} is {text!r}; expected a number of seconds above 0.")
    return seconds


def import_mpi(rank: int, size: int) -> Any:
    """The module MPI of mpi4py, with MPI started.

    Raises
    ------
    UsageError : it is missing, or finds no MPI.
    """
    with not_for_ever(size, patience()):
        try:
            import mpi4py

            mpi4py.rc.thread_level = "funneled"
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            abort_before_init(2)
            raise UsageError(
                f"a launcher started this as rank {rank} of {size}, and mpi4py does not load ({error}). "
                f"Install '.[distributed]' for {sys.executable}, on CPython 3.8 or newer, or start one process, "
                "without a launcher."
            ) from error
    return MPI


@contextmanager
def not_for_ever(size: int, seconds: float) -> Iterator[None]:
    """End this process if it is still in here after some seconds, as MPI waits for ranks that never began.

    MPI_Init keeps the interpreter to itself, so that no thread could see to it; another process does.
    """
    if not hasattr(os, "fork"):
        yield
        return
    reading, writing = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        os.close(writing)
        if not select.select([reading], [], [], seconds)[0]:
            os.write(2, f"MPI did not begin within {seconds:.0f} s: not all of {size} ranks have come.\n".encode())
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.wait()
