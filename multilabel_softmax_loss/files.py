"""Files that are never torn: written beside their name and then put in its place; and text files read."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import contextmanager
from typing import Iterable, Iterator, List, Optional, Sequence

from .errors import UsageError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def blocked() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait."""
    former = mask_signals("SIG_BLOCK", SIGNALS)
    try:
        yield
    finally:
        mask_signals("SIG_SETMASK", former)


def mask_signals(how: str, signals: Iterable[int]) -> Iterable[int]:
    """Block or unblock signals; returns those that were blocked before."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        return signal.pthread_sigmask(getattr(signal, how), signals)
    return ()


PICTURES = (".png", ".pdf", ".svg", ".jpg")


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`; what is there when all went well takes the place of `path` at once.

    Ctrl-C and SIGTERM wait meanwhile.
    """
    folder, name = os.path.split(os.path.abspath(path))
    stem, suffix = os.path.splitext(name)
    with blocked():
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{stem}-", suffix=suffix, dir=folder)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
        os.close(handle)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for their owner only
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def check_output(path: Optional[str], kinds: Sequence[str]) -> None:
    """Say before the work, not after it, that a file cannot be written, or is not of the `kinds` (its suffixes)."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise UsageError(f"{path} cannot be written; expected a file name in a folder that exists.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission to write in {folder}.")
    if os.path.splitext(path)[1] not in kinds:
        raise UsageError(f"{path}: unknown kind of file; expected {' or '.join(kinds)}.")


def write_text(path: str, text: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: str, what: str) -> List[str]:
    """The lines of a text file, empty ones left out."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise UsageError(f"{path} ({what}) cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} ({what}) is no text file.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{path} ({what}) is empty.")
    return lines
