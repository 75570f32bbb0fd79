"""The files beside converted data that make it a training: train_val.prototxt, solver.prototxt, preprocessing.json."""

from __future__ import annotations

import json
import math
import os
import shlex
from typing import Any, Dict, List, NamedTuple, Optional

from .images import Geometry

EPOCHS = 20
RUN = "run"  # the folder of snapshots, which Caffe itself does not make
SMALL_NET = """\
# ---- Your net goes here, from "data" to "scores". This one is a small start.
layer { name: "scaled" type: "Power" bottom: "data" top: "scaled" power_param { scale: 0.0078125 } }  # 1 / 128
layer {
  name: "conv1" type: "Convolution" bottom: "scaled" top: "conv1"
  convolution_param { num_output: 32 kernel_size: 5 stride: 2 weight_filler { type: "msra" } }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 }
}
layer {
  name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 64 kernel_size: 3 pad: 1 weight_filler { type: "msra" } }
}
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer {
  name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
  pooling_param { pool: AVE global_pooling: true }
}
layer {
  name: "scores" type: "InnerProduct" bottom: "pool2" top: "scores"
  inner_product_param { num_output: %d weight_filler { type: "xavier" } }  # as many as classes.txt names
}
# ---- The end of your net.
"""


class NetFacts(NamedTuple):
    """What the prototxt has to say of converted data. `crop` is (height, width) of what the net sees, or None."""

    folder: str
    target: str
    classes: int
    counts: Dict[str, int]
    mean: List[float]
    gray: bool
    geometry: Geometry
    has_unknown: bool
    hdf5_mean: float = 0.0
    raw: bool = False  # images stored as pixels, not as JPEG or PNG

    @property
    def epoch(self) -> int:
        """How many iterations go once through the training images."""
        return max(math.ceil(self.counts["train"] / self.batch), 1)

    @property
    def batch(self) -> int:
        return max(min(32, self.counts["train"]), 1)

    @property
    def tested(self) -> str:
        """The split of the TEST phase; a net without one has no inputs for `deploy`."""
        return "val" if "val" in self.counts else "train"

    @property
    def test_batch(self) -> int:
        """A divisor of the number of images tested, so that a test counts each once; 32 where none is near."""
        count = self.counts[self.tested]
        return next((size for size in range(64, 7, -1) if count % size == 0), min(count, 32))

    @property
    def crop(self) -> Optional[int]:
        """The side of a square cut out of each image, 7/8 of its side (224 of 256); None for HDF5 and small images.

        Images of which only the short side is given are cut all the same, as those of a batch need one size.
        """
        height, width = self.geometry.size or (self.geometry.short_side or 0,) * 2
        if self.target == "hdf5" or height != width or (height < 32 and self.geometry.size):
            return None
        return height * 7 // 8 if height >= 32 else height

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def data_layers(facts: NetFacts, split: str, phase: str) -> str:
    """The layers that read one split, with tops "data" and "labels"."""
    batch = facts.batch if phase == "TRAIN" else facts.test_batch
    include = f"include {{ phase: {phase} }}"
    means = " ".join(f"mean_value: {value:g}" for value in facts.mean)
    mirror = "mirror: true " if phase == "TRAIN" else ""
    crop = f"crop_size: {facts.crop} " if facts.crop else ""
    if facts.target == "hdf5":
        shuffle = " shuffle: true" if phase == "TRAIN" else ""
        return f"""\
layer {{
  name: "pixels" type: "HDF5Data" top: "pixels" top: "labels" {include}
  hdf5_data_param {{ source: {quoted(facts.path(split + ".txt"))} batch_size: {batch}{shuffle} }}
}}
"""
    if facts.target == "index":
        options: Dict[str, Any] = {"source": facts.path(f"{split}_index.txt"), "batch_size": batch}
        if facts.geometry.size:
            options["new_height"], options["new_width"] = facts.geometry.size
        if facts.geometry.short_side:
            options["short_side"] = facts.geometry.short_side
        options.update({"crop_size": facts.crop} if facts.crop else {}, mean_value=facts.mean)
        options.update({"is_color": False} if facts.gray else {}, **({"mirror": True} if mirror else {}))
        text = json.dumps(options).replace("\\", "\\\\").replace("'", "\\'")
        return f"""\
layer {{
  name: "data" type: "Python" top: "data" top: "labels" {include}
  python_param {{
    module: "multilabel_softmax_loss"
    layer: "MultilabelImageDataLayer"
    param_str: '{text}'
  }}
}}
"""
    # Caffe logs an error for each image of pixels if told so.
    force = "" if facts.raw else " force_gray: true" if facts.gray else " force_color: true"
    return f"""\
layer {{
  name: "data" type: "Data" top: "data" {include}
  data_param {{ source: {quoted(facts.path(split + "_images"))} backend: LMDB batch_size: {batch} }}
  transform_param {{ {mirror}{crop}{means}{force} }}
}}
layer {{  # row k is that of image k: the same batch_size, and no shuffling of one alone
  name: "labels" type: "Data" top: "labels" {include}
  data_param {{ source: {quoted(facts.path(split + "_labels"))} backend: LMDB batch_size: {batch} }}
}}
"""


def train_val(facts: NetFacts) -> str:
    """The prototxt of a training net on converted data."""
    options = "\n    param_str: '{\"ignore_label\": -1}'  # unknown labels are -1" if facts.has_unknown else ""
    loss = '"MultilabelSoftmaxLossLayer"  # or MultilabelSigmoidLossLayer: a question of its own for each class'
    if facts.classes == 1:
        loss = '"MultilabelSigmoidLossLayer"  # the softmax of one class is 1 whatever its score'
    between = remark = ""
    if facts.tested == "train":
        remark = "# There are no images to validate with; those to train with stand in the TEST phase, too.\n"
    if facts.target == "hdf5":
        between = f"""
layer {{  # HDF5Data takes no transform_param
  name: "data" type: "Power" bottom: "pixels" top: "data" power_param {{ shift: {-facts.hdf5_mean:g} }}
}}
"""
    return f"""\
# Paths count from the folder in which training is started. mirror: true shows half of the images mirrored: take it out
# where left and right matter, as in text.
{remark}name: {quoted(os.path.basename(os.path.normpath(facts.folder)) or "net")}
{data_layers(facts, "train", "TRAIN")}{data_layers(facts, facts.tested, "TEST")}{between}
{SMALL_NET % facts.classes}
layer {{
  name: "loss"
  type: "Python"
  bottom: "scores"
  bottom: "labels"
  top: "loss"
  loss_weight: 1  # Caffe gives a Python layer none by itself, and without it nothing is learned
  python_param {{
    module: "multilabel_softmax_loss"
    layer: {loss}{options}
  }}
}}
"""


def solver(facts: NetFacts) -> str:
    epoch = facts.epoch
    test = ""
    if "val" in facts.counts:
        steps = math.ceil(facts.counts["val"] / facts.test_batch)
        test = f"test_iter: {steps}  # once through the validation images\ntest_interval: {epoch}\n"
    return f"""\
net: {quoted(facts.path("train_val.prototxt"))}
{test}type: "Adam"
base_lr: 0.001
momentum: 0.9
lr_policy: "fixed"
max_iter: {EPOCHS * epoch}  # {EPOCHS} times through the training images
snapshot: {epoch}
snapshot_prefix: {quoted(facts.path(f"{RUN}/net"))}
random_seed: 1
"""


def preprocessing(facts: NetFacts) -> Dict[str, Any]:
    """The content of preprocessing.json: how `predict` brings an image to the net."""
    hdf5 = facts.target == "hdf5"  # its net subtracts the mean itself
    content: Dict[str, Any] = {
        "mean": [0.0] if hdf5 else facts.mean,
        "scale": 1.0,
        "channels": "GRAY" if facts.gray else "BGR",
        "transparent": "white",
    }
    if facts.geometry.size or facts.crop:
        size = facts.geometry.size
        content.update(resize=list(size) if size else facts.geometry.short_side, crop=facts.crop or 0)
    return content


def next_steps(facts: NetFacts, program: str) -> str:
    """What to type next."""

    def name(file: str) -> str:
        return shlex.quote(facts.path(file))

    last = f"net_iter_{EPOCHS * facts.epoch}"  # the one to take where nothing is tested
    weights = name(f"{RUN}/{'best' if 'val' in facts.counts else last}.caffemodel")
    net, classes = name("train_val.prototxt"), name("classes.txt")
    steps = [f"train {name('solver.prototxt')} --out {name(RUN)} --preprocessing {name('preprocessing.json')}"]
    if "val" in facts.counts:
        steps.append(f"evaluate {net} {weights} --classes {classes}")
    steps += [
        f"deploy {net} --weights {weights}",
        f"predict {name('deploy.prototxt')} {weights} IMAGE... --classes {classes}",
    ]
    return "\n".join(f"  {program} {step}" for step in steps)
