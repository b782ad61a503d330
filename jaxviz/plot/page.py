"""A page measured in inches: texts that fit, kept apart, and frames for pictures."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path

from jaxviz.plot.colour import INK

EDGE, GAP = 0.16, 0.06  # inches: around the page, between its pictures
FRAME = "#c8ccd2"
_LARGE = 100.0  # points, at which letters are measured
_LOOSE = 1.1  # letters are fitted to pixels, which takes more than their widths: more where small


def put_title(figure: Figure, text: str | None, *, left: float = EDGE) -> None:
    """Writes the title at the top left, as large as fits the page's width, 12 points at most.

    Example:
      >>> figure = Figure(figsize=(2.0, 1.0))
      >>> put_title(figure, "a title that is too long for two inches")
      >>> figure.get_suptitle(), figure.texts[0].get_fontsize() < 8
      ('a title that is too long for two inches', True)
    """
    if text is None:
        return
    width, height = figure.get_size_inches()
    text = one_line(text)
    figure.suptitle(
        text,
        x=left / width,
        y=1 - 0.14 / height,
        ha="left",
        va="top",
        fontsize=fitting_points(text, width - left - EDGE, 12.0, "bold"),
        color=INK,
        weight="bold",
        parse_math=False,
    )


def one_line(text: object) -> str:
    """The text without its line ends, which would lie over what stands below."""
    return " ".join(str(text).split())


@functools.lru_cache(8192)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width in inches of a line of this size.

    Example:
      >>> 0.3 < text_width("figure", 10.0) < 0.6
      True
    """
    return _LOOSE * points / 72 * sum(_letter(letter, weight) for letter in text)


@functools.lru_cache(4096)
def _letter(letter: str, weight: str) -> float:
    """Width of a letter inside a text, of one point's size in points.

    Laying a text out takes a millisecond, and a thousand classes' names are fitted: letters are
    laid out once, and their kerning is left to `_LOOSE`.
    """
    font = FontProperties(size=_LARGE, weight=weight)
    width = lambda text: text_to_path.get_text_width_height_descent(text, font, False)[0]
    return (width(f"|{letter}|") - width("||")) / _LARGE


def fitting_points(text: str, room: float, points: float, weight: str = "normal") -> float:
    """The size at which a line takes no more than these inches, `points` at most."""
    return min(points, points * room / max(text_width(text, points, weight), 1e-6))


def fit(text: str, room: float, points: float, weight: str = "normal") -> str:
    """The text cut in its middle to these inches: names differ at either end.

    Example:
      >>> fit("the first of many classes, number 17", 1.2, 7.0)
      'the first…number 17'
      >>> fit("dog", 1.2, 7.0)
      'dog'
    """
    text = one_line(text)
    if text_width(text, points, weight) <= room:
        return text
    kept, cut = "", lambda n: f"{text[: n - n // 2].rstrip()}…{text[len(text) - n // 2 :].lstrip()}"
    low, high = 0, len(text) - 1
    while low <= high:
        middle = (low + high) // 2
        if text_width(cut(middle), points, weight) <= room:
            kept, low = cut(middle), middle + 1
        else:
            high = middle - 1
    return kept


def in_legend(name: str) -> str:
    """A name that a legend shows: matplotlib leaves out those that begin with "_"."""
    return f" {name}" if name.startswith("_") else name


def fit_apart(names: Sequence[str], room: float, points: float, weight: str = "normal") -> list:
    """Names by `fit`; where two would look alike their numbers are written before them.

    Example:
      >>> fit_apart(["a crane that flies, a bird", "a crane that lifts, a bird", "dog"], 0.9, 7.0)
      ['0: a cra…, a bird', '1: a cra…, a bird', 'dog']
    """
    return [fit(name, room, points, weight) for name in told_apart(names, room, points, weight)]


def told_apart(names: Sequence[str], room: float, points: float, weight: str = "normal") -> list:
    """Names, uncut, with their numbers before them where two would look alike in this room."""
    short = [fit(name, room, points, weight) for name in names]
    often = Counter(short)
    return [
        one_line(name) if often[text] == 1 else f"{n}: {one_line(name)}"
        for n, (name, text) in enumerate(zip(names, short, strict=True))
    ]


def fit_among(
    names: Sequence[str], index: int, room: float, points: float, weight: str = "normal"
) -> str:
    """`fit_apart(names, ...)[index]`; only names that could look alike are measured.

    Example:
      >>> fit_among(["a crane that flies, a bird", "a crane that lifts, a bird"], 1, 0.9, 7.0)
      '1: a cra…, a bird'
    """
    short = fit(names[index], room, points, weight)
    head, cut, tail = short.partition("…")
    like = lambda line: line.startswith(head) and line.endswith(tail) if cut else line == short
    rivals = [name for name in names if not short or like(one_line(name))]
    if sum(fit(name, room, points, weight) == short for name in rivals) == 1:
        return short
    return fit(f"{index}: {one_line(names[index])}", room, points, weight)


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Writes a text at a place in inches from the lower left, centred in height."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, va="center", parse_math=False, **style)


def cell_height(width: float, shape: tuple[int, ...]) -> float:
    """Of a cell for an image `[H, W, ...]`; strips and towers get a share of a page at most."""
    return width * min(max(shape[0] / shape[1], 0.25), 3.0)


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


def titled(width: float, height: float, title: str | None) -> Figure:
    """An empty page of this size in inches, whose axes stay below the title."""
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, rect=(0, 0, 1, 1 - 0.36 / height))
    figure = Figure(figsize=(width, height), facecolor="white", layout=layout)
    put_title(figure, title)
    return figure
