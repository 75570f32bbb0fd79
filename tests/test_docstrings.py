"""The docstrings of the public names: what they are, with an example that runs."""

import doctest
import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest

import multilabel_softmax_loss
from multilabel_softmax_loss import prototxt

ROOT = Path(__file__).resolve().parent.parent
IN_CAFFE = () if find_spec("caffe") else ("check_layer", "check_net")
SHOWN = [name for name in multilabel_softmax_loss.__all__ if name not in IN_CAFFE]
NAMES = {name: multilabel_softmax_loss.ON_DEMAND[name] for name in SHOWN}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # examples name files from here


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(name):
    value = getattr(multilabel_softmax_loss, name)
    module = importlib.import_module(f"multilabel_softmax_loss.{NAMES[name]}")
    tests = doctest.DocTestFinder(recurse=False).find(value, name, module, globs=dict(vars(module)))
    assert [test.name for test in tests if test.examples] == [name]
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(tests[0])
    assert results.failed == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.islower() and name != "assert_gradient"])
def test_every_public_function_tells_what_it_takes_returns_and_raises(name):
    function = getattr(multilabel_softmax_loss, name)
    text = inspect.getdoc(function)
    for section in ("Parameters", "Returns", "Raises"):
        assert f"\n{section}\n{'-' * len(section)}\n" in text
    for parameter in inspect.signature(function).parameters:
        assert parameter in text


def test_the_example_of_the_snippets_module_runs():
    result = doctest.testmod(prototxt)
    assert result.attempted > 0
    assert result.failed == 0
