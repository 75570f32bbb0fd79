"""The command `snippet`: layers and nets to paste into a prototxt, which come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict

from ..errors import UsageError, unknown_name

WITHOUT_CAFFE = True

EXAMPLE = """\
example:
  python -m multilabel_softmax_loss snippet
  python -m multilabel_softmax_loss snippet softmax_loss >> train.prototxt"""

PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = (PACKAGE / "snippets", PACKAGE.parent / "prototxt")  # of an installed package, of a checkout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("name", metavar="NAME", nargs="?", help="the snippet to print; without it they are listed")


def run(arguments: argparse.Namespace) -> int:
    snippets = read_snippets()
    if arguments.name is None:
        width = max(map(len, snippets))
        for name, text in snippets.items():
            print(f"{name:{width}}  {text.splitlines()[0].strip('# ')}")
        return 0
    name = arguments.name[: -len(".prototxt")] if arguments.name.endswith(".prototxt") else arguments.name
    if name not in snippets:
        raise unknown_name("snippet", name, list(snippets), "this package")
    print(snippets[name], end="")
    return 0


def read_snippets() -> Dict[str, str]:
    """The texts of the snippets by name. The installed ones come first: another folder may have the name prototxt."""
    for folder in FOLDERS:
        paths = sorted(folder.glob("*.prototxt"))
        if paths:
            return {path.stem: path.read_text(encoding="utf-8") for path in paths}
    raise UsageError(f"no snippets in {' or '.join(map(str, FOLDERS))}; install the package again.")
