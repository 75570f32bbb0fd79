"""Many classes, few labels: losses on lists of class indices, measured by precision and recall at k, as markdown.

    compare.py                                  # all losses, six seeds
    compare.py --seeds 0 1 --iterations 200     # sooner

A sample is a noisy sum of the vectors of its 1 to 8 classes of 1000, which are as unequally frequent as words are.
"""

import argparse
import contextlib
import io
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np

from multilabel_softmax_loss.commands.metrics import decision_metrics, top_k
from multilabel_softmax_loss.commands.outputs import net_outputs
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.prototxt import layer_name, loss_layer

CLASSES, FEATURES, MOST_LABELS = 1000, 64, 8
SPLITS = {"train": 20000, "test": 2000}
BATCH = 100
NOISE = 0.5  # of each feature; the vector of a class has length 1 on average, so its features are about 1/8
LOSSES = {
    "softmax": ("softmax", {}),
    "sigmoid": ("sigmoid", {}),
    "asymmetric": ("sigmoid", {"focal_gamma": {"positive": 0, "negative": 4}, "negative_margin": 0.05}),
    **{name: ("ranking", {"ranking": name}) for name in ("pairwise", "warp", "lsep", "zlpr")},
}
KS = (1, 3, 5)

NET = """
layer {{
  name: "data" type: "HDF5Data" top: "data" top: "labels"
  hdf5_data_param {{ source: "{source}" batch_size: {batch} }}
}}
layer {{
  name: "hidden" type: "InnerProduct" bottom: "data" top: "hidden"
  inner_product_param {{ num_output: 128 weight_filler {{ type: "msra" }} }}
}}
layer {{ name: "relu" type: "ReLU" bottom: "hidden" top: "hidden" }}
layer {{
  name: "scores" type: "InnerProduct" bottom: "hidden" top: "scores"
  inner_product_param {{ num_output: {classes} weight_filler {{ type: "xavier" }} }}
}}
"""
SOLVER = """
train_net: "{net}" type: "Adam" base_lr: 0.005 lr_policy: "poly" power: 1 momentum: 0.9 momentum2: 0.999
max_iter: {iterations} random_seed: {seed} solver_mode: CPU snapshot_prefix: "{prefix}"
"""


def write_split(folder, split, vectors, rng):
    """<split>.h5: `data` (N, FEATURES), and `labels` (N, MOST_LABELS), class indices padded with -1."""
    count = SPLITS[split]
    chances = 1 / (20 + np.arange(CLASSES))
    chances /= chances.sum()
    labels = np.full((count, MOST_LABELS), -1, np.float32)
    data = rng.normal(0, NOISE / np.sqrt(FEATURES) * 2, (count, FEATURES)).astype(np.float32)
    for row, features in zip(labels, data):
        drawn = rng.choice(CLASSES, rng.integers(1, MOST_LABELS, endpoint=True), replace=False, p=chances)
        row[: len(drawn)] = drawn
        features += vectors[drawn].sum(axis=0)
    with h5py.File(folder / f"{split}.h5", "w") as file:
        file["data"], file["labels"] = data, labels
    (folder / f"{split}.txt").write_text(f"{folder / split}.h5\n")


def write_net(folder, split, loss):
    layer, options = LOSSES[loss]
    path = folder / f"{loss}_{split}.prototxt"
    text = NET.format(source=folder / f"{split}.txt", batch=BATCH, classes=CLASSES)
    path.write_text(text + loss_layer(layer=layer_name(layer), label_format="indices", **options))
    return str(path)


def measure(loss, seed, iterations, folder):
    """Overall precision and recall at each of KS, and those per class at 3, of a net trained with that loss."""
    solver = folder / f"{loss}_solver.prototxt"
    prefix = folder / loss / "net"
    text = SOLVER.format(net=write_net(folder, "train", loss), iterations=iterations, seed=seed, prefix=prefix)
    solver.write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        weights = train(str(solver))["weights"]
        outputs = net_outputs(write_net(folder, "test", loss), weights)
    found = {k: decision_metrics(outputs.truth, top_k(outputs.log_odds, k)) for k in KS}
    overall = {f"{word}@{k}": found[k][name] for k in KS for word, name in (("precision", "OP"), ("recall", "OR"))}
    return {**overall, "precision@3 per class": found[3]["CP"], "recall@3 per class": found[3]["CR"]}


def compare(seeds, iterations, losses=tuple(LOSSES)):
    """The figures by loss, a list of one per seed."""
    measured = {loss: [] for loss in losses}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rng = np.random.default_rng(seed)
            vectors = rng.normal(size=(CLASSES, FEATURES)) / np.sqrt(FEATURES)
            for split in SPLITS:
                write_split(folder, split, vectors, rng)
            for loss in losses:
                measured[loss].append(measure(loss, seed, iterations, folder))
                print(f"seed {seed}, {loss}: precision@3 {measured[loss][-1]['precision@3']:.3f}", flush=True)
    return measured


def table(measured):
    """Mean and standard deviation over the seeds, as markdown."""
    columns = next(iter(measured.values()))[0]
    lines = [f"| loss | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for loss, runs in measured.items():
        values = np.array([list(run.values()) for run in runs])
        spreads = (f" ± {spread:.3f}" if len(runs) > 1 else "" for spread in values.std(axis=0))
        cells = (f"{mean:.3f}{spread}" for mean, spread in zip(values.mean(axis=0), spreads))
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--iterations", type=int, default=400)
    arguments = parser.parse_args()
    print("\n" + table(compare(arguments.seeds, arguments.iterations)))


if __name__ == "__main__":
    main()
