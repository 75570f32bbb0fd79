"""Image files, whole or refused."""

from __future__ import annotations

import numpy as np

from ..errors import UsageError
from ..files import cannot_be_read, open_file


def read_image(path: str, gray: bool = False, turned: bool = True) -> np.ndarray:
    """The pixels of a file, uint8: (height, width, 3) in OpenCV's order BGR, or (height, width) if `gray`.

    Parameters
    ----------
    turned : turn the image as its EXIF data say, as Caffe's ImageData does, and its Data layer does not.

    Raises
    ------
    UsageError : the file cannot be read, ends too early, or is no image that OpenCV reads.
    """
    return decode_image(read_bytes(path), path, gray, turned)


def read_bytes(path: str) -> bytes:
    try:
        with open_file(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, None, error) from error


def decode_image(content: bytes, name: str, gray: bool = False, turned: bool = True) -> np.ndarray:
    """The pixels of the bytes of an image file, as `read_image` has them."""
    import cv2

    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    return decode(content, name, flags | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION))


def decode(content: bytes, name: str, flags: int) -> np.ndarray:
    """What OpenCV makes of the bytes of an image file.

    From memory, as there it refuses a JPEG that ends too early; in reading a file it fills up what is missing.
    """
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        reason = " ".join(str(error.err).split())
        raise UsageError(f"{name} is empty, too large, or of a kind that OpenCV does not read: {reason}.") from error
    if image is None:
        raise UsageError(f"{name} is torn, or no image that OpenCV reads.")
    return image
