"""Relevance maximisation against zennit-crp's formula in NumPy, on relevances in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.concepts import channels_below, relevant_examples

LAST = ("NHWC", "HWIO", "NHWC")
CLASS, PLACES = 1, 6


def features(p, x):
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=LAST)
    first = jax.nn.relu(conv(x, p["a"]))
    return first, jax.nn.relu(conv(first, p["b"]))


def net(p, x):
    """Two convolutions without biases, a mean: the epsilon rule is gradient times input."""
    return features(p, x)[1].mean((1, 2)) @ p["c"]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(5)
    drawn = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"a": drawn(2, 2, 2, 3), "b": drawn(2, 2, 3, 4), "c": drawn(4, 2)}, drawn(13, 4, 5, 2)


def reference_sampling(relevance, by, normalized):
    """`ChannelConcept.reference_sampling` of zennit-crp 0.6.0, of `[N, places, U]`."""
    place = relevance.argmax(1)
    score = relevance.sum(1) if by == "sum" else relevance.max(1)
    if normalized:
        score = score / (np.abs(score).sum(1, keepdims=True) + 1e-10)
    order = np.argsort(-score, 0, kind="stable")
    return order, np.take_along_axis(score, order, 0), np.take_along_axis(place, order, 0)


@jax.jit
def _slopes(p, images):
    part = lambda x: (features(p, x)[1].mean((1, 2)) * p["c"][None, :, CLASS]).sum(0)
    return jax.jacrev(part)(images)


@pytest.mark.parametrize(("by", "normalized"), [("sum", False), ("max", True)])
def test_the_ranking_is_that_of_zennit_crp(inputs, by, normalized):
    p, images = inputs
    a = np.asarray(jax.jit(features)(p, images)[1])
    relevance = (a * p["c"][:, CLASS] / PLACES).reshape(13, PLACES, 4)
    order, score, place = reference_sampling(relevance, by, normalized)
    stream = (images[i : i + 5] for i in range(0, 13, 5))
    options = {"layer": "relu_1", "rules": "epsilon", "num_images": 3, "batch_size": 4}
    found = relevant_examples(net, p, stream, CLASS, by=by, normalized=normalized, **options)
    top = found.relevance
    np.testing.assert_array_equal(top.indices, order[:3].T)
    np.testing.assert_allclose(top.scores, score[:3].T, rtol=1e-5, atol=1e-6)
    i, j = np.unravel_index(place[:3].T, (2, 3))
    np.testing.assert_array_equal(top.boxes, np.stack([i, j, i + 3, j + 3], -1))
    np.testing.assert_array_equal(
        found.activation.indices, np.argsort(-a.max((1, 2)), 0, kind="stable")[:3].T
    )
    # What the pixels have of a unit's relevance, where it sees them.
    slopes = np.asarray(_slopes(p, images))
    for u in range(4):
        whole = (images * slopes[u]).sum(-1)
        for k in range(3):
            top_, left, bottom, right = top.boxes[u, k]
            asked = whole[top.indices[u, k], top_:bottom, left:right]
            np.testing.assert_allclose(found.heat[u, k], asked, rtol=1e-4, atol=1e-5)


def test_what_lies_below_carries_a_channel(inputs):
    p, images = inputs
    first = jax.jit(features)(p, images)[0]

    def above(first):
        a = jax.lax.conv_general_dilated(first, p["b"], (1, 1), "VALID", dimension_numbers=LAST)
        return jax.nn.relu(a)[..., 2].mean((1, 2)).sum() * p["c"][2, CLASS]

    asked = (np.asarray(first) * np.asarray(jax.jit(jax.grad(above))(first))).sum((1, 2))
    options = {"layer": "relu_1", "below": "relu_0", "rules": "epsilon"}
    got = channels_below(net, p, jnp.asarray(images), CLASS, channel=2, **options)
    np.testing.assert_allclose(got, asked, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="relu_1"):
        channels_below(
            net, p, jnp.asarray(images), CLASS, channel=2, layer="relu_0", below="relu_1"
        )


def test_a_class_that_is_not_there_is_refused(inputs):
    with pytest.raises(ValueError, match="relevant_examples: target"):
        relevant_examples(net, *inputs, 2, layer="relu_1")
