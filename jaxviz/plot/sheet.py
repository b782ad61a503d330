"""The explanation sheet: each image, what the model says, and why, one row an image; or one map."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import (
    ACCENT,
    INK,
    QUIET,
    RIGHT,
    SIGNED,
    UNSIGNED,
    WRONG,
    Heat,
    draw_heat,
    interpolation,
    to_heat,
)
from jaxviz.plot.inputs import (
    check_array,
    check_images,
    check_named,
    check_names,
    check_one,
    check_overlay,
    check_percentile,
    check_vector,
    first_words,
    has_channels_first,
)
from jaxviz.plot.page import (
    bare,
    cell_height,
    fit,
    fit_among,
    fitting_points,
    frame,
    one_line,
    put_title,
    text_width,
)
from jaxviz.plot.signals import signal_sheet

# Inches. A cell holds an image or a map; the bars get a wider one.
CELL, BARS, GAP, LEFT, TOP, BOTTOM = 1.55, 1.75, 0.14, 0.14, 0.74, 0.52
UNDER = 0.24  # room for the line under each cell
ALONE = 3.0  # the one cell of an overlay
BARS_TALL = 1.25  # at least, or the five lines would lie over each other


@public()
def explanation_sheet(
    images,
    maps: Mapping[str, object],
    *,
    probabilities=None,
    class_names: Sequence[str] | None = None,
    labels=None,
    target=None,
    overlay: Collection[str] = (),
    percentile: float = 99.0,
    title: str | None = None,
) -> Figure:
    """Draws what a model sees, says and looks at: one row an image, one column an explanation.

    Each map has its own scale, written below it: the magnitude that gets the full colour. Where a
    map has a sign, red speaks for the explained class and blue against it; else dark is nothing and
    bright is much. Numbers that are not finite are green.

    Args:
      images: `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, 1 or 3 channels, 0 to 1 or uint8; or
        series `[N, L]`, which are drawn as `signal_sheet` does.
      maps: Column title -> `[N, h, w]` or `[N, h, w, C]`, or `[N, C, h, w]` beside such images.
        Channels are summed where any number is negative, else the largest is drawn. A map of
        another size is stretched over the image.
      probabilities: `[N, K]`, drawn as bars of the five largest; None leaves the bars out.
      class_names: K names; None shows indices.
      labels: `[N]` true classes, or None.
      target: `[N]` explained classes, or one for all; None means each row's most probable class.
      overlay: Which of `maps` to draw over the grey image. `maps` itself draws all so.
      percentile: Of each map's magnitudes; what lies above gets the full colour. 100 clips nothing.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: a shape, range or name that does not fit.

    Example:
      >>> images = np.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8)
      >>> figure = explanation_sheet(images, {"itself": images - 0.5}, probabilities=np.eye(2))
      >>> [ax.get_title() for ax in figure.axes][:3]
      ['input', 'probability', 'itself']
    """
    who = "explanation_sheet"
    shape = check_array(who, "images", images).shape
    maps = check_named(who, "maps", maps, "{'saliency': saliency}")
    maps = {name: check_array(who, f"map {name!r}", value) for name, value in maps.items()}
    if len(shape) == 2 and all(value.shape[:1] == shape[:1] for value in maps.values()):
        return signal_sheet(
            images,
            maps,
            probabilities=probabilities,
            class_names=class_names,
            labels=labels,
            target=target,
            overlay=overlay,
            percentile=percentile,
            title=title,
        )
    images = check_images(who, images)
    count = len(images)
    overlay = check_overlay(who, overlay, maps)
    check_percentile(who, percentile)
    if probabilities is not None:
        probabilities = check_array(who, "probabilities", probabilities)
        if probabilities.ndim != 2 or len(probabilities) != count or not probabilities.size:
            raise ValueError(
                f"{who}: probabilities must be [{count}, K], one row an image; "
                f"got {probabilities.shape}. Pass jax.nn.softmax of the logits."
            )
        if not (probabilities.min() >= 0 and probabilities.max() <= 1.001):
            raise ValueError(
                f"{who}: probabilities must lie in 0 to 1; got {probabilities.min():.3g} to "
                f"{probabilities.max():.3g}. Pass jax.nn.softmax of the logits."
            )
    classes = None if probabilities is None else probabilities.shape[1]
    if classes is None and class_names is not None:
        classes = len(class_names)
    labels = check_vector(who, "labels", labels, count, classes)
    if target is not None:
        target = check_array(who, "target", target)
        target = np.broadcast_to(target, (count,)) if target.ndim == 0 else target
        target = check_vector(who, "target", target, count, classes)
    elif probabilities is not None:
        target = probabilities.argmax(-1)
    if classes is None:
        indices = [values for values in (labels, target) if values is not None]
        classes = 1 + max((int(values.max()) for values in indices), default=0)
    names = first_words(check_names(who, class_names, classes))
    if has_channels_first(shape):
        turned = lambda a: np.moveaxis(a, 1, -1) if has_channels_first(a.shape) else a
        maps = {name: turned(value) for name, value in maps.items()}
    heats = {name: to_heat(who, name, value, count, percentile) for name, value in maps.items()}

    # Placed by hand in inches: every cell keeps its size whatever stands beside it.
    widths = [CELL, *([] if probabilities is None else [BARS]), *[CELL] * len(heats)]
    height = cell_height(CELL, images.shape[1:])
    tallest = height if probabilities is None else max(height, BARS_TALL)
    row = tallest + UNDER + GAP
    heads = {name: _lines(name) for name in heats}
    top = (TOP if title else TOP - 0.32) + 0.15 * any(len(lines) > 1 for lines in heads.values())
    size = (LEFT * 2 + sum(widths) + GAP * (len(widths) - 1), top + BOTTOM + row * count - GAP)
    figure = Figure(figsize=size, facecolor="white")

    def place(n: int, column: int) -> Axes:
        left = LEFT + sum(widths[:column]) + GAP * column
        tall = tallest if widths[column] == BARS else height
        bottom = size[1] - top - n * row - tall
        box = (left / size[0], bottom / size[1], widths[column] / size[0], tall / size[1])
        return figure.add_axes(box)

    for n, image in enumerate(images):
        ax = bare(place(n, 0))
        ax.imshow(image, interpolation=interpolation(image.shape[0]))
        if labels is not None:
            right = None if probabilities is None else probabilities[n].argmax() == labels[n]
            _verdict(ax, names, labels[n], right)
        if n == 0:
            _head(ax, ["input"])
        if probabilities is not None:
            ax = _bars(place(n, 1), probabilities[n], names, labels, target, n)
            if n == 0:
                _head(ax, ["probability"])
        for column, (name, heat) in enumerate(heats.items(), len(widths) - len(heats)):
            ax = bare(place(n, column))
            draw_heat(ax, heat, n, image, name in overlay)
            _under(ax, _scale(heat, n), QUIET)
            if n == 0:
                _head(ax, heads[name])

    for column, heat in enumerate(heats.values(), len(widths) - len(heats)):
        left = LEFT + sum(widths[:column]) + GAP * column
        box = ((left + 0.12) / size[0], 0.26 / size[1], (CELL - 0.24) / size[0], 0.07 / size[1])
        _key(figure.add_axes(box), heat.signed)
    if title:
        put_title(figure, title, left=LEFT)
    return figure


@public()
def overlay(image, attribution, *, percentile: float = 99.0, title: str | None = None) -> Figure:
    """Draws one map over its image: a column of `explanation_sheet(..., overlay=...)` alone, large.

    The stronger the evidence, the more of the grey image it covers; zero leaves the image as it is.
    Where the map has a sign, red speaks for the explained class and blue against it, both by the
    same scale, which stands below. Numbers that are not finite are green.

    Args:
      image: `[H, W]`, `[H, W, C]` or `[C, H, W]`, 1 or 3 channels, 0 to 1 or uint8.
      attribution: `[h, w]` or `[h, w, C]`, or `[C, h, w]` beside such an image. Channels are summed
        where any number is negative, else the largest is drawn. A map of another size is stretched
        over the image.
      percentile: Of the map's magnitudes; what lies above gets the full colour. 100 clips nothing.
      title: Above it; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: A batch, a shape or a range that does not fit.

    Example:
      >>> image = np.linspace(0, 1, 8 * 8).reshape(8, 8)
      >>> overlay(image, image - 0.5, percentile=100).axes[0].texts[0].get_text()
      '±0.5'
    """
    who = "overlay"
    given = check_one(who, "image", image)
    heat = check_one(who, "attribution", attribution)
    check_percentile(who, percentile)
    if has_channels_first(given.shape):
        heat = np.moveaxis(heat, 1, -1) if has_channels_first(heat.shape) else heat
    elif heat.shape[1] == 1 < given.shape[1] and heat.shape[-1] > 1:
        raise ValueError(
            f"{who}: attribution must be [h, w] or [h, w, C]; got {heat.shape[1:]}, which looks "
            "like a batch of one. Pass attribution[0]."
        )
    picture = check_images(who, given)[0]
    found = to_heat(who, "attribution", heat, 1, percentile)
    height = cell_height(ALONE, picture.shape)
    top = TOP - 0.32 if title else LEFT
    size = (LEFT * 2 + ALONE, top + height + UNDER + BOTTOM - 0.1)
    figure = Figure(figsize=size, facecolor="white")
    ax = frame(figure, LEFT, size[1] - top - height, ALONE, height)
    draw_heat(ax, found, 0, picture, True)
    _under(ax, _scale(found, 0), QUIET)
    _key(frame(figure, LEFT + 0.6, 0.26, ALONE - 1.2, 0.07), found.signed)
    put_title(figure, title, left=LEFT)
    return figure


_HEAD = CELL + GAP - 0.04  # inches above a cell, for its name


def _lines(name: str) -> list[str]:
    """A name in the one or two lines in which it fits above its cell, or cut to them."""
    lines = [one_line(line) for line in str(name).split("\n", 1)]
    if len(lines) == 1 and text_width(lines[0], 7.5) > _HEAD:
        text = lines[0]
        breaks = [n for n in range(1, len(text)) if text[n - 1] in "_ "]
        if breaks:
            middle = min(breaks, key=lambda n: abs(2 * n - len(text)))
            lines = [text[:middle].rstrip(), text[middle:]]
    return [fit(line, _HEAD, 7.5) for line in lines]


def _head(ax: Axes, lines: list[str]) -> None:
    # Widths are not quite proportional.
    size = max(min(fitting_points(line, 0.97 * _HEAD, 9.5) for line in lines), 7.5)
    ax.set_title("\n".join(lines), fontsize=size, color=INK, pad=5, parse_math=False)


def _under(ax: Axes, text: str, colour: str) -> None:
    """Writes a line below, at the same distance below cells of any height."""
    ax.annotate(
        text, (0.5, 0), (0, -3), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="top", fontsize=8, color=colour, parse_math=False,
    )  # fmt: skip


def _verdict(ax: Axes, names: list[str], label: int, right: bool | None) -> None:
    """The line under the input: its true class, and whether the model found it."""
    name = fit_among(names, label, CELL - text_width("true:   ✓", 8), 8)
    if right is None:
        _under(ax, f"true: {name}", INK)
    else:
        _under(ax, f"true: {name}  {'✓' if right else '✗'}", RIGHT if right else WRONG)


def _scale(heat: Heat, n: int) -> str:
    """The line under a map: what gets the full colour."""
    if heat.limits[n]:
        return f"{'±' if heat.signed else '0 to '}{heat.limits[n]:.2g}"
    missing = np.isnan(heat.values[n])
    if missing.all():
        return ""  # it stands in the map
    return "zero elsewhere" if missing.any() else "zero everywhere"


def _bars(ax: Axes, row: np.ndarray, names: list[str], labels, target, n: int) -> Axes:
    """The five largest probabilities; the explained class in the strong colour."""
    best = np.argsort(-row, kind="stable")[:5]
    explained = None if target is None else target[n]
    room = BARS - text_width("100.0%", 7.5, "bold") - 0.06
    for place, index in enumerate(best):
        strong = index == explained
        ax.barh(place + 0.22, row[index], height=0.26, color=ACCENT if strong else "#b9c4d3")
        ax.plot([0, 1], [place + 0.22] * 2, color="#e6e9ee", linewidth=0.6, zorder=0)
        mark = " (true)" if labels is not None and index == labels[n] else ""
        left = room - (text_width(mark, 7.5, "bold") if mark else 0)
        ax.text(
            0,
            place - 0.02,
            fit_among(names, index, left, 7.5, "bold") + mark,
            va="bottom",
            parse_math=False,
            fontsize=7.5,
            color=INK,
            weight="bold" if strong else "normal",
        )
        ax.text(
            1,
            place - 0.02,
            f"{row[index]:.1%}",
            va="bottom",
            ha="right",
            fontsize=7.5,
            color=INK if strong else QUIET,
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(4.55, -0.55)
    ax.axis("off")
    if explained is not None:
        share = "" if explained in best else f" ({row[explained]:.1%})"
        room = BARS + GAP - text_width(f"explained: {share}", 8)
        _under(ax, f"explained: {fit_among(names, explained, room, 8)}{share}", ACCENT)
    return ax


def _key(ax: Axes, signed: bool) -> None:
    ax.imshow(np.linspace(0, 1, 256)[None], cmap=SIGNED if signed else UNSIGNED, aspect="auto")
    bare(ax)
    ends = ("against", "for") if signed else ("none", "much")
    for x, text, side in zip((0, 1), ends, ("left", "right"), strict=True):
        ax.text(x, -0.5, text, transform=ax.transAxes, ha=side, va="top", fontsize=7, color=QUIET)
