"""Python layers of nets: the classes they name, and what they raise."""

from __future__ import annotations

import difflib
import io
import os
import pkgutil
import re
import sys
import traceback
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from typing import Any, Iterator, Sequence

from ..errors import UsageError, hidden_module

LAYER_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError)  # what a Python layer raises for bad input


def find_class(module: str, layer: str) -> type:
    """The class that a Python layer names; Caffe itself only says that something returned NULL.

    Raises
    ------
    ImportError : the module cannot be imported, whatever it raises, or has no such class.
    """
    try:
        with staying():
            found = import_module(module)
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, ImportError):
            told = f"{error}. {module_hint(module, error)}"
        elif isinstance(error, SyntaxError):  # which says where it is
            told += ". That is Python 2: convert it with 2to3" if is_python_2(error) else ""
        else:
            told += f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
        raise ImportError(
            f"python_param {{ module: {module!r} }} cannot be imported: {told}{'' if told.endswith('?') else '.'}"
        ) from error
    if not hasattr(found, layer):
        nearest = difflib.get_close_matches(layer, dir(found), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "change python_param { layer: ... }."
        raise ImportError(f"module {module!r} has no class {layer!r}; {hint}")
    return getattr(found, layer)


PYTHON_2_MODULES = {"cPickle", "ConfigParser", "Queue", "StringIO", "cStringIO", "urllib2", "Tkinter"}
PYTHON_2_LINES = re.compile(
    r"^\s*(print\b(?!\s*\()|exec\b(?!\s*\(|\s*=)|raise\s+\w+\s*,|except\s+[\w.]+\s*,\s*\w+\s*:)|<>|`|\b0\d+\b|\bur['\"]"
)


def is_python_2(error: SyntaxError) -> bool:
    """Whether a line that Python 3 does not understand is one of Python 2."""
    return bool(PYTHON_2_LINES.search(error.text or "")) or "parentheses in call to" in str(error)


def module_hint(module: str, error: ImportError) -> str:
    """What to do about a module that is not found: the nearest name there is, or where it is looked for."""
    package, _, name = module.rpartition(".")
    if "relative import" in str(error):
        return (
            "It imports its neighbours relatively: name it with the folder it lies in, module: "
            f"'FOLDER.{name}', and add the folder above that one to PYTHONPATH"
        )
    if error.name in PYTHON_2_MODULES:
        return f"{error.name!r} is a module of Python 2: convert {module!r} with 2to3"
    if error.name and not f"{module}.".startswith(f"{error.name}."):
        return f"{module!r} needs it: install it for {sys.executable}, or add its folder to PYTHONPATH"
    if error.name == module:  # not another one that it imports
        places = getattr(sys.modules.get(package), "__path__", []) if package else None
        known = [found.name for found in pkgutil.iter_modules(places)]
        known += [] if package else [__name__.partition(".")[0]]  # an editable installation is not listed
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if nearest:
            return f"Did you mean {'.'.join(filter(None, (package, nearest[0])))!r}?"
    return "Install it, or add its folder to PYTHONPATH"


def check_python_layers(layers: Sequence[Any], path: str) -> None:
    """Raise a UsageError that names the Python layer of the net `path` whose class is not there, or is none."""
    import caffe

    for layer in layers:
        if layer.type == "Python":
            try:
                found = find_class(layer.python_param.module, layer.python_param.layer)
            except ImportError as error:
                raise UsageError(f"{path}: layer {layer.name!r}: {error}{hidden_module()}") from error
            if not (isinstance(found, type) and issubclass(found, caffe.Layer)):
                raise UsageError(f"{path}: layer {layer.name!r}: {found!r} is no class derived from caffe.Layer.")


@contextmanager
def staying() -> Iterator[None]:
    """Go back to the working directory and the standard streams, wherever a Python layer leads them meanwhile."""
    here = os.open(".", os.O_RDONLY) if hasattr(os, "fchdir") else None
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        if here is not None:
            os.fchdir(here)
            os.close(here)


def told(error: BaseException) -> str:
    """What a layer raised, in its words; of one of another's, as in a KeyError, they need its kind and its place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if frame.filename.startswith(os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep):
        return str(error)
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


@contextmanager
def running(path: str) -> Iterator[None]:
    """Turn what the Python layers of the net `path` raise while it runs into a UsageError."""
    try:
        with staying():
            yield
    except LAYER_ERRORS as error:
        raise UsageError(f"{path}: {told(error)}") from error


@contextmanager
def python_layer_errors(path: str) -> Iterator[None]:
    """Turn what Python layers say while a net of `path` is made into a UsageError.

    A layer that cannot be found is a SystemError without a reason; pycaffe prints that to sys.stderr.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said), staying():
            yield
        sys.stderr.write(said.getvalue())  # such as warnings
    except SystemError as error:
        lines = [line for line in said.getvalue().splitlines() if line and not line[0].isspace()]
        raise UsageError(f"{path} has a Python layer that cannot be made: {lines[-1] if lines else error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{path}: {told(error)}") from error
