"""Files are never torn, and signals wait until they are whole."""

import os
import re
import signal
import stat
import subprocess
import sys

import pytest
from support.tiny_nets import listing

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.files import (
    check_output,
    open_file,
    read_json,
    read_lines,
    replacing,
    same_file,
    write_text,
)


def test_signals_that_a_caller_blocked_stay_blocked(tmp_path):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with replacing(tmp_path / "file.txt"):
            pass
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def test_ctrl_c_waits_until_a_file_is_whole(tmp_path):
    code = """import os, signal
from multilabel_softmax_loss.files import read_lines, replacing, same_file, write_text
signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
with replacing("file.txt") as temporary, open(temporary, "w") as file:
    os.kill(os.getpid(), signal.SIGINT)
    file.write("all of it")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 130
    assert listing(tmp_path) == {"file.txt": b"all of it"}


def test_a_file_that_is_replaced_keeps_its_permissions_and_its_link(tmp_path):
    kept, link = tmp_path / "kept.txt", tmp_path / "link.txt"
    kept.write_text("old")
    kept.chmod(0o640)
    link.symlink_to("kept.txt")
    write_text(str(link), "new")
    assert link.is_symlink()
    assert kept.read_text() == "new"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    write_text(str(tmp_path / "new.txt"), "new")
    (tmp_path / "other.txt").write_text("other")
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "other.txt").stat().st_mode)


def test_a_file_that_grows_too_long_is_named(tmp_path):
    code = """import resource, sys
from multilabel_softmax_loss.commands.history import History
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))
history = History("history.csv", ["iteration", "seconds", "lr"], 0, 1, print)
for work in (lambda: write_text("kept.txt", 100 * "x"), lambda: [history.add({"iteration": k}) for k in range(99)]):
    try:
        work()
    except UsageError as error:
        print(error)
"""
    (tmp_path / "kept.txt").write_text("old")
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    why = "cannot be written: File too large (the limit of ulimit -f)."
    assert process.stdout == f"kept.txt {why}\nhistory.csv {why}\n"
    assert (tmp_path / "kept.txt").read_text() == "old"
    assert sorted(listing(tmp_path)) == ["history.csv", "kept.txt"]


def test_one_file_is_one_file_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("")
    (tmp_path / "link.json").symlink_to("a.json")
    os.link("a.json", "hard.json")
    for name in ("./a.json", str(tmp_path / "a.json"), "link.json", "hard.json"):
        assert same_file("a.json", name)
    assert same_file("new.json", "./new.json")  # neither is there yet
    assert not same_file("a.json", "new.json")
    assert not same_file(None, None)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_what_may_have_no_end_is_neither_read_nor_replaced(tmp_path, make):
    path = str(tmp_path / "endless.json")
    make(path)
    with pytest.raises(OSError, match="it is a pipe, a socket or a device; expected a file"):
        open_file(path)
    with pytest.raises(UsageError, match="endless.json cannot be written; expected the name of a file"):
        check_output(path, (".json",))


def test_lines_are_read_without_the_mark_that_windows_editors_write(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert read_lines(str(tmp_path / "classes.txt"), "--classes") == ["cat", "dog"]


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(b"", "is no JSON (Expecting value", id="empty"),
        pytest.param(b"{'a': 1}", "is no JSON (Expecting property name", id="Python"),
        pytest.param(b'{"a": 1, "b": {"c": 1, "c": 2}}', ": 'c' is there twice", id="a key twice"),
        pytest.param(b"[1e999]", ": 1e999 is no finite number", id="too large a float"),
        pytest.param(b"[1" + 400 * b"0" + b"]", ": 10000000000000000... is no finite number", id="too large"),
        pytest.param(b"[-Infinity]", ": -Infinity is no finite number", id="infinity"),
        pytest.param(b"[NaN]", ": NaN is no finite number", id="not a number"),
        pytest.param(rb'["\ud83d"]', "holds half a character ('\\ud83d')", id="half of a surrogate pair"),
        pytest.param(rb'{"\ud83d": 1}', "holds half a character ('\\ud83d')", id="half of a surrogate pair as key"),
        pytest.param(100000 * b"[", "is nested too deeply", id="nested"),
        pytest.param(100000 * b"[" + 100000 * b"]", "is nested too deeply", id="nested and closed"),
        pytest.param(b"\xff\xfe[\x00", "is no text file", id="UTF-16"),
    ],
)
def test_json_that_is_none_is_told_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)) as told:
        read_json(str(path), "expected a list")
    assert str(told.value).startswith(str(path))
    assert str(told.value).endswith("; expected a list.")


def test_json_is_read_with_a_byte_order_mark_too(tmp_path):
    (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa9"]}')
    assert read_json(str(tmp_path / "file.json"), "") == {"a": [1, 2.5, None, "\u00e9"]}
