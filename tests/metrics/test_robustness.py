"""Robustness beside the same formulas in NumPy, and what ascent finds beside what chance finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 3)
PARAMS = {
    "a": jax.random.normal(KEYS[0], (6, 8)),
    "b": jax.random.normal(KEYS[1], (8, 3)),
}
X = jax.random.normal(KEYS[2], (4, 6))
TARGET = jnp.array([0, 1, 2, 1])


def net(w, x):
    return jax.nn.relu(x @ w["a"]) @ w["b"]


def smooth(w, x):
    return jnp.tanh(x @ w["a"]) @ w["b"]


# Neighbours that NumPy knows too: the key's words decide which of these it is.
NOISE = np.random.default_rng(0).uniform(-1.0, 1.0, (64, 4, 6)).astype(np.float32)


def neighbour(key, x):
    number = jax.random.key_data(key)[-1] % 64
    return x + jnp.asarray(NOISE)[number]


def neighbours(num):
    """The inputs that `neighbour` makes for the first draws."""
    draws = [jax.random.fold_in(KEY, k) for k in range(num)]
    return [np.asarray(neighbour(key, X)) for key in draws]


def explained(x, method=jv.gradient, apply_fn=smooth):
    return np.asarray(method(apply_fn, PARAMS, jnp.asarray(x), TARGET), np.float64).reshape(4, -1)


ROWS = functools.partial(np.linalg.norm, axis=1)
OPTIONS = {"key": KEY, "perturb": neighbour, "num_samples": 7}
SAMPLED = [
    metrics.max_sensitivity,
    metrics.avg_sensitivity,
    metrics.local_lipschitz,
    metrics.relative_input_stability,
    metrics.relative_output_stability,
    functools.partial(metrics.relative_representation_stability, layer="tanh_0"),
]


def test_lipschitz_of_normalised_explanations():
    near = neighbours(7)
    far = np.stack([ROWS(x - np.asarray(X)) for x in near])
    scaled = lambda e: e / np.abs(e).max(1, keepdims=True)
    change = np.stack([ROWS(scaled(explained(x)) - scaled(explained(X))) for x in near])
    found = metrics.local_lipschitz(jv.gradient, smooth, PARAMS, X, TARGET, **OPTIONS)
    np.testing.assert_allclose(found, (change / far).max(0), rtol=1e-4)


def test_stabilities_leave_out_neighbours_of_another_class():
    here, near = explained(X), neighbours(7)
    x = np.asarray(X, np.float64)
    outputs = lambda x: np.asarray(smooth(PARAMS, jnp.asarray(x)), np.float64)
    hidden = lambda x: np.tanh(np.asarray(x, np.float64) @ np.asarray(PARAMS["a"], np.float64))
    top = [outputs(n).argmax(1) == outputs(x).argmax(1) for n in near]
    assert not np.all(top)  # or nothing is left out
    assert np.any(top, axis=0).all()

    def most(below):
        above = [ROWS((here - explained(n)) / here) for n in near]
        each = [a / np.maximum(below(n), 1e-6) for a, n in zip(above, near, strict=True)]
        return np.where(top, each, -np.inf).max(0)

    run = lambda metric, **more: metric(jv.gradient, smooth, PARAMS, X, TARGET, **OPTIONS, **more)
    expected = [
        most(lambda n: ROWS((x - n) / x)),
        most(lambda n: ROWS(outputs(x) - outputs(n))),
        most(lambda n: ROWS((hidden(x) - hidden(n)) / hidden(x))),
    ]
    for metric, one in zip(SAMPLED[3:], expected, strict=True):
        np.testing.assert_allclose(run(metric), one, rtol=1e-3)
    # Where all neighbours change the class there is none to compare with.
    away = lambda key, x: -x
    odd = lambda w, x: x @ w["a"]
    for metric in SAMPLED[3:5]:
        found = metric(jv.input_x_gradient, odd, PARAMS, X, 0, key=KEY, perturb=away)
        assert np.isnan(found).all()


@pytest.mark.parametrize("metric", SAMPLED[::5], ids=["max_sensitivity", "representation"])
def test_contract(metric):
    traces = []

    def counted(w, x):
        traces.append(1)
        return smooth(w, x)

    run = lambda x, t=TARGET, **more: metric(
        jv.gradient, counted, PARAMS, x, t, key=KEY, num_samples=5, **more
    )
    found = run(X)
    assert found.shape == (4,)
    assert (found > 0).all()
    first = len(traces)
    np.testing.assert_array_equal(run(X), found)
    run(X + 1, jnp.array([1, 1, 0, 0]))
    assert len(traces) == first
    # Under jit, in chunks that do not divide the samples: in one program.
    again = jax.jit(functools.partial(run, chunk_size=2))(X)
    np.testing.assert_allclose(again, found, rtol=1e-4)
    assert run(X[:0], TARGET[:0]).shape == (0,)


def test_zero_explanations_and_nan_are_nan():
    spoilt = X.at[0].set(0.0).at[1, 0].set(jnp.nan)  # gradient times 0 explains by zeros
    for metric in (*SAMPLED[:2], metrics.worst_case_sensitivity):
        found = metric(jv.input_x_gradient, net, PARAMS, spoilt, 0, key=KEY)
        assert np.isnan(found).tolist() == [True, True, False, False]
    still = lambda key, x: x
    assert np.isnan(
        metrics.local_lipschitz(jv.gradient, net, PARAMS, X, 0, key=KEY, perturb=still)
    ).all()


def test_a_method_that_draws_gets_the_same_key_for_each_input():
    line = lambda w, x: x @ w["a"]
    noisy = jv.smooth_grad(jv.input_x_gradient, num_samples=2)
    still = lambda key, x: x
    found = metrics.max_sensitivity(noisy, line, PARAMS, X, 0, key=KEY, perturb=still)
    np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("method", [jv.guided_backprop, jv.lrp])
def test_ascent_never_finds_less_than_its_starts(method):
    given = (method, net, PARAMS, X[:2], TARGET[:2])
    sampled = metrics.max_sensitivity(*given, key=KEY, radius=0.2, num_samples=2)
    worst = metrics.worst_case_sensitivity(*given, key=KEY, radius=0.2, num_samples=2, num_steps=2)
    assert not (worst < sampled * (1 - 1e-6)).any()
    assert np.isnan(worst).tolist() == np.isnan(sampled).tolist()  # an explanation of zeros


def test_ascent_finds_more_than_fifty_times_as_many_draws():
    given = (jv.gradient, smooth, PARAMS, X, TARGET)
    worst = metrics.worst_case_sensitivity(*given, key=KEY, radius=0.2, num_samples=2)
    many = metrics.max_sensitivity(*given, key=KEY, radius=0.2, num_samples=100)
    assert worst.mean() > many.mean()


def test_ascent_finds_the_corner_that_is_worst():
    # e = 3 x^2, so the change is largest where every |x_i| grows by the radius.
    # Shrinking all is a maximum too, a lower one: several starts find the best.
    cubic = lambda _, x: (x**3).sum(1, keepdims=True)
    found = metrics.worst_case_sensitivity(
        jv.gradient, cubic, None, X[:, :2], 0, key=KEY, radius=0.1, num_samples=16
    )
    x = np.abs(np.asarray(X[:, :2], np.float64))
    corner = ROWS(3 * (x + 0.1) ** 2 - 3 * x**2) / ROWS(3 * x**2)
    np.testing.assert_allclose(found, corner, rtol=1e-4)


def test_continuity_is_its_formula():
    x = jax.random.normal(KEYS[0], (2, 3, 5, 2))
    w = jax.random.normal(KEYS[1], (30, 3))
    apply_fn = lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w)
    explain = lambda x: np.asarray(jv.gradient(apply_fn, w, jnp.asarray(x), 0)).reshape(2, -1)
    shifted = []
    for shift in range(-4, 6):  # 2 W + 1 = 11 shifts in ten steps, the first of them left out
        near = np.zeros_like(np.asarray(x))
        for place in range(5):
            if 0 <= place - shift < 5:
                near[:, :, place] = np.asarray(x)[:, :, place - shift]
        shifted.append(near)
    slopes = [
        np.abs(explain(n) - explain(x)).sum(1) / np.linalg.norm((n - x).reshape(2, -1), axis=1)
        for n in shifted
        if np.any(n != np.asarray(x))
    ]
    run = functools.partial(metrics.continuity, jv.gradient, normalize=False, num_steps=10)
    found = run(apply_fn, w, x, 0)
    np.testing.assert_allclose(found, np.max(slopes, axis=0), rtol=1e-4)
    first = jv.channels_first(lambda w, x: apply_fn(w, jnp.moveaxis(x, 1, 3)))
    turned = run(first, w, jnp.moveaxis(x, 3, 1), 0)
    np.testing.assert_allclose(turned, found, rtol=1e-4)
    with pytest.raises(ValueError, match=r"^continuity: num_steps must be in \[1, 11\]"):
        metrics.continuity(jv.gradient, apply_fn, w, x, 0, num_steps=12)
    assert metrics.continuity(jv.gradient, apply_fn, w, x, 0).shape == (2,)  # all 11


def test_consistency_counts_alike_explanations_alike():
    a = np.array([[9, -8, 1, 0], [7, -6, 0, 2], [-8, 9, 0, 1], [9, 8, 0, 0], [5, -7, 0, 0]], float)
    outputs = np.eye(3)[[0, 0, 0, 1, 2]].astype(np.float32)
    net = lambda _, x: x
    found = metrics.consistency(net, None, outputs, a.astype(np.float32), num_top=2)
    # 0, 1 and 4 have places {0, 1} with signs (+, -): order of size does not matter.
    np.testing.assert_allclose(found, [0.5, 0.5, np.nan, np.nan, 0.0])
    with pytest.raises(ValueError, match=r"^consistency: num_top must be at most 4"):
        metrics.consistency(net, None, outputs, a.astype(np.float32))


def test_wrong_functions_are_refused():
    run = functools.partial(metrics.max_sensitivity, key=KEY)
    with pytest.raises(ValueError, match=r"^max_sensitivity: perturb must be a function"):
        run(jv.gradient, net, PARAMS, X, 0, perturb=lambda key, x: x[:1])
    with pytest.raises(ValueError, match=r"^max_sensitivity: method must give an attribution"):
        run(lambda f, p, x, target: x.sum(), net, PARAMS, X, 0)
    with pytest.raises(ValueError, match=r"^max_sensitivity: radius must be"):
        run(jv.gradient, net, PARAMS, X, 0, radius=0.0)
