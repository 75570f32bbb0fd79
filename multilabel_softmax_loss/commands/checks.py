"""What Caffe would find wrong with a solver late, or never: looked at before the first iteration."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any, List, Sequence

from ..errors import UsageError
from ..files import write_text
from ..nets.class_labels import MAKERS
from ..nets.data_layers import sources
from .terminal import warn

# The learning rate at iteration i is base_lr times this; a field that is left out is 0 for Caffe, and so is the rate,
# or it never changes.
POLICIES = {
    "fixed": ("1", ()),
    "step": ("gamma^(i / stepsize)", ("gamma", "stepsize")),
    "exp": ("gamma^i", ("gamma",)),
    "inv": ("(1 + gamma i)^-power", ("gamma", "power")),
    "multistep": ("gamma at each stepvalue", ("gamma", "stepvalue")),
    "poly": ("(1 - i / max_iter)^power", ("power",)),
    "sigmoid": ("1 / (1 + exp(-gamma (i - stepsize)))", ("gamma", "stepsize")),
}
POSITIVE = ("gamma", "stepsize")
FRACTIONS = ("momentum", "momentum2", "rms_decay")
NOT_NEGATIVE = ("base_lr", "weight_decay", "delta", "test_interval", "snapshot")


def check_numbers(param: Any, path: str) -> None:
    """Raise a UsageError for numbers of a solver that are missing, or with which nothing is learned."""
    if param.max_iter <= 0:
        raise UsageError(f"{path} has no max_iter; expected the number of iterations to train.")
    if not param.HasField("base_lr"):
        raise UsageError(f"{path} has no base_lr; expected the learning rate to start with.")
    if param.iter_size < 1:
        raise UsageError(f"{path} has iter_size {param.iter_size}; expected at least 1.")
    for field, value in param.ListFields():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{path} has {field.name} {value:g}; expected a finite number.")
        if field.name in FRACTIONS and not 0 <= value < 1:
            raise UsageError(f"{path} has {field.name} {value:g}; expected at least 0 and less than 1.")
        if field.name in NOT_NEGATIVE and value < 0:
            raise UsageError(f"{path} has {field.name} {value:g}; expected no negative number.")
    if param.regularization_type not in ("L1", "L2"):
        raise UsageError(f"{path} has regularization_type {param.regularization_type!r}; expected 'L1' or 'L2'.")
    check_policy(param, path)
    if param.HasField("solver_mode") and param.solver_mode == param.GPU:
        warn("train", f"{path} has solver_mode GPU; it is the processor that trains here.")


def check_policy(param: Any, path: str) -> None:
    """Raise a UsageError for an unknown lr_policy, or one that lacks its numbers."""
    if param.lr_policy not in POLICIES:
        raise UsageError(f"{path} has lr_policy {param.lr_policy!r}; expected one of {', '.join(POLICIES)}.")
    rule, fields = POLICIES[param.lr_policy]
    for name in fields:
        value = getattr(param, name)
        given = len(value) > 0 if name == "stepvalue" else param.HasField(name)
        told = f"{path} has lr_policy {param.lr_policy!r}, base_lr times {rule},"
        if not given:
            raise UsageError(f"{told} and no {name}; add {name}: to it.")
        if name in POSITIVE and value <= 0:
            raise UsageError(f"{told} and {name} {value:g}; expected more than 0.")
    steps = list(param.stepvalue)
    if param.lr_policy == "multistep" and (steps != sorted(set(steps)) or steps[0] < 0):
        raise UsageError(f"{path} has stepvalue {', '.join(map(str, steps))}; expected iterations in ascending order.")


def check_tests(param: Any, named: int, path: str) -> None:
    """Raise a UsageError unless there is a test_iter for each test net, `named` of which have their own prototxt."""
    count = len(param.test_iter)
    if any(batches < 0 for batches in param.test_iter):
        raise UsageError(f"{path} has test_iter {min(param.test_iter)}; expected the number of batches of a test.")
    if 0 in param.test_iter:
        warn("train", f"{path} has test_iter 0; that net is never tested.")
    common = bool(param.net) or param.HasField("net_param")
    if count < named or (count > named and not common):
        raise UsageError(f"{path} has {named} test nets and {count} lines of test_iter; expected one for each net.")
    if param.test_state and len(param.test_state) != max(count, named):
        raise UsageError(
            f"{path} has {len(param.test_state)} of test_state for {max(count, named)} tests; expected one for each."
        )


def check_fed(layers: Sequence[Any], path: str, phase: str) -> None:
    """Raise a UsageError where Input blobs, which stay all zero here, are all that feeds a net; warn where not all.

    Zeros may be meant beside data, as the first state of a recurrent layer.
    """
    inputs = [top for layer in layers if layer.type == "Input" for top in layer.top]
    if not inputs:
        return
    told = f"{path}: nothing feeds the Input blob {inputs[0]!r} of the {phase} net, which is all zeros."
    if all(layer.type == "Input" for layer in sources(layers)):
        raise UsageError(f"{told} Expected a layer that reads data, such as HDF5Data or Data, in place of the Input.")
    warn("train", told)


def check_batch_norm(net: Any, path: str) -> None:
    """Raise a UsageError for a BatchNorm layer that should learn its statistics, where this Caffe cannot do that."""
    learning = [
        layer.name for layer in net.layer if layer.type == "BatchNorm" and not layer.batch_norm_param.use_global_stats
    ]
    if learning and not batch_norm_learns():
        raise UsageError(
            f"{path}: layer {learning[0]!r} is a BatchNorm that learns its statistics, which this Caffe does wrong (in "
            "phase TRAIN it does not normalise, and stores nothing). With weights that were trained elsewhere, set "
            "batch_norm_param { use_global_stats: true }, which keeps their statistics; else leave the layer out, use "
            "LRN or MVN in its place, or train with another build of Caffe."
        )


def batch_norm_learns() -> bool:
    """Whether BatchNorm takes off the mean of a batch, divides by its deviation, and keeps both."""
    import caffe
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        path = os.path.join(folder, "net.prototxt")
        write_text(path, BATCH_NORM)
        net = caffe.Net(path, caffe.TRAIN)
    batch = net.blobs["x"].data
    for _ in range(2):  # the second batch, as the first may find its buffers as they should be by chance
        batch[...] = 3 + 5 * np.random.RandomState(0).randn(*batch.shape)
        expected = (batch - batch.mean(axis=0)) / batch.std(axis=0)
        net.forward()
        if not np.allclose(net.blobs["y"].data, expected, atol=1e-3):
            return False
    mean, _, factor = (blob.data.ravel() for blob in net.params["norm"])
    return bool(factor[0] > 0 and np.allclose(mean / factor[0], batch.mean(axis=0), rtol=1e-3))


BATCH_NORM = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 8 dim: 3 } } }
layer { name: "norm" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { use_global_stats: false } }
"""


# Of each kind of layer, its parameters, which say how its weights begin.
FILLED = {**MAKERS, "LSTM": "recurrent_param", "RNN": "recurrent_param"}


def layers_without_filler(net: Any) -> List[str]:
    """The layers that learn weights which begin at 0, as no weight_filler says otherwise."""
    return [
        layer.name
        for layer in net.layer
        if layer.type in FILLED
        and not getattr(layer, FILLED[layer.type]).HasField("weight_filler")
        and not (layer.param and layer.param[0].lr_mult == 0)
    ]
