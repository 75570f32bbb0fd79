"""Softmax cross-entropy for images with several labels each, as a Caffe Python layer and as a function."""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "GradientReport": "gradient_check",
    "assert_gradient": "gradient_check",
    "check_function": "gradient_check",
    "check_layer": "gradient_check_layer",
    "check_net": "gradient_check_net",
}

__all__ = list(_MODULES)


def __getattr__(name):
    """Public names, each imported from its module when first used: some of them need Caffe."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
