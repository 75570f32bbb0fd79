"""Two ranks beside one process on the digits net: prints the table of the README.

    .venv/bin/python examples/distributed/speed.py

The same solver with the whole batch on one process of one thread, and with half of it on each of two ranks of one
thread, one after the other, several times. The times are those of the iterations alone, from history.csv; wall times
mean something on an idle machine only, and the load is printed beside them.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "digits"))

import data  # noqa: E402
from net import digits_net  # noqa: E402

from multilabel_softmax_loss.commands.history import read_history  # noqa: E402

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))


def write_solver(folder, source, batch, iterations):
    """A solver of the digits net with this batch size, without tests."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.prototxt").write_text(str(digits_net(str(source), batch)))
    path = folder / "solver.prototxt"
    settings = f'base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: {iterations} random_seed: 0 type: "SGD"'
    path.write_text(f'net: "{folder}/net.prototxt" {settings}\n')
    return path


def run(folder, solver, ranks):
    """Seconds per iteration, the median without the first ten."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "multilabel_softmax_loss", "train", str(solver), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ends = [row["seconds"] for row in read_history(str(out / "history.csv")).rows]
    steps = [later - earlier for earlier, later in zip(ends[10:], ends[11:])]
    return statistics.median(steps), min(steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="samples per iteration (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=60, help="of each run (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default %(default)s)")
    arguments = parser.parse_args()
    if MPIEXEC is None:
        parser.error("there is no mpiexec; pip install mpich, or load the module of the site's MPI")
    output = HERE / "output"
    source = data.write_splits(output / "seed0", 0) / "train.txt"
    found = {1: [], 2: []}
    for _ in range(arguments.repeat):  # in turn, so that what else goes on meets both alike
        for ranks, times in found.items():
            folder = output / f"{ranks}x{arguments.batch // ranks}"
            solver = write_solver(folder, source, arguments.batch // ranks, arguments.iterations)
            times.append(run(folder, solver, ranks))
    alone = min(median for median, _ in found[1])
    print(
        "| ranks x batch | ms per iteration, best median (minimum) | samples per second | speed-up |\n|---|---|---|---|"
    )
    for ranks, times in found.items():
        median, least = min(times)[0], min(least for _, least in times)
        cells = f"{1e3 * median:.1f} ({1e3 * least:.1f}) | {arguments.batch / median:.0f} | {alone / median:.2f}"
        print(f"| {ranks} x {arguments.batch // ranks} | {cells} |")
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
