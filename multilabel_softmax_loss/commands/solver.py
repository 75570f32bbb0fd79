"""Caffe's solver as `train` drives it: the file that describes it, its seeds, and its place in the data."""

from __future__ import annotations

import ctypes
import math
import os
import random
import zlib
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..nets.class_labels import watch_labels
from ..nets.data_layers import check_data, period, places_of_sources, sources
from ..nets.databases import watch_datums
from ..nets.image_index import reads_index
from ..nets.locating import located
from ..nets.python_layers import check_python_layers, python_layer_errors, staying
from ..nets.reading import phase_layers, read_prototxt
from ..nets.weights import check_layer_names, read_weights
from ..parallel.blobs import FusedBlobs, checksum
from ..parallel.ranks import ranks
from ..parallel.window import window
from .checks import check_batch_norm, check_fed, check_numbers, check_tests
from .packages import packages_of, require, require_caffe
from .sharing import FREE, Shuffles, keeps_statistics, share_divisors, share_lists, tell_samples
from .terminal import say, warn


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
    require_caffe()
    param = read_prototxt(path, "SolverParameter")
    file = SolverFile(path, param, *solver_nets(param, path))
    check_numbers(param, path)
    for names in param.weights:
        for name in names.split(","):
            read_weights(name.strip())
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
    require(packages_of([trains[0].net, *(test.net for test in tests)], param))
    train = of_phase(trains[0], "TRAIN", param.train_state)
    check_batch_norm(train.net, train.path)
    planned = zip(tests, states, param.test_iter)
    return train, [of_phase(test, "TEST", state)._replace(batches=count) for test, state, count in planned if count]


def of_phase(file: NetFile, phase: str, state: Any) -> NetFile:
    """The net as Caffe makes it in this phase and state, checked."""
    net = type(file.net).FromString(file.net.SerializeToString())
    net.state.MergeFrom(state)
    layers = phase_layers(net, phase)
    with staying():
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
    stop : not empty once this process is asked to end; `asked` is whether any rank was, as all know after an iteration.

    Raises
    ------
    UsageError : a layer of the nets cannot be made, or the TRAIN net has no loss.
    """

    def __init__(self, file: SolverFile, prefix: str, seed: int, stop: Sequence[int]):
        self.file, self.prefix, self.seed, self.stop = file, prefix, seed, stop
        self.asked = False
        self.caffe_solver = self.make()
        self.net = self.caffe_solver.net
        self.losses = loss_outputs(self.net, file.path)
        self.shuffles = Shuffles(self.net, file.train.net.layer, seed)
        readers = [layer for layer in sources(file.train.net.layer) if layer.top and layer.type not in FREE]
        self.batch_sizes = [self.net.blobs[layer.top[0]].data.shape[0] for layer in readers]
        self.noted: List[Dict[str, float]] = []  # the losses of each batch of an iteration
        self.owners: List[str] = []  # the loss of each part of the window
        self.has_told_means = False
        self.last_layer = len(self.net.layers) - 1
        share_divisors(self.net, file.train.net.layer, self.losses)
        self.net.after_forward(self.note_losses)
        # One loss can be divided by what the whole iteration counts; with more of them, each batch is, as Caffe does.
        self.shares = ranks.size > 1 or file.param.iter_size > 1
        self.is_late = self.shares and sum(map(bool, self.net.blob_loss_weights.values())) == 1
        if ranks.size > 1 and self.batch_sizes:
            say(f"{tell_samples(ranks.size, self.batch_sizes)} per iteration; base_lr is as the solver says.")
        if self.shares:
            self.caffe_solver.add_callback(lambda: None, self.share_gradients)

    def make(self) -> Any:
        import caffe

        param = type(self.file.param).FromString(self.file.param.SerializeToString())
        nets = ("net", "train_net", "net_param", "test_net", "test_net_param", "test_state")
        for field in (*nets, "test_iter", "test_interval", "test_initialization", "snapshot"):
            param.ClearField(field)
        net = share_lists(self.file.train.net, self.prefix)
        param.train_net_param.CopyFrom(located(net, os.path.dirname(self.prefix)))
        param.display = 0
        param.snapshot_prefix = self.prefix
        param.random_seed = self.seed
        reseed(self.seed)
        caffe.set_solver_count(ranks.size)
        caffe.set_solver_rank(ranks.rank)
        caffe.set_multiprocess(ranks.size > 1)
        with python_layer_errors(self.file.train.path):
            solver = caffe.get_solver(self.write(param))
        check_layer_names(solver.net, self.file.train.path)
        watch_labels(solver.net, self.file.train.net.layer)
        watch_datums(solver.net, self.file.train.net.layer, ranks.size)
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

    def share_weights(self) -> None:
        """Have all ranks begin with the weights of rank 0; once each has made its solver."""
        self.weights = FusedBlobs([blob for blobs in self.net.params.values() for blob in blobs], ranks)
        self.weights.give_out("data", "the weights to begin with")

    def share_statistics(self) -> None:
        """Have all ranks go on with what layers of rank 0 keep of the samples that they saw; before a test."""
        if any(map(keeps_statistics, self.file.train.net.layer)):
            self.weights.give_out("data", f"the statistics of iteration {self.iteration}")

    def check_same_weights(self) -> None:
        """Raise a UsageError unless all ranks have come to the same weights, bit for bit; before a snapshot."""
        kept = {layer.name for layer in self.file.train.net.layer if keeps_statistics(layer)}
        learned = [blob for name, blobs in self.net.params.items() if name not in kept for blob in blobs]
        sums = ranks.gather([checksum(learned)], f"the weights of iteration {self.iteration}")[:, 0]
        other = next((rank for rank in range(ranks.size) if sums[rank] != sums[0]), None)
        if other is not None:
            ranks.agree()
            raise UsageError(
                f"iteration {self.iteration}: rank {other} has come to other weights than rank 0; expected the "
                "same bits. Processors of different kinds round differently: give the ranks nodes of one kind. (Blobs "
                "that a Python layer does not learn, but notes, need param { lr_mult: 0 }.)"
            )
        self.share_statistics()
        ranks.busy(f"the snapshot of iteration {self.iteration}")

    def step(self) -> Dict[str, float]:
        """Make one iteration; its losses by name, those of all iter_size batches and of all ranks."""
        reseed(*self.moment(self.iteration))
        del self.noted[:], self.owners[:]
        with window.open(self.is_late), staying():
            self.caffe_solver.step(1)
        return self.iteration_losses()

    def share_gradients(self) -> None:
        """Put the gradients of this iteration right; Caffe calls this before it changes the weights."""
        batches = len(self.noted)
        self.sums = self.weights.add_up(
            "diff",
            window.scale(),
            lambda sums: window.rest(sums[1], batches),
            self.numbers(),
            f"the gradients of iteration {self.iteration}",
        )

    def numbers(self) -> List[float]:
        """What this rank tells of an iteration: whether it was asked to end, its divisor, its part of each loss."""
        weights: Dict[str, List[float]] = {}
        for owner, part in zip(self.owners, window.parts):
            weights.setdefault(owner, []).append(part.divisor / (part.whole or 1.0))
        each = [1 / ranks.size] * len(self.noted)
        losses = [
            sum(noted[name] * weight for noted, weight in zip(self.noted, weights.get(name, each)))
            for name in self.noted[0]
        ]
        return [float(bool(self.stop)), window.own(), *losses]

    def note_losses(self, layer: int) -> None:
        """Note the losses of a batch that has gone through the last layer; Caffe calls this after each layer."""
        if len(window.parts) > len(self.owners):
            self.owners.append(self.net._blob_names[self.net._top_ids(layer)[0]])
        if layer == self.last_layer:
            blobs, weights = self.net.blobs, self.net.blob_loss_weights
            names = dict.fromkeys([*self.losses, *(name for name in blobs if weights[name])])
            self.noted.append({name: float(blobs[name].data.sum()) for name in names})

    def iteration_losses(self) -> Dict[str, float]:
        """The losses of the iteration by name: sums of what each batch of each rank contributes."""
        asked, whole, *sums = self.sums if self.shares else self.numbers()
        self.asked = bool(asked)
        batches, late = len(self.noted), self.owners if self.is_late and whole else ()
        rest = window.rest(whole, batches)
        losses = {
            name: float(total) * (rest if name in late else 1) / batches for name, total in zip(self.noted[0], sums)
        }
        weights = self.net.blob_loss_weights
        self.weighted_loss = sum(weights[name] * loss for name, loss in losses.items())
        if not self.is_late and not self.has_told_means:
            self.tell_means()
        return {name: losses[name] for name in self.losses}

    def tell_means(self) -> None:
        """Say where the batches of an iteration are divided by different numbers, so that it is no single batch."""
        wholes: Dict[str, set] = {}
        for owner, part in zip(self.owners, window.parts):
            wholes.setdefault(owner, set()).add(part.whole)
        uneven = [name for name, values in wholes.items() if len(values) > 1]
        if uneven:
            self.has_told_means = True
            warn(
                "train",
                f"{self.file.path} has iter_size {self.file.param.iter_size}, and the net several losses: each batch "
                f"is divided by what counts in it, as Caffe does, and {shortlist(uneven)} counts different numbers. "
                "With one loss the iteration would be as one large batch.",
            )

    def make_test_net(self, number: int) -> Any:
        """Test net `number`, at the beginning of its data."""
        import caffe

        reseed(self.seed, number + 1)
        path = self.file.tests[number].path
        with python_layer_errors(path):
            net = caffe.Net(self.write(located(self.file.tests[number].net, os.path.dirname(self.prefix))), caffe.TEST)
        check_layer_names(net, path)
        watch_labels(net, self.file.tests[number].net.layer)
        watch_datums(net, self.file.tests[number].net.layer)
        return net

    def begin_test(self, net: Any, number: int) -> None:
        """Give test net `number` the weights of the net that is trained, and the seeds of every test."""
        net.share_with(self.net)
        reseed(self.seed, number + 1)

    def moment(self, iteration: int) -> Tuple[int, ...]:
        """What the seeds of an iteration are made of; each rank has its own, as for Dropout."""
        return (self.seed, 0, iteration, *([ranks.rank] if ranks.rank else []))

    def fast_forward(self) -> None:
        """Put the data where they were in this iteration; gives up once this process is asked to end."""
        moments = [self.moment(iteration) for iteration in range(self.iteration)]
        with staying():
            fast_forward(self.net, self.file.train.net.layer, moments, self.file.param.iter_size, self.stop)


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
    indices = [place for place in places_of_sources(net) if not hasattr(net.layers[place], "skip")]
    readers = [layer for layer in sources(layers) if layer.type != "Input" and not reads_index(layer)]
    periods = [period(layer, ranks.size) for layer in readers]
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
