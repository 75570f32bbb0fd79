"""Train a net on canvases of one to four handwritten digits in Caffe, measure it, and draw what it says.

    solve.py                                        # this package's multi-label softmax loss
    solve.py --loss sigmoid                         # its sigmoid cross-entropy; also focal, asymmetric
    solve.py --loss pairwise                        # its ranking losses: pairwise, warp, lsep, zlpr
    solve.py --loss caffe-sigmoid                   # Caffe's SigmoidCrossEntropyLoss
    solve.py --loss caffe-single                    # Caffe's SoftmaxWithLoss on one label per canvas, picked at random
    solve.py --compare --seeds 0 1 2                # all of them, as a markdown table
    solve.py --imbalanced                           # some digits are 20 times rarer in training
    solve.py --imbalanced --balance class_weight    # and class weights make up for it
    solve.py --imbalanced --compare                 # every way to make up for it, as a markdown table

Caffe reads the canvases from HDF5 files, which are made on the way.
"""

import argparse
import hashlib
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

    import multilabel_softmax_loss
    from multilabel_softmax_loss.commands.deploy import deploy
    from multilabel_softmax_loss.commands.history import read_history
    from multilabel_softmax_loss.commands.outputs import net_outputs
    from multilabel_softmax_loss.commands.predict import predict
    from multilabel_softmax_loss.commands.report import evaluation
    from multilabel_softmax_loss.commands.terminal import duration
    from multilabel_softmax_loss.commands.train import Diverged, train
    from multilabel_softmax_loss.errors import UsageError
except ImportError as error:
    stop(f"{error}. Run `make environment`, then .venv/bin/python {os.path.relpath(__file__)}")

TRAIN_BATCH, TEST_BATCH = 32, 100
SECONDS_PER_ITERATION = 0.045  # with what comes after training, on one core of a server
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
# How well the digits are found that are rare in imbalanced training, and the others.
RARE_METRICS = {
    "mAP": METRICS["mAP"],
    "rare AP": "average precision, rare digits",
    "other AP": "average precision, other digits",
}


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


def write_nets(folder, source_folder, loss, balance):
    """Write train.prototxt, tune.prototxt and test.prototxt into `folder`; returns their paths by split.

    Testing asks for all labels of a canvas, as 0 and 1, also where training is told a single one or weights.
    """
    paths = {}
    weights = data.class_weights(read_split(source_folder, "train", "label"))
    for split in data.SPLITS:
        training = split == "train"
        parameters = net.digits_net(
            source=str(source_folder / f"{split}.txt"),
            batch_size=TRAIN_BATCH if training else TEST_BATCH,
            loss="softmax" if loss == "caffe-single" and not training else loss,
            probs=not training,
            balance=balance if training or balance != "labels" else None,
            class_weights=weights.tolist(),
        )
        paths[split] = folder / f"{split}.prototxt"
        paths[split].write_text(str(parameters))
    return paths


def read_split(source_folder, split, name):
    with h5py.File(source_folder / f"{split}.h5", "r") as file:
        return file[name][:]


def best_threshold(labels, probs, loss):
    """The decision rule: a class is on the canvas if its probability exceeds this number, that of the best micro F1.

    Of RANKINGS, whose scores may lie anywhere, it is one of the scores.
    """
    thresholds = np.unique(probs) if loss in net.RANKINGS else np.arange(1, 100) / 100
    hits, found = (
        np.array([np.count_nonzero(of > threshold) for threshold in thresholds]) for of in (probs[labels == 1], probs)
    )
    return float(thresholds[np.argmax(2 * hits / (found + labels.sum()))])


def measure(labels, probs, threshold):
    """Metrics of probs (N, 10) against labels (N, 10), from what `evaluate` makes of them."""
    report = evaluation(labels, probs, ks=[1], thresholds=np.full(data.CLASSES, threshold))
    first, decided = report["metrics"]["net, top 1"], report["metrics"]["net, thresholds"]
    precisions = np.array([entry["AP"] for entry in report["per_class"]])
    rare = np.isin(np.arange(data.CLASSES), data.RARE)
    return {
        "mAP": first["mAP"],
        "rare AP": precisions[rare].mean(),
        "other AP": precisions[~rare].mean(),
        "LRAP": first["LRAP"],
        "precision@1": first["OP"],  # the share of canvases whose most probable class is on them
        "macro F1": float(np.mean([entry["F1 (thresholds)"] for entry in report["per_class"]])),
        "micro F1": decided["OF1"],
    }


def learning_curves(folder):
    """The run as lists: `train_loss` of each iteration; `iteration`, `test_loss` and `mAP` of each test."""
    rows = read_history(str(folder / "run" / "history.csv")).rows
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


def run(loss, balance, seed, iterations, source_folder, draw=True):
    """Train with `loss`, write everything into its folder below `source_folder`, and return (metrics, folder).

    `draw` says whether the pictures, too, the deploy net, and its answers to image files.
    """
    name = variant_name(loss, balance)
    folder = source_folder / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    nets = write_nets(folder, source_folder, loss, balance)
    solver = write_solver(folder, nets, iterations, seed)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "preprocessing.json").write_text(json.dumps(PREPROCESSING) + "\n")
    trained = train(str(solver), preprocessing=str(folder / "preprocessing.json"))
    if trained["interrupted"]:
        raise KeyboardInterrupt
    weights = str(folder / "digits.caffemodel")
    shutil.copyfile(trained["weights"], weights)

    tuning = net_outputs(str(nets["tune"]), weights)
    threshold = best_threshold(tuning.truth, tuning.probs, loss)
    outputs = net_outputs(str(nets["test"]), weights)
    labels, probs = outputs.truth, outputs.probs
    metrics = measure(labels, probs, threshold)
    history = learning_curves(folder)
    report = {"loss": name, "seed": seed, "iterations": iterations, "threshold": threshold, "metrics": metrics}
    (folder / "metrics.json").write_text(json.dumps(dict(report, history=history), indent=1) + "\n")
    if draw:
        labels = read_split(source_folder, "test", "label")
        figures.draw_curves(folder / "curves.png", history, name, labels)
        canvases = read_split(source_folder, "test", "data")[:, 0]
        figures.draw_predictions(folder / "predictions.png", canvases, labels, probs, threshold, loss)
        deploy(str(nets["test"]), str(folder / "deploy.prototxt"), weights)
        images = write_canvases(folder / "canvases", canvases[figures.choose(labels, probs > threshold)])
        answer_images(folder, weights, images, threshold)
    return metrics, folder


def answer_images(folder, weights, images, threshold):
    """Print what the deployed net finds on image files."""
    for answer in predict(str(folder / "deploy.prototxt"), weights, images, threshold=threshold, at_least_one=True):
        found = "  ".join(f"{label['class']} {label['score']:.3f}" for label in answer["labels"])
        print(f"{os.path.relpath(answer['image'], folder)}: {found}")


def variant_name(loss, balance):
    return f"{loss} {balance}" if balance else loss


def source_folder_of(output, seed, imbalanced):
    return data.write_splits(output / f"seed{seed}{'-imbalanced' if imbalanced else ''}", seed, imbalanced)


def compare(seeds, iterations, output, imbalanced):
    """Losses on the same canvases, seed by seed; prints mean and standard deviation as a markdown table.

    All losses; or, on imbalanced canvases, this package's with every way to make up for the imbalance. What an
    interrupted comparison of the same sources has measured is not measured again.
    """
    variants = [(loss, None) for loss in net.LOSSES]
    columns = METRICS
    if imbalanced:
        variants = [(loss, balance) for loss in net.LAYERS for balance in (None, *net.BALANCES.get(loss, ()))]
        columns = RARE_METRICS
    unfinished = output / "unfinished.json"
    settings = {"iterations": iterations, "imbalanced": imbalanced, "sources": digest_of_sources()}
    measured = read_unfinished(unfinished, settings)
    runs = [(seed, *variant) for seed in seeds for variant in variants]
    left = [run for run in runs if run_name(*run) not in measured]
    estimate = len(left) * iterations * SECONDS_PER_ITERATION
    print(f"{len(left)} of {len(runs)} runs to go, about {duration(estimate)}; {unfinished} keeps them", flush=True)
    started = time.time()
    for number, (seed, loss, balance) in enumerate(left):
        print(f"\n{run_name(seed, loss, balance)}", flush=True)
        source_folder = source_folder_of(output, seed, imbalanced)
        measured[run_name(seed, loss, balance)], _ = run(loss, balance, seed, iterations, source_folder, draw=False)
        unfinished.write_text(json.dumps(dict(settings, measured=measured)))
        rest = (time.time() - started) / (number + 1) * (len(left) - number - 1)
        print(f"{number + 1} of {len(left)} done, about {duration(rest)} left", flush=True)
    print_comparison(seeds, variants, columns, measured)
    unfinished.unlink()


def run_name(seed, loss, balance):
    return f"{variant_name(loss, balance)}, seed {seed}"


def digest_of_sources():
    """Changes with the sources of the package and of this example."""
    digest = hashlib.sha256(repr(data.SPLITS).encode())
    for path in sorted([*Path(multilabel_softmax_loss.__file__).parent.rglob("*.py"), *HERE.glob("*.p*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_unfinished(path, settings):
    """The metrics by run that an interrupted comparison of these settings has left."""
    try:
        found = json.loads(path.read_text())
        measured = found.pop("measured")
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return measured if found == settings else {}


def print_comparison(seeds, variants, columns, measured):
    balances = any(balance for _, balance in variants)
    heads = ["`--loss`", *(["`--balance`"] if balances else []), *columns]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for loss, balance in variants:
        values = [[measured[run_name(seed, loss, balance)][name] for name in columns] for seed in seeds]
        cells = [loss, *([balance or ""] if balances else [])]
        spreads = [f" ± {spread:.3f}" if len(seeds) > 1 else "" for spread in np.std(values, axis=0)]
        cells += [f"{mean:.3f}{spread}" for mean, spread in zip(np.mean(values, axis=0), spreads)]
        print(f"| {' | '.join(cells)} |")


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
    rare = ", ".join(map(str, data.RARE))
    parser.add_argument("--imbalanced", action="store_true", help=f"digits {rare} {data.RARER} times rarer in training")
    balances = sorted({balance for allowed in net.BALANCES.values() for balance in allowed})
    parser.add_argument("--balance", choices=balances, help="where the class weights go (default: nowhere)")
    parser.add_argument("--compare", action="store_true", help="train with all losses and print a table")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="for --compare (default 0 1 2)")
    arguments = parser.parse_args()
    allowed = net.BALANCES.get(arguments.loss, ())
    if arguments.balance and arguments.balance not in allowed:
        expected = f"one of {', '.join(allowed)}" if allowed else "none"
        parser.error(f"--balance is {arguments.balance}; expected {expected} with --loss {arguments.loss}")
    return arguments


def main():
    started = time.time()
    arguments = parse_arguments()
    iterations = arguments.iterations or read_solver().max_iter
    try:
        if arguments.compare:
            compare(arguments.seeds, iterations, arguments.output, arguments.imbalanced)
        else:
            source_folder = source_folder_of(arguments.output, arguments.seed, arguments.imbalanced)
            metrics, folder = run(arguments.loss, arguments.balance, arguments.seed, iterations, source_folder)
            name = variant_name(arguments.loss, arguments.balance)
            print(f"\n{name} loss, seed {arguments.seed}: {data.SPLITS['test'][1]} test canvases")
            titles = dict(METRICS, **RARE_METRICS) if arguments.imbalanced else METRICS
            for metric, title in titles.items():
                print(f"  {title:<34} {metrics[metric]:.4f}")
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
