"""How fast a net trains from each kind of source: images per second of iterations, beside those of the net alone.

    python speed.py [--images 400] [--seconds 10]

Photographs of 500 x 375 are converted to 256 x 256; the net (crops of 224, mirrored, batches of 32) is a small one, so
that the source matters. Sources take turns, and what is told is the median of their rounds. Caffe computes with one
thread; a source may use the other cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.update(GLOG_minloglevel="2", OMP_NUM_THREADS="1")
import caffe
import cv2
import numpy as np
from sklearn.datasets import load_sample_images

from multilabel_softmax_loss.data.ahead import Ahead
from multilabel_softmax_loss.data.feed import prepare
from multilabel_softmax_loss.layers import MultilabelImageDataLayer

NET = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 16 kernel_size: 7 stride: 4 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "scores" type: "InnerProduct" bottom: "pool" top: "scores"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "Python" bottom: "scores" bottom: "labels" top: "loss" loss_weight: 1
  python_param { module: "multilabel_softmax_loss" layer: "MultilabelSigmoidLossLayer" } }
"""
TRANSFORM = "transform_param { mirror: true crop_size: 224 mean_value: 110 }"
OPTIONS = '"batch_size": 32, "new_height": 256, "new_width": 256, "crop_size": 224, "mirror": true, "mean_value": 110'


class ThreadAhead(Ahead):
    """Batches prepared two ahead by a thread of this process, as processes prepare them in the package."""

    def __init__(self, feed):
        super().__init__(feed, 0)
        self.pool, self.coming = ThreadPoolExecutor(1), deque()

    def prepare(self, batch):
        rows, tasks = self.feed.tasks(batch)
        images = np.empty((len(rows), *self.options.shape), np.float32)
        for task, out in zip(tasks, images):
            prepare(task, self.options, out)
        return images, self.feed.label_rows(rows)

    def deliver(self, images, labels):
        while len(self.coming) < 3:
            self.coming.append(self.pool.submit(self.prepare, self.next + len(self.coming)))
        images[...], labels[...] = self.coming.popleft().result()
        self.next += 1


class ThreadLayer(MultilabelImageDataLayer):
    def setup(self, bottom, top):
        super().setup(bottom, top)
        self.batches = ThreadAhead(self.batches.feed)


def python_layer(folder, workers, names='module: "multilabel_softmax_loss" layer: "MultilabelImageDataLayer"'):
    return f"""layer {{ name: "data" type: "Python" top: "data" top: "labels" python_param {{
  {names}
  param_str: '{{"source": "{folder}/jpeg/train_index.txt", "workers": {workers}, {OPTIONS}}}' }} }}
"""


def databases(folder):
    return f"""layer {{ name: "data" type: "Data" top: "data" {TRANSFORM}
  data_param {{ source: "{folder}/train_images" backend: LMDB batch_size: 32 }} }}
layer {{ name: "labels" type: "Data" top: "labels"
  data_param {{ source: "{folder}/train_labels" backend: LMDB batch_size: 32 }} }}
"""


def image_data(folder):
    return f"""layer {{ name: "data" type: "ImageData" top: "data" top: "one" {TRANSFORM}
  image_data_param {{ source: "{folder}/list.txt" batch_size: 32 new_height: 256 new_width: 256 shuffle: true }} }}
layer {{ name: "labels" type: "DummyData" top: "labels" dummy_data_param {{ shape {{ dim: 32 dim: 5 }} }} }}
layer {{ name: "unused" type: "Silence" bottom: "one" }}
"""


NOTHING = """layer { name: "data" type: "DummyData" top: "data" top: "labels"
  dummy_data_param { shape { dim: 32 dim: 3 dim: 224 dim: 224 } shape { dim: 32 dim: 5 } } }
"""


def make_source(folder, count):
    rng = np.random.RandomState(0)
    photographs = load_sample_images().images
    (folder / "photos").mkdir()
    rows = []
    for k in range(count):
        top, left = rng.randint(427 - 375), rng.randint(640 - 500)
        image = photographs[k % 2][top : top + 375, left : left + 500, ::-1]
        cv2.imwrite(str(folder / "photos" / f"{k}.jpg"), image + np.uint8(k % 3))
        rows.append(f"{folder}/photos/{k}.jpg {k % 5}\n")
    (folder / "list.txt").write_text("".join(rows))
    for name, kind in (("jpeg", "jpg:95"), ("raw", "raw")):
        words = ["convert", folder / "list.txt", "--out", folder / name, "--encode", kind, "--split", 0]
        words += ["--format", "list-indices"]
        subprocess.run(
            [sys.executable, "-m", "multilabel_softmax_loss", *map(str, words)], check=True, stdout=subprocess.DEVNULL
        )


def make_solver(folder, name, source):
    path = folder / name
    path.mkdir()
    (path / "net.prototxt").write_text(source + NET)
    settings = (
        f'net: "{path}/net.prototxt" base_lr: 0.0001 lr_policy: "fixed" max_iter: 1000000 snapshot_prefix: "{path}/s"'
    )
    (path / "solver.prototxt").write_text(settings + " snapshot_after_train: false\n")
    return caffe.get_solver(str(path / "solver.prototxt"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=10, help="for each source")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_source(folder, arguments.images)
        sources = {
            "no source at all": NOTHING,
            "Data, LMDB of raw pixels": databases(folder / "raw"),
            "Data, LMDB of JPEGs": databases(folder / "jpeg"),
            "MultilabelImageDataLayer, 1 worker": python_layer(folder, 1),
            "MultilabelImageDataLayer, 2 workers": python_layer(folder, 2),
            "MultilabelImageDataLayer, none": python_layer(folder, 0),
            "the same, a thread ahead": python_layer(folder, 0, 'module: "speed" layer: "ThreadLayer"'),
            "ImageData (labels are none of its)": image_data(folder),
        }
        rates = {name: [] for name in sources}
        for turn in range(5):
            for number, (kind, source) in enumerate(sources.items()):
                solver = make_solver(folder, f"{turn}-{number}", source)
                solver.step(3)
                begin, steps = time.monotonic(), 0
                while time.monotonic() - begin < arguments.seconds / 5:
                    solver.step(1)
                    steps += 1
                rates[kind].append(32 * steps / (time.monotonic() - begin))
                del solver
        for kind, found in rates.items():
            print(f"{kind:36} {statistics.median(found):7.0f} images/s ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
