"""Train a net on canvases of one to four handwritten digits in Caffe, measure it, and draw what it says.

solve.py                                 # this package's multi-label softmax loss
solve.py --loss sigmoid                  # Caffe's SigmoidCrossEntropyLoss in its place
solve.py --loss single                   # Caffe's SoftmaxWithLoss on one label per canvas, picked at random
solve.py --compare --seeds 0 1 2         # all three, as a markdown table
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


def write_nets(folder, source_folder, loss):
    """Write train.prototxt, tune.prototxt and test.prototxt into `folder`; returns their paths by split."""
    paths = {}
    for split in data.SPLITS:
        training = split == "train"
        parameters = net.digits_net(
            source=str(source_folder / f"{split}.txt"),
            batch_size=TRAIN_BATCH if training else TEST_BATCH,
            loss=loss,
            probs=not training,
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
    return max(
        (round(0.01 * k, 2) for k in range(1, 100)),
        key=lambda threshold: f1_score(labels, probs > threshold, average="micro", zero_division=0),
    )


def evaluate(labels, probs, threshold):
    """Metrics of probs (N, 10) against labels (N, 10) of 0 and 1."""
    best_class = probs == probs.max(axis=1, keepdims=True)
    return {
        "mAP": average_precision_score(labels, probs, average="macro"),
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


def run(loss, seed, iterations, source_folder):
    """Train with `loss`, write everything into its folder below `source_folder`, and return (metrics, folder)."""
    folder = source_folder / loss
    folder.mkdir(exist_ok=True)
    nets = write_nets(folder, source_folder, loss)
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
    report = {"loss": loss, "seed": seed, "iterations": iterations, "threshold": threshold, "metrics": metrics}
    (folder / "metrics.json").write_text(json.dumps(dict(report, history=history), indent=1) + "\n")
    figures.draw_curves(folder / "curves.png", history, loss, labels["test"])
    canvases = read_split(source_folder, "test", "data")[:, 0]
    figures.draw_predictions(folder / "predictions.png", canvases, labels["test"], probs, threshold, loss)
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
    except FloatingPointError as error:
        stop(error)
    except KeyboardInterrupt:
        stop("interrupted")


if __name__ == "__main__":
    main()
