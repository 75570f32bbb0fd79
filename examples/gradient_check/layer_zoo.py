"""Caffe Python layers for the gradient checker: each with one planted defect, or right, or beyond telling.

`DEFECTS`, `WARNED` (whose gradient is right, and whose manners do harm in other nets only), `RIGHT` and `UNTELLABLE`
are the cages: how to make a layer's bottoms for a batch, and what the checker has to say. The defects of layers people
passed around are rebuilt from the description of what they compute.
"""

import itertools

import caffe
import numpy as np

from multilabel_softmax_loss import MultilabelSigmoidLossLayer, MultilabelSoftmaxLossLayer

CLASSES = 10


def softmax(scores):
    """Over axis 1."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class SoftmaxLoss(caffe.Layer):
    """Right: softmax cross-entropy with the labels divided by their sum, averaged over the samples."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise ValueError("two bottoms, please")

    def reshape(self, bottom, top):
        top[0].reshape()

    def targets(self, labels):
        return labels / np.maximum(labels.sum(axis=1, keepdims=True), 1e-30)

    def divisor(self, bottom):
        return bottom[0].data.shape[0]

    def forward(self, bottom, top):
        top[0].data[...] = self.loss(bottom[0].data, bottom[1].data) / self.divisor(bottom)

    def loss(self, scores, labels):
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -np.sum(self.targets(labels) * log_probs, dtype=np.float64)

    def gradient(self, scores, labels):
        targets = self.targets(labels)
        return targets.sum(axis=1, keepdims=True) * softmax(scores) - targets

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            gradient = self.gradient(bottom[0].data, bottom[1].data)
            bottom[0].diff[...] = top[0].diff * gradient / self.divisor(bottom)
        if propagate_down[1]:
            bottom[1].diff[...] = 0


# ---- wrong by a factor -----------------------------------------------------------------------------------------------


class NoMean(SoftmaxLoss):
    def gradient(self, scores, labels):
        return len(scores) * super().gradient(scores, labels)


class MeanTwice(SoftmaxLoss):
    def gradient(self, scores, labels):
        return super().gradient(scores, labels) / len(scores)


class Twice(SoftmaxLoss):
    def gradient(self, scores, labels):
        return 2 * super().gradient(scores, labels)


class Half(SoftmaxLoss):
    def gradient(self, scores, labels):
        return super().gradient(scores, labels) / 2


class OffByAThousandth(SoftmaxLoss):
    def gradient(self, scores, labels):
        return 1.001 * super().gradient(scores, labels)


class MeanOverClassesInForwardOnly(SoftmaxLoss):
    def loss(self, scores, labels):
        return super().loss(scores, labels) / scores.shape[1]


class PositionsInBackwardOnly(SoftmaxLoss):
    def gradient(self, scores, labels):
        return super().gradient(scores, labels) / np.prod(scores.shape[2:])


class LossWeightTwice(SoftmaxLoss):
    """Scales the loss itself by the loss weight it finds: Caffe then applies it again."""

    def forward(self, bottom, top):
        super().forward(bottom, top)
        top[0].data[...] /= 5


class Negated(SoftmaxLoss):
    def gradient(self, scores, labels):
        return -super().gradient(scores, labels)


class Zero(SoftmaxLoss):
    def gradient(self, scores, labels):
        return np.zeros_like(scores)


# ---- wrong in part, or altogether ------------------------------------------------------------------------------------


class OneClassForgotten(SoftmaxLoss):
    def gradient(self, scores, labels):
        gradient = super().gradient(scores, labels)
        gradient[:, 3] = 0
        return gradient


class OddClassesNegated(SoftmaxLoss):
    def gradient(self, scores, labels):
        gradient = super().gradient(scores, labels)
        gradient[:, 1::2] *= -1
        return gradient


class LastSampleForgotten(SoftmaxLoss):
    def gradient(self, scores, labels):
        gradient = super().gradient(scores, labels)
        gradient[-1] = 0
        return gradient


class MismatchOnEmptyRows(SoftmaxLoss):
    """As in C++ forks: an unlabelled sample costs nothing, but its gradient is p."""

    def gradient(self, scores, labels):
        return softmax(scores) - self.targets(labels)


class LabelSumIgnored(SoftmaxLoss):
    """Targets as given, gradient p - t, which holds for rows that sum to one only."""

    def targets(self, labels):
        return labels

    def gradient(self, scores, labels):
        return softmax(scores) - labels


class SoftLabelsCut(SoftmaxLoss):
    """As in C++ forks: int(label) != 0 decides in backward, so that a soft label becomes 0."""

    def gradient(self, scores, labels):
        return super().gradient(scores, np.where(labels < 1, 0, labels))


class LabelValuesIgnored(SoftmaxLoss):
    """R. Gomez's published loss: the forward is weighted by real labels, the backward only counts them."""

    def targets(self, labels):
        return labels / np.maximum((labels > 0).sum(axis=1, keepdims=True), 1)

    def gradient(self, scores, labels):
        return super().gradient(scores, (labels > 0).astype(scores.dtype))


class DividesByLabelCount(SoftmaxLoss):
    """R. Gomez's published loss: no thought of an image without a label."""

    def loss(self, scores, labels):
        for row in labels:
            1 / int((row > 0).sum())
        return super().loss(scores, labels)


class AsPublished(SoftmaxLoss):
    """R. Gomez's published loss with all that is wrong with it: values, top.diff, data written, buffer scaled twice."""

    def targets(self, labels):
        return labels / np.maximum((labels > 0).sum(axis=1, keepdims=True), 1)

    def forward(self, bottom, top):
        bottom[0].data[...] -= bottom[0].data.max(axis=1, keepdims=True)
        super().forward(bottom, top)
        self.buffer = softmax(bottom[0].data) - (bottom[1].data > 0) / (bottom[1].data > 0).sum(axis=1, keepdims=True)

    def backward(self, top, propagate_down, bottom):
        self.buffer /= len(self.buffer)
        bottom[0].diff[...] = self.buffer


class Unrelated(SoftmaxLoss):
    """As one published ranking loss: the gradient is of something else."""

    def gradient(self, scores, labels):
        return np.cos(37 * np.arange(scores.size).reshape(scores.shape) ** 2 + 1) * 0.3


class RowConstantLeftOut(SoftmaxLoss):
    """Off by a constant per sample, along which softmax itself does not change."""

    def gradient(self, scores, labels):
        return super().gradient(scores, labels) - 1.0 / scores.shape[1]


class ClampedLog(SoftmaxLoss):
    """The loss is cut at a floor of the probability, the gradient is not."""

    def loss(self, scores, labels):
        return -np.sum(self.targets(labels) * np.log(np.maximum(softmax(scores), 0.1)), dtype=np.float64)


class NegativesTwice(SoftmaxLoss):
    def gradient(self, scores, labels):
        return np.where(labels > 0, 1, 2) * super().gradient(scores, labels)


# ---- not finite ------------------------------------------------------------------------------------------------------


class FocalLoss(SoftmaxLoss):
    """A published focal loss: log(1 - p) of a sigmoid in float32, nan for a negative with a score of 17."""

    def loss(self, scores, labels):
        probs = 1 / (1 + np.exp(-scores))
        losses = np.where(labels > 0, (1 - probs) ** 2 * np.logaddexp(0, -scores), probs**2 * np.logaddexp(0, scores))
        return np.sum(losses, dtype=np.float64)

    def gradient(self, scores, labels):
        p = (1 / (1 + np.exp(-scores))).astype(np.float32)
        with np.errstate(all="ignore"):
            positive = (1 - p) ** 2 * (2 * p * np.log(np.maximum(p, 1e-30)) + p - 1)
            negative = -(p**2) * (2 * (1 - p) * np.log(1 - p) - p)
        return np.where(labels > 0, positive, negative)


class LogOfSoftmax(SoftmaxLoss):
    def loss(self, scores, labels):
        with np.errstate(divide="ignore", under="ignore"):
            return -np.sum(self.targets(labels) * np.log(softmax(scores).astype(np.float32)))


# ---- bad manners -----------------------------------------------------------------------------------------------------


class IgnoresTopDiff(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.gradient(bottom[0].data, bottom[1].data) / self.divisor(bottom)
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class TopDiffSquared(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, propagate_down, bottom)
        if propagate_down[0]:
            bottom[0].diff[...] *= top[0].diff


class OverwritesTopDiff(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, propagate_down, bottom)
        top[0].diff[...] = 0


class WritesScores(SoftmaxLoss):
    def forward(self, bottom, top):
        bottom[0].data[...] -= bottom[0].data.max(axis=1, keepdims=True)
        super().forward(bottom, top)


class WritesLabels(SoftmaxLoss):
    def forward(self, bottom, top):
        bottom[1].data[...] = self.targets(bottom[1].data)
        super().forward(bottom, top)


class BackwardWritesScores(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, propagate_down, bottom)
        bottom[0].data[...] = bottom[0].data - bottom[0].data.max(axis=1, keepdims=True)


class ScalesItsBufferInBackward(SoftmaxLoss):
    def forward(self, bottom, top):
        super().forward(bottom, top)
        self.buffer = self.gradient(bottom[0].data, bottom[1].data)

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            self.buffer *= top[0].diff / len(self.buffer)
            bottom[0].diff[...] = self.buffer
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class AddsToDiff(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] += top[0].diff * self.gradient(bottom[0].data, bottom[1].data) / self.divisor(bottom)
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class LeavesRowsUnwritten(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            gradient = self.gradient(bottom[0].data, bottom[1].data) * top[0].diff / self.divisor(bottom)
            labelled = bottom[1].data.any(axis=1)
            bottom[0].diff[labelled] = gradient[labelled]
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class IgnoresPropagateDown(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, [True, propagate_down[1]], bottom)


class AlwaysWritesLabelDiff(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, [propagate_down[0], True], bottom)


class LabelDiffUnfilled(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        super().backward(top, [propagate_down[0], False], bottom)


class RunningMean(SoftmaxLoss):
    """The loss is smoothed over iterations."""

    def forward(self, bottom, top):
        super().forward(bottom, top)
        self.mean = 0.9 * getattr(self, "mean", 0.0) + 0.1 * float(top[0].data)
        top[0].data[...] = self.mean


class ScoresOfTheFirstForward(SoftmaxLoss):
    def forward(self, bottom, top):
        super().forward(bottom, top)
        if not hasattr(self, "scores"):
            self.scores = bottom[0].data.copy()

    def gradient(self, scores, labels):
        return super().gradient(self.scores if self.scores.shape == scores.shape else scores, labels)


class GradientAccumulatesOverForwards(SoftmaxLoss):
    """Its buffer is added to in forward, and never cleared."""

    def forward(self, bottom, top):
        super().forward(bottom, top)
        gradient = self.gradient(bottom[0].data, bottom[1].data)
        old = getattr(self, "buffer", None)
        self.buffer = gradient + old if old is not None and old.shape == gradient.shape else gradient

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.buffer / self.divisor(bottom)
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class BatchOfSetup(SoftmaxLoss):
    def setup(self, bottom, top):
        self.count = bottom[0].data.shape[0]

    def divisor(self, bottom):
        return self.count


class BufferOfSetup(SoftmaxLoss):
    def setup(self, bottom, top):
        self.buffer = np.zeros(bottom[0].data.shape, bottom[0].data.dtype)

    def gradient(self, scores, labels):
        self.buffer[...] = super().gradient(scores, labels)
        return self.buffer


class HiddenNoise(SoftmaxLoss):
    def forward(self, bottom, top):
        super().forward(bottom, top)
        top[0].data[...] += 0.1 * np.random.rand()


class OwnGenerator(SoftmaxLoss):
    """Noise that nothing seeds; each draw of a process differs clearly from the ones before it."""

    draws = itertools.count(1)

    def forward(self, bottom, top):
        super().forward(bottom, top)
        top[0].data[...] += 0.1 * (next(OwnGenerator.draws) * 0.6180339887 % 1)


class RaisesInSetup(SoftmaxLoss):
    def setup(self, bottom, top):
        raise KeyError("no such option")


class RaisesInReshape(SoftmaxLoss):
    def reshape(self, bottom, top):
        raise ValueError("bottoms do not match")


class RaisesInForward(SoftmaxLoss):
    def forward(self, bottom, top):
        list(bottom)  # pycaffe's bottoms cannot be iterated over


class RaisesInBackward(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.never_set


class TopWithoutShape(SoftmaxLoss):
    def reshape(self, bottom, top):
        pass


# ---- layers of other kinds -------------------------------------------------------------------------------------------


class Euclidean(caffe.Layer):
    """Right, as in Caffe's own example: half the squared distance; the buffer is float32."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        self.difference = np.zeros(bottom[0].data.shape, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate([1, -1]):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * top[0].diff * self.difference / bottom[i].num


class ManualLoss(caffe.Layer):
    """Base of losses of the difference of two bottoms."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        top[0].data[...] = np.sum(self.terms(bottom[0].data - bottom[1].data), dtype=np.float64) / len(bottom[0].data)

    def backward(self, top, propagate_down, bottom):
        slope = top[0].diff * self.slopes(bottom[0].data - bottom[1].data) / len(bottom[0].data)
        for i, sign in enumerate([1, -1]):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * slope


class L1(ManualLoss):
    def terms(self, difference):
        return np.abs(difference)

    def slopes(self, difference):
        return np.sign(difference)


class ReluAtZero(ManualLoss):
    """Right, but its gradient is one of the two slopes where a difference is exactly 0."""

    def terms(self, difference):
        return np.maximum(difference, 0)

    def slopes(self, difference):
        return (difference >= 0).astype(difference.dtype)


class Huber(ManualLoss):
    def terms(self, difference):
        size = np.abs(difference)
        return np.where(size < 1, difference**2 / 2, size - 0.5)

    def slopes(self, difference):
        return np.clip(difference, -1, 1)


class Hinge(ManualLoss):
    """Labels in bottom 1 are 0 or 1; the margin is 1. Has kinks where a score reaches it."""

    def forward(self, bottom, top):
        signs = 2 * bottom[1].data - 1
        top[0].data[...] = np.sum(np.maximum(0, 1 - signs * bottom[0].data), dtype=np.float64) / len(signs)

    def backward(self, top, propagate_down, bottom):
        signs = 2 * bottom[1].data - 1
        if propagate_down[0]:
            bottom[0].diff[...] = -top[0].diff * signs * (signs * bottom[0].data < 1) / len(signs)
        if propagate_down[1]:
            bottom[1].diff[...] = 0


class SigmoidLoss(SoftmaxLoss):
    def loss(self, scores, labels):
        return np.sum(np.logaddexp(0, scores) - labels * scores, dtype=np.float64)

    def gradient(self, scores, labels):
        return 1 / (1 + np.exp(-scores)) - labels


class IndexSoftmax(SoftmaxLoss):
    """One class index per sample."""

    def targets(self, labels):
        return np.eye(CLASSES)[labels.astype(int).ravel()]


class Float32Inside(SoftmaxLoss):
    """Right, and float32 whatever it is given: stand-ins of float64 gain nothing."""

    def loss(self, scores, labels):
        return np.float32(super().loss(scores.astype(np.float32), labels.astype(np.float32)))

    def gradient(self, scores, labels):
        return super().gradient(scores.astype(np.float32), labels.astype(np.float32))


class RefusesFloat64(SoftmaxLoss):
    """Right, and made for Caffe's float32 only, like compiled kernels with a signature."""

    def forward(self, bottom, top):
        if bottom[0].data.dtype != np.float32:
            raise TypeError("float32 only")
        super().forward(bottom, top)


class RightOnlyInFloat64(SoftmaxLoss):
    """Right, but a large constant hides the slope of its loss in float32."""

    def loss(self, scores, labels):
        return super().loss(scores, labels) + 1e5 * len(scores)


class FarFromZero(SoftmaxLoss):
    """Right; a constant hides the slope of its mean loss in float32 where the samples are many."""

    def loss(self, scores, labels):
        return super().loss(scores, labels) + 30 * len(scores)


class HiddenEverywhere(SoftmaxLoss):
    """Right, but the constant hides its slope even where the blobs are float64."""

    def loss(self, scores, labels):
        return np.float32(super().loss(scores, labels) + 1e5 * len(scores))


class Constant(SoftmaxLoss):
    def loss(self, scores, labels):
        return 3.0 * len(scores)

    def gradient(self, scores, labels):
        return np.zeros_like(scores)


class ScaleAndShift(caffe.Layer):
    """Right: a top shaped like the bottom, with a learnable scale and shift per class."""

    def setup(self, bottom, top):
        channels = bottom[0].data.shape[1]
        self.blobs.add_blob(channels)
        self.blobs.add_blob(channels)
        self.blobs[0].data[...] = np.linspace(0.5, 2, channels)
        self.blobs[1].data[...] = np.linspace(-1, 1, channels)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.blobs[0].data * bottom[0].data + self.blobs[1].data

    def backward(self, top, propagate_down, bottom):
        self.parameter_diffs(top[0].diff, bottom[0].data)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data

    def parameter_diffs(self, diff, data):
        self.blobs[0].diff[...] += (diff * data).sum(axis=0)
        self.blobs[1].diff[...] += diff.sum(axis=0)


class ShiftForgotten(ScaleAndShift):
    def parameter_diffs(self, diff, data):
        self.blobs[0].diff[...] += (diff * data).sum(axis=0)


class ScaleAveraged(ScaleAndShift):
    def parameter_diffs(self, diff, data):
        self.blobs[0].diff[...] += (diff * data).sum(axis=0) / len(data)
        self.blobs[1].diff[...] += diff.sum(axis=0)


class ParameterDiffReplaced(ScaleAndShift):
    """Right with iter_size 1, so a warning and no failure."""

    def parameter_diffs(self, diff, data):
        self.blobs[0].diff[...] = (diff * data).sum(axis=0)
        self.blobs[1].diff[...] = diff.sum(axis=0)


class SquareAndCube(caffe.Layer):
    """Right: two tops, neither a scalar."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
        top[1].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data ** 2
        top[1].data[...] = bottom[0].data ** 3 / 3

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff + bottom[0].data ** 2 * top[1].diff


class SecondTopForgotten(SquareAndCube):
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff


class TutorialEuclidean(Euclidean):
    """Caffe's own example: right, but it does not look at top.diff."""

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate([1, -1]):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * self.difference / bottom[i].num


class Float32Buffer(Euclidean):
    """Right: base of losses that hold their difference in float32, and bend."""

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.terms(self.difference)) / bottom[0].num

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate([1, -1]):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * top[0].diff * self.slopes(self.difference) / bottom[i].num


class L1InFloat32(Float32Buffer):
    def terms(self, difference):
        return np.abs(difference)

    def slopes(self, difference):
        return np.sign(difference)


class SmoothL1InFloat32(Float32Buffer):
    def terms(self, difference):
        size = np.abs(difference)
        return np.where(size < 1, difference**2 / 2, size - 0.5)

    def slopes(self, difference):
        return np.clip(difference, -1, 1)


class SquaredHingeInFloat32(Float32Buffer):
    def terms(self, difference):
        return np.maximum(0, 1 - difference) ** 2

    def slopes(self, difference):
        return -2 * np.maximum(0, 1 - difference)


class L1HalfInFloat32(L1InFloat32):
    def slopes(self, difference):
        return np.sign(difference) / 2


class LogOfProbabilities(SoftmaxLoss):
    """Right: bottom 0 holds probabilities, some of which are next to 0."""

    def loss(self, scores, labels):
        return -np.sum(labels * np.log(scores), dtype=np.float64)

    def gradient(self, scores, labels):
        return -labels / scores


class LogOfProbabilitiesHalf(LogOfProbabilities):
    def gradient(self, scores, labels):
        return super().gradient(scores, labels) / 2


class FarTanh(SoftmaxLoss):
    """Right: bends within 1 of scores of 10,000."""

    def loss(self, scores, labels):
        return np.sum(np.tanh(scores - 1e4), dtype=np.float64)

    def gradient(self, scores, labels):
        return 1 - np.tanh(scores - 1e4) ** 2


class RootAtZero(SoftmaxLoss):
    """The slope of a root is infinite at 0, and its gradient claims a number there."""

    def loss(self, scores, labels):
        return np.sum(np.sqrt(scores), dtype=np.float64)

    def gradient(self, scores, labels):
        return np.where(scores > 0, 0.5 / np.sqrt(np.maximum(scores, 1e-30)), 123)


class LossAndAccuracy(SoftmaxLoss):
    """Right: a second top shows how often the best score is labelled, and has no gradient."""

    def reshape(self, bottom, top):
        top[0].reshape(1)
        top[1].reshape(1)

    def forward(self, bottom, top):
        super().forward(bottom, top)
        best = bottom[0].data.argmax(axis=1)
        top[1].data[...] = np.mean(bottom[1].data[np.arange(len(best)), best] > 0)


class Positives(caffe.Layer):
    """Right: its top has as many rows as the data say."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(max(1, int((bottom[0].data > 0).sum())))

    def forward(self, bottom, top):
        self.chosen = bottom[0].data > 0
        top[0].reshape(int(self.chosen.sum()))
        top[0].data[...] = bottom[0].data[self.chosen]

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 0
            bottom[0].diff[self.chosen] = top[0].diff


class Difference(caffe.Layer):
    """Right: both bottoms are inputs, neither a label."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data - bottom[1].data

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff


class Dropout(caffe.Layer):
    """Right: draws what it drops, from a generator of its own."""

    def setup(self, bottom, top):
        self.generator = np.random.RandomState(0)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.mask = 2.0 * (self.generator.rand(*bottom[0].data.shape) < 0.5)
        top[0].data[...] = bottom[0].data * self.mask

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.mask


class SampledRows(caffe.Layer):
    """Right: hands on rows drawn with NumPy's generator."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(3, bottom[0].data.shape[1])

    def forward(self, bottom, top):
        self.rows = np.random.choice(len(bottom[0].data), 3)
        top[0].data[...] = bottom[0].data[self.rows]

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 0
            np.add.at(bottom[0].diff, self.rows, top[0].diff)


class WithoutBackward(SoftmaxLoss):
    def backward(self, top, propagate_down, bottom):
        """A metric needs none; a loss does."""


# ---- what they are fed -----------------------------------------------------------------------------------------------


def multi_hot(random, batch, *positions):
    labels = (random.rand(batch, CLASSES, *positions) < 0.3).astype(np.float32)
    first = random.randint(CLASSES, size=(batch, 1) + positions)
    np.put_along_axis(labels, first, 1.0, axis=1)  # nobody goes without
    return labels


def labelled(random, batch):
    return [random.randn(batch, CLASSES), multi_hot(random, batch)]


def weighted(random, batch):
    """Labels of any value above 0."""
    scores, labels = labelled(random, batch)
    return [scores, labels * random.uniform(0.2, 3, labels.shape)]


def soft(random, batch):
    """Labels of 1, and some below: at least one of either in a row."""
    scores, labels = labelled(random, batch)
    labels[:, 0], labels[:, 1] = 1, 0.5
    return [scores, labels]


def halves(random, batch):
    scores, labels = labelled(random, batch)
    return [scores, labels / 2]


def some_unlabelled(random, batch):
    scores, labels = labelled(random, batch)
    labels[::2] = 0
    return [scores, labels]


def confident(random, batch):
    """A score of 17 and more for a negative, as training reaches."""
    scores, labels = labelled(random, batch)
    scores[0, 2], labels[0, 2], labels[0, 3] = 18, 0, 1
    return [scores, labels]


def far_apart(random, batch):
    scores, labels = labelled(random, batch)
    scores[0, 2], scores[0, 3], labels[0, 3] = 120, -120, 1
    return [scores, labels]


def masked(random, batch):
    """-inf where a class is out of the question."""
    scores, labels = labelled(random, batch)
    labels[:, 4] = 0
    labels[:, 5] = 1
    scores[:, 4] = -1e30
    return [scores, labels]


def spatial(random, batch):
    return [random.randn(batch, CLASSES, 3, 2), multi_hot(random, batch, 3, 2)]


def indices(random, batch):
    return [random.randn(batch, CLASSES), random.randint(CLASSES, size=batch)]


def pairs(random, batch):
    return [random.randn(batch, CLASSES), random.randn(batch, CLASSES)]


def apart(random, batch):
    """Differences of at least a half: away from the kink of |x|."""
    values = random.randn(batch, CLASSES)
    return [values, values + random.choice([-1, 1], values.shape) * random.uniform(0.5, 2, values.shape)]


def equal_in_places(random, batch):
    first, second = apart(random, batch)
    second[:, 2] = first[:, 2]
    return [first, second]


def equal(random, batch):
    values = random.randn(batch, CLASSES)
    return [values, values]


def alone(random, batch):
    return [random.randn(batch, CLASSES)]


def next_to_zero(random, batch):
    """Probabilities, those of the labels next to 0."""
    labels = multi_hot(random, batch)
    probabilities = random.uniform(0.1, 1, labels.shape)
    probabilities[labels > 0] *= 1e-9
    return [probabilities, labels]


def far_off(random, batch):
    return [1e4 + random.randn(batch, 3), np.zeros((batch, 3))]


def zeros_but_one(random, batch):
    scores = np.zeros((batch, CLASSES))
    scores[:, 0] = random.uniform(1, 4, batch)
    return [scores, np.zeros((batch, CLASSES))]


def unknown_in_places(random, batch):
    """Labels of -1 are unknown; every sample keeps a label that is known."""
    scores, labels = labelled(random, batch)
    labels[:, 1::4] = -1
    labels[:, 0] = 1
    return [scores, labels]


def lists_of_indices(random, batch):
    """Three class indices each, some of them padding."""
    lists = np.array([random.permutation(CLASSES)[:3] for _ in range(batch)])
    lists[random.rand(batch) < 0.5, 2] = -1
    return [random.randn(batch, CLASSES), lists]


def with_sample_weight(random, batch):
    return [*labelled(random, batch), random.uniform(0.1, 3, batch)]


def per_pixel_with_weight(random, batch):
    return [*spatial(random, batch), random.uniform(0.1, 3, (batch, 3, 2))]


class Cage:
    """A layer of the zoo, the bottoms it gets, and what the checker has to find: `finding`, and perhaps `also`."""

    def __init__(self, layer, finding=None, says="", feed=labelled, also=(), **arguments):
        self.layer, self.finding, self.says, self.feed, self.arguments = layer, finding, says, feed, arguments
        self.also = also
        self.module = "layer_zoo" if layer.__module__ == __name__ else "multilabel_softmax_loss"
        self.name = layer.__name__ if feed is labelled else f"{layer.__name__}, {feed.__name__.replace('_', ' ')}"

    def bottoms(self, batch):
        return [np.asarray(b, dtype=np.float32) for b in self.feed(np.random.RandomState(batch), batch)]


DEFECTS = [
    Cage(NoMean, "wrong-factor", "N with N ="),
    Cage(MeanTwice, "wrong-factor", "1/N with N ="),
    Cage(Twice, "wrong-factor", "times the slope of the loss: 2"),
    Cage(Half, "wrong-factor", "times the slope of the loss: 1/2"),
    Cage(OffByAThousandth, "wrong-factor", "1.001 times"),
    Cage(MeanOverClassesInForwardOnly, "wrong-factor", "C with C = 10"),
    Cage(PositionsInBackwardOnly, "wrong-factor", "1/the positions", feed=spatial),
    Cage(LossWeightTwice, "wrong-factor", "loss_weight with loss_weight = 5", loss_weight=5.0),
    Cage(Negated, "sign-error", "opposite sign"),
    Cage(Zero, "zero-gradient", "zero everywhere"),
    Cage(OneClassForgotten, "wrong-positions", "axis 1, position 3"),
    Cage(OddClassesNegated, "wrong-positions", "axis 1, position 1, 3, 5, 7, 9"),
    Cage(LastSampleForgotten, "wrong-positions", "axis 0"),
    Cage(MismatchOnEmptyRows, "wrong-positions", "axis 0, position 0", feed=some_unlabelled),
    Cage(LabelSumIgnored, "wrong-gradient", "coordinates probed are wrong", feed=weighted),
    Cage(SoftLabelsCut, "wrong-gradient", "coordinates probed are wrong", feed=soft),
    Cage(LabelValuesIgnored, "wrong-gradient", "coordinates probed are wrong", feed=weighted),
    Cage(LabelValuesIgnored, "wrong-factor", "times the slope of the loss: 2", feed=halves),
    Cage(DividesByLabelCount, "raises-in-forward", "ZeroDivisionError", feed=some_unlabelled),
    Cage(Unrelated, "wrong-gradient", "cosine"),
    Cage(RowConstantLeftOut, "wrong-gradient", "cosine"),
    Cage(ClampedLog, "wrong-gradient", "coordinates probed are wrong"),
    Cage(NegativesTwice, "wrong-gradient", "coordinates probed are wrong"),
    Cage(FocalLoss, "gradient-not-finite", "nan", feed=confident),
    Cage(LogOfSoftmax, "loss-not-finite", "the top holds", feed=far_apart),
    Cage(IgnoresTopDiff, "ignores-loss-weight", "loss_weight", also=("wrong-factor",), loss_weight=3.0),
    Cage(TopDiffSquared, "not-linear-in-top-diff", "top.diff", also=("wrong-factor",), loss_weight=3.0),
    Cage(
        TutorialEuclidean,
        "ignores-loss-weight",
        "loss_weight",
        feed=pairs,
        wrt=(0, 1),
        also=("wrong-factor",),
        loss_weight=2.0,
    ),
    Cage(OverwritesTopDiff, "writes-top-diff", "loss_weight"),
    Cage(WritesScores, "writes-bottom-data", "bottom[0]"),
    Cage(WritesLabels, "writes-bottom-data", "bottom[1]", feed=weighted),
    Cage(BackwardWritesScores, "writes-bottom-data", "backward"),
    Cage(AddsToDiff, "accumulates-diff", "adds to"),
    Cage(LeavesRowsUnwritten, "unwritten-diff", "unwritten", feed=some_unlabelled),
    Cage(LabelDiffUnfilled, "label-diff-unfilled", "bottom[1]", force_backward=True),
    Cage(RunningMean, "state-leaks", "forwards before"),
    Cage(ScoresOfTheFirstForward, "state-leaks", "gradient"),
    Cage(GradientAccumulatesOverForwards, "state-leaks", "gradient"),
    Cage(BatchOfSetup, "wrong-after-reshape", "loss differs"),
    Cage(BufferOfSetup, "wrong-after-reshape", "broadcast"),
    Cage(RaisesInSetup, "raises-in-setup", "no such option"),
    Cage(RaisesInReshape, "raises-in-reshape", "do not match"),
    Cage(RaisesInForward, "raises-in-forward", "TypeError"),
    Cage(RaisesInBackward, "raises-in-backward", "never_set"),
    Cage(TopWithoutShape, "top-not-shaped", "reshape"),
    Cage(ShiftForgotten, "zero-gradient", "blobs[1]", feed=alone),
    Cage(ScaleAveraged, "wrong-factor", "blobs[0]", feed=alone),
    Cage(SecondTopForgotten, "wrong-gradient", "cosine", feed=alone, tops=2, also=("right-for-one-top",)),
    Cage(L1HalfInFloat32, "wrong-factor", "times the slope of the loss: 1/2", feed=pairs, wrt=(0, 1)),
    Cage(LogOfProbabilitiesHalf, "wrong-factor", "times the slope of the loss: 1/2", feed=next_to_zero),
    Cage(WithoutBackward, "no-backward", "nothing below"),
]

WARNED = [
    Cage(IgnoresTopDiff, "ignores-loss-weight", "Harmless while loss_weight is 1."),
    Cage(TutorialEuclidean, "ignores-loss-weight", "Harmless while loss_weight is 1.", feed=pairs, wrt=(0, 1)),
    Cage(TopDiffSquared, "not-linear-in-top-diff", "Harmless while loss_weight is 1."),
    Cage(ScalesItsBufferInBackward, "second-backward-differs", "Harmless in training"),
    Cage(IgnoresPropagateDown, "ignores-propagate-down", "propagate_down[0]"),
    Cage(AlwaysWritesLabelDiff, "ignores-propagate-down", "propagate_down[1]"),
    Cage(LabelDiffUnfilled, "label-diff-unfilled", "Harmless without force_backward."),
    Cage(ParameterDiffReplaced, "overwrites-parameter-diff", "iter_size", feed=alone),
    Cage(HiddenNoise, "random-loss", "checked with one seed"),
    Cage(Dropout, "random-loss", "checked with one seed", feed=alone),
    Cage(SampledRows, "random-loss", "checked with one seed", feed=alone),
]

RIGHT = [
    Cage(SoftmaxLoss),
    Cage(SoftmaxLoss, feed=weighted),
    Cage(SoftmaxLoss, feed=some_unlabelled),
    Cage(SoftmaxLoss, feed=masked),
    Cage(SoftmaxLoss, feed=far_apart),
    Cage(SoftmaxLoss, feed=spatial, loss_weight=0.3),
    Cage(SigmoidLoss),
    Cage(IndexSoftmax, feed=indices),
    Cage(Euclidean, feed=pairs, wrt=(0, 1)),
    Cage(L1, feed=apart, wrt=(0, 1)),
    Cage(ReluAtZero, "kink", "one-sided slopes", feed=equal_in_places, wrt=(0, 1)),
    Cage(Huber, feed=pairs, wrt=(0, 1)),
    Cage(Hinge),
    Cage(ScaleAndShift, feed=alone),
    Cage(SquareAndCube, feed=alone, tops=2),
    Cage(SquareAndCube, feed=alone, tops=2, loss_weight=(1.0, 0.0)),
    Cage(Float32Inside),
    Cage(RefusesFloat64),
    Cage(RightOnlyInFloat64),
    Cage(FarFromZero, mode="caffe"),
    Cage(Constant, "both-zero", "zero"),
    Cage(L1InFloat32, feed=pairs, wrt=(0, 1)),
    Cage(SmoothL1InFloat32, feed=pairs, wrt=(0, 1)),
    Cage(SquaredHingeInFloat32, feed=pairs, wrt=(0, 1)),
    Cage(LogOfProbabilities, feed=next_to_zero),
    Cage(FarTanh, feed=far_off),
    Cage(LossAndAccuracy, tops=2),
    Cage(LossAndAccuracy, tops=2, loss_weight=(3.0, 0.0)),
    Cage(Positives, feed=alone),
    Cage(Difference, feed=pairs),
]

# The layers of this package, each option away from its default.
OURS = [
    Cage(MultilabelSoftmaxLossLayer, feed=feed, param_str=param_str, **arguments)
    for feed, param_str, arguments in [
        (labelled, "", {}),
        (weighted, '{"label_normalization": "l1"}', {}),
        (weighted, '{"label_normalization": "count"}', {}),
        (weighted, '{"label_normalization": "none"}', {"loss_weight": 0.3}),
        (weighted, '{"divergence": "kl", "label_smoothing": 0.1}', {}),
        (labelled, '{"class_weight": [1, 2, 0.5, 3, 1, 1, 0, 4, 1, 0.1]}', {}),
        (spatial, '{"normalization": "FULL"}', {}),
        (spatial, '{"normalization": "BATCH_SIZE", "axis": -3}', {}),
        (spatial, '{"normalization": "NONE"}', {}),
        (some_unlabelled, '{"normalization": "VALID"}', {}),
        (some_unlabelled, '{"empty": "uniform", "normalization": "FULL"}', {}),
        (unknown_in_places, '{"ignore_label": -1, "label_smoothing": 0.2}', {}),
        (lists_of_indices, '{"label_format": "indices", "class_weight": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}', {}),
        (with_sample_weight, '{"label_smoothing": 0.1}', {}),
        (per_pixel_with_weight, "", {"tops": 2, "loss_weight": (2.0, 0.0)}),
        (far_apart, '{"nonfinite": "ignore"}', {}),
    ]
] + [
    Cage(MultilabelSigmoidLossLayer, feed=feed, param_str=param_str)
    for feed, param_str in [
        (labelled, ""),
        (halves, '{"nonfinite": "ignore"}'),
        (labelled, '{"focal_gamma": 2, "focal_alpha": 0.25}'),
        (confident, '{"focal_gamma": 1.5, "normalization": "NONE"}'),
        (labelled, '{"pos_weight": 3, "class_weight": [1, 2, 0.5, 3, 1, 1, 0, 4, 1, 0.1]}'),
        (unknown_in_places, '{"ignore_label": -1, "label_smoothing": 0.1, "normalization": "VALID"}'),
        (lists_of_indices, '{"label_format": "indices"}'),
        (per_pixel_with_weight, '{"normalization": "FULL"}'),
    ]
]
RIGHT += OURS

UNTELLABLE = [
    Cage(HiddenEverywhere, "cannot-tell", "rounding of the loss"),
    Cage(RightOnlyInFloat64, "cannot-tell", "rounding of the loss", mode="caffe"),
    Cage(ReluAtZero, "cannot-tell", "kinks", feed=equal),
    Cage(RootAtZero, "cannot-tell", "no slope that could be measured", feed=zeros_but_one),
    Cage(OwnGenerator, "random-loss", "new nets differ"),
]
