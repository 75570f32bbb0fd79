"""What ranks have alike, and what rank 0 has for all: versions, options, files; the folder of the run."""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence

from ..errors import UsageError
from ..parallel.ranks import ranks
from ..param_str import parse_literal
from .provenance import describe_data
from .run_folder import RunFolder
from .sharing import tell_samples
from .snapshots import Snapshots
from .solver import SolverFile
from .terminal import PROGRAM, say


def check_alike(file: SolverFile, **options: Any) -> None:
    """Raise a UsageError unless all ranks have the same versions, options, prototxt files, data and Python layers."""
    if ranks.size == 1:
        return
    facts = {f"option {name}": repr(value) for name, value in options.items()}
    facts[file.path] = crc_of([str(file.param).encode()])
    for number, net in enumerate([file.train, *file.tests]):
        facts.update(facts_of(net.net, f"{net.path} (net {number} of {file.path})"))
    compare(facts)


def check_net_alike(path: str, net: Any, loaded: Any, *options: Any) -> None:
    """Raise a UsageError unless all ranks have the same versions, options, net, weights, data and Python layers.

    `loaded` is the caffe.Net of the NetParameter `net`, which came from `path`.
    """
    if ranks.size == 1:
        return
    weights = (blob.data.tobytes() for blobs in loaded.params.values() for blob in blobs)
    facts = {"the weights": crc_of(weights), "the options": crc_of([repr(options).encode()])}
    compare({**facts_of(net, path), **facts})


def facts_of(net: Any, name: str) -> Dict[str, str]:
    """What ranks need to have alike of a net: its text, its data, its Python layers and the files that these name."""
    facts = {name: crc_of([str(net).encode()])}
    for layer in net.layer:
        if not layer.bottom:
            facts[f"{name}, data of layer {layer.name!r}"] = f"files of digest {describe_data(layer)['sha256'][:16]}"
        if layer.type == "Python":
            code = getattr(sys.modules.get(layer.python_param.module), "__file__", None)
            paths = {layer.python_param.module: code, **{path: path for path in named_files(layer)}}
            for told, path in paths.items():
                facts[f"{name}, {told} of layer {layer.name!r}"] = crc_of([Path(path).read_bytes()] if path else [])
    return facts


def named_files(layer: Any) -> List[str]:
    """The files that the options of a Python layer name, such as class weights."""
    try:
        options = parse_literal(layer.python_param.param_str)
    except ValueError:  # a param_str of another kind
        return []
    return [value for value in options.values() if isinstance(value, str) and os.path.isfile(value)]


def crc_of(parts: Iterable[bytes]) -> str:
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"CRC {total:08x}"


def compare(facts: Dict[str, str]) -> None:
    """Raise a UsageError for the first of the versions and of these facts in which a rank differs from rank 0."""
    every = ranks.everyone({**versions(), **facts}, "what the ranks have")
    for name in dict.fromkeys(name for one in every for name in one):
        values = [one.get(name, "nothing") for one in every]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            ranks.agree()
            raise UsageError(
                f"{name}: rank 0 has {values[0]}, rank {other} {values[other]}; expected the same on all ranks."
            )


def versions() -> Dict[str, str]:
    found = {"CPython": ".".join(map(str, sys.version_info[:2]))}
    for name in ("multilabel_softmax_loss", "caffe", "numpy"):
        found[name] = str(getattr(import_module(name), "__version__", "of no version"))
    return found


@contextmanager
def folder_of_rank(folder: RunFolder) -> Iterator[RunFolder]:
    """The folder of the run for rank 0, and something like it for the others; locked if it exists.

    The lock may have to be waited for, which Ctrl-C ends as long as nothing else handles it.
    """
    with ExitStack() as stack:
        if ranks.rank > 0:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_"))
            folder = SilentFolder(folder, place)
        stack.callback(folder.unlock)
        with ranks.together("the folder of the run"):
            if os.path.isdir(folder.path):
                folder.lock()
        yield folder


class SilentFolder(RunFolder):
    """What ranks but the first have for the folder of the run: one of their own, where nothing is kept."""

    def __init__(self, folder: RunFolder, place: str):
        super().__init__(place, folder.prefix)
        self.snapshots = SilentSnapshots(place, folder.prefix)
        self.snapshots.place = folder.path

    def history(self, *arguments: Any) -> Any:
        return SilentHistory()

    def save_best(self, net: Any, record: Dict[str, Any]) -> Dict[str, Any]:
        return record


class SilentHistory:
    def add(self, row: Dict[str, float], always: bool = False) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class SilentSnapshots(Snapshots):
    place = ""  # the folder where rank 0 keeps them

    def save(self, solver: Any, scratch: str, record: Dict[str, Any]) -> str:
        return os.path.join(self.place, f"{self.prefix}_iter_{solver.iter}.caffemodel")


def newest_for_all(folder: RunFolder) -> Dict[str, Any]:
    """The manifest of the newest snapshot that rank 0 has; its files, too, are given to the other ranks.

    Raises
    ------
    UsageError : there is none.
    """
    manifest: Any = None
    with ranks.together("the newest snapshot"):
        if ranks.rank == 0:
            manifest = folder.snapshots.newest(say)
    manifest = ranks.share(manifest, "the newest snapshot")
    for name in manifest["files"] if ranks.size > 1 else ():
        path, content = os.path.join(folder.path, name), b""
        if ranks.rank == 0:
            with open(path, "rb") as file:
                content = file.read()
        content = ranks.share(content, f"the file {name}")
        if ranks.rank > 0:
            with open(path, "wb") as file:
                file.write(content)
    return manifest


def check_samples(manifest: Dict[str, Any], sizes: Sequence[int], path: str, weights: str) -> None:
    """Raise a UsageError where a run that ranks share, or shared, would go on with other samples per iteration."""
    former = manifest.get("ranks", 1), manifest.get("batch_sizes", list(sizes))
    if ranks.size == 1 and former[0] == 1:
        return
    if [former[0] * size for size in former[1]] != [ranks.size * size for size in sizes]:
        ranks.agree()
        raise UsageError(
            f"the run had {tell_samples(*former)} per iteration, and now has {tell_samples(ranks.size, sizes)}; "
            f"expected the same product, by another batch_size in the net of {path} or another number of ranks. "
            f"Others are a new run: {PROGRAM} train {path} --weights {weights} --out ANOTHER"
        )
