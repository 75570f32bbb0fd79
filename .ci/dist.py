"""Build the sdist and the wheel into dist/, and check each as its users meet it, in new environments outside of here.

    .venv/bin/python .ci/dist.py

The wheel is installed with all extras into an environment of the interpreter that runs this: every command answers -h,
a layer trains. The sdist is installed without extras: the losses work with NumPy alone, and its own tests run.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
LOSS = "from multilabel_softmax_loss import *; import math; "
LOSS += "assert math.isclose(softmax_cross_entropy([[0.0, 0, 0]], [[1, 1, 0]])[0], math.log(3))"
# A net of one loss, from the snippet that was installed.
NET = """
import os, pathlib, subprocess, sys
os.environ["GLOG_minloglevel"] = "2"
import caffe, numpy
shape = "input_param { shape { dim: 2 dim: 3 } }"
text = "".join(f'layer {{ name: "{name}" type: "Input" top: "{name}" {shape} }}\\n' for name in ("input", "labels"))
text += 'layer { name: "scores" type: "Scale" bottom: "input" top: "scores" }\\n'
snippet = subprocess.run([sys.argv[1], "snippet", "softmax_loss"], stdout=subprocess.PIPE, check=True).stdout.decode()
pathlib.Path("net.prototxt").write_text(text + snippet)
net = caffe.Net("net.prototxt", caffe.TRAIN)
net.blobs["labels"].data[...] = [[1, 1, 0], [0, 0, 1]]
assert abs(net.forward()["loss"] - numpy.log(3)) < 1e-6
net.backward()
assert numpy.allclose(net.blobs["scores"].diff, (numpy.full((2, 3), 1 / 3) - [[0.5, 0.5, 0], [0, 0, 1]]) / 2, atol=1e-7)
"""
TYPES = """
import numpy as np
from multilabel_softmax_loss import SoftmaxOptions, softmax_cross_entropy
reveal_type(softmax_cross_entropy(np.zeros((1, 2)), np.zeros((1, 2))))
SoftmaxOptions().axis + ''
"""


def main():
    shutil.rmtree(str(DIST), ignore_errors=True)
    shutil.rmtree(str(ROOT / "build"), ignore_errors=True)  # what an earlier build left would be packed, too
    say("building")
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, quiet=True)  # the wheel from the sdist
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        wheel_checked = pool.submit(check_wheel, wheel, Path(folder, "wheel"))
        check_sdist(sdist, Path(folder, "sdist"))
        wheel_checked.result()
    say(f"dist/ holds {sdist.name} and {wheel.name}")


def check_wheel(wheel, folder):
    with zipfile.ZipFile(str(wheel)) as file:
        names = set(file.namelist())
    expected = {f"multilabel_softmax_loss/snippets/{path.name}" for path in (ROOT / "prototxt").glob("*.prototxt")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "multilabel_softmax_loss").rglob("*.py")}
    missing = sorted({*expected, "multilabel_softmax_loss/py.typed"} - names)
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    python = environment(folder, f"{wheel}[caffe,fast,tools]")
    program = python.with_name("multilabel-softmax-loss")
    run(program, "--version", cwd=folder)
    for command in commands(python, folder):
        run(program, command, "-h", cwd=folder, quiet=True)
    run(python, "-W", "error", "-c", LOSS, cwd=folder)
    run(python, "-c", NET, program, cwd=folder)
    check_types(python, folder)


def check_types(python, folder):
    """mypy, from outside, sees the types of what is installed."""
    (folder / "user.py").write_text(TYPES)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--ignore-missing-imports", "user.py"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, cwd=str(folder)).stdout.decode()
    lines = [line for line in shown.splitlines() if line.startswith("user.py")]
    told = ("tuple[builtins.float, numpy.ndarray", "Unsupported operand types for +")
    if len(lines) != len(told) or not all(words in line for words, line in zip(told, lines)):
        sys.exit(f"mypy does not see the types of the installed package; it says:\n{shown}")


def check_sdist(sdist, folder):
    python = environment(folder, sdist)
    run(python, "-W", "error", "-c", LOSS, cwd=folder)
    run(python.with_name("multilabel-softmax-loss"), "snippet", cwd=folder, quiet=True)
    with tarfile.open(str(sdist)) as file:
        file.extractall(str(folder))
    source = folder / sdist.name[: -len(".tar.gz")]
    tests = ["tests/test_documents.py", "tests/test_prototxt.py", "tests/test_structure.py"]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=source)


def environment(folder, requirement):
    """The interpreter of a new environment that has only this installed."""
    say(f"installing {Path(str(requirement)).name}")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement)
    return python


def commands(python, folder):
    code = "from multilabel_softmax_loss.__main__ import COMMANDS; print(*COMMANDS)"
    return subprocess.check_output([str(python), "-c", code], cwd=str(folder)).decode().split()


def run(*command, cwd=ROOT, quiet=False):
    """Run a command without what this environment has set; end with its status if that is not 0."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    stdout = subprocess.DEVNULL if quiet else None
    done = subprocess.run([str(word) for word in command], cwd=str(cwd), env=environment, stdout=stdout)
    if done.returncode:
        sys.exit(f"dist.py: this ended with status {done.returncode}: {' '.join(map(str, command))}")


def say(text):
    print(f"dist.py: {text}", flush=True)


if __name__ == "__main__":
    main()
