"""The affine beginning of a model: where it ends, and that both parts together are the model."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxviz as jv
from jaxviz.graph.affine import affine_start


def _image(*shape):
    return jax.random.normal(jax.random.key(3), shape)


def _normed(params, x):
    kernel, scale = params
    y = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu((y - 0.3) * scale[None, None, None] + 1).mean((1, 2))


NETS = {
    # What a model is made of, and the shapes where it stops being affine.
    "normed": (_normed, (_image(3, 3, 2, 5), _image(5)), _image(2, 8, 8, 2), [(2, 4, 4, 5)]),
    "twice": (lambda w, x: jnp.tanh(x @ w) + x[:, :1] ** 2, _image(4, 3), _image(2, 4), None),
    "linear": (lambda w, x: (x - 1) @ w, _image(4, 3), _image(2, 4), [(2, 3)]),
    "bent_at_once": (lambda w, x: jnp.tanh(x) @ w, _image(4, 3), _image(2, 4), [(2, 4)]),
    "no_layer": (lambda w, x: jnp.sin(2 * x + w), _image(1, 4), _image(2, 4), [(2, 4)]),
    "product": (lambda w, x: (lambda y: y * y)(x @ w), _image(4, 3), _image(2, 4), [(2, 3)]),
    "chosen": (
        lambda w, x: jnp.where(jnp.arange(4)[None] > 1, x, 2 * x) @ w / (1 + w.sum() ** 2),
        _image(4, 3),
        _image(2, 4),
        [(2, 3)],
    ),
    "divisor": (lambda w, x: 1 / (x @ w + 9), _image(4, 3), _image(2, 4), [(2, 3)]),
}


@pytest.mark.parametrize("name", NETS)
def test_the_parts_are_the_model_and_the_start_is_affine(name):
    net, params, x, shapes = NETS[name]
    parts = affine_start(net, params, x)
    values = parts.start(params, x)
    if shapes is not None:
        assert [v.shape for v in values] == shapes
    chex.assert_trees_all_close(parts.rest(params, values), net(params, x), rtol=1e-6)
    half = parts.start(params, (x + 3) / 2)
    ends = parts.start(params, jnp.full_like(x, 3))
    chex.assert_trees_all_close(
        half, [(a + b) / 2 for a, b in zip(values, ends, strict=True)], rtol=1e-5, atol=1e-6
    )


def test_a_value_that_is_read_again_is_kept():
    net, params, x, _ = NETS["twice"]
    assert [v.shape for v in affine_start(net, params, x).start(params, x)] in (
        [(2, 3), (2, 1)],
        [(2, 1), (2, 3)],
    )


def test_a_start_that_costs_little_stays():
    net, params, x, _ = NETS["normed"]
    kept = affine_start(net, params, x, 1e3).start(params, x)
    assert [v.shape for v in kept] == [x.shape]


def test_integer_leaves_and_conversions():
    def net(w, x):
        return (
            jnp.tanh((x["a"].astype(jnp.bfloat16) @ w).astype(jnp.float32))
            + x["n"].astype(jnp.float32)[:, None]
        )

    x = {"a": _image(2, 4), "n": jnp.array([1, 2])}
    w = _image(4, 3).astype(jnp.bfloat16)
    parts = affine_start(net, w, x)
    values = parts.start(w, x)
    assert [v.shape for v in values] == [(2, 4)]  # rounding is not linear
    chex.assert_trees_all_equal(parts.rest(w, values), net(w, x))
    out = jv.integrated_gradients(net, w, x, 0, num_steps=3)
    chex.assert_trees_all_equal(out["n"], jnp.zeros(2), strict=True)


def test_batch_norm_belongs_to_the_start():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
            return nn.Dense(2)(nn.relu(x).mean((1, 2)))

    x = _image(2, 6, 6, 3)
    params = Net().init(jax.random.key(0), x)
    assert [v.shape for v in affine_start(Net().apply, params, x).start(params, x)] == [
        (2, 6, 6, 4)
    ]


def test_paths_and_noise_over_it_equal_the_sum_of_gradients():
    net, params, x, _ = NETS["normed"]
    gradient = lambda x: jax.grad(lambda x: net(params, x)[:, 1].sum())(x)
    found = jv.integrated_gradients(net, params, x, 1, num_steps=4, rule="middle", chunk_size=3)
    by_hand = x * sum(gradient(x * t) for t in (0.125, 0.375, 0.625, 0.875)) / 4
    chex.assert_trees_all_close(found, by_hand, rtol=1e-5, atol=1e-6)
    # One baseline: its draws lie anywhere on the line, but a piecewise linear net adds up.
    draws = {"key": jax.random.key(0), "num_samples": 6, "chunk_size": 4}
    shap = jv.expected_gradients(net, params, x, 1, baselines=x[:1] * 0 - 9, **draws)
    two = jv.expected_gradients(net, params, x, 1, baselines=x[:2] * 0 - 9, **draws)
    chex.assert_trees_all_close(shap, two, rtol=1e-5, atol=1e-6)
