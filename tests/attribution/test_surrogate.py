"""LIME, KernelSHAP and Shapley values: linear models, axioms, enumeration, Captum."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

from jaxviz.attribution.gradient import gradient
from jaxviz.attribution.path import expected_gradients
from jaxviz.attribution.rise import rise
from jaxviz.attribution.shapley import shapley_sampling, shapley_values
from jaxviz.attribution.smooth import smooth_grad
from jaxviz.attribution.surrogate import kernel_shap, lime
from jaxviz.parts.regions import grid_segments

KEY = jax.random.key(7)
SEGMENTS = grid_segments((6, 6), (2, 3))
linear = lambda w, x: (x * w).sum((1, 2)) + 3
# Interactions of all kinds, each example on its own: [N, 6, 6, 1] -> [N, 2].
curved = lambda w, x: jnp.tanh((x * w).sum((1, 2))) * jnp.ones((1, 2)) + (x * w).max((1, 2)) ** 2
SAMPLED = {
    "shapley_sampling": functools.partial(shapley_sampling, key=KEY, num_samples=4),
    "kernel_shap": functools.partial(kernel_shap, key=KEY, num_samples=40),
    "lime": functools.partial(lime, key=KEY, num_samples=60, strength=0.0),
    "lasso": functools.partial(
        lime, key=KEY, num_samples=60, strength=0.0, penalty="lasso", kernel_width=2.0
    ),
}


def data(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.normal(keys[0], (1, 6, 6, 1)), jax.random.normal(keys[1], (2, 6, 6, 1))


def sums(a):
    """Of each example over each segment."""
    return np.stack([np.asarray(a)[:, SEGMENTS == g].sum((1, 2)) for g in range(6)], 1)


def brute(f, w, x, target):
    """Shapley values by the definition, one coalition after another."""

    @functools.cache
    def score(kept):
        seen = np.isin(SEGMENTS, kept)[None, :, :, None]
        return np.asarray(jax.jit(f)(w, jnp.where(seen, x, 0)), np.float64)[:, target]

    values = np.zeros((len(x), 6))
    for g in range(6):
        others = [i for i in range(6) if i != g]
        for size in range(6):
            weight = 1 / (6 * math.comb(5, size))
            for some in itertools.combinations(others, size):
                values[:, g] += weight * (score(tuple(sorted((*some, g)))) - score(some))
    return values


@pytest.mark.parametrize("name", SAMPLED)
def test_linear_models_are_recovered(name):
    w, x = data()
    out = SAMPLED[name](linear, w, x, 0, segments=SEGMENTS)
    np.testing.assert_allclose(out.values, sums(x * w), atol=5e-5)
    np.testing.assert_allclose(out.base, [3, 3], atol=1e-4)
    np.testing.assert_allclose(out.standard_errors, np.zeros((2, 6)), atol=1e-4)
    np.testing.assert_allclose(out.map, np.asarray(out.values)[:, SEGMENTS], rtol=1e-6)


def test_exact_values_are_those_of_the_definition():
    w, x = data(1)
    expected = brute(curved, w, x, 1)
    out = shapley_values(curved, w, x, 1, segments=SEGMENTS)
    np.testing.assert_allclose(out.values, expected, atol=1e-5)
    # KernelSHAP with all coalitions solves for them.
    full = kernel_shap(curved, w, x, 1, key=KEY, segments=SEGMENTS, num_samples=62)
    np.testing.assert_allclose(full.values, expected, atol=1e-5)
    assert not full.standard_errors.any()


def test_exact_values_agree_with_captum():
    with jax.enable_x64(True), np.load(small_net.FOLDER / "perturbation_peers.npz") as peers:
        params, x, target, baseline, _ = small_net.inputs(jnp.float64)
        options = {"segments": peers["grid"], "fill": baseline}
        out = shapley_values(small_net.apply_fn, params, x, target, **options)
        close(out.map, peers["shapley"][..., 0], 2e-6)  # 720 orders added in float32
        full = kernel_shap(small_net.apply_fn, params, x, target, key=KEY, **options)
        close(full.values, out.values, 1e-10)


@pytest.mark.parametrize("name", ["shapley_sampling", "kernel_shap", "lime"])
def test_estimates_scatter_as_their_standard_errors_say(name):
    w, x = data(2)
    explain = lambda key: SAMPLED[name](curved, w, x, 1, segments=SEGMENTS, key=key)
    runs = jax.vmap(explain)(jax.random.split(jax.random.key(0), 60))
    values, errors = np.asarray(runs.values, np.float64), np.asarray(runs.standard_errors)
    scatter, stated = values.std(0, ddof=1), np.sqrt((errors**2).mean(0))
    # 60 runs know a deviation to 10 %; few samples estimate their own with some bias.
    assert (scatter < 1.7 * stated + 1e-4).all()
    assert (stated < 1.7 * scatter + 1e-4).all()
    if name != "lime":  # whose values are its own, not Shapley's
        expected = np.asarray(shapley_values(curved, w, x, 1, segments=SEGMENTS).values)
        off = np.abs(values.mean(0) - expected)
        assert (off < 4.5 * scatter / np.sqrt(60) + 0.02 * np.abs(expected).max()).all()


@pytest.mark.parametrize(
    "method", [shapley_values, SAMPLED["shapley_sampling"], SAMPLED["kernel_shap"]]
)
@pytest.mark.parametrize("seed", range(2))
def test_axioms(method, seed):
    w, x = data(seed)
    blind = jnp.where((SEGMENTS != 4)[None, :, :, None], w, 0)  # segment 4 is never read
    out = method(curved, blind, x, 0, segments=SEGMENTS)
    whole, none = (np.asarray(curved(blind, a))[:, 0] for a in (x, 0 * x))
    np.testing.assert_allclose(out.values.sum(1), whole - none, atol=1e-4)  # efficiency
    np.testing.assert_allclose(out.base, none, atol=1e-5)
    if method is not SAMPLED["kernel_shap"]:  # whose samples tell a dummy only on average
        np.testing.assert_allclose(out.values[:, 4], 0, atol=1e-5)
    if method is shapley_values:
        # Symmetry: two segments that hold the same share the same. Linearity in the model.
        alike = jnp.broadcast_to(x[:, :3, :2], (2, 3, 2, 1))
        both = x.at[:, :3, :2].set(alike).at[:, :3, 2:4].set(alike)
        flat = w.at[:, :3, 2:4].set(w[:, :3, :2])
        even = method(curved, flat, both, 0, segments=SEGMENTS).values
        np.testing.assert_allclose(even[:, 0], even[:, 1], atol=1e-5)
        mixed = lambda w, x: 2 * curved(w, x) - 3 * jnp.tile(linear(w, x), 2)
        expected = 2 * method(curved, w, x, 0, segments=SEGMENTS).values - 3 * sums(x * w)
        found = method(mixed, w, x, 0, segments=SEGMENTS).values
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_lime_solves_its_objective(penalty):  # oracle: scikit-learn on the same coalitions
    linear_model = pytest.importorskip("sklearn.linear_model")
    w, x = data(3)
    count, width = 80, 0.4
    strength = {"ridge": 1.0, "lasso": 0.02}[penalty]
    out = lime(
        curved,
        w,
        x,
        1,
        key=KEY,
        segments=SEGMENTS,
        num_samples=count,
        kernel_width=width,
        penalty=penalty,
        strength=strength,
    )
    kept = jax.random.bernoulli(KEY, 0.5, (count, 2, 6)).at[0].set(True)
    for n in range(2):
        z = np.asarray(kept[:, n], float)
        seen = np.asarray(kept[:, n])[:, SEGMENTS][..., None]
        y = np.asarray(curved(w, jnp.where(seen, x[n][None], 0)), float)[:, 1]
        d = 1 - z.sum(1) / np.sqrt(np.maximum(z.sum(1), 1e-30) * 6)
        weights = np.exp(-(d**2) / (2 * width**2))
        if penalty == "ridge":
            fit = linear_model.Ridge(alpha=strength)
        else:
            fit = linear_model.Lasso(alpha=strength, tol=1e-8, max_iter=10_000)
        fit.fit(z, y, sample_weight=weights)
        np.testing.assert_allclose(out.values[n], fit.coef_, atol=2e-4)
        np.testing.assert_allclose(out.base[n], fit.intercept_, atol=5e-4)
        np.testing.assert_allclose(out.fit[n], fit.score(z, y, weights), atol=1e-3)


def test_rows_of_numbers_are_their_own_segments():
    w, x = jnp.array([[1.0], [2.0], [-4.0]]), jnp.array([[1.0, 2.0, 3.0]])
    out = shapley_values(lambda w, x: x @ w, w, x, 0, fill=jnp.array([1.0, 0.0, 0.0]))
    chex.assert_trees_all_close(out.map, jnp.array([[0.0, 4.0, -12.0]]), atol=1e-5)
    one = kernel_shap(lambda w, x: x @ w, w, x, 0, key=KEY, segments=jnp.zeros(3, int))
    chex.assert_trees_all_close(one.values, jnp.array([[-7.0]]))


def test_errors_say_what_came():
    w, x = data()
    with pytest.raises(ValueError, match=r"shapley_values: segments must be 20 at most.*got 36"):
        shapley_values(linear, w, x, 0, segments=np.arange(36).reshape(6, 6))
    with pytest.raises(ValueError, match=r"kernel_shap: num_samples .* 12, twice .* got 11"):
        kernel_shap(linear, w, x, 0, key=KEY, segments=SEGMENTS, num_samples=11)
    with pytest.raises(ValueError, match="num_samples must be at least 2; got 1"):
        shapley_sampling(linear, w, x, 0, key=KEY, segments=SEGMENTS, num_samples=1)
    with pytest.raises(ValueError, match="lime: penalty must be 'ridge' or 'lasso'; got 'l0'"):
        lime(linear, w, x, 0, key=KEY, segments=SEGMENTS, penalty="l0")
    with pytest.raises(ValueError, match="lime: segments must be integers"):
        lime(linear, w, x, 0, key=KEY, segments=SEGMENTS[:3])


def rows(features):
    """A linear model's weights, inputs, each its own segment, and what KernelSHAP must give."""
    keys = jax.random.split(jax.random.key(features), 2)
    w, x = jax.random.normal(keys[0], (features, 1)), jax.random.normal(keys[1], (2, features))
    return w, x, np.asarray(x * w[:, 0][None])


def test_the_usual_number_of_samples_is_enough_for_many_features():
    w, x, expected = rows(150)
    out = kernel_shap(lambda w, x: x @ w, w, x, 0, key=KEY)
    np.testing.assert_allclose(out.values, expected, atol=1e-4)
    assert out.standard_errors.max() < 1e-4


@pytest.mark.parametrize("num_samples", [60, 70, 200])
def test_what_too_few_samples_leave_open_is_said(num_samples):  # 30 unknowns, pairs count once
    w, x, expected = rows(30)
    out = kernel_shap(lambda w, x: x @ w, w, x, 0, key=KEY, num_samples=num_samples)
    off = np.abs(np.asarray(out.values) - expected)
    said = np.asarray(out.standard_errors)
    assert ((off < 1e-4) | (off < 6 * said)).all()
    if num_samples == 60:  # 30 pairs: of one example two are the same
        assert np.isinf(said).any()
    if num_samples == 200:
        assert off.max() < 1e-4


@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_lime_says_so_too(penalty):
    w, x, expected = rows(30)
    options = {"key": KEY, "penalty": penalty, "strength": 0.0, "kernel_width": 2.0}
    fit = lambda num: lime(lambda w, x: x @ w, w, x, 0, num_samples=num, **options)
    few, many = fit(20), fit(400)
    assert np.isinf(few.standard_errors).any(1).all()
    assert (np.abs(many.values - expected) < 1e-2).all()
    assert np.isfinite(many.standard_errors).all()


@pytest.mark.parametrize("name", ["kernel_shap", "lime"])
def test_few_samples_state_no_smaller_error_than_they_have(name):
    """Residuals of what was fitted to them are too small: 13 pairs for 6 values, say."""
    w, x = data(2)
    explain = functools.partial(
        {"kernel_shap": kernel_shap, "lime": lime}[name], curved, w, x, 1, segments=SEGMENTS
    )
    options = {"strength": 0.0, "kernel_width": 2.0} if name == "lime" else {}
    explain = functools.partial(explain, num_samples=26, **options)
    runs = jax.vmap(lambda key: explain(key=key))(jax.random.split(jax.random.key(0), 60))
    scatter = np.asarray(runs.values).std(0, ddof=1)
    stated = np.median(np.asarray(runs.standard_errors), 0)
    assert (stated > scatter / 2).all()


def test_keys_of_either_make_draw_the_same():
    w, x = data()
    model = lambda w, x: (x * w).sum((1, 2))
    explain = functools.partial(shapley_sampling, model, w, x, 0, segments=SEGMENTS, num_samples=2)
    old, new = (explain(key=make(3)) for make in (jax.random.PRNGKey, jax.random.key))
    np.testing.assert_array_equal(old.values, new.values)


@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_draws_do_not_depend_on_what_is_drawn_beside_them(impl):
    w, x = data()
    model = lambda w, x: (x * w).sum((1, 2))
    # No maximum: unoptimised, XLA computes its operand twice and the two differ by a rounding.
    bent = lambda w, x: jnp.tanh(model(w, x)) ** 2

    @functools.partial(jax.jit, static_argnums=1)
    def explain(key, c):
        draw = {"key": key, "num_samples": 6}
        several = {"num_samples": 20, "segments": SEGMENTS}
        first = [
            rise(model, w, x, 0, cells=2, chunk_size=c, **draw),
            smooth_grad(gradient, num_samples=6, chunk_size=c)(bent, w, x, 0, key=key),
        ]
        if impl != "threefry2x32":  # a key of which is made of others, before anything is drawn
            return first
        return [
            *first,
            expected_gradients(bent, w, x, 0, baselines=x, noise_scale=0.1, chunk_size=c, **draw),
            lime(model, w, x, 0, key=key, chunk_size=c, **several).map,
        ]

    key = jax.random.key(3, impl=impl)
    for one, six in zip(explain(key, 1), explain(key, 6), strict=True):
        np.testing.assert_allclose(one, six, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_key_among_others_under_vmap_draws_what_it_draws_alone(impl):
    w, x = data()
    model = lambda w, x: (x * w).sum((1, 2))
    one = jax.jit(lambda key: rise(model, w, x, 0, cells=2, num_samples=3, key=key))
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    alone = np.stack([one(key) for key in keys])
    np.testing.assert_allclose(jax.vmap(one)(keys), alone, rtol=1e-5, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_of_a_class_that_is_not_there_nothing_is_known():
    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 3), (2, 6)))
    draw = {"key": KEY, "num_samples": 40}
    methods = kernel_shap, lime, shapley_sampling

    @jax.jit
    def run(t):
        return [method(lambda w, x: x @ w, w, x, t, **draw) for method in methods]

    for found in jax.tree.leaves(run(jnp.array([7, 1]))):
        assert jnp.isnan(found[0]).all()
        assert jnp.isfinite(found[1]).all()


def test_lime_weighs_coalitions_by_the_segments_that_an_example_has():
    w, x = np.float32([1.0, 2.0, -1.0]), np.ones((1, 3), np.float32)
    net = lambda w, x: jnp.square(x @ w + x[:, 0] * x[:, 1])[:, None]
    explained = functools.partial(lime, net, w, x, 0, key=KEY, num_samples=20000, kernel_width=0.1)
    wanted = explained(segments=np.arange(3)).values[0]
    more = explained(segments=np.arange(3) + 3, num_segments=7).values[0]
    np.testing.assert_allclose(more[3:6], wanted, atol=0.05)
