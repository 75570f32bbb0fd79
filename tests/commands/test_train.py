"""`train`: bit-identical resuming, also after kill -9; torn snapshots; NaN; Ctrl-C; metrics, CSV and curves."""

import argparse
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import caffe
import numpy as np
import pytest
from support.tiny_nets import (
    OURS,
    SIGMOID,
    body,
    listing,
    make_labels,
    make_run,
    poisoned,
    run_command,
    same_weights,
    weights_of,
    write_hdf5,
    write_lmdb,
    write_solver,
)

from multilabel_softmax_loss.__main__ import main
from multilabel_softmax_loss.commands.child import handling, run_reporting
from multilabel_softmax_loss.commands.curves import smoothed
from multilabel_softmax_loss.commands.snapshots import set_learned_net
from multilabel_softmax_loss.commands.train import Diverged, add_arguments, reseed, run, train
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.files import replacing

# Kills in the test that is run always; `make kill-test` makes it 20.
KILLS = int(os.environ.get("KILLS", "5"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Curves take most of the time of a short run."""
    monkeypatch.setattr("multilabel_softmax_loss.commands.train.draw_curves", lambda *arguments: None)


def rows_of(folder, *without):
    with open(Path(folder) / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def with_iterations(solver, iterations):
    """The solver with another max_iter, beside it."""
    path = Path(solver).with_name(f"solver_{iterations}.prototxt")
    path.write_text(Path(solver).read_text().replace("max_iter: 40", f"max_iter: {iterations}"))
    return str(path)


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


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make_run, id="shuffled HDF5 and Dropout"),
        pytest.param(lambda folder: make_run(folder, shuffle=False, dropout=False), id="HDF5 in order"),
        pytest.param(lambda folder: make_run(folder, solver="iter_size: 3"), id="iter_size 3"),
        pytest.param(lambda folder: make_run(folder, solver="snapshot_format: HDF5"), id="HDF5 snapshots"),
        pytest.param(lmdb_run, id="LMDB with random crops"),
    ],
)
def test_weights_after_resuming_are_bit_identical(tmp_path, make, no_pictures):
    solver = make(tmp_path)
    train(solver, out=str(tmp_path / "whole"))
    train(with_iterations(solver, 13), out=str(tmp_path / "parts"))
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


def test_the_name_of_the_weights_in_a_state_of_hdf5_ends_with_a_zero(tmp_path):
    import h5py

    path = str(tmp_path / "tiny.solverstate.h5")
    with h5py.File(path, "w") as file:
        file["learned_net"] = np.bytes_("before")
    set_learned_net(path, "/runs/é/tiny.caffemodel.h5")
    with h5py.File(path, "r") as file:
        name = file["learned_net"]
        assert name[()] == "/runs/é/tiny.caffemodel.h5".encode()
        assert name.id.get_type().get_size() == len(name[()]) + 1  # where it ends for Caffe, which does not ask


def test_resuming_without_putting_the_cursor_back_would_show(tmp_path, monkeypatch, no_pictures):
    solver = make_run(tmp_path)
    train(solver, out=str(tmp_path / "whole"))
    train(with_iterations(solver, 13), out=str(tmp_path / "parts"))
    monkeypatch.setattr("multilabel_softmax_loss.commands.train.fast_forward", lambda *arguments: None)
    summary = train(solver, out=str(tmp_path / "parts"), resume=True)
    assert not same_weights(tmp_path / "whole" / "tiny_iter_40.caffemodel", summary["weights"])


def test_weights_without_axes_are_resumed(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('type: "ReLU"', 'type: "PReLU" prelu_param { channel_shared: true }'))
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    assert train(with_iterations(solver, 4), out=str(tmp_path / "run"), resume=True)["iteration"] == 4


def test_without_chance_the_weights_are_those_of_caffes_own_loop(tmp_path, no_pictures):
    import caffe

    solver = make_run(tmp_path, shuffle=False, dropout=False)
    summary = train(solver)
    plain = caffe.get_solver(solver)
    plain.step(40)
    for (name, k), values in weights_of(summary["weights"]).items():
        assert np.array_equal(plain.net.params[name][k].data.ravel(), values.astype(np.float32))


KILL_LOOP = """
import glob, os, random, re, signal, sys, time
os.environ["GLOG_minloglevel"] = "2"
import caffe, sklearn.metrics, matplotlib.pyplot     # once; a fork begins with them
from multilabel_softmax_loss.commands.curves import smoothed
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.commands.child import run_reporting
from multilabel_softmax_loss.commands.train import train

solver, out, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])

def begin():
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        status = 1
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
for _ in range(kills):
    child, goal = begin(), newest() + 7 * draw.randrange(10)
    while newest() < goal:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))                # amid the start, a step, a test or a snapshot
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the run ended by itself"
    print(newest())
"""


def test_weights_are_bit_identical_after_kills_at_random_moments(tmp_path, no_pictures):
    solver = make_run(tmp_path, snapshot=7, max_iter=1000000)
    Path(solver).write_text(Path(solver).read_text().replace("test_interval: 10", "test_interval: 50"))
    loop = subprocess.run(
        [sys.executable, "-c", KILL_LOOP, solver, str(tmp_path / "killed"), str(KILLS), "0"],
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
    wait_for(lambda: (tmp_path / "run" / "tiny_iter_50.json").exists())
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


# Ctrl-C as one of the command's processes comes to import a module; "" is the very beginning of that process.
INTERRUPTING_SITE = """
import os, signal, sys, time

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT_MODULE"]:
            interrupt()

def interrupt():
    (os.killpg if os.environ["TO"] == "all" else os.kill)(command, signal.SIGINT)
    while signal.SIGINT not in signal.sigpending():  # it waits for its turn, or ends this process here
        time.sleep(0.001)

role = "child" if "COMMAND" in os.environ else "command"
command = int(os.environ.setdefault("COMMAND", str(os.getpid())))
if role == os.environ["IN_PROCESS"]:
    sys.meta_path.insert(0, Interrupting())
    if not os.environ["AT_MODULE"]:
        interrupt()
"""


@pytest.mark.parametrize(
    "process, module", [("command", "numpy"), ("child", ""), ("child", "numpy"), ("child", "caffe._caffe")]
)
@pytest.mark.parametrize("to", ["all", "the command alone"])
def test_ctrl_c_at_the_start_is_quiet_and_leaves_nothing(tmp_path, tmp_path_factory, process, module, to):
    make_run(tmp_path, max_iter=100000)
    before = listing(tmp_path)
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(INTERRUPTING_SITE)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "multilabel_softmax_loss", "train", "solver.prototxt", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "IN_PROCESS": process, "AT_MODULE": module, "TO": to},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=600,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert listing(tmp_path) == before


def test_ctrl_c_as_the_child_has_just_ended_changes_nothing(monkeypatch, capfd):
    def waiting(process, flags, wait=os.waitpid):
        ended = wait(process, flags)
        os.kill(os.getpid(), signal.SIGINT)
        return ended

    monkeypatch.setattr(os, "waitpid", waiting)
    assert main(["train", "absent.prototxt"]) == 2
    assert "absent.prototxt" in capfd.readouterr().err


def test_ctrl_c_ends_the_wait_for_a_folder_in_use(tmp_path, monkeypatch):
    from multilabel_softmax_loss.commands.snapshots import RunFolder

    solver = make_run(tmp_path, test=False)
    RunFolder(str(tmp_path / "run"), "x").lock()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr("multilabel_softmax_loss.commands.snapshots.time", clock)
    # A process that was started in the background ignores Ctrl-C unless it is told not to.
    with handling(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        train(solver, out=str(tmp_path / "run"), resume=True)


def test_ctrl_c_ends_the_way_back_to_the_place_in_the_data(tmp_path, monkeypatch, no_pictures):
    solver = make_run(tmp_path)
    train(with_iterations(solver, 13), out=str(tmp_path / "run"))
    moments = []

    def interrupting(*key, seed=reseed):
        if len(key) == 3:
            moments.append(key)
            os.kill(os.getpid(), signal.SIGINT)
        seed(*key)

    monkeypatch.setattr("multilabel_softmax_loss.commands.train.reseed", interrupting)
    summary = train(solver, out=str(tmp_path / "run"), resume=True)
    assert (summary["interrupted"], summary["iteration"], len(moments)) == (True, 13, 1)


def test_signals_that_a_caller_blocked_stay_blocked(tmp_path):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with replacing(tmp_path / "file.txt"):
            pass
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def test_a_folder_that_cannot_be_locked_is_told_at_once(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UsageError, match="run cannot be locked: No locks available; choose another --out"):
        train(make_run(tmp_path), out=str(tmp_path / "run"))


def test_a_full_disk_is_told_in_a_sentence(capsys):
    def run(arguments):
        raise OSError(28, "No space left on device", "scores.json")

    assert run_reporting(run, argparse.Namespace(command="evaluate")) == 2
    expected = "evaluate: error: [Errno 28] No space left on device: 'scores.json'.\n"
    assert capsys.readouterr().err == f"python -m multilabel_softmax_loss {expected}"


def test_ctrl_c_waits_until_a_file_is_whole(tmp_path):
    code = """import os, signal
from multilabel_softmax_loss.files import replacing
signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
with replacing("file.txt") as temporary, open(temporary, "w") as file:
    os.kill(os.getpid(), signal.SIGINT)
    file.write("all of it")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 130
    assert listing(tmp_path) == {"file.txt": b"all of it"}


def wait_for(condition, seconds=600, pause=0.01):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "suffix, damage",
    [
        pytest.param(".caffemodel", cut, id="weights cut"),
        pytest.param(".caffemodel", flip, id="one bit of the weights"),
        pytest.param(".solverstate", cut, id="state cut"),
        pytest.param(".solverstate", None, id="no state"),
        pytest.param(".json", cut, id="manifest cut"),
        pytest.param(".json", None, id="no manifest"),
    ],
)
def test_a_torn_snapshot_is_recognised_and_the_one_before_it_used(tmp_path, capsys, no_pictures, suffix, damage):
    solver = make_run(tmp_path, test=False)
    train(with_iterations(solver, 20), out=str(tmp_path / "run"))
    path = tmp_path / "run" / f"tiny_iter_20{suffix}"
    kept = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(kept))
    capsys.readouterr()
    train(with_iterations(solver, 21), out=str(tmp_path / "run"), resume=True)
    said = capsys.readouterr().out
    assert "at iteration 10." in said
    assert ("tiny_iter_20 is torn" in said) == (suffix != ".json" or damage is not None)
    assert ("bytes; expected" in said) == (damage is cut and suffix != ".json")


def test_nan_ends_the_run_naming_the_iteration_and_keeps_the_last_good_snapshot(tmp_path):
    solver = make_run(tmp_path, loss=SIGMOID, snapshot=1)
    text = Path(solver).read_text().replace('"Adam"', '"SGD"').replace("base_lr: 0.02", "base_lr: 1e38")
    Path(solver).write_text(text)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=1)
    assert process.stderr.startswith("python -m multilabel_softmax_loss train: error: iteration 1: ")
    assert "The last good snapshot is kept: run/tiny_iter_" in process.stderr
    kept = process.stderr.split("is kept: ")[1].split(" ")[0].rstrip(".")
    assert all(np.isfinite(values).all() for values in weights_of(tmp_path / kept).values())


def test_weights_that_are_not_finite_are_never_kept(tmp_path, no_pictures):
    loss = SIGMOID.replace('top: "loss"', 'top: "loss" loss_weight: 1e6')
    solver = make_run(tmp_path, loss=loss, base_lr="3e38", snapshot=1, test=False)
    Path(solver).write_text(Path(solver).read_text().replace('"Adam"', '"SGD"'))
    with pytest.raises(Diverged, match=r"iteration 1: the weights of layer '\w+' are not finite"):
        train(solver, out=str(tmp_path / "run"))
    assert [name for name in os.listdir(tmp_path / "run") if name.endswith(".caffemodel")] == ["tiny_iter_0.caffemodel"]


def test_nan_in_the_data_is_told_with_its_iteration_by_our_layer_too(tmp_path, no_pictures):
    import h5py

    solver = make_run(tmp_path, shuffle=False, test=False)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["data"][35] = np.nan  # in the fifth batch of 8
    with pytest.raises(Diverged, match=r"iteration 4: MultilabelSoftmaxLossLayer: bottom\[0\] \(scores\) has nan"):
        train(solver, out=str(tmp_path / "run"))
    assert (tmp_path / "run" / "tiny_iter_0.json").exists()


def test_history_and_curves_hold_losses_and_test_metrics(tmp_path):
    solver = make_run(tmp_path)
    summary = train(solver, out=str(tmp_path / "run"), k=2)
    rows = rows_of(tmp_path / "run")
    assert [int(row["iteration"]) for row in rows] == list(range(41))
    tested = [int(row["iteration"]) for row in rows if row["test_mAP"]]
    assert tested == [0, 10, 20, 30, 40]
    assert set(rows[0]) == {
        *("iteration", "seconds", "lr", "loss", "test_loss"),
        *("test_mAP", "test_LRAP", "test_coverage", "test_CF1@2", "test_OF1@2"),
    }
    best = max((row for row in rows if row["test_mAP"]), key=lambda row: float(row["test_mAP"]))
    assert summary["best"]["iteration"] == int(best["iteration"])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == summary["best"]


def test_the_running_mean_starts_with_the_first_loss_and_runs_neither_late_nor_high():
    falling = 10.0 - 0.01 * np.arange(1000)
    assert smoothed(falling)[:975] == pytest.approx(falling[:975], rel=1e-12)
    noise = np.random.RandomState(0).randn(1000)
    assert smoothed(noise)[50:950].std() < 0.25  # 51 values each: a seventh
    assert smoothed(noise)[0] == noise[0]
    assert smoothed(noise)[-1] == pytest.approx(noise[-26:].mean())
    assert list(smoothed([3.0])) == [3.0]
    assert list(smoothed([])) == []


def test_test_metrics_are_those_that_evaluate_gives(tmp_path, no_pictures):
    from multilabel_softmax_loss.commands.outputs import net_outputs
    from multilabel_softmax_loss.commands.report import evaluation

    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace("batch_size: 10", "batch_size: 37"))
    Path(solver).write_text(Path(solver).read_text().replace("test_iter: 4", "test_iter: 1"))
    summary = train(solver, out=str(tmp_path / "run"))
    truth, probs, known, _ = net_outputs(str(net), summary["weights"])
    expected = evaluation(truth, probs, known)["metrics"]["net, top 3"]
    last = rows_of(tmp_path / "run")[-1]
    for column, name in (("test_mAP", "mAP"), ("test_LRAP", "LRAP"), ("test_coverage", "coverage")):
        assert float(last[column]) == pytest.approx(expected[name], rel=1e-7)
    assert float(last["test_CF1@3"]) == pytest.approx(expected["CF1"], rel=1e-7)


def test_best_is_by_the_chosen_metric_and_smaller_where_that_is_better(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    summary = train(solver, out=str(tmp_path / "run"), best_by="loss")
    tested = {int(row["iteration"]): float(row["test_loss"]) for row in rows_of(tmp_path / "run") if row["test_loss"]}
    assert summary["best"]["metric"] == "test_loss"
    assert summary["best"]["iteration"] == min(tested, key=tested.get)


def test_weights_begin_a_run_and_layers_without_begin_afresh(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, dropout=False, test=False)
    first = train(solver, out=str(tmp_path / "first"))["weights"]
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('"scores"', '"other"'))
    train(solver, out=str(tmp_path / "second"), weights=first)
    begun = weights_of(tmp_path / "second" / "tiny_iter_0.caffemodel")
    assert np.array_equal(begun["hidden", 0], weights_of(first)["hidden", 0])
    assert "has no weights for other, which begin afresh" in capsys.readouterr().out


def test_a_warning_is_a_sentence_without_its_source(tmp_path):
    solver = make_run(tmp_path, loss=OURS % '{"label_format": "indices"}', max_iter=2, test=False)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=0)
    start = "python -m multilabel_softmax_loss train: warning: MultilabelSoftmaxLossLayer: param_str has label_format"
    assert process.stderr.startswith(start)
    assert process.stderr.endswith('Labels of 0 and 1 per class need label_format "dense".\n')


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
        pytest.param({"solver.prototxt": 'net: "n.prototxt" max_iter: 1'}, (), "n.prototxt cannot", id="no net"),
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
            "No module named 'multilable_softmax_loss'. Install it, or add its folder to PYTHONPATH.",
            id="module",
        ),
        pytest.param(
            {"train_val.prototxt": ("num_output: 6", "num_output: 7")},
            (),
            "train_val.prototxt: MultilabelSoftmaxLossLayer: bottom[1] (labels) has shape (8, 6); expected (8, 7)",
            id="label width",
        ),
        pytest.param({"train.txt": (".h5", ".h6")}, (), "train.h6, named in ", id="missing data"),
        pytest.param({"train.txt": ("train.h5", "bool.h5")}, (), "bool.h5 has bool in data set 'label'", id="bool"),
        pytest.param({"train_val.prototxt": ("size: 8", "size: 0")}, (), "'data' has batch_size 0", id="no batch"),
        pytest.param(
            {"train_val.prototxt": (OURS % "", "")}, (), "The TRAIN net of solver.prototxt has no loss", id="no loss"
        ),
        pytest.param({"solver.prototxt": ('"fixed"', '"fixd"')}, (), "has lr_policy 'fixd'; expected one", id="policy"),
        pytest.param({"solver.prototxt": ("base_lr: 0.02", "")}, (), "solver.prototxt has no base_lr", id="no base_lr"),
        pytest.param({"solver.prototxt": ("0.02", "nan")}, (), "solver.prototxt has base_lr nan", id="nan as base_lr"),
        pytest.param({"solver.prototxt": ("max_iter", "iter_size: 0 max_iter")}, (), "iter_size 0", id="iter_size"),
        pytest.param({}, ("--weights", "nan.caffemodel"), "'scores' that are not finite", id="nan in the weights"),
        pytest.param({}, ("--best-by", "mAPP"), "no test metric 'mAPP'; did you mean 'mAP'?", id="metric"),
        pytest.param({}, ("-k", "0"), "-k is 0; expected a whole number of at least 1.", id="k"),
        pytest.param({}, ("--resume",), "run is no folder; expected the --out of the run", id="nothing to resume"),
        pytest.param({}, ("--weights", "train.h5"), "no weights file", id="foreign weights"),
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


@pytest.mark.parametrize("lengths", [(20, 18), (20, 0)])
def test_lmdbs_that_are_no_pair_are_told(tmp_path, lengths):
    x, y = make_labels(np.random.RandomState(0), 20)
    net = "".join(
        f'layer {{ name: "{top}" type: "Data" top: "{top}" data_param {{ source: "{source}" batch_size: 8 '
        "backend: LMDB } }\n"
        for top, source in (
            ("data", write_lmdb(tmp_path / "x", x[: lengths[0]])),
            ("label", write_lmdb(tmp_path / "y", y[: lengths[1]])),
        )
    )
    (tmp_path / "net.prototxt").write_text(net + body() + OURS % "")
    message = "is an empty set" if 0 in lengths else r"different lengths: {'data': 20, 'label': 18}; expected one label"
    with pytest.raises(UsageError, match=message):
        train(write_solver(tmp_path, tmp_path / "net.prototxt", test=False), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_made_an_iteration_is_no_run(tmp_path, no_pictures):
    import h5py

    solver = make_run(tmp_path, shuffle=False)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        good = file["label"][0, 0]
        file["label"][0, 0] = -1
    with pytest.raises(UsageError, match="iteration 0: .* has -1 at sample 0, class 0"):
        train(solver, out=str(tmp_path / "run"))
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["label"][0, 0] = good
    assert train(solver, out=str(tmp_path / "run"))["iteration"] == 40
    with pytest.raises(UsageError, match="holds a run already"):
        train(solver, out=str(tmp_path / "run"))


def test_another_net_does_not_resume_a_run(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    train(solver, out=str(tmp_path / "run"))
    before = listing(tmp_path / "run")
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace('"hidden"', '"other"'))
    with pytest.raises(UsageError, match="has no weights for layer 'other' of .*; it has hidden, scores. A run is"):
        train(solver, out=str(tmp_path / "run"), resume=True)
    assert listing(tmp_path / "run") == before


def test_a_test_net_that_meets_nan_first_ends_the_run_with_its_last_good_snapshot(tmp_path, no_pictures):
    import h5py

    solver = make_run(tmp_path)
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        file["data"][35] = np.nan
    with pytest.raises(
        Diverged, match=r"test at iteration 0: .*scores.* has nan[^\0]*last good snapshot is kept: .*_0"
    ):
        train(solver, out=str(tmp_path / "run"))


def test_test_labels_without_a_positive_are_said(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, max_iter=3)
    x, y = make_labels(np.random.RandomState(0), 37)
    write_hdf5(tmp_path / "test", data=x, label=0 * y)
    train(solver, out=str(tmp_path / "run"))
    assert "The TEST net's 'label' holds no positive label in 40 samples: no mAP." in capsys.readouterr().out


def test_of_two_losses_the_metrics_are_those_of_the_one_that_weighs_most(tmp_path, capsys, no_pictures):
    second = SIGMOID.replace('"loss"', '"second"').replace("}\n", "loss_weight: 2 }\n")
    train(make_run(tmp_path, loss=OURS % "" + second, max_iter=3), out=str(tmp_path / "run"))
    assert "The TEST net has 2 losses; the metrics are those of 'scores', by sigmoid." in capsys.readouterr().out
    assert rows_of(tmp_path / "run")[-1]["test_mAP"]


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        pytest.param("train_val.prototxt", '"ReLU"', '"ReLV"', "Unknown layer type: ReLV", id="layer type"),
        pytest.param("solver.prototxt", '"Adam"', '"Adamm"', "Unknown solver type: Adamm", id="solver type"),
    ],
)
def test_a_native_abort_is_a_sentence_with_caffes_reason(tmp_path, name, old, new, message):
    make_run(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    before = listing(tmp_path)
    process = run_command("train", "solver.prototxt", "--out", "run", folder=tmp_path, check=2)
    assert process.stdout == ""
    assert process.stderr.startswith("python -m multilabel_softmax_loss train: error: Caffe stopped, since ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert listing(tmp_path) == before
    assert not (tmp_path / "run").exists()


INPUT = 'layer { name: "%s" type: "Input" top: "%s" input_param { shape { dim: 8 dim: %d } } }\n'


def test_a_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path, test=False)
    net = tmp_path / "train_val.prototxt"
    net.write_text(INPUT % ("data", "data", 5) + INPUT % ("label", "label", 6) + body() + OURS % "")
    before = listing(tmp_path)
    message = "train_val.prototxt: nothing feeds the Input blob 'data' of the TRAIN net, which is all zeros. Expected"
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    fields = 'input: "data" input: "label" input_shape { dim: 8 dim: 5 } input_shape { dim: 8 dim: 6 }\n'
    net.write_text(fields + body() + OURS % "")
    before["train_val.prototxt"] = net.read_bytes()
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    assert listing(tmp_path) == before


def test_a_test_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    rule = " include { phase: TEST } input_param"
    inputs = (INPUT % ("x", "data", 5) + INPUT % ("y", "label", 6)).replace(" input_param", rule)
    net.write_text(inputs + net.read_text().replace("phase: TEST }", 'phase: TEST stage: "never" }'))
    with pytest.raises(UsageError, match="nothing feeds the Input blob 'data' of the TEST net"):
        train(solver, out=str(tmp_path / "run"))


def test_zeros_beside_data_are_a_warning(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, test=False, max_iter=1)
    net = tmp_path / "train_val.prototxt"
    silence = 'layer { name: "silence" type: "Silence" bottom: "state" }\n'
    net.write_text(net.read_text() + INPUT % ("state", "state", 5) + silence)
    train(solver, out=str(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "train: warning: " in said
    assert "nothing feeds the Input blob 'state' of the TRAIN net, which is all zeros.\n" in said


EXITS = """import caffe, sys

class Exits(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        sys.exit(0)
"""


@pytest.mark.parametrize(
    "module, message",
    [
        pytest.param(EXITS, "a Python layer called sys.exit(0) (", id="in forward"),
        pytest.param(EXITS.replace("        pass", "        sys.exit()", 1), "called sys.exit(None) (", id="in setup"),
        pytest.param(f"import sys; sys.exit(7)\n{EXITS}", "SystemExit: 7 (exits.py, line 1)", id="in its module"),
        pytest.param(f"1 / 0\n{EXITS}", "ZeroDivisionError: division by zero (exits.py, line 1)", id="error"),
        pytest.param("class Exits:\npass", "(exits.py, line 2)", id="syntax"),
    ],
)
def test_a_layer_that_ends_the_program_or_does_not_import_is_told_and_status_2(tmp_path, module, message):
    solver = make_run(tmp_path, test=False)
    (tmp_path / "exits.py").write_text(module)
    net = tmp_path / "train_val.prototxt"
    watch = 'layer { name: "w" type: "Python" bottom: "label" python_param { module: "exits" layer: "Exits" } }\n'
    net.write_text(net.read_text() + watch)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=2)
    assert process.stderr.startswith("python -m multilabel_softmax_loss train: error: ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_what_nobody_foresaw_in_a_layer_is_shown_with_its_place_and_status_2(tmp_path):
    solver = make_run(tmp_path, test=False)
    (tmp_path / "breaks.py").write_text(
        "import caffe\nclass Breaks(caffe.Layer):\n"
        "    def setup(self, bottom, top): pass\n    def reshape(self, bottom, top): pass\n"
        "    def forward(self, bottom, top): self.helper()\n    def backward(self, *arguments): pass\n"
    )
    net = tmp_path / "train_val.prototxt"
    watch = 'layer { name: "w" type: "Python" bottom: "label" python_param { module: "breaks" layer: "Breaks" } }\n'
    net.write_text(net.read_text() + watch)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=2)
    assert 'breaks.py", line 5, in forward' in process.stderr
    assert process.stderr.endswith("AttributeError: 'Breaks' object has no attribute 'helper'\n")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, no_pictures):
    solver = make_run(tmp_path, test=False)
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    before = listing(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already; go on with --resume"):
        train(solver, out=str(tmp_path / "run"))
    assert listing(tmp_path / "run") == before


def test_two_runs_cannot_share_a_folder(tmp_path):
    from multilabel_softmax_loss.commands.snapshots import RunFolder

    first, second = (RunFolder(str(tmp_path / "run"), "x") for _ in range(2))
    first.lock()
    with pytest.raises(UsageError, match="is used by another run"):
        second.lock(patience=0)
    first.unlock()
    second.lock(patience=5)
    second.unlock()


def test_the_random_seed_is_drawn_once_and_kept(tmp_path, no_pictures):
    solver = make_run(tmp_path, random_seed=None, max_iter=None, test=False)
    Path(solver).write_text(Path(solver).read_text() + "max_iter: 40\n")
    train(with_iterations(solver, 3), out=str(tmp_path / "a"))
    train(with_iterations(solver, 3), out=str(tmp_path / "b"))
    seeds = [json.loads((tmp_path / name / "tiny_iter_3.json").read_text())["seed"] for name in "ab"]
    assert seeds[0] != seeds[1]
    train(with_iterations(solver, 5), out=str(tmp_path / "a"), resume=True)
    assert json.loads((tmp_path / "a" / "tiny_iter_5.json").read_text())["seed"] == seeds[0]


def test_a_terminal_shows_a_bar_with_loss_rate_and_time_left(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    solver = make_run(tmp_path, max_iter=400, test=False, snapshot=0)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
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
    assert re.search(rb"\d+/400 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+it/s, loss=[\d.]+, lr=0\.02\]", shown)
