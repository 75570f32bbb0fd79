"""What a net gives for a whole data set: each sample once, as the metrics take it."""

from __future__ import annotations

import math
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import UsageError
from ..nets.class_labels import watch_labels
from ..nets.data_layers import (
    batch_size,
    check_data,
    count_samples,
    counted,
    pass_over_batch,
    places_of_sources,
    sources,
)
from ..nets.databases import watch_datums
from ..nets.heads import Head, choose_head, unsaturated
from ..nets.image_index import change_options, reads_index
from ..nets.pairing import parameter_of
from ..nets.python_layers import running
from ..nets.reading import phase_layers, read_prototxt
from ..nets.surgery import ancestors
from ..nets.weights import load_net
from ..parallel.ranks import in_turn, ranks
from .alike import check_net_alike
from .terminal import progress_bar


class Outputs(NamedTuple):
    """Labels and scores of every sample of a set, in order; see metrics.py. `log_odds` are those of `head`."""

    truth: np.ndarray
    log_odds: np.ndarray
    known: np.ndarray
    head: Head

    @property
    def probs(self) -> np.ndarray:
        return self.head.probability(self.log_odds)


def net_outputs(
    path: str,
    weights: str,
    phase: str = "TEST",
    data: Optional[str] = None,
    scores: Optional[str] = None,
    labels: Optional[str] = None,
    activation: Optional[str] = None,
    positive_above: Optional[float] = None,
    iterations: Optional[int] = None,
) -> Optional[Outputs]:
    """Labels and scores of every sample of the net's data, in order, as in the TEST phase.

    Of ranks that share the data, rank 0 has them all, and the others None.
    `positive_above` is as `positives` takes it; `iterations` is how many batches there are, where no file tells.
    """
    net = read_prototxt(path)
    layers = phase_layers(net, phase)
    head = unsaturated(choose_head(layers, path, scores, labels, activation), layers)
    if head.labels is None:
        raise UsageError(f"{path}: the labels of {head.scores!r} are not known; name their blob with --labels.")
    only_phase(net, layers, data, path)
    count = samples_of(net, path, phase, head, iterations)
    loaded = load_net(net, path, "TEST", weights)
    check_net_alike(path, net, loaded, head, positive_above, iterations)
    watch_labels(loaded, net.layer)
    watch_datums(loaded, net.layer)
    rows = collect(loaded, head, count, iterations, path)
    if not rows:
        return None
    found, log_odds, known = (np.concatenate(arrays) for arrays in zip(*rows))
    truth = positives(found, known, head.labels, positive_above)
    if truth.shape[1] < 2:
        raise UsageError(f"blob {head.scores!r} has one class; expected at least two.")
    if not truth.any():
        raise UsageError(f"blob {head.labels!r} holds no positive label in {len(truth)} samples: nothing to find.")
    return Outputs(truth, log_odds, known, head)


def positives(labels: np.ndarray, known: np.ndarray, blob: str, above: Optional[float] = None) -> np.ndarray:
    """True where a known label counts as positive: above a number, or not 0 where all that are not 0 are equal.

    Raises
    ------
    UsageError : no number is given, and the labels, of the blob `blob`, have more values.
    """
    if above is not None:
        return (labels > above) & known
    lowest, highest = labels.min(initial=np.inf, where=labels > 0), labels.max(initial=0)
    if highest > 0 and (lowest < highest or (highest != 1 and labels.all(where=known))):
        raise UsageError(
            f"blob {blob!r} holds labels from {labels.min(initial=np.inf, where=known):g} to {highest:g}, and which of "
            "them count as positive is known only of 0 and one other value. Say it, as in --positive-above 0.5 (or 0, "
            "if every label that is not 0 does)."
        )
    return labels > 0


def only_phase(net: Any, layers: List[Any], data: Optional[str], path: str) -> None:
    """Leave `layers` in the net, whatever their phase, data in the order of the files, and nothing by chance.

    The data are those of the source `data` if that is given.
    """
    layers = [type(layer).FromString(layer.SerializeToString()) for layer in layers]
    for layer in layers:
        for name in ("include", "exclude", "phase"):
            layer.ClearField(name)
        if layer.transform_param.mirror:
            layer.transform_param.mirror = False
    del net.layer[:]
    net.layer.extend(layers)
    found = counted(net.layer)
    if data is not None and len(found) != 1:
        raise UsageError(f"{path} has {len(found)} data layers; --data needs exactly one, so edit the sources there.")
    for layer in found:
        if reads_index(layer):
            change_options(layer, shuffle=False, **({} if data is None else {"source": data}))
            continue
        parameter = parameter_of(layer)
        for name in {"shuffle", "rand_skip"} & set(parameter.DESCRIPTOR.fields_by_name):
            parameter.ClearField(name)
        if data is not None:
            parameter.source = data


def samples_of(net: Any, path: str, phase: str, head: Head, iterations: Optional[int]) -> Optional[int]:
    """How many samples there are in the files of a net's data layers, all of them in one order; None: no file tells."""
    found = sources(ancestors(net.layer, head.scores))
    if not found:
        raise UsageError(f"{path} has no data layer in its {phase} phase; expected HDF5Data, Data or ImageData.")
    check_data(net.layer, path, [(head.scores, str(head.labels))])
    known = counted(found) or counted(sources(ancestors(net.layer, str(head.labels))))
    if not known and iterations is None:
        raise UsageError(
            f"{path}: no file tells how many samples layer {found[0].name!r} of type {found[0].type} brings; "
            "--iterations N says how many batches to score."
        )
    if not known:
        return None
    count, size = count_samples(known[0]), batch_size(known[0])
    if iterations is not None and iterations > math.ceil(count / size):
        raise UsageError(
            f"--iterations is {iterations}; expected at most {math.ceil(count / size)}, as there are {count} samples "
            f"in batches of {size}. Without --iterations each counts once."
        )
    return count if iterations is None else min(count, iterations * size)


def collect(
    loaded: Any, head: Head, count: Optional[int], iterations: Optional[int], path: str
) -> List[Tuple[np.ndarray, ...]]:
    """The rows of `count` samples, each once, as a last batch may begin the data anew; or of so many iterations.

    They are by batches, which ranks take in turn; rank 0 has all in the end.
    """
    parts: List[Tuple[np.ndarray, ...]] = []
    places, size = places_of_sources(loaded), loaded.blobs[head.labels].data.shape[0]
    seen = batches = 0
    with progress_bar(count, "sample") as bar:
        while seen < count if count is not None else batches < (iterations or 0):
            is_mine = batches % ranks.size == ranks.rank
            batches += 1
            with running(path):
                if is_mine:
                    loaded.forward()
                else:
                    pass_over_batch(loaded, places)
            if not is_mine:
                seen += size
                continue
            left = None if count is None else count - seen
            scores, labels = (loaded.blobs[name].data[:left] for name in (head.scores, head.labels))
            if not (scores < np.inf).all():  # -inf masks a class
                raise UsageError(f"blob {head.scores!r} is not finite for samples {seen} to {seen + len(scores) - 1}.")
            parts.append(head.rows(scores, labels))
            seen += len(scores)
            bar.update(len(scores))
    return in_turn(ranks.collect(parts, "the end of the data"))
