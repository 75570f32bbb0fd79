"""Native Caffe in a child process, so that a failed CHECK, which kills its process, reaches the user as a sentence."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from functools import partial
from importlib import import_module
from typing import Any, Callable, Iterator, List, Optional, Tuple

from ..errors import UsageError
from ..files import SIGNALS, blocked, mask_signals
from ..nets.reading import quiet_caffe
from ..parallel.hub import Hub
from ..parallel.launcher import launched
from ..parallel.ranks import ranks
from .terminal import PROGRAM, tell

PARALLEL = ("train", "evaluate", "predict")  # what several ranks can do together
PR_SET_PDEATHSIG = 1
CHILD = "from multilabel_softmax_loss.commands.child import child; child()"

# glog: "F20261122 00:55:14.266420  6134 net.cpp:41] Check failed: ..."
FATAL = re.compile(r"^F\d{4,8} \S+ +\d+ (\S+:\d+)\] (.*)$", re.M)
PROTOBUF = re.compile(r"^\[libprotobuf (?:ERROR|FATAL) .*?\] (.*)$", re.M)


def run_in_child(run: Callable[[Any], int], arguments: Any, hub: Optional[Hub] = None) -> int:
    """The exit status of ``run(arguments)`` in a child process; its last words are put in a sentence if it dies.

    `run` is a function of a module, `arguments` can be pickled and has `command`, the name to put before messages.
    What Caffe itself writes to the standard error goes to a file that is read in case of need. Ctrl-C and SIGTERM reach
    the child, and the child ends with this process, however that ends. Where this is one of several ranks, `hub` does
    what the child asks of the others, and the status is that of all.
    """
    asked: List[int] = []

    def forward(number: int, frame: Any) -> None:
        asked.append(number)
        with suppress(ProcessLookupError):  # it has ended this moment
            process.send_signal(number)

    with ExitStack() as stack:
        with blocked():  # in the child too, until it can handle them
            stack.enter_context(handling(forward))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_"))
            log = os.path.join(folder, "caffe.log")
            reading, writing = os.pipe()
            place = hub.open() if hub else None
            options: Any = {} if hub is None or place is None else {"pass_fds": place[2:], "env": hub.environment()}
            process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=reading, **options)
        os.close(reading)
        mask_signals("SIG_UNBLOCK", SIGNALS)
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as job:
            job.write(pickle.dumps((run.__module__, run.__qualname__, arguments, log, place)))
            job.flush()
            ended = hub.serve(process) if hub else None
            process.wait()  # with the pipe open: its end tells the child that this process is gone
        status = process.wait()
        died = status < 0 and -status not in asked and ended is None
        words = last_words(log, -status) if died else ""
        if -status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE):
            status = 2
        status = status if status >= 0 else 128 - status
        if hub:
            return hub.end(2 if died else status, ended, f"rank {hub.rank}: {words}" if died else "")
        if died:
            tell(arguments.command, words)
        return status


def join_ranks(command: str) -> Optional[Hub]:
    """The hub of this rank, if a launcher of MPI started several; Ctrl-C and SIGTERM wait then for a child to tell.

    Raises
    ------
    UsageError : the ranks cannot meet.
    """
    found = launched()
    if "mpi4py.MPI" in sys.modules:
        raise UsageError(
            "mpi4py has started MPI in this process, which leaves none to the ranks; expected no -m mpi4py, as in "
            f"mpiexec -n 2 {PROGRAM} {command} ..."
        )
    if found is None:
        return None
    mask_signals("SIG_BLOCK", SIGNALS)
    hub = Hub(*found, f"{PROGRAM} {command}: error: ")
    if hub.rank > 0:  # rank 0 says what is to be said
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end
    return hub


def run_as_rank(hub: Hub, argv: List[str], parse: Callable[[List[str]], Tuple[Any, Any]]) -> int:
    """The exit status of all ranks; `parse` gives the module of the command, and its arguments."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            module, arguments = parse(argv)
    except SystemExit as error:
        hub.title = ""  # it is in what argparse says
        return hub.end(int(error.code or 0), words=said.getvalue().rstrip())
    if arguments.command not in PARALLEL:
        shared = ", ".join(PARALLEL)
        return hub.end(2, words=f"{hub.size} ranks were started; expected one process, as ranks share {shared} only.")
    return run_in_child(module.run, arguments, hub)


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have `handler` called for Ctrl-C and SIGTERM; in the main thread, as Python allows it there only."""
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    former = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, old in former:
            signal.signal(number, old)


def child() -> None:
    """The other end of `run_in_child`: runs the job that the standard input holds."""
    try:
        module, name, arguments, log, place = pickle.load(sys.stdin.buffer)
    except EOFError:  # the parent is gone already
        os._exit(1)
    threading.Thread(target=die_with_parent, daemon=True).start()
    if sys.platform == "linux":  # at once, while that thread would wait for Caffe to let go of the interpreter
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # What Python prints keeps going to the terminal; file descriptor 2, where Caffe writes, becomes the log.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = os.path.dirname(log)  # what this process leaves there if it dies, its parent removes
    quiet_caffe()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its caches is no news
    warnings.formatwarning = partial(format_warning, arguments.command, warnings.formatwarning)
    # At once, as a KeyboardInterrupt is lost where it meets a callback; `replacing` keeps files from being torn.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    mask_signals("SIG_UNBLOCK", SIGNALS)
    if place is not None:
        ranks.join(place)
    if ranks.rank > 0:  # rank 0 says what is to be said
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end
        warnings.simplefilter("ignore")
    try:
        status = run_reporting(getattr(import_module(module), name), arguments)
    except Exception:  # such as a user's own layer raises; its author needs to know where
        if not ranks.tell(traceback.format_exc().rstrip()):
            traceback.print_exc()
        status = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Caffe's prefetching threads would be asked to end one by one, and the net to be freed


def format_warning(command: str, usual: Callable[..., str], message: Any, kind: Any, file: str, *place: Any) -> str:
    """A warning of this package as its commands say it; that of another file as Python says it, with its place."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.abspath(file).startswith(ours + os.sep) or file == "sys":  # Caffe, which calls a layer, has no file
        return f"{PROGRAM} {command}: warning: {message}\n"
    return usual(message, kind, file, *place)


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
    except SystemExit as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}, line {frame.lineno}"
        tell(arguments.command, f"a Python layer called sys.exit({error.code!r}) ({place}); expected an exception.")
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # such as a full disk
        tell(arguments.command, f"{error}.")
        return 2


def missing_package(error: ImportError) -> str:
    """What to do where Caffe or another package of the extras is not installed."""
    return (
        f"{error}. The commands need real Caffe and the tools: run them with .venv/bin/python, which `make "
        "environment` makes, or install '.[caffe,tools]' on CPython 3.7 to 3.9."
    )


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
