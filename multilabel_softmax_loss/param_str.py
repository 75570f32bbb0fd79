"""The dict that a `param_str` holds, JSON or a Python literal, and the checked options made of it."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import math
import numbers
from typing import Any, Callable, List, Mapping, Type, TypeVar

SetType = TypeVar("SetType", bound="OptionSet")


def parse_literal(text: str) -> dict:
    """The dict written in `text` as JSON or as a Python literal. Nothing in it is ever executed."""
    dicts: List[list] = []  # the names in each, as a dict forgets one that is repeated

    def note(pairs: List[tuple]) -> dict:
        dicts.append([name for name, _ in pairs])
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=note)
    except (ValueError, RecursionError) as json_error:
        try:
            tree = ast.parse(text.strip(), mode="eval")
            found = ast.literal_eval(tree)
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
            dicts[:] = [[ast.literal_eval(key) for key in node.keys if key] for node in nodes]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            # JSON's parser knows the column; its reason only helps who wrote JSON.
            reason = json_error if '"' in text else getattr(error, "msg", None) or type(error).__name__
            raise ValueError(f"{shorten(text)}, neither JSON nor a Python dict literal ({reason})") from error
    if not isinstance(found, dict):
        raise ValueError(f'{shorten(text)}, which is no dict such as {{"axis": 1}}')
    for names in dicts:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"option {name!r} twice")
    return found


def shorten(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


# Options


def option(default: Any, check: Callable[[Any], Any], effect: str, source: str) -> Any:
    """A field of an options class: its default, the check that returns the value to keep, its effect and its source."""
    return dataclasses.field(default=default, metadata={"check": check, "effect": effect, "source": source})


def choice(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        expected = "one of " + ", ".join(repr(word) for word in allowed)
        if not isinstance(value, str):
            raise TypeError(expected)
        if value not in allowed:
            nearest = difflib.get_close_matches(value.lower(), [word.lower() for word in allowed], n=1, cutoff=0.5)
            match = [word for word in allowed if [word.lower()] == nearest]
            raise ValueError(expected + "".join(f"; did you mean {word!r}?" for word in match))
        return value

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        expected = "a finite number"
        if low > -math.inf:
            expected = f"a finite number >= {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(expected)
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(expected) from None
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(expected)
        return value

    return check


def integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError("an integer")
    return int(value)


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


@dataclasses.dataclass(frozen=True)
class OptionSet:
    """What classes of options share: each field is checked as it is made, and names are checked before.

    Subclasses are frozen dataclasses whose fields are made by :func:`option`.
    """

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            try:
                object.__setattr__(self, entry.name, entry.metadata["check"](value))
            except (TypeError, ValueError) as error:
                raise type(error)(f"option {entry.name!r} = {shorten(value)}; expected {error}") from error

    @classmethod
    def names(cls) -> list:
        return [entry.name for entry in dataclasses.fields(cls)]

    @classmethod
    def make(cls: Type[SetType], options: Mapping[str, Any]) -> SetType:
        """The options object for these names and values.

        Raises
        ------
        ValueError : a name is unknown (the nearest one is suggested) or a value is impossible.
        TypeError : a value has the wrong type.
        """
        names = cls.names()
        for name in options:
            if name not in names:
                nearest = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(names)}"
                raise ValueError(f"unknown option {name!r}; {hint}")
        return cls(**options)

    @classmethod
    def parse(cls: Type[SetType], param_str: str) -> SetType:
        """The options that a `param_str` holds: JSON or a Python dict literal; empty for the defaults."""
        return cls.make(parse_literal(param_str)) if param_str.strip() else cls()
