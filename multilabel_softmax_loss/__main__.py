"""The command line: `python -m multilabel_softmax_loss COMMAND`; each command is a module."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Optional, Sequence

# Command: its module, with add_arguments(parser) and run(arguments) -> exit status, and what it does.
COMMANDS = {
    "train": ("train", "train a net, with metrics, curves, snapshots and resuming"),
    "evaluate": ("evaluate", "multi-label metrics of a net over a whole data set"),
    "predict": ("predict", "the labels of images"),
    "deploy": ("deploy", "write the deploy prototxt of a training net, and prove it"),
}

STATUS = "Exit status: 0 yes, 1 no (a run or a proof failed), 2 bad usage or input, 3 cannot tell."


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that `argv` names; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    formatter = argparse.RawDescriptionHelpFormatter
    program = "python -m multilabel_softmax_loss"
    parser = argparse.ArgumentParser(
        prog=program, description="Caffe nets whose images carry several labels.", epilog=STATUS
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=formatter)
        if name in argv[:1]:  # the others stay unloaded: they may need what is not installed
            import_module(f"{__package__}.{module}").add_arguments(command)
    arguments = parser.parse_args(argv)
    return import_module(f"{__package__}.{COMMANDS[arguments.command][0]}").run(arguments)


if __name__ == "__main__":
    sys.exit(main())
