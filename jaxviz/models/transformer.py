"""The vision transformer: an image as patches, each a token that attends to all others."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.models.names import VISION_TRANSFORMER
from jaxviz.models.parts import Mode, Step, attend, conv, dense, layer_norm, mlp, named, plain

_FIRST = (("class_token", "head"), ("distillation_token", "head_dist"))
"""The tokens ahead of the patches, and the dense layer that each has in the end."""


class VisionTransformer(nn.Module):
    """ViT: patches as tokens behind a class token, blocks of attention, a dense layer of the first.

    Layers: `conv_proj` cuts the patches, `encoder/layers/encoder_layer_0` and so on are the blocks
    of `ln_1` `self_attention` (`in_proj` `out_proj`) `ln_2` `mlp` (`0` `3`), then `encoder/ln` and
    `heads/head`. Tokens are `[N, 1 + rows * columns, width]`: the class token, then the patches row
    by row. Norms stand ahead of what they feed; activations are exact GELUs. 86.6 M parameters
    (ViT-B/16), 88.2 M (B/32). DeiT is the same network, or with `distilled` the one that learned
    from another network by a second token.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      patch_size: Sides of a patch, in pixels.
      image_size: Sides of the images `[N, image_size, image_size, 3]`, which each patch's place is
        learned for.
      depth: Blocks.
      width: Numbers a token.
      num_heads: Heads of attention; they divide `width`.
      mlp_width: Numbers a token between a block's two dense layers.
      distilled: Whether a second token follows the class token, with a dense layer
        `heads/head_dist` of its own; logits are the means of both.
      epsilon: What norms add to a variance: 1e-6, as torchvision's and timm's weights were trained;
        those of Hugging Face's `ViTForImageClassification` take 1e-12.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(VisionTransformer().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      86567656

    Reference:
      Dosovitskiy et al. 2020, arXiv:2010.11929, equations 1 to 4, table 1, ViT-Base; DeiT, and its
      second token: Touvron et al. 2020, arXiv:2012.12877.
    """

    num_classes: int = 1000
    dtype: Any = None
    patch_size: int = 16
    image_size: int = 224
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    distilled: bool = False
    epsilon: float = 1e-6

    other_names: ClassVar = VISION_TRANSFORMER

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images; `train` changes nothing here."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"VisionTransformer: images must be [N, {self.image_size}, {self.image_size}, 3], "
                f"as its places were learned for; got {x.shape}. Scale them, or set image_size."
            )
        mode, n = Mode(train, self.dtype), len(x)
        x = conv(self.width, self.patch_size, self.patch_size)(x, "conv_proj", mode)
        x = x.reshape(n, -1, self.width)
        names = _FIRST[: 1 + self.distilled]
        shape, zeros = (1, 1, self.width), nn.initializers.zeros
        tokens = [self.param(token, zeros, shape).astype(x.dtype) for token, _ in names]
        tokens = [jnp.broadcast_to(token, (n, 1, self.width)) for token in tokens]
        x = jnp.concatenate([*tokens, x], 1)
        blocks = {
            f"encoder_layer_{number}": _block(self.num_heads, self.mlp_width, self.epsilon)
            for number in range(self.depth)
        }
        x = Encoder(named(blocks), layer_norm(self.epsilon), mode, name="encoder")(x)
        heads = Heads(tuple(head for _, head in names), self.num_classes, mode, name="heads")
        return heads(x)


class Encoder(nn.Module):
    blocks: Step
    last: Step
    mode: Mode

    @nn.compact
    def __call__(self, x):
        places = self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = self.blocks(x + places.astype(x.dtype), "layers", self.mode)
        return self.last(x, "ln", self.mode)


class Heads(nn.Module):
    names: tuple[str, ...]
    num_classes: int
    mode: Mode

    @nn.compact
    def __call__(self, x):
        named = enumerate(self.names)
        logits = [dense(self.num_classes)(x[:, i], name, self.mode) for i, name in named]
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2


def _block(num_heads: int, mlp_width: int, epsilon: float) -> Step:
    return lambda x, name, mode: Block(num_heads, mlp_width, epsilon, mode, name=name)(x)


class Block(nn.Module):
    num_heads: int
    mlp_width: int
    epsilon: float
    mode: Mode

    @nn.compact
    def __call__(self, x):
        norm, mode = layer_norm(self.epsilon), self.mode
        x = x + _attention(self.num_heads)(norm(x, "ln_1", mode), "self_attention", mode)
        return x + mlp(self.mlp_width)(norm(x, "ln_2", mode), "mlp", mode)


def _attention(num_heads: int) -> Step:
    heads = plain(lambda x: attend(x, num_heads))
    return lambda x, name, mode: named(
        {"in_proj": dense(3 * x.shape[-1]), "attend": heads, "out_proj": dense(x.shape[-1])}
    )(x, name, mode)
