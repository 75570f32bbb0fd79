"""Files of thresholds per class: written by `evaluate`, taken by `evaluate` and `predict`."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ..errors import UsageError
from ..files import write_text
from ..nets.heads import Head
from .report import as_json

EXPECTED = 'expected a JSON file with "thresholds": [...], as evaluate --tune-thresholds writes it'


class Thresholds(NamedTuple):
    """What a file holds: a threshold per class, infinity for a class that is never decided for.

    `values` are probabilities (or scores where nothing makes probabilities of them). `log_odds` are the same, exactly;
    None where the file was written by hand. `probabilities` is "softmax" or "sigmoid", which they were tuned on.
    """

    values: np.ndarray
    log_odds: Optional[np.ndarray]
    probabilities: Optional[str]
    classes: Optional[List[str]]


def write_thresholds(path: str, log_odds: np.ndarray, report: Dict[str, Any], head: Head) -> None:
    """A JSON file of one threshold per class, null for a class that is never decided for."""
    never = np.isinf(log_odds)
    content = {
        "probabilities": head.activation,
        "classes": [entry["class"] for entry in report["per_class"]],
        "thresholds": as_json(np.where(never, np.inf, head.probability(log_odds))),
        "log_odds": as_json(log_odds),
        "F1": as_json([entry["F1 (tuned here)"] for entry in report["per_class"]]),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_thresholds(path: str) -> Thresholds:
    """What `write_thresholds` wrote, or a file made by hand."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        values, log_odds = (
            None if entries is None else np.array([np.inf if value is None else float(value) for value in entries])
            for entries in (content["thresholds"], content.get("log_odds"))
        )
        assert values is not None
        return Thresholds(values, log_odds, content.get("probabilities"), content.get("classes"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no file of thresholds ({error}); {EXPECTED}.") from error


def levels_of(thresholds: Thresholds, path: str, classes: int, head: Head) -> np.ndarray:
    """The thresholds as log odds of the head of a net, which they have to fit in number and in kind.

    Raises
    ------
    UsageError : they do not fit, or the file contradicts itself.
    """
    values, log_odds, tuned, _ = thresholds
    if len(values) != classes:
        raise UsageError(f"{path} holds {len(values)} thresholds; expected {classes}, as the net scores.")
    if head.activation == "none":
        return values
    if tuned not in (None, head.activation):
        raise UsageError(
            f"{path} was tuned on {tuned} probabilities; expected {head.activation}, which this net gives."
        )
    if (values[np.isfinite(values)] > 1).any() or not (values >= 0).all():
        raise UsageError(f"{path} holds thresholds from {values.min():g} to {values.max():g}; expected 0 to 1.")
    if log_odds is None:
        return head.odds_of(values)
    probs = np.where(np.isinf(log_odds), np.inf, head.probability(log_odds))
    if len(log_odds) != classes or not np.isclose(probs, values, rtol=1e-9, atol=0).all():
        raise UsageError(f'{path} has "log_odds" that are not those of its "thresholds"; delete the "log_odds".')
    return log_odds
