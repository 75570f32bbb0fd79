"""The net of the digits example, from Caffe's NetSpec: a small convolutional net that ends in one of ten losses."""

import json

from caffe import NetSpec
from caffe import layers as L
from caffe import params as P

CLASSES = 10
RANKINGS = ("pairwise", "warp", "lsep", "zlpr")  # they know scores, and no probabilities

# This package's losses: the layer and the options that matter here.
LAYERS = {
    # M digits on a canvas get a target of 1/M each.
    "softmax": ("MultilabelSoftmaxLossLayer", {"label_normalization": "l1"}),
    "sigmoid": ("MultilabelSigmoidLossLayer", {}),
    "focal": ("MultilabelSigmoidLossLayer", {"focal_gamma": 2}),
    "asymmetric": (
        "MultilabelSigmoidLossLayer",
        {"focal_gamma": {"positive": 0, "negative": 4}, "negative_margin": 0.05},
    ),
    **{name: ("MultilabelRankingLossLayer", {"ranking": name}) for name in RANKINGS},
}
LOSSES = (*LAYERS, "caffe-sigmoid", "caffe-single")
SIGMOIDS = ("sigmoid", "focal", "asymmetric", "caffe-sigmoid")  # each class has a probability of its own

# What may make up for rare classes: options of the layer that take the class weights, or labels multiplied by them.
BALANCES = {"softmax": ("class_weight", "labels"), "sigmoid": ("class_weight", "pos_weight")}


def convolution(bottom, num_output, kernel_size, pad=0):
    """A convolution, and in place its ReLU; the slope below 0 keeps channels from dying at this learning rate."""
    filters = L.Convolution(
        bottom, num_output=num_output, kernel_size=kernel_size, pad=pad, weight_filler={"type": "msra"}
    )
    return filters, L.ReLU(filters, in_place=True, negative_slope=0.1)


def add_loss(n, loss, labels, options):
    """Append the loss to the NetSpec `n`, which has `scores` (N, 10); `options` are added to those of our layers."""
    if loss in LAYERS:
        layer, own = LAYERS[loss]
        n.loss = L.Python(
            n.scores,
            labels,
            module="multilabel_softmax_loss",
            layer=layer,
            param_str=json.dumps(dict(own, **options)),
            loss_weight=1,  # without it Caffe never asks a Python layer for a gradient
        )
    elif loss == "caffe-sigmoid":
        n.loss = L.SigmoidCrossEntropyLoss(n.scores, labels)
    elif loss == "caffe-single":
        n.loss = L.SoftmaxWithLoss(n.scores, labels)
    else:
        raise ValueError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}.")


def digits_net(source, batch_size, loss="softmax", probs=False, balance=None, class_weights=()):
    """The net as a NetParameter.

    Parameters
    ----------
    source : str
        Text file that names the HDF5 files, as Caffe's HDF5Data layer reads it; they hold `data` (N, 1, 28, 28) in
        [0, 1], `label` (N, 10) of 0 and 1, `weighted` (N, 10), the same times the class weights, and `single` (N,),
        the index of one class.
    batch_size : int
    loss : str
        One of LOSSES. "caffe-single" (Caffe's SoftmaxWithLoss) reads `single`, the others `label`.
    probs : bool
        Add the blob `probs` (N, 10): the softmax of the scores, or their sigmoid where that is the loss; nothing for
        RANKINGS. For testing.
    balance : str or None
        One of BALANCES[loss]: the option that gets the `class_weights`, or "labels" to read `weighted`.
    """
    n = NetSpec()
    n.data, labels = L.HDF5Data(source=source, batch_size=batch_size, ntop=2)
    # HDF5Data finds a data set by the name of its top.
    setattr(n, "single" if loss == "caffe-single" else "weighted" if balance == "labels" else "label", labels)
    n.conv1, n.relu1 = convolution(n.data, 16, kernel_size=5, pad=2)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.conv2, n.relu2 = convolution(n.pool1, 32, kernel_size=3)
    n.conv3, n.relu3 = convolution(n.relu2, 64, kernel_size=3)
    # Scores of the digits at 10 x 10 places. One may be anywhere, so the best place of each digit is what counts.
    n.maps = L.Convolution(n.relu3, num_output=CLASSES, kernel_size=1, weight_filler={"type": "msra"})
    n.peaks = L.Pooling(n.maps, pool=P.Pooling.MAX, global_pooling=True)
    n.scores = L.Flatten(n.peaks)
    add_loss(n, loss, labels, {balance: list(class_weights)} if balance in ("class_weight", "pos_weight") else {})
    if probs and loss not in RANKINGS:
        n.probs = L.Sigmoid(n.scores) if loss in SIGMOIDS else L.Softmax(n.scores)
    return n.to_proto()
