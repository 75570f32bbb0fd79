"""What a snapshot remembers of the solver, the net and the data of its run, to say what differs when it is resumed."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Dict, List

from ..errors import UsageError, shortlist
from ..files import read_lines
from ..nets.data_layers import sources
from ..nets.image_index import index_options, reads_index
from .solver import SolverFile

# The fields of a solver on which the weights depend, as far as these come from iterations.
FIELDS = (
    *("type", "base_lr", "lr_policy", "gamma", "power", "stepsize", "stepvalue", "momentum", "momentum2", "delta"),
    *("rms_decay", "weight_decay", "regularization_type", "clip_gradients", "iter_size", "random_seed"),
)
SHARE = 1 << 16  # of each file that is looked at, so many bytes from its beginning and its end


def describe(file: SolverFile) -> Dict[str, Any]:
    """The fields of the solver, the layers of its train net, and the data of all nets, as JSON can hold them."""
    param = file.param
    solver = {name: plain(getattr(param, name)) for name in FIELDS}
    if param.lr_policy == "poly":
        solver["max_iter"] = param.max_iter
    return {
        "solver": solver,
        "data": [describe_data(layer) for layer in sources(file.train.net.layer)],
        "tests": [[test.batches, *map(describe_data, sources(test.net.layer))] for test in file.tests],
        "layers": [[layer.name, digest_of_layer(layer)] for layer in file.train.net.layer],
    }


def plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else list(value)


def shown(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value  # the fields of a solver are of float32


def describe_data(layer: Any) -> Dict[str, Any]:
    """A data layer's batch size, and a digest of the beginnings, ends and lengths of the files that it reads."""
    digest = hashlib.sha256()
    size, files = 0, []
    if layer.type == "HDF5Data":
        size, files = layer.hdf5_data_param.batch_size, read_lines(layer.hdf5_data_param.source, "source")
    elif layer.type == "ImageData":
        size, files = layer.image_data_param.batch_size, [layer.image_data_param.source]
    elif layer.type == "Data":
        size, folder = layer.data_param.batch_size, layer.data_param.source
        names = [name for name in sorted(os.listdir(folder)) if name.endswith((".mdb", ".ldb", ".sst"))]
        files = [os.path.join(folder, name) for name in names if name != "lock.mdb"]
    elif reads_index(layer):
        files = [index_options(layer)["source"]]
    for path in files:
        length = os.path.getsize(path)
        with open(path, "rb") as file:
            digest.update(b"%d:" % length + file.read(SHARE))
            file.seek(max(0, length - SHARE))
            digest.update(file.read(SHARE))
    return {"name": layer.name, "batch_size": size, "sha256": digest.hexdigest()}


def digest_of_layer(layer: Any) -> str:
    """A digest of what a layer says but for what `describe_data` tells of it."""
    layer = type(layer).FromString(layer.SerializeToString())
    for name in ("data_param", "hdf5_data_param", "image_data_param"):
        if layer.HasField(name):
            getattr(layer, name).ClearField("source")
            getattr(layer, name).ClearField("batch_size")
    return hashlib.sha256(str(layer).encode()).hexdigest()[:16]


def check_same(before: Dict[str, Any], file: SolverFile) -> List[str]:
    """What differs from a description that a snapshot holds, in words.

    Raises
    ------
    UsageError : the type of the solver does, to which the state of another means nothing.
    """
    now = describe(file)
    was, kind = before["solver"]["type"], now["solver"]["type"]
    if was != kind:
        raise UsageError(
            f"{file.path} has type {kind!r}, and the run that is resumed has {was!r}, whose state is another. "
            f"Give it type {was!r} again, or start a new run with --weights."
        )
    told = [
        f"{name} is {shown(now['solver'].get(name))}, and was {shown(before['solver'].get(name))}"
        for name in now["solver"]
        if now["solver"][name] != before["solver"].get(name)
    ]
    for old, new in zip(before["data"], now["data"]):
        if new["batch_size"] != old["batch_size"]:
            told.append(f"batch_size of layer {new['name']!r} is {new['batch_size']}, and was {old['batch_size']}")
        if new["sha256"] != old["sha256"]:
            told.append(f"layer {new['name']!r} reads other data")
    if now["tests"] != before.get("tests", now["tests"]):
        told.append("tests see other samples, so that their figures compare with none before")
    if now["layers"] != before["layers"]:
        known = [tuple(entry) for entry in before["layers"]]
        changed = [name for name, digest in now["layers"] if (name, digest) not in known]
        names = {name for name, _ in now["layers"]}
        changed += [name for name, _ in known if name not in names]
        told.append(f"layers differ: {shortlist(dict.fromkeys(changed))}" if changed else "the layers stand otherwise")
    return told
