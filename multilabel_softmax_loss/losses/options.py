"""The options of the losses: one frozen object per loss, made from `param_str` or from keywords, and checked."""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Mapping, Optional, Tuple, Union

import numpy as np

from ..param_str import OptionSet, choice, integer, number, option, optional


def per_class(value: Any) -> np.ndarray:
    """C non-negative values: a list, an array, or the name of a .npy or text file that holds them."""
    expected = "a list of finite numbers >= 0, one per class, or the name of a .npy or text file that holds them"
    if isinstance(value, str):
        if os.path.exists(value) and not os.path.isfile(value):
            raise ValueError("a readable file of one number per class, and no folder, pipe or device")
        try:
            value = read_array(value) if value.endswith(".npy") else read_numbers(value)
        except FileNotFoundError as error:
            where = f"there is none in {os.getcwd()}, from where paths count"
            raise ValueError(f"a readable file of one number per class; {where}") from error
        except Exception as error:  # NumPy lets the errors of its parsers through: zipfile, tokenize and others
            raise ValueError(f"a readable file of one number per class ({error})") from error
        if getattr(value, "dtype", np.dtype(float)).kind not in "fiu":
            raise ValueError(f"a readable file of one number per class (it has {value.dtype})")
    elif not isinstance(value, (list, tuple, np.ndarray)) or any(isinstance(entry, (bool, str)) for entry in value):
        raise TypeError(expected)
    try:
        values = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(expected) from error
    except OverflowError:
        raise ValueError(expected) from None
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{expected}; its shape is {values.shape}, where (C,) is meant")
    if not (values >= 0).all() or np.isinf(values).any():
        worst = int(np.argmin((values >= 0) & np.isfinite(values)))
        raise ValueError(f"{expected}; entry {worst} is {values[worst]:g}")
    values.flags.writeable = False
    return values


def one_or_per_class(value: Any) -> Any:
    """One non-negative number for all classes, or what per_class() takes."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return number(0)(value)
    try:
        return per_class(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"one finite number >= 0, or {error}") from error


def one_or_two(value: Any) -> Any:
    """One non-negative number for both terms, or one for each."""
    try:
        if isinstance(value, Mapping) and set(value) == {"positive", "negative"}:
            return {term: number(0)(value[term]) for term in ("positive", "negative")}
        return number(0)(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f'{error}, or two, as in {{"positive": 0, "negative": 4}}') from error


def read_array(path: str) -> np.ndarray:
    with open(path, "rb") as file:  # np.load leaves some torn files open
        return np.load(file, allow_pickle=False)


def read_numbers(path: str) -> list:
    """The numbers of a text file, separated by white space or commas."""
    with open(path, encoding="utf-8") as file:
        return [float(word) for word in file.read().replace(",", " ").split()]


normalization_mode = choice("FULL", "VALID", "BATCH_SIZE", "NONE")


@dataclass(frozen=True, eq=False)
class Options(OptionSet):
    """What the losses share. Fields have the names and the defaults of `param_str`."""

    highest_label: ClassVar[float] = math.inf

    axis: int = option(1, integer, "the class axis of the scores; may be negative", "Caffe, `SoftmaxParameter`")
    label_format: str = option(
        "dense",
        choice("dense", "indices"),
        '`"dense"`: labels shaped like the scores; `"indices"`: class indices, padded with `ignore_label` (default -1)',
        "Caffe's `SoftmaxWithLoss` for one index, here K of them",
    )
    ignore_label: Optional[float] = option(
        None,
        optional(number()),
        "a label entry equal to it is unknown: that class leaves that position",
        "Caffe, `LossParameter`, here per class",
    )
    class_weight: Optional[np.ndarray] = option(
        None,
        optional(per_class),
        "C factors for the targets: a list, or a `.npy` or text file",
        "Eigen and Fergus 2014, arXiv:1411.4734",
    )
    normalization: str = option(
        "VALID",
        normalization_mode,
        "the divisor: `VALID` the sample weight of the counted positions, `FULL` all positions, "
        "`BATCH_SIZE` the axes before the class axis, `NONE` 1",
        "Caffe, `LossParameter`",
    )
    nonfinite: str = option(
        "error",
        choice("error", "ignore"),
        '`"error"`: a loss of NaN or infinity is an error that names its cause',
        "this package",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_format == "indices" and self.ignore_label is not None and self.ignore_label % 1:
            raise ValueError(
                f"option 'ignore_label' = {self.ignore_label:g}; expected a whole number, "
                "since label_format 'indices' pads the lists with it"
            )

    @property
    def padding(self) -> float:
        """What fills the unused places of "indices" labels."""
        return -1.0 if self.ignore_label is None else self.ignore_label


@dataclass(frozen=True, eq=False)
class SoftmaxOptions(Options):
    """Options of the softmax loss, as in `param_str` of MultilabelSoftmaxLossLayer.

    Raises
    ------
    ValueError, TypeError : a name, a value or a type is impossible; the message says what is allowed.

    Examples
    --------
    >>> SoftmaxOptions(label_smoothing=0.1).label_smoothing
    0.1
    >>> SoftmaxOptions.parse('{"normalization": "FULL"}').normalization
    'FULL'
    """

    label_smoothing: float = option(
        0.0,
        number(0, 1),
        "moves this share of the targets to all classes alike",
        "Szegedy et al. 2015, arXiv:1512.00567",
    )
    label_normalization: str = option(
        "l1",
        choice("l1", "count", "none"),
        'targets from labels y: `"l1"` y / sum(y); `"count"` y / M with M non-zero labels; `"none"` y',
        '`"l1"` Tian 2016 and Mahajan et al. 2018, arXiv:1805.00932; `"count"` Gomez 2018',
    )
    empty: str = option(
        "ignore",
        choice("ignore", "uniform", "error"),
        'a position without positive label: `"ignore"` it, aim at `"uniform"` probabilities, or `"error"`',
        "this package",
    )
    divergence: str = option(
        "cross_entropy",
        choice("cross_entropy", "kl"),
        '`"kl"` subtracts the entropy of the targets: same gradient, zero at the optimum',
        "Tian 2016",
    )


@dataclass(frozen=True, eq=False)
class SigmoidOptions(Options):
    """Options of the sigmoid loss, as in `param_str` of MultilabelSigmoidLossLayer.

    Raises
    ------
    ValueError, TypeError : a name, a value or a type is impossible; the message says what is allowed.

    Examples
    --------
    >>> SigmoidOptions(focal_gamma=2).focal_gamma
    2.0
    """

    highest_label: ClassVar[float] = 1.0

    label_smoothing: float = option(
        0.0, number(0, 1), "moves this share of each target to 1/2", "Szegedy et al. 2015, arXiv:1512.00567"
    )
    class_weight: Optional[np.ndarray] = option(
        None,
        optional(per_class),
        "C factors for the losses of the classes: a list, or a `.npy` or text file",
        "Eigen and Fergus 2014, arXiv:1411.4734",
    )
    pos_weight: Optional[Union[float, np.ndarray]] = option(
        None,
        optional(one_or_per_class),
        "factor of the positive term t log p: one number, or C as for `class_weight`",
        "PyTorch, `BCEWithLogitsLoss`",
    )
    focal_gamma: Union[float, Mapping[str, float]] = option(
        0.0,
        one_or_two,
        "focal loss: factor (1-p)^gamma of log p, p^gamma of log(1-p); "
        'or a gamma for each, `{"positive": 0, "negative": 4}`',
        "Lin et al. 2017, arXiv:1708.02002, here for any label from 0 to 1; Ridnik et al. 2020, arXiv:2009.14119",
    )
    negative_margin: float = option(
        0.0,
        number(0, 1),
        "lowers p by this in the negative term, so that a class below it costs nothing: max(p - margin, 0)",
        "Ridnik et al. 2020, arXiv:2009.14119",
    )
    focal_alpha: Optional[float] = option(
        None,
        optional(number(0, 1)),
        "factor alpha of the positive term, 1 - alpha of the negative one",
        "Lin et al. 2017, arXiv:1708.02002",
    )
    normalization: str = option(
        "BATCH_SIZE",
        normalization_mode,
        "the divisor: `BATCH_SIZE` the first axis, `VALID` the known entries, each with its sample weight, "
        "`FULL` all entries, `NONE` 1",
        "Caffe, `LossParameter`",
    )

    @property
    def gammas(self) -> Tuple[float, float]:
        """`focal_gamma` of the positive and of the negative term."""
        gamma = self.focal_gamma
        return (gamma["positive"], gamma["negative"]) if isinstance(gamma, Mapping) else (gamma, gamma)


@dataclass(frozen=True, eq=False)
class RankingOptions(Options):
    """Options of the ranking loss, as in `param_str` of MultilabelRankingLossLayer.

    Raises
    ------
    ValueError, TypeError : a name, a value or a type is impossible; the message says what is allowed.

    Examples
    --------
    >>> RankingOptions(class_weight=[1, 2, 0.5]).class_weight
    array([1. , 2. , 0.5])
    """

    class_weight: Optional[np.ndarray] = option(
        None, optional(per_class), "C factors for the labels: a list, or a `.npy` or text file", "this package"
    )
    ranking: str = option(
        "pairwise",
        choice("pairwise", "warp", "lsep", "zlpr"),
        '`"pairwise"` hinges of all pairs; `"warp"` those weighted by rank; `"lsep"` log-sum-exp of the pairs; '
        '`"zlpr"` labelled classes above 0, the others below',
        "Gong et al. 2014, arXiv:1312.4894; Weston et al. 2011; Li et al. 2017, arXiv:1704.03135; "
        "Su et al. 2022, arXiv:2208.02955",
    )
    margin: float = option(
        1.0,
        number(0),
        "by how much a labelled class is to score above the others, for pairwise and warp",
        "Gong et al. 2014, arXiv:1312.4894",
    )
    pair_normalization: str = option(
        "pairs",
        choice("pairs", "none"),
        '`"pairs"`: pairwise and warp are divided by the number of pairs of a position; `"none"`: they are not',
        "this package",
    )
    empty: str = option(
        "ignore",
        choice("ignore", "error"),
        'a position without positive label: `"ignore"` it, or `"error"`',
        "this package",
    )
