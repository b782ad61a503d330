"""Fills that depend on what is hidden, in every method that hides: against hiding by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics
from jaxviz.attribution.rise import random_masks

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 6, 1)).astype(np.float32)
W = RNG.normal(size=(6, 6, 1)).astype(np.float32)
SEGMENTS = jv.grid_segments((6, 6), (2, 3))


def net(w, x):
    return jnp.tanh((x * w[None]).sum((1, 2)))


@functools.cache
def lost(*gone):
    """The score lost with some segments inpainted, `[N]`, in NumPy but for the patch itself."""
    hidden = np.broadcast_to(np.isin(SEGMENTS, gone), X.shape[:3])
    seen = np.asarray(jax.jit(jv.inpainted)(X, hidden), np.float64)
    score = lambda x: np.tanh((x * W[None]).sum((1, 2, 3)))
    return score(np.float64(X)) - score(seen)


def test_what_hides_segments_inpaints_them():
    options = {"segments": SEGMENTS, "fill": jv.inpainted}
    single = np.stack([lost(g) for g in range(6)], 1)
    out = jv.feature_ablation(net, W, X, 0, method="incremental", chunk_size=2, **options)
    np.testing.assert_allclose(out, single[:, SEGMENTS], atol=1e-5)
    slide = {"window": (3, 2), "stride": (3, 2), "method": "full", "fill": jv.inpainted}
    out = jv.occlusion(net, W, X, 0, **slide)
    np.testing.assert_allclose(out, single[:, SEGMENTS], atol=1e-5)
    exact = jv.shapley_values(net, W, X, 0, **options).values
    np.testing.assert_allclose(exact.sum(1), lost(*range(6)), atol=1e-5)
    # The whole is worth what it is over nothing at all: 0 in every place.
    np.testing.assert_allclose(lost(*range(6)), np.tanh((X * W[None]).sum((1, 2, 3))), atol=1e-6)


def test_soft_masks_fade_to_what_their_darker_half_gives():
    draw = {"key": KEY, "num_samples": 5, "cells": 2}
    half = lambda x, hidden: jnp.where(hidden, 0.5, x)

    @jax.jit
    def both(x):
        rise, hsic = (functools.partial(m, net, W, x, 0, **draw) for m in (jv.rise, jv.hsic))
        return rise(fill=0.5), rise(fill=half), hsic(fill=0.5), hsic(fill=half)

    soft, to_half, hard, also = both(X)
    np.testing.assert_allclose(also, hard, rtol=1e-6)  # masks of zeros and ones
    # A mask that is more than one half is not hidden there, and shows x in full.
    masks = [
        random_masks(jax.random.fold_in(KEY, k), (2, 6, 6), 2, 0.5, jnp.float32) for k in range(5)
    ]
    masks = np.asarray(jnp.stack(masks))[..., None].astype(np.float64)
    for found, kept in ((soft, masks), (to_half, np.where(masks > 0.5, 1, masks))):
        seen = 0.5 + kept * (X[None] - 0.5)
        scores = np.tanh((seen * W).sum((2, 3, 4)))
        wanted = (scores[..., None, None] * masks[..., 0]).sum(0) / 2.5
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_function_that_gives_nan_where_masks_fade_gives_nan():
    gone = np.array([0.0, np.nan], np.float32).reshape(2, 1, 1, 1)
    holes = lambda x, hidden: jnp.where(hidden, gone, x)  # of the second example
    missing = lambda w, x: net(w, jnp.where(jnp.isfinite(x), x, 0))  # a net that would not mind
    here = X.copy()
    here[0, 0, 0] = np.inf  # its own, which the function leaves as it is
    draw = {"key": KEY, "cells": 2, "fill": holes}

    @jax.jit
    def all_of(x):
        call = lambda method, **options: method(missing, W, x, 0, **draw, **options)
        return (
            call(jv.rise, num_samples=3),
            call(jv.hsic, resize="bilinear", num_samples=4),
        )

    for found in all_of(here):
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()


def test_channels_anywhere_and_noise_of_your_own():
    noisy = functools.partial(metrics.noisy_linear_imputation, key=KEY, noise=0.1)
    first = jv.channels_first(lambda w, x: net(w, jnp.moveaxis(x, 1, -1)))
    ablate = functools.partial(jv.feature_ablation, segments=SEGMENTS, fill=noisy, method="full")
    moved = ablate(first, W, np.moveaxis(X, -1, 1), 0)
    last = ablate(net, W, X, 0)
    np.testing.assert_allclose(np.squeeze(moved), last, atol=1e-6)
    assert np.abs(last - np.asarray([lost(g) for g in range(6)]).T[:, SEGMENTS]).max() > 1e-3


def test_a_patch_has_the_gradient_of_finite_differences():
    with jax.enable_x64(True):
        x, way = (RNG.normal(size=(1, 5, 4, 2)) for _ in range(2))
        hidden = RNG.random((1, 5, 4)) < 0.5
        weights = RNG.normal(size=x.shape)

        @jax.jit
        def both(x):
            score = lambda x: (jv.inpainted(x, hidden) * weights).sum()
            return score(x), jax.grad(score)(x)

        low, high = both(x - way)[0], both(x + way)[0]  # it is linear
        slope = both(x)[1]
        np.testing.assert_allclose((slope * way).sum(), (high - low) / 2, rtol=1e-5)
        assert not np.asarray(slope)[hidden].any()


def test_a_fill_that_is_none_is_refused_by_name():
    for fill, told in (
        (lambda x: x, r"fails with TypeError"),
        (lambda x, hidden: x[0], r"gave shape \(6, 6, 1\)"),
        (lambda x, hidden: "black", "gave"),
    ):
        with pytest.raises(ValueError, match=rf"^rise: fill must be a function.*{told}"):
            jv.rise(net, W, X, 0, key=KEY, num_samples=1, fill=fill)
    ids, mean = np.array([[3, 1]]), lambda x, hidden: jnp.full(x.shape, 1.5)
    with pytest.raises(ValueError, match=r"^rise: fill must give whole numbers.*int32.*float32"):
        jv.rise(
            lambda _, x: x.astype(jnp.float32),
            None,
            ids,
            0,
            key=KEY,
            num_samples=1,
            cells=1,
            fill=mean,
        )
