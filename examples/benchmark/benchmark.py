"""Time the loss layers in real Caffe nets beside Caffe's own, a loop layer and PyTorch, as training meets them.

    python examples/benchmark/benchmark.py                                # all shapes
    python examples/benchmark/benchmark.py --shapes 256x1000 --seconds 3
    python examples/benchmark/benchmark.py --torch PYTHON                 # an interpreter that has PyTorch
    python examples/benchmark/benchmark.py --write                        # put the figures into the READMEs, too

Each time is of one forward and one backward of the loss. Two regimes: back to back, and in training, where about 5 ms
of other work (matrix products of Caffe's BLAS, memory gone through) lie between two calls. Two states: untrained, with
random scores, and trained, with all positions certain of their label. The contenders take turns in short rounds, each
in a process of its number of threads, so that what else the machine does meets all of them. Prints a table for each
shape as it goes, and writes benchmark.json and benchmark.png into the output folder. A run that was interrupted goes on
where it was.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import report

from multilabel_softmax_loss.commands.terminal import columns, duration

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHAPES = {
    "64x20": (64, 20),
    "256x228": (256, 228),
    "256x1000": (256, 1000),
    "128x17000": (128, 17000),
    "4x21x256x256": (4, 21, 256, 256),
    "256x100000": (256, 100000),  # labels as lists of indices
}
CAFFE = (
    "ours, softmax",
    "ours, softmax, dense label",
    "ours, softmax, several labels",
    "ours, sigmoid",
    "SoftmaxWithLoss",
    "SigmoidCrossEntropyLoss",
)
TORCH = ("PyTorch cross_entropy", "PyTorch BCE")
ROUNDS = 5


class Worker:
    """A process of worker.py: the contenders of one library with one number of threads."""

    def __init__(self, python, library, threads, wanted, suffix="", **environment):
        self.wanted, self.suffix = wanted, f"{suffix}, {threads} thread{'s' if threads > 1 else ''}"
        # Set before NumPy, numba and Caffe are imported.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOG_minloglevel": "2", **environment}
        command = [python, str(HERE / "worker.py"), library, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def ask(self, **request):
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"benchmark.py: {' '.join(self.process.args)} ended with status {self.process.wait()}")
        return json.loads(answer.decode())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def start_workers(torch, most_threads):
    """One for each library and number of threads; the loop layer and NumPy use one thread whatever they are given."""
    counts = sorted({1, most_threads})
    python = sys.executable
    workers = [Worker(python, "caffe", n, (*CAFFE, *(["loop layer"] if n == 1 else []))) for n in counts]
    numpy = {"MULTILABEL_SOFTMAX_LOSS_KERNELS": "numpy"}
    workers.append(Worker(python, "caffe", 1, ["ours, softmax"], " without numba", **numpy))
    return workers + [Worker(torch, "torch", n, TORCH) for n in counts if torch]


def measure(shape, seconds, workers):
    """All times of each contender, by regime and state: {"in training": {"trained": {contender: [seconds]}}}."""
    contenders = [
        (worker, name, once)
        for worker in workers
        for name, once in worker.ask(shape=shape, wanted=list(worker.wanted)).items()
    ]
    times = {regime: {state: {} for state in report.STATES} for regime in report.REGIMES}
    cells = [(regime, state) for state in report.STATES for regime in report.REGIMES]
    for number in range(ROUNDS):
        for regime, state in cells:
            for worker, name, once in contenders:
                if number and once > seconds:
                    continue  # such as the loop layer: one call says enough
                request = {"contender": name, "regime": regime, "state": state, "seconds": seconds / ROUNDS}
                samples = times[regime][state].setdefault(name + worker.suffix, [])
                samples += worker.ask(**request)
    return times


def summary(times):
    """The minimum and the median of each list of times, in seconds."""
    return {
        regime: {
            state: {name: {"min": min(t), "median": sorted(t)[len(t) // 2]} for name, t in contenders.items()}
            for state, contenders in states.items()
        }
        for regime, states in times.items()
    }


def settings_of(arguments, threads):
    """What has to be equal for two runs to be parts of one."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("multilabel_softmax_loss/**/*.py"), *HERE.glob("*.py")]):
        digest.update(path.read_bytes())
    return {"threads": threads, "seconds": arguments.seconds, "torch": arguments.torch, "sources": digest.hexdigest()}


def read_unfinished(path, settings):
    """Shapes that an interrupted run of the same settings has measured."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found["shapes"] if found["settings"] == settings else {}


def main():
    arguments = parse_arguments()
    threads = arguments.threads or len(os.sched_getaffinity(0))
    settings = settings_of(arguments, threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.output / "unfinished.json"
    done = read_unfinished(unfinished, settings)
    left = [name for name in arguments.shapes if name not in done]
    if len(left) < len(arguments.shapes):
        print(f"Going on from {unfinished}: {', '.join(done)} measured already.")
    print(
        f"About {estimate(arguments, threads, left)}, and a minute more where the kernels are compiled first; "
        f"a table follows for each of {len(left)} shapes.",
        flush=True,
    )
    workers = start_workers(arguments.torch, threads) if left else []
    for name in left:
        started = time.monotonic()
        done[name] = summary(measure(SHAPES[name], arguments.seconds, workers))
        unfinished.write_text(json.dumps({"settings": settings, "shapes": done}))
        print(f"\n{report.table(name, done[name], columns())}({duration(time.monotonic() - started)})", flush=True)
    for worker in workers:
        worker.close()
    results = {"threads": threads, "shapes": {name: done[name] for name in arguments.shapes}}
    (arguments.output / "benchmark.json").write_text(json.dumps(results, indent=1))
    unfinished.unlink()
    report.draw(results, arguments.output / "benchmark.png")
    print(f"Written: {arguments.output}/benchmark.json and benchmark.png")
    if arguments.write:
        report.write_readmes(results, ROOT)
        (HERE / "benchmark.png").write_bytes((arguments.output / "benchmark.png").read_bytes())
        print("Written: the tables of README.md and examples/benchmark/README.md, and benchmark.png beside that")


def estimate(arguments, threads, shapes):
    """How long it will take, in words."""
    contenders = (1 if threads == 1 else 2) * (len(CAFFE) + (len(TORCH) if arguments.torch else 0)) + 2
    cells = contenders * len(report.STATES) * len(report.REGIMES)
    seconds = len(shapes) * (cells * arguments.seconds + 10) + 15  # some contenders take longer than they are given
    return duration(seconds)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--threads", type=int, help="besides one (default: as many as there are cores)")
    parser.add_argument("--seconds", type=float, default=1, help="for each contender, regime and state (default 1)")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch; without it, it is left out")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="default: examples/benchmark/output")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md and the one beside this")
    return parser.parse_args()


if __name__ == "__main__":
    main()
