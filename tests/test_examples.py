"""Every example, run for a few seeded steps as a reader would run it; then what the digits example promises."""

import functools
import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import caffe
import cv2
import h5py
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from sklearn.metrics import average_precision_score

from multilabel_softmax_loss.commands.outputs import net_outputs
from multilabel_softmax_loss.commands.predict import predict

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGITS = EXAMPLES / "digits"
RANKINGS = ["pairwise", "warp", "lsep", "zlpr"]
LOSSES = ["softmax", "sigmoid", "focal", "asymmetric", *RANKINGS, "caffe-sigmoid", "caffe-single"]
METRICS = ["mAP", "LRAP", "precision@1", "macro F1", "micro F1"]
BALANCED = ["softmax", "softmax class_weight", "softmax labels", "sigmoid", "sigmoid class_weight"]
BALANCED += ["sigmoid pos_weight", "focal", "asymmetric"]
# A process of its own, since the number of threads is fixed when Caffe is imported.
FEW_CANVASES = """
import ast, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import solve
solve.data.SPLITS = ast.literal_eval(sys.argv[2])
from multilabel_softmax_loss.commands import curves
curves.draw_curves = lambda *arguments: None  # test_curves.py looks at them
"""
SMALL_SPLITS = {"train": ("train", 800), "tune": ("train", 100), "test": ("test", 100)}


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


@pytest.fixture(scope="session")
def compare(tmp_path_factory):
    """A function that runs the digits example's comparison on few canvases, once: its folders, and what it printed."""

    @functools.lru_cache(maxsize=None)
    def compare_once(imbalanced):
        output = tmp_path_factory.mktemp("digits")
        code = FEW_CANVASES + f"solve.compare([5], {2 if imbalanced else 20}, Path({str(output)!r}), {imbalanced})"
        if imbalanced:  # one loss for each way to balance is enough
            code = code.replace("solve.compare", f"[solve.net.LAYERS.pop(name) for name in {RANKINGS}]; solve.compare")
        command = [sys.executable, "-c", code, str(DIGITS), str(SMALL_SPLITS)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return SimpleNamespace(folder=output / ("seed5-imbalanced" if imbalanced else "seed5"), stdout=printed)

    return compare_once


@pytest.fixture(scope="session")
def digits_runs(compare):
    """Folders of the results of the digits example, by loss."""
    return {loss: compare(False).folder / loss for loss in LOSSES}


def read(path):
    return json.loads(path.read_text())


def read_canvases(folder, split):
    with h5py.File(str(folder.parent / f"{split}.h5"), "r") as file:
        return {name: values[:] for name, values in file.items()}


@pytest.mark.parametrize("example", sorted(path.parent for path in EXAMPLES.glob("*/solve.py")), ids=lambda p: p.name)
def test_example_has_the_usual_files_and_trains(example, run):
    assert {"README.md", "net.py", "solver.prototxt"} <= {path.name for path in example.iterdir()}
    assert list(run(example).output.rglob("*.caffemodel"))


# The benchmark


@pytest.fixture(scope="session")
def benchmark_modules():
    sys.path.insert(0, str(EXAMPLES / "benchmark"))
    modules = {name: importlib.import_module(name) for name in ("benchmark", "report")}
    sys.path.remove(str(EXAMPLES / "benchmark"))
    return modules


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A function that runs the benchmark briefly: what it printed. Its `output` is the folder it writes into."""
    output = tmp_path_factory.mktemp("benchmark")

    def run(*arguments):
        script = EXAMPLES / "benchmark" / "benchmark.py"
        usual = ["--shapes", "64x20", "--seconds", "0.01", "--threads", "1", "--output", str(output)]
        return subprocess.run([sys.executable, str(script), *usual, *arguments], capture_output=True, text=True)

    run.output = output
    return run


@pytest.fixture(scope="session")
def benchmark(bench):
    process = bench()
    assert (process.returncode, process.stderr) == (0, "")
    return SimpleNamespace(results=read(bench.output / "benchmark.json"), stdout=process.stdout, output=bench.output)


def test_the_benchmark_times_every_contender_in_both_regimes_and_states(benchmark):
    times = benchmark.results["shapes"]["64x20"]
    cells = {(regime, state): times[regime][state] for regime in times for state in times[regime]}
    assert set(cells) == {(r, s) for r in ("in training", "back to back") for s in ("untrained", "trained")}
    for measured in cells.values():
        assert set(measured) == {
            *(
                f"ours, {name}, 1 thread"
                for name in ("softmax", "softmax, dense label", "softmax, several labels", "sigmoid")
            ),
            *(f"{name}, 1 thread" for name in ("SoftmaxWithLoss", "SigmoidCrossEntropyLoss", "loop layer")),
            "ours, softmax without numba, 1 thread",
        }
        for name, entry in measured.items():
            assert 0 < entry["min"] <= entry["median"]
            assert name in benchmark.stdout
    assert_shows_something(benchmark.output / "benchmark.png")


def test_the_benchmark_says_how_long_it_takes_and_goes_on_where_it_was(benchmark, bench, benchmark_modules):
    assert re.match(r"About \d+ (min \d+ )?s, .* a table follows for each of 1 shapes\.\n", benchmark.stdout)
    assert not (bench.output / "unfinished.json").exists()
    settings = benchmark_modules["benchmark"].settings_of(SimpleNamespace(seconds=0.01, torch=None), 1)
    unfinished = {"settings": settings, "shapes": benchmark.results["shapes"]}
    (bench.output / "unfinished.json").write_text(json.dumps(unfinished))
    again = bench()
    assert again.stdout.startswith(f"Going on from {bench.output / 'unfinished.json'}: 64x20 measured already.\n")
    assert read(bench.output / "benchmark.json") == benchmark.results


@pytest.mark.parametrize("most", [80, 120, 134])
def test_the_benchmarks_table_fits_the_terminal(benchmark, benchmark_modules, most):
    shown = benchmark_modules["report"].table("64x20", benchmark.results["shapes"]["64x20"], most)
    assert max(map(len, shown.splitlines())) <= most
    assert shown.count("untrained") == 2


def test_the_benchmark_starts_anew_where_the_sources_have_changed(benchmark, benchmark_modules):
    module = benchmark_modules["benchmark"]
    path = benchmark.output / "unfinished.json"
    path.write_text(json.dumps({"settings": {"sources": "a"}, "shapes": {"64x20": {}}}))
    assert module.read_unfinished(path, {"sources": "a"}) == {"64x20": {}}
    assert module.read_unfinished(path, {"sources": "b"}) == {}
    path.write_text('{"settings": ')  # torn
    assert module.read_unfinished(path, {"sources": "a"}) == {}
    path.unlink()
    assert module.read_unfinished(path, {"sources": "a"}) == {}


def test_the_benchmark_fills_its_tables_into_the_readmes(benchmark, benchmark_modules, tmp_path):
    (tmp_path / "examples" / "benchmark").mkdir(parents=True)
    for name in ("README.md", "examples/benchmark/README.md"):
        (tmp_path / name).write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    benchmark_modules["report"].write_readmes(benchmark.results, tmp_path)
    table = (tmp_path / "README.md").read_text()
    times = benchmark.results["shapes"]["64x20"]["in training"]["trained"]
    dense = times["ours, softmax, dense label, 1 thread"]["median"]  # as the loop layer has it
    ratio = times["loop layer, 1 thread"]["median"] / dense
    assert f" | {ratio:.0f}x |\n<!-- end of speed -->\nafter\n" in table
    assert "old" not in table
    everything = (tmp_path / "examples" / "benchmark" / "README.md").read_text()
    assert benchmark.stdout.split("\n\n")[1].split("\n(")[0] in everything


@pytest.mark.parametrize(
    "seconds, text",
    [
        (59.1e-6, "59.1 us"),
        (9.99e-7, "1.00 us"),
        (0.99951e-3, "1.00 ms"),
        (426e-6, "426 us"),
        (0.0235, "23.5 ms"),
        (235, "235 s"),
    ],
)
def test_times_have_three_digits_and_a_unit_that_fits(benchmark_modules, seconds, text):
    assert benchmark_modules["report"].duration(seconds) == text


@pytest.mark.parametrize("loss", LOSSES)
def test_report_holds_every_metric(digits_runs, loss):
    report = read(digits_runs[loss] / "metrics.json")
    assert (report["loss"], report["seed"], report["iterations"]) == (loss, 5, 20)
    assert set(report["metrics"]) == {*METRICS, "rare AP", "other AP"}
    assert all(0 < value < 1 for value in report["metrics"].values())


@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps_lower_the_loss(digits_runs, loss):
    losses = read(digits_runs[loss] / "metrics.json")["history"]["train_loss"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_saved_model_is_the_trained_one(digits_runs):
    folder = digits_runs["softmax"]
    net = caffe.Net(str(folder / "test.prototxt"), str(folder / "digits.caffemodel"), caffe.TEST)
    labels = read_canvases(folder, "test")["label"]
    probs = []
    for _ in range(0, len(labels), net.blobs["probs"].data.shape[0]):
        net.forward()
        probs.append(net.blobs["probs"].data.copy())
    report = read(folder / "metrics.json")
    assert average_precision_score(labels, np.concatenate(probs)) == pytest.approx(report["metrics"]["mAP"], rel=1e-6)


def test_deployed_net_answers_for_image_files_as_for_canvases(run):
    """Eight bits per pixel change the probabilities a little."""
    folder = run(DIGITS).output / "seed5" / "softmax"
    images = [str(folder / "canvases" / f"{k}.png") for k in range(6)]
    probs = net_outputs(str(folder / "test.prototxt"), str(folder / "digits.caffemodel")).probs
    stored = read_canvases(folder, "test")["data"][:, 0]
    answers = predict(str(folder / "deploy.prototxt"), str(folder / "digits.caffemodel"), images, top_k=10)
    for image, answer in zip(images, answers):
        canvas = cv2.imread(image, cv2.IMREAD_GRAYSCALE) / 255
        row = int(np.argmin(np.abs(stored - canvas).sum(axis=(1, 2))))
        found = {int(label["class"]): label["score"] for label in answer["labels"]}
        assert [found[k] for k in range(10)] == pytest.approx(list(probs[row]), abs=0.01)


@pytest.mark.parametrize("name", ["curves.png", "predictions.png"])
def test_pictures_show_something(run, name):
    assert_shows_something(run(DIGITS).output / "seed5" / "softmax" / name)


@pytest.mark.parametrize("loss", ["focal", "warp"])
def test_pictures_of_other_losses_show_something(digits, digits_runs, tmp_path, loss):
    canvases, history = (
        read_canvases(digits_runs[loss], "test"),
        read(digits_runs[loss] / "metrics.json")["history"],
    )
    digits.figures.draw_curves(tmp_path / "curves.png", history, loss, canvases["label"])
    values = np.linspace(*((-3, 9) if loss == "warp" else (0, 1)), canvases["label"].size)
    arrays = canvases["data"][:, 0], canvases["label"], values.reshape(canvases["label"].shape)
    digits.figures.draw_predictions(tmp_path / "predictions.png", *arrays, 0.5, loss)
    for path in tmp_path.iterdir():
        assert_shows_something(path)


def assert_shows_something(path):
    picture = cv2.imread(str(path))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10


def test_second_run_gives_the_same_numbers(digits_runs, tmp_path):
    code = FEW_CANVASES + "solve.run('softmax', None, 5, 20, solve.data.write_splits(Path(sys.argv[3]), 5), draw=False)"
    subprocess.run([sys.executable, "-c", code, str(DIGITS), str(SMALL_SPLITS), str(tmp_path)], check=True)
    assert read(tmp_path / "softmax" / "metrics.json") == read(digits_runs["softmax"] / "metrics.json")


def test_sigmoid_loss_trains_as_caffes_does(digits_runs):
    ours, caffes = (read(digits_runs[loss] / "metrics.json")["history"] for loss in ("sigmoid", "caffe-sigmoid"))
    np.testing.assert_allclose(ours["train_loss"], caffes["train_loss"], rtol=1e-4)


def test_comparison_prints_what_each_loss_reached(compare, digits_runs):
    for loss in LOSSES:
        metrics = read(digits_runs[loss] / "metrics.json")["metrics"]
        cells = " | ".join(f"{metrics[name]:.3f}" for name in METRICS)
        assert f"| {loss} | {cells} |" in compare(False).stdout.splitlines()


def test_an_interrupted_comparison_goes_on_where_it_was(digits, monkeypatch, capsys, tmp_path):
    measured = []

    def pretend(loss, balance, seed, *_, **__):
        if len(measured) == 14:
            raise KeyboardInterrupt
        measured.append((loss, seed))
        return dict.fromkeys(METRICS, seed + len(loss) / 100), None

    monkeypatch.setattr(digits, "run", pretend)
    monkeypatch.setattr(digits, "source_folder_of", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        digits.compare([1, 2], 1200, tmp_path, imbalanced=False)
    shown = capsys.readouterr().out
    assert shown.startswith("20 of 20 runs to go, about 18 min; ")
    assert "\n14 of 20 done, about 0 s left\n" in shown
    kept, measured[:] = list(measured), []
    digits.compare([1, 2], 1200, tmp_path, imbalanced=False)
    shown = capsys.readouterr().out
    assert shown.startswith("6 of 20 runs to go, about 5 min 24 s; ")
    assert sorted(kept + measured) == sorted((loss, seed) for loss in LOSSES for seed in (1, 2))
    assert "| softmax | 1.570 ± 0.500 |" in shown
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_zoo_goes_on_where_it_was(monkeypatch, capsys, tmp_path):
    import zoo

    asked = []

    def pretend(cage, batch):
        asked.append(cage.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return SimpleNamespace(verdict="fail" if cage in zoo.DEFECTS else "pass", warnings=[], names=[])

    for name, cages in (("DEFECTS", zoo.DEFECTS[:2]), ("WARNED", []), ("RIGHT", zoo.RIGHT[:1]), ("UNTELLABLE", [])):
        monkeypatch.setattr(zoo, name, cages)
    monkeypatch.setattr(zoo, "ours", pretend)
    monkeypatch.setattr(zoo, "by_child", lambda *_: "pass")
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--short", "--output", str(tmp_path / "kept")])
    with pytest.raises(KeyboardInterrupt):
        zoo.main()
    assert capsys.readouterr().err == "3 of 3 layers to go, about 3 s\n"
    assert zoo.main() == 0
    shown = capsys.readouterr()
    assert shown.err == "1 of 3 layers to go, about 1 s\n"
    assert asked == [cage.name for cage in [*zoo.DEFECTS, *zoo.RIGHT * 2]]
    assert [line.split("`")[1] for line in shown.out.splitlines() if "`" in line] == asked[:3]
    assert "this checker 3 of 3, Caffe's criterion 1 of 3" in shown.out
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_comparison_of_other_sources_or_settings_starts_anew(digits, tmp_path):
    path = tmp_path / "unfinished.json"
    path.write_text(json.dumps({"sources": "a", "measured": {"softmax, seed 0": {}}}))
    assert digits.read_unfinished(path, {"sources": "a"}) == {"softmax, seed 0": {}}
    assert digits.read_unfinished(path, {"sources": "b"}) == {}
    path.write_text('{"sources": ')  # torn
    assert digits.read_unfinished(path, {"sources": "a"}) == {}


def test_imbalanced_comparison_prints_what_each_way_reached(compare):
    for name in BALANCED:
        metrics = read(compare(True).folder / name.replace(" ", "-") / "metrics.json")["metrics"]
        cells = " | ".join(f"{metrics[metric]:.3f}" for metric in ("mAP", "rare AP", "other AP"))
        loss, _, balance = name.partition(" ")
        assert f"| {loss} | {balance} | {cells} |" in compare(True).stdout.splitlines()
    mean = (3 * metrics["rare AP"] + 7 * metrics["other AP"]) / 10
    assert mean == pytest.approx(metrics["mAP"], rel=1e-12)


@pytest.mark.parametrize("name", BALANCED)
def test_class_weights_reach_the_loss(compare, name):
    folder = compare(True).folder / name.replace(" ", "-")
    canvases = read_canvases(folder, "train")
    counts = canvases["label"].sum(axis=0)
    weights = counts.max() / counts
    assert weights[[2, 5, 8]].min() > 8  # of 20 on average
    assert weights[[0, 1, 3, 4, 6, 7, 9]].max() < 1.5
    np.testing.assert_allclose(canvases["weighted"], canvases["label"] * weights, rtol=1e-6)

    parameters = text_format.Parse((folder / "train.prototxt").read_text(), caffe_pb2.NetParameter())
    options = json.loads(parameters.layer[-1].python_param.param_str)
    balance = name.partition(" ")[2]
    assert parameters.layer[0].top[1] == ("weighted" if balance == "labels" else "label")
    assert {"class_weight", "pos_weight"} & set(options) == {balance} - {"", "labels"}
    if balance in options:
        np.testing.assert_allclose(options[balance], weights, rtol=1e-6)


def test_only_training_is_imbalanced(compare, digits_runs):
    imbalanced = compare(True).folder / "softmax"
    for split in ("tune", "test"):
        plain, other = (read_canvases(folder, split) for folder in (digits_runs["softmax"], imbalanced))
        for name in ("data", "label"):
            np.testing.assert_array_equal(plain[name], other[name])


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
        pytest.param(["--balance", "pos_weight"], "expected one of class_weight, labels with", id="not for softmax"),
        pytest.param(["--loss", "focal", "--balance", "labels"], "expected none with --loss focal", id="not for focal"),
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


def test_many_classes_are_compared_by_precision_and_recall(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "index_lists"))
    example = importlib.import_module("compare")
    monkeypatch.setattr(example, "CLASSES", 30)
    monkeypatch.setattr(example, "SPLITS", {"train": 600, "test": 200})
    measured = example.compare([0], 60, ["softmax", "warp"])
    for figures in (measured["softmax"][0], measured["warp"][0]):
        assert figures["precision@1"] > 0.6  # guessing comes to 0.15
        # Each sample has the same number of answers, so k times the precision grows as the recall does.
        ratios = [k * figures[f"precision@{k}"] / figures[f"recall@{k}"] for k in example.KS]
        assert ratios == pytest.approx([ratios[0]] * 3)  # the labels per sample
    assert example.table(measured).splitlines()[3].startswith(f"| warp | {measured['warp'][0]['precision@1']:.3f} |")
