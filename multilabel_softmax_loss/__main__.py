"""The command line: `python -m multilabel_softmax_loss COMMAND`.

A command is a module with `add_arguments(parser)` and `run(arguments)`, which returns the exit status: 0 says yes, 1
says no, 2 is bad usage or input, 3 is "cannot tell". It raises a UsageError with one clear sentence where its input is
at fault. It may have `HINTS`, what to add by option where words are left over. Only the module of the command given is
imported. It runs in a child process, since Caffe may kill its own, unless it says ``WITHOUT_CAFFE = True``.
"""

import os
import signal
import sys
from functools import partial

from .errors import PROGRAM, UsageError, end_unexpected
from .parallel.launcher import end_all, end_early

# Before what takes time is imported, be it `python -m` or the console script; a command knows better how to end.
if __name__ == "__main__" or os.path.basename(sys.argv[0]).startswith("multilabel-softmax-loss"):
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, end_early)
    sys.excepthook = partial(end_unexpected, end=lambda status: os._exit(end_all(status)))

import argparse
import importlib
from typing import Any, List, Optional, Tuple

from .commands.child import end_before_meeting, join_ranks, run_as_rank, run_in_child, run_reporting
from .commands.packages import missing_package
from .commands.terminal import settle_environment, settle_streams, tell

COMMANDS = {
    "convert": (
        "commands.convert",
        "from annotated images to LMDBs, HDF5 or an index, and a net to train",
    ),
    "train": ("commands.train", "train a net, with metrics, curves, snapshots and resuming"),
    "evaluate": ("commands.evaluate", "compute multi-label metrics of a net over a whole data set"),
    "predict": ("commands.predict", "find the labels of images"),
    "deploy": ("commands.deploy", "write the deploy prototxt of a training net, and prove it"),
    "check-gradient": ("commands.check_gradient", "check the gradients of a net's Python layers by finite differences"),
    "migrate": ("commands.migrate", "bring an old net to these losses: a diff, and the proof that its loss stays"),
    "snippet": ("commands.snippet", "print layers and nets to paste into a prototxt"),
}


class Version(argparse.Action):
    """Prints the versions of this package and of what it runs on."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .commands.version import versions

        print(versions(), end="")
        parser.exit()


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        check_start()
        hub = join_ranks(argv[0] if argv else "")
    except UsageError as error:
        return end_before_meeting(argv[0] if argv else "", str(error))
    if hub is not None:
        return run_as_rank(hub, argv, parse)
    module, arguments = parse(argv)
    run = run_reporting if getattr(module, "WITHOUT_CAFFE", False) else run_in_child
    return run(module.run, arguments)


def check_start() -> None:
    """Raise a UsageError where the working directory is gone, which all paths count from."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the folder where this starts was removed, or cannot be read; cd to another one.") from error


def parse(argv: List[str]) -> Tuple[Any, Any]:
    """The module of the command, and its arguments; a SystemExit, as argparse has it, where they are wrong."""
    summary = "Caffe nets whose images carry several labels: losses, and tools around them."
    parser = argparse.ArgumentParser(prog=PROGRAM, description=summary)
    version: Any = {"nargs": 0, "default": argparse.SUPPRESS, "help": "print what is installed, and exit"}
    parser.add_argument("--version", action=Version, **version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    module: Any = None
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in argv[:1]:
            try:
                module = importlib.import_module(f"{__package__}.{module_name}")
            except ImportError as error:
                tell(name, missing_package(error))
                sys.exit(2)
            command.description = summary[0].upper() + summary[1:] + "."
            module.add_arguments(command)
            chosen = command
    arguments, rest = parser.parse_known_args(argv)
    if module is None:
        parser.print_usage(sys.stderr)
        print(f"{PROGRAM}: error: expected a command: {', '.join(COMMANDS)}; -h explains them.", file=sys.stderr)
        sys.exit(2)
    if rest:
        hints = [hint for option, hint in getattr(module, "HINTS", {}).items() if option in argv]
        chosen.error(f"unrecognized arguments: {' '.join(rest)}{''.join(hints)}")
    return module, arguments


def console() -> None:
    """The console script `multilabel-softmax-loss`, and this module as a program."""
    settle_streams()
    settle_environment()
    sys.exit(main())


if __name__ == "__main__":
    console()
