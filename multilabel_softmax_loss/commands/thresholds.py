"""Files of thresholds per class: written by `evaluate`, taken by `evaluate` and `predict`."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ..errors import UsageError, shortlist, unknown_name
from ..files import is_number, read_json, write_text
from ..nets.heads import ACTIVATIONS, Head
from .report import as_json

KEYS = ("probabilities", "classes", "thresholds", "log_odds", "F1")
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
    """What `write_thresholds` wrote, or a file made by hand.

    Raises
    ------
    UsageError : the file holds anything else.
    """
    content = read_json(path, EXPECTED)
    if not isinstance(content, dict) or "thresholds" not in content:
        found = f"keys {shortlist(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UsageError(f"{path} is no file of thresholds, as it holds {found or 'nothing'}; {EXPECTED}.")
    for name in content:
        if name not in KEYS:
            raise unknown_name("use for", name, KEYS, path)
    values = per_class(content, "thresholds", path)
    classes, probabilities = content.get("classes"), content.get("probabilities")
    if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
        raise UsageError(f'{path} has "classes" that are no list of names; expected one name for each threshold.')
    if classes is not None and len(classes) != len(values):
        raise UsageError(f"{path} has {len(values)} thresholds and {len(classes)} classes; expected as many.")
    if probabilities not in (None, *ACTIVATIONS):
        raise UsageError(f'{path} has "probabilities": {probabilities!a}; expected one of {", ".join(ACTIVATIONS)}.')
    return Thresholds(
        values, per_class(content, "log_odds", path) if "log_odds" in content else None, probabilities, classes
    )


def per_class(content: Dict[str, Any], name: str, path: str) -> np.ndarray:
    """A list of numbers, with infinity in place of null."""
    entries = content[name]
    if not isinstance(entries, list):
        raise UsageError(f'{path} has "{name}" that are a {type(entries).__name__}; expected a list of numbers.')
    for k, value in enumerate(entries):
        if not (value is None or is_number(value)):
            raise UsageError(f'{path} has {value!a} in "{name}", for class {k}; expected a number, or null for never.')
    return np.array([np.inf if value is None else float(value) for value in entries])


def levels_of(
    thresholds: Thresholds, path: str, classes: int, head: Head, names: Optional[List[str]] = None
) -> np.ndarray:
    """The thresholds as log odds of the head of a net, which they have to fit in number, in kind, and in class names.

    Raises
    ------
    UsageError : they do not fit, or the file contradicts itself.
    """
    values, log_odds, tuned, tuned_names = thresholds
    if len(values) != classes:
        raise UsageError(f"{path} holds {len(values)} thresholds; expected {classes}, as the net scores.")
    if names and tuned_names and tuned_names not in (names, [str(k) for k in range(classes)]):
        k = next(k for k in range(classes) if names[k] != tuned_names[k])
        raise UsageError(f"{path} has {tuned_names[k]!r} as class {k}; expected {names[k]!r}, as classes are named.")
    if tuned not in (None, head.activation):
        was, given = ("scores" if kind == "none" else f"{kind} probabilities" for kind in (tuned, head.activation))
        raise UsageError(f"{path} was tuned on {was}; expected {given}, which this net gives.")
    if head.activation == "none":
        return values
    if (values[np.isfinite(values)] > 1).any() or not (values >= 0).all():
        raise UsageError(f"{path} holds thresholds from {values.min():g} to {values.max():g}; expected 0 to 1.")
    if log_odds is None:
        return head.odds_of(values)
    probs = np.where(np.isinf(log_odds), np.inf, head.probability(log_odds))
    if len(log_odds) != classes or not np.isclose(probs, values, rtol=1e-9, atol=0).all():
        raise UsageError(f'{path} has "log_odds" that are not those of its "thresholds"; delete the "log_odds".')
    return log_odds
