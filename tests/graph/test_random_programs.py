"""Random small programs of what nets are made of, beside plain JAX and what methods promise."""

import dataclasses
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz

N, WIDTH, LENGTH = 2, 4, 5
DRAWS = range(20 if os.environ.get("JAXVIZ_SLOW") else 1)  # each has every step once


@jax.custom_jvp
def own_slope(x):
    return jnp.maximum(x, 0.1 * x)


own_slope.defjvp(lambda p, t: (own_slope(*p), t[0] * jnp.where(p[0] > 0, 1.0, 0.1)))


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def rms_norm(x, least=1e-5):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + least)


def standardised(x):
    """With a clamp inside the norm, as some guard against a division by zero."""
    return x / jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-6)


def recurrent(w, x):
    """A cell over the features, one at a time."""

    def turn(h, column):
        h = jnp.tanh(h @ w + column[:, None])
        return h, h[:, 0]

    _, seen = jax.lax.scan(turn, jnp.zeros_like(x), x.T)
    return seen.T


def attended(w, x):
    tokens = x[:, :, None] * w[None, :1]
    weights = jax.nn.softmax(tokens @ tokens.transpose(0, 2, 1), -1)
    return (weights @ tokens).mean(-1)


def divided_late(w, x):
    """Attention whose weights are divided by their sum after the product."""
    tokens = x[:, :, None] * w[None, :1]
    logits = tokens @ tokens.transpose(0, 2, 1)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return ((weights @ tokens) / weights.sum(-1, keepdims=True)).mean(-1)


# One to one on the values, each in the spellings that people use.
POINTWISE = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "where relu": lambda x: jnp.where(x > 0, x, 0.0),
    "times step": lambda x: x * (x > 0).astype(x.dtype),
    "half abs": lambda x: (x + jnp.abs(x)) / 2,
    "relu6": jax.nn.relu6,
    "capped high": lambda x: jnp.clip(x, 0.0, 1e4),
    "leaky": jax.nn.leaky_relu,
    "where of numbers": lambda x: x * jnp.where(x > 0, 1.0, 0.2),
    "own slope": own_slope,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "clamp": lambda x: jnp.clip(x, -0.5, 0.7),
    "nested clamps": lambda x: jnp.minimum(jnp.maximum(x, -1.0), jnp.maximum(x, 0.5)),
    "hard tanh": jax.nn.hard_tanh,
    "abs": jnp.abs,
    "remat": jax.checkpoint(lambda x: jnp.tanh(x) * 0.5),
    "jit": jax.jit(lambda x: jax.nn.relu(x) - 0.1),
    "straight through": lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
    "kept": lambda x: x - jax.lax.stop_gradient(x.max(-1, keepdims=True)),
}
# Across the features of an example, `(w, x)`.
ACROSS = {
    "dense": lambda w, x: x @ w,
    "bias": lambda w, x: x @ w + w[:1],
    "residual": lambda w, x: x + jax.nn.relu(x @ w) @ w.T,
    "layer norm": lambda w, x: layer_norm(x),
    "rms norm": lambda w, x: rms_norm(x) * w[:1],
    "standardised": lambda w, x: standardised(x),
    "softmax": lambda w, x: jax.nn.softmax(x, -1),
    "log softmax": lambda w, x: jax.nn.log_softmax(x, -1),
    "gate": lambda w, x: jax.nn.sigmoid(x @ w) * x,
    "swiglu": lambda w, x: jax.nn.silu(rms_norm(x)) * (rms_norm(x) @ w),
    "product": lambda w, x: jnp.tanh(x) * (x @ w),
    "gather": lambda w, x: x[:, np.array([3, 0, 0, 2])],
    "turned": lambda w, x: jnp.flip(x, 1) + jnp.roll(x, 1, 1),
    "joined": lambda w, x: jnp.concatenate([x[:, 2:], jnp.tanh(x[:, :2])], 1),
    "windows": lambda w, x: jnp.maximum(x, jnp.roll(x, 1, 1)),
    "sorted": lambda w, x: jnp.sort(x, 1),
    "top": lambda w, x: jnp.concatenate([jax.lax.top_k(x, 2)[0], x[:, :2]], 1),
    "chosen": lambda w, x: jnp.where(x @ w > 0, x, 0.5 * x),
    "scan": recurrent,
    "attention": lambda w, x: attended(w, rms_norm(x)),
    "sharp attention": attended,
    "divided late": lambda w, x: divided_late(w, rms_norm(x)),
    "slopes": lambda w, x: jnp.where(x > 0, x, w[:1] * x),
    "slopes by relus": lambda w, x: jax.nn.relu(x) - w[:1] * jax.nn.relu(-x),
}


@dataclasses.dataclass(frozen=True)
class Net:
    """A program; equal for equal steps."""

    steps: tuple[str, ...]

    def __call__(self, params, x):
        return self.values(params, x)[-1] @ params[-1]

    def values(self, params, x):
        """What each step makes."""
        found = []
        for i, name in enumerate(self.steps):
            x = POINTWISE[name](x) if name in POINTWISE else ACROSS[name](params[i], x)
            x = checkpoint_name(x, f"step{i}")
            found.append(x)
        return found


def weights(count, seed):
    keys = jax.random.split(jax.random.key(seed), count)
    return [jax.random.normal(key, (WIDTH, WIDTH)) / 2 for key in keys]


def nets(draw, names=(*POINTWISE, *ACROSS)):
    """Programs in which each step stands once, beside others as chance will have it."""
    chance = random.Random(draw)
    order = chance.sample(names, len(names))
    parts = [tuple(order[i : i + LENGTH]) for i in range(0, len(order), LENGTH)]
    return [(Net(steps), chance.randrange(100), chance) for steps in parts]


def drawn(net, seed, scale=1.0):
    params = weights(len(net.steps) + 1, seed)
    x = scale * jax.random.normal(jax.random.key(seed + 1), (N, WIDTH))
    return params, x


def close(found, expected, what, rtol=1e-4):
    """Equal up to rounding at the size of the largest number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(expected).all(), f"the program itself: {what}"
    bound = rtol * np.abs(expected).max() + 1e-30
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=what)


@pytest.mark.parametrize("draw", DRAWS)
def test_gradients_names_and_cuts_are_those_of_plain_jax(draw):
    # In 64 bits: a norm of a norm has next to no gradient, in 32 both sides are rounding alone.
    with jax.enable_x64(True):
        for net, seed, _ in nets(draw):
            check_against_plain_jax(net, seed)


def check_against_plain_jax(net, seed):
    params, x = drawn(net, seed)
    layers = jaxviz.layers(net, params, x)
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    cuttable = [layer.name for layer in layers if layer.can_cut]
    wanted = [f"step{i}" for i in range(len(net.steps))]
    assert set(wanted) <= set(cuttable)
    nodes, node_weights = np.polynomial.legendre.leggauss(2)

    @jax.jit
    def all_of_them(params, x):
        slope = jax.grad(lambda x: net(params, x)[:, 1].sum())
        rejoined = []
        for name in {cuttable[seed % len(cuttable)], wanted[seed % len(wanted)]}:
            head, tail = jaxviz.split(net, params, x, name)
            a, carry = head(params, x)
            rejoined.append(tail((params, carry), a))
        path = [w / 2 * slope((1 + t) / 2 * x) for t, w in zip(nodes, node_weights, strict=True)]
        ours = {
            "gradient": jaxviz.gradient(net, params, x, 1),
            "integrated": jaxviz.integrated_gradients(net, params, x, 1, num_steps=2),
            "rejoined": rejoined,
            "seen": list(jaxviz.activations(net, params, x, wanted).values()),
        }
        values = net.values(params, x)
        plain = {
            "gradient": slope(x),
            "integrated": x * sum(path),
            "rejoined": [values[-1] @ params[-1]] * len(rejoined),
            "seen": values,
        }
        return ours, plain

    ours, plain = all_of_them(params, x)
    for what in ours:
        for found, expected in zip(
            jax.tree.leaves(ours[what]), jax.tree.leaves(plain[what]), strict=True
        ):
            close(found, expected, f"{what} of {net}, {seed}")


@pytest.mark.parametrize("draw", DRAWS)
def test_deep_lift_is_complete_at_any_scale(draw):
    for net, seed, chance in nets(draw + 100):
        scale, share = 10.0 ** chance.randint(-8, 8), chance.choice([0.0, 0.5, 1.0])
        params, x = drawn(net, seed, scale)
        baseline = share * jax.random.normal(jax.random.key(seed + 2), x.shape) * scale

        @jax.jit
        def both(params, x, baseline, net=net):
            shares = jaxviz.deep_lift(net, params, x, 1, baseline=baseline)
            return shares, net(params, x)[:, 1], net(params, baseline)[:, 1]

        shares, score, start = (np.asarray(a, np.float64) for a in both(params, x, baseline))
        # What float32 can tell: the scores' own rounding, and that of shares which cancel.
        bound = 1e-3 * np.abs(score - start) + 3e-5 * (
            np.abs(shares).sum(1) + np.abs(score) + np.abs(start)
        )
        gap = np.abs(shares.sum(1) - (score - start))
        assert (gap <= bound + 1e-30).all(), (net, seed, scale, share, gap, bound, score, start)


CONSERVING = (
    *("relu", "maximum", "where relu", "capped high", "leaky", "tanh", "abs", "remat"),
    *("dense", "residual", "gather", "turned", "joined", "windows", "sorted", "top", "slopes"),
)


@pytest.mark.parametrize("draw", DRAWS)
def test_lrp_epsilon_conserves_without_biases_and_products(draw):
    for net, seed, _ in nets(draw + 200, CONSERVING):
        params, x = drawn(net, seed)

        @jax.jit
        def both(params, x, net=net):
            return jaxviz.lrp(net, params, x, 1, rules="epsilon"), net(params, x)[:, 1]

        relevance, score = (np.asarray(a, np.float64) for a in both(params, x))
        gap = np.abs(relevance.sum(1) - score)
        # What the stabiliser takes of a sum z is epsilon / z of it.
        bound = 1e-3 * (np.abs(relevance).sum(1) + np.abs(score))
        assert (gap <= bound).all(), (net, seed, gap, bound, score)
