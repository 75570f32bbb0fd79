"""Two ways to run one Caffe Python layer on arrays: in a real Caffe net, and on float64 stand-ins for its blobs."""

import os
import tempfile
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np

from ..nets.reading import quiet_caffe


class Spec(NamedTuple):
    """One Python layer, as a prototxt would describe it."""

    module: str
    layer: str
    param_str: str
    tops: int
    loss_weights: Tuple[float, ...]
    wrt: Tuple[int, ...]


class BlobList:
    """Bottoms or tops as pycaffe passes them: an index and a length, and no iteration."""

    def __init__(self, blobs):
        self.blobs = blobs

    def __len__(self):
        return len(self.blobs)

    def __getitem__(self, i):
        return self.blobs[i]

    __iter__ = None  # iterating over pycaffe's own raises TypeError as well


class StandInBlob:
    """What a pycaffe layer sees of a blob, in float64."""

    def __init__(self, shape: Optional[Tuple[int, ...]] = None):
        self._shape = shape
        if shape is not None:
            self.reshape(*shape)

    def reshape(self, *shape):
        if self._shape != shape or not hasattr(self, "_data"):
            self._data, self._diff = np.zeros(shape), np.zeros(shape)
        self._shape = tuple(int(n) for n in shape)

    def _array(self, array):
        if self._shape is None:
            raise TopWithoutShape("a top is used before it has a shape; call top[...].reshape(...) in reshape().")
        return getattr(self, array)

    data = property(lambda self: self._array("_data"))
    diff = property(lambda self: self._array("_diff"))
    shape = property(lambda self: list(self._shape or ()))
    count = property(lambda self: self.data.size)
    num = property(lambda self: self._legacy(0))
    channels = property(lambda self: self._legacy(1))
    height = property(lambda self: self._legacy(2))
    width = property(lambda self: self._legacy(3))

    def _legacy(self, axis):
        return self.data.shape[axis] if axis < self.data.ndim else 1


class TopWithoutShape(Exception):
    """A layer uses a top that it never gave a shape."""


class StandInBlobs(BlobList):
    """The learnable `blobs` of a layer on stand-ins."""

    def add_blob(self, *shape):
        self.blobs.append(StandInBlob(shape))


class Runner:
    """A layer with its blobs: `forward` and `backward` on arrays. The bottoms are written before every forward."""

    dtype: Any
    layer: Any
    loss_weights: Tuple[float, ...]
    has_run = False
    bottoms: Any
    tops: Any
    blobs: Any

    def load(self, arrays) -> None:
        for i, array in enumerate(arrays):
            if tuple(self.bottoms[i].data.shape) != array.shape:
                self.bottoms[i].reshape(*array.shape)
            self.bottoms[i].data[...] = array

    def forward(self, arrays) -> List[np.ndarray]:
        self.load(arrays)
        for i in range(len(self.tops)):
            # Caffe holds the loss weights there, in forward too; before the first one it does so itself.
            if self.has_run:
                self.tops[i].diff[...] = self.loss_weights[i]
        self.run_forward()
        self.has_run = True
        return [self.tops[i].data.copy() for i in range(len(self.tops))]

    def backward(self, top_diffs, propagate, fill=0.0) -> List[np.ndarray]:
        """Diffs of bottoms and learnable blobs. Before, the former hold `fill`, the latter 0, as layers add to them."""
        for i in range(len(self.tops)):
            self.tops[i].diff[...] = top_diffs[i]
        for i in range(len(self.bottoms)):
            self.bottoms[i].diff[...] = fill
        for i in range(len(self.blobs)):
            self.blobs[i].diff[...] = 0
        self.run_backward(list(propagate))
        return [blobs[i].diff.copy() for blobs in (self.bottoms, self.blobs) for i in range(len(blobs))]

    def parameters(self) -> List[np.ndarray]:
        return [self.blobs[i].data.copy() for i in range(len(self.blobs))]

    def set_parameters(self, values) -> None:
        for i, value in enumerate(values):
            self.blobs[i].data[...] = value

    def run_forward(self) -> None:
        raise NotImplementedError

    def run_backward(self, propagate) -> None:
        raise NotImplementedError


class StandInRunner(Runner):
    """The layer class on float64 stand-ins; no Caffe net is involved."""

    dtype = np.float64

    def __init__(self, spec, layer_class, arrays):
        # A subclass, because `blobs` of an object that no net owns is not there.
        self.blobs = StandInBlobs([])
        kind: Any = type(layer_class.__name__, (layer_class,), {"blobs": self.blobs, "type": "Python"})
        self.layer = kind.__new__(kind)
        self.layer.param_str, self.layer.phase = spec.param_str, 0
        self.bottoms = BlobList([StandInBlob(array.shape) for array in arrays])
        self.tops = BlobList([StandInBlob() for _ in range(spec.tops)])
        self.loss_weights = spec.loss_weights
        self.load(arrays)
        self.layer.setup(self.bottoms, self.tops)
        self.layer.reshape(self.bottoms, self.tops)
        self.set_loss_weights()

    def set_loss_weights(self):
        for i in range(len(self.tops)):
            self.tops[i].diff[...] = self.loss_weights[i]

    def run_forward(self):
        self.layer.reshape(self.bottoms, self.tops)
        widen(self.layer)
        self.set_loss_weights()  # Caffe holds them there in forward already
        self.layer.forward(self.bottoms, self.tops)

    def run_backward(self, propagate):
        self.layer.backward(self.tops, propagate, self.bottoms)


def widen(layer) -> None:
    """Give a layer on stand-ins float64 in place of the float32 buffers it keeps, as Caffe's own example does.

    Its formula is judged here; what float32 makes of it shows in the comparison with Caffe. What shares its memory
    with another array stays as it is.
    """
    kept = {name: value for name, value in vars(layer).items() if isinstance(value, np.ndarray)}
    bases = {id(value.base) for value in kept.values()}
    for name, value in kept.items():
        if value.dtype == np.float32 and value.base is None and id(value) not in bases:
            setattr(layer, name, value.astype(np.float64))


class CaffeRunner(Runner):
    """The layer in a real Caffe net of its own: one source per bottom, then the layer."""

    dtype = np.float32

    def __init__(self, spec, arrays):
        quiet_caffe()
        import caffe
        from caffe.proto import caffe_pb2

        text = caffe_pb2.NetParameter()
        for i, array in enumerate(arrays):
            bottom = text.layer.add(name=f"bottom{i}", top=[f"bottom{i}"])
            # Caffe asks for gradients of what something learnable feeds, and a Parameter is that.
            bottom.type = "Parameter" if i in spec.wrt else "Input"
            if i in spec.wrt:
                bottom.parameter_param.shape.dim.extend(array.shape)
            else:
                bottom.input_param.shape.add(dim=array.shape)
        top = text.layer.add(name="layer", type="Python", bottom=[f"bottom{i}" for i in range(len(arrays))])
        top.top.extend(f"top{i}" for i in range(spec.tops))
        # Without one, Caffe would not call backward; a weight of 0 keeps that top's diff at 0.
        top.loss_weight.extend(spec.loss_weights)
        top.python_param.module, top.python_param.layer = spec.module, spec.layer
        top.python_param.param_str = spec.param_str
        handle, path = tempfile.mkstemp(suffix=".prototxt")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(str(text))
            self.net = caffe.Net(path, caffe.TRAIN)
        finally:
            os.remove(path)
        self.at = len(arrays)
        self.loss_weights = spec.loss_weights
        self.layer = self.net.layers[self.at]
        self.bottoms = BlobList([self.net.blobs[f"bottom{i}"] for i in range(len(arrays))])
        self.tops = BlobList([self.net.blobs[f"top{i}"] for i in range(spec.tops)])
        self.blobs = self.layer.blobs
        self.propagated = [i in spec.wrt for i in range(len(arrays))]
        self.load(arrays)

    def run_forward(self):
        self.net._forward(self.at, self.at)

    def run_backward(self, propagate):
        if propagate == self.propagated and (any(propagate) or len(self.blobs)):
            self.net._backward(self.at, self.at)
        else:  # what other nets would ask for
            self.layer.backward(self.tops, propagate, self.bottoms)


def flat(arrays) -> np.ndarray:
    """All entries of all arrays, one after the other; the dtype they have."""
    return np.concatenate([np.ravel(array) for array in arrays]) if len(arrays) else np.zeros(0)
