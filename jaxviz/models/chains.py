"""AlexNet and VGG: convolutions in a chain, a mean over 7x7 (6x6) regions, three dense layers."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxviz.models.parts import (
    Mode,
    Step,
    adaptive_mean,
    check_size,
    conv,
    dense,
    dropout,
    flatten,
    norm,
    pool,
    relu,
    sequence,
)

_WIDTHS = (64, 128, 256, 512, 512)


class AlexNet(nn.Module):
    """AlexNet in one column: five convolutions, three overlapping poolings, three dense layers.

    Layers: `features/0` `3` `6` `8` `10` and `classifier/1` `4` `6`: torchvision's numbers. 61.1 M
    parameters. Images `[N, H, W, 3]` from 63x63.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(AlexNet().init, jax.random.key(0), image)
      >>> variables["params"]["classifier"]["1"]["kernel"].shape
      (9216, 4096)

    Reference:
      Krizhevsky 2014, arXiv:1404.5997, section 5 (fewer and narrower convolutions than in 2012, no
      local response normalisation); the mean over 6x6 regions is torchvision's.
    """

    num_classes: int = 1000
    dtype: Any = None

    input_shape: ClassVar = (224, 224, 3)
    flattened: ClassVar = {"classifier/1": 256}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`; `train` turns dropout on."""
        check_size(x, 63, "AlexNet")
        mode = Mode(train, self.dtype)
        features = sequence(
            *(conv(64, 11, 4, 2), relu, pool(3, 2)),
            *(conv(192, 5, 1, 2), relu, pool(3, 2)),
            *(conv(384, 3, 1, 1), relu, conv(256, 3, 1, 1), relu, conv(256, 3, 1, 1), relu),
            pool(3, 2),
        )
        classifier = sequence(
            *(dropout(0.5), dense(4096), relu, dropout(0.5), dense(4096), relu),
            dense(self.num_classes),
        )
        x = adaptive_mean(features(x, "features", mode), 6)
        return classifier(flatten(x), "classifier", mode)


class VGG(nn.Module):
    """VGG: five stages of 3x3 convolutions, each ended by 2x2 pooling, then three dense layers.

    Layers: `features/0` and so on, `classifier/0` `3` `6`: torchvision's numbers, which count
    activations and poolings too. 133 M to 144 M parameters, nearly all in `classifier/0`. Images
    `[N, H, W, 3]` from 32x32.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      depths: Convolutions of each stage; VGG-11 has (1, 1, 2, 2, 2), VGG-16 (2, 2, 3, 3, 3), VGG-19
        (2, 2, 4, 4, 4).
      batch_norm: Whether batch normalisation follows each convolution.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(VGG().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      138357544

    Reference:
      Simonyan & Zisserman 2014, arXiv:1409.1556, table 1, columns A, D and E; batch normalisation
      and the mean over 7x7 regions (for images of other sizes) are torchvision's.
    """

    num_classes: int = 1000
    dtype: Any = None
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False

    input_shape: ClassVar = (224, 224, 3)
    flattened: ClassVar = {"classifier/0": 512}

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`.

        With `train`, dropout is on and batch normalisation uses (and updates) the batch's
        statistics.
        """
        check_size(x, 32, "VGG")
        mode = Mode(train, self.dtype)
        steps: list[Step] = []
        for width, depth in zip(_WIDTHS, self.depths, strict=True):
            one = [conv(width, 3, 1, 1), *([norm] if self.batch_norm else []), relu]
            steps += [*one * depth, pool(2, 2)]
        classifier = sequence(
            *(dense(4096), relu, dropout(0.5), dense(4096), relu, dropout(0.5)),
            dense(self.num_classes),
        )
        x = adaptive_mean(sequence(*steps)(x, "features", mode), 7)
        return classifier(flatten(x), "classifier", mode)
