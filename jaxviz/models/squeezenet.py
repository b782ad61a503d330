"""SqueezeNet 1.0 and 1.1: fire modules, which squeeze channels before they expand them."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.parts import Mode, Step, check_size, conv, dropout, pool, relu, sequence

# The first convolution's width and size, and the squeezed channels of the fire modules after each
# of the three poolings; each half of what they expand to has four times as many.
_TABLES = {
    "1.0": (96, 7, ((16, 16, 32), (32, 48, 48, 64), (64,))),
    "1.1": (64, 3, ((16, 16), (32, 32), (48, 48, 64, 64))),
}


class SqueezeNet(nn.Module):
    """SqueezeNet: a convolution, eight fire modules, three overlapping poolings, no dense layer.

    Layers: `features/0`, fire modules such as `features/3` of `squeeze` `expand1x1` `expand3x3`,
    and `classifier/1`, a 1x1 convolution to the classes whose rectified maps are averaged: logits
    are never negative. 1.25 M (1.0) or 1.24 M (1.1) parameters. Images `[N, H, W, 3]` from 21x21
    (1.0) or 17x17 (1.1).

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      version: "1.0", or "1.1": as good at less than half the work.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(SqueezeNet().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      1235496

    Reference:
      Iandola et al. 2016, arXiv:1602.07360, table 1 (1.0); 1.1 is its authors' later one. Poolings
      keep a last window that the image does not fill, as torchvision's do.
    """

    num_classes: int = 1000
    dtype: Any = None
    version: str = "1.1"

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`; `train` turns dropout on."""
        mode = Mode(train, self.dtype)
        width, size, groups = _TABLES[self.version]
        check_size(x, size + 14, "SqueezeNet")
        steps = [conv(width, size, 2), relu]
        for squeezed in groups:
            steps += [pool(3, 2, ceil=True), *map(_fire, squeezed)]
        last = sequence(dropout(0.5), conv(self.num_classes, 1), relu)
        x = sequence(*steps)(x, "features", mode)
        return last(x, "classifier", mode).mean((1, 2))


def _fire(squeezed: int) -> Step:
    return lambda x, name, mode: Fire(squeezed, mode, name=name)(x)


class Fire(nn.Module):
    squeezed: int
    mode: Mode

    @nn.compact
    def __call__(self, x):
        x = nn.relu(conv(self.squeezed, 1)(x, "squeeze", self.mode))
        small = nn.relu(conv(4 * self.squeezed, 1)(x, "expand1x1", self.mode))
        large = nn.relu(conv(4 * self.squeezed, 3, 1, 1)(x, "expand3x3", self.mode))
        return jnp.concatenate([small, large], -1)
