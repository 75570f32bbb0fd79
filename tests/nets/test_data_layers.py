"""What data layers read is looked through before Caffe reads it: what would kill it, or be read wrongly, is told."""

import re
from pathlib import Path

import caffe
import cv2
import h5py
import lmdb
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from support.tiny_nets import make_run, read_net

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.class_labels import watch_labels
from multilabel_softmax_loss.nets.data_layers import batch_size, check_data, count_samples
from multilabel_softmax_loss.nets.databases import watch_datums
from multilabel_softmax_loss.nets.heads import Head, find_heads
from multilabel_softmax_loss.nets.means import read_mean


def parse(kind, parameter, fields, tops=("data",)):
    named = " ".join(f'top: "{top}"' for top in tops)
    text = f'layer {{ name: "data" type: "{kind}" {named} {parameter} {{ batch_size: 2 {fields} }} }}'
    return text_format.Parse(text, caffe_pb2.NetParameter()).layer


def refused(layers, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_data(layers, "net.prototxt")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# HDF5


def hdf5(text="a.h5\n", tops=("data",), **files):
    """An HDF5Data layer of a list `text`, and files with a data set "data" each; a function writes a file's content."""
    for name, content in files.items():
        with h5py.File(f"{name}.h5", "w") as file:
            if callable(content):
                content(file)
            else:
                file["data"] = content
    with open("list.txt", "wb") as written:
        written.write(text.encode())
    return parse("HDF5Data", "hdf5_data_param", 'source: "list.txt"', tops)


def test_the_samples_of_all_files_of_a_list_are_counted(here):
    layers = hdf5("a.h5 b.h5\na.h5\n", a=np.zeros((3, 2)), b=np.zeros((4, 2)))
    assert count_samples(layers[0]) == 10
    assert batch_size(layers[0]) == 2


@pytest.mark.parametrize(
    "text, files, message",
    [
        pytest.param("a.h5\nb.h5\n", {"a": np.zeros((3, 2)), "b": np.zeros((3, 4))},
                     "b.h5 has samples of shape (4,) in data set 'data', and a.h5 of (2,)", id="another width"),
        pytest.param("a.h5\nb.h5\n", {"a": np.zeros((3, 2)), "b": np.zeros((3, 2, 1))},
                     "b.h5 has samples of shape (2, 1)", id="another number of axes"),
        pytest.param("a.h5\nb.h5\n", {"a": np.zeros((3, 2)), "b": np.zeros((0, 2))},
                     "b.h5, named in list.txt, is empty: it holds no sample", id="an empty file"),
        pytest.param("a.h5\nc.h5\n", {"a": np.zeros((3, 2))},
                     "c.h5 (named in list.txt) cannot be read: No such file or directory. Paths", id="missing"),
        pytest.param("my data/a.h5\n", {}, "Caffe splits such a list at each blank", id="blank"),
        pytest.param("\ufeffa.h5\n", {}, "list.txt (source of layer 'data') begins with a byte order mark", id="mark"),
        pytest.param("a.h5\0\n", {}, "is no text file: it has NUL bytes in it", id="NUL"),
        pytest.param("\n \n", {}, "list.txt (source of layer 'data') is empty", id="no line"),
        pytest.param("list.txt\n", {}, "list.txt, named in list.txt, is no readable HDF5 file", id="no HDF5"),
    ],
)  # fmt: skip
def test_a_list_of_hdf5_files_that_caffe_would_misread_is_refused(here, text, files, message):
    refused(hdf5(text, **files), message)


def soft(file):
    file["data"] = h5py.SoftLink("/not/there")


def external(file):
    file["data"] = h5py.ExternalLink("other.h5", "data")


def external_to_nothing(file):
    with h5py.File("other.h5", "w") as other:
        other["label"] = np.zeros(3)
    external(file)


def hollow(file):
    file.create_dataset("data", (600_000, 3200), "f4", chunks=(1000, 3200))


def hollow_in_one_piece(file):
    file.create_dataset("data", (600_000, 3200), "f4")


def too_many(file):
    file.create_dataset("data", (2**16, 2**15), "f4", chunks=True)


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(soft, "a.h5 (layer 'data'): 'data', a link to '/not/there', leads to nothing", id="soft link"),
        pytest.param(external, "a link to 'data' in 'other.h5', leads to nothing", id="external link"),
        pytest.param(
            external_to_nothing, "a link to 'data' in 'other.h5', leads to nothing", id="external link inside"
        ),
        pytest.param(
            hollow, "claims 7.68 GB in data set 'data' of shape (600000, 3200) and stores 0 bytes", id="hollow"
        ),
        pytest.param(hollow_in_one_piece, "claims 7.68 GB in data set 'data'", id="hollow, in one piece"),
        pytest.param(
            too_many, "has 2,147,483,648 numbers in data set 'data'; Caffe reads 2,147,483,647", id="too many"
        ),
        pytest.param(lambda file: file.create_group("data"), "has a group of the name 'data'", id="group"),
        pytest.param(lambda file: file.create_dataset("data", data=1.0), "has a single number", id="number"),
        pytest.param(lambda file: file.create_dataset("data", data=[True]), "has bool in data set", id="bool"),
        pytest.param(lambda file: file.create_dataset("date", data=[1.0]), "did you mean 'date'?", id="name"),
    ],
)
def test_a_data_set_that_caffe_cannot_read_is_refused(here, content, message):
    refused(hdf5(a=content), message)


def test_a_data_set_may_be_reached_by_a_link_and_be_compressed(here):
    def content(file):
        file["images"] = np.zeros((3, 2), np.float16)
        file["data"] = h5py.SoftLink("/images")
        file.create_dataset("label", data=np.ones((3, 4)), compression="gzip")

    check_data(hdf5(a=content, tops=("data", "label")), "net.prototxt")


def test_what_takes_much_more_memory_than_it_stores_is_said(here, capsys, monkeypatch):
    monkeypatch.setattr("multilabel_softmax_loss.nets.hdf5_lists.HOLLOW", 1000)

    def content(file):
        file.create_dataset("data", data=np.tile(np.arange(100.0), (100, 1)), compression="gzip")

    check_data(hdf5(a=content), "net.prototxt")
    assert re.search(r"data set 'data' is stored in .* and takes 40 kB of memory", capsys.readouterr().err)


def test_a_file_that_needs_more_memory_than_there_is_is_refused(here, monkeypatch):
    monkeypatch.setattr("multilabel_softmax_loss.nets.hdf5_lists.HOLLOW", 1000)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    refused(hdf5(a=np.ones((100, 100))), "needs 40 kB for data set 'data', as Caffe reads a file as a whole")


# LMDB and LevelDB


def datum(**fields):
    return caffe_pb2.Datum(**{"channels": 1, "height": 2, "width": 3, "data": bytes(6), **fields}).SerializeToString()


def database(backend, values):
    if backend == "LMDB":
        with lmdb.open("db", map_size=1 << 24) as environment, environment.begin(write=True) as writer:
            for k, value in enumerate(values):
                writer.put(b"%08d" % k, value)
    else:
        import plyvel

        opened = plyvel.DB("db", create_if_missing=True)
        for k, value in enumerate(values):
            opened.put(b"%08d" % k, value)
        opened.close()
    return parse("Data", "data_param", f'source: "db" backend: {backend}')


@pytest.mark.parametrize("backend", ["LMDB", "LEVELDB"])
@pytest.mark.parametrize(
    "values, message",
    [
        pytest.param([datum(), datum(data=bytes(5))], "b'00000001' holds 5 numbers; expected 1 x 2 x 3", id="short"),
        pytest.param([datum(data=b"", float_data=[1, 2])], "holds 2 numbers; expected 1 x 2 x 3 = 6", id="floats"),
        pytest.param([datum(data=bytes(12))], "holds 12 numbers", id="long"),
        pytest.param([datum(data=b"")], "holds 0 numbers", id="nothing"),
        pytest.param([datum(channels=0, data=b"")], "holds 0 numbers; expected 0 x 2 x 3", id="no shape"),
        pytest.param([datum(), b"\xff\xff"], "the entry of key b'00000001' is torn, or no Datum", id="no Datum"),
        pytest.param([], "db (source of layer 'data') is an empty set", id="empty"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_an_entry_that_is_not_what_it_says_is_refused(here, monkeypatch, backend, values, message, large):
    if large:
        monkeypatch.setattr("multilabel_softmax_loss.nets.databases.SMALL", 0)
    refused(database(backend, [datum()] * (len(values) > 0) + values if "00" not in message else values), message)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_in_a_database_that_ends_too_early_is_refused(here, suffix):
    image = cv2.imencode(suffix, np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8))[1].tobytes()
    check_data(database("LMDB", [datum(encoded=True, data=image + bytes(100))] * 2), "net.prototxt")  # at its end
    message = "db (source of layer 'data'): the image of key b'00000001' ends too early: Caffe would fill it up"
    refused(database("LMDB", [datum(encoded=True, data=part) for part in (image, image[:-20])]), message)


SHORT = datum(label=200, data=bytes(5))  # as long as datum(label=7)


@pytest.mark.parametrize(
    "last, ranks, rand_skip, batches",
    [
        pytest.param(SHORT, 1, 0, 2, id="as long as others"),
        pytest.param(SHORT, 2, 0, 1, id="two ranks"),
        pytest.param(SHORT, 1, 3, 0, id="behind what chance leaves out"),
        pytest.param(datum(), 1, 0, 9, id="whole"),
    ],
)
def test_every_entry_of_a_large_lmdb_is_looked_at_as_it_comes(
    here, monkeypatch, capsys, last, ranks, rand_skip, batches
):
    monkeypatch.setattr("multilabel_softmax_loss.nets.databases.SMALL", 0)
    layers = list(database("LMDB", [datum(label=7)] * 4 + [last])) * 2  # both of batches of two
    check_data(layers, "net.prototxt")
    assert "Each is, with its class label, when the net reads it" in capsys.readouterr().err
    net = caffe_pb2.NetParameter(layer=layers)
    net.layer[1].top[:] = ["data again"]
    Path("net.prototxt").write_text(str(net))
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    layers[0].data_param.rand_skip = rand_skip
    watch_datums(net, layers, ranks)
    for _ in range(batches):
        net.forward()
    if last == SHORT:
        with pytest.raises(UsageError, match="db .source of layer 'data'.: the Datum of key b'00000004' holds 5 numb"):
            net.forward()


@pytest.mark.parametrize("backend", ["LMDB", "LEVELDB"])
def test_the_entries_of_a_database_are_counted(here, backend):
    layers = database(backend, [datum(), datum(encoded=True, data=b"PNG"), datum(label=7)])
    check_data(layers, "net.prototxt")
    assert count_samples(layers[0]) == 3


def test_a_leveldb_that_was_looked_through_can_be_read_without_snappy(here):
    """Which the Caffe of these tests has not: what only the log of a LevelDB holds is written anew as it is opened."""
    layers = database("LEVELDB", [datum(data=bytes(3000), width=1500)] * 20)
    check_data(layers, "net.prototxt")
    Path("net.prototxt").write_text(str(caffe_pb2.NetParameter(layer=layers)))
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    assert not net.forward()["data"].any()


def test_a_leveldb_that_another_process_has_open_is_told(here):
    import plyvel

    layers = database("LEVELDB", [datum()])
    opened = plyvel.DB("db")
    refused(layers, "db (source of layer 'data') is open in another process, and a LevelDB can be in one only.")
    opened.close()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_an_lmdb_that_was_cut_short_is_refused_and_named(here, share):
    layers = database("LMDB", [datum(data=bytes(60_000), width=30_000)] * 20)
    content = (here / "db" / "data.mdb").read_bytes()
    (here / "db" / "data.mdb").write_bytes(content[: int(share * len(content))])
    refused(layers, "db (source of layer 'data') was cut short: db/data.mdb has ")


@pytest.mark.parametrize("length", [0, 100, 4100])
def test_an_lmdb_without_its_head_is_refused(here, length):
    layers = database("LMDB", [datum()])
    content = (here / "db" / "data.mdb").read_bytes()
    (here / "db" / "data.mdb").write_bytes(content[:length])
    refused(layers, "db (source of layer 'data') is no readable LMDB")


def test_pages_that_were_never_written_need_not_be_there(here):
    layers = database("LMDB", [datum()])
    with lmdb.open("db", map_size=1 << 24) as environment:
        with environment.begin(write=True) as writer:
            writer.put(b"x", bytes(1 << 20))
        for _ in range(5):  # what is written anew goes where "x" was
            with environment.begin(write=True) as writer:
                writer.delete(b"x")
                writer.put(b"00000000", datum())
    content = (here / "db" / "data.mdb").read_bytes()
    (here / "db" / "data.mdb").write_bytes(content[: len(content) // 2])
    check_data(layers, "net.prototxt")


def test_a_database_of_the_other_kind_or_none_is_told(here):
    database("LMDB", [datum()])
    refused(parse("Data", "data_param", 'source: "db" backend: LEVELDB'), "It looks like an LMDB: write backend: LMDB.")
    (here / "db" / "data.mdb").unlink()
    (here / "db" / "CURRENT").touch()
    refused(parse("Data", "data_param", 'source: "db" backend: LMDB'), "looks like a LevelDB: write backend: LEVELDB.")
    refused(parse("Data", "data_param", 'source: "db" backend: LEVELDB'), "is no readable LevelDB")
    refused(parse("Data", "data_param", 'source: "no" backend: LMDB'), f"folder where you start, {here}.")


# ImageData


def images(text, more=""):
    for name in ("a.png", "b 1.png"):
        cv2.imwrite(name, np.zeros((2, 2), np.uint8))
    with open("list.txt", "wb") as written:
        written.write(text.encode())
    return parse("ImageData", "image_data_param", f'source: "list.txt" {more}')


def test_the_lines_of_a_list_of_images_are_counted(here):
    layers = images("a.png 0\r\nb 1.png 12\n")
    check_data(layers, "net.prototxt")
    assert count_samples(layers[0]) == 2
    check_data(images("a.png 0\n", f'root_folder: "{here}/"'), "net.prototxt")


@pytest.mark.parametrize(
    "line, message",
    [
        pytest.param("a.png cat", "has the label 'cat'; expected a file name, a blank and a whole number", id="a word"),
        pytest.param("a.png 1.5", "has the label '1.5'", id="no whole number"),
        pytest.param("a.png \u0661", "has the label '\u0661'", id="a digit that is none to Caffe"),
        pytest.param("a.png", "has no label", id="no label"),
        pytest.param("a.png\t1", "has no label", id="tab"),
        pytest.param("a.png 1 ", "has the label ''", id="blank at the end"),
        pytest.param("", "line 2: '' has no label", id="empty line"),
        pytest.param("a.png 99999999999", "has the label '99999999999'", id="no int"),
        pytest.param("a.png 1 0 4", "has several labels; ImageData takes one, and 'a.png 1 0' for the name", id="many"),
        pytest.param(
            "c.png 1", "c.png (list.txt (source of layer 'data'), line 2) cannot be read: No such", id="missing"
        ),
    ],
)
def test_a_line_that_caffe_would_misread_is_refused(here, line, message):
    refused(images(f"a.png 0\n{line}\na.png 0\n"), message)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("behind", [0, 5000])
def test_an_image_in_a_list_that_ends_too_early_is_refused(here, suffix, behind):
    image = cv2.imencode(suffix, np.random.RandomState(0).randint(0, 256, (90, 90, 3)).astype(np.uint8))[1].tobytes()
    (here / "c.jpg").write_bytes(image + bytes(behind))
    check_data(images("c.jpg 0\n"), "net.prototxt")
    (here / "c.jpg").write_bytes(image[:-20] + bytes(behind))
    refused(
        images("a.png 0\nc.jpg 0\n"), "c.jpg (list.txt (source of layer 'data'), line 2) ends too early: Caffe would"
    )


def test_a_list_with_a_byte_order_mark_is_refused(here):
    refused(images("\ufeffa.png 0\n"), "begins with a byte order mark, which Caffe takes for part of the first name")


# Labels that are classes


LOSS = """layer { name: "scores" type: "InnerProduct" bottom: "data" top: "scores"
  inner_product_param { num_output: 3 } }
layer { name: "relu" type: "ReLU" bottom: "scores" top: "scores" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" %s }
"""


def with_loss(layers, top="label", more=""):
    text = "".join(f"layer {{ {layer} }}" for layer in layers) + LOSS % more
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    if top not in net.layer[0].top:
        net.layer[0].top.append(top)
    return net.layer


def listed(labels):
    return images("".join(f"a.png {label:.0f}\n" for label in labels))


def in_lmdb(labels):
    return database("LMDB", [datum(label=int(label)) for label in labels])


def in_hdf5(labels):
    def content(file):
        file["data"], file["label"] = np.zeros((len(labels), 4)), np.asarray(labels)[:, None]

    return hdf5(a=content, tops=("data", "label"))


@pytest.mark.parametrize("source", [listed, in_lmdb, in_hdf5])
def test_labels_beyond_the_classes_are_refused(here, source):
    check_data(with_loss(source([0, 2, 1])), "net.prototxt")
    refused(
        with_loss(source([0, 2, 3])), "net.prototxt: layer 'data' brings the label 3 with sample 2; expected a class"
    )


def test_labels_that_are_no_classes_are_refused_unless_they_are_ignored(here):
    for wrong in (-1, 0.5, np.nan):
        refused(
            with_loss(in_hdf5([0, wrong])), f"brings the label {wrong:g} with sample 1; expected a class from 0 to 2"
        )
    check_data(with_loss(in_hdf5([0, -1]), more="loss_param { ignore_label: -1 }"), "net.prototxt")


def test_labels_are_let_be_where_the_number_of_classes_is_not_known(here):
    layers = with_loss(in_hdf5([0, 7]))
    layers[1].type, layers[1].inner_product_param.num_output = "Python", 0
    check_data(layers, "net.prototxt")


def test_a_label_beyond_what_was_looked_through_is_refused_before_a_layer_takes_it(here, monkeypatch, capsys):
    monkeypatch.setattr("multilabel_softmax_loss.nets.databases.SMALL", 0)
    layers = with_loss(in_lmdb([0, 2, 1, 1, 2, 3]))
    layers[0].data_param.batch_size = 3
    check_data(layers, "net.prototxt")
    assert "of its entries, only those of a length that no other had before are looked at" in capsys.readouterr().err
    layers[0].transform_param.scale = 0.01
    Path("net.prototxt").write_text(str(caffe_pb2.NetParameter(layer=[*layers[:2], layers[3]])))
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    watch_labels(net, [*layers[:2], layers[3]])
    net.forward()
    with pytest.raises(
        UsageError, match="^blob 'label' brings the label 3 with sample 2; expected a class from 0 to 2"
    ):
        net.forward()


# Mean images


def blob(**fields):
    return caffe_pb2.BlobProto(**{"channels": 1, "height": 2, "width": 3, "num": 1, "data": range(6), **fields})


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(None, "m.binaryproto (mean_file of layer 'data') cannot be read: No such file", id="missing"),
        pytest.param(b"\xff\xff", "is torn, or no mean image", id="no blob"),
        pytest.param(blob().SerializeToString()[:-3], "is torn, or no mean image", id="cut short"),
        pytest.param(b"", "holds 0 numbers and says that they are of shape [0, 0, 0, 0]", id="empty"),
        pytest.param(blob(data=range(5)).SerializeToString(), "holds 5 numbers and says that they", id="too few"),
        pytest.param(blob(data=[np.nan] * 6).SerializeToString(), "holds numbers that are not finite", id="NaN"),
    ],
)
def test_a_damaged_mean_image_is_refused_and_named(here, content, message):
    if content is not None:
        (here / "m.binaryproto").write_bytes(content)
    layers = images("a.png 0\n")
    layers[0].transform_param.mean_file = "m.binaryproto"
    refused(layers, message)


def test_a_mean_image_is_read_in_either_shape(here):
    (here / "old").write_bytes(blob().SerializeToString())
    (here / "new").write_bytes(caffe_pb2.BlobProto(shape={"dim": [1, 2, 3]}, data=range(6)).SerializeToString())
    expected = np.arange(6.0).reshape(1, 2, 3)
    assert np.array_equal(read_mean("old", "test"), expected)
    assert np.array_equal(read_mean("new", "test"), expected)


def test_train_refuses_before_the_first_iteration(tmp_path, run_here):
    make_run(tmp_path)
    with h5py.File(tmp_path / "more.h5", "w") as file:
        file["data"], file["label"] = np.zeros((2, 4)), np.zeros((2, 6))
    (tmp_path / "train.txt").write_text("train.h5\nmore.h5\n")
    process = run_here("train", "solver.prototxt", "--out", "run", folder=tmp_path, check=2)
    assert "more.h5 has samples of shape (4,) in data set 'data', and train.h5 of (5,)" in process.stderr
    assert not (tmp_path / "run").exists()


def test_a_label_that_caffe_cuts_to_its_ignore_label_is_refused():
    labels = np.full((2, 6), 0.25, np.float32)
    head = find_heads(read_net(SIGMOID_LOSS % "loss_param { ignore_label: 0 }").layer)[0]
    for read in (head.check_batch, lambda labels: head.rows(np.zeros((2, 6), np.float32), labels)):
        with pytest.raises(
            UsageError, match="blob 'l' holds 0.25, which Caffe cuts to its ignore_label 0, and so leaves"
        ):
            read(labels)
    assert not head.rows(np.zeros((2, 6), np.float32), np.ceil(labels) * np.eye(2, 6, dtype=np.float32))[2][1, 0]
    assert find_heads(read_net(SIGMOID_LOSS % "").layer)[0].rows(np.zeros((2, 6), np.float32), labels)[2].all()
    assert (
        Head("s", "l", "sigmoid", ignore_label=0).rows(np.zeros((2, 6), np.float32), labels)[2].all()
    )  # our own layer cuts nothing


SIGMOID_LOSS = 'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "s" bottom: "l" top: "loss" %s }'
