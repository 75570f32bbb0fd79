"""Two ranks beside one process on the digits net, and how fast ranks add up: prints the tables of the README.

    .venv/bin/python examples/distributed/speed.py              # both parts, two minutes
    .venv/bin/python examples/distributed/speed.py --part sums

The same solver with the whole batch on one process of one thread, and with half of it on each of two ranks of one
thread, one after the other, several times. Between them two processes that know nothing of each other have half the
batch each: so fast two ranks could be that told each other nothing. The times are those of the iterations alone, from
history.csv; they mean something on an idle machine only, and the load is printed beside them.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from multilabel_softmax_loss.commands.child import join_ranks, run_as_rank
from multilabel_softmax_loss.commands.history import read_history
from multilabel_softmax_loss.parallel.ranks import ranks

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "digits"))

import data  # noqa: E402, of the digits example
from net import digits_net  # noqa: E402

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
PATHS = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
SIZES = (24_202, 1_000_000, 25_000_000)  # floats: the digits net, and up to ResNet-50


def write_solver(folder, source, batch, iterations):
    """A solver of the digits net with this batch size, without tests."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.prototxt").write_text(str(digits_net(str(source), batch)))
    path = folder / "solver.prototxt"
    settings = f'base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: {iterations} random_seed: 0 type: "SGD"'
    path.write_text(f'net: "{folder}/net.prototxt" {settings}\n')
    return path


def run(solver, launcher=(), copies=1):
    """Seconds per iteration without the first ten: the median and the least, of the slowest of `copies`."""
    folders = [solver.parent / f"run{copy}" for copy in range(copies)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    train = [sys.executable, "-m", "multilabel_softmax_loss", "train", str(solver), "--out"]
    processes = [
        subprocess.Popen([*launcher, *train, str(folder)], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        for folder in folders
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        sys.exit("a training failed")
    found = []
    for folder in folders:
        ends = [row["seconds"] for row in read_history(str(folder / "history.csv")).rows]
        steps = [later - earlier for earlier, later in zip(ends[10:], ends[11:])]
        found.append((statistics.median(steps), min(steps)))
    return max(found)


def compare_training(arguments):
    """The table of trainings."""
    output = HERE / "output"
    source = data.write_splits(output / "seed0", 0) / "train.txt"
    half = arguments.batch // 2
    whole = write_solver(output / "whole", source, arguments.batch, arguments.iterations)
    part = write_solver(output / "half", source, half, arguments.iterations)
    cases = {
        f"one process x {arguments.batch}": (whole,),
        f"two processes x {half}, apart": (part, (), 2),
        f"two ranks x {half}": (part, (MPIEXEC, "-n", "2")),
    }
    found = {name: [] for name in cases}
    for _ in range(arguments.repeat):  # in turn, so that what else goes on meets all alike
        for name, case in cases.items():
            found[name].append(run(*case))
    alone = min(next(iter(found.values())))[0]
    print("| | ms per iteration, best median (minimum) | samples per second | speed-up |\n|---|---|---|---|")
    for name, times in found.items():
        median, least = min(times)[0], min(least for _, least in times)
        rate = f"{arguments.batch / median:.0f}"
        print(f"| {name} | {1e3 * median:.1f} ({1e3 * least:.1f}) | {rate} | {alone / median:.2f} |")


def best(function, repeat):
    """The least seconds of a step that all ranks take, which begin together."""
    times = []
    for _ in range(repeat):
        ranks.gather([], "the beginning of a step")
        begin = time.perf_counter()
        function()
        times.append(max(ranks.everyone(time.perf_counter() - begin, "the seconds of a step")))
    return min(times)


def time_sums(arguments):
    """The table of sums, on each rank; rank 0 prints it."""
    memory = ranks.memory(4 * max(SIZES)).view(np.float32)
    memory[:] = 1
    print("| floats | sum of two ranks | both copy as much | of the bandwidth |\n|---|---|---|---|")
    for size in SIZES:
        other = np.ones(size, np.float32)
        repeat = 10 if size > 10**6 else 100
        adding = best(partial(ranks.sum, [("<f4", 0, size)], [], "a sum"), repeat)
        copying = best(partial(np.copyto, other, memory[:size]), repeat)
        print(f"| {size:,} | {1e3 * adding:.2f} ms | {1e3 * copying:.2f} ms | {copying / adding:.0%} |", flush=True)
    return 0


def main():
    if sys.argv[1:] == ["--rank"]:  # one of two, started below
        job = SimpleNamespace(run=time_sums), SimpleNamespace(command="train")
        sys.exit(run_as_rank(join_ranks("train"), [], lambda argv: job))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("training", "sums", "both"), default="both", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="samples per iteration (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="of each training (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="trainings of each (default %(default)s)")
    arguments = parser.parse_args()
    if MPIEXEC is None:
        parser.error("there is no mpiexec; pip install mpich, or load the module of the site's MPI")
    if arguments.part != "sums":
        compare_training(arguments)
        print(flush=True)
    if arguments.part != "training":
        subprocess.run([MPIEXEC, "-n", "2", sys.executable, __file__, "--rank"], check=True, env=ENVIRONMENT)
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")


if __name__ == "__main__":
    import speed  # this file, under the name by which a child finds it

    speed.main()
