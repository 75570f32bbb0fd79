import subprocess
import sys

import multilabel_softmax_loss


def test_version_is_the_one_pip_installed():
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "show", "multilabel_softmax_loss"], stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    assert f"Version: {multilabel_softmax_loss.__version__}\n" in shown


def test_importing_the_package_needs_neither_caffe_nor_numba():
    code = "import sys, multilabel_softmax_loss; assert not {'caffe', 'numba', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
