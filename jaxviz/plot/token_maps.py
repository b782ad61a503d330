"""What lies between tokens and in layers: attention maps as a grid, tokens by layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxviz.calls.options import maybe, several, title as any_text
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET, SIGNED
from jaxviz.plot.inputs import check_array, check_count, check_named, check_names
from jaxviz.plot.page import (
    EDGE,
    GAP,
    fit,
    fitting_points,
    frame,
    put_title,
    text_width,
    write,
)
from jaxviz.plot.tokens import pieces

_TEXTS = several(any_text, "texts, one a token")
_MOST_NAMED = 64  # tokens along an axis that are still named
_LETTERS = 6.5  # points


@public(tokens=maybe(_TEXTS), keys=maybe(_TEXTS))
def attention_grid(
    maps: Any,
    *,
    tokens: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    per_row: int = 4,
    title: str | None = None,
) -> Figure:
    """Draws the attention of each head of one or more layers: a row a query, a column a key.

    White is zero in all; weights up to 1 grow dark blue, by one scale a layer, written above its
    heads. Where a layer has numbers below zero (attention times gradient) red is for and blue
    against what is explained. Numbers that are not finite are green.

    Args:
      maps: `[heads, queries, keys]` of one example, or such by layer's name:
        `{name: a[0] for name, a in jaxviz.attentions(...).items()}`.
      tokens: Texts of the queries, and of the keys where there are as many; None numbers none.
      keys: Texts of the keys, where these are others (cross-attention).
      per_row: Heads a row, >= 1.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: A shape or a number of texts that does not fit.

    Example:
      >>> figure = attention_grid(np.full((2, 3, 3), 1 / 3), tokens=["a", "b", "c"])
      >>> [ax.get_label() for ax in figure.axes]
      ['head 0', 'head 1']
    """
    who = "attention_grid"
    per_row = check_count(who, "per_row", per_row, 4)
    layers = dict(maps) if isinstance(maps, Mapping) else {"": maps}
    if not layers:
        raise ValueError(f"{who}: maps must hold a layer's maps; got none. Pass [heads, Q, K].")
    sections = []
    for layer, values in layers.items():
        values = check_array(who, "maps", values)
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(
                f"{who}: maps must be [heads, queries, keys], one example; got {values.shape}. "
                "Pick one example of a batch: attention[0]."
            )
        rows, columns = _named(who, tokens, keys, values.shape[1:])
        sections.append((str(layer), values.astype(np.float64), rows, columns))

    named = [[t for t in (rows or []) + (columns or [])] for _, _, rows, columns in sections]
    margin = min(max((text_width(t, _LETTERS) for n in named for t in n), default=0.0), 0.9)
    across = min(per_row, max(len(values) for _, values, *_ in sections))
    most = max(max(values.shape[1:]) for _, values, *_ in sections)
    cell = min(max(1.5, 0.105 * most if any(named) else 0.0), 5.0)
    heading, label = 0.3, 0.2
    sizes = []
    for _, values, rows, columns in sections:
        left = margin + 0.05 if rows else 0.0
        below = margin + 0.05 if columns else 0.0
        height = cell * min(max(values.shape[1] / values.shape[2], 0.15), 3.0)
        sizes.append((left, below, height))
    wide = max(left for left, *_ in sizes)
    width = max(2 * EDGE + wide + across * (cell + GAP) - GAP, 3.6)
    tall = sum(
        heading + below + math.ceil(len(values) / across) * (height + label)
        for (_, values, *_), (_, below, height) in zip(sections, sizes, strict=True)
    )
    top = 0.5 if title else EDGE
    figure = Figure(figsize=(width, top + tall + EDGE), facecolor="white")
    if title:
        put_title(figure, title)
    at = tall + EDGE
    for (layer, values, rows, columns), (_, below, height) in zip(sections, sizes, strict=True):
        colours, low, high, told = _scale(values)
        told = f"{layer}  {told}" if layer else told
        points = fitting_points(told, width - 2 * EDGE, 8)
        write(figure, EDGE, at - heading / 2, told, fontsize=points, color=INK)
        at -= heading
        lines = math.ceil(len(values) / across)
        for head, one in enumerate(values):
            line, column = divmod(head, across)
            left = EDGE + wide + column * (cell + GAP)
            bottom = at - line * (height + label) - label - height
            ax = frame(figure, left, bottom, cell, height)
            shown = np.ma.masked_invalid(one)
            ax.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto")
            ax.set_label(f"{layer} head {head}".strip())
            note = f"head {head}"
            write(figure, left, bottom + height + 0.08, note, fontsize=7, color=QUIET)
            _ticks(ax, rows if column == 0 else None, None, margin, cell)
            last = head + across >= len(values)
            _ticks(ax, None, columns if last else None, margin, cell)
        at -= lines * (height + label) + below
    return figure


@public(tokens=_TEXTS)
def token_layer_map(
    tokens: Sequence[str], maps: Mapping[str, Any], *, title: str | None = None
) -> Figure:
    """Draws one example's tokens by layers: a row a layer, a column a token, one scale for all.

    Red speaks for what is explained, blue against it, white is zero; numbers that are not finite
    are green. Explanations that share out one score (`at_layer` of integrated gradients or of
    DeepLIFT) can be read down a column: where the model moves what it knows from token to token.

    Args:
      tokens: L texts.
      maps: Layer's name -> `[L]` or `[L, D]`, whose last axis is summed; the first is drawn on top.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: A shape or a number of texts that does not fit.

    Example:
      >>> figure = token_layer_map(["a", "b"], {"embed": np.ones(2), "block": np.ones((2, 3))})
      >>> figure.axes[0].get_images()[0].get_array().tolist()
      [[1.0, 1.0], [3.0, 3.0]]
    """
    who = "token_layer_map"
    rows = {}
    if not tokens:
        raise ValueError(f"{who}: tokens must be one text or more; got none.")
    for name, given in check_named(who, "maps", maps, "{'embed': values}").items():
        given = check_array(who, f"map {name!r}", given)
        if given.ndim not in (1, 2) or len(given) != len(tokens) or 0 in given.shape:
            raise ValueError(
                f"{who}: map {name!r} must be [{len(tokens)}] or [{len(tokens)}, D], a number for "
                f"each token; got {given.shape}. Pick one example of a batch: values[0]."
            )
        given = given.astype(np.float64)
        rows[name] = given if given.ndim == 1 else given.sum(-1)
    values = np.stack(list(rows.values()))
    colours, low, high, told = _scale(values, signed=True)
    words = [text for _, text in pieces(tokens)] if len(tokens) <= _MOST_NAMED else None
    widest = max((text_width(t, 7.5) for t in words or [""]), default=0.0)
    beside = min(max(text_width(name, 7.5) for name in rows), 1.8) + 0.06
    cell = 0.24 if words else max(0.02, min(0.24, 12 / len(tokens)))
    inner = max(cell * len(tokens), 1.6)
    upright = _upright(words or [""], inner / len(tokens), 7.5)
    below = (0.12 if upright else min(widest, 1.1)) + 0.06
    height = 0.24 * len(rows)
    top = 0.72 if title else 0.36
    size = (2 * EDGE + beside + inner, top + height + below + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    if title:
        put_title(figure, title)
    points = fitting_points(told, size[0] - 2 * EDGE, 7)
    write(figure, EDGE, size[1] - top + 0.14, told, fontsize=points, color=QUIET)
    ax = frame(figure, EDGE + beside, EDGE + below, inner, height)
    shown = np.ma.masked_invalid(values)
    ax.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    names = [fit(name, beside, 7.5) for name in rows]
    ax.set_yticks(np.arange(len(rows)), names, fontsize=7.5, color=INK, parse_math=False)
    if words:
        told_words = words if upright else [fit(text, below, 7.5) for text in words]
        ax.set_xticks(
            np.arange(len(words)), told_words,
            fontsize=7.5, rotation=0 if upright else 90, color=INK, parse_math=False,
        )  # fmt: skip
    ax.tick_params(length=0, pad=2)
    return figure


def _named(who, tokens, keys, shape):
    """Texts of the queries and of the keys; None where there are none, or too many to be read."""
    queries, columns = shape
    if tokens is not None:
        tokens = check_names(who, tokens, queries, "tokens", " queries")
    if keys is not None:
        keys = check_names(who, keys, columns, "keys", " keys")
    elif tokens is not None and columns == queries:
        keys = tokens
    short = lambda words: [text for _, text in pieces(words)]
    rows = short(tokens) if tokens is not None and queries <= _MOST_NAMED else None
    return rows, short(keys) if keys is not None and columns <= _MOST_NAMED else None


def _scale(values, signed=False):
    """A colour map, its limits, and these in words."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    signed = signed or bool((finite < 0).any())
    colours = SIGNED if signed else matplotlib.colormaps["Blues"]
    colours = colours.with_extremes(bad=NOT_A_NUMBER)
    told = f"{'±' if signed else 'white 0, dark '}{largest:.2g}"
    told = told if largest else ("zero everywhere" if finite.size else "not finite")
    if 0 < finite.size < values.size:
        told += "; green: not finite"
    high = largest or 1.0
    return colours, -high if signed else 0.0, high, told


def _upright(texts, cell, points):
    """Whether all texts stand side by side below cells as wide as that: letters, say."""
    return max(text_width(text, points) for text in texts) + 0.04 <= cell


def _ticks(ax: Axes, rows, columns, room, width):
    style: dict[str, Any] = {"fontsize": _LETTERS, "color": INK, "parse_math": False}
    if rows:
        ax.set_yticks(np.arange(len(rows)), [fit(t, room, _LETTERS) for t in rows], **style)
    if columns:
        upright = _upright(columns, width / len(columns), _LETTERS)
        texts = columns if upright else [fit(t, room, _LETTERS) for t in columns]
        ax.set_xticks(np.arange(len(columns)), texts, rotation=0 if upright else 90, **style)
    ax.tick_params(length=0, pad=2)
