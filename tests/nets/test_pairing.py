"""Sources whose samples meet are in one order, or refused with the reason."""

import re

import cv2
import numpy as np
import plyvel
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from support.tiny_nets import write_hdf5

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.data_layers import check_data
from multilabel_softmax_loss.nets.pairing import bare_names, groups

LOSS = 'layer { name: "loss" type: "EuclideanLoss" bottom: "data" bottom: "label" top: "loss" }\n'
COUNT = 12


def parse(text):
    return text_format.Parse(text, caffe_pb2.NetParameter()).layer


def check(text, meeting=()):
    check_data(parse(text), "net.prototxt", meeting)


def datum(k):
    return caffe_pb2.Datum(channels=1, height=1, width=1, float_data=[k]).SerializeToString()


def lmdb_layer(path, keys, top, more=""):
    import lmdb

    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as writer:
        for k, key in enumerate(keys):
            writer.put(key.encode(), datum(k))
    return data_layer(path, top, "LMDB", more)


def leveldb_layer(path, keys, top):
    database = plyvel.DB(str(path), create_if_missing=True)
    for k, key in enumerate(keys):
        database.put(key.encode(), datum(k))
    database.close()
    return data_layer(path, top, "LEVELDB")


def data_layer(path, top, backend, more=""):
    return (
        f'layer {{ name: "{top}" type: "Data" top: "{top}" '
        f'data_param {{ source: "{path}" backend: {backend} batch_size: 4 {more} }} }}\n'
    )


def hdf5_layer(path, count, top, more="batch_size: 4"):
    source = write_hdf5(path, **{top: np.zeros((count, 1), np.float32)})
    return (
        f'layer {{ name: "{top}" type: "HDF5Data" top: "{top}" '
        f'hdf5_data_param {{ source: "{source}" {more} }} }}\n'
    )  # fmt: skip


def list_layer(path, names, top, more="batch_size: 4"):
    folder = path.parent
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((2, 2), np.uint8))
    path.write_text("".join(f"{name} 0\n" for name in names))
    return (
        f'layer {{ name: "{top}" type: "ImageData" top: "{top}" top: "none_{top}" '
        f'image_data_param {{ source: "{path}" root_folder: "{folder}/" {more} }} }}\n'
    )


WIDE = [f"{k:08d}" for k in range(COUNT)]
NARROW = [str(k) for k in range(COUNT)]
NAMED = [f"{k:08d}_img/{chr(97 + k)}.jpg" for k in range(COUNT)]


@pytest.mark.parametrize("make", [lmdb_layer, leveldb_layer])
@pytest.mark.parametrize(
    "images, labels",
    [
        pytest.param(WIDE, WIDE, id="the same keys"),
        pytest.param(NAMED, WIDE, id="number and name beside number"),
        pytest.param(NAMED, [f"{k:08d}_seg/{chr(97 + k)}.png" for k in range(COUNT)], id="other folders and suffixes"),
        pytest.param([f"img_{k:03d}" for k in range(COUNT)], [f"{k:03d}" for k in range(COUNT)], id="name of a number"),
        pytest.param(["b.jpg", "a.jpg", "c.jpg"], ["c", "b", "a"], id="both sorted by name"),
        pytest.param(NARROW, NARROW, id="sorted as text, but both"),
    ],
)
def test_databases_of_one_order_belong_together(tmp_path, make, images, labels):
    check(make(tmp_path / "i", images, "data") + make(tmp_path / "l", labels, "label") + LOSS)


@pytest.mark.parametrize("make", [lmdb_layer, leveldb_layer])
@pytest.mark.parametrize(
    "images, labels, message",
    [
        pytest.param(WIDE, NARROW, "sample 2 is '2' in the source of 'data' and '10' in that of", id="sorted as text"),
        pytest.param(NAMED, NARROW, "sample 2 is '2' in the source of 'data' and '10'", id="convert_imageset"),
        pytest.param(WIDE, [f"{k + 1:08d}" for k in range(COUNT)], "sample 0 is '0' in the source of 'data' and '1'",
                     id="shifted by one"),
        pytest.param(NAMED, [f"{k:08d}_{chr(97 + k + (k > 5))}.jpg" for k in range(COUNT)], "sample 6 is 'g'",
                     id="one image was left out"),
        pytest.param(NAMED, [f"{k:08d}_{chr(96 + COUNT - k)}.jpg" for k in range(COUNT)], "sample 0 is 'a'",
                     id="lists in another order"),
        pytest.param([f"{key}.jpg" for key in "bdac"], WIDE[:4], "nothing in the keys or names of", id="name, number"),
        pytest.param(["cat", "dog"], ["fish", "bird"], "nothing in the keys or names of", id="names of other things"),
        pytest.param(WIDE, WIDE[:-1], "from sources of different lengths: {'data': 12, 'label': 11}", id="lengths"),
    ],
)  # fmt: skip
def test_databases_of_different_order_are_refused(tmp_path, make, images, labels, message):
    net = make(tmp_path / "i", images, "data") + make(tmp_path / "l", labels, "label") + LOSS
    with pytest.raises(UsageError, match=re.escape(message)):
        check(net)


def images_beside_hdf5(folder, **changes):
    settings = {"count": COUNT, "names": [f"{k}.png" for k in range(COUNT)], "list": "batch_size: 4", "hdf5": ""}
    settings.update(changes)
    return list_layer(folder / "list.txt", settings["names"], "data", settings["list"]) + hdf5_layer(
        folder / "y", settings["count"], "label", settings["hdf5"] or "batch_size: 4"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"count": COUNT + 1}, "from sources of different lengths: {'data': 12, 'label': 13}", id="length"),
        pytest.param({"list": "batch_size: 4 shuffle: true"}, "'data' has shuffle: true", id="images shuffled"),
        pytest.param({"hdf5": "batch_size: 4 shuffle: true"}, "'label' has shuffle: true", id="labels shuffled"),
        pytest.param({"list": "batch_size: 4 rand_skip: 3"}, "'data' has rand_skip: 3", id="skipped"),
        pytest.param({"hdf5": "batch_size: 6"}, "in batches of different sizes: {'data': 4, 'label': 6}", id="batches"),
    ],
)
def test_images_beside_labels_of_hdf5(tmp_path, changes, message):
    check(images_beside_hdf5(tmp_path) + LOSS)
    with pytest.raises(UsageError, match=re.escape(message)):
        check(images_beside_hdf5(tmp_path, **changes) + LOSS)


def test_a_database_beside_hdf5_has_to_count_up(tmp_path, capsys):
    labels = hdf5_layer(tmp_path / "y", COUNT, "label") + LOSS
    check(lmdb_layer(tmp_path / "wide", NAMED, "data") + labels)
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="sorts its keys as text, where 2 comes after 11; 'label' has an order of its"):
        check(lmdb_layer(tmp_path / "narrow", NARROW, "data") + labels)
    check(lmdb_layer(tmp_path / "named", [chr(97 + k) for k in range(COUNT)], "data") + labels)
    assert "the database of 'data' is sorted by names; nothing shows" in capsys.readouterr().err


def test_a_list_beside_a_database(tmp_path):
    names = [f"{name}.png" for name in "dacb"]
    images = list_layer(tmp_path / "list.txt", names, "data") + LOSS
    check(lmdb_layer(tmp_path / "counted", WIDE[:4], "label") + images)  # by running numbers, as the list has it
    with pytest.raises(UsageError, match="sample 0 is 'a' in the source of 'label' and 'd' in that of 'data'"):
        check(lmdb_layer(tmp_path / "named", list("abcd"), "label") + images)


def test_two_lists(tmp_path):
    names = [f"img/{name}.png" for name in "dacb"]
    other = [f"seg/{name}_x.png" for name in "dacb"]
    images = list_layer(tmp_path / "a.txt", names, "data")
    check(images + list_layer(tmp_path / "b.txt", other, "label") + LOSS)
    with pytest.raises(UsageError, match="sample 0 is 'd' in the source of 'data' and 'b' in .* Write both lists in"):
        check(images + list_layer(tmp_path / "b.txt", other[::-1], "label") + LOSS)


def test_what_need_not_be_in_one_order(tmp_path):
    one, other = hdf5_layer(tmp_path / "a", 8, "data"), hdf5_layer(tmp_path / "b", 9, "label")
    apart = one + other + 'layer { name: "s" type: "Silence" bottom: "data" bottom: "label" }\n'
    check(apart)
    with pytest.raises(UsageError, match="different lengths"):
        check(apart, [("data", "label")])  # as the command line names scores and labels
    check(one + hdf5_layer(tmp_path / "c", 1, "label", "batch_size: 1") + LOSS)  # a constant


PYTHON = 'layer {{ name: "own" type: "Python" bottom: "{}" bottom: "{}" top: "own" python_param {{ layer: "{}" }} }}\n'


def fc(name, bottom):
    return f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" }}\n'


def reader(name, *tops):
    named = " ".join(f'top: "{top}"' for top in tops)
    return f'layer {{ name: "{name}" type: "HDF5Data" {named} }}\n'


TWO_SETS = reader("a", "xa", "ya") + reader("b", "xb", "yb")
JOINED = 'layer { name: "%s" type: "Concat" bottom: "%s" bottom: "%s" top: "%s" concat_param { axis: 0 } }\n'


@pytest.mark.parametrize(
    "net, together",
    [
        pytest.param(TWO_SETS + LOSS.replace("data", "xa").replace("label", "ya"), [["a"], ["b"]], id="apart"),
        pytest.param(
            TWO_SETS + JOINED % ("x", "xa", "xb", "x") + JOINED % ("y", "ya", "yb", "y") + fc("s", "x")
            + LOSS.replace("data", "s").replace("label", "y"), [["a"], ["b"]], id="one after another",
        ),
        pytest.param(
            TWO_SETS + JOINED % ("x", "xa", "xb", "x") + JOINED % ("y", "yb", "ya", "y")
            + LOSS.replace("data", "x").replace("label", "y"), [["a", "b"]], id="one after another, but crosswise",
        ),
        pytest.param(
            TWO_SETS + fc("fa", "xa") + fc("fb", "xb") + PYTHON.format("fa", "fb", "MMD"), [["a"], ["b"]],
            id="two sets compared as a whole",
        ),
        pytest.param(
            reader("a", "xa") + reader("b", "yb") + fc("fa", "xa") + PYTHON.format("fa", "yb", "FocalLoss"),
            [["a", "b"]], id="labels of a loss that is not known here",
        ),
        pytest.param(
            reader("a", "xa") + reader("b", "yb") + fc("fa", "xa") + fc("fb", "yb")
            + PYTHON.format("fa", "fb", "MultilabelSoftmaxLossLayer"), [["a", "b"]], id="our own loss",
        ),
        pytest.param(
            reader("a", "x", "y") + reader("h", "h")
            + 'layer { type: "InfogainLoss" bottom: "x" bottom: "y" bottom: "h" top: "l" }', [["a"], ["h"]],
            id="the matrix of InfogainLoss",
        ),
        pytest.param(
            reader("a", "x") + reader("b", "y") + 'layer { type: "Slice" bottom: "x" top: "x1" top: "x2" slice_param '
            '{ axis: 0 } }' + 'layer { type: "ContrastiveLoss" bottom: "x1" bottom: "x2" bottom: "y" top: "l" }',
            [["a", "b"]], id="pairs out of one batch",
        ),
    ],
)  # fmt: skip
def test_whose_samples_meet(net, together):
    assert [[layer.name for layer in group] for group in groups(parse(net))] == together


def test_cores_are_what_tells_names_apart():
    assert bare_names(["img/007_rgb.jpg", "img/010_rgb.jpg"]) == bare_names(["s/7.png", "s/10.png"]) == ["7", "10"]
    assert bare_names(["one"]) == [""]
