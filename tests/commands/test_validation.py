"""The tests of a run: their metrics, and which of them is best."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_nets import OURS, SIGMOID, make_labels, make_run, rows_of, write_hdf5

from multilabel_softmax_loss.commands.train import Diverged, train
from multilabel_softmax_loss.commands.validation import Best
from multilabel_softmax_loss.errors import UsageError


def test_test_metrics_are_those_that_evaluate_gives(tmp_path, no_pictures):
    from multilabel_softmax_loss.commands.outputs import net_outputs
    from multilabel_softmax_loss.commands.report import evaluation

    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    net.write_text(net.read_text().replace("batch_size: 10", "batch_size: 37"))
    Path(solver).write_text(Path(solver).read_text().replace("test_iter: 4", "test_iter: 1"))
    summary = train(solver, out=str(tmp_path / "run"))
    truth, probs, known, _ = net_outputs(str(net), summary["weights"])
    expected = evaluation(truth, probs, known)["metrics"]["net, top 3"]
    last = rows_of(tmp_path / "run")[-1]
    for column, name in (("test_mAP", "mAP"), ("test_LRAP", "LRAP"), ("test_coverage", "coverage")):
        assert float(last[column]) == pytest.approx(expected[name], rel=1e-7)
    assert float(last["test_CF1@3"]) == pytest.approx(expected["CF1"], rel=1e-7)


def test_best_is_by_the_chosen_metric_and_smaller_where_that_is_better(tmp_path, no_pictures):
    solver = make_run(tmp_path)
    summary = train(solver, out=str(tmp_path / "run"), best_by="loss")
    tested = {int(row["iteration"]): float(row["test_loss"]) for row in rows_of(tmp_path / "run") if row["test_loss"]}
    assert summary["best"]["metric"] == "test_loss"
    assert summary["best"]["iteration"] == min(tested, key=tested.get)


def test_a_test_net_that_meets_nan_first_ends_the_run_with_its_last_good_snapshot(tmp_path, no_pictures):
    import h5py

    solver = make_run(tmp_path)
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        file["data"][35] = np.nan
    with pytest.raises(
        Diverged, match=r"test at iteration 0: .*scores.* has nan[^\0]*last good snapshot is kept: .*_0"
    ):
        train(solver, out=str(tmp_path / "run"))


def test_test_labels_without_a_positive_are_said(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, max_iter=3)
    x, y = make_labels(np.random.RandomState(0), 37)
    write_hdf5(tmp_path / "test", data=x, label=0 * y)
    train(solver, out=str(tmp_path / "run"))
    assert "The TEST net's 'label' holds no positive label in 40 samples: no mAP." in capsys.readouterr().out


def test_of_two_losses_the_metrics_are_those_of_the_one_that_weighs_most(tmp_path, capsys, no_pictures):
    second = SIGMOID.replace('"loss"', '"second"').replace("}\n", "loss_weight: 2 }\n")
    train(make_run(tmp_path, loss=OURS % "" + second, max_iter=3), out=str(tmp_path / "run"))
    assert "The TEST net has 2 losses; the metrics are those of 'scores', by sigmoid." in capsys.readouterr().out
    assert rows_of(tmp_path / "run")[-1]["test_mAP"]


def test_equal_weights_have_equal_figures_whatever_was_tested_before(tmp_path, no_pictures):
    solver = make_run(tmp_path, base_lr=0, max_iter=4)  # 3 x 10 of 37 samples: the next test would begin amid them
    text = Path(solver).read_text().replace("test_iter: 4", "test_iter: 3").replace("l: 10", "l: 1")
    Path(solver).write_text(text)
    net = tmp_path / "train_val.prototxt"
    shuffled = net.read_text().replace("batch_size: 10 shuffle: false", "batch_size: 10 shuffle: true")
    net.write_text(shuffled)
    train(solver, out=str(tmp_path / "run"))
    tests = [{name: row[name] for name in row if name.startswith("test")} for row in rows_of(tmp_path / "run")]
    assert len(tests) == 5
    assert all(test == tests[0] for test in tests)
    assert float(tests[0]["test_loss"]) > 0


@pytest.mark.parametrize(
    "test_iter, words",
    [
        pytest.param(3, "= 30 samples of the 37 that there are: 7 are never tested. test_iter 4 reaches all", id="few"),
        pytest.param(4, "= 40 samples of the 37 that there are: 3 count more than once", id="many"),
    ],
)
def test_samples_that_a_test_leaves_out_or_counts_twice_are_said(tmp_path, capsys, no_pictures, test_iter, words):
    solver = make_run(tmp_path, max_iter=1)
    Path(solver).write_text(Path(solver).read_text().replace("test_iter: 4", f"test_iter: {test_iter}"))
    train(solver, out=str(tmp_path / "run"))
    assert words in capsys.readouterr().out


METRIC = """import caffe

class Metric(caffe.Layer):
    def setup(self, bottom, top): pass
    def reshape(self, bottom, top): top[0].reshape()
    def forward(self, bottom, top): top[0].data[...] = 1
    def backward(self, *arguments): pass
"""


def add_outputs(folder):
    """Outputs whose names tell nothing, or lie: an Accuracy, losses of all kinds, and one that nobody knows."""
    (folder / "own_metric.py").write_text(METRIC)
    target = 'layer { name: "t" type: "%s" bottom: "scores" bottom: "label" top: "%s" %s }\n'
    own = 'python_param { module: "own_metric" layer: "Metric" }'
    net = folder / "train_val.prototxt"
    net.write_text(
        net.read_text()
        + 'layer { name: "arg" type: "ArgMax" bottom: "label" top: "class" argmax_param { axis: 1 } }\n'
        + 'layer { name: "a" type: "Accuracy" bottom: "scores" bottom: "class" top: "loss3/top-1" }\n'
        + target % ("EuclideanLoss", "score", "")
        + target % ("EuclideanLoss", "mse", "loss_weight: 0")
        + target % ("Python", "own_loss", f"loss_weight: 0.5 {own}")
        + target % ("Python", "own", own)
    )


@pytest.mark.parametrize(
    "best_by, better",
    [
        pytest.param("loss3/top-1", "higher", id="Accuracy"),
        pytest.param("score", "lower", id="loss"),
        pytest.param("mse", "lower", id="loss that is not descended"),
        pytest.param("own_loss", "lower", id="Python layer with loss_weight"),
        pytest.param("test_coverage", "lower", id="metric"),
        pytest.param("own:higher", "higher", id="as told"),
        pytest.param("own:lower", "lower", id="as told, lower"),
        pytest.param(None, "higher", id="mAP by default"),
    ],
)
def test_what_is_better_is_told_by_the_layer_that_makes_it(tmp_path, monkeypatch, no_pictures, best_by, better):
    solver = make_run(tmp_path, max_iter=1)
    add_outputs(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(solver, out=str(tmp_path / "run"), best_by=best_by)["best"]["better"] == better


def test_where_nothing_tells_what_is_better_train_asks(tmp_path, monkeypatch):
    solver = make_run(tmp_path)
    add_outputs(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="expected --best-by own:lower or --best-by own:higher"):
        train(solver, out=str(tmp_path / "run"), best_by="own")
    assert not (tmp_path / "run").exists()


def test_best_without_a_known_column_is_none_and_says_so(capsys):
    best = Best({"test_own": None}, None, "solver.prototxt")
    assert best.update({"test_own": 1.0}, 0) is None
    assert "--best-by own:lower or own:higher does" in capsys.readouterr().out


def test_a_resumed_best_is_of_the_same_direction():
    lower, higher = (Best({"test_own": None}, f"own:{way}", "solver.prototxt") for way in ("lower", "higher"))
    higher.resume(lower.update({"test_own": 1.0}, 0))
    assert higher.record is None


@pytest.fixture
def soft_run(tmp_path, no_pictures):
    """A run's solver whose labels are 0.05 and 0.95."""
    solver = make_run(tmp_path, max_iter=60, dropout=False)
    for name, samples, seed in (("train", 90, 0), ("test", 40, 1)):
        x, y = make_labels(np.random.RandomState(seed), samples)
        write_hdf5(tmp_path / name, data=x, label=(0.05 + 0.9 * y).astype(np.float32))
    return solver


def test_soft_labels_leave_the_loss_as_figure_and_that_is_said_once(soft_run, tmp_path, capsys):
    summary = train(soft_run, out=str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert said.count("No metrics of the TEST net: blob 'label' holds labels from 0.05 to 0.95") == 1
    rows = [row for row in rows_of(tmp_path / "run") if row["test_loss"]]
    assert not any(row["test_mAP"] for row in rows)
    assert summary["best"]["metric"] == "test_loss"
    assert summary["best"]["value"] == pytest.approx(min(float(row["test_loss"]) for row in rows), rel=1e-6)
    assert summary["best"]["iteration"] > 0
    Path(soft_run).write_text(Path(soft_run).read_text().replace("max_iter: 60", "max_iter: 61"))
    resumed = train(soft_run, out=str(tmp_path / "run"), resume=True)["best"]
    assert resumed["metric"] == "test_loss"
    assert resumed["value"] <= summary["best"]["value"]


def test_soft_labels_with_a_cut_have_metrics(soft_run, tmp_path):
    summary = train(soft_run, out=str(tmp_path / "run"), positive_above=0.5)
    assert summary["best"]["metric"] == "test_mAP"
    assert summary["best"]["iteration"] > 0


def test_a_metric_asked_for_that_soft_labels_do_not_have_is_refused(soft_run, tmp_path):
    with pytest.raises(UsageError, match="--best-by mAP: the test has no such figure"):
        train(soft_run, out=str(tmp_path / "run"), best_by="mAP")


def test_test_labels_that_the_loss_may_not_be_given_end_the_run(tmp_path, no_pictures):
    solver = make_run(tmp_path, loss=SIGMOID)
    x, y = make_labels(np.random.RandomState(1), 37)
    y[30, 2] = -1
    write_hdf5(tmp_path / "test", data=x, label=y)
    with pytest.raises(UsageError, match="blob 'label' holds -1 .*expected labels from 0 to 1"):
        train(solver, out=str(tmp_path / "run"))
