"""One small net in every framework, with the same weights; a row is one function."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import pytest
from flax import linen as nn, nnx

import jaxviz

SIZE, CHANNELS, CLASSES = (5, 5), (2, 4), 3


class Net(NamedTuple):
    """Attributes:
    apply_fn, params: What the framework's adapter gives.
    names: Its names of the layers stem, block 0, block 1 and out; None where it names none.
    channels: The axis of its images that holds the channels.
    relaxed: Whether the framework's own code needs JAX's lax promotion.
    """

    apply_fn: Callable
    params: Any
    names: tuple[str | None, ...]
    channels: int = -1
    relaxed: bool = False

    def promotion(self):
        return jax.numpy_rank_promotion("allow" if self.relaxed else "raise")


def weights():
    """Kernels `[h, w, in, out]` or `[in, out]`, with their biases, by layer."""
    keys = iter(jax.random.split(jax.random.key(5), 8))
    shapes = {
        "stem": (3, 3, *CHANNELS),
        "block0": (3, 3, CHANNELS[1], CHANNELS[1]),
        "block1": (3, 3, CHANNELS[1], CHANNELS[1]),
        "out": (CHANNELS[1], CLASSES),
    }
    draw = lambda shape: jax.random.normal(next(keys), shape)
    size = lambda shape: (shape[-2] * (9 if len(shape) == 4 else 1)) ** -0.5
    return {k: (draw(s) * size(s) * 1.4, draw(s[-1:]) * 0.2) for k, s in shapes.items()}


def by_hand():
    def conv(w, x):
        lax = jax.lax.conv_general_dilated
        return lax(x, w[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + (
            w[1].reshape(1, 1, 1, -1)
        )

    def apply_fn(w, x):
        for name in ("stem", "block0", "block1"):
            x = jax.nn.relu(conv(w[name], x))
        return x.mean((1, 2)) @ w["out"][0] + w["out"][1].reshape(1, -1)

    return Net(apply_fn, weights(), ("conv_0", "conv_1", "conv_2", "dense_0"))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("stem", "block0", "block1"):
            x = nn.relu(nn.Conv(CHANNELS[1], (3, 3), name=name)(x))
        return nn.Dense(CLASSES, name="out")(x.mean((1, 2)))


def linen():
    of = {name: {"kernel": k, "bias": b} for name, (k, b) in weights().items()}
    return Net(Linen().apply, {"params": of}, tuple(of))


class NNX(nnx.Module):
    def __init__(self, rngs):
        conv = lambda of: nnx.Conv(of, CHANNELS[1], (3, 3), rngs=rngs)
        self.stem, self.out = conv(CHANNELS[0]), nnx.Linear(CHANNELS[1], CLASSES, rngs=rngs)
        self.blocks = nnx.List([conv(CHANNELS[1]) for _ in range(2)])
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, *, train=True, rngs):
        for conv in (self.stem, *self.blocks):
            x = nnx.relu(conv(x))
        return self.drop(self.out(x.mean((1, 2))), deterministic=not train, rngs=rngs)


def nnx_module():
    module = NNX(nnx.Rngs(0))
    parts = (module.stem, *module.blocks, module.out)
    for part, (kernel, bias) in zip(parts, weights().values(), strict=True):
        part.kernel.set_value(kernel)
        part.bias.set_value(bias)
    return Net(*jaxviz.from_nnx(module), ("stem", "blocks/0", "blocks/1", "out"))


class Equinox(eqx.Module):
    stem: Any
    blocks: list
    out: Any
    drop: Any
    activation: Callable

    def __init__(self):
        key = jax.random.key(0)
        conv = lambda of: eqx.nn.Conv2d(of, CHANNELS[1], 3, padding=1, key=key)
        self.stem, self.blocks = conv(CHANNELS[0]), [conv(CHANNELS[1]) for _ in range(2)]
        self.out, self.drop = eqx.nn.Linear(CHANNELS[1], CLASSES, key=key), eqx.nn.Dropout()
        self.activation = jax.nn.relu

    def __call__(self, x, *, key):
        for conv in (self.stem, *self.blocks):
            x = self.activation(conv(x))
        return self.drop(self.out(x.mean((1, 2))), key=key)


def equinox():
    def laid(part, of):
        kernel, bias = of
        if kernel.ndim == 2:
            return eqx.tree_at(lambda p: (p.weight, p.bias), part, (kernel.T, bias))
        new = (kernel.transpose(3, 2, 0, 1), bias.reshape(-1, 1, 1))
        return eqx.tree_at(lambda p: (p.weight, p.bias), part, new)

    where = lambda m: (m.stem, *m.blocks, m.out)
    module = Equinox()
    parts = [laid(p, w) for p, w in zip(where(module), weights().values(), strict=True)]
    module = eqx.tree_at(where, module, tuple(parts))
    return Net(*jaxviz.from_equinox(module), ("stem", "blocks/0", "blocks/1", "out"), 1)


def haiku():
    hk = pytest.importorskip("haiku")

    def function(x, is_training):
        for name in ("stem", "block0", "block1"):
            x = jax.nn.relu(hk.Conv2D(CHANNELS[1], 3, name=name)(x))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(CLASSES, name="out")(x.mean((1, 2)))

    of = {name: {"w": kernel, "b": bias} for name, (kernel, bias) in weights().items()}
    return Net(*jaxviz.from_haiku(hk.transform(function), of), tuple(of))


def keras():
    keras = pytest.importorskip("keras")
    layers, image = keras.layers, keras.Input((*SIZE, CHANNELS[0]))
    conv = lambda name: layers.Conv2D(CHANNELS[1], 3, padding="same", activation="relu", name=name)
    x = conv("stem")(image)
    drop = layers.Dropout(0.5, name="drop")
    blocks = keras.Sequential([conv("block0"), conv("block1"), drop], name="blocks")
    x = layers.GlobalAveragePooling2D(name="mean")(blocks(x))
    model = keras.Model(image, layers.Dense(CLASSES, name="out")(x), name="net")
    parts = (model.get_layer("stem"), *blocks.layers[:2], model.get_layer("out"))
    for part, of in zip(parts, weights().values(), strict=True):
        part.set_weights(list(map(np.asarray, of)))
    # Keras' layers hold their activation.
    names = ("stem/conv_0", "blocks/block0/conv_0", "blocks/block1/conv_0", "out")
    return Net(*jaxviz.from_keras(model), names, relaxed=True)


def channels_first():
    """By hand, as nets ported from PyTorch are."""

    def apply_fn(w, x):
        for name in ("stem", "block0", "block1"):
            numbers = ("NCHW", "HWIO", "NCHW")
            lax = jax.lax.conv_general_dilated
            x = lax(x, w[name][0], (1, 1), "SAME", dimension_numbers=numbers)
            x = jax.nn.relu(x + w[name][1].reshape(1, -1, 1, 1))
        return x.mean((2, 3)) @ w["out"][0] + w["out"][1].reshape(1, -1)

    return Net(apply_fn, weights(), ("conv_0", "conv_1", "conv_2", "dense_0"), 1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Conv(CHANNELS[1], (3, 3), name="conv")(x)), None


class Scanned(nn.Module):
    """Its two blocks are turns of one scan, their weights one stack."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(CHANNELS[1], (3, 3), name="stem")(x))
        stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Block), length=2, **stacked)(name="blocks")(x, None)
        return nn.Dense(CLASSES, name="out")(x.mean((1, 2)))


def scanned():
    of = {name: {"kernel": k, "bias": b} for name, (k, b) in weights().items()}
    both = jax.tree.map(lambda *a: jax.numpy.stack(a), of.pop("block0"), of.pop("block1"))
    names = ("stem", "blocks[0]/conv", "blocks[1]/conv", "out")
    return Net(Scanned().apply, {"params": of | {"blocks": {"conv": both}}}, names)


ROWS = {
    "linen": linen,
    "scanned": scanned,
    "nnx": nnx_module,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras,
    "channels_first": channels_first,
}
