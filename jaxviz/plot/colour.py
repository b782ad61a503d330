"""How the numbers of an explanation become colour: sign, channels, clipping, colour map."""

from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from jaxviz.plot.inputs import check_array

INK = "#222222"  # text
QUIET = "#8a8f98"  # secondary text and lines
ACCENT = "#2166ac"  # the blue end of RdBu_r
WRONG = "#c1272d"
RIGHT = "#1b7837"

# Both run evenly in lightness. White is zero in the signed one, so it vanishes into the page.
SIGNED = matplotlib.colormaps["RdBu_r"]
UNSIGNED = matplotlib.colormaps["inferno"]
NOT_A_NUMBER = (0.45, 0.75, 0.45, 1.0)  # a green that neither colour map holds


class Heat(NamedTuple):
    """One method's maps, ready to be coloured."""

    values: np.ndarray  # [N, h, w], one number a place
    limits: np.ndarray  # [N], the magnitude that gets the full colour
    signed: bool


def to_heat(who: str, name: str, maps, count: int, percentile: float) -> Heat:
    """Reduces `[N, h, w]` or `[N, h, w, C]` maps to one number a place and finds their scale.

    A map is signed when any of its numbers is negative. Channels are summed where it is signed,
    so that what sums to the score still does; else the largest counts, as Simonyan et al. 2013 do.
    The limit is the `percentile` of each example's magnitudes, or their maximum where that is zero.
    """
    maps = check_array(who, f"map {name!r}", maps)
    if maps.ndim not in (3, 4) or maps.shape[0] != count or 0 in maps.shape:
        raise ValueError(
            f"{who}: map {name!r} must be [{count}, h, w] or [{count}, h, w, C], one a image; "
            f"got {maps.shape}. Put the batch first and the channels last."
        )
    maps = maps.astype(np.float64)
    maps = np.where(np.isfinite(maps), maps, np.nan)  # before sums, in which two may cancel
    signed = bool((maps < 0).any())
    if maps.ndim == 4:
        maps = maps.sum(-1) if signed else maps.max(-1)
    limits = np.zeros(count)
    for n, one in enumerate(np.abs(maps)):
        finite = one[np.isfinite(one)]
        if finite.size:
            limits[n] = np.percentile(finite, percentile) or finite.max()
    return Heat(maps, limits, signed)


def draw_heat(ax: Axes, heat: Heat, n: int, image: np.ndarray, overlay: bool) -> None:
    """Draws map `n` of `heat` as large as `image` `[H, W, 3]`, alone or over its grey version."""
    height, width = image.shape[:2]
    values = _stretch(heat.values[n], height, width)
    scaled = np.clip(values / heat.limits[n], -1, 1) if heat.limits[n] else values
    missing = np.isnan(scaled)
    scaled = np.where(missing, 0, scaled)
    colours = SIGNED((scaled + 1) / 2) if heat.signed else UNSIGNED(scaled)
    if overlay:
        # The stronger the evidence, the more of the image it covers; none leaves it as it is.
        grey = np.broadcast_to(image.mean(-1, keepdims=True), image.shape)
        cover = 0.9 * np.abs(scaled)[..., None] ** (0.6 if heat.signed else 0.8)
        colours[..., :3] = cover * colours[..., :3] + (1 - cover) * (0.15 + 0.8 * grey)
    colours[missing] = NOT_A_NUMBER
    ax.imshow(colours, interpolation=interpolation(height))
    if missing.all():
        ax.text(
            width / 2, height / 2, "not finite", ha="center", va="center", fontsize=8, color=INK
        )


def interpolation(height: int) -> str:
    """Sharp pixels for small images, where each one counts; matplotlib's smoothing for photos."""
    return "nearest" if height < 100 else "auto"


def _stretch(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres aligned: a coarse map over the image, as every CAM is read."""
    for axis, size in enumerate((height, width)):
        old = values.shape[axis]
        if old != size:
            at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, old - 1)
            part = np.expand_dims(at - low, 1 - axis)
            # Where a neighbour has no weight it is not read, so that one NaN stays one place.
            lower, upper = values.take(low, axis), values.take(high, axis)
            values = np.where(part == 0, lower, (1 - part) * lower + part * upper)
    return values
