"""Ranks take their steps together, and end together: one status, one reason, from the rank at fault, and no hang."""

import os
import select
import signal
import subprocess
import sys
import time

import mpi4py  # noqa: F401, without which there are no ranks
import numpy as np
import pytest
from support.ranks import TESTS, finish, run_job, start_ranks

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.files import file_in_memory
from multilabel_softmax_loss.parallel.hub import Hub
from multilabel_softmax_loss.parallel.launcher import environment_of_child, import_mpi, launched
from multilabel_softmax_loss.parallel.ranks import Ranks


@pytest.mark.parametrize("machines", [1, 4])
def test_ranks_share_gather_and_add_up(machines):
    """In each other's memory on one machine, by messages where MPI takes each rank for a machine of its own."""
    threads = max(1, len(os.sched_getaffinity(0)) // (4 // machines))
    outcome = run_job("sums", 4, OMP_NUM_THREADS="", MPIR_CVAR_NOLOCAL=str(int(machines > 1)))
    words = f"all well; the hub sees {4 // machines} memories; {threads} threads; a terminal: False\n"
    assert outcome == (0, words, "warning: a doubt\n")  # which is told once


def test_a_process_of_the_same_number_in_another_container_is_not_taken_for_a_rank():
    hub = Hub.__new__(Hub)
    hub.rank, hub.size, hub.on_one_node, hub.shared = 0, 2, True, file_in_memory()
    hub.shared.truncate(8)

    def gather(kind, name, numbers):
        other = [*numbers[:2], numbers[2] + 1] if len(numbers) == 3 else numbers
        return np.array([numbers, other], float)

    hub.gather = gather
    with hub.shared:
        hub.map("the common memory", 8)
    assert hub.memories == []


@pytest.mark.parametrize(
    "size, how, busy, expected, words",
    [
        (4, "sentence", "busy", 2, "error: rank 3: a bad label\n"),
        (2, "traceback", "", 2, "ZeroDivisionError: a fault of a layer\n"),
        (2, "status 1", "busy", 1, "error: rank 1: the loss is nan\n"),
        (
            4,
            "killed",
            "busy",
            2,
            "error: rank 3: Caffe died of signal 9 (SIGKILL), as the system sends where memory "
            "is short, or a time is over\n",
        ),
        (2, "abort", "", 2, "error: rank 1: Caffe stopped, since net.cpp:41 says: Check failed: torn\n"),
        (2, "finished early", "", 2, "error: rank 1 ended while others go on\n"),
        (2, "another step", "", 2, "rank 0 'the next step', rank 1 'another step'\n"),
    ],
)
def test_a_rank_at_fault_ends_all_with_its_status_and_its_reason(size, how, busy, expected, words):
    begun = time.monotonic()
    status, output, errors = run_job("fail", size, how, busy)
    assert (status, output) == (expected, "")
    assert errors.endswith(words)
    assert errors.count("error: rank") + errors.count("error: the ranks") == 1
    assert time.monotonic() - begun < 30  # where busy ranks would work on for 60 seconds


@pytest.mark.parametrize("how, state", [("hang", "is at work since the start"), ("hub stopped", "does not answer")])
def test_a_rank_that_does_not_come_is_named(how, state):
    status, _, errors = run_job("fail", 2, how, patience=1)
    assert status == 2
    assert f"no answer at the next step for 1 s: rank 1 {state}" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "how, words",
    [
        ("asked", "rank 1: interrupted before there was anything to keep."),
        ("asked twice", "rank 1: ended at once, as it was asked to twice."),
    ],
)
def test_one_rank_that_is_asked_to_end_ends_all_and_says_so(how, words):
    status, output, errors = run_job("fail", 2, how, "busy")
    assert (status, output, errors) == (130, "", f"python -m multilabel_softmax_loss train: {words}\n")


def test_ranks_do_not_outlive_the_launcher_s_proxy():
    """Their launcher hangs until they have ended."""
    begun = time.monotonic()
    status, _, _ = run_job("fail", 2, "proxy killed", "busy")
    assert status
    assert time.monotonic() - begun < 30


def test_what_is_wrong_for_all_is_told_once():
    status, _, errors = run_job("all_fail", 2)
    assert (status, errors.count("no such file")) == (2, 1)


def test_what_is_wrong_for_one_is_wrong_for_all():
    status, _, errors = run_job("one_of_together", 2)
    assert status == 2
    assert errors.endswith("error: rank 1: no such file here\n")


def test_ranks_without_mpi4py_say_so_and_not_each_of_them(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('it is not installed')")
    status, _, errors = finish(start_ranks(3, "-m", "multilabel_softmax_loss", "train", "x", PYTHONPATH=str(tmp_path)))
    assert (status, errors.count("rank 0 of 3, and mpi4py does not load (it is not installed)")) == (2, 1)
    assert errors.count("error:") < 3  # and but for a busy machine 1


@pytest.mark.parametrize(
    "numpy, expected, words",
    [
        ("import time; print('begins', flush=True); time.sleep(100)", 130, "interrupted before there was anything"),
        ("raise ImportError('no NumPy on this node')", 2, "ImportError: no NumPy on this node"),
    ],
)
def test_a_rank_that_ends_before_it_starts_mpi_ends_those_that_wait_in_it(numpy, expected, words, tmp_path):
    (tmp_path / "numpy.py").write_text(numpy)
    command = [sys.executable, "-m", "multilabel_softmax_loss", "train", "x"]
    other = [":", "-n", "1", "-env", "PYTHONPATH", tmp_path, *command]
    process = start_ranks(1, *command[1:], *other, stderr=subprocess.STDOUT)
    if expected == 130:
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.5)  # rank 0 is in MPI_Init, or nearly
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    status, output, _ = finish(process)
    assert (status, output.count(words)) == (expected, 1), output
    assert time.monotonic() - began < 10


WORDS = """
import sys, time
from multilabel_softmax_loss.parallel.launcher import wait_until_read
print("words", file=sys.stderr, flush=True)
wait_until_read()
print(time.monotonic())
"""


def test_the_end_of_all_waits_until_its_reason_was_read():
    """As a launcher that is slow to read it would else end all first."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WORDS], **pipes)
    select.select([process.stderr], [], [])
    time.sleep(0.1)  # it would go on at once
    before = time.monotonic()
    assert process.stderr.readline() == "words\n"
    assert float(process.communicate()[0]) > before


def test_a_signal_to_the_launcher_reaches_every_rank():
    """And it is known that there is a terminal, though the launcher gives its ranks pipes."""
    ours, theirs = os.openpty()
    process = start_ranks(2, TESTS / "support" / "ranks.py", "interrupted", stderr=theirs, PYTHONPATH=str(TESTS))
    assert process.stdout.readline() == "ready; a terminal: True\n"
    process.send_signal(signal.SIGTERM)
    status, output, _ = finish(process)
    assert (status, output.splitlines()[-1]) == (130, "stopped")
    os.close(ours)
    os.close(theirs)


def test_one_process_imports_nothing_of_mpi():
    code = "import sys, multilabel_softmax_loss.commands.child; sys.exit(any('mpi4py' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_alone_a_process_is_all_ranks():
    alone = Ranks()
    assert alone.gather([3, 4], "here").tolist() == [[3, 4]]
    assert alone.everyone("x", "here") == ["x"]
    assert alone.share("x", "here") == "x"
    assert not alone.any([], "here")
    assert not alone.tell("a reason")


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_NTASKS": "4"}, None),  # a shell in an allocation
        ({"PMIX_RANK": "2", "SLURM_NTASKS": "4"}, (2, 4)),
    ],
)
def test_the_launcher_is_known_by_its_environment(environment, expected, monkeypatch):
    for name in ("PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
    assert not {"PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"} & set(environment_of_child(1))


def test_mpi4py_takes_the_mpi_of_the_launcher(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(os, "environ", {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="mpi4py does not load"):
        import_mpi(0, 2)
    assert os.environ["MPI4PY_MPIABI"] == "openmpi"


def test_the_readme_has_the_arithmetic_of_many_nodes():
    folder = TESTS.parent / "examples" / "distributed"
    made = subprocess.run([sys.executable, folder / "arithmetic.py"], check=True, capture_output=True, text=True).stdout
    assert made in (folder / "README.md").read_text()
