"""history.csv of a training run: a row per iteration."""

from __future__ import annotations

import csv
import os
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from ..errors import UsageError
from ..files import cannot_be_written, open_file, replacing, set_aside

FIRST_COLUMNS = ["iteration", "seconds", "lr"]


class Damaged(ValueError):
    """A history.csv whose first line is none of a history."""


class Stored(NamedTuple):
    """What a history.csv holds: its columns, its rows without what is empty, and how many rows do not read."""

    columns: List[str]
    rows: List[Dict[str, float]]
    unread: int


class History:
    """The CSV of a run: a row per iteration, with the losses of its forward pass and, where there was one, the test.

    Row N belongs to the weights after N iterations. On resuming from N, the rows from N on are cut off.

    Parameters
    ----------
    path, columns : of the file.
    iteration : where the run goes on; 0 begins anew.
    every : of so many iterations one is kept, and those with a test are too.
    say : is told what of a damaged file was dropped. The file itself is kept beside it.
    """

    def __init__(self, path: str, columns: Sequence[str], iteration: int, every: int, say: Callable[[str], None]):
        self.path, self.columns, self.every = path, list(columns), every
        self.rows = self.take_up(path, iteration, say) if iteration and os.path.exists(path) else []
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([self.cells(row) for row in self.rows])
        self.file = open(path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115, open as long as the run
        self.writer = csv.writer(self.file)

    def take_up(self, path: str, iteration: int, say: Callable[[str], None]) -> List[Dict[str, float]]:
        """The rows before an iteration."""
        try:
            stored = read_history(path)
        except Damaged as error:
            say(f"{path} is damaged ({error}): the history begins anew here; the file is kept as {set_aside(path)}.")
            return []
        if stored.columns != self.columns:
            raise UsageError(
                f"{path} has the columns {', '.join(stored.columns)}; expected {', '.join(self.columns)}, as this "
                "solver and net have them. Choose another --out, or move the file."
            )
        rows = [row for row in stored.rows if row["iteration"] < iteration]
        ends = [-1, -1, *(int(row["iteration"]) for row in rows[-2:])]
        if stored.unread or ends[-1] + max(self.every, ends[-1] - ends[-2]) < iteration:
            told = f"{stored.unread} rows do not read, and the last before iteration {iteration} is that of {ends[-1]}"
            say(f"{path} is damaged: {told}; the file is kept as {set_aside(path)}.")
        return rows

    def cells(self, row: Dict[str, float]) -> List[str]:
        return [format_cell(row[column]) if column in row else "" for column in self.columns]

    def add(self, row: Dict[str, float], always: bool = False) -> None:
        """Keep a row, if its turn has come or it is one to keep always."""
        if always or row["iteration"] % self.every == 0:
            self.rows.append(row)
            try:
                self.writer.writerow(self.cells(row))
            except OSError as error:
                raise cannot_be_written(self.path, error) from error

    def close(self) -> None:
        self.file.close()

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def format_cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def read_history(path: str) -> Stored:
    """What a history.csv holds; a last row that is torn, as a run that was killed leaves it, is not counted as unread.

    Raises
    ------
    OSError : it cannot be opened.
    Damaged : its first line is not that of a history.
    """
    with open_file(path, "rb") as file:
        lines = file.read().split(b"\n")
    columns = read_cells(lines[0]) or []
    if columns[:3] != FIRST_COLUMNS or len(set(columns)) < len(columns):
        raise Damaged(f"its first line does not begin with {','.join(FIRST_COLUMNS)}")
    rows: List[Dict[str, float]] = []
    unread = 0
    for line in filter(None, lines[1:-1]):  # what is behind the last end of line is torn, or nothing
        row = read_row(columns, line)
        if row is None or (rows and row["iteration"] <= rows[-1]["iteration"]):
            unread += 1
        else:
            rows.append(row)
    return Stored(columns, rows, unread)


def read_cells(line: bytes) -> Optional[List[str]]:
    """The cells of a line; None if it is damaged."""
    try:
        return next(iter(csv.reader([line.decode("utf-8")])), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def read_row(columns: Sequence[str], line: bytes) -> Optional[Dict[str, float]]:
    """A line as a row; None if it is damaged."""
    cells = read_cells(line.rstrip(b"\r"))
    try:
        if cells is None or len(cells) != len(columns) or not all(cells[:3]):
            return None
        row: Dict[str, float] = {column: float(cell) for column, cell in zip(columns, cells) if cell}
        row["iteration"] = int(cells[0])
        return row if row["iteration"] >= 0 else None
    except ValueError:
        return None
