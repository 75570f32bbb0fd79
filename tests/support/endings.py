"""Ends of a command's child process, for the tests of what is made of them."""

import os
import signal
import sys
import tempfile
import time
import warnings


def run(arguments):
    """End as ``arguments.how`` says."""
    how, _, what = arguments.how.partition(" ")
    if how == "exit":
        os._exit(int(what))
    if how == "signal":
        os.kill(os.getpid(), getattr(signal, what))
        time.sleep(60)
    if how == "raise":
        raise {"KeyboardInterrupt": KeyboardInterrupt, "MemoryError": MemoryError}[what]("by a layer")
    if how == "environment":
        names = [name for name in sorted(os.environ) if name.startswith(("GLOG", "PYTHONW", "TQDM"))]
        print(*[f"{name}={os.environ[name]}" for name in names])
    if how == "temporary":
        tempfile.tempdir = what
    if how == "warn":
        warnings.warn("from a file of the user's", RuntimeWarning, stacklevel=1)
    if how == "print":
        for line in range(int(what)):
            print(f"line {line} é")
            sys.stdout.flush()
        print("the end", file=sys.stderr)
    if how == "sleep":
        print("here", flush=True)
        time.sleep(60)
    return 0


if __name__ == "__main__":  # as a command does
    from argparse import Namespace

    import support.endings

    from multilabel_softmax_loss.commands.child import run_in_child
    from multilabel_softmax_loss.commands.terminal import settle_environment, settle_streams

    settle_streams()
    settle_environment()
    sys.exit(run_in_child(support.endings.run, Namespace(command="train", how=" ".join(sys.argv[1:]))))
