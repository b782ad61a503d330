"""MAGIC: finite differences of the training run, `fit`'s own numbers, memory, going on."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxviz import data, influence, training
from jaxviz.influence.magic import planned
from jaxviz.influence.steps import divided
from jaxviz.parts.losses import cross_entropy

WEIGHED = np.random.RandomState(2).permutation(60)[:50]


class Net(nn.Module):
    """Batch normalisation and dropout, in 64 bits."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3, use_bias=False, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(not train, momentum=0.9, use_scale=False, param_dtype=x.dtype)(x)
        return nn.Dropout(0.3, deterministic=not train)(x)


def noisy(key, images):
    return images + 0.1 * jax.random.normal(key, images.shape, images.dtype)


def points():
    rng = np.random.RandomState(0)
    images = rng.rand(60, 5)
    images[:, 0] = 0  # weights without a gradient, whose second moment has an infinite slope
    return data.Dataset(images, rng.randint(0, 3, 60).astype(np.int32), ("a", "b", "c"))


def test_scores_are_finite_differences_of_fit():
    """Adam, a schedule, batch statistics, dropout and augmentation; 8 steps, 50 examples."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # Flax mixes in 64 bits
        train, net = points(), Net()
        start = jax.jit(net.init)(jax.random.key(1), np.ones((1, 5), np.float32))
        start = jax.tree.map(lambda a: a.astype(jnp.float64), start)
        options: Any = dict(
            key=jax.random.key(0),
            optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 8)),
            num_epochs=2,
            batch_size=15,
            augment=noisy,
            initial=start,
        )
        fitted = training.fit(net, train, **options)
        steps = training.fit_steps(net, train, **options)

        def test_fn(state):
            logits: Any = net.apply(state.variables, jnp.asarray(train.images[:4]))
            return -cross_entropy(logits, jnp.asarray(train.labels[:4]))

        out = influence.magic(steps, test_fn)
        for wanted, found in zip(
            jax.tree.leaves(fitted.variables), jax.tree.leaves(out.state.variables), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)

        step = 1e-3  # where smaller, what rounding makes of gradients that are 0 shows
        moved = step * np.eye(60)[WEIGHED]
        ends = influence.retrained(
            steps, test_fn, 1 + np.concatenate([moved, -moved]), chunk_size=1
        )
        differences = (ends[:50] - ends[50:]) / (2 * step)
        assert np.abs(differences).max() > 1e-3
        found = np.asarray(out.scores[:, WEIGHED].T)
        np.testing.assert_allclose(found, differences, rtol=1e-3)
        assert np.linalg.norm(found - differences) < 1e-5 * np.linalg.norm(found)


def squares(w, batch):
    x, y = batch
    return (x @ w - y) ** 2 / 2


SGD = optax.sgd(optax.linear_schedule(0.3, 0.1, 7), momentum=0.9)


def regression():
    rng = np.random.RandomState(1)
    x, y, w = (rng.randn(*s).astype(np.float32) for s in ((6, 2), (6,), (2,)))
    order = [[0, 1, 2], [3, 4, 5], [4, 4, 0], [1, 2], [2, 3], [5, 0, 1], [3, 1, 0]]
    return influence.weighted_steps(squares, w, (x, y), order, optimizer=SGD)


def ends_by_hand(steps, weights):
    """The parameters that momentum ends with, in NumPy and 64 bits."""
    x, y = (np.asarray(a, np.float64) for a in steps.data)
    w, velocity = np.asarray(steps.state.params, np.float64), np.zeros(2)
    for t, rows in enumerate(steps.order):
        errors = weights[rows] * (x[rows] @ w - y[rows])
        velocity = 0.9 * velocity + x[rows].T @ errors / len(rows)
        w = w - (0.3 - 0.2 * t / 7) * velocity
    return w


def test_a_loop_of_ones_own_and_what_bounds_its_memory(tmp_path):
    steps, test_fn = regression(), lambda state: state.params
    weights = np.array([1, 0.5, 1, 2, 0, 1])
    out = influence.magic(steps, test_fn, weights=weights)
    np.testing.assert_allclose(out.values, ends_by_hand(steps, weights), rtol=1e-5)
    step = 1e-6 * np.eye(6)
    wanted = [
        (ends_by_hand(steps, weights + h) - ends_by_hand(steps, weights - h)) / 2e-6 for h in step
    ]
    np.testing.assert_allclose(out.scores, np.transpose(wanted), rtol=1e-4, atol=1e-5)

    options: Any = dict(weights=weights, max_states=5, chunk_size=1, checkpoint=tmp_path)
    small = influence.magic(steps, test_fn, **options)
    np.testing.assert_allclose(small.scores, out.scores, rtol=1e-5)
    again = influence.magic(steps, test_fn, **options)  # all of the way back is there already
    np.testing.assert_array_equal(again.scores, small.scores)
    with pytest.raises(ValueError, match=r"magic: checkpoint .* must be of the same run"):
        influence.magic(steps, test_fn, max_states=5, checkpoint=tmp_path)


def test_the_way_back_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    steps, test_fn = regression(), lambda state: state.params[0]
    whole = influence.magic(steps, test_fn).scores
    replace, calls = influence.magic.__globals__["os"].replace, []

    def stopping(*paths):
        replace(*paths)
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        influence.magic(steps, test_fn, checkpoint=tmp_path)
    out = influence.magic(steps, test_fn, checkpoint=tmp_path)
    assert whole.shape == (6,)
    np.testing.assert_array_equal(out.scores, whole)


def test_a_bar_counts_the_spans_of_the_way_back(tmp_path, monkeypatch):
    said = []

    @contextlib.contextmanager
    def bar(what, total, done):
        said.append((total, done))
        yield said.append

    monkeypatch.setitem(planned.__globals__, "progress_bar", bar)
    options: Any = dict(max_states=5, checkpoint=tmp_path)
    influence.magic(regression(), lambda state: state.params[0], **options)
    (total, begun), *moves = said
    assert begun == 0
    assert moves == sorted(moves)
    assert moves[-1] == total > 1
    said.clear()
    influence.magic(regression(), lambda state: state.params[0], **options)
    assert said == [(total, total)]  # all of it is in the folder


@pytest.mark.parametrize("sizes", [[8] * 100, [8] * 9 + [3] + [8] * 9 + [3], [5]])
def test_no_more_states_are_held_than_were_asked_for(sizes):
    for most in range(12, 40):
        length, slots, depth = planned(sizes, most)
        if depth == 0:
            assert length * (slots + 1) + 1 <= most
            assert slots + 1 == len(divided(sizes, length))
        else:
            assert length + slots * depth + 1 <= most
            assert (slots + 1) ** depth >= len(divided(sizes, length))
    length, slots, depth = planned(sizes, None)
    assert depth == 1
    assert length + slots <= 2 * np.sqrt(len(sizes)) + 4
    with pytest.raises(ValueError, match=r"magic: max_states must be at least \d+ for these"):
        planned([8] * 1000, 5)


def conv_net(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x).mean((1, 2)) @ params["v"]


def test_quantities_together_and_one_by_one_through_convolutions():  # oracle: finite differences
    rng = np.random.RandomState(0)
    draw = lambda *s: jnp.asarray(rng.randn(*s), jnp.float32)
    params, data = {"w": draw(3, 3, 1, 4), "v": draw(4, 3)}, (draw(6, 5, 5, 1), jnp.arange(6) % 3)
    loss = lambda params, batch: cross_entropy(conv_net(params, batch[0]), batch[1])
    order = [[0, 1, 2], [3, 4, 5], [1, 1, 4]]  # one twice in a batch: its weight counts twice
    steps = influence.weighted_steps(loss, params, data, order, optimizer=optax.sgd(0.5))
    test_fn = lambda state: -loss(state.params, (data[0][:2], data[1][:2]))
    out = influence.magic(steps, test_fn)
    moved = 0.03 * np.eye(6)
    ends = influence.retrained(steps, test_fn, 1 + np.concatenate([moved, -moved]), chunk_size=4)
    np.testing.assert_allclose(out.scores.T, (ends[:6] - ends[6:]) / 0.06, atol=2e-4)
    for options in ({"chunk_size": 1}, {"max_states": None, "chunk_size": 2}):
        again = influence.magic(steps, test_fn, **options)
        np.testing.assert_allclose(again.scores, out.scores, atol=1e-6)
