"""A model through a dictionary: the same outputs, and codes wherever a channel will do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.concepts import Dictionary, encode, through

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)


def images(p, x):  # channels first
    a = jax.nn.relu(jax.lax.conv(x, p["k"], (1, 1), "SAME"))
    return jnp.tanh(a).mean((2, 3)) @ p["w"]


def tokens(p, x):
    return jnp.tanh(jax.nn.relu(x @ p["k"])).mean(1) @ p["w"]


NETS = {
    "channels first": (images, {"k": draw(5, 2, 3, 3), "w": draw(5, 3)}, draw(3, 2, 4, 4)),
    "tokens": (tokens, {"k": draw(2, 5), "w": draw(5, 3)}, draw(3, 4, 2)),
}
IDENTITY = Dictionary(jnp.eye(5), encoder=jnp.eye(5), threshold=jnp.zeros(()))
CODES = "relu_0/codes"


@pytest.mark.parametrize("kind", NETS)
def test_channels_are_the_codes_of_the_identity(kind):
    net, params, x = NETS[kind]
    coded = through(net, "relu_0", IDENTITY)
    both = jax.jit(lambda params, x: (coded(params, x), net(params, x)))(params, x)
    np.testing.assert_allclose(*both, rtol=1e-6)
    axis = jv.graph.layers.layer_named("test", net, params, x, "relu_0").channel_axis
    codes = jv.activations(coded, params, x, [CODES])[CODES]
    a = jv.activations(net, params, x, ["relu_0"])["relu_0"]
    np.testing.assert_allclose(codes, np.moveaxis(a, axis, -1), rtol=1e-6)
    if kind == "tokens":  # relevance goes the same way, where the channels are last
        return
    relevance = lambda net, layer: jv.concept_relevance(
        net, params, x, 0, layer=layer, channel=2, rules="epsilon"
    )
    np.testing.assert_allclose(relevance(coded, CODES), relevance(net, "relu_0"), atol=1e-6)


def test_examples_and_objectives_take_codes():
    net, params, x = NETS["channels first"]
    mixed = Dictionary(draw(3, 5), encoder=draw(5, 3), threshold=jnp.zeros(()))
    coded = through(net, "relu_0", mixed)
    a = np.moveaxis(np.asarray(jv.activations(net, params, x, ["relu_0"])["relu_0"]), 1, -1)
    codes = np.asarray(encode(mixed, a))
    top = jv.top_examples(coded, params, np.asarray(x), layer=CODES, num_images=2)
    strongest = codes.reshape(3, -1, 3).max(1)  # [N, K]
    np.testing.assert_allclose(top.scores, -np.sort(-strongest, 0)[:2].T, rtol=1e-5)
    plain = jv.top_examples(net, params, np.asarray(x), layer="relu_0", num_images=2)
    # Receptive fields are those of a place, those of the largest codes too.
    assert top.patches.shape[2:] == plain.patches.shape[2:]
    few = through(net, "relu_0", mixed._replace(keep=jnp.array(1)))
    boxes = [jv.receptive_field(f, params, x, at) for f, at in ((few, CODES), (net, "relu_0"))]
    np.testing.assert_array_equal(boxes[0][..., 0, :], boxes[1][0])
    score = jv.objectives.channel(CODES, [1])(jv.activations(coded, params, x[:1], [CODES]))
    np.testing.assert_allclose(score, codes[0, ..., 1].mean(), rtol=1e-5)


def test_the_gradient_goes_through_the_codes_alone():
    net = lambda w, x: jnp.tanh(x) @ w
    one = Dictionary(jnp.array([[0.6, 0.8]]), encoder=jnp.array([[0.6], [0.8]]))
    x, w = draw(3, 2), draw(2, 1)
    found = jv.gradient(through(net, "tanh_0", one), w, x, 0)
    onto = np.outer([0.6, 0.8], [0.6, 0.8])
    expected = (onto @ np.asarray(w))[:, 0] * (1 - np.tanh(x) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_non_negative_codes_have_the_gradient_of_the_solution():
    atoms, a, step = np.abs(draw(3, 5)), draw(4, 5), draw(4, 5)
    codes = lambda a: encode(Dictionary(jnp.asarray(atoms)), a)
    both = jax.jit(lambda a: jax.jvp(codes, (a,), (step,)))
    found = both(a)[1]
    numeric = (both(a + 1e-3 * step)[0] - both(a - 1e-3 * step)[0]) / 2e-3
    np.testing.assert_allclose(found, numeric, atol=2e-3)
    assert np.abs(found).max() > 0.1


def test_other_layers_are_refused():
    net, params, x = NETS["tokens"]
    with pytest.raises(ValueError, match=r"through: .*relu_9"):
        through(net, "relu_9", IDENTITY)(params, x)
    with pytest.raises(ValueError, match=r"must be \[..., 5\]"):
        through(net, "dense_1", IDENTITY)(params, x)
