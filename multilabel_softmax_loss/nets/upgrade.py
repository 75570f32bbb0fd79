"""Nets and solvers in Caffe's older formats, brought to that of Caffe 1.0, as Caffe does when it loads them."""

from __future__ import annotations

from typing import Any, Dict, List

from ..errors import UsageError

# layers { type: ... } is an enum, from which the type of layer { } follows word by word, but for these.
V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
V1_OWN = ("type", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer")  # not copied under the same name

# layers { layer { type: "conv" } }: the type, and the message that its fields went to.
V0_TYPES = {
    "conv": ("Convolution", "convolution_param"),
    "innerproduct": ("InnerProduct", "inner_product_param"),
    "pool": ("Pooling", "pooling_param"),
    "lrn": ("LRN", "lrn_param"),
    "dropout": ("Dropout", "dropout_param"),
    "concat": ("Concat", "concat_param"),
    "data": ("Data", "data_param"),
    "hdf5_data": ("HDF5Data", "hdf5_data_param"),
    "images": ("ImageData", "image_data_param"),
    "window_data": ("WindowData", "window_data_param"),
    "hdf5_output": ("HDF5Output", "hdf5_output_param"),
    "infogain_loss": ("InfogainLoss", "infogain_loss_param"),
    "multinomial_logistic_loss": ("MultinomialLogisticLoss", ""),
    "softmax_loss": ("SoftmaxWithLoss", ""),
    "euclidean_loss": ("EuclideanLoss", ""),
    "accuracy": ("Accuracy", ""),
    "bnll": ("BNLL", ""),
    "flatten": ("Flatten", ""),
    "im2col": ("Im2col", ""),
    "relu": ("ReLU", ""),
    "sigmoid": ("Sigmoid", ""),
    "softmax": ("Softmax", ""),
    "split": ("Split", ""),
    "tanh": ("TanH", ""),
}
V0_FIELDS = {
    "biasterm": "bias_term",
    "kernelsize": "kernel_size",
    "batchsize": "batch_size",
    "shuffle_images": "shuffle",
    "det_fg_threshold": "fg_threshold",
    "det_bg_threshold": "bg_threshold",
    "det_fg_fraction": "fg_fraction",
    "det_context_pad": "context_pad",
    "det_crop_mode": "crop_mode",
}
V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
V0_OWN = ("name", "type", "blobs", "blobs_lr", "weight_decay")

SOLVERS = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}


def upgrade_net(net: Any, path: str) -> None:
    """Bring a NetParameter read from `path` to the format of Caffe 1.0, in place.

    `layers { }` of both older formats become `layer { }`, and `input:` with its shapes an Input layer.

    Raises
    ------
    UsageError : the net mixes formats, or says what no Caffe understands.
    """
    if net.layers and net.layer:
        raise UsageError(
            f"{path} has both layers {{ }} of Caffe's old format and layer {{ }}, which Caffe would ignore there. "
            "The command migrate writes all in one format."
        )
    old = list(net.layers)
    if any(layer.HasField("layer") for layer in old):
        old = without_padding(old, path)
    for layer in old:
        upgraded = net.layer.add()
        if layer.HasField("layer"):
            upgrade_v0(layer, upgraded, path)
        else:
            upgrade_v1(layer, upgraded)
    net.ClearField("layers")
    for layer in net.layer:
        move_transform(layer)
    upgrade_input(net, path)


def upgrade_v1(old: Any, layer: Any) -> None:
    number = old.type
    name = old.DESCRIPTOR.enum_types_by_name["LayerType"].values_by_number[number].name
    layer.type = V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))
    for field, value in old.ListFields():
        if field.name not in V1_OWN:
            assign(layer, field.name, value)
    for place, shared in enumerate(old.param):
        parameter(layer, place).name = shared
    for place, mode in enumerate(old.blob_share_mode):
        parameter(layer, place).share_mode = mode  # the same numbers: STRICT is 0, PERMISSIVE 1
    rates(old, layer)


def upgrade_v0(connection: Any, layer: Any, path: str) -> None:
    old = connection.layer
    layer.bottom.extend(connection.bottom)
    layer.top.extend(connection.top)
    layer.name = old.name
    if old.type not in V0_TYPES:
        raise UsageError(f"{path}: layer {old.name!r} has type {old.type!r}, which Caffe's first format does not know.")
    layer.type, message = V0_TYPES[old.type]
    layer.blobs.extend(old.blobs)
    rates(old, layer)
    for field, value in old.ListFields():
        if field.name in V0_OWN:
            continue
        if field.name in V0_TRANSFORM:
            setattr(layer.transform_param, V0_TRANSFORM[field.name], value)
            continue
        name = V0_FIELDS.get(field.name, field.name)
        if field.name == message:
            getattr(layer, message).CopyFrom(value)
        elif message and name in getattr(layer, message).DESCRIPTOR.fields_by_name:
            assign(getattr(layer, message), name, value)
        else:
            raise UsageError(
                f"{path}: layer {old.name!r} of type {old.type!r} has {field.name}, which that type does not take. "
                "Delete it there."
            )


def without_padding(layers: Any, path: str) -> Any:
    """The layers of the first format without those of type "padding": the layer above pads for itself."""
    kept: List[Any] = []
    made_by: Dict[str, Any] = {}
    for layer in layers:
        sources = [made_by.get(bottom) for bottom in layer.bottom]
        if layer.layer.type != "padding":
            copy = type(layer).FromString(layer.SerializeToString())
            padding = next((source for source in sources if source and source.layer.type == "padding"), None)
            if padding is not None:
                if layer.layer.type not in ("conv", "pool") or len(layer.bottom) != 1:
                    raise UsageError(
                        f"{path}: layer {layer.layer.name!r} of type {layer.layer.type!r} takes the padding layer "
                        f"{padding.layer.name!r}; expected a conv or pool layer of one bottom."
                    )
                copy.layer.pad = padding.layer.pad
                copy.bottom[0] = padding.bottom[0]
            kept.append(copy)
        made_by.update(dict.fromkeys(layer.top, layer))
    return kept


def assign(message: Any, name: str, value: Any) -> None:
    """Set a field by a value of another message's field: a number into a repeated one is its first entry."""
    field = message.DESCRIPTOR.fields_by_name[name]
    target = getattr(message, name)
    if field.label == field.LABEL_REPEATED:
        target.extend(value if hasattr(value, "__len__") and not isinstance(value, str) else [value])
    elif field.message_type is not None:
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def rates(old: Any, layer: Any) -> None:
    """blobs_lr and weight_decay, a number for each parameter, as param { lr_mult decay_mult }."""
    for place, rate in enumerate(old.blobs_lr):
        parameter(layer, place).lr_mult = rate
    for place, rate in enumerate(old.weight_decay):
        parameter(layer, place).decay_mult = rate


def parameter(layer: Any, place: int) -> Any:
    while len(layer.param) <= place:
        layer.param.add()
    return layer.param[place]


def move_transform(layer: Any) -> None:
    """scale, mean_file, crop_size and mirror of a data layer belong to its transform_param."""
    names = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}
    if layer.type not in names or not layer.HasField(names[layer.type]):
        return
    message = getattr(layer, names[layer.type])
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if message.HasField(name):
            setattr(layer.transform_param, name, getattr(message, name))
            message.ClearField(name)


def upgrade_input(net: Any, path: str) -> None:
    """`input:` and its shapes as one Input layer, the first of the net."""
    names = list(net.input)
    if not names:
        return
    dims = list(net.input_dim)
    shapes = [list(shape.dim) for shape in net.input_shape]
    shapes = shapes or [dims[place : place + 4] for place in range(0, len(dims), 4)]
    if len(shapes) != len(names) or (not net.input_shape and len(dims) != 4 * len(names)):
        given = f"{len(shapes)} input_shape" if net.input_shape else f"{len(dims)} input_dim"
        raise UsageError(
            f"{path} has {len(names)} input and {given}; expected one input_shape, or four input_dim, each."
        )
    layers = [type(layer).FromString(layer.SerializeToString()) for layer in net.layer]
    for field in ("layer", "input", "input_shape", "input_dim"):
        net.ClearField(field)
    entry = net.layer.add(name="input", type="Input", top=names)
    for shape in shapes:
        entry.input_param.shape.add(dim=shape)
    net.layer.extend(layers)


def upgrade_solver(solver: Any, path: str) -> None:
    """Bring a SolverParameter read from `path`, and the nets written in it, to the format of Caffe 1.0, in place."""
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise UsageError(f"{path} has both type and solver_type, its older form; expected type only.")
        kinds: Dict[int, str] = {number: name for name, number in type(solver).SolverType.items()}
        solver.type = SOLVERS[kinds[solver.solver_type]]
        solver.ClearField("solver_type")
    for field in ("net_param", "train_net_param"):
        if solver.HasField(field):
            upgrade_net(getattr(solver, field), path)
    for net in solver.test_net_param:
        upgrade_net(net, path)
