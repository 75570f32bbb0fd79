"""Who started this process: a launcher of MPI, as one of several ranks, or nobody, as told by the environment."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Optional, Tuple

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


def abort_before_init(status: int) -> None:
    """Have the launcher end all ranks where this one cannot start MPI; they would wait for it in MPI_Init.

    This is the abort command of the PMI-1 wire protocol, which MPICH, its kin and Slurm speak over a file descriptor.
    """
    with suppress(KeyError, ValueError, OSError):
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={status}\n".encode())
