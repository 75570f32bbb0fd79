"""The losses and the image data layer as Caffe Python layers: adapters that move data between blobs and functions."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, NamedTuple, Optional, Type

import caffe
import numpy as np

from .data.ahead import Ahead
from .data.feed import Feed, ImageDataOptions
from .errors import InputError, NotFiniteError
from .losses.evaluate import Loss, Mean, scale_gradient
from .losses.ranking import RankingLoss
from .losses.sigmoid import SigmoidLoss
from .losses.softmax import SoftmaxLoss
from .parallel.window import window

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


PROBES = 16  # entries of the gradient that tell whether it is still there
NEAR = 1e-6  # how far two factors of a gradient may be apart for float32 to keep its digits


class Written(NamedTuple):
    """A gradient in the scores' diff: what it was multiplied by, the divisor that it shall have, and a few entries."""

    factor: float
    divisor: float
    probes: bytes

    def is_in(self, diff: np.ndarray, stride: int) -> bool:
        """Whether it is still there; entries of 0 prove nothing."""
        return diff.reshape(-1)[::stride].tobytes() == self.probes and any(self.probes)

    def scale(self, loss_weight: float) -> Optional[float]:
        """What it is to be multiplied by; None where float32 may not hold its digits as it is."""
        wanted = loss_weight / self.divisor if self.divisor else 0.0
        if wanted == self.factor or not self.divisor:
            return 1.0 if wanted == self.factor else 0.0
        scale = wanted / self.factor if self.factor else math.inf
        return scale if NEAR < abs(scale) < 1 / NEAR else None


class MultilabelLossLayer(caffe.Layer):
    """What the loss layers share; a subclass names its loss.

    Forward in TRAIN writes the gradient into the scores' diff, finished where the divisor is that of a batch of which
    all counts; backward makes sure that it is still there, and multiplies it once more where the divisor was another
    one. So no array as large as the scores is kept, and no batch changes how the next one is rounded, which a run that
    is resumed could not repeat.
    """

    loss_class: ClassVar[Type[Loss]]
    tops: ClassVar[tuple] = ("1 (the loss) or 2 (the loss, the probabilities)", (1, 2))  # in words, and how many

    def setup(self, bottom: Any, top: Any) -> None:
        check_count(self, "bottom", len(bottom), "2 (scores, labels) or 3 (scores, labels, sample weights)", (2, 3))
        check_count(self, "top", len(top), *self.tops)
        self.options = parse_options(self, self.loss_class.options_class)
        self.shapes: Any = None  # of the bottoms
        self.arrays: Any = None  # of the bottoms, from a reshape to the forward that follows at once
        self.writes_diff: Optional[bool] = None  # whether forward does; the first one decides

    def reshape(self, bottom: Any, top: Any) -> None:
        self.arrays = arrays_of(bottom)
        scores, labels, weight = self.arrays
        shapes = (scores.shape, labels.shape, None if weight is None else weight.shape)
        if shapes == self.shapes:
            return
        try:
            self.loss = self.loss_class(self.options, *self.arrays)
        except InputError as error:
            raise self.explain(error) from error
        if self.shapes is None and self.options.label_format == "indices" and shapes[0] == shapes[1]:
            self.warn(
                'param_str has label_format "indices", and bottom[1] (labels) the shape of bottom[0] (scores): its '
                'numbers are taken for class indices.\n    Labels of 0 and 1 per class need label_format "dense".'
            )
        self.shapes = shapes
        self.expected_divisor = float(self.loss.sizes()["FULL"] if self.loss.size is None else self.loss.size)
        self.written: Optional[Written] = None
        self.entries, self.stride = scores.size, max(scores.size // PROBES, 1)
        self.has_probs = len(top) == 2
        top[0].reshape()  # no axes: a scalar, like Caffe's own losses
        if self.has_probs:
            top[1].reshape(*shapes[0])

    def forward(self, bottom: Any, top: Any) -> None:
        if self.writes_diff is None:
            self.writes_diff = self.phase == caffe.TRAIN and self.has_loss_weight(top)
        self.written = None
        diff, factor = None, 1.0
        if self.writes_diff and self.entries:
            diff, factor = bottom[0].diff, float(top[0].diff) / self.expected_divisor
        mean = self.run(bottom, diff, data_of(top[1]) if self.has_probs else None, factor)
        if abs(mean.loss) > FLOAT32_MAX and self.options.nonfinite == "error":
            raise self.explain(InputError("loss", f"the loss is {mean.loss:g}, more than float32 holds"))
        top[0].data[...] = mean.loss
        if self.writes_diff:
            # The divisor is another one where several processes, or the batches of an iteration, make up one batch.
            divisor = window.share(mean.divisor * mean.weight_scale, self.options.normalization == "NONE")
        if diff is not None:
            self.written = Written(factor, divisor, diff.reshape(-1)[:: self.stride].tobytes())

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        if self.has_probs and top[1].count and top[1].diff.any():
            raise ValueError(
                f"{type(self).__name__}: top[1] (probabilities) has a gradient; none flows through it.\n"
                "    Feed a Softmax layer from bottom[0] to the layers that train, and give top[1] loss_weight: 0."
            )
        if propagate_down[0] and bottom[0].count:
            diff, loss_weight = bottom[0].diff, float(top[0].diff)
            written = self.written
            scale = written.scale(loss_weight) if written is not None and written.is_in(diff, self.stride) else None
            if scale is None:
                self.reshape(bottom, top)  # Caffe asks for it before a forward only; other shapes forget `written`
                scale = self.write_anew(bottom, diff, loss_weight, self.written.divisor if self.written else None)
            if abs(scale - 1) > 1e-9:
                scale_gradient(diff, scale)
            self.written = None  # the layers before this one may work in place
        for k in range(1, len(bottom)):
            if propagate_down[k] and bottom[k].count:
                bottom[k].diff[...] = 0  # labels and weights are constant; force_backward asks anyway

    def write_anew(self, bottom: Any, diff: np.ndarray, loss_weight: float, divisor: Optional[float]) -> float:
        """The gradient of the bottoms' data in `diff`, with its divisor if that is known; what to multiply it by."""
        factor = loss_weight / (divisor or self.expected_divisor)
        mean = self.run(bottom, diff, None, factor)
        if divisor is None:
            divisor = mean.divisor * mean.weight_scale
        scale = Written(factor, divisor, b"").scale(loss_weight)
        return self.write_anew(bottom, diff, loss_weight, divisor) if scale is None else scale

    def run(self, bottom: Any, gradient: Any, probs: Any, factor: Optional[float]) -> Mean:
        """The loss of the bottoms' data; errors name the blobs as the prototxt does."""
        scores, labels, weight = self.arrays or arrays_of(bottom)
        self.arrays = None  # views, which dangle when a blob grows
        try:
            return self.loss(scores, labels, weight, gradient, probs, factor)
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


def arrays_of(bottom: Any) -> tuple:
    """Scores, labels, and sample weights or None."""
    return data_of(bottom[0]), data_of(bottom[1]), data_of(bottom[2]) if len(bottom) == 3 else None


def data_of(blob: Any) -> np.ndarray:
    # Caffe aborts where the data of an empty blob are asked for.
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

    >>> from multilabel_softmax_loss.prototxt import loss_layer
    >>> print(loss_layer(label_normalization="count").splitlines()[-3].strip())  # of the layer's text
    param_str: '{"label_normalization": "count"}'
    """

    loss_class = SoftmaxLoss


class MultilabelSigmoidLossLayer(MultilabelLossLayer):
    """Sigmoid cross-entropy, plain, focal or asymmetric, of labels that do not exclude each other.

    Formulas, shapes and options are those of :func:`multilabel_softmax_loss.sigmoid_cross_entropy`; bottoms, tops and
    `loss_weight` are those of :class:`MultilabelSoftmaxLossLayer`, with labels from 0 to 1.

    >>> from multilabel_softmax_loss.prototxt import loss_layer
    >>> text = loss_layer(layer="MultilabelSigmoidLossLayer", focal_gamma=2)
    >>> print(text.splitlines()[-3].strip())
    param_str: '{"focal_gamma": 2}'
    """

    loss_class = SigmoidLoss


class MultilabelRankingLossLayer(MultilabelLossLayer):
    """A ranking loss: pairwise, WARP, lsep or zlpr.

    Formulas, shapes and options are those of :func:`multilabel_softmax_loss.ranking_loss`; bottoms and `loss_weight`
    are those of :class:`MultilabelSoftmaxLossLayer`. The loss is its only top.

    >>> from multilabel_softmax_loss.prototxt import loss_layer
    >>> text = loss_layer(layer="MultilabelRankingLossLayer", normalization="FULL")
    >>> print(text.splitlines()[-3].strip())
    param_str: '{"normalization": "FULL"}'
    """

    loss_class = RankingLoss
    tops = "1 (the loss; rankings know scores, and no probabilities for a second top)", (1,)


class MultilabelImageDataLayer(caffe.Layer):
    """Images and their labels, several each, straight from image files: no conversion, and none can lose the other.

    Pixels are those of Caffe's ImageData layer with the same options (see
    :class:`multilabel_softmax_loss.data.feed.ImageDataOptions`); `convert --to index` writes the index that is read. In
    TRAIN the order is drawn anew each epoch from the seed, and each solver of several reads its share. In TEST images
    come in order, and a round ends with a smaller batch, so that the next begins with the first image.

    top[0] : images, (N, channels, height, width), scale * (pixel - mean)
    top[1] : labels, (N, C), -1 where unknown; with label_format "indices" (N, K) class indices, padded with -1

    >>> options = ImageDataOptions.parse('{"source": "train.txt", "batch_size": 32, "crop_size": 224}')  # a param_str
    >>> print(options.batch_size, options.mirror)
    32 False
    """

    def setup(self, bottom: Any, top: Any) -> None:
        check_count(self, "bottom", len(bottom), "none", (0,))
        check_count(self, "top", len(top), "2 (images, labels)", (2,))
        self.options = parse_options(self, ImageDataOptions)
        share = caffe.solver_rank(), caffe.solver_count()
        self.batches = Ahead(Feed(self.options, self.phase == caffe.TRAIN, share), self.options.workers)

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
