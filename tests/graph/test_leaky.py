"""Leaky ReLUs whose slopes are parameters: told in any spelling, and treated as leaky ReLUs are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.graph.trace import trace

SLOPES = jnp.array([[0.25, -0.5, 0.0, 2.0]])
X = jax.random.normal(jax.random.key(0), (3, 4))
HEAD = jax.random.normal(jax.random.key(1), (4, 2))


def by_mask(a, x):
    up = (x > 0).astype(x.dtype)
    return up * x + (1 - up) * a * x


SPELLINGS = {
    "torch": lambda a, x: jnp.where(x > 0, x, a * x),
    "keras": lambda a, x: jax.nn.relu(x) + (-a) * jax.nn.relu(-x),
    "from zero on": lambda a, x: jnp.where(x >= 0, x, x * a),
    "below": lambda a, x: jnp.where(x < 0, a * x, x),
    "maximum and minimum": lambda a, x: jnp.maximum(x, 0) + a * jnp.minimum(x, 0),
    "difference": lambda a, x: jax.nn.relu(x) - a * jax.nn.relu(-x),
    "size": lambda a, x: jnp.maximum(x, 0) + a * (x - jnp.abs(x)) * 0.5,
    "halves": lambda a, x: 0.5 * (1 + a) * x + 0.5 * (1 - a) * jnp.abs(x),
    "factor": lambda a, x: x * jnp.where(x > 0, 1.0, a),
    "mask": by_mask,
    "jax.nn": lambda a, x: jax.nn.leaky_relu(x, a),
    "vector": lambda a, x: jnp.where(x > 0, x, jnp.exp(a[0])[None] * x),
    "scalar": lambda a, x: jnp.where(x > 0, x, a[0, 0] * x),
}
OTHERS = {
    "the other side": lambda a, x: jnp.where(x > 0, a * x, x),
    "a maximum": lambda a, x: jnp.maximum(x, a * x),  # which is larger depends on the slope
    "shifted": lambda a, x: jnp.where(x > 0, x, a * x + a),
    "from one on": lambda a, x: jnp.where(x > 1, x, a * x),
    "a point": lambda a, x: jnp.where(x > 0, x, jnp.where(x == 0, a, a * x)),
    "a square": lambda a, x: jnp.where(x > 0, x, a * x * x),
    "a slope that moves": lambda a, x: jnp.where(x > 0, x, a * x.mean(1, keepdims=True) * x),
    "two slopes": lambda a, x: (
        0.5 * (1 + a) * x + 0.5 * (1 - jnp.tile(a[:, ::-1], (len(x), 1))) * jnp.abs(x)
    ),
    "held": lambda a, x: jnp.where(x > 0, x, a * jax.lax.stop_gradient(x)),
}


def kinds(f):
    return [node.kind for node in trace(f, SLOPES, X).program.nodes]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_slope_that_is_a_parameter_makes_a_leaky_relu(name):
    f = SPELLINGS[name]
    assert "leaky_relu" in kinds(f)
    net = lambda p, x: f(p[0], x) @ p[1]
    params, x0 = (SLOPES, HEAD), 0.5 * X[::-1]
    gained = np.asarray(f(SLOPES, X)) * HEAD[None, :, 1]
    # What the papers say of leaky ReLUs: their own derivative; relevance and differences pass.
    plain = jax.grad(lambda x: net(params, x)[:, 1].sum())(X)
    for method in (jv.guided_backprop, jv.deconvnet):
        np.testing.assert_allclose(method(net, params, X, 1), plain, rtol=1e-6)
    np.testing.assert_allclose(jv.lrp(net, params, X, 1), gained, rtol=1e-5, atol=1e-6)
    expected = gained - np.asarray(f(SLOPES, x0)) * HEAD[None, :, 1]
    for rule in ("rescale", "reveal_cancel"):
        found = jv.deep_lift(net, params, X, 1, baseline=x0, rule=rule)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_leaky_relu_is_not_taken_for_one(name):
    assert "leaky_relu" not in kinds(OTHERS[name])


def test_slopes_by_channel_behind_a_convolution_are_one_layer_with_their_parameters():
    def net(p, x):
        z = jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.where(z > 0, z, p["a"] * z).mean((1, 2))

    params = {"w": jax.random.normal(jax.random.key(2), (3, 3, 1, 4)), "a": SLOPES[None, None]}
    x = jax.random.normal(jax.random.key(3), (2, 5, 5, 1))
    found = jv.layers(net, params, x)
    assert [layer.kind for layer in found] == ["conv", "leaky_relu", "mean"]
    assert found[1].num_params == 4
    relevance = jv.lrp(net, params, x, 2, rules="epsilon")
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), net(params, x)[:, 2], rtol=1e-4)
