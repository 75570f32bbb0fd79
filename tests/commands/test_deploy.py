"""`deploy`: what goes, what stays, and the proof, which must be able to fail."""

import argparse
import re

import caffe
import cv2
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from support.tiny_nets import (
    CLASSES,
    OURS,
    SIGMOID,
    hdf5_layer,
    inner_product,
    listing,
    make_run,
    poisoned,
    run_command,
    write_hdf5,
)

from multilabel_softmax_loss.commands import deploy as deploy_module
from multilabel_softmax_loss.commands.deploy import deploy, parse_shape, parse_shapes
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets import proof

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
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes={"": (1, 1, 6, 6)}) == 0
    assert (tmp_path / "deploy.prototxt").read_text() == (tmp_path / "with_data.prototxt").read_text()
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes={"": (2, 1, 6, 6)}) == 0
    assert list(read(tmp_path / "deploy.prototxt").layer[0].input_param.shape[0].dim) == [2, 1, 6, 6]


def simple_net(folder, middle, loss=None, data=None, head=None):
    """A train_val.prototxt of samples "data" of 5 numbers from 0 to 1, or as given, and of whole numbers "class"."""
    data = np.random.RandomState(0).rand(8, 5).astype(np.float32) if data is None else data
    source = write_hdf5(folder / "samples", data=data, **{"class": np.arange(8, dtype=np.float32) % 3})
    head = head or hdf5_layer(source, "TEST", batch=8, tops=("data", "class"))
    loss = loss or 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "class" top: "loss" }'
    (folder / "train_val.prototxt").write_text(head + middle + loss)
    return str(folder / "train_val.prototxt")


SCORES = inner_product("scores", "data", 3)
RELU = 'layer {{ name: "relu" type: "ReLU" bottom: "{0}" top: "{0}" }}\n'.format
OTHER_LOSS = 'layer { name: "%s" type: "SoftmaxWithLoss" bottom: "scores" bottom: "%s" top: "%s" }\n'
SLICE = """layer { name: "slice" type: "Slice" bottom: "all" top: "rest" top: "scores"
  slice_param { axis: 1 slice_point: 4 } }
layer { name: "silence" type: "Silence" bottom: "rest" }
"""


@pytest.mark.parametrize(
    "middle, changes, keywords",
    [
        pytest.param(
            inner_product("one", "data", 6) + RELU("one") + inner_product("two", "one", 6) + RELU("two")
            + inner_product("three", "two", 6) + RELU("three") + inner_product("scores", "three", 3),
            {}, {}, id="layers of one name",
        ),
        pytest.param(
            SCORES,
            {"loss": 'layer { name: "copy" type: "Power" bottom: "class" top: "copy" }\n'
             + OTHER_LOSS % ("loss", "class", "loss") + OTHER_LOSS % ("loss2", "copy", "loss2")},
            {}, id="two losses with other labels on the same scores",
        ),
        pytest.param(
            SCORES, {"head": 'input: "data" input_shape { dim: 4 dim: 5 } input: "class" input_shape { dim: 4 }\n'},
            {}, id="inputs of the net",
        ),
        pytest.param(
            SCORES, {"head": 'input: "data" input_dim: 4 input_dim: 5 input_dim: 1 input_dim: 1\n'
                     'layer { name: "class" type: "DummyData" top: "class" dummy_data_param { shape { dim: 4 } } }\n'},
            {"shapes": {"": (1, 5, 1, 1)}}, id="an input of the net with another shape",
        ),
        pytest.param(
            'layer { name: "root" type: "Power" bottom: "data" top: "root" power_param { power: 0.5 } }\n'
            + inner_product("scores", "root", 3), {}, {}, id="data that must be positive",
        ),
        pytest.param(inner_product("all", "data", 7) + SLICE, {}, {"activation": "none"}, id="scores as a second top"),
        pytest.param(
            inner_product("hidden", "data", 4)
            + 'layer { name: "relu" type: "PReLU" bottom: "hidden" top: "hidden"\n'
            '  prelu_param { channel_shared: true } }\n'
            + inner_product("scores", "hidden", 3), {}, {}, id="a weight without axes",
        ),
    ],
)  # fmt: skip
def test_nets_of_all_kinds_are_proved(tmp_path, middle, changes, keywords):
    path = simple_net(tmp_path, middle, **changes)
    assert deploy(path, str(tmp_path / "deploy.prototxt"), **keywords) == 0
    net = read(tmp_path / "deploy.prototxt")
    assert [list(layer.top) for layer in net.layer if layer.type == "Input"] == [["data"]]


@pytest.mark.parametrize("shape", [None, (8, 1)])
def test_what_an_embedding_reads_are_indices(tmp_path, capsys, shape):
    embed = """layer { name: "embed" type: "Embed" bottom: "data" top: "embed"
      embed_param { input_dim: 200000 num_output: 4 weight_filler { type: "xavier" } } }
"""
    words = np.random.RandomState(0).randint(200000, size=(8, 1)).astype(np.float32)
    path = simple_net(tmp_path, embed + inner_product("scores", "embed", 3), data=words)
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes=shape and {"": shape}) == 3
    assert 'OpenCV: cannot run this net: Can\'t create layer "embed"' in capsys.readouterr().out


def test_fixed_parameters_stay_where_the_shape_is_given(tmp_path):
    bias = """layer { name: "fixed" type: "Parameter" top: "fixed" parameter_param { shape { dim: 3 } } }
layer { name: "bias" type: "Bias" bottom: "plain" bottom: "fixed" top: "scores" bias_param { axis: 1 } }
"""
    path = simple_net(tmp_path, inner_product("plain", "data", 3) + bias)
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes={"": (1, 5)}) == 3  # OpenCV knows no Parameter
    assert "Parameter" in [layer.type for layer in read(tmp_path / "deploy.prototxt").layer]


def test_defaults_that_differ_in_opencv_are_written_out(tmp_path):
    norm = """layer { name: "norm" type: "LRN" bottom: "data" top: "norm" lrn_param { local_size: 3 } }
"""
    path = simple_net(tmp_path, norm + inner_product("scores", "norm", 3), data=np.ones((8, 5, 2, 2), np.float32))
    assert deploy(path, str(tmp_path / "deploy.prototxt")) == 0
    parameter = read(tmp_path / "deploy.prototxt").layer[1].lrn_param
    assert [field.name for field, _ in parameter.ListFields()] == ["local_size", "alpha", "beta", "k"]
    assert parameter.local_size == 3


CONSTANT = """layer { name: "ones" type: "DummyData" top: "ones" dummy_data_param { shape { dim: 8 dim: 2 }
  data_filler { type: "constant" value: 0.5 } } }
layer { name: "both" type: "Concat" bottom: "data" bottom: "ones" top: "both" }
"""


@pytest.mark.parametrize("shapes, samples", [({}, 1), ({"": (8, 5)}, 8), ({"data": (3, 5)}, 3)])
def test_a_constant_stays_one_for_as_many_samples_as_the_input_has(tmp_path, capsys, shapes, samples):
    path = simple_net(tmp_path, CONSTANT + inner_product("scores", "both", 3))
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes=shapes) == 3  # OpenCV knows no DummyData
    net = read(tmp_path / "deploy.prototxt")
    assert [layer.name for layer in net.layer if layer.type == "Input"] == ["data"]
    (constant,) = [layer.dummy_data_param for layer in net.layer if layer.type == "DummyData"]
    assert list(constant.shape[0].dim) == [samples, 2]
    assert constant.data_filler[0].value == 0.5
    assert float(re.search(r"(\S+) from those of \S+ in Caffe", capsys.readouterr().out).group(1)) < 1e-6


def two_inputs(folder):
    sum_of_both = """layer { name: "sum" type: "Concat" bottom: "data" bottom: "more" top: "sum" }
"""
    return simple_net(
        folder,
        hdf5_layer(
            write_hdf5(folder / "more", more=np.ones((8, 2), np.float32)), "TEST", batch=8, tops=("more",)
        ).replace('name: "data"', 'name: "more"')
        + sum_of_both
        + inner_product("scores", "sum", 3),
    )


def test_each_of_several_inputs_has_a_shape_of_its_own(tmp_path):
    path = two_inputs(tmp_path)
    assert deploy(path, str(tmp_path / "with_data.prototxt")) == 0
    for name in ("samples", "more"):
        (tmp_path / f"{name}.txt").unlink()
    assert deploy(path, str(tmp_path / "deploy.prototxt"), shapes={"more": (1, 2), "data": (1, 5)}) == 0
    assert (tmp_path / "deploy.prototxt").read_text() == (tmp_path / "with_data.prototxt").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        pytest.param(
            ["1,5"], "has several inputs (data, more); give the shape of each: --input-shape data=N", id="one"
        ),
        pytest.param(["data=1,5"], "give the shape of each", id="one of two"),
        pytest.param(["dat=1,5", "more=1,2"], "has no input 'dat'; did you mean 'data'?", id="unknown"),
        pytest.param(["more=1,5", "more=1,2"], "--input-shape gives blob 'more' twice", id="twice"),
        pytest.param(["1,5", "1,2"], "--input-shape gives the only input twice", id="twice without a name"),
        pytest.param(["data=", "more=1,2"], "--input-shape is ''; expected whole numbers", id="no number"),
    ],
)
def test_shapes_that_do_not_suit_the_inputs_are_told_in_a_sentence(tmp_path, words, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        deploy(two_inputs(tmp_path), str(tmp_path / "deploy.prototxt"), shapes=parse_shapes(words))


def test_the_training_net_is_not_overwritten_by_any_of_its_names(tmp_path, monkeypatch):
    path = image_net(tmp_path, OURS % "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.prototxt").symlink_to("train_val.prototxt")
    parser = argparse.ArgumentParser()
    deploy_module.add_arguments(parser)
    before = listing(tmp_path)
    for out in ("link.prototxt", "./train_val.prototxt"):
        with pytest.raises(UsageError, match="is the file of both --out and the training net"):
            deploy_module.run(parser.parse_args([path, "--out", out]))
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "middle, loss, message",
    [
        pytest.param(SCORES, OURS.replace('"label"', '"class"') % '{"axis": 5}', "axis 5 is out of bounds", id="axis"),
        pytest.param(
            SCORES,
            OURS.replace('"label"', '"class"') % '{"axis": "one"}',
            "layer 'loss' has axis 'one' in its param_str; expected a whole number",
            id="no axis",
        ),
        pytest.param(SCORES, OURS.replace('bottom: "label"', "") % "", "has no loss layer known here", id="no labels"),
        pytest.param(
            SCORES.replace('"scores"', '"low"')
            + 'layer { name: "scores" type: "Log" bottom: "low" top: "scores" log_param { shift: -100 } }\n',
            None,
            "gives nan for random input, which proves nothing",
            id="nan",
        ),
    ],
)
def test_what_cannot_be_proved_is_told_in_a_sentence(tmp_path, middle, loss, message):
    path = simple_net(tmp_path, middle, loss)
    with pytest.raises(UsageError, match=re.escape(message)):
        deploy(path, str(tmp_path / "deploy.prototxt"), shapes={"": (1, 5)})
    assert not (tmp_path / "deploy.prototxt").exists()


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
    from multilabel_softmax_loss.commands.outputs import net_outputs

    summary = train(make_run(tmp_path, test=False))
    process = run_command("deploy", "train_val.prototxt", "--weights", summary["weights"], folder=tmp_path, check=0)
    assert "in Caffe" in process.stdout
    assert "in OpenCV" in process.stdout
    assert process.stderr == ""
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), summary["weights"])
    import h5py

    with h5py.File(tmp_path / "test.h5", "r") as file:
        net.setInput(file["data"][:])
    probs = net_outputs(str(tmp_path / "train_val.prototxt"), summary["weights"]).probs
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
    right = proof.run_opencv

    def rounding(text, model, inputs, winograd=True):
        return right(text, model, inputs, winograd) + (2e-5 if winograd else 0)

    monkeypatch.setattr(proof, "run_opencv", rounding)
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
        pytest.param(("layer {", "layers { type: RELU } layer {"), {}, "old format", id="two formats"),
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
        assert deploy_module.run(parser.parse_args([path])) == 0
    mine = deployed.read_text().replace('name: "hidden"', 'name: "mine"')
    deployed.write_text(mine)
    with pytest.raises(
        UsageError, match=re.escape(f"{deployed} is there already, and differs; --out {deployed} replaces it.")
    ):
        deploy_module.run(parser.parse_args([path]))
    assert deployed.read_text() == mine
    assert deploy_module.run(parser.parse_args([path, "--out", str(deployed)])) == 0
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


def test_a_net_without_a_name_is_told_in_a_sentence(tmp_path, run_here):
    process = run_here("deploy", "", folder=tmp_path, check=2)
    assert process.stderr == (
        "python -m multilabel_softmax_loss deploy: error: '' cannot be read: No such file or directory.\n"
    )
