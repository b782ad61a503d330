"""Which values are known never to be negative, and that rules may rely on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxviz as jv
from jaxviz.graph import rewrite
from jaxviz.graph.signs import nonnegative
from jaxviz.graph.trace import trace

relu = jax.nn.relu
pool = lambda x, padding: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), padding)

KNOWN = {
    "relu": relu,
    "maximum": lambda x: jnp.maximum(0.5, x),
    "chosen": lambda x: jnp.where(x > 0, jnp.square(x), jnp.exp(x)),
    "even_power": lambda x: (x - 1) ** 4,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "sums": lambda x: relu(x) + 2 * jnp.abs(x).sum(1, keepdims=True) / 3,
    "moved": lambda x: jnp.concatenate([relu(x).T, jnp.square(x).T])[1:].reshape(-1),
    "padded": lambda x: lax.pad(relu(x), np.float32(0), ((0, 0, 0), (1, 1, 0))),
    "pooled": lambda x: pool(relu(x), ((0, 0), (0, 0))),
    "clipped": lambda x: jnp.clip(x, 0.0, 2.0),
    "roots": lambda x: jnp.sqrt(jnp.tanh(relu(x))),
    "counted": lambda x: (x > 0).astype(jnp.float32),
    "matrix": lambda x: relu(x) @ relu(x).T,
}
UNKNOWN = {
    "itself": lambda x: x,
    "less": lambda x: relu(x) - 1,
    "negated": lambda x: -relu(x),
    "weighed": lambda x: relu(x) @ jnp.asarray(np.array([[1.0], [-1.0], [1.0], [1.0]], np.float32)),
    "odd_power": lambda x: x**3,
    "half_chosen": lambda x: jnp.where(x > 0, x, -jnp.square(x)),
    "minimum": lambda x: jnp.minimum(relu(x), x),
    "clipped": lambda x: jnp.clip(x, -1.0, 2.0),
    "logarithm": lambda x: jnp.log(relu(x) + 0.1),
    "log_softmax": lambda x: jax.nn.log_softmax(x, axis=-1),
    "padded": lambda x: jnp.pad(relu(x), ((0, 0), (1, 1)), constant_values=-1.0),
    "empty_windows": lambda x: pool(relu(x), ((0, 0), (2, 2))),  # -inf in the rim
    "narrowed": lambda x: relu(100 * x).astype(jnp.int32).astype(jnp.int8).astype(jnp.float32),
    "leaky": lambda x: jax.nn.leaky_relu(x),
    "filled": lambda x: relu(x).at[:, jnp.array([9])].get(mode="fill", fill_value=-1.0),
}
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 3


def known(function):
    traced = trace(lambda _, x: function(x), None, jnp.asarray(X))
    found = nonnegative(traced.program)
    return all(v in found for v in jax.tree.leaves(traced.outputs))


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_never_negative_is_known(name):
    assert known(KNOWN[name])
    assert np.asarray(KNOWN[name](jnp.asarray(X))).min() >= 0  # or the list is wrong


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_be_negative_is_not_taken_for_known(name):
    assert not known(UNKNOWN[name])


@pytest.mark.parametrize("rule", ["z_plus", "gamma", "alpha_beta"])
def test_relevance_is_the_same_where_signs_are_not_known(monkeypatch, rule):
    w = [jax.random.normal(jax.random.key(i), (4, 4)) for i in range(3)]
    rules = {"dense": getattr(jv.rules.lrp, rule)()}
    found = []
    for signs in (rewrite.nonnegative, lambda program: frozenset()):
        monkeypatch.setattr(rewrite, "nonnegative", signs)
        net = lambda w, x: relu(relu(x @ w[0] + 0.1) @ w[1]) @ w[2]
        found.append(np.asarray(jv.lrp(net, w, jnp.asarray(X), 1, rules=rules)))
    np.testing.assert_allclose(*found, rtol=1e-6)
