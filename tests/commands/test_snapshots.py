"""The folder of a run: snapshots that are whole or recognised as torn, and whose the folder is."""

import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_nets import SIGMOID, listing, make_run, with_iterations

from multilabel_softmax_loss.commands.child import handling
from multilabel_softmax_loss.commands.snapshots import RunFolder, set_learned_net
from multilabel_softmax_loss.commands.train import Diverged, train
from multilabel_softmax_loss.errors import UsageError


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


def test_ctrl_c_ends_the_wait_for_a_folder_in_use(tmp_path, monkeypatch):
    solver = make_run(tmp_path, test=False)
    RunFolder(str(tmp_path / "run"), "x").lock()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr("multilabel_softmax_loss.commands.snapshots.time", clock)
    # A process that was started in the background ignores Ctrl-C unless it is told not to.
    with handling(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        train(solver, out=str(tmp_path / "run"), resume=True)


def test_a_folder_that_cannot_be_locked_is_told_at_once(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UsageError, match="run cannot be locked: No locks available; choose another --out"):
        train(make_run(tmp_path), out=str(tmp_path / "run"))


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


def test_weights_that_are_not_finite_are_never_kept(tmp_path, no_pictures):
    loss = SIGMOID.replace('top: "loss"', 'top: "loss" loss_weight: 1e6')
    solver = make_run(tmp_path, loss=loss, base_lr="3e38", snapshot=1, test=False)
    Path(solver).write_text(Path(solver).read_text().replace('"Adam"', '"SGD"'))
    with pytest.raises(Diverged, match=r"iteration 1: the weights of layer '\w+' are not finite"):
        train(solver, out=str(tmp_path / "run"))
    assert [name for name in os.listdir(tmp_path / "run") if name.endswith(".caffemodel")] == ["tiny_iter_0.caffemodel"]


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


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, no_pictures):
    solver = make_run(tmp_path, test=False)
    train(with_iterations(solver, 2), out=str(tmp_path / "run"))
    before = listing(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already; go on with --resume"):
        train(solver, out=str(tmp_path / "run"))
    assert listing(tmp_path / "run") == before


def test_two_runs_cannot_share_a_folder(tmp_path):
    first, second = (RunFolder(str(tmp_path / "run"), "x") for _ in range(2))
    first.lock()
    with pytest.raises(UsageError, match="is used by another run"):
        second.lock(patience=0)
    first.unlock()
    second.lock(patience=5)
    second.unlock()
