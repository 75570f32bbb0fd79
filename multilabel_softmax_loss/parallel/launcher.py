"""Who started this process, as the environment tells: a launcher, as one of several ranks, or nobody; MPI itself."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable, Iterator, Optional, Tuple

from ..errors import UsageError, end_interrupted

READ = 3.0  # seconds in which a launcher has read what it is told, or never will
PATIENCE = "MULTILABEL_SOFTMAX_LOSS_PATIENCE"  # the environment variable; seconds

# Rank and number of ranks, as the launchers of MPICH, Intel MPI and `srun --mpi=pmi2`, Open MPI, and `srun --mpi=pmix`
# name them.
NAMES = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ("PMIX_RANK", "SLURM_NTASKS"),
)
PREFIXES = ("PMI_", "PMI2_", "PMIX_", "OMPI_", "MPI_LOCAL", "HYDRA_", "HYDI_")


def launched() -> Optional[Tuple[int, int]]:
    """(rank, number of ranks) where a launcher started several, else None."""
    for rank, size in NAMES:
        with suppress(KeyError, ValueError):
            found = int(os.environ[rank]), int(os.environ[size])
            return found if found[1] > 1 else None
    return None


def environment_of_child(threads: int) -> dict:
    """The environment for a process that must not take itself for a rank, with its share of the cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    kept["OMP_NUM_THREADS"] = kept.get("OMP_NUM_THREADS") or str(threads)
    return kept


def cores() -> set:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def has_terminal() -> bool:
    """Whether the standard error comes to a terminal, to which a launcher of this machine may hand it on (Linux)."""
    process = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        while process > 1 and not sys.stderr.isatty():
            with open(f"/proc/{process}/stat") as file:
                name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("mpiexec", "mpirun", "orterun", "prterun")):
                return os.readlink(f"/proc/{process}/fd/2").startswith(("/dev/pts/", "/dev/tty"))
            process = int(rest.split()[1])
    return sys.stderr.isatty()


def end_all(status: int, say_why: Callable[[], None] = lambda: None) -> int:
    """Have the launcher end all ranks where this one cannot start MPI, as they would wait for it in MPI_Init.

    The lowest rank at fault says why. The end is the abort command of the PMI-1 wire protocol, which MPICH, its kin and
    Slurm speak over a file descriptor.
    """
    found = launched()
    if found is not None:
        time.sleep(0.5 * min(found[0], 6))  # lower ranks come first, and that ends this one
    say_why()
    with suppress(KeyError, ValueError, OSError):
        descriptor = int(os.environ["PMI_FD"])
        wait_until_read()
        os.write(descriptor, f"cmd=abort exitcode={status}\n".encode())
    return status


def wait_until_read() -> None:
    """Wait until the launcher has read what was written to the standard error, which the end of all may overtake."""
    with suppress(ImportError, OSError):
        from fcntl import ioctl
        from termios import FIONREAD

        end = time.monotonic() + READ
        while stat.S_ISFIFO(os.fstat(2).st_mode) and any(ioctl(2, FIONREAD, bytes(4))) and time.monotonic() < end:
            time.sleep(1e-3)


def end_early(number: int, frame: Any) -> None:
    """End this process, which a signal asks to before it has met other ranks, and those, which may wait for it."""
    os._exit(end_all(130, partial(end_interrupted, " ".join(sys.argv[1:2]), end=lambda status: None)))


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
    if "OMPI_COMM_WORLD_RANK" in os.environ:  # mpi4py takes the first MPI that it finds, which may be another one
        os.environ.setdefault("MPI4PY_MPIABI", "openmpi")
    with not_for_ever(size, patience()):
        try:
            import mpi4py

            mpi4py.rc.thread_level = "funneled"
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
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
            wait_until_read()
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.wait()
