"""Caffe's solver as `train` drives it: the file that describes it, its seeds, and its place in the data."""

from __future__ import annotations

import ctypes
import math
import os
import random
import zlib
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from ..errors import UsageError
from ..nets.data_layers import check_data, period, sources
from ..nets.image_index import reads_index
from ..nets.python_layers import check_python_layers, python_layer_errors
from ..nets.reading import phase_layers, read_prototxt
from ..nets.weights import check_layer_names
from .checks import check_batch_norm, check_fed, check_numbers, check_tests


class NetFile(NamedTuple):
    """A net of a solver: its prototxt's path, the NetParameter of the layers that its phase has, and its test_iter."""

    path: str
    net: Any
    batches: int = 0


class SolverFile(NamedTuple):
    """A solver prototxt: its SolverParameter, and the nets that are trained and tested."""

    path: str
    param: Any
    train: NetFile
    tests: List[NetFile]


def read_solver(path: str) -> SolverFile:
    """Read a solver prototxt and its nets, and check them.

    Raises
    ------
    UsageError : Caffe would find something missing or impossible, be it at the first iteration only, or never.
    """
    param = read_prototxt(path, "SolverParameter")
    file = SolverFile(path, param, *solver_nets(param, path))
    check_numbers(param, path)
    return file


def solver_nets(param: Any, path: str) -> Tuple[NetFile, List[NetFile]]:
    """The solver's train net and its test nets, in Caffe's order."""

    def read(name: str, field: str) -> NetFile:
        return NetFile(name, read_prototxt(name, named_by=f"{field} of {path}"))

    common = [NetFile(path, param.net_param)] if param.HasField("net_param") else []
    common = [read(param.net, "net")] if param.net else common
    trains = [read(param.train_net, "train_net")] if param.train_net else common
    trains = [NetFile(path, param.train_net_param)] if param.HasField("train_net_param") else trains
    if not trains:
        raise UsageError(f'{path} names no net; expected net: "train_val.prototxt" in it.')
    tests = [NetFile(path, net) for net in param.test_net_param]
    tests += [read(name, "test_net") for name in param.test_net]
    check_tests(param, len(tests), path)
    tests += common * (len(param.test_iter) - len(tests))
    states = [*param.test_state, *[type(param.train_state)()] * len(tests)]
    train = of_phase(trains[0], "TRAIN", param.train_state)
    check_batch_norm(train.net, train.path)
    planned = zip(tests, states, param.test_iter)
    return train, [of_phase(test, "TEST", state)._replace(batches=count) for test, state, count in planned if count]


def of_phase(file: NetFile, phase: str, state: Any) -> NetFile:
    """The net as Caffe makes it in this phase and state, checked."""
    net = type(file.net).FromString(file.net.SerializeToString())
    net.state.MergeFrom(state)
    layers = phase_layers(net, phase)
    check_python_layers(layers, file.path)
    check_fed(layers, file.path, phase)
    check_data(layers, file.path)
    del net.layer[:]
    net.layer.extend(layers)
    for layer in net.layer:
        del layer.include[:], layer.exclude[:]  # their work is done
    return NetFile(file.path, net)


class SeededSolver:
    """A solver of Caffe, each iteration and test of which draws from seeds of its own.

    Before each iteration the seeds of Caffe, the C library, NumPy and Python are set anew from the run's seed and the
    iteration, so that no state of theirs needs to be kept to resume. A test net is made anew for each test, with the
    same seeds, and so sees the same samples in the same way whenever that is. When to test, and what is kept, are left
    to the caller.

    Parameters
    ----------
    file : what to solve.
    prefix : the snapshot_prefix, in a folder that exists; the solver that Caffe reads is written there too.
    seed : the run's.

    Raises
    ------
    UsageError : a layer of the nets cannot be made, or the TRAIN net has no loss.
    """

    def __init__(self, file: SolverFile, prefix: str, seed: int):
        self.file, self.prefix, self.seed = file, prefix, seed
        self.caffe_solver = self.make()
        self.net = self.caffe_solver.net
        self.losses = loss_outputs(self.net, file.path)
        self.window: List[List[float]] = []  # the losses of each batch of an iteration, and their weighted sum
        self.last_layer = len(self.net.layers) - 1
        self.net.after_forward(self.note_losses)

    def make(self) -> Any:
        import caffe

        param = type(self.file.param).FromString(self.file.param.SerializeToString())
        for field in ("train_net", "net_param", "test_net", "test_net_param", "test_iter", "test_interval"):
            param.ClearField(field)
        for field in ("test_state", "test_initialization", "snapshot"):
            param.ClearField(field)
        param.train_net_param.CopyFrom(self.file.train.net)
        param.ClearField("net")
        param.display = 0
        param.snapshot_prefix = self.prefix
        param.random_seed = self.seed
        reseed(self.seed)
        with python_layer_errors(self.file.train.path):
            solver = caffe.get_solver(self.write(param))
        check_layer_names(solver.net, self.file.train.path)
        return solver

    def write(self, message: Any) -> str:
        """A prototxt of this message, for Caffe to read; its path."""
        path = f"{self.prefix}_caffe.prototxt"
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(message))
        return path

    @property
    def iteration(self) -> int:
        return self.caffe_solver.iter

    @property
    def learning_rate(self) -> float:
        return float(self.caffe_solver.lr)

    def step(self) -> Dict[str, float]:
        """Make one iteration; its losses by name, each the mean of the iter_size batches that it is made of."""
        reseed(self.seed, 0, self.iteration)
        del self.window[:]
        self.caffe_solver.step(1)
        *losses, self.weighted_loss = np.mean(self.window, axis=0).tolist()
        return dict(zip(self.losses, losses))

    def note_losses(self, layer: int) -> None:
        """Note the losses of a batch that has gone through the last layer; Caffe calls this after each layer."""
        if layer == self.last_layer:
            blobs, weights = self.net.blobs, self.net.blob_loss_weights
            total = sum(float(blobs[name].data.sum()) * weights[name] for name in blobs if weights[name])
            self.window.append([*(float(blobs[name].data) for name in self.losses), total])

    def make_test_net(self, number: int) -> Any:
        """Test net `number`, at the beginning of its data."""
        import caffe

        reseed(self.seed, number + 1)
        path = self.file.tests[number].path
        with python_layer_errors(path):
            net = caffe.Net(self.write(self.file.tests[number].net), caffe.TEST)
        check_layer_names(net, path)
        return net

    def begin_test(self, net: Any, number: int) -> None:
        """Give test net `number` the weights of the net that is trained, and the seeds of every test."""
        net.share_with(self.net)
        reseed(self.seed, number + 1)

    def fast_forward(self, stop: Sequence[int]) -> None:
        """Put the data where they were in this iteration; gives up once `stop` is not empty."""
        moments = [(self.seed, 0, iteration) for iteration in range(self.iteration)]
        fast_forward(self.net, self.file.train.net.layer, moments, self.file.param.iter_size, stop)


def reseed(*key: int) -> None:
    """Seed all that Caffe, its layers and Python layers draw from, by the run's seed and the moment in the run."""
    import caffe

    seed = zlib.crc32(repr(key).encode()) & 0x7FFFFFFF
    caffe.set_random_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if os.name == "posix":
        ctypes.CDLL(None).srand(seed)  # HDF5Data shuffles by the C library's rand()


def scalar_outputs(net: Any) -> List[str]:
    return [name for name in net.outputs if net.blobs[name].data.size == 1]


def loss_outputs(net: Any, path: str) -> List[str]:
    """The scalar outputs of a training net, or, where it has none, its scalar losses."""
    weights = net.blob_loss_weights
    losses = [name for name in net.blobs if weights[name]]
    if not losses:
        raise UsageError(
            f"The TRAIN net of {path} has no loss; expected a loss layer. One in Python needs loss_weight: 1 in it."
        )
    return scalar_outputs(net) or [name for name in losses if net.blobs[name].data.size == 1]


def fast_forward(net: Any, layers: Sequence[Any], moments: Sequence[tuple], forwards: int, stop: Sequence[int]) -> None:
    """Put the data layers of a new net where `forwards` batches at each of these moments would have put them.

    Only the layers without bottoms run, found by their place in the net, since layers may share a name; one that has
    `skip(batches)` is told to. Where all others go round in a fixed period, whole rounds are left out. Gives up once
    `stop` is not empty.
    """
    for layer in net.layers:
        if hasattr(layer, "skip"):
            layer.skip(len(moments) * forwards)
    indices = [
        index
        for index, layer in enumerate(net.layers)
        if not len(net._bottom_ids(index)) and layer.type not in ("Input", "Parameter") and not hasattr(layer, "skip")
    ]
    periods = [period(layer) for layer in sources(layers) if layer.type != "Input" and not reads_index(layer)]
    if None not in periods:
        rounds = 1
        for length in filter(None, periods):
            rounds = rounds * length // math.gcd(rounds, length)
        moments, forwards = [()], len(moments) * forwards % rounds
    for moment in moments:
        if moment:
            reseed(*moment)
        for _ in range(forwards):
            if stop:
                return
            for index in indices:
                net._forward(index, index)
