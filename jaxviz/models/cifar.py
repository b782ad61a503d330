"""Networks for 32x32 colour images (CIFAR-10): a small plain one and a residual one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.parts import flatten, max_pool


class CIFARNet(nn.Module):
    """Two valid 3x3 convolutions (32, 64), each with 2x2 max pooling; dense 64; dense 10.

    Layers: `conv1` `conv2` `dense1` `dense2`. 167,562 parameters.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> net = CIFARNet()
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> jax.eval_shape(net.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    num_classes: int = 10
    dtype: Any = None

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


class ResNet20(nn.Module):
    """The 20-layer residual network for CIFAR: three stages of three basic blocks, 16, 32, 64 wide.

    Layers: `conv1` `bn1`, then `layer1` to `layer3`, each with `block0` to `block2` of `conv1`
      `bn1`
    `conv2` `bn2`, then the mean over space and `dense`: a layer's name is a path, such as
    `layer2/block0/conv1`. 269,722 parameters and 1,376 running statistics. Weights of PyTorch
    implementations with the same shortcuts fit (convolutions from OIHW to HWIO, dense transposed).

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> image = jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(ResNet20().init, jax.random.key(0), image)
      >>> variables["params"]["layer2"]["block0"]["conv1"]["kernel"].shape
      (3, 3, 16, 32)

    Reference:
      He et al. 2015, arXiv:1512.03385, section 4.2, n = 3, option A: shortcuts without parameters.
      Where the shape changes, every second pixel is taken and the new channels are zeros, half of
      them before and half after the old ones (the paper does not say where they go).
    """

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 32, 32, 3]`.

        With `train`, batch normalisation uses (and updates) the batch's statistics.
        """
        x = _conv(16, 1, self.dtype, "conv1")(x)
        x = nn.relu(_batch_norm(train, self.dtype, "bn1")(x))
        for number, features in enumerate((16, 32, 64), start=1):
            stride = 1 if number == 1 else 2
            x = _Stage(features, stride, self.dtype, name=f"layer{number}")(x, train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="dense")(x.mean((1, 2)))


class _Stage(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        for number in range(3):
            stride = self.stride if number == 0 else 1
            x = _Block(self.features, stride, self.dtype, name=f"block{number}")(x, train)
        return x


class _Block(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        y = _conv(self.features, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(_batch_norm(train, self.dtype, "bn1")(y))
        y = _conv(self.features, 1, self.dtype, "conv2")(y)
        y = _batch_norm(train, self.dtype, "bn2")(y)
        return nn.relu(y + _shortcut(x, self.features, self.stride))


def _shortcut(x, features, stride):
    new = features - x.shape[-1]
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


def _conv(features, stride, dtype, name):
    # Padding 1 on both sides, spelled out: "SAME" would pad only the far side when the stride is 2.
    return nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


def _batch_norm(train, dtype, name):
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )
