"""The packages that commands need besides NumPy: which are missing, and what to do about it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any, List, Sequence

from ..errors import UsageError

# Python modules, the packages that have them, and the extra with these; [caffe] is for where caffe itself is missing.
PACKAGES = {
    "caffe": ("Caffe", "caffe"),
    "google": ("protobuf<4", ""),
    "skimage": ("scikit-image", ""),
    "scipy": ("scipy", ""),
    "tqdm": ("tqdm", "tools"),
    "matplotlib": ("matplotlib", "tools"),
    "sklearn": ("scikit-learn", "tools"),
    "h5py": ("h5py", "tools"),
    "lmdb": ("lmdb", "tools"),
    "plyvel": ("plyvel", "tools"),
    "cv2": ("opencv-python-headless", "tools"),
    "PIL": ("Pillow", "tools"),
    "numba": ("numba", "fast"),
    "mpi4py": ("mpi4py", "distributed"),
}


def packages_of(nets: Sequence[Any], param: Any) -> List[str]:
    """The modules that training these nets by a SolverParameter needs."""
    needed = ["tqdm", "matplotlib"] + ["sklearn"] * bool(param.test_iter)
    needed += ["h5py"] * (param.snapshot_format == param.HDF5)
    for layer in (layer for net in nets for layer in net.layer):
        if layer.type == "Data":
            needed.append("lmdb" if layer.data_param.backend == layer.data_param.LMDB else "plyvel")
        needed += {"HDF5Data": ["h5py"], "ImageData": ["cv2"]}.get(layer.type, [])
    return needed


def require_caffe() -> None:
    """Raise a UsageError where Caffe is missing, without which no net can be read, and name what else is."""
    if find_spec("caffe") is None:
        require([module for module, (_, extra) in PACKAGES.items() if extra in ("caffe", "tools")])


def require(modules: Sequence[str]) -> None:
    """Raise a UsageError that names all of these modules which are not installed."""
    missing = [module for module in dict.fromkeys(modules) if find_spec(module) is None]
    if missing:
        raise UsageError(missing_packages(missing))


def missing_package(error: ImportError) -> str:
    """What to do where a package cannot be imported."""
    missing = (error.name or "").split(".")[0]
    return missing_packages([missing], f"{error}. ") if missing in PACKAGES else f"{error} (in {sys.executable})."


def missing_packages(modules: Sequence[str], reason: str = "") -> str:
    """What to do where Python modules are missing: the packages by name, and the extra that has them."""
    names = ", ".join(PACKAGES[module][0] for module in modules)
    wheel = sys.version_info < (3, 10)
    extras = sorted({PACKAGES[module][1] for module in modules} - ({""} if wheel else {"", "caffe"}))
    told = f"{reason}{names} {'is' if len(modules) == 1 else 'are'} not installed for {sys.executable}."
    if "caffe" in modules:
        told += (
            " Real Caffe comes with the extra [caffe] on CPython 3.7 to 3.9; for a Caffe of your own, run its Python, "
            "with the folder caffe/python in PYTHONPATH."
        )
    if "caffe" in modules and not wheel:
        told += " `make environment` in the folder of this project makes .venv, which has all."
    elif extras:
        told += f" pip install '.[{','.join(extras)}]' in the folder of this project, or `make environment`, has all."
    else:
        told += f" pip install {' '.join(PACKAGES[module][0] for module in modules)}"
    return told
