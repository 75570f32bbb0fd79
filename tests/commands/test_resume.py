"""`train --resume`: bit-identical weights, also after kill -9, wherever the run was interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny_nets import (
    OURS,
    body,
    hdf5_layer,
    listing,
    make_labels,
    make_run,
    rows_of,
    same_weights,
    wait_for,
    with_iterations,
    write_hdf5,
    write_lmdb,
    write_solver,
)

from multilabel_softmax_loss.commands.solver import reseed
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.errors import UsageError

# Kills in the test that is run always; `make kill-test` makes it 20.
KILLS = int(os.environ.get("KILLS", "5"))
SEED = os.environ.get("ATTACK_SEED", "0")


def lmdb_run(folder):
    """A solver whose net reads two LMDBs side by side, with random crops and mirroring."""
    rng = np.random.RandomState(1)
    _, y = make_labels(rng, 45)
    images = rng.randint(0, 256, (45, 1, 6, 6)).astype(np.uint8)
    transform = "transform_param { mirror: true crop_size: 4 scale: 0.01 }"
    net = ""
    for top, source, rule in (
        ("data", write_lmdb(folder / "images", images), transform),
        ("label", write_lmdb(folder / "labels", y), ""),
    ):
        net += (
            f'layer {{ name: "{top}" type: "Data" top: "{top}" {rule}\n'
            f'  data_param {{ source: "{source}" batch_size: 8 backend: LMDB }} }}\n'
        )
    (folder / "net.prototxt").write_text(net + body() + OURS % "")
    return write_solver(folder, folder / "net.prototxt")


def one_name_run(folder):
    """A solver whose net has two data layers of one name, of which the second goes round the sooner."""
    solver = make_run(folder, shuffle=False, dropout=False)
    net = folder / "train_val.prototxt"
    x, _ = make_labels(np.random.RandomState(3), 50)
    more = hdf5_layer(write_hdf5(folder / "more", more=x), "TRAIN", tops=("more",))
    sums = 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "more" top: "sum" include { phase: TRAIN } }\n'
    same = 'layer { name: "sum" type: "Power" bottom: "data" top: "sum" include { phase: TEST } }\n'
    begin = 'layer { name: "hidden"'
    text = (
        net.read_text()
        .replace(begin, more + sums + same + begin)
        .replace('bottom: "data" top: "hidden"', 'bottom: "sum" top: "hidden"')
    )
    net.write_text(text)
    return solver


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make_run, id="shuffled HDF5 and Dropout"),
        pytest.param(lambda folder: make_run(folder, shuffle=False, dropout=False), id="HDF5 in order"),
        pytest.param(lambda folder: make_run(folder, solver="iter_size: 3"), id="iter_size 3"),
        pytest.param(lambda folder: make_run(folder, solver="snapshot_format: HDF5"), id="HDF5 snapshots"),
        pytest.param(one_name_run, id="two data layers of one name"),
        pytest.param(lmdb_run, id="LMDB with random crops"),
    ],
)
def test_weights_after_resuming_are_bit_identical(tmp_path, make, no_pictures):
    solver = make(tmp_path)
    train(solver, out=str(tmp_path / "whole"))
    train(with_iterations(solver, 4), out=str(tmp_path / "parts"))  # after a batch in which a sample has no label
    train(with_iterations(solver, 27), out=str(tmp_path / "parts"), resume=True)
    (tmp_path / "parts").rename(tmp_path / "moved")
    summary = train(solver, out=str(tmp_path / "moved"), resume=True)
    name = os.path.basename(summary["weights"])
    if name.endswith(".h5"):
        import h5py

        with h5py.File(tmp_path / "whole" / name, "r") as one, h5py.File(summary["weights"], "r") as other:
            assert np.array_equal(one["data/scores/0"], other["data/scores/0"])
    else:
        assert same_weights(tmp_path / "whole" / name, summary["weights"])
    assert rows_of(tmp_path / "whole", "seconds") == rows_of(tmp_path / "moved", "seconds")


def test_resuming_without_putting_the_cursor_back_would_show(tmp_path, monkeypatch, no_pictures):
    solver = make_run(tmp_path)
    train(solver, out=str(tmp_path / "whole"))
    train(with_iterations(solver, 13), out=str(tmp_path / "parts"))
    monkeypatch.setattr("multilabel_softmax_loss.commands.solver.fast_forward", lambda *arguments: None)
    summary = train(solver, out=str(tmp_path / "parts"), resume=True)
    assert not same_weights(tmp_path / "whole" / "tiny_iter_40.caffemodel", summary["weights"])


def test_weights_without_axes_are_resumed(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('type: "ReLU"', 'type: "PReLU" prelu_param { channel_shared: true }'))
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    assert train(with_iterations(solver, 4), out=str(tmp_path / "run"), resume=True)["iteration"] == 4


KILL_LOOP = """
import builtins, glob, os, random, re, signal, sys, time
os.environ["GLOG_minloglevel"] = "2"
import caffe, h5py, numpy, sklearn.metrics, matplotlib.pyplot     # once; a fork begins with them
from multilabel_softmax_loss import layers, softmax_cross_entropy
from multilabel_softmax_loss.commands.curves import smoothed
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.commands.child import run_reporting
from multilabel_softmax_loss.commands.train import train

solver, out, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
softmax_cross_entropy(numpy.zeros((8, 6), "f"), numpy.ones((8, 6), "f"))    # its kernels

def die_at(number, before):              # of the calls by which files come to be, are moved, and go
    def counted(call):
        def counting(*arguments, **keywords):
            nonlocal number
            number -= 1
            if number == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **keywords)
            finally:                         # also of those that fail, as for a file that is not there
                if number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return counting
    for name in ("open", "fsync", "replace", "rename", "mkdir", "symlink", "remove", "unlink", "rmdir", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = counted(open)

def begin(*call):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        status = 1
        if call:
            die_at(*call)
        try:
            try:
                train(solver, out=out, resume=True)
            except UsageError:                       # killed before there was anything to resume
                train(solver, out=out)
            status = 0
        finally:
            os._exit(status)
    return child

def newest():
    manifests = glob.glob(os.path.join(out, "tiny_iter_*.json"))
    return max([int(re.search("iter_([0-9]+)", name).group(1)) for name in manifests], default=-1)

draw = random.Random(int(sys.argv[4]))
for number in range(kills):
    if number % 2:                                   # amid the start, a step, a test or a snapshot
        child, goal = begin(), newest() + 7 * draw.randrange(10)
        while newest() < goal:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    else:                                            # between two calls that change files, of which a start makes most
        child = begin(draw.choice([draw.randrange(1, 100), draw.randrange(1, 300)]), draw.random() < 0.5)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the run ended by itself"
    print(newest())
"""


def test_weights_are_bit_identical_after_kills_at_random_moments_and_chosen_calls(tmp_path, no_pictures):
    solver = make_run(tmp_path, snapshot=7, max_iter=1000000)
    Path(solver).write_text(Path(solver).read_text().replace("test_interval: 10", "test_interval: 50"))
    (tmp_path / "temporary").mkdir()  # where what was killed leaves its folders
    loop = subprocess.run(
        [sys.executable, "-c", KILL_LOOP, solver, str(tmp_path / "killed"), str(KILLS), SEED],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    newest = [int(word) for word in loop.stdout.split()]
    assert len(newest) == KILLS
    assert len(set(newest)) > KILLS // 3  # the kills fell into different parts of the run
    end = newest[-1] + 20  # no sooner: how far the run came depends on the machine
    Path(solver).write_text(Path(solver).read_text().replace("1000000", str(end)))
    train(solver, out=str(tmp_path / "killed"), resume=True)
    train(solver, out=str(tmp_path / "whole"))
    for name in (f"tiny_iter_{end}.caffemodel", "best.caffemodel"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "killed" / name)
    assert rows_of(tmp_path / "whole", "seconds") == rows_of(tmp_path / "killed", "seconds")
    assert not [name for name in os.listdir(tmp_path / "killed") if name.startswith(".")]


def test_killing_the_command_ends_its_child_and_resuming_goes_on(tmp_path):
    solver = make_run(tmp_path, max_iter=100000, snapshot=50, test=False)
    command = [sys.executable, "-m", "multilabel_softmax_loss", "train", solver, "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "run" / "tiny_iter_100.json").exists())
    process.kill()
    process.wait()
    shortened = (tmp_path / "solver.prototxt").read_text().replace("100000", "60000")
    (tmp_path / "solver.prototxt").write_text(shortened)
    resumed = subprocess.Popen([*command, "--resume"], cwd=tmp_path, stdout=subprocess.PIPE, universal_newlines=True)
    first = resumed.stdout.readline()  # it has the lock now: the killed command's child is gone
    assert first.startswith("Resumed run at iteration ")
    resumed.send_signal(signal.SIGINT)
    rest, _ = resumed.communicate()
    assert resumed.returncode == 130
    stopped = int(rest.split("Interrupted at iteration ")[1].split(";")[0])
    assert (tmp_path / "run" / f"tiny_iter_{stopped}.json").exists()
    assert len(rows_of(tmp_path / "run")) == stopped


def test_ctrl_c_ends_the_way_back_to_the_place_in_the_data(tmp_path, monkeypatch, no_pictures):
    solver = make_run(tmp_path)
    train(with_iterations(solver, 13), out=str(tmp_path / "run"))
    moments = []

    def interrupting(*key, seed=reseed):
        if len(key) == 3:
            moments.append(key)
            os.kill(os.getpid(), signal.SIGINT)
        seed(*key)

    monkeypatch.setattr("multilabel_softmax_loss.commands.solver.reseed", interrupting)
    summary = train(solver, out=str(tmp_path / "run"), resume=True)
    assert (summary["interrupted"], summary["iteration"], len(moments)) == (True, 13, 1)


def test_another_net_does_not_resume_a_run(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    train(solver, out=str(tmp_path / "run"))
    before = listing(tmp_path / "run")
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('"hidden"', '"other"'))
    with pytest.raises(UsageError, match="has no weights for layer 'other' of .*; it has hidden, scores. A run is"):
        train(solver, out=str(tmp_path / "run"), resume=True)
    assert listing(tmp_path / "run") == before


def test_the_random_seed_is_drawn_once_and_kept(tmp_path, no_pictures):
    solver = make_run(tmp_path, random_seed=None, max_iter=None, test=False)
    Path(solver).write_text(Path(solver).read_text() + "max_iter: 40\n")
    train(with_iterations(solver, 3), out=str(tmp_path / "a"))
    train(with_iterations(solver, 3), out=str(tmp_path / "b"))
    seeds = [json.loads((tmp_path / name / "tiny_iter_3.json").read_text())["seed"] for name in "ab"]
    assert seeds[0] != seeds[1]
    train(with_iterations(solver, 5), out=str(tmp_path / "a"), resume=True)
    assert json.loads((tmp_path / "a" / "tiny_iter_5.json").read_text())["seed"] == seeds[0]


@pytest.mark.parametrize(
    "change, words",
    [
        pytest.param(("solver.prototxt", "base_lr: 0.02", "base_lr: 0.5"), "base_lr is 0.5, and was 0.02.", id="lr"),
        pytest.param(("solver.prototxt", "momentum: 0.9", "iter_size: 2"), "iter_size is 2, and was 1", id="iter_size"),
        pytest.param(("solver.prototxt", "seed: 5", "seed: 6"), "random_seed is 6, and was 5", id="random_seed"),
        pytest.param(
            ("train_val.prototxt", "batch_size: 8", "batch_size: 9"),
            "batch_size of layer 'data' is 9, and was 8",
            id="batch_size",
        ),
        pytest.param(("train_val.prototxt", "ratio: 0.3", "ratio: 0.4"), "layers differ: drop", id="layer"),
        pytest.param(("train.txt", "train.h5", "other.h5"), "layer 'data' reads other data", id="data"),
        pytest.param(("test.txt", "test.h5", "other.h5"), "tests see other samples", id="data of the test"),
        pytest.param(("train_val.prototxt", "batch_size: 10", "batch_size: 9"), "tests see other", id="their batches"),
        pytest.param(("train_val.prototxt", "train.txt", "moved.txt"), None, id="the same data elsewhere"),
        pytest.param(("solver.prototxt", "snapshot: 10", "snapshot: 7"), None, id="what does not matter"),
    ],
)
def test_what_differs_from_the_run_that_is_resumed_is_said(tmp_path, capsys, no_pictures, change, words):
    solver = make_run(tmp_path, test="tests" in str(words))
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    x, y = make_labels(np.random.RandomState(4), 90)
    write_hdf5(tmp_path / "other", data=x, label=y)
    (tmp_path / "moved.txt").write_text((tmp_path / "train.txt").read_text())
    name, old, new = change
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    train(with_iterations(solver, 3), out=str(tmp_path / "run"), resume=True)
    said = capsys.readouterr().err
    assert "goes on otherwise than it began: " in said and words in said if words else said == ""


def test_a_run_is_not_resumed_with_another_type_of_solver(tmp_path, no_pictures):
    solver = make_run(tmp_path, test=False)
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    before = listing(tmp_path / "run")
    Path(solver).write_text(Path(solver).read_text().replace('"Adam"', '"AdaDelta"'))
    with pytest.raises(UsageError, match="has type 'AdaDelta', and the run that is resumed has 'Adam'"):
        train(with_iterations(solver, 3), out=str(tmp_path / "run"), resume=True)
    assert listing(tmp_path / "run") == before
