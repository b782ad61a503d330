"""`from_haiku`: each way to transform a function; oracle: the transformed function itself."""

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxviz

hk = pytest.importorskip("haiku")
KEY, X = jax.random.PRNGKey(0), jnp.arange(24.0).reshape(2, 12) / 24


@pytest.fixture(autouse=True)
def _promotion():
    """Haiku adds flags and numbers of several kinds."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Block(hk.Module):
    def __call__(self, x, is_training):
        x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="into")(x), is_training)
        x = jax.nn.relu(x)
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def function(x, is_training):
    return hk.Linear(3, name="out")(Block(name="block")(x, is_training))


def test_with_state_and_randomness():
    net = hk.transform_with_state(function)
    params, state = net.init(KEY, X, True)
    _, state = net.apply(params, state, KEY, X * 3, True)
    apply_fn, given = jaxviz.from_haiku(net, params, state)
    expected = net.apply(params, state, None, X, False)[0]
    chex.assert_trees_all_close(apply_fn(given, X), expected)
    score = lambda x: net.apply(params, state, None, x, False)[0][:, 1].sum()
    found = jaxviz.gradient(apply_fn, given, X, 1)
    chex.assert_trees_all_close(found, jax.grad(score)(X), rtol=1e-5)
    names = [layer.name for layer in jaxviz.layers(apply_fn, given, X)]
    assert names == ["block/into", "block/norm", "block/relu_0", "block", "out"]
    assert jaxviz.from_haiku(net, params, state)[0] == apply_fn


@pytest.mark.parametrize("without", [True, False])
def test_two_inputs(without):
    net = hk.transform(lambda a, b: hk.Linear(2)(a) * hk.Linear(2)(b))
    net = hk.without_apply_rng(net) if without else net
    params = net.init(KEY, X, X)
    rng = () if without else (KEY,)
    apply_fn, given = jaxviz.from_haiku(net, params)
    chex.assert_trees_all_close(apply_fn(given, (X, -X)), net.apply(params, *rng, X, -X))
    chex.assert_trees_all_close(apply_fn(given, {"b": -X, "a": X}), apply_fn(given, (X, -X)))
    assert [x.name for x in jaxviz.layers(apply_fn, given, (X, X))][:2] == ["linear", "linear_1"]


def test_stacked_layers_are_rows_and_what_lifts_their_weights_is_none():
    block = lambda x: x + jax.nn.relu(hk.Linear(3)(x))
    net = hk.transform(lambda x: hk.Linear(2)(hk.experimental.layer_stack(2)(block)(x)))
    x = jnp.ones((4, 3))
    apply_fn, given = jaxviz.from_haiku(net, net.init(KEY, x))
    found = jaxviz.layers(apply_fn, given, x)
    assert [layer.name for layer in found if layer.kind == "dense"] == [
        "linear[0]",
        "linear[1]",
        "linear",
    ]
    assert all(layer.shape[0] == 4 for layer in found)


def test_what_is_refused():
    net = hk.transform_with_state(function)
    params, state = net.init(KEY, X, True)
    plain = hk.transform(lambda x: hk.Linear(2)(x))
    multi = hk.multi_transform(lambda: (lambda x: x, lambda x: x))
    for arguments, told in (
        ((net, params), "transformed with state; got NoneType"),
        ((plain, params, state), "state must be None"),
        ((plain, None), "params must be the mapping that `init` gave; got NoneType"),
        ((multi, {}), "got several, of MultiTransformed. Choose one"),
        ((function, params), "got function. A plain function.*hk.transform"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"from_haiku: .*{told}"):
            jaxviz.from_haiku(*arguments)
    apply_fn, _ = jaxviz.from_haiku(net, params, state)
    with pytest.raises(ValueError, match=r"params of its apply_fn must be.*got dict"):
        jaxviz.gradient(apply_fn, params, X, 0)


def test_what_transform_gave_is_no_model():
    with pytest.raises(TypeError, match=r"saliency: apply_fn must be a function .* from_haiku\("):
        jaxviz.saliency(hk.transform(function), {}, X)
