"""EfficientNet: inverted residuals whose channels are weighed by what all places say of them."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxviz.models.parts import (
    Mode,
    Step,
    conv,
    dense,
    drop_path,
    dropout,
    norm,
    sequence,
    silu,
)

# Expansion, size of the depthwise filters, width, repeats and first stride of each stage: table 1
# of the paper, with the strides of the authors' code.
_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(nn.Module):
    """EfficientNet-B0: 16 inverted residuals with squeeze and excitation, the mean, a dense layer.

    Layers: `features/0` to `features/8` and `classifier/1`, with torchvision's numbers below them:
    `features/2/0/block/1/0` is a depthwise convolution, `features/2/0/block/2` the excitation of
    `fc1` `fc2`. 5.3 M parameters. Images `[N, H, W, 3]` of any size.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      stages: Expansion, size of the depthwise filters, width, repeats and first stride of each.
      width: Channels of the first convolution; the last one has four times the last stage's.
      drop_path: In training, the chance that the last residual is left out; earlier ones less.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(EfficientNet().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      5288548

    Reference:
      Tan & Le 2019, arXiv:1905.11946, table 1; squeeze and excitation: Hu et al. 2017,
      arXiv:1709.01507.
    """

    num_classes: int = 1000
    dtype: Any = None
    stages: tuple[tuple[int, int, int, int, int], ...] = _B0
    width: int = 32
    drop_path: float = 0.2

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`.

        With `train`, dropout is on and batch normalisation uses (and updates) the batch's
        statistics.
        """
        mode = Mode(train, self.dtype)
        steps = [_conv_norm(self.width, 3, 2)]
        done, total = 0, sum(repeats for *_, repeats, _ in self.stages)
        for expansion, size, width, repeats, stride in self.stages:
            strides = (stride, *(1 for _ in range(repeats - 1)))
            rates = [self.drop_path * (done + i) / total for i in range(repeats)]
            blocks = zip(strides, rates, strict=True)
            steps += [sequence(*(_inverted(expansion, size, width, s, r) for s, r in blocks))]
            done += repeats
        steps += [_conv_norm(4 * self.stages[-1][2], 1)]
        x = sequence(*steps)(x, "features", mode).mean((1, 2))
        return sequence(dropout(0.2), dense(self.num_classes))(x, "classifier", mode)


def _conv_norm(features: int, size: int, stride: int = 1, **options: bool) -> Step:
    return sequence(conv(features, size, stride, size // 2, bias=False, **options), norm, silu)


def _inverted(expansion: int, size: int, width: int, stride: int, rate: float) -> Step:
    return lambda x, name, mode: MBConv(expansion, size, width, stride, rate, mode, name=name)(x)


class MBConv(nn.Module):
    expansion: int
    size: int
    width: int
    stride: int
    rate: float
    mode: Mode

    @nn.compact
    def __call__(self, x):
        inner, squeezed = self.expansion * x.shape[-1], max(1, x.shape[-1] // 4)
        widen = () if self.expansion == 1 else (_conv_norm(inner, 1),)
        steps = (
            *widen,
            _conv_norm(inner, self.size, self.stride, depthwise=True),
            lambda x, name, mode: Excitation(squeezed, mode, name=name)(x),
            sequence(conv(self.width, 1, bias=False), norm),
        )
        y = sequence(*steps)(x, "block", self.mode)
        return x + drop_path(self.rate)(y, "drop", self.mode) if x.shape == y.shape else y


class Excitation(nn.Module):
    squeezed: int
    mode: Mode

    @nn.compact
    def __call__(self, x):
        weights = x.mean((1, 2), keepdims=True)
        weights = nn.silu(conv(self.squeezed, 1)(weights, "fc1", self.mode))
        return nn.sigmoid(conv(x.shape[-1], 1)(weights, "fc2", self.mode)) * x
