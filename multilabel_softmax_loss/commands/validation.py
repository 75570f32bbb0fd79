"""The tests of a run: each TEST net with its figures, and which of them decides what weights are best."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import NotFiniteError, UsageError, unknown_name
from ..nets.data_layers import batch_size, count_samples, pass_over_batch, places_of_sources, readers
from ..nets.heads import PYTHON_LOSSES, Head, find_heads, unsaturated
from ..nets.python_layers import staying
from ..parallel.ranks import in_turn, ranks
from . import metrics
from .outputs import positives
from .solver import SeededSolver, scalar_outputs
from .terminal import say

RANKING = {"mAP": "higher", "LRAP": "higher", "coverage": "lower"}


class TestNet:
    """A TEST net of a solver.

    `columns` names its figures in the history: the means of its scalar outputs, then the metrics of its scores, where
    it has a loss whose labels are known. They begin with "test_", or with "test0_" and so on where there are several.
    It says whether a "higher" or a "lower" one is better, None where that is not known.
    """

    __test__ = False  # this is no class of tests for pytest

    def __init__(self, solver: SeededSolver, number: int, k: Optional[int], positive_above: Optional[float] = None):
        self.solver, self.number, self.positive_above = solver, number, positive_above
        self.has_told = False  # why there are no metrics
        self.net: Any = solver.make_test_net(number)
        self.batches = solver.file.tests[number].batches
        layers = solver.file.tests[number].net.layer
        self.outputs = scalar_outputs(self.net)
        self.head = find_head(self.net, layers)
        names = {name: better_way(self.net, layers, name) for name in self.outputs}
        if self.head is not None:
            classes = self.net.blobs[self.head.scores].data.shape[self.head.axis]
            self.k = min(3, classes) if k is None else k
            if not 1 <= self.k <= classes:
                raise UsageError(f"-k is {self.k}; expected 1 to {classes}, the number of classes.")
            names.update({**RANKING, f"CF1@{self.k}": "higher", f"OF1@{self.k}": "higher"})
        start = "test_" if len(solver.file.tests) == 1 else f"test{number}_"
        self.columns = {start + name: better for name, better in names.items()}
        tell_coverage(layers, self.batches)

    def run(self, asked: Callable[[], bool], advance: Callable[[], Any]) -> Optional[Dict[str, float]]:
        """The figures by column; None if the run was asked to end meanwhile, as `asked` tells all ranks together.

        `advance` is called as each batch begins.
        Where it is not known which labels count as positive, the metrics are left out.

        Raises
        ------
        NotFiniteError : scores are not finite.
        """
        net, self.net = self.net or self.solver.make_test_net(self.number), None
        self.solver.begin_test(net, self.number)
        rows: List[Any] = []  # of each batch of this rank: the outputs, and those of the head
        places = places_of_sources(net)
        for batch in range(self.batches):
            if batch % ranks.size == 0 and asked():
                return None
            advance()
            is_mine = batch % ranks.size == ranks.rank
            with staying():
                if is_mine:
                    net.forward()
                else:
                    pass_over_batch(net, places)
            if not is_mine:
                continue
            rows.append(([float(net.blobs[name].data) for name in self.outputs],))
            if self.head is not None:
                scores = net.blobs[self.head.scores].data
                if not np.isfinite(scores).all():
                    raise NotFiniteError(f"the TEST net's {self.head.scores!r} is not finite.")
                rows[-1] = (rows[-1][0], *self.head.rows(scores, net.blobs[self.head.labels].data))
        parts = ranks.collect(rows, f"the test at iteration {self.solver.iteration}")
        ranks.busy("the figures of a test")
        figures = self.figures(in_turn(parts))
        return ranks.share(figures, "the figures of a test")

    def figures(self, rows: List[Any]) -> Optional[Dict[str, float]]:
        """The figures by column, of the rows of all batches; None without rows."""
        if not rows:
            return None
        outputs, *parts = zip(*rows)
        figures = list(sum(map(np.array, outputs), np.zeros(len(self.outputs))) / self.batches)
        if self.head is not None:
            figures += self.metrics(self.head, *map(np.concatenate, parts))
        return dict(zip(self.columns, figures))

    def metrics(self, head: Head, labels: np.ndarray, log_odds: np.ndarray, known: np.ndarray) -> List[float]:
        """The metrics of rows as `Head.rows` makes them; none where the labels do not say which are positive."""
        try:
            truth = positives(labels, known, str(head.labels), self.positive_above)
        except UsageError as error:
            if not self.has_told:
                say(f"No metrics of the TEST net: {error}")
            self.has_told = True
            return []
        if not truth.any():
            say(f"The TEST net's {head.labels!r} holds no positive label in {len(truth)} samples: no mAP.")
        ranking = metrics.ranking_metrics(truth, log_odds, known)
        decisions = metrics.decision_metrics(truth, metrics.top_k(log_odds, self.k), known)
        return [*(ranking[name] for name in RANKING), decisions["CF1"], decisions["OF1"]]


def find_head(net: Any, layers: Sequence[Any]) -> Optional[Head]:
    """The scores and labels of the loss that weighs most, of those with two classes or more; None without one."""
    heads = [unsaturated(head, layers) for head in find_heads(layers)]
    heads = [head for head in heads if net.blobs[head.scores].data.shape[head.axis] > 1]
    if not heads:
        return None
    head = max(heads, key=lambda head: head.loss_weight)  # the first of equals
    if len(heads) > 1:
        say(f"The TEST net has {len(heads)} losses; the metrics are those of {head.scores!r}, by {head.activation}.")
    return head


def tell_coverage(layers: Sequence[Any], batches: int) -> None:
    """Say where a test leaves out a part of the data, or counts one twice, as Caffe's test_iter has it."""
    for samples, size in dict.fromkeys((count_samples(layer), batch_size(layer)) for layer in readers(layers)):
        seen, needed = batches * size, math.ceil(samples / size)
        told = f"A test is test_iter {batches} x batch_size {size} = {seen} samples of the {samples} that there are"
        if seen < samples:
            say(f"{told}: {samples - seen} are never tested. test_iter {needed} reaches all.")
        elif seen > samples:
            again = min(seen - samples, samples)
            say(f"{told}: {again} count more than once. A batch_size that divides {samples} counts each once.")


def better_way(net: Any, layers: Sequence[Any], name: str) -> Optional[str]:
    """Whether a "higher" or a "lower" value of a net's output is better, by the layer that makes it; None: unknown."""
    maker = next(layer for layer in reversed(layers) if name in layer.top)
    if maker.type == "Accuracy":
        return "higher"
    weight = net.blob_loss_weights[name]
    if weight:
        return "lower" if weight > 0 else "higher"
    is_loss = maker.type.endswith("Loss") or maker.python_param.layer in PYTHON_LOSSES
    return "lower" if is_loss and maker.top[0] == name else None


class Best:
    """The best test of a run so far, by one column of its figures; `record` says when it was, and its value.

    Parameters
    ----------
    columns : the columns of the tests, and whether "higher" or "lower" is better, None where that is not known.
    chosen : the column that decides, with or without its "test_", and ":higher" or ":lower" after it if need be. Else
        it is the first mAP, or the first of which it is known what is better.
    path : of the solver, for errors.

    Raises
    ------
    UsageError : there is no such column, or nothing says whether it should be high or low.
    """

    def __init__(self, columns: Dict[str, Optional[str]], chosen: Optional[str], path: str):
        self.columns, self.chosen = columns, chosen
        self.record: Optional[Dict[str, Any]] = None
        self.column: Optional[str]
        self.better: Optional[str]
        if chosen is not None:
            self.column, self.better = choose_column(columns, chosen, path)
            return
        known = [name for name, better in columns.items() if better]
        self.decide_by(next((name for name in known if name.endswith("_mAP")), known[0] if known else None))
        if columns and not known:
            name = short_name(next(iter(columns)))
            names = ", ".join(map(short_name, columns))
            say(
                f"No best weights are kept, since nothing tells whether {names} should be high or low. "
                f"--best-by {name}:lower or {name}:higher does."
            )

    def decide_by(self, column: Optional[str]) -> None:
        self.column, self.better = column, self.columns[column] if column else None

    def update(self, values: Dict[str, float], iteration: int) -> Optional[Dict[str, Any]]:
        """The new record if this test is better than all before it, else None.

        Where a test has no metrics, its first figure of which it is known what is better decides.
        """
        if self.column is not None and self.column not in values:
            if self.chosen is not None:
                raise UsageError(f"--best-by {self.chosen}: the test has no such figure, for the reason above.")
            self.decide_by(next((name for name in values if self.columns[name]), None))
        if self.column is None or not math.isfinite(values[self.column]):
            return None
        value = values[self.column]
        sign = -1 if self.better == "lower" else 1
        if self.record is not None and sign * value <= sign * self.record["value"]:
            return None
        self.record = {"metric": self.column, "better": self.better, "value": value, "iteration": iteration}
        return self.record

    def resume(self, record: Optional[Dict[str, Any]]) -> None:
        """Take up what was best so far, if that was by the same column, in the same direction."""
        if record is not None and self.chosen is None and self.columns.get(record["metric"]):
            self.decide_by(record["metric"])  # as the labels decided then
        same = record is not None and (record["metric"], record.get("better")) == (self.column, self.better)
        self.record = record if same else None


def choose_column(columns: Dict[str, Optional[str]], chosen: str, path: str) -> Tuple[str, str]:
    """The column that --best-by names, and whether "higher" or "lower" is better."""
    wanted, colon, better = chosen.rpartition(":")
    if not colon or better not in ("higher", "lower"):
        wanted, better = chosen, ""
    found = next((name for name in columns if wanted in (name, short_name(name))), None)
    if found is None:
        raise unknown_name("test metric", wanted, [short_name(name) for name in columns] or ["no test net"], path)
    if not better and not columns[found]:
        raise UsageError(
            f"{path}: nothing tells whether {wanted!r} should be high or low, as no loss and no Accuracy makes it; "
            f"expected --best-by {wanted}:lower or --best-by {wanted}:higher."
        )
    return found, better or str(columns[found])


def short_name(column: str) -> str:
    """A column without its "test_"."""
    return column[column.index("_") + 1 :]
