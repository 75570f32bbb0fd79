"""`deploy`: what goes, what stays, and the proof, which must be able to fail."""

import argparse
import re

import caffe
import cv2
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from tiny_nets import CLASSES, OURS, SIGMOID, inner_product, listing, make_run, poisoned, run_command, write_hdf5

from multilabel_softmax_loss import deploy as deploy_module
from multilabel_softmax_loss.deploy import deploy, parse_shape
from multilabel_softmax_loss.native import UsageError
from multilabel_softmax_loss.train import train

CONVOLUTION = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } bias_filler { type: "constant" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "side" type: "InnerProduct" bottom: "conv" top: "side" include { phase: TRAIN }
  inner_product_param { num_output: 3 } }
layer { name: "side_loss" type: "EuclideanLoss" bottom: "side" bottom: "other" top: "l2" include { phase: TRAIN } }
layer { name: "hidden" type: "InnerProduct" bottom: "conv" top: "hidden" inner_product_param { num_output: 8
  weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "hidden" top: "drop" }
layer { name: "relu2" type: "ReLU" bottom: "drop" top: "drop" }
"""


def image_net(folder, loss, extra=""):
    """A train_val.prototxt of (9, 1, 6, 6) images with what deploying has to take out."""
    rng = np.random.RandomState(0)
    source = write_hdf5(
        folder / "images",
        data=rng.rand(9, 1, 6, 6).astype(np.float32),
        label=(rng.rand(9, CLASSES) < 0.4).astype(np.float32),
        other=rng.rand(9, 3).astype(np.float32),
    )
    tops = {"TRAIN": 'top: "label" top: "other"', "TEST": 'top: "label"'}
    net = "".join(
        f'layer {{ name: "data" type: "HDF5Data" top: "data" {tops[phase]} include {{ phase: {phase} }}\n'
        f'  hdf5_data_param {{ source: "{source}" batch_size: 5 }} }}\n'
        for phase in tops
    )
    accuracy = 'layer { name: "watch" type: "Silence" bottom: "label" include { phase: TEST } }\n'
    path = folder / "train_val.prototxt"
    path.write_text(net + CONVOLUTION + inner_product("scores", "drop", CLASSES) + loss + accuracy + extra)
    return str(path)


def read(path):
    return text_format.Parse(path.read_text(), caffe_pb2.NetParameter())


@pytest.mark.parametrize(
    "loss, last",
    [
        pytest.param(OURS % "", "Softmax", id="our softmax"),
        pytest.param(SIGMOID, "Sigmoid", id="Caffe's sigmoid"),
        pytest.param(OURS.replace("Softmax", "Sigmoid") % "", "Sigmoid", id="our sigmoid"),
    ],
)
def test_only_what_scores_need_stays(tmp_path, capsys, loss, last):
    path = image_net(tmp_path, loss)
    assert deploy(path, str(tmp_path / "deploy.prototxt")) == 0
    net = read(tmp_path / "deploy.prototxt")
    kinds = [layer.type for layer in net.layer]
    convolution = ["Convolution", "BatchNorm", "Scale", "ReLU"]
    assert kinds == ["Input", *convolution, "InnerProduct", "ReLU", "InnerProduct", last]
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 1, 6, 6]
    text = (tmp_path / "deploy.prototxt").read_text()
    for word in ("filler", "lr_mult", "include", "loss", "label", "drop_ratio", "phase"):
        assert word not in text
    said = capsys.readouterr().out
    differences = [float(number) for number in re.findall(r"(\S+) from those of", said)]
    assert len(differences) == 2
    assert max(differences) <= 1e-5


def test_with_the_shape_of_the_input_the_data_need_not_be_there(tmp_path):
    path = image_net(tmp_path, OURS % "")
    assert deploy(path, str(tmp_path / "with_data.prototxt")) == 0
    (tmp_path / "images.txt").unlink()
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shape=(2, 1, 6, 6)) == 0
    assert (tmp_path / "deploy.prototxt").read_text() == (tmp_path / "with_data.prototxt").read_text()


def test_without_weights_the_proof_is_the_same_on_every_run_and_its_scores_are_moderate(tmp_path, capsys):
    path = image_net(tmp_path, OURS % "")
    said = []
    for _ in range(2):
        assert deploy(path, str(tmp_path / "deploy.prototxt")) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    lowest, highest = (float(number) for number in re.search(r"probabilities, (\S+) to (\S+),", said[0]).groups())
    assert 0.01 < lowest < highest < 0.9


def test_trained_weights_give_the_training_nets_probabilities(tmp_path):
    from multilabel_softmax_loss.evaluate import net_outputs

    summary = train(make_run(tmp_path, test=False))
    process = run_command("deploy", "train_val.prototxt", "--weights", summary["weights"], folder=tmp_path, check=0)
    assert "in Caffe" in process.stdout
    assert "in OpenCV" in process.stdout
    assert process.stderr == ""
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), summary["weights"])
    import h5py

    with h5py.File(tmp_path / "test.h5", "r") as file:
        net.setInput(file["data"][:])
    probs = net_outputs(str(tmp_path / "train_val.prototxt"), summary["weights"])[1]
    assert net.forward() == pytest.approx(probs, abs=1e-6)


def test_the_proof_fails_for_a_deploy_net_that_computes_something_else(tmp_path, monkeypatch, capsys):
    path = image_net(tmp_path, OURS % "")
    right = deploy_module.deploy_net

    def without_last_relu(*arguments):
        net = right(*arguments)
        (index,) = [k for k, layer in enumerate(net.layer) if layer.name == "relu2"]
        net.layer[index].relu_param.negative_slope = 0.01
        return net

    monkeypatch.setattr(deploy_module, "deploy_net", without_last_relu)
    assert deploy(path, str(tmp_path / "deploy.prototxt")) == 1
    assert "more than 1e-05" in capsys.readouterr().out
    assert not (tmp_path / "deploy.prototxt").exists()


def test_opencv_may_round_more_in_its_own_fast_convolutions_only(tmp_path, monkeypatch, capsys):
    path = image_net(tmp_path, OURS % "")
    right = deploy_module.run_opencv

    def rounding(text, model, inputs, winograd=True):
        return right(text, model, inputs, winograd) + (2e-5 if winograd else 0)

    monkeypatch.setattr(deploy_module, "run_opencv", rounding)
    assert deploy(path, str(tmp_path / "deploy.prototxt")) == 0
    said = capsys.readouterr().out
    assert "in OpenCV, more than 1e-05" in said
    assert "in OpenCV without Winograd convolutions\n" in said


def test_a_net_without_fillers_is_proved_with_weights_that_are_not_zero(tmp_path, capsys):
    path = image_net(tmp_path, OURS % "")
    with open(path) as file:
        text = re.sub(r'weight_filler { type: "\w+" }', "", file.read())
    with open(path, "w") as file:
        file.write(text)
    assert deploy(path, str(tmp_path / "deploy.prototxt")) == 0
    low, high = re.search(r"probabilities, (\S+) to (\S+),", capsys.readouterr().out).groups()
    assert float(low) < 1 / CLASSES - 0.01 < 1 / CLASSES + 0.01 < float(high)


def test_what_opencv_cannot_run_is_said_and_ends_with_3(tmp_path, capsys):
    twice = """layer { name: "double" type: "Python" bottom: "scores" top: "double"
      python_param { module: "doubling" layer: "Doubling" } }
    """
    (tmp_path / "doubling.py").write_text(
        "import caffe\n\n\nclass Doubling(caffe.Layer):\n"
        "    def setup(self, bottom, top):\n        pass\n\n"
        "    def reshape(self, bottom, top):\n        top[0].reshape(*bottom[0].data.shape)\n\n"
        "    def forward(self, bottom, top):\n        top[0].data[...] = 2 * bottom[0].data\n"
    )
    image_net(tmp_path, twice + (OURS % "").replace('bottom: "scores"', 'bottom: "double"'))
    process = run_command("deploy", "train_val.prototxt", folder=tmp_path, check=3)
    assert "OpenCV: cannot run this net" in process.stdout
    assert (tmp_path / "deploy.prototxt").exists()


def test_the_loss_of_the_train_phase_serves_where_the_test_phase_has_none(tmp_path):
    loss = (OURS % "").replace('type: "Python"', 'type: "Python" include { phase: TRAIN }')
    assert deploy(image_net(tmp_path, loss), str(tmp_path / "deploy.prototxt")) == 0
    assert read(tmp_path / "deploy.prototxt").layer[-1].type == "Softmax"


@pytest.mark.parametrize(
    "change, options, message",
    [
        pytest.param(("", ""), {"weights": "no.caffemodel"}, "no.caffemodel is no file", id="no weights"),
        pytest.param(("", ""), {"weights": "images.h5"}, "is torn, or no weights file", id="foreign weights"),
        pytest.param(("", ""), {"weights": "nan.caffemodel"}, "that are not finite", id="nan in the weights"),
        pytest.param(("", ""), {"scores": "scor"}, "has no blob 'scor'; did you mean 'scores'?", id="blob name"),
        pytest.param(('"Python"', '"Silence"'), {}, "has no loss layer known here", id="no loss"),
        pytest.param(("layer {", "layers { type: RELU } layer {"), {}, "old format", id="old format"),
        pytest.param(("num_output", "num_outputs"), {}, 'has no field named "num_outputs"', id="not a net"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_writes_nothing(tmp_path, monkeypatch, change, options, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train_val.prototxt"
    image_net(tmp_path, OURS % "")
    path.write_text(path.read_text().replace(*change))
    if "nan.caffemodel" in options.values():
        caffe.Net(str(path), caffe.TEST).save("nan.caffemodel")
        (tmp_path / "nan.caffemodel").write_bytes(poisoned("nan.caffemodel"))
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        deploy(str(path), "deploy.prototxt", **options)
    assert listing(tmp_path) == before


def test_a_deploy_net_of_another_hand_is_replaced_only_if_it_is_named(tmp_path):
    parser = argparse.ArgumentParser()
    deploy_module.add_arguments(parser)
    path = image_net(tmp_path, OURS % "")
    deployed = tmp_path / "deploy.prototxt"
    for _ in range(2):  # what it wrote itself is no loss
        assert deploy_module.run_here(parser.parse_args([path])) == 0
    mine = deployed.read_text().replace('name: "hidden"', 'name: "mine"')
    deployed.write_text(mine)
    with pytest.raises(UsageError, match=f"{deployed} is there already, and differs; --out {deployed} replaces it."):
        deploy_module.run_here(parser.parse_args([path]))
    assert deployed.read_text() == mine
    assert deploy_module.run_here(parser.parse_args([path, "--out", str(deployed)])) == 0
    assert deployed.read_text() != mine


def test_labels_that_the_loss_refuses_are_told_in_a_sentence(tmp_path):
    import h5py

    path = image_net(tmp_path, OURS % "")
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        file["label"][2, 1] = -1
    with pytest.raises(UsageError, match=r"train_val.prototxt: MultilabelSoftmaxLossLayer: bottom\[1\] .* has -1 at"):
        deploy(path, str(tmp_path / "deploy.prototxt"))


@pytest.mark.parametrize("text", ["1,", "1,x", "1,0,2,2", "1,3,99999999999,1", f"1,{10**30}", "1,65536,65536"])
def test_an_impossible_shape_of_the_input_is_told_in_a_sentence(text):
    with pytest.raises(UsageError, match=f"--input-shape is '{text}'; expected "):
        parse_shape(text)


def test_a_net_without_a_name_is_told_in_a_sentence(tmp_path):
    process = run_command("deploy", "", folder=tmp_path, check=2)
    assert process.stderr == (
        "python -m multilabel_softmax_loss deploy: error: '' cannot be read: No such file or directory.\n"
    )
