"""Tiny data sets, nets and solvers for the tests of the commands, and how to run a command."""

import csv
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

CLASSES = 6
OURS = """layer { name: "loss" type: "Python" bottom: "scores" bottom: "label" top: "loss" loss_weight: 1
  python_param { module: "multilabel_softmax_loss" layer: "MultilabelSoftmaxLossLayer" param_str: '%s' } }
"""
SIGMOID = 'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "label" top: "loss" }\n'
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "hidden" top: "drop" dropout_param { dropout_ratio: 0.3 } }\n'


def run_command(*words, folder, check=None, **keywords):
    """The finished process of `python -m multilabel_softmax_loss WORDS`; with `check` its exit status must be that."""
    process = subprocess.run(
        [sys.executable, "-m", "multilabel_softmax_loss", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        **keywords,
    )
    if check is not None:
        assert process.returncode == check, process.stdout + process.stderr
    return process


def make_labels(rng, samples, classes=CLASSES, features=5):
    x = rng.randn(samples, features).astype(np.float32)
    weights = np.random.RandomState(7).randn(features, classes)
    y = (x @ weights + 0.5 * rng.randn(samples, classes) > 1).astype(np.float32)
    return x, y


def write_hdf5(path, **arrays):
    """`path`.h5 with these data sets, and `path`.txt that names it; the name of the latter."""
    import h5py

    path = Path(path)
    with h5py.File(f"{path}.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    Path(f"{path}.txt").write_text(f"{path}.h5\n")
    return f"{path}.txt"


def write_lmdb(path, arrays, classes=None):
    """An LMDB of uint8 images (C, H, W), or of float arrays (C,), with the class of each."""
    import lmdb
    from caffe.proto import caffe_pb2

    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as writer:
        for k, values in enumerate(arrays):
            datum = caffe_pb2.Datum(label=0 if classes is None else classes[k])
            datum.channels, datum.height, datum.width = (*values.shape, 1, 1)[:3]
            if values.dtype == np.uint8:
                datum.data = values.tobytes()
            else:
                datum.float_data.extend(values.ravel().tolist())
            writer.put(f"{k:08d}".encode(), datum.SerializeToString())
    return str(path)


def poisoned(weights):
    """The bytes of a .caffemodel with one weight of layer "scores" not a number."""
    from caffe.proto import caffe_pb2

    net = caffe_pb2.NetParameter.FromString(Path(weights).read_bytes())
    next(layer for layer in net.layer if layer.name == "scores").blobs[0].data[3] = float("nan")
    return net.SerializeToString()


def hdf5_layer(source, phase, batch=8, shuffle=False, tops=("data", "label")):
    named = " ".join(f'top: "{top}"' for top in tops)
    return (
        f'layer {{ name: "data" type: "HDF5Data" {named} include {{ phase: {phase} }}\n'
        f'  hdf5_data_param {{ source: "{source}" batch_size: {batch} shuffle: {str(shuffle).lower()} }} }}\n'
    )


def inner_product(name, bottom, outputs):
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" param {{ lr_mult: 1 }}\n'
        f'  inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}\n'
    )


def body(dropout=True, classes=CLASSES):
    """Layers from "data" to "scores"."""
    relu = 'layer { name: "relu" type: "ReLU" bottom: "hidden" top: "hidden" }\n'
    last = inner_product("scores", "drop" if dropout else "hidden", classes)
    return inner_product("hidden", "data", 10) + relu + (DROPOUT if dropout else "") + last


def make_run(folder, shuffle=True, dropout=True, loss=OURS % "", solver="", test=True, **settings):
    """train.h5 (90 samples), test.h5 (37), train_val.prototxt and solver.prototxt in `folder`; the solver's name."""
    rng = np.random.RandomState(0)
    for name, samples in (("train", 90), ("test", 37)):
        x, y = make_labels(rng, samples)
        write_hdf5(folder / name, data=x, label=y)
    net = hdf5_layer(folder / "train.txt", "TRAIN", shuffle=shuffle)
    net += hdf5_layer(folder / "test.txt", "TEST", batch=10) + body(dropout) + loss
    (folder / "train_val.prototxt").write_text('name: "tiny"\n' + net)
    return write_solver(folder, folder / "train_val.prototxt", solver, test, **settings)


def write_solver(folder, net, solver="", test=True, **settings):
    values = {"base_lr": 0.02, "max_iter": 40, "snapshot": 10, "random_seed": 5, **settings}
    lines = [f"{name}: {value}" for name, value in values.items() if value is not None]
    lines += ["test_iter: 4", "test_interval: 10"] if test else []
    text = (
        f'net: "{net}" snapshot_prefix: "{folder}/run/tiny" type: "Adam" lr_policy: "fixed" momentum: 0.9 {solver}\n'
        + "\n".join(lines)
    )
    path = Path(folder) / "solver.prototxt"
    path.write_text(text + "\n")
    return str(path)


def listing(folder):
    """The files under a folder and their bytes, to see that nothing changed."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_net(text):
    """A NetParameter of this prototxt."""
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    return text_format.Parse(text, caffe_pb2.NetParameter())


def weights_of(path):
    """The parameters in a .caffemodel as one dict of arrays."""
    from caffe.proto import caffe_pb2

    with open(path, "rb") as file:
        net = caffe_pb2.NetParameter.FromString(file.read())
    return {(layer.name, k): np.array(blob.data) for layer in net.layer for k, blob in enumerate(layer.blobs)}


def same_weights(one, other):
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def rows_of(folder, *without):
    with open(Path(folder) / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def with_iterations(solver, iterations):
    """The solver with another max_iter, beside it."""
    path = Path(solver).with_name(f"solver_{iterations}.prototxt")
    path.write_text(Path(solver).read_text().replace("max_iter: 40", f"max_iter: {iterations}"))
    return str(path)


def wait_for(condition, seconds=600, pause=0.01):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


@contextmanager
def no_file_longer_than(length):
    """As `ulimit -f` has it, and a full disk or a quota all the same."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


os.environ.setdefault("GLOG_minloglevel", "2")  # before the first import of Caffe
