"""The command `evaluate`: multi-label metrics of a net over a whole HDF5 or LMDB set, and thresholds per class."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import UsageError
from ..files import PICTURES, check_output, read_lines, replacing, write_text
from ..nets.data_layers import batch_size, check_lengths, count_samples, sources
from ..nets.heads import Head, add_head_arguments, choose_head
from ..nets.python_layers import running
from ..nets.reading import phase_layers, read_prototxt
from ..nets.weights import load_net
from . import metrics

EXAMPLE = """example:
  python -m multilabel_softmax_loss evaluate train_val.prototxt run/best.caffemodel \\
      -k 1,3 --classes classes.txt --json scores.json --picture scores.png

The data are those of the net's TEST phase, each sample once. Probabilities are the softmax or the sigmoid of the scores
that the loss layer takes. CP CR CF1 OP OR OF1 are precision, recall and F1 per class and overall (Gong et al.,
arXiv:1312.4894; Wang et al., arXiv:1604.04573); N+ is the share of classes that are right at least once; LRAP is
label-ranking average precision; coverage is how many classes one has to list to meet all labels (less is better).
"""

HINTS = {"-k": "; several K are one word, as in -k 1,3"}

COLUMNS = (
    *("mAP", "LRAP", "coverage", "CP", "CR", "CF1"),
    *("OP", "OR", "OF1", "N+", "exact match", "hamming accuracy"),
)


def add_arguments(parser: Any) -> None:
    parser.description = "Scores of a whole data set through a net, then multi-label metrics beside trivial baselines."
    parser.epilog = EXAMPLE
    parser.add_argument("net", metavar="NET.prototxt", help="a net with data layers and a loss, such as train_val")
    parser.add_argument("weights", metavar="WEIGHTS", help="a .caffemodel")
    parser.add_argument("--data", metavar="SOURCE", help="another source for the data layer")
    parser.add_argument("--phase", choices=("TEST", "TRAIN"), default="TEST", help="whose data (default: %(default)s)")
    add_head_arguments(parser)
    parser.add_argument("--labels", metavar="BLOB", help="the blob of labels (default: what the loss layer takes)")
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
    check_output(arguments.tune_thresholds, (".json",))
    check_output(arguments.json, (".json",))
    check_output(arguments.picture, PICTURES)
    if arguments.json and arguments.json == arguments.tune_thresholds:
        raise UsageError(f"{arguments.json} is the file of both --json and --tune-thresholds; expected two.")
    names = read_lines(arguments.classes, "--classes") if arguments.classes else None
    thresholds = read_thresholds(arguments.thresholds) if arguments.thresholds else None
    truth, probs, known, head = net_outputs(
        arguments.net,
        arguments.weights,
        phase=arguments.phase,
        data=arguments.data,
        scores=arguments.scores,
        labels=arguments.labels,
        activation=arguments.activation,
    )
    check_arguments(arguments, names, thresholds, truth.shape[1], head)
    tuned = metrics.tune_thresholds(truth, probs, known) if arguments.tune_thresholds else None
    report = evaluation(
        truth,
        probs,
        known,
        arguments.k or [min(3, truth.shape[1])],
        thresholds=thresholds and thresholds.values,
        tuned=tuned,
        names=names,
    )
    report = {"net": arguments.net, "weights": arguments.weights, "probabilities": head.activation, **report}
    print(table(report))
    if tuned is not None:
        write_thresholds(arguments.tune_thresholds, tuned, report)
    if arguments.json:
        write_text(arguments.json, json.dumps(plain(report), indent=1) + "\n")
    if arguments.picture:
        draw(report, truth, probs, known, arguments.picture)
    return 0


def check_arguments(
    arguments: Any, names: Optional[List[str]], thresholds: Optional[Thresholds], classes: int, head: Head
) -> None:
    if names is not None and len(names) != classes:
        raise UsageError(f"{arguments.classes} names {len(names)} classes; expected {classes}, as the net scores.")
    if thresholds is not None:
        check_thresholds(thresholds, arguments.thresholds, classes, head.activation)
    for k in arguments.k or ():
        if not 1 <= k <= classes:
            raise UsageError(f"-k is {k}; expected 1 to {classes}, the number of classes.")


def net_outputs(
    path: str,
    weights: str,
    phase: str = "TEST",
    data: Optional[str] = None,
    scores: Optional[str] = None,
    labels: Optional[str] = None,
    activation: Optional[str] = None,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, Head]:
    """Labels and probabilities of every sample of the net's data, in order: (truth, probs, known, head)."""
    net = read_prototxt(path)
    layers = phase_layers(net, phase)
    head = choose_head(layers, path, scores, labels, activation)
    if head.labels is None:
        raise UsageError(f"{path}: the labels of {head.scores!r} are not known; name their blob with --labels.")
    only_phase(net, layers, data, path)
    count = samples_of(net, path, phase)
    return (*collect(load_net(net, path, phase, weights), net, head, count, path), head)


def only_phase(net: Any, layers: List[Any], data: Optional[str], path: str) -> None:
    """Leave `layers` in the net, their data in the order of the files and from the source `data` if that is given."""
    layers = [type(layer).FromString(layer.SerializeToString()) for layer in layers]
    del net.layer[:]
    net.layer.extend(layers)
    readers = sources(net.layer)
    if data is not None and len(readers) != 1:
        raise UsageError(f"{path} has {len(readers)} data layers; --data needs exactly one, so edit the sources there.")
    for layer in readers:
        parameter = layer.hdf5_data_param if layer.type == "HDF5Data" else layer.data_param
        if layer.type == "HDF5Data":
            parameter.shuffle = False
        elif layer.type == "Data":
            parameter.ClearField("rand_skip")
        if data is not None:
            parameter.source = data


def samples_of(net: Any, path: str, phase: str) -> int:
    """How many samples the data layers hold, the same number in each."""
    readers = sources(net.layer)
    if not readers:
        raise UsageError(f"{path} has no data layer in its {phase} phase; expected HDF5Data or Data.")
    counts = {layer.name: count_samples(layer) for layer in readers}
    check_lengths(counts, path)
    if len({batch_size(layer) for layer in readers}) > 1:
        raise UsageError(f"{path} has data layers of different batch sizes; expected one size.")
    return next(iter(counts.values()))


def collect(loaded: Any, net: Any, head: Head, count: int, path: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of `count` samples, each once: the last batch may begin the data anew, which is cut off."""
    from tqdm import tqdm

    size = batch_size(sources(net.layer)[0])
    parts = []
    for start in tqdm(range(0, count, size), unit="batch", leave=False, disable=not sys.stderr.isatty()):
        with running(path):
            loaded.forward()
        scores, labels = (loaded.blobs[name].data[: count - start] for name in (head.scores, head.labels))
        if not np.isfinite(scores).all():
            raise UsageError(f"blob {head.scores!r} is not finite for samples {start} to {start + len(scores) - 1}.")
        parts.append(head.rows(scores, labels))
    truth, probs, known = (np.concatenate(arrays) for arrays in zip(*parts))
    if truth.shape[1] < 2:
        raise UsageError(f"blob {head.scores!r} has one class; expected at least two.")
    if not truth.any():
        raise UsageError(f"blob {head.labels!r} holds no positive label in {count} samples; there is nothing to find.")
    return truth, probs, known


def evaluation(
    truth: np.ndarray,
    probs: np.ndarray,
    known: Optional[np.ndarray] = None,
    ks: Any = (3,),
    thresholds: Optional[np.ndarray] = None,
    tuned: Optional[np.ndarray] = None,
    names: Optional[List[str]] = None,
) -> Dict[str, Any]:
    """All figures as a dict: "metrics" of the net and of the baselines, "per_class", and what was counted."""
    known = None if known is None or known.all() else known
    ranking = metrics.ranking_metrics(truth, probs, known)
    decisions = {f"net, top {k}": metrics.top_k(probs, k) for k in ks}
    if thresholds is not None:
        decisions["net, thresholds"] = metrics.above(probs, thresholds)
    if tuned is not None:
        decisions["net, tuned here"] = metrics.above(probs, tuned)
    rows = {name: {**ranking, **metrics.decision_metrics(truth, decided, known)} for name, decided in decisions.items()}
    for k in ks:
        rows.update(metrics.baselines(truth, k, known))
    rows["all zeros"] = rows.pop("all zeros")  # last, however many k there are
    names = names or [str(k) for k in range(truth.shape[1])]
    per_class: Dict[str, Any] = {
        "positives": truth.sum(axis=0),
        "AP": metrics.average_precisions(truth, probs, known),
    }
    for name, decided in decisions.items():
        for metric, values in metrics.precision_recall_f1(truth, decided, known).items():
            per_class[f"{metric} ({name[5:]})"] = values
    return {
        "samples": len(truth),
        "samples_without_labels": int((~truth.any(axis=1)).sum()),
        "labels_per_sample": float(truth.sum(axis=1).mean()),
        "unknown_entries": 0 if known is None else int((~known).sum()),
        "classes": truth.shape[1],
        "classes_without_positives": [name for name, some in zip(names, truth.any(axis=0)) if not some],
        "metrics": rows,
        "per_class": [
            {"class": name, **{metric: values[k] for metric, values in per_class.items()}}
            for k, name in enumerate(names)
        ],
    }


def table(report: Dict[str, Any]) -> str:
    """The metrics as text, and what to know of them."""
    rows = report["metrics"]
    width = max(map(len, rows))
    heads = [name.split(" ") for name in COLUMNS]
    widths = [max(map(len, head)) + 2 if len(head[-1]) > 5 else 7 for head in heads]
    lines = [
        f"{report['samples']} samples, {report['classes']} classes, "
        f"{report['labels_per_sample']:.2f} labels per sample",
        "",
    ]
    lines.append(" " * width + "".join(f"{head[0] if len(head) > 1 else '':>{w}}" for head, w in zip(heads, widths)))
    lines.append(" " * width + "".join(f"{head[-1]:>{w}}" for head, w in zip(heads, widths)))
    for name, values in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"{figure(values[c]):>{w}}" for c, w in zip(COLUMNS, widths)))
    return "\n".join(line.rstrip() for line in [*lines, *notes(report)])


def figure(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def notes(report: Dict[str, Any]) -> List[str]:
    lines = [""]
    absent = report["classes_without_positives"]
    if absent:
        lines.append(
            f"{len(absent)} of {report['classes']} classes have no positives, so their average precision is undefined; "
            f"they are left out of the means over classes: {', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}"
        )
    if report["samples_without_labels"]:
        lines.append(f"{report['samples_without_labels']} samples have no label; LRAP and coverage leave them out.")
    if report["unknown_entries"]:
        lines.append(f"{report['unknown_entries']} unknown labels count nowhere.")
    if "net, tuned here" in report["metrics"]:
        lines.append("Thresholds tuned on a set flatter the net on that set: tune on one, evaluate on another.")
    return lines if len(lines) > 1 else []


def plain(value: Any) -> Any:
    """`value` as JSON has it: Python numbers, and null for what is undefined."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Thresholds


class Thresholds(NamedTuple):
    """One threshold per class, infinity for a class that is never decided for, and what a file says of them."""

    values: np.ndarray
    probabilities: Optional[str]
    classes: Optional[List[str]]


def write_thresholds(path: str, thresholds: np.ndarray, report: Dict[str, Any]) -> None:
    """A JSON file of one threshold per class, null for a class that is never decided for."""
    content = {
        "probabilities": report["probabilities"],
        "classes": [entry["class"] for entry in report["per_class"]],
        "thresholds": plain(thresholds),
        "F1": plain([entry["F1 (tuned here)"] for entry in report["per_class"]]),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_thresholds(path: str) -> Thresholds:
    """What `write_thresholds` wrote."""
    expected = 'expected a JSON file with "thresholds": [...], as evaluate --tune-thresholds writes it'
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        values = np.array([np.inf if value is None else float(value) for value in content["thresholds"]])
        return Thresholds(values, content.get("probabilities"), content.get("classes"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no file of thresholds ({error}); {expected}.") from error


def check_thresholds(thresholds: Thresholds, path: str, classes: int, kind: Optional[str]) -> None:
    """Raise a UsageError unless thresholds fit a net in number, and in the kind of probabilities where it is known."""
    values, tuned, _ = thresholds
    if len(values) != classes:
        raise UsageError(f"{path} holds {len(values)} thresholds; expected {classes}, as the net scores.")
    if kind in ("softmax", "sigmoid"):
        if tuned not in (None, kind):
            raise UsageError(f"{path} was tuned on {tuned} probabilities; expected {kind}, which this net gives.")
        if (values[np.isfinite(values)] > 1).any() or not (values >= 0).all():
            raise UsageError(f"{path} holds thresholds from {values.min():g} to {values.max():g}; expected 0 to 1.")


# Picture


def draw(report: Dict[str, Any], truth: np.ndarray, probs: np.ndarray, known: Optional[np.ndarray], path: str) -> None:
    """Bars of the classes' average precision beside chance, and precision-recall curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, curves) = pyplot.subplots(
        1, 2, figsize=(12, max(5, min(0.22 * report["classes"], 12))), constrained_layout=True
    )
    try:
        draw_bars(bars, report, truth)
        draw_curves(curves, report, truth, probs, known)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110)
    except ValueError as error:  # a suffix that is no picture
        raise UsageError(f"{path} cannot be drawn: {error}") from error
    finally:
        pyplot.close(figure)


def draw_bars(axes: Any, report: Dict[str, Any], truth: np.ndarray) -> None:
    defined = [k for k, entry in enumerate(report["per_class"]) if entry["positives"]]
    ap = np.array([report["per_class"][k]["AP"] for k in defined])
    order = np.argsort(ap)
    chance = truth[:, defined].mean(axis=0)[order]
    places = np.arange(len(order))
    axes.barh(places, ap[order], height=0.8, color="tab:blue", label="average precision")
    axes.plot(chance, places, "k|", markersize=8, label="chance: the share of positives")
    mean = metrics.mean_of_defined(ap)
    axes.axvline(mean, color="tab:orange", linestyle="--", label=f"mAP {mean:.3f}")
    if len(order) <= 60:
        for place, value in zip(places, ap[order]):
            axes.text(1.01, place, f"{value:.3f}", va="center", fontsize=8)
        axes.set_yticks(places)
        axes.set_yticklabels([report["per_class"][defined[k]]["class"] for k in order], fontsize=8)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(order)} classes, the best on top")
    axes.set(xlim=(0, 1), ylim=(-0.6, len(order) - 0.4), xlabel="average precision", title="Each class")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=3, frameon=False, fontsize=9)


def draw_curves(
    axes: Any, report: Dict[str, Any], truth: np.ndarray, probs: np.ndarray, known: Optional[np.ndarray]
) -> None:
    from sklearn.metrics import precision_recall_curve

    known = np.ones(truth.shape, bool) if known is None else known
    ap = np.array([entry["AP"] for entry in report["per_class"]], dtype=float)
    ranked = [int(k) for k in np.argsort(ap) if np.isfinite(ap[k])]
    shown = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    if len(ranked) <= 20:
        for k in set(ranked) - set(shown.values()):
            precision, recall, _ = precision_recall_curve(truth[known[:, k], k], probs[known[:, k], k])
            axes.plot(recall, precision, color="0.85", linewidth=1, zorder=1)
    precision, recall, _ = precision_recall_curve(truth[known], probs[known])
    axes.plot(recall, precision, color="black", linewidth=2.5, label="all decisions together", zorder=3)
    for (role, k), color in zip(shown.items(), ("tab:green", "tab:blue", "tab:red")):
        precision, recall, _ = precision_recall_curve(truth[known[:, k], k], probs[known[:, k], k])
        label = f"{role} class: {report['per_class'][k]['class']} (AP {ap[k]:.3f})"
        axes.plot(recall, precision, color=color, label=label, zorder=2)
    markers = iter("osD^v*")
    for name, values in report["metrics"].items():
        if name.startswith("net"):
            axes.plot(
                values["OR"], values["OP"], next(markers, "o"), color="black", markersize=9, markerfacecolor="white",
                label=f"{name[5:]}: OP {values['OP']:.3f}, OR {values['OR']:.3f}", zorder=4,
            )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=2, frameon=False, fontsize=9)
