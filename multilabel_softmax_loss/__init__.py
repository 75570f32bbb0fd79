"""Softmax cross-entropy for images with several labels each, as a Caffe Python layer and as a function."""

from typing import Any

from .options import SoftmaxOptions
from .softmax import softmax_cross_entropy

__version__ = "0.1.0"
__all__ = ["MultilabelSoftmaxLossLayer", "SoftmaxOptions", "softmax_cross_entropy"]

# Loaded on demand, so that importing the package never needs Caffe.
ON_DEMAND = {"MultilabelSoftmaxLossLayer": "layers"}


def __getattr__(name: str) -> Any:
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{ON_DEMAND[name]}"), name)
