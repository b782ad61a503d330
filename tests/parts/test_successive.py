"""Unit after unit replaced, only what changes evaluated: against whole passes in NumPy's loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz as jv
from jaxviz import metrics
from jaxviz.graph.apart import apart
from jaxviz.graph.trace import trace
from jaxviz.metrics.ranked import units_of
from jaxviz.parts import successive as part
from jaxviz.parts.places import Places
from jaxviz.parts.regions import grid_segments
from jaxviz.parts.successive import successive

SIDE = 15


class Net(nn.Module):
    """A stride, a residual, a pool, and rows and columns that windows leave out at the end."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=(2, 2))(x))
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(nn.relu(x + nn.Conv(6, (1, 3))(y)), (2, 2), strides=(2, 2))
        return nn.Dense(4)(nn.gelu(nn.Conv(5, (3, 3))(x)).mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    module = Net()
    x = jax.random.normal(jax.random.key(0), (3, SIDE, SIDE, 2))
    params = module.init(jax.random.key(1), x)
    forward = jax.jit(module.apply)
    return module.apply, params, x, lambda x: np.asarray(forward(params, x))


@pytest.fixture(autouse=True)
def cheap(monkeypatch):  # a net so small would be evaluated whole
    monkeypatch.setattr(part, "_START", 0)
    monkeypatch.setattr(part, "_OVERHEAD", 0.1)


def by_hand(forward, x, filled, masks, target):
    """`[K + 1, N]`; masks `[K, N, ...]` of what goes at each step."""
    x, rows = np.array(x), np.arange(len(x))
    scores = [forward(x)[rows, target]]
    for mask in masks:
        x = np.where(mask, filled, x)
        scores.append(forward(x)[rows, target])
    return np.array(scores)


def test_every_step_is_that_of_a_whole_pass(net):
    """Ragged patches, some steps without any; what was NaN and has gone leaves nothing behind."""
    apply_fn, params, x, forward = net
    side = np.arange(SIDE)
    numbers = ((side // 4)[:, None] * 3 + side // 5)[None, :, :, None]
    order = np.stack([np.random.RandomState(i).permutation(14) - 1 for i in range(3)])[:, :9]
    order[0, 0] = 0
    broken = np.array(x)
    broken[0, 1, 1] = np.nan  # in unit 0, which goes first
    filled = jnp.asarray(np.random.RandomState(3).randn(*x.shape), jnp.float32)
    target = np.array([2, 0, 3])
    run = jax.jit(
        lambda x: successive(
            apply_fn, params, x, filled, target, Places(numbers), jnp.asarray(order, jnp.int32), 2
        )
    )
    scores, clean = run(jnp.asarray(broken))
    masks = numbers[None] == order.T[:, :, None, None, None]
    expected = by_hand(forward, broken, filled, masks, target)
    assert np.isnan(clean[0])
    assert not np.isnan(scores).any()
    np.testing.assert_allclose(scores, expected[1:], atol=2e-6)
    np.testing.assert_allclose(clean[1:], expected[0, 1:], atol=2e-6)


def taken_by(monkeypatch, module):
    """What a module will have had of it."""
    taken = []

    def counted(*args):
        taken.append(successive(*args))
        return taken[-1]

    monkeypatch.setattr(f"{module}.successive", counted)
    return taken


def test_metrics_take_it_and_give_the_same(net, monkeypatch):
    """As with a fill that is a function, which nobody knows to be local."""
    apply_fn, params, x, _ = net
    taken = taken_by(monkeypatch, "jaxviz.metrics.ranked")
    a = jax.random.normal(jax.random.key(2), x.shape).at[1, 0, 0, 0].set(jnp.nan)
    whole = lambda x, hidden: jnp.full_like(x, 0.3)
    places = SIDE * SIDE
    asked: list[Any] = [
        (metrics.region_perturbation, {"window": (4, 6), "order": "least_first"}),
        (metrics.insertion, {"num_steps": places + 7}),
        (metrics.srg, {"num_steps": places}),  # both orders in one go
    ]
    for metric, options in asked:
        ours = metric(apply_fn, params, x, a, fill=0.3, **options)
        expected = metric(apply_fn, params, x, a, fill=whole, **options)
        assert np.isnan(ours.area[1])
        np.testing.assert_allclose(ours.curve, expected.curve, atol=2e-6)
        np.testing.assert_allclose(ours.area, expected.area, atol=2e-6)
    assert [found is not None for found in taken] == [True] * 3
    metrics.deletion(apply_fn, params, x, a, num_steps=4)  # many pixels a step
    assert len(taken) == 3
    nothing = metrics.srg(apply_fn, params, x, 0 * x, fill=0.3, num_steps=places)
    assert nothing.area.tolist() == [0.0] * 3  # a constant map's orders are one


def test_shapley_sampling_walks_its_orders_by_it_and_gives_the_same(net, monkeypatch):
    """As with a fill that is a function, and whole passes."""
    apply_fn, params, x, _ = net
    taken = taken_by(monkeypatch, "jaxviz.attribution.shapley")
    whole = lambda x, hidden: jnp.full_like(x, 0.3)
    options = {"segments": grid_segments((SIDE, SIDE), (3, 4)), "num_samples": 2}
    for target in (None, np.array([2, 0, 3])):
        main = apply_fn, params, x, target
        ours = jv.shapley_sampling(*main, key=jax.random.key(3), fill=0.3, **options)
        assert taken.pop() is not None
        expected = jv.shapley_sampling(*main, key=jax.random.key(3), fill=whole, **options)
        assert not taken
        np.testing.assert_allclose(ours.values, expected.values, atol=3e-6)
        np.testing.assert_allclose(ours.standard_errors, expected.standard_errors, atol=3e-6)
        np.testing.assert_allclose(ours.base, expected.base, atol=2e-6)
        clean = jax.jit(apply_fn)(params, x)
        clean = clean.max(1) if target is None else clean[np.arange(3), target]
        np.testing.assert_allclose(ours.values.sum(1) + ours.base, clean, atol=5e-6)


@pytest.mark.parametrize(
    ("model", "is_apart"),
    [
        (lambda p, x: jnp.tanh(x.reshape(3, -1) @ jnp.ones((8, 2))), True),
        (lambda p, x: jax.nn.softmax(x.sum(2).cumsum(1)), True),
        (lambda p, x: jax.vmap(lambda row: row.sum(1)[::-1])(x), True),
        (lambda p, x: (x - x.mean(0, keepdims=True)).sum(2), False),
        (lambda p, x: x.sum(2) / x.max(), False),
        (lambda p, x: x[::-1].sum(2), False),
        (lambda p, x: jnp.roll(x, 1, 0).sum(2), False),
        (lambda p, x: jnp.cumsum(x, 0).sum(2), False),
        (lambda p, x: x.reshape(3, 8) @ x.reshape(3, 8).T, False),
        (lambda p, x: jnp.sort(x, 0).sum(2), False),
        (jax.checkpoint(lambda p, x: (x * x.sum(0, keepdims=True)).sum(2)), False),
        (lambda p, x: jax.lax.fori_loop(0, 2, lambda _, c: c - c[:1], x).sum(2), False),
        (lambda p, x: jax.lax.while_loop(lambda s: (s > 1).any(), lambda s: s / 2, x), False),
        (lambda p, x: jax.lax.while_loop(lambda s: jnp.array(False), lambda s: s / 2, x), True),
        (lambda p, x: jax.lax.conv(x[:, :, 0].T[None], jnp.ones((2, 4, 3)), (1,), "SAME")[0].T,
         False),
        (lambda p, x: jax.lax.conv(x[:, :, 0].T[:, None], jnp.ones((3, 1, 1)), (1,), "SAME")[0].T,
         False),
        (lambda p, x: jax.lax.conv(x[:, :, 0][None], jnp.ones((3, 3, 1)), (1,), "SAME")[0], False),
        (lambda p, x: jax.lax.conv(x, jnp.ones((5, 4, 1)), (1,), "SAME"), True),
        (lambda p, x: jnp.linalg.cholesky(x[:, :3, 0]), False),
        (lambda p, x: jax.lax.linalg.triangular_solve(jnp.eye(3), x[:, :, 0], left_side=True),
         False),
        (lambda p, x: jnp.fft.fft(x[:, :, 0].T).real.T, False),
        (lambda p, x: jax.pure_callback(lambda a: a, x, x), False),
        (lambda p, x: x[jnp.argmax(x[:, :3, 0], 1)], False),
        (lambda p, x: x.at[jnp.argmax(x[:, :3, 0], 1)].add(x), False),
        (lambda p, x: x[:, :3, 0] @ x[:, :, 1], False),
        (lambda p, x: jnp.take_along_axis(x, x.argmax(1, keepdims=True), 1), True),
        (lambda p, x: jax.nn.gelu(x) * jax.nn.silu(x) + jax.nn.softplus(x).clip(0, 2), True),
    ],
)  # fmt: skip
def test_examples_that_have_nothing_to_do_with_one_another(model, is_apart):
    assert apart(trace(model, None, jnp.ones((3, 4, 2)))) is is_apart


def test_examples_with_params_of_their_own_go_together():
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    net = lambda p, x: jax.lax.conv_general_dilated(
        x * p, jnp.ones((3, 3, 1, 2)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).mean((1, 2))
    places, order = Places(np.arange(64).reshape(1, 8, 8, 1)), jnp.zeros((3, 2), jnp.int32)
    found = lambda p: jax.eval_shape(lambda x: successive(net, p, x, x, 0, places, order, None), x)
    assert found(jnp.arange(3.0)[:, None, None, None]) is None
    assert found(2.0) is not None


def test_places_of_no_unit_stay_in_steps_of_none(net):
    apply_fn, params, x, forward = net
    numbers = np.full((1, SIDE, SIDE, 1), -1)
    numbers[0, :4, :4] = 0
    order = jnp.asarray([[-1, 0, -1]] * 3, jnp.int32)
    filled, places, target = jnp.zeros_like(x), Places(numbers), np.array([2, 0, 3])
    run = jax.jit(lambda x: successive(apply_fn, params, x, filled, target, places, order, None))
    masks = [numbers == unit if unit >= 0 else numbers < -1 for unit in (-1, 0, -1)]
    expected = by_hand(forward, x, filled, masks, target)
    np.testing.assert_allclose(run(x)[0], expected[1:], atol=2e-6)


def test_segments_of_each_example_are_no_places_for_all():
    x = jnp.ones((2, 3))
    rows = np.array([[0, 1, 1], [0, 0, 1]])
    assert units_of("m", x, x, segments=rows).places is None
    assert units_of("m", x, x, segments=rows[0]).places is not None
