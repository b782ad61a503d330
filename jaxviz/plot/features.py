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
from jaxviz.plot.inputs import check_images, check_names, shorten
from jaxviz.plot.page import EDGE, GAP, frame, put_title, write


@public()
def stitched(
    images: Any,
    *,
    titles: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    per_row: int = 8,
    title: str = "images",
) -> Figure:
    """Draws many images in a grid, a title above each.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]`, 1 or 3 channels, 0 to 1 or uint8.
      titles: N of them (units, classes); None numbers them.
      notes: N short texts (scores), beside the titles; None for none.
      per_row: Images a row, >= 1.
      title: Above everything.

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
    names = check_names(who, titles, len(images))
    remarks = [""] * len(images) if notes is None else check_names(who, notes, len(images))
    if per_row < 1:
        raise ValueError(f"{who}: per_row must be 1 or more; got {per_row}. 8 is usual.")
    columns = min(per_row, len(images))
    rows = math.ceil(len(images) / columns)
    cell = 0.8 if images.shape[2] < 100 else 1.15
    height = cell * images.shape[1] / images.shape[2]
    row = height + 0.24
    size = (max(2 * EDGE + columns * (cell + GAP) - GAP, 4.2), 0.5 + rows * row + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    for n, image in enumerate(images):
        line, column = divmod(n, columns)
        left, bottom = EDGE + column * (cell + GAP), size[1] - 0.62 - line * row - height
        ax = frame(figure, left, bottom, cell, height)
        ax.imshow(image, interpolation=interpolation(images.shape[1]))
        ax.set_label(names[n])
        above = bottom + height + 0.08
        room = int(13 * cell) - len(remarks[n])
        write(figure, left, above, shorten(names[n], room), fontsize=7, color=INK)
        write(figure, left + cell, above, remarks[n], ha="right", fontsize=7, color=QUIET)
    return figure


@public()
def filters(
    kernels: Any,
    *,
    ranked: bool = False,
    per_row: int = 8,
    max_units: int = 64,
    title: str = "filters",
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
      title: Above everything.

    Returns:
      A Figure for `savefig`.

    Raises:
      ValueError: `kernels` has another number of axes.

    Example:
      >>> len(filters(np.ones((3, 3, 3, 5))).axes)
      5
    """
    who = "filters"
    kernels = np.asarray(kernels, np.float64)
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
    images: Any,
    patches: Any,
    means: Any,
    *,
    names: Sequence[str] | None = None,
    scores: Any = None,
    title: str = "units of a layer",
) -> Figure:
    """Draws the page of a layer: each unit's optimised image, the patches it likes best, its mean.

    Two units a row. The bar is the unit's mean activation relative to the largest of the page.

    Args:
      images: `[U, H, W]` or `[U, H, W, C]`: optimised images, 0 to 1 or uint8.
      patches: `[U, K, h, w]` or `[U, K, h, w, C]`: `TopExamples.patches`, 0 to 1 or uint8.
      means: `[U]`: `TopExamples.means`.
      names: U names; None numbers them.
      scores: `[U, K]`, written below the patches; None for none.
      title: Above everything.

    Returns:
      A Figure for `savefig`. 32 units fill a page.

    Raises:
      ValueError: shapes that do not fit each other.

    Example:
      >>> len(atlas_page(np.zeros((2, 8, 8)), np.zeros((2, 3, 4, 4)), np.ones(2)).axes)
      10
    """
    who = "atlas_page"
    images = check_images(who, images)
    patches, means = np.asarray(patches), np.asarray(means, np.float64)
    count = len(images)
    if patches.ndim not in (4, 5) or len(patches) != count or means.shape != (count,):
        raise ValueError(
            f"{who}: patches must be [{count}, K, h, w] (or with channels) and means [{count}], "
            f"one a unit; got {patches.shape} and {means.shape}."
        )
    rank = patches.shape[1]
    patches = check_images(who, patches.reshape(-1, *patches.shape[2:]))
    patches = patches.reshape(count, rank, *patches.shape[1:])
    names = check_names(who, names, count)
    if scores is not None and np.shape(scores) != (count, rank):
        raise ValueError(f"{who}: scores must be [{count}, {rank}]; got {np.shape(scores)}.")
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
            shorten(names[unit], 16),
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
                    fontsize=5.5,
                    color=QUIET,
                )
        wide = rank * (small + 0.04) - 0.04
        ax = frame(figure, start, bottom, wide, 0.08)
        ax.set_xlim(0, 1)
        ax.barh(0, abs(means[unit]) / most, height=1.0, color=ACCENT if means[unit] >= 0 else WRONG)
        ax.set_ylim(-0.5, 0.5)
        note = f"mean {means[unit]:.3g}"
        write(figure, start, bottom + 0.15, note, fontsize=6, color=QUIET)
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
      ValueError: `frames` of another shape, without a frame, or a path that is no .gif.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "climb.gif"
      >>> save_gif(path, np.stack([np.zeros((3, 8, 8)), np.ones((3, 8, 8))]))
      >>> with Image.open(path) as gif:
      ...     gif.n_frames, gif.size
      (2, (244, 80))
    """
    who = "save_gif"
    frames = np.asarray(frames)
    if frames.ndim not in (4, 5) or 0 in frames.shape:
        raise ValueError(
            f"{who}: frames must be [F, M, H, W, C], at least one; got {frames.shape}. Pass "
            "num_frames to maximize_activation."
        )
    if os.path.splitext(os.fspath(path))[1].lower() != ".gif":
        raise ValueError(f"{who}: path must end in .gif; got {os.fspath(path)!r}.")
    count, number = frames.shape[:2]
    flat = check_images(who, frames.reshape(count * number, *frames.shape[2:]))
    if scale is None:
        scale = max(1, 84 // flat.shape[1])
    large = flat.repeat(scale, 1).repeat(scale, 2)
    height, width = large.shape[1:3]
    large = large.reshape(count, number, height, width, 3)
    columns = min(per_row, number)
    rows = math.ceil(number / columns)
    page = np.ones((count, rows * (height + 2) - 2, columns * (width + 2) - 2, 3), np.float32)
    for n in range(number):
        i, j = (
            at * (side + 2) for at, side in zip(divmod(n, columns), (height, width), strict=True)
        )
        page[:, i : i + height, j : j + width] = large[:, n]
    pictures = [Image.fromarray((255 * one + 0.5).astype(np.uint8)) for one in page]
    step = 1000 * seconds / max(count - 1, 1)
    times = [max(20, round(step))] * (count - 1) + [max(20, round(1000 * hold))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
