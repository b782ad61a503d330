"""Pictures of what was learned: stitched images, kernels, a climb as a GIF, the page of a layer."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxviz.calls.public import public
from jaxviz.plot.colour import ACCENT, INK, QUIET, SIGNED, WRONG, interpolation
from jaxviz.plot.inputs import (
    check_array,
    check_count,
    check_images,
    check_names,
    has_channels_first,
)
from jaxviz.plot.page import (
    EDGE,
    GAP,
    cell_height,
    fit,
    fitting_points,
    frame,
    one_line,
    put_title,
    text_width,
    told_apart,
    write,
)

_GIF_SIDE, _GIF_BYTES = 2**16 - 1, 2**33  # what its format can say; what is held to write it


@public()
def stitched(
    images,
    *,
    titles: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    per_row: int = 8,
    title: str | None = "images",
) -> Figure:
    """Draws many images in a grid, a title above each.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]`, 1 or 3 channels, 0 to 1 or uint8.
      titles: N of them (units, classes); None numbers them.
      notes: N short texts (scores), beside the titles; None for none.
      per_row: Images a row, >= 1.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: a shape, range or number of texts that does not fit.

    Example:
      >>> len(stitched(np.zeros((3, 8, 8)), titles=["a", "b", "c"]).axes)
      3
    """
    who = "stitched"
    images = check_images(who, images)
    names = check_names(who, titles, len(images), "titles", " images")
    remarks = [""] * len(images)
    if notes is not None:
        remarks = check_names(who, notes, len(images), "notes", " images")
    per_row = check_count(who, "per_row", per_row, 8)
    columns = min(per_row, len(images))
    rows = math.ceil(len(images) / columns)
    cell = 0.8 if images.shape[2] < 100 else 1.15
    height = cell_height(cell, images.shape[1:])
    row = height + 0.24
    size = (max(2 * EDGE + columns * (cell + GAP) - GAP, 4.2), 0.5 + rows * row + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    # A note takes what names leave, or half of a line: a number that is cut is another number.
    lines = [*map(one_line, names)]
    widest = max(text_width(line, 7) for line in lines)
    room = cell - 0.1 if titles is None else max(cell / 2, cell - widest - 0.05)
    remarks = [fit(remark, room, 7) for remark in remarks]
    beside = cell - max(text_width(remark, 7) for remark in remarks) - 0.05
    # Titles may be the same for two images; those that cutting makes the same are numbered.
    shown = [
        line if fit(line, beside, 7) == line else apart
        for line, apart in zip(lines, told_apart(lines, beside, 7), strict=True)
    ]
    for n, image in enumerate(images):
        line, column = divmod(n, columns)
        left, bottom = EDGE + column * (cell + GAP), size[1] - 0.62 - line * row - height
        ax = frame(figure, left, bottom, cell, height)
        ax.imshow(image, interpolation=interpolation(images.shape[1]))
        ax.set_label(names[n])
        above = bottom + height + 0.08
        name = fit(shown[n], cell - text_width(remarks[n], 7) - 0.05, 7)
        write(figure, left, above, name, fontsize=7, color=INK)
        write(figure, left + cell, above, remarks[n], ha="right", fontsize=7, color=QUIET)
    return figure


@public()
def filters(
    kernels: Any,
    *,
    ranked: bool = False,
    per_row: int = 8,
    max_units: int = 64,
    title: str | None = "filters",
) -> Figure:
    """Draws the kernels of a convolution: in colour where they read three channels, else one a map.

    Colour kernels are scaled about a grey that is zero. Of others each cell is one unit, cut into
    the input channels it reads with the largest norm (up to nine, side by side); red adds, blue
    takes away, white is zero, and the scale is each unit's largest magnitude.

    Args:
      kernels: `[h, w, in, units]`, as `jaxviz.filters` gives.
      ranked: Whether units come in order of their norm, the largest first; else by number.
      per_row: Units a row, >= 1.
      max_units: How many are drawn.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: `kernels` has another number of axes, or numbers that are not finite.

    Example:
      >>> len(filters(np.ones((3, 3, 3, 5))).axes)
      5
    """
    who = "filters"
    kernels = check_array(who, "kernels", kernels).astype(np.float64)
    per_row = check_count(who, "per_row", per_row, 8)
    max_units = check_count(who, "max_units", max_units, 64)
    if not np.isfinite(kernels).all():
        raise ValueError(
            f"{who}: kernels must be finite; {(~np.isfinite(kernels)).sum()} of {kernels.size} "
            "numbers are not. Did the training diverge?"
        )
    if kernels.ndim != 4 or 0 in kernels.shape:
        raise ValueError(
            f"{who}: kernels must be [h, w, in, units]; got {kernels.shape}. Take those of "
            "jaxviz.filters."
        )
    norms = np.sqrt((kernels**2).sum((0, 1, 2)))
    order = np.argsort(-norms, kind="stable") if ranked else np.arange(len(norms))
    order = order[:max_units]
    pictures = np.stack([_kernel_picture(kernels[..., u]) for u in order])
    return stitched(
        pictures,
        titles=[str(u) for u in order],
        notes=[f"{norms[u]:.2g}" for u in order],
        per_row=per_row,
        title=title,
    )


def _kernel_picture(kernel: np.ndarray) -> np.ndarray:
    """`[h, w, in] -> [H, W, 3]` in 0 to 1."""
    most = np.abs(kernel).max() or 1.0
    height, width, channels = kernel.shape
    if channels == 3:
        return 0.5 + 0.5 * kernel / most
    side = min(3, math.ceil(math.sqrt(channels)))
    strongest = np.argsort(-(kernel**2).sum((0, 1)), kind="stable")[: side * side]
    lines = math.ceil(len(strongest) / side)
    gap = 1 if side > 1 else 0
    picture = np.ones((lines * (height + gap) - gap, side * (width + gap) - gap, 3)) * 0.82
    for n, channel in enumerate(sorted(strongest)):
        i, j = (s * (k + gap) for s, k in zip(divmod(n, side), (height, width), strict=True))
        colours = SIGNED((kernel[..., channel] / most + 1) / 2)[..., :3]
        picture[i : i + height, j : j + width] = colours
    return picture


@public()
def atlas_page(
    images,
    patches: Any,
    means: Any,
    *,
    names: Sequence[str] | None = None,
    scores: Any = None,
    title: str | None = "units of a layer",
) -> Figure:
    """Draws the page of a layer: each unit's optimised image, the patches it likes best, its mean.

    Two units a row. The bar is the unit's mean activation relative to the largest of the page.

    Args:
      images: `[U, H, W]` or `[U, H, W, C]`: optimised images, 0 to 1 or uint8.
      patches: `[U, K, h, w]` or `[U, K, h, w, C]`: `TopExamples.patches`, 0 to 1 or uint8.
      means: `[U]`: `TopExamples.means`.
      names: U names; None numbers them.
      scores: `[U, K]`, written below the patches; None for none.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. 32 units fill a page.

    Raises:
      ValueError: shapes that do not fit each other.

    Example:
      >>> len(atlas_page(np.zeros((2, 8, 8)), np.zeros((2, 3, 4, 4)), np.ones(2)).axes)
      10
    """
    who = "atlas_page"
    turned = has_channels_first(check_array(who, "images", images).shape)
    images = check_images(who, images)
    patches, means = check_array(who, "patches", patches), check_array(who, "means", means)
    if turned and patches.ndim == 5:  # as small as they are, only the images say it
        patches = np.moveaxis(patches, 2, -1)
    means = means.astype(np.float64)
    count = len(images)
    if patches.ndim not in (4, 5) or len(patches) != count or means.shape != (count,):
        raise ValueError(
            f"{who}: patches must be [{count}, K, h, w] (or with channels) and means [{count}], "
            f"one a unit; got {patches.shape} and {means.shape}."
        )
    rank = patches.shape[1]
    if not np.isfinite(means).all():
        raise ValueError(f"{who}: means must be finite; got {means}.")
    if patches.ndim == 4:
        patches = patches[..., None]  # grey
    patches = check_images(f"{who}, patches", patches.reshape(-1, *patches.shape[2:]))
    patches = patches.reshape(count, rank, *patches.shape[1:])
    names = check_names(who, names, count, "names", " units")
    if scores is not None:
        scores = check_array(who, "scores", scores)
        if scores.shape != (count, rank):
            raise ValueError(f"{who}: scores must be [{count}, {rank}]; got {scores.shape}.")
    large, small = 0.86, 0.52
    block = large + 0.1 + rank * (small + 0.04) + 0.3
    columns = min(2, count)
    lines = math.ceil(count / columns)
    row = large + 0.3
    size = (max(2 * EDGE + columns * block, 4.2), 0.55 + lines * row + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    most = np.abs(means).max() or 1.0
    for unit in range(count):
        line, column = divmod(unit, columns)
        left, bottom = EDGE + column * block, size[1] - 0.68 - line * row - large
        ax = frame(figure, left, bottom, large, large)
        ax.imshow(images[unit], interpolation=interpolation(images.shape[1]), aspect="auto")
        ax.set_label(names[unit])
        write(
            figure,
            left,
            bottom + large + 0.09,
            fit(names[unit], large + 0.1 - 0.04, 8),
            fontsize=8,
            color=INK,
        )
        start = left + large + 0.1
        for k in range(rank):
            at = start + k * (small + 0.04)
            ax = frame(figure, at, bottom + large - small, small, small)
            ax.imshow(
                patches[unit, k], interpolation=interpolation(patches.shape[2]), aspect="auto"
            )
            if scores is not None and np.isfinite(scores[unit][k]):
                note = f"{scores[unit][k]:.3g}"
                write(
                    figure,
                    at + small / 2,
                    bottom + large - small - 0.07,
                    note,
                    ha="center",
                    fontsize=fitting_points(note, small, 5.5),
                    color=QUIET,
                )
        wide = rank * (small + 0.04) - 0.04
        ax = frame(figure, start, bottom, wide, 0.08)
        ax.set_xlim(0, 1)
        ax.barh(0, abs(means[unit]) / most, height=1.0, color=ACCENT if means[unit] >= 0 else WRONG)
        ax.set_ylim(-0.5, 0.5)
        note = f"mean {means[unit]:.3g}"
        points = fitting_points(note, wide, 6)
        write(figure, start, bottom + 0.15, note, fontsize=points, color=QUIET)
    return figure


@public()
def save_gif(
    path: str | os.PathLike,
    frames: Any,
    *,
    per_row: int = 8,
    seconds: float = 3.0,
    hold: float = 1.0,
    scale: int | None = None,
) -> None:
    """Writes the frames of a climb as a GIF that loops: all its images side by side.

    Args:
      path: Ends in .gif.
      frames: `[F, M, H, W, C]` or `[F, M, H, W]`: `Maximization.frames`, 0 to 1.
      per_row: Images a row, >= 1.
      seconds: Of all frames but the last together.
      hold: Seconds that the last one stays.
      scale: Pixels of the GIF for one of an image; None makes small images about 84 pixels high.

    Raises:
      ValueError: `frames` of another shape or without a frame, a path that is no .gif or in no
        folder, a page too large for a GIF or for 8 GiB.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "climb.gif"
      >>> save_gif(path, np.stack([np.zeros((3, 8, 8)), np.ones((3, 8, 8))]))
      >>> with Image.open(path) as gif:
      ...     gif.n_frames, gif.size
      (2, (244, 80))
    """
    who = "save_gif"
    frames = check_array(who, "frames", frames)
    if frames.ndim not in (4, 5) or 0 in frames.shape:
        raise ValueError(
            f"{who}: frames must be [F, M, H, W, C], at least one; got {frames.shape}. Pass "
            "num_frames to maximize_activation."
        )
    path = os.fspath(path)
    if os.path.splitext(path)[1].lower() != ".gif":
        raise ValueError(f"{who}: path must end in .gif; got {path!r}.")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"{who}: path must be in a folder that is there; got {path!r}. Make it.")
    for what, value in (("seconds", seconds), ("hold", hold)):
        if not 0 <= value <= 600:  # a frame's time is 16 bits of 1/100 s
            raise ValueError(f"{who}: {what} must be 0 to 600; got {value}.")
    count, number = frames.shape[:2]
    frames = frames[..., None] if frames.ndim == 4 else frames
    if has_channels_first(frames.shape[1:]):
        frames = np.moveaxis(frames, 2, -1)
    if scale is None:
        scale = max(1, 84 // frames.shape[2])
    scale = check_count(who, "scale", scale, 4)
    columns = min(check_count(who, "per_row", per_row, 8), number)
    rows = math.ceil(number / columns)
    tall, wide = (side * scale for side in frames.shape[2:4])
    page = rows * (tall + 2) - 2, columns * (wide + 2) - 2
    held = 3 * count * page[0] * page[1]
    if max(page) > _GIF_SIDE or held > _GIF_BYTES:
        raise ValueError(
            f"{who}: the page must be at most {_GIF_SIDE} pixels a side, and all frames "
            f"{_GIF_BYTES / 2**30:.0f} GiB; got {page[1]} x {page[0]} and {held / 2**30:.3g} GiB "
            f"for {count} frames of {number} images at scale {scale}. Choose a smaller scale."
        )
    flat = check_images(who, frames.reshape(count * number, *frames.shape[2:]))
    flat = flat.reshape(count, number, *flat.shape[1:])

    def picture(images: np.ndarray) -> Image.Image:
        whole = np.ones((*page, 3), np.float32)
        for n, image in enumerate(images):
            i, j = (
                k * (side + 2) for k, side in zip(divmod(n, columns), (tall, wide), strict=True)
            )
            whole[i : i + tall, j : j + wide] = image.repeat(scale, 0).repeat(scale, 1)
        return Image.fromarray((255 * whole + 0.5).astype(np.uint8))

    pictures = [picture(images) for images in flat]
    step = 1000 * seconds / max(count - 1, 1)
    times = [max(20, round(step))] * (count - 1) + [max(20, round(1000 * hold))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
