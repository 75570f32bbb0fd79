"""Pictures: whatever the number of classes and the length of their names, nothing collides and all is named."""

import sys
import time
import warnings
from functools import lru_cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from multilabel_softmax_loss.commands import drawing, metrics
from multilabel_softmax_loss.commands.curves import draw_curves
from multilabel_softmax_loss.commands.drawing import COLORS, fitting
from multilabel_softmax_loss.commands.pictures import RECALLS, draw, precision_at
from multilabel_softmax_loss.commands.report import evaluation


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []
    save = Figure.savefig

    def keep(figure, *arguments, **keywords):
        drawn.append(figure)
        return save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def boxes_below(figure):
    """The extents of each axes, its label below, and its legend, in inches."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    parts = [(axes, axes.xaxis.label, axes.get_legend()) for axes in figure.axes]
    return [[one.get_window_extent(canvas.get_renderer()).extents / figure.dpi for one in of_axes] for of_axes in parts]


@lru_cache(maxsize=None)
def evaluate(classes, long, samples=60):
    """A report, and the arrays that it is of."""
    rng = np.random.RandomState(classes)
    truth = rng.rand(samples, classes) < 0.2
    truth[0] = True
    scores = rng.randn(samples, classes) + 2 * truth
    tuned = metrics.tune_thresholds(truth, scores)
    return evaluation(truth, scores, None, [1, 2], tuned=tuned, names=names_of(classes, long)), truth, scores


def names_of(classes, long):
    if not long:
        return [f"class {k}" for k in range(classes)]
    return ["$x_1$ \\frac", "\u732b\u3068\u72ac", *(f"{50000 * 'long name '}{k}" for k in range(2, classes))][:classes]


@pytest.mark.parametrize("classes, long", [(2, False), (3, True), (12, True), (228, True)])
def test_nothing_collides(figures, tmp_path, classes, long):
    report, truth, scores = evaluate(classes, long)
    begin = time.process_time()
    draw(report, truth, scores, None, str(tmp_path / "e.png"))
    assert time.process_time() - begin < 3  # it takes one, where nothing else runs
    (figure,) = figures
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for axes in figure.axes:
        legend = axes.get_legend()
        boxes += [axes.get_window_extent(renderer), legend.get_window_extent(renderer)]
        boxes.append(axes.xaxis.label.get_window_extent(renderer))
        assert axes.get_window_extent(renderer).width > 0.3 * figure.bbox.width
    boxes += [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
    for k, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
        for other in boxes[:k]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 0.5 or high <= 0.5


def test_of_many_classes_the_ten_best_and_the_ten_worst_are_named_and_a_band_stands_for_all(figures, tmp_path):
    report, truth, scores = evaluate(228, True)
    draw(report, truth, scores, None, str(tmp_path / "e.png"))
    bars, curves = figures[0].axes
    ranked = sorted(report["per_class"], key=lambda entry: entry["AP"])
    expected = [fitting(entry["class"]) for entry in ranked[:10] + ranked[-10:]]
    assert [label.get_text() for label in bars.get_yticklabels()] == expected
    legend = [text.get_text() for text in curves.get_legend().get_texts()]
    assert "the middle half of the 228 classes" in legend
    assert f"the best class, {expected[-1]} (AP {ranked[-1]['AP']:.3f})" in legend
    assert f"the worst class, {expected[0]} (AP {ranked[0]['AP']:.3f})" in legend
    assert any(text.startswith("decisions by thresholds tuned here: precision") for text in legend)


@pytest.mark.parametrize("classes", [3, 40])
def test_the_legend_is_right_below_however_tall_the_picture(figures, tmp_path, classes):
    report, truth, scores = evaluate(classes, False)
    draw(report, truth, scores, None, str(tmp_path / "e.png"))
    for _, label, legend in boxes_below(figures[0]):
        assert 0.02 < label[1] - legend[3] < 0.2
    bars = figures[0].axes[0]
    assert max(bar.get_window_extent().height for bar in bars.patches) / figures[0].dpi < 0.6


@pytest.mark.skipif(sys.version_info < (3, 8), reason="matplotlib 3.5 takes all letters from one font")
def test_letters_that_the_font_lacks_are_taken_from_another(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FALLBACKS", ("no such font", "STIXGeneral"))
    report, truth, scores = evaluate(3, False)
    entries = [{**entry, "class": "\N{POSITION INDICATOR}"} for entry in report["per_class"]]
    draw({**report, "per_class": entries}, truth, scores, None, str(tmp_path / "e.png"))
    FigureCanvasAgg(figures[0]).draw()  # which warns of a letter that no font has


def test_a_net_with_one_class_that_has_positives_is_drawn(figures, tmp_path):
    truth, scores = np.array([[True, False], [False, False]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    draw(evaluation(truth, scores, None, [1]), truth, scores, None, str(tmp_path / "e.png"))
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("levels", [1000, 4])
def test_curves_are_those_of_scikit_learn(levels):
    rng = np.random.RandomState(0)
    truth = rng.rand(300) < 0.3
    scores = np.round((rng.rand(300) + truth) * levels)
    precision, recall, _ = precision_recall_curve(truth, scores)
    points = {}
    for p, r in zip(precision[:-1], recall[:-1]):  # thresholds rise
        points[round(r, 9)] = p
    found = precision_at(truth, scores)
    for r, p in points.items():
        if r > 0 and np.isclose(RECALLS, r).any():
            assert found[np.isclose(RECALLS, r)] == pytest.approx(p)
    assert found[-1] == pytest.approx(precision[np.flatnonzero(recall == 1)[-1]])


def test_names_fit():
    assert fitting("cat") == "cat"
    assert fitting("a" * 100 + "b") == "a" * 19 + "\N{HORIZONTAL ELLIPSIS}" + "a" * 9 + "b"
    assert fitting("$x$\n\t") == r"\$x\$  "


# What is seen without cones for long, middle and short waves: Machado et al., A Physiologically-based Model for
# Simulation of Color Vision Deficiency, 2009, on linear RGB.
SEEN = {
    "by all cones": np.eye(3),
    "without long": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "without middle": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "without short": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])


@pytest.mark.parametrize("eye", SEEN)
def test_colours_differ_for_colour_blind_readers(eye):
    rgb = np.array([to_rgb(color) for color in (*COLORS, "black", "white")])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(SEEN[eye]), 0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    lab = np.cbrt(np.maximum(xyz, 1e-3)) @ TO_LAB.T
    apart = np.linalg.norm(lab[:, np.newaxis] - lab, axis=2)[np.triu_indices(len(rgb), 1)]
    assert apart.min() > 14  # where matplotlib's green is 7 from its red, and 5 from its orange


def test_a_run_is_drawn_with_readable_names(figures, tmp_path):
    rows = [{"iteration": k, "loss": 1 / (k + 1), "long" * 50: 2.0, "lr": 0.1} for k in range(20)]
    rows[10].update(test_loss=0.5, test_mAP=0.8, test_LRAP=0.7, test_coverage=3.0)
    best = {"metric": "test_mAP", "value": 0.8, "iteration": 10}
    tests = ["test_loss", "test_mAP", "test_LRAP", "test_coverage", "test_CF1@3"]
    draw_curves(rows, ["loss", "long" * 50], tests, best, str(tmp_path / "curves.png"))
    left, right = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes)
    assert "loss in training, running mean (faint: each iteration)" in left
    assert "loss in the test" in left
    assert right == ["mAP in the test", "LRAP in the test", "best mAP in the test: 0.800 at iteration 10"]
    figures[0].canvas.draw()
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    first, second = (axes.get_legend().get_window_extent(renderer) for axes in figures[0].axes)
    assert first.x1 <= second.x0
