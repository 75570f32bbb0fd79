"""Heads of nets: the scores and labels of loss layers, and what makes probabilities of the scores."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import UsageError, unknown_name
from ..param_str import parse_literal

SOFTMAX_LOSSES = ("SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss")
PYTHON_LOSSES = {
    "MultilabelSoftmaxLossLayer": "softmax",
    "MultilabelSigmoidLossLayer": "sigmoid",
    "MultilabelRankingLossLayer": "none",  # ranks scores, which are no log odds
}
ACTIVATIONS = ("softmax", "sigmoid", "none")
FARTHEST = 1e300  # log odds stay finite, and so may be sorted and averaged


@dataclasses.dataclass(frozen=True)
class Head:
    """A blob of scores: the blob of its labels, and what makes probabilities of the scores.

    `label_format` is "dense", "indices" (lists of classes, padded with `ignore_label`) or "class" (one class, as
    SoftmaxWithLoss takes it). `loss_weight` is that of the layer; one of Caffe's `truncates` a label before it compares
    it with its `ignore_label`.
    """

    scores: str
    labels: Optional[str]
    activation: str
    axis: int = 1
    label_format: str = "dense"
    ignore_label: Optional[float] = None
    loss_weight: float = dataclasses.field(default=1.0, compare=False)
    truncates: bool = False

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """How sure the net is of each class, on a scale that does not end: log p - log(1 - p), in float64.

        For the sigmoid this is the score itself, for the softmax s_k - log sum_{j != k} exp s_j. Samples are ranked,
        and compared with thresholds, on this scale, as probabilities are all 1 beyond log odds of 37, even in float64.
        A class masked by a score of -inf has log odds of -1e300. Without an activation these are the scores as given.
        """
        scores = scores.astype(np.float64)
        if self.activation == "none":
            return scores
        if self.activation == "softmax":
            best = np.expand_dims(scores.argmax(axis=self.axis), self.axis)
            others = scores.copy()
            np.put_along_axis(others, best, -np.inf, axis=self.axis)
            log_others = log_sum_exp(others, self.axis)
            first = np.take_along_axis(scores, best, axis=self.axis)
            log_probs = scores - np.logaddexp(first, log_others)
            np.put_along_axis(log_probs, best, -np.inf, axis=self.axis)  # all others are at most 1/2
            scores = log_probs - np.log1p(-np.exp(log_probs))
            np.put_along_axis(scores, best, first - log_others, axis=self.axis)
        return np.clip(scores, -FARTHEST, FARTHEST)

    def probability(self, log_odds: np.ndarray) -> np.ndarray:
        """The probabilities of log odds, in float64; without an activation the values as given."""
        return log_odds if self.activation == "none" else np.exp(-np.logaddexp(0, -np.asarray(log_odds, np.float64)))

    def odds_of(self, probs: np.ndarray) -> np.ndarray:
        """The log odds of probabilities, infinite for 0 and 1 (and above, which nothing reaches)."""
        if self.activation == "none":
            return probs
        with np.errstate(divide="ignore"):
            return np.where(probs < 1, np.log(probs) - np.log1p(-np.minimum(probs, 1)), np.inf)

    def probs(self, scores: np.ndarray) -> np.ndarray:
        """The probabilities of scores, in float64."""
        return self.probability(self.log_odds(scores))

    def rows(self, scores: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch as (labels, log_odds, known), each (positions, C).

        Labels are those of the blob, or 1 and 0 where it holds classes; one equal to `ignore_label` is unknown, and 0.
        Positions of which all is unknown are left out.

        Raises
        ------
        UsageError : a label is none that the loss may be given: not finite, negative, above 1 for a sigmoid, no class.
        """
        axis = self.axis % scores.ndim
        classes = scores.shape[axis]
        log_odds = np.moveaxis(self.log_odds(scores), axis, -1).reshape(-1, classes)
        ignore = None if self.ignore_label is None else np.float32(self.ignore_label)
        if self.label_format == "dense":
            if labels.size != scores.size:
                raise self.misfit(labels, scores, f"{scores.shape}")
            labels = np.moveaxis(labels.reshape(scores.shape), axis, -1).reshape(-1, classes)
            known = self.are_known(labels)
            labels = np.where(known, labels, np.float32(0))
            self.check_labels(labels)
        else:
            labels, known = self.index_rows(labels, scores, axis, ignore)
        some = known.any(axis=1)
        return labels[some], log_odds[some], known[some]

    def check_batch(self, labels: np.ndarray) -> None:
        """Raise a UsageError for a dense label blob that holds what the loss may not be given, apart from unknowns."""
        rows = labels.reshape(len(labels), -1)
        self.check_labels(np.where(self.are_known(rows), rows, np.float32(0)))

    def are_known(self, labels: np.ndarray) -> np.ndarray:
        """Which dense labels say something, as they are not `ignore_label`."""
        if self.ignore_label is None:
            return np.ones(labels.shape, bool)
        known = labels != np.float32(self.ignore_label)
        cut = known & (np.trunc(labels) == self.ignore_label) if self.truncates else np.zeros(1, bool)
        if cut.any():
            raise UsageError(
                f"blob {self.labels!r} holds {labels[cut][0]:g}, which Caffe cuts to its ignore_label "
                f"{self.ignore_label:g}, and so leaves out. Take an ignore_label that no label begins with, such as -1."
            )
        return known

    def check_labels(self, labels: np.ndarray) -> None:
        """Raise a UsageError for a label (positions, C) that is not finite, negative, or too high for the loss."""
        highest = 1.0 if self.activation == "sigmoid" else np.finfo(np.float32).max
        wrong = ~((labels >= 0) & (labels <= highest))
        if wrong.any():
            position, k = np.argwhere(wrong)[0]
            expected = "from 0 to 1" if self.activation == "sigmoid" else "that are finite and not negative"
            raise UsageError(
                f"blob {self.labels!r} holds {labels[position, k]:g} (class {k}, row {position} of a batch); expected "
                f"labels {expected}. What is unknown may be a whole number that the loss names as its ignore_label."
            )

    def index_rows(
        self, labels: np.ndarray, scores: np.ndarray, axis: int, ignore: Optional[np.float32]
    ) -> Tuple[np.ndarray, np.ndarray]:
        classes = scores.shape[axis]
        positions = scores.size // classes
        width = labels.size // max(positions, 1)
        if labels.size != positions * width or (self.label_format == "class" and width != 1):
            expected = "one class per position" if self.label_format == "class" else "K class indices per position"
            raise self.misfit(labels, scores, expected)
        shape = [*scores.shape[:axis], width, *scores.shape[axis + 1 :]]
        indices = np.moveaxis(labels.reshape(shape), axis, -1).reshape(positions, width)
        padding = np.float32(-1) if self.label_format == "indices" and ignore is None else ignore
        used = np.ones(indices.shape, bool) if padding is None else indices != padding
        wrong = used & ~((indices >= 0) & (indices < classes) & (indices == np.floor(indices)))
        if wrong.any():
            raise UsageError(
                f"blob {self.labels!r} holds {indices[wrong][0]:g}; expected class indices from 0 to {classes - 1}, "
                f"as blob {self.scores!r} has {classes} scores."
            )
        dense = np.zeros((positions, classes), np.float32)
        row, place = np.nonzero(used)
        dense[row, indices[row, place].astype(np.int64)] = 1
        known = np.ones(dense.shape, bool)
        if self.label_format == "class":
            known[~used[:, 0]] = False
        return dense, known

    def misfit(self, labels: np.ndarray, scores: np.ndarray, expected: str) -> UsageError:
        return UsageError(
            f"blob {self.labels!r} has shape {labels.shape}; expected {expected}, to fit blob {self.scores!r} of shape "
            f"{scores.shape}. Change num_output of the layer that makes {self.scores!r}, or the width of the labels."
        )


def log_sum_exp(scores: np.ndarray, axis: int) -> np.ndarray:
    """log sum_j exp s_j, with `axis` of length 1; -inf where all scores are."""
    largest = scores.max(axis=axis, keepdims=True)
    shifted = scores - np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return largest + np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def before_activation(layers: Sequence[Any], blob: str) -> Optional[Head]:
    """The scores that the Softmax or Sigmoid layer which makes `blob` takes; None where no such layer makes it.

    A layer in place leaves no scores behind, so it counts as none.
    """
    makers = [layer for layer in layers if blob in layer.top]
    if not makers or makers[-1].type not in ("Softmax", "Sigmoid") or makers[-1].bottom[0] == blob:
        return None
    axis = makers[-1].softmax_param.axis if makers[-1].type == "Softmax" else 1
    return Head(makers[-1].bottom[0], None, makers[-1].type.lower(), axis)


def unsaturated(head: Head, layers: Sequence[Any]) -> Head:
    """The head whose scores are what a Softmax or Sigmoid layer took, where a loss takes the probabilities of that."""
    before = before_activation(layers, head.scores) if head.activation == "none" else None
    if before is None:
        return head
    return dataclasses.replace(head, scores=before.scores, activation=before.activation, axis=before.axis)


def find_heads(layers: Sequence[Any]) -> List[Head]:
    """The heads of the loss layers among `layers`: ours, and Caffe's softmax and sigmoid losses."""
    heads = []
    for layer in layers:
        if layer.type == "Python" and layer.python_param.layer in PYTHON_LOSSES and len(layer.bottom) > 1:
            options = read_options(layer)
            head = Head(
                layer.bottom[0],
                layer.bottom[1],
                PYTHON_LOSSES[layer.python_param.layer],
                options.get("axis", 1),
                options.get("label_format", "dense"),
                options.get("ignore_label"),
            )
        elif layer.type in SOFTMAX_LOSSES and len(layer.bottom) > 1:
            ignore = layer.loss_param.ignore_label if layer.loss_param.HasField("ignore_label") else None
            axis = layer.infogain_loss_param.axis if layer.type == "InfogainLoss" else layer.softmax_param.axis
            activation = "none" if layer.type == "MultinomialLogisticLoss" else "softmax"
            head = Head(layer.bottom[0], layer.bottom[1], activation, axis, "class", ignore)
        elif layer.type == "SigmoidCrossEntropyLoss" and len(layer.bottom) > 1:
            ignore = layer.loss_param.ignore_label if layer.loss_param.HasField("ignore_label") else None
            head = Head(layer.bottom[0], layer.bottom[1], "sigmoid", 1, "dense", ignore, truncates=True)
        else:
            continue
        if head not in heads:
            heads.append(dataclasses.replace(head, loss_weight=layer.loss_weight[0] if layer.loss_weight else 1.0))
    return heads


def read_options(layer: Any) -> Dict[str, Any]:
    """What the param_str of one of our layers says; the layer itself complains of what else is wrong in it."""
    text = layer.python_param.param_str
    try:
        options = parse_literal(text) if text.strip() else {}
    except ValueError as error:
        raise UsageError(f"layer {layer.name!r} has a param_str that is {error}.") from error
    axis = options.get("axis", 1)
    if type(axis) is not int:
        raise UsageError(f"layer {layer.name!r} has axis {axis!r} in its param_str; expected a whole number.")
    return options


def choose_head(
    layers: Sequence[Any],
    path: str,
    scores: Optional[str] = None,
    labels: Optional[str] = None,
    activation: Optional[str] = None,
    needs_labels: bool = True,
) -> Head:
    """The head that the command line names, or the only one there is, whatever its labels if these are not needed."""
    tops = [top for layer in layers for top in layer.top]
    for name in (scores, labels):
        if name is not None and name not in tops:
            raise unknown_name("blob", name, tops, path)
    heads = [head for head in find_heads(layers) if scores in (None, head.scores)]
    heads = [head for head in heads if head.labels == labels] or heads
    heads = [head for head in heads if head.activation == activation] or heads
    if not heads and scores:
        if not activation:
            raise UsageError(
                f"{path} has no loss known here that takes {scores!r}; add --activation ({', '.join(ACTIVATIONS)}), "
                "what makes probabilities of these scores."
            )
        return Head(scores, labels, activation)
    if not heads:
        raise UsageError(
            f"{path} has no loss layer known here ({', '.join([*PYTHON_LOSSES, *SOFTMAX_LOSSES[:2]])}, "
            "SigmoidCrossEntropyLoss); name the blobs with --scores and --labels, and --activation."
        )
    for option, field in (("--scores", "scores"), ("--labels", "labels"), ("--activation", "activation")):
        if field == "labels" and not needs_labels:
            continue
        found = list(dict.fromkeys(str(getattr(head, field)) for head in heads))
        if len(found) > 1:
            raise UsageError(f"{path} has losses of several {field} ({', '.join(found)}); choose with {option}.")
    head = heads[0]
    return dataclasses.replace(head, activation=activation or head.activation, labels=labels or head.labels)
