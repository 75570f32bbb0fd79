"""What the losses share: batches as views, their way through kernels or NumPy to one loss, and whom to blame."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from functools import lru_cache
from typing import Any, Callable, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import InputError
from .layout import BLOCK_ENTRIES, Layout, real_array
from .options import Options
from .targets import checked_weights

TINY, HUGE = 1e-30, 1e30  # well within the range of float32
MOST_SCALED = 1 << 17  # entries that show how any number of them is scaled


class Losses(NamedTuple):
    """u L of each position of a batch and what VALID counts there, float64 in C order, and the sums of both."""

    each: np.ndarray
    counts: np.ndarray
    total: float
    valid: float

    @classmethod
    def add_up(cls, each: np.ndarray, counts: np.ndarray) -> Losses:
        return cls(each, counts, float(each.sum()), float(counts.sum()))


class Batch(NamedTuple):
    """What a loss is computed of; every array is a view of the layout, (outer, width) or (outer, width, inner)."""

    scores: np.ndarray
    labels: np.ndarray
    weight: Optional[np.ndarray]  # float64, the largest is 1; None for none
    weight_scale: float  # what the weights were divided by, so that no gradient overflows before its division
    layout: Layout
    options: Any
    gradient: Optional[np.ndarray] = None  # gets u dL/ds where given
    probs: Optional[np.ndarray] = None  # gets the probabilities where given

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        labels: np.ndarray,
        sample_weight: Optional[np.ndarray],
        layout: Layout,
        options: Options,
        gradient: Optional[np.ndarray] = None,
        probs: Optional[np.ndarray] = None,
    ) -> Batch:
        """Arrays as a caller has them; an InputError if a sample weight is impossible."""
        check_ignore_label(labels, options)
        width, weight, scale = layout.classes, checked_weights(sample_weight, layout), 1.0
        if weight is not None:
            scale = float(weight.max(initial=0)) or 1.0
            weight /= scale
        return cls(
            layout.view(scores, width),
            layout.view(labels, layout.label_width),
            weight,
            scale,
            layout,
            options,
            None if gradient is None else layout.view(gradient, width),
            None if probs is None else layout.view(probs, width),
        )

    def pick(self, positions: np.ndarray) -> Tuple[Batch, tuple]:
        """These positions as a batch of their own, and the index that says where they are in this one."""
        layout, count = self.layout, len(positions)
        outer, inner = np.unravel_index(positions, (layout.outer, layout.inner))
        where = (outer,) if layout.flat else (outer, slice(None), inner)
        shape = (count, layout.classes)
        part = Batch(
            self.scores[where],
            self.labels[where],
            None if self.weight is None else self.weight.reshape(-1, 1)[positions],
            self.weight_scale,
            Layout(shape, (count, layout.label_width), None, self.options.on_axis(1)),
            self.options,
            None if self.gradient is None else np.empty(shape, self.gradient.dtype),
            None if self.probs is None else np.empty(shape, self.probs.dtype),
        )
        return part, where


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


def loss_and_gradient(
    evaluate: Callable[..., Tuple[float, float]], options: Options, scores: Any, labels: Any, sample_weight: Any
) -> Tuple[float, np.ndarray]:
    """Loss and gradient of what a caller has: arrays of any real type, or lists.

    Raises
    ------
    InputError, a ValueError : a shape, a label, a weight or a score is impossible; the message names the entry.
    TypeError : something is no array of real numbers.
    """
    scores, labels = real_array(scores, "scores"), real_array(labels, "labels")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if sample_weight is not None:
        sample_weight = real_array(sample_weight, "sample weights")
    weight_shape = None if sample_weight is None else sample_weight.shape
    layout = Layout(scores.shape, labels.shape, weight_shape, options)
    gradient = np.empty(scores.shape, scores.dtype)
    loss, divisor = evaluate(scores, labels, sample_weight, layout, options, gradient)
    scale_gradient(gradient, 1 / divisor if divisor else 0.0, gradient)
    return loss, gradient


def mean_loss(
    batch: Batch,
    compiled: str,
    by_numpy: Callable[[Batch], Losses],
    divisors: Mapping[str, float],
    explain: Callable[[Batch], InputError],
) -> Tuple[float, float]:
    """The sum of all u L over the divisor, and what the gradient is to be divided by; the loss is 0 where that is 0.

    `compiled` names the loss's function in kernels.py, `by_numpy` does the same for every batch, `divisors` has those
    of FULL and BATCH_SIZE, and `explain` makes the error for a loss that is not finite.
    """
    losses = compiled_losses(batch, compiled, by_numpy) or by_numpy(batch)
    normalization = batch.options.normalization
    divisor = losses.valid if normalization == "VALID" else divisors.get(normalization, 1.0) / batch.weight_scale
    loss = losses.total / divisor if divisor else 0.0
    if batch.options.nonfinite == "error" and not math.isfinite(loss):
        raise explain(batch)
    if batch.options.nonfinite == "error" and abs(losses.total) > HUGE and batch.gradient is not None:
        check_gradient(batch.gradient, loss)
    return loss, divisor


def check_gradient(gradient: np.ndarray, loss: float) -> None:
    """An InputError if the gradient before its division is more than its type holds."""
    if not np.isfinite(gradient).all():
        raise InputError("loss", f"the loss is {loss:g}, and its gradient is more than {gradient.dtype} holds")


def compiled_losses(batch: Batch, compiled: str, by_numpy: Callable[[Batch], Losses]) -> Optional[Losses]:
    """What `by_numpy` returns, by the kernels but for odd positions; None where they do not apply, or most are odd."""
    module = kernels()
    done = None if module is None else getattr(module, compiled)(batch)
    if done is None:
        return None
    if not math.isnan(done.total):
        return done
    odd = np.flatnonzero(np.isnan(done.each))
    if 2 * len(odd) > len(done.each):
        return None
    part, where = batch.pick(odd)
    done.each[odd] = by_numpy(part).each.ravel()
    for array, picked in ((batch.gradient, part.gradient), (batch.probs, part.probs)):
        if array is not None:
            array[where] = picked
    return done._replace(total=float(done.each.sum()))


def scale_gradient(gradient: np.ndarray, step: float, out: np.ndarray) -> None:
    """out = gradient * step for C-contiguous arrays; `out` may be `gradient`."""
    module = kernels()
    plain = gradient.dtype == out.dtype == np.float32 and TINY < abs(step) < HUGE
    if plain and module is not None:
        module.scale(gradient, step, out)
        return
    with np.errstate(over="ignore", under="ignore"):
        if plain:
            np.multiply(gradient, np.float32(step), out=out)  # three roundings with that of `gradient`: 1.8e-7
        else:
            np.multiply(gradient, step, out=out, dtype=np.float64, casting="same_kind")


def load_kernels(evaluate: Callable[..., Tuple[float, float]], layout: Layout, options: Options) -> None:
    """Evaluate one small batch like those to come, so that the first of these waits for no compiler."""
    entries = layout.positions * layout.classes
    rest = () if layout.flat else (2,)
    samples = max(1, min(layout.outer, 4096 // layout.classes))  # many short rows have a kernel of their own
    scores = np.zeros((samples, layout.classes, *rest), np.float32)
    is_label = options.label_format == "dense" or options.padding == 0
    labels = np.full((samples, layout.label_width, *rest), is_label, np.float32)  # 1, or an index that is no padding
    options = options.on_axis(1)
    layout = Layout(scores.shape, labels.shape, None, options)
    with suppress(InputError):  # options that refuse even this batch
        evaluate(scores, labels, None, layout, options, np.empty_like(scores))
    scaled = np.zeros(min(entries, MOST_SCALED), np.float32)
    scale_gradient(scaled, 1.0, scaled)


@lru_cache(maxsize=None)
def kernels() -> Any:
    """The compiled kernels, or None: as MULTILABEL_SOFTMAX_LOSS_KERNELS says, else where numba is installed."""
    wanted = os.environ.get("MULTILABEL_SOFTMAX_LOSS_KERNELS", "")
    if wanted not in ("", "numpy", "numba"):
        raise ValueError(f"MULTILABEL_SOFTMAX_LOSS_KERNELS is {wanted!r}; expected 'numpy' or 'numba', or nothing")
    if wanted == "numpy":
        return None
    try:
        from .. import kernels as module
    except ImportError:
        if wanted == "numba":
            raise
        return None
    return module


def by_blocks(
    block: Callable[[tuple], np.ndarray], weight: np.ndarray, layout: Layout, entries: int = BLOCK_ENTRIES
) -> np.ndarray:
    """u L of each position, where `block` gives L of the positions of a block of `entries`, 0 where u is 0."""
    losses = np.empty(layout.shape(1))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        for where in layout.blocks(entries):
            losses[where] = block(where)
        return losses * weight


def nonfinite_loss(
    batch: Batch, losses: np.ndarray, bad_scores: Callable[[tuple], np.ndarray], exceptions: str
) -> InputError:
    """The error that names the score behind the first loss that is not finite.

    `bad_scores` is the mask of the scores at fault in a block; `exceptions` says which infinite scores are legal.
    """
    position = np.argwhere(~np.isfinite(losses))
    if not len(position):
        return InputError("scores", "the losses are finite but not their sum; {scores} or the weights are too large")
    outer, _, *inner = position[0]
    where = (slice(outer, outer + 1), slice(None), *(slice(place, place + 1) for place in inner))
    value = losses[tuple(position[0])]
    bad = np.argwhere(bad_scores(where))
    if not len(bad):
        place = batch.layout.locate(position[0], name_class=False)
        return InputError("scores", f"the loss at {place} overflows; {{scores}} or the weights are too large")
    score = batch.scores[where][tuple(bad[0])]
    return InputError(
        "scores",
        f"{{scores}} has {score:g} at {batch.layout.locate(bad[0], where)}; expected finite scores "
        f"({exceptions}). The loss there is {value:g}",
    )
