"""Kernels by layer name: against the arrays that the nets were made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxviz as jv

X = jnp.zeros((1, 8, 8, 3))


def test_linen_and_nnx_by_path():
    net = nn.Sequential([nn.Conv(4, (3, 2)), nn.relu, nn.Conv(5, (1, 1)), nn.Dense(2)])
    params = jax.jit(net.init)(jax.random.key(0), X)
    for name in ("layers_0", "layers_2", "layers_3"):
        kernel = params["params"][name]["kernel"]
        np.testing.assert_array_equal(jv.filters(net.apply, params, X, name), kernel)
    module = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
    apply_fn, params = jv.from_nnx(module)
    found = jv.filters(apply_fn, params, X, "layers/0")
    np.testing.assert_array_equal(found, module.layers[0].kernel[...])


def test_a_kernel_made_in_the_model_comes_as_it_is_applied():
    def net(params, x):
        kernel = params / jnp.abs(params).sum()
        return jax.lax.conv(x.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME")

    kernel = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))  # out, in, height, width
    expected = np.asarray(kernel).transpose(2, 3, 1, 0) / np.abs(kernel).sum()
    np.testing.assert_allclose(jv.filters(net, kernel, X, "conv_0"), expected, rtol=1e-6)


def test_a_layer_without_kernels_is_refused():
    net = lambda params, x: jax.nn.relu(x @ params)
    with pytest.raises(ValueError, match="filters: layer must be one convolution or dense"):
        jv.filters(net, jnp.ones((3, 3)), X, "relu_0")
    with pytest.raises(ValueError, match="filters: no layer 'conv'"):
        jv.filters(net, jnp.ones((3, 3)), X, "conv")
