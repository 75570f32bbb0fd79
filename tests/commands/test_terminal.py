"""What commands print on a terminal fits it, whatever its width and however that changes."""

import fcntl
import math
import os
import pty
import re
import select
import struct
import sys
import termios
import threading

import numpy as np
import pytest

from multilabel_softmax_loss.commands.report import evaluation, table
from multilabel_softmax_loss.commands.terminal import Figures, columns, duration, progress_bar, speed

FIGURES = {
    "test_loss": 1.25,
    "test_mAP": 0.5,
    "test_LRAP": 0.75,
    "test_coverage": 12.5,
    "test_CF1@3": 0,
    "test_OF1@3": 0,
}


class Terminal:
    """A terminal of so many columns in place of the standard streams."""

    def __init__(self, columns):
        self.reading, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.resize(columns)

    def __enter__(self):
        self.former = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self.stream
        return self

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.former
        self.stream.close()
        os.close(self.reading)

    def resize(self, columns):
        fcntl.ioctl(self.stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def last(self):
        """The last line that was written."""
        self.stream.flush()
        text, wait = "", 5.0
        while select.select([self.reading], [], [], wait)[0]:  # the system hands on what was written in its own time
            text, wait = text + os.read(self.reading, 1 << 16).decode(), 0.05
        return re.split(r"[\r\n]+", text)[-1].rstrip()


def test_the_bar_takes_the_width_of_the_terminal_at_each_refresh():
    with Terminal(100) as terminal, progress_bar(200, "it", initial=100) as bar:
        for columns in (100, 50, 120, 40):
            terminal.resize(columns)
            bar.set_postfix(loss="1.036", lr="0.02")
            bar.update()
            bar.refresh()
            last = terminal.last()
            assert columns - 2 <= len(last) < columns  # the last column stays free
            assert last.endswith("lr=0.02" if columns >= 100 else "left, loss=1.036")


def test_the_bar_speaks_of_times_as_people_do():
    with Terminal(120) as terminal:
        with progress_bar(4100, "it") as bar:
            bar.start_t -= 5
            bar.n = 100
            bar.refresh()
            assert re.search(r"\| 100/4100, 3 min 20 s left, 20 it/s$", terminal.last())
        with progress_bar(None, "sample") as bar:
            bar.start_t -= 10
            bar.n = 5
            bar.refresh()
            assert terminal.last() == "5 sample, 2.0 s/sample"


def test_no_bar_is_shown_where_there_is_no_terminal(capfd):
    with progress_bar(10, "it") as bar:
        bar.update(10)
    assert capfd.readouterr().err == ""


def test_tests_are_rows_of_a_table_that_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with Terminal(80):
        table = Figures()
        lines = [table.line(200 * row, FIGURES, "best" if row == 1 else "") for row in range(41)]
    header = "iteration     loss      mAP     LRAP  coverage    CF1@3    OF1@3"
    assert lines[0] == f"{header}\n        0   1.2500   0.5000   0.7500   12.5000   0.0000   0.0000"
    assert lines[1] == "      200   1.2500   0.5000   0.7500   12.5000   0.0000   0.0000  best"
    assert [row for row, line in enumerate(lines) if line.startswith(header)] == [0, 20, 40]
    monkeypatch.setenv("COLUMNS", "50")
    with Terminal(50):
        narrow = table.line(200, FIGURES, "best").split("\n    ")
        monkeypatch.setenv("COLUMNS", "80")
        assert table.line(200, FIGURES, "").startswith(header)  # wide again
    assert max(map(len, narrow)) <= 50
    assert " ".join(narrow) == (
        "iteration 200: test_loss 1.2500, test_mAP 0.5000, test_LRAP 0.7500, test_coverage 12.5000, test_CF1@3 0.0000, "
        "test_OF1@3 0.0000 (best)"
    )


@pytest.mark.parametrize("width", [120, 80, 50])
def test_the_table_of_an_evaluation_comes_in_parts_that_fit(width, monkeypatch):
    report = evaluation(np.eye(3, 3, dtype=bool), np.eye(3))
    monkeypatch.setenv("COLUMNS", str(width))
    with Terminal(width):
        lines = table(report, columns()).splitlines()
    assert max(map(len, lines)) <= width
    (whole,) = (line for line in table(report).splitlines() if line.startswith("net, top 3"))
    found = " ".join(line[len("net, top 3") :] for line in lines if line.startswith("net, top 3"))
    assert found.split() == whole[len("net, top 3") :].split()


def test_tests_are_lines_where_there_is_no_terminal(capfd, monkeypatch):
    assert Figures().line(20, {"test_loss": 0.5}, "best") == "iteration 20: test_loss 0.5000 (best)"
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((0, 0)))
    with Terminal(0):  # as a launcher of MPI gives it to ranks
        assert Figures().line(20, {"test_loss": 0.5}, "best") == "iteration 20: test_loss 0.5000 (best)"
        assert columns() == math.inf


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (1500, "25 min"), (3599, "1 h 0 min"),
     (4320, "1 h 12 min"), (7 * 86400 + 7200, "7 days 2 h")],
)  # fmt: skip
def test_durations_are_in_human_units(seconds, words):
    assert duration(seconds) == words


def test_rates_are_in_human_units():
    assert [speed(rate, "it") for rate in (1234.4, 9.87, 0.5, 1 / 90)] == [
        "1,234 it/s",
        "9.9 it/s",
        "2.0 s/it",
        "1 min 30 s each",
    ]


def test_bars_one_after_the_other_leave_no_thread_each():
    before = threading.active_count()
    for _ in range(5):
        with progress_bar(1, "batch"):
            pass
    assert threading.active_count() <= before + 1
