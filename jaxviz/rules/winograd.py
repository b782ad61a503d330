"""A 3x3 convolution with 4 products for each output instead of 9: Winograd's minimal filtering.

Every 2x2 square of the output reads a 4x4 square of the input. Both squares and the kernel go over
into sums and differences of themselves, where the convolution is 16 products number by number: 16
matrix products over the channels, one for each of the 4x4 places. Their factors are 1, -1 and 1/2,
so rounding stays that of an ordinary convolution.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxviz.rules.windows import Windows, places

# One-dimensional F(2, 3): outputs = OUT @ ((KERNEL @ kernel) * (IN @ inputs)).
_IN = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
_OUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def winograd(x, kernel, padding, precision=None):
    """Convolution of stride 1 with a 3x3 kernel, equal up to rounding.

    Args:
      x: `[N, H, W, C]`, floating.
      kernel: `[3, 3, C, O]`, dtype of `x`.
      padding: Pairs (low, high) for height and width; negative ones crop.
      precision: Of the matrix products.

    Returns:
      `[N, H + low + high - 2, W + low + high - 2, O]`.

    Example:
      >>> import jax
      >>> x, kernel = jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1))
      >>> winograd(x, kernel, ((1, 1), (1, 1)))[0, :2, :3, 0].tolist()
      [[4.0, 6.0, 6.0], [6.0, 9.0, 9.0]]

    Reference:
      Lavin and Gray 2015, arXiv:1509.09308, section 4.1.
    """
    count, channels, outputs = len(x), *kernel.shape[2:]
    size = [n + low + high - 2 for n, (low, high) in zip(x.shape[1:3], padding, strict=True)]
    squares = [-(-n // 2) for n in size]
    pads = [(low, high + n % 2) for n, (low, high) in zip(size, padding, strict=True)]
    windows = Windows((1, 4, 4, 1), (1, 2, 2, 1), ((0, 0), *pads, (0, 0)), (1, 1, 1, 1))
    inputs = _transformed(_IN, places(x, windows))
    kernels = _transformed(_KERNEL, [kernel[i, j] for i in range(3) for j in range(3)])
    axes = (((1,), (0,)), ((), ()))
    products = [
        lax.dot_general(a.reshape(-1, channels), b, axes, precision)
        for a, b in zip(inputs, kernels, strict=True)
    ]
    parts = jnp.stack(_transformed(_OUT, products)).reshape(2, 2, count, *squares, outputs)
    whole = parts.transpose(2, 3, 0, 4, 1, 5).reshape(count, *(2 * n for n in squares), outputs)
    return whole[:, : size[0], : size[1]]


def _transformed(matrix, grid):
    """`matrix @ grid @ matrix.T` of a square grid of arrays, row after row."""
    size = matrix.shape[1]
    rows = [grid[i * size : (i + 1) * size] for i in range(size)]
    half = [[_combined(m, column) for column in zip(*rows, strict=True)] for m in matrix]
    return [_combined(m, row) for row, m in itertools.product(half, matrix)]


def _combined(factors, arrays):
    terms = ((f, a) for f, a in zip(factors, arrays, strict=True) if f)
    # Only 1, -1 and 1/2: negation and halving are exact.
    scaled = (a if f == 1 else -a if f == -1 else a * jnp.array(f, a.dtype) for f, a in terms)
    return functools.reduce(lambda a, b: a + b, scaled)
