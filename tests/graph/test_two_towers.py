"""Token ids beside floating numbers: given to rules, and part of the model for all else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz


class Text(nn.Module):
    @nn.compact
    def __call__(self, ids):
        t = nn.Embed(9, 4)(ids)
        t = t + nn.MultiHeadDotProductAttention(2)(t)
        return nn.Dense(3)(nn.relu(t).mean(1))


class Image(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Both(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Image(name="image")(x["pixels"]) * Text(name="text")(x["ids"])


IDS = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
X = {"ids": IDS, "pixels": jax.random.normal(jax.random.key(0), (2, 6, 6, 3))}
NET = Both()
PARAMS = jax.jit(NET.init)(jax.random.key(1), X)


def of(tower):
    return {"params": PARAMS["params"][tower]}


@pytest.mark.parametrize(("tower", "net", "x"), [("text", Text(), IDS), ("image", Image(), X)])
def test_each_tower_has_the_layers_that_it_has_alone(tower, net, x):
    x = x["pixels"] if tower == "image" else x
    alone = jaxviz.layers(net.apply, of(tower), x)
    here = [n for n in jaxviz.layers(NET.apply, PARAMS, X) if n.name.startswith(f"{tower}/")]
    assert [n._replace(name=n.name.removeprefix(f"{tower}/")) for n in here] == list(alone)
    assert all(n.flops for n in here if n.kind not in ("concatenate", "flatten"))


def test_attention_over_the_words_is_found():
    (found,) = jaxviz.attentions(NET.apply, PARAMS, X).values()
    (alone,) = jaxviz.attentions(Text().apply, of("text"), IDS).values()
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_a_cut_in_the_words_is_exact():
    name = "text/MultiHeadDotProductAttention_0/softmax_0"
    head, tail = jaxviz.split(NET.apply, PARAMS, X, name)
    a, carry = jax.jit(head)(PARAMS, X)
    outputs = jax.jit(tail)((PARAMS, carry), a)
    np.testing.assert_allclose(outputs, NET.apply(PARAMS, X), rtol=1e-5, atol=1e-6)


def test_the_words_are_constants_of_the_image_for_rules():
    """A product's whole relevance is the image's: what ids make is a factor like the params."""
    text = Text().apply(of("text"), IDS)
    alone = lambda params, x: Image().apply(params, x) * text
    gamma = jaxviz.rules.lrp.gamma(1.0)
    found = jaxviz.lrp(NET.apply, PARAMS, X, 1, rules={"image/Dense_0": gamma})
    expected = jaxviz.lrp(alone, of("image"), X["pixels"], 1, rules={"Dense_0": gamma})
    np.testing.assert_allclose(found["pixels"], expected, rtol=1e-4, atol=1e-6)


def test_maps_of_the_image_need_no_layer_named():
    assert jaxviz.default_layer(NET.apply, PARAMS, X) == "image/Conv_0"
    text = Text().apply(of("text"), IDS)
    alone = lambda params, x: Image().apply(params, x) * text
    found = jaxviz.grad_cam(NET.apply, PARAMS, X, 1)
    expected = jaxviz.grad_cam(alone, of("image"), X["pixels"], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(jax.random.key(2), i), shape)


def tower(w, h):
    return jax.lax.scan(lambda h, w: (nn.relu(h @ w) + h, None), h, w)[0]


@pytest.mark.parametrize("ids_first", [True, False])
def test_scans_over_layers_of_both_have_their_own_numbers(ids_first):
    """A rule by name reaches the layer that `layers` calls so, whichever scan comes first."""
    given = {"t": normal(1, 3, 4, 4), "i": normal(2, 3, 4, 4), "e": normal(4, 9, 4)}
    given |= {"o": normal(3, 8, 3)}
    x = {"ids": jnp.array([1, 2]), "numbers": normal(7, 2, 4)}

    def net(params, x):
        words = lambda: tower(params["t"], params["e"][x["ids"]])
        numbers = lambda: tower(params["i"], x["numbers"])
        first = (words(), numbers()) if ids_first else (numbers(), words())[::-1]
        return jnp.concatenate(first, -1) @ params["o"]

    gamma = jaxviz.rules.lrp.gamma(3.0)
    number = 1 if ids_first else 0
    found = jaxviz.lrp(net, given, x, 1, rules={f"scan_{number}[2]/dense_0": gamma})["numbers"]
    alone = lambda params, numbers: net(params, {"ids": x["ids"], "numbers": numbers})
    expected = jaxviz.lrp(alone, given, x["numbers"], 1, rules={"scan_0[2]/dense_0": gamma})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if ids_first:
        told = jaxviz.lrp_conservation(net, given, x, 1).layers
        assert "scan_1[2]/dense_0" in told
        assert not [name for name in told if name.startswith("scan_0")]


def conv(x, w):
    x = x.astype("float32")
    names = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=names)
    return nn.relu(x).mean((1, 2))


@pytest.mark.parametrize("name", ["classes", "z"])  # ahead of the image and behind it
def test_maps_are_of_the_image_and_not_of_whole_numbers_beside_it(name):
    given = {"i": normal(1, 3, 3, 3, 4), "s": normal(2, 3, 3, 1, 4), "o": normal(3, 8, 3)}
    x = {name: jnp.ones((2, 6, 6, 1), int), "image": normal(4, 2, 6, 6, 3)}

    def net(params, x):
        both = conv(x[name], params["s"]), conv(x["image"], params["i"])
        return jnp.concatenate(both, -1) @ params["o"]

    assert jaxviz.default_layer(net, given, x) == "conv_1"
    assert np.ptp(jaxviz.grad_cam(net, given, x, 1, relu=False)) > 0
    assert jaxviz.full_grad(net, given, x, 1).shape == (2, 6, 6)
