"""What climbs and what is cut out of a set, in the layout of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.features.layouts import Layout

KEYS = jax.random.split(jax.random.key(0), 3)
CONV = jax.random.normal(KEYS[0], (4, 3, 3, 3)) * 0.4
OPTIONS = {"key": KEYS[1], "num_steps": 2, "redirected_steps": 0, "transforms": ()}
UNITS = jv.objectives.channel("conv_0", [0, 3])


def channels_first(kernel, x):
    return jax.lax.conv(x, kernel, (1, 1), "SAME")


def channels_last(kernel, x):
    kernel, numbers = kernel.transpose(2, 3, 1, 0), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def last(a):
    return jnp.moveaxis(jnp.asarray(a), -3, -1)


def test_images_climb_in_the_layout_of_the_net():
    image = jax.random.uniform(KEYS[2], (3, 6, 5))
    given = {**OPTIONS, "num_frames": 1}
    found = jv.maximize_activation(channels_first, CONV, (3, 6, 5), UNITS, init=image, **given)
    twin = jv.maximize_activation(channels_last, CONV, (6, 5, 3), UNITS, init=last(image), **given)
    for name in ("images", "best", "frames"):
        theirs = getattr(twin, name)
        assert getattr(found, name).shape == (*theirs.shape[:-3], 3, 6, 5)
        np.testing.assert_allclose(last(getattr(found, name)), theirs, atol=1e-5)
    np.testing.assert_allclose(found.importance, twin.importance, atol=1e-5)
    np.testing.assert_allclose(found.scores, twin.scores, rtol=1e-4)


def test_signals_climb():
    """Of a linear net the best signal is 1 where the weight is positive, else 0."""
    weights = jax.random.normal(KEYS[0], (16, 2))
    steps = OPTIONS | {"num_steps": 60, "parametrization": jv.parametrizations.pixels()}
    net, logits = lambda w, x: x @ w, jv.objectives.logit(range(2))
    found = jv.maximize_activation(net, weights, (16,), logits, **steps)
    assert found.images.shape == (2, 16)
    assert found.importance.shape == (2, 16)
    np.testing.assert_array_equal(np.round(found.images), weights.T > 0)


@pytest.mark.parametrize(
    ("size", "axis", "image"),
    [
        ((9,), None, (9, 1, 1)),
        ((9, 2), None, (9, 1, 2)),
        ((2, 9), 1, (9, 1, 2)),
        ((3, 6, 5), 1, (6, 5, 3)),
        ((6, 5, 3), None, (6, 5, 3)),
    ],
)
def test_any_layout_is_an_image_and_back(size, axis, image):
    layout = Layout(size, axis)
    given = jax.random.uniform(KEYS[0], (2, *size))
    images = layout.images(given)
    assert layout.image == image
    assert images.shape == (2, *image)
    np.testing.assert_array_equal(layout.given(images), given)
    np.testing.assert_array_equal(layout.given(images[None])[0], given)
    channel = given if len(size) == 1 else jnp.take(given, 0, axis=-1 if axis is None else axis)
    np.testing.assert_array_equal(images[..., 0].ravel(), channel.ravel())
    places = layout.places(images[..., 0])
    assert places.shape == (2, *image[:2][: max(len(size) - 1, 1)])


def test_what_excites_most_is_cut_over_space():
    images = np.asarray(jax.random.uniform(KEYS[2], (3, 3, 6, 5)))
    found = jv.top_examples(channels_first, CONV, images, layer="conv_0", num_images=2)
    twin = jv.top_examples(channels_last, CONV, last(images), layer="conv_0", num_images=2)
    assert found.patches.shape == (4, 2, 3, 3, 3)
    np.testing.assert_array_equal(np.moveaxis(found.patches, 2, -1), twin.patches)
    np.testing.assert_array_equal(found.boxes, twin.boxes)
    top = {"layer": "conv_0", "channel": 1, "num_images": 2}
    projected = jv.top_projections(channels_first, CONV, images, **top)
    theirs = jv.top_projections(channels_last, CONV, last(images), **top)
    np.testing.assert_allclose(last(projected.projections), theirs.projections, atol=1e-6)
    np.testing.assert_array_equal(last(projected.patches), theirs.patches)


def test_signals_are_not_taken_for_images():
    with pytest.raises(ValueError, match=r"^invert: x must be images \[N, H, W, C\]; got \(2, 8\)"):
        jv.invert(lambda w, x: x @ w, jnp.eye(8), jnp.ones((2, 8)), layer="dense_0", key=KEYS[0])
