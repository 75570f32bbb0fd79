"""The layer MultilabelImageDataLayer as nets name it: its options, how many images its index lists, its order."""

from __future__ import annotations

import json
from typing import Any, Dict

from ..errors import UsageError
from ..files import open_file
from ..param_str import parse_literal

LAYER = "MultilabelImageDataLayer"


def reads_index(layer: Any) -> bool:
    return layer.type == "Python" and layer.python_param.layer == LAYER


def index_options(layer: Any) -> Dict[str, Any]:
    """What its param_str says; the layer itself complains of what is wrong with the values."""
    try:
        return parse_literal(layer.python_param.param_str)
    except ValueError as error:
        raise UsageError(f"layer {layer.name!r} has a param_str that is {error}.") from error


def count_index(layer: Any) -> int:
    """How many images its index lists."""
    source = index_options(layer).get("source")
    if not isinstance(source, str) or not source:
        raise UsageError(f"layer {layer.name!r} has source {source!r} in its param_str; expected the name of an index.")
    try:
        with open_file(source, "rb") as file:
            lines = sum(map(bool, map(bytes.strip, file)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{source} (source of layer {layer.name!r}) cannot be read: {reason}.") from error
    if lines < 2:  # the first says what it is
        raise UsageError(f"{source} (source of layer {layer.name!r}) is an empty set; expected at least one sample.")
    return lines - 1


def index_batch_size(layer: Any) -> int:
    size = index_options(layer).get("batch_size", 1)
    if type(size) is not int:
        raise UsageError(f"layer {layer.name!r} has batch_size {size!r} in its param_str; expected a whole number.")
    return size


def change_options(layer: Any, **options: Any) -> None:
    """Put options into its param_str, in place of what it has of these names."""
    layer.python_param.param_str = json.dumps({**index_options(layer), **options})
