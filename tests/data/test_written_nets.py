"""What `convert` writes, trained in real Caffe: from each kind of source a net learns to read the labels of images."""

import json
from pathlib import Path

import caffe
import numpy as np
import pytest
from support import sources

from multilabel_softmax_loss.__main__ import main

LINEAR = """
layer { name: "scaled" type: "Power" bottom: "data" top: "scaled" power_param { scale: 0.01 } }
layer { name: "scores" type: "InnerProduct" bottom: "scaled" top: "scores"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images made of their labels, with bad ones between."""
    folder = tmp_path_factory.mktemp("written")
    path = sources.tagged(folder, 90)
    for k in (5, 6, 33, 70):
        image = folder / "photos" / f"{k:03d}.png"
        image.write_bytes(image.read_bytes()[: 70 * (k % 2)])
    return path


@pytest.mark.parametrize("to", ["lmdb", "hdf5", "index"])
def test_a_net_learns_from_what_is_written(to, source, tmp_path, capfd):
    out = tmp_path / "out"
    words = [source, "--out", out, "--to", to, "--size", 24, "--jobs", 2, "--max-bad", "5%", "--split", 0.2]
    assert main(["convert", *map(str, words)]) == 0
    printed = capfd.readouterr().out
    for text in ("4 bad images left out", "Read back: 86", "Run in Caffe", "Next, from this folder", "solver.prototxt"):
        assert text in printed
    path = out / "train_val.prototxt"
    start, rest = path.read_text().split("# ---- Your net")
    text = start + LINEAR + rest.split("# ---- The end of your net.")[1]
    path.write_text(text.replace("mirror: true", "").replace('"mirror": true', '"mirror": false').replace(
        "MultilabelSoftmaxLossLayer", "MultilabelSigmoidLossLayer"))  # fmt: skip
    (out / "run").mkdir()  # where Caffe itself would write snapshots
    solver = caffe.get_solver(str(out / "solver.prototxt"))
    solver.step(200)
    images = json.loads((out / "report.json").read_text())["images"]
    assert images == {"train": 68, "val": 18}
    test = solver.test_nets[0]
    test.share_with(solver.net)
    test.forward()
    labels = test.blobs["labels"].data.reshape(18, 4)
    assert np.array_equal(test.blobs["scores"].data > 0, labels > 0)
    assert 0 < labels.sum() < labels.size
    assert not list(Path(out).glob(".*"))
