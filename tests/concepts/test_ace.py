"""ACE on images made of tiles, of which the class needs some: it finds them, and says which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.concepts import ace
from jaxviz.concepts.ace import _cut_out, _segments
from jaxviz.engine.contract import same_when_batched

COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
RED, GREEN, BLUE = range(3)
TILES = np.kron(np.arange(9).reshape(3, 3), np.ones((4, 4), int))


def net(w, x):
    """For class 0 red counts, blue counts against it, green does not count."""
    return jax.nn.relu(x @ w["a"]).mean((1, 2)) @ w["b"]


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 3, (20, 3, 3))
    x = COLOURS[np.kron(tiles, np.ones((1, 4, 4), int))]
    x = np.clip(x + 0.05 * rng.normal(size=x.shape), 0, 1).astype(np.float32)
    params = {"a": jnp.eye(3), "b": jnp.array([[4.0], [0.0], [-4.0]])}
    return params, x, tiles


def found_in(params, x, **more):
    options = {
        "layer": "relu_0", "key": jax.random.key(0), "num_concepts": 3, "num_examples": 20,
        "segments": [TILES], "probe": "pattern",
    }  # fmt: skip
    return ace(net, params, x, 0, **options | more)


def test_planted_tiles_are_found_and_only_those_that_count_are_significant(planted):
    params, x, tiles = planted
    found = found_in(params, x)
    assert found.crops.shape == (3, 20, 12, 12, 3)
    colours = tiles.reshape(20, 9)[found.images, found.numbers]
    assert (colours == colours[:, :1]).all()  # each concept is of one colour
    of = {colour: k for k, colour in enumerate(colours[:, 0].tolist())}
    assert list(of) == [RED, GREEN, BLUE] or list(of) == [RED, BLUE, GREEN]
    assert found.significant[[of[RED], of[BLUE]]].all()
    assert found.p_values[of[GREEN]] > 0.05
    assert found.scores[of[RED]] == 1
    assert found.scores[of[BLUE]] == 0
    np.testing.assert_array_equal(
        found.sizes[[of[c] for c in range(3)]], np.bincount(tiles.ravel())
    )
    # The way from random segments, a third of each colour, to red ones: 4 (2/3) + 4 / 3, less what
    # noise and the mean colour at the edges take.
    effects = found.tcav.effects[:, 0]
    np.testing.assert_allclose(effects[of[RED]], 4, rtol=0.15)
    np.testing.assert_allclose(effects[of[BLUE]], -4, rtol=0.15)


def test_a_concept_against_images_of_anything(planted):
    params, x, _ = planted
    random = np.random.default_rng(1).uniform(size=(5, 20, *x.shape[1:])).astype(np.float32)
    found = found_in(params, x, random=random)
    assert found.tcav.null_scores.shape == (1, 5)
    assert found.significant[0]


def test_channels_first_is_the_same(planted):
    params, x, _ = planted
    first = lambda w, x: jax.nn.relu(jnp.einsum("nchw,cd->ndhw", x, w["a"])).mean((2, 3)) @ w["b"]
    from jaxviz import channels_first

    turned = ace(
        channels_first(first), params, np.moveaxis(x, -1, 1), 0, layer="relu_0",
        key=jax.random.key(0), num_concepts=3, num_examples=20, probe="pattern",
        segments=[TILES],
    )  # fmt: skip
    straight = found_in(params, x)
    np.testing.assert_allclose(turned.p_values, straight.p_values, atol=1e-6)
    np.testing.assert_allclose(np.moveaxis(turned.crops, 2, -1), straight.crops, atol=1e-6)


def test_half_precision_is_cut_as_single_is(planted):
    params, x, _ = planted
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    found = found_in(params, x.astype(jnp.bfloat16))
    at = np.stack([found.images, found.resolutions, found.numbers], -1).reshape(-1, 3)
    colour = np.broadcast_to(x.mean((0, 1, 2)), x.shape[1:])
    wanted = _cut_out(x, found.segments, at, colour).reshape(found.crops.shape)
    np.testing.assert_allclose(found.crops.astype(np.float32), wanted, atol=0.01)
    assert found.sizes.sum() == 180


def test_half_precision_knows_where_224_pixels_are():
    x = np.random.default_rng(0).uniform(size=(1, 224, 224, 1)).astype(jnp.bfloat16)
    part, fill = np.zeros((1, 224, 224), int), np.zeros((224, 224, 1), x.dtype)
    part[0, 101:199, 150:223] = 1
    half, single = (
        _cut_out(x.astype(d), [part], np.array([[0, 0, 1]]), fill.astype(d)).astype(np.float32)
        for d in (x.dtype, np.float32)
    )
    np.testing.assert_allclose(half, single, atol=2**-8)


def test_neither_the_kind_of_key_nor_batches_change_a_concept(planted):
    params, x, _ = planted
    key = jax.random.key(3, impl="rbg")
    one = found_in(params, x, key=key)
    for more in ({"key": same_when_batched(key)}, {"key": key, "batch_size": 7}):
        other = found_in(params, x, **more)
        np.testing.assert_array_equal(other.sizes, one.sizes)
        np.testing.assert_allclose(other.tcav.accuracy, one.tcav.accuracy)
        np.testing.assert_allclose(other.tcav.effects, one.tcav.effects, atol=1e-5)


def test_a_segment_that_an_earlier_map_has_too_comes_once():
    coarse = np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    fine = np.array([[[5, 5, 7, 8], [5, -1, 7, 8]]])  # 3 of the 4 pixels of segment 0; halves of 1
    assert _segments([coarse, fine]).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 7], [0, 1, 8]]


def test_a_segment_is_enlarged_as_a_crop_is():  # oracle: JAX's resize of the box alone
    x = np.random.default_rng(0).uniform(size=(1, 6, 8, 2)).astype(np.float32)
    part = np.zeros((1, 6, 8), int)
    part[0, 1:4, 2:7] = 1
    part[0, 1, 2] = 0  # a corner of its box is not of it
    fill = np.broadcast_to(np.array([0.2, 0.7], np.float32), (6, 8, 2))
    alone = np.where(part[0, ..., None] == 1, x[0], fill)[1:4, 2:7]
    wanted = jax.image.resize(alone, (6, 8, 2), "bilinear")
    cut = _cut_out(x, [part], np.array([[0, 0, 1]]), fill)
    np.testing.assert_allclose(cut[0], wanted, atol=1e-6)


def test_what_cannot_be_clustered_is_refused(planted):
    params, x, _ = planted
    with pytest.raises(ValueError, match=r"segments must be maps \(20, 12, 12\) or"):
        found_in(params, x, segments=[TILES[None]])
    with pytest.raises(ValueError, match=r"ace: segments must be at least num_concepts"):
        found_in(params, x[:1], num_examples=12)
    with pytest.raises(ValueError, match="ace: num_concepts must leave a cluster"):
        found_in(params, x, num_examples=180)
