"""Grids of what a layer sees, of a net whose layer is the image's own colours."""

import jax
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import parametrizations, plot

COLOURS = np.eye(3, dtype=np.float32)


def net(w, x):
    return jax.nn.relu(x).mean((1, 2)) @ w


def made(x, **more):
    options = {
        "layer": "relu_0", "key": jax.random.key(0), "num_steps": 60, "transforms": (),
        "redirected_steps": 0, "parametrization": parametrizations.pixels(),
    }  # fmt: skip
    return jv.activation_grid(net, COLOURS, x, **options | more)


def test_each_place_shows_its_own_colour():
    kinds = np.random.default_rng(0).integers(0, 3, (2, 2, 3))
    x = COLOURS[kinds] * np.arange(1, 4, dtype=np.float32)[None, None, :, None]
    x[1, 0, 0] = 0  # where nothing is
    found = made(x, shape=(4, 4, 3), chunk_size=5)  # 12 places in chunks of 5
    assert found.images.shape == (2, 2, 3, 4, 4, 3)
    np.testing.assert_allclose(found.strengths, np.linalg.norm(x, axis=-1))
    seen = np.asarray(found.images).mean((3, 4))
    there = np.asarray(found.strengths) > 0
    np.testing.assert_array_equal(seen.argmax(-1)[there], kinds[there])
    other = made(3 * x, shape=(4, 4, 3))  # the direction counts, not its length
    np.testing.assert_allclose(other.images, found.images, atol=1e-5)
    figure = plot.activation_grid(found, x / 3)
    drawn = figure.axes[3].images
    assert len(drawn) == 5  # of six places one holds nothing
    with pytest.raises(ValueError, match="activation_grid: images must be 2, one for each line"):
        plot.activation_grid(found, x[:1] / 3)


def test_a_layer_without_places_is_refused():
    flat = lambda w, x: jax.nn.relu(x.reshape(len(x), -1))
    with pytest.raises(ValueError, match="activation_grid: layer must have two axes of space"):
        jv.activation_grid(flat, 0.0, np.ones((1, 2, 2, 3), np.float32), layer="relu_0",
                           key=jax.random.key(0))  # fmt: skip
