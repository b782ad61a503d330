"""Concepts drawn: TCAV scores along layers."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.options import refused
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET
from jaxviz.plot.page import titled

_TITLE = "Share of examples whose score rises with a concept"
_NULL = {"color": "#e3e6ea", "linewidth": 0}


def _scores(who: str, option: str, value: Any) -> Any:
    names = ("concepts", "layers", "scores", "null_scores", "significant", "p_values")
    if not all(hasattr(value, name) for name in names):
        raise refused(who, option, "what jaxviz.concepts.tcav returns", value)
    return value


@public(found=_scores)
def tcav(found: Any, *, title: str | None = None) -> Figure:
    """Draws TCAV scores along layers: dots with intervals, a star where they are beyond chance.

    Dots are means over random sets, bars two standard errors either way. The grey band is where
    random sets come to lie in the place of a concept, from the lowest to the highest. A concept
    that was not told from random in a layer has a cross at the bottom.

    Args:
      found: What `jaxviz.concepts.tcav` returns.
      title: Above everything; None says what it is.

    Returns:
      A Figure for `savefig`.

    Example:
      >>> from jaxviz.concepts import Tcav
      >>> one, few = np.ones((1, 1, 3)), np.ones((1, 3))
      >>> sure = few[:, :1]
      >>> found = Tcav(("stripes",), ("conv",), one, one[0], few, few, sure, sure < 2, one, {})
      >>> [text.get_text() for text in tcav(found).legends[0].get_texts()][:1]
      ['stripes']
    """
    count = len(found.layers)
    figure = titled(2.6 + max(4, 0.28 * count * (len(found.concepts) + 1)), 3.6, title or _TITLE)
    ax = figure.subplots()
    width = 0.8 / len(found.concepts)
    for at, null in enumerate(np.asarray(found.null_scores)):
        label = "random sets" if at == 0 else None
        ax.fill_between([at - 0.45, at + 0.45], null.min(), null.max(), label=label, **_NULL)
    ax.axhline(0.5, color=QUIET, linewidth=0.8, linestyle=":")
    colours = matplotlib.colormaps["turbo"](np.linspace(0.1, 0.9, len(found.concepts)))
    for k, (name, colour) in enumerate(zip(found.concepts, colours, strict=True)):
        scores = np.asarray(found.scores[k], np.float64)  # [L, R]
        place = np.arange(count) + (k + 0.5) * width - 0.4
        mean, error = scores.mean(1), 2 * scores.std(1, ddof=1) / np.sqrt(scores.shape[1])
        ends = np.clip([mean - error, mean + error], 0, 1)
        ax.vlines(place, *ends, color=colour, linewidth=2.2, alpha=0.5)
        ax.plot(place, mean, "o", color=colour, markersize=5, label=name)
        unknown = np.isnan(mean)
        ax.plot(place[unknown], np.zeros(unknown.sum()), "x", color=colour, markersize=5)
        for at in np.flatnonzero(found.significant[k]):
            ax.text(place[at], 1.04, "*", ha="center", va="center", color=colour, fontsize=14)
    ax.set_ylim(-0.06, 1.12)
    ax.set_xlim(-0.6, count - 0.4)
    ax.set_xticks(range(count), found.layers, rotation=30, ha="right", parse_math=False)
    ax.set_ylabel("TCAV score", fontsize=9, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, colors=INK)
    handles, labels = ax.get_legend_handles_labels()
    order = [*range(1, len(labels)), 0]
    legend = figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        title="* beyond chance",
        title_fontsize=8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
