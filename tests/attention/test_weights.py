"""Forms of attention whose weights are no plain softmax; oracle: the weights the model itself made.

Each form gives what it makes of the values, and the weights just as they multiply them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

N, T, H, K = 2, 6, 2, 4
X = jax.random.normal(jax.random.key(0), (N, T, H * K))
W = jax.random.normal(jax.random.key(1), (8, 8)) / 2
softmax = jax.nn.softmax


def heads(x, count=H):
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def scores(q, k):
    return jnp.einsum("nhqk,nhtk->nhqt", q, k) / 2


def per_head(row):
    return row[None, :, None, None]


def over_values(a, x):
    """What weights [N, heads, queries, keys] make of values."""
    return (a @ heads(x)).swapaxes(1, 2).reshape(N, T, -1), a


def plain(x, sign=1):
    return softmax(scores(heads(x), sign * heads(x)))


def talking_heads(w, x):  # mixed ahead of the softmax and after it
    mixed = jnp.einsum("nhqt,hg->ngqt", scores(heads(x), heads(x)), w[:2, :2])
    return over_values(jnp.einsum("nhqt,hg->ngqt", softmax(mixed), w[2:4, :2]), x)


def mixed_with_norm(w, x):  # re-attention: mixed, then a batch norm over heads
    a = jnp.einsum("hg,nhqt->ngqt", w[:2, :2], plain(x))
    return over_values(a * per_head(w[0, :2]) + per_head(w[1, :2]), x)


def heads_averaged(w, x):  # interpretable heads: one matrix of weights
    a = plain(x).mean(1)
    return a @ x, a[:, None]


def two_softmaxes_apart(w, x):
    return over_values(plain(x) - w[0, 0] * plain(x, -1), x)


def differential(w, x):  # twice the heads, in pairs; the difference scaled by a norm behind it
    a = softmax(scores(heads(x, 4), heads(x, 4))).reshape(N, 2, 2, T, T)
    z, a = over_values(a[:, :, 0] - w[0, 0] * a[:, :, 1], x)
    return z / jnp.sqrt((z * z).mean(-1, keepdims=True) + 1e-6), a


def differential_split(w, x):
    one, two = jnp.split(softmax(scores(heads(x, 4), heads(x, 4))), 2, axis=1)
    return over_values(one - w[0, 0] * two, x)


def sigmoid(w, x):
    return over_values(jax.nn.sigmoid(scores(heads(x), heads(x)) - np.log(T)), x)


def sigmoid_written_out(w, x):
    return over_values(1 / (1 + jnp.exp(-scores(heads(x), heads(x)))), x)


def relu(w, x):  # divided by the number of keys
    return over_values(jax.nn.relu(scores(heads(x), heads(x))) / T, x)


def squared_relu(w, x):
    a = jnp.square(jax.nn.relu(x @ x.mT / T))
    return a @ x, a[:, None]


def relu_normalised(w, x):
    a = jax.nn.relu(scores(heads(x), heads(x)))
    return over_values(a / (a.sum(-1, keepdims=True) + 1e-6), x)


def learned_sinks(w, x):
    sinks = jnp.broadcast_to(per_head(w[0, :2]), (N, H, T, 1))
    return over_values(
        softmax(jnp.concatenate([scores(heads(x), heads(x)), sinks], -1))[..., :-1], x
    )


def dropped(w, x):
    a = plain(x)
    return over_values(
        jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, a.shape), 2 * a, 0.0), x
    )


def clipped(w, x):
    return over_values(jnp.clip(1.2 * plain(x) - 0.1, 0, 1), x)


def gated_outputs(w, x):
    z, a = over_values(plain(x), x)
    return z * jax.nn.sigmoid(x @ w), a


def gated_heads(w, x):
    gates = jax.nn.sigmoid(x @ w[:, :2]).swapaxes(1, 2)[..., None]
    return over_values(plain(x) * gates, x)


def gated_keys(w, x):
    a = plain(x) * jax.nn.sigmoid(x @ w[:, :2]).swapaxes(1, 2)[:, :, None]
    return over_values(a / a.sum(-1, keepdims=True), x)


def two_kinds_mixed(w, x):  # by content and by position, as ConViT's
    share = jax.nn.sigmoid(per_head(w[0, :2]))
    a = (1 - share) * plain(x) + share * softmax(w[:T, :T])[None, None]
    return over_values(a / a.sum(-1, keepdims=True), x)


def slots(w, x):  # a softmax over the slots, divided by the sum over the keys
    a = softmax(jnp.einsum("sd,nkd->nsk", w[:3], x), axis=1) + 1e-8
    a = a / a.sum(-1, keepdims=True)
    return a @ x, a[:, None]


def latents(w, x):
    a = softmax(jnp.einsum("ld,nkd->nlk", w[:3], x))
    return a @ x, a[:, None]


def latent_keys(w, x):  # multi-head latent attention: rotary keys shared, values made again
    c, q = x @ w[:, :3], x.reshape(N, T, H, K)
    keys = (c @ w[:3]).reshape(N, T, H, K)
    s = jnp.einsum("nqhd,nkhd->nhqk", q, keys)
    a = softmax(s + jnp.einsum("nqhd,nkd->nhqk", q[..., :2], x @ w[:, :2]))
    return jnp.einsum("nhqk,nkhd->nqhd", a, (c @ w[3:6]).reshape(N, T, H, K)), a


def latent_absorbed(w, x):  # the same kind as it is served: the latents are keys and values
    c = x @ w[:, :3]
    q = jnp.einsum("nqhd,dc->nqhc", x.reshape(N, T, H, K), w[:4, :3])
    a = softmax(jnp.einsum("nqhc,nkc->nhqk", q, c))
    return jnp.einsum("nhqk,nkc,cd->nqhd", a, c, w[:3]), a


def cosine(w, x):
    unit = heads(x) / jnp.linalg.norm(heads(x), axis=-1, keepdims=True)
    s = scores(unit, unit) * jnp.exp(per_head(w[0, :2])) + w[None, None, :T, :T]
    return over_values(softmax(s), x)


def windows(w, x):
    b = x.reshape(N * 3, 2, 8)
    a = softmax(b @ b.mT)
    return (a @ b).reshape(x.shape), a.reshape(N, 3, 2, 2)


def overlapping_windows(w, x):  # a block and the one before it
    b = x.reshape(N, 3, 2, 8)
    before = jnp.pad(b, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    keys = jnp.concatenate([before, b], 2)
    a = softmax(jnp.einsum("nbqd,nbkd->nbqk", b, keys))
    return (a @ keys).reshape(x.shape), a


def neighbourhoods(w, x):  # keys gathered for each query
    near = np.clip(np.arange(T)[:, None] + np.arange(-3, 3), 0, T - 1)
    a = softmax(jnp.einsum("nqd,nqwd->nqw", x, x[:, near]))
    return jnp.einsum("nqw,nqwd->nqd", a, x[:, near]), a[:, :, None]


def channels(w, x):  # cross-covariance
    q, k = heads(x @ w), heads(x @ w.T)
    unit = lambda a: a / jnp.sqrt((a * a).sum(2, keepdims=True))
    a = softmax(unit(q).mT @ unit(k))
    return (a @ heads(x).mT).mT.swapaxes(1, 2).reshape(x.shape), a


FORMS = [talking_heads, mixed_with_norm, heads_averaged, two_softmaxes_apart, differential]
FORMS += [differential_split, sigmoid, sigmoid_written_out, relu, squared_relu, relu_normalised]
FORMS += [learned_sinks, dropped, clipped, gated_outputs, gated_heads, gated_keys, two_kinds_mixed]
FORMS += [slots, latents, latent_keys, latent_absorbed, cosine, windows, overlapping_windows]
FORMS += [neighbourhoods, channels]


def alone(form):
    return lambda w, x: form(w, x)[0].mean(1)


@functools.cache
def numbers():
    """Each form's own weights and those found, in one program."""
    both = lambda w, x: [(form(w, x)[1], jv.attentions(alone(form), w, x)) for form in FORMS]
    return dict(zip(FORMS, jax.jit(both)(W, X), strict=True))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_weights_are_found_as_they_multiply_the_values(form):
    own, found = numbers()[form]
    assert list(found) == ["attention_0"]
    np.testing.assert_allclose(found["attention_0"], own, atol=1e-6)


def retention(w, x):
    return (scores(heads(x), heads(x)) * jnp.tril(jnp.ones((1, 1, T, T)))) @ heads(x)


def linear(w, x):
    q = jax.nn.elu(heads(x)) + 1
    return q @ (q.mT @ heads(x))


def convolved(w, x):  # multi-token attention: weights of several queries and keys together
    kernel = w[None, None, :3, :3] * jnp.eye(2)[..., None, None]
    return jax.lax.conv_general_dilated(plain(x), kernel, (1, 1), "SAME") @ heads(x)


def sparse(w, x):  # the largest weights and their values alone
    a, best = jax.lax.top_k(softmax(x @ x.mT), 2)
    return jnp.einsum("nqk,nqkd->nqd", a, jax.vmap(lambda x, i: x[i])(x, best))


def looped(w, x):
    return jax.lax.map(lambda x: softmax(x @ x.T) @ x, x)


REFUSED = {
    retention: r"product at .*:\d+ sums values by products of queries and keys that no softmax",
    linear: r"product at .*:\d+ mixes keys with values over the tokens, as linear attention",
    convolved: r"softmax at .*:\d+ are changed by conv_general_dilated at .*:\d+, which is not",
    sparse: r"softmax at .*:\d+ are changed by top_k at .*:\d+, which is not followed",
    looped: r"attention at .*:\d+ stands within a loop or branch; write it as a scan over layers",
}


@pytest.mark.parametrize("form", REFUSED, ids=lambda form: form.__name__)
def test_what_cannot_be_read_is_refused_even_beside_what_can(form):
    net = lambda w, x: (form(w, x).reshape(N, -1), gated_outputs(w, x)[0])
    with pytest.raises(
        ValueError, match="attentions: the model must have an attention; .*" + REFUSED[form]
    ):
        jv.attentions(form, W, X)
    with pytest.raises(ValueError, match=REFUSED[form] + ".* Pass `layers`, .*: 'attention_0'"):
        jv.attentions(net, W, X)
    ask = functools.partial(jv.attentions, net, layers=["attention_0"])
    assert jax.eval_shape(ask, W, X)["attention_0"].shape == (N, H, T, T)


SIGNED = (
    "attention_rollout: the weights must be shares, none below 0; those of 'attention_0' may be"
)
UNFIT = {
    talking_heads: {jv.attention_rollout: SIGNED},
    differential: {jv.attention_rollout: SIGNED},
    **dict.fromkeys(
        [windows, neighbourhoods],
        dict.fromkeys(
            [jv.attention_rollout, jv.attention_relevance, jv.attention_x_gradient],
            r"the model's tokens; .* keys of a window|the same tokens",
        ),
    ),
    channels: dict.fromkeys(
        [jv.attention_rollout, jv.attention_relevance, jv.attention_x_gradient, jv.le_grad],
        r"over the model's tokens; .*'attention_0' \(2, 2, 4, 4\) are channels",
    ),
}


@pytest.mark.parametrize("form", UNFIT, ids=lambda form: form.__name__)
def test_methods_refuse_weights_that_they_have_no_meaning_for(form):
    for method, told in UNFIT[form].items():
        with pytest.raises(ValueError, match=told):
            jax.eval_shape(functools.partial(method, alone(form)), W, X, 0)


def test_relevance_of_differential_attention_takes_the_difference():
    """Equation 5 of Chefer et al. 2021, with the difference for A."""

    def net(w, x, extra=0.0):
        q = heads(x)
        a = softmax(scores(q, q)) - w[0, 0] * softmax(scores(q, -q)) + extra
        return (a @ heads(x)).swapaxes(1, 2).reshape(x.shape).mean(1), a

    slope = jax.grad(lambda extra: net(W, X, extra)[0][:, 1].sum())(jnp.zeros((N, H, T, T)))
    wanted = np.maximum(net(W, X)[1] * slope, 0).mean(1)
    found = jv.attention_relevance(lambda w, x: net(w, x)[0], W, X, 1, query=2)
    np.testing.assert_allclose(found, wanted[:, 2], atol=1e-6)


def test_attentions_side_by_side_take_the_same_relevance():
    def net(w, x, extra=(0.0, 0.0)):
        one, two = softmax(x @ x.mT) + extra[0], softmax(x @ w @ x.mT) + extra[1]
        return (x + one @ x + two @ jnp.tanh(x)).mean(1), (one, two)

    zeros = (jnp.zeros((N, T, T)),) * 2
    slopes = jax.grad(lambda extra: net(W, X, extra)[0][:, 0].sum())(zeros)
    pairs = zip(net(W, X)[1], slopes, strict=True)
    wanted = sum(np.maximum(a * g, 0) for a, g in pairs).mean(1)
    alone = lambda w, x: net(w, x)[0]
    np.testing.assert_allclose(jv.attention_relevance(alone, W, X, 0), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="'attention_0' and 'attention_1' stand side by side"):
        jv.attention_rollout(alone, W, X)
