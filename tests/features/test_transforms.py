"""Transforms: against SciPy and NumPy, and their pullbacks against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxviz import transforms
from jaxviz.features.transforms import compose, resample

IMAGES = jax.random.normal(jax.random.key(0), (2, 12, 9, 3))
KEY = jax.random.key(5)


def test_resample_is_scipys_affine_transform():
    matrix, offset = jnp.array([[0.9, -0.2], [0.3, 1.1]]), jnp.array([0.7, -1.3])
    out = jax.jit(resample, static_argnums=(3, 4))(IMAGES, matrix, offset, (10, 11), 2.0)
    assert out.shape == (2, 10, 11, 3)
    # SciPy blends into the constant only inside; so the border of zeros is put there.
    padded = np.pad(np.asarray(IMAGES[1, :, :, 2], np.float64), 3)
    moved = np.asarray(offset) + 3
    expected = ndimage.affine_transform(padded, matrix, moved, (10, 11), order=1)
    np.testing.assert_allclose(out[1, :, :, 2], expected, atol=1e-5)


def test_the_pullback_of_resample_is_its_transpose():
    """Oracle: the matrix of the linear map, by mapping every unit image."""
    matrix, offset = jnp.array([[0.8, -0.3], [0.2, 0.7]]), jnp.array([0.4, 2.1])
    reach = float(jnp.abs(jnp.linalg.inv(matrix)).sum(1).max())
    apply = lambda x: resample(x, matrix, offset, (7, 6), reach)
    units = jnp.eye(30).reshape(30, 5, 6, 1)
    forward = apply(units).reshape(30, 42)
    cotangents = jnp.eye(42).reshape(42, 7, 6, 1)
    pull = lambda g: jax.vjp(apply, jnp.zeros((1, 5, 6, 1)))[1](g[None])[0]
    backward = jax.jit(jax.vmap(pull))(cotangents).reshape(42, 30)
    np.testing.assert_allclose(backward.T, forward, atol=1e-6)


@pytest.mark.parametrize(
    "transform",
    [transforms.jitter(3), transforms.rotate(40), transforms.scale(0.3, 1.2)],
    ids=["jitter", "rotate", "scale"],
)
def test_pullbacks_are_transposes(transform):
    """A linear map f and its pullback p: <f(x), g> = <x, p(g)>."""
    f = lambda x: transform(KEY, x)
    g = jax.random.normal(jax.random.key(1), IMAGES.shape)
    out, pull = jax.jit(lambda x: (f(x), jax.vjp(f, x)[1](g)[0]))(IMAGES)
    assert out.shape == IMAGES.shape
    assert float(jnp.abs(out - IMAGES).max()) > 0.1  # this key does move it
    np.testing.assert_allclose((out * g).sum(), (IMAGES * pull).sum(), rtol=1e-4)


def test_turning_a_slope_turns_the_slope():
    """Bilinear values of a plane lie on the plane: rotation and zoom read off three pixels."""
    rows, columns = np.meshgrid(np.arange(21.0) - 10, np.arange(21.0) - 10, indexing="ij")
    images = jnp.asarray(np.stack([rows, columns], -1)[None], jnp.float32)
    out = transforms.rotate(30)(KEY, images)[0, 5:16, 5:16]
    down, right = out[6, 5] - out[5, 5], out[5, 6] - out[5, 5]
    np.testing.assert_allclose(out[5, 5], 0, atol=1e-5)
    np.testing.assert_allclose([down[0], -down[1]], [right[1], right[0]], atol=1e-5)
    assert 0 < abs(np.degrees(np.arctan2(down[1], down[0]))) < 30
    np.testing.assert_allclose(jnp.hypot(*down), 1, atol=1e-5)
    zoomed = transforms.scale(1.5, 2.0)(KEY, images)[0, 5:16, 5:16]
    step = zoomed[6, 5] - zoomed[5, 5]
    assert 1 / 2 < step[0] < 1 / 1.5
    np.testing.assert_allclose(step[1], 0, atol=1e-6)


def test_outside_is_the_mirror_image():
    images = jnp.arange(4.0).reshape(1, 1, 4, 1)
    out = transforms.scale(0.5, 0.5)(KEY, images)
    # At half the size the middle four of eight mirrored columns' neighbours: -1.5, 0.5, 2.5, 4.5.
    np.testing.assert_allclose(out.ravel(), [0.5, 0.5, 2.5, 2.5], atol=1e-5)


def test_jitter_is_a_roll_by_at_most_its_amount():
    moved = transforms.jitter(0.25)(KEY, IMAGES)  # 3 of 12 rows, 2 of 9 columns
    rolls = [
        (i, j)
        for i in range(-3, 4)
        for j in range(-2, 3)
        if np.array_equal(moved, np.roll(IMAGES, (i, j), (1, 2)))
    ]
    assert len(rolls) == 1
    assert rolls != [(0, 0)]


def test_blur_is_scipys():
    out = transforms.blur(1.7)(None, IMAGES)
    expected = ndimage.gaussian_filter(np.asarray(IMAGES, float), (0, 1.7, 1.7, 0))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_pad_and_crop_are_numpys():
    np.testing.assert_array_equal(
        transforms.pad(2)(None, IMAGES),
        np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=0.5),
    )
    np.testing.assert_array_equal(
        transforms.crop((12, 5), random=False)(None, IMAGES), IMAGES[:, :, 2:7]
    )
    window = np.asarray(transforms.crop((4, 4))(KEY, IMAGES))
    assert any(
        np.array_equal(window, IMAGES[:, i : i + 4, j : j + 4]) for i in range(9) for j in range(6)
    )


def test_a_zoom_shows_a_part_at_full_size():
    """On a plane: the value spans the share of the range that the window has of the image."""
    image = jnp.broadcast_to(jnp.arange(32.0)[None, :, None, None], (1, 32, 32, 1))
    out = transforms.zoom(0.25, 0.5)(KEY, image)[0, :, :, 0]
    assert out.shape == (32, 32)
    assert 0.25 <= (out.max() - out.min()) / 31 <= 0.5


def test_every_transform_draws_by_its_own_key():
    twice = (transforms.jitter(3), transforms.jitter(3))
    once = transforms.jitter(3)(jax.random.fold_in(KEY, 0), IMAGES)
    expected = transforms.jitter(3)(jax.random.fold_in(KEY, 1), once)
    np.testing.assert_array_equal(compose(twice, KEY, IMAGES), expected)


def test_errors():
    for wrong, told in (
        (lambda: transforms.scale(0.0, 1.0), "scale: low must be above 0"),
        (lambda: transforms.rotate(200), "rotate: degrees"),
        (lambda: transforms.blur(0), "blur: sigma"),
        (lambda: transforms.pad(-1), "pad: width"),
        (lambda: transforms.jitter(-1), "jitter: amount"),
        (lambda: transforms.zoom(0.5, 2.0), "zoom: shares"),
        (lambda: transforms.crop(20)(KEY, IMAGES), r"crop: the window \(20, 20\)"),
    ):
        with pytest.raises(ValueError, match=told):
            wrong()
