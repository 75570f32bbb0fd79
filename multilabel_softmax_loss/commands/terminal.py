"""What commands say: sentences on the standard output and error, clear of the progress bar."""

from __future__ import annotations

import sys

PROGRAM = "python -m multilabel_softmax_loss"


def say(text: str) -> None:
    """A line on the standard output, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def tell(command: str, error: str) -> None:
    """Say on the standard error what is wrong, as argparse does."""
    print(f"{PROGRAM} {command}: error: {error}", file=sys.stderr)


def warn(command: str, text: str) -> None:
    """Say on the standard error what may be wrong; the command goes on."""
    print(f"{PROGRAM} {command}: warning: {text}", file=sys.stderr)
