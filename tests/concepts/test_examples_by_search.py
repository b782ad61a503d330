"""Examples that explain: brute force in NumPy, a linear model's boundary, greedy choices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxviz as jv
from jaxviz import concepts

RNG = np.random.default_rng(0)
X, EXAMPLES = (RNG.normal(size=(n, 2, 2, 1)).astype(np.float32) for n in (3, 23))
WEIGHTS = {
    "a": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
}
NEAR = {"layer": "relu_0", "batch_size": 10}


def net(w, x):
    return jax.nn.relu(x.reshape(len(x), 4) @ w["a"]) @ w["b"]


def brute():
    """Rows in the layer, classes, and distances, in float64."""
    hidden = lambda x: np.maximum(x.reshape(len(x), 4).astype(float) @ np.asarray(WEIGHTS["a"]), 0)
    rows, others = hidden(X), hidden(EXAMPLES)
    classes = [(a @ np.asarray(WEIGHTS["b"])).argmax(1) for a in (rows, others)]
    return rows, others, classes, np.linalg.norm(rows[:, None] - others[None], axis=-1)


def test_neighbours_are_those_of_all_distances():
    _, others, _, away = brute()
    found = concepts.nearest_examples(net, WEIGHTS, X, EXAMPLES, **NEAR, num_examples=4)
    np.testing.assert_array_equal(found.indices, np.argsort(away, 1, kind="stable")[:, :4])
    np.testing.assert_allclose(found.distances, np.sort(away, 1)[:, :4], rtol=1e-5)
    few = concepts.nearest_examples(net, WEIGHTS, X, EXAMPLES[:2], layer="relu_0")
    assert few.indices.shape == (3, 5)
    assert (few.indices[:, 2:] == -1).all()
    assert np.isinf(few.distances[:, 2:]).all()
    weighting = jv.at_layer(jv.gradient, "relu_0")
    found = concepts.nearest_examples(
        net, WEIGHTS, X, EXAMPLES, **NEAR, weighting=weighting, num_examples=3
    )
    rows, others, classes, _ = brute()
    slopes = np.asarray(WEIGHTS["b"]).T  # of the top class by the layer: its column
    rows, others = rows * slopes[classes[0]], others * slopes[classes[1]]
    away = np.linalg.norm(rows[:, None] - others[None], axis=-1)
    np.testing.assert_array_equal(found.indices, np.argsort(away, 1, kind="stable")[:, :3])


def test_counterfactual_and_semifactual_examples_are_those_of_all_distances():
    _, others, (own, classes), away = brute()
    assert len(set(classes)) == 3
    unlike = np.where(classes[None] != own[:, None], away, np.inf)
    found = concepts.counterfactual_examples(net, WEIGHTS, X, EXAMPLES, **NEAR)
    np.testing.assert_array_equal(found.indices[:, 0], unlike.argmin(1))
    of_two = np.where(classes[None] == 2, away, np.inf)
    found = concepts.counterfactual_examples(net, WEIGHTS, X, EXAMPLES, **NEAR, wanted=2)
    np.testing.assert_array_equal(found.indices[:, 0], of_two.argmin(1))
    labels = (np.arange(23) == 7) + own[0] % 1
    found = concepts.counterfactual_examples(net, WEIGHTS, X, EXAMPLES, labels=labels, wanted=1)
    assert (found.indices == 7).all()
    for rule in ("sim_miss", "global_sim"):
        semi = concepts.semifactual_examples(net, WEIGHTS, X, EXAMPLES, **NEAR, rule=rule)
        np.testing.assert_array_equal(semi.unlike, unlike.argmin(1))
        for n in range(3):
            miss = np.linalg.norm(others - others[semi.unlike[n]], axis=1)
            allowed = classes == own[n]
            if rule == "global_sim":
                allowed &= away[n] < unlike[n].min()
            expected = np.where(allowed, miss, np.inf).argmin() if allowed.any() else -1
            assert semi.indices[n] == expected
            wanted = away[n, expected] if expected >= 0 else np.inf
            np.testing.assert_allclose(semi.distances[n], wanted, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_smallest_radius_of_a_linear_model_is_the_distance_to_its_boundary(norm):
    w, b = RNG.normal(size=(5, 3)).astype(np.float32), np.array([0.1, -0.2, 0.3], np.float32)
    x = RNG.normal(size=(6, 5)).astype(np.float32)
    linear = lambda w, x: x @ w[0] + w[1][None]
    found = concepts.counterfactual(linear, (w, b), x, norm=norm, max_radius=4.0, num_radii=14)
    scores = x @ w + b
    own = scores.argmax(1)
    dual = {"l2": 2, "linf": 1}[norm]
    expected = [
        min(
            (scores[n, own[n]] - scores[n, c]) / np.linalg.norm(w[:, own[n]] - w[:, c], dual)
            for c in range(3)
            if c != own[n]
        )
        for n in range(6)
    ]
    # Only the leading other class is climbed, which need not be the nearest: never nearer.
    radius = np.asarray(found.radius)
    assert (radius >= np.array(expected) - 1e-4).all()
    assert np.isclose(radius, expected, atol=4 / 2**13 + 1e-3).sum() >= 5
    assert (np.asarray(found.classes) != own).all()
    size = np.abs(found.x - x).max(1) if norm == "linf" else np.linalg.norm(found.x - x, axis=1)
    np.testing.assert_allclose(radius, size, rtol=1e-4)
    wanted = concepts.counterfactual(
        linear, (w, b), x, own, norm=norm, max_radius=4.0, num_radii=14
    )
    assert wanted.radius.tolist() == [0.0] * 6


def test_values_stay_in_their_range_and_what_is_not_found_is_said():
    x = np.array([[0.9, 0.5], [0.2, 0.5]], np.float32)
    sides = lambda w, x: jnp.stack([x[:, 0], w - x[:, 0]], 1)
    found = concepts.counterfactual(sides, jnp.float32(3.0), x, value_range=(0, 1))
    assert found.found.tolist() == [False, False]
    assert np.isinf(found.radius).all()
    np.testing.assert_array_equal(found.x, x)
    found = concepts.counterfactual(sides, jnp.float32(1.0), x, 0, value_range=(0, 1))
    np.testing.assert_allclose(found.radius, [0, 0.3], atol=0.01)
    with pytest.raises(ValueError, match="wanted must be a class from 0 to 1"):
        concepts.counterfactual(sides, 1.0, x, 2)
    with pytest.raises(ValueError, match="two classes at least"):
        concepts.counterfactual(lambda w, x: x[:, :1], 1.0, x)


def kernel(rows):
    gamma = 1 / (rows.var() * rows.shape[1])
    return np.exp(-gamma * ((rows[:, None] - rows[None]) ** 2).sum(-1))


ROWS = RNG.normal(size=(15, 3))
ROWS -= ROWS.mean(0)


def test_prototypes_are_the_greedy_choice_of_the_discrepancy():
    k = kernel(ROWS)
    discrepancy = lambda s: k.mean() - 2 * k[:, s].mean() + k[np.ix_(s, s)].mean()
    chosen: list[int] = []
    for _ in range(4):
        rest = [n for n in range(15) if n not in chosen]
        chosen.append(min(rest, key=lambda n: discrepancy([*chosen, n])))
    found = concepts.mmd_critic(ROWS, num_prototypes=4, num_criticisms=3)
    assert found.indices.tolist() == chosen
    np.testing.assert_allclose(
        found.discrepancy, [discrepancy(chosen[: n + 1]) for n in range(4)], atol=1e-5
    )
    witness = np.abs(k.mean(0) - k[:, chosen].mean(1))
    value = lambda c: witness[c].sum() + np.linalg.slogdet(k[np.ix_(c, c)])[1]
    critics: list[int] = []
    for _ in range(3):
        rest = [n for n in range(15) if n not in [*chosen, *critics]]
        critics.append(max(rest, key=lambda n: value([*critics, n])))
    assert found.criticisms.tolist() == critics
    with pytest.raises(ValueError, match="mmd_critic: num_criticisms must be at most"):
        concepts.mmd_critic(ROWS, num_prototypes=10, num_criticisms=6)


def test_weights_of_proto_dash_are_the_best_that_are_not_negative():
    k = kernel(ROWS)
    found = concepts.proto_dash(ROWS, num_prototypes=3)
    index = found.indices
    mu, small = k.mean(0)[index], k[np.ix_(index, index)]
    loss = lambda w: w @ small @ w / 2 - mu @ w
    best = minimize(loss, np.ones(3) / 3, bounds=[(0, None)] * 3, tol=1e-12)
    np.testing.assert_allclose(found.weights, best.x, atol=1e-4)
    np.testing.assert_allclose(found.discrepancy[-1], k.mean() + 2 * best.fun, atol=1e-6)
    pairs = itertools.combinations(range(15), 1)
    assert (index[0],) == max(pairs, key=lambda s: k.mean(0)[list(s)].sum())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: concepts.nearest_examples(net, WEIGHTS, X, EXAMPLES[:, :1]), "examples must be"),
        (
            lambda: concepts.counterfactual_examples(net, WEIGHTS, X, EXAMPLES, labels=[1, 2]),
            "labels must be one for each",
        ),
        (
            lambda: concepts.counterfactual_examples(net, WEIGHTS, X, EXAMPLES, wanted=[1, 2]),
            "wanted must be a class, or one",
        ),
        (
            lambda: concepts.nearest_examples(
                net, WEIGHTS, X, EXAMPLES, layer="relu_0", weighting=jv.gradient
            ),
            "weighting must give one number",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
