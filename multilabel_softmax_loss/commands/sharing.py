"""How ranks share the samples of a training: each sample of an epoch is read by one of them, once."""

from __future__ import annotations

import ctypes
import os
import zlib
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from ..errors import UsageError, shortlist
from ..files import read_lines
from ..nets.data_layers import batch_size, count_samples, sources
from ..nets.hdf5_lists import hdf5_files
from ..nets.heads import PYTHON_LOSSES
from ..nets.image_index import reads_index
from ..nets.pairing import parameter_of
from ..parallel.ranks import ranks
from ..parallel.window import window
from .terminal import say, warn

SHARING = ("Data", "HDF5Data")  # layers that leave out other ranks' samples by themselves
COUNTING = ("SoftmaxWithLoss", "SigmoidCrossEntropyLoss", "InfogainLoss")  # losses that may ignore labels
MEANS = ("EuclideanLoss", "HingeLoss", "MultinomialLogisticLoss", "ContrastiveLoss")  # over all samples of a batch
FREE = ("Input", "DummyData")  # layers without samples


def check_shared(layers: Sequence[Any], path: str) -> None:
    """Raise a UsageError where ranks cannot share the samples of a TRAIN net; say what of its numbers is not shared."""
    if ranks.size == 1:
        return
    for layer in sources(layers):
        name = f"{path}: layer {layer.name!r}"
        if layer.type in (*SHARING, "ImageData") or reads_index(layer):
            check_enough(layer, name)
        elif layer.type == "Python":
            say(f"{name} is in Python, and has to leave out other ranks' samples by caffe.solver_rank() itself.")
        elif layer.type not in FREE:
            raise UsageError(
                f"{name} is of type {layer.type}, whose samples ranks cannot share; expected HDF5Data, "
                "Data or ImageData."
            )
    for layer in filter(keeps_statistics, layers):
        told = f"{path}: layer {layer.name!r} ({layer.type}) has statistics of each rank's own samples"
        warn("train", f"{told}; tests and snapshots have those of rank 0.")
    steps = [layer.name for layer in layers if layer.type in ("LSTM", "RNN")]
    if steps and any(layer.type in SHARING for layer in sources(layers)):
        warn(
            "train",
            f"{path}: {shortlist(steps)} takes the samples of a batch for steps of time, and ranks share out samples "
            "one by one: no rank sees a sequence as it is stored. A data layer in Python can share out whole ones.",
        )


def keeps_statistics(layer: Any) -> bool:
    """Whether a layer keeps numbers of the samples that it saw among its weights, as BatchNorm does."""
    if layer.type == "BatchNorm":
        return not layer.batch_norm_param.use_global_stats
    return layer.type == "Python" and any(param.lr_mult == 0 for param in layer.param)


def share_divisors(net: Any, layers: Sequence[Any], recorded: Sequence[str]) -> None:
    """Have Caffe's own losses be divided by what the whole iteration counts, as this package's are: where labels are
    ignored, so that each batch counts another number, and where nothing is divided, so that ranks add up to a sum.

    Caffe multiplies their gradient by the diff of their top, which puts that right. But where another layer reads that
    top, too, Caffe splits it, and the gradient comes from there. `recorded` are the blobs that the history has.
    """
    weights = net.blob_loss_weights
    counted = {}
    for place, layer in with_places(net, layers):
        if layer.type in COUNTING and weights[layer.top[0]] and not is_mean(layer):
            is_sum = layer.loss_param.normalization == layer.loss_param.NONE
            ignored, labels, top = layer.loss_param.ignore_label, net.blobs[layer.bottom[1]], layer.top[0]
            counted[place] = is_sum, ignored, labels, net.blobs[top], weights[top]

    def share(place: int) -> None:
        if place in counted:
            is_sum, ignored, labels, top, weight = counted[place]
            count = 1.0 if is_sum else float(np.count_nonzero(np.trunc(labels.data) != ignored))
            top.diff[...] = weight * max(count, 1.0) / (window.share(count, is_sum) or 1.0)

    if counted:
        net.after_forward(share)
    if ranks.size > 1:
        tell_averages(net, layers, recorded)


def with_places(net: Any, layers: Sequence[Any]) -> Iterator[Tuple[int, Any]]:
    """The layers of a caffe.Net, each with its place there, where Caffe has put others, of type Split, among them."""
    return zip([place for place, made in enumerate(net.layers) if made.type != "Split"], layers)


def tell_averages(net: Any, layers: Sequence[Any], recorded: Sequence[str]) -> None:
    """Say what of a net is averaged over the ranks without a look at what each rank's batch counts."""
    weights = net.blob_loss_weights
    averaged = []
    for _, layer in with_places(net, layers):
        is_shared = layer.type in COUNTING or layer.python_param.layer in PYTHON_LOSSES
        if not (is_mean(layer) or (is_shared and weights[layer.top[0]])):
            averaged += [top for top in layer.top if weights[top] or top in recorded]
    for place, made in enumerate(net.layers):  # a loss that other layers read
        if made.type == "Split" and any(weights[net._blob_names[k]] for k in net._top_ids(place)):
            averaged.append(net._blob_names[net._bottom_ids(place)[0]])
    if averaged:
        warn(
            "train",
            f"ranks average {shortlist(dict.fromkeys(averaged))}, which is that of all their samples only if it is a "
            "mean over all samples of a batch. Losses of this package, and Caffe's, need not be where they have a "
            "loss_weight and no other layer reads them.",
        )


def is_mean(layer: Any) -> bool:
    """Whether the first top of a layer is a mean over all samples of a batch."""
    if layer.type == "Accuracy":
        return not layer.accuracy_param.HasField("ignore_label")
    if layer.type in COUNTING:
        return layer.loss_param.normalization != layer.loss_param.NONE and not counts_labels(layer)
    return layer.type in MEANS


def counts_labels(layer: Any) -> bool:
    """Whether a loss of Caffe's is divided by how many labels are not ignored."""
    param = layer.loss_param
    counts = layer.type != "SigmoidCrossEntropyLoss" or param.HasField("normalization") or param.HasField("normalize")
    if param.HasField("normalize") and not param.HasField("normalization"):
        counts = param.normalize
    return param.HasField("ignore_label") and counts and param.normalization == param.VALID


def check_enough(layer: Any, name: str) -> None:
    samples, size = count_samples(layer), batch_size(layer)
    if not reads_index(layer) and getattr(parameter_of(layer), "rand_skip", False):
        raise UsageError(f"{name} has rand_skip, and so another start on each rank; expected none.")
    whole = ranks.size * size
    if whole > samples:
        raise UsageError(
            f"{name} has {samples} samples; expected at least {ranks.size} ranks x {size} = {whole}, the "
            "samples of one iteration. Lower batch_size, or start fewer ranks."
        )
    if layer.type == "HDF5Data" and layer.hdf5_data_param.shuffle:
        lengths = file_lengths(layer)
        if len(set(lengths)) > 1 or lengths[0] < whole:
            raise UsageError(
                f"{name} shuffles files of {', '.join(map(str, lengths[:5]))} samples; expected one file, or files of "
                f"one length of at least {whole}, as ranks could not draw the same order. Or set shuffle: false."
            )


def file_lengths(layer: Any) -> List[int]:
    """The samples in each file of an HDF5Data layer."""
    import h5py

    lengths = []
    for path in hdf5_files(layer):
        with h5py.File(path, "r") as file:
            lengths.append(file[layer.top[0]].shape[0])
    return lengths


def share_lists(net: Any, prefix: str) -> Any:
    """The net with each ImageData list replaced by this rank's lines, in files that begin with `prefix`.

    Line n of a list read over and over is of rank n mod K, so that the ranks together read what one process would. A
    shuffled list is dealt out once.
    """
    shared = type(net).FromString(net.SerializeToString())
    if ranks.size == 1:
        return shared
    for number, layer in enumerate(sources(shared.layer)):
        if layer.type == "ImageData":
            parameter = layer.image_data_param
            lines = read_lines(parameter.source, f"source of layer {layer.name!r}")
            stop = len(lines) if parameter.shuffle or len(lines) % ranks.size == 0 else len(lines) * ranks.size
            mine = [lines[k % len(lines)] for k in range(ranks.rank, stop, ranks.size)]
            parameter.source = f"{prefix}_list{number}.txt"
            with open(parameter.source, "w", encoding="utf-8") as file:
                file.write("\n".join(mine) + "\n")
    return shared


class Shuffles:
    """Has HDF5Data layers that shuffle draw an order by the epoch alone, whatever else was drawn before.

    They draw by the C library's rand() when they come to the end of a file, which ranks do in different iterations.
    Ranks that drew different orders would read some samples twice and others never.
    """

    def __init__(self, net: Any, layers: Sequence[Any], seed: int):
        self.seed = seed
        self.passes: Dict[int, int] = {}
        self.sizes: Dict[int, tuple] = {}
        indices = [index for index, layer in enumerate(net.layers) if layer.type == "HDF5Data"]
        readers = [layer for layer in layers if layer.type == "HDF5Data"]
        for index, layer in zip(indices, readers):
            lengths = file_lengths(layer) if layer.hdf5_data_param.shuffle else []
            if len(set(lengths)) == 1:
                self.passes[index], self.sizes[index] = 0, (lengths[0], layer.hdf5_data_param.batch_size)
        if self.passes and os.name == "posix":
            self.library = ctypes.CDLL(None)
            net.before_forward(self.seed_layer)

    def seed_layer(self, index: int) -> None:
        if index in self.passes:
            self.passes[index] += 1
            length, batch = self.sizes[index]
            place = ranks.size * (batch * self.passes[index] - 1) + ranks.rank + 1  # of the next sample to look at
            self.library.srand(zlib.crc32(repr((self.seed, "file", index, place // length)).encode()) & 0x7FFFFFFF)


def tell_samples(count: int, sizes: Sequence[int]) -> str:
    """The samples of an iteration: "2 ranks x 32 = 64 samples"."""
    each = " and ".join(map(str, dict.fromkeys(sizes)))
    whole = " and ".join(str(count * size) for size in dict.fromkeys(sizes))
    return f"{count} rank{'' if count == 1 else 's'} x {each} = {whole} samples"
