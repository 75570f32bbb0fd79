"""The files that a net reads, found from any folder: a Python layer may change the working directory."""

from __future__ import annotations

import os
from typing import Any

from .hdf5_lists import hdf5_files
from .pairing import READERS, parameter_of
from .text_lists import listed_images


def located(net: Any, folder: str) -> Any:
    """A copy of a NetParameter whose paths are absolute, for Caffe to make a net of.

    Lists of HDF5 files with relative names are written anew in `folder`; Caffe needs them while the net is made.
    """
    copy = type(net).FromString(net.SerializeToString())
    for place, layer in enumerate(copy.layer):
        if layer.transform_param.mean_file:
            layer.transform_param.mean_file = os.path.abspath(layer.transform_param.mean_file)
        if layer.type == "HDF5Data":
            locate_hdf5(layer, os.path.join(folder, f"list_{place}_{os.getpid()}.txt"))
        elif layer.type == "ImageData":
            locate_images(layer)
        if layer.type in READERS:
            parameter_of(layer).source = os.path.abspath(parameter_of(layer).source)
    return copy


def locate_hdf5(layer: Any, path: str) -> None:
    files = hdf5_files(layer)
    absolute = [os.path.abspath(file) for file in files]
    if absolute != files and not any(len(file.split()) > 1 for file in absolute):  # Caffe splits at blanks
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as written:
            written.write("\n".join(absolute))
        layer.hdf5_data_param.source = path


def locate_images(layer: Any) -> None:
    """Make root_folder absolute, where that is what Caffe puts before each name."""
    parameter = layer.image_data_param
    relative = not os.path.isabs(parameter.root_folder)
    if relative and not any(os.path.isabs(image.name) for image in listed_images(layer)):
        parameter.root_folder = f"{os.getcwd()}/{parameter.root_folder}"
