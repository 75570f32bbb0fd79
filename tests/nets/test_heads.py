"""Heads: labels of all formats, and log odds, which go on where probabilities saturate."""

import numpy as np
import pytest
from scipy.special import logsumexp

from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.heads import Head

SOFTMAX, SIGMOID = Head("s", None, "softmax"), Head("s", None, "sigmoid")

SCORES = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "head, scores, labels, dense, known",
    [
        pytest.param(
            Head("s", "l", "softmax", label_format="indices"),
            SCORES[:2],
            [[0, 5, 5], [2, -1, -1]],
            [[1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]],
            np.ones((2, 6)),
            id="indices",
        ),
        pytest.param(
            Head("s", "l", "softmax", label_format="class", ignore_label=255),
            SCORES[:3],
            [3, 255, 0],
            [[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]],
            np.ones((2, 6)),
            id="one class, one ignored",
        ),
        pytest.param(
            Head("s", "l", "sigmoid", ignore_label=-1),
            SCORES[:2],
            [[1, 0, -1, 0.5, 0, 0], [-1] * 6],
            [[1, 0, 0, 0.5, 0, 0]],
            [[1, 1, 0, 1, 1, 1]],
            id="unknown entries",
        ),
        pytest.param(
            Head("s", "l", "softmax"),
            SCORES.reshape(2, 3, 2, 2),
            np.eye(3, 4).reshape(1, 3, 2, 2).repeat(2, axis=0),
            [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]] * 2,
            np.ones((8, 3)),
            id="positions of an image",
        ),
        pytest.param(
            Head("s", "l", "softmax"), SCORES[:1], np.eye(1, 6).reshape(1, 6, 1, 1), np.eye(1, 6), np.ones((1, 6)),
            id="labels with axes of 1",
        ),
    ],
)  # fmt: skip
def test_labels_of_all_formats_are_read(head, scores, labels, dense, known):
    found, log_odds, found_known = head.rows(scores, np.asarray(labels, dtype=np.float32))
    assert np.array_equal(found, dense)
    assert np.array_equal(found_known, np.array(known, bool))
    assert log_odds.shape == found.shape


def test_probabilities_are_softmax_and_sigmoid_of_any_scores():
    scores = np.array([[1e4, 0, -1e4]], np.float32)
    assert SOFTMAX.probs(scores).tolist() == [[1, 0, 0]]
    assert SIGMOID.probs(scores).tolist() == [[1, 0.5, 0]]


def test_log_odds_of_the_sigmoid_are_its_scores():
    scores = np.array([[1e4, 38, 37.5, 0, -800]], np.float32)
    assert np.array_equal(SIGMOID.log_odds(scores), scores)


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e3, 1e5])
def test_log_odds_of_the_softmax_are_the_score_less_the_log_sum_of_the_others(scale):
    scores = (scale * np.random.RandomState(0).randn(20, 7)).astype(np.float32)
    others = [np.delete(scores.astype(np.float64), k, axis=1) for k in range(7)]
    expected = scores - np.stack([logsumexp(part, axis=1) for part in others], axis=1)
    assert SOFTMAX.log_odds(scores) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    planes = scores.reshape(5, 4, 7).transpose(0, 2, 1)
    assert np.array_equal(SOFTMAX.log_odds(planes).transpose(0, 2, 1).reshape(20, 7), SOFTMAX.log_odds(scores))


def test_a_masked_class_is_last_and_one_beside_masked_ones_first():
    found = SOFTMAX.log_odds(np.array([[3, -np.inf, -np.inf], [0, 0, -np.inf]], np.float32))
    assert found.tolist() == [[1e300, -1e300, -1e300], [0, 0, -1e300]]
    assert SOFTMAX.probability(found).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]


def test_log_odds_of_probabilities_and_back():
    probs = np.array([0, 1e-300, 0.25, 0.5, 0.75, 1])
    found = SIGMOID.odds_of(probs)
    assert found[[0, 3, 5]].tolist() == [-np.inf, 0, np.inf]
    assert SIGMOID.probability(found) == pytest.approx(probs, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1, -0.01, 1.01, 2])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_labels_that_a_loss_may_not_be_given_are_refused_wherever_they_are_read(activation, value):
    labels = np.zeros((2, 6), np.float32)
    labels[1, 4] = value
    if activation == "softmax" and 0 < value < np.inf:
        assert Head("s", "l", activation).rows(SCORES[:2], labels)[0][1, 4] == np.float32(value)
        return
    with pytest.raises(UsageError, match=rf"blob 'l' holds {value:g} \(class 4, row 1 of a batch\); expected labels"):
        Head("s", "l", activation).rows(SCORES[:2], labels)
    ignored = Head("s", "l", activation, ignore_label=value)
    if np.isfinite(value):
        assert not ignored.rows(SCORES[:2], labels)[2][1, 4]


@pytest.mark.parametrize("value", [np.nan, 6, -2, 1.5])
@pytest.mark.parametrize("label_format", ["indices", "class"])
def test_classes_that_are_none_are_refused(label_format, value):
    with pytest.raises(UsageError, match=f"holds {value:g}; expected class indices from 0 to 5"):
        Head("s", "l", "softmax", label_format=label_format).rows(SCORES[:2], np.array([[0], [value]], np.float32))
