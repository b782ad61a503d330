"""What the bundled networks share: 2x2 max pooling and flattening."""

import flax.linen as nn
import jax


def max_pool(x: jax.Array) -> jax.Array:
    """Largest value of each 2x2 window, stride 2; an odd last row or column is dropped.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    return nn.max_pool(x, (2, 2), (2, 2))


def flatten(x: jax.Array) -> jax.Array:
    """All axes but the first in one: `[N, H, W, C] -> [N, H * W * C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> flatten(jnp.zeros((2, 3, 4, 5))).shape
      (2, 60)
    """
    return x.reshape(x.shape[0], -1)
