"""Kernels and NumPy give one answer, or one error, whatever a loss is given; `make attack` draws many more cases."""

import os

import numpy as np
import pytest

from multilabel_softmax_loss import ranking_loss, sigmoid_cross_entropy, softmax_cross_entropy
from multilabel_softmax_loss.losses import evaluate as losses

CASES = int(os.environ.get("CASES", "60"))
SEED = int(os.environ.get("ATTACK_SEED", "0"))

CHOICES = {
    softmax_cross_entropy: {
        "label_normalization": ["l1", "count", "none"],
        "normalization": ["VALID", "FULL", "BATCH_SIZE", "NONE"],
        "empty": ["ignore", "ignore", "uniform", "error"],
        "label_smoothing": [0, 0, 0.1, 1.0],
        "divergence": ["cross_entropy", "cross_entropy", "kl"],
    },
    sigmoid_cross_entropy: {
        "label_smoothing": [0, 0, 0.2],
        "pos_weight": [None, 3.0, 0.0],
        "focal_gamma": [0, 0, 2, 0.5],
        "focal_alpha": [None, 0.25],
        "normalization": ["VALID", "FULL", "BATCH_SIZE", "NONE"],
    },
    ranking_loss: {
        "ranking": ["pairwise", "warp", "lsep", "zlpr"],
        "normalization": ["VALID", "FULL", "BATCH_SIZE", "NONE"],
        "empty": ["ignore", "error"],
    },
}
BAD = [np.nan, np.inf, -np.inf, -1, -0.5, 2, 1e30, 3e38, 1e-40]


def drawn(loss, rng):
    """Scores, labels, sample weights and options; some of them such as no loss takes."""
    classes = int(rng.choice([1, 2, 5, 9, 70]))
    shape = (int(rng.integers(1, 40)), classes, *[(), (), (1,), (3, 4), (7, 9)][rng.integers(5)])
    scores = rng.normal(scale=10 ** rng.uniform(-3, 3), size=shape)
    options = {name: values[rng.integers(len(values))] for name, values in CHOICES[loss].items()}
    options = {name: value for name, value in options.items() if value is not None}
    labels = (rng.random(shape) < 0.3) * (rng.random(shape) if rng.random() < 0.3 else 1.0)
    if rng.random() < 0.3:
        options["class_weight"] = (rng.random(classes) * (rng.random(classes) < 0.8)).tolist()
    if rng.random() < 0.3:
        options["label_format"] = "indices"
        labels = rng.integers(-1, classes + (rng.random() < 0.1), size=(shape[0], 3, *shape[2:])).astype(float)
    elif rng.random() < 0.3:
        options["ignore_label"] = float(rng.choice([-1, 255, 0]))
        labels[rng.random(shape) < 0.3] = options["ignore_label"]
    weight = rng.random((shape[0], *shape[2:])) * (rng.random() < 0.9) if rng.random() < 0.3 else None
    for array in (scores, labels, weight):
        if array is not None and rng.random() < 0.2:
            array[tuple(rng.integers(0, size) for size in array.shape)] = rng.choice(BAD)
    dtype = rng.choice([np.float32, np.float32, np.float64])
    with np.errstate(over="ignore"):
        return scores.astype(dtype), labels.astype(dtype), weight, options


def answer(mode, loss, scores, labels, weight, options):
    """(loss, gradient), or the words of the error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULTILABEL_SOFTMAX_LOSS_KERNELS", mode)
        losses.kernels.cache_clear()
        try:
            return loss(scores, labels, weight, **options)
        except ValueError as error:
            return str(error), None
        finally:
            losses.kernels.cache_clear()


@pytest.mark.parametrize("loss", list(CHOICES), ids=lambda loss: loss.__name__)
def test_kernels_and_numpy_give_one_answer_or_one_error(needs_numba, loss):
    rng = np.random.default_rng(SEED)
    refused = 0
    for number in range(CASES):
        case = drawn(loss, rng)
        told = f"case {number} of seed {SEED}: scores {case[0].shape}, labels {case[1].shape}, {case[3]}"
        kept = [None if array is None else array.copy() for array in case[:3]]
        (value, gradient), (other, other_gradient) = (answer(mode, loss, *case) for mode in ("numpy", "numba"))
        if gradient is None or other_gradient is None:
            assert value == other, told
            refused += 1
            continue
        assert other == pytest.approx(value, rel=1e-6, abs=1e-12), told
        largest = np.abs(gradient).max()
        if case[0].shape[1] == 1:  # where m p and t cancel, be they 1e30
            largest = max(largest, np.abs(case[1]).max())
        rounding = 1e-15 * max(1, np.abs(case[1]).max())  # of float64, where m p and t of a certain row cancel
        assert np.abs(other_gradient - gradient).max() <= 3e-7 * largest + rounding, told
        for array, before in zip(case, kept):
            assert array is None or np.array_equal(array, before, equal_nan=True), told
    assert CASES // 20 < refused < CASES // 2


@pytest.mark.parametrize("row", [[np.inf, 0, 0], [-np.inf] * 3, [np.nan, 0, 0]], ids=["infinite", "masked", "NaN"])
@pytest.mark.parametrize("classes", [3, 1])
def test_a_row_without_probabilities_is_told_though_its_targets_weigh_nothing(backend, classes, row):
    scores, labels = np.zeros((2, classes), np.float32), np.ones((2, classes), np.float32)
    scores[1] = row[:classes]
    said, _ = answer(backend, softmax_cross_entropy, scores, labels, None, {"class_weight": [0.0] * classes})
    assert f"scores has {row[0]:g} at sample 1, class 0; expected finite scores" in str(said)


@pytest.mark.parametrize("ranking", CHOICES[ranking_loss]["ranking"])
def test_an_infinite_score_is_told_and_costs_not_nothing(backend, ranking):
    scores, labels = np.zeros((2, 5), np.float32), np.eye(2, 5, dtype=np.float32)
    scores[1, 3] = np.inf
    said, _ = answer(backend, ranking_loss, scores, labels, None, {"ranking": ranking})
    assert "scores has inf at sample 1, class 3" in str(said)
