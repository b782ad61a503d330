"""DeepLIFT of numbers less what was made of them: at 1e8 a multiplier of 1 - 1 must be nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

LABELS = jnp.array([1, 3, 0])
LOWER = jnp.tril(jnp.ones((5, 5), bool))


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def in_double(f, x, start, target=0, rule="rescale"):
    with jax.enable_x64(True):
        x, start = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, start))
        return np.asarray(jv.deep_lift(f, None, x, target, baseline=start, rule=rule))


def by_take(x):
    return jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, LABELS[:, None], -1)[:, 0]


def by_row(x):
    return jax.nn.logsumexp(x, 1) - x[jnp.arange(3), LABELS]


def by_vmap(x):
    return jax.vmap(lambda h, label: jax.nn.logsumexp(h) - h[label])(x, LABELS)


def by_shift(x):
    z = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
    picked = jnp.take_along_axis(z, LABELS[:, None], -1)[:, 0]
    return jnp.log(jnp.exp(z).sum(-1)) - picked


def by_weights(x):
    return jax.nn.logsumexp(x, -1) - (x * jax.nn.one_hot(LABELS, 5, dtype=x.dtype)).sum(-1)


def by_choice(x):
    return -jnp.where(jax.nn.one_hot(LABELS, 5) > 0, x, 0).sum(-1) + jax.nn.logsumexp(x, -1)


def likelihood(x):
    return -(jnp.take_along_axis(x, LABELS[:, None], -1)[:, 0] - jax.nn.logsumexp(x, -1))


def of_another_row(x):
    """Of the next row's log-sum-exp, which is seen where the numbers are."""
    return jax.nn.logsumexp(x, -1)[jnp.array([1, 2, 0])] - x[jnp.arange(3), LABELS]


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_cross_entropies_are_those_of_a_log_softmax(rule):
    plain = lambda _, x: -jnp.take_along_axis(jax.nn.log_softmax(x), LABELS[:, None], -1)
    scales = (1e-8, 1.0, 1e3, 1e8)
    for f in (by_take, by_row, by_vmap, by_shift, by_weights, by_choice, likelihood):
        one = lambda _, x, f=f: f(x)[:, None]
        for scale in scales:
            x, start = scale * drawn(3, 5), scale * drawn(3, 5, seed=1)
            found, exact = (
                jv.deep_lift(g, None, x, 0, baseline=start, rule=rule) for g in (one, plain)
            )
            bound = 2e-6 * np.abs(exact).max()
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=bound, err_msg=f.__name__)


@pytest.mark.parametrize(
    ("f", "dtype"), [(by_take, jnp.bfloat16), (by_shift, jnp.float16)], ids=["taken", "shifted"]
)
def test_cross_entropies_in_half_precision(f, dtype):  # oracle: the same numbers in single
    x, start = (drawn(3, 5, seed=seed).astype(dtype) for seed in (0, 1))
    one = lambda _, x: f(x)[:, None]
    found = jv.deep_lift(one, None, x, 0, baseline=start).astype(jnp.float32)
    x, start = x.astype(jnp.float32), start.astype(jnp.float32)
    exact = jv.deep_lift(one, None, x, 0, baseline=start)
    np.testing.assert_allclose(found, exact, rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


def test_a_log_sum_exp_of_another_row_is_told_by_the_numbers():
    f = lambda _, x: of_another_row(x[0])[:1][None]
    x, start = drawn(1, 3, 5), drawn(1, 3, 5, seed=1)
    found = jv.deep_lift(f, None, x, 0, baseline=start)
    np.testing.assert_allclose(found, in_double(f, x, start), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sum(), (f(None, x) - f(None, start))[0, 0], rtol=1e-5)
    assert (np.asarray(found)[0, 2] == 0).all()


WEIGHTS = drawn(5, 2, seed=2)


def kernel(x):
    near = jnp.exp(x - jax.lax.stop_gradient(x.max(-1, keepdims=True)))
    return near @ WEIGHTS.astype(x.dtype)


def decays(x):
    """Mamba's and RetNet's: exp of how far two sums are from one another."""
    sums = lambda: jnp.cumsum(-jnp.abs(x), -1)  # written twice
    far = sums()[:, :, None] - sums()[:, None, :]
    return jnp.exp(jnp.where(LOWER, far, -jnp.inf)).sum(-1)


def below_the_best(x):
    return x - x.max(-1, keepdims=True)


def one_function(x):
    """What one number makes in several steps, of which next to nothing is left."""
    softplus, silu = jax.nn.softplus(x) - x, x - jax.nn.silu(x)
    written_out = jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0) + -x
    return (softplus + silu + written_out)[:, ::-1]


def no_ratio(x):  # of a policy to itself
    old = jax.lax.stop_gradient(jax.nn.log_softmax(x))
    return jnp.exp(jax.nn.log_softmax(x) - old) * jnp.tanh(x)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("net", [kernel, decays, below_the_best, one_function, no_ratio])
def test_distances_within_an_array_at_every_scale(net, rule):  # oracle: double precision
    f = lambda _, x: net(x)
    for scale in (1e-8, 1.0, 1e3, 1e8):
        x, start = scale * drawn(3, 5), scale * drawn(3, 5, seed=1)
        for other in (start, jnp.zeros_like(x)):
            found = jv.deep_lift(f, None, x, 1, baseline=other, rule=rule)
            exact = in_double(f, x, other, 1, rule)
            np.testing.assert_allclose(
                found, exact, rtol=1e-4, atol=1e-30 + 1e-5 * np.abs(exact).max()
            )


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_a_closed_gate_ahead_of_a_softmax(rule):
    """softmax(log g + s) is g e^s over their sum, where g = 0 at one end or at both as well."""

    def f(_, x):
        gates, scores = jax.nn.relu(x[:, :3]), x[:, 3:]
        return jax.nn.softmax(jnp.log(gates) + scores)

    x = jnp.array([[0.0, 1.0, 2.0, 0.3, -0.2, 0.1], [1.0, 0.5, 0.0, 1.0, 2.0, 3.0]])
    start = jnp.array([[1.0, 0.5, 1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 1.0, 1.0, -1.0, 0.0]])
    for target in range(3):
        found = jv.deep_lift(f, None, x, target, baseline=start, rule=rule)
        gained = (f(None, x) - f(None, start))[:, target]
        np.testing.assert_allclose(found.sum(1), gained, rtol=1e-5, atol=1e-6)
        assert np.abs(found).max() < 10
    logarithm = lambda _, x: jnp.log(x) + 1
    assert np.isnan(jv.deep_lift(logarithm, None, jnp.ones((1, 1)), 0, rule=rule)).all()


def test_systems_by_hand():
    """a x = b from (1, 2), x0 = 2, to (4, 4), x = 1: dx = -1 = (db - da x0) / a = (2 - 6) / 4, and
    (db - da x) / a0 = 2 - 3; half of each: b has 1/4 + 1, and a has -3/4 - 3/2."""
    f = lambda _, x: jnp.linalg.solve(x[:, :1, None], x[:, 1:, None])[..., 0]
    x, start = jnp.array([[4.0, 4.0]]), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jv.deep_lift(f, None, x, 0, baseline=start), [[-2.25, 1.25]])
    below = lambda _, x: jax.scipy.linalg.solve_triangular(
        x[:, :1, None], x[:, 1:, None], lower=True
    )[..., 0]
    np.testing.assert_allclose(jv.deep_lift(below, None, x, 0, baseline=start), [[-2.25, 1.25]])
    # Cholesky of one number is its root.
    root = lambda _, x: jnp.linalg.cholesky(x[:, :1, None])[..., 0]
    np.testing.assert_allclose(jv.deep_lift(root, None, x, 0, baseline=start), [[1.0, 0.0]])


def spread(x):
    return x[:, :, None] * x[:, None] + 2 * jnp.eye(3, dtype=x.dtype)[None]


SYSTEMS = {
    "solve": lambda x: jnp.linalg.solve(spread(x), x[..., None])[..., 0],
    "inverse": lambda x: jnp.linalg.inv(spread(x) + jnp.triu(x[:, None])).reshape(len(x), -1),
    "cholesky": lambda x: jax.scipy.linalg.cho_solve(
        (jnp.linalg.cholesky(spread(x)), True), x[..., None]
    )[..., 0],
    "conjugate gradients": lambda x: jax.vmap(
        lambda a, b: jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, maxiter=9)[0]
    )(spread(x), x),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_whose_matrix_moves_are_complete(name):
    f = lambda _, x: SYSTEMS[name](x)
    x, start = drawn(2, 3), drawn(2, 3, seed=1)
    for rule in ("rescale", "reveal_cancel"):
        found = jv.deep_lift(f, None, x, 1, baseline=start, rule=rule)
        gained = (f(None, x) - f(None, start))[:, 1]
        np.testing.assert_allclose(found.sum(1), gained, rtol=1e-4, atol=1e-6)


def test_factors_that_are_asked_for_are_refused():
    f = lambda _, x: jnp.linalg.slogdet(spread(x))[1][:, None]
    with pytest.raises(NotImplementedError, match=r"^deep_lift: no rule for the operation 'lu'"):
        jv.deep_lift(f, None, drawn(2, 3), 0)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_roots_by_a_fixed_number_of_steps_are_complete(rule):
    def f(w, x):
        step = lambda z: z - jnp.tanh(z @ w + x)
        solve = lambda g, z: jax.lax.fori_loop(0, 12, lambda _, z: z - g(z), z)
        slope = lambda g, y: jax.lax.fori_loop(0, 12, lambda _, z: z + y - g(z), y)
        return jax.lax.custom_root(step, jnp.zeros_like(x), solve, slope)

    w, x, start = drawn(3, 3, seed=2) / 4, drawn(2, 3), drawn(2, 3, seed=1)
    found = jv.deep_lift(f, w, x, 1, baseline=start, rule=rule)
    np.testing.assert_allclose(found.sum(1), (f(w, x) - f(w, start))[:, 1], rtol=1e-5, atol=1e-6)
