"""Metadata of the package; `pip install .` needs NumPy only, the extras bring the rest."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
INIT = (ROOT / "multilabel_softmax_loss" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.M).group(1)

# Real Caffe exists as wheels for these interpreters and processors only; its own metadata has no upper bounds.
HAS_CAFFE = "python_version < '3.10' and platform_machine in 'x86_64 AMD64'"

EXTRAS = {
    "caffe": [
        f"{requirement}; {HAS_CAFFE}"
        for requirement in (
            "kendryte-caffe==1.0.0.20210829",
            "numpy<2",
            "protobuf>=3.20.3,<4",
            "scipy>=1.7",
            "scikit-image>=0.19",
        )
    ],
    "fast": ["numba>=0.56"],
    "tools": [
        "scikit-learn>=1.0",
        "matplotlib>=3.5",
        "tqdm>=4.60",
        "h5py>=3.8",
        "Pillow>=9.0",
        "lmdb>=1.6,<1.7; python_version < '3.8'",
        "lmdb>=1.6,<1.9; python_version == '3.8'",  # later wheels for 3.8 do not import
        "lmdb>=1.6; python_version >= '3.9'",
        "plyvel>=1.5; python_version < '3.10' and platform_machine == 'x86_64'",  # LevelDBs, for whoever has Caffe
        # 5.0 dropped the reader of Caffe models; 4.12 wants NumPy 2 on CPython 3.9, which Caffe cannot have.
        "opencv-python-headless>=4.5,<4.12; python_version == '3.9'",
        "opencv-python-headless>=4.5,<5; python_version != '3.9'",
    ],
    "distributed": ["mpi4py>=4; python_version >= '3.8'"],  # with the MPI of the site, or the package mpich
    "test": [
        "mpich>=4; python_version >= '3.8'",
        "pytest>=7.4",
        "setuptools>=64",  # newer interpreters have none of their own, and the tests read this file
        "pytest-xdist>=3.5",
        "hypothesis>=6.79",
        "mpmath>=1.3",
        "ruff==0.17.6; python_version == '3.9'",
        "mypy==1.19.1; python_version == '3.9'",
        # For the notebook, which runs on the default interpreter only: elsewhere it would be the same Python again.
        "nbclient>=0.10; python_version == '3.9'",
        "ipykernel>=6.29; python_version == '3.9'",
    ],
    "docs": ["pdoc>=15; python_version >= '3.9'"],
    "dist": ["build>=1.2", "twine>=6"],
}


def description():
    """README for an index page, which has neither this repository's files nor formulas."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^## What it computes\n.*?(?=^## )", "", text, flags=re.M | re.S)
    text = re.sub(r"^!\[.*?\]\(.*?\)\n\n.*?(?=^## )", "", text, flags=re.M | re.S)  # the picture, and what explains it
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


class BuildWithSnippets(build_py):
    """Puts the snippets of prototxt/ into the package; an installation in place (-e) reads them where they are."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            self.mkpath(str(self.snippet_folder()))
            for path in sorted((ROOT / "prototxt").glob("*.prototxt")):
                shutil.copyfile(str(path), str(self.snippet_folder() / path.name))

    def snippet_folder(self):
        return Path(self.build_lib) / "multilabel_softmax_loss" / "snippets"

    def get_outputs(self, *arguments, **options):
        made = sorted(map(str, self.snippet_folder().glob("*.prototxt")))
        return super().get_outputs(*arguments, **options) + made


setup(
    name="multilabel_softmax_loss",
    version=VERSION,
    description="Softmax cross-entropy for images with several labels each, as a Caffe Python layer",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="the multilabel_softmax_loss authors",
    license="BSD-2-Clause",
    keywords="caffe multi-label softmax cross-entropy loss layer gradient check",
    project_urls={
        "Targets of 1/k": "https://arxiv.org/abs/1805.00932",
        "Multilabel ranking": "https://arxiv.org/abs/1312.4894",
    },
    cmdclass={"build_py": BuildWithSnippets},
    packages=find_packages(include=["multilabel_softmax_loss*"]),
    package_data={"multilabel_softmax_loss": ["py.typed"]},
    python_requires=">=3.7",
    install_requires=["numpy>=1.21"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["multilabel-softmax-loss = multilabel_softmax_loss.__main__:console"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(7, 15)),
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
