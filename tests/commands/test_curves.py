"""history.csv and curves.png."""

import json

import numpy as np
import pytest
from support.tiny_nets import make_run, rows_of

from multilabel_softmax_loss.commands.curves import smoothed
from multilabel_softmax_loss.commands.train import train


def test_history_and_curves_hold_losses_and_test_metrics(tmp_path):
    solver = make_run(tmp_path)
    summary = train(solver, out=str(tmp_path / "run"), k=2)
    rows = rows_of(tmp_path / "run")
    assert [int(row["iteration"]) for row in rows] == list(range(41))
    tested = [int(row["iteration"]) for row in rows if row["test_mAP"]]
    assert tested == [0, 10, 20, 30, 40]
    assert set(rows[0]) == {
        *("iteration", "seconds", "lr", "loss", "test_loss"),
        *("test_mAP", "test_LRAP", "test_coverage", "test_CF1@2", "test_OF1@2"),
    }
    best = max((row for row in rows if row["test_mAP"]), key=lambda row: float(row["test_mAP"]))
    assert summary["best"]["iteration"] == int(best["iteration"])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == summary["best"]


def test_the_running_mean_starts_with_the_first_loss_and_runs_neither_late_nor_high():
    falling = 10.0 - 0.01 * np.arange(1000)
    assert smoothed(falling)[:975] == pytest.approx(falling[:975], rel=1e-12)
    noise = np.random.RandomState(0).randn(1000)
    assert smoothed(noise)[50:950].std() < 0.25  # 51 values each: a seventh
    assert smoothed(noise)[0] == noise[0]
    assert smoothed(noise)[-1] == pytest.approx(noise[-26:].mean())
    assert list(smoothed([3.0])) == [3.0]
    assert list(smoothed([])) == []


def test_a_history_can_be_thinned(tmp_path, no_pictures):
    train(make_run(tmp_path, max_iter=25), out=str(tmp_path / "run"), history_every=4)
    rows = rows_of(tmp_path / "run")
    assert [int(row["iteration"]) for row in rows] == [0, 4, 8, 10, 12, 16, 20, 24, 25]  # tests at 10 and 25 too
