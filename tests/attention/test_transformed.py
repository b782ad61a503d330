"""TokenTM on blocks written out; the oracle is its formula in NumPy, head by head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

N, T, D, H = 2, 5, 8, 2
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(N, T, D))
SHAPES = {"q": (D, D), "k": (D, D), "v": (D, D), "vb": (D,), "o": (D, D), "ob": (D,)}
SHAPES |= {"up": (D, 6), "down": (6, D), "db": (D,), "scale": (D,)}
W = {
    "blocks": [{k: DRAW.normal(size=s) / 2 for k, s in SHAPES.items()} for _ in range(2)],
    "head": DRAW.normal(size=(D, 3)),
}


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def plus(x, b):
    return x + jnp.broadcast_to(b, x.shape)


def split(x):
    return x.reshape(*x.shape[:2], H, D // H).swapaxes(1, 2)


def attend(w, x, extra, gate=1):
    """What heads join to, and the weights and values that they had."""
    q, k, v = (split(plus(x @ w[n], w["vb"]) if n == "v" else x @ w[n]) for n in "qkv")
    a = jax.nn.softmax(q @ k.mT) + extra
    y = (gate * (a @ v)).swapaxes(1, 2).reshape(x.shape) @ w["o"]
    return plus(y, w["ob"]), (a, gate * v)


def dense(w, x):
    return plus(jnp.tanh(x @ w["up"]) @ w["down"], w["db"])


# Blocks: from tokens to tokens, and their sums in order: (E, attention's weights and values or
# None, the scale of what attention adds, what dense layers add or None).
def pre(w, x, extra):
    y, seen = attend(w, norm(x), extra)
    x1 = x + y
    f = dense(w, norm(x1))
    return x1 + f, [(x, seen, 1, None), (x1, None, 1, f)]


def post(w, x, extra):
    y, seen = attend(w, x, extra)
    x1 = norm(x + y)
    f = dense(w, x1)
    return norm(f + x1), [(x, seen, 1, None), (x1, None, 1, f)]


def parallel(w, x, extra):  # GPT-J's, its sum from the right
    h = norm(x)
    y, seen = attend(w, h, extra)
    f = dense(w, h)
    return x + (y + f), [(x, seen, 1, f)]


def scaled(w, x, extra):  # LayerScale, two feed-forward sums, the last of two terms
    scale = jnp.broadcast_to(w["scale"], x.shape)
    y, seen = attend(w, norm(x), extra)
    x1 = x + scale * y
    f = scale * dense(w, norm(x1))
    x2 = x1 + f
    one, two = dense(w, norm(x2)), jnp.tanh(x2 @ w["o"])
    return one + x2 + two, [(x, seen, w["scale"], None), (x1, None, 1, f), (x2, None, 1, one + two)]


def experts(w, x, extra):
    """Tokens are taken to their expert and back, by products with ones and zeros."""
    y, seen = attend(w, norm(x), extra)
    x1 = x + y
    h = norm(x1)
    gates = jax.nn.softmax(h @ w["up"][:, :2])
    taken = (gates > 0.5).astype(int)
    place = jax.nn.one_hot(jnp.cumsum(taken, 1) - 1, T, dtype=x.dtype)
    sent = place * taken.astype(x.dtype)[..., None]
    given = jnp.einsum("ntep,ntd->nepd", sent, h)
    made = jnp.einsum("nepd,edf->nepf", given, jnp.stack([w["o"], w["q"]]))
    f = jnp.einsum("ntep,nepf->ntf", sent * gates[..., None], made)
    return x1 + f, [(x, seen, 1, None), (x1, None, 1, f)]


def gated(w, x, extra):  # heads' products are no longer those of the values alone
    h = norm(x)
    y, seen = attend(w, h, extra, jax.nn.sigmoid(split(h @ w["k"])))
    return x + y, [(x, seen, 1, None)]


def woven(w, x, extra):  # every second number is a head's, joined on the right of the projection
    h = norm(x)
    q, k, v = (
        (plus(h @ w[n], w["vb"]) if n == "v" else h @ w[n]).reshape(N, T, D // H, H) for n in "qkv"
    )
    a = jax.nn.softmax(jnp.einsum("nqch,nkch->hqnk", q, k)) + jnp.moveaxis(extra, 0, 2)
    z = jnp.einsum("hqnk,nkch->nqch", a, v).reshape(N, T, D)
    x1 = x + plus(jnp.einsum("dm,nqd->mqn", w["o"], z).transpose(2, 1, 0), w["ob"])
    order = np.arange(D).reshape(D // H, H).T.reshape(-1)
    seen = jnp.moveaxis(a, 2, 0), split(v.reshape(N, T, D)[..., order]), order
    return x1, [(x, seen, 1, None)]


def model(block, w, x, extra=None):
    sums = []
    for one, e in zip(w["blocks"], extra or [jnp.zeros((len(x), H, T, T))] * 2, strict=False):
        x, here = block(one, x, e)
        sums.append(here)
    return norm(x)[:, 0] @ w["head"], sums


def net(block, w, x):
    return model(block, w, x)[0]


def weight(e, made):
    """Equations 12 to 14: lengths' ratio times the softmax of cosines over tokens."""
    lengths, there = (np.linalg.norm(a, axis=-1) for a in (e, made))
    cosine = np.exp((e * made).sum(-1) / lengths / there)
    return there / lengths * cosine / cosine.sum(-1, keepdims=True)


def by_formula(block, target, weights=W, ones=False):
    """C of all blocks, `[N, tokens, tokens]`."""
    zeros = [jnp.zeros((N, H, T, T))] * len(weights["blocks"])

    def score(extra):
        outputs, sums = model(block, weights, X, extra)
        return outputs[:, target].sum(), sums

    slopes, sums = jax.tree.map(np.asarray, jax.jit(jax.grad(score, has_aux=True))(zeros))
    total = np.eye(T) * np.linalg.norm(sums[0][0][0], axis=-1)[:, None]
    for w, slope, here in zip(weights["blocks"], slopes, sums, strict=True):
        for e, seen, scale, f in here:
            u = np.zeros((N, T, T)) + np.eye(T)
            if seen is not None:
                a, v, *order = seen
                o = w["o"][order[0] if order else slice(None)].reshape(H, D // H, D)
                for h in range(H):
                    along = weight(e, v[:, h] @ o[h] * scale)
                    along = np.ones_like(along) if ones else along
                    u += np.maximum(slope[:, h] * a[:, h], 0) * along[:, None] / H
            if f is not None and not ones:
                u += np.eye(T) * weight(e, f)[:, None]
            total = u @ total
    return total


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


BLOCKS = {pre: 2, post: 2, parallel: 1, scaled: 1, gated: 1, woven: 1, experts: 1}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda f: f.__name__)
def test_is_the_papers_formula(block):
    w = {**W, "blocks": W["blocks"][: BLOCKS[block]]}
    ours = jv.token_tm(functools.partial(net, block), w, X, 1, query=0)
    np.testing.assert_allclose(ours, by_formula(block, 1, w)[:, 0], rtol=1e-9)


def test_with_every_token_as_it_was_it_is_relevance():
    whole = by_formula(pre, 1, ones=True) / np.linalg.norm(X, axis=-1)[:, None]
    relevance = jv.attention_relevance(functools.partial(net, pre), W, X, 1, query=2)
    np.testing.assert_allclose((whole - np.eye(T))[:, 2], relevance, rtol=1e-9)


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, None))


def kerass(w, x, extra):  # norms as sums of two values, x / s and -m / s; a product of one's own
    def norm(x):
        s = jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * s + jnp.broadcast_to(-x.mean(-1, keepdims=True) * s, x.shape)

    y, _ = attend({**w, "o": jnp.eye(D), "ob": jnp.zeros(D)}, x, extra)
    x1 = norm(plus(product(y, w["o"]), w["ob"]) + x)
    return norm(x1 + dense(w, x1)), []


def looped(w, x):  # as `post` in a scan, with remat
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *w["blocks"])
    block = jax.checkpoint(lambda x, w: (post(w, x, 0.0)[0], None))
    return norm(jax.lax.scan(block, x, stacked)[0])[:, 0] @ w["head"]


def test_it_is_the_same_however_it_is_written(monkeypatch):
    wanted = by_formula(post, 1).mean(1)
    for budget, written in enumerate([looped, functools.partial(net, kerass)]):
        if budget == 0:
            monkeypatch.setattr("jaxviz.graph.recompute.BUDGET", 0)
        ours = jv.token_tm(written, W, X, 1, chunk_size=1)
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)  # keras' variance is another sum


def alone(w, x):
    return jax.nn.softmax(x @ x.mT) @ (x @ w)


def convolved(x, w):
    places = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x, w[None, :] * jnp.ones((3, 1, 1)), (1,), "SAME", dimension_numbers=places
    )


def looped_over(x):
    step = lambda c, a: (jnp.tanh(c + a),) * 2
    return jax.lax.scan(step, jnp.zeros((N, D)), x.swapaxes(0, 1))[1].swapaxes(0, 1)


REFUSED = {
    "no residual": (lambda w, x: alone(w, x), "added to the tokens, as in a residual block; no su"),
    "together": (
        lambda w, x: x + jnp.concatenate([alone(w, x), jnp.tanh(x @ w)], -1) @ jnp.ones((2 * D, D)),
        r"in the block of 'attention_0', concatenate at .*:\d+ joins attention's to others",
    ),
    "other tokens": (
        lambda w, x: jnp.tanh(x @ w) + alone(w, x),
        r"of add at .*:\d+, in the block of 'attention_0', which of the terms are the tokens is no",
    ),
    "weighed": (
        lambda w, x: (y := x + alone(w, x)) * (g := jnp.tanh(y @ w)) + (1 - g) * (y @ w),
        "in the block of 'attention_0', which of the terms are the tokens is not plain",
    ),
    "taken off": (
        lambda w, x: norm((y := x + alone(w, x)) - jnp.tanh(y @ w) + jnp.tanh(x)),
        "of sub at .*, this is no sum, and the tokens go through it",
    ),
    "a layer alone": (
        lambda w, x: pre(W["blocks"][0], jnp.tanh((x + alone(w, x)) @ w), 0.0)[0],
        "of dot_general at .*, this is no sum, and the tokens go through it",
    ),
    "a convolution": (
        lambda w, x: (y := x + alone(w, x)) + convolved(norm(y), w),
        r"of add at .*, in the block of 'attention_0', one term is made by conv_general_dilated at "
        r".*test_transformed\.py:\d+, which mixes tokens",
    ),
    "a mixer": (
        lambda w, x: (y := x + alone(w, x)) + jnp.einsum("ntd,ts->nsd", norm(y), w[:T, :T]),
        "one term is made by dot_general at .*, which mixes tokens",
    ),
    "a loop over tokens": (
        lambda w, x: (y := x + alone(w, x)) + looped_over(norm(y)),
        "one term is made by scan at .*, which mixes tokens",
    ),
    "attention of others' tokens": (
        lambda w, x: x + jnp.einsum("ntd,ts->nsd", alone(w, x), w[:T, :T]),
        "one term is made by dot_general at .*, which mixes tokens",
    ),
    "side by side": (
        lambda w, x: x + alone(w, x) + jax.nn.softmax(x @ w @ x.mT) @ x,
        "'attention_0' and 'attention_1' stand side by side",
    ),
    "windows": (
        lambda w, x: x[:, :4] + alone(w, x[:, :4].reshape(2 * N, 2, D)).reshape(N, 4, D),
        "keys of a window|over the same tokens",
    ),
    "across": (
        lambda w, x: x + jax.nn.softmax(x @ x[:, :3].mT) @ x[:, :3],
        "the attentions must be over the same tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_is_refused_by_name(name):
    made, told = REFUSED[name]
    explain = lambda w, x, **options: jv.token_tm(
        lambda w, x: made(w, x).mean(1), w, x, 0, **options
    )
    with pytest.raises(ValueError, match="token_tm: .*" + told):
        jax.eval_shape(explain, W["blocks"][0]["q"], X)
    if name == "side by side":  # the other one alone is no dense layer
        with pytest.raises(ValueError, match="one term is made by 'attention_1', which mixes"):
            jax.eval_shape(
                functools.partial(explain, layers=["attention_0"]), X[0, :1].T * X[0, :1], X
            )


def test_tokens_of_no_length_and_scores_that_are_not_numbers():
    x = jnp.asarray(X, jnp.bfloat16).at[0, 3].set(0).at[1, 2].set(jnp.nan)
    f = lambda w, x: (x + alone(w, x))[:, 0]
    found = jv.token_tm(f, jnp.asarray(W["blocks"][0]["q"], jnp.bfloat16), x, 0, query=0)
    assert found.dtype == jnp.float32
    assert found[0, 3] == 0
    assert jnp.isfinite(found[0]).all()
    assert jnp.isnan(found[1]).any()


def test_padding_changes_nothing():  # oracle: each example by itself
    def masked(w, given):
        x, real = given
        for one in w["blocks"]:
            scores = jnp.where(real[:, None], x @ one["q"] @ x.mT, -jnp.inf)
            x = x + jax.nn.softmax(scores) @ (x @ one["o"])
            x = x + dense(one, norm(x))
        return x[:, 0] @ w["head"]

    explain = lambda x, real: jv.token_tm(masked, W, (x, real), 1, query=0)
    lengths = np.array([[5], [3]])
    found = explain(X, np.arange(T) < lengths)
    np.testing.assert_array_equal(found[1, 3:], 0)
    np.testing.assert_allclose(found[1:, :3], explain(X[1:, :3], np.ones((1, 3), bool)), rtol=1e-12)


def test_token_ids_are_read_where_they_are_embedded():
    ids = DRAW.integers(0, T, (N, T))
    f = lambda w, ids: net(pre, w, w["words"][ids])
    ours = jv.token_tm(f, {**W, "words": X[0]}, ids, 1, query=0)
    embedded = jv.token_tm(functools.partial(net, pre), W, X[0][ids], 1, query=0)
    np.testing.assert_allclose(ours, embedded, rtol=1e-9)


QUERY = {"token_tm": {"query": 0}, "le_grad": {}, "value_zeroing": {"query": 0}}


@pytest.mark.parametrize("name", QUERY)
def test_it_can_be_differentiated(name):  # oracle: central differences
    one = {**W, "blocks": W["blocks"][:1]}
    weights = jnp.arange(1.0 * T)[None]  # what value zeroing gives sums to 1
    model = functools.partial(net, pre)
    explain = lambda x: (getattr(jv, name)(model, one, x, 1, **QUERY[name]) * weights).sum()
    x, along, step = jnp.asarray(X), DRAW.normal(size=X.shape), 1e-6
    slope = (explain(x + step * along) - explain(x - step * along)) / (2 * step)
    np.testing.assert_allclose((jax.grad(explain)(x) * along).sum(), slope, rtol=1e-6)
