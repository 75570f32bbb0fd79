"""Prototxt files read, in any format that Caffe reads, and the layers of a phase."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any, List, Optional

from ..errors import UsageError
from ..files import cannot_be_read, open_file
from .upgrade import upgrade_net, upgrade_solver

KINDS = {"NetParameter": "a net", "SolverParameter": "a solver"}


def read_prototxt(path: str, kind: str = "NetParameter", named_by: Optional[str] = None) -> Any:
    """The message of `kind`, "NetParameter" or "SolverParameter", that a prototxt file holds, in Caffe 1.0's format.

    Raises
    ------
    UsageError : it cannot be read, which says where its name came from (`named_by`), or it holds something else.
    """
    quiet_caffe()
    text = read_text(path, named_by)
    message = parse(text, path, kind)
    if kind == "SolverParameter":
        upgrade_solver(message, path)
    else:
        upgrade_net(message, path)
        if not message.layer:
            raise UsageError(f"{path} has no layers; expected a net.")
    return message


def read_text(path: str, named_by: Optional[str]) -> str:
    try:
        with open_file(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, named_by, error) from error
    if content.startswith(codecs.BOM_UTF8):
        raise UsageError(
            f"{path} begins with a byte order mark, which Caffe cannot read; save it as UTF-8 without one (in the "
            "editor 'UTF-8', not 'UTF-8 with BOM')."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text file; expected a prototxt.") from error


def parse(text: str, path: str, kind: str) -> Any:
    try:
        from caffe.proto import caffe_pb2
        from google.protobuf import text_format
    except ModuleNotFoundError:  # which the commands explain
        raise
    except Exception as error:
        raise UsageError(
            f"Caffe is installed for {sys.executable}, but cannot be imported: {type(error).__name__}: {error}. One "
            "that was built for NumPy 1 and protobuf 3, as the wheel kendryte-caffe is, needs "
            "pip install 'numpy<2' 'protobuf<4' 'opencv-python-headless<4.12'"
        ) from error

    message = getattr(caffe_pb2, kind)()
    try:
        text_format.Merge(text, message)
    except (text_format.ParseError, RecursionError) as error:
        for other in KINDS:
            try:
                text_format.Merge(text, getattr(caffe_pb2, other)())
            except (text_format.ParseError, RecursionError):
                continue
            hint = f': one with net: "{path}" in it' if kind == "SolverParameter" else ", such as its net: names"
            raise UsageError(f"{path} is {KINDS[other]}; expected {KINDS[kind]}{hint}.") from error
        raise UsageError(f"{path} is no {kind} in text form: line {error}") from error
    return message


def phase_layers(net: Any, phase: str) -> List[Any]:
    """The layers of a NetParameter that belong to `phase`, "TRAIN" or "TEST", by Caffe's include and exclude rules."""
    return [layer for layer in net.layer if in_phase(layer, phase, net.state)]


def in_phase(layer: Any, phase: str, state: Any) -> bool:
    from caffe.proto import caffe_pb2

    number = caffe_pb2.Phase.Value(phase)

    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == number)
            and (not rule.HasField("min_level") or state.level >= rule.min_level)
            and (not rule.HasField("max_level") or state.level <= rule.max_level)
            and all(stage in state.stage for stage in rule.stage)
            and all(stage not in state.stage for stage in rule.not_stage)
        )

    if layer.include:
        return any(meets(rule) for rule in layer.include)
    return not any(meets(rule) for rule in layer.exclude)


def quiet_caffe() -> None:
    """Keep Caffe from logging each layer it makes; takes effect before the first ``import caffe``."""
    os.environ.setdefault("GLOG_minloglevel", "2")
