"""DenseNet: each layer reads the channels of all layers before it in its block."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.names import OLDER_DENSENET
from jaxviz.models.parts import (
    Mode,
    Step,
    check_size,
    conv,
    dense,
    max_pool,
    mean_pool,
    named,
    norm,
    plain,
    relu,
)


class DenseNet(nn.Module):
    """DenseNet-BC: a 7x7 convolution, pooling, four dense blocks with transitions, a dense layer.

    Layers: `features/conv0` `norm0`, then `features/denseblock1` to `denseblock4`, whose
    `denselayer1`, `denselayer2`, ... have `norm1` `conv1` `norm2` `conv2`, between them
    `features/transition1` to `transition3` of `norm` `conv`; last `features/norm5` and
    `classifier`. 8.0 M parameters (DenseNet-121). Images `[N, H, W, 3]` from 29x29.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      depths: Layers of each block; DenseNet-121 has (6, 12, 24, 16).
      growth: Channels that each layer adds; its 1x1 convolution has four times as many.
      width: Channels of the first convolution.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(DenseNet().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      7978856

    Reference:
      Huang et al. 2016, arXiv:1608.06993, table 1, DenseNet-BC: transitions halve the channels.
    """

    num_classes: int = 1000
    dtype: Any = None
    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64

    input_shape: ClassVar = (224, 224, 3)
    other_names: ClassVar = OLDER_DENSENET

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`.

        With `train`, batch normalisation uses (and updates) the batch's statistics.
        """
        check_size(x, 29, "DenseNet")
        mode = Mode(train, self.dtype)
        steps = {"conv0": conv(self.width, 7, 2, 3, bias=False), "norm0": norm, "relu0": relu}
        steps["pool0"] = plain(lambda x: max_pool(x, 3, 2, 1))
        for block, depth in enumerate(self.depths, start=1):
            layers = {
                f"denselayer{number}": _dense_layer(self.growth) for number in range(1, depth + 1)
            }
            steps[f"denseblock{block}"] = named(layers)
            if block < len(self.depths):
                steps[f"transition{block}"] = _transition
        steps["norm5"] = norm  # the fifth, however many blocks there are
        x = nn.relu(named(steps)(x, "features", mode))
        return dense(self.num_classes)(x.mean((1, 2)), "classifier", mode)


def _transition(x, name, mode):
    halved = conv(x.shape[-1] // 2, 1, bias=False)
    return named({"norm": norm, "relu": relu, "conv": halved, "pool": plain(mean_pool)})(
        x, name, mode
    )


def _dense_layer(growth: int) -> Step:
    new = named(
        {
            **{"norm1": norm, "relu1": relu, "conv1": conv(4 * growth, 1, bias=False)},
            **{"norm2": norm, "relu2": relu, "conv2": conv(growth, 3, 1, 1, bias=False)},
        }
    )
    return lambda x, name, mode: jnp.concatenate([x, new(x, name, mode)], -1)
