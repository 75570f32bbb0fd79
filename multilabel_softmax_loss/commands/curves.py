"""The picture of a training run: losses and metrics over the iterations."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..files import open_file
from .drawing import BLUE, fitting, legend_below, look, picture

SOFTWARE = "multilabel_softmax_loss"  # as curves.png says of itself


def is_ours(path: str) -> bool:
    """Whether a picture is one that `draw_curves` made."""
    with suppress(OSError), open_file(path, "rb") as file:
        return SOFTWARE.encode() in file.read(1 << 12)
    return False


class Curves:
    """curves.png of a run, drawn anew while it goes on, but with no more than a twentieth of its time."""

    def __init__(self, path: str, losses: Sequence[str], tests: Sequence[str]):
        self.path, self.losses, self.tests = path, losses, tests
        self.drawn, self.drawing = time.monotonic(), 0.25  # the first picture after 5 seconds

    def are_old(self) -> bool:
        return time.monotonic() - self.drawn > 30

    def draw(self, rows: Sequence[Dict[str, float]], best: Optional[Dict[str, Any]], finished: bool = False) -> None:
        """The curves of these rows, unless the last ones were drawn a moment ago and the run is not finished."""
        begin = time.monotonic()
        if not rows or (not finished and begin - self.drawn < 20 * self.drawing):
            return
        draw_curves(rows, self.losses, self.tests, best, self.path)
        self.drawn = time.monotonic()
        self.drawing = self.drawn - begin


def draw_curves(
    rows: Sequence[Dict[str, float]],
    losses: Sequence[str],
    tests: Sequence[str],
    best: Optional[Dict[str, Any]],
    path: str,
) -> None:
    """Losses on the left; on the right the metrics of the test, or the learning rate where there is none."""

    def series(name: str) -> Tuple[List[float], List[float]]:
        pairs = [(row["iteration"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    tests = [name for name in tests if series(name)[0]]
    test_losses = [name for name in tests if name[name.index("_") + 1 :] in losses]
    metrics = [name for name in tests if name not in test_losses and not name.endswith("_coverage")]
    lines = max(len(losses) + len(test_losses), len(metrics)) + 1
    with picture(path, (12, 4.6 + 0.2 * lines), {"Software": SOFTWARE}) as (left, right):
        for k, name in enumerate(losses):
            places, values = series(name)
            left.plot(places, values, color=look(k)["color"], alpha=0.25, linewidth=0.8)
            left.plot(
                places,
                smoothed(values),
                **look(k),
                label=f"{fitting(name)} in training, running mean (faint: each iteration)",
            )
        for k, name in enumerate(test_losses):
            style = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linewidth": 1}
            left.plot(*series(name), **{**look(len(losses) + k), **style}, label=readable(name))
        left.set(xlabel="iteration", ylabel="loss", title="Loss")
        shown = [value for name in losses for value in series(name)[1]]
        low, high = (np.percentile(shown, q) if shown else 0.0 for q in (0, 98))
        if high > low:
            left.set_ylim(min(low, 0), 1.3 * high)  # the first steps may be far above all others
        for k, name in enumerate(metrics):
            right.plot(*series(name), **look(k), marker="o", markersize=4, label=readable(name))
        if metrics:
            shown = [value for name in metrics for value in series(name)[1]]
            right.set(xlabel="iteration", ylabel="1 is perfect", title="Metrics of the TEST net")
            right.set_ylim(min([0, *shown]), max([1.02, *(1.05 * value for value in shown)]))
            if max(shown) > 1:
                right.set_ylabel("value")
        else:
            right.plot(*series("lr"), color=BLUE, label="learning rate")
            right.set(xlabel="iteration", ylabel="learning rate", title="Learning rate")
        if best is not None and best["metric"] in tests:
            axes = right if best["metric"] in metrics else left
            label = f"best {readable(best['metric'])}: {best['value']:.3f} at iteration {best['iteration']}"
            axes.plot(best["iteration"], best["value"], "k*", markersize=13, zorder=5, label=label)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            legend_below(axes)


def readable(column: str) -> str:
    """The name of a column of the history as the picture has it: test_mAP is "mAP in the test"."""
    test, name = column.split("_", 1)
    return f"{fitting(name)} in the test" if test == "test" else f"{fitting(name)} in test {test[4:]}"


def smoothed(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and as many on either side, a twentieth of all together; near the start they are fewer.

    With those before alone, the curve of a falling loss would run late, and so too high.
    """
    places = np.arange(len(values))
    reach = np.minimum(places, len(values) // 40)
    starts, ends = places - reach, np.minimum(places + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[ends] - sums[starts]) / (ends - starts)
