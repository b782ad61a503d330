"""What the bundled networks are made of: pooling, flattening, and tables of numbered steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Mode(NamedTuple):
    """What every step of a network needs to know: training or not, and the computation's dtype."""

    train: bool = False
    dtype: Any = None


Step = Callable[[jax.Array, str, Mode], jax.Array]
"""One step of a `Sequence`: `(x, name, mode) -> x`; what has parameters is made under that name."""


class Sequence(nn.Module):
    """Steps one after another, each named by its number, as in PyTorch's container of that kind.

    Steps without parameters (activations, poolings) count too, so that numbers are PyTorch's.

    Attributes:
      steps: The table.
      mode: What is handed to each step.
    """

    steps: tuple[Step, ...]
    mode: Mode

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The last step's output."""
        for number, step in enumerate(self.steps):
            x = step(x, str(number), self.mode)
        return x


def sequence(*steps: Step) -> Step:
    """Steps as one step, which has their names below its own."""
    return lambda x, name, mode: Sequence(steps, mode, name=name)(x)


def plain(function: Callable[[jax.Array], jax.Array]) -> Step:
    """A function without parameters as a step."""
    return lambda x, name, mode: function(x)


relu, relu6 = plain(nn.relu), plain(nn.relu6)


def conv(
    features: int,
    size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    bias: bool = True,
    depthwise: bool = False,
) -> Step:
    """A square convolution, as many zeros on all four sides; `depthwise`: one filter a channel."""
    # "SAME" would pad only the far side where the stride is 2.
    return lambda x, name, mode: nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        feature_group_count=features if depthwise else 1,
        use_bias=bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=mode.dtype,
        name=name,
    )(x)


def norm(x: jax.Array, name: str, mode: Mode) -> jax.Array:
    """Batch normalisation, epsilon 1e-5; running statistics keep nine tenths at each step."""
    return nn.BatchNorm(
        use_running_average=not mode.train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=mode.dtype,
        name=name,
    )(x)


def dense(features: int) -> Step:
    """A matrix and a bias."""
    return lambda x, name, mode: nn.Dense(features, dtype=mode.dtype, name=name)(x)


def dropout(rate: float) -> Step:
    """Zeros in training, the identity otherwise."""
    return lambda x, name, mode: nn.Dropout(rate, deterministic=not mode.train, name=name)(x)


def pool(size: int, stride: int, *, ceil: bool = False) -> Step:
    """`max_pool` as a step."""
    return plain(lambda x: max_pool(x, size, stride, ceil=ceil))


def max_pool(
    x: jax.Array, size: int = 2, stride: int = 2, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """Largest value of each window of `[N, H, W, C]`.

    A last window that the image does not fill is dropped, or with `ceil` cut at the edge; one that
    would start beyond the image is dropped anyway.

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> max_pool(x)[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
      >>> max_pool(x, 3)[0, :, :, 0].tolist(), max_pool(x, 3, ceil=True)[0, :, :, 0].tolist()
      ([[10.0]], [[10.0, 11.0], [14.0, 15.0]])
    """
    pads: Any = []  # nn.max_pool's annotation knows its words alone
    for length in x.shape[1:3]:
        rest = (length + 2 * padding - size) % stride
        # The window that begins with these `rest` numbers, unless all it holds is padding.
        partial = ceil and rest > 0 and size - stride + rest > padding
        pads.append((padding, padding + (stride - rest if partial else 0)))
    return nn.max_pool(x, (size, size), (stride, stride), pads)


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Means of `[N, H, W, C]` over `size` x `size` regions that cover it: `[N, size, size, C]`.

    Region i of a side of length L goes from `floor(i * L / size)` to `ceil((i + 1) * L / size)`, so
    that regions overlap where `size` does not divide L, and repeat where L is smaller.

    Example:
      >>> adaptive_mean(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
      [[2.0, 3.0], [5.0, 6.0]]
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length != size:
            weights = jnp.asarray(_regions(length, size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, ((axis,), (0,))), -1, axis)
    return x


def _regions(length: int, size: int) -> np.ndarray:
    weights = np.zeros((length, size))
    for i in range(size):
        start, stop = i * length // size, math.ceil((i + 1) * length / size)
        weights[start:stop, i] = 1 / (stop - start)
    return weights


def check_size(x: jax.Array, smallest: int, net: str) -> None:
    """Refuses images that the poolings of a network would leave nothing of."""
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"{net}: images must be [N, H, W, C] with sides of {smallest} or more; got {x.shape}. "
            "Enlarge them."
        )


def flatten(x: jax.Array) -> jax.Array:
    """All axes but the first in one: `[N, H, W, C] -> [N, H * W * C]`.

    Example:
      >>> flatten(jnp.zeros((2, 3, 4, 5))).shape
      (2, 60)
    """
    return x.reshape(x.shape[0], -1)
