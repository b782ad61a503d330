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
