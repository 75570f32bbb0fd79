"""Canvases that hold one to four handwritten digits, and the HDF5 files that Caffe reads them from."""

import os
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
DIGIT = 8  # height and width of a source digit in pixels
CANVAS = 28  # height and width of a canvas
MOST_DIGITS = 4  # on one canvas
OVERLAP = 1  # pixels that the boxes of two digits may share
NOISE = 0.05  # standard deviation of the noise added to each pixel

RARE = (2, 5, 8)  # in the imbalanced variant these digits are drawn RARER times more seldom for training
RARER = 20

# Name of the split: the digits it draws from, and how many canvases it has.
SPLITS = {
    "train": ("train", 8000),
    "tune": ("train", 1000),  # for the decision threshold: new canvases, training digits
    "test": ("test", 1000),
}


def split_digits(seed):
    """Scikit-learn's digits, 70 % for training and 30 % for testing, each class in proportion.

    Returns a dict of split name ("train", "test") to a pair: images (N, 8, 8) float32 in [0, 1], and classes (N,) int.
    """
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train_images, test_images, train_classes, test_classes = train_test_split(
        images, digits.target, test_size=0.3, stratify=digits.target, random_state=seed
    )
    return {"train": (train_images, train_classes), "test": (test_images, test_classes)}


def place(count, rng):
    """Top left corners (count, 2) int of digits whose boxes share at most OVERLAP pixels in one direction."""
    while True:
        corners = rng.integers(0, CANVAS - DIGIT, size=(count, 2), endpoint=True)
        if np.all(pdist(corners, "chebyshev") >= DIGIT - OVERLAP):
            return corners


def draw_canvas(images, rng):
    """One canvas (28, 28) float32 in [0, 1] with the digits `images` (K, 8, 8) somewhere on it."""
    canvas = np.zeros((CANVAS, CANVAS), np.float32)
    for image, (top, left) in zip(images, place(len(images), rng)):
        box = canvas[top : top + DIGIT, left : left + DIGIT]
        np.maximum(box, image * rng.uniform(0.6, 1), out=box)
    return np.clip(canvas + rng.normal(0, NOISE, canvas.shape), 0, 1)


def make_canvases(images, classes, count, rng, imbalanced=False):
    """Canvases of one to four of the given digits, each number equally often; `imbalanced` makes the RARE ones rare.

    Returns a dict of arrays: `data` (count, 1, 28, 28) float32 in [0, 1]; `label` (count, 10) float32, 1 for each class
    on the canvas and 0 for the others (a class drawn twice counts once); `single` (count,) int32, one class of the
    canvas picked at random; `digits` (count, 4) int32, the rows of `images` that were drawn, padded with -1.
    """
    data = np.empty((count, 1, CANVAS, CANVAS), np.float32)
    label = np.zeros((count, CLASSES), np.float32)
    single = np.empty(count, np.int32)
    digits = np.full((count, MOST_DIGITS), -1, np.int32)
    chances = None
    if imbalanced:
        chances = np.where(np.isin(classes, RARE), 1 / RARER, 1)
        chances /= chances.sum()
    for n in range(count):
        drawn = rng.choice(len(images), size=rng.integers(1, MOST_DIGITS, endpoint=True), replace=False, p=chances)
        data[n, 0] = draw_canvas(images[drawn], rng)
        label[n, classes[drawn]] = 1
        single[n] = rng.choice(np.flatnonzero(label[n]))
        digits[n, : len(drawn)] = drawn
    return {"data": data, "label": label, "single": single, "digits": digits}


def class_weights(labels):
    """How many times more seldom each class is than the most frequent one, (10,) float32; from labels (N, 10)."""
    counts = labels.sum(axis=0)
    return (counts.max() / counts).astype(np.float32)


def write_splits(folder, seed, imbalanced=False):
    """Write <split>.h5, and <split>.txt that names it for Caffe, for each of SPLITS; the seed decides everything.

    Only the training canvases are ever imbalanced. `weighted` is `label` times the class weights of these canvases.

    Returns `folder` relative to where we are: HDF5Data cuts paths at white space, which a path to here may hold.
    """
    folder = Path(os.path.relpath(str(folder)))
    if len(str(folder).split()) > 1:
        raise OSError("Caffe's HDF5Data cannot read a path with white space in it")
    folder.mkdir(parents=True, exist_ok=True)
    sources = split_digits(seed)
    for stream, (split, (source, count)) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([seed, stream])
        canvases = make_canvases(*sources[source], count, rng, imbalanced and split == "train")
        if split == "train":
            weights = class_weights(canvases["label"])
        canvases["weighted"] = canvases["label"] * weights
        with h5py.File(folder / f"{split}.h5", "w") as file:
            for name, values in canvases.items():
                file[name] = values
        (folder / f"{split}.txt").write_text(f"{folder / split}.h5\n")
    return folder
