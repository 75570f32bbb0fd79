"""Image files as Caffe shall see them: 8-bit BGR or gray, upright; and what is wrong with those that are bad."""

from __future__ import annotations

import ctypes
import io
import os
import re
import struct
import tempfile
import zlib
from contextlib import suppress
from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

from ..files import open_file

ORIENTATION = 0x0112  # the tag of EXIF and TIFF
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SOI, PNG, TIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"II", b"MM")
# In compressed data 0xFF is followed by 0, by a restart marker or by another 0xFF.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


# What libjpeg says where it fills in pixels; bytes too many, of which it tells too, do no harm.
LOST = re.compile("premature end|bad Huffman|Invalid|Unsupported marker")


class BadImage(ValueError):
    """Why an image file cannot be used, in a few words."""


class Geometry(NamedTuple):
    """The size images are brought to: exactly (height, width), or their short side; neither leaves them as they are."""

    size: Optional[Tuple[int, int]] = None
    short_side: Optional[int] = None

    def target(self, height: int, width: int) -> Tuple[int, int]:
        """The (height, width) that an image of this height and width becomes."""
        if self.short_side is None:
            return self.size or (height, width)
        scale = self.short_side / min(height, width)
        return max(round(height * scale), self.short_side), max(round(width * scale), self.short_side)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """`image` resized bilinearly, as Caffe's own tools and layers resize."""
        import cv2

        height, width = self.target(*image.shape[:2])
        if image.shape[:2] == (height, width):
            return image
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def prepare_process() -> None:
    """Make this process fit to decode many images.

    OpenCV's threads are left out: they would be lost in a fork, and images are what is done in parallel. The C library
    keeps the memory of an image for the next one; giving it back to the system each time takes a tenth of the time.
    """
    import cv2

    cv2.setNumThreads(0)
    with suppress(OSError, AttributeError, TypeError):  # where the C library is not glibc
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 25)
        library.mallopt(M_TRIM_THRESHOLD, 1 << 27)


def read_image(path: str, gray: bool = False, strict: bool = False) -> np.ndarray:
    """The image in a file: uint8, (H, W, 3) BGR or (H, W) gray, turned as its EXIF orientation says.

    Pixels are those of Caffe's ImageData layer, but that what is transparent stands over white.

    Parameters
    ----------
    path : str
    gray : bool
    strict : bool
        Have Pillow decode every file a second time; otherwise only those in which something is odd.

    Raises
    ------
    BadImage : it is missing, empty, cut, corrupted or no image.
    """
    return decode(read_bytes(path), gray, strict)


def read_bytes(path: str) -> bytes:
    """What is in a file, which must not be nothing."""
    try:
        with open_file(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # the latter for a name with a NUL byte
        reason = getattr(error, "strerror", None) or str(error)
        raise BadImage("missing" if isinstance(error, FileNotFoundError) else reason) from error
    if not data:
        raise BadImage("0 bytes")
    return data


def by_opencv(data: bytes, flags: int) -> Any:
    """What OpenCV makes of the bytes of a file; None for what it does not know.

    From memory, as there it refuses a JPEG that ends too early; in reading a file it fills up what is missing.
    """
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadImage(f"too large, or of a kind that OpenCV does not read: {' '.join(error.err.split())}") from error


def as_caffe_reads(data: bytes, gray: bool = False, turned: bool = True) -> np.ndarray:
    """The image in the bytes of a file as Caffe's own layers have it, which ignore transparency: uint8, BGR or gray.

    `turned` says whether as its EXIF data say: ImageData does so, and Data does not.

    Raises
    ------
    BadImage : OpenCV reads none.
    """
    import cv2

    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    image = by_opencv(data, flags | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION))
    if image is None:
        raise BadImage("torn, or no image that OpenCV reads")
    return image


def decode(data: bytes, gray: bool = False, strict: bool = False) -> np.ndarray:
    """The image in the bytes of a file, as :func:`read_image` describes it."""
    import cv2

    plain = data.startswith(SOI)
    doubtful = jpeg_is_doubtful(data) if plain else png_is_doubtful(data)
    if strict or doubtful:
        check_strictly(data)
        if doubtful and data.startswith(PNG):  # Pillow has read all the pixels; OpenCV may have lost or mixed up some
            raise BadImage("corrupted: a check sum is wrong, or the end is missing")
    as_given, data = data, without_orientation(data)
    if plain:
        reader = by_libjpeg if strict or doubtful else by_opencv
        image = reader(data, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    else:
        image = by_opencv(data, cv2.IMREAD_UNCHANGED)
        if gray and image is not None and image.dtype == np.uint8 and image.shape[2:] == (3,):
            image = by_opencv(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)  # weights of its own
    if image is None or (image.shape[2:] == (4,) and data[:2] in TIFF):  # where OpenCV has multiplied by alpha
        image = decode_by_pillow(data)
    if not plain:
        image = upright(to_8_bit_bgr(image), as_given)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if gray else image
    return image


def jpeg_is_doubtful(data: bytes) -> bool:
    """Whether the bytes of a JPEG are not one image from its start to its end with only legal marks in between."""
    place = 2
    try:
        while True:
            if data[place] != 0xFF:
                return True
            kind = data[place + 1]
            if kind == 0xD9:
                return place + 2 != len(data.rstrip(b"\0\r\n"))
            (length,) = struct.unpack_from(">H", data, place + 2)
            place += 2 + length
            if kind == 0xDA:  # compressed data follow
                match = MARKER.search(data, place)
                if match is None or match.group()[1] not in b"\xd9\xda\xc4\xdb\xdc\xdd\xfe":
                    return True
                place = match.start()
    except (IndexError, struct.error):
        return True


def png_is_doubtful(data: bytes) -> bool:
    """Whether the bytes are not a PNG with right check sums; other kinds of images have none."""
    if not data.startswith(PNG):
        return True
    place = len(PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[place + 4 : end])):
            return True
        if kind == b"IEND":
            return False
        place = end + 4
    return True


def open_by_pillow(data: bytes) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # a large image is no attack here
    return Image.open(io.BytesIO(data))


def check_strictly(data: bytes) -> None:
    """Raise BadImage unless Pillow decodes the first frame to its end."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of odd EXIF data
            open_by_pillow(data).load()
    except Exception as error:  # Pillow's readers let through whatever their parsers raise
        raise BadImage(reason(error, data)) from error


def by_libjpeg(data: bytes, flags: int) -> Any:
    """What OpenCV makes of a JPEG; BadImage where its library says that pixels are lost, on file descriptor 2 alone."""
    with tempfile.TemporaryFile() as said:
        former = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            image = by_opencv(data, flags)
        finally:
            os.dup2(former, 2)
            os.close(former)
        said.seek(0)
        words = said.read().decode("utf-8", "replace")
    if LOST.search(words):
        raise BadImage(f"corrupted: {words.splitlines()[0].strip()}")
    return image


def reason(error: Exception, data: bytes) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return f"no image (it begins with {data[:8]!r})"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"cut: {text}" if "truncated" in text else f"corrupted: {text}"


def decode_by_pillow(data: bytes) -> np.ndarray:
    """What OpenCV does not read, such as GIF: the first frame, as OpenCV would give it."""
    try:
        image = open_by_pillow(data)
        pixels = np.asarray(image.convert("RGBA"))
    except Exception as error:  # as above
        raise BadImage(reason(error, data)) from error
    return pixels[:, :, [2, 1, 0, 3]]


def to_8_bit_bgr(image: np.ndarray) -> np.ndarray:
    """An image of 8 or 16 bits, gray or colour, with or without alpha, as 8-bit BGR over white."""
    import cv2

    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)  # as OpenCV does
    if image.dtype != np.uint8:
        raise BadImage(f"pixels of type {image.dtype}; expected 8 or 16 bits")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 2:
        image = np.dstack([image[:, :, :1]] * 3 + [image[:, :, 1:]])
    if image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.uint32)
        over_white = image[:, :, :3].astype(np.uint32) * alpha + 255 * (255 - alpha)
        image = ((over_white + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def without_orientation(data: bytes) -> bytes:
    """The bytes of a TIFF without its orientation, which OpenCV applies whatever it is told, or fails at."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order:
        with suppress(struct.error):
            (place,) = struct.unpack_from(f"{order}I", data, 4)
            (count,) = struct.unpack_from(f"{order}H", data, place)
            for entry in range(place + 2, place + 2 + 12 * count, 12):
                if struct.unpack_from(f"{order}H", data, entry) == (ORIENTATION,):
                    return data[: entry + 8] + struct.pack(f"{order}H", 1) + data[entry + 10 :]
    return data


def upright(image: np.ndarray, data: bytes) -> np.ndarray:
    """An image turned as the EXIF orientation of its file says; OpenCV does so for JPEG alone where alpha is kept."""
    try:
        orientation = open_by_pillow(data).getexif().get(ORIENTATION, 1)
    except Exception:  # no image of a kind that Pillow knows has any
        return image
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(image[:: flips[0], :: flips[1]])


def encode(image: np.ndarray, kind: str, quality: int = 95) -> bytes:
    """An image as the bytes of a JPEG ("jpg") or PNG ("png") file, or as its pixels in Caffe's order ("raw").

    Raises
    ------
    BadImage : it is too large for its kind; a JPEG has at most 65,500 pixels a side.
    """
    import cv2

    if kind == "raw":
        pixels = np.empty(planes(image).shape, np.uint8)
        cv2.split(image, list(pixels))  # several times as fast as NumPy's transposition
        return pixels.tobytes()
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpg" else []
    made, data = cv2.imencode(f".{kind}", image, flags)
    if not made:
        raise BadImage(f"too large for {kind}: {image.shape[1]} x {image.shape[0]} when resized")
    return data.tobytes()


def planes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) or (H, W) as (channels, H, W)."""
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
