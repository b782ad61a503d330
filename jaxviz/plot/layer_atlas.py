"""Climbed images where they lie: an atlas's cells by how full they are, an image's by strength."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxviz.calls.options import maybe, refused, whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, SIGNED, interpolation
from jaxviz.plot.inputs import check_images, check_names, first_words, has_channels_first
from jaxviz.plot.page import EDGE, FRAME, fit, frame, put_title, titled

_SIDE, _LEAST = 0.62, 0.35  # inches of a cell; side of the emptiest, as a share of the fullest's


def _found(who: str, option: str, value: Any) -> Any:
    names = ("images", "cells", "grid", "counts", "effects", "classes")
    if not all(hasattr(value, name) for name in names):
        raise refused(who, option, "what jaxviz.concepts.activation_atlas returns", value)
    return value


@public(found=_found, target=maybe(whole(0)))
def activation_atlas(
    found: Any,
    *,
    target: int | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws an activation atlas: the images of its cells where they lie, by how full they are.

    The area of a cell goes with its number of values, from the emptiest to the fullest. Under each
    stands the class to which its values add most.

    Args:
      found: What `jaxviz.concepts.activation_atlas` returns; images in [0, 1].
      target: A class, one of `found.classes`, whose effects frame the cells: red for it, blue
        against it; None draws plain frames.
      class_names: One name a class of the net; None shows indices.
      title: Above everything; None says what it is.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: A class without effects, or too few names.

    Example:
      >>> from jaxviz.concepts import ActivationAtlas
      >>> one, two = np.ones(1), np.ones((1, 2))
      >>> images, cell = np.ones((1, 4, 4, 3)), np.zeros((1, 2), int)
      >>> few = ActivationAtlas(images, cell, (1, 1), one, two, two, np.arange(2), two, one, 1)
      >>> [text.get_text() for text in activation_atlas(few, target=1).axes[0].texts]
      ['0']
    """
    who = "activation_atlas"
    images = np.asarray(found.images)
    images = check_images(
        who, np.moveaxis(images, 1, -1) if has_channels_first(images.shape) else images
    )
    classes, effects = np.asarray(found.classes), np.asarray(found.effects, np.float64)
    names = first_words(check_names(who, class_names, int(classes.max(initial=-1)) + 1))
    if target is not None and target not in classes:
        raise ValueError(
            f"{who}: target must be one of the classes that have effects, {classes.tolist()}; got "
            f"{target}. Name it in activation_atlas(..., classes=)."
        )
    rows, columns = found.grid
    part = np.sqrt(found.counts / found.counts.max())
    sides = _LEAST + (1 - _LEAST) * part
    room = 0.16 * bool(len(classes))  # of a cell's height, for the class below it
    bar = 0.9 if target is not None else 0.0
    width, height = 0.4 + columns * _SIDE + bar, 0.7 + rows * _SIDE * (1 + room)
    told = title or f"Activation atlas: {found.count} values in {len(images)} cells"
    figure = titled(max(width, 3.6), height, told)
    ax = figure.subplots()
    ax.set(xlim=(0, columns), ylim=(rows * (1 + room), 0), aspect="equal")
    ax.axis("off")
    colours = None
    if target is not None:
        along = effects[:, classes.tolist().index(target)]
        limit = np.abs(along).max() or 1.0
        colours = SIGNED((along / limit + 1) / 2)
        scale = ScalarMappable(Normalize(-limit, limit), SIGNED)
        edge = figure.colorbar(scale, ax=ax, fraction=0.04, pad=0.01, shrink=0.6)
        edge.ax.tick_params(labelsize=7, colors=INK)
        edge.set_label(fit(f"effect on {names[target]}", 0.5 * height, 8), fontsize=8, color=INK)
    for k, (row, column) in enumerate(np.asarray(found.cells)):
        middle, across = row * (1 + room) + 0.5, column + 0.5
        box = _put(ax, images[k], across, middle, 0.94 * sides[k])
        style = {"edgecolor": FRAME, "linewidth": 0.6}
        if colours is not None:
            style = {"edgecolor": colours[k], "linewidth": 2.2}
        ax.add_patch(Rectangle(*box, fill=False, zorder=2, **style))
        if len(classes):
            best = int(classes[effects[k].argmax()])
            ax.text(
                across, middle + box[1] / 2 + room / 2, fit(names[best], 0.96 * _SIDE, 5.5),
                ha="center", va="center", fontsize=5.5, color=QUIET, parse_math=False,
            )  # fmt: skip
    ax.set(xlim=(0, columns), ylim=(rows * (1 + room), 0))
    return figure


def _put(ax, image, across, down, side):
    """Draws an image around a place; its corner, width and height."""
    left, top = across - side / 2, down - side / 2
    box = (left, left + side, top + side, top)
    ax.imshow(image, extent=box, interpolation=interpolation(len(image)), zorder=1)
    return (left, top), side, side


def _grid(who: str, option: str, value: Any) -> Any:
    if not all(hasattr(value, name) for name in ("images", "strengths")):
        raise refused(who, option, "what jaxviz.activation_grid returns", value)
    return value


@public(found=_grid)
def activation_grid(
    found: Any,
    images: Any = None,
    *,
    title: str | None = "What the layer sees at each place",
) -> Figure:
    """Draws what a layer sees at each place of images, a line an image, places by their strength.

    The area of a place goes with its strength, from nothing to the strongest of its image.

    Args:
      found: What `jaxviz.activation_grid` returns; climbed images in [0, 1].
      images: Those that were looked at, `[N, H, W, C]` in 0 to 1, or channels first, to stand
        beside; None leaves them out.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: Images outside 0 to 1, or not one for each line.

    Example:
      >>> from jaxviz import ActivationGrid
      >>> few = ActivationGrid(np.ones((1, 2, 2, 4, 4, 3)), np.ones((1, 2, 2)))
      >>> len(activation_grid(few, np.ones((1, 8, 8, 3))).axes)
      2
    """
    who = "activation_grid"
    strengths, cells = np.asarray(found.strengths), np.asarray(found.images)
    count, rows, columns = strengths.shape
    cells = check_images(who, cells.reshape(-1, *cells.shape[3:]))
    cells = cells.reshape(count, rows, columns, *cells.shape[1:])
    beside = [] if images is None else check_images(who, images)
    if images is not None and len(beside) != count:
        raise ValueError(
            f"{who}: images must be {count}, one for each line; got {len(beside)}. Pass those that "
            "activation_grid was given, or None."
        )
    side = min(_SIDE, 6.0 / max(rows, columns))
    high, wide = rows * side, columns * side
    width = 2 * EDGE + wide + (high + 0.2) * bool(len(beside))
    top = 0.5 if title else EDGE
    height = top + count * (high + EDGE)
    figure = Figure(figsize=(max(width, 3.6), height), facecolor="white")
    put_title(figure, title)
    for line in range(count):
        low, left = height - top - (line + 1) * high - line * EDGE, EDGE
        if len(beside):
            seen = frame(figure, left, low, high, high)
            seen.imshow(beside[line], interpolation=interpolation(len(beside[line])))
            left += high + 0.2
        ax = frame(figure, left, low, wide, high)
        strength = np.nan_to_num(strengths[line])
        sides = np.sqrt(strength / (strength.max() or 1))
        for row, column in np.argwhere(sides > 0.02):  # others are no more than a speck
            _put(ax, cells[line, row, column], column + 0.5, row + 0.5, 0.98 * sides[row, column])
        ax.set(xlim=(0, columns), ylim=(rows, 0))
    return figure
