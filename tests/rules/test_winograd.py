"""Winograd's filtering beside the convolution it replaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxviz.rules.fast import compiler_options
from jaxviz.rules.kernels_conv import conv
from jaxviz.rules.winograd import spread, winograd

LAST = ("NHWC", "HWIO", "NHWC")


def direct(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAST)


@pytest.mark.parametrize(
    ("size", "padding", "outputs", "rounding"),
    [
        ((6, 6), ((1, 1), (1, 1)), 4, 3e-5),
        ((7, 4), ((0, 0), (0, 0)), 2, 1e-5),
        ((3, 5), ((2, 0), (0, 3)), 4, 3e-5),
        ((8, 9), ((-1, 1), (2, -2)), 2, 1e-5),
    ],
)
def test_equal_to_the_convolution(size, padding, outputs, rounding):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 5)), rng.normal(size=(3, 3, 5, 4))
    filtered = lambda turned: jax.jit(
        functools.partial(winograd, padding=padding, outputs=outputs, turned=turned)
    )
    with jax.enable_x64(True):
        wide = np.asarray(direct(jnp.asarray(x), jnp.asarray(kernel), padding))
        np.testing.assert_allclose(filtered(False)(x, kernel), wide, atol=1e-13)
        turned = np.flip(kernel, (0, 1)).swapaxes(2, 3)
        np.testing.assert_allclose(filtered(True)(x, turned), wide, atol=1e-13)
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(filtered(False)(x, kernel), wide, atol=rounding)


@pytest.mark.parametrize("outputs", [2, 4])
def test_the_way_back_is_the_same_whether_the_kernels_values_are_kept(monkeypatch, outputs):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 7, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 5, 4)), jnp.float32)
    back = lambda: jax.jit(lambda x: winograd(x, kernel, ((1, 1), (1, 1)), outputs, turned=True))(x)
    kept = back()
    monkeypatch.setattr("jaxviz.rules.winograd._MOST_KEPT", 0)
    np.testing.assert_allclose(back(), kept, atol=3e-5)


def test_the_highest_precision_is_the_plain_sum():
    x, kernel = jnp.ones((2, 28, 28, 128)), jnp.ones((3, 3, 128, 128))
    program = lambda precision: str(jax.make_jaxpr(lambda x: fast_conv(x, kernel, precision))(x))
    assert "conv_general_dilated" not in program(None)
    assert "conv_general_dilated" in program((lax.Precision.HIGHEST,) * 2)


def test_many_channels_are_filtered_both_ways_and_stay_equal():
    key = jax.random.key(0)
    x = jax.random.normal(key, (2, 14, 14, 256))
    kernel = jax.random.normal(key, (3, 3, 256, 256)) / 48
    f = lambda conv: lambda x: jnp.sin(conv(x)).sum()
    ours = f(lambda x: fast_conv(x, kernel))
    plain = f(lambda x: direct(x, kernel, "SAME"))
    program = str(jax.make_jaxpr(jax.grad(ours))(x))
    assert "conv_general_dilated" not in program
    got, expected = (jax.jit(jax.grad(f))(x) for f in (ours, plain))
    assert float(jnp.abs(got - expected).max() / jnp.abs(expected).max()) < 1e-5


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="filtering is for the CPU backend")
def test_the_kernels_values_of_a_large_net_are_never_all_in_memory():
    kernels = [jax.ShapeDtypeStruct((3, 3, 512, 512), jnp.float32)] * 7
    x = jax.ShapeDtypeStruct((1, 14, 14, 512), jnp.float32)

    def score(x, kernels):
        for kernel in kernels:
            x = jnp.sin(fast_conv(x, kernel))
        return x.sum()

    options = compiler_options(large=True)
    program = jax.jit(jax.grad(score), compiler_options=options or None).lower(x, kernels)
    values = 16 * 512 * 512 * 4  # bytes of one kernel's
    assert "conv" not in program.as_text()
    assert program.compile().memory_analysis().temp_size_in_bytes < 2 * values


def fast_conv(x, kernel, precision=None):
    options = dict(lhs_dilation=(1, 1), rhs_dilation=(1, 1), feature_group_count=1)
    return conv(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, LAST),
        batch_group_count=1,
        precision=precision,
        preferred_element_type=None,
        **options,
    )


@pytest.mark.parametrize("size", [(1, 4), (3, 2)])
def test_a_few_numbers_amid_zeros(size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, *size, 9)), rng.normal(size=(3, 3, 9, 8))
    around = ((2, 2), (2, 2))
    with jax.enable_x64(True):
        wide = np.asarray(direct(jnp.asarray(x), jnp.asarray(kernel), around))
        np.testing.assert_allclose(spread(jnp.asarray(x), jnp.asarray(kernel)), wide, atol=1e-13)
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(spread(x, kernel), wide, atol=3e-5)
