"""Softmax and sigmoid cross-entropy for images with several labels each, as Caffe Python layers and as functions."""

from typing import Any

from .options import SigmoidOptions, SoftmaxOptions
from .sigmoid import sigmoid_cross_entropy
from .softmax import softmax_cross_entropy

__version__ = "0.1.0"
__all__ = [
    "MultilabelSigmoidLossLayer",
    "MultilabelSoftmaxLossLayer",
    "SigmoidOptions",
    "SoftmaxOptions",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
]

# Loaded on demand, so that importing the package never needs Caffe.
ON_DEMAND = {"MultilabelSigmoidLossLayer": "layers", "MultilabelSoftmaxLossLayer": "layers"}


def __getattr__(name: str) -> Any:
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{ON_DEMAND[name]}"), name)
