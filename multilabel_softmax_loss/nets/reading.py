"""Prototxt files read, and the layers of a phase."""

from __future__ import annotations

import os
from typing import Any, List

from ..errors import UsageError


def read_prototxt(path: str, kind: str = "NetParameter") -> Any:
    """The message of `kind` that a prototxt file holds."""
    quiet_caffe()
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    message = getattr(caffe_pb2, kind)()
    try:
        with open(path, encoding="utf-8") as file:
            text_format.Merge(file.read(), message)
    except OSError as error:
        raise UsageError(f"{path or repr(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text file; expected a prototxt.") from error
    except text_format.ParseError as error:
        raise UsageError(f"{path} is no {kind} in text form: line {error}") from error
    if kind == "NetParameter":
        check_net(message, path)
    return message


def check_net(net: Any, path: str) -> None:
    if net.layers:
        raise UsageError(f"{path} has layers {{ }} of Caffe's old format; expected layer {{ }}, as Caffe 1.0 writes.")
    if not net.layer:
        raise UsageError(f"{path} has no layers; expected a net.")


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
