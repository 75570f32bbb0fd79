"""What `convert` writes, trained in real Caffe: from each kind of source a net learns to read the labels of images."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import caffe
import numpy as np
import pytest
from support import sources

from multilabel_softmax_loss.__main__ import main
from multilabel_softmax_loss.commands.metrics import ranking_metrics

LINEAR = """
layer { name: "scaled" type: "Power" bottom: "data" top: "scaled" power_param { scale: 0.01 } }
layer { name: "scores" type: "InnerProduct" bottom: "scaled" top: "scores"
  inner_product_param { num_output: 4 } }
"""  # of weights that are 0 at first: what is drawn depends on the data layers


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images made of their labels, with bad ones between."""
    folder = tmp_path_factory.mktemp("written")
    path = sources.tagged(folder, 90)
    for k in (5, 6, 33, 70):
        image = folder / "photos" / f"{k:03d}.png"
        image.write_bytes(image.read_bytes()[: 70 * (k % 2)])
    return path


def trained(out, steps):
    """A solver of the net in `out`, with a linear net in the marked place, and its mAP after so many steps.

    A batch is all that there is, in whatever order, and nothing is mirrored.
    """
    path = out / "train_val.prototxt"
    start, rest = path.read_text().split("# ---- Your net")
    text = start + LINEAR + rest.split("# ---- The end of your net.")[1]
    for former, now in (
        ("mirror: true", ""),
        ('"mirror": true', '"mirror": false'),
        ("batch_size: 32", "batch_size: 68"),
        ('"batch_size": 32', '"batch_size": 68'),
        ("MultilabelSoftmaxLossLayer", "MultilabelSigmoidLossLayer"),
    ):
        text = text.replace(former, now)
    path.write_text(text)
    solver = caffe.get_solver(str(out / "solver.prototxt"))
    solver.step(steps)
    scores, truth = answers(solver)
    return solver, ranking_metrics(truth, scores, np.ones_like(truth))["mAP"]


def answers(solver):
    """The scores and labels (18, 4) of the images that validate."""
    test = solver.test_nets[0]
    test.share_with(solver.net)
    test.forward()
    return test.blobs["scores"].data.copy(), test.blobs["labels"].data.reshape(18, 4) > 0


def test_a_net_learns_the_same_from_all_that_is_written(source, tmp_path, capfd):
    found = {}
    for to in ("lmdb", "hdf5", "index"):
        out = tmp_path / to
        words = [source, "--out", out, "--to", to, "--size", 24, "--jobs", 2, "--max-bad", "5%", "--split", 0.2]
        assert main(["convert", *map(str, words), *(["--encode", "raw"] if to == "lmdb" else [])]) == 0
        printed = capfd.readouterr().out
        for text in ("4 bad images left out", "Read back: 86", "Run in Caffe", "Next, from this folder"):
            assert text in printed
        assert json.loads((out / "report.json").read_text())["images"] == {"train": 68, "val": 18}
        solver, found[to] = trained(out, 1)
        solver.step(40)
        scores, truth = answers(solver)
        assert np.array_equal(scores > 0, truth)
        assert 0 < truth.sum() < truth.size
        assert not list(Path(out).glob(".*"))
    assert found["hdf5"] == found["lmdb"] == found["index"]
    assert 0.3 < found["hdf5"] < 1  # it has something to tell


def test_one_class_has_a_loss_to_learn_from_and_what_to_type_next_can_be_typed():
    from multilabel_softmax_loss.data.images import Geometry
    from multilabel_softmax_loss.data.net_files import NetFacts, next_steps, train_val

    facts = NetFacts("my tags", "lmdb", 4, {"train": 9, "val": 2}, [0.0], False, Geometry((64, 64)), False)
    assert "MultilabelSoftmaxLossLayer" in train_val(facts).split("# ---- The end")[1]
    assert "MultilabelSoftmaxLossLayer" not in train_val(
        facts._replace(classes=1)
    )  # from which one class learns nothing
    lines = [shlex.split(line) for line in next_steps(facts, "program").splitlines()]
    assert [line[:3] for line in lines[:2]] == [
        ["program", "train", "my tags/solver.prototxt"],
        ["program", "evaluate", "my tags/train_val.prototxt"],
    ]
    assert "force_color: true" in train_val(facts)
    assert "force" not in train_val(facts._replace(raw=True))  # for which Caffe would log an error per image


@pytest.mark.parametrize("to", ["lmdb", "index"])
@pytest.mark.parametrize("side", [8, 40])
def test_images_of_many_sizes_are_cut_to_one(to, side, tmp_path):
    for k, shape in enumerate([(20, 30, 3), (30, 24, 3), (40, 20, 3), (26, 26, 3)]):
        sources.write_image(tmp_path / f"{k}.png", np.full(shape, 20 * k, np.uint8))
    source = sources.write_text(tmp_path / "l.txt", "0.png 2\n1.png 1\n2.png 0\n3.png 2 1\n")
    words = ["--out", str(tmp_path / "out"), "--to", to, "--short-side", str(side), "--split", "0"]
    assert main(["convert", source, *words]) == 0  # with a forward of the net


def test_where_nothing_validates_the_last_weights_are_deployed(source, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["convert", source, "--out", str(out), "--size", "24", "--max-bad", "5%", "--split", "0"]) == 0
    steps = [shlex.split(line)[3:] for line in capfd.readouterr().out.split("Next, from this folder:")[1].splitlines()]
    solver = out / "solver.prototxt"
    solver.write_text(solver.read_text().replace("max_iter: 60", "max_iter: 3"))
    assert main(steps[1]) == 0
    last = out / "run" / "net_iter_60.caffemodel"
    (out / "run" / "net_iter_3.caffemodel").rename(last)
    assert steps[2][-1] == str(last)
    assert main(steps[2]) == 0
    image = str(Path(source).parent / "photos" / "001.png")
    assert main([image if word == "IMAGE..." else word for word in steps[3]]) == 0


INTERRUPTED_IN_CAFFE = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "caffe._caffe":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""


def test_ctrl_c_during_the_proof_in_caffe_says_how_to_go_on(tmp_path):
    source = sources.tagged(tmp_path, 20)
    sources.write_text(tmp_path / "site" / "sitecustomize.py", INTERRUPTED_IN_CAFFE)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    words = [
        sys.executable,
        "-m",
        "multilabel_softmax_loss",
        "convert",
        source,
        "--out",
        tmp_path / "out",
        "--size",
        "24",
    ]
    ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 130
    assert "interrupted; the same command with --resume goes on." in ended.stderr
    assert subprocess.run([*words, "--resume"]).returncode == 0
