"""The command `train`: any solver and net, with metrics, curves, snapshots and bit-identical resuming."""

from __future__ import annotations

import math
import os
import random
import time
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from ..errors import NotFiniteError, UsageError, shortlist
from ..nets.python_layers import LAYER_ERRORS, told
from ..nets.weights import check_layers, copy_matching, not_finite, read_weights
from ..parallel.ranks import ranks
from .alike import check_alike, check_samples, folder_of_rank, newest_for_all
from .arguments import add_positive_argument
from .checks import layers_without_filler
from .child import handling
from .curves import Curves
from .image_layers import keep_preprocessing
from .provenance import check_same, describe
from .run_folder import RunFolder
from .sharing import check_shared
from .snapshots import SnapshotPrefix
from .solver import SeededSolver, SolverFile, read_solver
from .terminal import PROGRAM, Figures, progress_bar, say, tell, warn
from .validation import Best, TestNet

EXAMPLE = """example:
  python -m multilabel_softmax_loss train solver.prototxt --out run
  python -m multilabel_softmax_loss train solver.prototxt --out run --resume     (after Ctrl-C, a crash, or kill -9)

In DIR: history.csv (each iteration: losses, learning rate, and the metrics of the TEST net where it was tested),
curves.png, a snapshot at the solver's interval and at the end, best.caffemodel with best.json, and preprocessing.json
where it is known. Ctrl-C (or SIGTERM) ends the run with a snapshot, exit status 130. NaN ends it with status 1.
"""


class Choices(NamedTuple):
    """What a user may choose of how a run is tested and recorded."""

    best_by: Optional[str] = None
    k: Optional[int] = None
    positive_above: Optional[float] = None
    history_every: int = 1


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
    best_by = "a column of the test (default: test_mAP, else its first); METRIC:lower where a low one is better"
    parser.add_argument("--best-by", metavar="METRIC", help=best_by)
    parser.add_argument("-k", type=int, help="CF1@k and OF1@k decide for the k likeliest (default: 3)")
    add_positive_argument(parser)
    parser.add_argument("--preprocessing", metavar="FILE", help="JSON file for `predict`, kept beside the weights")
    every = "write each N-th iteration, and those with a test, to history.csv, which grows by some 100 bytes a row"
    parser.add_argument("--history-every", type=int, default=1, metavar="N", help=f"{every} (default: %(default)s)")


def run(arguments: Any) -> int:
    try:
        summary = train(**{name: value for name, value in vars(arguments).items() if name != "command"})
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
    positive_above: Optional[float] = None,
    preprocessing: Optional[str] = None,
    history_every: int = 1,
) -> Dict[str, Any]:
    """Train as the command does; the keywords are its options.

    Returns
    -------
    dict : iteration, interrupted, out, weights (of the last snapshot), best (its record, or None)

    Raises
    ------
    UsageError : something is wrong with what was given.
    Diverged : the loss, or a weight, is not finite; the last good snapshot is kept.
    """
    choices = Choices(best_by, k, positive_above, history_every)
    with ranks.together("reading the solver and its nets"):
        check_choices(choices)
        file = read_solver(solver)
        folder = run_folder(file, out)
        if ranks.rank == 0 and resume and not os.path.isdir(folder.path):
            raise UsageError(f"{folder.path} is no folder; expected the --out of the run to resume.")
        if ranks.rank == 0 and weights is not None:
            read_weights(weights)
        check_shared(file.train.net.layer, file.train.path)
    check_alike(file, resume=resume, weights=weights, **choices._asdict())
    with folder_of_rank(folder) as folder, stopping() as stop, SnapshotPrefix(folder.prefix) as prefix:
        prepared = prefix.folder("prepared")
        with ranks.together("what the folder of the run holds"):
            unknown: Optional[str] = None
            if not resume:
                if ranks.rank == 0:
                    nets = [*(test.net.layer for test in file.tests), file.train.net.layer]
                    unknown = keep_preprocessing(prepared, nets, preprocessing)
                folder.check_unused(prepared)
        manifest = newest_for_all(folder) if resume else None
        seed = ranks.share(manifest["seed"] if manifest else first_seed(file), "the seed")
        with ranks.together("making the solver"):
            seeded = SeededSolver(file, prefix.path, seed, stop)
            training = Training(seeded, folder, choices)
            if not resume and ranks.rank == 0:
                begin_weights(seeded, weights)
                if unknown:
                    say(unknown)
        with ranks.together("taking the folder of the run"):  # once the solver of every rank is made
            folder.lock()
            folder.clean()
            folder.take(prepared)
        with prefix.inside(folder.path):
            return training.run(manifest)


def check_choices(choices: Choices) -> None:
    if choices.k is not None and choices.k < 1:
        raise UsageError(f"-k is {choices.k}; expected a whole number of at least 1.")
    if choices.history_every < 1:
        raise UsageError(f"--history-every is {choices.history_every}; expected a whole number of at least 1.")


def begin_weights(solver: SeededSolver, weights: Optional[str]) -> None:
    """Begin with the weights of a file, if there is one; say which layers are not in it, and which begin with zeros."""
    fresh = list(solver.net.params)
    if weights is not None:
        fresh = copy_matching(solver.net, weights, solver.file.path)
        if fresh:
            say(f"{weights} has no weights for {shortlist(fresh)}, which begin afresh.")
    zeros = [name for name in layers_without_filler(solver.file.train.net) if name in fresh]
    if zeros and not solver.file.param.weights:
        warn(
            "train",
            f"{solver.file.train.path}: no weight_filler in {shortlist(zeros)}, whose weights so begin as zeros; of "
            'several such layers none learns but for its biases. Add weight_filler { type: "xavier" } or "msra".',
        )


def run_folder(file: SolverFile, out: Optional[str]) -> RunFolder:
    """The folder of the run, with the names of its snapshots: `out`, else what the solver says."""
    place, name = os.path.split(file.param.snapshot_prefix)
    stem = os.path.splitext(file.path)[0]
    if name in (".", ".."):
        raise UsageError(f"{file.path} has snapshot_prefix {file.param.snapshot_prefix!r}; expected how names begin.")
    return RunFolder(out or place or f"{stem}_run", name or os.path.basename(stem))


def first_seed(file: SolverFile) -> int:
    """The solver's random_seed, or one drawn now; the run keeps it."""
    seed = file.param.random_seed
    return random.SystemRandom().randrange(2**31) if seed < 0 else seed


@contextmanager
def stopping() -> Iterator[List[int]]:
    """A list that is empty until this process is asked to end, by Ctrl-C or SIGTERM."""
    asked: List[int] = []
    with handling(lambda number, frame: asked.append(number)):
        yield asked


class Training:
    """A solver, its place in the run, and what is recorded of it."""

    def __init__(self, solver: SeededSolver, folder: RunFolder, choices: Choices):
        self.solver, self.folder, self.choices = solver, folder, choices
        self.interrupted = False
        numbers = range(len(solver.file.tests))
        self.tests = [TestNet(solver, number, choices.k, choices.positive_above) for number in numbers]
        self.test_columns = {name: better for test in self.tests for name, better in test.columns.items()}
        self.best = Best(self.test_columns, choices.best_by, solver.file.path)
        self.description = describe(solver.file)
        self.seconds = 0.0
        self.weights: Optional[str] = None  # of the last snapshot
        self.saved = -1  # its iteration
        self.figures = Figures()
        self.curves = Curves(folder.curves_path, solver.losses, list(self.test_columns))

    def run(self, manifest: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Train from the beginning, or from the snapshot of this manifest; what `train` returns."""
        if manifest is not None:
            self.resume(manifest)
        self.solver.share_weights()
        columns = ["iteration", "seconds", "lr", *self.solver.losses, *self.test_columns]
        self.history = self.folder.history(columns, self.solver.iteration, self.choices.history_every, say)
        try:
            if manifest is None:
                self.save()  # so that a run can be resumed from the first moment on, with its seed and first weights
            self.loop()
            self.finish()
        except Diverged:
            raise
        except BaseException:
            self.save_what_is_there()
            raise
        finally:
            self.history.close()
        return {
            "iteration": self.solver.iteration,
            "interrupted": self.interrupted,
            "out": self.folder.path,
            "weights": self.weights,
            "best": self.best.record,
        }

    def resume(self, manifest: Dict[str, Any]) -> None:
        path = self.solver.file.path
        remedy = "A run is resumed with the net it began with; start a new one with --weights to keep what fits."
        with ranks.together("the snapshot to resume"):
            changed = check_same(manifest["run"], self.solver.file)
            self.folder.check_ours(manifest, say)
            self.weights = self.folder.snapshots.weights(manifest)
            check_layers(self.solver.net, read_weights(self.weights), self.weights, path, remedy)
            check_samples(manifest, self.solver.batch_sizes, path, self.weights)
        self.folder.snapshots.restore(self.solver.caffe_solver, manifest)
        self.saved = self.solver.iteration
        self.seconds = manifest["seconds"]
        self.best.resume(ranks.share(self.folder.best_of(manifest), "the best test"))
        self.solver.fast_forward()
        if changed:
            warn("train", f"the run goes on otherwise than it began: {'; '.join(changed)}. (Its random seed stays.)")
        say(f"Resumed {self.folder.path} at iteration {self.solver.iteration}.")

    def loop(self) -> None:
        solver, param = self.solver, self.solver.file.param
        recent: List[float] = []
        with progress_bar(param.max_iter, "it", initial=solver.iteration, leave=True) as bar:
            self.asked()
            while solver.iteration < param.max_iter and not self.interrupted:
                begin = time.monotonic()
                row = self.new_row()
                if self.test_is_due() and not self.test(row):
                    break
                self.step(row)
                self.seconds += time.monotonic() - begin
                row["seconds"] = self.seconds
                tested = any(name in row for name in self.test_columns)
                finite = all(math.isfinite(row[name]) for name in solver.losses)
                self.history.add(row, always=tested or not finite)
                self.check_finite(row)
                recent = [*recent[-19:], solver.weighted_loss]
                bar.set_postfix(loss=f"{sum(recent) / len(recent):.4g}", lr=f"{row['lr']:.3g}", refresh=False)
                bar.update()
                if param.snapshot and solver.iteration % param.snapshot == 0:
                    self.save()
                if tested or self.curves.are_old():
                    self.draw()
                if ranks.size == 1:
                    self.asked()  # ranks know it from the iteration

    def finish(self) -> None:
        """The last snapshot and test, and what became of the run."""
        iteration = self.solver.iteration
        if self.saved != iteration:
            self.save()
        row = self.new_row()
        if self.tests and not self.asked() and self.test(row):
            self.history.add(row, always=True)
        self.draw(finished=True)
        state = "Interrupted" if self.asked() else "Finished"
        say(f"{state} at iteration {iteration}; weights in {self.weights}.")
        if self.interrupted:
            ranks.agree()  # so that the first one to end does not end the others
            launcher = f"mpiexec -n {ranks.size} " if ranks.size > 1 else ""
            say(f"Go on with: {launcher}{PROGRAM} train {self.solver.file.path} --out {self.folder.path} --resume")
        elif self.best.record is not None:
            best = "{metric} {value:.4f} at iteration {iteration}".format(**self.best.record)
            say(f"Best {best}; weights in {os.path.join(self.folder.path, 'best.caffemodel')}.")

    def asked(self) -> bool:
        """Whether any rank was asked to end; all of them ask this together, and end then."""
        self.interrupted = self.interrupted or ranks.any(self.solver.stop, f"iteration {self.solver.iteration}")
        return self.interrupted

    def new_row(self) -> Dict[str, float]:
        """The row of this iteration in the history, as it begins."""
        return {"iteration": self.solver.iteration, "seconds": self.seconds, "lr": self.solver.learning_rate}

    def step(self, row: Dict[str, float]) -> None:
        """One iteration; its losses go into `row`."""
        try:
            row.update(self.solver.step())
            self.interrupted = self.interrupted or self.solver.asked
        except LAYER_ERRORS as error:
            raise self.explain(error, f"iteration {row['iteration']}") from error

    def check_finite(self, row: Dict[str, float]) -> None:
        for name in self.solver.losses:
            if not math.isfinite(row[name]):
                ranks.agree()  # they have one loss
                reason = f"iteration {row['iteration']}: {name} is {row[name]}."
                raise Diverged(self.last_good(f"{reason} Lower base_lr, or look at the data."))

    def explain(self, error: Exception, moment: str) -> Exception:
        """What to raise for what a layer raised: scores that are not finite are the end of a run."""
        if isinstance(error, NotFiniteError):
            return Diverged(self.last_good(f"{moment}: {error}"))
        return UsageError(f"{moment}: {told(error)}")

    def last_good(self, text: str) -> str:
        self.draw(finished=True)
        if self.weights is None:
            return text
        return f"{text}\n    The last good snapshot is kept: {self.weights}. --resume goes on from it."

    def save(self) -> None:
        """A snapshot, unless a weight is not finite."""
        self.solver.check_same_weights()
        layer = not_finite(self.solver.net)
        if layer is not None:
            ranks.agree()  # they have the same weights
            text = f"iteration {self.solver.iteration}: the weights of layer {layer!r} are not finite. Lower base_lr."
            raise Diverged(self.last_good(text))
        self.folder.check_there()
        self.history.flush()
        record: Dict[str, Any] = {"seed": self.solver.seed, "seconds": self.seconds, "best": self.best.record}
        record.update(run=self.description, ranks=ranks.size, batch_sizes=self.solver.batch_sizes)
        self.weights = self.folder.snapshots.save(self.solver.caffe_solver, self.solver.prefix, record)
        self.saved = self.solver.iteration

    def save_what_is_there(self) -> None:
        """A snapshot where an error ends the run, if that can be; the iteration that failed is not in it."""
        if self.saved < self.solver.iteration and ranks.size == 1:
            with suppress(Exception):  # such as what ended the run
                self.save()
                say(f"Kept at iteration {self.saved}: {self.weights}. --resume goes on from it.")

    def test_is_due(self) -> bool:
        iteration, param = self.solver.iteration, self.solver.file.param
        due = bool(self.tests) and param.test_interval > 0 and iteration % param.test_interval == 0
        return due and (iteration > 0 or param.test_initialization)

    def test(self, row: Dict[str, float]) -> bool:
        """Run the test nets; their figures go into `row`. False if the run was asked to end meanwhile."""
        iteration = self.solver.iteration
        values: Dict[str, float] = {}
        self.solver.share_statistics()
        for test in self.tests:
            try:
                with progress_bar(test.batches, "batch", desc="test ") as bar:
                    figures = test.run(self.asked, bar.update)
            except LAYER_ERRORS as error:
                raise self.explain(error, f"test at iteration {iteration}") from error
            if figures is None:
                return False
            values.update(figures)
        row.update(values)
        record = self.best.update(values, iteration)
        if record:
            self.best.record = self.folder.save_best(self.solver.net, record)
        say(self.figures.line(iteration, values, "best" if record else ""))
        return True

    def draw(self, finished: bool = False) -> None:
        if ranks.rank == 0:
            self.curves.draw(self.history.rows, self.best.record, finished)
