"""Training with the fast rules: the gradients to parameters stay what they are."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import models
from jaxviz.rules.fast import fast
from jaxviz.training.epoch import TrainingFunction

NETS = [("mnist_c", (28, 28, 1))]
if "JAXVIZ_SLOW" in os.environ:
    NETS.append(("resnet20", (8, 8, 3)))


@pytest.mark.parametrize(("name", "shape"), NETS)
def test_a_networks_gradients_stay_the_same(name, shape):
    """To parameters, in training mode: dropout, batch statistics and all."""
    net = models.nets[name]()
    x = jax.random.uniform(jax.random.key(1), (2, *shape))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    plain = TrainingFunction(net)
    results = []
    for f in (plain, jv.rewrite(plain, fast)):

        @jax.jit
        def gradient(variables, x, f=f):
            def loss(params):
                logits, state = f({**variables, "params": params}, (x, jax.random.key(2)))
                return jnp.sin(logits).sum(), (logits, state)

            return jax.grad(loss, has_aux=True)(variables["params"])

        results.append(gradient(variables, x))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max() + 1e-6)
