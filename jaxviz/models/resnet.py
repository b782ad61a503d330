"""Residual networks: ResNet-18, 34 and 50 for photographs, ResNet-20 for 32x32 images."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.parts import Mode, Step, conv, max_pool, norm, sequence


class ResNet(nn.Module):
    """ResNet: a 7x7 convolution, pooling, four stages of residual blocks, the mean, a dense layer.

    Layers: `conv1` `bn1`, then `layer1` to `layer4`, whose blocks `0`, `1`, ... have `conv1` `bn1`
    `conv2` `bn2` (with bottlenecks `conv3` `bn3` too) and, where the shape changes, `downsample/0`
    and `1`; last `fc`. A layer's name is a path, such as `layer2/0/conv1`. Images `[N, H, W, 3]` of
    any size.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      depths: Blocks of each stage; ResNet-18 has (2, 2, 2, 2), ResNet-34 and 50 (3, 4, 6, 3).
      bottleneck: Whether a block is 1x1, 3x3, 1x1 to four times the width, rather than two 3x3.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(ResNet().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      11689512

    Reference:
      He et al. 2015, arXiv:1512.03385, table 1, option B: shortcuts are convolutions where the
      shape changes. A bottleneck takes its stride in the 3x3 convolution, as torchvision's does; in
      the paper it is the first 1x1.
    """

    num_classes: int = 1000
    dtype: Any = None
    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`.

        With `train`, batch normalisation uses (and updates) the batch's statistics.
        """
        mode = Mode(train, self.dtype)
        x = conv(64, 7, 2, 3, bias=False)(x, "conv1", mode)
        x = max_pool(nn.relu(norm(x, "bn1", mode)), 3, 2, 1)
        block = functools.partial(Block, bottleneck=self.bottleneck)
        x = _stages(x, self.depths, block, 64, mode)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x.mean((1, 2)))


class ResNet20(nn.Module):
    """The 20-layer residual network for CIFAR: three stages of three basic blocks, 16, 32, 64 wide.

    Layers: `conv1` `bn1`, then `layer1` to `layer3`, each with blocks `0` to `2` of `conv1` `bn1`
    `conv2` `bn2`, then the mean over space and `fc`: a layer's name is a path, such as
    `layer2/0/conv1`. 269,722 parameters and 1,376 running statistics.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> image = jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(ResNet20().init, jax.random.key(0), image)
      >>> variables["params"]["layer2"]["0"]["conv1"]["kernel"].shape
      (3, 3, 16, 32)

    Reference:
      He et al. 2015, arXiv:1512.03385, section 4.2, n = 3, option A: shortcuts without parameters.
      Where the shape changes, every second pixel is taken and the new channels are zeros, half of
      them before and half after the old ones (the paper does not say where they go).
    """

    num_classes: int = 10
    dtype: Any = None

    input_shape: ClassVar = (32, 32, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, 32, 32, 3]`.

        With `train`, batch normalisation uses (and updates) the batch's statistics.
        """
        mode = Mode(train, self.dtype)
        x = conv(16, 3, 1, 1, bias=False)(x, "conv1", mode)
        x = nn.relu(norm(x, "bn1", mode))
        x = _stages(x, (3, 3, 3), functools.partial(Block, padded=True), 16, mode)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x.mean((1, 2)))


def _stages(x, depths, block, width, mode):
    """Stages of blocks; from the second on each halves the sides and doubles the width."""
    for stage, depth in enumerate(depths):
        strides = (1 if stage == 0 else 2, *(1 for _ in range(depth - 1)))
        blocks = (_step(block, width * 2**stage, stride) for stride in strides)
        x = sequence(*blocks)(x, f"layer{stage + 1}", mode)
    return x


def _step(block, width, stride) -> Step:
    return lambda x, name, mode: block(width, stride, mode, name=name)(x)


class Block(nn.Module):
    width: int
    stride: int
    mode: Mode
    bottleneck: bool = False
    padded: bool = False  # the shortcut has no parameters: option A of the paper

    @nn.compact
    def __call__(self, x):
        width, stride = self.width, self.stride
        if self.bottleneck:
            table = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        else:
            table = ((width, 3, stride), (width, 3, 1))
        y = x
        for number, (features, size, step) in enumerate(table, start=1):
            y = nn.relu(y) if number > 1 else y
            y = conv(features, size, step, size // 2, bias=False)(y, f"conv{number}", self.mode)
            y = norm(y, f"bn{number}", self.mode)
        if x.shape != y.shape and self.padded:
            new = y.shape[-1] - x.shape[-1]
            x = x[:, ::stride, ::stride, :]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        elif x.shape != y.shape:
            projected = sequence(conv(y.shape[-1], 1, stride, bias=False), norm)
            x = projected(x, "downsample", self.mode)
        return nn.relu(y + x)
