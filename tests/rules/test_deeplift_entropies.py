"""p log p in all spellings, and what overflows on the way to a bounded number, at any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import entr, logsumexp, xlogy

import jaxviz as jv

SCALES = (1e-8, 1e-3, 1.0, 30.0, 1e4, 1e8)
RULES = ("rescale", "reveal_cancel")


def written_out(p):
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)


def from_logs(h):
    logs = h - logsumexp(h, -1, keepdims=True)
    return jnp.exp(logs) * logs


ENTROPIES = {
    "softmax and log softmax": lambda h: jax.nn.softmax(h) * jax.nn.log_softmax(h),
    "log softmax and softmax": lambda h: jax.nn.log_softmax(h) * jax.nn.softmax(h),
    "from logarithms": from_logs,
    "entr": lambda h: -entr(jax.nn.softmax(h)),
    "xlogy": lambda h: xlogy(p := jax.nn.softmax(h), p),
    "where": lambda h: written_out(jax.nn.softmax(h)),
    "in bits": lambda h: jnp.log(2.0) * jax.nn.softmax(h) * (jax.nn.log_softmax(h) / jnp.log(2.0)),
}


def by_definition(x, x0):
    """d -> sum_i (y_i - y0_i) / (l_i - l0_i) (d_i - sum_j w_j d_j), l = log softmax, float64."""
    logs = [a - a.max() - np.log(np.exp(a - a.max()).sum()) for a in (x, x0)]
    p = [np.exp(a) for a in logs]
    run = logs[0] - logs[1]
    near = np.abs(run) < 1e-6
    safe = np.where(near, 1, run)
    mean = np.where(near, (p[0] + p[1]) / 2, (p[0] - p[1]) / safe)
    half = (p[0] * (1 + logs[0]) + p[1] * (1 + logs[1])) / 2
    slope = np.where(near, half, (p[0] * logs[0] - p[1] * logs[1]) / safe)
    return (slope - slope.sum() * mean / mean.sum()) * (x - x0)


def ends():
    rows = np.array([[1.0, 0.5, -2.0, 0.0], [-1.0, 4.0, -3.0, 3.9], [0.3, 0.2, 0.1, -0.5]])
    pairs = [
        (s * row, s * start) for s in SCALES for row, start in zip(rows, 0 * rows, strict=True)
    ]
    pairs += [(s * row, s * row[::-1]) for s in SCALES for row in rows]
    return np.array(pairs, np.float32).swapaxes(0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_entropies_have_one_explanation_at_every_scale(rule):
    x, x0 = ends()
    exact = np.stack([by_definition(*map(np.float64, pair)) for pair in zip(x, x0, strict=True)])
    every = lambda _, x: jnp.stack([f(x).sum(1) for f in ENTROPIES.values()], 1)
    # At 1e8 a product of two by the derivative half way had shares of 1e7 and a sum that was 4 off.
    for i, name in enumerate(ENTROPIES):
        found = np.asarray(jv.deep_lift(every, None, x, i, baseline=x0, rule=rule))
        bound = 2e-4 * np.abs(exact).max(1, keepdims=True) + 1e-6
        assert (np.abs(found - exact) <= bound).all(), (name, found - exact)


@pytest.mark.parametrize("name", ["entr", "xlogy"])
def test_lrp_of_an_entropy_goes_through_jax_own_functions(name):
    x = jax.random.normal(jax.random.key(0), (3, 4))
    relevance = lambda f: jv.lrp(lambda _, x: f(x), None, x, 1)
    plain = relevance(lambda x: (p := jax.nn.softmax(x)) * jnp.log(p))
    np.testing.assert_allclose(relevance(ENTROPIES[name]), plain, rtol=1e-5, atol=1e-7)
    assert np.abs(plain).max() > 0.1


BOUNDED = {
    "sigmoid of a difference": lambda a, b: 1 / (1 + jnp.exp(b - a)),
    "a gate": lambda a, b: jnp.tanh(a) / (1 + jnp.exp(-b)),
    "a power of it": lambda a, b: (1 + jnp.exp(b - a)) ** -1.5,
    "complementary log-log": lambda a, b: jnp.exp(-jnp.exp(a)) - jnp.expm1(-jnp.exp(b)),
    "hyperbolic secant": lambda a, b: 1 / jnp.cosh(a) + b / (1 + jnp.abs(b)),
    "a capped exponential": lambda a, b: jnp.minimum(jnp.exp(a), 5) * jnp.tanh(b),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_overflows_on_the_way_to_a_bounded_number_is_complete(rule):
    """exp u is infinite from 89 on; a step that is infinite at one end carried nothing on."""
    x, x0 = ends()
    every = lambda _, x: jnp.stack([f(x[:, 0], x[:, 1]) for f in BOUNDED.values()], 1)
    gained = np.asarray(every(None, x) - every(None, x0))
    for i, name in enumerate(BOUNDED):
        found = np.asarray(jv.deep_lift(every, None, x, i, baseline=x0, rule=rule))
        np.testing.assert_allclose(found.sum(1), gained[:, i], rtol=2e-4, atol=2e-6, err_msg=name)
