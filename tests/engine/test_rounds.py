"""An early stop: after which round, and that the numbers are those of as many draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.attribution.sensitivity import dependence
from jaxviz.attribution.smooth import _variance
from jaxviz.engine import rounds
from jaxviz.engine.copies import running_sum
from jaxviz.engine.rounds import ROUND, Moments, error_shares, in_rounds, mean_until, moments
from jaxviz.engine.shares import traced_with
from jaxviz.parts import designs

KEY = jax.random.key(1)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 4, 1)).astype(np.float32)
W = RNG.normal(size=(4, 4, 1)).astype(np.float32)


def net(w, x):
    return jnp.tanh((x * w[None]).sum((1, 2)))


def rounds_needed(terms, tolerance):
    """How many draws are taken, in NumPy: rounds until all examples' errors are small."""
    for n in range(ROUND, len(terms) + ROUND, ROUND):
        some = terms[:n].astype(np.float64).reshape(min(n, len(terms)), terms.shape[1], -1)
        mean, error = some.mean(0), some.std(0, ddof=1) / np.sqrt(len(some))
        if (error.max(1) <= tolerance * np.ptp(mean, axis=1)).all():
            break
    return min(n, len(terms))


def test_moments_are_numpys_and_the_round_is_the_first_that_will_do():
    terms = RNG.normal(size=(150, 2, 3)) + 1e4 + np.array([0.0, 1.0, 2.0])  # far from 0
    terms = terms.astype(np.float32)

    @jax.jit
    def all_of(terms):
        term = lambda k: terms[k]
        tolerances = (0.06, 1e-9, 1.0)
        return [
            mean_until("any", term, 150, chunk, X, tolerance)
            for tolerance in tolerances
            for chunk in (1, 7, 64)
        ]

    found = all_of(terms)
    counts = [int(one.count) for one in found]
    needed = rounds_needed(terms, 0.06)
    assert ROUND < needed < 150
    assert counts == [needed] * 3 + [150] * 3 + [ROUND] * 3  # whatever the chunks
    for one in found:
        some = terms[: int(one.count)].astype(np.float64)
        np.testing.assert_allclose(one.mean, some.mean(0), rtol=1e-6)
        error = some.std(0, ddof=1) / np.sqrt(len(some))
        np.testing.assert_allclose(one.errors, error, rtol=1e-3)


def test_leaves_are_one_example_and_nan_keeps_nobody_waiting():
    terms = (RNG.normal(size=(150, 2, 3)) + np.array([0.0, 1.0, 2.0])).astype(np.float32)
    broken = terms.copy()
    broken[5, 1, 2] = np.nan

    @jax.jit
    def all_of(terms, broken):
        # A leaf of one number has no range of its own; one without any says nothing.
        parts = lambda k: (terms[k, :, :2], terms[k, :, 2], terms[k, :, :0])
        given = parts, (lambda k: broken[k]), (lambda k: broken[k, :, :0])
        return [mean_until("any", term, 150, 64, X, 0.06).count for term in given]

    apart, nan, empty = all_of(terms, broken)
    assert apart == rounds_needed(terms, 0.06) < 150
    assert nan == rounds_needed(terms[:, :1], 0.06) < 150
    assert empty == ROUND


def test_errors_of_very_many_draws():
    squares = np.array([[5.0, 7e4]], np.float32)
    found = Moments(jnp.int32(100_000), jnp.zeros((1, 2)), jnp.asarray(squares)).errors
    np.testing.assert_allclose(found, np.sqrt(squares / (1e5 * (1e5 - 1))), rtol=1e-6)
    assert np.isinf(Moments(jnp.int32(1), jnp.zeros(1), jnp.ones(1)).errors).all()


def test_loops_within_rounds_are_not_divided():
    large = jnp.zeros((1, 2**10))
    summed = lambda: running_sum("any", lambda k: large * k.astype(jnp.float32), 2**10, 8, large)

    def all_rounds():
        draw = lambda state, turn: state + summed()
        return in_rounds(0 * large, draw, lambda state: state[:, 0], 3, 0.1)

    text = lambda f: str(jax.make_jaxpr(lambda: traced_with(4, f))())
    assert "jaxviz_share" in text(summed)
    assert "jaxviz_share" not in text(all_rounds)


def test_another_tolerance_is_no_other_program(monkeypatch):
    traced = []
    known = rounds.small_enough
    monkeypatch.setattr(rounds, "small_enough", lambda *a: traced.append(1) or known(*a))

    def mixed(w, x):
        return jnp.tanh(x["a"] @ w + x["b"][:, None] + x["ids"].astype(jnp.float32)[:, None])

    x = {"a": X[:, :3, 0, 0], "b": X[:, 3, 0, 0], "ids": np.zeros(2, np.int32)}
    draw = {"baselines": jax.tree.map(lambda a: 0 * a[:1], x), "key": KEY, "num_samples": 64}
    call = functools.partial(jv.expected_gradients, mixed, W[:3, 0], x, 0, **draw)
    every = call(tolerance=1e-9)
    once = len(traced)
    some = call(tolerance=100.0)  # a round
    assert len(traced) == once > 0
    np.testing.assert_allclose(every["b"], call()["b"], atol=1e-6)
    assert len(traced) == once  # there are no rounds
    assert np.abs(some["b"] - every["b"]).max() > 1e-4


def test_a_method_that_stops_gives_what_so_many_draws_give():
    small = {"key": KEY, "cells": 2, "num_samples": 2000}
    stopped = jv.rise(net, W, X, 0, tolerance=100.0, **small)  # after a round
    once = jv.rise(net, W, X, 0, **small | {"num_samples": ROUND})
    np.testing.assert_allclose(stopped, once, atol=1e-6)
    # A tolerance that nothing meets takes all.
    draw = {"baselines": 0 * X[:1], "key": KEY, "num_samples": 40}
    every = jv.expected_gradients(net, W, X, 0, tolerance=1e-12, **draw)
    np.testing.assert_allclose(every, jv.expected_gradients(net, W, X, 0, **draw), atol=1e-6)


def test_expected_gradients_go_on_until_they_add_up():
    # Around the input: little is gained, and whole shares come and go.
    away = np.random.default_rng(0).normal(size=(2, 8, 4, 4, 1)).astype(np.float32)
    baselines = X[:, None] + away
    draw = {"baselines": baselines, "key": KEY, "num_samples": 8192}
    means = np.mean([net(W, baselines[:, k])[:, 0] for k in range(8)], 0)
    gained = net(W, X)[:, 0] - means
    gap = lambda found: jv.completeness_gap(net, W, X, None, found, 0, baselines=baselines)
    every = jv.expected_gradients(net, W, X, 0, **draw)
    np.testing.assert_allclose(every.sum((1, 2, 3)) - gained, gap(every), atol=1e-5)
    found = jv.expected_gradients(net, W, X, 0, tolerance=0.1, **draw)
    assert (np.abs(gap(found)) <= 0.1 * np.abs(gained)).all()
    assert np.abs(found - every).max() > 1e-4  # it stopped
    # With noise, as little as it be, the errors alone are asked.
    by_errors = jv.expected_gradients(net, W, X, 0, tolerance=0.1, noise_scale=1e-6, **draw)
    assert (np.abs(gap(by_errors)) > 0.1 * np.abs(gained)).any()
    with pytest.raises(ValueError, match="baseline must be None where baselines are given"):
        jv.completeness_gap(net, W, X, 0.0, found, 0, baselines=baselines)


@pytest.mark.parametrize("tolerance", [1e-9, 0.1])
def test_orders_in_rounds(tolerance):
    segments = jv.grid_segments((4, 4), (2, 2))
    draw = {"key": KEY, "segments": segments, "num_samples": 22}
    out = jv.shapley_sampling(net, W, X, None, tolerance=tolerance, **draw)
    gained = net(W, X)[:, 0] - net(W, 0 * X)[:, 0]
    np.testing.assert_allclose(out.values.sum(1), gained, atol=1e-5)
    if tolerance == 1e-9:  # all 22 of them, the last round half full
        whole = jv.shapley_sampling(net, W, X, None, **draw)
        np.testing.assert_allclose(out.values, whole.values, atol=1e-6)
        np.testing.assert_allclose(out.standard_errors, whole.standard_errors, rtol=1e-3, atol=1e-7)
    else:
        spread = np.ptp(np.asarray(out.values), axis=1, keepdims=True)
        assert (np.asarray(out.standard_errors) <= 0.1 * spread).all()


CELLS = jv.grid_segments((4, 4), (2, 2))
FITS = {
    "lime": functools.partial(jv.lime, segments=CELLS, num_samples=100, strength=0.1),
    "kernel_shap": functools.partial(jv.kernel_shap, segments=jv.grid_segments((4, 4), (4, 4))),
    "sobol": functools.partial(jv.sobol, cells=2),
    "hsic": functools.partial(jv.hsic, cells=2, num_samples=300),
    "smooth_grad": lambda *given, tolerance=0.0, **more: jv.smooth_grad(
        jv.saliency, num_samples=70, tolerance=tolerance
    )(*given, **more),
    "square_grad": lambda *given, tolerance=0.0, **more: jv.square_grad(
        jv.saliency, num_samples=70, tolerance=tolerance
    )(*given, **more),
}


def channels(w, x):
    return jnp.tanh(jax.nn.relu(x * jnp.array([[[[1.0, -1.0, 2.0]]]]) * w[None]).sum((1, 2)))


def whole_set(*given, **more):
    found = jv.permutation_importance(*given, num_samples=40, **more)
    return found.values, found.standard_errors


FITS |= {
    "var_grad": lambda *given, tolerance=0.0, **more: jv.var_grad(
        jv.gradient, num_samples=150, tolerance=tolerance
    )(*given, **more),
    "feature_permutation": lambda f, w, x, *given, **more: jv.feature_permutation(
        f, w, np.concatenate([x, 2 * x, -x]), *given, num_samples=40, **more
    ),
    "permutation_importance": whole_set,
    "smooth_grad_cam_pp": lambda _, *given, **more: jv.smooth_grad_cam_pp(
        channels, *given, layer="relu_0", num_samples=150, **more
    ),
    "ss_cam": lambda _, *given, **more: jv.ss_cam(
        channels, *given, layer="relu_0", num_samples=60, **more
    ),
    "shapley_interactions": lambda *given, **more: jv.shapley_interactions(
        *given, segments=jv.grid_segments((4, 4), (4, 4)), num_samples=1000, **more
    )[:3],
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_in_rounds(name):
    method = functools.partial(FITS[name], net, W / 8, X, None, key=KEY)
    found = method(), method(tolerance=1e-9), method(tolerance=0.3)
    whole, every, some = map(jax.tree.leaves, found)
    for a, b in zip(whole, every, strict=True):  # nothing meets such a tolerance: all are drawn
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)  # sums in another order, and solved
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(whole, some, strict=True))


def test_a_fit_stops_when_it_is_known():
    """Oracle: exact Shapley values of 10 players, beside 24 draws that stop by themselves."""
    x = np.tile(RNG.normal(size=(1, 10)).astype(np.float32), (24, 1))
    w = RNG.normal(size=(10, 12)).astype(np.float32), RNG.normal(size=(12, 1)).astype(np.float32)
    f = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
    exact = np.asarray(jv.shapley_values(f, w, x[:1], 0).values[0])
    found = jv.kernel_shap(f, w, x, 0, key=KEY, tolerance=0.05, num_samples=900)
    errors = np.asarray(found.standard_errors)
    assert (errors <= 0.05 * np.ptp(np.asarray(found.values), axis=1)[:, None] * 1.001).all()
    assert (np.abs(np.asarray(found.values) - exact) <= 5 * errors).all()
    few = jv.kernel_shap(f, w, x, 0, key=KEY, num_samples=20)  # as many pairs as segments
    assert np.isinf(few.standard_errors).all()


def test_draws_that_are_alike_stop_nothing():
    """A score that most masks leave at 0: the first 32 are no reason to stop."""
    seldom = lambda _, x: jax.nn.relu(x.mean((1, 2)) - 0.93)
    given = functools.partial(jv.rise, seldom, None, np.ones((1, 6, 6, 1), np.float32), 0, cells=3)
    draws = {"key": jax.random.key(3), "num_samples": 640}
    whole = given(**draws)
    assert not np.any(given(key=draws["key"], num_samples=ROUND))
    assert np.any(whole)
    assert np.any(given(tolerance=0.05, **draws))


def test_errors_of_indices_are_their_spread():
    """Of what says no errors: those that stop it, beside the spread over 200 draws of them."""
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 200, 32, 3)).astype(np.float32)  # no sequence: one by one
    f = lambda a: a[..., 0] + 2 * a[..., 1] * a[..., 0]
    mixed = [np.where(np.arange(3) == i, b, a) for i in range(3)]
    scores = np.stack([f(a), f(b), *map(f, mixed)], 1)[..., None]
    indices = lambda scores: designs.total_indices(scores, np.ones(32, bool))
    masks = (rng.random((200, 60, 5)) > 0.5).astype(np.float32)
    scored = np.tanh(masks @ np.array([1.0, 0.7, 0.5, 0.3, 0.2], np.float32))
    parts = lambda masks, score: dependence(masks, score, np.ones(60, bool))
    each = lambda f, *values: jax.jit(jax.vmap(f))(*values)
    for values, errors in (each(indices, scores), each(parts, masks, scored)):
        values, errors = (np.asarray(a).reshape(200, -1) for a in (values, errors))
        # A spread of 200 is known to 5 %, and errors to first order of so few draws to some 10 %.
        np.testing.assert_allclose(errors.mean(0)[:2], values.std(0)[:2], rtol=0.25)


def test_as_many_steps_as_the_gap_needs():
    """A steep score needs many steps, a straight one few; the numbers are those of so many."""
    given = W, np.concatenate([X, 20 * X]), 0
    call = functools.partial(jv.integrated_gradients, net, *given, num_steps=120, rule="middle")
    gained = np.asarray(net(*given[:2])[:, 0])
    rounds = {n: np.asarray(call(num_steps=n)) for n in (4, 13, 40, 120)}
    gap = lambda a: np.abs(a.sum((1, 2, 3)) - gained) / np.abs(gained)
    missed = {n: gap(a).max() for n, a in rounds.items()}
    assert missed[4] > missed[13] > missed[40]
    between = lambda a, b: (missed[a] + missed[b]) / 2
    changed = lambda a, b: (np.abs(a - b).max((1, 2, 3)) / np.ptp(a, axis=(1, 2, 3))).max()
    # What each number of steps misses, or has changed since the one before.
    steps = {n: max(missed[n], changed(rounds[n], rounds[m])) for m, n in ((4, 13), (13, 40))}
    for tolerance in (between(4, 13), between(13, 40), 1e-12):
        enough = min([n for n, error in steps.items() if error <= tolerance], default=120)
        np.testing.assert_allclose(call(tolerance=tolerance), rounds[enough], atol=1e-5)
    straight = lambda w, x: (x * w[None]).sum((1, 2))
    out = jv.integrated_gradients(straight, W, X, 0, tolerance=1e-3)
    np.testing.assert_allclose(out, X * W[None], rtol=1e-5)


def test_a_gap_of_nothing_is_not_enough():
    """Two inputs whose errors cancel: the score gained is met by wrong shares."""
    score = lambda _, x: jnp.tanh(9 * (x[:, :1] - 0.5)) - jnp.tanh(9 * (x[:, 1:2] - 0.5)) + x[:, 2:]
    x = np.ones((1, 3), np.float32)
    few = jv.integrated_gradients(score, None, x, 0, num_steps=4)
    np.testing.assert_allclose(few.sum(), 1, atol=1e-4)  # no gap
    assert abs(few[0, 0] - 2) > 0.1
    found = jv.integrated_gradients(score, None, x, 0, num_steps=400, tolerance=1e-3)
    exact = [2 * np.tanh(4.5), -2 * np.tanh(4.5), 1]  # by hand: each input has its own term
    np.testing.assert_allclose(found[0], exact, atol=4e-3)


def test_the_error_of_a_variance_is_its_spread():
    draws = np.random.default_rng(5).gamma(2.0, size=(400, 60, 1, 1)).astype(np.float32)

    @jax.vmap
    def all_of(draws):
        shares = []

        def until(term, told):
            found = moments(jax.vmap(term)(jnp.arange(60)), jnp.ones(60, bool))
            shares.append(told(found))
            return found

        return _variance(None, until, lambda k: draws[k])[0, 0], shares[0][0]

    values, shares = map(np.asarray, jax.jit(all_of)(draws))  # of one number a share is of itself
    np.testing.assert_allclose(values, draws[..., 0, 0].var(1), rtol=1e-3)
    np.testing.assert_allclose((values * shares).mean(), values.std(), rtol=0.15)


def test_what_is_missed_of_next_to_nothing_is_measured_by_the_values():
    values, errors = jnp.array([[1.0, -1.0], [1.0, 3.0]]), jnp.zeros((2, 2))
    shares = error_shares(values, errors, gained=jnp.array([0.004, 5.0]))
    np.testing.assert_allclose(shares, [0.2, 0.2], rtol=1e-6)


def test_a_gradient_through_rounds_is_refused_in_reverse_alone():
    call = lambda x: jv.smooth_grad(jv.gradient, num_samples=64, tolerance=0.1)(
        net, W, x, 0, key=KEY
    ).sum()
    slope = jax.jvp(call, (X,), (np.ones_like(X),))[1]
    steps = [jax.jit(call)(X + e) for e in (0.01, -0.01)]
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / 0.02, rtol=0.05)
    with pytest.raises(
        ValueError, match=r"^smooth_grad\(gradient\): tolerance must .*Pass tolerance=0.0"
    ):
        jax.jit(jax.grad(call))(X)
    with pytest.raises(ValueError, match=r"^smooth_grad\(gradient\): tolerance must"):
        jax.grad(lambda x: jax.vmap(call)(x[None]).sum())(X)
