"""The loss layers as prototxt text, made from their options; and the snippets in prototxt/, made of that.

    python -m multilabel_softmax_loss.prototxt prototxt/   # write the snippets
    python -m multilabel_softmax_loss.prototxt --table softmax   # print an option table of README.md

None of it needs Caffe.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Type

import numpy as np

from .losses.options import Options, SigmoidOptions, SoftmaxOptions, number

# Options of each layer by its name in python_param.
LAYERS: Dict[str, Type[Options]] = {
    "MultilabelSoftmaxLossLayer": SoftmaxOptions,
    "MultilabelSigmoidLossLayer": SigmoidOptions,
}

# Comments beside the lines of a layer, one per top.
TOP_NOTES = ("the loss, a scalar", "the probabilities, shaped like the scores: 0 to 1, no gradient flows through them")
LOSS_WEIGHT_NOTES = (
    "Caffe gives a Python layer none by itself, and without it nothing is learned",
    "the probabilities are no loss",
)


def loss_layer(
    name: str = "loss",
    bottoms: Sequence[str] = ("scores", "labels"),
    tops: Sequence[str] = ("loss",),
    loss_weight: float = 1,
    layer: str = "MultilabelSoftmaxLossLayer",
    write_defaults: bool = False,
    **options: Any,
) -> str:
    """The prototxt text of a loss layer, with a comment on each blob.

    Parameters
    ----------
    name : str
        The layer's name in the net.
    bottoms : names of the blobs (scores, labels) or (scores, labels, sample weights)
    tops : names of the blobs (loss,) or (loss, probabilities)
    loss_weight : float
        That of the loss; the probabilities get 0.
    layer : str
        A class of this package, one of LAYERS.
    write_defaults : bool
        Write every option, each below its effect; otherwise only those that differ from their default.
    **options
        As in param_str. A file of class weights is read to check it and then written by its name.

    Raises
    ------
    ValueError : an option, a layer or a number of blobs is impossible.
    TypeError : an option has the wrong type, or `bottoms` or `tops` is one string.

    Examples
    --------
    >>> print(loss_layer(label_smoothing=0.1), end="")
    layer {
      name: "loss"
      type: "Python"
      bottom: "scores"  # class scores, N x C or N x C x H x W: any real number
      bottom: "labels"  # labels, shaped like the scores: finite, >= 0
      top: "loss"  # the loss, a scalar
      loss_weight: 1  # Caffe gives a Python layer none by itself, and without it nothing is learned
      python_param {
        module: "multilabel_softmax_loss"
        layer: "MultilabelSoftmaxLossLayer"
        param_str: '{"label_smoothing": 0.1}'
      }
    }
    """
    if layer not in LAYERS:
        nearest = difflib.get_close_matches(layer, LAYERS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(LAYERS)}"
        raise ValueError(f"unknown layer {layer!r}; {hint}")
    check_names("bottoms", bottoms, "2 (scores, labels) or 3 (scores, labels, sample weights)", (2, 3))
    check_names("tops", tops, "1 (the loss) or 2 (the loss, the probabilities)", (1, 2))
    try:
        number()(loss_weight)
    except (TypeError, ValueError) as error:
        raise type(error)(f"loss_weight = {loss_weight!r}; expected {error}") from error
    checked = LAYERS[layer].make(options)
    loss_weights = [plain(float(loss_weight)), 0][: len(tops)]
    lines = [
        "layer {",
        f"  name: {quoted(name)}",
        '  type: "Python"',
        *(f"  bottom: {quoted(blob)}  # {note}" for blob, note in zip(bottoms, bottom_notes(checked))),
        *(f"  top: {quoted(blob)}  # {note}" for blob, note in zip(tops, TOP_NOTES)),
        *(f"  loss_weight: {weight}  # {note}" for weight, note in zip(loss_weights, LOSS_WEIGHT_NOTES)),
        "  python_param {",
        '    module: "multilabel_softmax_loss"',
        f"    layer: {quoted(layer)}",
        *(f"    {line}" for line in param_str_lines(checked, options, write_defaults)),
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def check_names(role: str, names: Sequence[str], expected: str, allowed: Sequence[int]) -> None:
    if isinstance(names, str):
        raise TypeError(f"{role} = {names!r}; expected a list of names")
    if len(names) not in allowed:
        raise ValueError(f"{role} has {len(names)} names; expected {expected}")


def bottom_notes(options: Options) -> List[str]:
    """What each bottom is, in the words of a comment."""
    shape = "N x C or N x C x H x W" if options.axis == 1 else f"classes on axis {options.axis}"
    if options.label_format == "indices":
        labels = f"labels, lists of K class indices in place of the C scores: 0 to C-1, padded with {options.padding:g}"
    else:
        upper = "" if math.isinf(options.highest_label) else f", <= {options.highest_label:g}"
        labels = f"labels, shaped like the scores: finite, >= 0{upper}"
        if options.ignore_label is not None:
            labels += f"; {options.ignore_label:g} where unknown"
    return [f"class scores, {shape}: any real number", labels, "sample weights, one per sample or per position: >= 0"]


def param_str_lines(checked: Options, given: Mapping[str, Any], write_defaults: bool) -> List[str]:
    """The lines of `param_str: ...`; none where every option has its default."""
    fields = dataclasses.fields(checked)
    values = {entry.name: plain(getattr(checked, entry.name)) for entry in fields}
    values.update({name: value for name, value in given.items() if isinstance(value, str)})  # a file stays a name
    if write_defaults:
        pairs = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        pairs[:-1] = [pair + "," for pair in pairs[:-1]]
        # Strings side by side are one string, so that each option can have a comment.
        lines = ["param_str: '{'"]
        for entry, pair in zip(fields, pairs):
            lines.append("  # " + entry.metadata["effect"].replace("`", ""))
            lines.append("  " + quoted(pair, single=True))
        return lines + ["'}'"]
    defaults = {entry.name: plain(entry.default) for entry in fields}
    changed = {name: values[name] for name in given if values[name] != defaults[name]}
    return [f"param_str: {quoted(json.dumps(changed), single=True)}"] if changed else []


def plain(value: Any) -> Any:
    """`value` as JSON writes it, whole numbers without a point."""
    if isinstance(value, np.ndarray):
        return [plain(entry) for entry in value.tolist()]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def quoted(text: str, single: bool = False) -> str:
    """`text` as a string in prototxt; single quotes leave JSON readable."""
    mark = "'" if single else '"'
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark).replace("\n", "\\n") + mark


# The snippets. Lines of their comments that are indented by five spaces are Python, and the tests run them.

LOSS_ALONE = """\
# Put this layer at the end of your net. Change "scores" to the top of your last layer, an InnerProduct or
# Convolution of num_output C without Softmax, and "labels" to the top of the data layer that has the labels.
"""

WRITE_HDF5 = """\
# Write the files with h5py; paths are relative to the folder where training is started:
#
#     import h5py
#
#     with h5py.File("train.h5", "w") as file:
#         file["data"] = images.astype("float32") / 255  # scaled here: HDF5Data takes no transform_param
#         file["labels"] = labels.astype("float32")  # never bool, which aborts Caffe
#     with open("train.txt", "w") as file:
#         file.write("train.h5\\n")  # one file per line; Caffe reads each as a whole, so split what is large
#
# and test.h5 and test.txt alike. Change: the sources, batch_size, num_output of the layer "scores" to your C.
"""

HDF5_DATA = """\
layer {
  name: "data" type: "HDF5Data" top: "data" top: "labels" include { phase: TRAIN }
  hdf5_data_param { source: "train.txt" batch_size: 32 shuffle: true }  # images and labels stay together
}
layer {
  name: "data" type: "HDF5Data" top: "data" top: "labels" include { phase: TEST }
  hdf5_data_param { source: "test.txt" batch_size: 32 }
}
"""

SMALL_NET = """\

# Your net goes here, from "data" to "scores"; this one is a placeholder.
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 32 kernel_size: 3 pad: 1 weight_filler { type: "msra" } }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: AVE global_pooling: true }
}
layer {
  name: "scores" type: "InnerProduct" bottom: "pool1" top: "scores"
  inner_product_param { num_output: 20 weight_filler { type: "xavier" } }  # C classes
}
# The end of your net.

"""


class Snippet(NamedTuple):
    """A file of prototxt/: comment, layers and, unless it is the solver, one loss layer with these arguments."""

    summary: str
    comment: str
    layers: str
    loss: Optional[Dict[str, Any]]

    def text(self) -> str:
        loss = "" if self.loss is None else loss_layer(**self.loss)
        return f"# {self.summary}\n#\n{self.comment}\n{self.layers}{loss}"


SNIPPETS = {
    "softmax_loss": Snippet(
        "The plain loss: several labels per image, each label an equal share of the target.",
        LOSS_ALONE + "# Labels are 0 or 1; an image without any costs nothing.\n",
        "",
        {},
    ),
    "softmax_class_balancing": Snippet(
        "Class balancing: labels are real numbers, which weigh the classes that an image has.",
        LOSS_ALONE
        + """\
# Write, in place of 1, what the class shall weigh, for example its median-frequency weight. From labels of 0 and 1:
#
#     counts = labels.sum(axis=0)
#     labels = labels * np.median(counts) / np.maximum(counts, 1)
#
# "count" divides by the number M of an image's labels and keeps their sizes, where the default "l1" would divide
# them out. Labels left at 0 and 1 and the same weights as "class_weight": "weights.npy" are the same loss.
""",
        "",
        {"label_normalization": "count"},
    ),
    "softmax_hdf5": Snippet(
        "A whole net on HDF5 files: images N x 3 x H x W, labels N x C.",
        WRITE_HDF5,
        HDF5_DATA + SMALL_NET,
        {},
    ),
    "softmax_two_lmdbs": Snippet(
        "A whole net on two LMDBs side by side: images, and labels as Datums of C x 1 x 1.",
        """\
# Image k and label k find each other by their place alone: shuffled apart, they are lost to each other. So shuffle
# before writing, write both in one order, give both layers of a phase the same batch_size and neither rand_skip.
# With images N x 3 x H x W (BGR, uint8) and labels N x C:
#
#     import lmdb
#     from caffe.proto.caffe_pb2 import Datum
#
#     def write(path, datums):
#         with lmdb.open(path, map_size=2**36) as database, database.begin(write=True) as transaction:
#             for key, datum in enumerate(datums):
#                 transaction.put(b"%08d" % key, datum.SerializeToString())
#
#     order = np.random.default_rng(1).permutation(len(images))
#     size = dict(zip(("channels", "height", "width"), images.shape[1:]))
#     write("train_images", (Datum(data=image.tobytes(), **size) for image in images[order]))
#     write("train_labels", (Datum(float_data=row, channels=len(row), height=1, width=1) for row in labels[order]))
#
# and test_images and test_labels alike. Labels arrive as N x C x 1 x 1, which the loss takes. Change: the sources,
# batch_size, num_output of the layer "scores" to your C. transform_param belongs to the images alone.
""",
        """\
layer {
  name: "data" type: "Data" top: "data" include { phase: TRAIN }
  data_param { source: "train_images" backend: LMDB batch_size: 32 }
  transform_param { scale: 0.00392156862745 mirror: true }  # 1 / 255
}
layer {
  name: "labels" type: "Data" top: "labels" include { phase: TRAIN }
  data_param { source: "train_labels" backend: LMDB batch_size: 32 }
}
layer {
  name: "data" type: "Data" top: "data" include { phase: TEST }
  data_param { source: "test_images" backend: LMDB batch_size: 32 }
  transform_param { scale: 0.00392156862745 }
}
layer {
  name: "labels" type: "Data" top: "labels" include { phase: TEST }
  data_param { source: "test_labels" backend: LMDB batch_size: 32 }
}
"""
        + SMALL_NET,
        {},
    ),
    "softmax_partial_labels": Snippet(
        "Partial labels: 1 the image has the class, 0 it has not, -1 nobody looked.",
        LOSS_ALONE
        + """\
# Where known (N x C, bool) says what was looked at:
#
#     labels = np.where(known, labels, -1)
#
# An unknown class leaves that image's softmax: no target, no gradient, no part in the denominator.
""",
        "",
        {"ignore_label": -1},
    ),
    "softmax_index_lists": Snippet(
        "A whole net on index lists: N x K class indices in place of N x C labels, for many classes.",
        """\
# With classes a list of class indices per image, labels are as wide as the longest list of all, padded with -1:
#
#     labels = np.full((len(classes), max(map(len, classes))), -1)
#     for row, indices in zip(labels, classes):
#         row[: len(indices)] = indices
#
# Indices are exact in a float32 blob up to 16,777,216 classes.
#
"""
        + WRITE_HDF5,
        HDF5_DATA + SMALL_NET,
        {"label_format": "indices"},
    ),
    "softmax_per_pixel": Snippet(
        "A whole fully convolutional net with several labels per pixel: labels N x C x H x W.",
        """\
# Images are N x 3 x H x W with even H and W. A pixel without label costs nothing, and "normalization" "VALID", the
# default, averages over the others. "label_format" "indices" takes N x K x H x W, which is smaller.
"""
        + WRITE_HDF5,
        HDF5_DATA.replace("batch_size: 32", "batch_size: 4")
        + """\

# Your net goes here, from "data" to "scores" of the labels' H x W; this one is a placeholder.
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 16 kernel_size: 3 pad: 1 weight_filler { type: "msra" } }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 32 kernel_size: 3 pad: 1 weight_filler { type: "msra" } }
}
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer {
  name: "coarse" type: "Convolution" bottom: "conv2" top: "coarse"
  convolution_param { num_output: 20 kernel_size: 1 weight_filler { type: "xavier" } }  # C classes
}
layer {
  name: "scores" type: "Deconvolution" bottom: "coarse" top: "scores" param { lr_mult: 0 }  # doubles H and W
  convolution_param {  # num_output and group: C
    num_output: 20 group: 20 kernel_size: 4 stride: 2 pad: 1 bias_term: false weight_filler { type: "bilinear" }
  }
}
# The end of your net.

""",
        {},
    ),
    "softmax_distillation": Snippet(
        "Distillation: the targets are the probabilities of a teacher.",
        """\
# Put these layers at the end of your net, the student. Change "scores" to the top of its last layer and
# "teacher_scores" to that of the teacher, both N x C before any softmax. The teacher's may come from a file, like
# the labels in softmax_hdf5.prototxt, or from its layers in this net with lr_mult: 0 for each of their params.
# "divergence" "kl" makes the loss 0 where the student equals the teacher. For a temperature T (Hinton et al.,
# Distilling the Knowledge in a Neural Network, 2015) set both scales to 1 / T and loss_weight to T * T.
""",
        """\
layer {
  name: "student_softened" type: "Power" bottom: "scores" top: "student_softened"
  power_param { scale: 1 }  # 1 / T
}
layer {
  name: "teacher_softened" type: "Power" bottom: "teacher_scores" top: "teacher_softened"
  power_param { scale: 1 }  # 1 / T
}
layer { name: "teacher_probs" type: "Softmax" bottom: "teacher_softened" top: "teacher_probs" }
""",
        {"bottoms": ("student_softened", "teacher_probs"), "divergence": "kl"},
    ),
    "softmax_label_smoothing": Snippet(
        "Label smoothing: a tenth of the target is spread over all classes, so that no score has to grow for ever.",
        LOSS_ALONE,
        "",
        {"label_smoothing": 0.1},
    ),
    "softmax_options": Snippet(
        "All that the layer takes: sample weights, probabilities, and every option with its default.",
        LOSS_ALONE
        + """\
# Delete what you do not need: sample weights, probabilities with their loss_weight, options (no comma after the last).
""",
        "",
        {"bottoms": ("scores", "labels", "sample_weight"), "tops": ("loss", "probs"), "write_defaults": True},
    ),
    "sigmoid_loss": Snippet(
        "Sigmoid cross-entropy: a question of its own for each class, with a heavier weight on the answer yes.",
        LOSS_ALONE
        + """\
# Labels are from 0 to 1. pos_weight, one number or one per class, makes up for classes that few images have; the
# ratio of images without to images with the class balances the two. Without it the loss is Caffe's own
# SigmoidCrossEntropyLoss.
""",
        "",
        {"layer": "MultilabelSigmoidLossLayer", "pos_weight": 3},
    ),
    "sigmoid_focal": Snippet(
        "Focal loss: classes that the net is sure of hardly count, so that the rare hard ones are heard.",
        LOSS_ALONE
        + """\
# focal_gamma 0 is plain cross-entropy; the greater, the less an easy class costs. focal_alpha weighs the answer yes,
# 1 - focal_alpha the answer no. The values here are those of Lin et al., arXiv:1708.02002.
""",
        "",
        {"layer": "MultilabelSigmoidLossLayer", "focal_gamma": 2, "focal_alpha": 0.25},
    ),
    "sigmoid_options": Snippet(
        "All that the sigmoid layer takes: sample weights, probabilities, and every option with its default.",
        LOSS_ALONE
        + """\
# Delete what you do not need: sample weights, probabilities with their loss_weight, options (no comma after the last).
""",
        "",
        {
            "layer": "MultilabelSigmoidLossLayer",
            "bottoms": ("scores", "labels", "sample_weight"),
            "tops": ("loss", "probs"),
            "write_defaults": True,
        },
    ),
    "solver": Snippet(
        "A solver for the nets here: Adam, or SGD as its comment says.",
        """\
# Change: net, max_iter, test_iter (batches of the test set), and base_lr where the loss stalls or grows.
# For SGD: type: "SGD", base_lr: 0.01, momentum: 0.9, and no momentum2.
""",
        """\
net: "train.prototxt"  # the file with your net
type: "Adam"
base_lr: 0.001
momentum: 0.9
momentum2: 0.999
lr_policy: "multistep"  # base_lr times gamma at each stepvalue
gamma: 0.1
stepvalue: 8000
max_iter: 10000
weight_decay: 0.0001
test_iter: 10  # times batch_size: the images of one test
test_interval: 500
display: 50
snapshot: 2000
snapshot_prefix: "train"  # a folder in it must exist
random_seed: 1  # the same weights on every run; HDF5Data shuffles by a generator of its own
solver_mode: CPU  # GPU where Caffe is built for it; Python layers run on the CPU either way
""",
        None,
    ),
}


def option_table(loss: str) -> str:
    """A Markdown table of the options of "softmax" or "sigmoid": default, effect, source, and a snippet with each."""
    options_class = LAYERS[f"Multilabel{loss.capitalize()}LossLayer"]
    snippets = {stem: snippet.text() for stem, snippet in SNIPPETS.items() if stem.startswith(loss)}
    rows = ["| option | default | effect | source | snippet |", "|---|---|---|---|---|"]
    for entry in dataclasses.fields(options_class):
        mention = json.dumps(entry.name)
        stem = next(stem for stem, text in snippets.items() if mention in text)
        default, effect, source = json.dumps(entry.default), entry.metadata["effect"], entry.metadata["source"]
        rows.append(f"| `{entry.name}` | `{default}` | {effect} | {source} | [{stem}](prototxt/{stem}.prototxt) |")
    return "\n".join(rows) + "\n"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m multilabel_softmax_loss.prototxt", description="Write the snippets, or print the option table."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("folder", nargs="?", type=Path, help="write the snippets into this folder")
    what.add_argument("--table", choices=("softmax", "sigmoid"), help="print the option table of this loss")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print(option_table(chosen.table), end="")
        return 0
    if not chosen.folder.is_dir():
        parser.error(f"{chosen.folder} is no folder")
    for stem, snippet in SNIPPETS.items():
        (chosen.folder / f"{stem}.prototxt").write_text(snippet.text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
