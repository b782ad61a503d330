"""Three small convolutional networks for 28x28 images of one channel, such as MNIST."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxviz.models.parts import flatten, max_pool


class MNISTNetA(nn.Module):
    """Three convolutions (24, 48, 64; 3x3, same), each with 2x2 max pooling; dense 128; dense 10.

    Layers: `conv1` `conv2` `conv3` `dense1` `dense2`, and `dropout` between the dense ones. 113,514
    parameters. The maps after the last convolution are 7x7 (3x3 once pooled), fine enough for class
    activation maps.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> net = MNISTNetA()
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> jax.eval_shape(net.apply, variables, jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """

    num_classes: int = 10
    dtype: Any = None

    input_shape: ClassVar = (28, 28, 1)
    flattened: ClassVar = {"dense1": 64}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 28, 28, 1]`; `train` turns dropout on."""
        for number, features in enumerate((24, 48, 64), start=1):
            x = nn.Conv(features, (3, 3), dtype=self.dtype, name=f"conv{number}")(x)
            x = max_pool(nn.relu(x))
        x = nn.relu(nn.Dense(128, dtype=self.dtype, name="dense1")(flatten(x)))
        x = nn.Dropout(0.25, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="dense2")(x)


class MNISTNetB(nn.Module):
    """Two valid 3x3 convolutions (32, 64), one pooling, dense 128, dense 10, dropout twice.

    Layers: `conv1` `conv2` `dropout1` `dense1` `dropout2` `dense2`. 1,199,882 parameters, most of
    them in `dense1`. The maps after `conv2` are 24x24: the sharpest of the three nets.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(MNISTNetB().init, jax.random.key(0), image)
      >>> variables["params"]["dense1"]["kernel"].shape
      (9216, 128)
    """

    num_classes: int = 10
    dtype: Any = None

    input_shape: ClassVar = (28, 28, 1)
    flattened: ClassVar = {"dense1": 64}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 28, 28, 1]`; `train` turns dropout on."""
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", dtype=self.dtype, name="conv1")(x))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID", dtype=self.dtype, name="conv2")(x))
        x = nn.Dropout(0.25, deterministic=not train, name="dropout1")(max_pool(x))
        x = nn.relu(nn.Dense(128, dtype=self.dtype, name="dense1")(flatten(x)))
        x = nn.Dropout(0.5, deterministic=not train, name="dropout2")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="dense2")(x)


class MNISTNetC(nn.Module):
    """Valid convolutions 32 (3x3), 64 (2x2), each pooled and batch-normalised; dense 256, 10.

    Layers: `conv1` `bn1` `conv2` `bn2` `dropout` `dense1` `dense2`. 601,418 parameters and 192
    running statistics. Batch normalisation stands *after* pooling here, so folding it into the
    convolution before it would change the function: a case an explanation method must get right.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(MNISTNetC().init, jax.random.key(0), image)
      >>> sorted(variables)
      ['batch_stats', 'params']
    """

    num_classes: int = 10
    dtype: Any = None

    input_shape: ClassVar = (28, 28, 1)
    flattened: ClassVar = {"dense1": 64}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 28, 28, 1]`.

        With `train`, dropout is on and batch normalisation uses (and updates) the batch's
        statistics.
        """
        for number, (features, size) in enumerate(((32, 3), (64, 2)), start=1):
            x = nn.Conv(
                features, (size, size), padding="VALID", dtype=self.dtype, name=f"conv{number}"
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, dtype=self.dtype, name=f"bn{number}"
            )(max_pool(nn.relu(x)))
        x = nn.Dropout(0.5, deterministic=not train, name="dropout")(flatten(x))
        x = nn.relu(nn.Dense(256, dtype=self.dtype, name="dense1")(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="dense2")(x)
