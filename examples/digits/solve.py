"""Train a net on canvases of one to four handwritten digits in Caffe, measure it, and draw what it says.

    solve.py                                        # this package's multi-label softmax loss
    solve.py --loss sigmoid                         # its sigmoid cross-entropy; focal: its focal loss
    solve.py --loss caffe-sigmoid                   # Caffe's SigmoidCrossEntropyLoss
    solve.py --loss caffe-single                    # Caffe's SoftmaxWithLoss on one label per canvas, picked at random
    solve.py --compare --seeds 0 1 2                # all five, as a markdown table
    solve.py --imbalanced                           # some digits are 20 times rarer in training
    solve.py --imbalanced --balance class_weight    # and class weights make up for it
    solve.py --imbalanced --compare                 # every way to make up for it, as a markdown table

Caffe reads the canvases from HDF5 files, which are made on the way.
"""

import argparse
import json
import os
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
    import caffe
    import data
    import figures
    import h5py
    import net
    import numpy as np
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format
    from sklearn.metrics import (
        average_precision_score,
        f1_score,
        label_ranking_average_precision_score,
        precision_score,
    )
    from tqdm import tqdm

    import multilabel_softmax_loss  # noqa: F401, Caffe imports it by name and would not say what is missing
except ImportError as error:
    stop(f"{error}. Run `make environment`, then .venv/bin/python {os.path.relpath(__file__)}")

TRAIN_BATCH, TEST_BATCH = 32, 100
EVALUATIONS = 12  # of the test canvases while training, but none sooner than 10 iterations after another

WRITTEN = ("digits.caffemodel", "metrics.json", "curves.png", "predictions.png")
METRICS = {
    "mAP": "mAP, mean average precision",
    "LRAP": "label-ranking average precision",
    "precision@1": "precision@1",
    "macro F1": "per-class F1 (macro)",
    "micro F1": "overall F1 (micro)",
}
# How well the digits are found that are rare in imbalanced training, and the others.
RARE_METRICS = {
    "mAP": METRICS["mAP"],
    "rare AP": "average precision, rare digits",
    "other AP": "average precision, other digits",
}


def read_solver():
    return text_format.Parse((HERE / "solver.prototxt").read_text(), caffe_pb2.SolverParameter())


def make_solver(folder, nets, iterations, seed):
    """The solver of solver.prototxt for the train net at `nets`, also written into `folder`."""
    parameters = read_solver()
    parameters.train_net = str(nets["train"])
    parameters.random_seed = seed
    parameters.max_iter = iterations
    path = folder / "solver.prototxt"
    path.write_text(str(parameters))
    caffe.set_mode_cpu()
    return caffe.get_solver(str(path))


def write_nets(folder, source_folder, loss, balance):
    """Write train.prototxt, tune.prototxt and test.prototxt into `folder`; returns their paths by split."""
    paths = {}
    weights = data.class_weights(read_split(source_folder, "train", "label"))
    for split in data.SPLITS:
        training = split == "train"
        parameters = net.digits_net(
            source=str(source_folder / f"{split}.txt"),
            batch_size=TRAIN_BATCH if training else TEST_BATCH,
            loss=loss,
            probs=not training,
            balance=balance,
            class_weights=weights.tolist(),
        )
        paths[split] = folder / f"{split}.prototxt"
        paths[split].write_text(str(parameters))
    return paths


def read_split(source_folder, split, name):
    with h5py.File(source_folder / f"{split}.h5", "r") as file:
        return file[name][:]


def predict(test_net, count):
    """The next `count` canvases of a test net: probs (count, 10) float32, and the mean loss."""
    probs, losses = [], []
    for _ in range(count // TEST_BATCH):
        test_net.forward()
        probs.append(test_net.blobs["probs"].data.copy())
        losses.append(float(test_net.blobs["loss"].data))
    return np.concatenate(probs), float(np.mean(losses))


def best_threshold(labels, probs):
    """The decision rule: a class is on the canvas if its probability exceeds this number, that of the best micro F1."""
    thresholds = np.arange(1, 100) / 100
    hits, found = (
        np.array([np.count_nonzero(of > threshold) for threshold in thresholds]) for of in (probs[labels == 1], probs)
    )
    return float(thresholds[np.argmax(2 * hits / (found + labels.sum()))])


def evaluate(labels, probs, threshold):
    """Metrics of probs (N, 10) against labels (N, 10) of 0 and 1."""
    best_class = probs == probs.max(axis=1, keepdims=True)
    precisions = average_precision_score(labels, probs, average=None)
    rare = np.isin(np.arange(data.CLASSES), data.RARE)
    return {
        "mAP": average_precision_score(labels, probs, average="macro"),
        "rare AP": precisions[rare].mean(),
        "other AP": precisions[~rare].mean(),
        "LRAP": label_ranking_average_precision_score(labels, probs),
        # The share of canvases whose most probable class is on them.
        "precision@1": precision_score(labels, best_class, average="samples", zero_division=0),
        "macro F1": f1_score(labels, probs > threshold, average="macro", zero_division=0),
        "micro F1": f1_score(labels, probs > threshold, average="micro", zero_division=0),
    }


def train(solver, iterations, measure):
    """Run the solver; `measure()` gives the test loss and mAP, taken about EVALUATIONS times.

    Returns the history, a dict of lists: `train_loss` of each iteration; `iteration`, `test_loss` and `mAP` of each
    measurement.
    """
    history = {"train_loss": [], "iteration": [], "test_loss": [], "mAP": []}
    pause = max(10, iterations // EVALUATIONS)
    piped = not sys.stderr.isatty()
    with tqdm(total=iterations, unit="it", ncols=79, disable=piped) as bar:
        for iteration in range(1, iterations + 1):
            solver.step(1)
            loss = float(solver.net.blobs["loss"].data)
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at iteration {iteration}; lower base_lr")
            history["train_loss"].append(loss)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if iteration % pause == 0 or iteration == iterations:
                test_loss, test_map = measure()
                history["iteration"].append(iteration)
                history["test_loss"].append(test_loss)
                history["mAP"].append(test_map)
                bar.set_description(f"test mAP {test_map:.3f}")
                if piped:
                    loss = np.mean(history["train_loss"][-pause:])
                    print(f"iteration {iteration}/{iterations}  loss {loss:.3f}  test mAP {test_map:.3f}", flush=True)
    return history


def run(loss, balance, seed, iterations, source_folder, draw=True):
    """Train with `loss`, write everything into its folder below `source_folder`, and return (metrics, folder).

    `draw` says whether the pictures, too.
    """
    name = variant_name(loss, balance)
    folder = source_folder / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    nets = write_nets(folder, source_folder, loss, balance)
    solver = make_solver(folder, nets, iterations, seed)
    labels, test_nets = {}, {}
    for split in ("tune", "test"):
        labels[split] = read_split(source_folder, split, "label")
        test_nets[split] = caffe.Net(str(nets[split]), caffe.TEST)
        test_nets[split].share_with(solver.net)  # the weights that the solver trains

    def predict_split(split):
        return predict(test_nets[split], len(labels[split]))

    def measure():
        probs, test_loss = predict_split("test")
        return test_loss, average_precision_score(labels["test"], probs, average="macro")

    history = train(solver, iterations, measure)
    threshold = best_threshold(labels["tune"], predict_split("tune")[0])
    probs, _ = predict_split("test")
    metrics = evaluate(labels["test"], probs, threshold)

    solver.net.save(str(folder / "digits.caffemodel"))
    report = {"loss": name, "seed": seed, "iterations": iterations, "threshold": threshold, "metrics": metrics}
    (folder / "metrics.json").write_text(json.dumps(dict(report, history=history), indent=1) + "\n")
    if draw:
        figures.draw_curves(folder / "curves.png", history, name, labels["test"])
        canvases = read_split(source_folder, "test", "data")[:, 0]
        figures.draw_predictions(folder / "predictions.png", canvases, labels["test"], probs, threshold, loss)
    return metrics, folder


def variant_name(loss, balance):
    return f"{loss} {balance}" if balance else loss


def source_folder_of(output, seed, imbalanced):
    return data.write_splits(output / f"seed{seed}{'-imbalanced' if imbalanced else ''}", seed, imbalanced)


def compare(seeds, iterations, output, imbalanced):
    """Losses on the same canvases, seed by seed; prints mean and standard deviation as a markdown table.

    All five losses; or, on imbalanced canvases, this package's with every way to make up for the imbalance.
    """
    variants = [(loss, None) for loss in net.LOSSES]
    columns = METRICS
    if imbalanced:
        variants = [(loss, balance) for loss in net.LAYERS for balance in (None, *net.BALANCES.get(loss, ()))]
        columns = RARE_METRICS
    rows = {variant: [] for variant in variants}
    for seed in seeds:
        source_folder = source_folder_of(output, seed, imbalanced)
        for loss, balance in variants:
            print(f"{variant_name(loss, balance)}, seed {seed}", flush=True)
            metrics, _ = run(loss, balance, seed, iterations, source_folder, draw=False)
            rows[loss, balance].append([metrics[name] for name in columns])
    heads = ["`--loss`", *(["`--balance`"] if imbalanced else []), *columns]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (loss, balance), values in rows.items():
        cells = [loss, *([balance or ""] if imbalanced else [])]
        cells += [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(np.mean(values, axis=0), np.std(values, axis=0))]
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
    except FloatingPointError as error:
        stop(error)
    except KeyboardInterrupt:
        stop("interrupted")


if __name__ == "__main__":
    main()
