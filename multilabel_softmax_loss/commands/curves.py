"""The picture of a training run: losses and metrics over the iterations."""

from __future__ import annotations

import math
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..files import replacing

SOFTWARE = "multilabel_softmax_loss"  # as curves.png says of itself


def is_ours(path: str) -> bool:
    """Whether a picture is one that `draw_curves` made."""
    with open(path, "rb") as file:
        return SOFTWARE.encode() in file.read(1 << 12)


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def series(name: str) -> Tuple[List[float], List[float]]:
        pairs = [(row["iteration"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for k, name in enumerate(losses):
        places, values = series(name)
        left.plot(places, values, color=f"C{k}", alpha=0.25, linewidth=0.8)
        left.plot(places, smoothed(values), color=f"C{k}", label=f"{name}, training (running mean)")
    test_losses = [name for name in tests if name[name.index("_") + 1 :] in losses]
    for k, name in enumerate(test_losses):
        left.plot(*series(name), "o--", color=f"C{k}", markersize=4, markerfacecolor="white", label=name)
    values = [row[name] for row in rows for name in losses if name in row]
    low, high = (np.percentile(values, q) if values else 0.0 for q in (0, 98))
    if math.isfinite(high) and high > low:
        left.set_ylim(min(low, 0), 1.3 * high)  # the first steps may be far above all others
    left.set(xlabel="iteration", ylabel="loss", title="Loss")
    metrics = [name for name in tests if name not in test_losses and not name.endswith("_coverage")]
    for name in metrics:
        right.plot(*series(name), "o-", markersize=4, label=name)
    if metrics:
        right.set(xlabel="iteration", title="Metrics of the TEST net")
        right.set_ylim(0, max([1, *(1.05 * row[name] for row in rows for name in metrics if name in row)]))
    else:
        right.plot(*series("lr"), label="learning rate")
        right.set(xlabel="iteration", title="Learning rate")
    if best is not None and best["metric"] in metrics:
        right.plot(
            best["iteration"],
            best["value"],
            "k*",
            markersize=13,
            zorder=5,
            label=f"best {best['metric']}: {best['value']:.3f}",
        )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": SOFTWARE})
    pyplot.close(figure)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and as many on either side, a twentieth of all together; near the start they are fewer.

    With those before alone, the curve of a falling loss would run late, and so too high.
    """
    places = np.arange(len(values))
    reach = np.minimum(places, len(values) // 40)
    starts, ends = places - reach, np.minimum(places + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[ends] - sums[starts]) / (ends - starts)
