"""Paths that a function draws, steps weighed by their gains, and bits through a layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = jax.random.normal(KEYS[0], (5, 7)), jax.random.normal(KEYS[1], (7, 3))
X = jax.random.normal(KEYS[2], (2, 5))


def net(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def straight(x, t):
    return 0.5 + t * (x - 0.5)


def bent(x, t):
    return x * t ** jnp.arange(1.0, 6.0)[None]


def test_a_straight_path_is_that_of_integrated_gradients_and_a_bent_one_adds_up():
    call = lambda path_fn: jv.path_integrated_gradients(net, PARAMS, X, 1, path_fn=path_fn)
    wanted = jv.integrated_gradients(net, PARAMS, X, 1, baseline=0.5)
    np.testing.assert_allclose(call(straight), wanted, atol=1e-5)
    found = call(bent)
    gained = net(PARAMS, X)[:, 1] - net(PARAMS, 0 * X)[:, 1]
    np.testing.assert_allclose(found.sum(1), gained, atol=1e-4)
    # By hand, midpoints of many steps.
    t = (np.arange(4000) + 0.5) / 4000
    powers = np.arange(1, 6)
    first, second = (np.asarray(w, np.float64) for w in PARAMS)
    points = np.asarray(X[0], np.float64) * t[:, None] ** powers
    slopes = (second[:, 1] * (1 - np.tanh(points @ first) ** 2)) @ first.T
    ways = np.asarray(X[0], np.float64) * powers * t[:, None] ** (powers - 1)
    np.testing.assert_allclose(found[0], (slopes * ways).mean(0), atol=1e-4)
    with pytest.raises(ValueError, match="path_fn must give points of the shapes of x"):
        call(lambda x, t: t * x[:1])


def test_idgi_is_its_sum_and_adds_up_at_any_number_of_steps():
    found = jv.idgi(net, PARAMS, X, 1, baseline=0.5, num_steps=3)
    first, second = (np.asarray(w, np.float64) for w in PARAMS)
    score = lambda x: np.tanh(x @ first) @ second[:, 1]
    x, wanted = np.asarray(X[0], np.float64), np.zeros(5)
    for k in range(3):
        here, there = (0.5 + j / 3 * (x - 0.5) for j in (k, k + 1))
        slope = first @ (second[:, 1] * (1 - np.tanh(here @ first) ** 2))
        wanted += slope**2 / (slope**2).sum() * (score(there) - score(here))
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    gap = jv.completeness_gap(net, PARAMS, X, 0.5, found, 1)
    np.testing.assert_allclose(gap, 0, atol=1e-5)


def test_a_bottleneck_is_adam_on_its_loss_written_out():
    w = jax.random.normal(KEYS[0], (3, 2, 2))
    image = jax.random.normal(KEYS[1], (1, 3, 2, 2))
    usual = 1 + 2 * jax.random.normal(KEYS[2], (40, 3, 2, 2))
    linear = lambda w, x: (checkpoint_name(x * 2.0, "here") * w[None]).sum((1, 2))
    options: dict[str, Any] = {
        "baselines": usual,
        "key": KEYS[3],
        "layer": "here",
        "num_steps": 4,
        "sigma": 0.0,
    }
    out = jv.information_bottleneck(linear, w, image, 0, beta=24.0, resize=False, **options)

    a, weights = np.asarray(image[0]) * 2.0, np.asarray(w) * np.array([1.0, 0.0])
    mean, spread = 2 * np.asarray(usual).mean(0), 2 * np.asarray(usual).std(0, ddof=1)
    logits, m, v = np.full(a.shape, 5.0), 0.0, 0.0
    for k in range(4):
        keys = jax.random.split(jax.random.fold_in(KEYS[3], k), 10)
        noise = np.mean([jax.random.normal(one, (1, *a.shape))[0] for one in keys], 0)
        mask = 1 / (1 + np.exp(-logits))
        r = (a - mean) / spread
        slope = 24.0 / a.size * (1 / (1 - mask) - (1 - mask) + mask * r**2)
        slope = (slope - weights * (a - mean - spread * noise)) * mask * (1 - mask)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        ahead = m / (1 - 0.9 ** (k + 1)) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        logits = logits - ahead
    mask = 1 / (1 + np.exp(-logits))
    bits = (-np.log(1 - mask) + ((1 - mask) ** 2 + mask**2 * r**2 - 1) / 2) / np.log(2)
    np.testing.assert_allclose(out.map[0], bits.sum(-1), rtol=1e-3)
    np.testing.assert_allclose(out.bits, bits.sum(), rtol=1e-3)
    np.testing.assert_allclose(out.clean_score, linear(w, image)[:, 0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"baselines must be \[B, ...\] with B >= 2"):
        jv.information_bottleneck(linear, w, image, 0, **(options | {"baselines": usual[:1]}))
