"""A net that nothing but its declaration gives channels: each method sees its twin's channels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import concepts, parametrizations
from jaxviz.concepts.dictionary import Dictionary

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.normal(size=(6, 3, 4, 6)).astype(np.float32)
# From all of an image to maps [5, 2, 3], and from their means to two classes.
PARAMS = {
    "maps": RNG.normal(size=(3, 4, 6, 5, 2, 3)).astype(np.float32) / 8,
    "classes": RNG.normal(size=(5, 2)).astype(np.float32),
}


@jv.channels_first
def first(params, x):
    colours = jnp.tanh(x)
    a = colours.reshape(len(x), -1) @ params["maps"].reshape(72, 30)
    return jax.nn.relu(a.reshape(-1, 5, 2, 3)).mean((2, 3)) @ params["classes"]


def last(params, x):
    colours = jnp.tanh(x)
    weights = params["maps"].transpose(1, 2, 0, 4, 5, 3).reshape(72, 30)
    a = colours.reshape(len(x), -1) @ weights
    return jax.nn.relu(a.reshape(-1, 2, 3, 5)).mean((1, 2)) @ params["classes"]


CLIMB: dict[str, Any] = {
    "key": KEY, "num_steps": 2, "transforms": (), "redirected_steps": 0,
    "parametrization": parametrizations.pixels(),
}  # fmt: skip
ATOMS = Dictionary(np.abs(RNG.normal(size=(2, 5))).astype(np.float32))
WINDOW: dict[str, Any] = {"window": (1, 2), "stride": (1, 2)}
AT: dict[str, Any] = {"layer": "relu_0"}


def tail_of(f, x):
    head, tail = jv.split(f, PARAMS, x, "relu_0")
    a, carry = head(PARAMS, x)
    return jv.occlusion(tail, (PARAMS, carry), a, 1, **WINDOW)


# Of what they give, that which has no layout of its own.
METHODS = {
    "activations": lambda f, x: jv.activations(f, PARAMS, x, ["relu_0"], channels_last=True),
    "grad_cam": lambda f, x: jv.grad_cam(f, PARAMS, x, 1, **AT),
    "score_cam": lambda f, x: jv.score_cam(f, PARAMS, x, 1, **AT),
    "occlusion of the tail": tail_of,
    "occlusion at a layer": lambda f, x: jv.at_layer(jv.occlusion, "relu_0")(
        f, PARAMS, x, 1, **WINDOW
    ),
    "full_grad": lambda f, x: jv.full_grad(f, PARAMS, x, 1),
    "top_examples": lambda f, x: jv.top_examples(f, PARAMS, x, **AT, num_images=2)[:2],
    "concept_relevance": lambda f, x: jv.concept_relevance(f, PARAMS, x, 1, channel=4, **AT),
    "feature_projection": lambda f, x: jv.feature_projection(f, PARAMS, x, channel=4, **AT),
    "relevant_examples": lambda f, x: concepts.relevant_examples(
        f, PARAMS, x, 1, **AT, num_images=2
    )[:2],
    "concept_sensitivity": lambda f, x: concepts.concept_sensitivity(
        f, PARAMS, x, 1, **AT, vectors=ATOMS.atoms
    ),
    "concept_maps": lambda f, x: concepts.concept_maps(f, PARAMS, x, **AT, dictionary=ATOMS),
    "concept_importance": lambda f, x: concepts.concept_importance(
        f, PARAMS, x, 1, **AT, dictionary=ATOMS, key=KEY, num_designs=4
    ),
    "through": lambda f, x: concepts.through(f, "relu_0", ATOMS)(PARAMS, x),
    "a channel climbed": lambda f, x: (
        jv.maximize_activation(
            f, PARAMS, x.shape[1:], jv.objectives.channel("relu_0", [4]), **CLIMB
        ).images
    ),
    "activation_grid": lambda f, x: jv.activation_grid(f, PARAMS, x[:1], **AT, **CLIMB).images,
}


def with_channels_last(a):
    """Every array that has the axes of an image with channels first, in the twin's layout."""
    a = np.asarray(a)
    return np.moveaxis(a, -3, -1) if a.ndim > 3 and a.shape[-3:] == X.shape[1:] else a


def test_its_layers_have_channels_where_it_has_them():
    found = {one.name: one.channel_axis for one in jv.layers(first, PARAMS, X)}
    assert (found["tanh_0"], found["relu_0"], found["mean_0"]) == (1, 1, -1)


@pytest.mark.parametrize("name", METHODS)
def test_what_takes_channels_gives_its_twins_numbers(name):
    found = METHODS[name](first, X)
    wanted = METHODS[name](last, np.moveaxis(X, 1, -1))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(with_channels_last(ours), theirs, rtol=1e-4, atol=1e-5)
