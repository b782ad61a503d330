"""Factors held constant: the same model with `stop_gradient` around them; f(x) = W(x) x."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.rules import constants

held = jax.lax.stop_gradient


@pytest.fixture(autouse=True)
def broadcasting():
    """The nets are written as one writes NumPy."""
    with jax.numpy_rank_promotion("allow"):
        yield


def secant(a, x, hold):
    """a(x) as a(0) + s x, its slope held."""
    start = a(jnp.zeros_like(x))
    return start + x * hold((a(x) - start) / x)


def transformer(hold):
    """Norms, attention, a gated unit, activations that are 0 at 0 or are not: biases throughout."""
    own = hold is not held
    act = lambda a, x: a(x) if own else secant(a, x, hold)

    def net(p, x):
        c = x - x.mean(-1, keepdims=True)
        y = c / hold(jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)) * p["scale"] + p["shift"]
        q, k, v = (y @ p[a] + p["b"] for a in ("q", "k", "v"))
        x = x + hold(jax.nn.softmax(q @ k.swapaxes(1, 2))) @ v @ p["o"]
        y = x * hold(jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5))
        x = x + (hold(jax.nn.silu(y @ p["q"])) * (y @ p["k"])) @ p["v"]
        x = x * hold(jax.nn.sigmoid(x @ p["o"]))
        x = x + act(jax.nn.gelu, x @ p["q"] + p["b"]) + act(jax.nn.softplus, x @ p["k"])
        x = x / hold(jnp.linalg.norm(x, axis=-1, keepdims=True))
        x = act(jax.nn.sigmoid, x @ p["v"]) + act(jnp.tanh, x) + jax.nn.relu(x)
        return jax.nn.log_softmax(x.mean(1))

    return net


def test_it_is_the_model_with_stop_gradient_written_around_its_factors():
    rng = np.random.default_rng(0)
    p = {a: rng.normal(size=(4, 4)) for a in ("q", "k", "v", "o")}
    p |= {a: rng.normal(size=4) for a in ("scale", "shift", "b")}
    plain = transformer(lambda a: a)

    @jax.jit
    def both(p, x):
        free = jv.rewrite(plain, constants())
        got = jax.grad(lambda p, x: free(p, x)[:, 1].sum(), (0, 1))(p, x)
        asked = jax.grad(lambda p, x: transformer(held)(p, x)[:, 1].sum(), (0, 1))(p, x)
        return (free(p, x), plain(p, x)), got, asked, jv.gradient(free, p, x, 1)

    with jax.enable_x64(True):
        outputs, got, asked, by_method = both(p, rng.normal(size=(2, 5, 4)))
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_allclose(by_method, asked[1], rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, asked)


class Block(nn.Module):
    """As users write it, without biases."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(use_bias=False)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)(y)
        y = nn.Dense(8, use_bias=False)(nn.RMSNorm()(x))
        x = x + nn.Dense(4, use_bias=False)(nn.gelu(y))
        x = nn.GroupNorm(num_groups=2, use_bias=False)(x)
        return nn.Dense(3, use_bias=False)(nn.leaky_relu(x).mean(1))


def bcos(p, x, hold=lambda a: a):
    """Convolution, |cos|, the larger of two, mean: B is 2, then 2.5."""
    for w, power in ((p["a"], 1), (p["b"], 1.5)):
        out = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_LAST)
        ones = jnp.ones((*w.shape[:3], 1))
        size = jax.lax.conv_general_dilated(x * x, ones, (1, 1), "SAME", dimension_numbers=_LAST)
        cos = jnp.abs(out) / jnp.sqrt(size + 1e-6)
        out = out * hold(cos if power == 1 else (cos + 1e-6) ** power)
        x = out.reshape(*out.shape[:3], -1, 2).max(-1)
    return x.mean((1, 2))


_LAST = ("NHWC", "HWIO", "NHWC")


def test_the_output_is_the_gradient_times_the_input():
    rng = np.random.default_rng(1)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    block, x = Block(), drawn(2, 5, 4)
    p = jax.jit(block.init)(jax.random.key(0), x)
    out, parts, plain = _read(block.apply, block.apply, p, x)
    np.testing.assert_allclose(parts.sum((1, 2)), out, rtol=2e-5, atol=1e-6)
    assert (np.abs(plain.sum((1, 2)) - out) > 0.05 * np.abs(out)).any()
    # Of degree 1, a B-cos net has two such gradients: its own, and W(x).
    p, x = {"a": drawn(3, 3, 3, 4), "b": drawn(3, 3, 2, 4)}, drawn(2, 4, 4, 3)
    out, parts, by_hand = _read(bcos, functools.partial(bcos, hold=held), p, x)
    np.testing.assert_allclose(parts.sum((1, 2, 3)), out, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(parts, by_hand, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(net, other, p, x):
    parts = jv.input_x_gradient(jv.rewrite(net, constants()), p, x, 1)
    return net(p, x)[:, 1], parts, jv.input_x_gradient(other, p, x, 1)


def test_only_what_is_asked_for_is_held():
    """On numbers: x1 sigmoid(x0), x1 / x0, tanh(x0)."""
    x = jnp.array([[0.7, 2.0]])
    net = lambda _, x: jnp.stack(
        [x[:, 1] * jax.nn.sigmoid(x[:, 0]), x[:, 1] / x[:, 0], jnp.tanh(x[:, 0])], 1
    )
    s = 1 / (1 + np.exp(-0.7))
    free = [[2 * s * (1 - s), s], [-2 / 0.49, 1 / 0.7], [1 - np.tanh(0.7) ** 2, 0]]
    fixed = [[0, s], [0, 1 / 0.7], [np.tanh(0.7) / 0.7, 0]]
    secants = [[2 * (s - 0.5) / 0.7, s], *fixed[1:]]  # the sigmoid's, where it is no gate
    each = jax.vmap(jv.gradient, (None, None, None, 0))
    asked_of = {("gates",): [fixed[0], *free[1:]], ("norms", "activations"): secants, (): free}
    for what, asked in asked_of.items():
        got = each(jv.rewrite(net, constants(what or "attention")), None, x, jnp.arange(3))[:, 0]
        np.testing.assert_allclose(got, asked, rtol=1e-5)


def test_a_second_derivative_takes_them_for_constant_and_own_derivatives_stay():
    @jax.custom_jvp
    def passed(x):
        return jnp.round(x)

    passed.defjvp(lambda x, t: (jnp.round(x[0]), t[0]))
    f = jv.rewrite(lambda _, x: passed(x) * 2 + jnp.tanh(x) + held(x), constants())
    slope = lambda x: jax.grad(lambda x: f(None, x).sum())(x)
    x = jnp.array([[0.3]])
    np.testing.assert_allclose(slope(x), 2 + jnp.tanh(x) / x, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: slope(x).sum())(x), [[0.0]])
    with pytest.raises(ValueError, match="constants: what must be"):
        constants("norm")
