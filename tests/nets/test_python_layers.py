"""Python layers that cannot be found: what was meant, and where it is looked for."""

import re
import sys

import pytest

from multilabel_softmax_loss import softmax_cross_entropy
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.python_layers import find_class, running


@pytest.mark.parametrize(
    "module, layer, message",
    [
        pytest.param("multilable_softmax_loss", "L", "Did you mean 'multilabel_softmax_loss'?", id="a typo"),
        pytest.param(
            "multilabel_softmax_loss.layer", "L", "Did you mean 'multilabel_softmax_loss.layers'?", id="in a package"
        ),
        pytest.param("my_layer", "L", "Did you mean 'my_layers'?", id="beside"),
        pytest.param("no_such_thing_at_all", "L", "Install it, or add its folder to PYTHONPATH.", id="nothing near"),
        pytest.param("my_layers", "L", "No module named 'jsn'. 'my_layers' needs it: install it for", id="needed"),
        pytest.param("multilabel_softmax_loss", "SoftmaxOption", "did you mean 'SoftmaxOptions'?", id="class"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest(tmp_path, monkeypatch, module, layer, message):
    (tmp_path / "my_layers.py").write_text("import jsn\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=re.escape(message)):
        find_class(module, layer)


def test_this_package_is_meant_also_where_it_lies_in_no_folder_of_the_path(tmp_path, monkeypatch):
    """As an editable installation has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" in folder])
    with pytest.raises(ImportError, match=re.escape("Did you mean 'multilabel_softmax_loss'?")):
        find_class("multilabel_softmax_los", "L")


def test_what_a_layer_of_anothers_raises_is_told_with_its_kind_and_place():
    with pytest.raises(UsageError, match=r"^net: KeyError: 3 \(.*test_python_layers.py, line \d+\)$"), running("net"):
        {}[3]
    with pytest.raises(UsageError, match="^net: labels has -1 at sample 0, class 0"), running("net"):
        softmax_cross_entropy([[0.0, 1.0]], [[-1, 1]])
