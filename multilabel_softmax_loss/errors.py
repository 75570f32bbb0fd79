"""What users are told: errors of one clear sentence, and the words they share."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from typing import Any, Callable, Sequence

PROGRAM = "python -m multilabel_softmax_loss"
SILENT = [False]  # whether another process says what may be wrong


class UsageError(ValueError):
    """Bad usage or bad input: what came, what was expected, where to change it. The exit status is 2."""


class NotFiniteError(ValueError):
    """Scores or a loss that are not finite: where a net trains, it has diverged."""


class InputError(ValueError):
    """A blob that does not fit. `template` names the blobs as {scores}, {labels} and {sample_weight}.

    A caller that knows the blobs by other names (a layer calls them bottom[0] and so on) fills in its own;
    `kind` tells it what to advise: "scores", "labels", "sample_weight" for what is in them, "shape" or "weight_shape",
    "empty" for labels that are not there, "loss" where that is too large, or an option: "axis", "class_weight" or
    "ignore_label".
    """

    def __init__(self, kind: str, template: str):
        self.kind = kind
        self.template = template
        super().__init__(self.render(scores="scores", labels="labels", sample_weight="sample_weight"))

    def render(self, **names: str) -> str:
        return self.template.format(**names)


def unknown_name(what: str, name: str, known: Sequence[str], where: str) -> UsageError:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(dict.fromkeys(known))}."
    return UsageError(f"{where} has no {what} {name!r}; {hint}")


def shortlist(names: Any, most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def hidden_module() -> str:
    """What to add to an error where a file of the user's, in this folder or in PYTHONPATH, hides a module of Python."""
    home = os.path.dirname(os.__file__)
    places = [home, os.path.join(home, "lib-dynload")]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or home
        if not (file.startswith(home) or "-packages" in file) and PathFinder.find_spec(name, places):
            return f" {file} hides the module {name!r} of Python itself: rename it, or start from another folder."
    return ""


def end_unexpected(kind: Any, error: Any, trace: Any, end: Callable[[int], Any] = os._exit) -> None:
    """Tell of an exception that nobody expected, with the status of bad usage: Python's own, 1, would say "no"."""
    if not issubclass(kind, Exception):  # sys.exit() under PYTHONINSPECT
        return
    try:
        if isinstance(error, UsageError):  # such as a full disk, as last words are written to it
            print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)
            print(hidden_module().strip(), file=sys.stderr)
    finally:
        end(2)


def warn(text: str) -> None:
    """Say on the standard error what may be wrong; the work goes on. Of several ranks, rank 0 says it."""
    if not SILENT[0]:
        print(f"warning: {text}", file=sys.stderr)


NOTHING_KEPT = " before there was anything to keep"


def end_interrupted(command: str, end: Callable[[int], Any] = os._exit, state: str = NOTHING_KEPT) -> None:
    """End a command that is asked to, past all buffers, as a handler of signals runs amid whatever is printed.

    Once only: Ctrl-C reaches a child directly, and through its parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, lambda number, frame: None)
    with suppress(OSError, ValueError, AttributeError):  # nobody reads it
        descriptor = sys.stderr.fileno()
        start = "\n" if os.isatty(descriptor) else ""
        words = " ".join(filter(None, [PROGRAM, command]))
        os.write(descriptor, f"{start}{words}: interrupted{state}.\n".encode())
    end(130)
