"""Every example, run for a few seeded steps as a reader would run it; then what the digits example promises."""

import functools
import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from multilabel_softmax_loss.evaluate import net_outputs
from multilabel_softmax_loss.predict import predict

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGITS = EXAMPLES / "digits"
LOSSES = ["softmax", "sigmoid", "single"]
METRICS = {"mAP", "LRAP", "precision@1", "macro F1", "micro F1"}


def solve(example, *arguments):
    """The finished process of an example's solve.py; `stdout` and `stderr` are text."""
    command = [sys.executable, str(example / "solve.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A function that runs an example for 20 steps, once: its `output` folder, and what it printed as `stdout`."""

    @functools.lru_cache(maxsize=None)
    def run_once(example, *arguments):
        output = tmp_path_factory.mktemp(example.name)
        process = solve(example, "--iterations", 20, "--seed", 5, "--output", output, *arguments)
        assert process.returncode == 0, process.stdout + process.stderr
        return SimpleNamespace(output=output, stdout=process.stdout)

    return run_once


@pytest.fixture(scope="session")
def comparison(run):
    """The digits example with all its losses, on the same canvases."""
    return run(DIGITS, "--compare", "--seeds", 5)


@pytest.fixture(scope="session")
def digits_runs(comparison):
    """Folders of the results of the digits example, by loss."""
    return {loss: comparison.output / "seed5" / loss for loss in LOSSES}


@pytest.fixture(scope="session")
def digits():
    """The example's solve.py as a module; its `data` is the module data.py."""
    sys.path.insert(0, str(DIGITS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib calls what its parser library is about to drop
        module = importlib.import_module("solve")
    sys.path.remove(str(DIGITS))
    for name in ("solve", "net", "data", "figures"):
        sys.modules.pop(name)  # other examples have files of these names
    return module


def read(path):
    return json.loads(path.read_text())


def read_canvases(folder, split):
    with h5py.File(str(folder.parent / f"{split}.h5"), "r") as file:
        return {name: values[:] for name, values in file.items()}


@pytest.mark.parametrize("example", sorted(path.parent for path in EXAMPLES.glob("*/solve.py")), ids=lambda p: p.name)
def test_example_has_the_usual_files_and_trains(example, run):
    assert {"README.md", "net.py", "solver.prototxt"} <= {path.name for path in example.iterdir()}
    assert list(run(example).output.rglob("*.caffemodel"))


@pytest.mark.parametrize("loss", LOSSES)
def test_report_holds_every_metric(digits_runs, loss):
    report = read(digits_runs[loss] / "metrics.json")
    assert (report["loss"], report["seed"], report["iterations"]) == (loss, 5, 20)
    assert set(report["metrics"]) == METRICS
    assert all(0 < value < 1 for value in report["metrics"].values())


@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps_lower_the_loss(digits_runs, loss):
    losses = read(digits_runs[loss] / "metrics.json")["history"]["train_loss"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_saved_model_is_the_trained_one(digits_runs):
    folder = digits_runs["softmax"]
    _, probs, _, _ = net_outputs(str(folder / "test.prototxt"), str(folder / "digits.caffemodel"))
    labels = read_canvases(folder, "test")["label"]
    report = read(folder / "metrics.json")
    assert average_precision_score(labels, probs) == pytest.approx(report["metrics"]["mAP"], rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_deployed_net_finds_on_image_files_what_it_finds_on_canvases(digits_runs, loss):
    """Eight bits per pixel change the probabilities a little."""
    folder = digits_runs[loss]
    images = [str(folder / "canvases" / f"{k}.png") for k in range(6)]
    canvases = [cv2.imread(image, cv2.IMREAD_GRAYSCALE) / 255 for image in images]
    _, probs, _, _ = net_outputs(str(folder / "test.prototxt"), str(folder / "digits.caffemodel"))
    if loss == "single":  # its test nets end in the softmax loss
        assert "Softmax" in (folder / "test.prototxt").read_text()
    stored = read_canvases(folder, "test")["data"][:, 0]
    for answer, canvas in zip(
        predict(str(folder / "deploy.prototxt"), str(folder / "digits.caffemodel"), images, top_k=10), canvases
    ):
        row = int(np.argmin(np.abs(stored - canvas).sum(axis=(1, 2))))
        found = {int(label["class"]): label["score"] for label in answer["labels"]}
        assert [found[k] for k in range(10)] == pytest.approx(list(probs[row]), abs=0.01)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["curves.png", "predictions.png"])
def test_pictures_show_something(digits_runs, loss, name):
    picture = cv2.imread(str(digits_runs[loss] / name))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10


def test_second_run_gives_the_same_numbers(run, digits_runs):
    alone = run(DIGITS).output / "seed5" / "softmax"
    assert read(alone / "metrics.json") == read(digits_runs["softmax"] / "metrics.json")


def test_comparison_prints_what_each_loss_reached(comparison, digits_runs):
    for loss in LOSSES:
        values = read(digits_runs[loss] / "metrics.json")["metrics"].values()
        cells = " | ".join(f"{value:.3f} ± 0.000" for value in values)
        assert f"| {loss} | {cells} |" in comparison.stdout.splitlines()


def test_no_digit_is_in_both_splits(digits):
    splits = digits.data.split_digits(seed=5)
    train, test = ({image.tobytes() for image in splits[name][0]} for name in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not train & test


@pytest.mark.parametrize("split, source", [("train", "train"), ("tune", "train"), ("test", "test")])
def test_labels_name_the_digits_drawn_from_the_splits_own_source(digits_runs, digits, split, source):
    _, classes = digits.data.split_digits(seed=5)[source]
    canvases = read_canvases(digits_runs["softmax"], split)
    for label, single, rows in zip(canvases["label"], canvases["single"], canvases["digits"]):
        drawn = rows[rows >= 0]
        assert 1 <= len(drawn) <= 4
        assert set(np.flatnonzero(label)) == set(classes[drawn])
        assert label[single] == 1


def test_canvas_shows_each_digit_it_names(digits, monkeypatch):
    monkeypatch.setattr(digits.data, "NOISE", 0)
    monkeypatch.setattr(digits.data, "OVERLAP", 0)  # now every digit is there as it was, only fainter
    images, classes = digits.data.split_digits(seed=5)["test"]
    canvases = digits.data.make_canvases(images, classes, 100, np.random.default_rng(5))
    for canvas, rows in zip(canvases["data"], canvases["digits"]):
        for image in images[rows[rows >= 0]]:
            assert cv2.matchTemplate(canvas[0], image, cv2.TM_CCORR_NORMED).max() > 0.9999


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param(["--loss", "hinge"], "invalid choice: 'hinge'", id="unknown loss"),
        pytest.param(["--iterations", "0"], "'0' is not a whole number from 1 up", id="no iterations"),
        pytest.param(["--output", __file__], "cannot write into", id="output is a file"),
        pytest.param(["--output", "with space"], "white space", id="path that Caffe would cut"),
    ],
)
def test_bad_input_is_one_line_and_status_2(digits, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["solve.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        digits.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_missing_dependency_is_named():
    code = "import sys; sys.modules['h5py'] = None; sys.path.insert(0, sys.argv[1]); import solve"
    process = subprocess.run([sys.executable, "-c", code, str(DIGITS)], stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2
    assert "h5py" in process.stderr
    assert "make environment" in process.stderr
    assert "Traceback" not in process.stderr
