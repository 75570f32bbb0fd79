"""Files are never torn, and signals wait until they are whole."""

import os
import signal
import stat
import subprocess
import sys

from support.tiny_nets import listing

from multilabel_softmax_loss.files import read_lines, replacing, same_file, write_text


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


def test_lines_are_read_without_the_mark_that_windows_editors_write(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert read_lines(str(tmp_path / "classes.txt"), "--classes") == ["cat", "dog"]
