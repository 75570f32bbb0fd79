"""The losses and the image data layer as Caffe Python layers: adapters that move data between blobs and functions."""

from __future__ import annotations

import warnings
from typing import Any, Callable, ClassVar, Optional, Tuple, Type

import caffe
import numpy as np

from .data.ahead import Ahead
from .data.feed import Feed, ImageDataOptions
from .errors import InputError, NotFiniteError
from .losses.evaluate import load_kernels, scale_gradient
from .losses.layout import Layout
from .losses.options import Options, SigmoidOptions, SoftmaxOptions
from .losses.sigmoid import evaluate_sigmoid
from .losses.softmax import evaluate_softmax

FLOAT32_MAX = float(np.finfo(np.float32).max)
BLOBS = {"scores": "bottom[0] (scores)", "labels": "bottom[1] (labels)", "sample_weight": "bottom[2] (sample weights)"}

# Where to change what an InputError complains of, by its kind.
REMEDIES = {
    "shape": "Change num_output of the layer that makes bottom[0], or the width of the label blob.",
    "axis": 'Change "axis" in param_str, or the shape of the blob that is bottom[0].',
    "ignore_label": 'Change "ignore_label" in param_str.',
    "loss": "Change the weights or the labels, or give the layer another normalization.",
    "weight_shape": "Change the shape of the blob that is bottom[2].",
    "labels": 'Change the label data; if this value means "unknown", name it in param_str: "ignore_label".',
    "empty": 'Label the sample, or set "empty" to "ignore" or "uniform" in param_str.',
    "scores": 'Lower base_lr, or look at the layers and data that make bottom[0]; "nonfinite": "ignore" in param_str '
    "lets such a loss pass.",
    "sample_weight": "Change the data of bottom[2].",
    "class_weight": "Change this option in param_str, or num_output of the layer that makes bottom[0].",
}


class MultilabelLossLayer(caffe.Layer):
    """What the loss layers share; a subclass names its options and its function."""

    options_class: ClassVar[Type[Options]]
    evaluate: ClassVar[Callable[..., Tuple[float, float]]]

    def setup(self, bottom: Any, top: Any) -> None:
        check_count(self, "bottom", len(bottom), "2 (scores, labels) or 3 (scores, labels, sample weights)", (2, 3))
        check_count(self, "top", len(top), "1 (the loss) or 2 (the loss, the probabilities)", (1, 2))
        self.options = parse_options(self, self.options_class)
        self.shapes: Any = None  # of the bottoms
        # Whether forward keeps the gradient for backward, decided by the first one. Without, backward computes it.
        self.keep: Optional[bool] = None
        self.divisor: Optional[float] = None

    def reshape(self, bottom: Any, top: Any) -> None:
        shapes = shape_of(bottom[0]), shape_of(bottom[1]), shape_of(bottom[2]) if len(bottom) == 3 else None
        if shapes == self.shapes:
            return
        try:
            self.layout = Layout(*shapes, self.options)
        except InputError as error:
            raise self.explain(error) from error
        if self.shapes is None:
            load_kernels(type(self).evaluate, self.layout, self.options)
            if self.options.label_format == "indices" and shapes[0] == shapes[1]:
                self.warn(
                    'param_str has label_format "indices", and bottom[1] (labels) the shape of bottom[0] (scores): its '
                    'numbers are taken for class indices.\n    Labels of 0 and 1 per class need label_format "dense".'
                )
        self.shapes = shapes
        self.gradient: Any = None
        self.divisor = None
        top[0].reshape()  # no axes: a scalar, like Caffe's own losses
        if len(top) == 2:
            top[1].reshape(*shapes[0])

    def forward(self, bottom: Any, top: Any) -> None:
        if self.keep is None:
            self.keep = self.phase == caffe.TRAIN and self.has_loss_weight(top)
        # At 256 x 1000, one thread: the loss alone takes 180 us, with the gradient 220, and backward scales that in 70.
        # Computing it in backward anew would cost 220 there. (examples/benchmark/parts.py)
        if self.keep and self.gradient is None:
            self.gradient = np.empty(self.shapes[0], np.float32)
        self.divisor = None
        loss, divisor = self.run(bottom, self.gradient, data_of(top[1]) if len(top) == 2 else None)
        if abs(loss) > FLOAT32_MAX and self.options.nonfinite == "error":
            error = InputError("loss", f"the loss is {loss:g}, more than float32 holds")
            raise self.explain(error)
        top[0].data[...] = loss
        self.divisor = divisor if self.keep else None

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        if len(top) == 2 and top[1].count and top[1].diff.any():
            raise ValueError(
                f"{type(self).__name__}: top[1] (probabilities) has a gradient; none flows through it.\n"
                "    Feed a Softmax layer from bottom[0] to the layers that train, and give top[1] loss_weight: 0."
            )
        if propagate_down[0] and bottom[0].count:
            out = bottom[0].diff
            gradient, divisor = self.gradient, self.divisor
            if divisor is None or out.shape != self.shapes[0]:
                self.reshape(bottom, top)  # Caffe asks for it before a forward only
                gradient = out
                _, divisor = self.run(bottom, out)
            step = float(top[0].diff) / divisor if divisor else 0.0
            scale_gradient(gradient, step, out)
        for k in range(1, len(bottom)):
            if propagate_down[k] and bottom[k].count:
                bottom[k].diff[...] = 0  # labels and weights are constant; force_backward asks anyway

    def run(self, bottom: Any, gradient: Any, probs: Any = None) -> Tuple[float, float]:
        """Loss and divisor of the bottoms' data; errors name the blobs as the prototxt does."""
        weight = data_of(bottom[2]) if len(bottom) == 3 else None
        try:
            return type(self).evaluate(
                data_of(bottom[0]), data_of(bottom[1]), weight, self.layout, self.options, gradient, probs
            )
        except InputError as error:
            raise self.explain(error) from error

    def has_loss_weight(self, top: Any) -> bool:
        """Whether top[0].diff, which holds loss_weight in forward already, is not 0; warns if it is."""
        if float(top[0].diff) != 0:
            return True
        self.warn(
            "loss_weight is 0 in the TRAIN phase, so Caffe never calls backward and nothing learns from this loss.\n"
            "    Add loss_weight: 1 to this layer; Caffe gives a Python layer none by itself. (If another layer takes "
            "top[0], all is well.)"
        )
        return False

    def warn(self, text: str) -> None:
        warnings.warn(f"{type(self).__name__}: {text}", RuntimeWarning, stacklevel=3)

    def explain(self, error: InputError) -> ValueError:
        kind = NotFiniteError if error.kind == "scores" else ValueError
        return kind(f"{type(self).__name__}: {sentence(error.render(**BLOBS))}\n    {REMEDIES[error.kind]}")


def shape_of(blob: Any) -> tuple:
    # Fast, since blob.shape takes ten times as long; but Caffe aborts where the data of an empty blob are asked for.
    return blob.data.shape if blob.count else tuple(blob.shape)


def data_of(blob: Any) -> np.ndarray:
    return blob.data if blob.count else np.empty(tuple(blob.shape), np.float32)


def sentence(text: str) -> str:
    return text if text.endswith("?") else text + "."


def parse_options(layer: Any, options_class: Any) -> Any:
    try:
        return options_class.parse(layer.param_str)
    except (TypeError, ValueError) as error:
        message = f"{type(layer).__name__}: param_str has {sentence(str(error))}"
        raise type(error)(f"{message}\n    Change python_param {{ param_str: ... }} of this layer.") from error


def check_count(layer: Any, role: str, count: int, expected: str, allowed: tuple) -> None:
    if count not in allowed:
        raise ValueError(
            f"{type(layer).__name__}: it has {count} {role}{'' if count == 1 else 's'}; expected {expected}.\n"
            f"    Change the {role}: lines of this layer."
        )


class MultilabelSoftmaxLossLayer(MultilabelLossLayer):
    """Softmax cross-entropy with several labels per position.

    Formulas, shapes and options are those of :func:`multilabel_softmax_loss.softmax_cross_entropy`; the options
    stand in `param_str`, as JSON or as a Python dict literal.

    bottom[0] : scores, (N, C), (N, C, H, W) or any shape with a class axis, any real value
    bottom[1] : labels, shaped like the scores, or lists of class indices; >= 0, or `ignore_label`
    bottom[2] : sample weights, optional, one per position or per sample; >= 0
    top[0] : the loss, a scalar
    top[1] : the probabilities, optional, shaped like the scores; no gradient flows through them

    Give the layer `loss_weight: 1` (with two tops `loss_weight: 1 loss_weight: 0`).
    """

    options_class = SoftmaxOptions
    evaluate = staticmethod(evaluate_softmax)


class MultilabelSigmoidLossLayer(MultilabelLossLayer):
    """Sigmoid cross-entropy, plain or focal, of labels that do not exclude each other.

    Formulas, shapes and options are those of :func:`multilabel_softmax_loss.sigmoid_cross_entropy`; bottoms, tops and
    `loss_weight` are those of :class:`MultilabelSoftmaxLossLayer`, with labels from 0 to 1.
    """

    options_class = SigmoidOptions
    evaluate = staticmethod(evaluate_sigmoid)


class MultilabelImageDataLayer(caffe.Layer):
    """Images and their labels, several each, straight from image files: no conversion, and none can lose the other.

    Pixels are those of Caffe's ImageData layer with the same options (see
    :class:`multilabel_softmax_loss.data.feed.ImageDataOptions`); `convert --to index` writes the index that is read. In
    TRAIN the order is drawn anew each epoch from the seed, and each solver of several reads its share. In TEST images
    come in order, and a round ends with a smaller batch, so that the next begins with the first image.

    top[0] : images, (N, channels, height, width), scale * (pixel - mean)
    top[1] : labels, (N, C), -1 where unknown; with label_format "indices" (N, K) class indices, padded with -1
    """

    def setup(self, bottom: Any, top: Any) -> None:
        check_count(self, "bottom", len(bottom), "none", (0,))
        check_count(self, "top", len(top), "2 (images, labels)", (2,))
        self.options = parse_options(self, ImageDataOptions)
        train = self.phase == caffe.TRAIN
        share = (caffe.solver_rank(), caffe.solver_count()) if train else (0, 1)
        self.batches = Ahead(Feed(self.options, train, share), self.options.workers)

    def reshape(self, bottom: Any, top: Any) -> None:
        size = self.batches.size
        top[0].reshape(size, *self.options.shape)
        top[1].reshape(size, self.batches.feed.width)

    def forward(self, bottom: Any, top: Any) -> None:
        self.batches.deliver(top[0].data, top[1].data)

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        pass

    def skip(self, batches: int) -> None:
        """Go on as if so many batches had been delivered already."""
        self.batches.skip(batches)
