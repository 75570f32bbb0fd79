"""The command `evaluate`: multi-label metrics of a net over a whole HDF5 or LMDB set, and thresholds per class."""

from __future__ import annotations

import argparse
import json
from typing import Any, List, Optional

from ..errors import UsageError
from ..files import PICTURES, check_apart, check_output, read_lines, write_text
from ..parallel.ranks import ranks
from . import metrics
from .arguments import add_head_arguments, add_positive_argument, at_least_one
from .outputs import net_outputs
from .pictures import draw
from .report import as_json, evaluation, table
from .terminal import columns
from .thresholds import levels_of, read_thresholds, write_thresholds

EXAMPLE = """example:
  python -m multilabel_softmax_loss evaluate train_val.prototxt run/best.caffemodel \\
      -k 1,3 --classes classes.txt --json scores.json --picture scores.png

The data are those of the net's TEST phase, each sample once. Probabilities are the softmax or the sigmoid of the scores
that the loss layer takes. CP CR CF1 OP OR OF1 are precision, recall and F1 per class and overall (Gong et al.,
arXiv:1312.4894; Wang et al., arXiv:1604.04573); N+ is the share of classes that are right at least once; LRAP is
label-ranking average precision; coverage is how many classes one has to list to meet all labels (less is better).
"""

HINTS = {"-k": "; several K are one word, as in -k 1,3"}


def add_arguments(parser: Any) -> None:
    parser.description = "Scores of a whole data set through a net, then multi-label metrics beside trivial baselines."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="a net with data layers and a loss, such as train_val")
    parser.add_argument("weights", metavar="WEIGHTS", help="a .caffemodel")
    parser.add_argument("--data", metavar="SOURCE", help="another source for the data layer")
    parser.add_argument(
        "--iterations", type=at_least_one, metavar="N", help="score N batches (only needed where no file tells)"
    )
    parser.add_argument("--phase", choices=("TEST", "TRAIN"), default="TEST", help="whose data (default: %(default)s)")
    add_head_arguments(parser)
    parser.add_argument("--labels", metavar="BLOB", help="the blob of labels (default: what the loss layer takes)")
    add_positive_argument(parser)
    parser.add_argument(
        "-k", type=whole_numbers, metavar="K[,K...]", help="decide for the K likeliest (default: 3), as in -k 1,3"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one per line")
    parser.add_argument("--thresholds", metavar="FILE", help="decide by these thresholds too")
    parser.add_argument("--tune-thresholds", metavar="FILE", help="write the thresholds of the best F1 on this set")
    parser.add_argument("--json", metavar="FILE", help="write all figures, those of each class too")
    parser.add_argument("--picture", metavar="FILE", help="draw average precisions and precision-recall curves (.png)")


def whole_numbers(text: str) -> List[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers such as 1,3") from None


def run(arguments: Any) -> int:
    if ranks.rank == 0:  # which writes
        check_output(arguments.tune_thresholds, (".json",))
        check_output(arguments.json, (".json",))
        check_output(arguments.picture, PICTURES)
    written = ("--json", "--tune-thresholds", "--picture")
    files = {name: getattr(arguments, name[2:].replace("-", "_")) for name in (*written, "--thresholds", "--classes")}
    check_apart({"the net": arguments.net, "the weights": arguments.weights, **files}, *written)
    names = read_lines(arguments.classes, "--classes") if arguments.classes else None
    thresholds = read_thresholds(arguments.thresholds) if arguments.thresholds else None
    options = ("phase", "data", "scores", "labels", "activation", "positive_above", "iterations")
    chosen = {name: getattr(arguments, name) for name in options}
    outputs = net_outputs(arguments.net, arguments.weights, **chosen)
    if outputs is None:
        return 0  # rank 0 does the rest
    truth, log_odds, known, head = outputs
    check_arguments(arguments, names, truth.shape[1])
    levels = levels_of(thresholds, arguments.thresholds, truth.shape[1], head, names) if thresholds else None
    tuned = metrics.tune_thresholds(truth, log_odds, known) if arguments.tune_thresholds else None
    ks = arguments.k or [min(3, truth.shape[1])]
    report = evaluation(truth, log_odds, known, ks, thresholds=levels, tuned=tuned, names=names)
    report = {"net": arguments.net, "weights": arguments.weights, "probabilities": head.activation, **report}
    print(table(report, columns()))
    if tuned is not None:
        write_thresholds(arguments.tune_thresholds, tuned, report, head)
    if arguments.json:
        write_text(arguments.json, json.dumps(as_json(report), indent=1) + "\n")
    if arguments.picture:
        draw(report, truth, log_odds, known, arguments.picture)
    return 0


def check_arguments(arguments: Any, names: Optional[List[str]], classes: int) -> None:
    if names is not None and len(names) != classes:
        raise UsageError(f"{arguments.classes} names {len(names)} classes; expected {classes}, as the net scores.")
    for k in arguments.k or ():
        if not 1 <= k <= classes:
            raise UsageError(f"-k is {k}; expected 1 to {classes}, the number of classes.")
