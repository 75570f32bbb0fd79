"""Net surgery: from a training net to the net that is deployed."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from .data_layers import sources
from .heads import Head, choose_head, find_heads
from .reading import phase_layers


def deploy_head(net: Any, path: str, scores: Optional[str] = None, activation: Optional[str] = None) -> Head:
    """The scores to deploy: of the TEST phase's loss, or of the TRAIN phase's where only that has one."""
    tests = phase_layers(net, "TEST")
    if not find_heads(tests):
        tops = {top for layer in tests for top in layer.top}
        tests += [layer for layer in phase_layers(net, "TRAIN") if layer.bottom and layer.bottom[0] in tops]
    return choose_head(tests, path, scores, activation=activation, needs_labels=False)


def ancestors(layers: Sequence[Any], blob: str) -> List[Any]:
    """The layers that `blob` depends on, in their order."""
    needed, kept = {blob}, []
    for layer in reversed(layers):
        if needed.intersection(layer.top):
            kept.append(layer)
            needed.update(layer.bottom)
    return kept[::-1]


def input_names(net: Any, head: Head) -> List[str]:
    """The blobs that the data layers bring and the scores depend on."""
    kept = ancestors(phase_layers(net, "TEST"), head.scores)
    used = {bottom for layer in kept for bottom in layer.bottom}
    return [top for layer in sources(kept) for top in layer.top if top in used]


def deploy_net(net: Any, head: Head, shapes: Dict[str, Tuple[int, ...]]) -> Any:
    """The deploy NetParameter of a training net: from its inputs of these shapes to the blob "prob"."""
    deployed = type(net)(name=net.name)
    for name, shape in shapes.items():
        layer = deployed.layer.add(name=name, type="Input", top=[name])
        layer.input_param.shape.add(dim=shape)
    renamed: Dict[str, str] = {}
    for source in ancestors(phase_layers(net, "TEST"), head.scores):
        if not source.bottom and source.type != "Parameter":
            continue
        bottoms = [renamed.get(bottom, bottom) for bottom in source.bottom]
        if source.type == "Dropout":
            renamed[source.top[0]] = bottoms[0]
            continue
        layer = deployed.layer.add()
        layer.CopyFrom(source)
        layer.bottom[:] = bottoms
        for top in source.top:
            renamed.pop(top, None)
        strip_training(layer)
    scores = renamed.get(head.scores, head.scores)
    if head.activation != "none":
        taken = {top for layer in deployed.layer for top in layer.top}
        name = "prob" if "prob" not in taken else f"{scores}_prob"
        layer = deployed.layer.add(name=name, type=head.activation.capitalize(), bottom=[scores], top=[name])
        if head.activation == "softmax" and head.axis != 1:
            layer.softmax_param.axis = head.axis
    elif deployed.layer[-1].top[0] != scores:  # so that the last layer gives the answer
        deployed.layer.add(name=f"{scores}_out", type="Power", bottom=[scores], top=[f"{scores}_out"])
    return deployed


def strip_training(layer: Any) -> None:
    """Take out what only training needs: fillers, learning rates, loss weights, phases."""
    for name in ("include", "exclude", "loss_weight", "propagate_down", "phase", "blobs"):
        layer.ClearField(name)
    for parameter in layer.param:
        parameter.ClearField("lr_mult")
        parameter.ClearField("decay_mult")
    if not any(parameter.name for parameter in layer.param):  # a name shares weights between layers
        layer.ClearField("param")
    for field, value in layer.ListFields():
        if field.name.endswith("_param"):
            for name in ("weight_filler", "bias_filler", "filler"):
                if name in value.DESCRIPTOR.fields_by_name:
                    value.ClearField(name)
