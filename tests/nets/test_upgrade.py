"""Old nets are read as Caffe itself reads them: what it makes of the old file is what it makes of the upgraded one."""

import re

import caffe
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from support.tiny_nets import write_hdf5, write_solver

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.reading import phase_layers, read_prototxt
from multilabel_softmax_loss.nets.upgrade import V0_TYPES, V1_TYPES

V1 = """
name: "old"
layers { name: "data" type: HDF5_DATA top: "data" top: "label" include { phase: TRAIN }
  hdf5_data_param { source: "%(source)s" batch_size: 3 } }
layers { name: "data" type: HDF5_DATA top: "data" top: "label" include { phase: TEST }
  hdf5_data_param { source: "%(source)s" batch_size: 2 } }
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
  weight_decay: 0 convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" relu_param { negative_slope: 0.1 } }
layers { name: "pool" type: POOLING bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layers { name: "lrn" type: LRN bottom: "pool" top: "lrn" lrn_param { local_size: 3 alpha: 0.1 } }
layers { name: "drop" type: DROPOUT bottom: "lrn" top: "lrn" dropout_param { dropout_ratio: 0.2 } }
layers { name: "one" type: INNER_PRODUCT bottom: "lrn" top: "one" param: "shared" param: "shared_bias"
  blob_share_mode: STRICT blob_share_mode: PERMISSIVE
  inner_product_param { num_output: 6 weight_filler { type: "gaussian" std: 0.1 } } }
layers { name: "two" type: INNER_PRODUCT bottom: "lrn" top: "two" param: "shared" param: "shared_bias"
  inner_product_param { num_output: 6 } }
layers { name: "sum" type: ELTWISE bottom: "one" bottom: "two" top: "scores" eltwise_param { operation: SUM } }
layers { name: "loss" type: SIGMOID_CROSS_ENTROPY_LOSS bottom: "scores" bottom: "label" top: "loss" loss_weight: 0.5 }
"""
V0 = """
name: "oldest" input: "data" input_dim: 2 input_dim: 3 input_dim: 6 input_dim: 6
layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "data" top: "pad" }
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 group: 1 stride: 1 biasterm: true
  weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 }
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 } bottom: "pad" top: "conv" }
layers { layer { name: "relu" type: "relu" } bottom: "conv" top: "conv" }
layers { layer { name: "pool" type: "pool" pool: AVE kernelsize: 2 stride: 2 } bottom: "conv" top: "pool" }
layers { layer { name: "norm" type: "lrn" local_size: 3 alpha: 0.1 beta: 0.5 k: 2 } bottom: "pool" top: "norm" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.3 } bottom: "norm" top: "norm" }
layers { layer { name: "scores" type: "innerproduct" num_output: 5 weight_filler { type: "xavier" } }
  bottom: "norm" top: "scores" }
layers { layer { name: "both" type: "concat" concat_dim: 1 } bottom: "scores" bottom: "scores" top: "both" }
layers { layer { name: "prob" type: "softmax" } bottom: "both" top: "prob" }
"""
LMDB = """
layers { layer { name: "data" type: "data" source: "%(lmdb)s" batchsize: 4 scale: 0.5 cropsize: 4 mirror: true
  rand_skip: 3 meanfile: "mean.binaryproto" } top: "data" top: "label" }
"""
V1_LMDB = """
layers { name: "data" type: DATA top: "data" top: "label"
  data_param { source: "digits" batch_size: 4 scale: 0.5 crop_size: 4 mirror: true mean_file: "mean.binaryproto" } }
layers { name: "images" type: IMAGE_DATA top: "image" top: "kind"
  image_data_param { source: "list.txt" batch_size: 4 scale: 2 crop_size: 3 shuffle: true } }
"""


def data(folder):
    draw = np.random.RandomState(0)
    labels = (draw.rand(6, 6) < 0.5).astype(np.float32)
    return write_hdf5(folder / "set", data=draw.rand(6, 3, 6, 6).astype(np.float32), label=labels)


def made_by_caffe(path, phase, folder):
    """All that Caffe makes of a prototxt file in a phase, weights included."""
    caffe.set_random_seed(1)
    caffe.Net(str(path), getattr(caffe, phase)).save(str(folder / "net.caffemodel"))
    return caffe_pb2.NetParameter.FromString((folder / "net.caffemodel").read_bytes())


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("text", [pytest.param(V1, id="V1"), pytest.param(V0, id="V0")])
def test_caffe_makes_the_same_of_the_old_net_and_of_the_upgraded_one(tmp_path, text, phase):
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text(text.replace("%(source)s", data(tmp_path)))
    new.write_text(str(read_prototxt(str(old))))
    assert "layers" not in new.read_text()
    assert made_by_caffe(new, phase, tmp_path) == made_by_caffe(old, phase, tmp_path)


def test_every_type_of_the_old_formats_is_one_that_caffe_has():
    known = {*caffe.layer_type_list(), ""}
    for name in caffe_pb2.V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"].values_by_name:
        net = caffe_pb2.NetParameter(layers=[{"name": "layer", "type": name}])
        assert read(str(net)).layer[0].type in known
    assert {kind for kind, _ in V0_TYPES.values()} <= known
    assert set(V1_TYPES) <= set(caffe_pb2.V1LayerParameter.LayerType.keys())


def read(text):
    from multilabel_softmax_loss.nets.upgrade import upgrade_net

    net = text_format.Parse(text, caffe_pb2.NetParameter())
    upgrade_net(net, "net.prototxt")
    return net


@pytest.mark.parametrize("text", [pytest.param(LMDB, id="V0"), pytest.param(V1_LMDB, id="V1")])
def test_what_a_data_layer_does_to_images_moves_to_transform_param(text):
    layers = read(text).layer
    transform = layers[0].transform_param
    assert (transform.scale, transform.crop_size, transform.mirror) == (0.5, 4, True)
    assert transform.mean_file == "mean.binaryproto"
    assert layers[0].data_param.batch_size == 4
    assert not layers[0].data_param.HasField("scale")
    if len(layers) > 1:
        assert layers[1].transform_param.crop_size == 3
        assert layers[1].image_data_param.shuffle


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param('input_dim: 4 input_dim: 5 input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 1 input_dim: 1 '
                     'input_dim: 1', id="input_dim"),
        pytest.param("input_shape { dim: 4 dim: 5 dim: 1 dim: 1 } input_shape { dim: 4 dim: 1 dim: 1 dim: 1 }",
                     id="input_shape"),
    ],
)  # fmt: skip
def test_the_inputs_of_a_net_are_an_input_layer(shapes):
    (layer, _) = read('input: "data" input: "label" ' + shapes + ' layer { name: "s" type: "Silence" }').layer
    assert (layer.name, layer.type, list(layer.top)) == ("input", "Input", ["data", "label"])
    assert [list(shape.dim) for shape in layer.input_param.shape] == [[4, 5, 1, 1], [4, 1, 1, 1]]


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param('layers { type: RELU } layer { name: "a" }', "has both layers { } of Caffe's old", id="mixed"),
        pytest.param('input: "a" layer { name: "a" }', "has 1 input and 0 input_dim", id="no shape"),
        pytest.param('input: "a" input_dim: 1 input_dim: 2', "has 1 input and 2 input_dim", id="half a shape"),
        pytest.param('layers { layer { name: "x" type: "convolution" } }', "has type 'convolution'", id="V0 type"),
        pytest.param('layers { layer { name: "x" type: "relu" pad: 1 } }', "'relu' has pad, which", id="V0 field"),
        pytest.param(
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "a" top: "b" } '
            'layers { layer { name: "x" type: "relu" } bottom: "b" top: "c" }',
            "takes the padding layer 'p'; expected a conv or pool layer",
            id="padding",
        ),
    ],
)
def test_what_caffe_would_stop_at_is_told_in_a_sentence(text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        read(text)


def test_old_solvers_name_their_type_by_number(tmp_path):
    path = tmp_path / "solver.prototxt"
    path.write_text('solver_type: ADAGRAD train_net_param { layers { name: "a" type: RELU } }')
    solver = read_prototxt(str(path), "SolverParameter")
    assert solver.type == "AdaGrad"
    assert solver.train_net_param.layer[0].type == "ReLU"
    path.write_text('solver_type: ADAGRAD type: "SGD"')
    with pytest.raises(UsageError, match="has both type and solver_type"):
        read_prototxt(str(path), "SolverParameter")


def test_every_command_takes_an_old_net(tmp_path, run_here):
    (tmp_path / "net.prototxt").write_text(V1.replace("%(source)s", data(tmp_path)))
    assert len(phase_layers(read_prototxt(str(tmp_path / "net.prototxt")), "TEST")) == 10
    solver = write_solver(tmp_path, tmp_path / "net.prototxt", max_iter=2, snapshot=2)
    run_here("train", solver, "--out", "run", folder=tmp_path, check=0)
    weights = "run/best.caffemodel"
    run_here("evaluate", "net.prototxt", weights, "--json", "o.json", folder=tmp_path, check=0)
    run_here("deploy", "net.prototxt", "--weights", weights, folder=tmp_path, check=0)
