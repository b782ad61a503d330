"""RISE, Sobol and HSIC against the papers' formulas in NumPy, and on models with known answers."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.attribution.rise import random_masks, rise
from jaxviz.attribution.sensitivity import hsic, sobol
from jaxviz.attribution.shapley import shapley_sampling
from jaxviz.parts.regions import blend

KEY = jax.random.key(4)


def net(w, x):
    """Products and squares of what lies in the image: [N, 6, 6, 2] -> [N, 2]."""
    y = jnp.tanh(x * w)
    return jnp.stack([y[:, :3].sum((1, 2, 3)) * y[:, 3:].sum((1, 2, 3)), y[..., 0].sum((1, 2))], 1)


def data():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (1, 6, 6, 2)), jax.random.normal(keys[1], (2, 6, 6, 2))


def test_rise_is_the_sum_of_its_masks_weighed_by_scores():  # eq. 6, one mask after another
    w, x = data()
    count, keep, fill = 9, 0.4, 0.3
    out = rise(
        net, w, x, 0, key=KEY, num_samples=count, cells=2, keep=keep, fill=fill, chunk_size=4
    )
    expected = np.zeros((2, 6, 6))
    for k in range(count):
        masks = random_masks(jax.random.fold_in(KEY, k), (2, 6, 6), 2, keep, jnp.float32)
        masks = np.asarray(masks)
        seen = masks[..., None] * np.asarray(x) + (1 - masks[..., None]) * fill
        scores = np.asarray(net(w, jnp.asarray(seen, jnp.float32)))[:, 0]
        expected += masks * scores[:, None, None] / (count * keep)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_masks_are_grids_stretched_and_shifted():  # oracle: bilinear weights by hand
    shape, cells = (200, 7, 9), 3
    masks = np.asarray(random_masks(KEY, shape, cells, 0.5, jnp.float32))
    assert masks.shape == shape
    assert 0 <= masks.min() <= masks.max() <= 1
    # A draw of its own for each example, and the right share left to be seen.
    assert len({m.tobytes() for m in masks}) > 190
    assert abs(masks.mean() - 0.5) < 4 * 0.5 / np.sqrt(200 * 16) * 1.5
    # Between grid points values lie on a line: cells are 3 pixels, so steps are thirds.
    steps = np.abs(np.diff(masks, axis=1))
    assert steps.max() <= 1 / 3 + 1e-6


def test_what_rise_sees_first():
    look = lambda _, x: x[:, 1, 4]
    out = rise(look, None, jnp.ones((1, 6, 6, 1)), 0, key=KEY, num_samples=800, cells=3)
    assert np.unravel_index(int(out[0].argmax()), (6, 6)) == (1, 4)
    # Seen: the score is the mask there, of mean E[m^2] / E[m] > 1/2; far away it is 1/2.
    assert abs(float(out[0, 5, 0]) - 0.5) < 0.07


def fade(x, fill, mask):
    large = np.repeat(np.repeat(mask.reshape(2, 2), 3, 0), 3, 1)[None, ..., None]
    return jnp.asarray(fill + large * (np.asarray(x) - fill), jnp.float32)


def test_sobol_is_jansens_estimator():  # oracle: its sums over designs, in NumPy
    from scipy.stats import qmc

    w, x = data()
    count, fill = 8, -0.2
    out = sobol(net, w, x, 0, key=KEY, cells=2, num_designs=count, fill=fill, chunk_size=5)
    points = qmc.Sobol(8, scramble=False).random_base2(3)
    points = (points + np.asarray(jax.random.uniform(KEY, (8,)))) % 1
    a, b = points[:, :4], points[:, 4:]
    f = lambda mask: np.asarray(net(w, fade(x, fill, mask)))[:, 0]
    f_a, f_b = (np.array([f(m) for m in designs]) for designs in (a, b))
    variance = np.concatenate([f_a, f_b]).var(0)
    for i in range(4):
        total = 0
        for k in range(count):
            mixed = a[k].copy()
            mixed[i] = b[k, i]
            total += (f_a[k] - f(mixed)) ** 2 / (2 * count * variance)
        row, column = divmod(i, 2)
        np.testing.assert_allclose(out[:, 3 * row, 3 * column], total, rtol=2e-4)


def test_draws_beside_wide_numbers():  # where JAX's own are wide, and are mixed with none narrow
    x = jnp.ones((1, 2, 2, 1))
    f = lambda _, x: x[:, 0, 0]
    with jax.enable_x64(True):
        for method in (
            functools.partial(sobol, cells=2, num_designs=2),
            functools.partial(shapley_sampling, num_samples=2, tolerance=0.1),
        ):
            found = jax.eval_shape(lambda x, method=method: method(f, None, x, 0, key=KEY), x)
            assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def test_sobol_indices_of_a_polynomial():
    """f = a + 2 b + 6 a c, masks uniform: the total indices by integration."""
    f = lambda _, x: (x[:, 0, :1] + 2 * x[:, 1, :1] + 6 * x[:, 0, :1] * x[:, 2, :1])[..., 0]
    x = jnp.ones((1, 4, 4, 1))
    out = sobol(f, None, x, 0, key=KEY, cells=4, num_designs=1024)[0, :, 0]
    # Var a(1 + 6c): E[(1 + 6c)^2] / 12 = 19 / 12, b: 4 / 12, c: 36 E[a^2] / 12 = 12 / 12;
    # the interaction 36 / 144 counts for both, so Var f = 19 / 12 + 4 / 12 + 12 / 12 - 3 / 12.
    chex.assert_trees_all_close(
        out, jnp.array([19.0, 4.0, 12.0, 0.0]) / 32, atol=0.06
    )  # 1024 draws


def test_hsic_is_the_trace_of_centred_kernels():  # oracle: the matrices themselves
    w, x = data()
    count, fill = 12, 0.5
    out = hsic(net, w, x, 0, key=KEY, cells=2, num_samples=count, fill=fill)
    masks = np.asarray(jax.random.bernoulli(KEY, 0.5, (count, 4))).astype(float)
    scores = np.array([np.asarray(net(w, fade(x, fill, m)))[:, 0] for m in masks])
    centre = np.eye(count) - 1 / count
    for n, i in itertools.product(range(2), range(4)):
        distance = np.abs(scores[:, None, n] - scores[None, :, n])
        of_scores = np.exp(-((distance / np.median(distance)) ** 2) / 2)
        z = masks[:, i] - 0.5
        of_masks = 0.5 + 2 * z[:, None] * z[None]  # 1 where two masks agree, else 0
        value = np.trace(of_masks @ centre @ of_scores @ centre) / (count - 1) ** 2
        row, column = divmod(i, 2)
        np.testing.assert_allclose(out[n, 3 * row, 3 * column], value, rtol=1e-3, atol=1e-6)


def test_hsic_sees_what_has_no_slope():
    """A cell whose hiding only matters together with another's, and one that never does."""
    f = lambda _, x: jnp.abs(x[:, 0, 0] - x[:, 0, 5])
    out = hsic(f, None, jnp.ones((1, 6, 6, 1)), 0, key=KEY, cells=2, num_samples=256, fill=-1.0)
    assert out[0, 5, 5] < 0.01  # never


@pytest.mark.parametrize(
    ("method", "wrong"),
    [(rise, {"keep": 1.0}), (sobol, {"num_designs": 12}), (hsic, {"num_samples": 1})],
)
def test_errors_say_what_came(method, wrong):
    name = method.__name__
    x = jnp.ones((1, 4, 4, 1))
    explain = functools.partial(method, lambda _, x: x[:, 0, 0], None)
    with pytest.raises(ValueError, match=f"{name}: x must be .*got"):
        method(lambda _, x: x[:, None], None, x[..., 0, 0, 0], 0, key=KEY)
    with pytest.raises(ValueError, match=rf"{name}: .*fill \(3,\)"):
        explain(x, 0, key=KEY, fill=jnp.ones(3), cells=2)
    with pytest.raises(ValueError, match=f"{name}: .*cells"):
        explain(x, 0, key=KEY, cells=0)
    with pytest.raises(ValueError, match=f"{name}: {next(iter(wrong))} must be .*got"):
        explain(
            x,
            0,
            key=KEY,
            **{sobol: {"num_designs": 12}, hsic: {"num_samples": 1}, rise: {"keep": 1.0}}[method],
            cells=2,
        )


def missing(w, x):
    """A model that takes NaN for a missing value: [N, 6, 6, 2] -> [N, 1]."""
    return (jnp.nan_to_num(x) * w).sum((1, 2, 3))[:, None]


def test_what_a_mask_hides_wholly_is_selected_and_no_other_place_is_touched():
    w, x = data()
    draw = {"key": KEY, "cells": 3}
    out = [hsic(missing, w, x, 0, fill=fill, num_samples=64, **draw) for fill in (0.0, jnp.nan)]
    np.testing.assert_allclose(*out, rtol=1e-4, atol=1e-7)
    # What cannot be faded to is said: with NaN everywhere such a model sees nothing of any input.
    fills = jnp.array([0.0, jnp.inf]).reshape(2, 1, 1, 1)
    for explain in (rise, functools.partial(sobol, num_designs=4)):
        found = explain(missing, w, x, 0, fill=fills, **draw)
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()


def test_a_blend_is_the_formula_and_exact_at_its_ends():
    fill, x = jnp.array([1.0, jnp.nan, 2.0, jnp.inf]), jnp.array([4.0, 5.0, -jnp.inf, 7.0])
    mask = jnp.array([0.25, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(blend(fill, mask, x), [1.75, 5, 2, 7])
    np.testing.assert_array_equal(jax.grad(lambda x: blend(fill, mask, x).sum())(x), mask)
    wide = blend(jnp.full(4, -6e4, jnp.float16), mask, jnp.full(4, 6e4, jnp.float16))
    np.testing.assert_allclose(wide, [-3e4, 6e4, -6e4, 6e4], rtol=1e-3)  # 1.2e5 is none of float16


@pytest.mark.parametrize("explain", [rise, sobol, hsic])
def test_a_score_of_nan_gives_its_example_nan_and_no_other(explain):
    w, x = data()
    options = {"key": KEY, "cells": 2, "num_designs" if explain is sobol else "num_samples": 4}
    found = explain(net, w, x.at[1, 0, 0, 0].set(jnp.nan), 0, **options)
    assert np.isnan(found[1]).all()
    clean = explain(net, w, x, 0, **options)
    np.testing.assert_allclose(found[0], clean[0], rtol=1e-4, atol=1e-6)


def test_hsic_has_no_unit_where_most_scores_are_equal():
    one = lambda w, x: w * x[:, 0, 0]  # two values, so that most pairs are at no distance
    x = jnp.ones((1, 4, 4, 1))
    small, large = (hsic(one, w, x, 0, key=KEY, cells=2) for w in (1e-4, 1e4))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-6)
    assert small[0, 0, 0] > 0.05


def test_a_small_input_has_as_many_cells_as_it_can():
    """Eight are the usual number; of five tokens there are five, each with its part."""
    net, w = lambda w, x: x @ w, jnp.arange(10.0).reshape(5, 2)
    found = sobol(net, w, jnp.ones((1, 5)), 1, key=KEY, num_designs=4)
    same = sobol(net, w, jnp.ones((1, 5)), 1, key=KEY, num_designs=4, cells=5)
    np.testing.assert_array_equal(found, same)
