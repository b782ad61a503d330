"""Guided and blur integrated gradients: against slow NumPy, and by completeness."""

import functools
import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxviz.attribution import path_bent
from jaxviz.attribution.path import integrated_gradients
from jaxviz.attribution.path_bent import blur_integrated_gradients, guided_integrated_gradients

smooth = lambda w, x: jnp.tanh(x.reshape(x.shape[0], -1) @ w) ** 2
straight = lambda w, x: jnp.maximum(x.reshape(x.shape[0], -1) @ w[0], 0) @ w[1]


def slow_path(gradient, x, start, num_steps, fraction, max_distance):
    """Algorithm 1 of the paper for one example, one group of inputs at a time: where steps end."""
    at, ends = start.copy(), [start.copy()]
    whole, way = np.abs(x - start).sum(), x - start
    for step in range(num_steps):
        rank = np.abs(gradient(at))
        share = (step + 1) / num_steps
        low = start + max(share - max_distance, 0) * way
        high = start + min(share + max_distance, 1) * way
        gamma = math.inf
        while gamma > 1:
            behind = np.abs(at - start) < np.abs(low - start) - 1e-12
            at[behind] = low[behind]
            distance = np.abs(x - at).sum()
            if math.isclose(distance, whole * (1 - share), rel_tol=1e-9, abs_tol=1e-9):
                break
            rank[np.isclose(at, high, rtol=0, atol=1e-12)] = np.inf
            chosen = rank <= np.sort(rank)[math.floor(fraction * (rank.size - 1))]
            chosen &= rank < np.inf
            gain = np.abs(high - at)[chosen].sum()
            gamma = (distance - whole * (1 - share)) / gain if gain > 0 else math.inf
            at[chosen] += min(gamma, 1) * (high - at)[chosen]
        ends.append(at.copy())
    return np.stack(ends)


def line_integral(gradient, ends, num=200):
    """Of a gradient along straight pieces, by many midpoints of each."""
    where = ((np.arange(num) + 0.5) / num)[:, None, None]
    pieces = ends[1:] - ends[:-1]
    slopes = gradient((ends[:-1] + where * pieces).reshape(-1, ends.shape[1]))
    return (slopes.reshape(num, *pieces.shape).mean(0) * pieces).sum(0)


@pytest.mark.parametrize("net", [smooth, straight])
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_guided_is_the_integral_along_the_path_as_written(net, fraction):
    rng = np.random.default_rng(3)
    w = rng.normal(size=(9, 4))
    w[4:6] = 0  # ties: their gradients are zero
    w = w if net is smooth else (w, rng.normal(size=(4, 4)))
    x, start = rng.normal(size=(2, 2, 9))
    start[:, 7] = x[:, 7]  # an input that has nowhere to go
    score = jax.jit(jax.grad(lambda x, w: net(w, x)[:, 1].sum()))
    with jax.enable_x64(True):
        w = jax.tree.map(jnp.asarray, w)
        options = {"num_steps": 80, "fraction": fraction, "max_distance": 0.1}
        out = guided_integrated_gradients(
            net, w, jnp.asarray(x), 1, baseline=jnp.asarray(start), **options
        )
        for i in range(2):
            every = lambda at: np.array(score(jnp.asarray(at), w))
            one = lambda at, every=every: every(at[None])[0]
            ends = slow_path(one, x[i], start[i], 80, fraction, 0.1)
            slow = line_integral(every, ends)
            # Two kinks on one step, and curves: of second order in its length.
            np.testing.assert_allclose(out[i], slow, atol=0.02 * np.abs(slow).max())


def test_guided_without_leeway_is_the_straight_path():
    x = jax.random.normal(jax.random.key(0), (2, 9))
    w = jax.random.normal(jax.random.key(1), (9, 3))
    bent = guided_integrated_gradients(smooth, w, x, 0, num_steps=100, max_distance=0.0)
    chex.assert_trees_all_close(bent, integrated_gradients(smooth, w, x, 0), atol=1e-3)


def test_long_rows_go_one_after_another_to_the_same_ends():
    x = jax.random.normal(jax.random.key(0), (2, 2**15)) * jnp.array([[1.0], [5.0]])
    w = jax.random.normal(jax.random.key(1), (2**15, 2)) / 2**7
    out = guided_integrated_gradients(smooth, w, x, 1, num_steps=3, max_distance=0.1)
    alone = [
        guided_integrated_gradients(smooth, w, row[None], 1, num_steps=3, max_distance=0.1)[0]
        for row in x
    ]
    chex.assert_trees_all_close(out, jnp.stack(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or len(jax.local_devices()) > 1,
    reason="elsewhere the whole batch goes at once",
)
def test_examples_go_along_their_paths_some_at_a_time(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    w = jax.random.normal(jax.random.key(1), (16, 3)) / 4
    target = jnp.array([0, 1, 2, 0, 1, 2])
    run = functools.partial(guided_integrated_gradients, num_steps=5, max_distance=0.1)
    both = [run(smooth, w, x, target, baseline=0.1 * x[::-1]), run(smooth, w, x, 1)]
    monkeypatch.setattr(path_bent, "_ALIVE", 3 * 16)
    assert path_bent._together(smooth, w, x, target) == 3
    assert path_bent._together(smooth, w, x[:5], 0) == 5  # in no equal parts
    assert path_bent._together(lambda w, x: smooth(w, x - x.mean()), w, x, 0) == 6
    alone = lambda w, x: smooth(w, x)  # another function, to be traced anew
    again = [run(alone, w, x, target, baseline=0.1 * x[::-1]), run(alone, w, x, 1)]
    chex.assert_trees_all_close(again, both, rtol=1e-5, atol=1e-6)


def test_long_axes_are_blurred_in_halves(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 2))
    blurred = lambda: jax.jit(lambda x, width: path_bent._blur(x, width, 4.0))(x, jnp.float32(1.5))
    whole = blurred()
    monkeypatch.setattr(path_bent, "_SHORT", 0)
    chex.assert_trees_all_close(blurred(), whole, atol=1e-6)


MASK = np.arange(6) < np.array([[4], [6]])  # the first sequence is padded
MASKED = {
    "maximum": lambda w, x: jnp.where(MASK[..., None], x @ w, -jnp.inf).max(1),
    "huge": lambda w, x: jnp.where(MASK[..., None], x @ w, jnp.finfo(x.dtype).min).max(1),
    "minimum": lambda w, x: jnp.where(MASK[..., None], x @ w, jnp.inf).min(1),
    "softmax": lambda w, x: (jax.nn.softmax(x @ w, 1, where=MASK[..., None]) * x[..., :3]).sum(1),
}


@pytest.mark.parametrize("name", MASKED)
def test_guided_is_complete_behind_maxima_that_the_path_slides_along(name):
    """Who does not win is moved until it wins: no step starts where its move has a gradient."""
    x, w = (jax.random.normal(jax.random.key(k), s) for k, s in enumerate([(2, 6, 4), (4, 3)]))
    net = MASKED[name]
    out = guided_integrated_gradients(net, w, x, 1, num_steps=100)
    gained = net(w, x)[:, 1] - net(w, 0 * x)[:, 1]
    chex.assert_trees_all_close(out.sum((1, 2)), gained, rtol=0.01)
    assert not out[0, 4:].any()


@pytest.mark.parametrize("seed", range(3))
def test_guided_is_complete(seed):
    keys = jax.random.split(jax.random.key(seed))
    x, w = jax.random.normal(keys[0], (3, 4, 4, 1)), 0.3 * jax.random.normal(keys[1], (16, 3))
    out = guided_integrated_gradients(smooth, w, x, 2, num_steps=400)
    # Each step sums to what is gained on it: float32's rounding of 400 of them is left.
    chex.assert_trees_all_close(out.sum((1, 2, 3)), smooth(w, x)[:, 2], atol=1e-4)


def slow_blur(x, sigma):
    if sigma == 0:
        return x
    return scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="constant", truncate=20)


def test_blur_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 6, 5, 2)), 0.2 * rng.normal(size=(60, 3))
    h, sigmas = 1e-4, np.arange(12) * 4 / 12
    score = jax.jit(jax.grad(lambda x, w: smooth(w, x[None])[0, 1]))
    with jax.enable_x64(True):
        slow = np.zeros_like(x[0])
        for sigma in sigmas:
            speed = (slow_blur(x[0], sigma + h) - slow_blur(x[0], max(sigma - h, 0))) / (2 * h)
            blurred = jnp.asarray(slow_blur(x[0], sigma))
            slow -= 4 / 12 * speed * np.asarray(score(blurred, jnp.asarray(w)))
        options = {"max_sigma": 4.0, "num_steps": 12, "rule": "left"}
        out = blur_integrated_gradients(smooth, jnp.asarray(w), jnp.asarray(x), 1, **options)
        # Central differences with h = 1e-4: an error of h^2 = 1e-8 times a third derivative.
        chex.assert_trees_all_close(out[0], slow, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 7, 1), (1, 3, 4, 3, 2)])
def test_blur_is_complete_in_any_number_of_dimensions(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    w = 0.3 * jax.random.normal(jax.random.key(1), (math.prod(shape[1:]), 3))
    out = blur_integrated_gradients(smooth, w, x, 1, max_sigma=30.0, num_steps=200)
    axes = (0,) + (30,) * (len(shape) - 2) + (0,)
    lost = scipy.ndimage.gaussian_filter(np.asarray(x), axes, mode="constant", truncate=8)
    gained = smooth(w, x)[:, 1] - smooth(w, jnp.asarray(lost))[:, 1]
    chex.assert_trees_all_close(out.reshape(shape[0], -1).sum(1), gained, atol=1e-3)


def test_chunks_change_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 2))
    w = 0.3 * jax.random.normal(jax.random.key(1), (60, 3))
    outs = [blur_integrated_gradients(smooth, w, x, 1, num_steps=10, chunk_size=c) for c in (1, 4)]
    chex.assert_trees_all_close(*outs, atol=1e-5)


def test_errors_say_what_came():
    x = jnp.ones((1, 4))
    w = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"guided_integrated_gradients: x must be one array"):
        guided_integrated_gradients(lambda w, x: x["a"] @ w, w, {"a": x}, 0)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\].*got 0.0"):
        guided_integrated_gradients(smooth, w, x, 0, fraction=0.0)
    with pytest.raises(ValueError, match=r"num_steps must be at least 1; got 0"):
        guided_integrated_gradients(smooth, w, x, 0, num_steps=0)
    with pytest.raises(ValueError, match=r"got x \(1, 4\).*channel axis"):
        blur_integrated_gradients(smooth, w, x, 0)
    with pytest.raises(ValueError, match=r"max_sigma must be above 0; got 0.0"):
        blur_integrated_gradients(smooth, w, x[..., None], 0, max_sigma=0.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("method", [guided_integrated_gradients, blur_integrated_gradients])
def test_half_precision_paths_are_those_of_single(method, dtype):
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1)).astype(dtype)
    net = lambda _, x: (x.astype(jnp.float32) ** 2).sum((1, 2))
    options = {"num_steps": 300} | ({"max_sigma": 8.0} if "blur" in method.__name__ else {})
    exact = method(net, None, x.astype(jnp.float32), 0, **options)
    out = method(net, None, x, 0, **options)
    assert out.dtype == dtype
    off = jnp.abs(out.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
    assert off < 6 * float(jnp.finfo(dtype).eps)


def test_an_example_without_a_way_has_no_path_and_no_other_is_touched():
    net = lambda _, x: jax.nn.relu(x + 1).sum(1, keepdims=True)
    x = jnp.array([[1.0, jnp.nan], [1.0, 2.0]])
    out = guided_integrated_gradients(net, None, x, 0, num_steps=4)
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], [1, 2], rtol=1e-5)


def test_the_paths_of_pairs_library():
    """Their sums are of left ends: of first order in the steps, which ours are not."""
    folder = pathlib.Path(__file__).parent.parent / "reference"
    with np.load(folder / "bent_peers.npz") as peers, jax.enable_x64(True):
        x, w = jnp.asarray(peers["image"][None]), (peers["hidden"], peers["out"])
        net = lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w[0]) @ w[1][:, None]
        out = guided_integrated_gradients(net, w, x, 0, num_steps=200)[0]
        few, many, size = peers["guided/50"], peers["guided/400"], np.abs(out).max()
        limit = (8 * many - few) / 7
        assert np.abs(out - few).max() > 1e-2 * size
        np.testing.assert_allclose(out, limit, atol=2e-4 * size)  # of second order, both
        for steps in (100, 1600):
            options = {"max_sigma": 4.0, "num_steps": steps, "rule": "left"}
            out = blur_integrated_gradients(net, w, x, 0, **options)[0]
            # There the Gaussian ends at 4 sigma, where it is 3e-4 of its height.
            size = np.abs(out).max()
            np.testing.assert_allclose(out, peers[f"blur/{steps}"], atol=1e-3 * size)


def test_guided_inside_shard_map():
    """All that its loops carry says over which devices it varies."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    batch = jax.sharding.PartitionSpec("d")
    w, x = jax.random.normal(jax.random.key(0), (6, 2)), jnp.ones((2, 6))
    net = lambda w, x: jnp.tanh(x @ w)
    plain = lambda x: guided_integrated_gradients(net, w, x, 0, num_steps=4)
    mapped = jax.shard_map(plain, mesh=mesh, in_specs=batch, out_specs=batch)
    np.testing.assert_allclose(mapped(x), plain(x), rtol=1e-6)
