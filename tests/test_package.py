import subprocess
import sys

import multilabel_softmax_loss


def test_version_is_the_one_pip_installed():
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "show", "multilabel_softmax_loss"], stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    assert f"Version: {multilabel_softmax_loss.__version__}\n" in shown


def test_importing_the_package_loads_nothing_that_takes_time():
    code = "import sys, multilabel_softmax_loss; assert not {'caffe', 'numba', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_listed_before_they_are_loaded():
    code = "import multilabel_softmax_loss as package; assert set(package.__all__) <= set(dir(package))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_losses_need_neither_caffe_nor_matplotlib():
    code = "from multilabel_softmax_loss import softmax_cross_entropy, check_function; import sys"
    code += "; assert not {'caffe', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
