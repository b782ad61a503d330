"""LRP's presets for transformers: LXT's numbers on the same weights, conservation, held parts.

References: tests/reference/run_lxt.py (LXT 2.1, explicit rules, float64); else gradients with held
values, written out.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import rules
from jaxviz.attribution.propagation import lrp

HEADS = 4
LXT = np.load(pathlib.Path(__file__).parents[1] / "reference" / "lxt.npz")


@pytest.fixture(autouse=True)
def broadcasting():
    """The nets are written as one writes NumPy."""
    with jax.numpy_rank_promotion("allow"):
        yield


def of(name):
    """Weights and input of a reference net, without the net's name."""
    return {k.split("/")[1]: LXT[k] for k in LXT.files if k.startswith(f"{name}/")}


def layer_norm(x, scale, shift, epsilon):
    c = x - x.mean(-1, keepdims=True)
    return c / jnp.sqrt((c * c).mean(-1, keepdims=True) + epsilon) * scale + shift


def heads(x, count=HEADS):
    return x.reshape(*x.shape[:2], count, -1)


def self_attention(x, p, mask=None):
    q, k, v = (heads(x @ p[f"w{a}"] + p[f"b{a}"]) for a in "qkv")
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, -jnp.inf, scores)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
    return mixed.reshape(x.shape) @ p["wo"] + p["bo"]


def feed_forward(x, p):
    return jax.nn.gelu(x @ p["w1"] + p["b1"], approximate=False) @ p["w2"] + p["b2"]


def vit(p, x):
    x = x + p["position"]
    x = x + self_attention(layer_norm(x, p["scale1"], p["shift1"], 1e-6), p)
    x = x + feed_forward(layer_norm(x, p["scale2"], p["shift2"], 1e-6), p)
    return layer_norm(x, p["scale3"], p["shift3"], 1e-6)[:, 0] @ p["wh"] + p["bh"]


def bert(p, x):
    x = layer_norm(x + p["position"], p["scale0"], p["shift0"], 1e-12)
    mask = p["padded"][:, None, None]
    x = layer_norm(x + self_attention(x, p, mask), p["scale1"], p["shift1"], 1e-12)
    x = layer_norm(x + feed_forward(x, p), p["scale2"], p["shift2"], 1e-12)
    return jnp.tanh(x[:, 0] @ p["wp"] + p["bp"]) @ p["wh"] + p["bh"]


def inverse(x):
    return jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms(x, scale):
    return x * inverse(x) * scale


def rotary(x):
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] / 10.0 ** np.arange(half)
    cos, sin = (np.concatenate([f(angles)] * 2, -1).astype(x.dtype) for f in (np.cos, np.sin))
    return x * cos + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def llama(p, x):
    y = rms(x, p["scale1"])
    q, k, v = rotary(heads(y @ p["wq"])), rotary(heads(y @ p["wk"], 2)), heads(y @ p["wv"], 2)
    q = q.reshape(*q.shape[:2], 2, 2, -1)  # grouped: 4 heads, 2 of keys
    scores = jnp.einsum("nqghd,nkgd->nghqk", q, k) / np.sqrt(q.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    mixed = jnp.einsum("nghqk,nkgd->nqghd", weights, v)
    x = x + mixed.reshape(x.shape) @ p["wo"]
    y = rms(x, p["scale2"])
    x = x + (jax.nn.silu(y @ p["wg"]) * (y @ p["wu"])) @ p["wd"]
    return rms(x, p["scale3"])[:, -1] @ p["wh"]


NETS = {"vit": vit, "bert": bert, "llama": llama}


@pytest.mark.parametrize("name", NETS)
def test_the_numbers_of_lxt_on_the_same_weights(name):
    net, p = NETS[name], of(name)
    both = jax.jit(lambda p, x: (net(p, x), lrp(net, p, x, 1, rules="attn_lrp")))  # one program
    with jax.enable_x64(True):
        out, got = both(p, p["x"])
    np.testing.assert_allclose(out, p["out"], rtol=1e-9)
    largest = np.abs(LXT[f"{name}/exact"]).max()
    np.testing.assert_allclose(got, LXT[f"{name}/exact"], rtol=0, atol=1e-9 * largest)
    # Its stabilisers, which take no notice of z's sign, move its numbers by this much.
    np.testing.assert_allclose(got, LXT[f"{name}/shipped"], rtol=0, atol=2e-4 * largest)


def held(x):
    return jax.lax.stop_gradient(x)


def gated(p, x, layer, hold):
    """RMS norm and attention, RMS norm and SwiGLU: no biases, for one sentence [1, L, D].

    With `hold`, constants are what CP-LRP holds, so that input times gradient is CP-LRP.
    """
    y = x * hold(inverse(x))
    q, k, v = (heads(layer(y, p[w]), 2) for w in ("wq", "wk", "wv"))
    weights = hold(jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k)))
    x = x + layer(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape), p["wo"])
    y = x * hold(inverse(x))
    x = x + layer(hold(jax.nn.silu(layer(y, p["wg"]))) * layer(y, p["wu"]), p["wd"])
    return layer(x[:, -1], p["wh"])


def by_gamma(gamma):
    """A dense layer whose gradient times input is the gamma rule, for all signs."""

    def layer(x, w):
        z = held(x @ w)
        sign, pairs = jnp.sign(z), x[..., None] * w
        of_sign = held(pairs * sign[..., None, :] > 0)
        enlarged = jnp.where(of_sign, (1 + gamma) * pairs, pairs).sum(-2)
        return enlarged * held(z / enlarged)

    return layer


def test_cp_lrp_holds_weights_gates_and_norms_and_loses_nothing():
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (4, 4))
    shapes |= {"wg": (4, 6), "wu": (4, 6), "wd": (6, 4), "wh": (4, 2)}
    p = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = rng.normal(size=(1, 3, 4))
    plain = lambda p, x: gated(p, x, jnp.matmul, lambda constant: constant)
    total = lambda x: gated(p, x, by_gamma(0.5), held)[0, 1]

    @jax.jit
    def both(x):
        score, slope = jax.value_and_grad(total)(x)
        rule = rules.cp_lrp(gamma=0.5)
        return score, x * slope, lrp(plain, p, x, 1, rules=rule), plain(p, x)[0, 1]

    with jax.enable_x64(True):
        score, expected, got, out = map(np.asarray, both(x))
    np.testing.assert_allclose(score, out, rtol=1e-9)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(got.sum(), score, rtol=1e-9)


def test_where_lxt_leaves_the_paper():
    with jax.enable_x64(True):
        x, r = LXT["softmax/x"], LXT["softmax/r"]
        s = np.exp(x) / np.exp(x).sum(0)
        paper = x * (r - s * r.sum(0))  # proposition 3.1, over the softmax's own axis
        assert np.abs(LXT["softmax/lxt"] - paper).max() > 0.1
        # A score whose relevance at the softmax's output is r: softmax times constants r / s.
        weighed = lambda p, x: (jax.nn.softmax(x.reshape(3, 4), 0) * p).reshape(1, -1)
        total = lambda outputs: outputs.sum(1)
        got = lrp(weighed, jnp.asarray(r / s), x.reshape(1, -1), total, rules="attn_lrp")
        np.testing.assert_allclose(got, paper.reshape(1, -1), atol=1e-12)
        # z = -1e-6 and a stabiliser of 1e-6: theirs divides by 0, ours by -2e-6.
        x = jnp.asarray(LXT["stabilizer/x"])
        w = jnp.array([[1.0], [-1.0]], x.dtype)
        z = x @ w
        rule = rules.attn_lrp(1e-6)
        got = lrp(lambda w, x: x @ w, w, x, 0, rules=rule)
        np.testing.assert_allclose(got, x * w.T * z / (z - 1e-6), rtol=1e-6)
        assert np.abs(LXT["stabilizer/lxt"]).max() > 1e9
