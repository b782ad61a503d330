"""CRAFT, its importance and maps: planted patterns whose part in the score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.concepts import (
    Dictionary,
    concept_importance,
    concept_maps,
    concept_scores,
    craft,
    dff,
)
from jaxviz.graph.split import mean_over_places
from jaxviz.graph.trace import trace

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
PATTERNS = np.float32([[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 0]])
WEIGHTS = np.float32([[3.0], [1.0], [0.0], [0.0]])  # of the first three: 9/10, 1/10 and nothing


def net(w, x):
    return jax.nn.relu(x).mean((1, 2)) @ w


def first(w, x):
    """The same with channels first, which a convolution says."""
    kernel = jnp.eye(4)[:, :, None, None]
    return jax.nn.relu(jax.lax.conv(x, kernel, (1, 1), "SAME")).mean((2, 3)) @ w


@pytest.fixture(scope="module")
def images():
    """Five images of 4 x 4, in each quarter one of the patterns, in another order each."""
    quarters = [PATTERNS[RNG.permutation(4)].reshape(2, 2, 4) for _ in range(5)]
    return np.stack([q.repeat(2, 0).repeat(2, 1) for q in quarters])


def test_importance_is_that_of_a_sum_by_hand(images):
    strong = images * np.float32(2)
    atoms = Dictionary(jnp.asarray(PATTERNS[:3]))
    options = {"layer": "relu_0", "dictionary": atoms, "key": KEY, "num_designs": 256}
    found = concept_importance(net, WEIGHTS, strong, 0, **options)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found, [[0.9, 0.1, 0.0]] * 5, atol=0.04)
    # Alone it has all of what varies: what no atom says stays as it is.
    less = options | {"dictionary": Dictionary(jnp.asarray(PATTERNS[[0, 3, 3]]))}
    alone = concept_importance(net, WEIGHTS, strong, 0, **less)
    np.testing.assert_allclose(alone, [[1.0, 0.0, 0.0]] * 5, atol=0.1)
    with pytest.raises(ValueError, match="concept_importance: num_designs must be a power of two"):
        concept_importance(net, WEIGHTS, strong, 0, **(options | {"num_designs": 24}))


def test_a_layer_that_only_its_mean_is_made_of_is_faded_there(images):
    """The same numbers as of a model that reads the layer in another way, too."""
    squared = lambda w, x: jnp.tanh(jax.nn.relu(x).mean((1, 2)) @ w)
    both = lambda w, x: squared(w, x) + 0 * jax.nn.relu(x).sum((1, 2, 3))[:, None]
    here = lambda f: mean_over_places(trace(f, WEIGHTS, images), "relu_0")
    assert here(squared) == "mean_0"
    assert here(lambda w, x: jax.nn.relu(x).mean(1).mean(1) @ w) is None
    assert here(lambda w, x: jax.nn.relu(x)) is None
    atoms = Dictionary(jnp.asarray(PATTERNS[:3]))
    options = {"layer": "relu_0", "dictionary": atoms, "key": KEY, "num_designs": 8}
    one, other = (concept_importance(f, WEIGHTS, images, 0, **options) for f in (squared, both))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axis", [1])  # the usual one: below
def test_planted_concepts_are_found_with_their_importance(images, axis):
    x = np.moveaxis(images, -1, axis)
    options = {"layer": "relu_0", "window": (2, 2), "stride": (2, 2), "num_concepts": 3}
    found = craft(
        first if axis == 1 else net, WEIGHTS, x, 0, key=KEY, num_seeds=3, num_designs=128,
        num_crops=4, batch_size=16, **options,
    )  # fmt: skip
    units = PATTERNS[:3] / np.linalg.norm(PATTERNS[:3], axis=1, keepdims=True)
    np.testing.assert_allclose(found.dictionary.atoms, units, atol=2e-2)
    np.testing.assert_allclose(found.importance, [0.9, 0.1, 0.0], atol=0.05)
    assert found.stability.min() > 0.98
    assert found.error < 0.02
    crops = np.moveaxis(found.crops, axis + 1 if axis == 1 else -1, -1)
    for k in range(3):  # each crop shows the pattern of its concept, at every place
        np.testing.assert_array_equal(crops[k], np.broadcast_to(PATTERNS[k], (4, 2, 2, 4)))
    shown = [np.allclose(images[i, r : r + 2, c : c + 2], crops[0, 0]) for i in
             [found.crop_indices[0, 0]] for r in (0, 2) for c in (0, 2)]  # fmt: skip
    assert any(shown)


def test_maps_are_where_the_patterns_are(images):
    atoms = Dictionary(jnp.asarray(PATTERNS[:3]))
    maps = concept_maps(net, WEIGHTS, images, layer="relu_0", dictionary=atoms)
    there = np.stack([(images == p).all(-1) for p in PATTERNS[:3]], -1)
    np.testing.assert_allclose(maps, there, atol=1e-5)
    again = concept_maps(
        first, WEIGHTS, np.moveaxis(images, -1, 1), layer="conv_0", dictionary=atoms, resize=False
    )
    np.testing.assert_allclose(again, there, atol=1e-5)
    options = {"num_concepts": 3, "num_seeds": 2}
    key = jax.random.key(4)  # one start in 70 ends with two atoms for one pattern
    found, factors = dff(net, WEIGHTS, images, layer="relu_0", key=key, **options)
    assert found.shape == (5, 4, 4, 3)
    assert factors.stability.min() > 0.98
    matched = (np.asarray(factors.dictionary.atoms) @ PATTERNS[:3].T).argmax(0)
    np.testing.assert_allclose(found[..., matched] > 0.5, there)


def test_wrong_input_is_refused(images):
    options = {"layer": "relu_0", "key": KEY, "num_concepts": 2}
    with pytest.raises(ValueError, match=r"craft: window must fit into the images, \(4, 4\)"):
        craft(net, WEIGHTS, images, 0, window=(5, 2), **options)
    with pytest.raises(ValueError, match="craft: num_concepts must be at most the number of crops"):
        craft(net, WEIGHTS, images[:1], 0, window=(4, 4), **options)
    atoms = Dictionary(jnp.asarray(PATTERNS))
    with pytest.raises(ValueError, match="concept_maps: layer must have places"):
        concept_maps(net, WEIGHTS, images, layer="mean_0", dictionary=atoms)


def test_a_concept_is_made_of_those_of_an_earlier_layer(images):
    """Half of the third unit of the second layer is the first pattern, half the second one."""
    mix = jnp.asarray(np.float32([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]))
    deep = lambda w, x: net(w, jax.nn.relu(x) @ mix)
    last = Dictionary(jnp.eye(4), encoder=jnp.eye(4), threshold=jnp.zeros(()))
    scores = concept_scores(deep, "relu_1", last)
    expected = (np.maximum(images, 0) @ np.asarray(mix)).mean((1, 2))
    np.testing.assert_allclose(scores(WEIGHTS, images), expected, rtol=1e-5)
    options = {"window": (2, 2), "stride": (2, 2), "num_concepts": 3, "num_seeds": 2}
    options |= {"key": KEY, "batch_size": 16, "num_designs": 64}
    found = craft(scores, WEIGHTS, images, 2, layer="relu_0", **options)
    units = PATTERNS[:3] / np.linalg.norm(PATTERNS[:3], axis=1, keepdims=True)
    matched = (np.asarray(found.dictionary.atoms) @ units.T).argmax(1)
    assert sorted(matched[:2]) == [0, 1]
    np.testing.assert_allclose(found.importance, [0.5, 0.5, 0.0], atol=0.06)
