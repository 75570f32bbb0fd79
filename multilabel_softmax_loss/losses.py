"""What the losses share: from arrays to one loss and its gradient, block by block, and which score is to blame."""

from __future__ import annotations

from typing import Any, Callable, Tuple

import numpy as np

from .blobs import InputError, Layout, real_array
from .options import Options


def loss_and_gradient(
    evaluate: Callable[..., float], options: Options, scores: Any, labels: Any, sample_weight: Any
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
    return evaluate(scores, labels, sample_weight, layout, options, gradient), gradient


def mean_loss(
    block: Callable[[tuple], np.ndarray],
    weight: np.ndarray,
    divisor: float,
    layout: Layout,
    options: Options,
    explain: Callable[[np.ndarray], InputError],
) -> float:
    """The sum over all positions of weight times loss / divisor; 0 where the divisor is 0.

    `block` gives the losses of the positions of one block, and `explain` the error for losses that are not finite.
    """
    losses = np.empty(layout.shape(1))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        for where in layout.blocks():
            losses[where] = block(where)
        loss = float(np.sum(losses * weight)) / divisor if divisor else 0.0
    if not np.isfinite(loss) and options.nonfinite == "error":
        raise explain(losses)
    return loss


def nonfinite_loss(
    scores: np.ndarray,
    losses: np.ndarray,
    layout: Layout,
    bad_scores: Callable[[tuple], np.ndarray],
    exceptions: str,
) -> InputError:
    """The error that names the score behind the first loss that is not finite.

    `bad_scores` is the mask of the scores at fault in a block; `exceptions` says which infinite scores are legal.
    """
    position = np.argwhere(~np.isfinite(losses))
    if not len(position):
        return InputError(
            "scores", "the losses are finite and their sum is not; {scores} or {sample_weight} are too large"
        )
    outer, _, *inner = position[0]
    where = (slice(outer, outer + 1), slice(None), *(slice(place, place + 1) for place in inner))
    value = losses[tuple(position[0])]
    bad = np.argwhere(bad_scores(where))
    if not len(bad):
        place = layout.locate(position[0], name_class=False)
        return InputError("scores", f"the loss at {place} overflows; {{scores}} or the class weights are too large")
    return InputError(
        "scores",
        f"{{scores}} has {scores[where][tuple(bad[0])]:g} at {layout.locate(bad[0], where)}; expected finite scores "
        f"({exceptions}). The loss there is {value:g}",
    )
