"""The pictures of the digits example: loss and mAP while training, and predictions beside their targets."""

import matplotlib

matplotlib.use("Agg")  # files only, no display

import matplotlib.pyplot as plt
import net
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from multilabel_softmax_loss.commands.curves import smoothed
from multilabel_softmax_loss.commands.drawing import legend_below

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "savefig.dpi": 100,
}


def draw_curves(path, history, name, labels):
    """The loss of that name (left) and test mAP (right) against the iteration, written to `path` as PNG."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
        left.plot(smoothed(history["train_loss"]), color=BLUE, label="training")
        left.plot(history["iteration"], history["test_loss"], "o-", color=ORANGE, markersize=4, label="test")
        if name == "softmax":
            # Cross-entropy cannot fall below the entropy of its target: log M for M labels of 1/M.
            floor = np.log(labels.sum(axis=1)).mean()
            left.axhline(floor, color=GREY, linestyle="--", label="lowest possible: the targets' entropy")
        left.set(title=f"{name} loss", xlabel="iteration", xlim=(0, None), ylim=(0, None))
        legend_below(left)
        right.plot(history["iteration"], history["mAP"], "o-", color=ORANGE, markersize=4)
        right.set(title="Mean average precision on the test canvases", xlabel="iteration")
        right.set(xlim=(0, None), ylim=(0, 1.02))
        right.annotate(
            f"{history['mAP'][-1]:.3f}",
            (history["iteration"][-1], history["mAP"][-1]),
            xytext=(0, -18),
            textcoords="offset points",
            ha="center",
            color=ORANGE,
            fontweight="bold",
        )
        right.grid(axis="y", alpha=0.3)
        figure.savefig(path)
        plt.close(figure)


def choose(labels, found):
    """Six rows to show: the first right one with 1, 2, 3 and 4 classes, then the first two wrong ones."""
    right = np.all(labels == found, axis=1)
    counts = labels.sum(axis=1)
    groups = [(np.flatnonzero(right & (counts == count)), 1) for count in (1, 2, 3, 4)]
    groups.append((np.flatnonzero(~right), 2))
    rows = [row for rows, number in groups for row in rows[:number]]
    # A net that is always right, or never, leaves places free: the first canvases not shown yet fill them.
    return (rows + [row for row in range(len(labels)) if row not in rows])[:6]


def verdict(label, found):
    """One line that says which classes were found, or which were missed or invented; and its colour."""
    missed, invented = label > found, found > label
    if not (missed.any() or invented.any()):
        return f"right: {listed(label)}", BLUE
    faults = [f"{fault} {listed(mask)}" for fault, mask in (("missed", missed), ("invented", invented)) if mask.any()]
    return f"wrong: {', '.join(faults)}", ORANGE


def listed(mask):
    return " ".join(str(k) for k in np.flatnonzero(mask))


def draw_predictions(path, canvases, labels, probs, threshold, loss):
    """Six test canvases, each beside its target and predicted distribution, written to `path` as PNG.

    canvases (N, 28, 28), labels (N, 10) of 0 and 1, probs (N, 10) or scores, and that above which a class counts.
    """
    found = probs > threshold
    low, high, quantity = 0, 1.05, "probability"
    if loss in net.SIGMOIDS:
        targets, meaning = labels, "1 for each digit on the canvas"
    elif loss in net.RANKINGS:
        low, high, quantity = probs.min(), probs.max(), "score"
        targets, meaning = labels * (high - low), "above all others, for each digit on the canvas"
    else:
        targets, meaning = labels / labels.sum(axis=1, keepdims=True), "1/M for each of M different digits"
    classes = np.arange(labels.shape[1])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            3, 4, figsize=(10, 7.2), constrained_layout=True, gridspec_kw={"width_ratios": [1, 1.7, 1, 1.7]}
        )
        for (image, bars), row in zip(axes.reshape(6, 2), choose(labels, found)):
            image.imshow(canvases[row], cmap="gray_r", vmin=0, vmax=1)
            image.set(xticks=[], yticks=[])
            for spine in image.spines.values():
                spine.set(visible=True, color="#bbbbbb")
            bars.bar(classes, targets[row], bottom=low, width=0.9, facecolor="#dddddd", edgecolor=GREY)
            bars.bar(classes, probs[row] - low, bottom=low, width=0.5, color=BLUE)
            bars.axhline(threshold, color=ORANGE, linestyle=":")
            bars.set(xticks=classes, ylim=(low, high))
            if loss not in net.RANKINGS:
                bars.set(yticks=[0, 0.5, 1])
            bars.tick_params(axis="x", length=0)
            for tick in np.flatnonzero(labels[row]):
                bars.get_xticklabels()[tick].set_fontweight("bold")
            text, color = verdict(labels[row], found[row])
            bars.set_title(text, color=color, fontweight="bold")
        for bars in axes[:, 1]:
            bars.set_ylabel(quantity)
        for bars in axes[-1, 1::2]:
            bars.set_xlabel("digit")
        figure.legend(
            handles=[
                Patch(facecolor="#dddddd", edgecolor=GREY, label=f"target: {meaning}"),
                Patch(color=BLUE, label="predicted"),
                Line2D([], [], color=ORANGE, linestyle=":", label=f"found if above {threshold:.2f}"),
            ],
            loc="upper center",
            bbox_to_anchor=(0.5, 0),  # below the axes, where bbox_inches="tight" makes room for it
            ncol=3,
            frameon=False,
        )
        figure.suptitle("Which digits are on the canvas? Test canvases, drawn from digits never seen in training")
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
