"""Datums and BlobProtos made without protobuf are those that Caffe's own classes make."""

import numpy as np
import pytest
from caffe.proto import caffe_pb2

from multilabel_softmax_loss.data.datum import image_datum, label_datum, mean_blob, parse_datum

PIXELS = bytes(range(256)) * 75


@pytest.mark.parametrize("encoded", [False, True])
def test_images(encoded):
    found = image_datum(PIXELS, (3, 320, 20), encoded)
    expected = caffe_pb2.Datum(channels=3, height=320, width=20, data=PIXELS)
    if encoded:
        expected.encoded = True
    assert found == expected.SerializeToString()
    parsed = parse_datum(found)
    assert (parsed["data"], parsed["shape"], parsed["encoded"]) == (PIXELS, (3, 320, 20), encoded)


@pytest.mark.parametrize("classes", [1, 53, 1000])  # 53 is also the tag of a float
def test_labels(classes):
    values = np.linspace(-1, 1, classes).astype(np.float32)
    expected = caffe_pb2.Datum(channels=classes, height=1, width=1, float_data=values.tolist())
    assert label_datum(values) == expected.SerializeToString()
    assert np.array_equal(parse_datum(label_datum(values))["floats"], values)


def test_means():
    mean = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    blob = caffe_pb2.BlobProto.FromString(mean_blob(mean))
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 2, 3, 4)
    assert np.array_equal(blob.data, mean.ravel())
