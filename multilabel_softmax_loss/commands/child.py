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
import time
import traceback
import warnings
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from functools import partial
from importlib import import_module
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from ..errors import NOTHING_KEPT, PROGRAM, SILENT, UsageError, end_interrupted, hidden_module
from ..files import SIGNALS, blocked, mask_signals
from ..nets.reading import quiet_caffe
from ..parallel.hub import Hub
from ..parallel.launcher import end_all, launched
from ..parallel.ranks import ranks
from .packages import missing_package
from .scratch import scratch_folder
from .terminal import settle_streams, tell

PARALLEL = ("train", "evaluate", "predict")  # what several ranks can do together
PR_SET_PDEATHSIG = 1
CHILD = "from multilabel_softmax_loss.commands.child import child; child()"

AGAIN = 0.5  # seconds after which a second Ctrl-C is one; a terminal and a launcher may each send the first
TWICE = "ended at once, as it was asked to twice."
STATUS = "ended"  # the file that a child leaves when it ends by itself

HINTS = {
    "SIGKILL": ", as the system sends where memory is short, or a time is over",
    "SIGBUS": ": a file that it was reading became shorter, or memory is short",
    "SIGXCPU": ": the limit of processor time is reached",
}

CANNOT_WRITE = " (the disk is full, or the folder of the run was moved or removed)"
FATAL_HINTS = {  # by a part of what Caffe says
    "SerializeToOstream": CANNOT_WRITE,
    " to save": CANNOT_WRITE,
    "corrupted compressed block": " (this Caffe was built without Snappy: write the LevelDB uncompressed, or an LMDB)",
}

# glog: "F20261122 00:55:14.266420  6134 net.cpp:41] Check failed: ..."
FATAL = re.compile(r"^F\d{4,8} \S+ +\d+ (\S+:\d+)\] (.*)$", re.M)
PROTOBUF = re.compile(r"^\[libprotobuf (?:ERROR|FATAL) .*?\] (.*)$", re.M)


def run_in_child(run: Callable[[Any], int], arguments: Any, hub: Optional[Hub] = None) -> int:
    """The exit status of ``run(arguments)`` in a child process; its last words are put in a sentence if it dies.

    `run` is a function of a module, `arguments` can be pickled and has `command`, the name to put before messages, and
    may have `if_interrupted`, what is said then.
    What Caffe itself writes to the standard error goes to a file that is read in case of need. Ctrl-C and SIGTERM reach
    the child, and the child ends with this process, however that ends; asked for the second time, it is ended at once.
    Where this is one of several ranks, `hub` does what the child asks of the others, and the status is that of all.
    """
    asked: List[float] = []
    process: Any = None

    def forward(number: int, frame: Any) -> None:
        asked.append(time.monotonic())
        again = asked[-1] - asked[0] > AGAIN
        with suppress(ProcessLookupError):  # it has ended this moment
            if process is not None:  # a signal that came before all were blocked is handled only now
                process.send_signal(signal.SIGKILL if again else number)

    with ExitStack() as stack:
        with blocked():  # in the child too, until it can handle them
            stack.enter_context(handling(forward))
            folder = stack.enter_context(scratch_folder())
            log = os.path.join(folder, "caffe.log")
            reading, writing = os.pipe()
            place = hub.open() if hub else None
            options: Any = {} if hub is None or place is None else {"pass_fds": (place.pipe, place.memory)}
            options["env"] = child_environment(hub.environment() if hub else os.environ)
            process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=reading, **options)
        os.close(reading)
        if asked:
            process.send_signal(signal.SIGTERM)
        mask_signals("SIG_UNBLOCK", SIGNALS)
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as job:
            job.write(pickle.dumps((run.__module__, run.__qualname__, arguments, log, place)))
            job.flush()
            ended = hub.serve(process) if hub else None
            process.wait()  # with the pipe open: its end tells the child that this process is gone
        status = process.wait()
        told = os.path.exists(os.path.join(folder, STATUS))
        died = not told and not asked and (ended is None or (hub is not None and hub.is_blamed(ended)))
        words = last_words(log, status) if died else ""
        if not told:
            status = 130 if asked else 2
        if hub and status == 130 and not hub.agreed and not (told and hub.rank == 0):  # whose child says it itself
            words = f"interrupted{getattr(arguments, 'if_interrupted', NOTHING_KEPT)}." if told else TWICE
            hub.title = f"{PROGRAM} {arguments.command}: "
        if hub:
            return hub.end(2 if died else status, ended, words and f"rank {hub.rank}: {words}")
        if died:
            tell(arguments.command, words)
        elif not told:
            print(f"{PROGRAM} {arguments.command}: {TWICE}", file=sys.stderr)
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
    if hub.rank > 0:
        leave_words_to_rank_0()
    return hub


def leave_words_to_rank_0() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, to the end of this process


def end_before_meeting(command: str, error: str) -> int:
    """Say why this rank cannot meet the others; the exit status of all."""
    return end_all(2, lambda: tell(command, error))


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


def child_environment(environment: Mapping[str, str]) -> Dict[str, str]:
    """The environment of a child: Caffe says why it stops, and no setting of another tool ends it."""
    kept = {name: value for name, value in environment.items() if not name.startswith("GLOG_")}
    if "error" in kept.get("PYTHONWARNINGS", ""):
        del kept["PYTHONWARNINGS"]
    return {**kept, "GLOG_minloglevel": "2", "MPLBACKEND": "Agg"}


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
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    settle_streams()
    tempfile.tempdir = os.path.dirname(log)  # what this process leaves there if it dies, its parent removes
    quiet_caffe()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its caches is no news
    warnings.formatwarning = partial(format_warning, arguments.command, warnings.formatwarning)
    # At once, as a KeyboardInterrupt is lost where it meets a callback; `replacing` keeps files from being torn.
    silent = place is not None and place.rank > 0
    end = partial(leave, os.path.join(os.path.dirname(log), STATUS))
    state = getattr(arguments, "if_interrupted", NOTHING_KEPT)
    for number in SIGNALS:
        signal.signal(number, lambda *_: end(130) if silent else end_interrupted(arguments.command, end, state))
    mask_signals("SIG_UNBLOCK", SIGNALS)
    if place is not None:
        ranks.join(place)
    if ranks.rank > 0:
        leave_words_to_rank_0()
        warnings.simplefilter("ignore")
        SILENT[0] = True
    end(run_reporting(lambda arguments: getattr(import_module(module), name)(arguments), arguments))


def leave(word: str, status: int) -> None:
    """End this process, a child, at once, and leave word of that, a file, without which it died.

    At once, as Caffe's prefetching threads would be asked to end one by one, and the net to be freed.
    """
    os.makedirs(os.path.dirname(word), exist_ok=True)  # a layer, or what cleans temporary folders, may have removed it
    open(word, "w").close()
    os._exit(status)


def format_warning(command: str, usual: Callable[..., str], message: Any, kind: Any, file: str, *place: Any) -> str:
    """A warning of this package as its commands say it; that of another file as Python says it, with its place."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.abspath(file).startswith(ours + os.sep) or file == "sys":  # Caffe, which calls a layer, has no file
        return f"{PROGRAM} {command}: warning: {message}\n"
    return usual(message, kind, file, *place)


def run_reporting(run: Callable[[Any], int], arguments: Any) -> int:
    """The exit status of ``run(arguments)``; errors that a user can mend are told in a sentence."""
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        tell(arguments.command, str(error))
    except ImportError as error:
        tell(arguments.command, missing_package(error) + hidden_module())
    except SystemExit as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}, line {frame.lineno}"
        tell(arguments.command, f"a Python layer called sys.exit({error.code!r}) ({place}); expected an exception.")
    except MemoryError as error:
        tell(arguments.command, f"the memory does not suffice{f': {error}' if str(error) else ''}.")
    except UnicodeEncodeError as error:  # a name that pycaffe does not take
        tell(arguments.command, f"{error.object!a} is no UTF-8; expected that of names, and a locale such as C.UTF-8.")
    except OSError as error:  # such as a full disk
        tell(arguments.command, f"{error}.")
    except BaseException:  # what a user's own layer raises, be it a KeyboardInterrupt; its author needs to know where
        told = traceback.format_exc().rstrip() + hidden_module()
        if not ranks.tell(told):
            print(told, file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    return 2


def die_with_parent() -> None:
    """Wait for the end of the standard input, then end this process at once."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def last_words(log: str, status: int) -> str:
    """Why a process died, by its status as Popen has it, and by what is in the file of its standard error."""
    text = read_log(log)
    fatal = FATAL.search(text)
    if fatal:
        details = [match.strip() for match in PROTOBUF.findall(text)]
        reason = "; ".join([*details, fatal.group(2).strip()])
        hint = next((hint for words, hint in FATAL_HINTS.items() if words in reason), "")
        return f"Caffe stopped, since {fatal.group(1)} says: {reason}{hint}"
    if status >= 0:
        return (
            f"a Python layer, or what it calls, ended the process with status {status}, as os._exit() does; expected "
            "an exception."
        )
    tail = [line for line in text.splitlines() if line.strip()]
    name = signal.Signals(-status).name
    told = f"Caffe died of signal {-status} ({name})" + HINTS.get(name, "")
    return told + (f"; it said: {tail[-1]}" if tail else "")


def read_log(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
