"""Images with channels first: every map of places is that of the same net with channels last."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "conv": jax.random.normal(KEYS[0], (4, 3, 3, 3)) * 0.4,
    "dense": jax.random.normal(KEYS[1], (4, 3)),
}
X = jax.random.normal(KEYS[2], (2, 3, 8, 6))
FILL = jax.random.normal(KEYS[3], (3, 8, 6))
CELLS = jv.grid_segments((8, 6), (2, 2))
EACH = np.arange(144).reshape(3, 8, 6) // 36  # segments that differ by channel


def channels_first(params, x):
    x = jax.lax.conv(x, params["conv"], (1, 1), "SAME")
    return jax.nn.relu(x).mean((2, 3)) @ params["dense"]


def channels_last(params, x):
    """The same net, written for `[N, H, W, C]` throughout."""
    kernel = params["conv"].transpose(2, 3, 1, 0)
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(x).mean((1, 2)) @ params["dense"]


def last(a):
    return jnp.moveaxis(jnp.asarray(a), -3, -1)


def masks(image):
    return np.stack([CELLS == k for k in range(4)])


WINDOWS: dict[str, Any] = {"window": (3, 3), "stride": (3, 3)}
METHODS = {
    "grad_cam": lambda f, x, lay: jv.grad_cam(f, PARAMS, x, 1),
    "score_cam": lambda f, x, lay: jv.score_cam(f, PARAMS, x, 1),
    "ablation_cam": lambda f, x, lay: jv.ablation_cam(f, PARAMS, x, 1, resize=False),
    "guided_grad_cam": lambda f, x, lay: jv.guided_grad_cam(f, PARAMS, x, 1),
    "full_grad": lambda f, x, lay: jv.full_grad(f, PARAMS, x, 1),
    "occlusion": lambda f, x, lay: jv.occlusion(f, PARAMS, x, 1, fill=lay(FILL), **WINDOWS),
    "rise": lambda f, x, lay: jv.rise(f, PARAMS, x, 1, key=KEYS[0], num_samples=6, cells=2),
    "sobol": lambda f, x, lay: jv.sobol(f, PARAMS, x, 1, key=KEYS[0], num_designs=2, cells=2),
    "blur_integrated_gradients": lambda f, x, lay: jv.blur_integrated_gradients(
        f, PARAMS, x, 1, num_steps=3, max_sigma=2.0
    ),
    "learned_mask": lambda f, x, lay: jv.learned_mask(f, PARAMS, x, 1, num_steps=2, area=None),
    "feature_ablation": lambda f, x, lay: jv.feature_ablation(
        f, PARAMS, x, 1, segments=CELLS, fill=lay(FILL)
    ),
    "feature_ablation, by channel": lambda f, x, lay: jv.feature_ablation(
        f, PARAMS, x, 1, segments=np.asarray(lay(EACH))
    ),
    "lime": lambda f, x, lay: jv.lime(f, PARAMS, x, 1, key=KEYS[0], segments=CELLS, num_samples=20),
    "shapley_values": lambda f, x, lay: jv.shapley_values(f, PARAMS, x, 1, segments=CELLS),
    "xrai": lambda f, x, lay: jv.xrai(f, PARAMS, x, 1, num_steps=2, segments=masks),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_net_with_channels_first_is_explained_as_its_twin(name):
    found = METHODS[name](channels_first, X, lambda a: a)
    wanted = METHODS[name](channels_last, last(X), last)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        theirs = jnp.moveaxis(theirs, -1, 1) if theirs.shape == last(X).shape else theirs
        chex.assert_trees_all_close(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-5)


def test_it_holds_under_jit_and_the_images_go_back_as_they_came():
    found = jax.jit(lambda x: jv.guided_grad_cam(channels_first, PARAMS, x, 1))(X)
    chex.assert_shape(found, X.shape)
    chex.assert_trees_all_close(found, jv.guided_grad_cam(channels_first, PARAMS, X, 1), atol=1e-6)


BETWEEN = {  # from a value [N, C, H, W] with eight channels to one of the same axes
    "norm of groups": lambda a: _centred(a.reshape(2, 2, 4, 8, 6)).reshape(a.shape),
    "norm of groups, places in a row": lambda a: _centred(a.reshape(2, 2, -1)).reshape(a.shape),
    "resized": lambda a: jax.image.resize(a, (2, 8, 4, 12), "linear"),
    "channels shuffled": lambda a: a.reshape(2, 2, 4, 8, 6).swapaxes(1, 2).reshape(a.shape),
    "maxima of channels": lambda a: a.reshape(2, 2, 4, 8, 6).max(1),
    "channels to places": lambda a: (
        a.reshape(2, 2, 2, 2, 8, 6).transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 16, 12)
    ),
    "a blur of each channel": lambda a: jax.vmap(jax.vmap(_blurred))(a),
}


def _centred(a):
    return a - a.mean(tuple(range(2, a.ndim)), keepdims=True)


def _blurred(a):
    return jax.lax.conv(a[None, None], jnp.ones((1, 1, 3, 3)), (1, 1), "SAME")[0, 0]


LATER = ("channels shuffled", "maxima of channels", "channels to places")  # by convolutions


@pytest.mark.parametrize(
    ("name", "at"),
    [(n, at) for n in BETWEEN for at in ("maps", "images") if n not in LATER or at == "maps"],
)
def test_channels_are_found_again_behind_what_moves_them(name, at):
    """What no convolution made still says where its channels are."""
    kernel = jnp.ones((8, 8, 3, 3))
    steps = [BETWEEN[name], lambda a: jax.lax.conv(a, kernel[:, : a.shape[1]], (1, 1), "SAME")]
    first, second = steps if at == "images" else steps[::-1]
    net = lambda p, x: jnp.tanh(second(jnp.tanh(first(x)))).mean((2, 3))
    x = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)
    found = [one for one in jv.layers(net, None, x) if one.kind == "tanh"]
    assert [one.channel_axis for one in found] == [1, 1]


def test_channels_of_examples_with_kernels_of_their_own_are_seen():
    def one(x):
        kernel = jnp.tanh(x.mean((1, 2)))[None, :, None, None] * jnp.ones((5, 3, 3, 3))
        return jax.lax.conv(x[None], kernel, (1, 1), "SAME")[0]

    net = lambda p, x: jax.nn.relu(jax.vmap(one)(jnp.tanh(x))).mean((2, 3))
    found = {one.name: one for one in jv.layers(net, None, X)}
    assert [found[n].shape for n in ("tanh_0", "relu_0")] == [(2, 3, 8, 6), (2, 5, 8, 6)]
    assert [found[n].channel_axis for n in ("tanh_0", "relu_0")] == [1, 1]


GREY = {  # from one channel to three, which no convolution can tell from its axis
    "repeated": lambda x: jnp.repeat(x, 3, 1),
    "stretched": lambda x: jnp.broadcast_to(x, (2, 3, 8, 6)),
    "stacked": lambda x: jnp.stack([x[:, 0]] * 3, 1),
    "blurred alone": lambda x: jnp.repeat(jax.vmap(jax.vmap(_blurred))(x), 3, 1),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_images_made_coloured_ones_have_their_channels_first(name):
    net = lambda p, x: channels_first(p, jnp.tanh(GREY[name](x)))
    x = X[:, :1]
    found = {one.name: one.channel_axis for one in jv.layers(net, PARAMS, x)}
    assert [found["tanh_0"], found["conv_1" if "alone" in name else "conv_0"]] == [1, 1]
    assert jv.occlusion(net, PARAMS, x, 1, window=(8, 6), stride=(8, 6)).shape == (2, 8, 6)


def test_samples_framed_for_a_convolution_are_no_channels_of_the_signal():
    def framed(kernel, x):  # four samples in a row are channels there
        numbers = ("NWC", "WIO", "NWC")
        frames = x.reshape(2, 8, 4)
        return jax.lax.conv_general_dilated(frames, kernel, (1,), "SAME", dimension_numbers=numbers)

    net = lambda kernel, x: jnp.tanh(framed(kernel, x)).mean(1)
    x = jnp.ones((2, 32, 1))
    assert jv.occlusion(net, jnp.ones((3, 4, 5)), x, 0, window=(4,), stride=(4,)).shape == (2, 32)


def test_the_map_behind_groups_of_channels_is_that_of_its_twin():
    def first(params, x):
        a = jax.lax.conv(x, params["conv"], (1, 1), "SAME")
        a = _centred(a.reshape(2, 2, 2, 8, 6)).reshape(a.shape)
        return jnp.tanh(jax.nn.relu(a)).mean((2, 3)) @ params["dense"]

    def twin(params, x):
        numbers, kernel = ("NHWC", "HWIO", "NHWC"), params["conv"].transpose(2, 3, 1, 0)
        a = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        groups = a.reshape(2, 8, 6, 2, 2)
        a = (groups - groups.mean((1, 2, 4), keepdims=True)).reshape(a.shape)
        return jnp.tanh(jax.nn.relu(a)).mean((1, 2)) @ params["dense"]

    found, wanted = jv.grad_cam(first, PARAMS, X, 1), jv.grad_cam(twin, PARAMS, last(X), 1)
    chex.assert_shape(found, (2, 8, 6))
    chex.assert_trees_all_close(found, wanted, atol=1e-6)


def test_images_turned_inside_the_net_have_channels_last():
    turned = lambda params, x: channels_first(params, x.transpose(0, 3, 1, 2))
    x = last(X)
    head = lambda x: jax.lax.conv(x.transpose(0, 3, 1, 2), PARAMS["conv"], (1, 1), "SAME")
    score = lambda a: (jax.nn.relu(a).mean((2, 3)) @ PARAMS["dense"])[:, 1].sum()
    a = head(x)
    slope = jax.grad(score)(a)
    wanted = jnp.maximum((slope.mean((2, 3), keepdims=True) * a).sum(1), 0)
    chex.assert_trees_all_close(jv.grad_cam(turned, PARAMS, x, 1), wanted, atol=1e-6)


def test_a_net_that_says_nothing_of_its_channels_is_declared():
    """Patches by reshaping: nothing in the program tells `[N, C, H, W]` from `[N, H, W, C]`."""

    def patches(params, x):
        n, c, h, w = x.shape
        cut = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5)
        return jnp.tanh(cut.reshape(n, -1) @ params).mean(-1, keepdims=True)

    params = jax.random.normal(KEYS[0], (144, 4))
    declared = jv.channels_first(patches)
    assert declared == jv.channels_first(patches)
    found = jv.occlusion(declared, params, X, 0, window=(4, 3), stride=(4, 3))
    score = patches(params, X)[:, 0]
    chex.assert_shape(found, (2, 8, 6))
    lost = score - patches(params, X.at[:, :, :4, 3:].set(0))[:, 0]
    chex.assert_trees_all_close(found[:, 0, 5], lost, atol=1e-5)
    assert jv.occlusion(patches, params, X, 0, window=(3, 4), stride=(3, 4)).shape == (2, 3, 8)
    by_cell = jv.feature_ablation(jv.softmax(declared), params, X, 0, segments=CELLS)
    chex.assert_shape(by_cell, (2, 8, 6))


def test_what_a_net_says_of_its_channels_holds_inside_it_too():
    def net(w, x):  # nothing but rows of two pixels below each other, in each channel apart
        a = jnp.tanh(x)
        return jax.nn.relu((a[:, :, ::2] + a[:, :, 1::2]) * w).mean((2, 3))

    said = jv.channels_first(net)
    assert {one.name: one.channel_axis for one in jv.layers(said, 2.0, X)}["tanh_0"] == 1
    box = jv.receptive_field(said, 2.0, X, "relu_0")
    assert box[1, 2, 5].tolist() == [4, 5, 6, 6]  # channel 1, row 2, column 5
    a = jnp.tanh(X)
    slope = jax.grad(lambda a: net(2.0, jnp.arctanh(a))[:, 1].sum())(a)
    wanted = (a * slope.mean((2, 3), keepdims=True)).sum(1)
    found = jv.grad_cam(said, 2.0, X, 1, layer="tanh_0", relu=False)
    chex.assert_trees_all_close(found, wanted, atol=1e-5)


def test_each_of_several_images_has_channels_of_its_own():
    """One input with channels first, one with channels last, and numbers."""
    x = {"a": X, "b": last(X), "c": jnp.ones((2, 2))}
    net = lambda p, x: channels_first(p, x["a"]) + channels_last(p, x["b"]) * x["c"][:, :1]
    where = {"a": CELLS, "b": CELLS, "c": np.array([4, 4])}
    found = jv.feature_ablation(net, PARAMS, x, 1, segments=where)
    assert jax.tree.map(jnp.shape, found) == {"a": (2, 8, 6), "b": (2, 8, 6), "c": (2, 2)}
    hide = np.asarray(CELLS == 1)
    hidden = x | {
        "a": jnp.where(hide[None, None], 0, X),
        "b": jnp.where(hide[None, ..., None], 0, last(X)),
    }
    lost = (net(PARAMS, x) - net(PARAMS, hidden))[:, 1]
    chex.assert_trees_all_close(found["a"][:, 0, 5], lost, atol=1e-5)
    chex.assert_trees_all_close(found["a"], found["b"], atol=1e-6)
    each = jv.feature_ablation(net, PARAMS, x, 1)
    assert jax.tree.map(jnp.shape, each) == jax.tree.map(jnp.shape, x)


@pytest.mark.parametrize("method", ["occlusion", "feature_ablation", "sobol"])
def test_errors_about_places_tell_how_channels_are_declared(method):
    """Of a net that says nothing of its channels, images that look as if they had them first."""
    net = lambda w, x: x.reshape(len(x), -1) @ w
    options = {
        "occlusion": {"window": (4, 4), "stride": (4, 4)},
        "feature_ablation": {"segments": CELLS},
        "sobol": {"key": KEYS[0], "cells": 4},
    }[method]
    told = rf"^{method}: .*jaxviz.channels_first\(apply_fn\)"
    with pytest.raises(ValueError, match=told):
        getattr(jv, method)(net, jnp.ones((144, 2)), X, 0, **options)
