"""Parametrisations: inverses, bounds, and spectra by NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import jaxviz as jv
from jaxviz import parametrizations
from jaxviz.features.parametrizations import spectrum

KEY = jax.random.key(0)


def start(p, shape, key: Any = KEY):
    return jax.jit(lambda key, *data: p.initial(key, shape, *data))(key, *p.data)


def draw(p, v, shape):
    return np.asarray(jax.jit(lambda v, *data: p.image(v, shape, *data))(v, *p.data))


MATRIX = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
MATRIX = MATRIX / np.sqrt((MATRIX**2).sum(0)).max()


@pytest.mark.parametrize("shape", [(2, 8, 7, 3), (1, 6, 6, 1), (1, 5, 4, 4)])
@pytest.mark.parametrize("make", ["pixels", "fourier", "laplacian", "shared"])
def test_variables_of_an_image_give_the_image(make, shape):
    p = getattr(parametrizations, make)(-1.0, 3.0)
    images = jax.random.uniform(KEY, shape, minval=-0.9, maxval=2.9)
    np.testing.assert_allclose(draw(p, jax.jit(p.variables)(images), shape), images, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 16, 12, 3), (1, 9, 9, 1)])
def test_fourier_by_numpy(shape):
    p = parametrizations.fourier(decay=1.5)
    v = np.asarray(start(p, shape), float)
    _, height, width, channels = shape
    f = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2)
    waves = (v[..., 0] + 1j * v[..., 1]) * np.sqrt(height * width)
    waves /= np.maximum(f, 1 / max(height, width)) ** 1.5
    flat = np.moveaxis(np.fft.irfft2(waves, (height, width)) / 4, 1, -1)
    flat = flat @ MATRIX.T if channels == 3 else flat
    expected = 1 / (1 + np.exp(-flat))
    np.testing.assert_allclose(draw(p, jnp.asarray(v, jnp.float32), shape), expected, atol=1e-5)


def test_noise_in_waves_has_a_spectrum_that_falls_with_frequency():
    """Equal variables, so strength 1 / f: at four times the frequency a quarter."""
    shape = (64, 32, 32, 1)
    p = parametrizations.fourier()
    images = draw(p, start(p, shape), shape)[..., 0]
    strength = np.sqrt((np.abs(np.fft.rfft2(images - images.mean())) ** 2).mean(0))
    ratio = strength[0, 3:5].mean() / strength[0, 12:16].mean()
    np.testing.assert_allclose(ratio, 4.0, rtol=0.15)  # 64 draws each


def test_blank_is_the_middle_and_draws_do_not_depend_on_how_many_follow():
    shape = (3, 6, 6, 3)
    for p in (parametrizations.pixels(0.0, 4.0), parametrizations.fourier(0.0, 4.0)):
        np.testing.assert_allclose(draw(p, start(p, shape, None), shape), 2.0)
        few, many = (start(p, (n, *shape[1:])) for n in (1, 3))
        np.testing.assert_array_equal(few[0], many[0])
        assert not np.allclose(many[0], many[1])
    c = parametrizations.cppn(depth=2)
    few, many = (start(c, (n, *shape[1:])) for n in (1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), few, many)


def test_phases_keep_the_spectrum_of_photographs():
    shape = (2, 8, 10, 3)
    photographs = jax.random.uniform(KEY, (5, 8, 10, 3))
    magnitude = spectrum(photographs, shape[1:])
    p = parametrizations.phases(magnitude)
    variables = start(p, shape)
    image = draw(p, variables, shape)
    inner = (np.log(image) - np.log1p(-image)) @ np.linalg.inv(MATRIX).T
    strength = np.abs(np.fft.rfft2(inner, axes=(1, 2)))
    # The waves of column 0 and W / 2 are their own mirror images, so phases there cannot be free.
    np.testing.assert_allclose(
        np.moveaxis(strength, -1, 1)[..., 1:-1],
        np.asarray(magnitude)[None, ..., 1:-1].repeat(2, 0),
        rtol=1e-3,
        atol=1e-3,
    )
    inside = 0.02 + 0.96 * np.asarray(photographs)  # as documented: kept off the bounds
    flat = (np.log(inside) - np.log1p(-inside)) @ np.linalg.inv(MATRIX).T
    means = np.sqrt((np.abs(np.fft.rfft2(flat, axes=(1, 2))) ** 2).mean(0))
    np.testing.assert_allclose(magnitude[1, 2, 3], means[2, 3, 1], rtol=1e-4)


def test_cppn_by_numpy():
    shape = (1, 3, 5, 2)
    p = parametrizations.cppn(width=3, depth=2)
    layers, last = start(p, shape)
    last = jax.random.normal(KEY, last.shape)
    rows, columns = np.linspace(-1, 1, 3) * np.sqrt(3) / 2, np.linspace(-1, 1, 5) * np.sqrt(3)
    h = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    for kernel in layers:
        t = np.arctan(h @ np.asarray(kernel[0], float))
        h = np.concatenate([t / 0.67, t**2 / 0.6], -1)
    expected = 1 / (1 + np.exp(-h @ np.asarray(last[0], float)))
    np.testing.assert_allclose(draw(p, (layers, last), shape)[0], expected, atol=1e-5)


def enlarged(v, height, width):
    """`[M, C, h, w]` at another size, pixels being areas, by NumPy."""

    def matrix(new, old):
        places = (np.arange(new) + 0.5) * old / new - 0.5
        return np.stack([np.interp(places, np.arange(old), row) for row in np.eye(old)], 1)

    rows, columns = matrix(height, v.shape[2]), matrix(width, v.shape[3])
    return np.einsum("ih,jw,mchw->mcij", rows, columns, np.asarray(v, float))


def test_a_pyramid_and_shared_coarse_images_by_numpy():
    shape = (2, 6, 5, 2)  # two channels, which are not mixed
    sigmoid = lambda flat: 1 / (1 + np.exp(-np.moveaxis(flat, 1, -1)))
    p = parametrizations.laplacian(levels=3)
    v = start(p, shape)
    wanted = sigmoid(sum(enlarged(one, 6, 5) for one in v))
    np.testing.assert_allclose(draw(p, v, shape), wanted, atol=1e-6)
    few = start(p, (1, *shape[1:]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), few, v)
    p = parametrizations.shared(factors=[2, 4], noise=0.3)
    own, common = start(p, shape)
    waves = draw(parametrizations.fourier(), own, shape)
    flat = np.moveaxis(np.log(waves) - np.log1p(-waves), -1, 1)
    wanted = sigmoid(flat + sum(enlarged(one, 6, 5) for one in common))
    np.testing.assert_allclose(draw(p, (own, common), shape), wanted, atol=1e-5)
    assert p is parametrizations.shared(factors=[2, 4], noise=0.3)


def test_images_that_share_climb_together():
    net = lambda w, x: jnp.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], 1)
    options = {"key": KEY, "num_steps": 8, "transforms": (), "redirected_steps": 0}
    climb = functools.partial(
        *(jv.maximize_activation, net, None, (8, 8, 1), jv.objectives.logit([0, 1])),
        **{"parametrization": parametrizations.shared(), **options},
    )
    with pytest.raises(ValueError, match="images of this climb depend on each other"):
        climb(chunk_size=1)
    found = climb().images
    # Each wants one half bright: what they share makes both halves of both brighter.
    assert (np.asarray(found).reshape(2, 8, 2, 4).mean((1, 3)) > 0.5).all()


def test_errors():
    p = parametrizations.phases(jnp.ones((3, 4, 3)))
    with pytest.raises(ValueError, match=r"magnitude must be \(3, 8, 5\)"):
        p.initial(KEY, (1, 8, 8, 3), *p.data)
    with pytest.raises(ValueError, match="without phases there is no image"):
        p.initial(None, (1, 4, 4, 3), *p.data)
    with pytest.raises(ValueError, match=r"images must be \[N, H, W, 1\]"):
        spectrum(jnp.ones((2, 4, 4, 3)), (4, 4, 1))


def test_photographs_have_the_natural_spectrum():
    """Oracle: a temple and a flower, photographs that scikit-learn ships."""
    photographs = np.stack(load_sample_images().images) / np.float32(255)
    for channels in (3, 1):
        images = photographs if channels == 3 else photographs.mean(-1, keepdims=True)
        shape = (60, 90, channels)  # as long for its height as they are
        given = np.asarray(spectrum(images, shape))
        law = np.asarray(parametrizations.natural_spectrum(shape))
        cycles = parametrizations.frequencies(60, 90) * 90
        for low, high in ((1.5, 4), (4, 9), (9, 18), (18, 30)):
            band = (cycles >= low) & (cycles < high)
            ratio = np.sqrt((law[:, band] ** 2).mean(1) / (given[:, band] ** 2).mean(1))
            assert ((ratio > 1 / 2.5) & (ratio < 2.5)).all(), (channels, low, ratio)
    with pytest.raises(ValueError, match=r"natural_spectrum: shape must be .* 1 or 3 channels"):
        parametrizations.natural_spectrum((8, 8, 4))


def test_phases_of_no_photographs():
    shape = (2, 8, 10, 3)
    given = parametrizations.phases(parametrizations.natural_spectrum(shape[1:]))
    for_none = parametrizations.phases()
    variables = start(for_none, shape)
    np.testing.assert_array_equal(start(given, shape), variables)
    np.testing.assert_array_equal(draw(given, variables, shape), draw(for_none, variables, shape))
    net = lambda w, x: x.mean((2, 3)) @ w  # channels first
    first = jv.channels_first(net)
    climb = {"key": KEY, "num_steps": 2, "transforms": (), "redirected_steps": 0}
    out = jv.maco(first, jnp.eye(3), (3, 8, 10), jv.objectives.logit(0), **climb)
    assert out.images.shape == (1, 3, 8, 10)
    with pytest.raises(ValueError, match=r"maco: shape must be"):
        jv.maco(net, jnp.eye(3), (8,), jv.objectives.logit(0), **climb)
