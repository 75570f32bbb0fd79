import compileall
import ctypes
import fcntl
import hashlib
import os
import platform
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from support.needs import missing_modules

from multilabel_softmax_loss import ranking_loss, sigmoid_cross_entropy, softmax_cross_entropy

# Before Caffe and matplotlib are imported: no log, one thread for the same sums everywhere, and no window.
os.environ.update(GLOG_minloglevel="2", OMP_NUM_THREADS="1", MPLBACKEND="Agg")
os.environ.pop("MULTILABEL_SOFTMAX_LOSS_KERNELS", None)  # the fixture `backend` chooses

# Kernels are compiled from several modules, and numba's cache watches one.
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "multilabel_softmax_loss"
COMPILED = sorted([*PACKAGE.glob("kernels/*.py"), *PACKAGE.glob("losses/*.py")])
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in COMPILED)).hexdigest()
os.environ["NUMBA_CACHE_DIR"] = str(ROOT / ".pytest_cache" / f"numba-{DIGEST[:16]}")

# Drawn cases are the same on every run, but for `make fuzz`, which draws new ones. How long they take is no failure.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("test", max_examples=40, derandomize=True, **PATIENT)
settings.register_profile("attack", max_examples=400, **PATIENT)
settings.register_profile("fuzz", max_examples=2000, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# What needs a module that is not installed is left out and named at the end. In the environments that this project
# makes (they have a stamp) only where there is no such module: Caffe has wheels for CPython 3.7 to 3.9 on x86_64,
# mpi4py from 3.8 on; the notebook and its kernel are for the default interpreter.
HAS_CAFFE = find_spec("caffe") is not None
OWN_ENVIRONMENT = Path(sys.prefix, "stamp").is_file()
MAY_BE_MISSING = set()
if sys.version_info >= (3, 10) or platform.machine() not in ("x86_64", "AMD64"):
    MAY_BE_MISSING |= {"caffe", "google", "plyvel"}
if sys.version_info[:2] != (3, 9):
    MAY_BE_MISSING |= {"nbclient", "nbformat", "ipykernel"}
if sys.version_info < (3, 8):
    MAY_BE_MISSING |= {"mpi4py"}
LEFT_OUT = {}

# Whole runs of commands, of ranks and of the examples: `make test` has them, `make test-all` does without.
LONG = ("parallel", "test_examples", "test_notebook", "test_image_layer", "test_tags_example", "test_written_nets")


def pytest_configure():
    compileall.compile_dir(str(PACKAGE), quiet=1)  # for a hundred processes that tests start


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, metavar="N", help="of each test only N cases, spread over those it has")


def pytest_collection_modifyitems(config, items):
    """Mark the long tests, and let two workers begin with them: each takes its half of the list from the front."""
    keep_cases(config, items)
    ranks, runs, others = [], [], []
    for item in items:
        place = {item.path.stem, item.path.parent.name}
        if place & set(LONG):
            item.add_marker(pytest.mark.long)
        (ranks if "parallel" in place else runs if place & set(LONG) else others).append(item)
    middle = max(len(items) // 2 - len(ranks), 0)
    items[:] = ranks + others[:middle] + runs + others[middle:]


def keep_cases(config, items):
    """Leave of each test as many cases as --cases says, the first and the last among them."""
    count = config.getoption("--cases")
    if count is None:
        return
    cases = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {of_one[k] for of_one in cases.values() for k in np.linspace(0, len(of_one) - 1, count).astype(int)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels():
    """Workers start at once, and compile each kernel once; a process alone compiles those that it needs."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    cases = [(softmax_cross_entropy, 64), (softmax_cross_entropy, 1), (sigmoid_cross_entropy, 1), (ranking_loss, 1)]
    begin = 2 * int(worker[2:] or 0) % len(cases)
    for loss, rows in (cases[begin:] + cases[:begin]) if worker else []:
        os.makedirs(os.environ["NUMBA_CACHE_DIR"], exist_ok=True)
        with open(Path(os.environ["NUMBA_CACHE_DIR"], f"{loss.__name__}-{rows}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            loss(np.zeros((rows, 2), np.float32), np.ones((rows, 2), np.float32))


def pytest_ignore_collect(collection_path):
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if OWN_ENVIRONMENT and not MAY_BE_MISSING:
        return None
    missing = missing_modules(collection_path)
    if not missing or (OWN_ENVIRONMENT and not set(missing) <= MAY_BE_MISSING):
        return None
    LEFT_OUT[str(collection_path.relative_to(ROOT))] = missing
    return True


def pytest_terminal_summary(terminalreporter):
    if LEFT_OUT:
        terminalreporter.section("left out")
        for path, missing in sorted(LEFT_OUT.items()):
            terminalreporter.line(f"{path} needs {', '.join(missing)}")
        terminalreporter.line(
            "The extras [caffe,fast,tools] bring these where they exist; Caffe for CPython 3.7 to 3.9 on x86_64."
        )


@pytest.fixture(autouse=True)
def seeded_caffe():
    """The weights of Caffe's fillers, and how HDF5Data shuffles, are the same whatever ran before."""
    if HAS_CAFFE:
        import caffe

        caffe.set_random_seed(0)
        ctypes.CDLL(None).srand(0)


@pytest.fixture
def peak_bytes():
    """A function that gives the most memory that another one had allocated at a time."""

    def measure(function):
        function()  # loads what is loaded once
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture
def run_here(monkeypatch, capfd):
    """A function that runs a command in this process, in a folder, without its curves: `returncode`, what it said.

    What becomes of a command's child is told in commands/test_child.py; each child takes a second or two to start.
    """
    from multilabel_softmax_loss import __main__
    from multilabel_softmax_loss.commands.child import run_reporting

    monkeypatch.setattr(__main__, "run_in_child", run_reporting)
    monkeypatch.setattr("multilabel_softmax_loss.commands.curves.draw_curves", lambda *arguments: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "path", ["", *sys.path])

    def run(*words, folder, check=None):
        monkeypatch.chdir(folder)
        try:
            status = __main__.main([str(word) for word in words])
        except SystemExit as stopped:
            status = stopped.code
        said = capfd.readouterr()
        assert check in (None, status), said
        return SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    return run


class Clock:
    """Stands still unless it is told to go on: `clock.now += 0.1`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The clock of the gradient checker, so that no verdict depends on how fast or how busy the machine is."""
    clock = Clock()
    for module in ("report", "slopes", "settling", "judgement", "diagnosis", "function", "measurement", "layer"):
        monkeypatch.setattr(f"multilabel_softmax_loss.gradient_check.{module}.time", clock)
    return clock


@pytest.fixture
def needs_numba():
    """The test is skipped where numba is not installed, but not in the environments that this project makes."""
    if not (find_spec("numba") or OWN_ENVIRONMENT):
        pytest.skip("needs numba, of the extra [fast]")


@pytest.fixture(params=["numpy", "numba"])
def backend(request, monkeypatch):
    """The test runs once by the NumPy path and once by the kernels."""
    from multilabel_softmax_loss.losses import evaluate as losses

    if request.param == "numba":
        request.getfixturevalue("needs_numba")
    monkeypatch.setenv("MULTILABEL_SOFTMAX_LOSS_KERNELS", request.param)
    losses.kernels.cache_clear()
    yield request.param
    losses.kernels.cache_clear()
