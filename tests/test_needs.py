"""What the tests leave out where something is not installed, and that this project's own environments may not."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import needs

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def without(monkeypatch):
    """A function that pretends that only these modules are not installed."""

    def pretend(*names):
        monkeypatch.setattr(needs, "installed", lambda name: name not in names)

    return pretend


@pytest.mark.parametrize(
    "test, missing",
    [
        pytest.param("test_in_caffe.py", ["caffe"], id="imported"),
        pytest.param("commands/test_child.py", ["caffe"], id="used by a helper"),
        pytest.param("commands/test_metrics.py", ["sklearn"], id="in a function of the test"),
        pytest.param("commands/test_terminal.py", ["tqdm"], id="in a function of this package that a test runs"),
        pytest.param("kernels/test_kernels.py", ["numba"], id="by this package"),
        pytest.param("losses/test_softmax.py", [], id="this package has another way"),
        pytest.param("test_package.py", [], id="loaded on demand"),
    ],
)
def test_what_a_test_needs_is_known_from_its_imports(test, missing, without):
    without("caffe", "sklearn", "numba", "tqdm")
    assert needs.missing_modules(TESTS / test) == missing


def test_here_nothing_is_missing_that_there_is(request):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import conftest; print(sorted(conftest.MAY_BE_MISSING))"
    command = [sys.executable, "-c", code, str(TESTS)]
    may_be = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert ("caffe" in may_be) == (sys.version_info >= (3, 10))
    assert ("nbclient" in may_be) == (sys.version_info[:2] != (3, 9))


def test_pytest_names_what_it_left_out_and_why():
    """In an environment without the stamp of this project's own."""
    code = "import sys, pytest; sys.modules['caffe'] = None; sys.prefix = '/elsewhere'; pytest.main(sys.argv[1:])"
    arguments = ["-q", "-p", "no:cacheprovider", "--collect-only", str(TESTS / "nets")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, cwd=str(TESTS.parent))
    assert "\ntests/nets/test_reading.py needs caffe\n" in done.stdout.decode()
    assert "\ntests/nets/test_python_layers.py::" in done.stdout.decode()
