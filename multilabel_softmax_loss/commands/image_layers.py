"""What the data layer of a net does to images, found in its prototxt and data, proved, and kept beside the weights."""

from __future__ import annotations

import os
import tempfile
from itertools import islice
from typing import Any, Iterator, Optional, Sequence, Tuple, Union

import numpy as np

from ..data.feed import ImageDataOptions
from ..data.images import as_caffe_reads, by_opencv, read_bytes, read_image
from ..data.writers import read_index, write_index
from ..errors import UsageError
from ..files import read_lines
from ..nets.data_layers import sources
from ..nets.databases import open_database
from ..nets.image_index import change_options, index_options, reads_index
from ..nets.means import read_mean
from ..nets.weights import load_net
from .preprocessing import NAME, Preprocessing, good

FIRST = 20  # so many images of a database are looked at
TOLERANCE = 1e-3  # of a level, between Caffe's input and ours


class UnknownPreprocessing(ValueError):
    """Why the data do not tell what becomes of an image."""


def keep_preprocessing(folder: str, nets: Sequence[Sequence[Any]], given: Optional[str] = None) -> Optional[str]:
    """Put preprocessing.json into a run's folder; or say why it is not known what `predict` has to do.

    It is a copy of the file `given`, else what the data layer of the first of the `nets` (lists of layers) that has one
    for images does. It is kept if it does the same to the first image as Caffe's layer does in the TEST phase.

    Raises
    ------
    UsageError : the file `given` does something else than the data layer.
    """
    preprocessing = Preprocessing.read(given) if given is not None else None
    reason = "the net has no data layer"
    for layers in nets:
        found = []
        for layer in sources(layers):
            try:
                found.append((layer, of_layer(layer)))
            except UnknownPreprocessing as error:
                reason = str(error)
        if len(found) == 1:
            layer, told = found[0]
            problem = disproof(preprocessing or told, layer)
            if problem and given is not None:
                raise UsageError(f"{given} does not do what layer {layer.name!r} does in the TEST phase: {problem}.")
            if problem is None:
                (preprocessing or told).write(folder)
                return None
            reason = problem
            break
        if len(found) > 1:
            reason = f"several layers bring images ({', '.join(layer.name for layer, _ in found)})"
    if preprocessing is not None:
        preprocessing.write(folder)
        return None
    return f"No {NAME} is written, which `predict` needs: {reason}. --preprocessing gives one."


def of_layer(layer: Any) -> Preprocessing:
    """What a data layer does to an image in the TEST phase.

    ImageData reads files, and Data decodes compressed images, by OpenCV: BGR. Raw pixels may have any order. Data takes
    images as they are stored; what is predicted is resized to their size, if they all have one, as Caffe's
    convert_imageset did with what is stored.

    Raises
    ------
    UnknownPreprocessing : its prototxt and data do not tell.
    """
    name = f"layer {layer.name!r} ({layer.type})"
    resize: Optional[Tuple[int, int]] = None
    turned = True
    if layer.type == "ImageData":
        parameter = layer.image_data_param
        channels = "BGR" if parameter.is_color else "GRAY"
        if parameter.new_height and parameter.new_width:
            resize = (parameter.new_height, parameter.new_width)
    elif layer.type == "Data":
        channels, resize, turned = of_stored(layer, name)
    elif reads_index(layer):
        return of_index(layer)
    else:
        raise UnknownPreprocessing(f"{name} does not tell from what pixels its numbers came")
    transform = layer.transform_param
    if transform.mean_file:
        mean: Union[Tuple[float, ...], np.ndarray] = read_mean(transform.mean_file, "a mean image").astype(np.float32)
    else:
        mean = tuple(transform.mean_value) or (0.0,)
    return Preprocessing(mean, transform.scale, channels, resize, transform.crop_size, turned)


def of_index(layer: Any) -> Preprocessing:
    """What MultilabelImageDataLayer does, by its options."""
    try:
        options = ImageDataOptions.parse(layer.python_param.param_str)
    except (TypeError, ValueError) as error:
        raise UnknownPreprocessing(f"param_str of layer {layer.name!r} has {error}") from error
    resize = options.geometry.size or options.geometry.short_side
    channels = "BGR" if options.is_color else "GRAY"
    return Preprocessing(options.mean_value, options.scale, channels, resize, options.crop_size, white=True)


def of_stored(layer: Any, name: str) -> Tuple[str, Optional[Tuple[int, int]], bool]:
    """Of the images of a database: channels, the size (height, width) if all have one, and whether they were turned."""
    import cv2

    force_color, force_gray = layer.transform_param.force_color, layer.transform_param.force_gray
    datums = list(islice(stored(layer), FIRST))
    if not datums or not all(datum.encoded for datum in datums):
        raise UnknownPreprocessing(f"{name} reads raw pixels, which do not tell the order of their channels")
    where = f"an image of {layer.data_param.source}"
    with good(where):
        upright = [as_caffe_reads(datum.data, gray=True) for datum in datums]
        as_they_lie = [as_caffe_reads(datum.data, gray=True, turned=False) for datum in datums]
        images = [by_opencv(datum.data, cv2.IMREAD_UNCHANGED) for datum in datums]
    depths = {1 if image.ndim == 2 else image.shape[2] for image in images}
    if not (force_color or force_gray) and (not depths <= {1, 3} or len(depths) > 1):
        raise UnknownPreprocessing(f"{name} reads images of {' and '.join(map(str, sorted(depths)))} channels")
    if any(image.dtype != np.uint8 for image in images):
        raise UnknownPreprocessing(f"{name} reads images of more than 8 bits per channel")
    channels = "GRAY" if force_gray or (depths == {1} and not force_color) else "BGR"
    turned = force_color or force_gray or all(map(np.array_equal, upright, as_they_lie))
    heights, widths = zip(*(image.shape for image in (upright if turned else as_they_lie)))
    one_size = len(set(heights)) == len(set(widths)) == 1
    return channels, (heights[0], widths[0]) if one_size else None, turned


def stored(layer: Any) -> Iterator[Any]:
    """The Datums of a database, in order."""
    from caffe.proto import caffe_pb2

    with open_database(layer) as database:
        for _, value in database.entries():
            yield caffe_pb2.Datum.FromString(bytes(value))


def disproof(preprocessing: Preprocessing, layer: Any) -> Optional[str]:
    """How Caffe's TEST phase and `preprocessing` differ in what they make of the first image of a data layer; or None.

    The image is stored anew without loss, as two decoders of JPEG may differ by some levels.
    """
    import cv2

    with good(f"the first image of layer {layer.name!r}"):
        gray = preprocessing.channels == "GRAY"
        if reads_index(layer):  # of which images that OpenCV does not read are, too
            pixels = read_image(read_index(index_options(layer)["source"]).paths[0], gray)
        elif layer.type == "ImageData":
            first = read_lines(layer.image_data_param.source, f"source of layer {layer.name!r}")[0].rsplit(" ", 1)[0]
            content = read_bytes(layer.image_data_param.root_folder + first)
            pixels = as_caffe_reads(content, gray, preprocessing.turned)
        else:
            pixels = as_caffe_reads(next(stored(layer)).data, gray, preprocessing.turned)
    with tempfile.TemporaryDirectory(prefix="multilabel_softmax_loss_") as folder:
        path = os.path.join(folder, "image.png")
        cv2.imwrite(path, pixels)
        expected = by_caffe(one_image_layer(layer, path, folder))
        try:
            found = preprocessing.read_image(path, (expected.shape[1], expected.shape[2]))
        except UsageError as error:
            return str(error).replace(path, "the first image").rstrip(".")
    if found.shape != expected.shape:
        return f"of the first image it makes the shape {found.shape}, and Caffe {expected.shape}"
    levels = float(np.abs(found - expected).max()) / max(abs(preprocessing.scale), 1e-30)
    if levels <= TOLERANCE * max(1.0, float(np.abs(expected).max() / 256)):
        return None
    return f"of the first image it makes what differs by up to {levels:.3g} levels of 256 from what Caffe makes"


def one_image_layer(layer: Any, path: str, folder: str) -> Any:
    """A data layer as it is in the TEST phase, of one image only."""
    import lmdb
    from caffe.proto import caffe_pb2

    copy = type(layer).FromString(layer.SerializeToString())
    for name in ("include", "exclude"):
        copy.ClearField(name)
    copy.transform_param.mirror = False
    if layer.type == "ImageData":
        copy.image_data_param.source, copy.image_data_param.root_folder = os.path.join(folder, "list.txt"), ""
        copy.image_data_param.batch_size, copy.image_data_param.shuffle = 1, False
        copy.image_data_param.ClearField("rand_skip")
        with open(copy.image_data_param.source, "w", encoding="utf-8") as file:
            file.write(f"{path} 0\n")
        return copy
    if reads_index(layer):
        index = os.path.join(folder, "index.txt")
        labels = read_index(index_options(layer)["source"])
        write_index(index, labels._replace(paths=[path]), [0])
        change_options(copy, source=index, batch_size=1, workers=0)
        return copy
    copy.data_param.source, copy.data_param.batch_size = os.path.join(folder, "lmdb"), 1
    copy.data_param.backend = copy.data_param.LMDB
    copy.data_param.ClearField("rand_skip")
    datum = caffe_pb2.Datum(encoded=True, data=read_bytes(path))
    with lmdb.open(copy.data_param.source, map_size=1 << 30) as environment, environment.begin(write=True) as writer:
        writer.put(b"0", datum.SerializeToString())
    return copy


def by_caffe(layer: Any) -> np.ndarray:
    """The first image (channels, height, width) that a data layer brings in the TEST phase."""
    from caffe.proto import caffe_pb2

    net = load_net(caffe_pb2.NetParameter(layer=[layer]), f"layer {layer.name!r}")
    net.forward()
    return net.blobs[layer.top[0]].data[0].copy()
