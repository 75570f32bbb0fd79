"""What `--version` prints: this package, and what it runs on, without importing what takes time or may fail."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from .. import __version__
from ..parallel.launcher import cores

PACKAGE = Path(__file__).resolve().parent.parent


def versions() -> str:
    """A line each for the package, Python, NumPy, Caffe, the kernels and the threads."""
    lines = [
        f"multilabel_softmax_loss {__version__} ({PACKAGE})",
        f"CPython {platform.python_version()} ({sys.executable})",
        f"NumPy {version_of('numpy') or 'is missing'}",
        caffe_line(),
        kernels_line(),
        f"threads: {threads()}",
    ]
    return "\n".join(lines) + "\n"


def caffe_line() -> str:
    spec = find_spec("caffe")
    if spec is None:
        if sys.version_info >= (3, 10):
            return "Caffe: none; its wheel is for CPython 3.7 to 3.9, so that the extra [caffe] installs nothing here"
        return "Caffe: none; pip install '.[caffe]' brings it on x86_64"
    place = Path(spec.origin).parent if spec.origin else Path("unknown place")
    version = version_beside(place, "kendryte_caffe")
    if version:
        return f"Caffe 1.0: the wheel kendryte-caffe {version} ({place})"
    return f"Caffe: a build of your own ({place})"


def kernels_line() -> str:
    version = version_of("numba")
    if not version:
        return "kernels: NumPy only; pip install '.[fast]' brings the compiled ones"
    if os.environ.get("MULTILABEL_SOFTMAX_LOSS_KERNELS") == "numpy":
        return "kernels: NumPy only, as MULTILABEL_SOFTMAX_LOSS_KERNELS says"
    return f"kernels: compiled by numba {version}"


def threads() -> str:
    count = len(cores())
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return f"{os.environ[name]}, as {name} says, on {count} cores"
    return f"{count}, one for each core"


def version_of(module: str) -> Optional[str]:
    """The version that the metadata beside a module say; None where it is not installed."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return version_beside(Path(spec.origin).parent, module) or "of unknown version"


def version_beside(package: Path, distribution: str) -> Optional[str]:
    for path in package.parent.glob(f"{distribution}-*.dist-info"):
        return path.name[len(distribution) + 1 : -len(".dist-info")]
    return None
