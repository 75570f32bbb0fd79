"""What all losses share: a batch goes through a kernel, or else block by block through NumPy, to one loss.

A loss is a subclass of Loss in a module of its own: its options, its formula for a block, and, if there is one, its
kernel. A batch takes one way down: loss_and_gradient() or a layer -> Loss(...), the layout -> Loss.__call__, the kernel
or the blocks -> the division.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import Any, Callable, ClassVar, Dict, Mapping, NamedTuple, Optional, Tuple, Type

import numpy as np

from ..errors import InputError
from .layout import Layout, real_array
from .options import Options
from .targets import checked_weights, read_labels

HUGE = 1e30  # well within the range of float32


class Block(NamedTuple):
    """What a loss makes of a block, float64: per position (n, 1) or (n, 1, S), else (n, C) or (n, C, S)."""

    losses: np.ndarray  # L of each position
    counts: np.ndarray  # what it counts for under VALID, before its sample weight; 0 where it is ignored
    gradient: np.ndarray  # dL/ds
    probs: Optional[np.ndarray]  # None where the loss knows none


class Mean(NamedTuple):
    """The loss of a batch, and what its gradient is still to be divided by, in two factors.

    `divisor` is in units of the largest sample weight, `weight_scale`; what batches have in common, and may add up, is
    their product. Where it is 0, so are the loss and the gradient.
    """

    loss: float
    divisor: float
    weight_scale: float


class Loss:
    """A loss of batches that are laid out alike; what does not change from batch to batch is prepared here.

    Parameters
    ----------
    options : Options
    scores, labels, sample_weight : arrays, the last one may be None
        Of the shapes and types of those to come; what is in them does not matter here.

    Raises
    ------
    InputError : the shapes do not fit each other or the options.
    """

    options_class: ClassVar[Type[Options]]
    legal_scores: ClassVar[str]  # in words, which infinite scores a finite loss may have

    def __init__(self, options: Any, scores: np.ndarray, labels: np.ndarray, sample_weight: Optional[np.ndarray]):
        check_ignore_label(labels, options)
        self.options = options
        self.layout = Layout(
            scores.shape, labels.shape, None if sample_weight is None else sample_weight.shape, options
        )
        self.size = self.sizes().get(options.normalization)  # None for VALID
        module = kernels()
        self.kernel = self.plan(module) if module is not None and module.suits(scores, labels) else None

    def sizes(self) -> Mapping[str, float]:
        """The divisors of FULL, BATCH_SIZE and NONE, where positions are counted."""
        return {"FULL": self.layout.positions, "BATCH_SIZE": self.layout.outer, "NONE": 1}

    def plan(self, kernels: Any) -> Optional[Callable[..., Any]]:
        """The loss's kernel with its arguments, one of the plans that the module `kernels` makes; None for none."""
        return None

    def label_arguments(self) -> Dict[str, Any]:
        """What each plan of the kernels has to know of the arrays."""
        options, layout = self.options, self.layout
        listed = options.label_format == "indices"
        return {
            "shape": (layout.outer, layout.classes, layout.inner),
            "lists": layout.label_width if listed else None,
            "ignore_label": options.padding if listed else options.ignore_label,
        }

    def block(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray], where: tuple) -> Block:
        """The formula. Scores are float64; labels and known are as read_labels() makes them."""
        raise NotImplementedError

    def faults(self, scores: np.ndarray, labels: np.ndarray, known: Optional[np.ndarray]) -> np.ndarray:
        """The mask of those scores of a block that make its loss infinite or NaN."""
        raise NotImplementedError

    def __call__(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        sample_weight: Optional[np.ndarray] = None,
        gradient: Optional[np.ndarray] = None,
        probs: Optional[np.ndarray] = None,
        factor: Optional[float] = None,
    ) -> Mean:
        """The loss of a batch.

        Parameters
        ----------
        gradient, probs : arrays to be written to, C-contiguous, shaped like the scores; None for what is not wanted
            The gradient is u dL/ds times the factor, not yet divided. Nothing else of that size is allocated.
        factor : float
            Default: 1 over the largest sample weight.
        """
        weight, weight_scale = checked_weights(sample_weight, self.layout)
        factor = 1.0 if factor is None else factor * weight_scale
        sums = None
        if self.kernel is not None:
            sums = self.kernel(scores, labels, weight, gradient, probs, factor)
        if sums is None:
            sums = self.by_blocks(scores, labels, weight, gradient, probs, factor)
        total, counted = sums
        divisor = counted if self.size is None else self.size / weight_scale
        loss = total / divisor if divisor else 0.0
        if self.options.nonfinite == "error":
            if not math.isfinite(loss):
                raise self.explain(scores, labels, weight)
            if abs(total) > HUGE and gradient is not None:
                check_gradient(gradient, loss)
        return Mean(loss, divisor, weight_scale)

    def by_blocks(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        weight: Optional[np.ndarray],
        gradient: Optional[np.ndarray],
        probs: Optional[np.ndarray],
        factor: float,
    ) -> Tuple[float, float]:
        """The sums of u L and of what VALID counts, by NumPy; the kernels do the same."""
        layout, total, counted = self.layout, 0.0, 0.0
        scores, labels = layout.view(scores, layout.classes), layout.view(labels, layout.label_width)
        slopes, p = (None if out is None else layout.view(out, layout.classes) for out in (gradient, probs))
        with np.errstate(all="ignore"):
            for where in layout.blocks():
                values, known = read_labels(labels, where, layout, self.options)
                block = self.block(scores[where].astype(np.float64), values, known, where)
                u = 1.0 if weight is None else weight[where]
                counts = u * block.counts
                total += float(np.where(counts > 0, u * block.losses, 0).sum())
                counted += float(counts.sum())
                if slopes is not None:
                    np.multiply(block.gradient, u * factor, out=block.gradient)
                    slopes[where] = block.gradient if (counts > 0).all() else np.where(counts > 0, block.gradient, 0)
                if p is not None:
                    p[where] = block.probs
        return total, counted

    def explain(self, scores: np.ndarray, labels: np.ndarray, weight: Optional[np.ndarray]) -> InputError:
        """The error that names the score behind the first loss that is not finite."""
        layout = self.layout
        scores, labels = layout.view(scores, layout.classes), layout.view(labels, layout.label_width)
        with np.errstate(all="ignore"):
            for where in layout.blocks():
                values, known = read_labels(labels, where, layout, self.options)
                exact = scores[where].astype(np.float64)
                block = self.block(exact, values, known, where)
                counts = block.counts * (1.0 if weight is None else weight[where])
                losses = np.where(counts > 0, block.losses, 0)
                odd = np.argwhere(~np.isfinite(losses))
                if len(odd):
                    first, _, *inner = odd[0]
                    at = (first, slice(None), *inner)
                    bad = np.flatnonzero(self.faults(exact, values, known)[at])
                    if not len(bad):
                        place = layout.locate(odd[0], where, name_class=False)
                        return InputError(
                            "scores", f"the loss at {place} overflows; {{scores}} or the weights are too large"
                        )
                    entry = (first, bad[0], *inner)
                    return InputError(
                        "scores",
                        f"{{scores}} has {exact[entry]:g} at {layout.locate(entry, where)}; expected finite scores "
                        f"({self.legal_scores}). The loss there is {losses[tuple(odd[0])]:g}",
                    )
        return InputError("scores", "the losses are finite but not their sum; {scores} or the weights are too large")


def check_ignore_label(labels: np.ndarray, options: Options) -> None:
    """An InputError unless labels of this type can hold the ignore_label: rounded to 0 it would be found everywhere."""
    if options.ignore_label is None or labels.dtype.kind != "f":
        return
    with np.errstate(over="ignore", under="ignore"):
        stored = float(labels.dtype.type(options.ignore_label))
    if math.isinf(stored) or (stored == 0 and options.ignore_label != 0):
        raise InputError(
            "ignore_label",
            f"option 'ignore_label' = {options.ignore_label:g}; "
            f"expected a number that {{labels}} of {labels.dtype} can hold",
        )


def check_gradient(gradient: np.ndarray, loss: float) -> None:
    """An InputError if an entry of the gradient is more than its type holds."""
    if not np.isfinite(gradient).all():
        raise InputError("loss", f"the loss is {loss:g}, and its gradient is more than {gradient.dtype} holds")


def loss_and_gradient(
    loss_class: Type[Loss], options: Mapping[str, Any], scores: Any, labels: Any, sample_weight: Any
) -> Tuple[float, np.ndarray]:
    """Loss and gradient of what a caller has: arrays of any real type, or lists; the options by their names.

    Raises
    ------
    InputError, a ValueError : a shape, a label, a weight or a score is impossible; the message names the entry.
    TypeError : something is no array of real numbers.
    """
    checked = loss_class.options_class.make(options)
    scores, labels = real_array(scores, "scores"), real_array(labels, "labels")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if sample_weight is not None:
        sample_weight = real_array(sample_weight, "sample weights")
    loss = loss_class(checked, scores, labels, sample_weight)
    # Before its division a gradient may be more than float16 holds.
    gradient = np.empty(scores.shape, np.float32 if scores.dtype == np.float16 else scores.dtype)
    mean = loss(scores, labels, sample_weight, gradient)
    scale_gradient(gradient, 1 / mean.divisor if mean.divisor else 0.0)
    if gradient.dtype != scores.dtype:
        with np.errstate(over="ignore", under="ignore"):
            gradient = gradient.astype(scores.dtype)
        if checked.nonfinite == "error":
            check_gradient(gradient, mean.loss)
    return mean.loss, gradient


def scale_gradient(gradient: np.ndarray, step: float) -> None:
    """Multiply a C-contiguous array by `step` in place."""
    module = kernels()
    if module is not None and gradient.dtype == np.float32 and gradient.size:
        module.scale(gradient, step)
        return
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(gradient, step, out=gradient, dtype=np.float64, casting="same_kind")


@lru_cache(maxsize=None)
def kernels() -> Any:
    """The compiled kernels, or None: as MULTILABEL_SOFTMAX_LOSS_KERNELS says, else where numba is installed."""
    wanted = os.environ.get("MULTILABEL_SOFTMAX_LOSS_KERNELS", "")
    if wanted not in ("", "numpy", "numba"):
        raise ValueError(f"MULTILABEL_SOFTMAX_LOSS_KERNELS is {wanted!r}; expected 'numpy' or 'numba', or nothing")
    if wanted == "numpy":
        return None
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (threads.isdigit() and int(threads) > 0):  # numba would show a traceback, or refuse to be imported
        raise ValueError(f"NUMBA_NUM_THREADS is {threads!r}; expected a number of threads from 1 on, or nothing")
    try:
        from .. import kernels as module
    except ImportError:
        if wanted == "numba":
            raise
        return None
    return module
