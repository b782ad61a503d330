"""Concepts drawn: TCAV scores along layers, and the crops that show each concept."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.options import refused, whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import ACCENT, INK, QUIET
from jaxviz.plot.inputs import has_channels_first
from jaxviz.plot.page import FRAME, in_legend, titled

_TITLE = "Share of examples whose score rises with a concept"
_CONCEPTS = "Concepts by importance, and the crops that show them most"
_CLUSTERS = "Concepts by TCAV score, and the segments nearest to each cluster's centre"
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
        ax.plot(place, mean, "o", color=colour, markersize=5, label=in_legend(name))
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


def _found(who: str, option: str, value: Any) -> Any:
    kinds = ("importance", "stability", "crops"), ("scores", "p_values", "significant", "crops")
    if not any(all(hasattr(value, name) for name in names) for names in kinds):
        raise refused(who, option, "what jaxviz.concepts.craft or ace returns", value)
    return value


@public(found=_found, num_concepts=whole(1), num_crops=whole(1))
def concepts(
    found: Any, *, num_concepts: int = 8, num_crops: int = 8, title: str | None = None
) -> Figure:
    """Draws concepts, a row each: a bar of its importance, then the crops that show it most.

    Args:
      found: What `jaxviz.concepts.craft` or `ace` returns; crops in [0, 1], else each is scaled to
        its own least and largest number.
      num_concepts: How many rows, the most important first.
      num_crops: How many crops of each.
      title: Above everything; None says what it is.

    Returns:
      A Figure for `savefig`. Under each bar stands a concept's stability, the cosine to what other
      starts of the factorisation found; of `ace` the p-value of its TCAV score, with a star where
      it is beyond chance, and no bar where no score is known.

    Example:
      >>> from jaxviz.concepts import Craft, Dictionary
      >>> one, crops = np.ones(1), np.ones((1, 2, 4, 4, 3))
      >>> found = Craft(Dictionary(np.ones((1, 3))), one, one, one, 0.1, crops, one, one)
      >>> len(concepts(found).axes)
      3
    """
    clusters = hasattr(found, "p_values")
    importance = np.asarray(found.scores if clusters else found.importance)[:num_concepts]
    crops = np.asarray(found.crops)[: len(importance), :num_crops]
    if has_channels_first(crops.shape[1:]):
        crops = np.moveaxis(crops, 2, -1)
    rows, columns = crops.shape[:2]
    cell, wide = 0.92, 1.7
    figure = titled(
        wide + cell * columns + 0.3,
        0.55 + cell * rows,
        title or (_CLUSTERS if clusters else _CONCEPTS),
    )
    widths = {"width_ratios": [wide / cell] + [1] * columns}
    grid = figure.subplots(rows, columns + 1, squeeze=False, gridspec_kw=widths)
    most = max(np.nanmax(importance, initial=0), 1e-9)
    for k, line in enumerate(grid):
        bar, *frames = line
        length = np.nan_to_num(importance[k])
        bar.barh([0], [length], height=0.34, color=ACCENT)
        bar.set(xlim=(0, 1.35 * most), ylim=(-0.7, 0.7))
        bar.axis("off")
        bar.text(length + 0.04 * most, 0, f"{importance[k]:.2f}", va="center", fontsize=8)
        if clusters:
            star = " *" if found.significant[k] else ""
            told = f"TCAV score, p = {found.p_values[k]:.2g}{star}"
        else:
            steady = found.stability[k]
            told = "importance" + ("" if np.isnan(steady) else f", stability {steady:.2f}")
        bar.text(0, 0.28, f"concept {k}", fontsize=8, weight="bold", color=INK)
        bar.text(0, -0.45, told, fontsize=6.5, color=QUIET)
        for frame, crop in zip(frames, crops[k], strict=True):
            low, high = min(crop.min(), 0), max(crop.max(), 1)
            seen = np.clip((crop - low) / (high - low), 0, 1)
            frame.imshow(seen[..., 0] if seen.shape[-1] == 1 else seen, cmap="gray")
            frame.set_xticks([])
            frame.set_yticks([])
            frame.spines[:].set_color(FRAME)
    return figure
