import os
import platform
import sys
import tracemalloc

import pytest

os.environ.setdefault("GLOG_minloglevel", "2")  # before Caffe is imported: no log

# Real Caffe has wheels for these interpreters and processors (setup.py). There a missing Caffe fails the tests;
# elsewhere the tests of nets cannot be, and everything else is tested.
HAS_CAFFE = sys.version_info < (3, 10) and platform.machine() in ("x86_64", "AMD64")
NEEDS_CAFFE = ["caffe_nets.py", "test_in_caffe.py", "test_examples.py", "test_snippets.py"]
NEEDS_CAFFE += ["test_train.py", "test_evaluate.py", "test_predict.py", "test_deploy.py"]

collect_ignore = [] if HAS_CAFFE else NEEDS_CAFFE


def pytest_report_header():
    if not HAS_CAFFE:
        return f"Caffe has no wheel for this interpreter: {', '.join(NEEDS_CAFFE)} are left out"
    return None


@pytest.fixture
def peak_bytes():
    """A function that gives the most memory that another one had allocated at a time."""

    def measure(function):
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
