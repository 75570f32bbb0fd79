"""`train` as a whole: its options, what it shows, and how it ends."""

import argparse
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import caffe
import numpy as np
import pytest
from support.tiny_nets import (
    CLASSES,
    OURS,
    SIGMOID,
    body,
    listing,
    make_labels,
    make_run,
    no_file_longer_than,
    poisoned,
    run_command,
    same_weights,
    weights_of,
    write_hdf5,
    write_lmdb,
    write_solver,
)

from multilabel_softmax_loss.commands import packages
from multilabel_softmax_loss.commands.train import Diverged, add_arguments, run, train
from multilabel_softmax_loss.errors import UsageError

SOFTMAX = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }\n'


def test_nan_ends_the_run_naming_the_iteration_and_keeps_the_last_good_snapshot(tmp_path):
    solver = make_run(tmp_path, loss=SIGMOID, snapshot=1)
    text = Path(solver).read_text().replace('"Adam"', '"SGD"').replace("base_lr: 0.02", "base_lr: 1e38")
    Path(solver).write_text(text)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=1)
    assert process.stderr.startswith("python -m multilabel_softmax_loss train: error: iteration 1: ")
    assert "The last good snapshot is kept: run/tiny_iter_" in process.stderr
    kept = process.stderr.split("is kept: ")[1].split(" ")[0].rstrip(".")
    assert all(np.isfinite(values).all() for values in weights_of(tmp_path / kept).values())


def test_nan_in_the_data_is_told_with_its_iteration_by_our_layer_too(tmp_path, no_pictures):
    import h5py

    solver = make_run(tmp_path, shuffle=False, test=False)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["data"][35] = np.nan  # in the fifth batch of 8
    with pytest.raises(Diverged, match=r"iteration 4: MultilabelSoftmaxLossLayer: bottom\[0\] \(scores\) has nan"):
        train(solver, out=str(tmp_path / "run"))
    assert (tmp_path / "run" / "tiny_iter_0.json").exists()


def test_weights_begin_a_run_and_layers_without_begin_afresh(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, dropout=False, test=False)
    first = train(solver, out=str(tmp_path / "first"))["weights"]
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('"scores"', '"other"'))
    train(solver, out=str(tmp_path / "second"), weights=first)
    begun = weights_of(tmp_path / "second" / "tiny_iter_0.caffemodel")
    assert np.array_equal(begun["hidden", 0], weights_of(first)["hidden", 0])
    assert "has no weights for other, which begin afresh" in capsys.readouterr().out


def test_quiet_when_piped(tmp_path):
    process = run_command("train", make_run(tmp_path), "--out", "run", folder=tmp_path, check=0)
    assert process.stderr == ""
    assert "\r" not in process.stdout
    assert "\x1b" not in process.stdout
    assert "(best)" in process.stdout


@pytest.mark.parametrize(
    "change, words, message",
    [
        pytest.param({"solver.prototxt": None}, (), "solver.prototxt cannot be read: No such file", id="no solver"),
        pytest.param({"solver.prototxt": "nett: 1"}, (), 'SolverParameter" has no field named "nett"', id="foreign"),
        pytest.param(
            {"solver.prototxt": 'net: "n.prototxt" max_iter: 1'},
            (),
            "n.prototxt (net of solver.prototxt) cannot",
            id="no net",
        ),
        pytest.param(
            {"train_val.prototxt": ("LossLayer", "Loss")},
            (),
            "train_val.prototxt: layer 'loss': module 'multilabel_softmax_loss' has no class 'MultilabelSoftmaxLoss'; "
            "did you mean 'MultilabelSoftmaxLossLayer'?",
            id="class",
        ),
        pytest.param(
            {"train_val.prototxt": ('module: "multilabel', 'module: "multilable')},
            (),
            "train_val.prototxt: layer 'loss': python_param { module: 'multilable_softmax_loss' } cannot be imported: "
            "No module named 'multilable_softmax_loss'. Did you mean 'multilabel_softmax_loss'?",
            id="module",
        ),
        pytest.param(
            {"train_val.prototxt": ("num_output: 6", "num_output: 7")},
            (),
            "train_val.prototxt: MultilabelSoftmaxLossLayer: bottom[1] (labels) has shape (8, 6); expected (8, 7)",
            id="label width",
        ),
        pytest.param({"train.txt": (".h5", ".h6")}, (), "train.h6 (named in ", id="missing data"),
        pytest.param({"train.txt": ("train.h5", "bool.h5")}, (), "bool.h5 has bool in data set 'label'", id="bool"),
        pytest.param({"train_val.prototxt": ("size: 8", "size: 0")}, (), "'data' has batch_size 0", id="no batch"),
        pytest.param(
            {"train_val.prototxt": (OURS % "", "")}, (), "The TRAIN net of solver.prototxt has no loss", id="no loss"
        ),
        pytest.param({"solver.prototxt": ('"fixed"', '"fixd"')}, (), "has lr_policy 'fixd'; expected one", id="policy"),
        pytest.param({"solver.prototxt": ("base_lr: 0.02", "")}, (), "solver.prototxt has no base_lr", id="no base_lr"),
        pytest.param({"solver.prototxt": ("0.02", "nan")}, (), "solver.prototxt has base_lr nan", id="nan as base_lr"),
        pytest.param({"solver.prototxt": ("max_iter", "iter_size: 0 max_iter")}, (), "iter_size 0", id="iter_size"),
        pytest.param({"solver.prototxt": ("/run/tiny", "/run/..")}, (), "expected how names begin", id="prefix"),
        pytest.param(
            {"solver.prototxt": ("net:", 'weights: "no.h5" net:')}, (), "no.h5 is no file", id="solver's weights"
        ),
        pytest.param({}, ("--weights", "nan.caffemodel"), "'scores' that are not finite", id="nan in the weights"),
        pytest.param({}, ("--best-by", "mAPP"), "no test metric 'mAPP'; did you mean 'mAP'?", id="metric"),
        pytest.param({}, ("-k", "0"), "-k is 0; expected a whole number of at least 1.", id="k"),
        pytest.param({}, ("--resume",), "run is no folder; expected the --out of the run", id="nothing to resume"),
        pytest.param({}, ("--weights", "train.h5"), "no weights file", id="foreign weights"),
        pytest.param({}, ("--preprocessing", "no.json"), "no.json cannot be read: No such file", id="no preprocessing"),
        pytest.param({}, ("--preprocessing", "train.txt"), "train.txt is no JSON (", id="preprocessing"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_writes_nothing(tmp_path, monkeypatch, change, words, message):
    make_run(tmp_path)
    x, y = make_labels(np.random.RandomState(0), 9)
    write_hdf5(tmp_path / "bool", data=x, label=y > 0)
    caffe.Net(str(tmp_path / "train_val.prototxt"), caffe.TRAIN).save(str(tmp_path / "nan.caffemodel"))
    (tmp_path / "nan.caffemodel").write_bytes(poisoned(tmp_path / "nan.caffemodel"))
    for name, value in change.items():
        path = tmp_path / name
        if isinstance(value, tuple):
            path.write_text(path.read_text().replace(*value))
        elif value is None:
            path.unlink()
        else:
            path.write_text(value)
    before = listing(tmp_path)
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(UsageError, match=re.escape(message)):
        run(parser.parse_args(["solver.prototxt", "--out", "run", *words]))
    assert listing(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_terminal_shows_a_bar_with_loss_rate_and_time_left(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    solver = make_run(tmp_path, max_iter=3000, test=False, snapshot=0)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    command = [sys.executable, "-m", "multilabel_softmax_loss", "train", solver, "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # how Linux says that nobody holds the terminal any more
            break
        if not part:
            break
        shown += part
    os.close(screen)
    assert process.wait() == 0
    assert max(len(line) for line in re.split("[\r\n]+", shown.decode())) <= 70
    assert re.search(rb"\d+/3000, \d+ s left, [\d.,]+ it/s, loss=[\d.]+, lr=0\.02", shown)


def add_layer(folder, code, bottom="label"):
    """A Python layer of this `forward` at the end of the net; iterations are counted in `self.count`."""
    name = f"own_{folder.name}"
    (folder / f"{name}.py").write_text(
        "import caffe, os\nclass Own(caffe.Layer):\n    count = 0\n"
        "    def setup(self, bottom, top): pass\n    def reshape(self, bottom, top): pass\n"
        f"    def forward(self, bottom, top):\n        self.count += 1\n        {code}\n"
        "    def backward(self, *arguments): pass\n"
    )
    net = folder / "train_val.prototxt"
    own = f'python_param {{ module: "{name}" layer: "Own" }}'
    net.write_text(net.read_text() + f'layer {{ name: "own" type: "Python" bottom: "{bottom}" {own} }}\n')


@pytest.mark.parametrize(
    "code, kind",
    [
        pytest.param("assert self.count < 5", AssertionError, id="an error of its own"),
        pytest.param("if self.count == 5: raise KeyboardInterrupt", KeyboardInterrupt, id="KeyboardInterrupt"),
        pytest.param("if self.count == 5: raise ValueError('bad data')", UsageError, id="bad data"),
        pytest.param("if self.count == 5: raise SystemExit", SystemExit, id="SystemExit"),
    ],
)
def test_any_error_of_a_layer_leaves_a_snapshot_from_which_the_run_goes_on(
    tmp_path, monkeypatch, no_pictures, code, kind
):
    solver = make_run(tmp_path, test=False, snapshot=0, max_iter=9)
    train(solver, out=str(tmp_path / "whole"))
    net = (tmp_path / "train_val.prototxt").read_text()
    add_layer(tmp_path, code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(kind):
        train(solver, out=str(tmp_path / "run"))
    assert (tmp_path / "run" / "tiny_iter_4.json").exists()
    (tmp_path / "train_val.prototxt").write_text(net)
    train(solver, out=str(tmp_path / "run"), resume=True)
    assert same_weights(tmp_path / "whole" / "tiny_iter_9.caffemodel", tmp_path / "run" / "tiny_iter_9.caffemodel")


def test_a_layer_that_changes_folder_and_streams_changes_neither_paths_nor_what_is_said(
    tmp_path, monkeypatch, capsys, no_pictures
):
    solver = make_run(tmp_path, max_iter=3, test=True)
    add_layer(tmp_path, "os.chdir('/'); import sys; sys.stdout = sys.stderr = None")
    for name in ("solver.prototxt", "train_val.prototxt", "train.txt", "test.txt"):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(f"{tmp_path}/", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    train(os.path.basename(solver), out="run")
    assert os.getcwd() == str(tmp_path)
    assert (tmp_path / "run" / "tiny_iter_3.json").exists()
    assert "Finished at iteration 3" in capsys.readouterr().out


@pytest.mark.parametrize("test", [False, True], ids=["in training", "in a test"])
def test_a_folder_that_is_moved_meanwhile_and_a_full_disk_are_told(tmp_path, monkeypatch, no_pictures, test):
    solver = make_run(tmp_path, test=test, max_iter=9, snapshot=5)
    net = (tmp_path / "train_val.prototxt").read_text()
    add_layer(tmp_path, f"if self.count == 3: os.rename({str(tmp_path / 'run')!r}, {str(tmp_path / 'moved')!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="run was moved or removed while the run went on"):
        train(solver, out=str(tmp_path / "run"))
    (tmp_path / "moved").rename(tmp_path / "run")
    (tmp_path / "train_val.prototxt").write_text(net)
    with no_file_longer_than(20000), pytest.raises(UsageError, match=r"run cannot be written: File too large .* need"):
        train(solver, out=str(tmp_path / "run"), resume=True)


@pytest.mark.parametrize("phase, moment", [("TRAIN", "iteration 1"), ("TEST", "test at iteration 0")])
def test_a_class_beyond_what_was_looked_through_ends_the_run_in_a_sentence(
    tmp_path, monkeypatch, no_pictures, phase, moment
):
    monkeypatch.setattr("multilabel_softmax_loss.nets.databases.SMALL", 0)
    net = ""
    for name in ("TRAIN", "TEST"):
        classes = [k % CLASSES + CLASSES * (k == 13 and name == phase) for k in range(20)]
        source = write_lmdb(tmp_path / name, np.ones((20, 5), np.float32), classes)
        net += (
            f'layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: {name} }}\n'
            f'  data_param {{ source: "{source}" batch_size: 8 backend: LMDB }} }}\n'
        )
    (tmp_path / "net.prototxt").write_text(net + body() + SOFTMAX)
    with pytest.raises(UsageError, match=f"{moment}: blob 'label' brings the label 7 with sample 5; expected a class"):
        train(write_solver(tmp_path, tmp_path / "net.prototxt"), out=str(tmp_path / "run"))


def test_all_packages_that_a_run_needs_are_looked_for_before_it(tmp_path, monkeypatch):
    solver = make_run(tmp_path)
    absent = ("h5py", "sklearn")
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in absent else find_spec(name))
    expected = f"scikit-learn, h5py are not installed for {sys.executable}. pip install '.[tools]'"
    with pytest.raises(UsageError, match=re.escape(expected)):
        train(solver, out=str(tmp_path / "run"))
    absent = ("caffe", "tqdm")
    with pytest.raises(
        UsageError, match=r"Caffe, tqdm.* are not installed .* a Caffe of your own.*'\.\[caffe,tools\]'"
    ):
        train(solver, out=str(tmp_path / "run"))


def test_a_solver_for_the_gpu_trains_on_the_processor_and_says_so(tmp_path, capsys, no_pictures):
    train(make_run(tmp_path, test=False, max_iter=1, solver="solver_mode: GPU"), out=str(tmp_path / "run"))
    assert "has solver_mode GPU; it is the processor that trains here" in capsys.readouterr().err
