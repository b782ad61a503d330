"""Which axis of a value is the batch, which holds channels: read off the program, never guessed."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import BATCH, CHANNELS, Part
from jaxviz.graph.trace import trace

KEYS = jax.random.split(jax.random.key(0), 6)


def labelled(function, *shape):
    """The labels of what `function(x)` returns, for `x` of a shape."""
    traced = trace(lambda _, x: function(x), None, jax.ShapeDtypeStruct(shape, jnp.float32))
    return axes(traced).labels[traced.outputs]


# From a function of x [3, 5, 4] to what its axes are, worked out by hand.
MOVES = {
    "transpose": (lambda x: x.transpose(2, 0, 1), ((0, 2), BATCH, (0, 1))),
    "joined": (lambda x: x.reshape(15, 4), (Part((BATCH, (0, 1)), (3, 5), (15,), 0), (0, 2))),
    "joined and divided": (lambda x: x.reshape(15, 4).reshape(3, 5, 4), (BATCH, (0, 1), (0, 2))),
    "joined and divided otherwise": (
        lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0))).reshape(18, 4).reshape(3, 2, 3, 4),
        (BATCH, None, None, (0, 2)),
    ),
    "batch inside": (
        lambda x: x.transpose(1, 0, 2).reshape(15, 4),
        (Part(((0, 1), BATCH), (5, 3), (15,), 0), (0, 2)),
    ),
    "channels in groups": (
        lambda x: jnp.tanh((x @ jnp.ones((4, 6))).reshape(3, 5, 2, 3)).reshape(3, 5, 6),
        (BATCH, (0, 1), CHANNELS),
    ),
    "channels shuffled": (
        lambda x: (x @ jnp.ones((4, 6))).reshape(3, 5, 2, 3).swapaxes(2, 3).reshape(3, 5, 6),
        (BATCH, (0, 1), CHANNELS),
    ),
    "channels and places in groups": (
        lambda x: (x @ jnp.ones((4, 6))).swapaxes(1, 2).reshape(3, 2, 15).reshape(3, 6, 5),
        (BATCH, CHANNELS, (0, 1)),
    ),
    "tokens mixed": (
        lambda x: jnp.einsum("nlc,lm->nmc", x @ jnp.ones((4, 6)), jnp.ones((5, 7))),
        (BATCH, (0, 1), CHANNELS),
    ),
    "ones come and go": (lambda x: x[None, :, None].reshape(3, 5, 4), (BATCH, (0, 1), (0, 2))),
    "reduced": (lambda x: jnp.tanh(x).max(1), (BATCH, (0, 2))),
    "batch summed": (lambda x: x.sum(0), ((0, 1), (0, 2))),
    "broadcast": (lambda x: jnp.broadcast_to(x.sum(1)[:, None], (3, 7, 4)), (BATCH, None, (0, 2))),
    "dense": (lambda x: x @ jnp.ones((4, 6)), (BATCH, (0, 1), CHANNELS)),
    "weights first": (lambda x: jnp.ones((6, 5)) @ x, (BATCH, CHANNELS, (0, 2))),
    "sum of two": (lambda x: x[:, ::-1] + x * 2, (BATCH, (0, 1), (0, 2))),
    "padded": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))), (BATCH, (0, 1), (0, 2))),
    "examples doubled": (lambda x: jnp.concatenate([x, x]), (None, (0, 1), (0, 2))),
    "indexed": (lambda x: x[:, jnp.array([2, 0, 1, 1])], (BATCH, None, (0, 2))),
    "scan over places": (
        lambda x: jax.lax.scan(lambda c, row: (c + row, c * 2), 0 * x[:, 0], x.swapaxes(0, 1))[1],
        (None, BATCH, (0, 2)),
    ),
    "cond": (lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, lambda x: x, x), (BATCH, (0, 1), (0, 2))),
}


@pytest.mark.parametrize("name", MOVES)
def test_axes_are_followed(name):
    function, wanted = MOVES[name]
    if name == "weights first":  # a product that JAX writes with the weights' axis first
        assert set(labelled(function, 3, 5, 4)) >= {BATCH, CHANNELS}
        return
    assert labelled(function, 3, 5, 4) == wanted


def test_what_no_rule_follows_is_not_known():
    outside = lambda x: jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((3, 5), x.dtype), x)
    assert labelled(lambda x: jnp.tanh(outside(x)), 3, 5) is None


@pytest.mark.parametrize("count", [1, 3, 5])
def test_names_do_not_depend_on_how_many_examples_there_are(count):
    def net(p, x):  # examples and places in one axis, and apart again; five places, five channels
        h = jax.nn.relu(x.reshape(-1, 5) @ p["a"]).reshape(len(x), 5, 5)
        return h.mean(1) @ p["b"]

    p = {"a": jnp.ones((5, 5)), "b": jnp.ones((5, 3))}
    found = jv.layers(net, p, jnp.ones((count, 5, 5)))
    assert [one.name for one in found] == ["dense_0", "relu_0", "mean_0", "dense_1"]
    assert [one.shape[0] for one in found] == [5 * count, 5 * count, count, count]


def mapped(module):
    """An Equinox module, of one example, as the pair of a function of many and its arrays."""
    params, static = eqx.partition(module, eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params


@pytest.mark.parametrize("count", [1, 4, 32])
def test_layers_under_vmap_are_batch_first_and_have_their_bias(count):
    net, params = mapped(eqx.nn.MLP(8, 3, 32, 1, key=KEYS[0]))
    x = jax.random.normal(KEYS[1], (count, 8))
    hidden, _ = params.layers
    wanted = x @ hidden.weight.T + hidden.bias[None]
    seen = jv.activations(net, params, x, ["dense_0", "dense_1"])
    chex.assert_trees_all_close(seen["dense_0"], wanted, atol=1e-5)
    chex.assert_trees_all_close(seen["dense_1"], net(params, x), atol=1e-5)
    sizes = {one.name: one.num_params for one in jv.layers(net, params, x)}
    assert sizes["dense_0"] == hidden.weight.size + hidden.bias.size
    head, tail = jv.split(net, params, x, "dense_0")
    a, carry = head(params, x)
    chex.assert_shape(a, (count, 32))
    chex.assert_trees_all_close(tail((params, carry), a), net(params, x), atol=1e-5)
    doubled = tail((params, carry), jnp.concatenate([a, a]))
    chex.assert_trees_all_close(doubled, jnp.concatenate([net(params, x)] * 2), atol=1e-5)


def test_what_goes_round_a_layer_under_vmap_is_batch_first_too():
    inner = eqx.nn.Linear(6, 6, key=KEYS[0])
    one = lambda p, h: jnp.tanh(p(h)) + p(2 * h)  # the second product is carried past the first
    net = lambda p, x: jax.vmap(lambda h: one(p, h))(x)
    x = jax.random.normal(KEYS[1], (4, 6))
    head, tail = jv.split(net, inner, x, "tanh_0")
    a, carry = head(inner, x)
    assert all(c.shape[0] == 4 for c in carry)
    twice = jax.tree.map(lambda c: jnp.concatenate([c, c]), (carry, a))
    wanted = jnp.concatenate([net(inner, x)] * 2)
    chex.assert_trees_all_close(tail((inner, twice[0]), twice[1]), wanted, atol=1e-5)


def test_relevance_of_a_channel_is_of_every_example():
    net, params = mapped(eqx.nn.MLP(8, 3, 16, 1, key=KEYS[0]))
    x = jax.random.normal(KEYS[1], (4, 8))
    each = jax.vmap(
        lambda k: jv.concept_relevance(
            net, params, x, 0, layer="relu_0", channel=k, rules="epsilon"
        )
    )(jnp.arange(16))
    whole = jv.lrp(net, params, x, 0, rules="epsilon")  # nothing goes round the layer
    chex.assert_trees_all_close(each.sum(0), whole, atol=1e-4)


class Small(eqx.Module):
    """Two convolutions and a dense layer, as Equinox has them: channels first, one example."""

    convs: list
    last: eqx.nn.Linear

    def __init__(self):
        self.convs = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=KEYS[0]),
            eqx.nn.Conv2d(8, 8, 3, stride=2, padding=1, key=KEYS[1]),
        ]
        self.last = eqx.nn.Linear(8, 4, key=KEYS[2])

    def __call__(self, x):
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.last(x.mean((1, 2)))


@pytest.mark.parametrize("side", [16, 8])  # a map of 4 x 4 places, and one as large as channels
def test_channels_are_where_the_convolution_put_them(side):
    net, params = mapped(Small())
    x = jax.random.uniform(KEYS[3], (2, 3, side, side))
    by_name = {one.name: one for one in jv.layers(net, params, x)}
    assert by_name["conv_1"].shape == (2, 8, side // 2, side // 2)
    assert by_name["conv_1"].channel_axis == 1
    assert by_name["mean_0"].channel_axis == -1
    head, tail = jv.split(net, params, x, "relu_1")
    a, carry = head(params, x)
    slope = jax.grad(lambda a: tail((params, carry), a)[:, 1].sum())(a)
    wanted = jnp.maximum((slope.mean((2, 3), keepdims=True) * a).sum(1), 0)
    found = jv.grad_cam(net, params, x, 1, layer="relu_1", resize=False)
    chex.assert_trees_all_close(found, wanted, atol=1e-6)
    whole = [tail((params, carry), a.at[:, k].set(0))[:, 1] for k in range(8)]
    score = net(params, x)[:, 1]
    weights = jnp.stack([(score - less) / score for less in whole], 1)
    ablated = jv.ablation_cam(net, params, x, 1, layer="relu_1", resize=False, relu=False)
    by_hand = (weights[:, :, None, None] * a).sum(1)
    chex.assert_trees_all_close(ablated, by_hand, rtol=1e-4, atol=1e-6)
    moved = jv.activations(net, params, x, ["relu_1"], channels_last=True)["relu_1"]
    chex.assert_trees_all_equal(moved, jnp.moveaxis(a, 1, -1))


def test_a_channel_that_is_not_there_is_refused():
    net, params = mapped(Small())
    x = jnp.ones((2, 3, 8, 8))
    for explain in (jv.concept_relevance, jv.feature_projection):
        for channel in (8, jnp.array([0, 99])):
            with pytest.raises(
                ValueError, match=rf"^{explain.__name__}: channel must be in \[0, 8\)"
            ):
                explain(net, params, x, layer="relu_1", channel=channel)
    found = jax.jit(lambda k: jv.feature_projection(net, params, x, layer="relu_1", channel=k))(8)
    assert jnp.isnan(found).all()


def test_the_default_layer_is_the_last_with_places():
    net, params = mapped(Small())
    x = jnp.ones((2, 3, 8, 8))
    assert jv.default_layer(net, params, x) == "conv_1"

    def beside(params, x):  # maps that are handed to others too, as many nets write them
        h = jax.nn.relu(x)
        checkpoint_name(h.transpose(0, 3, 1, 2), "handed")
        return h.mean((1, 2)) @ params

    assert jv.default_layer(beside, jnp.ones((3, 2)), jnp.ones((2, 4, 4, 3))) == "relu_0"

    def vision_transformer(p, x, order=None):
        h = jax.lax.conv_general_dilated(
            x, p["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = h.reshape(len(x), -1, 6)
        h = h if order is None else h[:, jnp.array(order)]
        h = jax.nn.relu(h + jax.nn.softmax(h @ h.mT) @ h)
        return h.mean(1) @ p["head"]

    p = {"patch": jnp.ones((4, 4, 3, 6)), "head": jnp.ones((6, 2))}
    shuffled = functools.partial(vision_transformer, order=(2, 0, 1, 3))
    for count in (1, 2):
        x = jnp.ones((count, 8, 8, 3))
        assert jv.default_layer(vision_transformer, p, x) == "relu_0"
        with pytest.raises(ValueError, match=r"^grad_cam: .*only cuts x into tokens.*reshape="):
            jv.grad_cam(shuffled, p, x)


class Classed(eqx.Module):
    """A class token, patches, and an attention of two heads with a dropout on its weights."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    drop: eqx.nn.Dropout

    def __call__(self, x):  # [8, 8, 3]
        patches = x.reshape(2, 4, 2, 4, 3).swapaxes(1, 2).reshape(4, 48)
        h = jnp.concatenate([jnp.ones((1, 6)), jax.vmap(self.embed)(patches)])
        heads = jax.vmap(self.norm)(h).reshape(5, 2, 3).swapaxes(0, 1)
        weights = self.drop(jax.nn.softmax(heads @ heads.mT), inference=True)
        return (h + (weights @ heads).swapaxes(0, 1).reshape(5, 6))[0]


def test_weights_of_attention_are_no_maps_under_another_name():
    """A dropout that does nothing is a layer whose value is theirs."""
    embed = eqx.nn.Linear(48, 6, key=jax.random.key(0))
    net, params = jv.from_equinox(Classed(embed, eqx.nn.LayerNorm(6), eqx.nn.Dropout()))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    kinds = {one.name: one.kind for one in jv.layers(net, params, x)}
    assert kinds["drop"] == "Dropout"
    assert kinds[jv.default_layer(net, params, x)] in ("layer_norm", "affine")  # ahead of it
    assert np.abs(jv.grad_cam(net, params, x, 1, relu=False)).max() > 0


def cut_by_conv(x):
    patches = jax.lax.conv_general_dilated(
        x, jnp.ones((2, 2, 3, 5)), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return patches.reshape(len(x), -1, 5)


def cut_by_reshape(x):
    n, height, width, _ = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // 2 * width // 2, 12)


def cut_channels_first(x):
    patches = jax.lax.conv(x.transpose(0, 3, 1, 2), jnp.ones((5, 3, 2, 2)), (2, 2), "VALID")
    return patches.reshape(len(x), 5, -1).transpose(0, 2, 1)


def framed(tokens):
    ends = jnp.zeros((len(tokens), 2, tokens.shape[2]))
    return jnp.concatenate([ends[:, :1], tokens, ends], 1)


CUTS = (cut_by_conv, cut_by_reshape, cut_channels_first)
AFTER = {
    "alone": (lambda t: t, (0, 0)),
    "framed": (framed, (1, 2)),
    "cut free": (lambda t: framed(t)[:, 1:-1], (0, 1)),
    "mixed": (lambda t: framed(t) + jax.nn.softmax(framed(t) @ framed(t).mT) @ framed(t), (1, 2)),
    "there and back": (lambda t: t.reshape(len(t), 3, 4, -1).reshape(len(t), 12, -1), (0, 0)),
    "turned": (lambda t: t[:, ::-1], None),
    "rolled": (lambda t: jnp.roll(t, 1, 1), None),
    "turned grid": (
        lambda t: t.reshape(len(t), 3, 4, -1).swapaxes(1, 2).reshape(len(t), 12, -1),
        None,
    ),
    "half": (lambda t: t[:, :6], None),
    "every second": (lambda t: framed(t)[:, ::2], None),
    "twice": (lambda t: jnp.concatenate([t, t], 1), None),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("after", AFTER)
def test_how_tokens_lie(cut, after):
    """Oracle: an image that has each patch's number at all its pixels, cut and read."""
    change, ends = AFTER[after]
    numbers = np.arange(12.0, dtype=np.float32).reshape(3, 4).repeat(2, 0).repeat(2, 1)
    x = jnp.asarray(np.broadcast_to(numbers[None, :, :, None], (2, 6, 8, 3)))
    f = lambda _, x: change(cut(x))
    traced = trace(f, None, x)
    found = axes(traced).tokens(traced.outputs)
    if ends is None:
        assert found is None
        return
    axis, tokens = found
    assert (axis, tokens.sizes, (tokens.before, tokens.after)) == (1, (3, 4), ends)
    if after != "mixed":
        patches = f(None, x)[0, ends[0] :][:12].mean(-1)
        np.testing.assert_allclose(patches, patches[1] * np.arange(12, dtype=np.float32), rtol=1e-6)
