"""Methods of a transformer's blocks; the oracle is the same block written out, run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.models.transformer import VisionTransformer

N, T, D, H = 2, 5, 8, 2
X = jax.random.normal(jax.random.key(0), (N, T, D))
SHAPES = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "up": (D, 6), "down": (6, D)}


def drawn(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: jax.random.normal(key, shape) / 2
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


W = {"blocks": [drawn(1), drawn(2)], "head": jax.random.normal(jax.random.key(3), (D, 3))}


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def heads(x):
    return x.reshape(*x.shape[:2], H, D // H)


def block(w, x, given=None, zeroed=None, extra=None):
    h = norm(x)
    q, k, v = (heads(h @ w[name]) for name in "qkv")
    a = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k)) if given is None else given
    a = a if extra is None else a + extra  # which later weights go by too
    v = v if zeroed is None else v.at[:, zeroed].set(0)
    x = x + jnp.einsum("nhqk,nkhd->nqhd", a, v).reshape(x.shape) @ w["o"]
    return x + jnp.tanh(norm(x) @ w["up"]) @ w["down"], a, v


def head(w, z):
    return norm(z)[:, 0] @ w["head"]


def net(w, x):
    for one in w["blocks"]:
        x = block(one, x)[0]
    return head(w, x)


def both(w, masked):  # as a text's: a mask goes past every block
    x = masked["x"]
    for one in w["blocks"]:
        x = block(one, x * masked["kept"][..., None])[0]
    return head(w, x)


@pytest.fixture(scope="module")
def states():
    """What each block takes, its weights, values, and what it gives."""
    found, x, run = [], X, jax.jit(block)
    for w in W["blocks"]:
        z, a, v = run(w, x)
        found.append((x, a, v, z))
        x = z
    return found


@pytest.fixture(scope="module")
def gradients(states):
    def score(extra):
        x = X
        for w, a in zip(W["blocks"], extra, strict=True):
            x = block(w, x, extra=a)[0]
        return head(W, x)[:, 1].sum()

    return jax.jit(jax.grad(score))([jnp.zeros_like(a) for _, a, *_ in states])


def test_value_zeroing_is_the_experiment(states):
    total, run = np.eye(T), jax.jit(block)
    for w, (x, a, _, z) in zip(W["blocks"], states, strict=True):
        moved = np.zeros((N, T, T))
        for j in range(T):
            y = np.asarray(run(w, x, a, j)[0], np.float64)
            lengths = np.linalg.norm(y, axis=-1) * np.linalg.norm(z, axis=-1)
            moved[:, :, j] = 1 - (y * np.asarray(z)).sum(-1) / lengths
        total = moved / moved.sum(-1, keepdims=True) @ total
    out = jv.value_zeroing(net, W, X, query=0)
    np.testing.assert_allclose(out, total[:, 0], atol=1e-5)
    np.testing.assert_allclose(jv.value_zeroing(net, W, X, query=0, chunk_size=2), out, atol=1e-6)


def test_le_grad_is_the_papers(states):
    mean = lambda a, w, x: block(w, x, a)[0].mean(1, keepdims=True)
    slope = jax.jit(jax.grad(lambda a, w, x: head(W, mean(a, w, x))[:, 1].sum()))
    total = np.zeros((N, T))
    for w, (x, a, *_) in zip(W["blocks"], states, strict=True):
        g = slope(a, w, x)
        total += np.maximum(g, 0).mean((1, 2)) / 2
    out = jv.le_grad(net, W, X, 1)
    np.testing.assert_allclose(out, total, atol=1e-5)
    assert out.max() > 0.01
    ones = jnp.ones((N, T))
    beside = jv.le_grad(both, W, {"x": X, "kept": ones}, 1, chunk_size=1)
    np.testing.assert_allclose(beside, out, atol=1e-5)


def test_weights_that_are_many_are_made_again_to_the_same_numbers(monkeypatch, gradients, states):
    total = np.zeros((T, T))
    for (_, a, *_), g in zip(states, gradients, strict=True):
        step = np.maximum(a * g, 0).mean(1)
        total = total + step + step @ total
    monkeypatch.setattr("jaxviz.graph.recompute.BUDGET", 0)
    again = lambda w, x: net(w, x)
    found = jax.make_jaxpr(lambda x: jv.attention_relevance(again, W, x, 1, query=0))(X)
    assert str(found).count("remat2[") + str(found).count("checkpoint[") >= 2
    out = jv.attention_relevance(again, W, X, 1, query=0, chunk_size=1)
    np.testing.assert_allclose(out, total[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["value_zeroing", "le_grad"])
def test_a_block_that_hands_no_tokens_on_is_refused(name):
    def pooled(w, x):  # heads are never joined for each token
        x = heads(x).swapaxes(1, 2)
        return (jax.nn.softmax(x @ x.mT) @ x).mean(2).reshape(len(x), -1)

    with pytest.raises(ValueError, match=f"{name}: what the block of 'attention_0' hands on must"):
        getattr(jv, name)(pooled, None, X, 0)


def speaks(a, g):
    return np.maximum(np.asarray(a) * np.asarray(g), 0).mean(1)


def crossed(w, xy, extra=None):
    """Each of two inputs looks at itself, then at the other as it was, then one at itself."""
    made = []

    def mix(q, kv, number):
        a = jax.nn.softmax(jnp.einsum("nqd,de,nke->nqk", q, w[number], kv))[:, None]
        a = a if extra is None else a + extra[number]
        made.append(a)
        return q + a[:, 0] @ jnp.tanh(kv)

    x, y = xy
    x, y = mix(x, x, 0), mix(y, y, 1)
    x, y = mix(x, y, 2), mix(y, x, 3)
    return mix(x, x, 4)[:, 0], made


def test_relevance_crosses_from_one_input_to_another():
    w = jax.random.normal(jax.random.key(4), (5, D, D)) / 4
    xy = (X, jax.random.normal(jax.random.key(5), (N, 4, D)))
    model = lambda w, xy: crossed(w, xy)[0]
    weights = jax.jit(crossed)(w, xy)[1]
    nothing = [jnp.zeros_like(a) for a in weights]
    gradients = jax.jit(jax.grad(lambda extra: crossed(w, xy, extra)[0][:, 1].sum()))(nothing)
    steps = [speaks(*pair) for pair in zip(weights, gradients, strict=True)]
    ss, tt = np.eye(T)[None] + steps[0], np.eye(4)[None] + steps[1]

    def normal(r):
        less = r - np.eye(r.shape[-1])
        sums = less.sum(-1, keepdims=True)
        return less / np.where(sums == 0, 1, sums) + np.eye(r.shape[-1])

    st = normal(ss).swapaxes(1, 2) @ steps[2] @ normal(tt)  # R_ts is 0: nothing is added to R_ss
    ss, st = ss + steps[4] @ ss, st + steps[4] @ st
    found = jv.attention_relevance(model, w, xy, 1, query=0)
    np.testing.assert_allclose(found[0], (ss - np.eye(T))[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], st[:, 0], rtol=1e-4, atol=1e-6)
    assert float(found[1].max()) > 0


def test_learned_queries_read_an_input():
    queries = jax.random.normal(jax.random.key(6), (3, D))

    def asked(w, x, given=None):
        q = jnp.broadcast_to(queries, (N, 3, D))
        a = jax.nn.softmax(q @ (x @ w).mT) if given is None else given
        return (q + a @ x).sum(1), a

    w = jnp.eye(D)
    a = asked(w, X)[1]
    g = jax.grad(lambda a: asked(w, X, a)[0][:, 2].sum())(a)
    out = jv.attention_relevance(lambda w, x: asked(w, x)[0], w, X, 2)
    np.testing.assert_allclose(out, np.maximum(a * g, 0).mean(1), rtol=1e-4, atol=1e-6)


VIT = VisionTransformer(
    num_classes=3, image_size=16, patch_size=4, depth=2, width=8, num_heads=2, mlp_width=8
)
IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


@pytest.fixture(scope="module")
def params():
    return jax.jit(VIT.init)(jax.random.key(1), IMAGES)


def test_recipro_cam_keeps_a_place_and_the_class_token(params):
    layer = jv.default_layer(VIT.apply, params, IMAGES)
    cut, tail = jv.split(VIT.apply, params, IMAGES, layer)
    a, carry = cut(params, IMAGES)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    maps = np.zeros((2, 4, 4))
    run = jax.jit(tail)
    for i, j in [(0, 0), (1, 2), (3, 3)]:
        mask = np.zeros((6, 6), np.float32)
        mask[i : i + 3, j : j + 3] = kernel
        mask = np.concatenate([[1], mask[1:5, 1:5].ravel()]).astype(np.float32)
        maps[:, i, j] = run((params, carry), a * mask[None, :, None])[:, 1]
    out = jv.recipro_cam(VIT.apply, params, IMAGES, 1, resize=False, chunk_size=5)
    for i, j in [(0, 0), (1, 2), (3, 3)]:
        np.testing.assert_allclose(out[:, i, j], maps[:, i, j], atol=1e-5)


@pytest.mark.parametrize("name", ["value_zeroing", "le_grad"])
def test_a_vision_transformers_maps_are_its_grid(name, params):
    out = getattr(jv, name)(VIT.apply, params, IMAGES, resize=False)
    assert out.shape == (2, 4, 4)
    assert float(out.std()) > 0
