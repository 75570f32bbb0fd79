"""The figures of an evaluation: a dict of all of them, and the table that is printed."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

import numpy as np

from . import metrics

COLUMNS = (
    *("mAP", "LRAP", "coverage", "CP", "CR", "CF1"),
    *("OP", "OR", "OF1", "N+", "exact match", "hamming accuracy"),
)


def evaluation(
    truth: np.ndarray,
    scores: np.ndarray,
    known: Optional[np.ndarray] = None,
    ks: Any = (3,),
    thresholds: Optional[np.ndarray] = None,
    tuned: Optional[np.ndarray] = None,
    names: Optional[List[str]] = None,
) -> Dict[str, Any]:
    """All figures as a dict, of arrays as metrics.py takes them, and thresholds on the scale of the scores.

    It holds "metrics" of the net and of the baselines, "per_class", and what was counted.
    """
    known = None if known is None or known.all() else known
    ranking = metrics.ranking_metrics(truth, scores, known)
    decisions = {f"net, top {k}": metrics.top_k(scores, k) for k in ks}
    if thresholds is not None:
        decisions["net, thresholds"] = metrics.above(scores, thresholds)
    if tuned is not None:
        decisions["net, tuned here"] = metrics.above(scores, tuned)
    rows = {name: {**ranking, **metrics.decision_metrics(truth, decided, known)} for name, decided in decisions.items()}
    for k in ks:
        rows.update(metrics.baselines(truth, k, known))
    rows["all zeros"] = rows.pop("all zeros")  # last, however many k there are
    names = names or [str(k) for k in range(truth.shape[1])]
    per_class: Dict[str, Any] = {
        "positives": truth.sum(axis=0),
        "AP": metrics.average_precisions(truth, scores, known),
    }
    for name, decided in decisions.items():
        for metric, values in metrics.precision_recall_f1(truth, decided, known).items():
            per_class[f"{metric} ({name[5:]})"] = values
    return {
        "samples": len(truth),
        "samples_without_labels": int((~truth.any(axis=1)).sum()),
        "labels_per_sample": float(truth.sum(axis=1).mean()),
        "unknown_entries": 0 if known is None else int((~known).sum()),
        "classes": truth.shape[1],
        "classes_without_positives": [name for name, some in zip(names, truth.any(axis=0)) if not some],
        "metrics": rows,
        "per_class": [
            {"class": name, **{metric: values[k] for metric, values in per_class.items()}}
            for k, name in enumerate(names)
        ],
    }


def table(report: Dict[str, Any], most: float = math.inf) -> str:
    """The metrics as text, and what to know of them; its columns one below the other in parts of `most` letters."""
    rows = report["metrics"]
    width = max(map(len, rows))
    heads = [["", *name.split(" ")][-2:] for name in COLUMNS]
    widths = [max(map(len, head)) + 2 if len(head[-1]) > 5 else 7 for head in heads]
    lines = [
        f"{report['samples']} samples, {report['classes']} classes, "
        f"{report['labels_per_sample']:.2f} labels per sample",
    ]
    parts: List[List[int]] = [[]]
    for k, w in enumerate(widths):
        if parts[-1] and width + sum(widths[j] for j in parts[-1]) + w > most:
            parts.append([])
        parts[-1].append(k)
    for part in parts:
        lines += ["", *(" " * width + "".join(f"{heads[k][row]:>{widths[k]}}" for k in part) for row in (0, 1))]
        for name, values in rows.items():
            lines.append(f"{name:{width}}" + "".join(f"{figure(values[COLUMNS[k]]):>{widths[k]}}" for k in part))
    return "\n".join(line.rstrip() for line in [*lines, *notes(report)])


def figure(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def notes(report: Dict[str, Any]) -> List[str]:
    lines = [""]
    absent = report["classes_without_positives"]
    if absent:
        names = [name if len(name) <= 60 else f"{name[:57]}..." for name in absent[:8]]
        lines.append(
            f"{len(absent)} of {report['classes']} classes have no positives, so their average precision is undefined; "
            f"they are left out of the means over classes: {', '.join(names)}{', ...' if len(absent) > 8 else ''}"
        )
    if report["samples_without_labels"]:
        lines.append(f"{report['samples_without_labels']} samples have no label; LRAP and coverage leave them out.")
    if report["unknown_entries"]:
        lines.append(f"{report['unknown_entries']} unknown labels count nowhere.")
    if "net, tuned here" in report["metrics"]:
        lines.append("Thresholds tuned on a set flatter the net on that set: tune on one, evaluate on another.")
    return lines if len(lines) > 1 else []


def as_json(value: Any) -> Any:
    """`value` as JSON has it: Python numbers, and null for what is undefined."""
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
