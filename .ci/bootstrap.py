"""Make the environment that the Makefile's commands run in: an interpreter, Caffe, and this package in place.

    python3 .ci/bootstrap.py                       # .venv with CPython 3.9 and real Caffe
    python3 .ci/bootstrap.py --python 3.8 --venv .venv-3.8
    python3 .ci/bootstrap.py --find 3.7            # print the interpreter, or say that there is none

Standard library only, for it runs before anything is installed. The second run finds its stamp and returns at once.
"""

import argparse
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "caffe,fast,tools,distributed,test"
WITHOUT_CAFFE = (
    "Everything but the nets works without it: python3 -m pip install '.[fast,tools,distributed,test]' (see README.md)."
)

# What an interpreter says of itself. ensurepip is asked for because Debian ships Pythons that cannot make a venv.
PROBE = """
import ensurepip, platform, sys, venv
libc, libc_version = platform.libc_ver()
print(platform.python_implementation(), "%d.%d" % sys.version_info[:2], platform.system(), platform.machine(),
      libc or "none", libc_version or "0")
"""


class Interpreter:
    """A Python that was run and answered; `usable_for` says whether it is what we want."""

    def __init__(self, command, answer):
        self.command = command
        self.implementation, self.version, self.system, self.machine, self.libc, self.libc_version = answer

    @classmethod
    def run(cls, command):
        """The interpreter behind `command`, or None: a name may exist and not run (pyenv's shims do that)."""
        try:
            probe = subprocess.run(
                [command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        answer = probe.stdout.decode(errors="replace").split()
        return cls(command, answer) if probe.returncode == 0 and len(answer) == 6 else None

    def reason_against_caffe(self):
        """Why the Caffe wheel cannot be installed here, or None."""
        if self.machine not in ("x86_64", "AMD64"):
            return f"its wheels are for x86_64 processors and this one is {self.machine}"
        if self.system == "Linux":
            libc_version = tuple(int(part) for part in self.libc_version.split(".")[:2])
            if self.libc != "glibc" or libc_version < (2, 24):
                return f"its Linux wheels need glibc 2.24 or newer and this system has {self.libc} {self.libc_version}"
        return None


def candidates(version):
    """Commands that may be CPython `version`, most wanted first."""
    if os.environ.get("CAFFE_PYTHON"):
        yield os.environ["CAFFE_PYTHON"]
    yield f"python{version}"
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    yield from sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}"), reverse=True)
    yield sys.executable
    yield "python3"


def find(version):
    """The first candidate that runs and is CPython `version`, or None."""
    for command in candidates(version):
        interpreter = Interpreter.run(command)
        if interpreter and (interpreter.implementation, interpreter.version) == ("CPython", version):
            return interpreter
    return None


def make_venv(version, venv, with_caffe):
    """A virtual environment of CPython `version` at `venv`; returns its interpreter."""
    python = venv / "bin" / "python"
    existing = Interpreter.run(str(python))
    if existing and existing.version == version:
        return existing
    found = find(version)
    reason = found.reason_against_caffe() if found and with_caffe else None
    if reason:
        sys.exit(f"Caffe cannot be installed here: {reason}. {WITHOUT_CAFFE}")
    if found:
        print(f"Making {venv.name} with CPython {version} ({found.command})", flush=True)
        subprocess.run([found.command, "-m", "venv", "--clear", str(venv)], check=True)
    else:
        print(f"No CPython {version} on this machine: downloading one with uv", flush=True)
        download_venv(version, venv)
    made = Interpreter.run(str(python))
    if made is None:
        sys.exit(f"{python} was made and does not run. Remove {venv} and try again.")
    return made


def download_venv(version, venv):
    """Make the environment with a CPython that uv downloads; needs the internet."""
    with tempfile.TemporaryDirectory() as folder:
        # --managed-python: uv stops dead at a shim that does not run, so it must not look at what is installed.
        commands = [
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"],
            [f"{folder}/bin/uv", "venv", "--quiet", "--seed", "--managed-python", "--python", version, str(venv)],
        ]
        for command in commands:
            if command is commands[-1]:
                shutil.rmtree(venv, ignore_errors=True)
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            except OSError as error:
                reason = str(error)
            else:
                if done.returncode == 0:
                    continue
                reason = (done.stdout.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1].strip()
            tried = ", ".join(dict.fromkeys(candidates(version)))
            sys.exit(
                f"No CPython {version} was found (tried {tried}) and none could be "
                f"downloaded ({reason}). Install CPython {version}, or set CAFFE_PYTHON to one, and run this again."
            )


def stamp_text(arguments):
    """Changes whenever the environment has to be made again."""
    digest = hashlib.sha256(repr((arguments.python, arguments.extras, str(ROOT))).encode())
    for name in ("setup.py", "pyproject.toml", "multilabel_softmax_loss/__init__.py", ".ci/bootstrap.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.9", metavar="X.Y", help="version of CPython (default 3.9)")
    parser.add_argument("--venv", default=".venv", help="folder of the environment (default .venv)")
    parser.add_argument("--extras", default=EXTRAS, help=f"extras of setup.py to install (default {EXTRAS})")
    parser.add_argument("--find", nargs="+", metavar="X.Y", help="print the first of these that runs")
    arguments = parser.parse_args()

    if arguments.find:
        for version in arguments.find:
            found = find(version)
            if found:
                return print(version)
        sys.exit(f"No CPython {' or '.join(arguments.find)} was found. Install one, for example with pyenv.")

    venv = ROOT / arguments.venv
    stamp = venv / "stamp"
    if stamp.is_file() and stamp.read_text() == stamp_text(arguments) and (venv / "bin" / "python").exists():
        return None

    has_wheel = tuple(map(int, arguments.python.split("."))) < (3, 10)
    interpreter = make_venv(arguments.python, venv, has_wheel and "caffe" in arguments.extras.split(","))
    print(f"Installing into {venv.name}: {arguments.extras} (about a minute the first time)", flush=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f".[{arguments.extras}]"]
    if subprocess.run([interpreter.command] + install, cwd=str(ROOT)).returncode:
        sys.exit(f"pip could not install the package into {venv.name} (its reason is above). Run this again to go on.")
    stamp.write_text(stamp_text(arguments))
    return None


if __name__ == "__main__":
    main()
