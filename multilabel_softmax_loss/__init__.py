"""Softmax and sigmoid cross-entropy for images with several labels each, as Caffe Python layers and as functions."""

from typing import Any, List

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

# Loaded on demand, so that importing the package never needs Caffe, and takes a command no time.
ON_DEMAND = {
    "GradientReport": "gradient_check.report",
    "MultilabelSigmoidLossLayer": "layers",
    "MultilabelSoftmaxLossLayer": "layers",
    "SigmoidOptions": "losses.options",
    "SoftmaxOptions": "losses.options",
    "assert_gradient": "gradient_check.report",
    "check_function": "gradient_check.function",
    "check_layer": "gradient_check.layer",
    "check_net": "gradient_check.net",
    "sigmoid_cross_entropy": "losses.sigmoid",
    "softmax_cross_entropy": "losses.softmax",
}


def __getattr__(name: str) -> Any:
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{ON_DEMAND[name]}"), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
