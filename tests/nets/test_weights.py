"""Weights: files that are damaged, layers of one name, and another number of classes."""

import re

import caffe
import h5py
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from support.tiny_nets import inner_product

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.weights import copy_matching, read_weights

NET = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 5 } } }
"""


def stored(**fields):
    blob = caffe_pb2.BlobProto(**fields)
    layer = caffe_pb2.LayerParameter(name="scores", type="InnerProduct", blobs=[blob])
    return caffe_pb2.NetParameter(layer=[layer]).SerializeToString()


WHOLE = stored(shape={"dim": [2, 3]}, data=range(6))


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(b"", "w.caffemodel holds no weights of any layer", id="empty"),
        pytest.param(WHOLE[:-1], "w.caffemodel is torn, or no weights file", id="cut short"),
        pytest.param(bytes(len(WHOLE)), "w.caffemodel is torn, or no weights file", id="zeros"),
        pytest.param(
            stored(shape={"dim": [2, 3]}, data=range(5)),
            "w.caffemodel is damaged: it has 5 weights of shape (2, 3) for layer 'scores'; expected 6",
            id="too few",
        ),
        pytest.param(stored(shape={"dim": [2, 3]}, data=range(7)), "has 7 weights of shape (2, 3)", id="too many"),
        pytest.param(stored(num=1, channels=1, height=2, width=3), "has 0 weights of shape (1, 1, 2, 3)", id="none"),
        pytest.param(stored(shape={"dim": [2**40, 2**40]}, data=[1]), "has 1 weights of shape", id="a huge shape"),
    ],
)
def test_a_damaged_caffemodel_is_refused_and_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.caffemodel").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_weights("w.caffemodel")


@pytest.mark.parametrize("kind", ["group for a blob", "data set for a layer", "names", "link"])
def test_a_damaged_hdf5_caffemodel_is_refused_and_named(tmp_path, kind):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        if kind == "group for a blob":
            file.create_group("data/scores/0")
        elif kind == "data set for a layer":
            file["data/scores"] = np.zeros(3)
        elif kind == "names":
            file["data/scores/weights"] = np.zeros(3)
        else:
            file["data/scores/0"] = h5py.SoftLink("/nothing")
    with pytest.raises(UsageError, match="w.h5 is torn, or no weights file"):
        read_weights(str(tmp_path / "w.h5"))


@pytest.mark.parametrize("old", [caffe_pb2.V1LayerParameter, caffe_pb2.V0LayerParameter])
def test_weights_of_the_old_formats_are_read(tmp_path, old):
    layer = old(name="scores", blobs=[caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=range(6))])
    if old is caffe_pb2.V0LayerParameter:
        layer = caffe_pb2.V1LayerParameter(layer=layer)
    (tmp_path / "w.caffemodel").write_bytes(caffe_pb2.NetParameter(layers=[layer]).SerializeToString())
    assert read_weights(str(tmp_path / "w.caffemodel")) == {"scores": [(1, 1, 2, 3)]}


def test_a_file_of_weights_that_is_not_there_is_told_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.caffemodel").write_bytes(WHOLE)
    with pytest.raises(UsageError, match=re.escape("Did you mean 'best.caffemodel'? Paths count from the folder")):
        read_weights("bset.caffemodel")


def test_another_number_of_classes_names_the_remedy(tmp_path):
    (tmp_path / "net.prototxt").write_text(NET + inner_product("scores", "data", 4))
    (tmp_path / "other.prototxt").write_text(NET + inner_product("scores", "data", 6))
    net, other = (caffe.Net(str(tmp_path / name), caffe.TEST) for name in ("net.prototxt", "other.prototxt"))
    other.save(str(tmp_path / "other.caffemodel"))
    with pytest.raises(UsageError, match=r"for layer 'scores'; .* give it another name in the net\."):
        copy_matching(net, str(tmp_path / "other.caffemodel"), "net.prototxt")
