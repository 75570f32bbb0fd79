"""Files are never torn, and signals wait until they are whole."""

import signal
import subprocess
import sys

from support.tiny_nets import listing

from multilabel_softmax_loss.files import replacing


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
from multilabel_softmax_loss.files import replacing
signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
with replacing("file.txt") as temporary, open(temporary, "w") as file:
    os.kill(os.getpid(), signal.SIGINT)
    file.write("all of it")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 130
    assert listing(tmp_path) == {"file.txt": b"all of it"}
