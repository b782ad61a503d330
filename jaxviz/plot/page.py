"""A page measured in inches: a title that fits, text, and frames for pictures."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from jaxviz.plot.colour import INK

EDGE, GAP = 0.16, 0.06  # inches: around the page, between its pictures
FRAME = "#c8ccd2"


def put_title(figure: Figure, text: str, *, left: float = EDGE) -> None:
    """Writes the title at the top left, as large as fits the page's width, 12 points at most.

    Example:
      >>> figure = Figure(figsize=(2.0, 1.0))
      >>> put_title(figure, "a title that is too long for two inches")
      >>> figure.get_suptitle(), figure.texts[0].get_fontsize() < 8
      ('a title that is too long for two inches', True)
    """
    width, height = figure.get_size_inches()
    room = width - left - EDGE
    points = min(12.0, 12.0 * room / max(text_width(text, 12.0, weight="bold"), 1e-6))
    figure.suptitle(
        text,
        x=left / width,
        y=1 - 0.14 / height,
        ha="left",
        va="top",
        fontsize=points,
        color=INK,
        weight="bold",
    )


def text_width(text: str, points: float, **font: Any) -> float:
    """Width in inches of a text of this size.

    Example:
      >>> 0.3 < text_width("figure", 10.0) < 0.6
      True
    """
    if not text.strip():
        return 0.0
    longest = max(text.splitlines(), key=len)
    path = TextPath((0, 0), longest, size=points, prop=FontProperties(**font))
    return float(path.get_extents().width) / 72


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Writes a text at a place in inches from the lower left, centred in height."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, va="center", **style)


def frame(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, framed in grey, without ticks."""
    across, down = figure.get_size_inches()
    return bare(figure.add_axes((left / across, bottom / down, width / across, height / down)))


def bare(ax: Axes) -> Axes:
    """The axes, framed in grey, without ticks."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(FRAME)
        spine.set_linewidth(0.6)
    return ax
