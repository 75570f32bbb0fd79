"""A conversion: blocks of images decoded, written and recorded, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..files import replacing, stands_for, write_text
from ..nets.hdf5_lists import MOST_NUMBERS
from .decoding import CHUNK, Decoded, Decoders, Recipe
from .finder import OPTIONS
from .source import Labels
from .writers import WRITERS, Block, Prepared, volume, writing

PROGRESS, REPORT, LOCK = "progress.npz", "report.json", ".lock"
BLOCK = 1000


class Plan(NamedTuple):
    """What is to be written: the labels, and the rows of each split in the order in which they are written."""

    labels: Labels
    orders: List[Tuple[str, np.ndarray]]
    target: str
    recipe: Recipe
    jobs: int = 1
    bad_images: str = "skip"
    most_bad: int = 0  # how many may be

    @property
    def block(self) -> int:
        """How many images are written at once."""
        size = self.recipe.geometry.size
        if self.target != "hdf5" or size is None:
            return BLOCK
        return max(min(BLOCK, MOST_NUMBERS // (self.recipe.channels * size[0] * size[1])), 1)


class Progress:
    """How far a conversion is: per split what was written, the bad images, and sums of the pixels of "train"."""

    def __init__(self, names: Sequence[str]):
        self.splits: Dict[str, Dict[str, int]] = {name: {"blocks": 0, "images": 0, "bytes": 0} for name in names}
        self.bad: Dict[str, Dict[str, str]] = {name: {} for name in names}
        self.sums: Optional[np.ndarray] = None
        self.pixels = 0

    def add(self, split: str, block: Block, bad: Dict[str, str]) -> None:
        counts = self.splits[split]
        counts["blocks"] += 1
        counts["images"] += len(block.keys)
        counts["bytes"] += volume(block)
        self.bad[split].update(bad)

    def add_pixels(self, decoded: Decoded) -> None:
        if decoded.sums is not None:
            self.sums = decoded.sums.astype(np.float64) + (0 if self.sums is None else self.sums)
            self.pixels += decoded.pixels

    def save(self, folder: str) -> None:
        told = json.dumps({"splits": self.splits, "bad": self.bad, "pixels": self.pixels})
        sums = np.zeros(0) if self.sums is None else self.sums
        content = io.BytesIO()  # as a zip file that cannot be written hides the reason
        np.savez(content, told=np.array(told), sums=sums)
        with replacing(os.path.join(folder, PROGRESS)) as temporary, open(temporary, "wb") as file:
            file.write(content.getbuffer())

    @classmethod
    def load(cls, folder: str, names: Sequence[str]) -> Progress:
        progress = cls(names)
        path = os.path.join(folder, PROGRESS)
        if os.path.exists(path):
            try:
                with np.load(path) as file:
                    told, sums = json.loads(str(file["told"])), file["sums"]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise UsageError(f"{path} is torn ({error}); begin anew in another folder.") from error
            progress.splits, progress.bad, progress.pixels = told["splits"], told["bad"], told["pixels"]
            progress.sums = sums if sums.size else None
        return progress

    def channel_means(self) -> List[float]:
        """The mean of each channel over all pixels that were read for training."""
        if self.sums is None or not self.pixels:
            return []
        return [
            round(float(value), 3) for value in self.sums.reshape(-1, self.sums.shape[-1]).sum(axis=0) / self.pixels
        ]

    def mean_image(self) -> Optional[np.ndarray]:
        """The mean of the training images, (channels, height, width), where they have one size."""
        images = self.splits.get("train", {}).get("images", 0)
        if self.sums is None or self.sums.ndim < 2 or not images:
            return None
        return (self.sums / images).transpose(2, 0, 1).astype(np.float32)


@contextmanager
def opened(folder: str, options: Dict[str, Any], resume: bool) -> Iterator[None]:
    """The folder of a conversion, made or gone on with, locked against others.

    Raises
    ------
    UsageError : it holds something else, or a conversion of other options, or is in use.
    """
    there = [name for name in os.listdir(folder) if not name.startswith(".")] if os.path.isdir(folder) else []
    path = os.path.join(folder, OPTIONS)
    if there and not resume:
        remedy = "--resume goes on with it" if os.path.exists(path) else "choose another --out"
        raise UsageError(f"{folder} is there already and is not overwritten; {remedy}.")
    if there and not os.path.exists(path):
        raise UsageError(f"{folder} holds {shortlist(sorted(there))} and no conversion; choose another --out.")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}.") from error
    with locked(folder), writing(folder):
        if there:
            compare(folder, options)
        for name in filter(stands_for, os.listdir(folder)):  # what a killed run had begun to write
            os.remove(os.path.join(folder, name))
        write_text(path, json.dumps(options, indent=1) + "\n")
        yield


def compare(folder: str, options: Dict[str, Any]) -> None:
    """Raise a UsageError that names the first option in which a conversion begun in `folder` differs."""
    with open(os.path.join(folder, OPTIONS), encoding="utf-8") as file:
        former = json.load(file)
    for name in {**former, **options}:
        if former.get(name) != options.get(name):
            if name == "fingerprint":
                raise UsageError(f"the source has changed since {folder} was begun; convert into another folder.")
            raise UsageError(
                f"{folder} was begun with {name} = {former.get(name)!r}, and now it is {options.get(name)!r}; "
                "--resume needs the same."
            )


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def locked(folder: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = os.path.join(folder, LOCK)
    with writing(folder), open(path, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by the decoders
        except OSError as error:
            raise UsageError(f"{folder} is in use by another conversion.") from error
        yield
        os.remove(path)


def convert(plan: Plan, folder: str, make_bar: Callable[..., Any]) -> Progress:
    """Write all blocks that are not written yet; what was written in all. `make_bar` makes a bar of tqdm's."""
    progress = Progress.load(folder, [name for name, _ in plan.orders])
    total = sum(len(rows) for _, rows in plan.orders)
    done = sum(min(progress.splits[name]["blocks"] * plan.block, len(rows)) for name, rows in plan.orders)
    check_bad(plan, progress)
    todo = [
        (name, number, rows[number * plan.block : (number + 1) * plan.block])
        for name, rows in plan.orders
        for number in range(progress.splits[name]["blocks"], -(-len(rows) // plan.block))
    ]
    parts = [(name, rows[k : k + CHUNK]) for name, _, rows in todo for k in range(0, len(rows), CHUNK)]
    chunks = (([plan.labels.paths[row] for row in rows], name == "train") for name, rows in parts)
    with Decoders(plan.jobs, plan.recipe) as decoders, make_bar(total, "image", initial=done, leave=True) as bar:
        decoded = decoders.decode(chunks)
        for name, number, rows in todo:
            images: List[Prepared] = []
            while len(images) < len(rows):
                chunk = next(decoded)
                images += chunk.images
                progress.add_pixels(chunk)
                bar.update(len(chunk.images))
            write_block(plan, folder, progress, name, number, list(zip(rows.tolist(), images)))
    return progress


def write_block(
    plan: Plan, folder: str, progress: Progress, split: str, number: int, images: Sequence[Tuple[int, Prepared]]
) -> None:
    good = [(row, image) for row, image in images if image.bad is None]
    bad = {plan.labels.paths[row]: image.bad for row, image in images if image.bad is not None}
    check_bad(plan, progress, bad)  # before they are recorded, so that those that are mended are read again
    before = dict(progress.splits[split])
    block = Block(
        number,
        list(range(before["images"], before["images"] + len(good))),
        [row for row, _ in good],
        [image for _, image in good],
    )
    with writing(folder):
        WRITERS[plan.target](folder, split, plan.labels, plan.recipe.encoding).write(block, before)
        progress.add(split, block, bad)
        progress.save(folder)


def check_bad(plan: Plan, progress: Progress, more: Optional[Dict[str, str]] = None) -> None:
    recorded = {path: reason for found in progress.bad.values() for path, reason in found.items()}
    bad = {**recorded, **(more or {})}
    most = 0 if plan.bad_images == "error" else plan.most_bad
    if len(bad) > most:
        listed = "; ".join(f"{path}: {reason}" for path, reason in list(bad.items())[:3])
        allowed = "--bad-images is error" if plan.bad_images == "error" else f"--max-bad allows {most:,}"
        remedy = f"Allow more and --resume, or mend them and {'begin anew' if recorded else '--resume'}"
        raise UsageError(f"{len(bad):,} images are bad, and {allowed}: {listed}. {remedy}.")


def written_rows(plan: Plan, progress: Progress) -> Dict[str, List[int]]:
    """The rows that were written, by split, in their order: row k of a split has key k."""
    return {
        name: [row for row in rows.tolist() if plan.labels.paths[row] not in progress.bad[name]]
        for name, rows in plan.orders
    }
