"""Explanations of a layer's values: those of the function from there on, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz as jv

KEY = jax.random.key(0)
IDS = jnp.array([[3, 7, 9, 2], [1, 1, 5, 4]])


class Text(nn.Module):
    @nn.compact
    def __call__(self, ids):
        words = nn.Embed(12, 6, name="embed")(ids)
        hidden = jnp.tanh(nn.Dense(8, name="dense")(words)).mean(1)
        return nn.Dense(3, name="out")(hidden)


NET = Text().apply
PARAMS = Text().init(KEY, IDS)
WORDS = PARAMS["params"]["embed"]["embedding"]


def rest(a):
    """What comes after the embedding."""
    p = PARAMS["params"]
    hidden = jnp.tanh(a @ p["dense"]["kernel"] + p["dense"]["bias"][None, None]).mean(1)
    return (hidden @ p["out"]["kernel"] + p["out"]["bias"][None])[:, 1]


def path_integral(start):
    """Integrated gradients by 400 midpoints."""
    gap = WORDS[IDS] - start
    slopes = jax.vmap(lambda t: jax.grad(lambda a: rest(a).sum())(start + t * gap))
    return slopes((jnp.arange(400.0) + 0.5) / 400).mean(0) * gap


def test_gradients_of_token_ids_are_those_of_their_words():
    slope = jax.grad(lambda a: rest(a).sum())(WORDS[IDS])
    explain = jv.at_layer(jv.gradient, "embed")
    np.testing.assert_allclose(explain(NET, PARAMS, IDS, 1), slope, atol=1e-6)
    jitted = jax.jit(lambda p, ids: explain(NET, p, ids, 1))(PARAMS, IDS)
    np.testing.assert_allclose(jitted, slope, atol=1e-6)
    times = jv.at_layer(jv.input_x_gradient, "embed")(NET, PARAMS, IDS, 1)
    np.testing.assert_allclose(times, slope * WORDS[IDS], atol=1e-6)


@pytest.mark.parametrize(
    ("baseline", "start"),
    [
        (None, WORDS[0]),  # id 0, as an input of zeros is
        (4, WORDS[4]),
        ([4, 4, 5, 5], WORDS[jnp.array([4, 4, 5, 5])]),
        (jnp.full((2, 4), 4), WORDS[4]),
        (jnp.zeros((4, 6)), jnp.zeros(6)),  # in the shape of the layer: its own
    ],
    ids=["default", "an id", "ids", "ids of each", "the layer's"],
)
def test_a_baseline_is_an_input_or_the_layers_own(baseline, start):
    start = jnp.broadcast_to(start, (2, 4, 6))
    found = jv.at_layer(jv.integrated_gradients, "embed")(NET, PARAMS, IDS, 1, baseline=baseline)
    np.testing.assert_allclose(found, path_integral(start), atol=1e-5)
    np.testing.assert_allclose(found.sum((1, 2)), rest(WORDS[IDS]) - rest(start), atol=1e-5)


def test_baselines_are_inputs():
    ids = jnp.array([[0, 0, 0, 0], [4, 4, 4, 4]])
    found = jv.at_layer(jv.deep_lift_shap, "embed")(NET, PARAMS, IDS, 1, baselines=ids)
    gained = rest(WORDS[IDS]) - rest(WORDS[ids]).mean()
    np.testing.assert_allclose(found.sum((1, 2)), gained, atol=1e-5)


def test_windows_and_fills_are_the_layers():
    found = jv.at_layer(jv.occlusion, "embed")(NET, PARAMS, IDS, 1, window=(1,), stride=(1,))
    a = WORDS[IDS]
    lost = np.stack([rest(a) - rest(a.at[:, i].set(0)) for i in range(4)], 1)
    np.testing.assert_allclose(found, lost, atol=1e-5)


def test_noise_is_the_layers_where_the_wrapper_is_inside():
    smooth = jv.smooth_grad(jv.gradient, num_samples=3)
    found = jv.at_layer(smooth, "embed")(NET, PARAMS, IDS, 1, key=KEY)
    head, tail = jv.split(NET, PARAMS, IDS, "embed")
    a, carry = head(PARAMS, IDS)
    np.testing.assert_allclose(found, smooth(tail, (PARAMS, carry), a, 1, key=KEY), atol=1e-6)
    outside = jv.smooth_grad(jv.at_layer(jv.gradient, "embed"))
    with pytest.raises(TypeError, match=r"floating; got int32.*Put at_layer outside"):
        outside(NET, PARAMS, IDS, 1, key=KEY)
    net = lambda w, x: jax.nn.relu(x) @ w  # of floating input both ways will do
    around = jv.smooth_grad(jv.at_layer(jv.gradient, "relu_0"), num_samples=2)
    np.testing.assert_allclose(around(net, jnp.eye(2), jnp.ones((1, 2)), 0, key=KEY), [[1, 0]])


def test_channels_lie_where_the_whole_model_has_them():
    """After the last convolution nothing says it any more."""
    keys = jax.random.split(KEY, 3)
    params = jax.random.normal(keys[0], (4, 3, 3, 3)), jax.random.normal(keys[1], (4, 2))
    x = jax.random.normal(keys[2], (2, 3, 6, 5))
    net = lambda p, x: jax.nn.relu(jax.lax.conv(x, p[0], (1, 1), "SAME")).mean((2, 3)) @ p[1]
    window = {"window": (2, 2), "stride": (2, 2)}
    found = jv.at_layer(jv.occlusion, "relu_0")(net, params, x, 1, **window)
    maps = jax.nn.relu(jax.lax.conv(x, params[0], (1, 1), "SAME"))
    lost = (maps[:, :, :2, :2].sum((2, 3)) / 30 @ params[1])[:, 1]
    assert found.shape == (2, 6, 5)
    np.testing.assert_allclose(found[:, 0, 0], lost, atol=1e-5)


def test_equal_arguments_give_the_same_method_and_compile_nothing_anew():
    assert jv.at_layer(jv.gradient, "embed") is jv.at_layer(jv.gradient, "embed")
    calls = []

    def counted(params, ids):
        calls.append(1)
        return NET(params, ids)

    for target in (0, 1):
        jv.at_layer(jv.gradient, "embed")(counted, PARAMS, IDS + target, target)
    assert len(calls) == 1


def test_a_sweep_takes_it(tmp_path):
    explain = jv.at_layer(jv.gradient, "embed")
    found = jv.sweep(
        {"words": explain}, NET, PARAMS, [IDS], target=1, out=tmp_path / "store", progress=False
    )
    np.testing.assert_allclose(found.maps["words"], explain(NET, PARAMS, IDS, 1), atol=1e-6)


def test_no_examples():
    found = jv.at_layer(jv.integrated_gradients, "embed")(NET, PARAMS, IDS[:0], 1)
    assert found.shape == (0, 4, 6)


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"^at_layer: .*grad_cam reads a layer itself.*layer="):
        jv.at_layer(jv.grad_cam, "embed")
    with pytest.raises(TypeError, match=r"^at_layer: layer must be the name of one layer; got 2"):
        jv.at_layer(jv.gradient, ["embed", "out"])
    with pytest.raises(ValueError, match=r"^at_layer\(gradient\): no layer 'embd'.*'embed'"):
        jv.at_layer(jv.gradient, "embd")(NET, PARAMS, IDS, 1)
    explain = jv.at_layer(jv.integrated_gradients, "embed")
    with pytest.raises(ValueError, match=r"baseline must be whole numbers that int32 holds"):
        explain(NET, PARAMS, IDS, 1, baseline=0.5)
    with pytest.raises(TypeError, match=r"^at_layer\(integrated_gradients\): .*Did you mean num_s"):
        explain(NET, PARAMS, IDS, 1, steps=3)
    for method, told in ((jv.gradient, "gradient"), (jv.grad_cam, "gradient"), (jv.lrp, "lrp")):
        with pytest.raises(TypeError, match=rf"at_layer\(jaxviz.{told}, 'embed'\)"):
            method(NET, PARAMS, IDS, 1)


def test_an_embedding_of_several_operations_is_named_as_a_whole():
    class EmbedTwice(nn.Module):
        @nn.compact
        def __call__(self, ids):
            first = self.param("first", nn.initializers.normal(), (12, 6))
            second = self.param("second", nn.initializers.normal(), (12, 6))
            return jnp.concatenate([first[ids], second[ids]], -1)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return nn.Dense(3)(EmbedTwice(name="tokens")(ids).mean(1))

    params = Model().init(KEY, IDS)
    with pytest.raises(TypeError, match=r"at_layer\(jaxviz.gradient, 'tokens'\)"):
        jv.gradient(Model().apply, params, IDS, 1)


def test_numpys_ids_of_64_bits_are_taken_without_a_warning():  # warnings are errors here
    ids = np.asarray(IDS, np.int64)
    explain = jv.at_layer(jv.integrated_gradients, "embed")
    same = explain(NET, PARAMS, ids, 1), explain(NET, PARAMS, IDS, 1)
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(
        explain(NET, PARAMS, ids, 1, baseline=np.zeros_like(ids)), same[0]
    )
