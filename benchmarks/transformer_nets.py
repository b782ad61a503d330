"""Two transformers with random weights, as people write them: a loop over blocks, no scan.

MiniLM-L6's sizes and layout (token ids, norms after each residual sum) and ViT-B/16's (an image,
norms ahead); LayerNorm, biases, the exact GELU, queries, keys and values apart, the class token
read at the end. Weights are a flat dict by the names that the peer's modules have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Size(NamedTuple):
    """`image` and `patch` are pixels along a side; 0 where the net takes ids."""

    blocks: int
    width: int
    heads: int
    tokens: int
    classes: int
    image: int = 0
    patch: int = 0
    words: int = 0

    @property
    def grid(self):
        return self.image // self.patch


SIZES = {
    "minilm": Size(6, 384, 12, 128, 10, words=30522),
    "vit": Size(12, 768, 12, 197, 1000, image=224, patch=16),
    "tiny_minilm": Size(2, 16, 2, 6, 10, words=40),
    "tiny_vit": Size(2, 16, 2, 17, 10, image=16, patch=4),
}
EPSILON = 1e-6


def drawn(size, seed=0):
    """Weights `name -> array`, dense ones `[inputs, outputs]`, and two inputs."""
    draw = np.random.default_rng(seed)
    normal = lambda *shape, scale: (scale * draw.standard_normal(shape)).astype(np.float32)
    w = {}

    def dense(name, inputs, outputs):
        w[f"{name}.weight"] = normal(inputs, outputs, scale=inputs**-0.5)
        w[f"{name}.bias"] = normal(outputs, scale=0.1)

    def norm(name):
        w[f"{name}.weight"] = 1 + normal(size.width, scale=0.1)
        w[f"{name}.bias"] = normal(size.width, scale=0.1)

    for i in range(size.blocks):
        for name in "qkvo":
            dense(f"blocks.{i}.attention.{name}", size.width, size.width)
        dense(f"blocks.{i}.up", size.width, 4 * size.width)
        dense(f"blocks.{i}.down", 4 * size.width, size.width)
        norm(f"blocks.{i}.norm1")
        norm(f"blocks.{i}.norm2")
    norm("norm")
    dense("head", size.width, size.classes)
    w["places"] = normal(1, size.tokens, size.width, scale=0.5)
    if size.patch:
        dense("embed", 3 * size.patch**2, size.width)
        w["token"] = normal(1, 1, size.width, scale=1)
        return w, normal(2, 1, size.image, size.image, 3, scale=1)
    w["words.weight"] = normal(size.words, size.width, scale=1)
    return w, draw.integers(1, size.words, (2, 1, size.tokens)).astype(np.int32)


def transformer(size, bare=False):
    """`net(w, x) -> [N, classes]`, x images `[N, H, W, 3]` or ids `[N, tokens]`.

    `bare` leaves out norms, softmax and GELU: what is left is matrix products and sums.
    """
    gelu = (lambda x: x) if bare else lambda x: jax.nn.gelu(x, approximate=False)
    softmax = (lambda x: x * np.float32(1e-6)) if bare else jax.nn.softmax

    def dense(w, name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(w, name, x):
        if bare:
            return x
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(w, at, x):
        at += "attention."
        heads = lambda name: dense(w, at + name, x).reshape(*x.shape[:2], size.heads, -1)
        q, k, v = map(heads, "qkv")
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.float32(q.shape[-1] ** 0.5)
        z = jnp.einsum("nhqk,nkhd->nqhd", softmax(scores), v)
        return dense(w, at + "o", z.reshape(x.shape))

    def mlp(w, at, x):
        return dense(w, at + "down", gelu(dense(w, at + "up", x)))

    def embedded(w, x):
        if not size.patch:
            return norm(w, "norm", w["words.weight"][x] + w["places"])
        kernel = w["embed.weight"].reshape(size.patch, size.patch, 3, -1)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, [size.patch] * 2, "VALID", dimension_numbers=layout
        )
        x = x.reshape(len(x), -1, size.width) + w["embed.bias"]
        token = jnp.broadcast_to(w["token"], (len(x), 1, size.width))
        return jnp.concatenate([token, x], 1) + w["places"]

    def net(w, x):
        x = embedded(w, x)
        for i in range(size.blocks):
            at = f"blocks.{i}."
            if size.patch:
                x = x + attention(w, at, norm(w, at + "norm1", x))
                x = x + mlp(w, at, norm(w, at + "norm2", x))
            else:
                x = norm(w, at + "norm1", x + attention(w, at, x))
                x = norm(w, at + "norm2", x + mlp(w, at, x))
        x = norm(w, "norm", x) if size.patch else x
        return dense(w, "head", x[:, 0])

    return net
