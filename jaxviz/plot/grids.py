"""Many small pictures at once: images sorted by predicted class, and what a layer's units see."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET, WRONG, interpolation
from jaxviz.plot.inputs import (
    check_array,
    check_count,
    check_images,
    check_names,
    check_vector,
    first_words,
)
from jaxviz.plot.page import (
    EDGE,
    GAP,
    cell_height,
    fit,
    fit_among,
    fit_apart,
    fitting_points,
    frame,
    put_title,
    text_width,
    told_apart,
    write,
)

CELL = 0.72  # inches


@public()
def image_grid(
    images,
    predicted,
    *,
    labels=None,
    class_names: Sequence[str] | None = None,
    per_row: int = 10,
    title: str | None = None,
) -> Figure:
    """Draws images by the class a model gave them: a row a class, the wrong ones framed in red.

    Each row holds the first `per_row` images of its class, in the order given; beside it stand the
    class and, with labels, how many of all its images are right. A wrong one names its true class.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]`, 1 or 3 channels, 0 to 1 or uint8.
      predicted: `[N]` class indices.
      labels: `[N]` true classes, or None: nothing is marked.
      class_names: One name a class; None shows indices.
      per_row: Images a row, >= 1.
      title: Above everything; None counts the images and the wrong ones.

    Returns:
      A Figure for `savefig`. Classes that nothing was given are left out.

    Raises:
      ValueError: a shape, range or name that does not fit.

    Example:
      >>> predicted, labels = np.array([0, 1, 1]), np.array([0, 1, 0])
      >>> image_grid(np.zeros((3, 8, 8)), predicted, labels=labels).get_suptitle()
      '3 images by predicted class, 1 wrong'
    """
    who = "image_grid"
    images = check_images(who, images)
    classes = None if class_names is None else len(class_names)
    predicted = check_vector(who, "predicted", predicted, len(images), classes)
    if predicted is None:
        raise ValueError(
            f"{who}: predicted must be [N] class indices; got None. Pass argmax of the logits."
        )
    labels = check_vector(who, "labels", labels, len(images), classes)
    per_row = check_count(who, "per_row", per_row, 10)
    largest = predicted.max() if labels is None else max(predicted.max(), labels.max())
    names = check_names(who, class_names, int(largest) + 1 if classes is None else classes)
    names = first_words(names)

    present = np.unique(predicted)
    counts = {index: f"{(predicted == index).sum()}" for index in present}
    if labels is not None:
        for index in present:
            right = (labels[predicted == index] == index).sum()
            counts[index] = f"{right} of {counts[index]} right"
    beside = {index: fit_among(names, index, 1.2, 9.5) for index in present}
    below = fit_apart(names, CELL, 7) if labels is not None else []
    columns = min(per_row, max(int((predicted == index).sum()) for index in present))
    margin = 0.12 + max(
        max(text_width(beside[index], 9.5), text_width(counts[index], 7)) for index in present
    )
    height = cell_height(CELL, images.shape[1:])
    row = max(height, 0.32) + GAP + (0.17 if labels is not None else 0)
    top = 0.5
    width = max(EDGE + margin + columns * (CELL + GAP) + EDGE - GAP, 4.2)
    size = (width, top + row * len(present) + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    if title is None:
        wrong = "" if labels is None else f", {(predicted != labels).sum()} wrong"
        title = f"{len(images)} image{'s' * (len(images) > 1)} by predicted class{wrong}"
    put_title(figure, title)
    for line, index in enumerate(present):
        members = np.flatnonzero(predicted == index)
        bottom = size[1] - top - line * row - height
        right = EDGE + margin - 0.12
        middle = bottom + height / 2
        write(figure, right, middle + 0.07, beside[index], ha="right", fontsize=9.5, color=INK)
        write(figure, right, middle - 0.09, counts[index], ha="right", fontsize=7, color=QUIET)
        for column, n in enumerate(members[:columns]):
            left = EDGE + margin + column * (CELL + GAP)
            ax = frame(figure, left, bottom, CELL, height)
            ax.imshow(images[n], interpolation=interpolation(images.shape[1]))
            if labels is not None and labels[n] != index:
                for spine in ax.spines.values():
                    spine.set_color(WRONG)
                    spine.set_linewidth(2.2)
                write(
                    figure,
                    left + CELL / 2,
                    bottom - 0.1,
                    below[labels[n]],
                    ha="center",
                    fontsize=7,
                    color=WRONG,
                )
    return figure


@public()
def feature_maps(
    maps,
    *,
    names: Sequence[str] | None = None,
    ranked: bool = False,
    max_maps: int | None = None,
    per_row: int = 8,
    title: str | None = "feature maps",
) -> Figure:
    """Draws what each unit of one or more layers makes of one image, each map standardised.

    Colour is `(value - mean) / standard deviation` of the map, -1.5 to 3 (activations lean to the
    right), so weak units can be read beside strong ones; below each stands the number of largest
    magnitude in it. A map of one value is grey; numbers that are not finite are green and left out.

    Args:
      maps: `[H, W, C]`, one example's activations; or such by layer's name, `{name: [H, W, C]}`.
      names: C names; None numbers them. For several layers, None.
      ranked: Whether a layer's maps come in order of their largest magnitude, strongest first.
      max_maps: At most so many of each layer; None is all.
      per_row: Maps a row, >= 1.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: a shape that does not fit.

    Example:
      >>> len(feature_maps(np.ones((4, 4, 6))).axes)
      6
      >>> len(feature_maps({"a": np.ones((4, 4, 3)), "b": np.ones((2, 2, 5))}).axes)
      8
    """
    who = "feature_maps"
    per_row = check_count(who, "per_row", per_row, 8)
    if max_maps is not None:
        max_maps = check_count(who, "max_maps", max_maps, 64)
    layers = dict(maps) if isinstance(maps, Mapping) else {"": maps}
    if not layers:
        raise ValueError(f"{who}: maps must hold a layer's maps; got none. Pass [H, W, C].")
    if names is not None and len(layers) > 1:
        raise ValueError(f"{who}: names go with the maps of one layer; got {len(layers)} layers.")
    sections = []
    for layer, values in layers.items():
        values = check_array(who, "maps", values)
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(
                f"{who}: maps must be [H, W, C], one example; got {values.shape}. "
                "Pick one example of a batch: activations[0]."
            )
        values = values.astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        strength = np.abs(np.nan_to_num(values)).max((0, 1))
        order = np.argsort(-strength, kind="stable") if ranked else np.arange(len(strength))
        known = check_names(who, names, len(strength), "names", " maps")
        sections.append((str(layer), values, known, order[:max_maps]))
    columns = min(per_row, max(len(order) for *_, order in sections))
    cell, heading = 0.95, 0.26
    tall = 0.0
    for layer, values, _, order in sections:
        row = cell_height(cell, values.shape) + 0.24
        tall += (heading if layer else 0) + math.ceil(len(order) / columns) * row
    size = (max(2 * EDGE + columns * (cell + GAP) - GAP, 4.2), 0.66 + tall + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    key = "colour: each map's standard deviations from its mean, -1.5 to 3; grey number: its peak"
    if any(np.isnan(values[..., order]).any() for _, values, _, order in sections):
        key += "; green: not finite"
    points = fitting_points(key, size[0] - 2 * EDGE, 7)
    write(figure, EDGE, size[1] - 0.48, key, fontsize=points, color=QUIET)
    top = size[1] - 0.66
    for layer, values, known, order in sections:
        height = cell_height(cell, values.shape)
        shown = told_apart(known, cell - text_width("not finite", 7) - 0.05, 7)
        if layer:
            told = f"  {' x '.join(map(str, values.shape))}"
            told = fit(layer, size[0] - 2 * EDGE - text_width(told, 9), 9) + told
            write(figure, EDGE, top - heading / 2, told, fontsize=9, color=INK)
            top -= heading
        for at, unit in enumerate(order):
            line, column = divmod(at, columns)
            left, bottom = EDGE + column * (cell + GAP), top - line * (height + 0.24) - height
            place = (left, bottom, cell, height)
            _draw_map(figure, place, values[..., unit], known[unit], shown[unit])
        top -= math.ceil(len(order) / columns) * (height + 0.24)
    return figure


def _draw_map(figure: Figure, place, one: np.ndarray, name: str, shown: str) -> None:
    left, bottom, cell, height = place
    ax = frame(figure, left, bottom, cell, height)
    finite = one[np.isfinite(one)]
    # Divided by the peak first, whose square may be too large or too small for a number.
    peak = finite[np.abs(finite).argmax()] if finite.size else 0.0
    scaled = one / (abs(peak) or 1.0)
    spread = (finite / (abs(peak) or 1.0)).std() if finite.size else 0.0
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=NOT_A_NUMBER)
    if spread > 0:
        standard = (scaled - np.nanmean(scaled)) / spread
        ax.imshow(np.ma.masked_invalid(standard), cmap=colours, vmin=-1.5, vmax=3)
        note = f"{peak:.2g}"
    else:
        colours = matplotlib.colormaps["gray"].with_extremes(bad=NOT_A_NUMBER)
        flat = np.ma.masked_invalid(np.where(np.isnan(one), one, 0.85))
        ax.imshow(flat, cmap=colours, vmin=0, vmax=1)
        note = "not finite"
        if finite.size:
            note = f"{'all' if finite.size == one.size else 'rest'} {peak:.2g}"
    ax.set_label(name)
    shown = fit(shown, cell - text_width(note, 7) - 0.05, 7)
    write(figure, left, bottom - 0.08, shown, fontsize=7, color=INK)
    write(figure, left + cell, bottom - 0.08, note, ha="right", fontsize=7, color=QUIET)
