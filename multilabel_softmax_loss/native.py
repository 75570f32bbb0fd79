"""Native Caffe in a child process, so that a failed CHECK, which kills its process, reaches the user as a sentence."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from importlib import import_module
from typing import Any, Callable

PROGRAM = "python -m multilabel_softmax_loss"
CHILD = "from multilabel_softmax_loss.native import child; child()"

# glog: "F20261122 00:55:14.266420  6134 net.cpp:41] Check failed: ..."
FATAL = re.compile(r"^F\d{4,8} \S+ +\d+ (\S+:\d+)\] (.*)$", re.M)
PROTOBUF = re.compile(r"^\[libprotobuf (?:ERROR|FATAL) .*?\] (.*)$", re.M)


class UsageError(ValueError):
    """Bad usage or bad input: what came, what was expected, where to change it. The exit status is 2."""


def guarded(run: Callable[[Any], int], arguments: Any) -> int:
    """The exit status of ``run(arguments)`` in a child process; its last words are put in a sentence if it dies.

    `run` is a function of a module, `arguments` can be pickled and has `command`, the name to put before messages.
    What Caffe itself writes to the standard error goes to a file that is read in case of need. Interrupts reach the
    child, and the child ends with this process, however that ends.
    """
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        log = os.path.join(folder, "caffe.log")
        reading, writing = os.pipe()
        process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=reading)
        os.close(reading)
        handlers = {
            number: signal.signal(number, lambda number, frame: process.send_signal(number))
            for number in (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
        }
        try:
            with os.fdopen(writing, "wb") as job:
                job.write(pickle.dumps((run.__module__, run.__qualname__, arguments, log)))
                job.flush()
                status = process.wait()  # with the pipe open: its end tells the child that this process is gone
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if status >= 0:
            return status
        tell(arguments.command, last_words(log, -status))
        return 2 if -status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE) else 128 - status


def child() -> None:
    """The other end of `guarded`: runs the job that the standard input holds."""
    module, name, arguments, log = pickle.load(sys.stdin.buffer)
    threading.Thread(target=die_with_parent, daemon=True).start()
    # What Python prints keeps going to the terminal; file descriptor 2, where Caffe writes, becomes the log.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = os.path.dirname(log)  # what this process leaves there if it dies, its parent removes
    quiet_caffe()
    signal.signal(signal.SIGINT, interrupt_once)
    status = run_reporting(getattr(import_module(module), name), arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Caffe's prefetching threads would be asked to end one by one, and the net to be freed


def run_reporting(run: Callable[[Any], int], arguments: Any) -> int:
    """The exit status of ``run(arguments)``; errors that a user can mend are told in a sentence."""
    try:
        return run(arguments)
    except UsageError as error:
        tell(arguments.command, str(error))
        return 2
    except ImportError as error:
        tell(arguments.command, missing_package(error))
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        print(f"{PROGRAM} {arguments.command}: interrupted", file=sys.stderr)
        return 130


def tell(command: str, error: str) -> None:
    """Say on the standard error what is wrong, as argparse does."""
    print(f"{PROGRAM} {command}: error: {error}", file=sys.stderr)


def missing_package(error: ImportError) -> str:
    """What to do where Caffe or another package of the extras is not installed."""
    return (
        f"{error}. The commands need real Caffe and the tools: run them with .venv/bin/python, which `make "
        "environment` makes, or install '.[caffe,tools]' on CPython 3.7 to 3.9."
    )


def quiet_caffe() -> None:
    """Keep Caffe from logging each layer it makes; takes effect before the first ``import caffe``."""
    os.environ.setdefault("GLOG_minloglevel", "2")


def interrupt_once(number: int, frame: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to parent and child, and the parent sends it on
    raise KeyboardInterrupt


def die_with_parent() -> None:
    """Wait for the end of the standard input, then end this process at once."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def last_words(log: str, number: int) -> str:
    """Why a process died of signal `number`: Caffe's own reason, from the file that holds its standard error."""
    text = read_log(log)
    fatal = FATAL.search(text)
    if fatal:
        details = [match.strip() for match in PROTOBUF.findall(text)]
        reason = "; ".join([*details, fatal.group(2).strip()])
        return f"Caffe stopped, since {fatal.group(1)} says: {reason}"
    tail = [line for line in text.splitlines() if line.strip()]
    return f"Caffe died of signal {number} ({signal.Signals(number).name})" + (f"; it said: {tail[-1]}" if tail else "")


def read_log(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
