"""What the bundled networks are made of: pooling, flattening, and tables of numbered steps."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.names import without_names


class Mode(NamedTuple):
    """What every step of a network needs to know: training or not, and the computation's dtype."""

    train: bool = False
    dtype: Any = None


Step = Callable[[jax.Array, str, Mode], jax.Array]
"""One step of a `Sequence`: `(x, name, mode) -> x`; what has parameters is made under that name."""


class Sequence(nn.Module):
    """Steps one after another, each with a name.

    Attributes:
      steps: The table of names and steps.
      mode: What is handed to each step.
    """

    steps: tuple[tuple[str, Step], ...]
    mode: Mode

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The last step's output."""
        for name, step in self.steps:
            x = step(x, name, self.mode)
        return x


def named(steps: Mapping[str, Step]) -> Step:
    """Steps by name as one step, which has their names below its own."""
    return lambda x, name, mode: Sequence(tuple(steps.items()), mode, name=name)(x)


def sequence(*steps: Step) -> Step:
    """`named` by number, as in PyTorch's container of that kind.

    Steps without parameters (activations, poolings) count too, so that numbers are PyTorch's.
    """
    return named({str(number): step for number, step in enumerate(steps)})


def plain(function: Callable[[jax.Array], jax.Array]) -> Step:
    """A function without parameters as a step."""
    return lambda x, name, mode: function(x)


relu, relu6, silu = plain(nn.relu), plain(nn.relu6), plain(nn.silu)
gelu = plain(functools.partial(nn.gelu, approximate=False))
same = plain(lambda x: x)
"""PyTorch's steps that change layouts alone, which are none here but have a number."""


_he_normal = jax.jit(nn.initializers.he_normal(), static_argnums=(1, 2))


def _kernels(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """He's initialiser. Flax asks for its shapes whenever a net is traced: JAX remembers them."""
    with without_names():
        return _he_normal(key, shape, dtype)


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
        kernel_init=_kernels,
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


def layer_norm(epsilon: float) -> Step:
    """Mean 0 and variance 1 over the channels of each place, then a scale and a bias a channel."""
    # By squares of differences, as PyTorch's: by means of squares, half the digits can be lost.
    return lambda x, name, mode: nn.LayerNorm(
        epsilon=epsilon, dtype=mode.dtype, use_fast_variance=False, name=name
    )(x)


def dense(features: int, *, bias: bool = True) -> Step:
    """A matrix and a bias."""
    return lambda x, name, mode: nn.Dense(features, use_bias=bias, dtype=mode.dtype, name=name)(x)


def attend(qkv: jax.Array, num_heads: int, bias: jax.Array | None = None) -> jax.Array:
    """Attention of tokens to each other: `[..., T, 3 * D] -> [..., T, D]`, softmax(q k' + bias) v.

    Args:
      qkv: Queries (before they are divided by the root of a head's width), keys and values, each
        one head after another.
      num_heads: Heads; they divide D.
      bias: `[..., num_heads, T, T]`, added to what the softmax takes.

    Example:
      >>> one = jnp.array([[[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]]])  # nothing is asked for: the mean
      >>> attend(one, 1).tolist()
      [[[2.0], [2.0]]]
    """
    width = qkv.shape[-1] // 3 // num_heads
    qkv = qkv.reshape(*qkv.shape[:-1], 3, num_heads, width)
    q, k, v = (qkv[..., part, :, :] for part in range(3))
    asked = jnp.einsum("...qhd,...khd->...hqk", q * width**-0.5, k)
    weights = nn.softmax(asked if bias is None else asked + bias)
    out = jnp.einsum("...hqk,...khd->...qhd", weights, v)
    return out.reshape(*out.shape[:-2], num_heads * width)


def mlp(features: int) -> Step:
    """Two dense layers, `features` numbers between them and as many after as before."""
    return lambda x, name, mode: sequence(dense(features), gelu, same, dense(x.shape[-1]))(
        x, name, mode
    )


def dropout(rate: float) -> Step:
    """Zeros in training, the identity otherwise."""
    return lambda x, name, mode: nn.Dropout(rate, deterministic=not mode.train, name=name)(x)


def drop_path(rate: float) -> Step:
    """In training, all zeros for some of the examples; the others divided by what is left."""

    def step(x, name, mode):
        if not mode.train:  # no layer then
            return x
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(rate, broadcast_dims=axes, deterministic=False, name=name)(x)

    return step


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


def mean_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Mean of each window of `[N, H, W, C]`; a last one that the image does not fill is dropped.

    Example:
      >>> mean_pool(jnp.arange(15.0).reshape(1, 3, 5, 1))[0, :, :, 0].tolist()
      [[3.0, 5.0]]
    """
    window = (size, size)
    # Flax's own divides by a whole number, which strict promotion of types refuses.
    return nn.pool(x, 0.0, jax.lax.add, window, window, "VALID") / float(size * size)


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
