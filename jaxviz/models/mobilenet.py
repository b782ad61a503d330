"""MobileNetV2: inverted residuals, depthwise convolutions between 1x1 ones."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxviz.models.parts import Mode, Step, conv, dense, dropout, norm, relu6, sequence

# Expansion, width, repeats and first stride of each stage: table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2: 17 inverted residuals between two convolutions, the mean, one dense layer.

    Layers: `features/0` to `features/18` and `classifier/1`, with torchvision's numbers below them:
    `features/2/conv/1/0` is the depthwise convolution of the second inverted residual. 3.5 M
    parameters. Images `[N, H, W, 3]` of any size.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(MobileNetV2().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      3504872

    Reference:
      Sandler et al. 2018, arXiv:1801.04381, table 2, at width 1.
    """

    num_classes: int = 1000
    dtype: Any = None

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`.

        With `train`, dropout is on and batch normalisation uses (and updates) the batch's
        statistics.
        """
        mode = Mode(train, self.dtype)
        steps = [_conv_norm(32, 3, 2)]
        for expansion, width, repeats, stride in _STAGES:
            strides = (stride, *(1 for _ in range(repeats - 1)))
            steps += [_inverted(expansion, width, stride) for stride in strides]
        x = sequence(*steps, _conv_norm(1280, 1))(x, "features", mode).mean((1, 2))
        return sequence(dropout(0.2), dense(self.num_classes))(x, "classifier", mode)


def _conv_norm(features: int, size: int, stride: int = 1, **options: bool) -> Step:
    return sequence(conv(features, size, stride, size // 2, bias=False, **options), norm, relu6)


def _inverted(expansion: int, width: int, stride: int) -> Step:
    return lambda x, name, mode: InvertedResidual(expansion, width, stride, mode, name=name)(x)


class InvertedResidual(nn.Module):
    expansion: int
    width: int
    stride: int
    mode: Mode

    @nn.compact
    def __call__(self, x):
        inner = self.expansion * x.shape[-1]
        widen = () if self.expansion == 1 else (_conv_norm(inner, 1),)
        depthwise = _conv_norm(inner, 3, self.stride, depthwise=True)
        y = sequence(*widen, depthwise, conv(self.width, 1, bias=False), norm)(x, "conv", self.mode)
        return x + y if x.shape == y.shape else y
