"""Activations with learned constants, as one function of one number under every rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

LEARNED = {
    "swish by exp": lambda h, b: h / (1 + jnp.exp(-b * h)),
    "swish": lambda h, b: h * jax.nn.sigmoid(b * h),
    "one beta": lambda h, b: h * jax.nn.sigmoid(b[0, 0] * h),
    "elu": lambda h, b: jnp.where(h > 0, h, b * jnp.expm1(h)),
    "snake": lambda h, b: h + jnp.sin(b * h) ** 2 / b,
}
normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
W = {"in": normal(1, 4, 3), "b": jnp.array([[0.5, 1.0, 2.0]]), "out": normal(2, 3, 2)}


def net(w, x, act):
    return act(x @ w["in"], w["b"]) @ w["out"]


def whole(w, x):
    """All of them, a pair of outputs each."""
    return jnp.concatenate([net(w, x, act) for act in LEARNED.values()], 1)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_deep_lift_is_complete_where_the_exponential_overflows(rule):
    x, x0 = (jnp.tile(normal(seed, 1, 4), (10, 1)) for seed in (3, 4))
    x, x0 = (jnp.concatenate([a, 100 * a]) for a in (x, x0))
    target = np.tile(np.arange(10), 2)
    found = np.asarray(jv.deep_lift(whole, W, x, target, baseline=x0, rule=rule))
    gained = np.asarray(whole(W, x) - whole(W, x0))[np.arange(20), target]
    np.testing.assert_allclose(found.sum(1), gained, rtol=1e-4, atol=1e-4)


def test_lrp_passes_on_what_the_activation_has():  # oracle: by hand, f(h) / h held constant
    x = normal(3, 2, 4)
    for name, act in LEARNED.items():
        h = x @ W["in"]
        by_hand = x * ((act(h, W["b"]) / h * W["out"][None, :, 0]) @ W["in"].T)
        f = functools.partial(net, act=act)
        found = jv.lrp(f, W, x, 0, rules="epsilon")
        np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5, err_msg=name)


def test_sums_and_products_with_params_stay_layers():  # by hand: LRP of a line, its bias apart
    f = lambda w, x: (x @ w["in"]) * w["b"] + x @ w["in"]
    x = normal(3, 2, 4)
    by_hand = x * (W["in"][None, :, 0] * (1 + W["b"][0, 0]))
    np.testing.assert_allclose(jv.lrp(f, W, x, 0, rules="epsilon"), by_hand, rtol=1e-4)
