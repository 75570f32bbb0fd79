"""Layer text from options, and the committed files that are made of it. Real Caffe reads them in test_snippets.py."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multilabel_softmax_loss import prototxt
from multilabel_softmax_loss.losses.options import SigmoidOptions, SoftmaxOptions
from multilabel_softmax_loss.prototxt import loss_layer

ROOT = Path(__file__).resolve().parent.parent


def param_str(text):
    """The param_str of a layer's text. A single-quoted string of prototxt is also one of Python."""
    found = re.findall(r"^    param_str: ('.*')$", text, re.M)
    return ast.literal_eval(found[0]) if found else ""


def values_of(text, name):
    return re.findall(rf"^  {name}: (\S+)", text, re.M)


def test_the_defaults_need_no_param_str():
    assert "param_str" not in loss_layer()
    assert "param_str" not in loss_layer(axis=1, label_smoothing=0, ignore_label=None, normalization="VALID")


def test_only_what_differs_from_its_default_is_written():
    text = loss_layer(normalization="FULL", empty="ignore", ignore_label=-1.0, axis=np.int64(2))
    assert param_str(text) == '{"normalization": "FULL", "ignore_label": -1, "axis": 2}'


def test_one_loss_weight_per_top_and_its_reason_beside_it():
    alone, both = loss_layer(), loss_layer(tops=("loss", "probs"), loss_weight=0.5)
    assert values_of(alone, "loss_weight") == ["1"]
    assert values_of(both, "loss_weight") == ["0.5", "0"]
    for text in (alone, both):
        assert re.search("loss_weight: .*# Caffe gives a Python layer none by itself", text)


def test_comments_say_what_each_blob_is_under_the_options():
    def note(text, blob):
        return re.search(rf'(?:bottom|top): "{blob}"  # (.*)', text).group(1)

    assert note(loss_layer(), "scores") == "class scores, N x C or N x C x H x W: any real number"
    assert note(loss_layer(axis=-1), "scores") == "class scores, classes on axis -1: any real number"
    assert note(loss_layer(), "labels") == "labels, shaped like the scores: finite, >= 0"
    assert note(loss_layer(ignore_label=-2), "labels").endswith("; -2 where unknown")
    assert note(loss_layer(label_format="indices"), "labels").endswith("0 to C-1, padded with -1")
    assert note(loss_layer(label_format="indices", ignore_label=255), "labels").endswith("padded with 255")
    text = loss_layer(bottoms=("a", "b", "c"), tops=("d", "e"))
    assert note(text, "c").startswith("sample weights")
    assert note(text, "e").startswith("the probabilities")


@pytest.mark.parametrize("name", ["it's", 'a "b"', r"C:\new\table.txt", "\\'", "naïve"])
def test_file_names_of_class_weights_survive_both_quotings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("1 2 3")
    read = SoftmaxOptions.parse(param_str(loss_layer(class_weight=name)))
    np.testing.assert_array_equal(read.class_weight, [1, 2, 3])


@pytest.mark.parametrize("given", [[1, 0.5, 2], (1, 0.5, 2), np.array([1, 0.5, 2], np.float32)], ids=type)
def test_class_weights_are_written_inline(given):
    assert param_str(loss_layer(class_weight=given)) == '{"class_weight": [1, 0.5, 2]}'


def test_every_option_is_written_below_its_effect_on_demand():
    text = loss_layer(write_defaults=True, label_smoothing=0.25)
    for name in SoftmaxOptions.names():
        assert re.search(rf"^      # \w.*\n      '\"{name}\": ", text.replace('# "', "# x"), re.M)
    joined = "".join(re.findall(r"^(?:    param_str:|     )? +'(.*)'$", text, re.M))
    assert vars(SoftmaxOptions.parse(joined)) == vars(SoftmaxOptions(label_smoothing=0.25))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"normalisation": "FULL"}, ValueError, "unknown option 'normalisation'; did you mean 'normalization'?"),
        ({"label_smoothing": 2}, ValueError, "option 'label_smoothing' = 2; expected a number from 0 to 1"),
        ({"axis": "one"}, TypeError, "option 'axis' = 'one'; expected an integer"),
        (
            {"class_weight": "missing.npy"},
            ValueError,
            "expected a readable file of one number per class; there is none",
        ),
        ({"layer": "MultilabelSoftmaxLoss"}, ValueError, "unknown layer .*; did you mean 'MultilabelSoftmaxLossLayer'"),
        ({"layer": "Euclid"}, ValueError, "unknown layer 'Euclid'; expected one of MultilabelSoftmaxLossLayer"),
        ({"bottoms": ["scores"]}, ValueError, r"bottoms has 1 names; expected 2 \(scores, labels\) or 3"),
        ({"tops": ["a", "b", "c"]}, ValueError, r"tops has 3 names; expected 1 \(the loss\) or 2"),
        ({"tops": "loss"}, TypeError, "tops = 'loss'; expected a list of names"),
        ({"loss_weight": "1"}, TypeError, "loss_weight = '1'; expected a finite number"),
        ({"loss_weight": np.nan}, ValueError, "loss_weight = nan; expected a finite number"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        loss_layer(**arguments)


# The committed files

SNIPPETS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "prototxt").glob("*.prototxt")}


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=str(ROOT))


def test_what_is_made_from_the_options_is_up_to_date():
    made = prototxt.generated(ROOT / "prototxt")
    assert sorted(made) == [
        "README.md",
        "ranking_options.prototxt",
        "sigmoid_options.prototxt",
        "softmax_options.prototxt",
    ]
    for name, text in made.items():
        assert (ROOT / "prototxt" / name).read_text(encoding="utf-8") == text, "run `make snippets`"


def test_the_command_writes_anew_what_was_changed_by_hand(tmp_path):
    folder = Path(shutil.copytree(str(ROOT / "prototxt"), str(tmp_path / "prototxt")))
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("| `axis` | `1` |", "| `axis` | `2` |"), encoding="utf-8")
    (folder / "softmax_options.prototxt").write_text("# All gone.")
    done = run("multilabel_softmax_loss.prototxt", folder)
    assert (done.returncode, done.stderr) == (0, "")
    for path in folder.iterdir():
        assert path.read_bytes() == (ROOT / "prototxt" / path.name).read_bytes()


@pytest.mark.parametrize("loss, options", [("softmax", SoftmaxOptions), ("sigmoid", SigmoidOptions)])
def test_the_option_tables_have_every_option_and_link_to_a_snippet_that_shows_it(loss, options):
    text = (ROOT / "prototxt" / "README.md").read_text(encoding="utf-8")
    table = text.split(f"<!-- options of the {loss} loss -->")[1].split("<!-- end")[0]
    rows = re.findall(r"^\| `(\w+)` .*\| \[(\w+)\]\((.*)\.prototxt\) \|$", table, re.M)
    assert [name for name, _, _ in rows] == options.names()
    for name, stem, path in rows:
        assert stem == path
        assert f'"{name}"' in SNIPPETS[stem]


@pytest.mark.parametrize("arguments", [[], ["no/such/folder"], ["examples"]], ids=str)
def test_bad_usage_has_status_2(arguments):
    done = run("multilabel_softmax_loss.prototxt", *arguments)
    assert done.returncode == 2
    assert "usage: python -m multilabel_softmax_loss.prototxt" in done.stderr


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="<!-- a --> and <!-- end of a --> are not there"):
        prototxt.fill_blocks("<!-- end of a -->\n<!-- a -->\n", {"a": ""})


# The command `snippet`


def test_the_command_lists_the_snippets_by_their_first_line():
    listed = run("multilabel_softmax_loss", "snippet").stdout.splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted(SNIPPETS)
    for line in listed:
        name, _, summary = line.partition(" ")
        assert SNIPPETS[name].startswith(f"# {summary.strip()}\n")


@pytest.mark.parametrize("name", ["softmax_loss", "softmax_loss.prototxt"])
def test_the_command_prints_a_snippet(name):
    done = run("multilabel_softmax_loss", "snippet", name)
    assert (done.returncode, done.stdout) == (0, SNIPPETS["softmax_loss"])


def test_an_unknown_snippet_is_refused():
    done = run("multilabel_softmax_loss", "snippet", "softmax_los")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: this package has no snippet 'softmax_los'; did you mean 'softmax_loss'?\n")
