"""Time the loss layers in real Caffe nets beside native layers, a loop layer, PyTorch and the mere copying of the data.

    python examples/benchmark/benchmark.py                               # all shapes, a few minutes
    python examples/benchmark/benchmark.py --shapes 256x1000 --threads 1
    python examples/benchmark/benchmark.py --torch PYTHON                # an interpreter that has PyTorch

All times are of one forward and one backward of the loss, in one run: the contenders take turns, so that what else the
machine does meets all of them. Prints a table; writes benchmark.json and benchmark.png into the output folder.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = {
    "64x20": (64, 20),
    "256x1000": (256, 1000),
    "128x17000": (128, 17000),
    "4x21x256x256": (4, 21, 256, 256),
    "256x100000": (256, 100000),  # labels as 16 indices
}
LOOP_LIMIT = 300_000  # entries that the loop layer is given: it takes microseconds for each
NATIVE_LIMIT = 10_000_000

TORCH = """
import json, sys, time
import numpy as np, torch
shape, threads, seconds = json.loads(sys.argv[1])
torch.set_num_threads(threads)
rng = np.random.default_rng(0)
scores = torch.tensor(rng.normal(size=shape).astype("f"), requires_grad=True)
labels = torch.tensor((rng.random(shape) < 5 / shape[1]).astype("f")); labels[:, 0] = 1
targets = labels / labels.sum(dim=1, keepdim=True)
losses = {
    "PyTorch cross_entropy": lambda: torch.nn.functional.cross_entropy(scores, targets),
    "PyTorch BCE": lambda: torch.nn.functional.binary_cross_entropy_with_logits(scores, labels),
}
times = {}
for name, loss in losses.items():
    times[name] = []
    start = time.perf_counter()
    while len(times[name]) < 5 or time.perf_counter() - start < seconds:
        scores.grad = None
        begin = time.perf_counter()
        loss().backward()
        times[name].append(time.perf_counter() - begin)
print(json.dumps(times))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument(
        "--threads", type=int, help="threads of the kernels, of BLAS and of PyTorch (default: all cores)"
    )
    parser.add_argument("--seconds", type=float, default=4, help="time for each contender at each shape (default 4)")
    parser.add_argument(
        "--torch", metavar="PYTHON", help="an interpreter that has PyTorch; without it PyTorch is left out"
    )
    parser.add_argument("--output", type=Path, default=HERE / "output", help="default: examples/benchmark/output")
    arguments = parser.parse_args()

    threads = arguments.threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before NumPy, numba and Caffe are imported
    os.environ.setdefault("GLOG_minloglevel", "2")
    results = {"threads": threads, "microseconds": {}, "peak memory": {}}
    for name in arguments.shapes:
        print(f"{name} ({threads} thread{'s' if threads > 1 else ''})", flush=True)
        times, memory = measure(SHAPES[name], arguments.seconds, threads, arguments.torch)
        results["microseconds"][name] = times
        results["peak memory"][name] = memory
        print_table(times, memory)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "benchmark.json").write_text(json.dumps(results, indent=1))
    draw(results, arguments.output / "benchmark.png")
    print(f"Written: {arguments.output}/benchmark.json and benchmark.png")


def measure(shape, seconds, threads, torch):
    """Minimum and median of each contender in microseconds, and the peak memory of our layers in arrays of scores."""
    contenders = make_contenders(shape)
    memory = {name: contenders[name].peak() for name in contenders if name.startswith("ours")}
    samples = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # compile, allocate, warm the caches
    deadline = time.perf_counter() + seconds * len(contenders)
    while min(map(len, samples.values())) < 3 or time.perf_counter() < deadline:
        for name, contender in contenders.items():
            # Each runs for about a tenth of its time, slow ones at least once, before the next has its turn.
            start = time.perf_counter()
            while True:
                begin = time.perf_counter()
                contender()
                end = time.perf_counter()
                samples[name].append(end - begin)
                if end - start > seconds / 10:
                    break
    if torch:
        request = json.dumps([shape, threads, seconds])
        done = subprocess.run([torch, "-c", TORCH, request], stdout=subprocess.PIPE, check=True)
        samples.update(json.loads(done.stdout.decode()))
    times = {
        name: {"min": 1e6 * min(values), "median": 1e6 * sorted(values)[len(values) // 2]}
        for name, values in samples.items()
    }
    return times, memory


class Contender:
    """One forward and backward of the last layer of a net."""

    def __init__(self, net, first="loss"):
        self.net = net
        self.first = list(net._layer_names).index(first)
        self.last = len(net.layers) - 1
        net.forward()

    def __call__(self):
        self.net._forward(self.first, self.last)
        self.net._backward(self.last, self.first)

    def peak(self):
        """Peak memory allocated from Python by a first forward and backward, in arrays of the size of the scores."""
        layer = self.net.layer_dict["loss"]
        layer.gradient = None
        tracemalloc.start()
        self()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / self.net.blobs["scores"].data.nbytes


class WithNumpy(Contender):
    """The same by the NumPy path."""

    def __init__(self, net):
        with numpy_path():
            super().__init__(net)

    def __call__(self):
        with numpy_path():
            super().__call__()


class numpy_path:
    """Within it the kernels are not used."""

    def __enter__(self):
        from multilabel_softmax_loss.losses import evaluate as losses

        self.kept, losses.kernels = losses.kernels, lambda: None

    def __exit__(self, *_):
        from multilabel_softmax_loss.losses import evaluate as losses

        losses.kernels = self.kept


def make_contenders(shape):
    """Nets of one loss each on the same random data, by name, and the copying of what they read and write."""
    import numpy as np

    rng = np.random.default_rng(0)
    scores = rng.normal(size=shape).astype(np.float32)
    is_huge = scores.size > NATIVE_LIMIT
    if is_huge:
        labels = rng.integers(0, shape[1], size=(shape[0], 16)).astype(np.float32)
        options = '{"label_format": "indices"}'
    else:
        labels = (rng.random(shape) < 5 / shape[1]).astype(np.float32)
        labels[:, 0] = 1
        options = ""
    data = {"input": scores, "labels": labels}
    ours = python_layer("multilabel_softmax_loss", "MultilabelSoftmaxLossLayer", options)
    sigmoid = python_layer("multilabel_softmax_loss", "MultilabelSigmoidLossLayer", options)
    contenders = {
        "ours, softmax": Contender(make_net(data, ours)),
        "ours, softmax, NumPy": WithNumpy(make_net(data, ours)),
        "ours, sigmoid": Contender(make_net(data, sigmoid)),
    }
    copies = [(array, np.empty_like(array)) for array in ((scores,) if is_huge else (scores, labels, scores.copy()))]

    def copy():
        for array, target in copies:
            np.copyto(target, array)

    contenders["copy limit"] = copy
    if is_huge:
        dense = np.zeros(shape, np.float32)
        np.put_along_axis(dense, labels.astype(int), 1, axis=1)
        layer = python_layer("multilabel_softmax_loss", "MultilabelSoftmaxLossLayer", "")
        contenders["ours, softmax, dense labels"] = Contender(make_net({"input": scores, "labels": dense}, layer))
        return contenders
    index = {"input": scores, "labels": labels.argmax(axis=1).astype(np.float32)}
    contenders["SoftmaxWithLoss"] = Contender(make_net(index, native_layer("SoftmaxWithLoss")))
    contenders["SigmoidCrossEntropyLoss"] = Contender(make_net(data, native_layer("SigmoidCrossEntropyLoss")))
    targets = {"input": scores, "labels": labels / labels.sum(axis=1, keepdims=True)}
    contenders["native composition"] = Contender(make_net(targets, COMPOSITION), "softmax")
    if scores.size < LOOP_LIMIT:
        contenders["loop layer"] = Contender(make_net(data, python_layer("benchmark_loop_layer", "LoopLayer", "")))
    return contenders


def make_net(data, layers):
    import caffe
    import numpy as np

    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {size}" for size in array.shape)
        + " } } }\n"
        for name, array in data.items()
    )
    # The scores come out of a layer that learns, so that the loss is asked for their gradient only.
    text += """layer { name: "one" type: "Scale" bottom: "input" top: "scores"
        scale_param { num_axes: 0 filler { type: "constant" value: 1 } } }\n"""
    path = HERE / f"net-{os.getpid()}.prototxt"
    try:
        path.write_text(text + layers)
        net = caffe.Net(str(path), caffe.TRAIN)
    finally:
        path.unlink()
    for name, array in data.items():
        net.blobs[name].data[...] = array.astype(np.float32)
    return net


def python_layer(module, layer, param_str):
    return f"""layer {{ name: "loss" type: "Python" bottom: "scores" bottom: "labels" top: "loss" loss_weight: 1
        python_param {{ module: "{module}" layer: "{layer}" param_str: {json.dumps(param_str)} }} }}"""


def native_layer(kind):
    return f'layer {{ name: "loss" type: "{kind}" bottom: "scores" bottom: "labels" top: "loss" }}'


COMPOSITION = """
    layer { name: "softmax" type: "Softmax" bottom: "scores" top: "probs" }
    layer { name: "log" type: "Log" bottom: "probs" top: "log_probs" }
    layer { name: "product" type: "Eltwise" bottom: "log_probs" bottom: "labels" top: "product"
        eltwise_param { operation: PROD } }
    layer { name: "loss" type: "Reduction" bottom: "product" top: "loss" loss_weight: -1 }"""


def print_table(times, memory):
    base = times["ours, softmax"]["min"]
    print(f"  {'':30}{'min us':>12}{'median us':>12}{'to ours':>10}{'peak memory':>18}")
    for name, entry in sorted(times.items(), key=lambda item: item[1]["min"]):
        peak = f"{memory[name]:.2f} x scores" if name in memory else ""
        print(f"  {name:30}{entry['min']:12.0f}{entry['median']:12.0f}{entry['min'] / base:10.2f}{peak:>18}")
    print(flush=True)


def draw(results, path):
    """One panel for each shape: a bar for each contender, ours in colour, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = results["microseconds"]
    rows = [len(times) for times in shapes.values()]
    figure, panels = plt.subplots(
        len(shapes), 1, figsize=(8, 0.7 + 0.36 * sum(rows) + 0.5 * len(rows)), squeeze=False,
        gridspec_kw={"height_ratios": rows},
    )  # fmt: skip
    for axes, (name, times) in zip(panels[:, 0], shapes.items()):
        order = sorted(times, key=lambda contender: -times[contender]["min"])
        values = [times[contender]["min"] / 1000 for contender in order]
        colors = ["#0072B2" if c.startswith("ours") else "#009E73" if c == "copy limit" else "#999999" for c in order]
        axes.barh(order, values, color=colors)
        for row, value in enumerate(values):
            axes.text(value * 1.06, row, f"{value:.3g} ms", va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 6)
        labels = ", 16 class indices per sample" if name == "256x100000" else ""
        axes.set_title(f"scores {name.replace('x', ' x ')}{labels}", fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("forward and backward, ms (shorter is faster; logarithmic)")
    threads = results["threads"]
    top = 1 - 0.45 / figure.get_figheight()
    figure.suptitle(
        f"One loss layer on {threads} CPU thread{'s' if threads > 1 else ''}: this package in blue, "
        "the mere copying of its data in green",
        fontsize=11,
        y=top + 0.25 / figure.get_figheight(),
    )
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
