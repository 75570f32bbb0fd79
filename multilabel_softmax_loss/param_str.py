"""The dict that a `param_str` holds: JSON or a Python literal; nothing in it is ever executed."""

from __future__ import annotations

import ast
import json
from typing import Any


def parse_literal(text: str) -> dict:
    """The dict written in `text` as JSON or as a Python literal. Nothing in it is ever executed."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as json_error:
        try:
            pairs = literal_pairs(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            # JSON's parser knows the column; its reason only helps who wrote JSON.
            reason = json_error if '"' in text else getattr(error, "msg", None) or type(error).__name__
            raise ValueError(f"{shorten(text)}, neither JSON nor a Python dict literal ({reason})") from error
    if not isinstance(pairs, tuple):
        raise ValueError(f'{shorten(text)}, which is no dict such as {{"axis": 1}}')
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"option {name!r} twice")
    return dict(pairs)


def literal_pairs(text: str) -> Any:
    """A dict literal as a tuple of its pairs, so that a repeated key is not lost; another literal as its value."""
    node = ast.parse(text.strip(), mode="eval").body
    value = ast.literal_eval(node)
    if isinstance(node, ast.Dict):
        return tuple((ast.literal_eval(k), ast.literal_eval(v)) for k, v in zip(node.keys, node.values) if k)
    return list(value) if isinstance(value, tuple) else value


def shorten(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
