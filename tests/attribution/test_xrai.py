"""XRAI: the ranking against the algorithm as it is written, and what it gives on an image."""

import builtins

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.attribution.path import integrated_gradients
from jaxviz.attribution.xrai import felzenszwalb_segments, xrai


def net(w, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ w)


def slow_rank(attribution, masks, min_pixels, area):
    """Algorithm 1: every remaining segment's gain is taken anew at every turn."""
    covered = np.zeros(attribution.shape, bool)
    out = np.full(attribution.shape, -np.inf)
    left = list(range(len(masks)))
    while covered.mean() <= area:
        left = [i for i in left if (masks[i] & ~covered).sum() >= min_pixels]
        if not left:
            break
        gains = {i: attribution[masks[i] & ~covered].mean() for i in left}
        best = max(gains, key=gains.get)
        out[masks[best] & ~covered] = gains[best]
        covered |= masks[best]
        left.remove(best)
    rest = np.isinf(out)
    if rest.any():
        out[rest] = attribution[rest].mean()
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("min_pixels", "area"), [(1, 1.0), (6, 1.0), (1, 0.5)])
def test_ranking_agrees_with_the_algorithm_as_written(seed, min_pixels, area):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 3)), jnp.float32)
    w = jnp.asarray(0.1 * rng.normal(size=(216, 4)), jnp.float32)
    corners, sizes = rng.integers(0, 7, (2, 20, 2)), rng.integers(1, 6, (2, 20, 2))
    masks = np.zeros((2, 20, 9, 8), bool)
    for n in range(2):
        for m, ((i, j), (h, v)) in enumerate(zip(corners[n], sizes[n], strict=True)):
            masks[n, m, i : i + h, j : j + v] = True
    options = {"min_pixels": min_pixels, "area": area, "num_steps": 8}
    out = xrai(net, w, x, 1, segments=masks, **options)
    black, white = (jnp.broadcast_to(f((1, 2, 3), keepdims=True), x.shape) for f in (x.min, x.max))
    parts = [integrated_gradients(net, w, x, 1, baseline=b, num_steps=8) for b in (black, white)]
    attribution = np.asarray(parts[0] / 2 + parts[1] / 2, np.float64).max(-1)
    for n in range(2):
        expected = slow_rank(attribution[n], masks[n], min_pixels, area)
        chex.assert_trees_all_close(out[n], np.float32(expected), rtol=1e-4, atol=1e-6)


def test_finds_the_square_that_the_net_looks_at():
    pytest.importorskip("skimage")
    x = jnp.full((1, 40, 40, 3), 0.2).at[:, 8:20, 10:24].set(0.9)
    x = x + 0.01 * jax.random.normal(jax.random.key(0), x.shape)
    looks = lambda _, x: x[:, 8:20, 10:24].mean((1, 2))
    out = xrai(looks, None, x, 0, num_steps=4)
    chex.assert_shape(out, (1, 40, 40))
    # Segments are grown by a margin of five pixels in 224, which is one in 40.
    outside = np.ones((40, 40), bool)
    outside[6:22, 8:26] = False
    assert out[0, 10:18, 12:22].min() > 3 * np.abs(out[0][outside]).max()


def test_segments_cover_the_image_at_several_scales():
    pytest.importorskip("skimage")
    image = np.asarray(jax.random.uniform(jax.random.key(0), (30, 50, 3)))
    masks = felzenszwalb_segments(image)
    assert masks.dtype == bool
    assert masks.shape[1:] == (30, 50)
    assert (masks.sum(0) >= 6).all()
    assert felzenszwalb_segments(image[..., :1]).shape[1:] == (30, 50)
    assert felzenszwalb_segments(np.zeros((30, 30, 5))).all()


def test_absent_scikit_image_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-image.*jaxviz-xai\[segments\]"):
        felzenszwalb_segments(np.zeros((8, 8, 3)))


def test_errors_say_what_came():
    w, x = jnp.ones((48, 2)), jnp.ones((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"x must be images \[N, H, W, C\]; got \(4, 4, 3\)"):
        xrai(net, w, x[0], 0)
    with pytest.raises(ValueError, match=r"masks for each of the 1 images; got 2"):
        xrai(net, w, x, 0, segments=np.ones((2, 3, 4, 4), bool))
    with pytest.raises(ValueError, match=r"boolean masks \[M, 4, 4\]; got int64 \(1, 4, 4\)"):
        xrai(net, w, x, 0, segments=np.ones((1, 1, 4, 4), int))
