"""Forms of attention from papers, found with the weights that NumPy makes of their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

N, T, H, K = 2, 6, 2, 4
X = jax.random.normal(jax.random.key(0), (N, T, H * K))
DRAW = np.random.default_rng(0)
BIAS = DRAW.normal(size=(9, H)).astype(np.float32)
HERE = np.asarray(X, np.float64).reshape(N, T, H, K).transpose(0, 2, 1, 3)  # [N, H, T, K]
DISTANCE = np.arange(T)[:, None] - np.arange(T)
SCORES = np.einsum("nhqk,nhtk->nhqt", HERE, HERE) / 2
CAUSAL = np.tril(np.ones((T, T), bool))


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def heads(x):
    return x.reshape(*x.shape[:2], H, K).swapaxes(1, 2)


def by_scores(change):
    """A net of one attention whose scores are made of queries and keys by `change`."""

    def net(w, x):
        q = heads(x)
        a = jax.nn.softmax(change(w, q, q))
        return (a @ q).swapaxes(1, 2).reshape(x.shape)

    return net


def plain(q, k):
    return jnp.einsum("nhqk,nhtk->nhqt", q, k) / 2


def t5(w, q, k):  # a learned number for each distance, looked up
    return plain(q, k) + jnp.moveaxis(w[DISTANCE % 9], -1, 0)[None]


def alibi(w, q, k):
    slopes = 2.0 ** -jnp.arange(1.0, H + 1)
    return (
        plain(q, k)
        - slopes[None, :, None, None] * jnp.asarray(abs(DISTANCE), jnp.float32)[None, None]
    )


def deberta(w, q, k):  # content to position, looked up by distance
    positions = jnp.concatenate([w[:, :1]] * K, 1)  # [9, K]
    to = jnp.einsum("nhqk,pk->nhqp", q, positions)
    where = jnp.broadcast_to(jnp.asarray(DISTANCE % 9)[None, None], (*q.shape[:2], T, T))
    return plain(q, k) + jnp.take_along_axis(to, where, -1)


def unit(a):
    return a / jnp.sqrt(jnp.square(a).mean(-1, keepdims=True) + 1e-6)


def normed(w, q, k):
    return plain(unit(q), unit(k))


def turned(a):
    """Rotary positions in the first two of four dimensions."""
    angle = 0.5 * jnp.arange(1.0 * a.shape[2])[None, None, :, None]
    one, two, rest = a[..., :1], a[..., 1:2], a[..., 2:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([one * cos - two * sin, one * sin + two * cos, rest], -1)


def rotary(w, q, k):
    return plain(turned(q), turned(k))


def low_rank(w, q, k):  # latents from which keys are made again, as in MLA
    return plain(q, (k @ w[:4, :1]) @ w[:1, :1] @ jnp.ones((1, K)))


def _np_unit(a):
    return a / np.sqrt(np.square(a).mean(-1, keepdims=True) + 1e-6)


def _np_turned(a):
    angle = 0.5 * np.arange(T)[:, None]
    first = np.stack([a[..., 0], a[..., 1]], -1)
    cos, sin = np.cos(angle), np.sin(angle)
    one, two = first[..., :1], first[..., 1:]
    return np.concatenate([one * cos - two * sin, one * sin + two * cos, a[..., 2:]], -1)


def _np_scores(q, k):
    return np.einsum("nhqk,nhtk->nhqt", q, k) / 2


LATENT = HERE @ BIAS[:4, :1] @ BIAS[:1, :1] @ np.ones((1, K))
TO = np.einsum("nhqk,pk->nhqp", HERE, np.concatenate([BIAS[:, :1]] * K, 1))
FORMS = {
    "T5 bias": (t5, softmax(SCORES + np.moveaxis(BIAS[DISTANCE % 9], -1, 0))),
    "ALiBi": (alibi, softmax(SCORES - 2.0 ** -np.arange(1, 3)[:, None, None] * abs(DISTANCE))),
    "DeBERTa": (
        deberta,
        softmax(SCORES + TO[:, :, np.arange(T)[:, None], DISTANCE % 9]),
    ),
    "QK-norm": (normed, softmax(_np_scores(_np_unit(HERE), _np_unit(HERE)))),
    "partial rotary": (rotary, softmax(_np_scores(_np_turned(HERE), _np_turned(HERE)))),
    "low-rank keys": (low_rank, softmax(_np_scores(HERE, LATENT))),
}


@pytest.mark.parametrize("name", FORMS)
def test_scores_of_any_making_are_found(name):
    change, wanted = FORMS[name]
    (found,) = jv.attentions(by_scores(change), jnp.asarray(BIAS), X).values()
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_talking_heads_before_the_softmax_are_found():
    mix = jnp.asarray(BIAS[:2, :2])
    net = by_scores(lambda w, q, k: jnp.einsum("nhqt,hg->ngqt", plain(q, k), w))
    (found,) = jv.attentions(net, mix, X).values()
    np.testing.assert_allclose(
        found, softmax(np.einsum("nhqt,hg->ngqt", SCORES, BIAS[:2, :2])), atol=2e-6
    )


def test_softmax_off_by_one_is_found():
    """exp(s) / (1 + sum exp(s)): rows sum to less than 1."""

    def net(w, x):
        q = heads(x)
        e = jnp.exp(plain(q, q))
        return (e / (1 + e.sum(-1, keepdims=True))) @ q

    (found,) = jv.attentions(net, None, X).values()
    e = np.exp(SCORES)
    np.testing.assert_allclose(found, e / (1 + e.sum(-1, keepdims=True)), atol=2e-6)


def test_keys_of_a_cache_ahead_of_the_tokens_are_found():
    cache = DRAW.normal(size=(N, H, 3, K)).astype(np.float32)

    def net(w, x):
        q = heads(x)
        k = jnp.concatenate([w, q], 2)
        after = jnp.asarray(np.arange(T)[:, None] + 3 >= np.arange(T + 3))
        return jax.nn.softmax(jnp.where(after[None, None], plain(q, k), -jnp.inf)) @ k

    (found,) = jv.attentions(net, jnp.asarray(cache), X).values()
    scores = _np_scores(HERE, np.concatenate([cache, HERE], 2))
    seen = np.arange(T)[:, None] + 3 >= np.arange(T + 3)
    np.testing.assert_allclose(found, softmax(np.where(seen, scores, -np.inf)), atol=2e-6)


def test_several_memories_are_several_attentions():
    y = X[:, :4]

    def net(w, xy):
        (x, y), q = xy, heads(xy[0])
        over = lambda m: jax.nn.softmax(plain(q, heads(m))) @ heads(m)
        return over(x) + over(y)

    one, two = jv.attentions(net, None, (X, y)).values()
    np.testing.assert_allclose(one, softmax(SCORES), atol=2e-6)
    np.testing.assert_allclose(two, softmax(SCORES[..., :4]), atol=2e-6)


LIBRARY = {
    "bias": ({"bias": jnp.asarray(np.moveaxis(BIAS[DISTANCE % 9], -1, 0)[None])}, None),
    "mask": ({"mask": jnp.asarray(abs(DISTANCE) < 3)[None, None]}, abs(DISTANCE) < 3),
    "causal": ({"is_causal": True}, CAUSAL),
    "window": ({"local_window_size": (2, 1)}, (DISTANCE <= 2) & (DISTANCE >= -1)),
    "lengths": (
        {"key_value_seq_lengths": jnp.array([4, 6])},
        (np.arange(T) < np.array([[4], [6]]))[:, None, None],
    ),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_every_option_of_the_library_is_found(name):
    options, seen = LIBRARY[name]

    def net(w, x):
        q = x.reshape(N, T, H, K)
        return jax.nn.dot_product_attention(q, q, q, **options)

    (found,) = jv.attentions(net, None, X).values()
    scores = SCORES + (np.moveaxis(BIAS[DISTANCE % 9], -1, 0) if name == "bias" else 0)
    np.testing.assert_allclose(
        found, softmax(scores if seen is None else np.where(seen, scores, -1e30)), atol=2e-6
    )
