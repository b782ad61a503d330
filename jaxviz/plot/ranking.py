"""How methods did by metrics: ranks as a heat map, curves with bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.options import several, title as any_text
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET
from jaxviz.plot.inputs import check_array, check_named
from jaxviz.plot.page import fit_apart, fitting_points, in_legend, titled

_BEST = np.array([0.10, 0.44, 0.52])  # of rank 1; the last is white
_LABELS = several(any_text, "texts, one a row or column")


@public(methods=_LABELS, metrics=_LABELS)
def ranks(
    rank: Any,
    methods: Sequence[str],
    metrics: Sequence[str],
    *,
    means: Any = None,
    title: str | None = None,
) -> Figure:
    """Draws who is better by which metric: a row a method, best mean rank on top.

    Args:
      rank: `[M, K]`, 1 the best; NaN where a method has none.
      methods: M names.
      metrics: K names.
      means: `[M, K]`, written into the cells instead of the ranks.
      title: Above everything; None says what it is.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: Shapes that do not fit one another.

    Example:
      >>> figure = ranks([[2.0], [1.0]], ["gradient", "lrp"], ["deletion"])
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['lrp', 'gradient']
    """
    rank = check_array("ranks", "rank", rank).astype(np.float64)
    shape = (len(methods), len(metrics))
    if rank.shape != shape:
        raise ValueError(
            f"ranks: rank must be [{shape[0]}, {shape[1]}], methods by metrics; got {rank.shape}. "
            "Name each row and column."
        )
    told = rank if means is None else check_array("ranks", "means", means)
    if told.shape != shape:
        raise ValueError(f"ranks: means must be {shape}, as rank; got {told.shape}. Give one each.")
    known = np.isfinite(rank)
    mean = np.where(known, rank, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
    order = np.argsort(mean, kind="stable")
    rank, told = rank[order], told[order]
    strength = 1 - (np.where(known[order], rank, shape[0]) - 1) / max(shape[0] - 1, 1)
    cell, line = 0.82, 0.25
    wide = 0.075 * max(map(len, methods)) + 1.0
    figure = titled(
        wide + cell * shape[1] + 0.9,
        1.5 + 0.05 * max(map(len, metrics)) + line * shape[0],
        title or f"Rank of {shape[0]} methods by {shape[1]} metrics: dark is best",
    )
    ax = figure.subplots()
    ax.imshow(1 - strength[..., None] * (1 - _BEST), aspect="auto")
    for (i, j), value in np.ndenumerate(told):
        text = "none" if np.isnan(rank[i, j]) else f"{value:.3g}"
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=fitting_points(text, cell - 0.1, 8),
            color="white" if strength[i, j] > 0.6 else INK,
        )
    ax.set_yticks(range(shape[0]), [str(methods[m]) for m in order], parse_math=False)
    ax.set_xticks(range(shape[1]), metrics, rotation=30, ha="right", parse_math=False)
    ax.tick_params(length=0, labelsize=9, colors=INK)
    for i, m in enumerate(order):
        ax.text(shape[1] - 0.4, i, f"{mean[m]:.1f}", va="center", fontsize=8.5, color=QUIET)
    ax.text(shape[1] - 0.4, -0.8, "mean rank", va="center", fontsize=8.5, color=QUIET)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure


@public()
def curves(
    curves: Mapping[str, Any],
    *,
    title: str | None = None,
    x_label: str = "share of the input",
    y_label: str = "score",
) -> Figure:
    """Draws mean curves, each with a band of one standard error either way.

    Args:
      curves: Name -> `[N, points]`, from none to all of the input in equal steps. Examples with a
        NaN are left out.
      title: Above everything; None leaves it out.
      x_label: Under the axis.
      y_label: Beside it.

    Returns:
      A Figure for `savefig`. The legend has the names in the order of their mean heights, by
      trapezoids as the areas of `metrics.deletion` are.

    Raises:
      ValueError: A curve is no `[N, points]`, or none of its examples is finite.

    Example:
      >>> figure = curves({"lrp": np.array([[3.0, 1.0, 0.0]]), "random": np.array([[3.0, 2, 1]])})
      >>> [text.get_text() for text in figure.legends[0].get_texts()]
      ['random  2', 'lrp  1.25']
    """
    given = check_named("curves", "curves", curves, '{"lrp": [[1.0, 0.5]]}')
    found = {}
    for name, values in given.items():
        array = check_array("curves", f"curve {name!r}", values).astype(np.float64)
        if array.ndim != 2 or array.shape[1] < 2:
            raise ValueError(
                f"curves: curve {name!r} must be [N, points], 2 points at least; got "
                f"{array.shape}. One example is curve[None]."
            )
        array = array[np.isfinite(array).all(1)]
        if not len(array):
            raise ValueError(f"curves: curve {name!r} must have a finite example; it has none.")
        found[name] = array
    means = {name: array.mean(0) for name, array in found.items()}
    heights = {name: np.trapezoid(mean) / (len(mean) - 1) for name, mean in means.items()}
    order = sorted(heights, key=lambda name: -heights[name])
    shown = dict(zip(order, fit_apart(order, 1.3, 7.5), strict=True))
    columns = -(-len(order) // 24)
    figure = titled(5.2 + 2.1 * columns, 4.0 + 0.12 * max(0, len(order) - 24), title)
    ax = figure.subplots()
    colours = matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, len(order)))
    for name, colour in zip(order, colours, strict=True):
        mean, count = means[name], len(found[name])
        along = np.linspace(0, 1, len(mean))
        label = in_legend(f"{shown[name]}  {heights[name]:.3g}")
        ax.plot(along, mean, color=colour, linewidth=1.5, label=label)
        if count > 1:
            error = found[name].std(0, ddof=1) / np.sqrt(count)
            ax.fill_between(along, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel(x_label, fontsize=9, color=INK, parse_math=False)
    ax.set_ylabel(y_label, fontsize=9, color=INK, parse_math=False)
    ax.grid(axis="y", color="#e6e9ee", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, colors=INK)
    legend = figure.legend(
        loc="outside right upper", fontsize=7.5, ncols=columns, frameon=False, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
