"""Interactions of segments: by their definitions in NumPy, by shapiq's values, by hand."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.attribution import interactions

COUNT = 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, COUNT)).astype(np.float32)
FIRST, SECOND = (RNG.normal(size=s).astype(np.float32) for s in ((COUNT, 6), (6, 3)))
PARAMS = jnp.asarray(FIRST), jnp.asarray(SECOND)
ALL = np.array(list(itertools.product((0, 1), repeat=COUNT)))


def net(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def scores(kept, x):
    """Of class 1 with those numbers left, in float64."""
    return np.tanh(kept * x.astype(np.float64) @ FIRST) @ SECOND[:, 1].astype(np.float64)


def by_definition(index, x):
    """`[G, G]` sums over all coalitions, one after another."""
    n, score = COUNT, dict(zip(map(tuple, ALL), scores(ALL, x), strict=True))
    fact, found = math.factorial, np.zeros((COUNT, COUNT))
    weights = {
        "k_sii": lambda s: fact(s) * fact(n - s - 2) / fact(n - 1),
        "stii": lambda s: 2 / n / math.comb(n - 1, s),
        "fsii": lambda s: 6 * fact(n - s - 1) * fact(s + 1) / fact(n + 1),
    }
    for i, j in itertools.permutations(range(n), 2):
        for s in score:
            if not s[i] and not s[j]:
                grown = lambda *more, s=s: score[tuple(int(k in more or s[k]) for k in range(n))]
                second = grown(i, j) - grown(i) - grown(j) + grown()
                found[i, j] += weights[index](sum(s)) * second
    return found


@pytest.mark.parametrize("index", ["k_sii", "stii", "fsii"])
def test_shapley_interactions_are_their_definitions(index):
    out = jv.shapley_interactions(net, PARAMS, X, 1, index=index)
    np.testing.assert_allclose(out.pairs[0], by_definition(index, X[0]), atol=1e-5)
    gained = [scores(ALL[-1], x) - scores(ALL[0], x) for x in X]
    np.testing.assert_allclose(
        out.values.sum(1) + jnp.triu(out.pairs).sum((1, 2)), gained, atol=1e-4
    )
    assert not out.standard_errors.any()
    with np.load(
        pathlib.Path(__file__).parent.parent / "reference" / "coalition_peers.npz"
    ) as peers:
        for n in range(2):  # shapiq's, whose values of one segment are its own too
            np.testing.assert_allclose(out.values[n], peers[f"{index}/values"][n], atol=2e-5)
            np.testing.assert_allclose(out.pairs[n], peers[f"{index}/pairs"][n], atol=2e-5)


def test_sampled_interactions_are_as_near_as_they_say_and_add_up(monkeypatch):
    exact = jv.shapley_interactions(net, PARAMS, X, 1, index="fsii")
    monkeypatch.setattr(interactions, "_EXACT", 4)
    mixed = lambda w, x: net(w[:2], x)[:, 1:2] * w[3] + ((x @ w[2]) * x).sum(1, keepdims=True)

    @jax.jit
    def draw(params, x, key):
        options = {"index": "fsii", "num_samples": 160}
        return jv.shapley_interactions(mixed, params, x, 0, key=key, **options)

    nothing = jnp.zeros((COUNT, COUNT))
    found = [draw((*PARAMS, nothing, 1.0), X, jax.random.key(k)) for k in (3, 3, 4)]
    first, other = found[::2]
    np.testing.assert_array_equal(first.pairs, found[1].pairs)
    off = [(f.pairs - exact.pairs) / (f.standard_errors + 1e-6) for f in (first, other)]
    pairs = np.triu_indices(COUNT, 1)
    assert 0.6 < np.sqrt(np.mean([np.asarray(a)[:, *pairs] ** 2 for a in off])) < 1.5
    gained = first.values.sum(1) + jnp.triu(first.pairs).sum((1, 2))
    whole = [scores(ALL[-1], x) - scores(ALL[0], x) for x in X]
    np.testing.assert_allclose(gained, whole, atol=1e-4)
    with pytest.raises(ValueError, match="key must be given for more than 4 segments"):
        jv.shapley_interactions(net, PARAMS, X, 1)
    # A model of pairs is its own interactions, however few the samples.
    matrix = np.triu(np.random.default_rng(1).normal(size=(COUNT, COUNT))).astype(np.float32)
    out = draw((*PARAMS, jnp.asarray(matrix), 0.0), np.ones_like(X), jax.random.key(0))
    np.testing.assert_allclose(out.values[0], np.diag(matrix), atol=1e-2)
    np.testing.assert_allclose(np.triu(out.pairs[0], 1), np.triu(matrix, 1), atol=1e-2)
    assert out.standard_errors.max() < 1e-2


def test_hiding_two_at_a_time():
    out = jv.occlusion_interactions(
        net, PARAMS, X, 1, segments=np.array([0, 0, 1, 1, 2, 2, -1, -1])
    )
    left = lambda *gone: scores(np.array([g not in gone for g in (0, 0, 1, 1, 2, 2, 9, 9)]), X[1])
    np.testing.assert_allclose(out.values[1, 2], left() - left(2), atol=1e-5)
    both = left() - left(0) - left(2) + left(0, 2)
    np.testing.assert_allclose(out.pairs[1, 0, 2], both, atol=1e-5)
    np.testing.assert_allclose(out.pairs[1], out.pairs[1].T)
    np.testing.assert_allclose(out.base[1], left(0, 1, 2), atol=1e-5)


def test_integrated_hessians_are_the_double_integral_and_complete():
    start = np.float32(0.3)
    out = jv.integrated_hessians(net, PARAMS, X, 1, baseline=start)
    points, weights = np.polynomial.legendre.leggauss(40)
    points, weights = (points + 1) / 2, weights / 2
    d, wanted = (X[0] - start).astype(np.float64), np.zeros((COUNT, COUNT))
    for (a, u), (b, v) in itertools.product(zip(points, weights, strict=True), repeat=2):
        z = np.tanh((start + a * b * d) @ FIRST)
        slope = FIRST @ (SECOND[:, 1] * (1 - z**2))
        curved = (FIRST * (SECOND[:, 1] * -2 * z * (1 - z**2))) @ FIRST.T
        wanted += u * v * (a * b * d[:, None] * d * curved + np.diag(d * slope))
    np.testing.assert_allclose(out[0], wanted, atol=1e-4)
    gained = net(PARAMS, X)[:, 1] - net(PARAMS, jnp.full_like(X, start))[:, 1]
    np.testing.assert_allclose(out.sum((1, 2)), gained, atol=1e-4)
    # Segments: sums of numbers' own; what no segment holds stays as it is in x.
    parts = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    member = (parts == np.arange(3)[:, None]).astype(np.float32)
    by_parts = jv.integrated_hessians(net, PARAMS, X, 1, baseline=start, segments=parts)
    np.testing.assert_allclose(by_parts[0], member @ wanted @ member.T, atol=1e-4)
    held = np.where(parts == 1, -1, parts)
    some = jv.integrated_hessians(net, PARAMS, X, 1, baseline=start, segments=held)
    moved = net(PARAMS, jnp.where(held < 0, X, start))[:, 1]
    np.testing.assert_allclose(some.sum((1, 2)), net(PARAMS, X)[:, 1] - moved, atol=1e-4)


def test_relu_nets_have_pairs_by_their_surrogate_alone():
    relu = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]
    plain = jv.integrated_hessians(relu, PARAMS, X, 1)
    assert np.abs(np.asarray(plain) * (1 - np.eye(COUNT))).max() == 0
    smooth = jv.rewrite(relu, jv.rules.softplus_surrogate(30.0))
    out = jv.integrated_hessians(smooth, PARAMS, X, 1, num_steps=100)
    soft = lambda x: np.logaddexp(0, 30.0 * (x @ FIRST)) / 30.0 @ SECOND[:, 1]
    np.testing.assert_allclose(out.sum((1, 2)), soft(X) - soft(0 * X), atol=1e-3)
    assert np.abs(out[0, 0, 1:]).max() > 0.01


def test_integrated_hessians_in_64_bits():  # oracle: of x y every half is x y, by hand
    product = lambda w, x: (w * x[:, 0] * x[:, 1])[:, None]
    with jax.enable_x64(True):
        x = np.array([[2.0, 3.0]])
        out = np.asarray(jv.integrated_hessians(product, np.float64(2), x, 0, num_steps=4))
    assert out.dtype == np.float64
    np.testing.assert_allclose(out.sum(), 12.0, rtol=1e-12)
    np.testing.assert_allclose(out[0], out[0].T, rtol=1e-12)
