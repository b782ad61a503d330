"""What occlusion found: where the score is lost, and which class wins when a place is covered."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, SIGNED, draw_heat, interpolation, to_heat
from jaxviz.plot.inputs import (
    check_array,
    check_count,
    check_images,
    check_names,
    check_pair,
    check_vector,
    first_words,
)
from jaxviz.plot.page import (
    cell_height,
    fit,
    fit_among,
    frame,
    in_legend,
    put_title,
    text_width,
)

CELL, GAP, LEFT, TOP, BOTTOM, LEGEND = 2.0, 0.2, 0.36, 0.8, 0.62, 2.4  # inches
OTHERS = (0.80, 0.80, 0.78, 1.0)  # all classes beyond the ones with a colour
COLOURS = [c for c in matplotlib.colormaps["tab10"].colors if c != (127 / 255,) * 3]  # type: ignore[attr-defined]


@public()
def occlusion_sheet(
    images,
    heat,
    predicted,
    *,
    clean_predicted,
    window: tuple[int, int],
    stride: tuple[int, int],
    class_names: Sequence[str] | None = None,
    num_colours: int = 6,
    title: str | None = None,
) -> Figure:
    """Draws each image, where covering it costs score, and which class wins then.

    The heat map is signed: red where the score falls when the place is covered, blue where it
    rises. In the map of winners each window colours its own step of the grid; pale is the class
    that wins with nothing covered. Beside it stand the winners and how many windows each wins.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]`, 1 or 3 channels, 0 to 1 or uint8.
      heat: `[N, H, W]`, of `jaxviz.occlusion`.
      predicted: `[N, rows, columns]` class indices, of `jaxviz.occlusion_scores`.
      clean_predicted: `[N]` class indices, of the same.
      window: `(h, w)`, as they were covered.
      stride: `(h, w)`, likewise.
      class_names: One name a class; None shows indices.
      num_colours: Winners with a colour of their own an image, the most frequent ones; 1 to 9.
      title: Above everything; None says the window and stride.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: a shape, range or name that does not fit.

    Example:
      >>> images = np.zeros((1, 8, 8))
      >>> figure = occlusion_sheet(
      ...     images, images - 1, np.array([[[0, 1], [0, 0]]]),
      ...     clean_predicted=[0], window=(4, 4), stride=(4, 4),
      ... )
      >>> [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
      ['0: 3 of 4 (as uncovered)', '1: 1 of 4']
    """
    who = "occlusion_sheet"
    images = check_images(who, images)
    count = len(images)
    window, stride = check_pair(who, "window", window), check_pair(who, "stride", stride)
    if window[0] > images.shape[1] or window[1] > images.shape[2]:
        raise ValueError(
            f"{who}: window must fit into the images, {images.shape[1:3]}; got {window}. Pass that "
            "of the occlusion."
        )
    predicted = check_array(who, "predicted", predicted)
    clean = check_array(who, "clean_predicted", clean_predicted)
    sizes = [
        -(-(n - w) // s) + 1 for n, w, s in zip(images.shape[1:3], window, stride, strict=True)
    ]
    if predicted.shape != (count, *sizes) or clean.shape != (count,):
        raise ValueError(
            f"{who}: predicted must be [{count}, {sizes[0]}, {sizes[1]}] for these images, window "
            f"and stride, clean_predicted [{count}]; got {predicted.shape}, {clean.shape}. Pass "
            "those of one `occlusion_scores`."
        )
    num_colours = check_count(who, "num_colours", num_colours, 6, len(COLOURS))
    largest = int(max(predicted.max(), clean.max())) + 1
    classes = largest if class_names is None else len(class_names)
    check_vector(who, "predicted", predicted.ravel(), predicted.size, classes)
    check_vector(who, "clean_predicted", clean, count, classes)
    names = first_words(check_names(who, class_names, classes))
    coloured = to_heat(who, "occlusion", heat, count, 100.0)
    coloured = coloured._replace(signed=True)

    height = max(cell_height(CELL, images.shape[1:]), 0.14 * (num_colours + 2))  # of the legend
    row = height + GAP
    width = 2 * LEFT + 3 * (CELL + GAP) + LEGEND
    size = (width, TOP + count * row + BOTTOM)
    figure = Figure(figsize=size, facecolor="white")
    if title is None:
        title = (
            f"Covered by windows of {window[0]}x{window[1]}, in steps of {stride[0]}x{stride[1]}"
        )
    put_title(figure, title, left=LEFT)
    for n in range(count):
        bottom = size[1] - TOP - n * row - height
        cells = [
            frame(figure, LEFT + i * (CELL + GAP), bottom, CELL if i < 3 else LEGEND, height)
            for i in range(4)
        ]
        cells[0].imshow(images[n], interpolation=interpolation(images.shape[1]))
        name = fit_among(names, clean[n], height, 9)
        turned = 0 if len(name) < 3 else 90  # a lone 9 on its side would be a 6 as well
        style = {"fontsize": 9, "color": INK, "va": "center", "parse_math": False}
        cells[0].set_ylabel(name, rotation=turned, labelpad=8, **style)
        draw_heat(cells[1], coloured, n, images[n], True)
        _winners(
            cells[2],
            cells[3],
            images[n],
            predicted[n],
            clean[n],
            names,
            num_colours,
            window,
            stride,
        )
        if n == 0:
            for ax, text in zip(cells, ("input", "score lost", "winning class"), strict=False):
                ax.set_title(text, fontsize=9.5, color=INK)
        told = f"full colour {coloured.limits[n]:.3g}" if coloured.limits[n] else "zero everywhere"
        if np.isnan(coloured.values[n]).all():
            told = ""  # it stands in the map
        cells[1].set_xlabel(told, fontsize=7, color=QUIET, labelpad=2)
    bar = frame(figure, LEFT + CELL + GAP, 0.3, CELL, 0.09)
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=SIGNED)
    bar.set_xticks([0, 127.5, 255], ["gained", "0", "lost"], fontsize=7, color=QUIET)
    bar.tick_params(length=0, pad=2)
    for spine in bar.spines.values():
        spine.set_visible(False)
    return figure


def _winners(ax, legend, image, predicted, clean, names, num_colours, window, stride):
    """The map of winners over the grey image, and the count of each beside it."""
    classes, counts = np.unique(predicted, return_counts=True)
    order = np.lexsort((classes, -counts))
    ranked = [int(classes[i]) for i in order]
    frequent = [c for c in ranked if c != clean][:num_colours]
    colour = dict(zip(frequent, COLOURS, strict=False))
    height, width = image.shape[:2]
    grey = 0.35 + 0.6 * image.mean(-1, keepdims=True) * np.ones(3)
    # Each place belongs to the window whose middle is nearest.
    nearest = []
    for n, size, step, places in zip((height, width), window, stride, predicted.shape, strict=True):
        at = np.arange(n) - (size - 1) / 2
        nearest.append(np.clip(np.rint(at / step), 0, places - 1).astype(int))
    shown = predicted[nearest[0]][:, nearest[1]]
    picture = grey.copy()
    for c in ranked:
        if c != clean:
            tint = np.asarray(colour.get(c, OTHERS))[:3]
            picture[shown == c] = 0.3 * grey[shown == c] + 0.7 * tint
    ax.imshow(picture, interpolation="nearest")
    total = predicted.size
    tally = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    handles = []
    if int(clean) in tally:
        rest = f": {tally[int(clean)]} of {total} (as uncovered)"
        text = fit(names[clean], LEGEND - 0.3 - text_width(rest, 7), 7) + rest
        handles.append(Patch(facecolor="#e8e8e8", edgecolor=QUIET, linewidth=0.5, label=text))
    for c in frequent:
        rest = f": {tally[c]} of {total}"
        text = fit(names[c], LEGEND - 0.3 - text_width(rest, 7), 7) + rest
        handles.append(Patch(facecolor=colour[c], label=in_legend(text)))
    others = sum(tally[c] for c in ranked if c != clean and c not in colour)
    if others:
        text = f"{len(ranked) - len(handles)} others: {others} of {total}"
        handles.append(Patch(facecolor=OTHERS, label=text))
    for spine in legend.spines.values():
        spine.set_visible(False)
    told = legend.legend(
        handles=handles,
        loc="upper left",
        fontsize=7,
        frameon=False,
        borderaxespad=0,
        handlelength=1.0,
        handleheight=1.0,
        labelcolor=INK,
    )
    for text in told.get_texts():  # names of classes
        text.set_parse_math(False)
