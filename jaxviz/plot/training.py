"""How training went: the curves epoch by epoch, and which classes are taken for which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxviz.calls.public import public
from jaxviz.plot.colour import ACCENT, INK, QUIET, WRONG
from jaxviz.plot.inputs import check_array, check_names, first_words
from jaxviz.plot.page import fit_apart, fitting_points, titled

TRAIN = "#b2662b"


@public()
def training_history(
    history: Any, *, best_epoch: int | None = None, title: str | None = "training history"
) -> Figure:
    """Draws loss and accuracy by epoch, training beside validation.

    Args:
      history: A mapping or NamedTuple, name -> `[epochs]`; drawn are those there of `loss`,
        `accuracy` (0 to 1), `validation_loss` and `validation_accuracy`. Other names, and curves
        that are NaN throughout, are passed over.
      best_epoch: Index of the epoch that was kept, from 0; the axis counts from 1.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: none of the names is there, the lengths differ, or `best_epoch` is outside.

    Example:
      >>> figure = training_history({"loss": [1.0, 0.5], "accuracy": [0.6, 0.9]})
      >>> [ax.get_title(loc="left") for ax in figure.axes]
      ['loss', 'accuracy']
    """
    who = "training_history"
    known = ("loss", "accuracy", "validation_loss", "validation_accuracy")
    given = history._asdict() if hasattr(history, "_asdict") else history
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{who}: history must be a dict or NamedTuple, name -> one number an epoch; got "
            f"{type(history).__name__}. Pass the history of a run, or {{'loss': losses}}."
        )
    curves = {
        name: check_array(who, name, given[name]).astype(np.float64)
        for name in known
        if given.get(name) is not None
    }
    # A run without a validation set holds NaN there.
    curves = {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}
    if not curves:
        raise ValueError(
            f"{who}: history must hold numbers for at least one of {', '.join(known)}; "
            f"got {list(given)}. "
            "Pass a mapping of name to one number an epoch."
        )
    shapes = {name: curve.shape for name, curve in curves.items()}
    shape = next(iter(shapes.values()))
    if set(shapes.values()) != {shape} or len(shape) != 1 or shape == (0,):
        raise ValueError(
            f"{who}: every curve must be [epochs], all of one length, at least 1; got {shapes}. "
            "Give each one number an epoch."
        )
    for name, curve in curves.items():
        if "accuracy" in name and (np.nanmin(curve) < 0 or np.nanmax(curve) > 1):
            raise ValueError(
                f"{who}: {name} must be a share of the examples, 0 to 1; got "
                f"{np.nanmin(curve):.3g} to {np.nanmax(curve):.3g}. Divide per cent by 100."
            )
    epochs = np.arange(1, shape[0] + 1)
    if best_epoch is not None and not 0 <= best_epoch < len(epochs):
        raise ValueError(
            f"{who}: best_epoch must be 0 to {len(epochs) - 1}; got {best_epoch}. It is an index."
        )

    panels = [what for what in ("loss", "accuracy") if any(what in name for name in curves)]
    figure = titled(0.6 + 3.9 * len(panels), 3.3, title)
    for ax, what in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for part, colour in (("train", TRAIN), ("validation", ACCENT)):
            curve = curves.get(what if part == "train" else f"validation_{what}")
            if curve is None:
                continue
            style = {"color": colour, "linewidth": 1.8, "markersize": 3.5}
            style["marker"] = "o" if len(epochs) <= 30 else ""
            if len(epochs) == 1:
                style["linestyle"] = ""  # a dot is no line, nor in the legend
            ax.plot(epochs, curve, **style)
            last = f"{curve[-1]:.2%}" if what == "accuracy" else f"{curve[-1]:.3g}"
            ax.plot([], [], label=f"{part}, last {last}", **style)
        if best_epoch is not None:
            dashed = {"color": QUIET, "linewidth": 0.9, "linestyle": (0, (4, 3))}
            label = f"kept: epoch {best_epoch + 1}"
            if f"validation_{what}" in curves:
                kept = curves[f"validation_{what}"][best_epoch]
                label += f", {kept:.2%}" if what == "accuracy" else f", {kept:.3g}"
            ax.axvline(best_epoch + 1, zorder=0, **dashed)
            ax.plot([], [], label=label, **dashed)
        ax.set_title(what, loc="left", fontsize=10, color=INK)
        ax.set_xlabel("epoch", fontsize=9, color=INK)
        if len(epochs) <= 8:  # epochs are counted: there is none of 0.96
            ax.set_xticks(epochs)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(1 - 0.04 * len(epochs) - 0.1, 1.04 * len(epochs) + 0.1)
        shown = np.concatenate([curve for name, curve in curves.items() if what in name])
        shown = shown[np.isfinite(shown)]
        if what == "accuracy":
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif shown.size and shown.min() >= 0:
            ax.set_ylim(0, 1.06 * shown.max() or 1.0)
        ax.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=INK)
        ax.legend(fontsize=8, labelcolor=INK, edgecolor="none", framealpha=0.85)
    return figure


@public()
def confusion_matrix(
    matrix, *, class_names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Draws which class is taken for which, the mistakes in their own colour.

    The diagonal is blue by the share of its class that is right; a mistake is red by its share of
    its class, on a scale that ends at the largest one, or at 5 % where all are rarer.

    Args:
      matrix: `[K, K]` counts, row = true class, column = predicted class.
      class_names: K names; None shows indices.
      title: Above everything; None states the accuracy.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: not square, or negative counts.

    Example:
      >>> confusion_matrix([[9, 1], [0, 10]]).get_suptitle()
      'accuracy 95.00 % (19 of 20)'
    """
    who = "confusion_matrix"
    matrix = check_array(who, "matrix", matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"{who}: matrix must be [K, K], true class by predicted class; got {matrix.shape}. "
            "Count pairs of labels."
        )
    if (matrix < 0).any() or matrix.sum() == 0:
        raise ValueError(
            f"{who}: matrix must hold counts, not all zero; got {matrix.min()} to {matrix.max()}. "
            "Do not normalise it first."
        )
    if not np.isfinite(matrix).all() or (matrix != np.floor(matrix)).any():
        raise ValueError(
            f"{who}: matrix must hold counts, whole numbers; got {matrix.dtype}, "
            f"{matrix.min():.3g} to {matrix.max():.3g}. Do not normalise it first."
        )
    matrix = matrix.astype(np.int64)
    classes = len(matrix)
    names = fit_apart(first_words(check_names(who, class_names, classes)), 1.05, 9)
    right, total = np.trace(matrix), matrix.sum()
    if title is None:
        title = f"accuracy {right / total:.2%} ({right} of {total})".replace("%", " %")

    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(classes, dtype=bool), 0, share)
    good, bad = np.array([0.13, 0.40, 0.67]), np.array([0.84, 0.38, 0.30])
    strength = np.where(np.eye(classes, dtype=bool), share, wrong / max(wrong.max(), 0.05))
    # Square roots keep the small shares apart from none.
    strength = np.sqrt(strength)[..., None]
    hue = np.where(np.eye(classes, dtype=bool)[..., None], good, bad)
    cell = 0.52 if classes <= 20 else 9 / classes
    side = classes * cell
    figure = titled(side + 2.5, side + 1.6, title)
    ax = figure.subplots()
    ax.imshow(1 - strength * (1 - hue))
    if classes <= 20:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                dark = i == j and strength[i, j, 0] > 0.6
                ax.text(
                    j,
                    i,
                    f"{count}",
                    ha="center",
                    va="center",
                    fontsize=fitting_points(f"{count}", cell - 0.06, 8),
                    color="white" if dark else INK,
                )
    ticks = range(0, classes, max(1, classes // 40))
    turned = max(map(len, names)) > 4
    ax.set_xticks(
        ticks,
        [names[i] for i in ticks],
        rotation=45 if turned else 0,
        ha="right" if turned else "center",
        parse_math=False,
    )
    ax.set_yticks(ticks, [names[i] for i in ticks], parse_math=False)
    ax.tick_params(length=0, labelsize=9, colors=INK)
    ax.set_xlabel("predicted class", fontsize=10, color=INK)
    ax.set_ylabel("true class", fontsize=10, color=INK)
    for i in range(classes) if classes <= 20 else ():
        seen = matrix[i].sum()
        text = f"{share[i, i]:.1%}" if seen else "none"
        ax.text(
            classes - 0.35,
            i,
            text,
            va="center",
            fontsize=8.5,
            color=QUIET if share[i, i] >= 0.5 else WRONG,
        )
    if classes <= 20:
        ax.text(classes - 0.35, -0.75, "right", va="center", fontsize=8.5, color=QUIET)
    if classes <= 100:  # lines of more would cover the cells
        ax.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="#e6e9ee", linewidth=0.8)
        ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure
