"""`attentions`, however they are written; oracles: the frameworks themselves, and NumPy."""

import contextlib
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxviz as jv

X = jax.random.normal(jax.random.key(0), (3, 5, 8))
W = jax.random.normal(jax.random.key(1), (3, 8, 8))


@pytest.fixture
def stack():
    with contextlib.ExitStack() as opened:
        yield opened


def softmax(a, axis=-1):
    a = np.exp(np.asarray(a, np.float64) - np.max(a, axis, keepdims=True))
    return a / a.sum(axis, keepdims=True)


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, sow=False):
            return nn.MultiHeadDotProductAttention(2, name="mha")(x, sow_weights=sow)

    net = Net()
    params = net.init(jax.random.key(0), X)
    _, state = net.apply(params, X, True, mutable=["intermediates"])
    return net.apply, params, "mha", state["intermediates"]["mha"]["attention_weights"][0]


def nnx_():
    class Net(nnx.Module):
        def __init__(self):
            self.mha = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.mha(x)

    net = Net()
    scores = np.einsum("nqhd,nkhd->nhqk", net.mha.query(X), net.mha.key(X)) / 2
    return *jv.from_nnx(net), "mha", softmax(scores)


def equinox():
    eqx = pytest.importorskip("equinox")
    mha = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    q, k = (jax.vmap(jax.vmap(p))(X).reshape(3, 5, 2, 4) for p in (mha.query_proj, mha.key_proj))
    apply_fn, params = jv.from_equinox(eqx.nn.Lambda(lambda x: mha(x, x, x)))
    return apply_fn, params, None, softmax(np.einsum("nqhd,nkhd->nhqk", q, k) / 2)


def keras():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((5, 8))
    layer = keras.layers.MultiHeadAttention(2, 4, name="mha")
    model = keras.Model(inputs, layer(inputs, inputs))
    _, weights = layer(X, X, return_attention_scores=True)
    return *jv.from_keras(model), "mha", weights


def haiku():
    hk = pytest.importorskip("haiku")
    start = hk.initializers.VarianceScaling(1.0)
    net = hk.transform(lambda x: hk.MultiHeadAttention(2, 4, w_init=start, name="mha")(x, x, x))
    params = net.init(jax.random.key(0), X)
    q, k = (
        (X @ params[f"mha/{part}"]["w"] + params[f"mha/{part}"]["b"][None, None]).reshape(
            3, 5, 2, 4
        )
        for part in ("query", "key")
    )
    return *jv.from_haiku(net, params), "mha", softmax(np.einsum("nqhd,nkhd->nhqk", q, k) / 2)


def by_hand():
    def net(w, x):
        scores = jnp.einsum("nqd,de,nke->nqk", x, w, x)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        return jnp.einsum("nqk,nkd->nqd", weights, x)

    return net, W[0], None, softmax(np.einsum("nqd,de,nke->nqk", X, W[0], X))[:, None]


def scanned():
    def net(w, x):
        def block(x, w):
            return jax.nn.softmax(jnp.einsum("nqd,de,nke->nqk", x, w, x)) @ x, None

        return jax.lax.scan(block, x, w)[0]

    return net, W, "scan_0[0]", softmax(np.einsum("nqd,de,nke->nqk", X, W[0], X))[:, None]


def library():  # grouped heads, causal
    def net(_, x):
        q = x.reshape(3, 5, 4, 2)
        return jax.nn.dot_product_attention(q, q[:, :, :2], q[:, :, :2], is_causal=True)

    q = np.asarray(X).reshape(3, 5, 4, 2)
    scores = np.einsum("nqhd,nkhd->nhqk", q, q[:, :, [0, 0, 1, 1]]) / np.sqrt(2)
    scores = np.where(np.tril(np.ones((5, 5), bool)), scores, -1e30)
    return net, None, None, softmax(scores)


def one_head_of_keys():  # multi-query, keys ahead of queries, float32 inside bfloat16
    def net(_, x):
        q, k = x.reshape(3, 5, 4, 2), x[..., :2]
        scores = jnp.einsum("nqhd,nkd->nkhq", q, k).astype(jnp.float32)
        weights = jax.nn.softmax(scores, axis=1).astype(jnp.bfloat16)
        return jnp.einsum("nkhq,nkd->nqhd", weights, k.astype(jnp.bfloat16))

    q = np.asarray(X).reshape(3, 5, 4, 2)
    weights = softmax(np.einsum("nqhd,nkd->nhqk", q, np.asarray(X)[..., :2]))
    return net, None, None, np.asarray(jnp.asarray(weights, jnp.bfloat16), np.float32)


def windows():  # of 2 rows, as a Swin's
    def net(_, x):
        x = x[:, :4].reshape(6, 2, 8)
        return (jax.nn.softmax(x @ x.mT) @ x).reshape(3, 4, 8)

    x = np.asarray(X)[:, :4].reshape(3, 2, 2, 8)
    return net, None, None, softmax(np.einsum("nwqd,nwkd->nwqk", x, x))


def where():
    mask = np.tril(np.ones((1, 5, 5), bool))

    def net(_, x):
        return jax.nn.softmax(x @ x.mT, where=mask) @ x

    scores = np.einsum("nqd,nkd->nqk", X, X)
    return net, None, None, softmax(np.where(mask, scores, -1e30))[:, None]


def pooled():  # one learned query, from the scores less the logarithm of their sum
    def net(w, x):
        return jnp.einsum("nk,nkd->nd", jnp.exp(jax.nn.log_softmax(x @ w)), x)

    return net, W[0, 0], None, softmax(np.asarray(X) @ np.asarray(W[0, 0]))[:, None, None]


def masked_by_numbers():  # zeros and ones of x itself
    def net(_, x):
        kept = (x[..., 0] > 0).astype(x.dtype)
        weights = jnp.exp(x @ x.mT) * kept[:, None]
        return (weights / (weights.sum(-1, keepdims=True) + 1e-9)) @ x

    kept = np.asarray(X)[..., 0] > 0
    scores = np.where(kept[:, None], np.einsum("nqd,nkd->nqk", X, X), -1e30)
    return net, None, None, np.where(kept[:, None], softmax(scores), 0)[:, None]


def sink():  # a place beside the keys takes what attention is not needed
    def net(_, x):
        scores = jnp.concatenate([x @ x.mT, jnp.ones((3, 5, 1))], -1)
        return jax.nn.softmax(scores)[..., :-1] @ x

    scores = np.concatenate([np.einsum("nqd,nkd->nqk", X, X), np.ones((3, 5, 1))], -1)
    return net, None, None, softmax(scores)[:, None, :, :-1]


def capped():  # the scores go no further than 2; divided only after the product, in a scan
    def net(w, x):
        def block(x, w):
            scores = 2 * jnp.tanh(x @ w @ x.mT / 2)
            e = jnp.exp(scores - scores.max(-1, keepdims=True))
            return (e @ x) * (1 / (e.sum(-1, keepdims=True) + 1e-9)), None

        return jax.lax.scan(block, x, w)[0]

    scores = np.einsum("nqd,de,nke->nqk", X, W[0], X)
    return net, W[:2], "scan_0[0]", softmax(2 * np.tanh(scores / 2))[:, None]


def flash():  # heads; sums beside the product, moved about before they divide; a sink of its own
    def net(_, x):
        q = x.reshape(3, 5, 2, 4)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, q)
        most = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), 0.5))
        e = jnp.exp(scores - most)
        e = jnp.where(np.tri(5, dtype=bool)[None, None], e, 0)
        o = jnp.einsum("nhqk,nkhd->nqhd", e, q)
        total = e.sum(-1) + jnp.exp(0.5 - most)[..., 0]
        return (o / jnp.swapaxes(total, 1, 2)[..., None]).reshape(3, 5, 8)

    q = np.asarray(X).reshape(3, 5, 2, 4)
    scores = np.einsum("nqhd,nkhd->nhqk", q, q)
    scores = np.where(np.tri(5, dtype=bool), scores, -1e30)
    sink = np.full((3, 2, 5, 1), 0.5)
    return net, None, None, softmax(np.concatenate([scores, sink], -1))[..., :-1]


def interleaved():  # heads numbered as the model joins them, those that share keys apart
    def net(_, x):
        q, k = x.reshape(3, 5, 2, 2, 2), x[..., :4].reshape(3, 5, 2, 2)
        weights = jax.nn.softmax(jnp.einsum("nqgkd,ntkd->ngkqt", q, k))
        return jnp.einsum("ngkqt,ntkd->nqgkd", weights, k).reshape(3, 5, 8)

    q = np.asarray(X).reshape(3, 5, 4, 2)
    k = np.asarray(X)[..., :4].reshape(3, 5, 2, 2)[:, :, [0, 1, 0, 1]]
    return net, None, None, softmax(np.einsum("nqhd,nkhd->nhqk", q, k))


def pooled_by_hand():  # weights times values, added up; scores less a log-sum-exp; a + 0
    def net(w, x):
        scores = x @ w
        weights = jnp.exp(scores - jax.nn.logsumexp(scores, -1, keepdims=True)) + 0.0
        return (weights[..., None] * x).sum(1)

    return net, W[0, 0], None, softmax(np.asarray(X) @ np.asarray(W[0, 0]))[:, None, None]


def head_mask():  # a number of params for each head, by an einsum that sums over nothing
    def net(w, x):
        q = x.reshape(3, 5, 2, 4)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, q))
        weights = jnp.einsum("...hqk,h->...hqk", weights, w)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, q)

    q, mask = np.asarray(X).reshape(3, 5, 2, 4), np.array([1, 0.5])
    weights = softmax(np.einsum("nqhd,nkhd->nhqk", q, q)) * mask[:, None, None]
    return net, jnp.asarray(mask, jnp.float32), None, weights


ALL = [linen, nnx_, equinox, keras, haiku, by_hand, scanned, library, one_head_of_keys]
ALL += [windows, where, pooled, masked_by_numbers, sink, head_mask]
ALL += [capped, flash, interleaved, pooled_by_hand]


@pytest.mark.parametrize("made", ALL, ids=lambda made: made.__name__)
def test_attention_is_found_and_has_the_same_numbers(made, stack):
    if made is keras:  # as Keras is written
        for setting in (jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")):
            stack.enter_context(setting)
    apply_fn, params, name, weights = made()
    found = jv.attentions(apply_fn, params, X)
    assert len(found) == {scanned: 3, capped: 2}.get(made, 1)
    assert name is None or next(iter(found)) == name
    np.testing.assert_allclose(next(iter(found.values())), weights, atol=2e-6)


def test_attention_across_inputs_and_batches_elsewhere():
    y = jax.random.normal(jax.random.key(3), (3, 7, 8))
    net = lambda _, xy: jax.nn.softmax(xy[0] @ xy[1].mT) @ xy[1]
    (found,) = jv.attentions(net, None, (X, y)).values()
    np.testing.assert_allclose(found[:, 0], softmax(np.asarray(X) @ np.asarray(y.mT)), atol=2e-6)
    last = lambda _, x: jax.vmap(lambda x: jax.nn.softmax(x @ x.T) @ x, 2)(jnp.moveaxis(x, 0, 2))
    (found,) = jv.attentions(last, None, X).values()
    np.testing.assert_allclose(found[:, 0], softmax(np.asarray(X) @ np.asarray(X.mT)), atol=2e-6)


def test_one_example_may_lose_its_axis():
    net = lambda _, x: (jax.nn.softmax(x[0] @ x[0].T) @ x[0])[None]
    (found,) = jv.attentions(net, None, X[:1]).values()
    np.testing.assert_allclose(found[:, 0], softmax(np.asarray(X[:1] @ X[:1].mT)), atol=2e-6)


NONE = {
    "classes": lambda _, x: jax.nn.softmax(x @ W[0]) @ W[1],
    "experts": lambda _, x: jnp.einsum(
        "nte,nted->ntd", jax.nn.softmax(x @ W[0, :, :2]), jnp.stack([x, x], 2)
    ),
    "another axis": lambda _, x: jax.nn.softmax(x @ x.mT, axis=1) @ x,
}


@pytest.mark.parametrize("name", NONE)
def test_what_only_looks_like_attention_is_none(name):
    with pytest.raises(ValueError, match="the model must have an attention; no weights over keys"):
        jv.attentions(NONE[name], None, X)


def test_attention_divided_late_is_changed_as_if_it_had_been_divided_first():
    """Oracle: the same function as it is usually written."""

    def first(w, x):
        for _ in range(2):
            weights = jax.nn.softmax(x @ w @ x.mT)
            x = x + jnp.tanh(weights @ x)
        return x.mean(1)

    def late(w, x):
        for _ in range(2):
            e = jnp.exp(x @ w @ x.mT)
            x = x + jnp.tanh((e @ x) / e.sum(-1, keepdims=True))
        return x.mean(1)

    def every(net, x):
        places = ("attention_0:weights", "attention_1:heads")
        gone = jv.patched(net, places, 0.5, where=np.s_[:, 2])
        return gone(W[0] / 9, x), [
            m(net, W[0] / 9, x, 0) for m in (jv.attention_relevance, jv.le_grad)
        ]

    pairs = jax.jit(lambda x: (every(late, x), every(first, x)))(X)
    for ours, theirs in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


UNREAD = {
    "linear attention": (
        lambda _, x: jnp.exp(x @ W[0]) @ (jnp.exp(x @ W[1]).mT @ x),
        r"the product at .*test_maps\.py:\d+ mixes keys with values .* as linear attention does",
    ),
    "a loop": (
        lambda _, x: jax.lax.map(lambda x: jax.nn.softmax(x @ x.T) @ x, x),
        r"the attention at .*test_maps\.py:\d+ stands within a loop or branch; write it as",
    ),
    "chunks of keys": (
        lambda _, x: jax.lax.fori_loop(0, 2, lambda i, y: y + jnp.exp(y @ x.mT) @ x, x),
        r"stand within a loop or branch, .* at .*test_maps\.py:\d+",
    ),
    "a loop without": (
        lambda _, x: jax.lax.while_loop(lambda x: x.sum() < 0, jnp.tanh, jax.nn.softmax(x)),
        "contracts; one in a loop over time or a branch cannot be read",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_cannot_be_read_is_named_with_its_line(name):
    net, told = UNREAD[name]
    with pytest.raises(ValueError, match=told):
        jv.attentions(net, None, X)


def test_a_kernel_that_may_hide_one_is_named_with_its_line():
    from jax.experimental import pallas as pl

    def kernel(x, o):
        o[...] = x[...]

    def net(_, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x)

    with pytest.raises(ValueError, match=r"pallas_call at .*test_maps\.py:\d+ may hide one"):
        jv.attentions(net, None, X)
