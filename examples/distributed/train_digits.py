"""Train the digits example on several ranks, with the batch that it has on one, and evaluate it on them.

    .venv/bin/python examples/distributed/train_digits.py            # two ranks

It writes the nets and the solver, as examples/digits does, and runs the two commands that it prints.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "digits"))

from solve import TRAIN_BATCH, read_solver, source_folder_of, write_nets, write_solver  # noqa: E402

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="default %(default)s")
    parser.add_argument("--iterations", type=int, default=read_solver().max_iter, help="default %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder to write into")
    arguments = parser.parse_args()
    if MPIEXEC is None:
        parser.error("there is no mpiexec; pip install mpich, or load the module of the site's MPI")
    if arguments.ranks < 1 or TRAIN_BATCH % arguments.ranks:
        parser.error(f"--ranks is {arguments.ranks}; expected a divisor of {TRAIN_BATCH}, the samples of an iteration")
    source_folder = source_folder_of(arguments.output, 0, False)
    folder = source_folder / f"{arguments.ranks}-ranks"
    folder.mkdir(exist_ok=True)
    nets = write_nets(folder, source_folder, "softmax", None)
    batch = f"batch_size: {TRAIN_BATCH // arguments.ranks}"
    nets["train"].write_text(nets["train"].read_text().replace(f"batch_size: {TRAIN_BATCH}", batch))
    solver = write_solver(folder, nets, arguments.iterations, 0)
    shutil.rmtree(folder / "run", ignore_errors=True)
    weights = folder / "run" / f"digits_iter_{arguments.iterations}.caffemodel"
    for words in (["train", solver], ["evaluate", nets["test"], weights]):
        command = [
            MPIEXEC,
            "-n",
            str(arguments.ranks),
            sys.executable,
            "-m",
            "multilabel_softmax_loss",
            *map(str, words),
        ]
        print(f"mpiexec -n {arguments.ranks} python -m {' '.join(command[5:])}", flush=True)
        status = subprocess.run(command).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
