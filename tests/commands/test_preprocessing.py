"""What becomes of an image: the same as in Caffe's TEST phase, from a file that is proved, or a refusal."""

import json
import re
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from PIL import Image
from support.caffe_nets import make_net

from multilabel_softmax_loss.commands.image_layers import UnknownPreprocessing, disproof, keep_preprocessing, of_layer
from multilabel_softmax_loss.commands.preprocessing import MEAN_NAME, NAME, Preprocessing
from multilabel_softmax_loss.data.datum import mean_blob
from multilabel_softmax_loss.errors import UsageError

IMAGES = (
    'top: "label" type: "ImageData" image_data_param { source: "list.txt" batch_size: 3 %s } transform_param { %s }'
)
STORED = 'type: "Data" data_param { source: "db" backend: LMDB batch_size: 3 } transform_param { %s }'
FINE = np.random.RandomState(0).randint(0, 256, (3, 20, 30, 3)).astype(np.uint8)


def layer(text):
    return text_format.Parse(f'name: "data" top: "data" {text}', caffe_pb2.LayerParameter())


def store(contents, **fields):
    """An LMDB "db" of the bytes of image files."""
    with lmdb.open("db", map_size=1 << 24) as environment, environment.begin(write=True) as writer:
        for k, content in enumerate(contents):
            datum = caffe_pb2.Datum(encoded=True, data=content, **fields)
            writer.put(f"{k:08d}".encode(), datum.SerializeToString())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Three images in files, a list of them, and a mean image."""
    monkeypatch.chdir(tmp_path)
    for k, image in enumerate(FINE):
        cv2.imwrite(f"{k}.png", image)
    (tmp_path / "list.txt").write_text("".join(f"{k}.png 0\n" for k in range(3)))
    (tmp_path / "run").mkdir()
    for name, shape in (("mean.binaryproto", (3, 20, 30)), ("small_mean.binaryproto", (3, 12, 16))):
        Path(name).write_bytes(mean_blob(np.random.RandomState(1).uniform(0, 255, shape)))
    return tmp_path


def kept(text):
    """What a run keeps of a net with this data layer."""
    assert keep_preprocessing("run", [[layer(text)]]) is None
    return Preprocessing.read(f"run/{NAME}")


def assert_same_as_caffe(text, names=("0.png", "1.png", "2.png")):
    found = kept(text)
    net = make_net(f'layer {{ name: "data" top: "data" {text} }}', phase=1)
    net.forward()
    expected = net.blobs["data"].data
    for name, planes in zip(names, expected):
        assert found.read_image(name, planes.shape[1:]) == pytest.approx(planes, abs=1e-4)
    return found


@pytest.mark.parametrize(
    "size, transform",
    [
        pytest.param("", "", id="as it is"),
        pytest.param("", "crop_size: 15", id="crop"),
        pytest.param("", "crop_size: 20 mean_file: 'mean.binaryproto' scale: 0.5", id="crop of a mean image"),
        pytest.param("new_height: 12 new_width: 16", "mean_value: 7 scale: 0.1", id="smaller"),
        pytest.param("new_height: 12 new_width: 16", "mean_file: 'small_mean.binaryproto' crop_size: 9", id="all"),
        pytest.param("new_height: 40 new_width: 33", "mean_value: 1 mean_value: 2 mean_value: 3", id="larger"),
        pytest.param("new_height: 12 new_width: 16 is_color: false", "crop_size: 5 mean_value: 9", id="gray"),
        pytest.param("shuffle: true rand_skip: 2", "mirror: true scale: 2", id="no chance in testing"),
    ],
)
def test_image_data_is_followed(size, transform):
    if "mirror" in transform:
        assert kept(IMAGES % (size, transform)).content()["scale"] == 2
    else:
        assert_same_as_caffe(IMAGES % (size, transform))


@pytest.mark.parametrize(
    "transform, channels",
    [
        pytest.param("", "BGR", id="as it is"),
        pytest.param("crop_size: 15 mean_value: 3 scale: 0.5", "BGR", id="crop"),
        pytest.param("force_gray: true crop_size: 7 mean_value: 3", "GRAY", id="made gray"),
        pytest.param("force_color: true", "BGR", id="made color"),
    ],
)
@pytest.mark.parametrize("gray", [False, True], ids=["of color", "of gray"])
def test_compressed_images_of_an_lmdb_are_followed(folder, transform, channels, gray):
    for k, image in enumerate(FINE):
        cv2.imwrite(f"{k}.png", image[:, :, 1] if gray else image)
    store([(folder / f"{k}.png").read_bytes() for k in range(3)])
    found = assert_same_as_caffe(STORED % transform)
    assert found.channels == ("GRAY" if gray and "force_color" not in transform else channels)
    assert found.resize == (20, 30)


def test_an_image_of_another_size_than_those_of_an_lmdb_is_resized_and_cropped_as_they_were(folder):
    store([(folder / f"{k}.png").read_bytes() for k in range(3)])
    found = kept(STORED % "crop_size: 10")
    large = np.random.RandomState(2).randint(0, 256, (50, 50, 3)).astype(np.uint8)
    expected = cv2.resize(large, (30, 20))[5:15, 10:20].transpose(2, 0, 1)
    assert np.array_equal(found.apply(large, (10, 10), "large"), expected)


def test_the_shorter_side_and_what_is_transparent_are_as_convert_has_them(folder):
    image = np.dstack([np.full((40, 60, 3), 100, np.uint8), np.full((40, 60), 255, np.uint8)])
    image[:, 30:, 3] = 0
    cv2.imwrite("0.png", image)
    content = {"mean": 0, "scale": 1, "channels": "BGR", "resize": 20, "crop": 20, "transparent": "white"}
    (folder / "p.json").write_text(json.dumps(content))
    found = Preprocessing.read("p.json")
    assert {**content, "mean": [0]} == found.content()
    expected = np.full((3, 20, 20), 100.0)
    expected[:, :, 10:] = 255  # of 20 x 30 pixels the middle
    assert np.array_equal(found.read_image("0.png", (20, 20)), expected)


def test_an_index_is_followed_that_begins_with_an_image_that_opencv_does_not_read(folder):
    Image.fromarray(FINE[0][:, :, 0]).save("0.gif")
    (folder / "index.txt").write_text("# multilabel index; classes=1 absent=0\n0.gif\t0\n1.png\t\n")
    options = '{"source": "index.txt", "batch_size": 2, "new_height": 12, "new_width": 16, "workers": 0}'
    python_param = f"module: 'multilabel_softmax_loss' layer: 'MultilabelImageDataLayer' param_str: '{options}'"
    assert_same_as_caffe(f'top: "labels" type: "Python" python_param {{ {python_param} }}', names=("0.gif", "1.png"))


def test_images_of_many_sizes_in_an_lmdb_are_cropped_as_they_are(folder):
    cv2.imwrite("1.png", FINE[1][:15])
    store([(folder / f"{k}.png").read_bytes() for k in range(2)])
    assert kept(STORED % "crop_size: 10").resize is None


def test_images_are_turned_as_caffe_turns_them(folder):
    from PIL import Image

    image = Image.fromarray(FINE[0][:, :, ::-1])
    exif = image.getexif()
    exif[0x112] = 6  # lies on its side
    image.save("0.jpg", exif=exif, quality=95)
    (folder / "list.txt").write_text("0.jpg 0\n")
    store([(folder / "0.jpg").read_bytes()])
    for text, turned in ((IMAGES % ("", ""), True), (STORED % "", False), (STORED % "force_color: true", True)):
        found = kept(text)
        assert found.turned == turned
        size = (30, 20) if turned else (20, 30)
        net = make_net(
            f'layer {{ name: "data" top: "data" {text.replace("batch_size: 3", "batch_size: 1")} }}', phase=1
        )
        net.forward()
        assert net.blobs["data"].data.shape[2:] == size
        assert (
            np.abs(found.read_image("0.jpg", size) - net.blobs["data"].data[0]).mean() < 15
        )  # decoders of JPEG differ


@pytest.mark.parametrize(
    "text, reason",
    [
        pytest.param('type: "HDF5Data"', "layer 'data' (HDF5Data) does not tell from what pixels", id="HDF5"),
        pytest.param('type: "MemoryData"', "(MemoryData) does not tell from what pixels", id="memory"),
        pytest.param(STORED % "", "reads raw pixels, which do not tell the order", id="raw"),
    ],
)
def test_what_the_data_do_not_tell_is_said_and_not_guessed(folder, text, reason):
    with lmdb.open("db", map_size=1 << 20) as environment, environment.begin(write=True) as writer:
        writer.put(b"0", caffe_pb2.Datum(channels=3, height=4, width=4, data=bytes(48)).SerializeToString())
    told = keep_preprocessing("run", [[layer(text)]])
    assert reason in told
    assert told.startswith(f"No {NAME} is written, which `predict` needs: ")
    assert list((folder / "run").iterdir()) == []


@pytest.mark.parametrize(
    "image, reason",
    [
        pytest.param(np.zeros((4, 4, 4), np.uint8), "reads images of 4 channels", id="alpha"),
        pytest.param(np.zeros((4, 4), np.uint16), "more than 8 bits", id="16 bits"),
    ],
)
def test_stored_images_that_predict_cannot_make_are_said(image, reason):
    store([cv2.imencode(".png", image)[1].tobytes()])
    with pytest.raises(UnknownPreprocessing, match=reason):
        of_layer(layer(STORED % ""))


def test_the_test_nets_layer_is_followed_where_train_and_test_differ():
    nets = [[layer(IMAGES % ("", "crop_size: 8 mean_value: 2"))], [layer(IMAGES % ("", "crop_size: 9 mean_value: 2"))]]
    assert keep_preprocessing("run", nets) is None
    assert Preprocessing.read(f"run/{NAME}").crop == 8


def test_a_mean_image_is_kept_as_an_image(folder):
    found = kept(IMAGES % ("", "mean_file: 'mean.binaryproto'"))
    assert found.mean.shape == (3, 20, 30)
    assert json.loads((folder / "run" / NAME).read_text())["mean"] == MEAN_NAME
    assert (folder / "run" / MEAN_NAME).read_bytes() == (folder / "mean.binaryproto").read_bytes()


def test_a_file_given_is_kept_if_it_does_what_the_layer_does(folder):
    layers = [layer(IMAGES % ("", "scale: 0.5 mean_value: 3"))]
    (folder / "right.json").write_text(json.dumps({"mean": 3, "scale": 0.5, "channels": "BGR"}))
    assert keep_preprocessing("run", [layers], "right.json") is None
    assert Preprocessing.read(f"run/{NAME}") == Preprocessing.read("right.json")
    for wrong in ({"channels": "RGB"}, {"scale": 0.6}, {"mean": 4}, {"resize": None, "crop": 10}):
        (folder / "wrong.json").write_text(json.dumps({"mean": 3, "scale": 0.5, "channels": "BGR", **wrong}))
        with pytest.raises(UsageError, match="wrong.json does not do what layer 'data' does in the TEST phase: "):
            keep_preprocessing("run", [layers], "wrong.json")
    assert keep_preprocessing("run", [[layer('type: "HDF5Data"')]], "wrong.json") is None  # nothing to compare with


def test_a_proof_fails_where_a_layer_does_something_else(folder):
    right = layer(IMAGES % ("new_height: 12 new_width: 16", "crop_size: 9"))
    assert disproof(of_layer(right), right) is None
    for wrong in (
        layer(IMAGES % ("new_height: 16 new_width: 12", "crop_size: 9")),
        layer(IMAGES % ("new_height: 12 new_width: 16 is_color: false", "crop_size: 9")),
        layer(IMAGES % ("new_height: 12 new_width: 16", "crop_size: 8")),
        layer(IMAGES % ("new_height: 12 new_width: 16", "crop_size: 9 mean_value: 0.1")),
    ):
        assert disproof(of_layer(wrong), right)


@pytest.mark.parametrize("channels", ["RGB", "GRAY"])
def test_channels_are_reordered_or_made_one(channels):
    found = Preprocessing((5.0,), 2.0, channels).read_image("0.png", (20, 30))
    blue, green, red = FINE[0].astype(np.float32).transpose(2, 0, 1)
    gray = 0.114 * blue + 0.587 * green + 0.299 * red  # ITU-R BT.601, as OpenCV has it
    expected = np.stack([red, green, blue]) if channels == "RGB" else gray[None]
    assert found == pytest.approx(2 * (expected - 5), abs=0 if channels == "RGB" else 3)  # rounded


GOOD = {"mean": [1, 2, 3], "scale": 1, "channels": "BGR"}


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param([1], "holds a list; expected such as", id="a list"),
        pytest.param({"mean": 1}, "holds ['mean']; expected such as", id="parts"),
        pytest.param({**GOOD, "crop_size": 3}, "no use for 'crop_size'", id="unknown key"),
        pytest.param({**GOOD, "mean": [1, 2]}, "has 2 means for BGR; expected 1 or 3", id="means"),
        pytest.param({**GOOD, "mean": {"B": 1}}, "not all of which is a finite number", id="a dict of means"),
        pytest.param({**GOOD, "mean": [1, "2", 3]}, "not all of which is a finite number", id="a string in it"),
        pytest.param({**GOOD, "mean": [1, True, 3]}, "not all of which is a finite number", id="true in it"),
        pytest.param({**GOOD, "mean": "no.binaryproto"}, "no.binaryproto (a mean image) cannot be read", id="no mean"),
        pytest.param({**GOOD, "mean": "m\0"}, "m\\x00' (a mean image) cannot be read: embedded null byte", id="NUL"),
        pytest.param(
            {**GOOD, "mean": "list.txt"}, "list.txt (a mean image) is torn, or no mean image", id="foreign mean"
        ),
        pytest.param({**GOOD, "mean": "mean.binaryproto", "channels": "GRAY"}, "of 3 channels for GRAY", id="gray"),
        pytest.param({**GOOD, "scale": True}, "has scale True, which is no finite number", id="true as scale"),
        pytest.param({**GOOD, "mean": [1, 1e39, 3]}, "not all of which is a finite number", id="too large a mean"),
        pytest.param({**GOOD, "scale": 0}, "has scale 0, by which all is 0 or infinite", id="nothing as scale"),
        pytest.param({**GOOD, "scale": 1e-50}, "has scale 1e-50, by which all is 0", id="next to nothing as scale"),
        pytest.param({**GOOD, "scale": 1e300}, "has scale 1e+300, by which all is 0", id="too large a scale"),
        pytest.param({**GOOD, "scale": "1"}, "has scale '1', which is no finite number", id="a string as scale"),
        pytest.param({**GOOD, "channels": ["BGR"]}, "has channels ['BGR']; expected one of", id="a list of channels"),
        pytest.param({**GOOD, "resize": [3], "crop": 1}, "has resize [3]; expected [height, width]", id="one number"),
        pytest.param({**GOOD, "resize": [0, 3]}, "has resize [0, 3]; expected", id="no height"),
        pytest.param({**GOOD, "resize": [1e9, 3]}, "has resize [1000000000.0, 3]; expected", id="a float"),
        pytest.param({**GOOD, "resize": [2**40, 3]}, "expected [height, width] in pixels", id="too large"),
        pytest.param({**GOOD, "resize": None, "crop": -1}, "has crop -1; expected a whole number", id="negative crop"),
        pytest.param({**GOOD, "crop": 3}, 'has a crop without "resize"', id="crop alone"),
        pytest.param({**GOOD, "transparent": "black"}, "has transparent 'black'; expected \"white\"", id="black"),
        pytest.param({**GOOD, "turned": 1}, "has turned 1; expected true or false", id="turned"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(folder, content, message):
    (folder / "p.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=re.escape(message)):
        Preprocessing.read("p.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"resize": None}, "0.png is 20 x 30 pixels as the net would see it; expected 8 x 8", id="as is"),
        pytest.param({"resize": (9, 8)}, "makes images of 9 x 8 pixels; expected 8 x 8", id="another size"),
        pytest.param({"resize": None, "crop": 9}, "makes images of 9 x 9 pixels; expected 8 x 8", id="another crop"),
        pytest.param({"resize": (7, 9), "crop": 8}, "0.png is 7 x 9 pixels; expected at least 8 x 8", id="too small"),
    ],
)
def test_an_image_that_does_not_fit_the_net_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Preprocessing(mean=(0.0,), scale=1.0, channels="BGR", **changes).read_image("0.png", (8, 8))
