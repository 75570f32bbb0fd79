"""The hub of a rank: the parent process, which meets the other ranks for its child, whatever becomes of that."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ..files import file_in_memory
from .launcher import environment_of_child, has_terminal
from .meeting import BUSY, END, STEP, Ended, Fault, Meeting

CHUNK = 1 << 20  # numbers that are told at once: the core's cache holds them; all of a large net take twice as long
NEAR = 1 << 16  # numbers that a rank adds up at once in the memories of all ranks of a machine
TICK = 0.05  # seconds between two looks at what other ranks tell, while the child works


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
    has_terminal: bool


class Hub(Meeting):
    """The meeting of ranks for a child process, which asks over a pipe; what is large lies in memory that both see."""

    def open(self) -> Place:
        """Where a child finds this hub, for the file descriptors it is to inherit."""
        self.memory = np.empty(0, np.uint8)
        self.memories: List[np.ndarray] = []  # of all ranks, where they share a machine
        self.doing, self.begun = "starting", time.monotonic()
        here, there = socket.socketpair()
        self.pipe = Connection(here.detach())
        self.shared = file_in_memory()
        return Place(self.rank, self.size, there.detach(), self.shared.fileno(), has_terminal())

    def environment(self) -> Dict[str, str]:
        return environment_of_child(self.threads)

    def serve(self, process: subprocess.Popen) -> Optional[Ended]:
        """Do what the child asks until it ends; or what ended all ranks meanwhile."""
        self.process, connection = process, self.pipe
        try:
            while True:
                if connection.poll(TICK):
                    request = connection.recv()
                    connection.send(self.do(request))
                    self.doing = f"{BUSY if request.do == 'busy' else 'is at work'} since {request.name}"
                    self.begun = time.monotonic()
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

    def is_blamed(self, ended: Ended) -> bool:
        """Whether all end as the child here did, of which the others knew first."""
        return ended.speaker == self.rank and not self.words

    def do(self, request: Request) -> Any:
        do, name, value = request
        if do == "tell":
            return self.words.append(value)
        if do == "busy":
            return None
        if do == "agree":
            self.agreed = True
            return None
        if do == "map":
            return self.map(name, value)
        if do == "gather":
            return self.gather(STEP, name, value)[:, : len(value)]
        places, numbers = value if do in ("sum", "broadcast") else ((), ())
        told = self.gather(STEP, f"{do} {name}", numbers)
        if do == "everyone":
            return self.comm.allgather(value)
        if do == "collect":
            return self.comm.gather(value, 0) or []
        if do == "share":
            return self.comm.bcast(value, 0)
        for kind, offset, count in places:
            end = offset + count * np.dtype(kind).itemsize
            if self.memories:
                self.join_near(do, [memory[offset:end].view(kind) for memory in self.memories], name)
                continue
            array = self.memory[offset:end].view(kind)
            for start in range(0, count, CHUNK):
                chunk = array[start : start + CHUNK]
                summing = do == "sum"
                step = self.comm.Iallreduce(self.mpi.IN_PLACE, chunk) if summing else self.comm.Ibcast(chunk, 0)
                self.finish_large(step, name)
        return told[:, : len(numbers)]

    def map(self, name: str, size: int) -> None:
        """Map the memory of `size` bytes that the child sees; and, on one machine, those of the other ranks."""
        self.memory = np.frombuffer(mmap.mmap(self.shared.fileno(), size), np.uint8)
        mine = [os.getpid(), self.shared.fileno(), os.fstat(self.shared.fileno()).st_ino]
        places = self.gather(STEP, name, mine)[:, :3].astype(int)
        self.memories = []
        with suppress(OSError, ValueError):  # such as ranks in containers of their own
            for rank, (pid, descriptor, number) in enumerate(places if self.on_one_node else ()):
                with open(f"/proc/{pid}/fd/{descriptor}", "r+b") as file:
                    if os.fstat(file.fileno()).st_ino != number:  # containers may give several processes one number
                        break
                    other = mmap.mmap(file.fileno(), size) if rank != self.rank else self.memory
                    self.memories.append(np.frombuffer(other, np.uint8))
        if self.gather(STEP, f"{name} of all", [len(self.memories)])[:, 0].min() < self.size:
            self.memories = []

    def join_near(self, do: str, arrays: List[np.ndarray], name: str) -> None:
        """Have the numbers in the memories of all ranks be their sum, or those of rank 0; each rank sees to a part.

        The sum of a number is made once, in order of the ranks.
        """
        first, last = (len(arrays[0]) * part // self.size for part in (self.rank, self.rank + 1))
        for start in range(first, last, NEAR):
            parts = [array[start : min(start + NEAR, last)] for array in arrays]
            with np.errstate(all="ignore"):  # the child looks at what comes of it
                for part in parts[1:] if do == "sum" else ():
                    parts[0] += part
            for part in parts[1:]:
                part[:] = parts[0]
        self.finish_large(self.comm.Ibarrier(), name)

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
        end = time.monotonic() + self.grace
        while not request.Test() and time.monotonic() < end:
            self.listen("ends")
            time.sleep(1e-4)
        self.listen("ends")
        if time.monotonic() < end:
            self.mpi.Finalize()
