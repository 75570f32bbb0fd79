"""What commands say: sentences on the standard output and error, clear of the progress bar."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import Any, Iterator

from ..errors import PROGRAM
from ..files import cannot_be_written
from ..parallel.ranks import ranks


class Lasting:
    """A text stream that outlives its reader: what nobody reads any more is dropped, and the work goes on."""

    def __init__(self, stream: Any, name: str):
        self.stream, self.name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except OSError as error:
            self.drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.drop(error)

    def drop(self, error: OSError) -> None:
        """Go on without a reader; a disk that is full is another matter."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise cannot_be_written(f"the standard {self.name}", error) from error
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self.stream.fileno())
        os.close(sink)
        if self.name == "output":
            print(f"{PROGRAM}: warning: nobody reads the standard output any more; the work goes on.", file=sys.stderr)


class Few(Lasting):
    """A text stream that takes so many lines; the rest, as of a layer that prints in each forward, is left out."""

    left = 100

    def write(self, text: str) -> int:
        before, self.left = self.left, self.left - text.count("\n")
        if self.left > 0:
            super().write(text)
        elif before > 0:
            super().write(text + "(What layers print further is left out.)\n")
        return len(text)


def settle_streams() -> None:
    """Have the standard streams take all that is printed, whatever they lead to.

    Closed ones lead nowhere, in place of into the next file that is opened. What the encoding of one lacks is escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(opened, True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or open(descriptor, "w", closefd=False)  # noqa: SIM115, for good
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Lasting(stream, {"stdout": "output", "stderr": "error"}[name]))


def settle_warnings() -> None:
    """Let no warning of a package end the program, as PYTHONWARNINGS=error would have it."""
    if any("error" in option for option in sys.warnoptions):
        warnings.simplefilter("default")


def say(text: str) -> None:
    """A line on the standard output, above the progress bar; of several ranks, rank 0 says it."""
    from tqdm import tqdm

    if ranks.rank > 0:
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def tell(command: str, error: str) -> None:
    """Say on the standard error what is wrong, as argparse does; of several ranks, one at fault says it, at the end."""
    if not ranks.tell(error):
        print(f"{PROGRAM} {command}: error: {error}", file=sys.stderr)


def warn(command: str, text: str) -> None:
    """Say on the standard error what may be wrong; the command goes on. Of several ranks, rank 0 says it."""
    if ranks.rank > 0:
        return
    print(f"{PROGRAM} {command}: warning: {text}", file=sys.stderr)


@contextmanager
def printing_aside() -> Iterator[None]:
    """Send what layers print, by Python or past it, to the standard error: it is no part of the report.

    Of what is printed by Python that is the beginning.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(sys.stderr.fileno(), 1)
    try:
        with redirect_stdout(Few(sys.stderr, "error")):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
