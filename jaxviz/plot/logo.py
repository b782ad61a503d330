"""Sequence logos: letters as tall as what they say, for DNA, RNA, proteins and other alphabets."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from jaxviz.calls.options import instance, maybe, several, title as any_text
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET
from jaxviz.plot.inputs import check_array, check_count, check_names
from jaxviz.plot.page import EDGE, fit, put_title, write

_LETTERS = several(any_text, "letters, one a column, in a text or a list")
_TEXTS = several(any_text, "texts, one a sequence")
LINE, ACROSS = 0.85, 0.13  # inches: a line of letters, one letter

# Colours that remain apart to colour-blind eyes (Okabe and Ito 2008), yellow left out.
_GREEN, _BLUE, _ORANGE, _RED = "#009e73", "#0072b2", "#e69f00", "#d55e00"
_SKY, _PINK, _BLACK = "#56b4e9", "#cc79a7", "#333333"
_BASES = {"A": _GREEN, "C": _BLUE, "G": _ORANGE, "T": _RED, "U": _RED}
# Amino acids by what they are: fat-loving, aromatic, polar, acid, basic, and the two of their own.
_ACIDS = {
    **dict.fromkeys("AVLIMP", _BLACK),
    **dict.fromkeys("FWY", _PINK),
    **dict.fromkeys("STNQ", _GREEN),
    **dict.fromkeys("DE", _RED),
    **dict.fromkeys("KRH", _BLUE),
    **dict.fromkeys("GC", _ORANGE),
}


def _alphabet(who, option, value):
    return _LETTERS(who, option, tuple(value) if isinstance(value, str) else value)


@public(alphabet=_alphabet, names=maybe(_TEXTS), colours=maybe(instance(Mapping)))
def sequence_logo(
    heights: Any,
    alphabet: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    per_row: int = 60,
    title: str | None = None,
) -> Figure:
    """Draws sequences as stacks of letters: what speaks for stands up, what speaks against hangs.

    A letter's height is its number. In a stack the largest magnitude is outermost; every line of a
    sequence has one scale, symmetric about zero where any number is below it.

    Args:
      heights: `[L, A]` or `[N, L, A]`: attribution times the one-hot sequence (one letter a place),
        `in_silico_mutagenesis`, or frequencies times information (a classic logo).
      alphabet: A letters, such as "ACGT".
      names: N texts, one above each sequence; None numbers them.
      colours: Letter -> colour. None has bases and amino acids in colours that colour-blind eyes
        tell apart, the latter by their chemistry; letters of other alphabets take turns.
      per_row: Places a line, >= 1; longer sequences go on below.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Numbers that are not finite leave a green place.

    Raises:
      ValueError: A shape that does not fit, or a letter that stands for two columns.

    Example:
      >>> figure = sequence_logo(np.eye(4), "ACGT", title="each once")
      >>> len(figure.axes), len(figure.axes[0].collections[0].get_paths())
      (1, 4)
    """
    who = "sequence_logo"
    per_row = check_count(who, "per_row", per_row, 60)
    heights = check_array(who, "heights", heights).astype(np.float64)
    heights = heights[None] if heights.ndim == 2 else heights
    if heights.ndim != 3 or heights.shape[-1] != len(alphabet) or 0 in heights.shape:
        raise ValueError(
            f"{who}: heights must be [L, {len(alphabet)}] or [N, L, {len(alphabet)}], a number for "
            f"each place and letter of alphabet; got {heights.shape}. Put the letters last."
        )
    if len(set(alphabet)) < len(alphabet) or not all(letter.strip() for letter in alphabet):
        raise ValueError(f"{who}: alphabet must be letters, each once; got {''.join(alphabet)!r}.")
    count, length, _ = heights.shape
    if names is None and count > 1:
        names = [f"sequence {n}" for n in range(count)]
    if names is not None:
        names = check_names(who, names, count, "names", " sequences")
    colour = _colours(who, alphabet, colours)

    lines = -(-length // per_row)
    inner = max(ACROSS * min(length, per_row), 1.5)
    head, below, beside = (0.24 if names else 0.06), 0.22, 0.5
    block = head + lines * (LINE + below)
    top = 0.5 if title else EDGE
    size = (2 * EDGE + beside + inner, top + count * block + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    if title:
        put_title(figure, title)
    for n, one in enumerate(heights):
        at = size[1] - top - n * block
        if names:
            told = fit(names[n], size[0] - 2 * EDGE, 8.5)
            write(figure, EDGE, at - head / 2, told, fontsize=8.5, color=INK)
        at -= head
        low, high = _limits(one)
        for line in range(lines):
            first = line * per_row
            part = one[first : first + per_row]
            share = len(part) / min(length, per_row)
            box = (EDGE + beside, at - LINE, inner * share, LINE)
            ax = figure.add_axes(
                (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])
            )
            ax.set_label(names[n] if names else "sequence")
            _draw(ax, part, first, alphabet, colour, (low, high))
            at -= LINE + below
    return figure


def _colours(who, alphabet, given):
    """A colour for each letter."""
    known = next((k for k in (_BASES, _ACIDS) if {a.upper() for a in alphabet} <= k.keys()), None)
    turns = (_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PINK, _BLACK)
    usual = lambda n, a: known[a.upper()] if known else turns[n % len(turns)]
    found = {a: usual(n, a) for n, a in enumerate(alphabet)}
    for letter, one in (given or {}).items():
        if letter not in found or not is_color_like(one):
            raise ValueError(
                f"{who}: colours must be colours of letters of alphabet; got {letter!r}: {one!r}. "
                f"The letters are {''.join(alphabet)!r}."
            )
    return found | dict(given or {})


def _limits(values):
    """The lowest and the highest stack; symmetric where anything lies below zero."""
    finite = np.where(np.isfinite(values), values, 0)
    high = np.maximum(finite, 0).sum(-1).max()
    low = np.minimum(finite, 0).sum(-1).min()
    if not (high or low):
        return 0.0, 1.0
    reach = max(high, -low)
    return (-1.05 * reach, 1.05 * reach) if low < 0 else (0.0, 1.05 * high)


def _draw(ax: Axes, values, first, alphabet, colour, limits):
    paths: list[Any] = []
    faces: list[str] = []
    for place, numbers in enumerate(values):
        if not np.isfinite(numbers).all():
            ax.axvspan(place - 0.5, place + 0.5, color=NOT_A_NUMBER, linewidth=0)
            continue
        up = down = 0.0
        for k in np.argsort(np.abs(numbers), kind="stable"):
            tall = float(numbers[k])
            if tall == 0:
                continue
            base = up if tall > 0 else down + tall
            up, down = (up + tall, down) if tall > 0 else (up, down + tall)
            glyph = _glyph(alphabet[k])
            corners = np.asarray(glyph.vertices) * (0.94, abs(tall)) + (place - 0.47, base)
            paths.append(Path(corners, glyph.codes))
            faces.append(colour[alphabet[k]])
    if paths:  # one collection: thousands of letters are drawn as quickly as tens
        letters = PathCollection(paths, facecolors=faces, linewidths=0)
        letters.set_transform(ax.transData)
        ax.add_collection(letters)
    ax.axhline(0, color="#8a8f98", linewidth=0.6, zorder=0)
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set_ylim(*limits)
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)
    ax.spines["left"].set_color("#c8ccd2")
    tens = [n for n in range(len(values)) if (first + n) % 10 == 0]
    ax.set_xticks(tens, [str(first + n) for n in tens], fontsize=6.5, color=QUIET)
    ax.locator_params(axis="y", nbins=3)
    ax.tick_params(axis="y", labelsize=6.5, labelcolor=QUIET, color="#c8ccd2", length=2)
    ax.tick_params(axis="x", length=0, pad=2)


@functools.lru_cache(256)
def _glyph(letter: str) -> Path:
    """The letter's outline, one wide and one high."""
    path = TextPath((0, 0), letter, size=10, prop=FontProperties(weight="bold"))
    outline = np.asarray(path.vertices)
    low, high = outline.min(0), outline.max(0)
    spread = np.where(high > low, high - low, 1)
    corners = (outline - low) / spread
    if spread[0] < 0.45 * spread[1]:  # an I, which would be a block, keeps its slenderness
        corners = corners * (0.4, 1) + (0.3, 0)
    return Path(corners, path.codes)
