"""Train a net on canvases of one to four handwritten digits in Caffe, measure it, and draw what it says.

solve.py                                 # this package's multi-label softmax loss
solve.py --loss sigmoid                  # Caffe's SigmoidCrossEntropyLoss in its place
solve.py --loss single                   # Caffe's SoftmaxWithLoss on one label per canvas, picked at random
solve.py --compare --seeds 0 1 2         # all three, as a markdown table
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def stop(message):
    print(f"solve.py: {message}", file=sys.stderr)
    sys.exit(2)


os.environ.setdefault("GLOG_minloglevel", "2")  # Caffe's log would drown the progress bar
# With one thread the sums do not depend on the number of cores, and matrices this small gain little from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import data
    import figures
    import h5py
    import net
    import numpy as np
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format
    from sklearn.metrics import f1_score

    from multilabel_softmax_loss.deploy import deploy
    from multilabel_softmax_loss.evaluate import evaluation, net_outputs
    from multilabel_softmax_loss.native import UsageError
    from multilabel_softmax_loss.predict import predict
    from multilabel_softmax_loss.snapshots import read_history
    from multilabel_softmax_loss.train import Diverged, train
except ImportError as error:
    stop(f"{error}. Run `make environment`, then .venv/bin/python {os.path.relpath(__file__)}")

TRAIN_BATCH, TEST_BATCH = 32, 100
EVALUATIONS = 12  # of the test canvases while training, but none sooner than 10 iterations after another

WRITTEN = (
    *("digits.caffemodel", "deploy.prototxt", "preprocessing.json", "metrics.json", "curves.png", "predictions.png"),
    *("run", "canvases"),
)
METRICS = {
    "mAP": "mAP, mean average precision",
    "LRAP": "label-ranking average precision",
    "precision@1": "precision@1",
    "macro F1": "per-class F1 (macro)",
    "micro F1": "overall F1 (micro)",
}
# Pixels of an image file, 0 to 255, as the canvases were in training.
PREPROCESSING = {"mean": 0, "scale": 1 / 255, "channels": "GRAY"}


def read_solver():
    return text_format.Parse((HERE / "solver.prototxt").read_text(), caffe_pb2.SolverParameter())


def write_solver(folder, nets, iterations, seed):
    """The solver of solver.prototxt for the nets at `nets`, written into `folder`; returns its path."""
    parameters = read_solver()
    parameters.train_net = str(nets["train"])
    parameters.test_net.append(str(nets["test"]))
    parameters.test_iter.append(data.SPLITS["test"][1] // TEST_BATCH)
    parameters.test_interval = max(10, iterations // EVALUATIONS)
    parameters.test_initialization = False
    parameters.random_seed = seed
    parameters.max_iter = iterations
    parameters.snapshot_prefix = str(folder / "run" / "digits")
    path = folder / "solver.prototxt"
    path.write_text(str(parameters))
    return path


def write_nets(folder, source_folder, loss):
    """Write train.prototxt, tune.prototxt and test.prototxt into `folder`; returns their paths by split.

    All labels of a canvas are asked for in testing, also where training is told a single one.
    """
    paths = {}
    for split in data.SPLITS:
        training = split == "train"
        parameters = net.digits_net(
            source=str(source_folder / f"{split}.txt"),
            batch_size=TRAIN_BATCH if training else TEST_BATCH,
            loss="softmax" if loss == "single" and not training else loss,
        )
        paths[split] = folder / f"{split}.prototxt"
        paths[split].write_text(str(parameters))
    return paths


def read_split(source_folder, split, name):
    with h5py.File(source_folder / f"{split}.h5", "r") as file:
        return file[name][:]


def best_threshold(labels, probs):
    """The decision rule: a class is on the canvas if its probability exceeds this number, that of the best micro F1."""
    return max(
        (round(0.01 * k, 2) for k in range(1, 100)),
        key=lambda threshold: f1_score(labels, probs > threshold, average="micro", zero_division=0),
    )


def measure(labels, probs, threshold):
    """Metrics of probs (N, 10) against labels (N, 10), from what `evaluate` makes of them."""
    report = evaluation(labels, probs, ks=[1], thresholds=np.full(labels.shape[1], threshold))
    first, decided = report["metrics"]["net, top 1"], report["metrics"]["net, thresholds"]
    return {
        "mAP": first["mAP"],
        "LRAP": first["LRAP"],
        "precision@1": first["OP"],  # the share of canvases whose most probable class is on them
        "macro F1": float(np.mean([entry["F1 (thresholds)"] for entry in report["per_class"]])),
        "micro F1": decided["OF1"],
    }


def learning_curves(folder):
    """The run as lists: `train_loss` of each iteration; `iteration`, `test_loss` and `mAP` of each test."""
    rows = read_history(str(folder / "run" / "history.csv"))[1]
    tested = [row for row in rows if "test_mAP" in row]
    return {
        "train_loss": [row["loss"] for row in rows if "loss" in row],
        "iteration": [row["iteration"] for row in tested],
        "test_loss": [row["test_loss"] for row in tested],
        "mAP": [row["test_mAP"] for row in tested],
    }


def write_canvases(folder, canvases):
    """Canvases (N, 28, 28) in [0, 1] as image files; returns their paths."""
    import cv2

    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{k}.png") for k in range(len(canvases))]
    for path, canvas in zip(paths, canvases):
        cv2.imwrite(path, np.round(255 * canvas).astype(np.uint8))
    return paths


def run(loss, seed, iterations, source_folder):
    """Train with `loss`, write everything into its folder below `source_folder`, and return (metrics, folder)."""
    folder = source_folder / loss
    folder.mkdir(exist_ok=True)
    nets = write_nets(folder, source_folder, loss)
    solver = write_solver(folder, nets, iterations, seed)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "preprocessing.json").write_text(json.dumps(PREPROCESSING) + "\n")
    trained = train(str(solver), preprocessing=str(folder / "preprocessing.json"))
    if trained["interrupted"]:
        raise KeyboardInterrupt
    weights = str(folder / "digits.caffemodel")
    shutil.copyfile(trained["weights"], weights)

    threshold = best_threshold(*net_outputs(str(nets["tune"]), weights)[:2])
    labels, probs, _, _ = net_outputs(str(nets["test"]), weights)
    metrics = measure(labels, probs, threshold)
    history = learning_curves(folder)
    report = {"loss": loss, "seed": seed, "iterations": iterations, "threshold": threshold, "metrics": metrics}
    (folder / "metrics.json").write_text(json.dumps(dict(report, history=history), indent=1) + "\n")
    figures.draw_curves(folder / "curves.png", history, loss, labels)
    canvases = read_split(source_folder, "test", "data")[:, 0]
    figures.draw_predictions(folder / "predictions.png", canvases, labels, probs, threshold, loss)

    deploy(str(nets["test"]), str(folder / "deploy.prototxt"), weights)
    images = write_canvases(folder / "canvases", canvases[figures.choose(labels, probs > threshold)])
    for answer in predict(str(folder / "deploy.prototxt"), weights, images, threshold=threshold, at_least_one=True):
        found = "  ".join(f"{label['class']} {label['score']:.3f}" for label in answer["labels"])
        print(f"{os.path.relpath(answer['image'], folder)}: {found}")
    return metrics, folder


def compare(seeds, iterations, output):
    """All losses on the same canvases, seed by seed; prints mean and standard deviation as a markdown table."""
    rows = {loss: [] for loss in net.LOSSES}
    for seed in seeds:
        source_folder = data.write_splits(output / f"seed{seed}", seed)
        for loss in net.LOSSES:
            print(f"{loss}, seed {seed}", flush=True)
            metrics, _ = run(loss, seed, iterations, source_folder)
            rows[loss].append([metrics[name] for name in METRICS])
    print(f"\n| `--loss` | {' | '.join(METRICS)} |\n|---{'|---' * len(METRICS)}|")
    for loss, values in rows.items():
        cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(np.mean(values, axis=0), np.std(values, axis=0))]
        print(f"| {loss} | {' | '.join(cells)} |")


def whole(least):
    """A converter for argparse: whole numbers from `least` up."""

    def convert(text):
        if not text.isdigit() or not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return convert


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=net.LOSSES, default="softmax", help="default softmax")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the canvases and of the weights (default 0)")
    parser.add_argument("--iterations", type=whole(1), help="default: max_iter of solver.prototxt")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder to write into")
    parser.add_argument("--compare", action="store_true", help="train with all three losses and print a table")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="for --compare (default 0 1 2)")
    return parser.parse_args()


def main():
    started = time.time()
    arguments = parse_arguments()
    iterations = arguments.iterations or read_solver().max_iter
    try:
        if arguments.compare:
            compare(arguments.seeds, iterations, arguments.output)
        else:
            source_folder = data.write_splits(arguments.output / f"seed{arguments.seed}", arguments.seed)
            metrics, folder = run(arguments.loss, arguments.seed, iterations, source_folder)
            print(f"\n{arguments.loss} loss, seed {arguments.seed}: {data.SPLITS['test'][1]} test canvases")
            for name, title in METRICS.items():
                print(f"  {title:<34} {metrics[name]:.4f}")
            print(f"Written to {folder}: {', '.join(WRITTEN)}")
        print(f"Took {time.time() - started:.0f} s.")
    except OSError as error:
        stop(f"cannot write into {arguments.output}: {error}")
    except (UsageError, Diverged) as error:
        stop(error)
    except KeyboardInterrupt:
        stop("interrupted")


if __name__ == "__main__":
    main()
