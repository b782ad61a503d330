"""Objectives and penalties: by hand and by NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import objectives, regularizers
from jaxviz.features.objectives import IMAGE, OUTPUTS, num_images

A = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
VALUES = {"a": jnp.asarray(A), OUTPUTS: jnp.asarray(A[:, 0, 0])}


def test_units():
    np.testing.assert_allclose(
        objectives.channel("a", [1, 4])(VALUES),
        [A[0, ..., 1].mean(), A[1, ..., 4].mean()],
        rtol=1e-5,
    )
    np.testing.assert_allclose(objectives.neuron("a", 3)(VALUES), A[:, 1, 2, 3])
    np.testing.assert_allclose(objectives.neuron("a", 3, (2, 0))(VALUES), A[:, 2, 0, 3])
    np.testing.assert_allclose(objectives.logit([2, 0])(VALUES), [A[0, 0, 0, 2], A[1, 0, 0, 0]])
    np.testing.assert_allclose(objectives.energy("a")(VALUES), (A**2).mean((1, 2, 3)), rtol=1e-5)


def test_directions():
    v = np.arange(5.0)
    dots = A @ v
    cosines = dots / np.linalg.norm(A, axis=-1) / np.linalg.norm(v)
    expected = (dots * np.maximum(cosines, 0.1) ** 2).mean((1, 2))
    np.testing.assert_allclose(
        objectives.direction("a", v, cosine_power=2)(VALUES), expected, rtol=1e-4
    )
    np.testing.assert_allclose(objectives.direction("a", v)(VALUES), dots.mean((1, 2)), rtol=1e-4)
    at = objectives.direction("a", v, position=(2, 1))(VALUES)
    np.testing.assert_allclose(at, dots[:, 2, 1], rtol=1e-5)


def test_algebra():
    one, two = objectives.channel("a", 1), objectives.logit(2)
    a, b = A[..., 1].mean((1, 2)), A[:, 0, 0, 2]
    mixed = 3 - (2 * one * two + one - 0.5) * jnp.array([1.0, -2.0])
    expected = 3 - (2 * a * b + a - 0.5) * [1, -2]
    np.testing.assert_allclose(mixed(VALUES), expected, rtol=1e-5)
    assert mixed.layers == ("a", OUTPUTS)
    assert num_images(mixed) == 2
    np.testing.assert_allclose((-one)(VALUES), -a, rtol=1e-5)


def test_matches():
    target = A[:1] + 1
    off = ((A - target) ** 2).sum((1, 2, 3)) / (target**2).sum()
    np.testing.assert_allclose(objectives.match("a", target)(VALUES), -off, rtol=1e-5)
    dots = (A * target).sum(-1)
    cosines = dots / np.linalg.norm(A, axis=-1) / np.linalg.norm(target, axis=-1)
    np.testing.assert_allclose(
        objectives.resemblance("a", target, cosine_power=1)(VALUES),
        (dots * np.maximum(cosines, 0.1)).mean((1, 2)),
        rtol=1e-4,
    )
    grams = [np.einsum("hwc,hwd->cd", x, x) / 12 for x in (*A, target[0])]
    expected = [-np.abs(g - grams[2]).mean() for g in grams[:2]]
    np.testing.assert_allclose(objectives.style("a", target)(VALUES), expected, rtol=1e-4)


def test_images_that_see_each_other():
    values = {"a": jnp.array([[1.0], [3.0], [4.0]]).reshape(3, 1, 1, 1)}
    # Squared distances 4, 9, 1; apart by 1, 2, 1; decay 2; two others each.
    expected = [-(4 / 2 + 9 / 4) / 2, -(4 / 2 + 1 / 2) / 2, -(9 / 4 + 1 / 2) / 2]
    np.testing.assert_allclose(objectives.alignment("a")(values), expected, rtol=1e-6)
    a = np.random.default_rng(1).normal(size=(3, 6, 4))
    grams = [(x.T @ x).ravel() for x in a]
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    expected = [-sum(cosine(grams[i], grams[j]) for j in range(3) if j != i) / 2 for i in range(3)]
    found = objectives.diversity("a")({"a": jnp.asarray(a, jnp.float32)})
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (objectives.channel("a", 0) + 0.1 * objectives.diversity("a")).coupled


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e9])
def test_likeness_has_no_scale(scale):
    target, values = jnp.asarray(A[:1] + 1), VALUES["a"]

    def alike(s):
        small = {"a": values * s}
        products = objectives.resemblance("a", target, cosine_power=1)(small) / s
        return objectives.match("a", target * s)(small), objectives.diversity("a")(small), products

    for found, expected in zip(alike(scale), alike(1.0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    slope = jax.grad(lambda a: objectives.diversity("a")({"a": a}).sum())(jnp.zeros_like(values))
    np.testing.assert_array_equal(slope, 0)  # nothing there, nothing to differ in
    nothing = objectives.match("a", jnp.zeros_like(target))(VALUES)
    np.testing.assert_allclose(nothing, -(A**2).sum((1, 2, 3)), rtol=1e-5)


def test_penalties():
    x = np.random.default_rng(2).normal(size=(2, 4, 5, 3))
    values = {IMAGE: jnp.asarray(x, jnp.float32)}
    total = np.zeros(2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")  # no difference beyond the edge
    for i, j in itertools.product(range(1, 5), range(1, 6)):
        for up, left in itertools.product((-1, 1), repeat=2):
            down = padded[:, i + up, j] - padded[:, i, j]
            right = padded[:, i, j + left] - padded[:, i, j]
            total += np.sqrt(down**2 + right**2).sum(-1) / 4
    found = regularizers.total_variation([0.5, 2.0], beta=1)(values)
    np.testing.assert_allclose(found, [0.5, 2.0] * total / 60, rtol=1e-5)
    np.testing.assert_allclose(
        regularizers.l2(3.0, centre=0.5)(values), 3 * ((x - 0.5) ** 2).mean((1, 2, 3)), rtol=1e-5
    )
    for turned in (values[IMAGE][:, ::-1], values[IMAGE][:, :, ::-1]):  # no side is preferred
        same = regularizers.total_variation([0.5, 2.0], beta=1)({IMAGE: turned})
        np.testing.assert_allclose(same, found, rtol=1e-6)
    flat = lambda image: regularizers.total_variation(1.0, beta=1)({IMAGE: image}).sum()
    assert np.isfinite(jax.grad(flat)(jnp.zeros((1, 3, 3, 1)))).all()


def test_the_blur_is_held_fixed():
    """So the slope is that of the distance alone: 2 (x - blur) / number of values."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 1))
    penalty = lambda x: regularizers.blur(1.0, sigma=0.8)({IMAGE: x}).sum()
    from scipy import ndimage

    off = np.asarray(x) - ndimage.gaussian_filter(np.asarray(x, float), (0, 0.8, 0.8, 0))
    np.testing.assert_allclose(jax.grad(penalty)(x), 2 * off / 36, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"indices; got 1\.5"):
        objectives.channel("a", 1.5)
    with pytest.raises(ValueError, match=r"one number of images, or for one; got \[2, 3\]"):
        num_images(objectives.channel("a", [1, 2]) + objectives.channel("a", [1, 2, 3]))
    with pytest.raises(
        ValueError, match=r"position must be an index for each axis of space \(3, 4"
    ):
        objectives.neuron("a", 0, (1,))(VALUES)
    with pytest.raises(ValueError, match="num must be at least 2"):
        objectives.interpolation("a", 0, 1, 1)


def test_what_is_flat_is_pushed_to_no_side():
    image = jnp.full((1, 4, 4, 1), 0.5)
    for penalty in (regularizers.lp(1.0, p=1.0, centre=0.5), regularizers.total_variation(beta=1)):
        assert not jax.grad(lambda x, f=penalty: f({IMAGE: x}).sum())(image).any()
    whole = jnp.round(VALUES["a"][:1, :2])  # products and means of 8 without rounding
    texture = objectives.style("a", whole)
    assert not jax.grad(lambda a: texture({"a": a}).sum())(whole).any()


def test_units_are_counted_in_enough_bits_and_absent_ones_are_nan():
    many = {OUTPUTS: jnp.arange(600.0).reshape(2, 300)}
    small = objectives.logit(np.array([250, 7], np.uint8))(many)
    np.testing.assert_array_equal(small, [250, 307])
    traced = jax.jit(lambda unit: objectives.logit(unit)(many))
    np.testing.assert_array_equal(traced(jnp.array([299, 300])), [299, np.nan])


def test_half_precision_is_measured_in_single():
    large = {"a": jnp.full((1, 40, 40, 1), 300, jnp.float16)}  # 9e4 is none of float16
    assert objectives.energy("a")(large).tolist() == [9e4]
    slope = jax.grad(lambda a: objectives.channel("a", 0)({"a": a}).sum())(large["a"])
    np.testing.assert_allclose(slope, np.full((1, 40, 40, 1), 1 / 1600), rtol=1e-3)
