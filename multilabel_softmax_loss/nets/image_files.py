"""Image files that end too early: Caffe fills up what is missing, and trains on it without a word."""

from __future__ import annotations

import os

from ..files import open_file

ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # of JPEG and PNG files, by how they begin
TAIL = 1 << 12  # bytes, in which the end of an image almost always is


def ends_too_early(content: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; a preview in its first half has one of its own."""
    end = ENDS.get(content[:2])
    return end is not None and content.rfind(end) < len(content) // 2


def file_ends_too_early(path: str) -> bool:
    """Whether a JPEG or PNG file lacks its end; only a little of it is read where all is well.

    Raises
    ------
    OSError : it is missing, or cannot be read.
    """
    with open_file(path, "rb") as file:
        start = file.read(2)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - min(TAIL, size // 2), 2))
        if start not in ENDS or ENDS[start] in file.read():
            return False
        file.seek(0)
        return ends_too_early(file.read())
