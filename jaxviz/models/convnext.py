"""ConvNeXt: residual blocks of a wide depthwise convolution and two dense layers at each place."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.parts import (
    Mode,
    Step,
    check_size,
    conv,
    dense,
    drop_path,
    gelu,
    layer_norm,
    same,
    sequence,
)

_norm = layer_norm(1e-6)


class ConvNeXt(nn.Module):
    """ConvNeXt: patches of 4x4, four stages of blocks, each but the first after halving the sides.

    Layers: `features/0/0` cuts the patches, `features/1` `3` `5` `7` are the stages, whose blocks
    `0`, `1`, ... have `block/0` (7x7, a filter a channel), `block/2` (layer norm), `block/3` and
    `block/5` (dense, to four times the width and back); `features/2` `4` `6` halve the sides; last
    `classifier/0` (layer norm of the means) and `classifier/2`. Activations are exact GELUs. 28.6 M
    parameters (tiny). Images `[N, H, W, 3]` from 32x32.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      depths: Blocks of each stage; tiny has (3, 3, 9, 3), small (3, 3, 27, 3).
      widths: Channels of each stage.
      drop_path: In training, the chance that the last block is left out; earlier ones less.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(ConvNeXt().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      28589128

    Reference:
      Liu et al. 2022, arXiv:2201.03545, table 9, ConvNeXt-T; blocks' scales begin at 1e-6.
    """

    num_classes: int = 1000
    dtype: Any = None
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    drop_path: float = 0.1

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`; `train` leaves blocks out."""
        mode = Mode(train, self.dtype)
        check_size(x, 4 * 2 ** (len(self.depths) - 1), "ConvNeXt")
        steps = [sequence(conv(self.widths[0], 4, 4), _norm)]
        done, last = 0, max(1, sum(self.depths) - 1)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                steps += [sequence(_norm, conv(width, 2, 2))]
            rates = [self.drop_path * (done + i) / last for i in range(depth)]
            steps += [sequence(*map(_block, rates))]
            done += depth
        x = sequence(*steps)(x, "features", mode).mean((1, 2))
        return sequence(_norm, same, dense(self.num_classes))(x, "classifier", mode)


def _block(rate: float) -> Step:
    return lambda x, name, mode: Block(rate, mode, name=name)(x)


class Block(nn.Module):
    rate: float
    mode: Mode

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        steps = (conv(width, 7, 1, 3, depthwise=True), same, _norm)
        steps = (*steps, dense(4 * width), gelu, dense(width))
        y = sequence(*steps)(x, "block", self.mode)
        begins = nn.initializers.constant(1e-6)
        scale = self.param("layer_scale", begins, (width, 1, 1), jnp.float32)
        y = y * scale.reshape(1, 1, 1, width).astype(y.dtype)
        return x + drop_path(self.rate)(y, "drop", self.mode)
