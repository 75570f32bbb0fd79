"""Caffe's Datum and BlobProto messages as bytes, written and read without protobuf.

Their wire format is a few tagged fields (Datum: 1 channels, 2 height, 3 width, 4 data, 6 float_data, 7 encoded), so
that databases can be made where neither Caffe nor protobuf is installed.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Sequence, Tuple

import numpy as np

VARINT, BYTES, FLOAT = 0, 2, 5


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, kind: int, value: Any) -> bytes:
    content = varint(value) if kind == VARINT else varint(len(value)) + value
    return varint(number << 3 | kind) + content


def floats(number: int, values: np.ndarray) -> bytes:
    """A repeated float field, each number with its tag, as Caffe's messages have it."""
    out = np.empty((values.size, 5), np.uint8)
    out[:, 0] = number << 3 | FLOAT
    out[:, 1:] = np.ascontiguousarray(values.ravel(), "<f4").view(np.uint8).reshape(-1, 4)
    return out.tobytes()


def image_datum(data: bytes, shape: Sequence[int], encoded: bool) -> bytes:
    """A Datum of (channels, height, width): uint8 pixels in this order, or the bytes of an image file."""
    sizes = [field(k, VARINT, int(size)) for k, size in enumerate(shape, 1)]
    head = varint(4 << 3 | BYTES) + varint(len(data))  # so that the pixels are copied once
    return b"".join([*sizes, head, data, field(7, VARINT, 1) if encoded else b""])


def label_datum(values: np.ndarray) -> bytes:
    """A Datum of C x 1 x 1 floats."""
    sizes = b"".join(field(k, VARINT, size) for k, size in enumerate((len(values), 1, 1), 1))
    return sizes + floats(6, values)


def mean_blob(mean: np.ndarray) -> bytes:
    """A BlobProto of 1 x channels x height x width, as compute_image_mean writes it."""
    sizes = b"".join(field(k, VARINT, size) for k, size in enumerate((1, *mean.shape), 1))
    return sizes + field(5, BYTES, np.ascontiguousarray(mean, "<f4").tobytes())


def fields(message: bytes) -> Iterator[Tuple[int, Any]]:
    """The fields of a message as (number, value); a run of floats is one array."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        start, tag = place, number()
        kind = tag & 7
        if kind == VARINT:
            yield tag >> 3, number()
        elif kind == BYTES:
            size = number()
            yield tag >> 3, message[place : place + size]
            place += size
        elif kind == FLOAT and tag < 128:
            run = np.frombuffer(message, np.uint8, (len(message) - start) // 5 * 5, start).reshape(-1, 5)
            length = int(np.argmin(np.append(run[:, 0] == tag, False)))
            yield tag >> 3, run[:length, 1:].copy().view("<f4").ravel()
            place = start + 5 * length
            if not length:
                raise ValueError("a number that is cut")
        else:
            raise ValueError(f"field of wire type {kind}")


def parse_datum(message: bytes) -> Dict[str, Any]:
    """{"shape": (channels, height, width), "data": bytes, "floats": float32 array, "encoded": bool}"""
    found: Dict[int, Any] = {1: 0, 2: 0, 3: 0, 4: b"", 6: np.empty(0, np.float32), 7: 0}
    found.update(fields(message))
    return {"shape": (found[1], found[2], found[3]), "data": found[4], "floats": found[6], "encoded": bool(found[7])}
