"""The ranking losses: values worked out by hand, the definition pair by pair, and what holds of every ranking."""

import numpy as np
import pytest
from support.reference import reference_ranking

from multilabel_softmax_loss import assert_gradient, check_function, ranking_loss

RANKINGS = ["pairwise", "warp", "lsep", "zlpr"]
PAIRS = ["pairwise", "warp", "lsep"]  # these know differences of scores only
HINGES = ["pairwise", "warp"]


def random_case(shape=(6, 7), seed=0, dtype=np.float64, real=False):
    """Scores, and labels of which about a third are not 0."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2, size=shape).astype(dtype)
    labels = (rng.random(shape) < 0.35).astype(dtype)
    return scores, labels * rng.random(shape).astype(dtype) if real else labels


def assert_same(ours, expected, tolerance=1e-13):
    assert ours[0] == pytest.approx(expected[0], rel=tolerance)
    np.testing.assert_allclose(ours[1], expected[1], rtol=0, atol=tolerance * np.abs(expected[1]).max())


# Values worked out by hand


@pytest.mark.parametrize(
    "ranking, expected",
    [
        pytest.param("pairwise", 3 + 0.5, id="pairwise"),  # class 0 misses by 3 and by 0.5, class 1 by nothing
        pytest.param("warp", (1 + 1 / 2) / 2 * (3 + 0.5), id="warp: two classes violate"),
        pytest.param("lsep", np.log(1 + (np.exp(2) + np.exp(-0.5)) * (1 + np.exp(-4))), id="lsep"),
        pytest.param("zlpr", np.log(1 + np.exp(2) + np.exp(-0.5)) + np.log(1 + 1 + np.exp(-4)), id="zlpr"),
    ],
)
def test_known_losses(ranking, expected):
    loss, _ = ranking_loss([[0.0, 4.0, 2.0, -0.5]], [[1, 1, 0, 0]], ranking=ranking, pair_normalization="none")
    assert loss == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("ranking", HINGES)
def test_the_number_of_pairs_divides_the_hinges(ranking):
    scores, labels = [[0.0, 4.0, 2.0, -0.5]], [[1, 1, 0, 0]]
    mean = ranking_loss(scores, labels, ranking=ranking)
    total = ranking_loss(scores, labels, ranking=ranking, pair_normalization="none")
    assert_same((4 * mean[0], 4 * mean[1]), total)


def test_at_a_tie_a_class_does_not_violate():
    loss, gradient = ranking_loss([[1.0, 0.0, 0.5]], [[1, 0, 0]], ranking="warp", pair_normalization="none")
    assert loss == 0.5
    np.testing.assert_array_equal(gradient, [[-1, 0, 1]])


def test_the_weights_of_warp_count_the_classes_that_violate():
    """Three of them make 1 + 1/2 + 1/3 over 3 of each term of a margin missed by 1."""
    loss, gradient = ranking_loss(np.zeros((1, 4)), [[1, 0, 0, 0]], ranking="warp", pair_normalization="none")
    assert loss == pytest.approx(11 / 6, rel=1e-15)
    np.testing.assert_allclose(gradient, np.array([[-33, 11, 11, 11]]) / 18, rtol=1e-15)


# The definition


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 0.3, "pair_normalization": "none"}, {"class_weight": [0.5, 2, 0, 1, 1, 3, 0.1]}, {"axis": -1}],
    ids=["plain", "margin", "class weights", "last axis"],
)
def test_every_combination_equals_the_definition(ranking, normalization, options):
    scores, labels = random_case((4, 3, 7) if "axis" in options else (6, 7, 2), real=True)
    labels[np.random.default_rng(1).random(labels.shape) < 0.2] = -1
    options = {"ranking": ranking, "normalization": normalization, "ignore_label": -1, **options}
    weight = np.linspace(0, 2, scores.size // 7).reshape((4, 3) if "axis" in options else (6, 2))
    assert_same(ranking_loss(scores, labels, weight, **options), reference_ranking(scores, labels, weight, **options))


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("label_format", ["dense", "indices"])
@pytest.mark.parametrize("shape", [(5, 20), (3, 20, 7)], ids=["rows", "maps"])
def test_the_kernel_does_what_numpy_does(ranking, label_format, shape):
    rng = np.random.default_rng(0)
    for seed in range(12):
        scores, labels = random_case(shape, seed, np.float32, real=seed % 2 == 0)
        labels[rng.random(shape) < 0.2] = -1
        options = {"ranking": ranking, "label_format": label_format, "margin": 0.5 * (seed % 3)}
        options.update({"class_weight": rng.random(20)} if seed % 3 == 0 else {}, ignore_label=-1)
        options["pair_normalization"] = ["pairs", "none"][seed % 2]
        if label_format == "indices":
            labels = rng.integers(-1, 20, (shape[0], 4, *shape[2:])).astype(np.float32)
        weight = rng.random((shape[0], *shape[2:])) * (rng.random((shape[0], *shape[2:])) < 0.8)
        compiled = ranking_loss(scores, labels, weight, **options)
        exact = ranking_loss(scores.astype(np.float64), labels, weight, **options)
        assert_same(compiled, exact, 2e-7)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("scale", [1e-3, 1, 1e2, 1e4])
@pytest.mark.parametrize("dtype, bar", [(np.float32, 2e-7), (np.float64, 1e-12)])
def test_accuracy(ranking, scale, dtype, bar):
    scores, labels = random_case((8, 30), seed=3, dtype=dtype)
    scores = (scores * scale).astype(dtype)
    assert_same(ranking_loss(scores, labels, ranking=ranking), reference_ranking(scores, labels, ranking=ranking), bar)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("label_format", ["dense", "indices"])
def test_the_gradient_is_that_of_the_loss(ranking, label_format):
    """By finite differences; the weights of WARP are constant, so its slope is that of one ranking only."""
    scores, labels = random_case((4, 6), seed=2, real=label_format == "dense")
    if label_format == "indices":
        labels = np.array([[0, 3, -1], [5, 5, 1], [-1, -1, -1], [2, 4, 0]])

    def loss(s):
        return ranking_loss(s, labels, ranking=ranking, label_format=label_format)[0]

    _, gradient = ranking_loss(scores, labels, ranking=ranking, label_format=label_format)
    assert_gradient(check_function(loss, gradient, scores))


# What holds of every ranking


@pytest.mark.parametrize("ranking", PAIRS)
def test_shifting_the_scores_changes_nothing(ranking):
    scores, labels = random_case()
    assert_same(ranking_loss(scores + 8, labels, ranking=ranking), ranking_loss(scores, labels, ranking=ranking))
    np.testing.assert_allclose(ranking_loss(scores, labels, ranking=ranking)[1].sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_permuting_the_classes_permutes_the_gradient(ranking):
    scores, labels = random_case(real=True)
    order = np.random.default_rng(5).permutation(7)
    loss, gradient = ranking_loss(scores, labels, ranking=ranking)
    assert_same(ranking_loss(scores[:, order], labels[:, order], ranking=ranking), (loss, gradient[:, order]))


@pytest.mark.parametrize("ranking", ["pairwise", "lsep", "zlpr"])
def test_the_loss_is_convex(ranking):
    labels = random_case()[1]
    for seed in range(20):
        a, b = random_case(seed=seed)[0], random_case(seed=seed + 100)[0]
        between = ranking_loss((a + b) / 2, labels, ranking=ranking)[0]
        ends = ranking_loss(a, labels, ranking=ranking)[0], ranking_loss(b, labels, ranking=ranking)[0]
        assert between <= sum(ends) / 2


@pytest.mark.parametrize("ranking", RANKINGS)
def test_ignoring_a_class_equals_deleting_it(ranking):
    scores, labels = random_case(real=True)
    unknown = labels.copy()
    unknown[:, [2, 5]] = -1
    kept = [0, 1, 3, 4, 6]
    loss, gradient = ranking_loss(scores, unknown, ranking=ranking, ignore_label=-1)
    assert_same((loss, gradient[:, kept]), ranking_loss(scores[:, kept], labels[:, kept], ranking=ranking))
    assert not gradient[:, [2, 5]].any()


@pytest.mark.parametrize("ranking", RANKINGS)
def test_weight_two_equals_the_sample_twice(ranking):
    scores, labels = random_case()
    weighted = ranking_loss(scores, labels, [2, 1, 1, 1, 1, 0], ranking=ranking)
    twice = ranking_loss(scores[[0, 0, 1, 2, 3, 4]], labels[[0, 0, 1, 2, 3, 4]], ranking=ranking)
    assert weighted[0] == pytest.approx(twice[0], rel=1e-14)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_indices_equal_dense(ranking):
    scores, _ = random_case()
    lists = np.array([[0, 3], [1, 1], [-1, -1], [6, -1], [2, 5], [4, 0]])
    dense = np.zeros(scores.shape)
    for row, indices in enumerate(lists):
        dense[row, indices[indices >= 0]] = 1
    assert_same(
        ranking_loss(scores, lists, ranking=ranking, label_format="indices"),
        ranking_loss(scores, dense, ranking=ranking),
    )


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [-1, -1, -1]], ids=["no label", "all labels", "unknown"])
def test_a_position_without_pairs_is_finite(ranking, labels):
    scores = np.array([[3.0, -2, 1]])
    ours = ranking_loss(scores, np.array([labels]), ranking=ranking, ignore_label=-1)
    assert_same(ours, reference_ranking(scores, np.array([labels], float), ranking=ranking, ignore_label=-1))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_masked_class_has_no_part(ranking):
    scores, labels = random_case((3, 5), seed=1)
    labels[:, 2] = 0
    unknown = np.where(np.arange(5) == 2, -1, labels)
    masked = ranking_loss(
        np.where(np.arange(5) == 2, -np.inf, scores), labels, ranking=ranking, pair_normalization="none"
    )
    without = ranking_loss(scores, unknown, ranking=ranking, ignore_label=-1, pair_normalization="none")
    assert_same(masked, without)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("score, label", [(np.nan, 0), (np.nan, 1), (np.inf, 0), (np.inf, 1), (-np.inf, 1)])
def test_a_score_that_is_not_finite_is_an_error_that_names_it(ranking, score, label):
    scores, labels = np.zeros((2, 3)), np.array([[1, 0, 0], [1, 0, label]])
    scores[1, 2] = score
    with pytest.raises(ValueError, match=f"scores has {score:g} at sample 1, class 2"):
        ranking_loss(scores, labels, ranking=ranking)


def test_options_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="'ranking' = 'wrap'.*did you mean 'warp'"):
        ranking_loss([[0.0, 1]], [[1, 0]], ranking="wrap")
    with pytest.raises(ValueError, match="'margin' = -1; expected a finite number >= 0"):
        ranking_loss([[0.0, 1]], [[1, 0]], margin=-1)
    with pytest.raises(ValueError, match="'empty' = 'uniform'"):
        ranking_loss([[0.0, 1]], [[1, 0]], empty="uniform")
    with pytest.raises(ValueError, match="no positive label at sample 0"):
        ranking_loss([[0.0, 1]], [[0, 0]], empty="error")
    with pytest.raises(ValueError, match="unknown option 'label_smoothing'"):
        ranking_loss([[0.0, 1]], [[1, 0]], label_smoothing=0.1)


def test_many_classes_with_few_labels(peak_bytes):
    """100,000 classes with lists of 16: besides the gradient no more than blocks."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 100_000)).astype(np.float32)
    lists = rng.integers(0, 100_000, (4, 16)).astype(np.float32)

    def run():
        for ranking in RANKINGS:
            ranking_loss(scores, lists, ranking=ranking, label_format="indices")

    assert peak_bytes(run) < scores.nbytes + 24 * 100_000 * 8
