"""`evaluate`: every sample once, all label formats, thresholds, files, and what it says of bad input."""

import argparse
import json
import os
import re

import h5py
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score
from support.tiny_nets import (
    CLASSES,
    OURS,
    SIGMOID,
    body,
    inner_product,
    listing,
    make_labels,
    make_run,
    poisoned,
    run_command,
    write_hdf5,
    write_lmdb,
)

from multilabel_softmax_loss.__main__ import main
from multilabel_softmax_loss.commands.evaluate import add_arguments, run
from multilabel_softmax_loss.commands.outputs import net_outputs
from multilabel_softmax_loss.commands.report import evaluation
from multilabel_softmax_loss.commands.thresholds import read_thresholds
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with train_val.prototxt, its data, and run/best.caffemodel."""
    folder = tmp_path_factory.mktemp("trained")
    train(make_run(folder))
    return folder


def log_odds_of_softmax(scores):
    others = [logsumexp(np.delete(scores, k, axis=1), axis=1) for k in range(scores.shape[1])]
    return scores - np.stack(others, axis=1)


def evaluate(folder, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(folder / "train_val.prototxt"), *map(str, words)]))


def test_every_sample_counts_once_and_in_order(trained):
    outputs = net_outputs(str(trained / "train_val.prototxt"), str(trained / "run" / "best.caffemodel"))
    with h5py.File(trained / "test.h5", "r") as file:
        assert np.array_equal(outputs.truth, file["label"][:] > 0)
    assert len(outputs.truth) == 37  # batches of 10
    assert outputs.probs.sum(axis=1) == pytest.approx(np.ones(37))
    assert outputs.known.all()


def test_shuffled_training_data_are_read_in_order_too(trained):
    weights = str(trained / "run" / "best.caffemodel")
    truth = net_outputs(str(trained / "train_val.prototxt"), weights, phase="TRAIN")[0]
    with h5py.File(trained / "train.h5", "r") as file:
        assert np.array_equal(truth, file["label"][:] > 0)


def test_two_lmdbs_give_what_an_hdf5_file_gives(trained, tmp_path):
    weights = str(trained / "run" / "best.caffemodel")
    with h5py.File(trained / "test.h5", "r") as file:
        x, y = file["data"][:], file["label"][:]
    net = "".join(
        f'layer {{ name: "{top}" type: "Data" top: "{top}" data_param {{ source: "{source}" batch_size: 10 '
        "backend: LMDB } }\n"
        for top, source in (("data", write_lmdb(tmp_path / "x", x)), ("label", write_lmdb(tmp_path / "y", y)))
    )
    (tmp_path / "net.prototxt").write_text(net + body() + OURS % "")
    found = net_outputs(str(tmp_path / "net.prototxt"), weights)
    expected = net_outputs(str(trained / "train_val.prototxt"), weights)
    assert np.array_equal(found[0], expected[0])
    assert found[1] == pytest.approx(expected[1])


def test_the_command_prints_a_table_and_writes_json_thresholds_and_a_picture(trained, tmp_path, run_here):
    (tmp_path / "classes.txt").write_text("".join(f"class {k}\n" for k in range(CLASSES)))
    process = run_command(
        *("evaluate", "-k", "1,3", trained / "train_val.prototxt", trained / "run" / "best.caffemodel"),
        *("--classes", "classes.txt"),
        *("--json", "e.json", "--picture", "e.png", "--tune-thresholds", "t.json"),
        folder=tmp_path,
        check=0,
    )
    assert process.stderr == ""
    report = json.loads((tmp_path / "e.json").read_text())
    rows = ["net, top 1", "net, top 3", "net, tuned here", "most frequent 1", "most frequent 3", "all zeros"]
    assert list(report["metrics"]) == rows
    for name in rows:
        assert f"\n{name} " in process.stdout
    assert f"{report['metrics']['net, top 3']['mAP']:.3f}" in process.stdout
    assert [entry["class"] for entry in report["per_class"]] == [f"class {k}" for k in range(CLASSES)]
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    # The file of thresholds decides as the tuning said.
    again = run_here(
        *("evaluate", trained / "train_val.prototxt", trained / "run" / "best.caffemodel"),
        *("--thresholds", "t.json", "--json", "again.json"),
        folder=tmp_path,
        check=0,
    )
    assert "net, thresholds" in again.stdout
    found = json.loads((tmp_path / "again.json").read_text())["metrics"]["net, thresholds"]
    assert found == report["metrics"]["net, tuned here"]


def test_a_class_without_positives_is_said_counted_and_left_out(trained, tmp_path, capsys):
    with h5py.File(trained / "test.h5", "r") as file:
        x, y = file["data"][:], file["label"][:]
    y[:, 2] = 0
    source = write_hdf5(tmp_path / "test", data=x, label=y)
    words = ("--data", source, "--json", tmp_path / "e.json", "--tune-thresholds", tmp_path / "t.json")
    assert evaluate(trained, trained / "run" / "best.caffemodel", *words) == 0
    assert "1 of 6 classes have no positives, so their average precision is undefined" in capsys.readouterr().out
    report = json.loads((tmp_path / "e.json").read_text())
    ap = [entry["AP"] for entry in report["per_class"]]
    assert report["classes_without_positives"] == ["2"]
    assert ap[2] is None
    assert report["metrics"]["net, top 3"]["mAP"] == pytest.approx(np.mean([ap[k] for k in (0, 1, 3, 4, 5)]))
    assert read_thresholds(str(tmp_path / "t.json")).values[2] == np.inf


def test_a_sigmoid_net_is_evaluated_by_its_sigmoid(tmp_path):
    summary = train(make_run(tmp_path, loss=SIGMOID, max_iter=3, test=False))
    outputs = net_outputs(str(tmp_path / "train_val.prototxt"), summary["weights"])
    assert outputs.head.activation == "sigmoid"
    assert not np.allclose(outputs.probs.sum(axis=1), 1)


@pytest.mark.parametrize(
    "loss, ranked",
    [
        pytest.param(SIGMOID, lambda scores: scores, id="sigmoid"),
        pytest.param(OURS % "", log_odds_of_softmax, id="softmax"),
        pytest.param(
            'layer { name: "p" type: "Softmax" bottom: "scores" top: "p" }\n'
            'layer { name: "loss" type: "EuclideanLoss" bottom: "p" bottom: "label" top: "loss" }\n',
            log_odds_of_softmax,
            id="probabilities as scores",
        ),
    ],
)
def test_saturated_scores_are_ranked_as_scikit_learn_ranks_them(trained, tmp_path, loss, ranked):
    import caffe

    (tmp_path / "net.prototxt").write_text((trained / "train_val.prototxt").read_text().replace(OURS % "", loss))
    net = caffe.Net(str(tmp_path / "net.prototxt"), str(trained / "run" / "best.caffemodel"), caffe.TEST)
    net.params["scores"][0].data[...] *= 20000
    net.save(str(tmp_path / "scaled.caffemodel"))
    words = {"scores": "p", "labels": "label", "activation": "none"} if "Euclidean" in loss else {}
    outputs = net_outputs(str(tmp_path / "net.prototxt"), str(tmp_path / "scaled.caffemodel"), **words)
    assert np.isin(outputs.probs, [0, 1]).mean() > 0.9
    scores = []
    for _ in range(4):
        net.forward()
        scores.append(net.blobs["scores"].data.astype(np.float64))
    expected = average_precision_score(outputs.truth, ranked(np.concatenate(scores)[:37]))
    found = evaluation(outputs.truth, outputs.log_odds, outputs.known)["metrics"]["net, top 3"]
    assert found["mAP"] == pytest.approx(expected, rel=1e-12)
    assert found["mAP"] > 1.1 * average_precision_score(outputs.truth, outputs.probs)


@pytest.mark.parametrize(
    "low, high, positive_above",
    [
        pytest.param(0, 1, None, id="0 and 1"),
        pytest.param(0, 0.25, None, id="0 and one other value"),
        pytest.param(0.05, 0.95, 0.5, id="smoothed"),
        pytest.param(0.6, 0.9, 0.7, id="all above a half"),
    ],
)
def test_soft_labels_count_as_the_hard_ones_they_stand_for(trained, tmp_path, low, high, positive_above):
    weights = str(trained / "run" / "best.caffemodel")
    with h5py.File(trained / "test.h5", "r") as file:
        x, y = file["data"][:], file["label"][:]
    source = write_hdf5(tmp_path / "soft", data=x, label=(low + (high - low) * y).astype(np.float32))
    found = net_outputs(str(trained / "train_val.prototxt"), weights, data=source, positive_above=positive_above)
    assert np.array_equal(found.truth, y > 0)


def test_soft_labels_need_a_cut(trained, tmp_path):
    with h5py.File(trained / "test.h5", "r") as file:
        x, y = file["data"][:], file["label"][:]
    expected = "'label' holds labels from 0.05 to 0.95, .*known only of 0 and one other value.* --positive-above 0.5"
    for values in (0.05 + 0.9 * y, np.where(y > 0, 0.95, 0.05 * np.arange(6))):
        source = write_hdf5(tmp_path / "soft", data=x, label=values.astype(np.float32))
        with pytest.raises(UsageError, match=expected.replace("0.05 to", f"{values.min():g} to")):
            evaluate(trained, trained / "run" / "best.caffemodel", "--data", source)
        assert evaluate(trained, trained / "run" / "best.caffemodel", "--data", source, "--positive-above", 0.5) == 0


@pytest.mark.parametrize("value", ["nan", "-0.1", "inf", "half"])
def test_the_cut_is_a_number(capsys, value):
    with pytest.raises(SystemExit):
        main(["evaluate", "n", "w", f"--positive-above={value}"])
    assert f"--positive-above: '{value}'; expected a finite number of at least 0" in capsys.readouterr().err


def test_a_file_of_thresholds_that_contradicts_itself_is_refused(trained, tmp_path):
    weights = trained / "run" / "best.caffemodel"
    evaluate(trained, weights, "--tune-thresholds", tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    content["thresholds"][2] = 0.123
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match='"log_odds" that are not those of its "thresholds"; delete the "log_odds"'):
        evaluate(trained, weights, "--thresholds", tmp_path / "t.json")
    del content["log_odds"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert evaluate(trained, weights, "--thresholds", tmp_path / "t.json") == 0


def test_the_blobs_can_be_named_for_a_loss_that_is_not_known(trained, tmp_path):
    net = (trained / "train_val.prototxt").read_text().replace(OURS % "", "")
    unknown = 'layer { name: "loss" type: "EuclideanLoss" bottom: "scores" bottom: "label" top: "loss" }'
    (tmp_path / "net.prototxt").write_text(net + unknown)
    weights, path = str(trained / "run" / "best.caffemodel"), str(tmp_path / "net.prototxt")
    with pytest.raises(UsageError, match="has no loss layer known here"):
        net_outputs(path, weights)
    found = net_outputs(path, weights, scores="scores", labels="label", activation="softmax")
    assert np.array_equal(found[1], net_outputs(str(trained / "train_val.prototxt"), weights)[1])


def test_of_two_losses_on_the_same_scores_one_is_chosen_by_its_activation(trained, tmp_path):
    net = (trained / "train_val.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(net + SIGMOID.replace('"loss"', '"second"'))
    weights, path = str(trained / "run" / "best.caffemodel"), str(tmp_path / "net.prototxt")
    with pytest.raises(
        UsageError, match=r"losses of several activation \(softmax, sigmoid\); choose with --activation"
    ):
        net_outputs(path, weights)
    expected = net_outputs(str(trained / "train_val.prototxt"), weights)[1]
    assert np.array_equal(net_outputs(path, weights, activation="softmax")[1], expected)
    assert not np.array_equal(net_outputs(path, weights, activation="sigmoid")[1], expected)


@pytest.mark.parametrize(
    "words, message",
    [
        pytest.param(["no.caffemodel"], "no.caffemodel is no file; expected weights", id="missing weights"),
        pytest.param(["torn.caffemodel"], "is torn, or no weights file", id="torn weights"),
        pytest.param(["other.caffemodel"], "has no weights for layer 'hidden'", id="weights of another net"),
        pytest.param(["nan.caffemodel"], "has weights of layer 'scores' that are not finite", id="nan in the weights"),
        pytest.param(["narrow.caffemodel"], "for layer 'scores'; expected [(6, 10), (6,)]", id="shape"),
        pytest.param(["good", "--scores", "score"], "no blob 'score'; did you mean 'scores'?", id="blob name"),
        pytest.param(["good", "--labels", "data"], "(10, 5); expected (10, 6)", id="labels"),
        pytest.param(["good", "--data", "empty.txt"], "empty.h5, named in empty.txt, is empty", id="empty set"),
        pytest.param(["good", "--data", "foreign.txt"], "has no data set 'label'; it has data", id="foreign set"),
        pytest.param(["good", "--data", "torn.txt"], "is no readable HDF5 file", id="torn set"),
        pytest.param(["good", "--data", "zeros.txt"], "holds no positive label in 5 samples", id="no positives at all"),
        pytest.param(["good", "--data", "bad.txt"], "bottom[1] (labels) has -1 at sample 3, class 2", id="bad"),
        pytest.param(["good", "--data", "bool.txt"], "has bool in data set 'label' (layer ", id="bool"),
        pytest.param(["good", "--data", "group.txt"], "has a group of the name 'label' (layer 'data')", id="group"),
        pytest.param(["good", "--data", "scalar.txt"], "has a single number in data set 'label'", id="no rows"),
        pytest.param(["good", "--data", "wide.txt"], "(10, 7); expected (10, 6)", id="label width"),
        pytest.param(["good", "-k", "7"], "-k is 7; expected 1 to 6", id="k"),
        pytest.param(["good", "--classes", "two.txt"], "names 2 classes; expected 6", id="class names"),
        pytest.param(["good", "--thresholds", "two.txt"], "two.txt is no JSON", id="foreign thresholds"),
        pytest.param(["good", "--thresholds", "sigmoid.json"], "tuned on sigmoid probabilities; expected softmax",
                     id="thresholds of the other loss"),
        pytest.param(["good", "--thresholds", "high.json"], "holds thresholds from 0.5 to 3; expected 0 to 1",
                     id="thresholds that are no probabilities"),
        pytest.param(["good", "--json", "t.json"], "t.json is the file of both --json and --tune-thresholds", id="one"),
        pytest.param(["good", "--json", "./t.json"], "t.json is the file of both --json", id="one of two names"),
        pytest.param(["good", "--classes", "high.json", "--json", "high.json"], "both --json and --classes", id="in"),
        pytest.param(["good", "--json", "e.png"], "e.png: unknown kind of file; expected .json", id="json suffix"),
        pytest.param(["good", "--json", "no/e.json"], "no/e.json cannot be written", id="no such folder"),
        pytest.param(["good", "--picture", "e.xyz"], "e.xyz: unknown kind of file", id="picture suffix"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_sentence_and_writes_nothing(trained, tmp_path, monkeypatch, words, message):
    from caffe.proto import caffe_pb2

    monkeypatch.chdir(tmp_path)
    good = trained / "run" / "best.caffemodel"
    (tmp_path / "torn.caffemodel").write_bytes(good.read_bytes()[:200])
    net = caffe_pb2.NetParameter.FromString(good.read_bytes())
    for layer in net.layer:
        if layer.name == "scores":
            layer.blobs[0].shape.dim[0] = layer.blobs[1].shape.dim[0] = 5
            del layer.blobs[0].data[50:]
            del layer.blobs[1].data[5:]
    (tmp_path / "narrow.caffemodel").write_bytes(net.SerializeToString())
    for layer in net.layer:
        layer.name = f"other {layer.name}"
    (tmp_path / "other.caffemodel").write_bytes(net.SerializeToString())
    (tmp_path / "nan.caffemodel").write_bytes(poisoned(good))
    (tmp_path / "two.txt").write_text("a\nb\n")
    for name, kind, last in (("sigmoid", "sigmoid", 0.5), ("high", "softmax", 3)):
        content = {"probabilities": kind, "thresholds": [0.5] * 5 + [last]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    x, y = make_labels(np.random.RandomState(0), 5)
    write_hdf5("empty", data=x[:0], label=y[:0])
    write_hdf5("foreign", data=x)
    write_hdf5("zeros", data=x, label=0 * y)
    write_hdf5("wide", data=x, label=np.ones((5, 7), np.float32))
    bad = y.copy()
    bad[3, 2] = -1
    write_hdf5("bad", data=x, label=bad)
    write_hdf5("bool", data=x, label=y > 0)
    write_hdf5("group", **{"data": x, "label/inside": y})
    write_hdf5("scalar", data=x, label=np.float32(1))
    write_hdf5("torn", data=x, label=y)
    (tmp_path / "torn.h5").write_bytes((tmp_path / "torn.h5").read_bytes()[:900])
    before = listing(tmp_path)
    words = [str(good) if word == "good" else word for word in words]
    outputs = ["--tune-thresholds", "t.json"] + ([] if "--json" in words else ["--json", "e.json"])
    with pytest.raises(UsageError, match=re.escape(message)):
        evaluate(trained, *words, *outputs)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "words, message",
    [
        pytest.param(
            ["-k", "1", "3", "net.prototxt", "w.caffemodel"],
            "unrecognized arguments: w.caffemodel; several K are one word, as in -k 1,3",
            id="before the net",
        ),
        pytest.param(
            ["net.prototxt", "w.caffemodel", "-k", "1", "3"],
            "unrecognized arguments: 3; several K are one word, as in -k 1,3",
            id="after it",
        ),
        pytest.param(["n", "w", "-k", "1,b"], "argument -k: '1,b'; expected whole numbers such as 1,3", id="words"),
        pytest.param(["n", "w", "--kk"], "unrecognized arguments: --kk", id="another option"),
    ],
)
def test_several_k_are_one_word(capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *words])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"python -m multilabel_softmax_loss evaluate: error: {message}\n")


def test_bad_input_ends_the_command_with_status_2_and_one_sentence(trained, tmp_path, run_here):
    process = run_here("evaluate", trained / "train_val.prototxt", "no.caffemodel", folder=tmp_path, check=2)
    assert process.stdout == ""
    expected = "no.caffemodel is no file; expected weights (.caffemodel, or .caffemodel.h5). "
    expected += f"Paths count from the folder where you start, {tmp_path}."
    assert process.stderr == f"python -m multilabel_softmax_loss evaluate: error: {expected}\n"


READER = """import warnings

import caffe
import h5py
import numpy as np


class Reader(caffe.Layer):
    def setup(self, bottom, top):
        with h5py.File(self.param_str, "r") as file:
            self.arrays = [file[name][:] for name in ("data", "label")]
        self.place = 0

    def reshape(self, bottom, top):
        for blob, array in zip((top[0], top[1]), self.arrays):
            blob.reshape(5, array.shape[1])

    def forward(self, bottom, top):
        if not self.place:
            warnings.warn("a slow disk")
        for blob, array in zip((top[0], top[1]), self.arrays):
            blob.data[...] = array[self.place : self.place + 5]
        self.place += 5

    def backward(self, *arguments):
        pass
"""


def test_a_python_layer_brings_as_many_batches_as_one_says(trained, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    reader = 'layer { name: "data" type: "Python" top: "data" top: "label"\n'
    reader += f'  python_param {{ module: "reader" layer: "Reader" param_str: "{trained / "test.h5"}" }} }}\n'
    (tmp_path / "net.prototxt").write_text(reader + body() + OURS % "")
    words = ("evaluate", "net.prototxt", trained / "run" / "best.caffemodel", "--json", "e.json")
    settings = {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}, "folder": tmp_path}
    refused = run_command(*words, check=2, **settings)
    assert "no file tells how many samples layer 'data' of type Python brings; --iterations N says" in refused.stderr
    process = run_command(*words, "--iterations", 7, check=0, **settings)
    assert re.search(r"reader\.py:\d+: UserWarning: a slow disk\n", process.stderr)  # theirs, not ours
    assert "evaluate: warning" not in process.stderr
    expected = net_outputs(str(trained / "train_val.prototxt"), str(words[2]))
    report = evaluation(expected.truth[:35], expected.log_odds[:35])
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["samples"] == 35
    assert found["metrics"]["net, top 3"] == pytest.approx(report["metrics"]["net, top 3"])


def test_iterations_may_stop_early_but_count_nothing_twice(trained):
    net, weights = str(trained / "train_val.prototxt"), str(trained / "run" / "best.caffemodel")
    found, whole = net_outputs(net, weights, iterations=2), net_outputs(net, weights)
    assert np.array_equal(found.log_odds, whole.log_odds[:20])
    assert len(net_outputs(net, weights, iterations=4).truth) == 37
    with pytest.raises(UsageError, match="--iterations is 5; expected at most 4, as there are 37 samples in batches"):
        net_outputs(net, weights, iterations=5)


def test_training_data_are_scored_as_in_testing(trained):
    net, weights = str(trained / "train_val.prototxt"), str(trained / "run" / "best.caffemodel")
    first, second = (net_outputs(net, weights, phase="TRAIN") for _ in range(2))
    assert np.array_equal(first.log_odds, second.log_odds)  # no Dropout
    tested = net_outputs(net, weights, data=str(trained / "train.txt"))
    assert np.array_equal(first.truth, tested.truth)
    assert first.log_odds == pytest.approx(tested.log_odds, abs=1e-5)  # in batches of another size


def test_images_of_a_list_are_scored_in_their_order_and_not_mirrored(tmp_path):
    import cv2

    pixels = np.random.RandomState(0).randint(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    for k, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path}/{k}.png {k % 3}\n" for k in range(7)))
    images = 'layer { name: "data" type: "ImageData" top: "data" top: "label" transform_param { mirror: true }\n'
    images += f'  image_data_param {{ source: "{tmp_path}/list.txt" batch_size: 3 shuffle: true }} }}\n'
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }\n'
    (tmp_path / "net.prototxt").write_text(images + inner_product("scores", "data", 3) + loss)
    import caffe

    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    net.params["scores"][0].data[...] *= 0.01
    net.save(str(tmp_path / "w.caffemodel"))
    outputs = net_outputs(str(tmp_path / "net.prototxt"), str(tmp_path / "w.caffemodel"))
    assert outputs.truth.argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    weights, bias = (blob.data.astype(float) for blob in net.params["scores"])
    scores = pixels.transpose(0, 3, 1, 2).reshape(7, -1) @ weights.T + bias
    assert outputs.log_odds == pytest.approx(log_odds_of_softmax(scores), rel=1e-4, abs=1e-4)
