"""The command `train`: any solver and net, with metrics, curves, snapshots and bit-identical resuming."""

from __future__ import annotations

import ctypes
import math
import os
import random
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import NotFiniteError, UsageError, shortlist, unknown_name
from ..nets.data_layers import check_data, period, sources
from ..nets.heads import Head, find_heads
from ..nets.python_layers import LAYER_ERRORS, check_python_layers, python_layer_errors
from ..nets.reading import phase_layers, read_prototxt
from ..nets.weights import check_layers, copy_matching, not_finite, read_weights
from .child import PROGRAM, handling, tell
from .curves import draw_curves
from .preprocessing import write_preprocessing
from .snapshots import History, RunFolder

NEVER = 2**31 - 1  # Caffe wants a test_interval wherever there is a test net; the tests are made here
POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")
RANKING = ("mAP", "LRAP", "coverage")
LOWER_IS_BETTER = ("loss", "coverage", "error")

EXAMPLE = """example:
  python -m multilabel_softmax_loss train solver.prototxt --out run
  python -m multilabel_softmax_loss train solver.prototxt --out run --resume     (after Ctrl-C, a crash, or kill -9)

In DIR: history.csv (each iteration: losses, learning rate, and the metrics of the TEST net where it was tested),
curves.png, a snapshot at the solver's interval and at the end, best.caffemodel with best.json, and preprocessing.json
where it is known. Ctrl-C (or SIGTERM) ends the run with a snapshot, exit status 130. NaN ends it with status 1.
"""


class Diverged(Exception):
    """The loss or the weights are no longer finite."""


def add_arguments(parser: Any) -> None:
    parser.description = "Train a net as a solver says, with progress bar, metrics, curves, snapshots and resuming."
    parser.epilog = EXAMPLE
    parser.add_argument(
        "solver", metavar="SOLVER.prototxt", help="any solver; paths in it count from the folder where you start"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--weights", metavar="M", help="begin with the weights of this .caffemodel, layer by name")
    start.add_argument("--resume", action="store_true", help="go on from the newest complete snapshot in DIR")
    out = "folder of the run (default: the folder of snapshot_prefix, else SOLVER_run)"
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument("--best-by", metavar="METRIC", help="a column of the test (default: test_mAP, else its first)")
    parser.add_argument("-k", type=int, help="CF1@k and OF1@k decide for the k likeliest (default: 3)")
    parser.add_argument("--preprocessing", metavar="FILE", help="JSON file for `predict`, kept beside the weights")


def run(arguments: Any) -> int:
    try:
        summary = train(
            arguments.solver,
            out=arguments.out,
            weights=arguments.weights,
            resume=arguments.resume,
            best_by=arguments.best_by,
            k=arguments.k,
            preprocessing=arguments.preprocessing,
        )
    except Diverged as error:
        tell(arguments.command, str(error))
        return 1
    return 130 if summary["interrupted"] else 0


def train(
    solver: str,
    out: Optional[str] = None,
    weights: Optional[str] = None,
    resume: bool = False,
    best_by: Optional[str] = None,
    k: Optional[int] = None,
    preprocessing: Optional[str] = None,
) -> Dict[str, Any]:
    """Train as the command does; the keywords are its options.

    Before each iteration the seeds of Caffe, the C library and NumPy are set anew from the run's seed (the solver's
    random_seed, or one drawn at the start) and the iteration, so that no state of theirs needs to be kept.

    Returns
    -------
    dict : iteration, interrupted, out, weights (of the last snapshot), best (its record, or None)

    Raises
    ------
    UsageError : something is wrong with what was given.
    Diverged : the loss, or a weight, is not finite; the last good snapshot is kept.
    """
    param = read_prototxt(solver, "SolverParameter")
    if k is not None and k < 1:
        raise UsageError(f"-k is {k}; expected a whole number of at least 1.")
    prefix = os.path.basename(param.snapshot_prefix) or os.path.splitext(os.path.basename(solver))[0]
    folder = RunFolder(out or os.path.dirname(param.snapshot_prefix) or f"{os.path.splitext(solver)[0]}_run", prefix)
    if resume and not os.path.isdir(folder.path):
        raise UsageError(f"{folder.path} is no folder; expected the --out of the run to resume.")
    nets = solver_nets(param, solver)
    check_solver(param, solver)
    if weights is not None:
        read_weights(weights)
    try:
        if os.path.isdir(folder.path):
            folder.lock()
        with stopping() as stop, tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as outside:
            if not resume:
                folder.check_unused()
            manifest = folder.newest(say) if resume else None
            seed = manifest["seed"] if manifest else param.random_seed
            seed = random.SystemRandom().randrange(2**31) if seed < 0 else seed
            # Caffe takes a snapshot_prefix once, and tries it. A link lets the solver be made, or fail, before
            # anything is written in the run's folder, and then points into that folder.
            link = os.path.join(outside, "link")
            os.symlink(outside, link)
            run = Run(param, solver, nets, folder, os.path.join(link, prefix), seed, k, best_by, stop)
            if weights is not None:
                fresh = copy_matching(run.solver.net, weights, solver)
                if fresh:
                    say(f"{weights} has no weights for {shortlist(fresh)}, which begin afresh.")
            folder.lock()
            folder.clean()
            if manifest is None:
                write_preprocessing(folder.path, nets[0], preprocessing)
            with tempfile.TemporaryDirectory(prefix=f".{prefix}-", dir=folder.path) as inside:
                os.remove(link)
                os.symlink(os.path.abspath(inside), link)
                try:
                    run.start(manifest)
                    return run.loop()
                finally:
                    run.close()
    finally:
        folder.unlock()


def check_solver(param: Any, path: str) -> None:
    """Raise a UsageError for what Caffe would find missing or impossible at the first iteration only, or never."""
    if param.max_iter <= 0:
        raise UsageError(f"{path} has no max_iter; expected the number of iterations to train.")
    if not param.HasField("base_lr") or not math.isfinite(param.base_lr):
        given = f"base_lr {param.base_lr:g}" if param.HasField("base_lr") else "no base_lr"
        raise UsageError(f"{path} has {given}; expected the learning rate to start with.")
    if param.lr_policy not in POLICIES:
        raise UsageError(f"{path} has lr_policy {param.lr_policy!r}; expected one of {', '.join(POLICIES)}.")
    if param.iter_size < 1:
        raise UsageError(f"{path} has iter_size {param.iter_size}; expected at least 1.")


@contextmanager
def stopping() -> Iterator[List[int]]:
    """A list that is empty until this process is asked to end, by Ctrl-C or SIGTERM."""
    asked: List[int] = []
    with handling(lambda number, frame: asked.append(number)):
        yield asked


def say(text: str) -> None:
    """A line on the standard output, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def solver_nets(param: Any, path: str) -> Tuple[List[Any], List[List[Any]]]:
    """The layers of the solver's train net, and of each of its test nets, in Caffe's order."""

    def layers(named: Tuple[str, Any], phase: str, state: Any) -> List[Any]:
        file, net = named
        net = type(net).FromString(net.SerializeToString())
        net.state.MergeFrom(state)
        found = phase_layers(net, phase)
        check_python_layers(found, file)
        check_fed(net, found, file, phase)
        check_data(found, file)
        return found

    common = [(path, param.net_param)] if param.HasField("net_param") else []
    common = [(param.net, read_prototxt(param.net))] if param.net else common
    trains = [(param.train_net, read_prototxt(param.train_net))] if param.train_net else common
    trains = [(path, param.train_net_param)] if param.HasField("train_net_param") else trains
    if not trains:
        raise UsageError(f'{path} names no net; expected net: "train_val.prototxt" in it.')
    tests = [*((path, net) for net in param.test_net_param), *((name, read_prototxt(name)) for name in param.test_net)]
    tests += common * (len(param.test_iter) - len(tests))
    states = [*param.test_state, *[type(param.train_state)()] * len(tests)]
    return (
        layers(trains[0], "TRAIN", param.train_state),
        [layers(test, "TEST", state) for test, state in zip(tests, states)],
    )


def check_fed(net: Any, layers: Sequence[Any], path: str, phase: str) -> None:
    """Raise a UsageError where Input blobs, which stay all zero here, are all that feeds a net; warn where not all.

    Zeros may be meant beside data, as the first state of a recurrent layer.
    """
    inputs = [*net.input, *(top for layer in layers if layer.type == "Input" for top in layer.top)]
    if not inputs:
        return
    told = f"{path}: nothing feeds the Input blob {inputs[0]!r} of the {phase} net, which is all zeros."
    if all(layer.type == "Input" for layer in sources(layers)):
        raise UsageError(f"{told} Expected a layer that reads data, such as HDF5Data or Data, in place of the Input.")
    print(f"{PROGRAM} train: warning: {told}", file=sys.stderr)


def reseed(*key: int) -> None:
    """Seed all that Caffe, its layers and Python layers draw from, by the run's seed and the moment in the run."""
    import caffe

    seed = zlib.crc32(repr(key).encode()) & 0x7FFFFFFF
    caffe.set_random_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if os.name == "posix":
        ctypes.CDLL(None).srand(seed)  # HDF5Data shuffles by the C library's rand()


class Run:
    """A solver, its place in the run, and what is recorded of it."""

    def __init__(
        self,
        param: Any,
        path: str,
        nets: Tuple[List[Any], List[List[Any]]],
        folder: RunFolder,
        scratch: str,
        seed: int,
        k: Optional[int],
        best_by: Optional[str],
        stop: List[int],
    ):
        self.param, self.path, self.nets, self.folder, self.seed, self.k = param, path, nets, folder, seed, k
        self.scratch, self.stop = scratch, stop
        self.solver = self.make_solver()
        self.tests: List[int] = []  # the iterations at which the test nets were run
        self.seconds = 0.0
        self.weights: Optional[str] = None
        self.best: Optional[Dict[str, Any]] = None
        self.drawn, self.drawing = time.monotonic(), 0.25  # the first picture after 5 seconds
        self.history: Any = None  # opened by start()
        self.heads = [self.head_of(number) for number in range(len(self.solver.test_nets))]
        self.losses = loss_outputs(self.solver.net, path)
        self.test_columns = [name for number in range(len(self.heads)) for name in self.columns_of(number)]
        self.metric = self.choose_metric(best_by)

    def make_solver(self) -> Any:
        import caffe

        param = type(self.param).FromString(self.param.SerializeToString())
        param.test_initialization = False
        param.snapshot = param.display = 0
        param.snapshot_prefix = self.scratch
        param.random_seed = self.seed
        if self.nets[1]:
            param.test_interval = NEVER
        path = f"{self.scratch}_solver.prototxt"
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(param))
        reseed(self.seed)
        files = filter(None, [param.net, param.train_net, *param.test_net])
        with python_layer_errors(" or ".join(dict.fromkeys(files)) or self.path):
            return caffe.get_solver(path)

    def head_of(self, number: int) -> Optional[Head]:
        """The scores and labels of test net `number`, of the loss that weighs most; None without such a loss."""
        net = self.solver.test_nets[number]
        heads = find_heads(self.nets[1][number])
        heads = [head for head in heads if net.blobs[head.scores].data.shape[head.axis] > 1]
        if not heads:
            return None
        head = max(heads, key=lambda head: head.loss_weight)  # the first of equals
        if len(heads) > 1:
            say(
                f"The TEST net has {len(heads)} losses; the metrics are those of {head.scores!r}, by {head.activation}."
            )
        return head

    def columns_of(self, number: int) -> List[str]:
        """The columns of test net `number`: its scalar outputs, then the metrics."""
        net, head = self.solver.test_nets[number], self.heads[number]
        start = "test_" if len(self.heads) == 1 else f"test{number}_"
        names = scalar_outputs(net)
        if head is not None:
            classes = net.blobs[head.scores].data.shape[head.axis]
            self.k = min(3, classes) if self.k is None else self.k
            if not 1 <= self.k <= classes:
                raise UsageError(f"-k is {self.k}; expected 1 to {classes}, the number of classes.")
            names += [*RANKING, f"CF1@{self.k}", f"OF1@{self.k}"]
        return [start + name for name in names]

    def choose_metric(self, best_by: Optional[str]) -> Optional[str]:
        names = self.test_columns
        if best_by is not None:
            chosen = [name for name in names if best_by in (name, name[name.index("_") + 1 :])]
            if not chosen:
                shorter = [name[name.index("_") + 1 :] for name in names]
                raise unknown_name("test metric", best_by, shorter or ["no test net"], self.path)
            return chosen[0]
        return next((name for name in names if name.endswith("_mAP")), names[0] if names else None)

    # The start

    def start(self, manifest: Optional[Dict[str, Any]]) -> None:
        if manifest is not None:
            self.resume(manifest)
        columns = ["iteration", "seconds", "lr", *self.losses, *self.test_columns]
        self.history = History(self.folder.history_path, columns, self.solver.iter)
        if manifest is None:
            self.save()  # so that a run can be resumed from the first moment on, with its seed and first weights

    def close(self) -> None:
        if self.history is not None:
            self.history.close()

    def resume(self, manifest: Dict[str, Any]) -> None:
        self.weights = os.path.join(self.folder.path, next(name for name in manifest["files"] if ".caffemodel" in name))
        remedy = "A run is resumed with the net it began with; start a new one with --weights to keep what fits."
        check_layers(self.solver.net, read_weights(self.weights), self.weights, self.path, remedy)
        self.folder.restore(self.solver, manifest)
        self.tests, self.seconds = manifest["tests"], manifest["seconds"]
        self.best = self.folder.best() or manifest["best"]
        if self.best is not None and self.best["metric"] != self.metric:
            self.best = None
        moments = [(self.seed, 0, iteration) for iteration in range(self.solver.iter)]
        fast_forward(self.solver.net, self.nets[0], moments, self.param.iter_size, self.stop)
        for number, net in enumerate(self.solver.test_nets):
            moments = [(self.seed, number + 1, iteration) for iteration in self.tests]
            fast_forward(net, self.nets[1][number], moments, self.param.test_iter[number], self.stop)
        say(f"Resumed {self.folder.path} at iteration {self.solver.iter}.")

    # The loop

    def loop(self) -> Dict[str, Any]:
        from tqdm import tqdm

        solver, last = self.solver, self.param.max_iter
        saved = solver.iter
        recent: List[float] = []
        hidden = not sys.stderr.isatty()
        with tqdm(total=last, initial=solver.iter, unit="it", disable=hidden, ncols=79) as bar:
            while not self.stop and solver.iter < last:
                begin = time.monotonic()
                row = {"iteration": solver.iter, "seconds": 0.0, "lr": float(solver.lr)}
                if self.test_is_due() and not self.test(row):
                    break
                self.step(row)
                self.seconds += time.monotonic() - begin
                row["seconds"] = self.seconds
                self.history.add(row)
                self.check_finite(row)
                recent = [*recent[-19:], self.weighted_loss()]
                bar.set_postfix(loss=f"{sum(recent) / len(recent):.4g}", lr=f"{row['lr']:.3g}", refresh=False)
                bar.update()
                if self.param.snapshot and solver.iter % self.param.snapshot == 0:
                    self.save()
                    saved = solver.iter
                if any(name in row for name in self.test_columns) or time.monotonic() - self.drawn > 30:
                    self.draw()
        if saved != solver.iter or self.weights is None:
            self.save()
        if not self.stop and self.heads:
            row = {"iteration": solver.iter, "seconds": self.seconds, "lr": float(solver.lr)}
            if self.test(row):
                self.history.add(row)
        self.draw(finished=True)
        self.tell_end()
        return {
            "iteration": solver.iter,
            "interrupted": bool(self.stop),
            "out": self.folder.path,
            "weights": self.weights,
            "best": self.best,
        }

    def tell_end(self) -> None:
        state = "Interrupted" if self.stop else "Finished"
        say(f"{state} at iteration {self.solver.iter}; weights in {self.weights}.")
        if self.stop:
            say(f"Go on with: {PROGRAM} train {self.path} --out {self.folder.path} --resume")
        elif self.best is not None:
            value = f"{self.best['metric']} {self.best['value']:.4f} at iteration {self.best['iteration']}"
            say(f"Best {value}; weights in {os.path.join(self.folder.path, 'best.caffemodel')}.")

    def step(self, row: Dict[str, float]) -> None:
        """One iteration; its losses go into `row`."""
        iteration = self.solver.iter
        reseed(self.seed, 0, iteration)
        try:
            self.solver.step(1)
        except LAYER_ERRORS as error:
            raise self.explain(error, f"iteration {iteration}") from error
        for name in self.losses:
            row[name] = float(self.solver.net.blobs[name].data)

    def weighted_loss(self) -> float:
        """The total loss that is descended, of the last forward pass."""
        net = self.solver.net
        weights = net.blob_loss_weights
        return sum(float(net.blobs[name].data.sum()) * weights[name] for name in net.blobs if weights[name])

    def check_finite(self, row: Dict[str, float]) -> None:
        for name in self.losses:
            if not math.isfinite(row[name]):
                reason = f"iteration {row['iteration']}: {name} is {row[name]}."
                raise Diverged(self.last_good(f"{reason} Lower base_lr, or look at the data."))

    def explain(self, error: Exception, moment: str) -> Exception:
        """What to raise for what a Python layer raised: scores that are not finite are the end of a run."""
        if isinstance(error, NotFiniteError):
            return Diverged(self.last_good(f"{moment}: {error}"))
        return UsageError(f"{moment}: {error}")

    def last_good(self, text: str) -> str:
        self.draw(finished=True)
        if self.weights is None:
            return text
        return f"{text}\n    The last good snapshot is kept: {self.weights}. --resume goes on from it."

    def save(self) -> None:
        """A snapshot, unless a weight is not finite."""
        layer = not_finite(self.solver.net)
        if layer is not None:
            text = f"iteration {self.solver.iter}: the weights of layer {layer!r} are not finite. Lower base_lr."
            raise Diverged(self.last_good(text))
        self.history.flush()
        record = {"seed": self.seed, "tests": self.tests, "seconds": self.seconds, "best": self.best}
        self.weights = self.folder.save(self.solver, self.scratch, record)

    # Tests

    def test_is_due(self) -> bool:
        iteration, interval = self.solver.iter, self.param.test_interval
        due = bool(self.heads) and interval > 0 and iteration % interval == 0
        return due and (iteration > 0 or self.param.test_initialization)

    def test(self, row: Dict[str, float]) -> bool:
        """Run the test nets; their figures go into `row`. False if the run was asked to end meanwhile."""
        iteration = self.solver.iter
        values: Dict[str, float] = {}
        for number, net in enumerate(self.solver.test_nets):
            reseed(self.seed, number + 1, iteration)
            net.share_with(self.solver.net)
            columns = iter(self.columns_of(number))
            figures = self.test_net(net, self.heads[number], self.param.test_iter[number])
            if figures is None:
                return False
            values.update(zip(columns, figures))
        self.tests.append(iteration)
        row.update(values)
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"iteration {iteration}: {text}{' (best)' if self.is_best(values, iteration) else ''}")
        return True

    def test_net(self, net: Any, head: Optional[Head], batches: int) -> Optional[List[float]]:
        """The means of the net's scalar outputs over some batches, then the metrics."""
        from . import metrics

        names = scalar_outputs(net)
        sums = np.zeros(len(names))
        rows = []
        for _ in range(batches):
            if self.stop:
                return None
            try:
                net.forward()
            except LAYER_ERRORS as error:
                raise self.explain(error, f"test at iteration {self.solver.iter}") from error
            sums += [float(net.blobs[name].data) for name in names]
            if head is not None:
                scores = net.blobs[head.scores].data
                if not np.isfinite(scores).all():
                    text = f"iteration {self.solver.iter}: the TEST net's {head.scores!r} is not finite."
                    raise Diverged(self.last_good(text))
                rows.append(head.rows(scores, net.blobs[head.labels].data))
        figures = list(sums / batches)
        if head is not None:
            truth, probs, known = (np.concatenate(parts) for parts in zip(*rows))
            if not truth.any():
                say(f"The TEST net's {head.labels!r} holds no positive label in {len(truth)} samples: no mAP.")
            ranking = metrics.ranking_metrics(truth, probs, known)
            decisions = metrics.decision_metrics(truth, metrics.top_k(probs, self.k or 1), known)
            figures += [ranking[name] for name in RANKING] + [decisions["CF1"], decisions["OF1"]]
        return figures

    def is_best(self, values: Dict[str, float], iteration: int) -> bool:
        """Whether the chosen metric was never better; the weights are kept then."""
        if self.metric is None or not math.isfinite(values[self.metric]):
            return False
        value = values[self.metric]
        sign = -1 if any(word in self.metric.lower() for word in LOWER_IS_BETTER) else 1
        if self.best is not None and sign * value <= sign * self.best["value"]:
            return False
        self.best = {"metric": self.metric, "value": value, "iteration": iteration}
        self.folder.save_best(self.solver.net, self.best)
        return True

    def draw(self, finished: bool = False) -> None:
        """Refresh the curves, but spend no more than a twentieth of the time on them."""
        begin = time.monotonic()
        if not self.history.rows or (not finished and begin - self.drawn < 20 * self.drawing):
            return
        draw_curves(self.history.rows, self.losses, self.test_columns, self.best, self.folder.curves_path)
        self.drawn = time.monotonic()
        self.drawing = self.drawn - begin


def scalar_outputs(net: Any) -> List[str]:
    return [name for name in net.outputs if net.blobs[name].data.size == 1]


def loss_outputs(net: Any, path: str) -> List[str]:
    """The scalar outputs of a training net, or, where it has none, its scalar losses."""
    weights = net.blob_loss_weights
    losses = [name for name in net.blobs if weights[name]]
    if not losses:
        raise UsageError(
            f"The TRAIN net of {path} has no loss; expected a loss layer. One in Python needs loss_weight: 1 in it."
        )
    return scalar_outputs(net) or [name for name in losses if net.blobs[name].data.size == 1]


def fast_forward(net: Any, layers: Sequence[Any], moments: Sequence[tuple], forwards: int, stop: List[int]) -> None:
    """Put the data layers of a new net where `forwards` batches at each of these moments would have put them.

    Only the layers without bottoms run. Where all of them go round in a fixed period, whole rounds are left out.
    Gives up once `stop` is not empty.
    """
    kinds = dict(zip(net.top_names, net.layers))
    indices = [
        index
        for index, name in enumerate(net.top_names)
        if not net.bottom_names[name] and kinds[name].type not in ("Input", "Parameter")
    ]
    by_name = {layer.name: layer for layer in layers}
    periods = [period(by_name[name]) for index, name in enumerate(net.top_names) if index in indices]
    if None not in periods:
        rounds = 1
        for length in filter(None, periods):
            rounds = rounds * length // math.gcd(rounds, length)
        for _ in range(len(moments) * forwards % rounds):
            for index in indices:
                net._forward(index, index)
        return
    for moment in moments:
        if stop:
            return
        reseed(*moment)
        for _ in range(forwards):
            for index in indices:
                net._forward(index, index)
