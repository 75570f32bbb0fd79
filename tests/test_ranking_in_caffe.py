"""The ranking layer in real Caffe: what the function says, its gradient, its one top, and the commands around it."""

import json

import numpy as np
import pytest
from support.caffe_nets import loss_and_gradient, loss_net, random_scores
from support.tiny_nets import OURS, make_run

from multilabel_softmax_loss import assert_gradient, check_layer, ranking_loss

RANKINGS = ["pairwise", "warp", "lsep", "zlpr"]
LAYER = "MultilabelRankingLossLayer"


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("shape", [(6, 9), (3, 5, 4, 4)], ids=["rows", "maps"])
def test_the_layer_is_the_function(ranking, shape):
    labels = (random_scores(shape, seed=1) > 1).astype(np.float32)
    arrays = {"scores": random_scores(shape), "labels": labels, "weight": np.linspace(0, 2, shape[0])}
    net = loss_net(arrays, param_str=f'{{"ranking": "{ranking}"}}', layer=LAYER, loss_weight="loss_weight: 3")
    loss, gradient = loss_and_gradient(net)
    expected_loss, expected = ranking_loss(*arrays.values(), ranking=ranking)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    np.testing.assert_allclose(gradient, 3 * expected, rtol=0, atol=6e-7 * np.abs(expected).max())


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_checker_finds_its_gradient_right(ranking):
    labels = (random_scores((8, 12), seed=1) > 1).astype(np.float32)
    bottoms = [random_scores((8, 12)), labels]
    assert_gradient(check_layer("multilabel_softmax_loss", LAYER, bottoms, param_str=f'{{"ranking": "{ranking}"}}'))


def test_a_second_top_is_refused_with_the_reason():
    arrays = {"scores": random_scores((2, 3)), "labels": np.eye(2, 3)}
    with pytest.raises(ValueError, match="it has 2 tops; expected 1 .the loss; rankings know scores, and no prob"):
        loss_net(arrays, tops=("loss", "probs"), loss_weight="loss_weight: 1 loss_weight: 0", layer=LAYER)


def test_the_commands_rank_by_its_scores_and_deploy_leaves_them(tmp_path, run_here):
    loss = (OURS % '{"ranking": "zlpr"}').replace("MultilabelSoftmaxLossLayer", LAYER)
    make_run(tmp_path, loss=loss)
    trained = run_here("train", "solver.prototxt", folder=tmp_path, check=0).stdout
    assert "Best test_mAP" in trained
    (tmp_path / "zero.json").write_text(json.dumps({"probabilities": "none", "thresholds": [0.0] * 6}))
    words = ("evaluate", "train_val.prototxt", "run/best.caffemodel", "--thresholds", "zero.json")
    scored = run_here(*words, folder=tmp_path, check=0).stdout
    assert float(scored.split("net, top 3")[1].split()[0]) > 0.8  # 0.3 of the samples have a class
    assert float(scored.split("net, thresholds")[1].split()[8]) > 0.7  # OF1 of what scores above 0
    words = ("deploy", "train_val.prototxt", "--weights", "run/best.caffemodel")
    told = run_here(*words, folder=tmp_path, check=0).stdout
    assert "the training net's scores, " in told
    assert "Written: deploy.prototxt; it leaves 'scores' as they are, and makes no probabilities of them" in told
    deployed = (tmp_path / "deploy.prototxt").read_text()
    assert 'type: "Softmax"' not in deployed
    assert 'type: "Sigmoid"' not in deployed
    assert deployed.rindex("name:") == deployed.rindex('name: "scores"')
