"""A process of the benchmark that has the contenders of one library and one number of threads, and times one at a time.

It reads a request a line, as JSON, and answers with a line. It needs Caffe and this package, or PyTorch alone.
"""

import json
import os
import sys
import time
from functools import partial

OTHER_WORK = 0.005  # seconds between two calls in training
SWEPT = 1 << 24  # floats that the other work goes through, 64 MB
STEP = 1 << 19  # of them at a time
LARGE = 10_000_000  # scores, where labels are lists of indices and PyTorch and Caffe's own layers are left out
LOOP_LIMIT = 300_000  # scores that the loop layer is given: it takes microseconds for each
SEVERAL = 5  # labels per position where there are several


class Contender:
    """One forward and backward of a loss; `set_state` gives it the scores of an untrained or of a trained net."""

    def set_state(self, state):
        raise NotImplementedError

    def __call__(self):
        raise NotImplementedError


# Caffe


class CaffeLoss(Contender):
    """The last layer of a net, whose loss wants the labels of `data` as `labels`."""

    def __init__(self, data, labels, layer):
        self.data = data
        blobs = {"input": data.scores("untrained"), "labels": labels}
        # The scores come out of a layer that learns, so that the loss is asked for their gradient only.
        scale = """layer { name: "one" type: "Scale" bottom: "input" top: "scores"
            scale_param { num_axes: 0 filler { type: "constant" value: 1 } } }\n"""
        self.net = make_net("".join(input_layer(name, array.shape) for name, array in blobs.items()) + scale + layer)
        for name, array in blobs.items():
            self.net.blobs[name].data[...] = array
        self.first, self.last = list(self.net._layer_names).index("loss"), len(self.net.layers) - 1

    def set_state(self, state):
        self.net.blobs["input"].data[...] = self.data.scores(state)
        self.net.forward()

    def __call__(self):
        self.net._forward(self.first, self.last)
        self.net._backward(self.last, self.first)


class Data:
    """Random scores, and as labels the classes `index` (N, K) or (N, K, H, W) of each position."""

    def __init__(self, noise, index):
        self.noise, self.index = noise, index

    def hot(self):
        """Dense labels of 0 and 1, shaped like the scores."""
        import numpy as np

        labels = np.zeros_like(self.noise)
        np.put_along_axis(labels, self.index, 1, axis=1)
        return labels

    def scores(self, state):
        """Random ones; or, of a trained net, such that softmax and sigmoid are certain of the labels."""
        import numpy as np

        if state == "untrained":
            return self.noise
        scores = self.noise - 10
        np.put_along_axis(scores, self.index, 15, axis=1)
        return scores


def caffe_contenders(shape):
    """What makes each contender, by name."""
    import numpy as np

    rng = np.random.default_rng(0)
    noise = rng.normal(size=shape).astype(np.float32)
    one, several = (Data(noise, rng.integers(0, shape[1], size=(shape[0], k, *shape[2:]))) for k in (1, SEVERAL))
    large = noise.size > LARGE

    def own(kind, data, as_indices):
        labels = data.index.astype(np.float32) if as_indices else data.hot()
        options = '{"label_format": "indices"}' if as_indices else ""
        return CaffeLoss(data, labels, python_layer("multilabel_softmax_loss", f"Multilabel{kind}LossLayer", options))

    made = {
        "ours, softmax": lambda: own("Softmax", one, True),
        "ours, softmax, several labels": lambda: own("Softmax", several, large),
        "ours, sigmoid": lambda: own("Sigmoid", one, large),
    }
    if not large:
        index = one.index.astype(np.float32)
        made["ours, softmax, dense label"] = lambda: own("Softmax", one, False)
        made["SoftmaxWithLoss"] = lambda: CaffeLoss(one, index, native("SoftmaxWithLoss"))
        made["SigmoidCrossEntropyLoss"] = lambda: CaffeLoss(one, one.hot(), native("SigmoidCrossEntropyLoss"))
    if noise.size < LOOP_LIMIT:
        made["loop layer"] = lambda: CaffeLoss(one, one.hot(), python_layer("benchmark_loop_layer", "LoopLayer", ""))
    return made


def make_net(text):
    import tempfile

    import caffe

    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(text)
        file.flush()
        return caffe.Net(file.name, caffe.TRAIN)


def input_layer(name, shape):
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def python_layer(module, layer, param_str):
    return f"""layer {{ name: "loss" type: "Python" bottom: "scores" bottom: "labels" top: "loss" loss_weight: 1
        python_param {{ module: "{module}" layer: "{layer}" param_str: {json.dumps(param_str)} }} }}"""


def native(kind):
    return f'layer {{ name: "loss" type: "{kind}" bottom: "scores" bottom: "labels" top: "loss" }}'


def caffe_product():
    """A matrix product by Caffe's BLAS, of about half a millisecond."""
    net = make_net(
        input_layer("data", (16, 1024))
        + """layer { name: "product" type: "InnerProduct" bottom: "data" top: "product"
        inner_product_param { num_output: 1024 weight_filler { type: "xavier" } } }"""
    )
    return net.forward


# PyTorch


class TorchLoss(Contender):
    def __init__(self, loss, noise, index, targets):
        import torch

        self.torch, self.loss, self.noise, self.index, self.targets = torch, loss, noise, index, targets
        self.set_state("untrained")

    def set_state(self, state):
        scores = self.noise if state == "untrained" else (self.noise - 10).scatter_(1, self.index, 15)
        self.scores = scores.clone().requires_grad_(True)

    def __call__(self):
        self.scores.grad = None
        self.loss(self.scores, self.targets).backward()


def torch_contenders(shape):
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*shape, generator=generator)
    if noise.numel() > LARGE:
        return {}
    index = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    targets = torch.zeros(*shape).scatter_(1, index, 1)
    losses = {
        "PyTorch cross_entropy": torch.nn.functional.cross_entropy,
        "PyTorch BCE": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    return {name: partial(TorchLoss, loss, noise, index, targets) for name, loss in losses.items()}


def torch_product():
    import torch

    left, right = torch.randn(16, 1024), torch.randn(1024, 1024)
    return lambda: torch.mm(left, right)


# Both


def make_sweep(library):
    """Copies STEP floats on at each call, through 64 MB."""
    if library == "torch":
        import torch

        source, target = torch.zeros(SWEPT), torch.zeros(STEP)
    else:
        import numpy as np

        source, target = np.zeros(SWEPT, np.float32), np.zeros(STEP, np.float32)
    place = 0

    def sweep():
        nonlocal place
        target[:] = source[place : place + STEP]
        place = (place + STEP) % SWEPT

    return sweep


def times_of(contender, between, seconds):
    """Seconds of each call, for `seconds` in all and at least once; `between` is called before each."""
    times = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        between()
        begin = time.perf_counter()
        contender()
        times.append(time.perf_counter() - begin)
    return times


def main():
    library, threads = sys.argv[1], int(sys.argv[2])
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
    product, sweep = (torch_product if library == "torch" else caffe_product)(), make_sweep(library)

    def other_work():
        end = time.perf_counter() + OTHER_WORK
        while time.perf_counter() < end:
            product()
            sweep()

    contenders, states = {}, {}
    for line in sys.stdin:
        request = json.loads(line)
        if "shape" in request:
            contenders.clear()
            states.clear()
            makers = (torch_contenders if library == "torch" else caffe_contenders)(request["shape"])
            contenders.update((name, makers[name]()) for name in request["wanted"] if name in makers)
            answer = {}
            for name, contender in contenders.items():
                contender.set_state("untrained")
                contender()  # compiles and allocates
                answer[name] = times_of(contender, nothing, 0)[0]
        else:
            name, state = request["contender"], request["state"]
            if states.get(name) != state:
                contenders[name].set_state(state)
                states[name] = state
            between = other_work if request["regime"] == "in training" else nothing
            answer = times_of(contenders[name], between, request["seconds"])
        print(json.dumps(answer), flush=True)


def nothing():
    pass


if __name__ == "__main__":
    main()
