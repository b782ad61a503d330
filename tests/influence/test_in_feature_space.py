"""TRAK, nearest neighbours' Shapley values, representer points: against their formulas."""

import functools
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.parts.losses import margin

HERE = pathlib.Path(__file__).parents[1]
INF = jv.influence
RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 4)).astype(np.float32)
Y = np.arange(9) % 3
W = [RNG.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]


def net(w, x):
    return x @ w


def test_trak_is_its_formula_with_the_same_projection():  # oracle: NumPy, in float64
    options = {"key": jax.random.key(5), "dim": 5, "damping": 0.1, "chunk_size": 4}
    found = INF.trak(net, [jnp.asarray(w) for w in W], (X, Y), (X[:2], Y[:2]), **options)
    scores, unsure = 0, 0
    for number, w in enumerate(W):
        p = np.exp(X.astype(float) @ w)
        p /= p.sum(1, keepdims=True)
        rest = np.where(np.eye(3)[Y] > 0, 0, p)
        slope = np.eye(3)[Y] - rest / rest.sum(1, keepdims=True)  # of log(p / (1 - p))
        features = (X[:, :, None] * slope[:, None]).reshape(9, -1)
        # The projection itself, from the gradients of a model whose gradients are unit vectors.
        key = jax.random.fold_in(jax.random.key(5), number)
        unit = INF.example_gradients(
            lambda w, x: x * w.reshape(1, -1),
            jnp.zeros((4, 3)),
            np.eye(12, dtype=np.float32),
            np.zeros(12, int),
            loss=lambda outputs, y: outputs.sum(1),
            projection="rademacher",
            dim=5,
            key=key,
        )
        phi = features @ np.asarray(unit)
        inverse = np.linalg.inv(phi.T @ phi + 0.1 * np.eye(5))
        scores = scores + phi[:2] @ inverse @ phi.T / 2
        unsure = unsure + (1 - p[np.arange(9), Y]) / 2
    np.testing.assert_allclose(found, scores * unsure, rtol=1e-3, atol=1e-5)


def test_trak_of_features_that_a_sweep_has_stored(tmp_path):
    nets, key = [jnp.asarray(w) for w in W], jax.random.key(5)
    options = {"key": key, "dim": 5, "damping": 0.1}
    made = INF.trak(net, nets, (X, Y), (X[:2], Y[:2]), **options)
    stored, small = [], []
    for number, w in enumerate(nets):
        drawn = {"projection": "rademacher", "dim": 5, "key": jax.random.fold_in(key, number)}
        method = functools.partial(INF.example_gradients, loss=margin, **drawn)
        there = {"target": "label", "out": tmp_path / str(number), "progress": False}
        kept = jv.sweep(method, net, w, (X, Y.astype(np.int32)), **there)
        stored.append(kept.maps["example_gradients.values"])
        small.append(method(net, w, X, Y, dtype="int8"))
    found = INF.trak(net, nets, (X, Y), (X[:2], Y[:2]), features=stored, **options)
    np.testing.assert_allclose(found, made, rtol=1e-5)
    found = INF.trak(net, nets, (X, Y), (X[:2], Y[:2]), features=small, **options)
    np.testing.assert_allclose(found, made, atol=0.05 * np.abs(made).max())
    with pytest.raises(
        ValueError, match=r"features must be a list of \[9, 5\].* 2 checkpoints; got \(9, 5\)"
    ):
        INF.trak(net, nets, (X, Y), (X[:2], Y[:2]), features=stored[:1], **options)
    with pytest.raises(
        ValueError, match=r"^trak: features must be .* own; .* checkpoint 0, have a c"
    ):
        INF.trak(net, nets, (X, Y), (X[:2], Y[:2]), features=stored[::-1], **options)


def test_lo_gra_of_features_that_a_sweep_has_stored(tmp_path):
    weights = {"a": jnp.asarray(np.tile(W[0], (1, 2))), "b": jnp.asarray(W[1][:, :3].T @ W[1])}
    weights["b"] = jnp.tile(weights["b"], (2, 1))
    two = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
    key, data, test = jax.random.key(5), (X, Y.astype(np.int32)), (X[:2], Y[:2])
    made = INF.lo_gra(two, weights, data, test, key=key, rank=2)
    drawn = {"projection": "lo_gra", "dim": 2, "key": key}
    method = functools.partial(INF.example_gradients, **drawn)
    there = {"target": "label", "out": tmp_path / "a", "progress": False}
    stored = jv.sweep(method, two, weights, data, **there).maps["example_gradients.values"]
    assert stored.shape == (9, 8)  # two layers, two directions in and two out
    found = INF.lo_gra(two, weights, data, test, key=key, rank=2, features=stored)
    np.testing.assert_allclose(found, made, rtol=1e-5, atol=1e-6)
    small = method(two, weights, X, Y, dtype="int8")
    found = INF.lo_gra(two, weights, data, test, key=key, rank=2, features=small)
    np.testing.assert_allclose(found, made, atol=0.05 * np.abs(made).max())
    with pytest.raises(ValueError, match=r"^lo_gra: features must be \[9, 18\], .* got \(9, 8\)"):
        INF.lo_gra(two, weights, data, test, key=key, rank=3, features=stored)
    with pytest.raises(ValueError, match=r"^lo_gra: features must be the training examples' own;"):
        INF.lo_gra(two, weights, data, test, key=jax.random.key(6), rank=2, features=stored)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_shapley_values_of_neighbours_are_those_of_all_coalitions(k):
    x, y, at, label = X[:5], np.array([0, 1, 0, 0, 1]), X[5:7], np.array([0, 1])

    def game(members, t):
        nearest = sorted(members, key=lambda i: np.sum((x[i] - at[t]) ** 2))[:k]
        return sum(y[i] == label[t] for i in nearest) / k

    wanted = np.zeros((2, 5))
    for t, n in itertools.product(range(2), range(5)):
        others = [i for i in range(5) if i != n]
        for size in range(5):
            weight = math.factorial(size) * math.factorial(4 - size) / math.factorial(5)
            for members in itertools.combinations(others, size):
                wanted[t, n] += weight * (game((*members, n), t) - game(members, t))
    np.testing.assert_allclose(
        INF.knn_shapley((x, y), (at, label), num_neighbors=k), wanted, atol=1e-6
    )


def test_representer_points_add_up_to_the_logit():  # where the penalised last layer is at its end
    decay, f = 0.05, np.maximum(X, 0)
    w = np.zeros((4, 3))
    for _ in range(3000):
        p = np.exp(f @ w)
        p /= p.sum(1, keepdims=True)
        w -= 0.5 * (f.T @ (p - np.eye(3)[Y]) / 9 + 2 * decay * w)
    out = INF.representer_points(
        lambda w, x: jax.nn.relu(x) @ w, jnp.asarray(w, jnp.float32), (X, Y), (X[:3], Y[:3]),
        layer="relu_0", weight_decay=decay,
    )  # fmt: skip
    np.testing.assert_allclose(out.sum(1), (f @ w)[np.arange(3), Y[:3]], atol=1e-4)


def test_scores_of_traks_package_with_the_same_gradients_and_projection():  # traker 0.3.2
    stored = np.load(HERE / "reference" / "influence_traker.npz")
    weights = {name: stored[name] for name in stored.files if name[0].isdigit()}
    signs = stored["signs"].astype(np.float32)
    train, test = ((stored["x"][part], stored["y"][part]) for part in (slice(40), slice(40, None)))

    def net(p, x):  # a torch net as it stands: channels first, weights [out, in]
        conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), [(1, 1)] * 2)
        x = jnp.tanh(conv(x, p["0.weight"]) + p["0.bias"].reshape(1, -1, 1, 1))
        x = x.reshape(len(x), -1) @ p["3.weight"].T + p["3.bias"][None]
        return jax.nn.gelu(x, approximate=False) @ p["5.weight"].T + p["5.bias"][None]

    # The matrix's rows go weight by weight, in torch's order.
    ends = np.cumsum([a.size for a in weights.values()])[:-1]
    matrices = dict(zip(weights, np.split(signs, ends), strict=True))
    gradients = np.asarray(INF.example_gradients(net, weights, *train, loss=margin))
    features = gradients @ np.concatenate([matrices[name] for name in sorted(weights)])
    np.testing.assert_allclose(features, stored["features"], rtol=1e-4, atol=1e-4)

    # Gradients by what the matrix spreads over the weights are the projected ones; a square and
    # invertible projection on top of it cancels in TRAK's formula.
    def spread(p, x):
        moved = lambda name, a: a + (matrices[name] @ p["params"]).reshape(a.shape)
        return net({name: moved(name, a) for name, a in p["rest"].items()}, x)

    params = {"params": jnp.zeros(signs.shape[1]), "rest": weights}
    found = INF.trak(spread, [params], train, test, key=jax.random.key(0), dim=signs.shape[1])
    theirs = stored["scores"]  # up to a factor: their inverse is divided by its mean size
    factor = np.vdot(found, theirs) / np.vdot(theirs, theirs)
    np.testing.assert_allclose(found, factor * theirs, atol=2e-3 * np.abs(found).max())
    assert factor > 0
