"""Every file in prototxt/ at work: real Caffe trains it, on data written by the Python in its comments."""

import os
from pathlib import Path

import caffe
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from support.caffe_nets import fill, input_layer

from multilabel_softmax_loss import ranking_loss, sigmoid_cross_entropy, softmax_cross_entropy
from multilabel_softmax_loss.losses.options import SoftmaxOptions
from multilabel_softmax_loss.prototxt import loss_layer

FOLDER = Path(__file__).resolve().parent.parent / "prototxt"
SNIPPETS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.prototxt"))}
N, C = 64, 20  # C is the number of classes in the snippets


# What loss_layer writes is what Caffe reads


def read_layer(text):
    net = caffe_pb2.NetParameter()
    text_format.Merge(text, net)
    (layer,) = net.layer
    return layer


@pytest.mark.parametrize("write_defaults", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_normalization": "count", "normalization": "BATCH_SIZE", "axis": -1, "empty": "error"},
        {"ignore_label": 0.1, "label_smoothing": 1e-7, "divergence": "kl", "nonfinite": "ignore"},
        {"label_format": "indices", "ignore_label": 255, "class_weight": [0, 1, 0.1, 1e-8, 1e30]},
        {"class_weight": 'it\'s a \\new "file".txt'},
        {"class_weight": np.array([0.1, 3], np.float32)},
    ],
    ids=str,
)
def test_caffe_reads_back_the_options(options, write_defaults, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('it\'s a \\new "file".txt').write_text("1 2 3")
    layer = read_layer(loss_layer(write_defaults=write_defaults, **options))
    read, given = SoftmaxOptions.parse(layer.python_param.param_str), SoftmaxOptions(**options)
    for name in SoftmaxOptions.names():
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))


def test_caffe_reads_back_names_blobs_and_loss_weights():
    blobs = ["a/b", 'quo"ted', "back\\slash"]
    layer = read_layer(loss_layer(name="it's\nhere", bottoms=blobs, tops=blobs[:2], loss_weight=0.25))
    assert (layer.type, layer.name) == ("Python", "it's\nhere")
    assert (list(layer.bottom), list(layer.top), list(layer.loss_weight)) == (blobs, blobs[:2], [0.25, 0])
    assert (layer.python_param.module, layer.python_param.layer) == (
        "multilabel_softmax_loss",
        "MultilabelSoftmaxLossLayer",
    )


# The snippets. Each case says what the comments call by a name, and what the loss must then be, from data that the
# snippet has no part in: sample k carries k in the first row of its image.


def case(make):
    """Of a snippet: the names its Python starts from, dense labels per sample, options of the function that it equals,
    and for a snippet without data layers the Input blobs that it reads besides the scores."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 255, size=(N, 3, 8, 8), dtype=np.uint8)
    images[:, :, 0, :] = np.arange(N, dtype=np.uint8)[:, None, None]
    labels = (rng.random((N, C)) < np.linspace(0.6, 0.05, C)).astype(np.float32)
    labels[3] = 0
    made = {"images": images, "labels": labels, "options": {}, "inputs": ("labels",), "loss": softmax_cross_entropy}
    return {**made, **make(rng, labels)}


def balanced(rng, labels):
    """Median-frequency weights as class_weight on plain labels: the same loss by another way."""
    counts = labels.sum(axis=0)
    return {"options": {"class_weight": np.median(counts) / counts}}


def partial(rng, labels):
    known = rng.random(labels.shape) < 0.7
    return {"given": {"known": known}, "expected": np.where(known, labels, 7), "options": {"ignore_label": 7}}


def index_lists(rng, labels):
    return {"given": {"classes": [np.flatnonzero(row) for row in labels]}, "inputs": ()}


def per_pixel(rng, labels):
    labels = rng.random((N, C, 8, 8)) < np.linspace(0.3, 0.01, C)[:, None, None]
    return {"labels": labels.astype(np.float32), "inputs": ()}


def distillation(rng, labels):
    teacher = rng.normal(size=labels.shape).astype(np.float32)
    probs = np.exp(teacher) / np.exp(teacher).sum(axis=1, keepdims=True)
    # kl is cross-entropy less the entropy of the teacher
    return {"given": {"teacher_scores": teacher}, "expected": probs, "inputs": ("teacher_scores",), "entropy": probs}


def all_options(rng, labels):
    weight = rng.random(N).astype(np.float32)
    return {"given": {"sample_weight": weight}, "weight": weight, "inputs": ("labels", "sample_weight")}


CASES = {
    "softmax_loss": lambda rng, labels: {},
    "softmax_class_balancing": balanced,
    "softmax_hdf5": lambda rng, labels: {"inputs": ()},
    "softmax_two_lmdbs": lambda rng, labels: {"inputs": ()},
    "softmax_partial_labels": partial,
    "softmax_index_lists": index_lists,
    "softmax_per_pixel": per_pixel,
    "softmax_distillation": distillation,
    "softmax_label_smoothing": lambda rng, labels: {"options": {"label_smoothing": 0.1}},
    "softmax_options": all_options,
    "sigmoid_loss": lambda rng, labels: {"loss": sigmoid_cross_entropy, "options": {"pos_weight": 3}},
    "sigmoid_focal": lambda rng, labels: {
        "loss": sigmoid_cross_entropy,
        "options": {"focal_gamma": 2, "focal_alpha": 0.25},
    },
    "sigmoid_asymmetric": lambda rng, labels: {
        "loss": sigmoid_cross_entropy,
        "options": {"focal_gamma": {"positive": 0, "negative": 4}, "negative_margin": 0.05},
    },
    "sigmoid_options": lambda rng, labels: {"loss": sigmoid_cross_entropy, **all_options(rng, labels)},
    "ranking_loss": lambda rng, labels: {"loss": ranking_loss},
    **{
        f"ranking_{ranking}": lambda rng, labels, ranking=ranking: {
            "loss": ranking_loss,
            "options": {"ranking": ranking},
        }
        for ranking in ("warp", "lsep", "zlpr")
    },
    "ranking_options": lambda rng, labels: {"loss": ranking_loss, **all_options(rng, labels)},
}


def test_every_snippet_has_a_case():
    # solver.prototxt trains them all.
    assert sorted(SNIPPETS) == sorted([*CASES, "solver"])


def python_of(snippet):
    """The Python in a snippet's comments: their lines indented by five spaces, and `#` alone."""
    lines = [line for line in snippet.splitlines() if line.startswith("#     ") or line == "#"]
    return "\n".join(line[6:] for line in lines)


def write_net(name, made):
    """train.prototxt and the snippet's data, all in the current folder."""
    text = SNIPPETS[name]
    names = {"np": np, "images": made["images"], "labels": made["labels"], **made.get("given", {})}
    python = python_of(text)
    exec(python, names)
    if "train" in python:
        exec(python.replace("train", "test"), {**names, "labels": made["labels"]})
    else:
        blobs = {"data": names["images"] / np.float32(255), **{blob: names[blob] for blob in made["inputs"]}}
        made["blobs"] = blobs
        head = "".join(input_layer(blob, array.shape) for blob, array in blobs.items())
        head += (
            'layer { name: "scores" type: "InnerProduct" bottom: "data" top: "scores" '
            f'inner_product_param {{ num_output: {C} weight_filler {{ type: "xavier" }} }} }}\n'
        )
        text = head + text
    Path("train.prototxt").write_text(text, encoding="utf-8")


def get_solver(made):
    Path("solver.prototxt").write_text(SNIPPETS["solver"], encoding="utf-8")
    solver = caffe.get_solver("solver.prototxt")
    for net in (solver.net, solver.test_nets[0]):
        if "blobs" in made:
            fill(net, made["blobs"])
    return solver


def samples_of(net):
    """Which samples are in the batch."""
    return np.round(net.blobs["data"].data[:, 0, 0, 0] * 255).astype(int)


def expected_loss(net, made):
    """Loss and gradient by the function, from the scores in the net and the dense labels of the case."""
    samples = samples_of(net)
    expected = made.get("expected", made["labels"])[samples]
    weight = made["weight"][samples] if "weight" in made else None
    loss, gradient = made["loss"](net.blobs["scores"].data, expected, weight, **made["options"])
    if "entropy" in made:
        probs = made["entropy"][samples]
        loss += (probs * np.log(probs)).sum() / len(probs)
    return loss, gradient


@pytest.mark.parametrize("name", CASES)
def test_a_snippet_computes_its_loss_and_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = case(CASES[name])
    write_net(name, made)
    solver = get_solver(made)
    seen = set()
    for net in (solver.net, solver.test_nets[0]):
        for _ in range(2):  # in the second batch a shift between images and labels would show
            loss = float(net.forward()["loss"])
            net.backward()
            expected = expected_loss(net, made)
            assert loss == pytest.approx(expected[0], rel=1e-5)
            seen.update(samples_of(net))
            if net is solver.net:  # the TEST phase keeps no gradient of its own, and test_in_caffe.py covers it
                largest = np.abs(expected[1]).max()
                np.testing.assert_allclose(net.blobs["scores"].diff, expected[1], rtol=0, atol=1e-5 * largest)
    assert len(seen) >= 8

    weights = {layer: params[0].data.copy() for layer, params in solver.net.params.items()}
    losses = []
    for _ in range(30):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
    assert np.mean(losses[-5:]) < 0.98 * np.mean(losses[:5])
    learning = {layer for layer in weights if (name, layer) != ("softmax_per_pixel", "scores")}  # bilinear, lr_mult 0
    moved = {layer for layer in weights if np.abs(solver.net.params[layer][0].data - weights[layer]).max() > 1e-3}
    assert moved == learning


def test_the_student_that_equals_its_teacher_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = case(distillation)
    write_net("softmax_distillation", made)
    net = get_solver(made).net
    net.params["scores"][0].data[...] = 0
    net.params["scores"][1].data[...] = made["given"]["teacher_scores"][0]
    net.blobs["teacher_scores"].data[...] = made["given"]["teacher_scores"][0]
    assert float(net.forward()["loss"]) == pytest.approx(0, abs=1e-6)
    net.backward()
    assert np.abs(net.blobs["scores"].diff).max() < 1e-8


def test_a_teacher_in_the_net_keeps_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {**case(distillation), "inputs": ()}
    teacher = """layer { name: "teacher" type: "InnerProduct" bottom: "data" top: "teacher_scores"
        param { lr_mult: 0 } param { lr_mult: 0 }
        inner_product_param { num_output: 20 weight_filler { type: "gaussian" std: 0.1 } } }
        """
    monkeypatch.setitem(SNIPPETS, "softmax_distillation", teacher + SNIPPETS["softmax_distillation"])
    write_net("softmax_distillation", made)
    solver = get_solver(made)
    before = [solver.net.params[layer][0].data.copy() for layer in ("scores", "teacher")]
    solver.step(20)
    assert np.abs(solver.net.params["scores"][0].data - before[0]).max() > 1e-3
    np.testing.assert_array_equal(solver.net.params["teacher"][0].data, before[1])


def test_a_temperature_softens_student_and_teacher(tmp_path, monkeypatch):
    """As the comment says: scales of 1 / T and loss_weight T * T, here with T = 2."""
    made = case(distillation)
    softened = SNIPPETS["softmax_distillation"].replace("scale: 1 ", "scale: 0.5 ")
    assert softened.count("scale: 0.5 ") == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SNIPPETS, "softmax_distillation", softened.replace("loss_weight: 1", "loss_weight: 4"))
    write_net("softmax_distillation", made)
    net = get_solver(made).net
    net.forward()
    net.backward()
    teacher = np.exp(made["given"]["teacher_scores"] / 2)
    probs = teacher / teacher.sum(axis=1, keepdims=True)
    _, gradient = softmax_cross_entropy(net.blobs["scores"].data / 2, probs)
    np.testing.assert_allclose(net.blobs["scores"].diff, 4 / 2 * gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())


def test_the_solver_reads_sgd_as_its_comment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    solver = caffe_pb2.SolverParameter()
    text_format.Merge(SNIPPETS["solver"], solver)
    assert (solver.type, solver.solver_mode, solver.net) == ("Adam", caffe_pb2.SolverParameter.CPU, "train.prototxt")
    made = case(CASES["softmax_loss"])
    write_net("softmax_loss", made)
    solver.type, solver.base_lr = "SGD", 0.01
    solver.ClearField("momentum2")
    monkeypatch.setitem(SNIPPETS, "solver", text_format.MessageToString(solver))
    trained = get_solver(made)
    trained.net.forward()
    before = float(trained.net.blobs["loss"].data)
    trained.step(10)
    assert float(trained.net.forward()["loss"]) < 0.97 * before
    assert not [path for path in os.listdir(".") if path.endswith(".caffemodel")]  # snapshots are far apart
