"""The command `migrate`: what becomes of old losses, what it asks, and that Caffe computes the same."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_nets import OURS, SIGMOID, body, hdf5_layer, read_net, run_command, write_hdf5

from multilabel_softmax_loss.commands.migrate import run
from multilabel_softmax_loss.errors import UsageError

DATA = 'layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 5 } } }\n'
PYTHON = """layer {
  name: "loss"  # of the blog
  type: "Python"
  bottom: "scores" bottom: "label"
  top: "loss"
  python_param {
    module: "%s"
    layer: "%s"  # class
    param_str: "%s"
  }
}
"""
SOFTMAX = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" %s }\n'
ACCURACY = 'layer { name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }\n'
# Layers as they were published, by their formulas.
PUBLISHED = """
import ast
import caffe
import numpy as np

class Published(caffe.Layer):
    def setup(self, bottom, top):
        pass
    def reshape(self, bottom, top):
        top[0].reshape(1)
    def forward(self, bottom, top):
        print("noise")
        loss, self.gradient = self.formula(bottom[0].data, bottom[1].data)
        top[0].data[...] = loss
    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.gradient

class CustomSoftmaxLoss(Published):
    def formula(self, s, y):
        p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
        count = (y != 0).sum(axis=1, keepdims=True)
        return -(y * np.log(p) / count).sum() / len(s), (p - (y != 0) / count) / len(s)

class FocalLoss(Published):
    def formula(self, s, y):
        g = ast.literal_eval(self.param_str)["focusing_parameter"] if self.param_str else 2
        p = 1 / (1 + np.exp(-s))
        q = np.where(y != 0, p, 1 - p)
        slope = (1 - q) ** g * (g * q * np.log(q) + q - 1)
        return -((1 - q) ** g * np.log(q)).sum() / len(s), np.where(y != 0, slope, -slope) / len(s)

class CustomSigmoidCrossEntropyLossLayer(Published):
    def formula(self, s, y):
        return (np.logaddexp(0, s) - s * y).sum(), 1 / (1 + np.exp(-s)) - y

class Wrong(Published):
    def formula(self, s, y):
        return 1, 0 * s + 1

class Needy(Published):
    def setup(self, bottom, top):
        open("weights.json")
"""


@pytest.fixture
def migrate(tmp_path, monkeypatch, capfd):
    """migrate(text, *options): the exit status, the new text (None: not written), and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "published.py").write_text(PUBLISHED)
    defaults = SimpleNamespace(
        layer=[], labels="dense", gamma=None, replace=True, net="net.prototxt", out="new.prototxt"
    )

    def call(text, **options):
        (tmp_path / options.get("net", "net.prototxt")).write_text(text)
        status = run(SimpleNamespace(**{**vars(defaults), "command": "migrate", **options}))
        new = tmp_path / "new.prototxt"
        return status, new.read_text() if new.exists() else None, capfd.readouterr()

    yield call
    sys.modules.pop("published", None)


def figures(printed):
    """The rows of the proof: labels, losses before and after, how far the gradients are apart."""
    rows = re.findall(r"^    (\S.*?) +(\S+) +(\S+) +(\d\S*)(?: \(.*\))?$", printed.out, re.M)
    return {labels: tuple(map(float, numbers)) for labels, *numbers in rows}


def same(before, after, apart):
    return after == pytest.approx(before, rel=1e-5) and apart < 1e-5


def net(loss):
    return DATA + body() + loss


def loss_of(text):
    (layer,) = (layer for layer in read_net(text).layer if layer.name == "loss")
    return layer


def test_the_blogs_softmax_becomes_ours_and_only_its_lines_change(migrate):
    old = net(PYTHON % ("published", "CustomSoftmaxLoss", ""))
    status, new, printed = migrate(old)
    assert status == 0
    expected = old.replace('"published"', '"multilabel_softmax_loss"')
    expected = expected.replace('"CustomSoftmaxLoss"', '"MultilabelSoftmaxLossLayer"')
    expected = expected.replace('param_str: ""', 'param_str: \'{"label_normalization": "count"}\'')
    assert new == expected[: -len("}\n")] + "  loss_weight: 1\n}\n"
    assert '-    module: "published"\n' in printed.out
    assert "noise" not in printed.out
    rows = figures(printed)
    assert same(*rows["labels of 0 and 1"])
    assert same(*rows["labels of 0 and 1, default options"])
    before, after, apart = rows["real-valued labels"]
    assert before == pytest.approx(after, rel=1e-5)
    assert apart > 0.1
    assert "(before, the gradient left the values of the labels out)" in printed.out


@pytest.mark.parametrize(
    "name, param_str, options",
    [
        ("FocalLoss", "{'focusing_parameter': 2}", '{"focal_gamma": 2}'),
        ("CustomSigmoidCrossEntropyLossLayer", "", '{"normalization": "NONE"}'),
    ],
)
def test_python_sigmoids_become_ours(migrate, name, param_str, options):
    status, new, printed = migrate(net(PYTHON % ("published", name, param_str)))
    assert status == 0
    loss = loss_of(new)
    assert (loss.python_param.layer, loss.python_param.param_str) == ("MultilabelSigmoidLossLayer", options)
    rows = figures(printed)
    assert same(*rows["labels of 0 and 1"])
    assert same(*rows["real-valued labels"]) == (name != "FocalLoss")


def test_a_loss_whose_code_does_not_run_is_compared_by_its_formula_and_has_to_be_confirmed(migrate):
    for name, param_str in (("CustomSoftmaxLoss", ""), ("FocalLoss", "{'focusing_parameter': 2}"),
                            ("CustomSigmoidCrossEntropyLossLayer", "")):  # fmt: skip
        text = net(PYTHON % ("lost", name, param_str))
        with pytest.raises(UsageError, match=f"'loss' is taken for {name} by its name alone; --layer loss=s.* says so"):
            migrate(text, out=None)
        kind = "softmax" if name == "CustomSoftmaxLoss" else "sigmoid"
        status, _, printed = migrate(text, layer=[f"loss={kind}"], out=None)
        assert status == 0
        assert (
            "the layer itself does not run: net.prototxt: layer 'loss': python_param { module: 'lost' }" in printed.out
        )
        for line in re.findall(r"^    (?:labels|real).*$", printed.out, re.M):
            before, after, apart = line.split()[-3:]
            if not (name == "FocalLoss" and "real" in line):
                assert float(before) == pytest.approx(float(after), rel=1e-5)
                assert apart == "-"


def test_another_loss_than_its_name_says_is_not_written(migrate):
    text = net(PYTHON % ("published", "FocalLoss", ""))
    with pytest.raises(UsageError, match="its param_str has no focusing_parameter; --gamma G says it"):
        migrate(text)
    status, new, printed = migrate(text, gamma=1.0)
    assert (status, new) == (1, None)
    assert "That is another loss" in printed.out
    assert "Not written." in printed.out
    assert migrate(text, gamma=2.0)[0] == 0


@pytest.mark.parametrize("normalization", ["", "normalization: VALID", "normalization: FULL", "normalization: NONE",
                                           "normalize: true", "ignore_label: -1"])  # fmt: skip
def test_caffes_sigmoid_becomes_ours(migrate, normalization):
    parameter = f"loss_weight: 0.5 loss_param {{ {normalization} }} }}" if normalization else "}"
    status, new, printed = migrate(net(SIGMOID.replace("}", parameter)))
    assert status == 0
    loss = loss_of(new)
    assert loss.python_param.layer == "MultilabelSigmoidLossLayer"
    assert list(loss.loss_weight) == [0.5 if normalization else 1]
    assert not loss.HasField("loss_param")
    assert same(*figures(printed)["labels of 0 and 1"])


def test_labels_cut_to_whole_numbers_are_told(migrate):
    _, _, printed = migrate(net(SIGMOID.replace("}", "loss_param { ignore_label: 0 } }")), layer=["loss=sigmoid"])
    assert "(before, labels were cut to whole numbers to compare them with ignore_label)" in printed.out


def test_a_softmax_loss_on_several_labels_is_found_by_its_data(migrate, tmp_path):
    write_hdf5("several", data=np.zeros((4, 5)), label=np.zeros((4, 6)))
    write_hdf5("one", data=np.zeros((4, 5)), label=np.zeros((4, 1)))
    loss = SOFTMAX % "loss_param { normalize: false }"
    status, new, printed = migrate(hdf5_layer("several.txt", "TRAIN") + body() + ACCURACY + loss)
    assert status == 0
    assert loss_of(new).python_param.param_str == '{"normalization": "BATCH_SIZE"}'
    assert "accuracy" not in new  # which takes one class a sample
    assert same(*figures(printed)["one label each"])
    old = hdf5_layer("one.txt", "TRAIN") + body() + ACCURACY + loss
    assert "net.prototxt: nothing to change." in migrate(old)[2].out
    with pytest.raises(UsageError, match="are its labels, 'label', one class each, .* --layer loss=keep says one"):
        migrate(net(loss))


def test_lists_of_class_indices_keep_what_is_ignored(migrate):
    loss = SOFTMAX % "loss_param { ignore_label: 5 }"
    _, new, printed = migrate(net(loss), layer=["loss=softmax"], labels="indices")
    assert loss_of(new).python_param.param_str == '{"label_format": "indices", "ignore_label": 5}'
    assert same(*figures(printed)["one label each"])
    _, new, printed = migrate(net(loss), layer=["loss=softmax"])
    assert loss_of(new).python_param.param_str == ""
    assert "ignore_label was a class and goes" in printed.err


def test_unknown_python_losses_are_named_and_left(migrate):
    for name in ("Wrong", "Needy"):
        text = net(PYTHON % ("published", name, ""))
        status, _, printed = migrate(text)
        assert (status, printed.out) == (0, "net.prototxt: nothing to change.\n")
        assert f"layer 'loss' (module 'published', layer '{name}') is no loss known here and stays." in printed.err
        assert "It has no loss_weight, so nothing is learned from it." in printed.err
        status, new, printed = migrate(text, layer=["loss=softmax"])
        assert status == 0
        assert loss_of(new).python_param.layer == "MultilabelSoftmaxLossLayer"
    assert "Before is not known, as the layer itself does not run: [Errno 2]" in printed.out
    assert "nan" not in printed.out
    _, _, printed = migrate(net(PYTHON % ("published", "Wrong", "")).replace('"label"\n', '"label" bottom: "w"\n'))
    assert "--layer" not in printed.err


@pytest.mark.parametrize("name, param_str", [("Wrong", "0.5, 2"), ("FocalLoss", "{'focusing_parameter': 2, 'k': 1}")])
def test_options_that_nothing_takes_over_are_named(migrate, name, param_str):
    _, _, printed = migrate(net(PYTHON % ("published", name, param_str)), layer=["loss=sigmoid"])
    assert f"layer 'loss': its param_str {param_str!r} goes." in printed.err


def test_the_diff_is_one_that_patch_takes(migrate):
    old = DATA + body() + "# \x0cof 2016\r\n" + SIGMOID.rstrip()
    _, _, printed = migrate(old)
    marked = printed.out.split("layer 'loss'")[0].split("\n\\ No newline at end of file\n")
    assert [part.rpartition("\n")[2][0] for part in marked[:2]] == ["-", "+"]
    assert marked[2:] == [""]
    assert " # \x0cof 2016\r\n" in printed.out


def test_a_migrated_net_does_not_change_again_but_for_a_missing_loss_weight(migrate):
    for text in (net(OURS % ""), net(SIGMOID)):
        options = {"layer": ["loss=keep"]} if text.endswith(SIGMOID) else {}
        assert migrate(text, **options)[2].out == "net.prototxt: nothing to change.\n"
    _, new, _ = migrate(net(OURS.replace("loss_weight: 1\n", "\n") % ""))
    assert list(loss_of(new).loss_weight) == [1]
    assert "nothing to change" in migrate(new)[2].out


def test_old_formats_are_brought_up_and_files_stay_unless_it_is_said(migrate, tmp_path):
    v1 = 'layers { name: "r" type: RELU bottom: "label" top: "x" }  # kept\n'
    _, new, _ = migrate(v1)
    assert new == 'layer { name: "r" type: "ReLU" bottom: "label" top: "x" }  # kept\n'
    with pytest.raises(UsageError, match="--out new.prototxt is there already; choose another name, or add --replace"):
        migrate(v1, replace=False)
    with pytest.raises(UsageError, match="--out ./net.prototxt is the net itself; .* --replace"):
        migrate(v1, replace=False, out="./net.prototxt")
    assert migrate(v1, out="net.prototxt")[0] == 0
    assert (tmp_path / "net.prototxt").read_text() == new
    both = v1 + '# mine\nlayer { name: "s" type: "Silence" bottom: "x" }\n'
    assert migrate(both)[1] == new + both[len(v1) :]
    v0 = 'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "data" top: "p" } # lost\n'
    v0 += 'layers { layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 } bottom: "p" top: "c" }\n'
    _, new, printed = migrate(v0)
    assert [(layer.name, layer.type) for layer in read_net(new).layer] == [("c", "Convolution")]
    assert "written anew from its values, without its comments" in printed.err


@pytest.mark.parametrize(
    "words, message",
    [
        (["loss"], "--layer is 'loss'; expected NAME=softmax, NAME=sigmoid or NAME=keep"),
        (["loss=hinge"], "expected NAME=softmax, NAME=sigmoid or NAME=keep"),
        (["los=keep"], "net.prototxt has no layer 'los'; did you mean 'loss'?"),
        (["relu=softmax"], "--layer relu=softmax: that layer has no two bottoms; expected scores and labels"),
    ],
    ids=str,
)
def test_what_layer_may_say(migrate, words, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        migrate(net(SIGMOID), layer=words)


def test_the_readme_shows_what_is_printed(migrate):
    text = (Path(__file__).resolve().parents[2] / "prototxt" / "README.md").read_text(encoding="utf-8")
    net, printed = (block for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S) if "layers {" in block)
    rounding = re.compile(r"\d+e-\d+$", re.M)
    found = migrate(net, net="old.prototxt")[2].out
    assert rounding.sub("", found) == rounding.sub("", printed)


def test_the_command_replaces_a_net_and_finds_it_migrated(tmp_path, run_here):
    (tmp_path / "net.prototxt").write_text(net(SIGMOID))
    words = ("migrate", "net.prototxt", "--out", "net.prototxt", "--replace")
    done = run_command(*words, folder=tmp_path, check=0)
    assert done.stdout.endswith("Written: net.prototxt\n")
    assert run_here(*words, folder=tmp_path, check=0).stdout == "net.prototxt: nothing to change.\n"
