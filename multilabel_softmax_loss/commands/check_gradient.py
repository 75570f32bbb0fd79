"""The command `check-gradient`: the gradients of a net's Python layers by finite differences."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Dict, Sequence

from ..errors import UsageError
from ..gradient_check.fill import KINDS
from ..gradient_check.net import check_net
from ..gradient_check.report import BUDGET, TOLERANCE
from .terminal import printing_aside

EXAMPLE = """\
example:
  python -m multilabel_softmax_loss check-gradient train.prototxt
  python -m multilabel_softmax_loss check-gradient net.prototxt --fill scores=gaussian --fill labels=multihot

A layer's module is looked for beside the prototxt, too. What layers print goes to the standard error.

exit status: 0 all pass, with or without warnings, 1 a gradient is wrong or a layer does harm in this net (or, with
--strict, there is a warning), 2 bad usage or input, or a layer raises before there is a gradient, 3 one is left open"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="the net, run in phase TRAIN on the data it feeds itself")
    parser.add_argument("--layer", action="append", metavar="NAME", help="check this layer only; may be repeated")
    parser.add_argument("--fill", action="append", default=[], metavar="BLOB=KIND", help=f"for Input blobs: {KINDS}")
    parser.add_argument("--weights", metavar="FILE.caffemodel", help="parameters of the net; its fillers' otherwise")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative error that passes (%(default)g)")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="time per layer (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of data, directions and coordinates (%(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    sys.dont_write_bytecode = True
    sys.path.append(os.path.dirname(os.path.abspath(arguments.net)))  # a net's own layers often lie beside it
    try:
        with printing_aside():
            checked = check_net(
                arguments.net,
                arguments.layer,
                read_fill(arguments.fill),
                arguments.weights,
                arguments.seed,
                arguments.tolerance,
                arguments.budget,
            )
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(json.dumps(dict(checked.as_dict(), net=arguments.net), indent=2) if arguments.json else checked)
    return checked.status(arguments.strict)


def read_fill(items: Sequence[str]) -> Dict[str, str]:
    """The kinds of data by blob, from words such as "labels=multihot"."""
    fill = {}
    for item in items:
        blob, equals, kind = item.partition("=")
        if not (blob and equals and kind):
            raise ValueError(f"--fill {item}; expected BLOB=KIND with {KINDS}.")
        fill[blob] = kind
    return fill
