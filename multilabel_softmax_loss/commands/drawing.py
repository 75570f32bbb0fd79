"""What the pictures share: colours that colour-blind people tell apart, names that fit, legends that cover nothing."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Tuple

from ..errors import UsageError
from ..files import replacing

# M. Okabe and K. Ito, Color Universal Design, 2008, without their yellow, which is lost on white.
BLUE, VERMILION, SKY, ORANGE, PURPLE, GREEN = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#CC79A7", "#009E73"
COLORS = (BLUE, VERMILION, SKY, ORANGE, PURPLE, GREEN)
STYLES = ("-", "--", "-.", ":")
LONGEST = 30  # letters of a name
# For letters that matplotlib's own font lacks, Chinese, Japanese and Korean ones above all: those that are installed.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "PingFang SC", "Arial Unicode MS", "Malgun Gothic", "Nirmala UI"),
)


def look(k: int) -> Dict[str, Any]:
    """Colour and line style of line k: 24 that differ."""
    return {"color": COLORS[k % len(COLORS)], "linestyle": STYLES[k // len(COLORS) % len(STYLES)]}


def fitting(name: str, longest: int = LONGEST) -> str:
    """A name on one line, without its middle where that is too long, and nothing that looks like a formula."""
    if len(name) > longest:
        end = longest // 3
        name = name[: longest - end - 1] + "\N{HORIZONTAL ELLIPSIS}" + name[-end:]
    return "".join(letter if letter.isprintable() else " " for letter in name).replace("$", r"\$")


@contextmanager
def picture(
    path: str, size: Tuple[float, float], metadata: Optional[Dict[str, str]] = None
) -> Iterator[Tuple[Any, Any]]:
    """Two axes side by side, in a figure of `size` inches that is written to `path` in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    installed = {font.name for font in font_manager.fontManager.ttflist}
    pyplot.rcParams["font.family"] = ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, constrained_layout=True)
    try:
        yield left, right
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # letters that no font has are shown as boxes
            figure.savefig(temporary, dpi=110, metadata=metadata)
    except ValueError as error:
        raise UsageError(f"{path} cannot be drawn: {error}") from error
    finally:
        pyplot.close(figure)


def legend_below(axes: Any) -> None:
    """A legend under the label of the x axis, one entry a line, so that it covers nothing whatever the names."""
    from matplotlib.transforms import ScaledTranslation

    corner = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)  # inches, however tall the axes
    place = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": corner, "borderaxespad": 0}
    axes.legend(frameon=False, fontsize=9, **place)
