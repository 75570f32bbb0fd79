"""Snapshots of a run: written so that they are whole or known as torn, whatever happens meanwhile."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..files import MARK, cannot_be_written, open_file, reserve, write_text
from .scratch import scratch_folder

SUFFIXES = {".caffemodel": ".solverstate", ".caffemodel.h5": ".solverstate.h5"}

# Of the path of the weights that a .solverstate names, FOLDER/./NAME: Caffe reads it as FOLDER/NAME, and never writes
# it so, which tells ours from its own.
OUR_SIGN = "."


class Snapshots:
    """The snapshots in a folder.

    Each is three files: PREFIX_iter_N.json, which holds the lengths and checksums of the others, a checksum of itself,
    and what Caffe's files lack; then PREFIX_iter_N.caffemodel and .solverstate, as Caffe makes them. It is whole when
    all three are there and agree. The .json comes first, so that none of Caffe's files is of a run without it.
    """

    def __init__(self, folder: str, prefix: str):
        self.folder, self.prefix = folder, prefix

    def is_manifest(self, name: str) -> bool:
        return re.fullmatch(rf"{re.escape(self.prefix)}_iter_\d+\.json", name) is not None

    def files(self) -> Dict[str, int]:
        """The paths of all that are named as a snapshot's files are, whoever made them, and their iterations."""
        pattern = re.compile(rf"{re.escape(self.prefix)}_iter_(\d+)\.(json|(caffemodel|solverstate)(\.h5)?)")
        matches = [pattern.fullmatch(name) for name in sorted(os.listdir(self.folder))]
        return {os.path.join(self.folder, match.group()): int(match.group(1)) for match in matches if match}

    def manifests(self) -> List[Tuple[int, str]]:
        """The iterations and .json files of the snapshots, the newest first."""
        return sorted(((n, path) for path, n in self.files().items() if path.endswith(".json")), reverse=True)

    def foreign(self, after: int = -1) -> Optional[str]:
        """A file of an iteration past `after` that this program did not make."""
        ours = {iteration for iteration, _ in self.manifests()}
        ours |= {n for path, n in self.files().items() if ".solverstate" in path and is_ours(path)}
        return next((path for path, n in self.files().items() if n > after and n not in ours), None)

    def save(self, solver: Any, scratch: str, record: Dict[str, Any]) -> str:
        """Keep the solver's state; `scratch` is the snapshot_prefix it writes to. Returns the weights' path."""
        check_room(self.folder, solver.net, (1, 2))  # the weights, and what a solver such as Adam keeps of each
        solver.snapshot()
        (model,) = glob.glob(f"{glob.escape(scratch)}_iter_{solver.iter}.caffemodel*")
        suffix = next(suffix for suffix in reversed(list(SUFFIXES)) if model.endswith(suffix))
        state = model[: -len(suffix)] + SUFFIXES[suffix]
        stem = os.path.join(self.folder, f"{self.prefix}_iter_{solver.iter}")
        set_learned_net(state, os.path.join(self.folder, OUR_SIGN, os.path.basename(stem + suffix)))
        moves = ((model, stem + suffix), (state, stem + SUFFIXES[suffix]))
        files = {os.path.basename(target): fingerprint(source) for source, target in moves}
        for source, _ in moves:
            flush(source)
        write_record(stem + ".json", {"iteration": solver.iter, "files": files, **record})
        for source, target in moves:
            os.replace(source, target)
        flush(self.folder)
        return stem + suffix

    def newest(self, say: Callable[[str], None]) -> Dict[str, Any]:
        """The manifest of the newest whole snapshot; `say` is told of torn ones."""
        for iteration, path in self.manifests():
            manifest, problem = self.read(iteration, path)
            if manifest is not None:
                return manifest
            say(f"Snapshot {os.path.basename(path)[:-5]} is torn: {problem}. Trying the one before.")
        raise UsageError(
            f"{self.folder} holds no complete snapshot {self.prefix}_iter_*; expected one to resume from. "
            "Start without --resume, or give the --out of the run."
        )

    def read(self, iteration: int, path: str) -> Tuple[Optional[Dict[str, Any]], str]:
        """A manifest if its snapshot is whole, else None and what is wrong."""
        try:
            manifest = read_record(path)
        except (OSError, ValueError) as error:
            return None, f"{path} does not read ({error})"
        if manifest["iteration"] != iteration:
            return None, f"{path} is that of iteration {manifest['iteration']}"
        problems = (self.problem(name, expected) for name, expected in manifest["files"].items())
        problem = next(filter(None, problems), "")
        return (None if problem else manifest), problem

    def problem(self, name: str, expected: Dict[str, Any]) -> Optional[str]:
        """What is wrong with a file of a snapshot."""
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            return f"{name} is missing"
        size = os.path.getsize(path)
        if size != expected["bytes"]:
            return f"{name} has {size} bytes; expected {expected['bytes']}"
        return None if fingerprint(path) == expected else f"{name} has other bytes than were written"

    def weights(self, manifest: Dict[str, Any]) -> str:
        return self.path_of(manifest, ".caffemodel")

    def path_of(self, manifest: Dict[str, Any], kind: str) -> str:
        return os.path.join(self.folder, next(name for name in manifest["files"] if kind in name))

    def restore(self, solver: Any, manifest: Dict[str, Any]) -> None:
        """Put the solver back to a snapshot, wherever its folder has moved since."""
        state = self.path_of(manifest, ".solverstate")
        with tempfile.TemporaryDirectory(prefix=f".{self.prefix}{MARK}", dir=self.folder) as folder:
            copy = os.path.join(folder, os.path.basename(state))
            shutil.copyfile(state, copy)
            set_learned_net(copy, self.weights(manifest))
            solver.restore(copy)


class SnapshotPrefix:
    """The snapshot_prefix for Caffe, which takes one when it makes a solver, and tries it.

    `path` leads through a link: into a temporary folder at first, so that a solver can be made, or fail, before
    anything is written in the run's folder; then, `inside` that folder, where a snapshot is moved in one step.
    """

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> SnapshotPrefix:
        self.stack = ExitStack()
        self.outside = self.stack.enter_context(scratch_folder())
        self.link = os.path.join(self.outside, "link")
        os.symlink(self.outside, self.link)
        self.path = os.path.join(self.link, self.name)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def folder(self, name: str) -> str:
        """A new folder of this name, for files that the run will begin with."""
        path = os.path.join(self.outside, name)
        os.mkdir(path)
        return path

    @contextmanager
    def inside(self, folder: str) -> Iterator[None]:
        """Have snapshots written into a folder of their own in this one, which may be moved meanwhile."""
        inside = tempfile.mkdtemp(prefix=f".{self.name}{MARK}", dir=folder)
        try:
            os.remove(self.link)
            os.symlink(os.path.abspath(inside), self.link)
            yield
        finally:
            shutil.rmtree(inside, ignore_errors=True)


def check_room(folder: str, net: Any, copies: Sequence[int]) -> None:
    """Raise a UsageError where files of so many times the weights of a net have no room."""
    size = 4 * sum(blob.count for blobs in net.params.values() for blob in blobs) + (1 << 14)
    try:
        reserve(folder, [count * size for count in copies])
    except OSError as error:
        needed = " and ".join(f"{count * size:,}" for count in copies)
        raise UsageError(
            f"{cannot_be_written(folder, error)} The weights need {needed} bytes there. Make room, and go on with "
            "--resume."
        ) from error


def write_record(path: str, content: Dict[str, Any]) -> Dict[str, Any]:
    """Write a dict as JSON, with a checksum of itself in it; what was written."""
    content = {**content, "checksum": checksum(content)}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return content


def read_record(path: str) -> Dict[str, Any]:
    """What `write_record` wrote.

    Raises
    ------
    OSError : it cannot be opened.
    ValueError : it is damaged, or something else.
    """
    with open_file(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict) or content.get("checksum") != checksum(content):
        raise ValueError("its checksum is not that of what it holds")
    return content


def is_record(path: str) -> bool:
    """Whether a file is there that `write_record` wrote, and is whole."""
    try:
        return bool(read_record(path))
    except (OSError, ValueError):
        return False


def checksum(content: Dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fingerprint(path: str) -> Dict[str, Any]:
    """The length and checksum of a file."""
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
    message = read_state(state)
    message.learned_net = weights
    with open(state, "wb") as file:
        file.write(message.SerializeToString())


def is_ours(state: str) -> bool:
    """Whether a .solverstate is one that `Snapshots.save` kept."""
    return os.path.basename(os.path.dirname(learned_net(state))) == OUR_SIGN


def learned_net(state: str) -> str:
    """The file of weights that a .solverstate names; "" where it does not read."""
    try:
        if state.endswith(".h5"):
            import h5py

            with h5py.File(state, "r") as file:
                return os.fsdecode(bytes(file["learned_net"][()]))
        return read_state(state).learned_net
    except (OSError, KeyError, ValueError, TypeError):
        return ""


def read_state(path: str) -> Any:
    """The SolverState of a file; a ValueError if it is damaged."""
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    message = caffe_pb2.SolverState()
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            message.ParseFromString(file.read())
        except (DecodeError, SystemError) as error:  # protobuf 3.20 raises the latter for a string that is no UTF-8
            raise ValueError(f"{path} is torn") from error
    return message
