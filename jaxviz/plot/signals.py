"""The signal sheet: series of one axis, what the model says, and why, drawn along that axis."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET, SIGNED
from jaxviz.plot.inputs import (
    check_array,
    check_named,
    check_names,
    check_overlay,
    check_percentile,
    check_vector,
    first_words,
)
from jaxviz.plot.page import fit, put_title

# Inches. Names stand to the left of the strips, scales to the right.
WIDTH, LINE, STRIP, GAP, BLOCK, TOP, EDGE = 7.2, 0.85, 0.5, 0.07, 0.34, 0.52, 0.14
LEFT, RIGHT = 1.45, 0.9
FOR, AGAINST = SIGNED(0.92), SIGNED(0.08)
LINES = ("#333333", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e")


@public()
def signal_sheet(
    signals,
    maps: Mapping[str, object],
    *,
    probabilities=None,
    class_names: Sequence[str] | None = None,
    labels=None,
    target=None,
    overlay: Collection[str] = (),
    strips: Literal["bars", "heat"] = "bars",
    percentile: float = 99.0,
    title: str | None = None,
) -> Figure:
    """Draws series and what explains them: a block an example, its line above, a strip each map.

    Bars stand on the zero line: red speaks for the explained class, blue against it. Each strip has
    its own scale, written beside it: the magnitude that fills it. Numbers that are not finite are
    green.

    Args:
      signals: `[N, L]` or `[N, L, C]`, in any range; channels are lines of different colours.
      maps: Title -> `[N, l]` or `[N, l, C]`, whose channels are summed; fewer places than L are
        drawn wider.
      probabilities: `[N, K]`, of which each block tells the explained class's; None tells none.
      class_names: K names; None shows indices.
      labels: `[N]` true classes, or None.
      target: `[N]` explained classes, or one for all; None means each row's most probable class.
      overlay: Which of `maps` also have the signal in them, in grey. `maps` itself is all.
      strips: How maps are drawn: "bars" from a line of zero, or "heat", colours alone, as under
        images: one line tells a long series apart from its neighbours.
      percentile: Of each map's magnitudes; what lies above fills the strip. 100 clips nothing.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: a shape or name that does not fit.

    Example:
      >>> wave = np.sin(np.linspace(0, 9, 50))[None]
      >>> figure = signal_sheet(wave, {"itself": wave})
      >>> [ax.get_label() for ax in figure.axes]
      ['input', 'itself']
    """
    who = "signal_sheet"
    signals = check_array(who, "signals", signals).astype(np.float64)
    if signals.ndim not in (2, 3) or 0 in signals.shape:
        raise ValueError(
            f"{who}: signals must be [N, L] or [N, L, C]; got {signals.shape}. One is signal[None]."
        )
    signals = signals if signals.ndim == 3 else signals[..., None]
    count = len(signals)
    maps = check_named(who, "maps", maps, "{'gradient': gradient}")
    overlay = check_overlay(who, overlay, maps)
    check_percentile(who, percentile)
    drawn = {name: _strip(who, name, value, count) for name, value in maps.items()}
    told = _told(who, count, probabilities, class_names, labels, target)

    top = TOP if title else EDGE
    block = BLOCK + LINE + (STRIP + GAP) * len(drawn)
    size = (WIDTH, top + block * count + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    for n, signal in enumerate(signals):
        above = size[1] - top - n * block
        figure.text(
            LEFT / WIDTH, (above - 0.16) / size[1], told[n],
            fontsize=8.5, color=INK, va="center", parse_math=False,
        )  # fmt: skip
        at = above - BLOCK - LINE
        ax = _panel(figure, "input", at, LINE, len(signal))
        _lines(ax, signal)
        _beside(ax, "input", _range(signal))
        for name, strip in drawn.items():
            at -= STRIP + GAP
            ax = _panel(figure, name, at, STRIP, strip.shape[1])
            _strip_of(ax, name, strip[n], percentile, strips == "heat")
            if name in overlay:
                _ghost(ax, signal)
    if title:
        put_title(figure, title, left=EDGE)
    return figure


def _strip(who, name, values, count):
    values = check_array(who, f"map {name!r}", values)
    if values.ndim not in (2, 3) or len(values) != count or 0 in values.shape:
        raise ValueError(
            f"{who}: map {name!r} must be [{count}, l] or [{count}, l, C], one a signal; got "
            f"{values.shape}. Put the batch first and the channels last."
        )
    values = values.astype(np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    return values if values.ndim == 2 else values.sum(-1)


def _told(who, count, probabilities, class_names, labels, target) -> list[str]:
    """The line above each block: its true and explained class, where these are known."""
    if probabilities is not None:
        probabilities = check_array(who, "probabilities", probabilities)
        if probabilities.ndim != 2 or len(probabilities) != count:
            raise ValueError(
                f"{who}: probabilities must be [{count}, K], one row a signal; got "
                f"{probabilities.shape}. Pass jax.nn.softmax of the logits."
            )
    classes = None if probabilities is None else probabilities.shape[1]
    if classes is None and class_names is not None:
        classes = len(class_names)
    labels = check_vector(who, "labels", labels, count, classes)
    if target is not None:
        target = np.broadcast_to(check_array(who, "target", target), (count,))
        target = check_vector(who, "target", target, count, classes)
    elif probabilities is not None:
        target = probabilities.argmax(-1)
    largest = [int(v.max()) for v in (labels, target) if v is not None]
    names = first_words(check_names(who, class_names, classes or 1 + max(largest, default=0)))
    lines = []
    for n in range(count):
        parts = [f"example {n}"] if count > 1 else []
        if labels is not None:
            parts.append(f"true: {names[labels[n]]}")
        if target is not None:
            share = "" if probabilities is None else f" ({probabilities[n, target[n]]:.1%})"
            parts.append(f"explained: {names[target[n]]}{share}")
        lines.append(fit(" · ".join(parts), WIDTH - LEFT - EDGE, 8.5))
    return lines


def _panel(figure: Figure, name: str, bottom: float, height: float, length: int) -> Axes:
    width, tall = figure.get_size_inches()
    box = (LEFT / width, bottom / tall, (width - LEFT - RIGHT) / width, height / tall)
    ax = figure.add_axes(box, label=name)
    ax.set_xlim(-0.5, length - 0.5)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ("top", "right", "bottom", "left"):
        ax.spines[side].set_visible(False)
    return ax


def _beside(ax: Axes, name: str, scale: str) -> None:
    ax.text(
        -0.02, 0.5, fit(name, LEFT - 0.3, 9), transform=ax.transAxes,
        ha="right", va="center", fontsize=9, color=INK, parse_math=False,
    )  # fmt: skip
    ax.text(
        1.01, 0.5, scale, transform=ax.transAxes,
        ha="left", va="center", fontsize=7, color=QUIET, parse_math=False,
    )  # fmt: skip


def _lines(ax: Axes, signal: np.ndarray) -> None:
    places = np.arange(len(signal))
    signal = np.where(np.isfinite(signal), signal, np.nan)
    marks = "o" if len(signal) == 1 else None
    for channel, values in enumerate(signal.T):
        colour = LINES[channel % len(LINES)]
        ax.plot(places, values, color=colour, linewidth=0.9, marker=marks, markersize=3)
    missing = np.any(np.isnan(signal), axis=1)
    _mark(ax, missing, *ax.get_ylim())


def _range(signal: np.ndarray) -> str:
    finite = signal[np.isfinite(signal)]
    return f"{finite.min():.2g} to {finite.max():.2g}" if finite.size else "not finite"


def _strip_of(ax: Axes, name: str, values: np.ndarray, percentile: float, heat: bool) -> None:
    sizes = np.abs(values[np.isfinite(values)])
    limit = (np.percentile(sizes, percentile) or sizes.max()) if sizes.size else 0.0
    shown = np.clip(np.nan_to_num(values) / (limit or 1.0), -1, 1)
    places = np.arange(len(values))
    signed = (shown < 0).any()
    if heat:
        seen = np.where(np.isnan(values), np.nan, shown)[None]  # green stands behind what is not
        ax.imshow(
            seen, cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest",
            extent=(-0.5, len(values) - 0.5, 0, 1),
        )  # fmt: skip
    else:
        # Steps of one place each, drawn as two areas: as quick for a thousand places as for ten.
        edges = np.repeat(np.arange(len(values) + 1) - 0.5, 2)[1:-1]
        for part, colour in ((np.maximum(shown, 0), FOR), (np.minimum(shown, 0), AGAINST)):
            ax.fill_between(edges, 0, np.repeat(part, 2), color=colour, linewidth=0)
        ax.axhline(0, color="#c9ced6", linewidth=0.6, zorder=0)
        ax.set_ylim(-1.05, 1.05) if signed else ax.set_ylim(-0.03, 1.05)
    missing = np.isnan(values)
    _mark(ax, missing, *ax.get_ylim())
    zero = "zero elsewhere" if missing.any() else "zero everywhere"
    scale = f"{'±' if signed else '0 to '}{limit:.2g}" if limit else zero
    _beside(ax, name, "not finite" if missing.all() else scale)
    if missing.all():
        middle = (float(places.mean()), float(np.mean(ax.get_ylim())))
        ax.text(*middle, "not finite", ha="center", va="center", fontsize=8, color=INK)


def _mark(ax: Axes, missing: np.ndarray, low: float, high: float) -> None:
    """Places without a number, in green."""
    for place in np.flatnonzero(missing):
        ax.axvspan(place - 0.5, place + 0.5, color=NOT_A_NUMBER, linewidth=0, zorder=0)
    ax.set_ylim(low, high)


def _ghost(ax: Axes, signal: np.ndarray) -> None:
    """The signal in grey, as tall as the strip."""
    low, high = ax.get_ylim()
    finite = np.where(np.isfinite(signal), signal, np.nan)
    if np.isnan(finite).all():
        return
    least, most = np.nanmin(finite), np.nanmax(finite)
    left, right = ax.get_xlim()
    at = left + (np.arange(len(signal)) + 0.5) / len(signal) * (right - left)
    scaled = (finite - least) / ((most - least) or 1.0)
    ax.plot(at, low + 0.05 + (high - low - 0.1) * scaled, color="#8a8f98", linewidth=0.6)
