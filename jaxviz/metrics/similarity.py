"""How alike two attributions are, example by example: rank and linear correlation, SSIM, cosine."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import tree
from jaxviz.calls.models import shapes_of
from jaxviz.metrics.maps import (
    in_rows,
    measure,
    nan_where_not_finite,
    ranks,
    scaled,
    top_weights,
)

Similarity = Literal["spearman", "pearson", "ssim", "cosine"] | Callable[[Any, Any], jax.Array]

_MAPS = {"a": tree, "b": tree}


@measure(**_MAPS)
def spearman(a: Any, b: Any) -> jax.Array:
    """Rank correlation of two attributions; 1 is the same order, 0 none, -1 the reverse.

    Pearson's correlation of the ranks of all numbers of an example, equal ones sharing the mean of
    their ranks.

    Args:
      a: `[N, ...]`, or a pytree of such.
      b: The same shapes.

    Returns:
      `[N]`, in [-1, 1]; NaN where either map is constant or holds NaN.

    Raises:
      ValueError: The shapes differ, or an example has no number.

    Example:
      >>> spearman(jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[0.0, 5.0, 6.0]])).round(5).tolist()
      [1.0]
    """
    a, b = _both("spearman", a, b)
    return _correlation(ranks(a), ranks(b), a, b)


@measure(**_MAPS)
def pearson(a: Any, b: Any) -> jax.Array:
    """Linear correlation of two attributions; 1 is the same up to scale and shift, 0 none.

    Args:
      a: `[N, ...]`, or a pytree of such.
      b: The same shapes.

    Returns:
      `[N]`, in [-1, 1]; NaN where either map is constant or holds NaN.

    Raises:
      ValueError: The shapes differ, or an example has no number.

    Example:
      >>> round(float(pearson(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 5.0, 7.0]]))[0]), 6)
      1.0
    """
    a, b = _both("pearson", a, b)
    return _correlation(a, b, a, b)


@measure(**_MAPS)
def cosine(a: Any, b: Any) -> jax.Array:
    """Cosine of the angle between two attributions; 1 is the same direction, 0 a right angle.

    Args:
      a: `[N, ...]`, or a pytree of such.
      b: The same shapes.

    Returns:
      `[N]`, in [-1, 1]; NaN where either map is zero everywhere or holds NaN. SciPy's and Quantus'
      `cosine` is 1 less this: a distance.

    Raises:
      ValueError: The shapes differ, or an example has no number.

    Example:
      >>> cosine(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])).tolist()
      [0.0]
    """
    a, b = _both("cosine", a, b)
    return _cosine(scaled(a), scaled(b))


@measure(**_MAPS)
def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of two maps; 1 is the same picture.

    The mean over windows of 7 x 7 places of
    (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)), with sample
    (co)variances, c1 = (0.01 R)^2, c2 = (0.03 R)^2, R the range of both maps together.

    Args:
      a: `[N, L]`, `[N, H, W]`, or `[N, H, W, C]`, where the mean over channels is taken. Windows
        of a map narrower than 7 are as wide as it allows, an odd number.
      b: The same shape.

    Returns:
      `[N]`, at most 1; 1 where both maps are the same constant; NaN where one holds NaN.

    Raises:
      ValueError: The shapes differ, or are none of these.

    Example:
      >>> a = jnp.arange(64.0).reshape(1, 8, 8)
      >>> round(float(ssim(a, a)[0]), 6), bool(ssim(a, 63 - a)[0] < 0)
      (1.0, True)

    Reference:
      Wang et al. 2004, "Image quality assessment", eq. 13; windows and constants as scikit-image's
      `structural_similarity`. Quantus 0.6.0 flattens the maps first and slides a window of 7 along
      the rows joined up: no picture's similarity. Adebayo et al. 2018 compare pictures, as here.
    """
    one = jax.tree.structure(0)
    shapes = [jnp.shape(m) if jax.tree.structure(m) == one else () for m in (a, b)]
    if shapes[0] != shapes[1] or not 2 <= len(shapes[0]) <= 4 or 0 in shapes[0][1:]:
        raise ValueError(
            f"ssim: a and b must be maps [N, L], [N, H, W] or [N, H, W, C] of one shape; got "
            f"{shapes_of(a)} and {shapes_of(b)}. Reshape them, or take a rank correlation."
        )
    a, b = (in_rows(m).reshape(jnp.shape(m)) for m in (a, b))
    axes = tuple(range(1, min(a.ndim, 3)))
    size = _odd(min(7, *(a.shape[axis] for axis in axes)))
    window = [size if i in axes else 1 for i in range(a.ndim)]
    count = size ** len(axes)

    def mean(m):
        zero = np.zeros((), m.dtype)  # known, or the sum is any reduction, which has no gradient
        total = jax.lax.reduce_window(m, zero, jax.lax.add, window, [1] * m.ndim, "VALID")
        return total / count

    flat = in_rows(a), in_rows(b)
    low = jnp.minimum(*(m.min(1) for m in flat))
    extent = jnp.maximum(*(m.max(1) for m in flat)) - low
    # In units of the range, and about the middle: squares of large numbers would lose the digits.
    column = lambda v: v.reshape(-1, *[1] * (a.ndim - 1))
    scale = column(jnp.where(extent == 0, 1, extent))
    shift = column(low) / scale
    a, b = (m / scale - shift for m in (a, b))
    sample = count / max(count - 1, 1)
    ma, mb = mean(a), mean(b)
    va, vb = sample * (mean(a * a) - ma * ma), sample * (mean(b * b) - mb * mb)
    vab = sample * (mean(a * b) - ma * mb)
    c1, c2 = 0.01**2, 0.03**2
    ua, ub = ma + shift, mb + shift  # the means themselves, in units of the range
    found = (2 * ua * ub + c1) * (2 * vab + c2) / ((ua**2 + ub**2 + c1) * (va + vb + c2))
    found = found.reshape(len(a), -1).mean(1)
    return nan_where_not_finite(jnp.where(extent == 0, 1, found), *flat)


@measure("k", **_MAPS)
def top_k_overlap(a: Any, b: Any, k: int = 100) -> jax.Array:
    """Which share of the k strongest places two attributions have in common; 1 is all of them.

    Args:
      a: `[N, ...]`, or a pytree of such; the largest numbers are the strongest (take `jnp.abs`
        where the sign says nothing).
      b: The same shapes.
      k: How many places, from 1 to the numbers of an example.

    Returns:
      `[N]`, in [0, 1]. Equal numbers share the places left for them, so that two constant maps have
      k / D in common, as by chance. NaN where either map holds NaN.

    Raises:
      ValueError: The shapes differ, or there are fewer than `k` numbers.

    Example:
      >>> a, b = jnp.array([[3.0, 2.0, 1.0, 0.0]]), jnp.array([[3.0, 0.0, 2.0, 1.0]])
      >>> top_k_overlap(a, b, k=2).tolist()
      [0.5]

    Reference:
      Krishna et al. 2022, arXiv:2202.01602, "feature agreement".
    """
    name = "top_k_overlap"
    a, b = _both(name, a, b)
    check_k(name, k, a.shape[1])
    count = jnp.full(len(a), k)
    common = (top_weights(a, count) * top_weights(b, count)).sum(1)
    return nan_where_not_finite(common / k, a, b)


def check_k(name: str, k: int, most: int) -> None:
    """Refuses more places than there are."""
    if not 1 <= k <= most:
        raise ValueError(
            f"{name}: k must be in [1, {most}], the places of an example; got {k}. "
            f"Take {max(1, most // 10)}, say."
        )


NAMED = {"spearman": spearman, "pearson": pearson, "ssim": ssim, "cosine": cosine}


def similarity_of(name: str, similarity: Similarity) -> Callable[[Any, Any], jax.Array]:
    """The function that a name stands for; what a user's own gives is checked."""
    if isinstance(similarity, str):
        return NAMED[similarity]

    def checked(a, b):
        found = similarity(a, b)
        count = len(jax.tree.leaves(a)[0])
        if jnp.shape(found) != (count,):
            raise ValueError(
                f"{name}: similarity must be a function (a, b) -> [N] of attributions [N, ...]; it "
                f"returned {shapes_of(found)} for N = {count}. Reduce all axes but the first."
            )
        return found

    return checked


def _both(name, a, b):
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(m)] for m in (a, b)]
    if shapes[0] != shapes[1] or any(len(s) < 2 or 0 in s[1:] for s in shapes[0]):
        raise ValueError(
            f"{name}: a and b must be attributions [N, ...] of one shape; got {shapes_of(a)} and "
            f"{shapes_of(b)}. Sum over channels where one method has none."
        )
    return in_rows(a), in_rows(b)


def _odd(n):
    return n - (n + 1) % 2


def _cosine(a, b):
    norm = lambda m: jnp.sqrt(jnp.square(m).sum(1))
    sizes = norm(a) * norm(b)
    found = (a * b).sum(1) / jnp.where(sizes == 0, 1, sizes)
    return jnp.where(sizes == 0, jnp.nan, jnp.clip(found, -1, 1))


def _correlation(a, b, of_a, of_b):
    constant = lambda m: (m == m[:, :1]).all(1)
    centred = lambda m: m - m.mean(1, keepdims=True)
    found = _cosine(centred(scaled(a)), centred(scaled(b)))
    # Rounding leaves a constant a spread of its own.
    found = jnp.where(constant(of_a) | constant(of_b), jnp.nan, found)
    return nan_where_not_finite(found, of_a, of_b)
