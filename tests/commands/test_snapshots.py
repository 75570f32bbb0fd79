"""The folder of a run: snapshots that are whole or recognised as torn, and whose the folder is."""

import errno
import os
import random
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_nets import SIGMOID, listing, make_run, rows_of, with_iterations

from multilabel_softmax_loss.commands.child import handling
from multilabel_softmax_loss.commands.run_folder import RunFolder
from multilabel_softmax_loss.commands.scratch import remove_abandoned
from multilabel_softmax_loss.commands.snapshots import SnapshotPrefix, Snapshots, set_learned_net, write_record
from multilabel_softmax_loss.commands.train import Diverged, train
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.files import MARK


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
    monkeypatch.setattr("multilabel_softmax_loss.commands.run_folder.time", clock)
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


def test_the_temporary_folder_of_a_run_is_known_to_the_next_if_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SnapshotPrefix("tiny") as prefix:
        assert [path.name for path in tmp_path.glob("*/lock")] == ["lock"]
        os.rename(os.path.dirname(prefix.link), tmp_path / "killed")
    (tmp_path / "killed").rename(tmp_path / "multilabel_softmax_loss_killed")
    remove_abandoned()
    assert os.listdir(tmp_path) == []


def test_two_runs_cannot_share_a_folder(tmp_path):
    first, second = (RunFolder(str(tmp_path / "run"), "x") for _ in range(2))
    first.lock()
    with pytest.raises(UsageError, match="is used by another run"):
        second.lock(patience=0)
    first.unlock()
    second.lock(patience=5)
    second.unlock()


# Flips in the test that is run always; `make attack` makes more.
FLIPS = int(os.environ.get("FLIPS", "400"))


def damaged_bits(data, draw, count):
    """Copies of some bytes, each with one bit flipped."""
    for _ in range(count):
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_manifest_with_any_bit_flipped_is_torn_or_says_what_it_said(tmp_path):
    path = str(tmp_path / "tiny_iter_3.json")
    content = {"iteration": 3, "files": {}, "seed": 5, "seconds": 0.125, "best": {"metric": "test_mAP", "value": 0.25}}
    written = write_record(path, content)
    data = Path(path).read_bytes()
    torn = 0
    for copy in damaged_bits(data, random.Random(int(os.environ.get("ATTACK_SEED", "0"))), FLIPS):
        Path(path).write_bytes(copy)
        manifest, problem = Snapshots(str(tmp_path), "tiny").read(3, path)
        assert (manifest == written) if manifest else problem
        torn += manifest is None
    assert torn > 0.75 * FLIPS  # the others are blanks, which mean nothing


FOREIGN = [
    pytest.param("tiny_iter_10.caffemodel", "of a run of this program", id="weights of plain Caffe"),
    pytest.param("tiny_iter_10.solverstate", "of a run of this program", id="state of plain Caffe"),
    pytest.param("best.caffemodel", "of a run of this program", id="best weights"),
    pytest.param("best.json", "of a run of this program", id="notes on the best"),
    pytest.param("curves.png", "of a run of this program", id="a picture"),
    pytest.param("history.csv", "is no history of a run", id="a history"),
    pytest.param("preprocessing.json", "says something else than this run's would", id="preprocessing"),
]


@pytest.mark.parametrize("name, message", FOREIGN)
def test_a_new_run_refuses_a_folder_where_it_would_replace_a_file_of_anothers(tmp_path, name, message):
    solver = make_run(tmp_path, test=False)
    (tmp_path / "given.json").write_text('{"mean": 0, "scale": 1, "channels": "GRAY"}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=f"{name} is there already, and .*{message}"):
        train(solver, out=str(tmp_path / "run"), preprocessing=str(tmp_path / "given.json"))
    assert listing(tmp_path) == before


KEPT = ("history.csv", "best.json", "tiny_iter_10.json")  # under another name


@pytest.mark.parametrize("name", [param.values[0] for param in FOREIGN[:3]] + ["curves.png", *KEPT])
def test_a_resumed_run_replaces_no_file_of_anothers(tmp_path, no_pictures, name):
    solver = make_run(tmp_path)
    train(with_iterations(solver, 4), out=str(tmp_path / "run"))
    (tmp_path / "run" / name).write_text("mine")
    kept = (tmp_path / "run" / name).read_bytes()
    refused = pytest.raises(UsageError, match=f"{name} is not of this run, or has changed since")
    with nullcontext() if name in KEPT else refused:
        train(with_iterations(solver, 12), out=str(tmp_path / "run"), resume=True)
    assert kept in listing(tmp_path / "run").values()


def test_hidden_files_of_another_hand_stay_and_those_of_a_killed_process_go(tmp_path, no_pictures):
    solver = make_run(tmp_path, test=False, max_iter=1)
    run = tmp_path / "run"
    for name in (".tiny-data", f".tiny{MARK}abcd_012"):
        (run / name).mkdir(parents=True)
        (run / name / "file").write_text("x")
    mine = [".best-notes.txt", ".tiny_iter_1-old.json", f".other{MARK}abcd_012.json", f".best{MARK}short.json"]
    left = [f".best{MARK}abcd_012.json", f".tiny_iter_1{MARK}abcd_012.json", f".history{MARK}abcd_012.csv"]
    for name in [*mine, *left]:
        (run / name).write_text("x")
    train(solver, out=str(run))
    assert {name for name in os.listdir(run) if name.startswith(".")} == {".tiny-data", *mine}


@pytest.mark.parametrize("damage", [b"\0" * 40, b"{", b"[1]", b'{"metric": 1}', b"[" * 100000], ids=str)
def test_a_damaged_best_json_stops_no_run_and_its_weights_are_kept(tmp_path, capsys, no_pictures, damage):
    solver = make_run(tmp_path, snapshot=0)
    train(with_iterations(solver, 4), out=str(tmp_path / "run"))
    weights = (tmp_path / "run" / "best.caffemodel").read_bytes()
    (tmp_path / "run" / "best.json").write_bytes(damage[:10] + damage)
    train(with_iterations(solver, 5), out=str(tmp_path / "run"), resume=True)
    assert "best.json is damaged" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.caffemodel.kept-1").read_bytes() == weights
    assert (tmp_path / "run" / "best.json.kept-1").read_bytes() == damage[:10] + damage


@pytest.mark.parametrize(
    "damage, words",
    [
        pytest.param(lambda data: data[:-9] + b"\0" * 9, "before iteration 9 is that of 7", id="tail of zeros"),
        pytest.param(lambda data: data.replace(b"\n5,", b"\nfive,"), "1 rows do not read", id="a word for a number"),
        pytest.param(
            lambda data: data.replace(b"\n5,", b"\n\xff5,").replace(b"\n6,", b"\n2,"), "2 rows", id="two rows"
        ),
        pytest.param(lambda data: b"\0" * 300 + data[300:], "history begins anew here", id="no first line"),
        pytest.param(lambda data: b"", "history begins anew here", id="empty"),
    ],
)
def test_a_damaged_history_is_taken_up_as_far_as_it_is_whole(tmp_path, capsys, no_pictures, damage, words):
    solver = make_run(tmp_path, test=False)
    train(with_iterations(solver, 9), out=str(tmp_path / "run"))
    history = tmp_path / "run" / "history.csv"
    whole = rows_of(tmp_path / "run")
    damaged = damage(history.read_bytes())
    history.write_bytes(damaged)
    train(with_iterations(solver, 10), out=str(tmp_path / "run"), resume=True)
    assert words in capsys.readouterr().out
    assert (tmp_path / "run" / "history.csv.kept-1").read_bytes() == damaged
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["iteration"] == "9"
    assert [row for row in rows[:-1] if row not in whole] == []
    assert len(rows) >= 8 or "anew" in words
