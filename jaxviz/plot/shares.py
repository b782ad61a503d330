"""Shares of columns as tables have them: waterfall, force, bars, beeswarm, dependence."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, SIGNED
from jaxviz.plot.inputs import check_array
from jaxviz.plot.page import fit, text_width, titled

FOR, AGAINST = SIGNED(0.9), SIGNED(0.1)
_NAMES, _BARS, _LINE = 1.9, 4.2, 0.3  # inches
_WIDE = 9.0


@public(max_features=whole(1))
def waterfall(
    values: Any,
    *,
    base: float = 0.0,
    score: float | None = None,
    inputs: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 10,
    title: str | None = None,
) -> Figure:
    """Draws how one example's shares lead from the base to its score: a step a feature.

    The largest share is on top; red pushes up, blue down. What is not shown is one step.

    Args:
      values: `[F]`, one example's shares, as `kernel_shap` or `integrated_gradients` give them.
      base: Where the steps begin: the score of the fill or of the baseline.
      score: What the model gives; None is base plus shares. Shares that do not add up to it, within
        a hundredth of what is gained, are refused: they would be drawn as what they are not.
      inputs: `[F]`, written beside the names; None writes none.
      names: F names of the features; None shows their numbers.
      max_features: Steps at most, beside that of all others.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: Shapes that do not fit one another; shares that do not add up to `score`.

    Example:
      >>> figure = waterfall([0.5, -2.0], base=1.0, names=["age", "dose"], inputs=[31.0, 2.5])
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['dose = 2.5', 'age = 31']
    """
    who = "waterfall"
    values, told = _of_one(who, values, inputs, names)
    end = base + float(values.sum())
    _adds_up(who, score, base, values)
    steps, labels, _ = _largest(values, told, max_features)
    figure, ax = _rows(len(steps), title)
    at = end
    for row, step in enumerate(steps):
        begin = at - step
        ax.barh(row, step, left=begin, height=0.62, color=FOR if step >= 0 else AGAINST)
        ax.plot([begin, begin], [row - 0.31, row + 1.31], color=QUIET, linewidth=0.6, zorder=0)
        at = begin
    low, high = ax.get_xlim()
    room = 0.14 * (high - low)
    ax.set_xlim(low - room, high + room)
    at = end
    for row, step in enumerate(steps):
        right = max(at, at - step)
        ax.text(right + 0.1 * room, row, f"{step:+.3g}", va="center", fontsize=8, color=INK)
        at -= step
    _rows_named(ax, labels)
    ax.set_xlabel(f"from {base:.3g} (base) to {end:.3g} (score)", fontsize=9, color=INK)
    return figure


@public(max_features=whole(1))
def force(
    values: Any,
    *,
    base: float = 0.0,
    score: float | None = None,
    inputs: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 10,
    title: str | None = None,
) -> Figure:
    """Draws one example's shares against one another: up from the left, down from the right.

    Both meet at the score; the largest of each side stand next to it.

    Args:
      values, base, score, inputs, names, max_features, title: As for `waterfall`.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: Shapes that do not fit one another; shares that do not add up to `score`.

    Example:
      >>> figure = force([0.5, -2.0], base=1.0, names=["age", "dose"])
      >>> [float(bar.get_x()) for bar in figure.axes[0].patches]
      [-1.0, -0.5]
    """
    who = "force"
    values, told = _of_one(who, values, inputs, names)
    end = base + float(values.sum())
    _adds_up(who, score, base, values)
    steps, labels, _ = _largest(values, told, max_features)
    figure = titled(_WIDE, 2.3, title)
    ax = figure.subplots()
    shown = []
    for sign, colour in ((1, FOR), (-1, AGAINST)):
        at = end
        for step, label in zip(steps, labels, strict=True):
            if sign * step > 0:
                at, begin = at - step, at
                left = min(at, begin)
                ax.barh(0, abs(step), left=left, height=0.5, color=colour, edgecolor="white")
                shown.append((left + abs(step) / 2, abs(step), label, colour))
    low, high = (
        min([base, *(m - w / 2 for m, w, *_ in shown)]),
        max([base, *(m + w / 2 for m, w, *_ in shown)]),
    )
    span = (high - low) or 1.0
    ax.set_xlim(low - 0.04 * span, high + 0.04 * span)
    inches = (_WIDE - 0.8) / (1.08 * span)
    taken: list[list[tuple[float, float]]] = [[], []]
    for middle, _, label, colour in sorted(shown, key=lambda one: -one[1]):
        text = fit(label, 1.6, 8)
        half = text_width(text, 8) / 2 / inches + 0.01 * span
        spots = [line for line in (0, 1) if all(abs(middle - m) > half + h for m, h in taken[line])]
        if spots:
            taken[spots[0]].append((middle, half))
            ax.text(
                middle, -0.42 - 0.24 * spots[0], text, ha="center", va="center", fontsize=8,
                color=colour, parse_math=False,
            )  # fmt: skip
    for where, word, height in ((base, f"base {base:.3g}", 0.62), (end, f"score {end:.3g}", 0.42)):
        ax.plot([where] * 2, [-0.25, height - 0.12], color=INK, linewidth=0.8, linestyle=":")
        ax.text(where, height, word, ha="center", fontsize=9, color=INK)
    ax.set_ylim(-0.85, 0.85)
    ax.set_yticks([])
    ax.tick_params(labelsize=8, colors=QUIET)
    ax.spines[["left", "top", "right"]].set_visible(False)
    return figure


@public(max_features=whole(1))
def bar(
    values: Any,
    *,
    errors: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 10,
    title: str | None = None,
) -> Figure:
    """Draws how much features matter: over a set the mean magnitude, of one example with its sign.

    Args:
      values: `[N, F]`, shares of N examples, whose magnitudes are averaged, or `[F]`, as they are:
        one example's, or `permutation_importance`'s.
      errors: `[F]` standard errors of values `[F]`, drawn as lines; None draws those of the mean
        for `[N, F]`.
      names: F names of the features; None shows their numbers.
      max_features: Bars at most, the largest first; the others are one bar, their sum.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: Shapes that do not fit one another.

    Example:
      >>> figure = bar([[0.5, -2.0], [0.5, 2.0]], names=["age", "dose"])
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['dose', 'age']
    """
    who = "bar"
    values = check_array(who, "values", values).astype(np.float64)
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(
            f"{who}: values must be [N, F] or [F]; got {values.shape}. Flatten the features of an "
            "example: values.reshape(len(values), -1)."
        )
    over_a_set = values.ndim == 2
    if errors is not None:
        errors = check_array(who, "errors", errors).astype(np.float64)
        if over_a_set or errors.shape != values.shape:
            raise ValueError(
                f"{who}: errors must be [F], of values [F]; got {errors.shape}, values "
                f"{values.shape}. Leave them out for [N, F]."
            )
    elif over_a_set and len(values) > 1:
        errors = np.abs(values).std(0, ddof=1) / np.sqrt(len(values))
    values = np.abs(values).mean(0) if over_a_set else values
    told = _told(who, values, None, names)
    steps, labels, shown = _largest(values, told, max_features)
    figure, ax = _rows(len(steps), title)
    drawn = np.where(np.isfinite(steps), steps, 0)  # what is no number is told, without a bar
    colours = [FOR if s >= 0 else AGAINST for s in steps]
    ax.barh(range(len(steps)), drawn, height=0.62, color=colours)
    if errors is not None:
        ax.errorbar(
            values[shown], range(len(shown)), xerr=errors[shown], fmt="none", ecolor=INK,
            elinewidth=0.9,
        )  # fmt: skip
    reach = np.maximum(drawn, 0)
    if errors is not None:
        reach[: len(shown)] += np.nan_to_num(errors[shown], posinf=0)
    for row, step in enumerate(steps):
        ax.annotate(
            f"{step:.3g}", (reach[row], row), (4, 0), textcoords="offset points", va="center",
            fontsize=8, color=INK,
        )  # fmt: skip
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.margins(x=0.12)
    _rows_named(ax, labels)
    if over_a_set:
        ax.set_xlabel("mean magnitude of shares", fontsize=9, color=INK)
    return figure


@public(max_features=whole(1))
def beeswarm(
    values: Any,
    *,
    inputs: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 10,
    title: str | None = None,
) -> Figure:
    """Draws the shares of a whole set: a row a feature, a point an example, as wide as they crowd.

    Rows go by their mean magnitude, the largest on top. Colour is the feature's own value, from its
    5th to its 95th percentile: it shows whether high values speak for the score or against it.

    Args:
      values: `[N, F]`, shares of N examples.
      inputs: `[N, F]`, what the features were; None draws all points in one colour.
      names: F names of the features; None shows their numbers.
      max_features: Rows at most.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown. Points that are not finite are left out.

    Raises:
      ValueError: Shapes that do not fit one another.

    Example:
      >>> figure = beeswarm([[0.5, -2.0], [0.5, 2.0]], names=["age", "dose"])
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['dose', 'age']
    """
    who = "beeswarm"
    values = check_array(who, "values", values).astype(np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{who}: values must be [N, F]; got {values.shape}. One example is drawn by waterfall; "
            "flatten the features: values.reshape(len(values), -1)."
        )
    if inputs is not None:
        inputs = check_array(who, "inputs", inputs).astype(np.float64)
        if inputs.shape != values.shape:
            raise ValueError(
                f"{who}: inputs must be {values.shape}, as values; got {inputs.shape}. Pass x."
            )
    told = _told(who, values[0], None, names)
    values = np.where(np.isfinite(values), values, np.nan)
    size = np.nan_to_num(np.abs(values)).mean(0)
    order = np.argsort(-size, kind="stable")[:max_features]
    figure, ax = _rows(len(order), title)
    colours = matplotlib.colormaps["plasma"]
    reach = (np.nanmin(values[:, order], initial=0.0), np.nanmax(values[:, order], initial=0.0))
    for row, f in enumerate(order):
        known = np.flatnonzero(np.isfinite(values[:, f]))
        shade: Any = FOR
        if inputs is not None:
            finite = inputs[known, f][np.isfinite(inputs[known, f])]
            low, high = np.percentile(finite, [5, 95]) if finite.size else (0.0, 1.0)
            shade = colours(np.clip((inputs[known, f] - low) / ((high - low) or 1.0), 0, 1) * 0.92)
        up = _crowded(values[known, f], reach)
        ax.scatter(
            values[known, f],
            row + up,
            s=9,
            c=shade if inputs is not None else [shade],
            linewidths=0,
        )
    ax.axvline(0, color=QUIET, linewidth=0.8, zorder=0)
    _rows_named(ax, [told[f] for f in order])
    ax.set_xlabel("share of the score", fontsize=9, color=INK)
    if inputs is not None:
        key = ScalarMappable(Normalize(0, 1), colours)
        line = figure.colorbar(key, ax=ax, ticks=[0, 1], aspect=40, pad=0.02)
        line.ax.set_yticklabels(["low", "high"], fontsize=8, color=INK)
        line.set_label("the feature's value", fontsize=8, color=INK, labelpad=-12)
        line.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


@public()
def dependence(
    grid: Any,
    curves: Any,
    *,
    name: str = "feature",
    inputs: Any = None,
    title: str | None = None,
) -> Figure:
    """Draws how the score goes with a feature: a thin line an example, a wide one for their mean.

    Args:
      grid: `[P]`, the values that the feature was given, as `partial_dependence` gives them.
      curves: `[N, P]`, the score of each example there.
      name: Of the feature, under the axis.
      inputs: `[N]`, what the feature is in the set: ticks along the axis, to see where data are.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: Shapes that do not fit one another.

    Example:
      >>> figure = dependence([0.0, 1.0], [[0.0, 2.0], [0.0, 1.0]], name="dose")
      >>> figure.axes[0].get_xlabel(), figure.axes[0].lines[-1].get_ydata().tolist()
      ('dose', [0.0, 1.5])
    """
    who = "dependence"
    grid = check_array(who, "grid", grid).astype(np.float64)
    curves = check_array(who, "curves", curves).astype(np.float64)
    if grid.ndim != 1 or curves.ndim != 2 or curves.shape[1:] != grid.shape or 0 in curves.shape:
        raise ValueError(
            f"{who}: curves must be [N, P] for grid [P]; got curves {curves.shape}, grid "
            f"{grid.shape}. Pass found.grid, found.curves."
        )
    figure = titled(5.4, 3.6, title)
    ax = figure.subplots()
    thin = min(0.8, 0.1 + 8 / len(curves))
    for curve in curves:
        ax.plot(grid, curve, color="#9aa4b2", linewidth=0.7, alpha=thin)
    ax.plot(grid, curves.mean(0), color=FOR, linewidth=2.4)
    if inputs is not None:
        inputs = check_array(who, "inputs", inputs).astype(np.float64)
        if inputs.ndim != 1 or not inputs.size:
            raise ValueError(f"{who}: inputs must be [N]; got {inputs.shape}. Pass x[:, feature].")
        ax.plot(inputs, np.zeros(len(inputs)), "|", color=INK, transform=ax.get_xaxis_transform())
        if np.ptp(grid) > 0:
            ax.set_xlim(grid.min(), grid.max())
    ax.set_xlabel(name, fontsize=9, color=INK, parse_math=False)
    ax.set_ylabel("score", fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=QUIET)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _crowded(values: np.ndarray, reach: tuple[float, float]) -> np.ndarray:
    """How far each point stands above or below its row: neighbours take turns, outwards."""
    width = (reach[1] - reach[0]) or 1.0
    bins = ((values - reach[0]) / width * 80).astype(int)
    up = np.zeros(len(values))
    for one in np.unique(bins):
        own = np.flatnonzero(bins == one)
        place = np.arange(len(own))
        up[own] = ((place + 1) // 2) * np.where(place % 2, 1, -1)
    return up / max(np.abs(up).max(initial=0) / 0.38, 12)


def _of_one(who: str, values: Any, inputs: Any, names: Any) -> tuple[np.ndarray, list[str]]:
    values = check_array(who, "values", values).astype(np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"{who}: values must be [F] finite numbers, one example's; got {values.shape}. Pass "
            "found.values[0]."
        )
    return values, _told(who, values, inputs, names)


def _told(who: str, values: np.ndarray, inputs: Any, names: Any) -> list[str]:
    """The features' names, with what they were."""
    count = len(values)
    if names is not None and len(names) != count:
        raise ValueError(
            f"{who}: names must be {count}, one a feature; got {len(names)}. Name all."
        )
    told = (
        [str(name) for name in names]
        if names is not None
        else [f"feature {i}" for i in range(count)]
    )
    if inputs is None:
        return told
    inputs = check_array(who, "inputs", inputs)
    if inputs.shape != values.shape:
        raise ValueError(
            f"{who}: inputs must be {values.shape}, as values; got {inputs.shape}. Pass x[0]."
        )
    return [f"{name} = {value:.4g}" for name, value in zip(told, inputs.astype(float), strict=True)]


def _adds_up(who: str, score: float | None, base: float, values: np.ndarray) -> None:
    """Refuses shares that are not those of the score: what is drawn would be wrong."""
    if score is None:
        return
    gap = base + values.sum() - score
    if not abs(gap) <= 0.01 * max(abs(score - base), np.abs(values).max()) + 1e-6:
        raise ValueError(
            f"{who}: score must be base plus all values; got {score:.6g}, and {base:.6g} plus "
            f"{values.sum():.6g}. `jaxviz.completeness_gap` measures how far a method is from it; "
            "take more steps or samples, or leave score out."
        )


def _largest(
    values: np.ndarray, told: list[str], most: int
) -> tuple[list[float], list[str], np.ndarray]:
    """The largest first, and the sum of all others; then which the largest are."""
    order = np.argsort(-np.abs(values), kind="stable")
    steps, labels = [float(v) for v in values[order[:most]]], [told[i] for i in order[:most]]
    if len(order) > most:
        steps.append(float(values[order[most:]].sum()))
        labels.append(f"{len(order) - most} others")
    return steps, labels, order[:most]


def _rows(count: int, title: str | None):
    figure = titled(_NAMES + _BARS + 0.6, 1.0 + _LINE * count, title)
    ax = figure.subplots()
    ax.set_ylim(count - 0.4, -0.6)
    ax.tick_params(labelsize=8, colors=QUIET)
    ax.spines[["left", "top", "right"]].set_visible(False)
    return figure, ax


def _rows_named(ax, labels: Sequence[str]) -> None:
    told = [fit(label, _NAMES, 9) for label in labels]
    ax.set_yticks(range(len(told)), told, fontsize=9, color=INK, parse_math=False)
    ax.tick_params(axis="y", length=0)
