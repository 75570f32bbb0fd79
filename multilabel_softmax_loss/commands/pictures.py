"""The picture of an evaluation: average precision of each class, and precision-recall curves."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from . import metrics
from .drawing import BLUE, ORANGE, SKY, VERMILION, fitting, legend_below, picture

MOST_BARS = 40  # with more classes only the best and the worst are shown
EXTREMES = 10
MOST_CURVES = 10  # with more classes a band takes the place of their curves
RECALLS = np.linspace(0, 1, 501)
MARKERS = "osDv^P"


def draw(report: Dict[str, Any], truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray], path: str) -> None:
    """Bars of the classes' average precision beside chance, and precision-recall curves.

    `report` is what `evaluation` makes of the arrays, which are as metrics.py takes them.
    """
    known = np.ones(truth.shape, bool) if known is None else known
    ap = np.array([np.nan if entry["AP"] is None else entry["AP"] for entry in report["per_class"]])
    ranked = [int(k) for k in np.argsort(ap) if np.isfinite(ap[k])]
    names = [fitting(entry["class"]) for entry in report["per_class"]]
    chance = truth.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    shown = len(ranked) if len(ranked) <= MOST_BARS else 2 * EXTREMES + 1
    with picture(path, (12.5, max(5.5, 0.22 * shown + 2.2))) as (bars, curves):
        draw_bars(bars, ap, ranked, names, chance)
        draw_curves(curves, report, truth, scores, known, ranked, names)


def draw_bars(axes: Any, ap: np.ndarray, ranked: Sequence[int], names: Sequence[str], chance: np.ndarray) -> None:
    """The classes of these average precisions, the worst at the bottom; of many the ten best and the ten worst."""
    all_shown = len(ranked) <= MOST_BARS
    rows: List[Tuple[int, int]] = list(enumerate(ranked))
    title = "Average precision of each class"
    if not all_shown:
        rows = [*enumerate(ranked[:EXTREMES]), *enumerate(ranked[-EXTREMES:], start=EXTREMES + 1)]
        between = ap[ranked[EXTREMES:-EXTREMES]]
        text = f"{len(between)} classes between these, {between.min():.3f} to {between.max():.3f}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 3}
        axes.text(0.5, EXTREMES, text, ha="center", va="center", fontsize=9, style="italic", bbox=box)
        title = f"Average precision: the {EXTREMES} best and the {EXTREMES} worst of {len(ranked)} classes"
    places, classes = [place for place, _ in rows], [k for _, k in rows]
    axes.barh(places, ap[classes], height=0.75, color=SKY, label="average precision of a class")
    axes.plot(
        chance[classes],
        places,
        "|",
        color="black",
        markersize=9,
        markeredgewidth=2,
        label="chance: its share of the samples",
    )
    mean = metrics.mean_of_defined(ap)
    axes.axvline(
        mean, color=VERMILION, linestyle="--", label=f"mAP, the mean over all {len(ranked)} classes: {mean:.3f}"
    )
    for place, k in rows:
        axes.text(1.01, place, f"{ap[k]:.3f}", va="center", fontsize=8)
    axes.set_yticks(places)
    axes.set_yticklabels([names[k] for k in classes], fontsize=8)
    middle = places[-1] / 2
    half = max(middle, 2.5) + 0.6  # bars of few classes stay bars
    axes.set(xlim=(0, 1), ylim=(middle - half, middle + half), xlabel="average precision", title=title)
    legend_below(axes)


def draw_curves(
    axes: Any,
    report: Dict[str, Any],
    truth: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray,
    ranked: Sequence[int],
    names: Sequence[str],
) -> None:
    """Precision over recall: of each class, or of many a band; of all decisions together; and of the decisions made."""

    def precisions(k: int) -> np.ndarray:
        return precision_at(truth[known[:, k], k], scores[known[:, k], k])

    if len(ranked) > MOST_CURVES:
        low, high = np.percentile([precisions(k) for k in ranked], (25, 75), axis=0)
        label = f"the middle half of the {len(ranked)} classes"
        axes.fill_between(RECALLS, low, high, color="0.87", linewidth=0, label=label, zorder=1)
    else:
        for k in ranked[1:-1]:
            axes.plot(RECALLS, precisions(k), color="0.75", linewidth=1, zorder=1)
        if ranked[1:-1]:
            axes.plot([], [], color="0.75", linewidth=1, label="the other classes")
    ap = [entry["AP"] for entry in report["per_class"]]
    extremes = [("best", ranked[-1], BLUE, "-."), ("worst", ranked[0], ORANGE, "--")]
    for role, k, color, style in extremes[: len(ranked)]:
        label = f"the {role} class, {names[k]} (AP {ap[k]:.3f})"
        axes.plot(RECALLS, precisions(k), color=color, linestyle=style, linewidth=1.8, label=label, zorder=2)
    together = precision_at(truth[known], scores[known])
    axes.plot(RECALLS, together, color="black", linewidth=2.2, label="all classes together", zorder=3)
    said = {"net, thresholds": "the thresholds given", "net, tuned here": "thresholds tuned here"}
    look = {"color": "black", "markersize": 8, "markerfacecolor": "white", "zorder": 4}
    for marker, name in zip(MARKERS, [name for name in report["metrics"] if name.startswith("net, ")]):
        values = report["metrics"][name]
        label = f"decisions by {said.get(name, name[5:])}: precision {values['OP']:.3f}, recall {values['OR']:.3f}"
        axes.plot(values["OR"], values["OP"], marker, label=label, **look)
    axes.set(
        xlim=(0, 1.01),
        ylim=(0, 1.02),
        xlabel="recall: share of the labels that are found",
        ylabel="precision: share of the answers that are right",
        title="Precision and recall",
    )
    axes.grid(alpha=0.3)
    legend_below(axes)


def precision_at(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The precision of the highest threshold at which recall reaches each of RECALLS."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    right = np.cumsum(truth[order])
    ends = np.append(ranked[1:] != ranked[:-1], True)  # equals cannot be cut apart
    right, decided = right[ends], np.flatnonzero(ends) + 1
    first = np.searchsorted(right, np.maximum(np.ceil(RECALLS * right[-1] - 1e-9), 1))
    return right[first] / decided[first]
