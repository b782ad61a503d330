"""TokenTM of one block with the same weights in every framework; the oracle is its formula."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_transformed import D, H, T, W as WHOLE, X, by_formula, pre

import jaxviz as jv

ONE = {**WHOLE, "blocks": WHOLE["blocks"][:1]}
W = {k: np.asarray(a, np.float32) for k, a in ONE["blocks"][0].items()}
K, HEAD = D // H, np.asarray(ONE["head"], np.float32)
X32 = np.asarray(X, np.float32)
Q = 2 * W["q"]  # frameworks divide scores by sqrt(K)
NO = np.zeros((H, K), np.float32)
UP = np.zeros(6, np.float32)


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.LayerNorm(name="n1")(x)
            x = x + nn.MultiHeadDotProductAttention(H, name="mha")(h)
            h = jnp.tanh(nn.Dense(6, name="up")(nn.LayerNorm(name="n2")(x)))
            x = x + nn.Dense(D, name="down")(h)
            return nn.Dense(3, use_bias=False, name="head")(nn.LayerNorm(name="n")(x)[:, 0])

    of = lambda kernel, bias: {"kernel": kernel, "bias": bias}
    norm = {"scale": np.ones(D, np.float32), "bias": np.zeros(D, np.float32)}
    mha = {
        "query": of(Q.reshape(D, H, K), NO),
        "key": of(W["k"].reshape(D, H, K), NO),
        "value": of(W["v"].reshape(D, H, K), W["vb"].reshape(H, K)),
        "out": of(W["o"].reshape(H, K, D), W["ob"]),
    }
    dense = {"up": of(W["up"], UP), "down": of(W["down"], W["db"]), "head": {"kernel": HEAD}}
    return Net().apply, {"params": {"n1": norm, "n2": norm, "n": norm, "mha": mha, **dense}}


def nnx_():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.n1, self.n2, self.n = (nnx.LayerNorm(D, rngs=rngs) for _ in range(3))
            self.mha = nnx.MultiHeadAttention(H, D, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(D, 6, rngs=rngs), nnx.Linear(6, D, rngs=rngs)
            self.head = nnx.Linear(D, 3, use_bias=False, rngs=rngs)

        def __call__(self, x):
            x = x + self.mha(self.n1(x))
            x = x + self.down(jnp.tanh(self.up(self.n2(x))))
            return self.head(self.n(x)[:, 0])

    net = Net(nnx.Rngs(0))
    for part, kernel in ((net.mha.query, Q), (net.mha.key, W["k"]), (net.mha.value, W["v"])):
        part.kernel.set_value(kernel.reshape(D, H, K))
    net.mha.value.bias.set_value(W["vb"].reshape(H, K))
    net.mha.out.kernel.set_value(W["o"].reshape(H, K, D))
    net.mha.out.bias.set_value(W["ob"])
    net.down.bias.set_value(W["db"])
    for part, kernel in ((net.up, W["up"]), (net.down, W["down"]), (net.head, HEAD)):
        part.kernel.set_value(kernel)
    return jv.from_nnx(net)


def equinox():
    eqx = pytest.importorskip("equinox")
    key, norm = jax.random.key(0), eqx.nn.LayerNorm(D, eps=1e-6)

    def linear(kernel, bias=None):
        made = eqx.nn.Linear(*kernel.shape, use_bias=bias is not None, key=key)
        made = eqx.tree_at(lambda part: part.weight, made, kernel.T)
        return made if bias is None else eqx.tree_at(lambda part: part.bias, made, bias)

    class Net(eqx.Module):
        mha: eqx.nn.MultiheadAttention
        up: eqx.nn.Linear
        down: eqx.nn.Linear
        head: eqx.nn.Linear

        def __call__(self, x):
            h = jax.vmap(norm)(x)
            x = x + self.mha(h, h, h)
            x = x + jax.vmap(lambda a: self.down(jnp.tanh(self.up(norm(a)))))(x)
            return self.head(norm(x[0]))

    mha = eqx.nn.MultiheadAttention(H, D, use_value_bias=True, use_output_bias=True, key=key)
    at = lambda m: (m.query_proj, m.key_proj, m.value_proj, m.output_proj)
    parts = linear(Q), linear(W["k"]), linear(W["v"], W["vb"]), linear(W["o"], W["ob"])
    mha = eqx.tree_at(at, mha, parts)
    net = Net(mha, linear(W["up"], UP), linear(W["down"], W["db"]), linear(HEAD))
    return jv.from_equinox(net)


def keras():
    layers = pytest.importorskip("keras").layers
    norm = lambda x: layers.LayerNormalization(epsilon=1e-6)(x)
    mha, head = layers.MultiHeadAttention(H, K), layers.Dense(3, use_bias=False)
    up, down = layers.Dense(6, activation="tanh"), layers.Dense(D)
    given = layers.Input((T, D))
    h = norm(given)
    x = layers.Add()([given, mha(h, h)])
    x = layers.Add()([x, down(up(norm(x)))])
    net = pytest.importorskip("keras").Model(given, head(norm(x)[:, 0]))
    inner = (Q, NO), (W["k"], NO), (W["v"], W["vb"])
    weights = [a.reshape(s) for k, b in inner for a, s in ((k, (D, H, K)), (b, (H, K)))]
    mha.set_weights([*weights, W["o"].reshape(H, K, D), W["ob"]])
    up.set_weights([W["up"], UP])
    down.set_weights([W["down"], W["db"]])
    head.set_weights([HEAD])
    return jv.from_keras(net)


def haiku():
    hk = pytest.importorskip("haiku")

    def net(x):
        norm = lambda x: hk.LayerNorm(-1, False, False, eps=1e-6)(x)
        start = hk.initializers.VarianceScaling(1.0)
        h = norm(x)
        x = x + hk.MultiHeadAttention(H, K, w_init=start, model_size=D, name="mha")(h, h, h)
        x = x + hk.Linear(D, name="down")(jnp.tanh(hk.Linear(6, name="up")(norm(x))))
        return hk.Linear(3, with_bias=False, name="head")(norm(x)[:, 0])

    of = lambda w, b: {"w": w, "b": b}
    params = {
        "mha/query": of(Q, NO.reshape(-1)),
        "mha/key": of(W["k"], NO.reshape(-1)),
        "mha/value": of(W["v"], W["vb"]),
        "mha/linear": of(W["o"], W["ob"]),
        "up": of(W["up"], UP),
        "down": of(W["down"], W["db"]),
        "head": {"w": HEAD},
    }
    return jv.from_haiku(hk.transform(net), params)


@functools.cache
def wanted():
    with jax.enable_x64(True):
        return by_formula(pre, 1, ONE)[:, 0]


@pytest.mark.parametrize("made", [linen, nnx_, equinox, keras, haiku], ids=lambda f: f.__name__)
def test_token_tm_is_the_same_in_every_framework(made):
    # As the frameworks themselves are written.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = jv.token_tm(*made(), X32, 1, query=0)
    np.testing.assert_allclose(found, wanted(), rtol=2e-4, atol=1e-6)
