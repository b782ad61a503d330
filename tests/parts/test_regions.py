"""What hides: blurs of any numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxviz.attribution.ablation import feature_ablation
from jaxviz.metrics import irof
from jaxviz.parts.regions import blurred


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint8, jnp.int32, jnp.float16, jnp.bfloat16])
def test_a_blur_is_scipys_whatever_the_numbers(dtype):  # half a kernel is no integer
    image = jnp.asarray(np.random.default_rng(0).integers(0, 200, (1, 9, 7, 2)), dtype)
    exact = np.asarray(image).astype(np.float64)
    expected = ndimage.gaussian_filter(exact, (0, 1.5, 1.5, 0), mode="reflect", truncate=4.0)
    found = blurred(image, 1.5)
    whole = jnp.issubdtype(dtype, jnp.integer)
    assert found.dtype == (jnp.float32 if whole else dtype)
    tolerance = {jnp.float16: 1e-3, jnp.bfloat16: 8e-3}.get(dtype, 1e-5)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i4", "u8", "i8"])
def test_segments_are_whole_numbers_of_any_type(dtype):  # as masks in files are
    x, segments = jnp.arange(12.0).reshape(2, 6), np.array([0, 0, 1, 1, 2, 2], dtype)
    out = feature_ablation(lambda _, x: x.sum(1, keepdims=True), None, x, 0, segments=segments)
    np.testing.assert_allclose(out, x.reshape(2, 3, 2).sum(2).repeat(2, 1))
    if dtype == "i8":  # below 0 is none, however far
        segments[:2] = -(2**40)
        out = feature_ablation(lambda _, x: x.sum(1, keepdims=True), None, x, 0, segments=segments)
        np.testing.assert_allclose(out[:, :2], 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16])
def test_segments_of_few_bits_are_those_of_many(dtype):
    """Up to the type's last number, beside which there is place for no other, -1 neither."""
    x = 1 + jnp.arange(512.0).reshape(2, 16, 16, 1) % 7
    wide = np.arange(256).reshape(16, 16) // (2 if dtype == np.int8 else 1)
    net = lambda w, x: x.sum((1, 2)) * w
    area = lambda segments: irof(net, 1.0, x, x, 0, segments=segments).area
    np.testing.assert_array_equal(area(wide.astype(dtype)), area(wide))


def test_a_blur_of_booleans_is_a_share():
    found = blurred(jnp.ones((1, 4, 4, 1), bool).at[0, :, 2:].set(False), 1.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found + found[:, :, ::-1], np.ones((1, 4, 4, 1)), rtol=1e-6)
