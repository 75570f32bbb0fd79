"""The picture of an evaluation: average precision of each class, and precision-recall curves."""

from __future__ import annotations

from typing import Any, Dict, Optional

import numpy as np

from ..errors import UsageError
from ..files import replacing
from . import metrics


def draw(report: Dict[str, Any], truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray], path: str) -> None:
    """Bars of the classes' average precision beside chance, and precision-recall curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, curves) = pyplot.subplots(
        1, 2, figsize=(12, max(5, min(0.22 * report["classes"], 12))), constrained_layout=True
    )
    try:
        draw_bars(bars, report, truth)
        draw_curves(curves, report, truth, scores, known)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110)
    except ValueError as error:  # a suffix that is no picture
        raise UsageError(f"{path} cannot be drawn: {error}") from error
    finally:
        pyplot.close(figure)


def draw_bars(axes: Any, report: Dict[str, Any], truth: np.ndarray) -> None:
    defined = [k for k, entry in enumerate(report["per_class"]) if entry["positives"]]
    ap = np.array([report["per_class"][k]["AP"] for k in defined])
    order = np.argsort(ap)
    chance = truth[:, defined].mean(axis=0)[order]
    places = np.arange(len(order))
    axes.barh(places, ap[order], height=0.8, color="tab:blue", label="average precision")
    axes.plot(chance, places, "k|", markersize=8, label="chance: the share of positives")
    mean = metrics.mean_of_defined(ap)
    axes.axvline(mean, color="tab:orange", linestyle="--", label=f"mAP {mean:.3f}")
    if len(order) <= 60:
        for place, value in zip(places, ap[order]):
            axes.text(1.01, place, f"{value:.3f}", va="center", fontsize=8)
        axes.set_yticks(places)
        axes.set_yticklabels([report["per_class"][defined[k]]["class"] for k in order], fontsize=8)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(order)} classes, the best on top")
    axes.set(xlim=(0, 1), ylim=(-0.6, len(order) - 0.4), xlabel="average precision", title="Each class")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=3, frameon=False, fontsize=9)


def draw_curves(
    axes: Any, report: Dict[str, Any], truth: np.ndarray, scores: np.ndarray, known: Optional[np.ndarray]
) -> None:
    from sklearn.metrics import precision_recall_curve

    known = np.ones(truth.shape, bool) if known is None else known
    ap = np.array([entry["AP"] for entry in report["per_class"]], dtype=float)
    ranked = [int(k) for k in np.argsort(ap) if np.isfinite(ap[k])]
    shown = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    if len(ranked) <= 20:
        for k in set(ranked) - set(shown.values()):
            precision, recall, _ = precision_recall_curve(truth[known[:, k], k], scores[known[:, k], k])
            axes.plot(recall, precision, color="0.85", linewidth=1, zorder=1)
    precision, recall, _ = precision_recall_curve(truth[known], scores[known])
    axes.plot(recall, precision, color="black", linewidth=2.5, label="all decisions together", zorder=3)
    for (role, k), color in zip(shown.items(), ("tab:green", "tab:blue", "tab:red")):
        precision, recall, _ = precision_recall_curve(truth[known[:, k], k], scores[known[:, k], k])
        label = f"{role} class: {report['per_class'][k]['class']} (AP {ap[k]:.3f})"
        axes.plot(recall, precision, color=color, label=label, zorder=2)
    markers = iter("osD^v*")
    for name, values in report["metrics"].items():
        if name.startswith("net"):
            axes.plot(
                values["OR"], values["OP"], next(markers, "o"), color="black", markersize=9, markerfacecolor="white",
                label=f"{name[5:]}: OP {values['OP']:.3f}, OR {values['OR']:.3f}", zorder=4,
            )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=2, frameon=False, fontsize=9)
