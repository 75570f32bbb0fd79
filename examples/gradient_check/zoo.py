"""Show the gradient checker every layer of the zoo: what it says, beside what Caffe's own criterion says.

    python examples/gradient_check/zoo.py          # the table of README.md
    python examples/gradient_check/zoo.py --short  # batch 2 only

Caffe's criterion is that of GradientChecker in its C++ tests: with a loss weight of 2, every analytic slope a and
numeric slope n at step 0.01, in float32, must satisfy |a - n| <= 0.01 max(|a|, |n|, 1). The 1 is an absolute floor.
A run that was interrupted goes on where it was.
"""

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("GLOG_minloglevel", "2")

from layer_zoo import DEFECTS, RIGHT, UNTELLABLE, WARNED, Cage

from multilabel_softmax_loss import check_layer
from multilabel_softmax_loss.commands.terminal import duration
from multilabel_softmax_loss.gradient_check.runners import CaffeRunner, Spec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BATCHES = (2, 32, 256)
SECONDS = 1  # for a layer and a batch, on a core of a server
COORDINATES = 200  # probed by Caffe's criterion, which itself probes all; enough to tell and quick


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="batch 2 only")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="where an interrupted run is kept")
    arguments = parser.parse_args()
    batches = BATCHES[:1] if arguments.short else BATCHES
    groups = (("fail", DEFECTS), ("pass, warned", WARNED), ("pass", RIGHT), ("inconclusive", UNTELLABLE))
    todo = [(expected, cage) for expected, cages in groups for cage in cages]
    arguments.output.mkdir(exist_ok=True)
    unfinished = arguments.output / "unfinished.json"
    settings = {"batches": list(batches), "sources": digest_of_sources()}
    rows = read_unfinished(unfinished, settings)
    estimate = duration((len(todo) - len(rows)) * len(batches) * SECONDS)
    print(f"{len(todo) - len(rows)} of {len(todo)} layers to go, about {estimate}", file=sys.stderr)
    print("| layer | has to be | " + " | ".join(f"batch {n}" for n in batches) + " | named | Caffe's criterion |")
    print("|---|---|" + "---|" * (len(batches) + 2))
    for number, (expected, cage) in enumerate(todo):
        if number == len(rows):
            rows.append(judge(expected, cage, batches))
            unfinished.write_text(json.dumps({"settings": settings, "rows": rows}))
        print(f"| {' | '.join(rows[number]['cells'])} |", flush=True)
    unfinished.unlink()
    right, told = (sum(row[name] for row in rows) for name in ("right", "told"))
    count = len(rows) * len(batches)
    print(f"\nRight verdicts: this checker {right} of {count}, Caffe's criterion {told} of {count}.")
    return 0 if right == count else 1


def judge(expected: str, cage: Cage, batches) -> dict:
    """A row of the table, and how many verdicts in it are right: of this checker, and those that Caffe's tells."""
    reports = [ours(cage, batch) for batch in batches]
    theirs = [by_child(caffe_says, cage, batch) for batch in batches]
    verdicts = [in_short(report) for report in reports]
    names = ", ".join(dict.fromkeys(name for report in reports for name in report.names)) or "-"
    wanted = expected.split(",")[0]
    return {
        "cells": [label(cage), expected, *verdicts, names, ", ".join(theirs)],
        "right": verdicts.count(expected),
        "told": sum(verdict == wanted or (wanted == "fail" and verdict != "pass") for verdict in theirs),
    }


def digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("multilabel_softmax_loss/**/*.py"), *HERE.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_unfinished(path: Path, settings: dict) -> list:
    """The rows of an interrupted run of the same settings."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return found["rows"] if found["settings"] == settings else []


def in_short(report) -> str:
    return report.verdict + (", warned" if report.verdict == "pass" and report.warnings else "")


def label(cage: Cage) -> str:
    options = ", ".join(f"{value}" for value in cage.arguments.values() if value)
    return f"`{cage.name}`" + (f" {options}" if options else "")


def ours(cage: Cage, batch: int):
    return check_layer(cage.module, cage.layer.__name__, cage.bottoms(batch), **cage.arguments)


def by_child(says, cage: Cage, batch: int) -> str:
    """What `says` answers in a process of its own; "aborts" where Caffe ends that one, as a native CHECK does."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def answer():
        faulthandler.disable()  # to abort is an answer here
        sender.send(says(cage, batch))

    child = multiprocessing.get_context("fork").Process(target=answer)
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = ""
    child.join()
    if child.exitcode == 0:
        return answer
    if child.exitcode == -signal.SIGABRT:
        return "aborts"
    raise RuntimeError(f"Caffe's criterion on {cage.name} ended with exit code {child.exitcode}.")


def caffe_says(cage: Cage, batch: int) -> str:
    """pass or fail, by |a - n| <= threshold max(|a|, |n|, 1) of every top, bottom and parameter entry."""
    step, threshold, scale = 1e-2, 1e-2, 2.0
    arrays = [bottom.copy() for bottom in cage.bottoms(batch)]
    tops = cage.arguments.get("tops", 1)
    weights = np.broadcast_to(cage.arguments.get("loss_weight", 1.0), (tops,))
    wrt = tuple(cage.arguments.get("wrt", (0,)))
    spec = Spec(cage.module, cage.layer.__name__, cage.arguments.get("param_str", ""), tops, (scale,) * tops, wrt)
    try:
        with np.errstate(all="ignore"):
            runner = CaffeRunner(spec, arrays)
            return "pass" if satisfied(runner, arrays, wrt, weights, step, threshold, scale) else "fail"
    except Exception:
        return "raises"


def satisfied(runner, arrays, wrt, weights, step, threshold, scale) -> bool:
    propagate = [i in wrt for i in range(len(arrays))]
    random = np.random.RandomState(1701)
    top = int(np.flatnonzero(weights)[0])
    shapes = [output.shape for output in runner.forward(arrays)]
    entries = random.permutation(int(np.prod(shapes[top], dtype=int)))[:3]
    parameters = runner.parameters()
    for entry in entries:
        diffs = [np.zeros(shape, dtype=np.float32) for shape in shapes]
        diffs[top].flat[entry] = scale
        runner.forward(arrays)
        gradients = runner.backward(diffs, propagate)
        for target in [*wrt, *range(len(arrays), len(arrays) + len(parameters))]:
            values = (arrays + parameters)[target]
            for k in random.permutation(values.size)[:COORDINATES]:
                objective = []
                for sign in (1, -1):
                    moved = values.copy()
                    moved.flat[k] += sign * step
                    if target < len(arrays):
                        outputs = runner.forward([moved if i == target else a for i, a in enumerate(arrays)])
                    else:
                        runner.set_parameters(
                            [moved if len(arrays) + i == target else p for i, p in enumerate(parameters)]
                        )
                        outputs = runner.forward(arrays)
                        runner.set_parameters(parameters)
                    objective.append(scale * float(outputs[top].flat[entry]))
                numeric = (objective[0] - objective[1]) / (2 * step)
                analytic = float(gradients[target].flat[k])
                if not abs(analytic - numeric) <= threshold * max(abs(analytic), abs(numeric), 1.0):
                    return False
    return True


if __name__ == "__main__":
    sys.exit(main())
