"""Score-CAM and Ablation-CAM: against pytorch-grad-cam and plain loops, and what they run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

from jaxviz.attribution.cam_perturb import ablation_cam, is_cam, score_cam, ss_cam
from jaxviz.graph.split import activations, split

RAW = {"relu": False, "resize": False}


@pytest.mark.parametrize(("method", "name"), [(score_cam, "score"), (ablation_cam, "ablation")])
def test_raw_maps_agree_with_pytorch_grad_cam(method, name):
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        out = method(small_net.apply_fn, params, x, target, layer="relu2", **RAW)
        # Its scores and weights are float32; the differences of Ablation-CAM lose a digit more.
        close(out, small_net.peers()[f"pgc_{name}cam"], 1e-5)


def test_score_cam_agrees_with_a_loop_over_channels():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    a = np.asarray(activations(small_net.apply_fn, params, x, ["conv2"])["conv2"])
    places = np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)  # half-pixel centres, edges held
    low = np.minimum(places.astype(int), 4)
    share = places - low
    weights = np.zeros((6, 12))
    weights[low, np.arange(12)] += 1 - share
    weights[low + 1, np.arange(12)] += share
    scores = []
    for k in range(8):
        mask = np.einsum("nij,ip,jq->npq", a[..., k], weights, weights)
        mask -= mask.min((1, 2), keepdims=True)
        mask /= mask.max((1, 2), keepdims=True)
        outputs = small_net.apply_fn(params, x * mask[..., None].astype(np.float32))
        scores.append(np.asarray(outputs)[np.arange(3), target])
    exp = np.exp(np.array(scores, np.float64))
    expected = np.einsum("nhwk,kn->nhw", a, exp / exp.sum(0))
    out = score_cam(small_net.apply_fn, params, x, target, layer="conv2", **RAW)
    close(out, expected, 1e-5)


@pytest.mark.parametrize(
    "method",
    [
        score_cam,
        functools.partial(ss_cam, key=jax.random.key(0), num_samples=2),
        functools.partial(is_cam, num_steps=2),
    ],
)
def test_fewer_channels_are_those_that_vary_most(method):
    params, x, target, *_ = small_net.inputs(jnp.float32)
    explain = functools.partial(method, small_net.apply_fn, params, x, target, layer="conv2", **RAW)
    close(explain(num_channels=8), whole := explain(), 1e-6)
    close(explain(num_channels=99), whole, 1e-6)
    a = activations(small_net.apply_fn, params, x, ["conv2"])["conv2"]
    most = jnp.argmax(a.std((1, 2)), axis=-1)
    only = jnp.take_along_axis(a, most[:, None, None, None], axis=-1)[..., 0]
    close(explain(num_channels=1), only, 1e-6)  # one channel has all of the softmax


@pytest.mark.parametrize("method", [score_cam, ablation_cam])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_change_nothing(method, chunk_size):
    params, x, target, *_ = small_net.inputs(jnp.float32)
    explain = functools.partial(method, small_net.apply_fn, params, x, target, layer="relu2")
    close(explain(chunk_size=chunk_size), explain(chunk_size=8), 1e-5)


def residual(w, x):
    """A net whose tail needs more than the layer: the carry goes round it."""
    y = jax.nn.relu(x @ w)
    return (y + x @ w).mean((1, 2))


def test_ablation_past_a_skip_connection():
    w, x = (
        jax.random.normal(jax.random.key(0), (3, 4)),
        jax.random.normal(jax.random.key(1), (2, 5, 6, 3)),
    )
    head, tail = split(residual, w, x, "relu_0")
    a, carry = head(w, x)
    assert len(carry) == 1
    whole = tail((w, carry), a)[:, 1]
    weights = [(whole - tail((w, carry), a.at[..., k].set(0))[:, 1]) / whole for k in range(4)]
    expected = sum(wk[:, None, None] * a[..., k] for k, wk in enumerate(weights))
    out = ablation_cam(residual, w, x, 1, layer="relu_0", **RAW)
    chex.assert_trees_all_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [score_cam, ablation_cam])
def test_reshape_finds_the_channels(method):
    def first(params, x):  # the same net, its layer laid out [N, C, H, W]
        x = x @ params
        x = jax.nn.relu(x.transpose(0, 3, 1, 2))
        return x.mean((2, 3))

    def last(params, x):
        return jax.nn.relu(x @ params).mean((1, 2))

    w, x = (
        jax.random.normal(jax.random.key(0), (3, 4)),
        jax.random.normal(jax.random.key(1), (2, 5, 6, 3)),
    )
    moved = method(first, w, x, 1, layer="relu_0", reshape=lambda a: a.transpose(0, 2, 3, 1))
    plain = method(last, w, x, 1, layer="relu_0")
    chex.assert_trees_all_close(moved, plain, rtol=1e-4, atol=1e-5)


def test_class_is_chosen_at_the_clean_input():
    params, x, *_ = small_net.inputs(jnp.float32)
    top = small_net.apply_fn(params, x).argmax(1)
    for method in (score_cam, ablation_cam):
        explain = functools.partial(method, small_net.apply_fn, params, x, layer="relu2")
        close(explain(), explain(top), 1e-6)


def test_flat_maps_give_no_nan():
    f = lambda w, x: jax.nn.relu(x @ w).mean((1, 2))
    w = jnp.array([[0.0, 1.0], [0.0, 1.0]])  # the first channel is zero everywhere
    out = score_cam(f, w, jnp.ones((1, 3, 3, 2)), 1, layer="relu_0")
    assert jnp.isfinite(out).all()


def test_ablation_runs_the_tail_only():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    flops = lambda f, *a: jax.jit(f).lower(*a).compile().cost_analysis()["flops"]
    head, tail = split(small_net.apply_fn, params, x, "relu2")
    a, carry = head(params, x)
    parts = flops(head, params, x) + 9 * flops(tail, (params, carry), a)
    explain = lambda p, x: ablation_cam(
        small_net.apply_fn, p, x, target, layer="relu2", chunk_size=8, **RAW
    )
    assert flops(explain, params, x) < 1.5 * parts


def _largest(jaxpr):
    """Numbers in the largest array that a jaxpr makes, in its loops and branches too."""
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    leaves = [leaf for e in jaxpr.eqns for leaf in jax.tree.leaves(e.params)]
    inner = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return max([*sizes, *(_largest(j) for j in inner if hasattr(j, "eqns"))], default=0)


@pytest.mark.parametrize("method", [score_cam, ablation_cam])
def test_memory_is_that_of_a_chunk(method):
    # Of the program as it is written: what XLA fuses, and never holds, differs between versions.
    def f(w, x):
        return jax.nn.relu(x @ w).mean((1, 2)) @ w.T

    w, x = jnp.ones((3, 64)), jnp.ones((1, 32, 32, 3))

    def most(chunk_size):
        explain = lambda w, x: method(f, w, x, 1, layer="relu_0", chunk_size=chunk_size)
        return _largest(jax.make_jaxpr(explain)(w, x).jaxpr)

    layer = 64 * 32 * 32  # numbers in one copy
    assert most(64) == 64 * layer
    assert most(2) == 2 * layer


def test_errors_say_what_came():
    params, x, *_ = small_net.inputs(jnp.float32)
    with pytest.raises(ValueError, match=r"score_cam: x must be one array"):
        score_cam(lambda _, x: x["a"].mean((1, 2)), None, {"a": x}, 0)
    with pytest.raises(ValueError, match=r"num_channels must be at least 1; got 0"):
        score_cam(small_net.apply_fn, params, x, 0, num_channels=0)
    with pytest.raises(ValueError, match=r"chunk_size must be at least 1.*got 0"):
        ablation_cam(small_net.apply_fn, params, x, 0, chunk_size=0)
