"""The climb: against closed forms, and what it promises of keys, chunks and runs."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxviz as jv
from jaxviz import objectives, parametrizations, regularizers, transforms
from jaxviz.engine import contract
from jaxviz.engine.shares import shared
from jaxviz.features import maximization

PIXELS = parametrizations.pixels()
PLAIN = {"transforms": (), "parametrization": PIXELS, "redirected_steps": 0}
KEY = jax.random.key(7)
ADAM = optax.adam(0.2)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


def bent(w, x):
    return jnp.tanh(linear(w, x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(3, (3, 3), name="deep")(x))
        return nn.Dense(5, name="end")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def small():
    net = Net()
    return net.apply, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


CLIMB = {"key": KEY, "num_steps": 12, "redirected_steps": 4, "transforms": (transforms.jitter(2),)}


@pytest.fixture(scope="module")
def climbed(small):
    return jv.maximize_activation(
        *small, (8, 8, 2), objectives.channel("deep", [0, 1, 2]), num_frames=3, **CLIMB
    )


def test_a_linear_model_is_maximised_by_the_signs_of_its_weights():
    w = jax.random.normal(jax.random.key(1), (12, 3))
    found = jv.maximize_activation(
        linear,
        w,
        (2, 3, 2),
        objectives.logit([0, 1, 2]),
        key=KEY,
        num_steps=150,
        optimizer=ADAM,
        **PLAIN,
    )
    np.testing.assert_array_equal(found.images.reshape(3, 12).T.round(), w > 0)
    best = jnp.maximum(w, 0).sum(0)
    np.testing.assert_allclose(found.scores, best, rtol=0.01)
    np.testing.assert_allclose(found.scores, jnp.diag(linear(w, found.images)), rtol=1e-5)
    # |gradient| is w at every step, so that is what the importance adds up.
    shares = np.abs(w).T.reshape(3, 2, 3, 2).sum(-1)
    np.testing.assert_allclose(
        found.importance, shares / shares.sum((1, 2), keepdims=True), rtol=1e-4
    )


def test_a_penalty_moves_the_maximum_to_where_slopes_balance():
    """w x - mean (x - 1/2)^2 k over 4 numbers: x = 1/2 + 2 w / k."""
    w = jnp.array([[0.4], [-0.2], [0.1], [-0.4]])
    found = jv.maximize_activation(
        linear,
        w,
        (2, 2, 1),
        objectives.logit(0),
        key=KEY,
        num_steps=150,
        init="blank",
        regularizers=[regularizers.l2(4.0, centre=0.5)],
        **PLAIN,
    )
    np.testing.assert_allclose(found.images.ravel(), 0.5 + 0.5 * w.ravel(), atol=2e-3)
    # The score is the objective alone; what climbs is less by the penalty.
    np.testing.assert_allclose(found.scores, found.images.reshape(1, 4) @ w[:, 0], rtol=1e-5)
    penalty = ((found.images - 0.5) ** 2).mean() * 4
    np.testing.assert_allclose(found.history[-1], found.scores - penalty, atol=1e-3)


def test_transforms_are_seen_by_the_model_alone():
    """The model gets the middle four pixels; the others must not move from where they start."""
    w = jnp.ones((4, 1))
    found = jv.maximize_activation(
        linear,
        w,
        (4, 4, 1),
        objectives.logit(0),
        key=KEY,
        num_steps=20,
        optimizer=ADAM,
        **PLAIN | {"transforms": (transforms.crop(2, random=False),)},
        init="blank",
    )
    image = np.array(found.images[0, :, :, 0])
    assert (image[1:3, 1:3] > 0.9).all()
    image[1:3, 1:3] = 0.5
    np.testing.assert_allclose(image, 0.5)


def test_the_same_key_gives_the_same_images(small, climbed):
    again = jv.maximize_activation(
        *small, (8, 8, 2), objectives.channel("deep", [0, 1, 2]), num_frames=3, **CLIMB
    )
    jax.tree.map(np.testing.assert_array_equal, again, climbed)
    assert not np.allclose(climbed.images[0], climbed.images[1])


def test_steps_in_runs_and_images_in_chunks_change_nothing(small, climbed, monkeypatch):
    monkeypatch.setattr(  # what a terminal gets: a few steps at a time
        maximization,
        "spans",
        lambda last, first, size, what: [(i, min(i + 3, last)) for i in range(first, last, 3)],
    )
    objective = objectives.channel("deep", [0, 1, 2])
    runs = jv.maximize_activation(*small, (8, 8, 2), objective, num_frames=3, **CLIMB)
    jax.tree.map(np.testing.assert_array_equal, runs, climbed)
    monkeypatch.undo()
    chunked = jv.maximize_activation(*small, (8, 8, 2), objective, chunk_size=1, **CLIMB)
    np.testing.assert_allclose(chunked.images, climbed.images, atol=1e-4)
    np.testing.assert_allclose(chunked.history, climbed.history, atol=1e-4)


@pytest.mark.parametrize(("cores", "count", "shares"), [(2, 3, 3), (3, 4, 2)])
def test_images_that_cores_share_are_the_same(monkeypatch, cores, count, shares):
    w = jax.random.normal(jax.random.key(4), (18, 3))
    given = (bent, w, (3, 3, 2), objectives.logit([0, 1, 2, 0][:count]))
    options = {"num_frames": 2, **CLIMB, "redirected_steps": 0, "parametrization": PIXELS}
    alone = jv.maximize_activation(*given, chunk_size=1, **options)
    parts = []

    def counted(function, some):
        parts.append(len(some))
        return shared(function, some)

    monkeypatch.setattr(maximization, "_AT_ONCE", 1)  # one image at a time, where nobody said
    monkeypatch.setattr(contract, "cores", lambda: cores)
    monkeypatch.setattr(maximization, "shared", counted)
    monkeypatch.setattr(contract, "_program", functools.cache(contract._program.__wrapped__))
    found = jv.maximize_activation(*given, **options)
    assert set(parts) == {shares}
    chex.assert_trees_all_close(found, alone, rtol=1e-4, atol=1e-5)
    parts.clear()
    jv.maximize_activation(*given, chunk_size=1, **options)  # no more at once than was asked for
    assert not parts


def test_an_optimizer_sees_the_gradient_of_one_image():
    """A clipped norm is each image's own: the first image is that of a climb of its own."""
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(100.0))
    options = {**CLIMB, "optimizer": clipped, "redirected_steps": 0, "parametrization": PIXELS}
    w = jax.random.normal(jax.random.key(4), (18, 3))
    climb = lambda units: jv.maximize_activation(
        bent, w, (3, 3, 2), objectives.logit(units), **options
    )
    both, first = climb([0, 1]), climb([0])
    np.testing.assert_allclose(both.images[:1], first.images, rtol=1e-5)
    assert not np.allclose(first.history[0], first.history[-1], rtol=1e-3)


def test_images_of_one_set_of_variables_climb_together():
    """Two images that are one: its climb is that of the sum of both objectives."""
    one = parametrizations.Parametrization(
        lambda key, shape: jnp.zeros(shape[1:]),
        lambda v, shape: jnp.broadcast_to(jax.nn.sigmoid(v), shape),
        None,
    )
    w = jnp.array([[2.0, -1.0], [-2.0, 3.0], [1.0, 1.0], [-1.0, -3.0]])
    arguments = (linear, w, (2, 2, 1), objectives.logit([0, 1]))
    options = {"key": KEY, "num_steps": 100, "optimizer": ADAM, **PLAIN, "parametrization": one}
    found = jv.maximize_activation(*arguments, **options)
    for image in found.images.reshape(2, 4):
        np.testing.assert_array_equal(image.round(), w.sum(1) > 0)
    with pytest.raises(ValueError, match="depend on each other"):
        jv.maximize_activation(*arguments, **options, chunk_size=1)


def test_frames_and_best_are_images_of_the_climb(climbed):
    assert climbed.frames.shape == (3, 3, 8, 8, 2)
    np.testing.assert_array_equal(climbed.frames[-1], climbed.images)
    assert climbed.history.shape == (12, 3)
    assert (climbed.history[-1] > climbed.history[0]).all()


def test_other_units_do_not_retrace_and_the_tail_is_not_run(small):
    apply_fn, params = small
    traces, tails = [], []

    def counted(params, x):
        traces.append(1)
        out = apply_fn(params, x)
        jax.debug.callback(lambda _: tails.append(1), out)
        return out

    for units in ([0, 1], [2, 2]):
        found = jv.maximize_activation(
            counted,
            params,
            (8, 8, 2),
            objectives.channel("conv", units),
            key=KEY,
            num_steps=2,
            **PLAIN,
        )
        count, traces[:] = len(traces), []
    jax.block_until_ready(found)
    # The second call only looks at shapes, to refuse what does not fit; nothing is compiled.
    assert count <= 2
    assert not tails


def test_staged_runs_go_on_from_images(small):
    """A first climb without total variation, a second from its result with it."""
    objective = objectives.channel("deep", 0)
    first = jv.maximize_activation(
        *small, (8, 8, 2), objective, key=KEY, num_steps=30, optimizer=ADAM, **PLAIN
    )
    second = jv.maximize_activation(
        *small,
        (8, 8, 2),
        objective,
        key=KEY,
        num_steps=30,
        optimizer=ADAM,
        init=np.asarray(first.images),  # as users keep them
        regularizers=[regularizers.total_variation(5.0)],
        **PLAIN,
    )
    images = np.asarray(first.images[0])
    down, right = images[1:] - images[:-1], images[:, 1:] - images[:, :-1]
    variation = ((down**2).sum() + (right**2).sum()) / images.size
    np.testing.assert_allclose(second.history[0, 0], first.scores[0] - 5 * variation, rtol=0.01)
    assert float(jnp.diff(second.images, axis=1).std()) < 0.5 * down.std()


def test_a_dead_unit_wakes_by_the_redirected_gradient():
    net = lambda b, x: jax.nn.relu(x.sum((1, 2)) + b)
    bias = jnp.full((1, 1), -5.0)  # four pixels of 1/2 cannot reach it
    arguments = (net, bias, (2, 4, 1), objectives.logit(0))
    options = {"key": KEY, "num_steps": 30, "init": "blank", "optimizer": ADAM}
    asleep = jv.maximize_activation(*arguments, **options, **PLAIN)
    awake = jv.maximize_activation(*arguments, **options, **PLAIN | {"redirected_steps": 10})
    assert float(asleep.scores[0]) == 0.0
    assert float(awake.scores[0]) > 1.0


def test_normalised_gradients_make_the_scale_of_the_objective_irrelevant():
    w = jax.random.normal(jax.random.key(1), (4, 1))
    sgd = optax.sgd(0.5)
    small, large = (
        jv.maximize_activation(
            linear,
            c * w,
            (2, 2, 1),
            objectives.logit(0),
            key=KEY,
            num_steps=3,
            optimizer=sgd,
            normalize_gradient=True,
            **PLAIN,
        ).images
        for c in (1e-3, 1e3)
    )
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_errors_come_before_work(small):
    apply_fn, params = small
    climb = lambda objective, shape=(8, 8, 2), **options: jv.maximize_activation(
        apply_fn, params, shape, objective, key=KEY, **options
    )
    unit = objectives.channel("deep", 0)
    for told, call in (
        (
            r"unit must be in \[0, 3\), for layer 'deep' has shape",
            lambda: climb(objectives.channel("deep", 3)),
        ),
        ("no layer 'deeep'; the nearest are 'deep'", lambda: climb(objectives.channel("deeep", 0))),
        (r"shape must be \(H, W, C\)", lambda: climb(unit, (8, 8))),
        (
            "objective is for 2 images, shape for 3",
            lambda: climb(objectives.channel("deep", [0, 1]), (3, 8, 8, 2)),
        ),
        ("chunk_size must divide the number of images, 1", lambda: climb(unit, chunk_size=2)),
        ("num_steps must be at least 1", lambda: climb(unit, num_steps=0)),
        ("num_frames must be at most num_steps", lambda: climb(unit, num_steps=2, num_frames=3)),
        ("init must be 'noise' or 'blank'; got 'grey'", lambda: climb(unit, init="grey")),
        (r"must take x of shape \(1, 8, 8, 3\)", lambda: climb(unit, (8, 8, 3))),
        (
            "cannot start from a given image",
            lambda: climb(unit, init=jnp.zeros((8, 8, 2)), parametrization=parametrizations.cppn()),
        ),
        (
            "depend on each other",
            lambda: climb(objectives.diversity("deep"), (2, 8, 8, 2), chunk_size=1),
        ),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError, match="objective must be an Objective; got 'deep'"):
        climb("deep")
    with pytest.raises(TypeError, match="Call the factory"):
        climb(unit, parametrization=parametrizations.pixels)


def test_a_climb_has_a_gradient():
    w = 0.3 * jax.random.normal(jax.random.key(2), (12, 1))
    adam = optax.adam(0.05, eps_root=1e-8)
    climb = lambda w: jv.maximize_activation(
        bent, w, (2, 2, 3), objectives.logit(0), num_steps=3, optimizer=adam, key=KEY, **PLAIN
    ).scores.sum()  # fmt: skip
    slope = jax.grad(climb)(w)
    change = (climb(w + 1e-2 * slope) - climb(w - 1e-2 * slope)) / 2e-2
    np.testing.assert_allclose(change, (slope**2).sum(), rtol=0.02)
