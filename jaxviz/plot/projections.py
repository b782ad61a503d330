"""Feature maps beside what is projected back from them: of an image, and of the best patches."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET, SIGNED, interpolation
from jaxviz.plot.inputs import (
    check_array,
    check_count,
    check_images,
    check_named,
    check_one,
    has_channels_first,
)
from jaxviz.plot.page import (
    EDGE,
    cell_height,
    fit,
    frame,
    put_title,
    text_width,
    told_apart,
    write,
)

_COLOURS = matplotlib.colormaps["viridis"].with_extremes(bad=NOT_A_NUMBER)
SIDE, BETWEEN, APART = 1.7, 0.12, 0.34  # inches: a square of patches, to its twin, to the next map


@public()
def top_projections(
    tops: Mapping[str, Any],
    *,
    maps_per_row: int = 3,
    title: str | None = "what excites each feature map most, and what of it does",
) -> Figure:
    """Draws, for some feature maps, the patches that excite each most beside their projections.

    Left the image patches, strongest first, row by row; right, in the same order, what the
    deconvnet projects back. Zero is the middle tone, and each projection has its own scale, the
    99.5th percentile of its magnitudes: red and blue for one channel, colours about grey for three.
    What is not finite is green.

    Args:
      tops: From a map's name to what `jaxviz.top_projections` found for it: `patches`
        `[K, h, w, C]` in 0 to 1 (or uint8), `projections` `[K, h, w, C]` and `scores` `[K]`. Of
        images that were normalised: `top._replace(patches=top.patches * std + mean)`.
      maps_per_row: Feature maps side by side, >= 1.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Under each map stand its name and its activations' range.

    Raises:
      ValueError: No map, shapes that do not fit, or patches out of range.

    Example:
      >>> from types import SimpleNamespace
      >>> top = SimpleNamespace(
      ...     patches=np.zeros((4, 3, 3, 1)), projections=np.ones((4, 3, 3, 1)), scores=np.ones(4)
      ... )
      >>> len(top_projections({"conv1 7": top}).axes)
      2

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, figure 2.
    """
    who = "top_projections"
    example = "{'conv1 7': jaxviz.top_projections(...)}"
    if isinstance(tops, Mapping) and not tops:
        raise ValueError(f"{who}: needs one feature map or more; got none. Pass {example}.")
    tops = check_named(who, "tops", tops, example)
    maps_per_row = check_count(who, "maps_per_row", maps_per_row, 3)
    columns = min(maps_per_row, len(tops))
    rows = math.ceil(len(tops) / columns)
    width, row = 2 * SIDE + BETWEEN, SIDE + 0.42
    size = (2 * EDGE + columns * (width + APART) - APART, 0.5 + rows * row + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    for number, (name, top) in enumerate(tops.items()):
        if not all(hasattr(top, field) for field in ("patches", "projections", "scores")):
            raise TypeError(
                f"{who}: {name!r} must have patches, projections and scores; got "
                f"{type(top).__name__}. Pass {example}."
            )
        patches = check_images(f"{who} ({name!r})", top.patches)
        projections = check_array(who, f"projections of {name!r}", top.projections)
        scores = check_array(who, f"scores of {name!r}", top.scores)
        given = np.shape(top.patches)
        if projections.shape != given or scores.shape != given[:1]:
            raise ValueError(
                f"{who}: projections and scores of {name!r} must be {given} and {given[:1]}; got "
                f"{projections.shape} and {scores.shape}. They belong to the same patches."
            )
        if has_channels_first(given):
            projections = np.moveaxis(projections, 1, -1)
        line, column = divmod(number, columns)
        left = EDGE + column * (width + APART)
        bottom = size[1] - 0.5 - line * row - SIDE
        for offset, cells in ((0, patches), (SIDE + BETWEEN, _coloured(projections))):
            ax = frame(figure, left + offset, bottom, SIDE, SIDE)
            tiled = _tiled(cells)
            ax.imshow(tiled, interpolation=interpolation(cells.shape[1]))
            ax.set_frame_on(False)
        ax.set_label(name)
        note = f"activation {scores.max():.3g} to {scores.min():.3g}"
        if not np.isfinite(scores).all():
            note = "activation not finite"
        short = fit(name, width - text_width(note, 7) - 0.06, 8)
        write(figure, left, bottom - 0.1, short, fontsize=8, color=INK)
        write(figure, left + width, bottom - 0.1, note, ha="right", fontsize=7, color=QUIET)
    return figure


@public()
def map_projections(
    image: Any,
    layers,
    *,
    title: str | None = "feature maps, and what they are projected back to",
) -> Figure:
    """Draws some feature maps of one image, and below each the pixels that made it.

    A block a layer. A map is dark where it is lowest and bright at its peak, which stands beside
    its name. In a projection zero is the middle tone and the scale ends at the 99.5th percentile of
    its magnitudes: red and blue for one channel, colours about grey for three.

    Args:
      image: `[H, W]` or `[H, W, C]`, 1 or 3 channels, 0 to 1 or uint8; drawn first.
      layers: From a layer's name to K of its maps `[h, w, K]`, their projections `[K, H, W, C]`
        (of `jaxviz.feature_projection`) and K names.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: No layer, or shapes that do not fit.

    Example:
      >>> maps, projections = np.ones((3, 3, 2)), np.ones((2, 6, 6, 1))
      >>> len(map_projections(np.ones((6, 6)), {"conv1": (maps, projections, [4, 7])}).axes)
      5

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, section 2.1.
    """
    who = "map_projections"
    given = check_one(who, "image", image)
    picture = check_images(who, given)[0]
    if isinstance(layers, Mapping) and not layers:
        raise ValueError(f"{who}: needs one layer or more; got none.")
    blocks = []
    example = "{'conv1': (maps, projections, names)}"
    for name, found in check_named(who, "layers", layers, example).items():
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            raise TypeError(
                f"{who}: {name!r} must have three things; got {type(found).__name__}. "
                f"Pass {example}."
            )
        maps = check_array(who, f"maps of {name!r}", found[0])
        projections = check_array(who, f"projections of {name!r}", found[1])
        units = [str(unit) for unit in found[2]]
        if has_channels_first(given.shape) and has_channels_first(projections.shape):
            projections = np.moveaxis(projections, 1, -1)
        wide = picture.shape[:2] if projections.ndim != 4 else projections.shape[1:3]
        if maps.ndim != 3 or projections.ndim != 4 or wide != picture.shape[:2]:
            raise ValueError(
                f"{who}: {name!r} must have maps [h, w, K] and projections [K, H, W, C] as large "
                f"as the image {picture.shape[:2]}; got {maps.shape} and {projections.shape}."
            )
        if not maps.shape[2] == len(projections) == len(units):
            raise ValueError(
                f"{who}: {name!r} must have as many maps as projections and names; got "
                f"{maps.shape[2]}, {len(projections)} and {len(units)}."
            )
        if not maps.size or not projections.size:
            raise ValueError(f"{who}: {name!r} must have a map or more; got {maps.shape}.")
        blocks.append((name, maps, _coloured(projections), units))
    side, between, head = 0.95, 0.06, 0.42
    height = cell_height(side, picture.shape)
    row = 2 * height + between + head
    columns = max(len(units) for *_, units in blocks)
    across = EDGE + side + APART
    # Three maps wide at least, for the heading.
    size = (
        across + max(columns, 3) * (side + between) - between + EDGE,
        0.42 + len(blocks) * row + EDGE,
    )
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    first = size[1] - 0.42 - head - height
    frame(figure, EDGE, first, side, height).imshow(
        picture, interpolation=interpolation(picture.shape[0])
    )
    write(figure, EDGE, first + height + 0.1, "input", fontsize=8, color=INK)
    for line, (name, maps, coloured, units) in enumerate(blocks):
        above = size[1] - 0.42 - line * row - head - height
        rest = ": maps above, projections below"
        heading = fit(name, size[0] - EDGE - across - text_width(rest, 9), 9) + rest
        write(figure, across, above + height + 0.27, heading, fontsize=9, color=INK)
        peaks = [_peak(maps[..., k]) for k in range(len(units))]
        shown = told_apart(units, side - max(text_width(peak, 7) for peak in peaks) - 0.05, 7)
        for k, unit in enumerate(units):
            left = across + k * (side + between)
            ax = frame(figure, left, above, side, height)
            shades = np.ma.masked_invalid(maps[..., k])
            ax.imshow(shades, cmap=_COLOURS, aspect="auto", interpolation="nearest")
            ax.set_label(f"{name} {unit}")
            top = above + height + 0.09
            short = fit(shown[k], side - text_width(peaks[k], 7) - 0.05, 7)
            write(figure, left, top, short, fontsize=7, color=INK)
            write(figure, left + side, top, peaks[k], ha="right", fontsize=7, color=QUIET)
            ax = frame(figure, left, above - between - height, side, height)
            ax.imshow(coloured[k], interpolation=interpolation(picture.shape[0]))
    return figure


def _peak(one: np.ndarray) -> str:
    """The largest number of a map, of those that are finite."""
    finite = one[np.isfinite(one)]
    return f"{finite.max():.3g}" if finite.size else "not finite"


def _coloured(projections: np.ndarray) -> np.ndarray:
    """Signed `[K, h, w, C]` as colours, zero in the middle, each by its own scale."""
    values = projections.astype(np.float64).reshape(*projections.shape[:3], -1)
    missing = np.logical_not(np.isfinite(values).all(-1))
    values = np.where(missing[..., None], 0, values)
    limits = np.percentile(np.abs(values), 99.5, axis=(1, 2, 3), keepdims=True)
    limits = np.where(limits > 0, limits, np.abs(values).max((1, 2, 3), keepdims=True))
    scaled = (np.clip(values / np.where(limits > 0, limits, 1), -1, 1) + 1) / 2
    colours = scaled if scaled.shape[-1] == 3 else SIGNED(scaled[..., 0])[..., :3]
    return np.where(missing[..., None], NOT_A_NUMBER[:3], colours)


def _tiled(cells: np.ndarray) -> np.ndarray:
    """`[K, h, w, 3]` as one picture, as square as may be, with white lines between."""
    count, height, width, _ = cells.shape
    across = math.ceil(math.sqrt(count))
    gap = max(1, round(0.04 * width))
    down = math.ceil(count / across)
    out = np.ones((down * (height + gap) - gap, across * (width + gap) - gap, 3))
    for k, cell in enumerate(cells):
        i, j = divmod(k, across)
        i, j = i * (height + gap), j * (width + gap)
        out[i : i + height, j : j + width] = cell
    return out
