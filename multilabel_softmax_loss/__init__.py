"""Softmax and sigmoid cross-entropy for images with several labels each, as Caffe Python layers and as functions."""

from typing import Any

from .options import SigmoidOptions, SoftmaxOptions
from .sigmoid import sigmoid_cross_entropy
from .softmax import softmax_cross_entropy

__version__ = "0.1.0"
__all__ = [
    "GradientReport",
    "MultilabelSigmoidLossLayer",
    "MultilabelSoftmaxLossLayer",
    "SigmoidOptions",
    "SoftmaxOptions",
    "assert_gradient",
    "check_function",
    "check_layer",
    "check_net",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
]

# Loaded on demand, so that importing the package never needs Caffe.
ON_DEMAND = {
    "GradientReport": "gradient_check",
    "MultilabelSigmoidLossLayer": "layers",
    "MultilabelSoftmaxLossLayer": "layers",
    "assert_gradient": "gradient_check",
    "check_function": "gradient_check",
    "check_layer": "gradient_check_layer",
    "check_net": "gradient_check_net",
}


def __getattr__(name: str) -> Any:
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{ON_DEMAND[name]}"), name)
