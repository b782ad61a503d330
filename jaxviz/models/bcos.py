"""A B-cos network: every layer aligns its weights with its input, so the net explains itself."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp


class BcosConv(nn.Module):
    """A convolution whose units answer by alignment: w'x |cos(x, w')|^(B - 1), w' of length 1.

    Of `max_out` such answers each output is the largest. No bias.

    Attributes:
      features: Outputs at each place.
      kernel_size: Sides of the window.
      strides: Steps of the window.
      b: B, >= 1: how much alignment counts; with 1 it is a convolution.
      max_out: Units for each output.
      dtype: Floating type of the computation; None follows inputs and parameters.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: Sequence[int] = (1, 1)
    b: float = 2.0
    max_out: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, h, w, features]` of `[N, H, W, C]`."""
        shape = (*self.kernel_size, x.shape[-1], self.features * self.max_out)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        kernel = kernel / jnp.sqrt((kernel * kernel).sum((0, 1, 2), keepdims=True))

        def windows(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, tuple(self.strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        out = windows(x, kernel)
        if self.b != 1:
            ones = jnp.ones((*self.kernel_size, x.shape[-1], 1), dtype)
            # Rounding and empty windows are kept from a root of 0, as in the authors' code.
            cos = jnp.abs(out) / jnp.sqrt(windows(x * x, ones) + 1e-6)
            out = out * (cos if self.b == 2 else (cos + 1e-6) ** (self.b - 1))
        return out.reshape(*out.shape[:3], self.features, self.max_out).max(-1)


class BcosNet(nn.Module):
    """A small B-cos network for small images, such as `BcosNet.encoded(digits)`.

    B-cos convolutions (3x3; every one after the first halves the sides), one of 1x1 to the classes,
    the mean over places. Layers: `bcos1` `bcos2` ... `classes`. No activation, no norm, no bias:
    f(x) = W(x) x, where W(x) is `gradient` and W(x) x is `input_x_gradient` of
    `rewrite(apply_fn, rules.constants())`.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      features: Outputs of each convolution but the last.
      b: B of all of them.
      scale: What means are multiplied by to be logits, for cosines are small.

    Example:
      >>> import jaxviz as jv
      >>> net, x = BcosNet(features=(4, 4)), BcosNet.encoded(jnp.full((1, 8, 8, 1), 0.3))
      >>> params = net.init(jax.random.key(0), x)
      >>> parts = jv.input_x_gradient(jv.rewrite(net.apply, jv.rules.constants()), params, x, 3)
      >>> bool(abs(parts.sum() - net.apply(params, x)[0, 3]) < 1e-4)
      True

    Reference:
      Boehle et al. 2022, arXiv:2205.10268, equations 3 and 5, with max-out; there images are
      encoded alike, and classes are trained by binary cross entropy.
    """

    num_classes: int = 10
    dtype: Any = None
    features: Sequence[int] = (16, 32, 64)
    b: float = 2.0
    scale: float = 200.0

    input_shape: ClassVar = (28, 28, 2)

    @staticmethod
    def encoded(images: jax.Array) -> jax.Array:
        """Images in [0, 1] with their negative as further channels, so that black is evidence."""
        return jnp.concatenate([images, 1 - images], -1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of encoded images; `train` changes nothing here."""
        for number, features in enumerate(self.features, start=1):
            strides = (1, 1) if number == 1 else (2, 2)
            x = BcosConv(features, (3, 3), strides, self.b, dtype=self.dtype, name=f"bcos{number}")(
                x
            )
        x = BcosConv(self.num_classes, (1, 1), b=self.b, dtype=self.dtype, name="classes")(x)
        return self.scale * x.mean((1, 2))
