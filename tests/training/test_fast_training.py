"""The faster gradients against XLA's own, over the geometries that networks use."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxviz import models
from jaxviz.training.epoch import TrainingFunction
from jaxviz.training.fast import _conv, accelerate

GEOMETRIES = [
    # strides, padding, dilation, kernel
    ((1, 1), ((1, 1), (1, 1)), (1, 1), (3, 3)),
    ((1, 1), ((0, 0), (0, 0)), (1, 1), (3, 3)),
    ((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    ((2, 2), ((1, 1), (1, 1)), (1, 1), (3, 3)),
    ((2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    ((2, 3), ((0, 1), (2, 0)), (1, 1), (3, 2)),
    ((1, 1), ((2, 2), (2, 2)), (2, 2), (3, 3)),
    ((2, 1), ((3, 0), (0, 3)), (1, 2), (2, 3)),
    ((1, 1), ((2, 2), (3, 3)), (1, 1), (2, 2)),  # padding wider than the kernel
    ((1, 2), ((-1, 0), (0, -2)), (1, 1), (3, 3)),  # cropped
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_gradients_are_the_convolutions_own(geometry):
    strides, padding, dilation, kernel_shape = geometry
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    kernel = jax.random.normal(keys[1], (*kernel_shape, 3, 4))
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    geometry = (strides, padding, dilation, None)
    g = jax.random.normal(keys[2], jax.eval_shape(plain, x, kernel).shape)

    @jax.jit
    def both(x, kernel, g):
        results = []
        for f in (functools.partial(_conv, geometry), plain):
            out, pullback = jax.vjp(f, x, kernel)
            results.append((out, *pullback(g)))
        return results

    for mine, theirs in zip(*both(x, kernel, g), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_one_and_three_dimensions():
    for rank, numbers in ((1, ("NWC", "WIO", "NWC")), (3, ("NDHWC", "DHWIO", "NDHWC"))):
        x = jax.random.normal(jax.random.key(0), (2, *(5,) * rank, 2))
        kernel = jax.random.normal(jax.random.key(1), (*(3,) * rank, 2, 3))
        padding = ((1, 1),) * rank

        def plain(x, kernel, rank=rank, padding=padding, numbers=numbers):
            return lax.conv_general_dilated(
                x, kernel, (2,) * rank, padding, dimension_numbers=numbers
            )

        geometry = ((2,) * rank, padding, (1,) * rank, None)
        ours = functools.partial(_conv, geometry)
        mine, theirs = (
            jax.jit(jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1)))(x, kernel)
            for f in (ours, plain)
        )
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mnist_c", (28, 28, 1)), ("resnet20", (8, 8, 3))],
)
def test_a_networks_gradients_stay_the_same(name, shape):
    """To parameters, in training mode: dropout, batch statistics and all."""
    net = models.nets[name]()
    x = jax.random.uniform(jax.random.key(1), (2, *shape))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    plain = TrainingFunction(net)
    results = []
    for f in (plain, accelerate(plain)):

        @jax.jit
        def gradient(variables, x, f=f):
            def loss(params):
                logits, state = f({**variables, "params": params}, (x, jax.random.key(2)))
                return jnp.sin(logits).sum(), (logits, state)

            return jax.grad(loss, has_aux=True)(variables["params"])

        results.append(gradient(variables, x))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max() + 1e-6)


def test_what_is_not_known_is_left_alone():
    """A depthwise and a transposed convolution, average pooling: the same function comes back."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
            x = nn.ConvTranspose(3, (3, 3), strides=(2, 2))(x)
            return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum(
                (1, 2)
            )

    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    variables = jax.jit(Net().init)(jax.random.key(1), x)
    plain = models.apply_fn(Net())
    a, b = (
        jax.jit(jax.grad(lambda v, f=f: f(v, x).sum()))(variables)
        for f in (plain, accelerate(plain))
    )
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def test_equal_functions_stay_equal():
    first, second = (accelerate(TrainingFunction(models.CIFARNet())) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
