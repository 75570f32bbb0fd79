"""Options that several commands share."""

from __future__ import annotations

from typing import Any

from ..nets.heads import ACTIVATIONS


def add_head_arguments(parser: Any) -> None:
    parser.add_argument(
        "--scores", metavar="BLOB", help="the blob of class scores (default: what the loss layer takes)"
    )
    parser.add_argument("--activation", choices=ACTIVATIONS, help="scores to probabilities (default: the loss layer's)")
