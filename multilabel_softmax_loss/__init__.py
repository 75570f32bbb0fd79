"""Softmax cross-entropy for images with several labels each, as a Caffe Python layer and as a function."""

__version__ = "0.1.0"
