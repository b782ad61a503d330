"""Curves of what goes and comes by rank: linear models by hand, ties, NaN, units, layouts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics

SHAPE = (3, 4, 4, 2)


def linear(w, x):
    return x.reshape(len(x), -1) @ w


def case(seed=0):
    """Inputs, weights and the exact attribution for class 1 of a linear model."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SHAPE).astype(np.float32)
    w = rng.normal(size=(32, 5)).astype(np.float32)
    return x, w, x * w[:, 1].reshape(1, *SHAPE[1:])


def falling(parts, num_steps):
    """What is left of a sum while its parts go, the largest first."""
    parts = np.sort(np.asarray(parts, np.float64), axis=1)[:, ::-1]
    gone = np.concatenate([np.zeros((len(parts), 1)), np.cumsum(parts, axis=1)], axis=1)
    counts = np.arange(num_steps + 1) * parts.shape[1] // num_steps
    return (gone[:, -1:] - gone)[:, counts], counts


# Oracle: of a linear model the exact attribution's parts are what goes, in closed form.
@pytest.mark.parametrize(("unit", "num_steps"), [("place", 16), ("place", 5), ("number", 7)])
def test_curves_of_a_linear_model_are_sums_of_its_sorted_parts(unit, num_steps):
    x, w, exact = case()
    parts = exact.sum(-1).reshape(3, -1) if unit == "place" else exact.reshape(3, -1)
    want, counts = falling(parts, num_steps)
    told = {"num_steps": num_steps, "unit": unit}
    out = metrics.deletion(linear, w, x, exact, 1, **told)
    chex.assert_trees_all_close(out.curve, want.astype(np.float32), atol=2e-5)
    shares = counts / counts[-1]
    chex.assert_trees_all_close(out.area, np.trapezoid(want, shares).astype(np.float32), atol=2e-5)
    # What comes is what would go, from the other end.
    back = metrics.insertion(linear, w, x, exact, 1, **told)
    chex.assert_trees_all_close(back.curve, (want[:, :1] - want).astype(np.float32), atol=2e-5)
    reverse = metrics.deletion(linear, w, x, -exact, 1, order="least_first", **told)
    chex.assert_trees_all_close(reverse.curve, out.curve, atol=2e-5)


def test_segments_go_together_by_their_sum_and_what_is_in_none_stays():
    x, w, exact = case()
    cells = jv.grid_segments((4, 4), (2, 2))
    out = metrics.deletion(linear, w, x, exact, 1, segments=cells, num_steps=4)
    parts = exact.reshape(3, 2, 2, 2, 2, 2).sum((2, 4, 5)).reshape(3, 4)
    want, _ = falling(parts, 4)
    chex.assert_trees_all_close(out.curve, want.astype(np.float32), atol=2e-5)
    some = np.where(cells == 3, -1, cells)
    out = metrics.deletion(linear, w, x, exact, 1, segments=some, num_steps=3)
    want, _ = falling(parts[:, :3], 3)
    chex.assert_trees_all_close(out.curve, (want + parts[:, 3:]).astype(np.float32), atol=2e-5)


def test_examples_of_fewer_segments_take_the_same_steps_in_shares():
    x, w, exact = case()
    cells = jv.grid_segments((4, 4), (2, 2))
    mixed = np.stack([cells, np.where(cells == 3, 1, cells), np.zeros_like(cells)])
    together = metrics.deletion(linear, w, x, exact, 1, segments=mixed, num_steps=4)
    for i in range(3):
        one = slice(i, i + 1)
        alone = metrics.deletion(linear, w, x[one], exact[one], 1, segments=mixed[one], num_steps=4)
        chex.assert_trees_all_close(together.curve[one], alone.curve, atol=2e-5)
        chex.assert_trees_all_close(together.area[one], alone.area, atol=2e-5)
    chex.assert_trees_all_close(together.curve[2, 1:4], together.curve[2, :1].repeat(3))


def test_ties_follow_a_fixed_order_that_prefers_no_side():
    x, w = np.ones((2, 8, 8, 1), np.float32), np.ones((64, 1), np.float32)
    seen = lambda w, x: jnp.stack([x[:, :, :4].sum((1, 2, 3)), x[:, :4].sum((1, 2, 3))], 1)
    for side in (0, 1):
        out = metrics.deletion(seen, w, x, np.zeros((2, 8, 8)), side, num_steps=2)
        # Half of 64 places are gone, of the 32 on a side 16 are expected; 8 is far outside chance.
        assert 8 < float(out.curve[0, 1]) < 24
        chex.assert_trees_all_equal(out.curve[0], out.curve[1])
        least = metrics.deletion(seen, w, x, np.zeros((2, 8, 8)), side, num_steps=2,
                                 order="least_first")  # fmt: skip
        chex.assert_trees_all_equal(out, least)


def test_a_nan_in_the_attribution_is_a_nan_of_its_example_alone():
    x, w, exact = case()
    exact[1, 2, 2, 0] = np.nan
    out = metrics.deletion(linear, w, x, exact, 1, num_steps=4)
    assert np.isnan(out.area).tolist() == [False, True, False]
    assert np.isnan(out.curve).any(1).tolist() == [False, True, False]


def test_fills_are_numbers_images_and_functions_of_what_is_hidden():
    x, w, exact = case()
    number = metrics.deletion(linear, w, x, exact, 1, num_steps=3, fill=0.5)
    image = metrics.deletion(linear, w, x, exact, 1, num_steps=3, fill=np.full_like(x, 0.5))

    def shown(x, hidden):
        assert hidden.shape == (3, 4, 4, 1)
        return jnp.full_like(x, 0.5)

    function = metrics.deletion(linear, w, x, exact, 1, num_steps=3, fill=shown)
    chex.assert_trees_all_close(number, image, atol=1e-6)
    chex.assert_trees_all_close(number, function, atol=1e-6)
    with pytest.raises(ValueError, match=r"^deletion: fill must be a function \(x, hidden\) -> x"):
        metrics.deletion(linear, w, x, exact, 1, fill=lambda x, hidden: x[:1])


def test_channels_first_and_tokens():
    x, w, exact = case()
    first = lambda a: np.moveaxis(a, -1, 1)
    net = jv.channels_first(lambda w, x: linear(w, jnp.moveaxis(x, 1, -1)))
    want = metrics.deletion(linear, w, x, exact, 1, num_steps=4)
    for given in (first(exact), exact.sum(-1)):
        out = metrics.deletion(net, w, first(x), given, 1, num_steps=4)
        chex.assert_trees_all_close(out, want, atol=2e-5)
    table = jnp.arange(12.0).reshape(6, 2)
    words = lambda w, ids: w[ids].sum(1)
    out = metrics.insertion(words, table, np.array([[1, 5, 3]]), np.array([[2, 3, 1]]), 0,
                            num_steps=3, fill=0)  # fmt: skip
    assert out.curve.tolist() == [[0.0, 10.0, 12.0, 18.0]]


def test_new_data_compile_nothing_and_chunks_change_nothing():
    x, w, exact = case()
    calls = []

    def net(w, x):
        calls.append(1)
        return linear(w, x)

    first = metrics.deletion(net, w, x, exact, 1, num_steps=6)
    traced = len(calls)
    again = metrics.deletion(net, w + 1, x + 1, exact - 1, np.array([0, 1, 2]), num_steps=6)
    assert len(calls) == traced
    assert not np.allclose(first.area, again.area)
    chunked = metrics.deletion(net, w, x, exact, 1, num_steps=6, chunk_size=1)
    chex.assert_trees_all_close(first, chunked, atol=1e-5)
    alone = metrics.deletion(net, w, x[1:2], exact[1:2], 1, num_steps=6)
    chex.assert_trees_all_close(first.curve[1:2], alone.curve, atol=1e-5)


def test_differentiable_in_the_parameters_and_under_jit():
    x, w, exact = case()
    area = lambda w: metrics.deletion(linear, w, x, exact, 1, num_steps=4).area.sum()
    slope = jax.jit(jax.grad(area))(w)
    step = np.zeros_like(w)
    step[3, 1] = 1.0  # the score is linear in w, so that a difference is exact
    chex.assert_trees_all_close(slope[3, 1], area(w + step) - area(w), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attribution": np.ones((3, 5, 5))}, r"attribution must have the shape \(3, 4, 4, 2\)"),
        ({"attribution": {"a": np.ones(3)}}, "attribution must be one array"),
        ({"segments": np.array([[10**9] * 4] * 4)}, "segments must be numbered without large gaps"),
        ({"segments": np.zeros((2, 2), int)}, "segments must be integers"),
        ({"segments": np.eye(4, dtype=int), "num_segments": 1}, "num_segments must be more than"),
    ],
)
def test_errors(options, told):
    x, w, exact = case()
    given = {"attribution": exact} | options
    with pytest.raises(ValueError, match=f"^deletion: {told}"):
        metrics.deletion(linear, w, x, given.pop("attribution"), 1, **given)
