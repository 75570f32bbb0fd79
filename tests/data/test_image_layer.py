"""The image data layer in real Caffe: beside ImageData, trained, resumed, evaluated, deployed."""

import json

import cv2
import numpy as np
import pytest
from support import sources
from support.caffe_nets import make_net
from support.tiny_nets import same_weights, write_solver

from multilabel_softmax_loss.commands.outputs import net_outputs
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.data.source import gather
from multilabel_softmax_loss.data.writers import write_index

OPTIONS = {"batch_size": 6, "new_height": 24, "new_width": 24, "workers": 0}
NET = """
layer { name: "scores" type: "InnerProduct" bottom: "data" top: "scores"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "Python" bottom: "scores" bottom: "labels" top: "loss" loss_weight: 1
  python_param { module: "multilabel_softmax_loss" layer: "MultilabelSigmoidLossLayer" } }
"""


def data_layer(source, phase="TRAIN", **options):
    text = json.dumps({"source": str(source), **OPTIONS, **options})
    return (
        f'layer {{ name: "data" type: "Python" top: "data" top: "labels" include {{ phase: {phase} }} python_param {{\n'
        f'module: "multilabel_softmax_loss" layer: "MultilabelImageDataLayer" param_str: {json.dumps(text)} }} }}\n'
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train.txt (60 images) and test.txt (13), and photographs in photos.txt and images.txt."""
    folder = tmp_path_factory.mktemp("layer")
    for name, count in (("train", 60), ("test", 13)):
        labels = gather([sources.tagged(folder / name, count, seed=count)]).labels
        write_index(str(folder / f"{name}.txt"), labels, range(count))
    rng = np.random.RandomState(0)
    names = []
    for k, size in enumerate([(40, 60), (61, 33), (24, 24), (100, 50)]):
        smooth = cv2.resize(rng.randint(0, 256, (5, 5, 3)).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
        names.append(sources.write_image(folder / "photos" / f"{k}.png", smooth))
    listed = sources.write_text(folder / "images.txt", "".join(f"{name} {k}\n" for k, name in enumerate(names)))
    write_index(str(folder / "photos.txt"), gather([listed]).labels, range(len(names)))
    return folder


@pytest.mark.parametrize("color", [True, False], ids=["colour", "gray"])
@pytest.mark.parametrize("crop", [0, 17])
def test_pixels_are_those_of_image_data(color, crop, folder):
    means = [104, 117, 123] if color else [111]
    values = " ".join(f"mean_value: {mean}" for mean in means)
    native = make_net(
        f'layer {{ name: "data" type: "ImageData" top: "data" top: "label" image_data_param {{ batch_size: 4 '
        f'source: "{folder}/images.txt" new_height: 24 new_width: 24 is_color: {str(color).lower()} }}\n'
        f"transform_param {{ scale: 0.5 crop_size: {crop} {values} }} }}",
        phase=1,
    )
    options = {"batch_size": 4, "is_color": color, "crop_size": crop, "mean_value": means, "scale": 0.5}
    ours = make_net(data_layer(folder / "photos.txt", "TEST", **options), phase=1)
    native.forward()
    ours.forward()
    assert ours.blobs["data"].data.shape == native.blobs["data"].data.shape
    # The wheel's own copy of OpenCV may interpolate another way in the last bit.
    assert np.abs(ours.blobs["data"].data - native.blobs["data"].data).max() <= 0.5
    assert np.array_equal(ours.blobs["labels"].data, np.eye(4))


def test_resuming_restores_its_place_exactly(folder, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(data_layer(folder / "train.txt", mirror=True) + NET)
    long = write_solver(tmp_path, path, test=False, max_iter=11, snapshot=4)
    whole = train(long, out=str(tmp_path / "whole"))
    short = write_solver(tmp_path, path, test=False, max_iter=4, snapshot=4)
    train(short, out=str(tmp_path / "parts"))
    long = write_solver(tmp_path, path, test=False, max_iter=11, snapshot=4)
    parts = train(long, out=str(tmp_path / "parts"), resume=True)
    assert same_weights(whole["weights"], parts["weights"])


def test_a_run_that_is_resumed_with_another_index_says_so(folder, tmp_path, capsys):
    path, index = tmp_path / "net.prototxt", folder / "changing.txt"
    index.write_text((folder / "train.txt").read_text())
    path.write_text(data_layer(index) + NET)
    train(write_solver(tmp_path, path, test=False, max_iter=2), out=str(tmp_path / "run"))
    index.write_text((folder / "train.txt").read_text().rsplit("\n", 2)[0] + "\n")
    train(write_solver(tmp_path, path, test=False, max_iter=3), out=str(tmp_path / "run"), resume=True)
    assert "layer 'data' reads other data" in capsys.readouterr().err


def test_a_net_that_reads_it_is_trained_and_evaluated(folder, tmp_path):
    path = tmp_path / "net.prototxt"
    near_zero = {"mean_value": 90, "scale": 0.01}
    data = data_layer(folder / "train.txt", workers=1, **near_zero) + data_layer(
        folder / "test.txt", "TEST", **near_zero
    )
    path.write_text(data + NET)
    solver = write_solver(tmp_path, path, max_iter=100, snapshot=100, test_interval=100, base_lr=0.01)
    run = train(solver, out=str(tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "preprocessing.json").read_text())  # proved on an image as it was written
    assert (kept["mean"], kept["scale"], kept["resize"], kept["crop"]) == ([90.0], 0.01, [24, 24], 0)
    found = net_outputs(str(path), run["weights"])
    assert len(found.truth) == 13
    assert run["best"]["value"] == pytest.approx(1.0)  # each image shows its labels
    swapped = net_outputs(str(path), run["weights"], data=str(folder / "train.txt"))
    assert ((swapped.probs > 0.5) == swapped.truth).all()
