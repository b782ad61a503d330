"""The full gradient: complete on nets of every make, and the bias-gradients by hand."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from flax import linen as nn
from small_net import close

from jaxviz.attribution.full_grad import full_grad, full_gradient
from jaxviz.attribution.gradient import gradient
from jaxviz.graph.split import split
from jaxviz.models import apply_fn


class Residual(nn.Module):
    """Batch norm, a skip connection, average and max pooling, a scaled input, two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = (x - 0.4) / 0.2
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        y = nn.Conv(6, (3, 3))(x)
        y = nn.leaky_relu(nn.BatchNorm(use_running_average=True)(y), 0.2)
        x = nn.max_pool(x + y, (2, 2), (2, 2))
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4.0
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.relu(nn.Dense(7)(x)))


def residual():
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 2))
    net = Residual()
    variables = jax.jit(net.init)(jax.random.key(1), x)
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [a + 0.3 * jax.random.uniform(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return apply_fn(net), jax.tree.unflatten(structure, noise), x


def scanned(params, x):
    """The same layer three times over, its bias added in a loop."""
    step = lambda x, _: (jax.nn.relu(x @ params["w"] + params["b"][None, :]), None)
    return jax.lax.scan(step, x, None, 3)[0]


def smooth(params, x):
    x = jnp.tanh(x @ params["w"] + params["b"][None, :])
    return jax.nn.gelu(x @ params["w"] - 0.3)


def dense():
    params = {"w": jax.random.normal(jax.random.key(0), (4, 4)), "b": jnp.arange(4.0) / 4}
    return params, jax.random.normal(jax.random.key(1), (3, 4))


NETS = {
    "plain": lambda: (small_net.apply_fn, *small_net.inputs(jnp.float32)[:2]),
    "residual": residual,
    "scanned": lambda: (scanned, *dense()),
    "smooth": lambda: (smooth, *dense()),
}


@pytest.mark.parametrize("name", NETS)
def test_terms_sum_to_the_score(name):
    net, params, x = NETS[name]()
    scores = np.asarray(jax.jit(net)(params, x))
    for target in (0, 2):
        terms = full_gradient(net, params, x, target)
        total = sum(np.asarray(a).reshape(len(x), -1).sum(1) for a in jax.tree.leaves(terms))
        chex.assert_trees_all_close(total, scores[:, target], rtol=1e-4, atol=1e-4)


def test_bias_gradients_are_those_at_the_layers():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    terms = full_gradient(small_net.apply_fn, params, x, target)
    assert len(terms.biases) == 4
    for i, layer in enumerate(("conv1", "conv2")):
        head, tail = split(small_net.apply_fn, params, x, layer)
        a, carry = head(params, x)
        g = gradient(tail, (params, carry), a, target)
        close(terms.biases[i], params[f"{layer}/bias"][None, None, None, :] * g, 1e-5)


def test_map_adds_up_the_layers_that_have_places():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    terms = full_gradient(small_net.apply_fn, params, x, target)
    out = full_grad(small_net.apply_fn, params, x, target)
    chex.assert_shape(out, (3, 12, 12))
    expected = np.abs(terms.inputs).sum(-1) + np.abs(terms.biases[0]).sum(-1)
    deep = jax.image.resize(jnp.abs(terms.biases[1]).sum(-1), (3, 12, 12), "linear")
    close(out, expected + np.asarray(deep), 1e-5)
    chex.assert_shape(full_grad(small_net.apply_fn, params, x, target, resize=(5, 4)), (3, 5, 4))


def test_batch_norm_counts_once():
    # (x - mean) * scale + bias: its two additions, -mean * scale * g and bias * g, are the term.
    terms = full_gradient(*residual(), 0)
    shapes = [a.shape[1:] for a in terms.biases]
    # input shift; norm, conv bias and norm at 8x8; two dense biases
    assert shapes.count((8, 8, 6)) == 5
    assert shapes.count((8, 8, 2)) == 1
    assert sum(math.prod(s) == 7 for s in shapes) == 1


def test_errors_say_what_came():
    params, x = dense()
    with pytest.raises(ValueError, match=r"full_grad: x must be \[N, \*space, C\].*\(3, 4\)"):
        full_grad(scanned, params, x, 0)


def test_biases_of_layers_with_channels_first_are_placed_where_they_are():
    keys = jax.random.split(jax.random.key(0), 4)
    p = {
        "conv": jax.random.normal(keys[0], (4, 3, 3, 3)),
        "bias": jax.random.normal(keys[1], (4,)),
        "dense": jax.random.normal(keys[2], (4, 2)),
    }

    def first(p, x):  # [N, H, W, C], turned inside
        x = jax.lax.conv(x.transpose(0, 3, 1, 2), p["conv"], (1, 1), "SAME")
        return jax.nn.relu(x + p["bias"][None, :, None, None]).mean((2, 3)) @ p["dense"]

    def last(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel = p["conv"].transpose(2, 3, 1, 0)
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(x + p["bias"][None, None, None]).mean((1, 2)) @ p["dense"]

    x = jax.random.normal(keys[3], (2, 6, 4, 3))
    of_one = lambda p, x: jax.vmap(lambda x: first(p, x[None])[0])(x)  # [N, 1, C, H, W] inside
    wanted = full_grad(last, p, x, 1)
    for net in (first, of_one):
        chex.assert_trees_all_close(full_grad(net, p, x, 1), wanted, rtol=1e-4, atol=1e-5)

    one_by_one = lambda p, x: jax.lax.map(lambda x: first(p, x[None])[0], x)
    with pytest.raises(ValueError, match=r"full_grad: .* a loop over examples at .*jax\.vmap"):
        full_grad(one_by_one, p, x, 1)
