"""`from_equinox`: what its modules hold, ask for and wrap; oracle: the module under `jax.vmap`."""

from collections.abc import Callable

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxviz

KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture(autouse=True)
def _promotion():
    """Equinox adds flags and numbers of several kinds."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Block(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    activation: Callable

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
        self.norm, self.drop = eqx.nn.BatchNorm(4, "batch", mode="ema"), eqx.nn.Dropout(0.5)
        self.activation = jax.nn.relu

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.conv(x), state)
        return self.drop(self.activation(x), key=key), state


class Net(eqx.Module):
    blocks: list[Block]
    out: eqx.nn.Linear

    def __init__(self, key):
        self.blocks, self.out = [Block(key)], eqx.nn.Linear(4, 3, key=key)

    def __call__(self, x, state, *, key):
        for block in self.blocks:
            x, state = eqx.filter_checkpoint(block)(x, state, key=key)
        return eqx.filter_jit(self.out)(x.mean((1, 2))), state


def trained():
    model, state = eqx.nn.make_with_state(Net)(KEYS[0])
    x = jax.random.normal(KEYS[1], (5, 3, 6, 6)) * 2 + 1
    call = lambda x: model(x, state, key=KEYS[2])
    _, state = jax.vmap(call, axis_name="batch", out_axes=(0, None))(x)
    return model, state, x


def test_state_randomness_and_wrapped_modules():
    model, state, x = trained()
    kept = jax.tree.map(jnp.array, eqx.filter(model, eqx.is_array))
    apply_fn, params = jaxviz.from_equinox(model, state)
    still = eqx.nn.inference_mode(model)
    score = lambda x: jax.vmap(lambda x: still(x, state, key=None)[0])(x)
    chex.assert_trees_all_close(apply_fn(params, x), score(x), rtol=1e-5)
    expected = jax.grad(lambda x: score(x)[:, 1].sum())(x)
    chex.assert_trees_all_close(
        jaxviz.gradient(apply_fn, params, x, 1), expected, rtol=1e-4, atol=1e-7
    )
    names = [layer.name for layer in jaxviz.layers(apply_fn, params, x)]
    assert names == [
        *(f"blocks/0/{name}" for name in ("conv", "norm", "relu_0", "drop")),
        *("blocks/0", "mean_0", "out"),
    ]
    assert jaxviz.grad_cam(apply_fn, params, x, 1, layer="blocks/0/conv").shape == (5, 6, 6)
    again = jaxviz.from_equinox(eqx.tree_at(lambda m: m.out.bias, model, jnp.ones(3)), state)
    assert again[0] == apply_fn
    assert hash(again[0]) == hash(apply_fn)
    assert jax.tree.structure(again[1]) == jax.tree.structure(params)
    chex.assert_trees_all_equal(kept, eqx.filter(model, eqx.is_array))
    assert type(model.blocks[0]) is Block
    assert not model.blocks[0].drop.inference


def test_several_inputs_and_attention():
    class Two(eqx.Module):
        attention: eqx.nn.MultiheadAttention

        def __call__(self, series, mask):
            return self.attention(series, series, series, mask=mask).mean(0)

    module = Two(eqx.nn.MultiheadAttention(2, 4, key=KEYS[0]))
    series, mask = (
        jax.random.normal(KEYS[1], (2, 3, 4)),
        jnp.ones((2, 3, 3), bool).at[:, 0, 1].set(False),
    )
    expected = jax.vmap(module)(series, mask)
    apply_fn, params = jaxviz.from_equinox(module)
    chex.assert_trees_all_close(apply_fn(params, {"series": series, "mask": mask}), expected)
    chex.assert_trees_all_close(apply_fn(params, (series, mask)), expected)
    listed = jaxviz.layers(apply_fn, params, (series, mask))
    assert {"attention/query_proj", "attention"} <= {layer.name for layer in listed}
    head, tail = jaxviz.split(apply_fn, params, (series, mask), "attention/value_proj")
    a, carry = head(params, (series, mask))
    assert a.shape == (2, 3, 4)
    chex.assert_trees_all_close(tail((params, carry), a), expected, rtol=1e-5)


def test_what_is_refused():
    model, state = eqx.nn.make_with_state(Net)(KEYS[0])
    plain = eqx.nn.Linear(3, 2, key=KEYS[0])
    for run, told in (
        (lambda: jaxviz.from_equinox(model), "with state needs it; got none.*make_with_state"),
        (lambda: jaxviz.from_equinox(plain, state), "state must be None, for the model has none"),
        (lambda: jaxviz.from_equinox(model, {}), "must be an eqx.nn.State; got dict"),
        (lambda: jaxviz.from_equinox(Net), "got the class Net. Make one"),
        (lambda: jaxviz.from_equinox(nnx.Linear(3, 2, rngs=nnx.Rngs(0))), "got Linear.*from_nnx"),
        (lambda: jaxviz.from_nnx(plain), "from_nnx: module must be.*got Linear.*from_equinox"),
        (lambda: jaxviz.gradient(plain, None, jnp.ones((1, 3)), 0), "from_equinox"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            run()
    apply_fn, _ = jaxviz.from_equinox(plain)
    other = eqx.nn.Linear(3, 2, use_bias=False, key=KEYS[0])
    for wrong, came in (
        (None, "got NoneType"),
        ({"params": other, "state": None}, "got a Linear of another structure"),
    ):
        with pytest.raises(ValueError, match=f"params of its apply_fn must be.*{came}"):
            jaxviz.gradient(apply_fn, wrong, jnp.ones((1, 3)), 0)
