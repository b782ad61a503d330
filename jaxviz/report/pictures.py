"""Images and maps as the page draws them: bytes of images, one number a place of maps."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxviz.explanation import is_series
from jaxviz.plot.inputs import check_images, has_channels_first
from jaxviz.report.packing import Blocks, packed, parts, rows_of

MANY = 256  # rows that are looked at together


def layout(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """What lays rows of images of this shape, and of their maps, out as `[n, h, w(, C)]`.

    A series is a strip one place high, or as many as it has channels.

    Example:
      >>> layout((2, 3, 8, 8))(np.zeros((2, 3, 8, 8))).shape, layout((2, 9))(np.zeros((2, 9))).shape
      ((2, 8, 8, 3), (2, 1, 9))
    """
    first, several = has_channels_first(shape), len(shape) == 3 and is_series(shape)

    def laid(part: np.ndarray) -> np.ndarray:
        if part.ndim == 2 or len(shape) == 2:  # of tokens a map may have an embedding's axis
            return part[:, None]
        if several and part.ndim == 3:
            return part.swapaxes(1, 2)
        return np.moveaxis(part, 1, -1) if first and part.ndim == 4 else part

    return laid


def packed_images(
    name: str, images: Any, *, stretched: bool
) -> tuple[dict[str, Any], Blocks, Callable]:
    """Images as uint8 `[N, h, w, 1 or 3]`; and what makes these of rows.

    Args:
      name: Of the array in the page.
      images: `[N, H, W]`, `[N, H, W, C]`, `[N, C, H, W]`, or series `[N, L]`, `[N, L, C]`.
      stretched: Whether what lies outside 0 to 1 is brought there, as of inputs made for a net, and
        channels that are no colours become their mean.
    """
    shape = np.shape(images)
    laid, low, high = layout(shape), 0.0, 1.0
    if (stretched or is_series(shape)) and images.dtype != np.uint8:
        ends = [(float(np.nanmin(p)), float(np.nanmax(p))) for p in parts(images, MANY)]
        least, most = min(a for a, _ in ends), max(b for _, b in ends)
        low, high = (least, most) if least < 0 or most > 1 else (low, high)

    def as_bytes(part: np.ndarray) -> np.ndarray:
        part = laid(part)
        if part.dtype != np.uint8:
            part = (part.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny)
        if part.ndim == 3:
            part = part[..., None]
        if stretched and part.shape[-1] not in (1, 3):
            part = part.mean(-1, keepdims=True)
        whole = check_images("report", part)
        return np.round(whole[..., : part.shape[-1]] * 255).astype(np.uint8)

    made = (shape[0], *as_bytes(np.asarray(images[:1])).shape[1:])
    about, blocks = packed(
        name, made, "uint8", map(as_bytes, parts(images, rows_of(made, "uint8")))
    )
    return about, blocks, as_bytes


def packed_map(
    name: str, values: Any, images_shape: tuple[int, ...]
) -> tuple[dict[str, Any], Blocks, Callable]:
    """A method's maps as float32 `[N, h, w]`, with "signed"; and what makes these of rows.

    As `plot.explanation_sheet` does: channels are summed where any number is negative, else the
    largest counts. What is not finite is NaN.
    """
    laid = layout(images_shape)
    signed = any(bool((part < 0).any()) for part in parts(values, MANY))

    def reduced(part: np.ndarray) -> np.ndarray:
        part = laid(np.where(np.isfinite(part), part, np.nan).astype(np.float64))
        if part.ndim == 4:  # before sums, in which two that are not finite may cancel
            part = part.sum(-1) if signed else part.max(-1)
        return part.astype(np.float32)

    made = (len(values), *reduced(np.asarray(values[:1])).shape[1:])
    rows = rows_of(made, "float32")
    about, blocks = packed(name, made, "float32", map(reduced, parts(values, rows)))
    return {**about, "signed": signed}, blocks, reduced


def group_means(values: Any, made: Callable, groups: np.ndarray, count: int) -> np.ndarray:
    """The mean of each group's rows, then of all: `[count + 1, ...]`.

    Rows that hold a number that is not finite are left out; a group of none is NaN.
    """
    total: Any = 0.0
    rows = np.zeros(count + 1)
    for number, part in enumerate(parts(values, MANY)):
        part = made(part).astype(np.float64)
        whole = np.isfinite(part).reshape(len(part), -1).all(1)
        mine = groups[number * MANY : number * MANY + len(part)]
        chosen = np.stack([*(mine == g for g in range(count)), np.ones(len(part), bool)]) & whole
        total = total + np.tensordot(
            chosen.astype(np.float64), np.where(np.isnan(part), 0, part), 1
        )
        rows += chosen.sum(1)
    with np.errstate(invalid="ignore"):
        return total / rows.reshape(-1, *[1] * (total.ndim - 1))
