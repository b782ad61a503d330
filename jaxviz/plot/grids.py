"""Many small pictures at once: images sorted by predicted class, and what a layer's units see."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, WRONG, interpolation
from jaxviz.plot.inputs import check_images, check_names, check_vector, shorten
from jaxviz.plot.page import EDGE, GAP, frame, put_title, write

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
    if per_row < 1:
        raise ValueError(f"{who}: per_row must be 1 or more; got {per_row}. 10 is usual.")
    largest = predicted.max() if labels is None else max(predicted.max(), labels.max())
    names = check_names(who, class_names, int(largest) + 1 if classes is None else classes)

    present = np.unique(predicted)
    columns = min(per_row, max(int((predicted == index).sum()) for index in present))
    margin = 0.85 + 0.06 * max(len(shorten(names[index], 16)) for index in present)
    height = CELL * images.shape[1] / images.shape[2]
    row = height + GAP + (0.17 if labels is not None else 0)
    top = 0.5
    width = max(EDGE + margin + columns * (CELL + GAP) + EDGE - GAP, 4.2)
    size = (width, top + row * len(present) + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    if title is None:
        wrong = "" if labels is None else f", {(predicted != labels).sum()} wrong"
        title = f"{len(images)} images by predicted class{wrong}"
    put_title(figure, title)
    for line, index in enumerate(present):
        members = np.flatnonzero(predicted == index)
        bottom = size[1] - top - line * row - height
        right = EDGE + margin - 0.12
        name = shorten(names[index], 16)
        middle = bottom + height / 2
        write(figure, right, middle + 0.07, name, ha="right", fontsize=9.5, color=INK)
        count = f"{len(members)}"
        if labels is not None:
            count = f"{(labels[members] == index).sum()} of {len(members)} right"
        write(figure, right, middle - 0.09, count, ha="right", fontsize=7, color=QUIET)
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
                    shorten(names[labels[n]], 11),
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
    title: str = "feature maps",
) -> Figure:
    """Draws what each unit of one or more layers makes of one image, each map standardised.

    Colour is `(value - mean) / standard deviation` of the map, -1.5 to 3 (activations lean to the
    right), so weak units can be read beside strong ones; below each stands the number of largest
    magnitude in it. A map of one value is grey.

    Args:
      maps: `[H, W, C]`, one example's activations; or such by layer's name, `{name: [H, W, C]}`.
      names: C names; None numbers them. For several layers, None.
      ranked: Whether a layer's maps come in order of their largest magnitude, strongest first.
      max_maps: At most so many of each layer; None is all.
      per_row: Maps a row, >= 1.
      title: Above everything.

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
    if per_row < 1:
        raise ValueError(f"{who}: per_row must be 1 or more; got {per_row}. 8 is usual.")
    layers = dict(maps) if isinstance(maps, Mapping) else {"": maps}
    if not layers or (names is not None and len(layers) > 1):
        raise ValueError(f"{who}: names go with the maps of one layer; got {len(layers)} layers.")
    sections = []
    for layer, values in layers.items():
        values = np.asarray(values)
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(
                f"{who}: maps must be [H, W, C], one example; got {values.shape}. "
                "Pick one example of a batch: activations[0]."
            )
        values = values.astype(np.float64)
        strength = np.abs(values).max((0, 1))
        order = np.argsort(-strength, kind="stable") if ranked else np.arange(len(strength))
        sections.append((layer, values, check_names(who, names, len(strength)), order[:max_maps]))
    columns = min(per_row, max(len(order) for *_, order in sections))
    cell, heading = 0.95, 0.26
    tall = 0.0
    for layer, values, _, order in sections:
        row = cell * values.shape[0] / values.shape[1] + 0.24
        tall += (heading if layer else 0) + math.ceil(len(order) / columns) * row
    size = (max(2 * EDGE + columns * (cell + GAP) - GAP, 4.2), 0.66 + tall + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    key = "colour: each map's standard deviations from its mean, -1.5 to 3; grey number: its peak"
    write(figure, EDGE, size[1] - 0.48, key, fontsize=min(7, 7 * size[0] / 5), color=QUIET)
    top = size[1] - 0.66
    for layer, values, known, order in sections:
        height = cell * values.shape[0] / values.shape[1]
        if layer:
            told = f"{layer}  {' x '.join(map(str, values.shape))}"
            write(figure, EDGE, top - heading / 2, told, fontsize=9, color=INK)
            top -= heading
        for at, unit in enumerate(order):
            line, column = divmod(at, columns)
            left, bottom = EDGE + column * (cell + GAP), top - line * (height + 0.24) - height
            _draw_map(figure, (left, bottom, cell, height), values[..., unit], known[unit])
        top -= math.ceil(len(order) / columns) * (height + 0.24)
    return figure


def _draw_map(figure: Figure, place, one: np.ndarray, name: str) -> None:
    left, bottom, cell, height = place
    ax = frame(figure, left, bottom, cell, height)
    spread = one.std()
    if spread > 0:
        ax.imshow((one - one.mean()) / spread, cmap="viridis", vmin=-1.5, vmax=3)
        note = f"{one.flat[np.abs(one).argmax()]:.2g}"
    else:
        ax.imshow(np.full_like(one, 0.85), cmap="gray", vmin=0, vmax=1)
        note = f"all {one.flat[0]:.2g}"
    ax.set_label(name)
    write(figure, left, bottom - 0.08, shorten(name, 9), fontsize=7, color=INK)
    write(figure, left + cell, bottom - 0.08, note, ha="right", fontsize=7, color=QUIET)
