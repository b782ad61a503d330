"""Relevance maximisation against zennit-crp, and on relevances in closed form."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import concept_relevance
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


@pytest.fixture(scope="module")
def crp():
    """What `reference/run_crp.py` found, and its net."""
    found = np.load(pathlib.Path(__file__).parents[1] / "reference" / "crp.npz")
    return found, {name: found[f"weights_{name}"] for name in "abc"}


@pytest.mark.parametrize("by", ["sum", "max"])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_ranking_is_that_of_zennit_crp(crp, by, normalized):
    found, p = crp
    images, asked = found["images"], f"{by}_{'normalized' if normalized else 'plain'}"
    options = {"layer": "relu_1", "num_images": len(images), "batch_size": 5}
    got = relevant_examples(
        net, p, images, int(found["class"]), by=by, normalized=normalized, **options
    ).relevance
    np.testing.assert_array_equal(got.indices, found[f"{asked}_order"].T)
    np.testing.assert_allclose(got.scores, found[f"{asked}_scores"].T, rtol=1e-5, atol=1e-6)
    i, j = np.unravel_index(found[f"{asked}_neurons"].T, (3, 4))
    # zennit-crp tells the place of the largest relevance, here the box that it sees.
    np.testing.assert_array_equal(got.boxes, np.stack([i, j, i + 3, j + 3], -1))


def test_conditional_heat_maps_are_those_of_zennit_crp(crp):
    found, p = crp
    for unit, asked in enumerate(found["heats"]):
        options = {"layer": "relu_1", "channel": unit, "rules": "epsilon_plus"}
        got = concept_relevance(
            net, p, jnp.asarray(found["images"]), int(found["class"]), **options
        )
        np.testing.assert_allclose(got.sum(-1), asked, rtol=1e-5, atol=1e-5)


@jax.jit
def _slopes(p, images):
    part = lambda x: (features(p, x)[1].mean((1, 2)) * p["c"][None, :, CLASS]).sum(0)
    return jax.jacrev(part)(images)


def test_heat_is_of_the_units_relevance_and_the_other_ranking_of_activation(inputs):
    p, images = inputs
    a = np.asarray(jax.jit(features)(p, images)[1])
    relevance = (a * p["c"][:, CLASS] / PLACES).sum((1, 2))
    stream = (images[i : i + 5] for i in range(0, 13, 5))
    options = {"layer": "relu_1", "rules": "epsilon", "num_images": 3, "batch_size": 4}
    found = relevant_examples(net, p, stream, CLASS, **options)
    top = found.relevance
    np.testing.assert_array_equal(top.indices, np.argsort(-relevance, 0, kind="stable")[:3].T)
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
