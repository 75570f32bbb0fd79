"""Softmax, sigmoid and ranking losses for images with several labels each, as Caffe Python layers and as functions."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from .gradient_check.function import check_function
    from .gradient_check.layer import check_layer
    from .gradient_check.net import check_net
    from .gradient_check.report import GradientReport, assert_gradient
    from .layers import (
        MultilabelImageDataLayer,
        MultilabelRankingLossLayer,
        MultilabelSigmoidLossLayer,
        MultilabelSoftmaxLossLayer,
    )
    from .losses.options import RankingOptions, SigmoidOptions, SoftmaxOptions
    from .losses.ranking import ranking_loss
    from .losses.sigmoid import sigmoid_cross_entropy
    from .losses.softmax import softmax_cross_entropy

__version__ = "0.1.0"
__all__ = [
    "GradientReport",
    "RankingOptions",
    "SigmoidOptions",
    "SoftmaxOptions",
    "assert_gradient",
    "check_function",
    "check_layer",
    "check_net",
    "ranking_loss",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
]
LAYERS = (
    "MultilabelImageDataLayer",
    "MultilabelRankingLossLayer",
    "MultilabelSigmoidLossLayer",
    "MultilabelSoftmaxLossLayer",
)
if TYPE_CHECKING or find_spec("caffe"):  # so that `import *`, help() and the like work without it
    __all__ += [
        "MultilabelImageDataLayer",
        "MultilabelRankingLossLayer",
        "MultilabelSigmoidLossLayer",
        "MultilabelSoftmaxLossLayer",
    ]

# Loaded on demand, so that importing the package never needs Caffe, and takes a command no time.
ON_DEMAND = {
    "GradientReport": "gradient_check.report",
    "MultilabelImageDataLayer": "layers",
    "MultilabelRankingLossLayer": "layers",
    "MultilabelSigmoidLossLayer": "layers",
    "MultilabelSoftmaxLossLayer": "layers",
    "RankingOptions": "losses.options",
    "SigmoidOptions": "losses.options",
    "SoftmaxOptions": "losses.options",
    "assert_gradient": "gradient_check.report",
    "check_function": "gradient_check.function",
    "check_layer": "gradient_check.layer",
    "check_net": "gradient_check.net",
    "ranking_loss": "losses.ranking",
    "sigmoid_cross_entropy": "losses.sigmoid",
    "softmax_cross_entropy": "losses.softmax",
}


def __getattr__(name: str) -> Any:
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in LAYERS and not find_spec("caffe"):
        raise ImportError(
            f"{name} needs Caffe, which this Python does not have: its wheel, in the extra [caffe] of this package, is "
            "for CPython 3.7 to 3.9 on x86_64; the losses as functions, such as softmax_cross_entropy, work without it."
        )
    from importlib import import_module

    try:
        value = globals()[name] = getattr(import_module(f"{__name__}.{ON_DEMAND[name]}"), name)
    except AttributeError as error:  # which would say that there is no such name
        raise ImportError(f"{name} cannot be loaded: {error}.") from error
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
