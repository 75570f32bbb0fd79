"""The split keeps the share of each class, and copies of one image on one side."""

import numpy as np
import pytest
from support import sources

from multilabel_softmax_loss.data.source import Labels
from multilabel_softmax_loss.data.split import duplicates, stratified


def make_labels(images=4000, classes=30, seed=0):
    rng = np.random.RandomState(seed)
    shares = np.minimum(1.5 / np.arange(1, classes + 1), 0.6)
    truth = rng.rand(images, classes) < shares
    rows, columns = np.nonzero(truth)
    start = np.searchsorted(rows, np.arange(images + 1))
    names = [str(k) for k in range(classes)]
    return truth, Labels([""] * images, names, start, columns, np.ones(len(rows), np.float32), 0.0)


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_each_class_keeps_its_share(share):
    truth, labels = make_labels()
    drawn = stratified(labels, share, [], seed=0)
    assert drawn.mean() == pytest.approx(share, abs=0.005)
    found = truth[drawn].sum(axis=0) / truth.sum(axis=0)
    by_chance = truth[np.random.RandomState(1).rand(len(truth)) < share].sum(axis=0) / truth.sum(axis=0)
    assert np.abs(found - share).max() < 0.01 < np.abs(by_chance - share).max()


def test_groups_stay_together_and_the_seed_decides():
    _, labels = make_labels(500)
    groups = [[0, 7, 9], [1, 2], list(range(100, 140))]
    draws = [stratified(labels, 0.2, groups, seed) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    for drawn in draws:
        assert all(len(set(drawn[group])) == 1 for group in groups)
    assert not stratified(labels, 0.0, groups, 0).any()


def test_copies_are_found_by_content(tmp_path):
    contents = [b"a" * 9000, b"b" + b"a" * 8999, b"a" * 9000, b"c", b"", b"", b"c"]
    paths = []
    for k, content in enumerate(contents):
        paths.append(str(tmp_path / str(k)))
        (tmp_path / str(k)).write_bytes(content)
    paths.append(sources.write_text(tmp_path / "x" / "other", "c"))
    paths += [str(tmp_path / "missing"), "a\0name"]
    assert duplicates(paths) == [[0, 2], [3, 6, 7]]
