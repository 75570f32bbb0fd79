"""Net surgery: from a training net to the net that is deployed."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from .data_layers import sources
from .heads import Head, choose_head, find_heads
from .pairing import READERS, parameter_of
from .reading import phase_layers

Shape = Tuple[int, ...]


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


def input_layers(layers: Sequence[Any]) -> List[Any]:
    """The layers among these that bring data: constants (DummyData) only where nothing else does."""
    found = sources(layers)
    return [layer for layer in found if layer.type != "DummyData"] or found


def input_names(net: Any, head: Head) -> List[str]:
    """The blobs that the data layers bring and the scores depend on."""
    kept = ancestors(phase_layers(net, "TEST"), head.scores)
    used = {bottom for layer in kept for bottom in layer.bottom}
    return [top for layer in input_layers(kept) for top in layer.top if top in used]


def without_data(net: Any, scores: str, shapes: Dict[str, Shape]) -> List[Any]:
    """Copies of the layers from the data, which are left out, to the scores.

    Constants of the training net's batch size take that of the inputs' new shapes.
    """
    kept = ancestors(phase_layers(net, "TEST"), scores)
    data = input_layers(kept)
    batches = {parameter_of(layer).batch_size for layer in data if layer.type in READERS}
    copies = []
    for layer in kept:
        if any(layer is one for one in data):
            continue
        copy = type(layer).FromString(layer.SerializeToString())
        if layer.type == "DummyData":
            for dim in (shape.dim for shape in copy.dummy_data_param.shape if shape.dim and shape.dim[0] in batches):
                dim[0] = next(iter(shapes.values()))[0]
        copies.append(copy)
    return copies


def deploy_net(net: Any, head: Head, shapes: Dict[str, Shape]) -> Any:
    """The deploy NetParameter of a training net: from its inputs of these shapes to the blob "prob"."""
    deployed = type(net)(name=net.name)
    for name, shape in shapes.items():
        layer = deployed.layer.add(name=name, type="Input", top=[name])
        layer.input_param.shape.add(dim=shape)
    renamed: Dict[str, str] = {}
    for source in without_data(net, head.scores, shapes):
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
        write_defaults(layer)
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


def write_defaults(layer: Any) -> None:
    """Write out the defaults of Caffe that OpenCV has others for."""
    if layer.type == "LRN":
        for name in ("local_size", "alpha", "beta", "k"):
            setattr(layer.lrn_param, name, getattr(layer.lrn_param, name))


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
