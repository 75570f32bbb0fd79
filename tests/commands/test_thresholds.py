"""Files of thresholds: read as they were written, and nothing else is."""

import json
import re

import numpy as np
import pytest

from multilabel_softmax_loss.commands.thresholds import levels_of, read_thresholds, write_thresholds
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.heads import Head

SOFTMAX, NONE = Head("s", None, "softmax"), Head("s", None, "none")


def write(folder, **content):
    (folder / "t.json").write_text(json.dumps(content))
    return str(folder / "t.json")


@pytest.mark.parametrize("head", [SOFTMAX, NONE], ids=lambda head: head.activation)
def test_thresholds_come_back_exactly_where_probabilities_saturate_too(tmp_path, head):
    log_odds = np.array([-800.5, 0.1, 40, 700, np.inf])
    report = {"per_class": [{"class": name, "F1 (tuned here)": 0.5} for name in "abcde"]}
    path = str(tmp_path / "t.json")
    write_thresholds(path, log_odds, report, head)
    assert np.array_equal(levels_of(read_thresholds(path), path, 5, head), log_odds)
    assert read_thresholds(path).classes == list("abcde")


def test_thresholds_by_hand_are_probabilities(tmp_path):
    path = write(tmp_path, thresholds=[0, 0.25, 1, None])
    assert levels_of(read_thresholds(path), path, 4, SOFTMAX) == pytest.approx([-np.inf, -np.log(3), np.inf, np.inf])
    assert levels_of(read_thresholds(path), path, 4, NONE).tolist() == [0, 0.25, 1, np.inf]


def test_thresholds_of_probabilities_are_none_of_scores(tmp_path):
    path = write(tmp_path, thresholds=[0.5], probabilities="softmax")
    with pytest.raises(UsageError, match="tuned on softmax probabilities; expected scores, which this net gives"):
        levels_of(read_thresholds(path), path, 1, NONE)


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param([0.5, 0.5], "as it holds a list", id="a list"),
        pytest.param({"F1": [0.5]}, "as it holds keys F1", id="no thresholds"),
        pytest.param({"thresholds": {"cat": 0.5}}, '"thresholds" that are a dict; expected a list', id="a dict"),
        pytest.param({"thresholds": 0.5}, '"thresholds" that are a float; expected a list', id="a number"),
        pytest.param({"thresholds": [0.5, "0.5"]}, "'0.5' in \"thresholds\", for class 1", id="a string"),
        pytest.param({"thresholds": [True, 0.5]}, 'True in "thresholds", for class 0', id="true"),
        pytest.param({"thresholds": [[0.5], 0.5]}, '[0.5] in "thresholds", for class 0', id="a list in it"),
        pytest.param({"thresholds": [0.5, 2]}, "thresholds from 0.5 to 2; expected 0 to 1", id="too high"),
        pytest.param({"thresholds": [-1, 0.5]}, "thresholds from -1 to 0.5; expected 0 to 1", id="negative"),
        pytest.param({"thresholds": [0.5]}, "holds 1 thresholds; expected 2", id="too few"),
        pytest.param({"thresholds": [0.5, 0.5], "log_odds": "0"}, '"log_odds" that are a str', id="log odds"),
        pytest.param({"thresholds": [0.5, 0.5], "log_odds": [0]}, "not those of its", id="too few log odds"),
        pytest.param({"thresholds": [0.5, 0.5], "log_odds": [0, 1]}, "not those of its", id="other log odds"),
        pytest.param({"thresholds": [0.5, 0.5], "probabilities": "max"}, "'max'; expected one of softmax", id="kind"),
        pytest.param({"thresholds": [0.5, 0.5], "probabilities": ["x"]}, "['x']; expected one of", id="list of kinds"),
        pytest.param({"thresholds": [0.5, 0.5], "probabilities": "sigmoid"}, "tuned on sigmoid", id="another kind"),
        pytest.param({"thresholds": [0.5, 0.5], "classes": "ab"}, '"classes" that are no list', id="names in a string"),
        pytest.param({"thresholds": [0.5, 0.5], "classes": [1, 2]}, '"classes" that are no list', id="numbers"),
        pytest.param({"thresholds": [0.5, 0.5], "classes": ["a"]}, "2 thresholds and 1 classes", id="too few names"),
        pytest.param({"thresholds": [0.5, 0.5], "classes": ["b", "a"]}, "'b' as class 0; expected 'a'", id="order"),
        pytest.param({"thresholds": [0.5, 0.5], "threshold": 1}, "did you mean 'thresholds'?", id="unknown key"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    path = str(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=re.escape(message)):
        levels_of(read_thresholds(path), path, 2, SOFTMAX, ["a", "b"])
