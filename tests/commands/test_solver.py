"""The solver and its nets: what is refused before the first iteration, and what Caffe's own loop would compute."""

import caffe
import numpy as np
import pytest
from support.tiny_nets import OURS, body, listing, make_labels, make_run, weights_of, write_lmdb, write_solver

from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.errors import UsageError


def test_without_chance_the_weights_are_those_of_caffes_own_loop(tmp_path, no_pictures):
    solver = make_run(tmp_path, shuffle=False, dropout=False)
    summary = train(solver)
    plain = caffe.get_solver(solver)
    plain.step(40)
    for (name, k), values in weights_of(summary["weights"]).items():
        assert np.array_equal(plain.net.params[name][k].data.ravel(), values.astype(np.float32))


@pytest.mark.parametrize("lengths", [(20, 18), (20, 0)])
def test_lmdbs_that_are_no_pair_are_told(tmp_path, lengths):
    x, y = make_labels(np.random.RandomState(0), 20)
    net = "".join(
        f'layer {{ name: "{top}" type: "Data" top: "{top}" data_param {{ source: "{source}" batch_size: 8 '
        "backend: LMDB } }\n"
        for top, source in (
            ("data", write_lmdb(tmp_path / "x", x[: lengths[0]])),
            ("label", write_lmdb(tmp_path / "y", y[: lengths[1]])),
        )
    )
    (tmp_path / "net.prototxt").write_text(net + body() + OURS % "")
    message = "is an empty set" if 0 in lengths else r"different lengths: {'data': 20, 'label': 18}; expected one label"
    with pytest.raises(UsageError, match=message):
        train(write_solver(tmp_path, tmp_path / "net.prototxt", test=False), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


INPUT = 'layer { name: "%s" type: "Input" top: "%s" input_param { shape { dim: 8 dim: %d } } }\n'


def test_a_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path, test=False)
    net = tmp_path / "train_val.prototxt"
    net.write_text(INPUT % ("data", "data", 5) + INPUT % ("label", "label", 6) + body() + OURS % "")
    before = listing(tmp_path)
    message = "train_val.prototxt: nothing feeds the Input blob 'data' of the TRAIN net, which is all zeros. Expected"
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    fields = 'input: "data" input: "label" input_shape { dim: 8 dim: 5 } input_shape { dim: 8 dim: 6 }\n'
    net.write_text(fields + body() + OURS % "")
    before["train_val.prototxt"] = net.read_bytes()
    with pytest.raises(UsageError, match=message):
        train(solver, out=str(tmp_path / "run"))
    assert listing(tmp_path) == before


def test_a_test_net_that_nothing_feeds_is_refused(tmp_path):
    solver = make_run(tmp_path)
    net = tmp_path / "train_val.prototxt"
    rule = " include { phase: TEST } input_param"
    inputs = (INPUT % ("x", "data", 5) + INPUT % ("y", "label", 6)).replace(" input_param", rule)
    net.write_text(inputs + net.read_text().replace("phase: TEST }", 'phase: TEST stage: "never" }'))
    with pytest.raises(UsageError, match="nothing feeds the Input blob 'data' of the TEST net"):
        train(solver, out=str(tmp_path / "run"))


def test_zeros_beside_data_are_a_warning(tmp_path, capsys, no_pictures):
    solver = make_run(tmp_path, test=False, max_iter=1)
    net = tmp_path / "train_val.prototxt"
    silence = 'layer { name: "silence" type: "Silence" bottom: "state" }\n'
    net.write_text(net.read_text() + INPUT % ("state", "state", 5) + silence)
    train(solver, out=str(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "train: warning: " in said
    assert "nothing feeds the Input blob 'state' of the TRAIN net, which is all zeros.\n" in said
