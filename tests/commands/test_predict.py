"""`predict`: which labels, with which names and scores, from which pixels."""

import json
import re

import cv2
import numpy as np
import pytest
from support.tiny_nets import CLASSES, OURS, SIGMOID, inner_product, listing, poisoned, run_command, write_hdf5

from multilabel_softmax_loss.commands import metrics
from multilabel_softmax_loss.commands.deploy import deploy
from multilabel_softmax_loss.commands.outputs import net_outputs
from multilabel_softmax_loss.commands.predict import predict
from multilabel_softmax_loss.errors import UsageError

RECIPE = {"mean": [10, 20, 30], "scale": 0.01, "channels": "BGR"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A training net of (3, 4, 5) images with its deploy form, random weights, preprocessing.json and two images."""
    import caffe

    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    images = rng.rand(4, 3, 4, 5).astype(np.float32)
    source = write_hdf5(tmp_path / "images", data=images, label=np.eye(4, CLASSES, dtype=np.float32))
    data = 'layer { name: "data" type: "HDF5Data" top: "data" top: "label"\n'
    data += f'  hdf5_data_param {{ source: "{source}" batch_size: 2 }} }}\n'
    (tmp_path / "train_val.prototxt").write_text(data + inner_product("scores", "data", CLASSES) + OURS % "")
    caffe.Net("train_val.prototxt", caffe.TEST).save("net.caffemodel")
    assert deploy("train_val.prototxt", "deploy.prototxt", "net.caffemodel") == 0
    (tmp_path / "preprocessing.json").write_text(json.dumps(RECIPE))
    for name, size in (("a.png", (4, 5)), ("b.png", (8, 10))):
        cv2.imwrite(name, rng.randint(0, 256, (*size, 3)).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\neel\nfox\n")
    return tmp_path


def expected_probs(image, recipe=RECIPE):
    """By hand: resize, order, mean, scale, inner product, softmax."""
    import caffe

    net = caffe.Net("train_val.prototxt", "net.caffemodel", caffe.TEST)
    weights, bias = (blob.data.astype(np.float64) for blob in net.params["scores"])
    pixels = cv2.imread(image)
    if pixels.shape[0] != 4:
        pixels = pixels.reshape(4, 2, 5, 2, 3).astype(float).mean(axis=(1, 3)).round()  # by area
    if recipe["channels"] == "RGB":
        pixels = pixels[:, :, ::-1]
    x = (pixels.astype(float) - np.array(recipe["mean"])) * recipe["scale"]
    exps = np.exp(weights @ x.transpose(2, 0, 1).ravel() + bias)
    return exps / exps.sum()


def scores_of(answer):
    return {int(label["class"]): label["score"] for label in answer["labels"]}


@pytest.mark.parametrize("net", ["deploy.prototxt", "train_val.prototxt"])
@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_scores_are_the_probabilities_of_the_preprocessed_pixels(folder, net, channels):
    recipe = {**RECIPE, "channels": channels}
    (folder / "preprocessing.json").write_text(json.dumps(recipe))
    answers = predict(net, "net.caffemodel", ["a.png", "b.png"], top_k=CLASSES)
    for answer, tolerance in zip(answers, (1e-6, 2e-2)):  # OpenCV may round halves another way
        found = scores_of(answer)
        expected = expected_probs(answer["image"], recipe)
        assert [found[k] for k in range(CLASSES)] == pytest.approx(list(expected), abs=tolerance)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_top_k_threshold_and_thresholds_per_class(folder):
    probs = expected_probs("a.png")
    order = [int(k) for k in np.argsort(-probs)]
    assert list(scores_of(predict("deploy.prototxt", "net.caffemodel", ["a.png"])[0])) == order[:3]
    assert list(scores_of(predict("deploy.prototxt", "net.caffemodel", ["a.png"], top_k=1)[0])) == order[:1]
    middle = float(probs[order[1]] + probs[order[2]]) / 2
    assert list(scores_of(predict("deploy.prototxt", "net.caffemodel", ["a.png"], threshold=middle)[0])) == order[:2]
    levels = [None] * CLASSES  # never
    levels[order[4]] = 0.0
    (folder / "t.json").write_text(json.dumps({"thresholds": levels, "probabilities": "softmax"}))
    assert (
        list(scores_of(predict("deploy.prototxt", "net.caffemodel", ["a.png"], thresholds="t.json")[0])) == order[4:5]
    )


@pytest.mark.parametrize("loss", [pytest.param(OURS % "", id="softmax"), pytest.param(SIGMOID, id="sigmoid")])
def test_predict_decides_as_evaluate_where_probabilities_are_all_0_or_1(folder, loss, run_here):
    import caffe

    rng = np.random.RandomState(1)
    pixels = rng.randint(0, 256, (20, 4, 5, 3)).astype(np.uint8)
    names = [f"image{k}.png" for k in range(20)]
    for name, image in zip(names, pixels):
        cv2.imwrite(name, image)
    data = (pixels.transpose(0, 3, 1, 2) - np.float32(RECIPE["mean"]).reshape(3, 1, 1)) * np.float32(RECIPE["scale"])
    write_hdf5("images", data=data, label=(rng.rand(20, CLASSES) < 0.4).astype(np.float32))
    net = (folder / "train_val.prototxt").read_text().replace(OURS % "", loss)
    (folder / "train_val.prototxt").write_text(net)
    scaled = caffe.Net("train_val.prototxt", "net.caffemodel", caffe.TEST)
    scaled.params["scores"][0].data[...] *= 5000
    scaled.save("scaled.caffemodel")
    run_here("evaluate", "train_val.prototxt", "scaled.caffemodel", "--tune-thresholds", "t.json", folder=folder)
    outputs = net_outputs("train_val.prototxt", "scaled.caffemodel")
    assert np.isin(outputs.probs, [0, 1]).mean() > 0.9
    tuned = metrics.tune_thresholds(outputs.truth, outputs.log_odds)
    assert metrics.decision_metrics(outputs.truth, outputs.log_odds >= tuned)["OF1"] > 0.6
    assert deploy("train_val.prototxt", "deploy.prototxt", "scaled.caffemodel") == 0
    in_place = (folder / "deploy.prototxt").read_text().replace('top: "prob"', 'top: "scores"')
    (folder / "in_place.prototxt").write_text(in_place)
    for net in ("train_val.prototxt", "deploy.prototxt", "in_place.prototxt"):
        answers = predict(net, "scaled.caffemodel", names, thresholds="t.json")
        found = [[k in scores_of(answer) for k in range(CLASSES)] for answer in answers]
        assert np.array_equal(found, outputs.log_odds >= tuned)


def test_at_least_one_never_gives_an_empty_answer(folder):
    words = ("deploy.prototxt", "net.caffemodel", ["a.png", "b.png"])
    assert [answer["labels"] for answer in predict(*words, threshold=1.0)] == [[], []]
    for answer in predict(*words, threshold=1.0, at_least_one=True):
        ((k, _),) = scores_of(answer).items()
        assert k == int(np.argmax(expected_probs(answer["image"])))


def test_the_command_prints_a_table_or_json_lines_with_class_names(folder, run_here):
    words = ("predict", "deploy.prototxt", "net.caffemodel", "a.png", "b.png", "--classes", "classes.txt", "--top-k", 2)
    table = run_command(*words, folder=folder, check=0)
    assert re.fullmatch(r"(?:[ab]\.png(?:  (?:ant|bee|cat|dog|eel|fox) 0\.\d{3}){2}\n){2}", table.stdout)
    lines = run_here(*words, "--json", folder=folder, check=0)
    answers = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == ["a.png", "b.png"]
    for answer in answers:
        for label in answer["labels"]:
            assert f"{label['class']} {label['score']:.3f}" in table.stdout
    assert table.stderr == lines.stderr == ""


def test_names_come_from_the_file_of_thresholds_too(folder):
    content = {"thresholds": [0.0] * CLASSES, "classes": list("uvwxyz"), "probabilities": "softmax"}
    (folder / "t.json").write_text(json.dumps(content))
    (answer,) = predict("deploy.prototxt", "net.caffemodel", ["a.png"], thresholds="t.json")
    assert {label["class"] for label in answer["labels"]} == set("uvwxyz")


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param({"images": ["a.png", "no.png"]}, "no.png is no file; expected an image", id="no image"),
        pytest.param({"images": ["a.png", "torn.png"]}, "torn.png is bad (torn, or no image", id="torn image"),
        pytest.param({"images": ["a.png", "cut.jpg"]}, "cut.jpg is bad (torn, or no image", id="cut JPEG"),
        pytest.param({"images": ["huge.ppm"]}, "huge.ppm is bad (too large, or of a kind", id="beyond all limits"),
        pytest.param({"images": ["a.exr"]}, "a.exr is bad (too large, or of a kind that OpenCV", id="codec"),
        pytest.param({"images": ["empty.png"]}, "empty.png is bad (0 bytes)", id="empty image"),
        pytest.param({"images": ["classes.txt"]}, "classes.txt is bad (torn, or no image", id="foreign image"),
        pytest.param({"net": ""}, "'' cannot be read", id="empty name"),
        pytest.param({"net": "no.prototxt"}, "no.prototxt cannot be read", id="no net"),
        pytest.param({"weights": "classes.txt"}, "classes.txt is torn, or no weights file", id="foreign weights"),
        pytest.param({"weights": "nan.caffemodel"}, "layer 'scores' that are not finite", id="nan in the weights"),
        pytest.param({"classes": "two.txt"}, "two.txt names 2 classes; expected 6", id="class names"),
        pytest.param({"top_k": 7}, "--top-k is 7; expected 1 to 6", id="k"),
        pytest.param({"threshold": 2.0}, "--threshold is 2; expected a number from 0 to 1", id="threshold"),
        pytest.param({"threshold": float("nan")}, "--threshold is nan; expected a number", id="nan as threshold"),
        pytest.param({"at_least_one": True}, "--at-least-one needs --threshold", id="nothing to be at least one of"),
        pytest.param({"thresholds": "sigmoid.json"}, "tuned on sigmoid probabilities", id="activation"),
        pytest.param({"thresholds": "short.json"}, "holds 2 thresholds; expected 6", id="number of thresholds"),
        pytest.param({"preprocessing": "no.json"}, "no.json is missing: the mean, scale and channel", id="no recipe"),
        pytest.param({"preprocessing": "grey.json"}, "takes 3 channels, and the preprocessing says 'GRAY'", id="grey"),
        pytest.param({"preprocessing": "two.txt"}, "two.txt is no JSON", id="foreign recipe"),
        pytest.param({"preprocessing": "means.json"}, "has 2 means for BGR; expected 1 or 3", id="means"),
        pytest.param({"preprocessing": "nan.json"}, "NaN is no finite number", id="nan in the recipe"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_writes_nothing(folder, options, message):
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:40])
    jpeg = cv2.imencode(".jpg", cv2.imread("b.png"))[1].tobytes()
    (folder / "cut.jpg").write_bytes(jpeg[:-20])
    (folder / "huge.ppm").write_bytes(b"P6 99999999 99999999 255\n")
    (folder / "a.exr").write_bytes(b"\x76\x2f\x31\x01\x02" + bytes(100))
    (folder / "empty.png").write_bytes(b"")
    (folder / "two.txt").write_text("one\ntwo\n")
    (folder / "nan.caffemodel").write_bytes(poisoned("net.caffemodel"))
    for name, content in {
        "sigmoid": {"thresholds": [0.5] * 6, "probabilities": "sigmoid"},
        "short": {"thresholds": [0.5] * 2},
        "grey": {"mean": 0, "scale": 1, "channels": "GRAY"},
        "means": {"mean": [0, 1], "scale": 1, "channels": "BGR"},
        "nan": {"mean": 0, "scale": float("nan"), "channels": "BGR"},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    before = listing(folder)
    arguments = {"net": "deploy.prototxt", "weights": "net.caffemodel", "images": ["a.png"], **options}
    with pytest.raises(UsageError, match=re.escape(message)):
        predict(**arguments)
    assert listing(folder) == before


def test_a_bad_image_among_good_ones_ends_the_command_before_any_answer(folder, run_here):
    words = ("predict", "deploy.prototxt", "net.caffemodel", "a.png", "classes.txt")
    process = run_here(*words, folder=folder, check=2)
    assert process.stdout == ""
    assert process.stderr == (
        "python -m multilabel_softmax_loss predict: error: classes.txt is bad (torn, or no image that OpenCV reads).\n"
    )
