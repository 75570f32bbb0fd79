"""Small real Caffe nets from prototxt text, for the tests."""

import json
import tempfile
from pathlib import Path

import caffe
import numpy as np


def make_net(text, phase=caffe.TRAIN):
    """A net from prototxt text. Native CHECKs abort the process, so the text has to be right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.prototxt")
        path.write_text(text)
        return caffe.Net(str(path), phase)


def input_layer(name, shape):
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def loss_layer(bottoms, tops=("loss",), param_str="", loss_weight="loss_weight: 1", layer="MultilabelSoftmaxLossLayer"):
    blobs = " ".join([f'bottom: "{name}"' for name in bottoms] + [f'top: "{name}"' for name in tops])
    return (
        f'layer {{ name: "loss" type: "Python" {blobs} {loss_weight}\n'
        f'python_param {{ module: "multilabel_softmax_loss" layer: "{layer}" param_str: {json.dumps(param_str)} }} }}\n'
    )


def loss_net(arrays, tops=("loss",), phase=caffe.TRAIN, **layer):
    """A net of the loss layer alone on Input blobs that hold `arrays` (name -> array), with `force_backward`."""
    text = "force_backward: true\n" + "".join(input_layer(name, array.shape) for name, array in arrays.items())
    net = make_net(text + loss_layer(arrays, tops, **layer), phase)
    fill(net, arrays)
    return net


def fill(net, arrays):
    for name, array in arrays.items():
        net.blobs[name].reshape(*array.shape)
        net.blobs[name].data[...] = array


def loss_and_gradient(net, blob="scores"):
    """Forward and backward; what the loss blob and the diff of `blob` hold then."""
    net.forward()
    net.backward()
    return float(net.blobs["loss"].data), net.blobs[blob].diff.copy()


def native_output(layers, arrays):
    """Loss and gradient of native layers given as prototxt, on Input blobs that hold `arrays`.

    Their InfogainLoss aborts under `force_backward`, so the scores come out of a layer that learns (a factor of 1).
    """
    text = "".join(input_layer(name.replace("scores", "input"), array.shape) for name, array in arrays.items())
    text += """layer { name: "one" type: "Scale" bottom: "input" top: "scores"
        scale_param { num_axes: 0 filler { type: "constant" value: 1 } } }
        """
    net = make_net(text + layers)
    fill(net, {name.replace("scores", "input"): array for name, array in arrays.items()})
    return loss_and_gradient(net)


def random_scores(shape, seed=0, scale=2):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)
