"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..nets.heads import ACTIVATIONS


def add_head_arguments(parser: Any) -> None:
    parser.add_argument(
        "--scores", metavar="BLOB", help="the blob of class scores (default: what the loss layer takes)"
    )
    parser.add_argument("--activation", choices=ACTIVATIONS, help="scores to probabilities (default: the loss layer's)")


def add_positive_argument(parser: Any) -> None:
    parser.add_argument(
        "--positive-above",
        type=not_negative,
        metavar="X",
        help="a label above X counts as positive (default: 0, where labels are 0 and one other value)",
    )


def not_negative(text: str) -> float:
    """A finite number of at least 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a finite number of at least 0")
    return number


def at_least_one(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)
