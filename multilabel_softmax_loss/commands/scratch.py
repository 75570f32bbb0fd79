"""The temporary folder of a command: gone when it ends, and, if it was killed, when the next one begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from typing import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "multilabel_softmax_loss_"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A temporary folder, kept by a lock in it for as long as this process lives."""
    remove_abandoned()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    lock = os.open(os.path.join(folder, "lock.new"), os.O_CREAT | os.O_RDWR)
    whole = os.open(folder, os.O_RDONLY) if fcntl else lock
    try:
        with suppress(OSError, AttributeError):  # there may be no locks, as on a network's drive and in Windows
            fcntl.flock(whole, fcntl.LOCK_EX)  # systemd-tmpfiles leaves such a folder alone, however old it becomes
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(os.path.join(folder, "lock.new"), os.path.join(folder, "lock"))  # held from its first moment on
        yield folder
    finally:
        os.close(lock)
        if fcntl:
            os.close(whole)
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove such folders of processes that are dead, as nobody holds their locks."""
    for entry in os.scandir(tempfile.gettempdir()) if fcntl else ():
        with suppress(OSError):  # of another user, or gone by now
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                lock = os.open(os.path.join(entry.path, "lock"), os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path)
                finally:
                    os.close(lock)
