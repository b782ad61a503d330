"""DeepLIFT through indices that the input chose: top k, sorting, tables, and comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

RULES = ("rescale", "reveal_cancel")
TABLE = jnp.array([[2.0], [3.0], [7.0]])


def gathered(x, k=2):
    return TABLE[jax.lax.top_k(x, k)[1]].sum(1)


def one_hot(x):
    return jax.nn.one_hot(jax.lax.top_k(x, 2)[1], 3, dtype=x.dtype).sum(1) @ TABLE


def scattered(x):
    rows = jnp.arange(len(x))[:, None]
    return jnp.zeros_like(x).at[rows, jax.lax.top_k(x, 2)[1]].set(1) @ TABLE


def added(x):
    rows = jnp.arange(len(x))[:, None]
    return jnp.zeros_like(x).at[rows, jax.lax.top_k(x, 2)[1]].add(1) @ TABLE


def sorted_(x):
    return TABLE[jnp.argsort(x, 1)[:, 1:]].sum(1)


@pytest.mark.parametrize("f", [gathered, one_hot, scattered, added, sorted_])
def test_who_overtook_explains_which_were_picked(f):
    """By hand: (3, 2, 1) has the rows 0 and 1, (3, 2, 5) 2 and 0, for place 2 overtook both."""
    x, x0 = jnp.array([[3.0, 2.0, 5.0]]), jnp.array([[3.0, 2.0, 1.0]])
    found = jv.deep_lift(lambda _, x: f(x), None, x, 0, baseline=x0)
    np.testing.assert_allclose(found, [[0.0, 0.0, 4.0]], atol=1e-6)
    # (1, 2, 3) from (3, 2, 1): place 2 for 0 in the first rank, at equal parts of their distance;
    # the second rank is place 1's as before.
    x, x0 = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    found = jv.deep_lift(lambda _, x: f(x), None, x, 0, baseline=x0)
    np.testing.assert_allclose(found, [[2.5, 0.0, 2.5]], atol=1e-6)


def routed(w, x):
    """A mixture of experts: the two best, their gates made to sum to 1."""
    gates, which = jax.lax.top_k(x @ w["gate"], 2)
    gates = jax.nn.softmax(gates)
    out = jnp.einsum("ni,nkio->nko", x, w["experts"][which])
    return jnp.einsum("nk,nko->no", gates, out)


def dispatched(w, x):
    gates, which = jax.lax.top_k(x @ w["gate"], 2)
    gates = jax.nn.softmax(gates)
    rows = jnp.arange(len(x))[:, None]
    dense = jnp.zeros((len(x), 4), x.dtype).at[rows, which].set(gates)
    return jnp.einsum("ne,ni,eio->no", dense, x, w["experts"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", [routed, dispatched])
def test_mixtures_of_the_best_are_complete_at_every_scale(net, rule):
    keys = jax.random.split(jax.random.key(5), 4)
    w = {
        "gate": jax.random.normal(keys[0], (6, 4)),
        "experts": jax.random.normal(keys[1], (4, 6, 2)),
    }
    x, x0 = (jax.random.normal(key, (5, 6)) for key in keys[2:])
    scales = jnp.repeat(jnp.array([1e-8, 1e-3, 1.0, 1e3, 1e8]), 5)[:, None]
    x, x0 = (scales * jnp.tile(a, (5, 1)) for a in (x, x0))
    ends = [np.asarray(net(w, a), np.float64)[:, 1] for a in (x, x0)]
    shares = np.asarray(jv.deep_lift(net, w, x, 1, baseline=x0, rule=rule), np.float64)
    error = np.abs(shares.sum(1) - (ends[0] - ends[1]))
    assert (error <= 2e-5 * np.abs(shares).sum(1)).all(), error / np.abs(shares).sum(1)


def test_rows_that_are_put_on_one_another_are_not_explained_in_silence():
    def f(_, x):
        which = jnp.where(x > 0, 1, 0)  # both may be 1
        return jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], which].set(x)

    x = jnp.array([[1.0, 2.0], [1.0, -2.0]])
    found = jv.deep_lift(f, None, x, 1, baseline=jnp.array([[-1.0, 1.0]]))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1].sum(), f(None, x)[1, 1] - 1, atol=1e-6)


KNOTS, HEIGHTS = np.array([-2.0, -1.0, 0.0, 0.5, 2.0]), np.array([0.0, 1.0, -1.0, 0.5, 3.0])
TABLES = {
    "interpolated": lambda x: jnp.interp(x, KNOTS.astype(x.dtype), HEIGHTS.astype(x.dtype)),
    "in bins": lambda x: jnp.digitize(x, KNOTS.astype(x.dtype)).astype(x.dtype),
    "looked up": lambda x: jnp.asarray(HEIGHTS, x.dtype)[
        jnp.clip(jnp.searchsorted(KNOTS.astype(x.dtype), x, side="right"), 0, 4)
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_tables_are_functions_of_each_number(rule):  # oracle: each share is its own difference
    x, x0 = 2 * jax.random.normal(jax.random.key(0), (2, 4, 5))
    every = lambda _, x: jnp.stack([f(x).sum(1) for f in TABLES.values()], 1)
    for i, (name, f) in enumerate(TABLES.items()):
        found = jv.deep_lift(every, None, x, i, baseline=x0, rule=rule)
        np.testing.assert_allclose(found, f(x) - f(x0), rtol=1e-5, atol=1e-5, err_msg=name)


def test_linear_systems():
    a = jnp.eye(3) * 2 + jnp.array([[0.3, 0.1, -0.4]])
    f = lambda a, x: jnp.linalg.solve(a[None], x[..., None])[..., 0]
    x = jax.random.normal(jax.random.key(0), (2, 3))
    exact = jnp.linalg.inv(a)[1:2] * x
    np.testing.assert_allclose(jv.deep_lift(f, a, x, 1), exact, rtol=1e-5, atol=1e-6)


def test_a_step_whose_sides_move_together_has_no_share_above_its_change():
    """By hand, of 1 (a > b): from (1, 1.1) to (3.1, 3), a distance of -0.1 that becomes 0.1.

    Of their ways, 2.1 and 1.9, the part 0.2 / 4 is the distance's; of the rest a has 1/2 (1 + 1)
    and b 1/2 (-1 + 1), as each crosses the other's old and new place, or does not.
    """
    step = lambda _, x: (x[:, :1] > x[:, 1:]).astype(x.dtype)
    x, x0 = jnp.array([[3.1, 3.0]]), jnp.array([[1.0, 1.1]])
    found = np.asarray(jv.deep_lift(step, None, x, 0, baseline=x0))
    first, second = 1 / 4 * 2.1 + 0.95, -1 / 4 * 1.9
    np.testing.assert_allclose(found, [[first, second]], rtol=1e-5)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
    # A threshold that stays: as ever, the whole.
    found = jv.deep_lift(lambda _, x: (x > 2).astype(x.dtype), None, x, 0, baseline=x0)
    np.testing.assert_allclose(found, [[1.0, 0.0]], rtol=1e-6)
