"""Networks with random weights and images for them: what the benchmarks explain."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def ready(module, shape, seed=0):
    """`(apply_fn, variables, x)` of a module on random images of `shape` [N, H, W, C]."""
    x = jax.random.normal(jax.random.key(seed), shape)
    variables = jax.jit(module.init)(jax.random.key(seed + 1), x[:1])
    return module.apply, variables, x


class VisionTransformer(nn.Module):
    """Patches and a class token, blocks with the norm first: ViT-B/16 as it stands.

    Layers that hold places: `block0` to `block{depth - 1}`, `[N, 1 + patches, width]`.

    Reference:
      Dosovitskiy et al. 2021, arXiv:2010.11929, table 1.
    """

    depth: int = 12
    width: int = 768
    heads: int = 12
    patch: int = 16
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, strides=sides, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("token", small, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("places", small, (1, *x.shape[1:]))
        for number in range(self.depth):
            x = _Block(self.heads, name=f"block{number}")(x)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = x + attention(nn.LayerNorm(name="norm1")(x))
        y = nn.Dense(4 * x.shape[-1], name="widen")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="narrow")(nn.gelu(y))


def token_grid(tokens):
    """Patch tokens `[N, 1 + h * w, C]` as places `[N, h, w, C]`, the class token dropped."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(tokens.shape[0], side, side, -1)
