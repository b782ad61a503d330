"""A small causal transformer in JAX, and its forward pass written out in NumPy with a way in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

N, TOKENS, WORDS, WIDTH, HEADS, BLOCKS = 2, 4, 6, 8, 2, 2
KEYS = WIDTH // HEADS


def block(w, x):
    with jax.named_scope("attention"):
        q, k, v = (jnp.einsum("ntd,dhk->nhtk", x, w[name]) for name in "qkv")
        scores = jnp.einsum("nhqk,nhtk->nhqt", q, k) / KEYS**0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        z = jnp.einsum("nhqt,nhtk->nhqk", weights, v)
    x = x + jnp.einsum("nhqk,hkd->nqd", z, w["o"])
    x = checkpoint_name(x, "middle")
    neurons = checkpoint_name(jnp.tanh(x @ w["up"]), "neurons")
    return checkpoint_name(x + neurons @ w["down"], "stream")


def net(w, ids):
    """Token ids `[N, T]` to logits `[N, T, words]`; blocks in a scan."""
    x, _ = jax.lax.scan(lambda x, one: (block(one, x), None), w["embed"][ids], w["blocks"])
    return x @ w["out"]


def _weights():
    shapes = {"q": (WIDTH, HEADS, KEYS), "k": (WIDTH, HEADS, KEYS), "v": (WIDTH, HEADS, KEYS)}
    shapes |= {"o": (HEADS, KEYS, WIDTH), "up": (WIDTH, 3 * WIDTH), "down": (3 * WIDTH, WIDTH)}
    draw = np.random.default_rng(0)
    drawn = lambda *shape: (0.5 * draw.normal(size=shape)).astype(np.float32)
    blocks = {name: drawn(BLOCKS, *shape) for name, shape in shapes.items()}
    return {"embed": drawn(WORDS, WIDTH), "out": drawn(WIDTH, WORDS), "blocks": blocks}


W = _weights()
IDS = np.array([[0, 1, 2, 3], [4, 5, 0, 2]])
OTHER = np.array([[0, 4, 2, 3], [3, 5, 1, 2]])


def by_hand(ids, edit=lambda name, a: a, embedded=None):
    """The logits in float64, and every value; `edit(name, a)` stands for each named value."""
    w = jax.tree.map(lambda a: a.astype(np.float64), W)
    values = {}

    def put(name, a):
        values[name] = edit(name, a)
        return values[name]

    x = w["embed"][ids] if embedded is None else embedded
    for i in range(BLOCKS):
        b = {name: a[i] for name, a in w["blocks"].items()}
        q, k, v = (np.einsum("ntd,dhk->nhtk", x, b[name]) for name in "qkv")
        scores = np.einsum("nhqk,nhtk->nhqt", q, k) / KEYS**0.5
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = put(f"scan_0[{i}]/attention:weights", weights / weights.sum(-1, keepdims=True))
        z = put(f"scan_0[{i}]/attention:heads", np.einsum("nhqt,nhtk->nhqk", weights, v))
        x = put(f"middle[{i}]", x + np.einsum("nhqk,hkd->nqd", z, b["o"]))
        neurons = put(f"neurons[{i}]", np.tanh(x @ b["up"]))
        x = put(f"stream[{i}]", x + neurons @ b["down"])
    return x @ w["out"], values


def difference(outputs):
    """What is explained: a difference of two logits at the last token."""
    return outputs[:, -1, 1] - outputs[:, -1, 2]
