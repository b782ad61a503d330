"""What explains the newer networks: cuts, maps, and sums that must come out."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_modern_nets import NETS, draw, two_images

import jaxviz as jv
from jaxviz import models

SHALLOW = {
    **NETS,
    "densenet": NETS["densenet"].clone(depths=(1, 1)),
    "convnext": NETS["convnext"].clone(depths=(1, 1)),
    "swin": NETS["swin"].clone(depths=(2,), num_heads=(2,)),
    "deit": NETS["deit"].clone(depth=1),
}
# Where class activation maps read: the last layer with places, of a transformer that reads its
# class token the last norm ahead of an attention.
LAYERS = {
    "densenet": "relu_0",
    "efficientnet": "features",
    "convnext": "features",
    "swin": "norm",
    "vit": "encoder/layers/encoder_layer_1/ln_1",
    "deit": "encoder/layers/encoder_layer_0/ln_1",
}
SLOW = "JAXVIZ_SLOW" in os.environ
# The others have no operation that nets of other tests do not have.
MAPPED = list(LAYERS) if SLOW else ["deit"]
SHARED = list(LAYERS) if SLOW else ["swin", "deit"]
CONSERVED = ["densenet", "efficientnet", "convnext", "swin"] if SLOW else ["swin"]


def is_bias(name):
    """What takes relevance: biases and means, and here all attention (no matrix leads out)."""
    return name.endswith(("bias", "mean", "bias_table", "proj/kernel"))


@functools.cache
def explained(name, biases=True):
    net, x = SHALLOW[name], jnp.asarray(two_images(32, 32))

    def leaf(path, like):
        key = "/".join(part.key for part in path)
        value = draw(key.replace("scale", "weight").replace("var", "running_var"), like.shape)
        return jnp.asarray(value if biases or not is_bias(key) else 0 * value)

    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    f = jax.jit(models.apply_fn(net))
    out, empty = f(variables, x), f(variables, jnp.zeros_like(x))
    top = out.argmax(1)
    score, gain = (np.asarray(a[np.arange(2), top]) for a in (out, out - empty))
    return models.apply_fn(net), variables, x, top, score, gain


@pytest.mark.parametrize("name", LAYERS)
def test_default_layers(name):
    net, x = SHALLOW[name], jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert jv.default_layer(models.apply_fn(net), variables, x) == LAYERS[name]


@pytest.mark.parametrize("name", MAPPED)
def test_maps_are_of_the_last_layer_with_places(name):
    """Oracle: Grad-CAM by hand, the patches laid out by hand; a cut there gives the outputs."""
    f, variables, x, top, score, _ = explained(name)
    head, tail = jv.split(f, variables, x, LAYERS[name])
    first = {"vit": 1, "deit": 2}.get(name)

    def by_hand(x):
        a, carry = head(variables, x)
        scored = lambda a: tail((variables, carry), a)[jnp.arange(2), top]
        found, pull = jax.vjp(scored, a)
        (g,) = pull(jnp.ones(2))
        if first:
            a, g = (b[:, first:].reshape(2, 4, 4, -1) for b in (a, g))
        return found, (g.mean((1, 2), keepdims=True) * a).sum(-1)

    found, expected = jax.jit(by_hand)(x)
    np.testing.assert_allclose(found, score, rtol=1e-5)
    assert np.abs(expected).max() > 1e-4  # after the last attention patches have no gradient
    out = jv.grad_cam(f, variables, x, top, relu=False, resize=False)
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", SHARED)
def test_what_was_gained_is_shared(name):  # completeness, from an image of zeros
    f, variables, x, top, score, gain = explained(name)
    near = 1e-5 * np.abs(gain).max() + 1e-6 * np.abs(score).max()  # a gain may be mostly rounding
    out = jv.deep_lift(f, variables, x, top, baseline=jnp.zeros((32, 32, 3)))
    np.testing.assert_allclose(out.sum((1, 2, 3)), gain, atol=near)
    if name != "swin" or SLOW:
        out = jv.integrated_gradients(f, variables, x, top, num_steps=32)
        np.testing.assert_allclose(out.sum((1, 2, 3)), gain, atol=0.05 * np.abs(gain).max() + near)
    out = jv.occlusion(f, variables, x, top, window=(32, 32), stride=(32, 32))
    np.testing.assert_allclose(
        out, np.broadcast_to(gain[:, None, None], out.shape), rtol=0, atol=near
    )


@pytest.mark.parametrize("name", CONSERVED)
def test_relevance_is_conserved_without_biases_and_attention(name):
    f, variables, x, top, score, _ = explained(name, biases=False)
    out = jv.lrp(f, variables, x, top, rules="epsilon")
    assert (score != 0).all()
    np.testing.assert_allclose(out.sum((1, 2, 3)), score, rtol=1e-3)


def test_relevance_passes_a_class_token():  # a softmax keeps some, so there is no sum to come out
    f, variables, x, top, score, _ = explained("deit")
    out = np.asarray(jv.lrp(f, variables, x, top, rules="epsilon"))
    patches = np.abs(out).reshape(2, 4, 8, 4, 8, 3).sum((2, 4, 5))
    assert (patches > 1e-6 * np.abs(score)[:, None, None]).all()
    assert np.isfinite(out).all()
