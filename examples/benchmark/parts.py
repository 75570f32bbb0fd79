"""Time what a forward and a backward of the losses are made of: where the time goes that benchmark.py measures.

    python examples/benchmark/parts.py --threads 1

Without Caffe, on arrays that stay in the caches as far as they fit. Forward calls the loss with the gradient, and
backward scales that where the divisor was not that of the batch before; the loss alone is what the TEST phase takes.
"""

import argparse
import os
import time
from functools import reduce
from operator import mul

SHAPES = ((64, 20), (64, 1000), (256, 1000), (128, 17000), (2, 21, 64, 64), (4, 21, 256, 256))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--seconds", type=float, default=1, help="time for each number (default 1)")
    arguments = parser.parse_args()
    os.environ["NUMBA_NUM_THREADS"] = str(arguments.threads)  # read when the kernels are imported
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    print(f"{threads}; the minimum in microseconds, and nanoseconds per score")
    print(f"{'':14}{'':10}{'loss alone':>20}{'loss and gradient':>20}{'scaling':>20}{'one copy':>20}")
    for shape in SHAPES:
        for name in ("softmax", "sigmoid"):
            times = [minimum(part, arguments.seconds) for part in parts(name, shape)]
            entries = reduce(mul, shape)
            cells = (f"{1e6 * t:10.0f} us {1e9 * t / entries:4.2f} ns" for t in times)
            print(f"{'x'.join(map(str, shape)):14}{name:10}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def parts(name, shape):
    """The loss without a gradient, with one, the scaling of the gradient, and the copying of one array."""
    import numpy as np

    from multilabel_softmax_loss.losses.evaluate import scale_gradient
    from multilabel_softmax_loss.losses.sigmoid import SigmoidLoss
    from multilabel_softmax_loss.losses.softmax import SoftmaxLoss

    rng = np.random.default_rng(0)
    scores = rng.normal(size=shape).astype(np.float32)
    labels = (rng.random(shape) < 5 / shape[1]).astype(np.float32)
    labels[:, 0] = 1
    gradient, diff = np.zeros_like(scores), np.zeros_like(scores)
    loss_class = SoftmaxLoss if name == "softmax" else SigmoidLoss
    loss = loss_class(loss_class.options_class(), scores, labels, None)
    return (
        lambda: loss(scores, labels),
        lambda: loss(scores, labels, None, gradient),
        lambda: scale_gradient(diff, 1.0),
        lambda: np.copyto(diff, gradient),
    )


def minimum(part, seconds):
    part()
    samples = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(samples) < 5:
        begin = time.perf_counter()
        part()
        samples.append(time.perf_counter() - begin)
    return min(samples)


if __name__ == "__main__":
    main()
