"""The folder of a training run: complete snapshots, the best weights, and the CSV of everything."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import replacing, write_text

SUFFIXES = {".caffemodel": ".solverstate", ".caffemodel.h5": ".solverstate.h5"}


class RunFolder:
    """What a run leaves in its folder.

    A snapshot is three files: PREFIX_iter_N.caffemodel and .solverstate, as Caffe makes them, and
    PREFIX_iter_N.json, written last, which holds their lengths and checksums and what Caffe's files lack. It is
    complete when all three are there and agree, whatever happened while it was written.
    """

    def __init__(self, path: str, prefix: str):
        self.path = path
        self.prefix = prefix
        self.history_path = os.path.join(path, "history.csv")
        self.curves_path = os.path.join(path, "curves.png")
        self.best_path = os.path.join(path, "best.json")
        self.handle: Optional[int] = None

    def manifests(self) -> List[str]:
        """The .json files of the snapshots, the newest first."""
        names = glob.glob(os.path.join(glob.escape(self.path), f"{glob.escape(self.prefix)}_iter_*.json"))
        return sorted((name for name in names if iteration_of(name) >= 0), key=iteration_of, reverse=True)

    def lock(self, patience: float = 60.0) -> None:
        """Make this folder, and keep it to this process; a run that was killed a moment ago may still be ending.

        Raises
        ------
        UsageError : another run goes on here.
        """
        import fcntl

        if self.handle is not None:
            return
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made: {error.strerror}.") from error
        handle = os.open(self.path, os.O_RDONLY)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    os.close(handle)
                    raise UsageError(f"{self.path} is used by another run; choose another --out.") from error
                time.sleep(0.05)
            except OSError as error:
                os.close(handle)
                raise UsageError(f"{self.path} cannot be locked: {error.strerror}; choose another --out.") from error
        self.handle = handle

    def unlock(self) -> None:
        """Let others in."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def check_unused(self) -> None:
        """Raise a UsageError if a run has been here, which nothing may overwrite; without an iteration it is none."""
        names = self.manifests()
        begun = any(iteration_of(name) > 0 for name in names) or (not names and os.path.exists(self.best_path))
        if begun or self.has_history():
            raise UsageError(f"{self.path} holds a run already; go on with --resume, or choose another --out.")

    def has_history(self) -> bool:
        try:
            return bool(read_history(self.history_path)[1])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError):
            return True  # a file of that name that is not ours

    def clean(self) -> None:
        """Remove what a killed process left under temporary names."""
        for stem in (self.prefix, f"{self.prefix}_iter_*", "best", "history", "curves", "preprocessing"):
            for name in glob.glob(os.path.join(glob.escape(self.path), f".{stem}-*")):
                shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)

    # Snapshots

    def save(self, solver: Any, scratch: str, record: Dict[str, Any]) -> str:
        """Keep the solver's state; `scratch` is the snapshot_prefix it writes to. Returns the weights' path."""
        solver.snapshot()
        (model,) = glob.glob(f"{glob.escape(scratch)}_iter_{solver.iter}.caffemodel*")
        suffix = next(suffix for suffix in reversed(list(SUFFIXES)) if model.endswith(suffix))
        state = model[: -len(suffix)] + SUFFIXES[suffix]
        stem = os.path.join(self.path, f"{self.prefix}_iter_{solver.iter}")
        set_learned_net(state, stem + suffix)
        files = {}
        for source, target in ((model, stem + suffix), (state, stem + SUFFIXES[suffix])):
            files[os.path.basename(target)] = fingerprint(source)
            flush(source)
            os.replace(source, target)
        manifest = {"iteration": solver.iter, "files": files, **record}
        write_text(stem + ".json", json.dumps(manifest, indent=1) + "\n")
        flush(self.path)
        return stem + suffix

    def newest(self, say: Any) -> Dict[str, Any]:
        """The manifest of the newest complete snapshot; `say` is told of torn ones."""
        for name in self.manifests():
            problem = None
            try:
                with open(name, encoding="utf-8") as file:
                    manifest = json.load(file)
                problem = next(filter(None, (self.problem(*entry) for entry in manifest["files"].items())), None)
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                problem = f"{name} does not read ({error})"
            if problem is None:
                return manifest
            say(f"Snapshot {os.path.basename(name)[:-5]} is torn: {problem}. Trying the one before.")
        raise UsageError(
            f"{self.path} holds no complete snapshot {self.prefix}_iter_*; expected one to resume from. "
            "Start without --resume, or give the --out of the run."
        )

    def problem(self, name: str, expected: Dict[str, Any]) -> Optional[str]:
        path = os.path.join(self.path, name)
        if not os.path.exists(path):
            return f"{name} is missing"
        size = os.path.getsize(path)
        if size != expected["bytes"]:
            return f"{name} has {size} bytes; expected {expected['bytes']}"
        return None if fingerprint(path) == expected else f"{name} has other bytes than were written"

    def restore(self, solver: Any, manifest: Dict[str, Any]) -> None:
        """Put the solver back to a snapshot, wherever its folder has moved since."""
        names = {name: os.path.join(self.path, name) for name in manifest["files"]}
        model = next(path for name, path in names.items() if ".caffemodel" in name)
        state = next(path for name, path in names.items() if ".solverstate" in name)
        with tempfile.TemporaryDirectory(prefix=f".{self.prefix}-", dir=self.path) as folder:
            copy = os.path.join(folder, os.path.basename(state))
            shutil.copyfile(state, copy)
            set_learned_net(copy, model)
            solver.restore(copy)

    # The best weights

    def best(self) -> Optional[Dict[str, Any]]:
        try:
            with open(self.best_path, encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None  # torn or absent: the next test decides anew

    def save_best(self, net: Any, record: Dict[str, Any]) -> None:
        with replacing(os.path.join(self.path, "best.caffemodel")) as temporary:
            net.save(temporary)
        write_text(self.best_path, json.dumps(record, indent=1) + "\n")


def iteration_of(name: str) -> int:
    match = re.search(r"_iter_(\d+)\.json$", name)
    return int(match.group(1)) if match else -1


def fingerprint(path: str) -> Dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"bytes": os.path.getsize(path), "sha256": digest.hexdigest()}


def flush(path: str) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before what relies on them is written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_learned_net(state: str, weights: str) -> None:
    """Have a .solverstate name the file of its weights."""
    if state.endswith(".h5"):
        import h5py

        name = os.fsencode(weights)
        with h5py.File(state, "r+") as file:
            del file["learned_net"]
            file["learned_net"] = np.array(name, f"S{len(name) + 1}")  # Caffe reads on to the terminating zero
        return
    from caffe.proto import caffe_pb2

    message = caffe_pb2.SolverState()
    with open(state, "rb") as file:
        message.ParseFromString(file.read())
    message.learned_net = weights
    with open(state, "wb") as file:
        file.write(message.SerializeToString())


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
