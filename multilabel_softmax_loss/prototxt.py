"""The loss layers as prototxt text, made from their options; and what is made of them among the snippets.

    python -m multilabel_softmax_loss.prototxt prototxt   # write the *_options.prototxt and README.md's tables anew

None of it needs Caffe.

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

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Type

import numpy as np

from .losses.options import Options, RankingOptions, SigmoidOptions, SoftmaxOptions, number
from .param_str import OptionSet

# Options of each layer by its name in python_param.
LAYERS: Dict[str, Type[Options]] = {
    "MultilabelSoftmaxLossLayer": SoftmaxOptions,
    "MultilabelSigmoidLossLayer": SigmoidOptions,
    "MultilabelRankingLossLayer": RankingOptions,
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
    """
    check_blobs_and_weight(bottoms, tops, loss_weight)
    if layer == layer_name("ranking") and len(tops) > 1:
        raise ValueError(f"tops has 2 names; expected 1, as {layer} makes no probabilities")
    checked = options_of(layer).make(options)
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


def options_of(layer: str) -> Type[Options]:
    """The options class of a layer of this package; a ValueError if there is no such layer."""
    if layer not in LAYERS:
        nearest = difflib.get_close_matches(layer, LAYERS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(LAYERS)}"
        raise ValueError(f"unknown layer {layer!r}; {hint}")
    return LAYERS[layer]


def check_blobs_and_weight(bottoms: Sequence[str], tops: Sequence[str], loss_weight: float) -> None:
    check_names("bottoms", bottoms, "2 (scores, labels) or 3 (scores, labels, sample weights)", (2, 3))
    check_names("tops", tops, "1 (the loss) or 2 (the loss, the probabilities)", (1, 2))
    try:
        number()(loss_weight)
    except (TypeError, ValueError) as error:
        raise type(error)(f"loss_weight = {loss_weight!r}; expected {error}") from error


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
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def quoted(text: str, single: bool = False) -> str:
    """`text` as a string in prototxt; single quotes leave JSON readable."""
    mark = "'" if single else '"'
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark).replace("\n", "\\n") + mark


# The snippets are files, in prototxt/. Made here are those that list every option, and the tables of README.md there.

LOSSES = ("softmax", "sigmoid", "ranking")
FAMILIES = (*LOSSES, "solver")  # their order

OPTIONS_COMMENT = """\
# All that the {layer} takes: {blobs}, and every option with its default.
#
# Put this layer at the end of your net. Change "scores" to the top of your last layer, an InnerProduct or
# Convolution of num_output C without Softmax, and "labels" to the top of the data layer that has the labels.
# Delete what you do not need: {parts}, options (no comma after the last).

"""


def options_snippet(loss: str) -> str:
    """The text of `<loss>_options.prototxt`, for one of LOSSES."""
    bottoms, tops = ("scores", "labels", "sample_weight"), ("loss",) if loss == "ranking" else ("loss", "probs")
    layer = loss_layer("loss", bottoms, tops, layer=layer_name(loss), write_defaults=True)
    comment = OPTIONS_COMMENT.format(
        layer="layer" if loss == "softmax" else f"{loss} layer",
        blobs="sample weights" if loss == "ranking" else "sample weights, probabilities",
        parts="sample weights" if loss == "ranking" else "sample weights, probabilities with their loss_weight",
    )
    return comment + layer


def layer_name(loss: str) -> str:
    return f"Multilabel{loss.capitalize()}LossLayer"


def option_table(loss: str, snippets: Mapping[str, str]) -> str:
    """A Markdown table of the options of a loss: default, effect, source, and a snippet with each.

    `snippets` are texts by the names of their files, without suffix; the first one of that loss that has an option is
    the one to name.
    """

    def stem_of(name: str) -> str:
        return next(stem for stem in snippets if stem.startswith(loss) and json.dumps(name) in snippets[stem])

    rows = [[*cells, link(stem_of(cells[0].strip("`")))] for cells in option_rows(LAYERS[layer_name(loss)])]
    return table(["option", "default", "effect", "source", "snippet"], rows)


def option_rows(options: Type[OptionSet]) -> List[List[str]]:
    """Name, default, effect and source of each option."""
    return [
        [f"`{entry.name}`", f"`{json.dumps(entry.default)}`", entry.metadata["effect"], entry.metadata["source"]]
        for entry in dataclasses.fields(options)
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    first, *others = (f"| {' | '.join(row)} |\n" for row in (head, *rows))
    return "".join([first, "|---" * len(head), "|\n", *others])


def snippet_list(snippets: Mapping[str, str]) -> str:
    """A Markdown list of the snippets: the first line of each."""
    return "".join(f"- {link(stem)}: {text.splitlines()[0].strip('# ')}\n" for stem, text in snippets.items())


def place(stem: str) -> tuple:
    """Sorts names of snippets: the plain loss first in its family, all its options last."""
    return FAMILIES.index(stem.partition("_")[0]), not stem.endswith("_loss"), stem.endswith("_options"), stem


def link(stem: str) -> str:
    return f"[{stem}]({stem}.prototxt)"


def generated(folder: Path) -> Dict[str, str]:
    """What is made from the options, by the names of the files: those *_options.prototxt, and README.md."""
    from .data.feed import ImageDataOptions  # what pastes a loss needs no data

    made = {f"{loss}_options.prototxt": options_snippet(loss) for loss in LOSSES}
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.prototxt")}
    snippets = {Path(name).stem: text for name, text in {**texts, **made}.items()}
    snippets = {stem: snippets[stem] for stem in sorted(snippets, key=place)}
    tables = {
        **{f"options of the {loss} loss": option_table(loss, snippets) for loss in LOSSES},
        "options of the image data layer": table(
            ["option", "default", "effect", "source"], option_rows(ImageDataOptions)
        ),
        "snippets": snippet_list(snippets),
    }
    made["README.md"] = fill_blocks((folder / "README.md").read_text(encoding="utf-8"), tables)
    return made


def fill_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """`text` with new lines between `<!-- name -->` and `<!-- end of name -->`, by the names in `blocks`."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found and found_end):
            raise ValueError(f"the lines {begin.strip()} and {end} are not there, one after the other")
        text = before + begin + block + end + after
    return text


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m multilabel_softmax_loss.prototxt",
        description="Write anew what is made from the options: *_options.prototxt, and the tables of README.md.",
    )
    parser.add_argument("folder", type=Path, help="the folder of the snippets: prototxt")
    folder = parser.parse_args(arguments).folder
    if not (folder / "README.md").is_file():
        parser.error(f"{folder} is no folder with a README.md")
    for name, text in generated(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
