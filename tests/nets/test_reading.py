"""Prototxt files: what cannot be read says who named it, where it was looked for, and what it is."""

import re

import pytest
from support.tiny_nets import make_run

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.reading import read_prototxt

NET = 'layer { name: "relu" type: "ReLU" bottom: "a" top: "b" }\n'


@pytest.mark.parametrize(
    "content, kind, message",
    [
        pytest.param(b"\xef\xbb\xbf" + NET.encode(), "NetParameter", "begins with a byte order mark", id="mark"),
        pytest.param(NET.encode("utf-16"), "NetParameter", "is no text file", id="UTF-16"),
        pytest.param(
            NET.encode(), "SolverParameter", 'is a net; expected a solver: one with net: "file" in it', id="net"
        ),
        pytest.param(
            b'net: "n" base_lr: 1', "NetParameter", "is a solver; expected a net, such as its net: names", id="solver"
        ),
        pytest.param(b"layer { nam }", "NetParameter", "is no NetParameter in text form: line 1:9", id="neither"),
        pytest.param(b'name: "empty"', "NetParameter", "has no layers; expected a net", id="no layers"),
    ],
)
def test_what_is_no_net_is_told_in_a_sentence(tmp_path, monkeypatch, content, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_prototxt("file", kind)


def test_a_file_that_is_not_there_is_told_with_its_folder_and_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "train.prototxt").write_text(NET)
    with pytest.raises(UsageError) as told:
        read_prototxt("nets/trian.prototxt", named_by="net of solver.prototxt")
    assert str(told.value) == (
        "nets/trian.prototxt (net of solver.prototxt) cannot be read: No such file or directory. Did you mean "
        f"'nets/train.prototxt'? Paths count from the folder where you start, {tmp_path}."
    )
    with pytest.raises(UsageError, match=re.escape(f"There is no folder {tmp_path}/net. Paths count")):
        read_prototxt("net/train.prototxt")
    with pytest.raises(UsageError, match=r"'a\\x00b' cannot be read: embedded null byte"):
        read_prototxt("a\0b")


def test_a_command_given_the_wrong_prototxt_says_what_it_is(tmp_path, run_here):
    make_run(tmp_path)
    process = run_here("train", "train_val.prototxt", folder=tmp_path, check=2)
    assert 'train_val.prototxt is a net; expected a solver: one with net: "train_val.prototxt"' in process.stderr
    solver = tmp_path / "solver.prototxt"
    solver.write_text(solver.read_text().replace("train_val.prototxt", "trainval.prototxt"))
    process = run_here("train", "solver.prototxt", folder=tmp_path, check=2)
    assert "trainval.prototxt (net of solver.prototxt) cannot be read: No such file or directory. Did you mean" in (
        process.stderr
    )
