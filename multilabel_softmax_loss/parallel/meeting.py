"""Where ranks meet: steps that all of them take, what they tell each other besides, and how they end together.

Every step begins with a header from each rank: its name, and a few numbers. A rank that has to end answers the next
header with its end; then all ranks end, with one status, and the rank at fault says why. No step waits for a rank for
longer than PATIENCE: then it is asked, and what it is at is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from .launcher import PATIENCE, cores, import_mpi, patience, wait_until_read

NUMBERS = 14  # that a header has room for
STEP, END = 0, 1  # kinds of header
FAULT, ASK, ANSWER = 11, 12, 13  # tags of what ranks tell each other besides
BUSY = "is busy for all"  # how a rank is whose work the others have to wait for
LONGER = 10  # times PATIENCE for such work, and for the end
AWAKE = 2e-3  # seconds before a rank that waits goes to sleep: to wake it takes a tenth of a millisecond
GRACE = 3.0  # seconds for an answer, at most
NOBODY = -1


class Ended(Exception):
    """All ranks have met and end now, with this status; `speaker` says why."""

    def __init__(self, status: int, speaker: int):
        super().__init__(status, speaker)
        self.status, self.speaker = status, speaker


class Fault(Ended):
    """A rank told of its end, by which all have to meet."""


class Meeting:
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
        self.grace = min(GRACE, self.patience)
        self.mpi = import_mpi(rank, size)
        self.comm = self.mpi.COMM_WORLD
        self.rank, self.size = rank, size
        if self.comm.size != size:
            raise UsageError(
                f"the launcher started {size} ranks, but mpi4py sees {self.comm.size}: it belongs to another MPI. "
                "Start with the mpiexec of mpi4py's MPI (that of the mpich package is beside this Python)."
            )
        self.launcher = os.getppid()
        self.words: List[str] = []  # why this rank ends
        self.agreed = False  # all ranks know that they end now
        self.process: Optional[subprocess.Popen] = None
        self.has_told = False  # the other ranks of a fault here
        self.answers: Dict[int, str] = {}
        self.sent: List[Any] = []  # messages, kept until they are read
        self.threads = self.count_threads()

    def count_threads(self) -> int:
        """How many threads this rank may use: its share of the cores that it has in common with others of its node."""
        node = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        others = node.allgather(cores())
        self.on_one_node = len(others) == self.size
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
        self.wait(self.comm.Iallgather(sent, got), name, self.patience * (LONGER if kind == END else 1))
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
        pause, waited, last, longest = 2e-5, 0.0, time.monotonic(), patience
        while time.monotonic() - last < AWAKE:
            if request.Test():
                return
            os.sched_yield()  # to a rank that shares this core
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
                patience += longest

    def finish_large(self, request: Any, name: str) -> None:
        """Wait for a step to end to which all ranks have come; they do nothing else until it does."""
        last = time.monotonic()
        while not request.Test():
            if time.monotonic() - last > self.patience:
                self.abort(f"a rank does not answer any more at {name}, to which all {self.size} had come")
            if time.monotonic() - last < AWAKE:
                os.sched_yield()
            else:  # the others' hubs may need this core
                time.sleep(1e-4)

    # What ranks tell each other besides

    def listen(self, state: str) -> Optional[Fault]:
        """Read what others tell; what they tell of an end."""
        ended = None
        if os.getppid() != self.launcher and not self.has_told:
            self.words = ["the process of the launcher that started this rank is gone"]
            self.tell_fault(2, self.rank)
            ended = Fault(2, self.rank)
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
        if not self.has_told:
            self.has_told = True
            for other in range(self.size):
                if other != self.rank:
                    self.sent.append(self.comm.isend((status, speaker), other, FAULT))

    def ask(self, request: Any, name: str, waited: float) -> None:
        """Find out which ranks are missing, and have all ranks end."""
        self.answers = {}
        others = [other for other in range(self.size) if other != self.rank]
        for other in others:
            self.sent.append(self.comm.isend(None, other, ASK))
        end = time.monotonic() + self.grace
        state = f"waits for others at {name}"
        while time.monotonic() < end and len(self.answers) < len(others):
            if request.Test():
                return
            self.listen(state)
            time.sleep(1e-3)
        missing = [other for other in others if self.answers.get(other) != state]
        waiting = [other for other in others if other not in missing]
        is_busy = all(self.answers.get(other, "").startswith(BUSY) for other in missing)
        if not missing or min([*waiting, self.rank]) != self.rank or (is_busy and waited < LONGER * self.patience):
            return  # another rank speaks, or there is nothing to say yet
        text = "; ".join(f"rank {other} {self.answers.get(other, 'does not answer')}" for other in missing)
        self.words = [f"no answer at {name} for {waited:.0f} s: {text}. All ranks end. ({PATIENCE} sets the seconds.)"]
        self.tell_fault(2, self.rank)
        end = time.monotonic() + self.grace
        while time.monotonic() < end:
            if request.Test():
                return
            self.listen(state)
            time.sleep(1e-3)
        self.abort(self.words[0])

    def abort(self, text: str) -> None:
        """End all ranks where one does not answer any more, so that they cannot end together."""
        self.say_why([text])
        wait_until_read()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI has words of its own
        if self.process is not None:
            self.process.kill()
        self.comm.Abort(2)

    def say_why(self, words: Sequence[str]) -> None:
        for text in words:
            sys.stderr.write(f"{self.title}{text}\n")
        sys.stderr.flush()
