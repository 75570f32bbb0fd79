"""What the commands know of nets: reading prototxt, finding scores and labels, checking weights."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import sys
import tempfile
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .native import UsageError, blocked, quiet_caffe
from .options import parse_literal

SOFTMAX_LOSSES = ("SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss")
PYTHON_LOSSES = {"MultilabelSoftmaxLossLayer": "softmax", "MultilabelSigmoidLossLayer": "sigmoid"}
ACTIVATIONS = ("softmax", "sigmoid", "none")
LAYER_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError)  # what a Python layer raises for bad input
PICTURES = (".png", ".pdf", ".svg", ".jpg")


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`; what is there when all went well takes the place of `path` at once.

    Ctrl-C and SIGTERM wait meanwhile.
    """
    folder, name = os.path.split(os.path.abspath(path))
    stem, suffix = os.path.splitext(name)
    with blocked():
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{stem}-", suffix=suffix, dir=folder)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
        os.close(handle)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for their owner only
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def check_output(path: Optional[str], kinds: Sequence[str]) -> None:
    """Say before the work, not after it, that a file cannot be written, or is not of the `kinds` (its suffixes)."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise UsageError(f"{path} cannot be written; expected a file name in a folder that exists.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission to write in {folder}.")
    if os.path.splitext(path)[1] not in kinds:
        raise UsageError(f"{path}: unknown kind of file; expected {' or '.join(kinds)}.")


def write_text(path: str, text: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: str, what: str) -> List[str]:
    """The lines of a text file, empty ones left out."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise UsageError(f"{path} ({what}) cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} ({what}) is no text file.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{path} ({what}) is empty.")
    return lines


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


def find_class(module: str, layer: str) -> type:
    """The class that a Python layer names; Caffe itself only says that something returned NULL.

    Raises
    ------
    ImportError : the module cannot be imported, whatever it raises, or has no such class.
    """
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, ImportError):
            told = f"{error}. Install it, or add its folder to PYTHONPATH"
        elif not isinstance(error, SyntaxError):  # which says where it is
            told += f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
        raise ImportError(f"python_param {{ module: {module!r} }} cannot be imported: {told}.") from error
    if not hasattr(found, layer):
        nearest = difflib.get_close_matches(layer, dir(found), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "change python_param { layer: ... }."
        raise ImportError(f"module {module!r} has no class {layer!r}; {hint}")
    return getattr(found, layer)


def check_python_layers(layers: Sequence[Any], path: str) -> None:
    """Raise a UsageError that names the Python layer of the net `path` whose class is not there, or is none."""
    import caffe

    for layer in layers:
        if layer.type == "Python":
            try:
                found = find_class(layer.python_param.module, layer.python_param.layer)
            except ImportError as error:
                raise UsageError(f"{path}: layer {layer.name!r}: {error}") from error
            if not (isinstance(found, type) and issubclass(found, caffe.Layer)):
                raise UsageError(f"{path}: layer {layer.name!r}: {found!r} is no class derived from caffe.Layer.")


@dataclasses.dataclass(frozen=True)
class Head:
    """A blob of scores: the blob of its labels, and what makes probabilities of the scores.

    `label_format` is "dense", "indices" (lists of classes, padded with `ignore_label`) or "class" (one class, as
    SoftmaxWithLoss takes it). `loss_weight` is that of the layer.
    """

    scores: str
    labels: Optional[str]
    activation: str
    axis: int = 1
    label_format: str = "dense"
    ignore_label: Optional[float] = None
    loss_weight: float = dataclasses.field(default=1.0, compare=False)

    def probs(self, scores: np.ndarray) -> np.ndarray:
        """The probabilities of scores, in float64."""
        scores = scores.astype(np.float64)
        if self.activation == "none":
            return scores
        with np.errstate(over="ignore", invalid="ignore"):
            if self.activation == "sigmoid":
                return 0.5 * (1 + np.tanh(0.5 * scores))  # overflows nowhere
            exps = np.exp(scores - scores.max(axis=self.axis, keepdims=True))
        return exps / exps.sum(axis=self.axis, keepdims=True)

    def rows(self, scores: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch as (truth, probs, known), each (positions, C), as metrics.py takes them.

        A label above 0 is a positive, one equal to `ignore_label` unknown; positions of which all is unknown are left
        out.
        """
        axis = self.axis % scores.ndim
        classes = scores.shape[axis]
        probs = np.moveaxis(self.probs(scores), axis, -1).reshape(-1, classes)
        ignore = None if self.ignore_label is None else np.float32(self.ignore_label)
        if self.label_format == "dense":
            if labels.size != scores.size:
                raise self.misfit(labels, scores, f"{scores.shape}")
            labels = np.moveaxis(labels.reshape(scores.shape), axis, -1).reshape(-1, classes)
            known = np.ones(labels.shape, bool) if ignore is None else labels != ignore
            truth = (labels > 0) & known
        else:
            truth, known = self.index_rows(labels, scores, axis, ignore)
        some = known.any(axis=1)
        return truth[some], probs[some], known[some]

    def index_rows(
        self, labels: np.ndarray, scores: np.ndarray, axis: int, ignore: Optional[np.float32]
    ) -> Tuple[np.ndarray, np.ndarray]:
        classes = scores.shape[axis]
        positions = scores.size // classes
        width = labels.size // max(positions, 1)
        if labels.size != positions * width or (self.label_format == "class" and width != 1):
            expected = "one class per position" if self.label_format == "class" else "K class indices per position"
            raise self.misfit(labels, scores, expected)
        shape = [*scores.shape[:axis], width, *scores.shape[axis + 1 :]]
        indices = np.moveaxis(labels.reshape(shape), axis, -1).reshape(positions, width)
        padding = np.float32(-1) if self.label_format == "indices" and ignore is None else ignore
        used = np.ones(indices.shape, bool) if padding is None else indices != padding
        wrong = used & ~((indices >= 0) & (indices < classes))
        if wrong.any():
            raise UsageError(
                f"blob {self.labels!r} holds {indices[wrong][0]:g}; expected class indices from 0 to {classes - 1}, "
                f"as blob {self.scores!r} has {classes} scores."
            )
        truth = np.zeros((positions, classes), bool)
        row, place = np.nonzero(used)
        truth[row, indices[row, place].astype(np.int64)] = True
        known = np.ones(truth.shape, bool)
        if self.label_format == "class":
            known[~used[:, 0]] = False
        return truth, known

    def misfit(self, labels: np.ndarray, scores: np.ndarray, expected: str) -> UsageError:
        return UsageError(
            f"blob {self.labels!r} has shape {labels.shape}; expected {expected}, to fit blob {self.scores!r} of shape "
            f"{scores.shape}. Change num_output of the layer that makes {self.scores!r}, or the width of the labels."
        )


def find_heads(layers: Sequence[Any]) -> List[Head]:
    """The heads of the loss layers among `layers`: ours, and Caffe's softmax and sigmoid losses."""
    heads = []
    for layer in layers:
        if layer.type == "Python" and layer.python_param.layer in PYTHON_LOSSES and len(layer.bottom) > 1:
            options = read_options(layer)
            head = Head(
                layer.bottom[0],
                layer.bottom[1],
                PYTHON_LOSSES[layer.python_param.layer],
                options.get("axis", 1),
                options.get("label_format", "dense"),
                options.get("ignore_label"),
            )
        elif layer.type in SOFTMAX_LOSSES and len(layer.bottom) > 1:
            ignore = layer.loss_param.ignore_label if layer.loss_param.HasField("ignore_label") else None
            axis = layer.infogain_loss_param.axis if layer.type == "InfogainLoss" else layer.softmax_param.axis
            activation = "none" if layer.type == "MultinomialLogisticLoss" else "softmax"
            head = Head(layer.bottom[0], layer.bottom[1], activation, axis, "class", ignore)
        elif layer.type == "SigmoidCrossEntropyLoss" and len(layer.bottom) > 1:
            ignore = layer.loss_param.ignore_label if layer.loss_param.HasField("ignore_label") else None
            head = Head(layer.bottom[0], layer.bottom[1], "sigmoid", 1, "dense", ignore)
        else:
            continue
        if head not in heads:
            heads.append(dataclasses.replace(head, loss_weight=layer.loss_weight[0] if layer.loss_weight else 1.0))
    return heads


def read_options(layer: Any) -> Dict[str, Any]:
    """What the param_str of one of our layers says; the layer itself complains of what else is wrong in it."""
    text = layer.python_param.param_str
    try:
        options = parse_literal(text) if text.strip() else {}
    except ValueError as error:
        raise UsageError(f"layer {layer.name!r} has a param_str that is {error}.") from error
    axis = options.get("axis", 1)
    if type(axis) is not int:
        raise UsageError(f"layer {layer.name!r} has axis {axis!r} in its param_str; expected a whole number.")
    return options


def choose_head(
    layers: Sequence[Any],
    path: str,
    scores: Optional[str] = None,
    labels: Optional[str] = None,
    activation: Optional[str] = None,
    needs_labels: bool = True,
) -> Head:
    """The head that the command line names, or the only one there is, whatever its labels if these are not needed."""
    tops = [top for layer in layers for top in layer.top]
    for name in (scores, labels):
        if name is not None and name not in tops:
            raise unknown_name("blob", name, tops, path)
    heads = [head for head in find_heads(layers) if scores in (None, head.scores)]
    heads = [head for head in heads if head.labels == labels] or heads
    heads = [head for head in heads if head.activation == activation] or heads
    if not heads and scores:
        if not activation:
            raise UsageError(
                f"{path} has no loss known here that takes {scores!r}; add --activation ({', '.join(ACTIVATIONS)}), "
                "what makes probabilities of these scores."
            )
        return Head(scores, labels, activation)
    if not heads:
        raise UsageError(
            f"{path} has no loss layer known here ({', '.join([*PYTHON_LOSSES, *SOFTMAX_LOSSES[:2]])}, "
            "SigmoidCrossEntropyLoss); name the blobs with --scores and --labels, and --activation."
        )
    for option, field in (("--scores", "scores"), ("--labels", "labels"), ("--activation", "activation")):
        if field == "labels" and not needs_labels:
            continue
        found = list(dict.fromkeys(str(getattr(head, field)) for head in heads))
        if len(found) > 1:
            raise UsageError(f"{path} has losses of several {field} ({', '.join(found)}); choose with {option}.")
    head = heads[0]
    return dataclasses.replace(head, activation=activation or head.activation, labels=labels or head.labels)


def unknown_name(what: str, name: str, known: Sequence[str], where: str) -> UsageError:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(dict.fromkeys(known))}."
    return UsageError(f"{where} has no {what} {name!r}; {hint}")


def add_head_arguments(parser: Any) -> None:
    parser.add_argument(
        "--scores", metavar="BLOB", help="the blob of class scores (default: what the loss layer takes)"
    )
    parser.add_argument("--activation", choices=ACTIVATIONS, help="scores to probabilities (default: the loss layer's)")


# Nets and weights


def load_net(net: Any, path: str, phase: str = "TEST", weights: Optional[str] = None) -> Any:
    """A caffe.Net of the NetParameter `net`, which came from `path`.

    With `weights` every parameter comes from them; without, the fillers draw the same on every call.
    """
    import caffe

    caffe.set_random_seed(0)

    if weights is not None:
        stored = read_weights(weights)
    check_python_layers(phase_layers(net, phase), path)
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        prototxt = os.path.join(folder, "net.prototxt")
        with open(prototxt, "w", encoding="utf-8") as file:
            file.write(str(net))
        with python_layer_errors(path):
            loaded = caffe.Net(prototxt, getattr(caffe, phase))
    if weights is not None:
        check_layers(loaded, stored, weights, path, "Give the weights of this net.")
        loaded.copy_from(weights)
        check_finite_weights(loaded, weights)
    return loaded


def not_finite(net: Any) -> Optional[str]:
    """The first layer of a net that has a weight which is not finite."""
    for name, blobs in net.params.items():
        if not all(np.isfinite(blob.data).all() for blob in blobs):
            return name
    return None


def check_finite_weights(net: Any, weights: str) -> None:
    layer = not_finite(net)
    if layer is not None:
        raise UsageError(
            f"{weights} has weights of layer {layer!r} that are not finite; expected those of a run that did well."
        )


@contextmanager
def running(path: str) -> Iterator[None]:
    """Turn what the Python layers of the net `path` raise while it runs into a UsageError."""
    try:
        yield
    except LAYER_ERRORS as error:
        raise UsageError(f"{path}: {error}") from error


@contextmanager
def python_layer_errors(path: str) -> Iterator[None]:
    """Turn what Python layers say while a net of `path` is made into a UsageError.

    A layer that cannot be found is a SystemError without a reason; pycaffe prints that to sys.stderr.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
        sys.stderr.write(said.getvalue())  # such as warnings
    except SystemError as error:
        lines = [line for line in said.getvalue().splitlines() if line and not line[0].isspace()]
        raise UsageError(f"{path} has a Python layer that cannot be made: {lines[-1] if lines else error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{path}: {error}") from error


def read_weights(path: str) -> Dict[str, List[Tuple[int, ...]]]:
    """The layers that a weights file has parameters for, and the shapes of these."""
    if not os.path.isfile(path):
        raise UsageError(f"{path or repr(path)} is no file; expected weights (.caffemodel, or .caffemodel.h5).")
    if path.endswith(".h5"):
        return read_hdf5_weights(path)
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    message = caffe_pb2.NetParameter()
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # protobuf only warns where data are left over
            message.ParseFromString(file.read())
    # protobuf 3.20 raises a SystemError for a string that is no UTF-8.
    except (DecodeError, SystemError, RuntimeWarning) as error:
        raise UsageError(f"{path} is torn, or no weights file: it does not parse as a NetParameter.") from error
    stored = {layer.name: [blob_shape(blob) for blob in layer.blobs] for layer in message.layer if layer.blobs}
    stored.update({layer.name: [blob_shape(blob) for blob in layer.blobs] for layer in message.layers if layer.blobs})
    if not stored:
        raise UsageError(f"{path} holds no weights of any layer; expected a .caffemodel.")
    return stored


def read_hdf5_weights(path: str) -> Dict[str, List[Tuple[int, ...]]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            layers = file.get("data")
            if not isinstance(layers, h5py.Group):
                raise KeyError("it has no group 'data' of layers")
            return {name: [layers[name][key].shape for key in sorted(layers[name], key=int)] for name in layers}
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is torn, or no weights file: {error}.") from error


def blob_shape(blob: Any) -> Tuple[int, ...]:
    """The shape of a stored blob; () for a blob without axes, which Caffe stores without a shape."""
    old = ("num", "channels", "height", "width")  # before Caffe 1.0
    if any(blob.HasField(name) for name in old):
        return tuple(getattr(blob, name) for name in old)
    return tuple(blob.shape.dim)


def check_layers(net: Any, stored: Dict[str, List[Tuple[int, ...]]], weights: str, path: str, remedy: str) -> None:
    """Raise a UsageError, which ends in a remedy, unless weights have all layers of the net `path`, in its shapes."""
    missing = [name for name in net.params if name not in stored]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"{weights} has no weights for layer {missing[0]!r} of {path}{more}; it has {shortlist(stored)}. {remedy}"
        )
    check_shapes(net, stored, weights, path)


def copy_matching(net: Any, weights: str, path: str) -> List[str]:
    """Copy the weights of the layers that have the same names; the names of those that have none there."""
    stored = read_weights(weights)
    fresh = [name for name in net.params if name not in stored]
    if len(fresh) == len(net.params):
        raise UsageError(f"{weights} has no layer of the net of {path}; it has {shortlist(stored)}.")
    check_shapes(net, stored, weights, path)
    net.copy_from(weights)
    check_finite_weights(net, weights)
    return fresh


def check_shapes(net: Any, stored: Dict[str, List[Tuple[int, ...]]], weights: str, path: str) -> None:
    for name, blobs in net.params.items():
        if name not in stored:
            continue
        shapes = [tuple(blob.data.shape) for blob in blobs]
        if [without_ones(shape) for shape in shapes] != [without_ones(shape) for shape in stored[name]]:
            raise UsageError(
                f"{weights} has weights of shapes {stored[name]} for layer {name!r}; expected {shapes}, as in {path}."
            )


def without_ones(shape: Sequence[int]) -> Tuple[int, ...]:
    """A shape without leading 1s, which weights from before Caffe 1.0 have."""
    shape = tuple(shape)
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def shortlist(names: Any, most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
