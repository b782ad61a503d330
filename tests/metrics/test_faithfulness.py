"""Faithfulness of attributions that are known to be right: linear models, solved by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
X = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
W = RNG.normal(size=(32, 2)).astype(np.float32)
SLOPE = np.broadcast_to(W[:, 1].reshape(1, 4, 4, 2), X.shape)
EXACT = X * SLOPE
CONSTANT = np.full((3, 4, 4), 0.3, np.float32)
CELLS = jv.grid_segments((4, 4), (2, 2))
PARTS = EXACT.reshape(3, 2, 2, 2, 2, 2).sum((2, 4, 5)).reshape(3, 4)  # of the cells


def linear(w, x):
    return x.reshape(len(x), -1) @ w


CORRELATIONS = {
    "faithfulness_correlation": {"key": KEY, "num_samples": 20},
    "mu_fidelity": {"key": KEY, "num_samples": 20},
    "faithfulness_estimate": {},
    "sensitivity_n": {"key": KEY, "num_samples": 20, "fractions": (0.2, 0.6, 1.0)},
}


# Oracle: of a linear model any set's parts add up to the score lost without it.
@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlations_of_a_linear_model(name):
    score = lambda a: np.asarray(
        jax.tree.leaves(getattr(metrics, name)(linear, W, X, a, 1, **CORRELATIONS[name]))[-1]
    )
    chex.assert_trees_all_close(score(EXACT), np.ones(3, np.float32), atol=1e-5)
    chex.assert_trees_all_close(score(-3 * EXACT), -np.ones(3, np.float32), atol=1e-5)
    assert np.isnan(score(CONSTANT)).all()  # correlated with nothing
    assert np.isnan(score(np.zeros_like(X))).all()
    assert (score(RNG.normal(size=X.shape)) < 0.9).all()  # a random map loses
    broken = EXACT.copy()
    broken[1, 0, 0] = np.nan
    assert np.isnan(score(broken)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["faithfulness_correlation", "mu_fidelity", "sensitivity_n"])
def test_segments_that_an_image_lacks_are_in_no_set(name):
    net, about = lambda w, x: jnp.tanh(linear(w, x)) ** 2, (RNG.normal(size=(1, 4, 4)), 1)
    alone, more = np.arange(16).reshape(4, 4) // 4, np.arange(16).reshape(4, 4)

    def score(x, attribution, segments):
        options = {"key": KEY, "num_samples": 3000, "segments": segments}
        options |= {"fractions": (0.3, 0.6)} if name == "sensitivity_n" else {"fraction": 0.5}
        judged = getattr(metrics, name)(net, W, x, attribution, about[1], **options)
        return np.asarray(jax.tree.leaves(judged)[0])[0]

    wanted = score(X[:1], about[0], alone)
    assert np.abs(wanted).min() < 0.9
    np.testing.assert_allclose(score(X[:1], about[0], alone + 1), wanted, atol=0.04)
    beside = np.concatenate([about[0], RNG.normal(size=(1, 4, 4))])
    np.testing.assert_allclose(score(X[:2], beside, np.stack([alone, more])), wanted, atol=0.04)


def test_sensitivity_n_has_a_correlation_for_each_size_and_none_for_the_whole():
    out = metrics.sensitivity_n(linear, W, X, EXACT, 1, **CORRELATIONS["sensitivity_n"])
    assert out.curve.shape == (3, 3)
    assert np.isnan(out.curve).any(0).tolist() == [False, False, True]


def test_infidelity_of_the_gradient_of_a_linear_model_is_0():
    for options in ({}, {"perturb": metrics.square_removal((2, 2))}):
        measure = lambda a, more={}, options=options: metrics.infidelity(
            linear, W, X, a, 1, key=KEY, num_samples=16, **options, **more
        )
        assert (measure(SLOPE) < 1e-8).all()
        assert (measure(3 * SLOPE) > 0.1).all()
        # A zero map has the mean square of what the changes do: twice the slope is as far off.
        chex.assert_trees_all_close(measure(np.zeros_like(X)), measure(2 * SLOPE), rtol=1e-3)
        scaled = {"normalize": True}
        assert (measure(3 * SLOPE, scaled) < 1e-8).all()
        zero = measure(np.zeros_like(X), scaled)
        chex.assert_trees_all_close(zero, measure(np.zeros_like(X)), rtol=1e-5)
        assert (measure(RNG.normal(size=X.shape).astype(np.float32)) > 1e-3).all()


def test_infidelity_of_windows_is_that_of_whole_passes(monkeypatch):
    """As with a function, of which nobody knows that it changes one window alone."""
    monkeypatch.setattr("jaxviz.parts.covered._OVERHEAD", 0.1)  # a net so small would go whole
    kernels = RNG.normal(size=(2, 3, 3, 2, 2)).astype(np.float32) / 3

    def net(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ))  # fmt: skip
        return x.sum((1, 2))

    x = RNG.normal(size=(3, 9, 9, 2)).astype(np.float32)
    x[2, 4, 4] = np.nan
    square = metrics.square_removal((2, 3), 0.5)
    told = {"key": KEY, "num_samples": 5}
    ours = metrics.infidelity(net, kernels, x, x, 1, perturb=square, **told)
    whole = metrics.infidelity(net, kernels, x, x, 1, perturb=lambda k, x: square(k, x), **told)
    chex.assert_trees_all_close(ours, whole, rtol=2e-5)
    assert np.isnan(ours).tolist() == [False, False, True]


def test_a_change_is_made_once_for_the_model_and_for_the_attribution():
    drawn = []

    def change(key, x):
        jax.debug.callback(lambda: drawn.append(1))
        return x + jax.random.normal(key, x.shape)

    told = {"key": KEY, "num_samples": 5, "chunk_size": 1, "perturb": change}
    found = metrics.infidelity(linear, W, X, SLOPE, 1, **told)
    jax.effects_barrier()
    assert (found < 1e-8).all()
    assert len(drawn) == 6  # and one beside x itself, which goes first


def test_patches_of_a_linear_model():
    told = {"window": (2, 2), "num_steps": 3}
    out = metrics.region_perturbation(linear, W, X, EXACT, 1, **told)
    ordered = np.sort(PARTS, axis=1)[:, ::-1]
    lost = np.concatenate([np.zeros((3, 1)), np.cumsum(ordered, 1)[:, :3]], 1).astype(np.float32)
    chex.assert_trees_all_close(out.curve, lost, atol=1e-5)
    chex.assert_trees_all_close(out.area, lost.mean(1), atol=1e-5)  # AOPC, over L + 1 points
    least = metrics.region_perturbation(linear, W, X, EXACT, 1, order="least_first", **told)
    assert (least.area < out.area).all()
    whole = metrics.selectivity(linear, W, X, EXACT, 1, window=(2, 2))
    chex.assert_trees_all_close(whole.curve[:, :1] - whole.curve[:, :4], lost, atol=1e-5)


def test_irof_is_the_area_over_the_curve_and_needs_a_positive_score():
    positive = np.abs(X)
    w = np.abs(W)
    parts = (positive * np.abs(SLOPE)).reshape(3, 2, 2, 2, 2, 2).sum((2, 4, 5)).reshape(3, 4)
    out = metrics.irof(linear, w, positive, positive * np.abs(SLOPE), 1, segments=CELLS)
    gone = np.cumsum(np.sort(parts, 1)[:, ::-1], 1) / parts.sum(1, keepdims=True)
    gone = np.concatenate([np.zeros((3, 1)), gone], 1).astype(np.float32)
    chex.assert_trees_all_close(out.curve, 1 - gone, atol=1e-5)
    chex.assert_trees_all_close(out.area, (gone[:, 1:] + gone[:, :-1]).mean(1) / 2, atol=1e-5)
    assert np.isnan(metrics.irof(linear, -w, positive, EXACT, 1, segments=CELLS).area).all()


def test_srg_of_a_linear_model_and_of_a_map_that_says_nothing():
    gain = lambda a: metrics.srg(linear, W, X, a, 1, num_steps=16)
    out = gain(EXACT)
    most = metrics.deletion(linear, W, X, EXACT, 1, num_steps=16)
    chex.assert_trees_all_close(out.most_first, most.curve, atol=1e-5)
    chex.assert_trees_all_close(gain(-EXACT).area, -out.area, atol=1e-5)
    assert (out.area > gain(RNG.normal(size=X.shape)).area).all()
    assert gain(CONSTANT).area.tolist() == [0.0] * 3


def test_monotonicity_of_a_linear_model():
    parts = np.sort(EXACT.sum(-1).reshape(3, -1), 1)
    measure = lambda a: metrics.monotonicity(linear, W, X, a, 1, num_steps=16)
    up, down = measure(np.maximum(EXACT.sum(-1), 0)), measure(-EXACT)
    rises = (parts[:, 1:] >= 0).mean(1)
    assert up.holds.tolist() == [float(share == 1) for share in rises]
    chex.assert_trees_all_close(measure(EXACT).share, rises.astype(np.float32), atol=1e-6)
    assert down.holds.tolist() == [0.0] * 3
    positive = metrics.monotonicity(linear, np.abs(W), np.abs(X), np.abs(EXACT), 1, num_steps=16)
    assert positive.holds.tolist() == positive.share.tolist() == [1.0] * 3


def test_monotonicity_correlation_of_numbers_that_are_drawn_anew():
    told = {"key": KEY, "num_samples": 1, "unit": "number", "baselines": np.zeros((1, 4, 4, 2))}
    told["baselines"] = told["baselines"].astype(np.float32)
    out = metrics.monotonicity_correlation(linear, W, X, EXACT, 1, **told)
    chex.assert_trees_all_close(out, np.ones(3, np.float32), atol=1e-5)
    drawn = metrics.monotonicity_correlation(linear, W, X, SLOPE, 1, key=KEY, unit="number")
    assert (drawn > 0.9).all()
    with pytest.raises(ValueError, match=r"^monotonicity_correlation: baselines must be floating"):
        metrics.monotonicity_correlation(linear, W, X, EXACT, 1, key=KEY, baselines=X[0])


# Oracle: the linear system of the paper, written out and solved densely.
@pytest.mark.parametrize("shape", [(9, 7), (12,)])
def test_imputation_solves_the_system_of_the_paper(shape):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    hidden = rng.random((2, *shape)) < np.array([0.3, 0.9]).reshape(2, *[1] * len(shape))
    out = metrics.noisy_linear_imputation(x, hidden, key=KEY, noise=0.0)
    places = [np.array(p) for p in np.ndindex(*shape)]
    for n in range(2):
        matrix, right = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
        for i, p in enumerate(places):
            matrix[i, i] = 1
            right[i] = x[n][tuple(p)]
            if not hidden[n][tuple(p)]:
                continue
            near = {j: np.abs(q - p).sum() for j, q in enumerate(places) if abs(q - p).max() == 1}
            weights = {j: 1 / 6 if far == 1 else 1 / 12 for j, far in near.items()}
            right[i] = 0
            for j, weight in weights.items():
                matrix[i, j] = -weight / sum(weights.values())
        want = np.linalg.solve(matrix, right).reshape(*shape, 3)
        chex.assert_trees_all_close(np.asarray(out[n], np.float64), want, atol=1e-5)
    none = metrics.noisy_linear_imputation(x, np.ones_like(hidden), key=KEY, noise=0.0)
    assert not none.any()


def test_road_removes_shares_and_asks_for_the_class():
    # The mark decides the class; without it the other one wins.
    x = np.zeros((2, 8, 8, 1), np.float32)
    x[:, 2:4, 2:4] = 4.0
    net = lambda w, x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 8.0)], 1)
    measure = lambda a, **options: metrics.road(net, 0.0, x, a, 0, key=KEY, **options)
    mark, other = x[..., 0], -x[..., 0]
    told = {"fractions": (4 / 64, 0.5), "noise": 0.0}
    assert measure(mark, **told).curve.tolist() == [[1.0, 0.0, 0.0]] * 2
    assert measure(other, **told).curve.tolist() == [[1.0, 1.0, 1.0]] * 2
    assert (measure(mark).area < measure(other).area).all()
    assert (measure(mark, order="least_first").area > measure(mark).area).all()
    with pytest.raises(ValueError, match=r"^road: target must be a class"):
        metrics.road(net, 0.0, x, mark, lambda out: out[:, 0], key=KEY)


def test_confidence_through_the_map():
    net = lambda w, x: jnp.exp(linear(w, x))
    keep = np.where(EXACT.sum(-1) > 0, 1.0, 0.0)
    kept = (EXACT.sum(-1) * keep).sum((1, 2))
    whole = EXACT.sum((1, 2, 3))
    drop = lambda a, **options: metrics.average_drop(net, W, X, a, 1, **options)
    rise = lambda a: metrics.increase_in_confidence(net, W, X, a, 1)
    assert (kept > whole).all()
    assert drop(5 * keep - 2).tolist() == [0.0] * 3
    assert rise(keep).tolist() == [1.0] * 3
    want = 1 - np.exp(np.minimum(whole - kept - whole, 0))
    chex.assert_trees_all_close(drop(1 - keep), want.astype(np.float32), atol=1e-5)
    empty = np.maximum(1 - np.exp(-whole), 0).astype(np.float32)
    chex.assert_trees_all_close(drop(CONSTANT), empty, atol=1e-5)  # marks nothing: all is hidden
    assert np.isnan(metrics.average_drop(linear, -np.abs(W), np.abs(X), X, 1)).all()


def test_information_curves_reward_a_map_that_finds_what_decides():
    rng = np.random.default_rng(3)
    x = rng.random((2, 16, 16, 1)).astype(np.float32)
    x[:, 4:8, 4:8] += rng.choice([-3, 3], size=(2, 4, 4, 1))
    net = lambda w, x: jnp.abs(x - 0.5)[:, 4:8, 4:8].sum((2, 3))
    score = lambda out: out.sum(1)
    mark = np.zeros((2, 16, 16), np.float32)
    mark[:, 4:8, 4:8] = 1.0
    good, bad = (metrics.pic(net, 0.0, x, a, score) for a in (mark, -mark))
    assert (good.area > bad.area + 0.1).all()
    assert (jnp.diff(good.curve, axis=1) >= 0).all()
    chex.assert_trees_all_close(good.curve[:, [0, -1]], jnp.array([[0.0, 1.0]] * 2), atol=1e-6)
    # The image itself as the fill: nothing to gain.
    assert np.isnan(metrics.pic(net, 0.0, x, mark, score, fill=x).area).all()


def test_sufficiency_by_hand():
    x = np.array([[0.0], [0.1], [1.0], [0.05], [5.0]], np.float32)
    net = lambda w, x: jnp.concatenate([x, 0.08 - x], 1)  # class 1 below 0.04
    found = metrics.sufficiency(net, None, x, x, threshold=0.03)
    chex.assert_trees_all_close(found, jnp.array([0.0, 0.5, 0.0, 0.5, 0.0]))
    unknown = np.where(x == 1.0, np.nan, x)
    again = metrics.sufficiency(net, None, x, unknown, threshold=0.03)
    assert np.isnan(again).tolist() == [False, False, True, False, False]
