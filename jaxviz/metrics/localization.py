"""Does an attribution lie where the object is? Scores against masks of its places."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.options import real
from jaxviz.metrics.maps import (
    in_rows,
    measure,
    nan_where_not_finite,
    on_places,
    ranks,
    share,
    sums,
    top_weights,
)
from jaxviz.metrics.similarity import check_k


@measure("tolerance", tolerance=real(0))
def pointing_game(attribution: jax.Array, mask: jax.Array, *, tolerance: float = 15.0) -> jax.Array:
    """Whether the strongest place lies on the object, or close to it. Higher is better: 1 is a hit.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up.
      mask: `[N, *space]`, true (not 0) on the object.
      tolerance: How far from it still counts, in pixels, Euclidean; the paper's 15 are meant for
        photographs of some hundred pixels. 0 asks for the mask itself. It shapes the program.

    Returns:
      `[N]`, 0 or 1; where several places are equally strong the share of them that hit, so that a
      constant map scores as chance would. NaN where the mask is empty or the attribution holds NaN.
      The paper's accuracy is the mean for each class, then over classes.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> a = jnp.array([[[0.0, 3.0, 1.0]]])
      >>> mask = jnp.array([[[1, 0, 0]]])
      >>> [pointing_game(a, mask, tolerance=t).tolist() for t in (0, 1)]
      [[0.0], [1.0]]

    Reference:
      Zhang et al. 2016, arXiv:1608.00507, section 4.2. Quantus 0.6.0 has no tolerance, counts a hit
      where any of the strongest places hits (a constant map always does), and an empty mask as one.
    """
    a, inside = on_places("pointing_game", attribution, mask)
    near = in_rows(_dilated(inside, tolerance))
    a, mask_rows = in_rows(a), in_rows(inside)
    strongest = (a == a.max(1, keepdims=True)).astype(a.dtype)
    hits = (strongest * near.astype(a.dtype)).sum(1) / jnp.maximum(strongest.sum(1), 1)
    empty = mask_rows.sum(1) == 0
    return nan_where_not_finite(jnp.where(empty, jnp.nan, hits), a)


def _dilated(inside, tolerance):
    """The places within so many pixels of a mask."""
    # No further than the map is wide, whatever was asked for.
    reach = [min(int(tolerance), n - 1) for n in inside.shape[1:]]
    if not any(reach):
        return inside
    grid = np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij")
    ball = sum(np.square(g) for g in grid) <= tolerance**2
    kernel = jnp.asarray(ball, jnp.float32)[None, None]
    one = [1] * len(reach)
    a = inside.astype(jnp.float32)[:, None]
    return jax.lax.conv_general_dilated(a, kernel, one, [(r, r) for r in reach])[:, 0] > 0.5


@measure()
def relevance_mass(attribution: jax.Array, mask: jax.Array) -> jax.Array:
    """Which share of the positive attribution lies on the object. Higher is better: 1 is all.

    sum over the mask of max(a, 0), over the sum of max(a, 0)

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up first. Take
        `jnp.abs` where the sign says nothing.
      mask: `[N, *space]`, true (not 0) on the object.

    Returns:
      `[N]`, in [0, 1]. NaN where nothing is positive, the mask is empty, or one holds NaN.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> relevance_mass(jnp.array([[3.0, 1.0, -5.0]]), jnp.array([[1, 0, 0]])).tolist()
      [0.75]

    Reference:
      Arras et al. 2022, arXiv:2003.07258, eq. 2, with the pooling "sum,pos" of channels. Quantus
      takes signed values unless told otherwise, whose share may be below 0 or above 1.
    """
    return _mass("relevance_mass", attribution, mask)


@measure()
def energy_based_pointing(attribution: jax.Array, mask: jax.Array) -> jax.Array:
    """Which share of a map's energy lies in the object's box. Higher is better: 1 is all.

    The number of `relevance_mass`: the energy is what a map has above 0.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up first.
      mask: `[N, *space]`, true (not 0) in the box: `boxes_to_masks` makes it.

    Returns:
      `[N]`, in [0, 1]; NaN as for `relevance_mass`.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> energy_based_pointing(jnp.array([[3.0, 1.0, -5.0]]), jnp.array([[1, 0, 0]])).tolist()
      [0.75]

    Reference:
      Wang et al. 2020 (Score-CAM), arXiv:1910.01279, section 4.3.
    """
    return _mass("energy_based_pointing", attribution, mask)


@measure("weighted")
def attribution_localisation(
    attribution: jax.Array, mask: jax.Array, *, weighted: bool = False
) -> jax.Array:
    """Inside over total: the object's share of the positive attribution. Higher is better.

    R_in / R_tot; weighted: times S_tot / S_in, so that 1 is what an even map has.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up first.
      mask: `[N, *space]`, true (not 0) on the object.
      weighted: Whether to weigh by the area of the object, S_in places of S_tot.

    Returns:
      `[N]`, in [0, 1]; weighted, in [0, S_tot / S_in]. NaN as for `relevance_mass`.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> a, mask = jnp.array([[3.0, 1.0, -5.0]]), jnp.array([[1, 0, 0]])
      >>> attribution_localisation(a, mask, weighted=True).tolist()
      [2.25]

    Reference:
      Kohlbrenner et al. 2020, arXiv:1910.09840, eq. 8 and 9. Quantus 0.6.0 multiplies by
      S_in / S_tot where the paper divides, and takes the size of several examples for S_tot.
    """
    name = "attribution_localisation"
    found = _mass(name, attribution, mask)
    if not weighted:
        return found
    _, inside = on_places(name, attribution, mask)
    rows = in_rows(inside)
    return found * share(jnp.full(len(rows), rows.shape[1], rows.dtype), rows.sum(1))


@measure()
def focus(attribution: jax.Array, mask: jax.Array) -> jax.Array:
    """Which share of the positive attribution lies in the cells of the class. Higher is better.

    Of a mosaic of images, explained for a class: `mosaics` makes them and the mask of their cells.
    The number of `relevance_mass`. By chance it is the share of the mosaic that the cells take.

    Args:
      attribution: `[N, *space]`, of mosaics, or with an axis of channels more, which is summed up.
      mask: `[N, *space]`, true (not 0) in the cells of the explained class.

    Returns:
      `[N]`, in [0, 1]; NaN as for `relevance_mass`.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> focus(jnp.array([[[3.0, 1.0], [0.0, -2.0]]]), jnp.array([[[1, 0], [0, 0]]])).tolist()
      [0.75]

    Reference:
      Arias-Duart et al. 2022, arXiv:2109.15035, eq. 1; Boehle et al. 2021, arXiv:2104.00032, eq. 10
      (the grid pointing game). Quantus clips before it adds up channels; here they are added first.
    """
    return _mass("focus", attribution, mask)


def _mass(name, attribution, mask):
    a, inside = on_places(name, attribution, mask)
    positive = jnp.maximum(a, 0)
    # In units of the largest, so that small maps do not vanish.
    largest = positive.reshape(len(a), -1).max(1)
    positive = positive / jnp.where(largest == 0, 1, largest).reshape(-1, *[1] * (a.ndim - 1))
    found = share(sums(jnp.where(inside, positive, 0)), sums(positive))
    empty = ~in_rows(inside).any(1)
    return nan_where_not_finite(jnp.where(empty, jnp.nan, found), a)


@measure()
def relevance_rank(attribution: jax.Array, mask: jax.Array) -> jax.Array:
    """Which share of the K strongest places lies on an object of K places. Higher is better.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up.
      mask: `[N, *space]`, true (not 0) on the object.

    Returns:
      `[N]`, in [0, 1]. Equal values share the places left for them: a constant map scores the
      object's share of the map. NaN where the mask is empty or the attribution holds NaN.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> relevance_rank(jnp.array([[3.0, 2.0, 1.0, 0.0]]), jnp.array([[1, 0, 1, 0]])).tolist()
      [0.5]

    Reference:
      Arras et al. 2022, arXiv:2003.07258, eq. 3. Quantus breaks ties by the order of the places.
    """
    a, inside = on_places("relevance_rank", attribution, mask)
    a, inside = in_rows(a), in_rows(inside)
    return _top(a, inside, inside.sum(1))


@measure("k")
def top_k_intersection(attribution: jax.Array, mask: jax.Array, *, k: int = 1000) -> jax.Array:
    """Which share of the k strongest places lies on the object. Higher is better.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up.
      mask: `[N, *space]`, true (not 0) on the object.
      k: How many places, from 1 to all of them. It shapes the program.

    Returns:
      `[N]`, in [0, 1]; at most K / k for an object of K < k places. Equal values share the places
      left for them. NaN where the mask is empty or the attribution holds NaN.

    Raises:
      ValueError: The mask has other places than the attribution, or there are fewer than `k`.

    Example:
      >>> top_k_intersection(jnp.array([[3.0, 2.0, 1.0]]), jnp.array([[1, 0, 1]]), k=2).tolist()
      [0.5]

    Reference:
      Theiner et al. 2021, arXiv:2104.14995, section 3.3; k = 1000 there.
    """
    name = "top_k_intersection"
    a, inside = on_places(name, attribution, mask)
    a, inside = in_rows(a), in_rows(inside)
    check_k(name, k, a.shape[1])
    return _top(a, inside, jnp.full(len(a), k, a.dtype))


def _top(a, inside, count):
    found = share((top_weights(a, count) * inside.astype(a.dtype)).sum(1), count.astype(a.dtype))
    empty = inside.sum(1) == 0
    return nan_where_not_finite(jnp.where(empty, jnp.nan, found), a)


@measure()
def auc(attribution: jax.Array, mask: jax.Array) -> jax.Array:
    """The area under the ROC curve of a map that tells the object from the rest. Higher is better.

    The chance that a place on the object is stronger than one beside it, ties counting half.

    Args:
      attribution: `[N, *space]`, or with an axis of channels more, which is summed up.
      mask: `[N, *space]`, true (not 0) on the object.

    Returns:
      `[N]`, in [0, 1]; 1/2 for a constant map. NaN where the mask is empty or full, or the
      attribution holds NaN.

    Raises:
      ValueError: The mask has other places than the attribution.

    Example:
      >>> auc(jnp.array([[3.0, 2.0, 1.0, 2.0]]), jnp.array([[1, 1, 0, 0]])).tolist()
      [0.875]

    Reference:
      Fawcett 2006, "An introduction to ROC analysis", section 7 (the Mann-Whitney statistic).
    """
    a, inside = on_places("auc", attribution, mask)
    a, inside = in_rows(a), in_rows(inside)
    inside = inside.astype(a.dtype)
    total = a.shape[1]
    ones = inside.sum(1)
    # About the mean rank, so that sums of large ranks keep their digits.
    off = ((ranks(a) - (total + 1) / 2) * inside).sum(1) / total
    half = ones * (total - ones) / total
    found = 0.5 + share(off, half)
    return nan_where_not_finite(found, a)


@measure("shape", boxes=numbers_list)
def boxes_to_masks(boxes: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Masks of boxes: true for the pixels whose centre lies in one of an image's boxes.

    Args:
      boxes: `[N, B, 4]`, or `[N, 4]` for one box an image: `(x0, y0, x1, y1)` in pixels, from the
        left and the top, x1 and y1 outside. An image with fewer boxes has empty ones (all 0).
      shape: Of the masks, `(H, W)`.

    Returns:
      `[N, H, W]`, True and False. A box outside the image has no pixels; NaN is in no box.

    Raises:
      ValueError: `boxes` or `shape` is none of these.

    Example:
      >>> boxes_to_masks(jnp.array([[1, 0, 3, 1]]), (2, 4)).astype(int).tolist()
      [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    boxes = jnp.asarray(boxes)
    boxes = boxes[:, None] if boxes.ndim == 2 else boxes
    if boxes.ndim != 3 or boxes.shape[2] != 4 or len(shape) != 2:
        raise ValueError(
            "boxes_to_masks: boxes must be [N, B, 4] or [N, 4], and shape (H, W); got boxes "
            f"{boxes.shape}, shape {tuple(shape)}. Each box is (x0, y0, x1, y1)."
        )
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32), 2, 0)
    height, width = shape

    def between(low, high, count):
        centre = (jnp.arange(count, dtype=jnp.float32) + 0.5)[None, None, :]
        return (centre >= low[:, :, None]) & (centre < high[:, :, None])

    rows, columns = between(y0, y1, height), between(x0, x1, width)
    return (rows[:, :, :, None] & columns[:, :, None, :]).any(1)
