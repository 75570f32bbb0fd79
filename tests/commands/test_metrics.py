"""Multi-label metrics against scikit-learn and against their formulas; thresholds against brute force."""

import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from multilabel_softmax_loss.commands import metrics


def random_set(seed, samples=60, classes=7, share=0.3):
    rng = np.random.RandomState(seed)
    truth = rng.rand(samples, classes) < share
    truth[0] = True  # no class without positives
    return truth, np.clip(rng.rand(samples, classes) + 0.3 * truth, 0, 1.3)


@pytest.mark.parametrize("seed", range(3))
def test_per_class_and_overall_metrics_are_macro_and_micro_averages(seed):
    truth, probs = random_set(seed)
    decided = metrics.top_k(probs, 2)
    found = metrics.decision_metrics(truth, decided)
    for average, names in (("macro", ("CP", "CR")), ("micro", ("OP", "OR", "OF1"))):
        expected = sklearn_metrics.precision_recall_fscore_support(truth, decided, average=average, zero_division=0)
        for name, value in zip(names, expected):
            assert found[name] == pytest.approx(value, rel=1e-12)
    assert found["CF1"] == pytest.approx(2 * found["CP"] * found["CR"] / (found["CP"] + found["CR"]))
    assert found["exact match"] == pytest.approx(sklearn_metrics.accuracy_score(truth, decided))
    assert found["hamming accuracy"] == pytest.approx(1 - sklearn_metrics.hamming_loss(truth, decided))


def test_gong_et_al_by_hand():
    # Two images, three classes, two decisions each.
    truth = np.array([[1, 1, 0], [0, 1, 0]], bool)
    decided = np.array([[1, 0, 1], [1, 1, 0]], bool)
    found = metrics.decision_metrics(truth, decided)
    assert found["CP"] == pytest.approx((1 / 2 + 1 / 1) / 2)  # the third class has no label
    assert found["CR"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert (found["OP"], found["OR"]) == pytest.approx((2 / 4, 2 / 3))
    assert found["OF1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert found["N+"] == 1.0
    assert found["exact match"] == 0.0
    assert found["hamming accuracy"] == pytest.approx(1 - 3 / 6)


def test_average_precision_is_undefined_without_positives_and_left_out_of_the_mean():
    truth, probs = random_set(1)
    truth[:, 4] = False
    found = metrics.average_precisions(truth, probs)
    others = [k for k in range(7) if k != 4]
    assert np.isnan(found[4])
    expected = sklearn_metrics.average_precision_score(truth[:, others], probs[:, others])
    assert metrics.mean_of_defined(found) == pytest.approx(expected, rel=1e-12)


def test_label_ranking_leaves_out_samples_without_labels():
    truth, probs = random_set(2)
    truth[5:20] = False
    labelled = truth.any(axis=1)
    found = metrics.label_ranking(truth, probs)
    assert found["LRAP"] == sklearn_metrics.label_ranking_average_precision_score(truth[labelled], probs[labelled])
    assert found["coverage"] == sklearn_metrics.coverage_error(truth[labelled], probs[labelled])


def test_an_unknown_class_of_every_sample_is_as_if_it_were_not_there():
    truth, probs = random_set(3)
    known = np.ones(truth.shape, bool)
    known[:, 2] = False
    masked, others = truth & known, [0, 1, 3, 4, 5, 6]
    decided = probs > 0.7
    with_mask = {**metrics.ranking_metrics(masked, probs, known), **metrics.decision_metrics(masked, decided, known)}
    without = {
        **metrics.ranking_metrics(truth[:, others], probs[:, others]),
        **metrics.decision_metrics(truth[:, others], decided[:, others]),
    }
    assert with_mask == pytest.approx(without)


def test_an_unknown_sample_of_a_class_is_as_if_it_were_not_there():
    truth, probs = random_set(4)
    known = np.random.RandomState(0).rand(*truth.shape) < 0.7
    found = metrics.average_precisions(truth & known, probs, known)
    tuned = metrics.tune_thresholds(truth & known, probs, known)
    for k in range(truth.shape[1]):
        rows = known[:, k]
        assert found[k] == pytest.approx(sklearn_metrics.average_precision_score(truth[rows, k], probs[rows, k]))
        assert tuned[k] == metrics.tune_thresholds(truth[rows][:, [k]], probs[rows][:, [k]])[0]


@pytest.mark.parametrize("levels", [None, 5], ids=["all different", "many equals"])
def test_tuned_thresholds_have_the_best_f1_of_all(levels):
    truth, probs = random_set(5, samples=40)
    if levels:
        probs = np.round(probs * levels) / levels
    tuned = metrics.tune_thresholds(truth, probs, block=3)
    for k in range(truth.shape[1]):
        best = max(sklearn_metrics.f1_score(truth[:, k], probs[:, k] >= level) for level in np.unique(probs[:, k]))
        assert sklearn_metrics.f1_score(truth[:, k], probs[:, k] >= tuned[k]) == pytest.approx(best, rel=1e-12)


def test_a_class_without_positives_is_never_decided_for():
    truth, probs = random_set(6)
    truth[:, 1] = False
    tuned = metrics.tune_thresholds(truth, probs)
    assert tuned[1] == np.inf
    assert not metrics.above(probs, tuned)[:, 1].any()


def test_neighbouring_floats_are_cut_apart():
    low = 0.3
    high = np.nextafter(low, 1)
    truth, probs = np.array([[True], [False]]), np.array([[high], [low]])
    assert metrics.above(probs, metrics.tune_thresholds(truth, probs)).tolist() == [[True], [False]]


def test_tuning_228_classes_on_10000_images_takes_less_than_10_seconds():
    rng = np.random.RandomState(0)
    truth, probs = rng.rand(10000, 228) < 0.05, rng.rand(10000, 228)
    start = time.process_time()
    tuned = metrics.tune_thresholds(truth, probs)
    assert time.process_time() - start < 10
    assert np.isfinite(tuned).all()


def test_baselines_show_how_hamming_accuracy_misleads():
    truth, _ = random_set(7, samples=400, classes=20, share=0.05)
    found = metrics.baselines(truth, 2)
    assert found["all zeros"]["hamming accuracy"] == pytest.approx(1 - truth.mean())
    assert found["all zeros"]["hamming accuracy"] > 0.9
    assert found["all zeros"]["OF1"] == 0
    assert found["all zeros"]["mAP"] == pytest.approx(truth.mean(axis=0).mean())  # of constant scores: the prevalence
    frequent = np.sort(truth.sum(axis=0))[-2:]
    assert found["most frequent 2"]["OP"] == pytest.approx(frequent.sum() / (2 * len(truth)))


def test_at_least_one_answers_with_the_likeliest_class_only_where_none_is_above():
    probs = np.array([[0.1, 0.2, 0.15], [0.9, 0.8, 0.1]])
    assert metrics.above(probs, 0.5).tolist() == [[False, False, False], [True, True, False]]
    assert metrics.above(probs, 0.5, at_least_one=True).tolist() == [[False, True, False], [True, True, False]]


def test_top_k_takes_the_first_of_equals():
    assert metrics.top_k(np.array([[0.5, 0.7, 0.5, 0.5]]), 2).tolist() == [[True, True, False, False]]
