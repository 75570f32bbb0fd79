"""Files of thresholds per class: written by `evaluate`, taken by `evaluate` and `predict`."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ..errors import UsageError
from ..files import write_text
from .report import as_json


class Thresholds(NamedTuple):
    """One threshold per class, infinity for a class that is never decided for, and what a file says of them."""

    values: np.ndarray
    probabilities: Optional[str]
    classes: Optional[List[str]]


def write_thresholds(path: str, thresholds: np.ndarray, report: Dict[str, Any]) -> None:
    """A JSON file of one threshold per class, null for a class that is never decided for."""
    content = {
        "probabilities": report["probabilities"],
        "classes": [entry["class"] for entry in report["per_class"]],
        "thresholds": as_json(thresholds),
        "F1": as_json([entry["F1 (tuned here)"] for entry in report["per_class"]]),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_thresholds(path: str) -> Thresholds:
    """What `write_thresholds` wrote."""
    expected = 'expected a JSON file with "thresholds": [...], as evaluate --tune-thresholds writes it'
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        values = np.array([np.inf if value is None else float(value) for value in content["thresholds"]])
        return Thresholds(values, content.get("probabilities"), content.get("classes"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no file of thresholds ({error}); {expected}.") from error


def check_thresholds(thresholds: Thresholds, path: str, classes: int, kind: Optional[str]) -> None:
    """Raise a UsageError unless thresholds fit a net in number, and in the kind of probabilities where it is known."""
    values, tuned, _ = thresholds
    if len(values) != classes:
        raise UsageError(f"{path} holds {len(values)} thresholds; expected {classes}, as the net scores.")
    if kind in ("softmax", "sigmoid"):
        if tuned not in (None, kind):
            raise UsageError(f"{path} was tuned on {tuned} probabilities; expected {kind}, which this net gives.")
        if (values[np.isfinite(values)] > 1).any() or not (values >= 0).all():
            raise UsageError(f"{path} holds thresholds from {values.min():g} to {values.max():g}; expected 0 to 1.")
