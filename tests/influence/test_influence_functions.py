"""Influence functions against leaving out and training again, and their ways to divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

INF = jv.influence
RNG = np.random.default_rng(0)
N, PENALTY = 2000, 0.1
X = RNG.normal(size=(N, 3)).astype(np.float32)
TEST = RNG.normal(size=(4, 3)).astype(np.float32)


def affine(w, x):
    return x @ w


def squared(outputs, y):
    return 0.5 * (outputs[:, 0] - y) ** 2


def test_ridge_regression_is_left_out_exactly():  # oracle: each fit solved anew, in float64
    x, y = X.astype(float), (X @ np.array([1.0, -2.0, 0.5]) + RNG.normal(size=N)).astype(float)
    at, wanted = TEST.astype(float), np.array([0.0, 3.0, -2.0, 1.0])
    fit = lambda keep: np.linalg.solve(
        x[keep].T @ x[keep] / N + PENALTY * np.eye(3), x[keep].T @ y[keep] / N
    )
    cost = lambda w: 0.5 * (at @ w - wanted) ** 2
    w = fit(np.arange(N))
    train, test = (X, y.astype(np.float32)), (TEST, wanted.astype(np.float32))
    found = np.asarray(
        INF.influence(
            affine, jnp.asarray(w[:, None], jnp.float32), train, test, loss=squared,
            damping=PENALTY, solver=INF.explicit(),
        )
    )  # fmt: skip
    assert found.shape == (4, N)
    left = np.argsort(-np.abs(found).max(0))[:20]  # those that matter most
    exact = np.stack([cost(fit(np.arange(N) != n)) - cost(w) for n in left], 1)
    assert np.abs(found[:, left] - exact).max() < 1e-2 * np.abs(exact).max()
    # The first-order term leaves out the example's own leverage, which is known.
    h = np.linalg.inv(x.T @ x / N + PENALTY * np.eye(3))
    own = 1 - np.einsum("ni,ij,nj->n", x[left], h, x[left]) / N
    moved = h @ x[left].T * (x[left] @ w - y[left]) / own / N  # exact change of the weights
    second = 0.5 * (at @ moved) ** 2
    np.testing.assert_allclose(
        found[:, left] / own + second, exact, atol=1e-3 * np.abs(exact).max()
    )


def test_logistic_regression_is_left_out_to_a_thousandth():
    x, labels = X.astype(float), (X[:, 0] + RNG.normal(size=N) > 0).astype(int)
    penalty = 0.05

    def fit(weights, w):
        for _ in range(12):  # Newton's steps, in float64
            p = 1 / (1 + np.exp(-x @ w))
            g = x.T @ (weights * (p - labels)) / N + penalty * w
            h = (x.T * (weights * p * (1 - p))) @ x / N + penalty * np.eye(3)
            w = w - np.linalg.solve(h, g)
        return w

    w = fit(np.ones(N), np.zeros(3))
    at = np.array([0, 1, 0, 1])

    def cost(w):
        z = TEST.astype(float) @ w
        return np.logaddexp(0, np.where(at == 1, -z, z))

    def logistic(outputs, y):
        return jax.nn.softplus(jnp.where(y == 1, -outputs[:, 0], outputs[:, 0]))

    params = jnp.asarray(w[:, None], jnp.float32)
    found = np.asarray(
        INF.influence(affine, params, (X, labels), (TEST, at), loss=logistic, damping=penalty)
    )
    left = RNG.integers(0, N, 8)
    exact = np.stack([cost(fit(np.arange(N) != n, w)) - cost(w) for n in left], 1)
    assert np.abs(found[:, left] - exact).max() < 1e-3 * np.abs(found).max()


@pytest.fixture(scope="module")
def small():
    """A net of two layers, its explicit curvature, and its gradients."""
    k = jax.random.split(jax.random.key(0), 4)
    params = {"a": jax.random.normal(k[0], (3, 4)), "b": jax.random.normal(k[1], (4, 3))}
    net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    x, y = jnp.asarray(X[:12]), jnp.arange(12) % 3
    flat, tree = jax.flatten_util.ravel_pytree(params)
    run = lambda f, x: net(tree(f), x)
    cost = lambda f, x, y: -jnp.take_along_axis(jax.nn.log_softmax(run(f, x)), y[:, None], 1)[:, 0]

    @jax.jit
    def curvatures(flat):
        jacobian = jax.jacobian(run)(flat, x)
        p = jax.nn.softmax(run(flat, x))
        bent = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None]
        gauss = jnp.einsum("nkp,nkl,nlq->pq", jacobian, bent, jacobian) / 12
        return gauss, jax.jacobian(lambda f: cost(f, x, y))(flat)

    gauss, gradients = map(np.asarray, curvatures(flat))
    return net, params, (x, y), gauss, gradients


def test_every_solver_divides_by_the_same_matrix(small):
    net, params, data, gauss, gradients = small
    test = jax.tree.map(lambda a: a[:2], data)

    def wanted(matrix, damping):
        return gradients[:2] @ np.linalg.solve(matrix + damping * np.eye(24), gradients.T) / 12

    call = lambda solver, damping, **options: INF.influence(
        net, params, data, test, solver=solver, damping=damping, **({"chunk_size": 12} | options)
    )
    scale = np.abs(wanted(gauss, 0.1)).max()
    gn = {"curvature": "gauss_newton"}
    found = call(INF.conjugate_gradients(num_steps=50), 0.1, **gn, chunk_size=5)
    np.testing.assert_allclose(found, wanted(gauss, 0.1), atol=1e-2 * scale)
    # Of few directions: the inverse of that rank.
    values, vectors = np.linalg.eigh(gauss + 0.1 * np.eye(24))
    low = (vectors[:, -3:] / values[-3:]) @ vectors[:, -3:].T
    few = call(INF.arnoldi(rank=3, num_steps=24), 0.1, key=jax.random.key(2), **gn)
    np.testing.assert_allclose(few, gradients[:2] @ low @ gradients.T / 12, atol=1e-2 * scale)
    # Batches drawn at random: right on average.
    drawn = INF.lissa(num_steps=100, scale=3.0, batch_size=6, num_samples=10)
    found = call(drawn, 0.1, key=jax.random.key(3), **gn)
    assert np.corrcoef(np.ravel(found), wanted(gauss, 0.1).ravel())[0, 1] > 0.95


def test_a_solver_that_draws_asks_for_a_key(small):
    net, params, data = small[:3]
    with pytest.raises(ValueError, match=r"^influence: key must be given"):
        INF.influence(net, params, data, data, solver=INF.arnoldi())


def dense(params, x):
    return x @ params["w"] + params["b"][None]


@pytest.mark.parametrize(
    ("method", "options"),
    [("influence", {"damping": 0.1}), ("ek_fac", {}), ("lo_gra", {"key": jax.random.key(0)})],
)
def test_parameters_of_16_bits_and_no_examples(method, options):  # oracle: the same in 32 bits
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.bfloat16)
    params, x, y = {"w": draw(4, 3), "b": draw(3)}, draw(6, 4), np.arange(6) % 3
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    call = getattr(jv.influence, method)
    found = call(dense, params, (x, y), (x[:2], y[:2]), **options)
    data = (wide(x), y), (wide(x)[:2], y[:2])
    wanted = call(dense, wide(params), *data, **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())
    with pytest.raises(ValueError, match=rf"^{method}: train must hold an example at least"):
        call(dense, params, (x[:0], y[:0]), (x, y), **options)
