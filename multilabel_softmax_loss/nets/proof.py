"""The proof that a deployed net computes what its training net does: both run on random input, in Caffe and OpenCV."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Dict, NamedTuple, Optional, Sequence, Union

import numpy as np

from ..errors import UsageError
from .heads import Head
from .python_layers import running
from .surgery import Shape, input_names, without_data
from .weights import load_net

TOLERANCE = 1e-5


class Proof(NamedTuple):
    """Random input, the training net's probabilities for it, and those of the deployed net by each reader.

    A reader that cannot run the deployed net has the reason in place of probabilities.
    """

    inputs: Dict[str, np.ndarray]
    expected: np.ndarray
    found: Dict[str, Union[np.ndarray, str]]

    @property
    def status(self) -> int:
        """0 where all agree, 1 where one differs, 3 where OpenCV cannot tell; its last reading counts."""
        by_opencv = list(self.found.values())[-1]
        if not self.agrees(self.found["Caffe"]):
            return 1
        if isinstance(by_opencv, str):
            return 3
        return 0 if self.agrees(by_opencv) else 1

    def agrees(self, values: Union[np.ndarray, str]) -> bool:
        return not isinstance(values, str) and self.difference(values) <= TOLERANCE

    def difference(self, values: np.ndarray) -> float:
        return float(np.abs(values.reshape(self.expected.shape) - self.expected).max())


def prove(reference: Any, deployed: Any, head: Head, path: str, out: str) -> Proof:
    """Run the training net of `path` and the NetParameter `deployed`, to be written to `out`, with the same weights.

    Raises
    ------
    UsageError : the training net cannot run, or its probabilities are not finite.
    """
    import cv2

    names = [layer.name for layer in deployed.layer if layer.type == "Input"]
    inputs = random_inputs(reference, names, path, index_limits(deployed))
    scores = run_reference(reference, inputs, head.scores, path)
    wrong = scores[~(scores < np.inf)]  # -inf masks a class
    if wrong.size:
        raise UsageError(f"{path} gives {wrong[0]} for random input, which proves nothing.")
    with running(path):  # as the axis of its loss may be none of the scores
        expected = head.probs(scores)
    if any(layer.type == "DummyData" for layer in deployed.layer):  # it has constants for so many samples only
        rows = deployed.layer[0].input_param.shape[0].dim[0]
        inputs, expected = {name: values[:rows] for name, values in inputs.items()}, expected[:rows]
    proof = Proof(inputs, expected, {})
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        model = os.path.join(folder, "proof.caffemodel")
        reference.save(model)
        text = str(deployed)
        proof.found["Caffe"] = run_caffe(deployed, out, model, inputs)
        proof.found["OpenCV"] = run_opencv(text, model, inputs)
        if not proof.agrees(proof.found["OpenCV"]) and hasattr(cv2.dnn.Net, "enableWinograd"):
            # OpenCV's fast convolutions of 3 x 3 round more; they are its own, and can be turned off.
            proof.found["OpenCV without Winograd convolutions"] = run_opencv(text, model, inputs, winograd=False)
    return proof


def reference_net(
    net: Any, path: str, head: Head, shapes: Optional[Dict[str, Shape]] = None, weights: Optional[str] = None
) -> Any:
    """The training net in its TEST phase; with shapes of its inputs, without its data and what follows the scores.

    Raises
    ------
    UsageError : nothing brings data, or an input has no shape, or what has one is none.
    """
    reference = type(net)()
    reference.CopyFrom(net)
    names = input_names(net, head)
    if not names:
        raise UsageError(f"{path}: no data layer of the TEST phase leads to {head.scores!r}.")
    if shapes:
        reference.ClearField("layer")
        for name, shape in shapes.items():
            entry = reference.layer.add(name=name, type="Input", top=[name])
            entry.input_param.shape.add(dim=shape)
        reference.layer.extend(without_data(net, head.scores, shapes))
    loaded = load_net(reference, path, "TEST", weights)
    if weights is None:
        fill_zeros(loaded)
    return loaded


def fill_zeros(net: Any) -> None:
    """Random weights where a net without fillers has none, and random statistics: zeros would prove nothing.

    An untrained BatchNorm divides by the root of its eps alone; the scores would be in the hundreds, and their
    rounding more than what a proof is about.
    """
    draw = np.random.RandomState(1)
    for layer, blobs in zip(net.params, net.params.values()):
        weights = blobs[0].data
        if net.layer_dict[layer].type == "BatchNorm":
            mean, variance, count = (blob.data for blob in blobs)
            mean[...] = 0.1 * draw.randn(*mean.shape)
            variance[...] = draw.uniform(0.5, 1.5, variance.shape)
            count[...] = 1
        elif not weights.any():
            weights[...] = draw.randn(*weights.shape) / np.sqrt(max(np.prod(weights.shape[1:]), 1))


def index_limits(deployed: Any) -> Dict[str, int]:
    """The blobs that Embed layers take indices from, and how many indices there are."""
    return {layer.bottom[0]: layer.embed_param.input_dim for layer in deployed.layer if layer.type == "Embed"}


def random_inputs(net: Any, names: Sequence[str], path: str, limits: Dict[str, int]) -> Dict[str, np.ndarray]:
    """Gaussian noise with mean and deviation of the net's first batch, and within its range: a layer may take no other.

    Where the batch is of whole numbers, so is the noise. Where the net has no data, of mean 0 and deviation 1.
    """
    draw = np.random.RandomState(0)
    with running(path):
        net.forward()
    inputs = {}
    for name in names:
        values = net.blobs[name].data
        low, high = float(values.min()), float(values.max())
        if name in limits:
            noise = draw.randint(limits[name], size=values.shape)
        elif low == high:
            noise = low + draw.randn(*values.shape)
        else:
            noise = np.clip(values.mean() + values.std() * draw.randn(*values.shape), low, high)
            noise = np.round(noise) if np.array_equal(values, np.round(values)) else noise
        inputs[name] = np.asarray(noise, np.float32)
    return inputs


def run_reference(net: Any, inputs: Dict[str, np.ndarray], scores: str, path: str) -> np.ndarray:
    """The scores that a training net gives for inputs put in place of its data; its labels stay what they are."""
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    for index in range(len(net.layers)):  # not by name, as layers may share one
        if len(net._bottom_ids(index)):
            with running(path):
                net._forward(index, index)
    return net.blobs[scores].data.copy()


def run_caffe(deployed: Any, path: str, model: str, inputs: Dict[str, np.ndarray]) -> np.ndarray:
    net = load_net(deployed, path, "TEST", model)
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
    with running(path):
        net.forward()
    return net.blobs[deployed.layer[-1].top[0]].data.copy()


def run_opencv(text: str, model: str, inputs: Dict[str, np.ndarray], winograd: bool = True) -> Any:
    """The output of OpenCV's dnn module, or the reason why there is none."""
    import cv2

    try:
        net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.fromfile(model, np.uint8))
        if not winograd:
            net.enableWinograd(False)
        for name, values in inputs.items():
            net.setInput(values, name)
        return net.forward()
    except cv2.error as error:
        return " ".join(error.err.split())
