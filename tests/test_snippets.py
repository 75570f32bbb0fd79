"""What loss_layer writes is what Caffe reads."""

from pathlib import Path

import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from multilabel_softmax_loss.options import SoftmaxOptions
from multilabel_softmax_loss.prototxt import loss_layer


def read_layer(text):
    net = caffe_pb2.NetParameter()
    text_format.Merge(text, net)
    (layer,) = net.layer
    return layer


@pytest.mark.parametrize("write_defaults", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_normalization": "count", "normalization": "BATCH_SIZE", "axis": -1, "empty": "error"},
        {"ignore_label": 0.1, "label_smoothing": 1e-7, "divergence": "kl", "nonfinite": "ignore"},
        {"label_format": "indices", "ignore_label": 255, "class_weight": [0, 1, 0.1, 1e-8, 1e30]},
        {"class_weight": 'it\'s a \\new "file".txt'},
        {"class_weight": np.array([0.1, 3], np.float32)},
    ],
    ids=str,
)
def test_caffe_reads_back_the_options(options, write_defaults, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('it\'s a \\new "file".txt').write_text("1 2 3")
    layer = read_layer(loss_layer(write_defaults=write_defaults, **options))
    read, given = SoftmaxOptions.parse(layer.python_param.param_str), SoftmaxOptions(**options)
    for name in SoftmaxOptions.names():
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))


def test_caffe_reads_back_names_blobs_and_loss_weights():
    blobs = ["a/b", 'quo"ted', "back\\slash"]
    layer = read_layer(loss_layer(name="it's\nhere", bottoms=blobs, tops=blobs[:2], loss_weight=0.25))
    assert (layer.type, layer.name) == ("Python", "it's\nhere")
    assert (list(layer.bottom), list(layer.top), list(layer.loss_weight)) == (blobs, blobs[:2], [0.25, 0])
    assert (layer.python_param.module, layer.python_param.layer) == (
        "multilabel_softmax_loss",
        "MultilabelSoftmaxLossLayer",
    )
