"""How well scores of training examples predict other training runs: one picture for all methods."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import maybe
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET
from jaxviz.plot.inputs import check_array, check_named
from jaxviz.plot.page import in_legend, titled


@public(counts=maybe(rows(1, "[C], as removal has")))
def data_attribution(
    lds: Mapping[str, Any],
    *,
    removal: Mapping[str, Any] | None = None,
    counts: Any = None,
    detection: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws what `influence.judged` found: LDS, removal curves, precision and recall.

    Args:
      lds: Name -> `[K]`: each test quantity is a dot, the mean a bar.
      removal: Name -> `[K, C]`: the mean change over K; None or {} draws none.
      counts: `[C]`: how many examples are left out; needed with `removal`.
      detection: Name -> `(recall [N], precision [N], ...)`; None or {} draws none.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`, a panel for each part; a method has one colour in all of them.

    Raises:
      ValueError: Shapes that do not fit one another, or an LDS without a number.

    Example:
      >>> figure = data_attribution({"magic": [0.9, 0.8], "trac_in": [0.2, 0.4]},
      ...                           removal={"magic": [[-1.0, -2.0]]}, counts=[1, 2])
      >>> [ax.get_title() for ax in figure.axes]
      ['Predicts runs on random subsets', 'Without the most helpful examples']
    """
    who = "data_attribution"
    given = check_named(who, "lds", lds, '{"magic": [0.9, 0.8]}')
    scores = {n: _sized(who, f"lds {n!r}", v, 1) for n, v in given.items()}
    removal = _named(who, "removal", removal, '{"magic": [[-1.0, -2.0]]}')
    changes = {n: _sized(who, f"removal {n!r}", v, 2) for n, v in removal.items()}
    wrong = [v.shape for v in changes.values() if v.shape[1:] != np.shape(counts)]
    if wrong:
        raise ValueError(
            f"{who}: counts must be one for each column of removal, [C]; got {np.shape(counts)}, "
            f"removal {wrong[0]}. Pass `found.counts`."
        )
    detection = _named(who, "detection", detection, '{"magic": (recall, precision)}')
    found = {}
    for name, parts in detection.items():
        try:
            recall, precision = list(parts)[:2]
        except (TypeError, ValueError):
            recall, precision = parts, None
        recall = _sized(who, f"detection {name!r}", recall, 1)
        found[name] = recall, _sized(who, f"detection {name!r}", precision, 1)
        if len(found[name][1]) != len(recall):
            raise ValueError(
                f"{who}: detection {name!r} must have as many precisions as recalls; got "
                f"{len(found[name][1])} and {len(recall)}. Pass what `mislabelled` returned."
            )
    names = [*dict.fromkeys([*scores, *changes, *found])]
    shades = matplotlib.colormaps["turbo"](np.linspace(0.1, 0.9, len(names)))
    colours = dict(zip(names, shades, strict=True))
    panels = [_draw_lds(scores)]
    panels += [_draw_removal(changes, np.asarray(counts))] if changes else []
    panels += [_draw_detection(found)] if found else []
    height = max(3.0, 1.2 + 0.32 * len(scores))
    legends = (len(panels) - 1) * (0.9 + 0.06 * max(map(len, names)))
    figure = titled(0.4 + 4.2 * len(panels) + legends, height, title)
    for ax, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(ax, colours)
        ax.tick_params(labelsize=8, colors=INK)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e9ee", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure


def _draw_lds(scores):
    means = {name: np.nanmean(v) if np.isfinite(v).any() else 0.0 for name, v in scores.items()}
    order = sorted(means, key=lambda name: means[name])  # bars grow upwards

    def draw(ax, colours):
        for at, name in enumerate(order):
            values = scores[name]
            ax.barh(at, means[name], color=colours[name], alpha=0.35, height=0.7)
            ax.plot(values, np.full(len(values), at), ".", color=colours[name], markersize=4)
            told = f"{means[name]:.2f}" if np.isfinite(values).any() else "none"
            ax.text(1.04, at, told, va="center", fontsize=8, color=INK)
        ax.set_yticks(range(len(order)), order, parse_math=False)
        low = min(0.0, *(np.nanmin(v, initial=0.0) for v in scores.values()), 0.0)
        ax.set_xlim(low - 0.04 if low else 0.0, 1.02)
        _words(ax, "Predicts runs on random subsets", "linear datamodeling score", "")

    return draw


def _draw_removal(changes, counts):
    def draw(ax, colours):
        for name, values in changes.items():
            count = np.isfinite(values).sum(0)
            mean = np.nanmean(values, 0)
            ax.plot(counts, mean, ".-", color=colours[name], linewidth=1.5, label=in_legend(name))
            if len(values) > 1:
                error = np.nanstd(values, 0, ddof=1) / np.sqrt(count)
                band = {"color": colours[name], "alpha": 0.15, "linewidth": 0}
                ax.fill_between(counts, mean - error, mean + error, **band)
        ax.axhline(0, color=QUIET, linewidth=0.8)
        _words(ax, "Without the most helpful examples", "examples left out", "mean change")
        _legend(ax)

    return draw


def _draw_detection(found):
    def draw(ax, colours):
        for name, (recall, precision) in found.items():
            steps = np.diff(recall, prepend=0)  # the mean precision where one is found
            label = f"{name}  {(steps * precision).sum():.2f}"
            ax.plot(recall, precision, color=colours[name], linewidth=1.5, label=in_legend(label))
        ax.set_xlim(0, 1.02)
        ax.set_ylim(0, 1.04)
        _words(ax, "Finds flipped labels", "share of them found", "share of those pointed at")
        _legend(ax)

    return draw


def _words(ax, title, x, y):
    ax.set_title(title, fontsize=9, color=INK)
    ax.set_xlabel(x, fontsize=8, color=INK)
    ax.set_ylabel(y, fontsize=8, color=INK)


def _legend(ax):
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    legend = ax.legend(fontsize=7.5, frameon=False, labelcolor=INK, **beside)  # off the curves
    for text in legend.get_texts():
        text.set_parse_math(False)


def _named(who, what, values, example):
    nothing = values is None or (isinstance(values, Mapping) and not values)
    return {} if nothing else check_named(who, what, values, example)


def _sized(who, what, values, axes):
    array = check_array(who, what, values).astype(np.float64)
    if array.ndim != axes or not array.size:
        shape = "[K]" if axes == 1 else "[K, C]"
        raise ValueError(
            f"{who}: {what} must be numbers, {shape}; got {array.shape}. Pass what "
            "`influence.judged` returned."
        )
    return array
