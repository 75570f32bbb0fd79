"""Text files of annotations, read row by row: lines, tables and JSON of any size."""

from __future__ import annotations

import csv
import json
import os
from contextlib import contextmanager
from itertools import islice
from typing import Any, Iterator, List, Tuple

from ..errors import UsageError
from ..files import cannot_be_read, open_file

CHUNK = 1 << 20


@contextmanager
def reading(path: str) -> Iterator[Any]:
    """An open text file, of UTF-8 with or without a byte order mark; what is wrong with it is a UsageError."""
    try:
        with open_file(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise cannot_be_read(path, None, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text of UTF-8 (byte {error.start}); convert it first.") from error
    except csv.Error as error:
        raise UsageError(f"{path} is no table of CSV: {error}.") from error


def lines(path: str) -> Iterator[str]:
    """The lines of a text file that hold anything, without their ends, be these of Unix or of Windows."""
    with reading(path) as file:
        for line in file:
            line = line.rstrip("\r\n")
            if line.strip():
                yield line


def head(path: str, most: int = 1000) -> List[str]:
    """The first lines of a text file; none where it is a folder or no text."""
    if os.path.isdir(path):
        return []
    try:
        return list(islice(lines(path), most))
    except UsageError:
        return []


def table(path: str) -> Iterator[List[str]]:
    """The rows of a CSV file, its header first; separated by commas, semicolons or tabs."""
    first = (head(path, 1) or [""])[0]
    separator = max(",;\t", key=first.count)
    csv.field_size_limit(1 << 24)  # the run lengths of a mask may be longer than the 131,072 letters of the default
    with reading(path) as file:
        # strict, as a quote that is not closed would swallow rows; in `a, "b, c"` the quote opens after the blank
        rows = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
        try:
            yield from filter(any, rows)
        except csv.Error as error:
            raise csv.Error(f"line {rows.line_num}: {error}") from error


def number_of(text: str) -> Any:
    """A number as float, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def json_elements(path: str) -> Iterator[Tuple[str, Any]]:
    """(key, element) of each list in the one object that a JSON file holds, one element in memory at a time.

    What is no list comes as (key, value).
    """
    scan = JsonScanner(path)
    with reading(path) as scan.file:
        scan.expect("{")
        while scan.peek() != "}":
            key = scan.value()
            scan.expect(":")
            if scan.peek() == "[":
                scan.expect("[")
                while scan.peek() != "]":
                    yield key, scan.value()
                    if scan.peek() != "]":
                        scan.expect(",")
                scan.expect("]")
            else:
                yield key, scan.value()
            if scan.peek() != "}":
                scan.expect(",")
        scan.expect("}")
        scan.end()


class JsonScanner:
    """Reads the parts of a JSON file one after another; `buffer` from `place` on is what is not used yet."""

    decoder = json.JSONDecoder()

    def __init__(self, path: str):
        self.path, self.file = path, None  # type: Tuple[str, Any]
        self.buffer, self.place, self.size = "", 0, CHUNK

    def more(self) -> bool:
        chunk = self.file.read(self.size)
        self.buffer, self.place = self.buffer[self.place :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space."""
        while True:
            while self.place < len(self.buffer):
                if not self.buffer[self.place].isspace():
                    return self.buffer[self.place]
                self.place += 1
            if not self.more():
                raise UsageError(f"{self.path} is no whole JSON file: it ends too early.")

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            found = self.buffer[self.place : self.place + 20]
            raise UsageError(f"{self.path} is no JSON object of lists: it has {found!r} where {mark!r} was expected.")
        self.place += 1

    def end(self) -> None:
        while not self.buffer[self.place :].strip():
            self.place = len(self.buffer)
            if not self.more():
                return
        raise UsageError(f"{self.path} is no JSON object of lists: more follows where it ends.")

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.buffer, self.place)
            except ValueError as error:
                if not self.more():
                    raise UsageError(f"{self.path} is no JSON: {error}.") from error
                self.size *= 2  # one value longer than all that was read
                continue
            if end == len(self.buffer) and self.more():  # a number may go on
                continue
            self.place, self.size = end, CHUNK
            return found
