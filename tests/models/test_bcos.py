"""B-cos networks: the layer in NumPy, and the matrix that a net is for an input."""

import jax
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import models


@pytest.mark.parametrize("b", [1.0, 2.0, 2.5])
def test_the_layer_weighs_by_alignment(b):
    layer = models.BcosConv(2, (2, 2), b=b)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)
    w = np.asarray(params["params"]["kernel"]).reshape(-1, 4)
    w = w / np.linalg.norm(w, axis=0)
    seen = x[0].ravel() @ w  # of the first place, which sees the whole image
    cos = np.abs(seen) / np.linalg.norm(x)
    asked = (seen * cos ** (b - 1)).reshape(2, 2).max(-1)
    np.testing.assert_allclose(layer.apply(params, x)[0, 0, 0], asked, rtol=1e-4)


def test_the_net_is_a_matrix_for_each_input():
    """W(x) is the same for what points the same way, and x times it is the logit."""
    net = models.BcosNet(num_classes=3, features=(4, 5))
    x = net.encoded(jax.random.uniform(jax.random.key(1), (2, 8, 8, 1)))
    params = jax.jit(net.init)(jax.random.key(0), x)
    linear = jv.rewrite(net.apply, jv.rules.constants())

    @jax.jit
    def read(x):
        return net.apply(params, x)[:, 2], jv.gradient(linear, params, x, 2)

    (out, matrix), (_, double) = read(x), read(2 * x)
    np.testing.assert_allclose((matrix * x).sum((1, 2, 3)), out, rtol=1e-4)
    np.testing.assert_allclose(double, matrix, atol=1e-2 * np.abs(matrix).max())  # the 1e-6
    # Of degree 1 the gradient has the sum too; it is another map.
    plain = jv.gradient(net.apply, params, x, 2)
    assert np.abs(plain - matrix).max() > 0.1 * np.abs(matrix).max()
