"""Activation atlases of a net whose layer is the images' own colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import channels_first, parametrizations
from jaxviz.concepts import activation_atlas

SPOTS = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]], np.float32)


def net(w, x):
    return jax.nn.relu(x).mean((1, 2)) @ w


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 61)
    x = SPOTS[kinds][:, None, None] + 0.02 * rng.normal(size=(61, 4, 4, 3))
    return np.array([[1, 0], [0, 2], [0, 0]], np.float32), x.astype(np.float32), kinds


def made(w, x, **more):
    options = {
        "layer": "relu_0", "key": jax.random.key(0), "grid": (2, 2), "min_count": 3,
        "num_steps": 60, "transforms": (), "redirected_steps": 0, "batch_size": 16,
        "cosine_power": 1.0, "parametrization": parametrizations.pixels(),
    }  # fmt: skip
    return activation_atlas(net, w, x, **options | more)


def test_cells_hold_what_is_alike_and_their_images_show_it(inputs):
    w, x, kinds = inputs
    found = made(w, (x[i : i + 20] for i in range(0, 61, 20)), chunk_size=2)
    assert found.count == 61
    assert len(found.images) == 3 == len(found.counts)
    assert found.counts.sum() == (found.members >= 0).sum() == 61
    for cell in range(3):
        (kind,) = set(kinds[found.members == cell].tolist())
        np.testing.assert_allclose(found.directions[cell], SPOTS[kind], atol=0.05)
        colour = found.images[cell].mean((0, 1))
        assert colour.argmax() == kind
        assert colour[kind] > 2 * np.delete(colour, kind).max()
        # Gradient x value at one of 16 places, by hand.
        np.testing.assert_allclose(found.effects[cell], SPOTS[kind] @ w / 16, atol=0.01)
    rows, columns = np.floor(found.points * 2).clip(0, 1).astype(int).T[::-1]
    np.testing.assert_array_equal(found.cells[found.members], np.stack([rows, columns], 1))


def test_a_layout_of_ones_own_and_means_over_places(inputs):
    w, x, _ = inputs
    seen = []

    def layout(values):
        seen.append(values)
        return np.stack([np.arange(len(values)), np.zeros(len(values))], 1)

    found = made(
        w, x, layout=layout, pooled=True, classes=jnp.array([1]), grid=(1, 3), batch_size=61
    )
    np.testing.assert_allclose(seen[0], x.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(found.points[:, 0].argsort(), np.arange(61))
    assert found.cells.tolist() == [[0, 0], [0, 1], [0, 2]]
    whole = np.maximum(x, 0).mean((1, 2)) @ w[:, 1:]
    mean = np.stack([whole[found.members == cell].mean(0) for cell in range(3)])
    np.testing.assert_allclose(found.effects, mean, atol=1e-5)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_the_size_of_batches_changes_nothing(inputs, kind):
    w, x, _ = inputs
    key = jax.random.key(0, impl=kind)
    one, other = (made(w, x, key=key, batch_size=size, num_steps=1) for size in (61, 16))
    np.testing.assert_array_equal(one.members, other.members)
    np.testing.assert_allclose(one.directions, other.directions, atol=1e-6)


def test_means_of_many_values_in_half_precision():  # oracle: all values are 1, effects 1 / 4
    x = np.ones((2000, 2, 2, 1), jnp.bfloat16)
    alone = lambda w, x: jax.nn.relu(x.astype(w.dtype)).mean((1, 2)) @ w
    found = activation_atlas(
        alone, jnp.ones((1, 1), jnp.bfloat16), x, layer="relu_0", key=jax.random.key(0),
        grid=(1, 1), num_steps=1, transforms=(), redirected_steps=0, batch_size=1000,
        parametrization=parametrizations.pixels(),
    )  # fmt: skip
    assert found.directions.tolist() == [[1.0]]
    assert found.effects.tolist() == [[0.25]]


def test_channels_first_is_the_same(inputs):
    w, x, _ = inputs
    turned = channels_first(lambda w, x: jax.nn.relu(x).mean((2, 3)) @ w)
    straight = made(w, x, num_steps=1)
    found = activation_atlas(
        turned, w, np.moveaxis(x, -1, 1), layer="relu_0", key=jax.random.key(0), grid=(2, 2),
        min_count=3, num_steps=1, transforms=(), redirected_steps=0, batch_size=16,
        cosine_power=1.0, parametrization=parametrizations.pixels(),
    )  # fmt: skip
    np.testing.assert_array_equal(found.members, straight.members)
    np.testing.assert_allclose(np.moveaxis(found.images, 1, -1), straight.images, atol=1e-5)


def test_what_makes_no_atlas_is_refused(inputs):
    w, x, _ = inputs
    with pytest.raises(ValueError, match=r"layout must give finite points \[61, 2\]"):
        made(w, x, layout=lambda values: values[:, :1])
    with pytest.raises(ValueError, match="min_count must leave a cell; the fullest of 2 x 2 has"):
        made(w, x, min_count=61)
    with pytest.raises(ValueError, match="activation_atlas: "):
        made(w, x, classes=[2])
    with pytest.raises(ValueError, match="classes must be a list of classes, each once; got"):
        made(w, x, classes=[1, 1])
    missing = np.where(np.arange(61)[:, None, None, None] == 5, np.nan, x).astype(np.float32)
    with pytest.raises(ValueError, match=r"values of layer 'relu_0' must be finite; 1 of 61 have"):
        made(w, missing)
    with pytest.raises(ValueError, match="activation_atlas: "):
        made(w, x, layer="relu")
    maps = lambda w, x: jax.nn.relu(x)
    with pytest.raises(
        ValueError, match=r"classes must be given for outputs that are not \[N, K\]"
    ):
        activation_atlas(maps, None, x, layer="relu_0", key=jax.random.key(0))
