"""How to start ranks, and small jobs for them: what is tested of ranks apart from training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from support.tiny_nets import wait_for

from multilabel_softmax_loss.commands.child import AGAIN, handling, join_ranks, run_as_rank
from multilabel_softmax_loss.commands.terminal import say, tell
from multilabel_softmax_loss.errors import UsageError, warn
from multilabel_softmax_loss.files import SIGNALS, mask_signals
from multilabel_softmax_loss.parallel.ranks import ranks

TESTS = Path(__file__).resolve().parent.parent
OUTCOME = "outcome: "
MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))


def start_ranks(size, *words, folder=TESTS, patience=60, stderr=subprocess.PIPE, **environment):
    """A running mpiexec of as many ranks of `python WORDS`."""
    return subprocess.Popen(
        [MPIEXEC, "-n", str(size), sys.executable, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "MULTILABEL_SOFTMAX_LOSS_PATIENCE": str(patience), **environment},
    )


def finish(process, seconds=120):
    """(exit status, output, errors) of a running mpiexec, which is killed with its ranks if it takes too long.

    Of a pipe that was read from before, the process must have written no more than was read, or that is lost.
    """
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # its proxy sees that, and kills the ranks
        output, errors = process.communicate()
        raise AssertionError(f"it hangs; so far: {output}{errors}") from None
    return process.returncode, output, errors


@contextmanager
def two_machines():
    """(words, environment) with which each of two ranks has a network and a /dev/shm of its own, as machines do.

    The network is a wire between them, over which MPICH speaks TCP. Without root rights or `ip` they are empty.
    """
    name = f"ranks{os.getpid()}"

    def ip(*words):
        return subprocess.run(["ip", *words], stderr=subprocess.DEVNULL).returncode == 0

    try:
        if not (os.geteuid() == 0 and all(map(shutil.which, ("ip", "unshare"))) and ip("netns", "add", f"{name}_0")):
            yield [], {}
            return
        assert ip("netns", "add", f"{name}_1")
        wire = ["link", "add", "wire0", "netns", f"{name}_0", "type", "veth", "peer", "wire1", "netns", f"{name}_1"]
        assert ip(*wire)
        for rank in range(2):
            assert ip("-n", f"{name}_{rank}", "address", "add", f"10.77.0.{rank + 1}/24", "dev", f"wire{rank}")
            assert ip("-n", f"{name}_{rank}", "link", "set", f"wire{rank}", "up")
            assert ip("-n", f"{name}_{rank}", "link", "set", "lo", "up")
        for rank in range(2):  # the kernel may take a second, and a rank less
            state = ["ip", "-n", f"{name}_{rank}", "-brief", "link", "show", f"wire{rank}"]
            wait_for(lambda: " UP " in subprocess.run(state, capture_output=True, text=True).stdout, 10)  # noqa: B023
        own = 'mount -t tmpfs none /dev/shm && FI_TCP_IFACE=wire$PMI_RANK exec "$@"'
        enter = f'exec ip netns exec {name}_$PMI_RANK unshare --mount sh -c "$@"'
        words = ["sh", "-c", enter, "sh", own, "sh"]
        yield words, {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
    finally:
        for rank in range(2):
            ip("netns", "delete", f"{name}_{rank}")


def run_job(job, size, *words, **keywords):
    return finish(start_ranks(size, __file__, job, *words, PYTHONPATH=str(TESTS), **keywords))


def sums(arguments):
    memory = ranks.memory(8 * 1000)
    memory.view(np.float64)[:] = np.arange(1000) * (ranks.rank + 1)
    assert ranks.sum([("<f8", 0, 1000)], [ranks.rank], "sums").ravel().tolist() == list(range(ranks.size))
    factor = ranks.size * (ranks.size + 1) / 2
    assert np.array_equal(memory.view(np.float64), np.arange(1000) * factor)
    memory.view(np.float32)[:] = ranks.rank
    ranks.broadcast([("<f4", 4000, 1000)], "broadcast")
    assert memory.view(np.float32)[:1000].tolist() == [ranks.rank] * 1000
    assert not memory.view(np.float32)[1000:].any()
    assert ranks.sum([], np.arange(30), "many").tolist() == [list(range(30))] * ranks.size
    assert ranks.gather([ranks.rank, 7], "gather").tolist() == [[rank, 7] for rank in range(ranks.size)]
    assert ranks.gather(np.arange(30) + ranks.rank, "many").tolist() == [
        list(range(rank, rank + 30)) for rank in range(ranks.size)
    ]
    assert ranks.share({"of": ranks.rank}, "share") == {"of": 0}
    assert ranks.everyone("x" * ranks.rank, "everyone") == ["x" * rank for rank in range(ranks.size)]
    assert ranks.any(ranks.rank == 1, "any")
    warn("a doubt")
    seen = sum("/memfd:shared" in line for line in Path(f"/proc/{os.getppid()}/maps").read_text().splitlines())
    threads = os.environ["OMP_NUM_THREADS"]
    say(f"all well; the hub sees {seen} memories; {threads} threads; a terminal: {ranks.has_terminal}")
    return 0


def fail(arguments):
    """The last rank fails in one of many ways; the others wait for it, or work on."""
    ranks.gather([], "the start")
    how = arguments.how
    if ranks.rank == ranks.size - 1:
        if how == "sentence":
            raise UsageError("a bad label")
        if how == "traceback":
            raise ZeroDivisionError("a fault of a layer")
        if how == "status 1":
            tell("train", "the loss is nan")
            return 1
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "abort":
            os.write(2, b"F1122 00:55:14.266420  6134 net.cpp:41] Check failed: torn\n")
            os.abort()
        if how == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "asked":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        if how == "asked twice":
            mask_signals("SIG_BLOCK", SIGNALS)
            while True:
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(AGAIN)
        if how == "proxy killed":
            proxy = Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1]
            os.kill(int(proxy), signal.SIGKILL)
        if how == "hub stopped":
            os.kill(os.getppid(), signal.SIGSTOP)
        if how == "finished early":
            return 0
        if how == "another step":
            ranks.gather([], "another step")
    if arguments.busy:
        time.sleep(60)
    ranks.gather([], "the next step")
    return 0


def all_fail(arguments):
    raise UsageError("no such file")


def one_of_together(arguments):
    with ranks.together("reading"):
        if ranks.rank == 1:
            raise UsageError("no such file here")
    return 0


def interrupted(arguments):
    asked = []
    with handling(lambda number, frame: asked.append(number)):
        ranks.share("ready", "all are ready")
        say(f"ready; a terminal: {ranks.has_terminal}")
        while not ranks.any(asked, "the next iteration"):
            time.sleep(0.01)
    ranks.agree()
    say("stopped")
    return 130


def trainings(arguments):
    """Trainings one after the other, as a JSON file has them; rank 0 prints what each came to, as it ends.

    Each has the keywords of `train`, those that the last rank has instead, and a package of which it has another
    version; a {rank} in "folder", where it is to work, is filled in.
    """
    from multilabel_softmax_loss.commands import curves
    from multilabel_softmax_loss.commands.train import train

    curves.draw_curves = lambda *arguments: None  # they take most of the time
    is_last = ranks.rank == ranks.size - 1
    for case in json.loads(Path(arguments.how).read_text()):
        os.chdir(case["folder"].format(rank=ranks.rank))
        package = import_module(case.get("other_version", "json"))
        version = package.__version__
        if is_last and "other_version" in case:
            package.__version__ = "0.0"
        try:
            train(**{**case["train"], **(case.get("last", {}) if is_last else {})})
            say(OUTCOME)
        except UsageError as error:
            say(OUTCOME + str(error).replace("\n", " "))
        finally:
            package.__version__ = version
    return 0


def run_trainings(size, cases, folder, **keywords):
    """What each of these trainings comes to on as many ranks: "", or why it does not begin."""
    (folder / "cases.json").write_text(json.dumps(cases, default=str))
    status, output, errors = run_job("trainings", size, folder / "cases.json", **keywords)
    assert status == 0, errors
    return [line[len(OUTCOME) :] for line in output.splitlines() if line.startswith(OUTCOME)]


def main(job, how="", busy=""):
    hub = join_ranks("train")
    arguments = SimpleNamespace(command="train", how=how, busy=bool(busy))
    module = SimpleNamespace(run=globals()[job])
    return run_as_rank(hub, [], lambda argv: (module, arguments))


if __name__ == "__main__":
    from support import ranks as jobs  # under the name by which a child finds it

    sys.exit(jobs.main(*sys.argv[1:]))
