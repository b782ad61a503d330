"""A 3x3 convolution with fewer products than the sum takes: Winograd's minimal filtering.

Every square of m x m outputs reads a square of m + 2 by m + 2 inputs. Along each axis inputs and
kernel go over into their values at m + 2 points; there the convolution is a product number by
number: a matrix product over the channels for each pair of points. The outputs are read off those.
With m = 2 there are 4 products for an output, with m = 4 it is 2.25, where the plain sum has 9.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

_TAPS = 3
# Of a kernel's values at the points so many are kept from forward to backward; more are found
# again, for in a large net they would be most of the memory.
_MOST_KEPT = 2**21


class _Filter(NamedTuple):
    """`out @ ((kernel @ taps) * (into @ inputs))` is the filter along one axis.

    A kernel turned round has at each point what it had at the `inverse` one, times `turn`.
    """

    into: np.ndarray
    kernel: np.ndarray
    out: np.ndarray
    inverse: list[int]
    turn: np.ndarray


def _toom_cook(points: list[float], inverse: list[int]) -> _Filter:
    """The filter with values at these points and at infinity."""
    size = len(points) + 1
    outputs = size - _TAPS + 1
    into, kernel, out = np.zeros((size, size)), np.zeros((size, _TAPS)), np.zeros((outputs, size))
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        into[i, :-1] = np.poly(others)[::-1]
        kernel[i] = point ** np.arange(_TAPS) / np.prod(point - np.array(others))
        out[:, i] = point ** np.arange(outputs)
    into[-1] = np.poly(points)[::-1]
    kernel[-1, -1] = out[-1, -1] = 1
    turned, there = kernel[:, ::-1], kernel[inverse]
    turn = (turned * there).sum(1) / (there * there).sum(1)
    return _Filter(into, kernel, out, inverse, turn)


# With 2/3 and 3/2 rounding is half of what the usual 1 and 2 leave.
_FILTERS = {
    2: _toom_cook([0, 1, -1], [3, 1, 2, 0]),
    4: _toom_cook([0, 2 / 3, -2 / 3, 3 / 2, -3 / 2], [5, 3, 4, 1, 2, 0]),
}

MOST_SPREAD = 4  # side of the largest square that `spread` takes


def filters(size, steps, dtype, precision) -> bool:
    """Whether a convolution with a kernel of `size`, strides and dilations `steps` may be filtered.

    It was measured in 32 bits alone, and the highest precision asks for the sum, which rounds less.
    """
    return (
        list(size) == [_TAPS, _TAPS]
        and set(steps) == {1}
        and dtype == jnp.float32
        and precision != (lax.Precision.HIGHEST,) * 2
    )


def winograd(x, kernel, padding, outputs=2, precision=None, turned=False):
    """Convolution of stride 1 with a 3x3 kernel, equal up to rounding.

    Of a result in 32 bits over 512 channels the rounding is 0.6e-6 of its norm, with 4 outputs
    1.2e-6, where the plain sum's is 0.2e-6. What becomes of the kernel is the same both ways, but
    for large kernels, and XLA takes it out of a loop.

    Args:
      x: `[N, H, W, C]`, floating; `[N, H, W, O]` if `turned`.
      kernel: `[3, 3, C, O]`, dtype of `x`.
      padding: Pairs (low, high) for height and width; negative ones crop.
      outputs: Side of the squares of outputs, 2 or 4.
      precision: Of the matrix products.
      turned: Whether the kernel is turned round and its channels swapped first: the way back from
        a convolution's gradient to its input's.

    Returns:
      `[N, H + low + high - 2, W + low + high - 2, O]`; C channels if `turned`.

    Example:
      >>> import jax
      >>> x, kernel = jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1))
      >>> winograd(x, kernel, ((1, 1), (1, 1)))[0, :2, :3, 0].tolist()
      [[4.0, 6.0, 6.0], [6.0, 9.0, 9.0]]

    Reference:
      Lavin and Gray 2015, arXiv:1509.09308, sections 4.1 and 4.2, with other points.
    """
    f = _FILTERS[outputs]
    into, taps, out = f.into, f.kernel, f.out
    if turned and len(into) ** 2 * math.prod(kernel.shape[2:]) > _MOST_KEPT:
        taps = taps[:, ::-1]
    elif turned:  # the points are taken in the order of their inverses, the kernel stays as it is
        into, out = into[f.inverse], (out * f.turn)[:, f.inverse]
    size = [n + low + high - 2 for n, (low, high) in zip(x.shape[1:3], padding, strict=True)]
    tall, wide = [-(-n // outputs) for n in size]
    ends = [(low, high + -n % outputs, 0) for n, (low, high) in zip(size, padding, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])

    # Barriers keep in memory what several of the next results read: XLA would find it again for
    # each. Points of the height are an axis; those of the width are separate arrays.
    lines = lax.optimization_barrier(jnp.stack(_combined(into, _steps(x, 1, tall, outputs))))
    columns = _combined(into, _steps(lines, 3, wide, outputs))
    axes = (((4,), (2 if turned else 1,)), ((0,), (0,)))
    products = [
        lax.dot_general(v, k, axes, precision)
        for v, k in zip(columns, _kernels(taps, kernel, precision), strict=True)
    ]
    rows = lax.optimization_barrier(_combined(out, products))
    whole = jnp.stack([jnp.stack(_combined(out, list(r)), 2) for r in rows], 4)
    whole = whole.reshape(len(x), tall * outputs, wide * outputs, -1)
    return whole[:, : size[0], : size[1]]


def spread(x, kernel, precision=None):
    """What a convolution of stride 1 with a 3x3 kernel makes of a few numbers amid zeros.

    The filter transposed: a square of up to 4x4 goes over into its values at 6x6 points, these
    times the kernel's into a square with 2 more a side. There are 36 products where the sum has 9
    for each of up to 36 outputs, and all steps are matrix products.

    Args:
      x: `[N, H, W, C]`, floating, H and W at most 4.
      kernel: `[3, 3, C, O]`, dtype of `x`.
      precision: Of the matrix products.

    Returns:
      `[N, H + 2, W + 2, O]`: up to rounding the convolution of `x` with two zeros on each side.

    Example:
      >>> x, kernel = jnp.ones((1, 1, 2, 1)), jnp.ones((3, 3, 1, 1))
      >>> spread(x, kernel)[0, 0, :, 0].round(5).tolist()
      [1.0, 2.0, 2.0, 1.0]

    Reference:
      Lavin and Gray 2015, arXiv:1509.09308, sections 4.1 and 4.2, their filter transposed.
    """
    f, (n, h, w, channels) = _FILTERS[MOST_SPREAD], x.shape

    # Axes stay as they are between products: under `vmap` a reshape would move its axis each time.
    def through(rows, columns, numbers):
        matrix = jnp.asarray(np.kron(rows, columns), x.dtype)
        return lax.dot_general(matrix, numbers, (((1,), (0,)), ((), ())), precision)

    square = x.transpose(1, 2, 0, 3).reshape(h * w, n, channels)
    values = through(f.out.T[:, :h], f.out.T[:, :w], square)
    turned = f.kernel[:, ::-1]
    kernels = through(turned, turned, kernel.reshape(_TAPS**2, *kernel.shape[2:]))
    products = lax.dot_general(values, kernels, (((2,), (1,)), ((0,), (0,))), precision)
    h, w = h + _TAPS - 1, w + _TAPS - 1
    y = through(f.into.T[:h], f.into.T[:w], products)
    return y.reshape(h, w, n, -1).transpose(2, 0, 1, 3)


def _kernels(taps, kernel, precision):
    """For each point of the width the kernel's values at all points of the height: `[m, C, O]`.

    Matrix products, for these XLA takes out of a loop; fused sums it does not.
    """
    size = len(taps)
    flat = kernel.reshape(_TAPS**2, -1)
    pairs = np.einsum("ia,jb->jiab", taps, taps).reshape(size, size, -1)
    values = [lax.dot(jnp.asarray(m, kernel.dtype), flat, precision=precision) for m in pairs]
    return [v.reshape(size, *kernel.shape[2:]) for v in values]


def _steps(x, axis, count, step):
    """For each place of a square along an axis its numbers in all `count` squares."""
    reach = (count - 1) * step + 1
    return [lax.slice_in_dim(x, i, i + reach, step, axis) for i in range(step + _TAPS - 1)]


def _combined(matrix, arrays):
    """`matrix @ arrays`, entry by entry."""
    pairs = lambda row: [(f, a) for f, a in zip(row, arrays, strict=True) if f]
    scaled = lambda f, a: a if f == 1 else a * jnp.array(f, a.dtype)
    return [sum(scaled(f, a) for f, a in pairs(row)) for row in matrix]
