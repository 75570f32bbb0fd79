import ctypes
import hashlib
import os
import platform
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
settings.register_profile("fuzz", max_examples=2000, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# Real Caffe has wheels for these interpreters and processors (setup.py). There a missing Caffe fails the tests;
# elsewhere the tests of nets cannot be, and everything else is tested.
HAS_CAFFE = sys.version_info < (3, 10) and platform.machine() in ("x86_64", "AMD64")
NEEDS_CAFFE = [
    "commands/test_deploy.py",
    "commands/test_evaluate.py",
    "commands/test_predict.py",
    "commands/test_child.py",
    "commands/test_curves.py",
    "commands/test_resume.py",
    "commands/test_snapshots.py",
    "commands/test_solver.py",
    "commands/test_train.py",
    "commands/test_validation.py",
    "gradient_check/test_layer.py",
    "nets/test_data_layers.py",
    "nets/test_pairing.py",
    "nets/test_reading.py",
    "nets/test_upgrade.py",
    "parallel/test_training.py",
    "support/caffe_nets.py",
    "test_examples.py",
    "test_in_caffe.py",
    "test_snippets.py",
]

# mpi4py has wheels from 3.8 on.
HAS_MPI = sys.version_info >= (3, 8)
NEEDS_MPI = ["parallel/test_ranks.py", "parallel/test_training.py"]

collect_ignore = [*([] if HAS_CAFFE else NEEDS_CAFFE), *([] if HAS_MPI else NEEDS_MPI)]


def pytest_report_header():
    if not HAS_CAFFE:
        return f"Caffe has no wheel for this interpreter: {', '.join(NEEDS_CAFFE)} are left out"
    return None


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
    for module in ("report", "slopes", "judgement", "diagnosis", "function", "measurement", "layer"):
        monkeypatch.setattr(f"multilabel_softmax_loss.gradient_check.{module}.time", clock)
    return clock


@pytest.fixture(params=["numpy", "numba"])
def backend(request, monkeypatch):
    """The test runs once by the NumPy path and once by the kernels."""
    from multilabel_softmax_loss.losses import evaluate as losses

    monkeypatch.setenv("MULTILABEL_SOFTMAX_LOSS_KERNELS", request.param)
    losses.kernels.cache_clear()
    yield request.param
    losses.kernels.cache_clear()
