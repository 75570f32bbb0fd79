"""What commands say: sentences on the standard output and error, clear of the progress bar."""

from __future__ import annotations

import errno
import functools
import math
import os
import shutil
import sys
import textwrap
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import Any, Dict, Iterator, Mapping, Optional

from ..errors import PROGRAM
from ..files import cannot_be_written
from ..parallel.ranks import ranks

NARROW = 65  # columns of a terminal; with fewer a bar says less


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

    def close(self) -> None:
        """Stay open, whatever a layer closes, as reports come after it."""

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


def settle_environment() -> None:
    """Let no setting end the program: warnings as errors (PYTHONWARNINGS=error), or what tqdm cannot take."""
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]
    if any("error" in option for option in sys.warnoptions):
        warnings.simplefilter("default")


def say(text: str) -> None:
    """A line on the standard output, above the progress bar; of several ranks, rank 0 says it."""
    from tqdm import tqdm

    if ranks.rank > 0:
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def columns() -> float:
    """The width of the terminal; without a limit where the standard output is none, or one of a launcher's."""
    return (shutil.get_terminal_size().columns if sys.stdout.isatty() else 0) or math.inf


class Figures:
    """The figures of tests, for `say`: a line each; on a terminal a row of a table, with its header every 20 rows.

    Where the terminal is too narrow for the table, it is that line, broken between words.
    """

    rows = 0  # of the table since a line stood above it

    def line(self, iteration: int, figures: Mapping[str, float], remark: str) -> str:
        line = f"iteration {iteration}: {', '.join(f'{name} {value:.4f}' for name, value in figures.items())}"
        line += f" ({remark})" if remark else ""
        width = columns()
        if width == math.inf:
            return line
        names = [name[len("test_") :] if name.startswith("test_") else name for name in figures]
        header = "iteration" + "".join(f"  {name:>7}" for name in names)
        cells = "".join(f"  {value:>{max(len(name), 7)}.4f}" for name, value in zip(names, figures.values()))
        if len(header) + len("  best") > width:
            self.rows = 0
            return textwrap.fill(line, max(int(width), 20), subsequent_indent="    ", break_long_words=False)
        self.rows += 1
        above = f"{header}\n" if self.rows % 20 == 1 else ""
        return above + f"{iteration:>9}{cells}  {remark}".rstrip()


def progress_bar(total: Optional[int], unit: str, initial: int = 0, desc: str = "", leave: bool = False) -> Any:
    """A tqdm bar on the standard error, as wide as the terminal is at each refresh; hidden where that is none."""
    layout = "{n_fmt} {unit}{speed}{postfix}"
    if total is not None:
        layout = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{left}{speed}{postfix}"
    options = {"initial": initial, "desc": desc, "leave": leave, "unit": unit, "bar_format": layout}
    hidden = ranks.rank > 0 or not (ranks.has_terminal or sys.stderr.isatty())
    return bar_class()(total=total, disable=hidden, file=sys.stderr, dynamic_ncols=True, **options)


@functools.lru_cache(maxsize=None)
def bar_class() -> type:
    """One class for all bars, as tqdm starts a thread for each class."""
    from tqdm import tqdm

    class Bar(tqdm):
        """With durations and rates as people say them."""

        @property
        def format_dict(self) -> Dict[str, Any]:
            facts = super().format_dict
            rate = facts["rate"] or ((facts["n"] - facts["initial"]) / facts["elapsed"] if facts["elapsed"] else 0)
            ahead = (facts["total"] or 0) - facts["n"]
            left = f", {duration(ahead / rate)} left" if rate and ahead > 0 else f", {duration(facts['elapsed'])}"
            told = {"left": left, "speed": f", {speed(rate, self.unit)}" if rate else ""}
            if (facts["ncols"] or NARROW) < NARROW:  # what matters most, and a bar
                told.update(speed="", postfix=(facts["postfix"] or "").partition(",")[0])
            return {**facts, **told}

    return Bar


def duration(seconds: float) -> str:
    """A time as people say it: 5 s, 3 min 20 s, 1 h 12 min, 3 days 4 h."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds / 60) < 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes < 10 else f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def speed(rate: float, unit: str) -> str:
    """So many units per second, or the time that one takes."""
    if rate < 1:
        return f"{1 / rate:.1f} s/{unit}" if 1 / rate < 60 else f"{duration(1 / rate)} each"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


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
