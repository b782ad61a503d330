"""The memory of a metric goes by chunk_size, and not by how many copies there are."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxviz as jv
from jaxviz import metrics

WIDTH = 4096  # of the hidden layer, which is nearly all that a copy takes
X, W = jnp.ones((4, 16)), (jnp.ones((16, WIDTH)), jnp.ones((WIDTH, 2)))
HIDDEN = 4 * WIDTH * 4  # bytes, for one copy of the batch


def net(w, x):
    return jnp.tanh(x @ w[0]) @ w[1]


def judged(name, w, x, *, num, chunk_size):
    metric, key = getattr(metrics, name), jax.random.key(0)
    if name == "deletion":
        return metric(net, w, x, x, 0, num_steps=num, chunk_size=chunk_size).area
    told = {"key": key, "num_samples": num, "chunk_size": chunk_size}
    if name == "max_sensitivity":
        return metric(jv.gradient, net, w, x, 0, **told)
    return metric(net, w, x, x, 0, **told)


@pytest.mark.parametrize("name", ["deletion", "infidelity", "max_sensitivity"])
def test_memory_is_bounded_by_the_chunk(name):
    def takes(num, chunk_size):
        run = functools.partial(judged, name, num=num, chunk_size=chunk_size)
        return jax.jit(run).lower(W, X).compile().memory_analysis().temp_size_in_bytes

    one = takes(7, 1)
    assert takes(63, 1) < 1.1 * one
    # A chunk has more hidden layers at once: of seven copies, or of eight with x itself among them.
    assert takes(63, 8) > one + 5 * HIDDEN
