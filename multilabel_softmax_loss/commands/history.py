"""history.csv of a training run: a row per iteration."""

from __future__ import annotations

import csv
import os
from typing import Dict, List, Sequence, Tuple

from ..errors import UsageError
from ..files import replacing


class History:
    """The CSV of a run: a row per iteration, with the losses of its forward pass and, where there was one, the test.

    Row N belongs to the weights after N iterations. On resuming from N, the rows from N on are cut off.
    """

    def __init__(self, path: str, columns: Sequence[str], iteration: int = 0):
        self.columns = list(columns)
        self.rows: List[Dict[str, float]] = []
        if iteration and os.path.exists(path):
            stored, rows = read_history(path)
            self.rows = [row for row in rows if row["iteration"] < iteration]
            if stored != self.columns:
                raise UsageError(
                    f"{path} has the columns {', '.join(stored)}; expected {', '.join(self.columns)}, as this solver "
                    "and net have them. Choose another --out, or move the file."
                )
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([self.cells(row) for row in self.rows])
        self.file = open(path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115, open as long as the run
        self.writer = csv.writer(self.file)

    def cells(self, row: Dict[str, float]) -> List[str]:
        return [format_cell(row[column]) if column in row else "" for column in self.columns]

    def add(self, row: Dict[str, float]) -> None:
        self.rows.append(row)
        self.writer.writerow(self.cells(row))

    def close(self) -> None:
        self.file.close()

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def format_cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def read_history(path: str) -> Tuple[List[str], List[Dict[str, float]]]:
    """The columns of a history.csv, and its rows as dicts without what is empty; a torn last row is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    columns = rows[0] if rows else []
    result = []
    for cells in rows[1:]:
        if len(cells) == len(columns):
            row = {column: float(cell) for column, cell in zip(columns, cells) if cell}
            row["iteration"] = int(row["iteration"])
            result.append(row)
    return columns, result
