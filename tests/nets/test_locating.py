"""Paths count from where one starts, wherever a Python layer goes."""

import json

import cv2
import h5py
import numpy as np
from caffe.proto import caffe_pb2
from support.tiny_nets import OURS, body, write_solver

from multilabel_softmax_loss.nets.locating import located

WANDERER = """import os

import caffe

os.chdir("/")


class Wanderer(caffe.Layer):
    def setup(self, bottom, top):
        os.chdir("/")

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        os.chdir("/")
        top[0].data[...] = bottom[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
"""
LAYER = """layer { name: "%s" type: "Python" bottom: "%s" top: "%s" %s
  python_param { module: "wanderer" layer: "Wanderer" } }
"""


def test_a_layer_that_changes_the_folder_does_not_matter(tmp_path, run_here):
    """Its data, files of a list and outputs have relative names; iter_size has a file opened within a step."""
    draw = np.random.RandomState(0)
    for name in "abc":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = draw.rand(6, 5), draw.rand(6, 6) < 0.5
            file["first"] = np.ones((6, 1))
            del file["label"]
            file["label"] = (draw.rand(6, 6) < 0.5).astype(np.float32)
    (tmp_path / "list.txt").write_text("a.h5\nb.h5\nc.h5\n")
    (tmp_path / "wanderer.py").write_text(WANDERER)
    first = """layer { name: "first" type: "HDF5Data" top: "first"
  hdf5_data_param { source: "list.txt" batch_size: 4 } }
"""
    data = """layer { name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "list.txt" batch_size: 4 } }
"""
    silence = 'layer { name: "silence" type: "Silence" bottom: "walked" }\n'
    net = first + LAYER % ("walk", "first", "walked", "") + silence + data + body() + OURS % ""
    (tmp_path / "net.prototxt").write_text(net)
    write_solver(tmp_path, "net.prototxt", "iter_size: 3", max_iter=4, snapshot=2)
    run_here("train", "solver.prototxt", "--out", "run", folder=tmp_path, check=0)
    assert (tmp_path / "run" / "best.caffemodel").exists()
    run_here(
        "evaluate", "net.prototxt", "run/best.caffemodel", "--json", "o.json", folder=tmp_path, check=0
    )  # fmt: skip
    assert json.loads((tmp_path / "o.json").read_text())["samples"] == 18
    run_here("deploy", "net.prototxt", "--weights", "run/best.caffemodel", folder=tmp_path, check=0)
    assert (tmp_path / "deploy.prototxt").exists()


def test_all_that_a_net_reads_gets_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file["data"] = np.zeros((2, 2))
    (tmp_path / "list.txt").write_text("a.h5\n")
    (tmp_path / "out").mkdir()
    cv2.imwrite("a.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "images.txt").write_text("a.png 0\n")
    net = caffe_pb2.NetParameter()
    net.layer.add(name="d", type="Data").data_param.source = "db"
    net.layer.add(name="h", type="HDF5Data").hdf5_data_param.source = "list.txt"
    net.layer.add(name="i", type="ImageData").image_data_param.source = "images.txt"
    net.layer[2].transform_param.mean_file = "mean"
    found = located(net, str(tmp_path / "out")).layer
    assert found[0].data_param.source == f"{tmp_path}/db"
    with open(found[1].hdf5_data_param.source) as written:
        assert written.read() == f"{tmp_path}/a.h5"
    assert found[2].image_data_param.source == f"{tmp_path}/images.txt"
    assert found[2].image_data_param.root_folder == f"{tmp_path}/"
    assert found[2].transform_param.mean_file == f"{tmp_path}/mean"
    assert net.layer[0].data_param.source == "db"
