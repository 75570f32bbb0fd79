"""The package as it is installed, imported and asked for by name, with Caffe and without."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multilabel_softmax_loss

ROOT = Path(__file__).resolve().parent.parent
# An interpreter that finds no Caffe, whatever is installed.
NO_CAFFE = """
import sys
sys.modules["caffe"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "caffe" else found(name, package)
"""


def python(code, *arguments, **environment):
    """What a Python prints that runs this code with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*arguments, cwd=None):
    command = [sys.executable, "-m", "multilabel_softmax_loss", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_version_is_the_one_pip_installed():
    command = [sys.executable, "-m", "pip", "show", "multilabel_softmax_loss"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert f"Version: {multilabel_softmax_loss.__version__}\n" in shown


def test_importing_the_package_loads_nothing_that_takes_time():
    python("import sys, multilabel_softmax_loss; assert not {'caffe', 'numba', 'numpy'} & set(sys.modules)")


def test_public_names_are_listed_before_they_are_loaded():
    python("import multilabel_softmax_loss as package; assert set(package.__all__) <= set(dir(package))")


def test_types_that_are_told_are_those_that_are_loaded():
    source = ast.parse(Path(multilabel_softmax_loss.__file__).read_text())
    (told,) = (
        node
        for node in source.body
        if isinstance(node, ast.If)
        and ast.dump(node.test).count("TYPE_CHECKING") == 1
        and isinstance(node.body[0], ast.ImportFrom)
    )
    names = {alias.name: node.module for node in told.body for alias in node.names}
    assert names == multilabel_softmax_loss.ON_DEMAND
    assert set(multilabel_softmax_loss.__all__) <= set(names)


def test_the_losses_need_neither_caffe_nor_matplotlib():
    code = "from multilabel_softmax_loss import softmax_cross_entropy, check_function; import sys"
    python(code + "; assert not {'caffe', 'matplotlib'} & set(sys.modules)")


@pytest.mark.parametrize(
    "code",
    [
        "from multilabel_softmax_loss import *; softmax_cross_entropy; assert not [n for n in dir() if 'Layer' in n]",
        "import multilabel_softmax_loss; help(multilabel_softmax_loss)",
        "import inspect, multilabel_softmax_loss; assert len(inspect.getmembers(multilabel_softmax_loss)) > 9",
        "import multilabel_softmax_loss, pydoc; pydoc.render_doc(multilabel_softmax_loss)",
    ],
    ids=["import *", "help", "getmembers", "pydoc"],
)
def test_without_caffe_the_package_can_be_looked_through(code):
    python(NO_CAFFE + code)


def test_without_caffe_a_layer_says_what_it_needs():
    code = "import multilabel_softmax_loss as package\ntry:\n    package.MultilabelSoftmaxLossLayer\n"
    code += "except ImportError as error:\n    print(error)"
    assert python(NO_CAFFE + code).startswith(
        "MultilabelSoftmaxLossLayer needs Caffe, which this Python does not have: "
    )


def test_the_version_tells_what_is_installed():
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (
        lines[0]
        == f"multilabel_softmax_loss {multilabel_softmax_loss.__version__} ({ROOT / 'multilabel_softmax_loss'})"
    )
    assert lines[1].startswith("CPython {}.{}.{} ".format(*sys.version_info))
    assert re.match(r"NumPy \d+\.\d+", lines[2])
    assert lines[-1] == "threads: 1, as OMP_NUM_THREADS says, on " + lines[-1].rpartition("on ")[2]


def test_the_version_tells_whose_caffe_it_is(tmp_path):
    """Of the wheel, of a build on PYTHONPATH, and of none."""
    code = "from multilabel_softmax_loss.commands.version import caffe_line; print(caffe_line())"
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text("raise RuntimeError('nobody has to import it')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    assert python(code, PYTHONPATH=path) == f"Caffe: a build of your own ({tmp_path / 'caffe'})\n"
    (tmp_path / "kendryte_caffe-1.2.3.dist-info").mkdir()
    assert python(code, PYTHONPATH=path) == f"Caffe 1.0: the wheel kendryte-caffe 1.2.3 ({tmp_path / 'caffe'})\n"
    assert python(NO_CAFFE + code).startswith("Caffe: none; ")
    assert "the extra [caffe] installs nothing here" in python(NO_CAFFE + "sys.version_info = (3, 12)\n" + code)
    code = "from multilabel_softmax_loss.commands.packages import missing_packages; print(missing_packages(['caffe']))"
    assert "pip install" not in python(NO_CAFFE + "sys.version_info = (3, 12)\n" + code)
    assert "pip install '.[caffe]'" in python(NO_CAFFE + "sys.version_info = (3, 9)\n" + code)


@pytest.mark.parametrize(
    "error, told",
    [
        pytest.param("SystemError('no reason')", "cannot be imported: SystemError: no reason. One that", id="NumPy 2"),
        pytest.param(
            "ImportError('libboost.so: cannot open', name='caffe._caffe')",
            "cannot be imported: ImportError: libboost.so: cannot open. One that",
            id="library",
        ),
        pytest.param("ModuleNotFoundError('no caffe', name='caffe')", "Caffe is not installed for", id="missing"),
    ],
)
def test_a_caffe_that_cannot_be_imported_is_told_in_a_sentence(tmp_path, error, told):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text(f"raise {error}")
    (tmp_path / "net.prototxt").write_text('layer { name: "a" }')
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    arguments = [sys.executable, "-m", "multilabel_softmax_loss", "migrate", "net.prototxt"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("environment", [{"MULTILABEL_SOFTMAX_LOSS_KERNELS": "numpy"}, {}], ids=str)
def test_the_version_tells_how_the_losses_are_computed(environment):
    code = "from multilabel_softmax_loss.commands.version import kernels_line; print(kernels_line())"
    numba = python("import importlib.util; print(bool(importlib.util.find_spec('numba')))") == "True\n"
    if not numba:
        expected = "kernels: NumPy only; pip"
    else:
        expected = "kernels: NumPy only, as" if environment else "kernels: compiled by numba "
    assert python(code, **environment).startswith(expected)


@pytest.mark.parametrize(
    "environment, shown",
    [
        ({"OMP_NUM_THREADS": "3"}, "3, as OMP_NUM_THREADS says, on "),
        ({"OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "5"}, "5, as NUMBA_NUM_THREADS says, on "),
        ({"OMP_NUM_THREADS": "many"}, f"{len(os.sched_getaffinity(0))}, one for each core"),
    ],
)
def test_the_version_tells_the_threads_of_the_kernels(environment, shown):
    code = "from multilabel_softmax_loss.commands.version import threads; print(threads())"
    assert python(code, **environment).startswith(shown)


def test_the_console_script_is_the_module(tmp_path):
    script = Path(sys.executable).with_name("multilabel-softmax-loss")
    interpreter = script.read_text().partition("\n")[0][len("#!") :]
    for arguments in (["--version"], ["snippet", "softmax_loss"], ["snippet", "no"]):
        done = subprocess.run([str(script), *arguments], capture_output=True, text=True, cwd=str(tmp_path))
        same = command(*arguments, cwd=str(tmp_path))
        same.stdout = same.stdout.replace(f"({sys.executable})", f"({interpreter})")  # the same by another name
        assert (done.returncode, done.stdout, done.stderr) == (same.returncode, same.stdout, same.stderr)


# What an index page shows


@pytest.fixture(scope="module")
def metadata():
    """The keywords of setup.py's call."""
    code = "import json, setuptools, sys; sys.path.insert(0, '.'); found = {}\n"
    code += "setuptools.setup = lambda **keywords: found.update(keywords)\nimport setup\nfound.pop('cmdclass')\n"
    command = [sys.executable, "-c", code + "print(json.dumps(found))"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=str(ROOT)).stdout.decode())


def test_the_description_has_no_formulas_and_no_links_that_lead_nowhere(metadata):
    text = metadata["long_description"]
    assert "$$" not in text
    assert re.findall(r"\]\((?!https?:)", text) == []
    assert "![" not in text
    for heading in ("What it needs", "Paste the loss", "Without Caffe", "Commands", "Questions"):
        assert f"\n## {heading}\n" in text


def test_the_metadata_name_author_licence_and_interpreters(metadata):
    licence = (ROOT / "LICENSE").read_text()
    assert metadata["author"] in licence
    assert metadata["license"] == "BSD-2-Clause"
    assert "BSD 2-Clause" in licence
    assert "Programming Language :: Python :: 3.7" in metadata["classifiers"]
    assert "Typing :: Typed" in metadata["classifiers"]
    assert not [entry for entry in metadata["classifiers"] if entry.startswith("License ::")]  # SPDX alone
