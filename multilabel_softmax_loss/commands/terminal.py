"""What commands say: sentences on the standard output and error, clear of the progress bar."""

from __future__ import annotations

import sys

from ..parallel.ranks import ranks

PROGRAM = "python -m multilabel_softmax_loss"


def say(text: str) -> None:
    """A line on the standard output, above the progress bar; of several ranks, rank 0 says it."""
    from tqdm import tqdm

    if ranks.rank > 0:
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def tell(command: str, error: str) -> None:
    """Say on the standard error what is wrong, as argparse does; of several ranks, one at fault says it, at the end."""
    if not ranks.tell(error):
        print(f"{PROGRAM} {command}: error: {error}", file=sys.stderr)


def warn(command: str, text: str) -> None:
    """Say on the standard error what may be wrong; the command goes on. Of several ranks, rank 0 says it."""
    if ranks.rank > 0:
        return
    print(f"{PROGRAM} {command}: warning: {text}", file=sys.stderr)
