"""The set-up of the environment, with interpreters that only pretend to be one."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parent.parent / ".ci" / "bootstrap.py"


def pretend(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bootstrap(tmp_path):
    """Runs it where only `tmp_path` has interpreters, besides the one that runs the tests."""

    def run(*arguments, **environment):
        keep = {name: value for name, value in os.environ.items() if name != "CAFFE_PYTHON"}
        there = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYENV_ROOT": str(tmp_path / "pyenv"), "PIP_NO_INDEX": "1"}
        return subprocess.run(
            [sys.executable, str(BOOTSTRAP), *arguments],
            env={**keep, **there, **environment},
            capture_output=True,
            text=True,
        )

    return run


def test_an_interpreter_that_does_not_run_is_passed_by(bootstrap, tmp_path):
    pretend(tmp_path / "python3.5", "echo 'pyenv: python3.5: command not found' >&2; exit 127")
    done = bootstrap("--find", "3.5")
    assert done.returncode == 1
    assert done.stderr == "No CPython 3.5 was found. Install one, for example with pyenv.\n"
    pretend(tmp_path / "pyenv/versions/3.5.10/bin/python3.5", "echo CPython 3.5 Linux x86_64 glibc 2.31")
    assert bootstrap("--find", "3.5").stdout == "3.5\n"


def test_the_answer_counts_and_not_the_name(bootstrap, tmp_path):
    pretend(tmp_path / "python3.5", "echo CPython 3.4 Linux x86_64 glibc 2.31")
    assert bootstrap("--find", "3.5").returncode == 1
    pretend(tmp_path / "python3.5", "echo PyPy 3.5 Linux x86_64 glibc 2.31")
    assert bootstrap("--find", "3.5").returncode == 1
    mine = pretend(tmp_path / "mine", "echo CPython 3.5 Linux x86_64 glibc 2.31")
    assert bootstrap("--find", "3.5", CAFFE_PYTHON=str(mine)).returncode == 0


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("CPython 3.5 Linux aarch64 glibc 2.31", "its wheels are for x86_64 processors and this one is aarch64"),
        ("CPython 3.5 Darwin arm64 none 0", "its wheels are for x86_64 processors and this one is arm64"),
        ("CPython 3.5 Linux x86_64 none 0", "its Linux wheels need glibc 2.24 or newer and this system has none 0"),
        ("CPython 3.5 Linux x86_64 glibc 2.17", "need glibc 2.24 or newer and this system has glibc 2.17"),
    ],
)
def test_a_machine_without_a_wheel_gets_one_sentence(bootstrap, tmp_path, answer, reason):
    pretend(tmp_path / "python3.5", f"echo {answer}")
    done = bootstrap("--python", "3.5", "--venv", str(tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stderr.startswith("Caffe cannot be installed here: ")
    assert reason in done.stderr
    assert "Everything but the nets works without it: python3 -m pip install" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_where_none_is_found_and_none_can_be_downloaded_one_sentence_says_what_to_do(bootstrap, tmp_path):
    done = bootstrap("--python", "3.5", "--venv", str(tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stderr.startswith("No CPython 3.5 was found (tried python3.5, ")
    assert "none could be downloaded (" in done.stderr
    assert done.stderr.endswith("Install CPython 3.5, or set CAFFE_PYTHON to one, and run this again.\n")
    assert done.stderr.count("\n") == 1


def test_the_second_run_does_nothing(bootstrap, tmp_path):
    spec = importlib.util.spec_from_file_location("bootstrap", BOOTSTRAP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / "venv"
    python = pretend(venv / "bin/python", "exit 1")  # even running it would be more than nothing
    (venv / "stamp").write_text(module.stamp_text(argparse.Namespace(python="3.5", extras=module.EXTRAS)))
    done = bootstrap("--venv", str(venv), "--python", "3.5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    (venv / "stamp").write_text("of another setup.py")
    assert bootstrap("--venv", str(venv), "--python", "3.5").returncode == 1
    assert python.exists()
