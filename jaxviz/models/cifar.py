"""A small network for 32x32 colour images, such as CIFAR-10."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxviz.models.parts import flatten, max_pool


class CIFARNet(nn.Module):
    """Two valid 3x3 convolutions (32, 64), each with 2x2 max pooling; dense 64; dense 10.

    Layers: `conv1` `conv2` `dense1` `dense2`. 167,562 parameters.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> net = CIFARNet()
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> jax.eval_shape(net.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    num_classes: int = 10
    dtype: Any = None

    input_shape: ClassVar = (32, 32, 3)
    flattened: ClassVar = {"dense1": 64}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 32, 32, 3]`; `train` changes nothing here."""
        for number, features in enumerate((32, 64), start=1):
            x = nn.Conv(features, (3, 3), padding="VALID", dtype=self.dtype, name=f"conv{number}")(
                x
            )
            x = max_pool(nn.relu(x))
        x = nn.relu(nn.Dense(64, dtype=self.dtype, name="dense1")(flatten(x)))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="dense2")(x)
