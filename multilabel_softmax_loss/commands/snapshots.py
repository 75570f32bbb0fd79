"""The folder of a training run: whose it is, its complete snapshots, and its best weights."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

import numpy as np

from ..errors import UsageError
from ..files import replacing, write_text
from .history import read_history

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


class SnapshotPrefix:
    """The snapshot_prefix for Caffe, which takes one when it makes a solver, and tries it.

    `path` leads through a link: into a temporary folder at first, so that a solver can be made, or fail, before
    anything is written in the run's folder; then, `inside` that folder, where a snapshot is moved in one step.
    """

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> SnapshotPrefix:
        self.outside = tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_")
        self.link = os.path.join(self.outside.name, "link")
        os.symlink(self.outside.name, self.link)
        self.path = os.path.join(self.link, self.name)
        return self

    def __exit__(self, *error: Any) -> None:
        self.outside.cleanup()

    @contextmanager
    def inside(self, folder: str) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=folder) as inside:
            os.remove(self.link)
            os.symlink(os.path.abspath(inside), self.link)
            yield


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
