"""Image files decoded and encoded again, by as many processes as are wanted, in their order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Deque, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import SIGNALS
from .images import BadImage, Geometry, encode, prepare_process, read_image
from .writers import Prepared

CHUNK = 64  # images that a process is given at once; the sum of their pixels is as large as 16 JPEGs of them


class Recipe(NamedTuple):
    """What becomes of an image: its size and colours, and its encoding, "jpg", "png", "raw" or "none"."""

    geometry: Geometry
    gray: bool = False
    encoding: str = "jpg"
    quality: int = 95
    strict: bool = False

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3

    def pixels(self, path: str) -> np.ndarray:
        """The image in a file as it is stored, before it is encoded. Raises BadImage."""
        return self.geometry.apply(read_image(path, self.gray, self.strict))

    def encode(self, image: np.ndarray) -> bytes:
        return b"" if self.encoding == "none" else encode(image, self.encoding, self.quality)


class Decoded(NamedTuple):
    """A chunk of images, and the sum of their pixels: float32 (height, width, channels) over the images where all have
    one size, else float64 (channels,) over all pixels."""

    images: List[Prepared]
    sums: Optional[np.ndarray]
    pixels: int


def decode_chunk(paths: Sequence[str], recipe: Recipe, wants_sums: bool) -> Decoded:
    import cv2

    size = recipe.geometry.size
    sums: Optional[np.ndarray] = None
    if wants_sums:
        sums = np.zeros((*size, recipe.channels), np.float32) if size else np.zeros(recipe.channels)
    images, pixels = [], 0
    for path in paths:
        try:
            image = recipe.pixels(path)
            height, width = image.shape[:2]
            images.append(Prepared(recipe.encode(image), (recipe.channels, height, width)))
        except (BadImage, cv2.error) as error:
            images.append(Prepared(b"", (), " ".join(str(error).split())))
            continue
        if sums is not None:
            if size:
                cv2.accumulate(image.reshape(sums.shape), sums)  # whole numbers, exact for some 65,000 images
            else:
                sums += cv2.sumElems(image)[: recipe.channels]
            pixels += height * width
    return Decoded(images, sums, pixels)


class Decoders:
    """Processes that decode; with one job, this process itself. A context manager."""

    def __init__(self, jobs: int, recipe: Recipe):
        self.jobs, self.recipe = jobs, recipe
        self.pool: Optional[ProcessPoolExecutor] = None

    def __enter__(self) -> Decoders:
        prepare_process()
        if self.jobs > 1:
            self.pool = ProcessPoolExecutor(self.jobs, initializer=end_with, initargs=(os.getpid(),))
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown()  # and wait: what is left to the end of the program may find its pipes closed

    def decode(self, chunks: Iterable[Tuple[Sequence[str], bool]]) -> Iterator[Decoded]:
        """Chunks of (paths, whether sums are wanted), decoded; only a few more than are asked for are in memory."""
        if self.pool is None:
            yield from (decode_chunk(paths, self.recipe, sums) for paths, sums in chunks)
            return
        waiting: Deque[Future] = deque()
        try:
            for paths, sums in chunks:
                waiting.append(self.pool.submit(decode_chunk, paths, self.recipe, sums))
                if len(waiting) > 4 * self.jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UsageError("a process that decodes images died (of too little memory?); try fewer --jobs.") from error
        finally:
            for future in waiting:
                future.cancel()


def end_with(parent: int) -> None:
    """Have this process end soon after its parent, however that ended; Ctrl-C, which reaches both, is the parent's."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    prepare_process()
    threading.Thread(target=watch, daemon=True).start()
