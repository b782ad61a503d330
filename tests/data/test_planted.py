"""Planted truth: the label is where the mask says, and nowhere else; solved models are solved."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxviz as jv
from jaxviz import data, training

KEY = jax.random.key(0)
IMAGES = np.repeat(np.arange(12, dtype=np.float32) / 12, 16).reshape(12, 4, 4, 1)
MADE = {
    "mark": lambda key: data.planted_mark(key, 300),
    "blob": lambda key: data.planted_blob(key, 300),
    "mosaic": lambda key: data.planted_mosaic(key, IMAGES, np.arange(12) % 3, 300),
}


@pytest.mark.parametrize("name", MADE)
def test_the_key_decides_and_all_classes_come(name):
    one, two, other = (MADE[name](jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(tuple(one), tuple(two))
    assert not np.array_equal(one.images, other.images)
    counts = np.bincount(one.labels, minlength=len(one.class_names))
    assert counts.min() > 40  # 75 or 100 of each are expected
    assert one.masks.shape == one.images.shape[:3]
    assert one.masks.any((1, 2)).all()
    assert (one.images.dtype, one.labels.dtype, one.masks.dtype) == ("float32", "int32", "bool")
    assert len(one.dataset.labels) == 300


def hue(pixels):
    """Of full colours `[N, 3]`, in sixths of the wheel."""
    r, g, b = pixels.T
    return np.where(r >= np.maximum(g, b), (g - b) % 6, np.where(g >= b, 2 + b - r, 4 + r - g))


@pytest.mark.parametrize("classes", [3, 6])
def test_the_mark_alone_has_the_colour_of_its_class(classes):
    made = data.planted_mark(KEY, 300, num_classes=classes)
    assert (made.masks.sum((1, 2)) == 25).all()  # a whole square: none lies over it
    coloured = made.images.max(-1) - made.images.min(-1) > 0.5
    assert (coloured.sum((1, 2)) == 100).all()  # the others, whole too
    for image, label, mask, dots in zip(
        made.images, made.labels, made.masks, coloured, strict=True
    ):
        bright = image / image.max(-1, keepdims=True)
        step = hue(bright[mask]) * classes / 6
        np.testing.assert_allclose(step, label, atol=1e-3)
        np.testing.assert_allclose(hue(bright[dots & ~mask]) * classes / 6 % 1, 0.5, atol=1e-3)


def test_without_its_mark_an_image_says_nothing_of_its_class():
    made = data.planted_mark(KEY, 300)
    rest = np.where(made.masks[..., None], 0.5, made.images).mean((1, 2))
    whole = made.images.mean((1, 2))
    for c in range(3):  # the mark painted out, classes differ from all by chance alone
        rows = made.labels == c
        for seen, told in ((rest, False), (whole, True)):
            away = np.abs(seen[rows].mean(0) - seen.mean(0)) / (seen.std(0) / np.sqrt(rows.sum()))
            assert (away > 4).any() == told


def test_a_blob_lies_in_the_quadrant_of_its_class():
    made = data.planted_blob(KEY, 100, noise=0.0)
    for image, label, mask in zip(made.images[..., 0], made.labels, made.masks, strict=True):
        quadrants = mask.reshape(2, 14, 2, 14).any((1, 3)).ravel()
        assert quadrants.nonzero()[0].tolist() == [label]
        assert image[mask].min() > image[~mask].max()
    assert np.std(data.planted_blob(KEY, 100).images - made.images) == pytest.approx(0.1, rel=0.02)


def test_a_mosaic_has_one_tile_of_its_class_and_no_image_twice():
    labels = np.arange(12) % 3
    made = data.planted_mosaic(KEY, IMAGES, labels, 200, grid=(2, 3))
    tiles = made.images.reshape(200, 2, 4, 3, 4).swapaxes(2, 3).reshape(200, 6, 16)
    assert (tiles == tiles[..., :1]).all()  # whole images, in order
    number = np.rint(tiles[..., 0] * 12).astype(int)
    assert all(len(set(row)) == 6 for row in number.tolist())
    there = made.masks.reshape(200, 2, 4, 3, 4).all((2, 4)).reshape(200, 6)
    assert (made.masks.sum((1, 2)) == 16).all()
    assert (there.sum(1) == 1).all()
    np.testing.assert_array_equal(labels[number] == made.labels[:, None], there)
    assert (there.sum(0) > 15).all()  # at every place


LINEAR = data.planted_linear(KEY, 6, shape=(2, 3, 1), num_relevant=3, baseline=0.25)
PAIRS = {
    name: data.planted_pairs(KEY, 6, pair=pair, shape=(2, 3, 1), num_pairs=2, baseline=0.25)
    for name, pair in (("product", jnp.multiply), ("least", jnp.minimum), ("most", jnp.maximum))
}
SOLVED = {"linear": LINEAR, **PAIRS}


@pytest.mark.parametrize("name", SOLVED)
def test_solved_models_have_the_shapley_values_of_all_coalitions(name):
    one = SOLVED[name]  # oracle: the definition, over all 2^6 coalitions
    segments = np.arange(6).reshape(2, 3)
    exact = jv.shapley_values(
        one.apply_fn, one.params, one.images, one.labels, segments=segments, fill=one.baseline
    )
    np.testing.assert_allclose(exact.map, one.attribution[..., 0], atol=2e-6)
    assert (one.attribution[..., 0][~one.masks] == 0).all()
    assert (one.attribution[..., 0][one.masks] != 0).any()


def test_integrated_gradients_solve_products_and_not_minima():
    ig = lambda one: jv.integrated_gradients(
        one.apply_fn, one.params, one.images, one.labels, baseline=one.baseline
    )
    np.testing.assert_allclose(ig(LINEAR), LINEAR.attribution, atol=1e-6)
    np.testing.assert_allclose(ig(PAIRS["product"]), PAIRS["product"].attribution, atol=1e-6)
    assert np.abs(ig(PAIRS["least"]) - PAIRS["least"].attribution).max() > 0.05


def test_models_of_one_pair_function_are_one_model():
    again = data.planted_pairs(jax.random.key(5), 6, pair=jnp.minimum)
    assert again.apply_fn == PAIRS["least"].apply_fn != PAIRS["most"].apply_fn


def test_too_little_room_is_told():
    with pytest.raises(ValueError, match="planted_mark: size must be at least 16 for 16 squares"):
        data.planted_mark(KEY, 1, size=12, num_distractors=15)
    with pytest.raises(ValueError, match="must have 3 of other classes for each; got 2 beside"):
        data.planted_mosaic(KEY, IMAGES[:5], [0, 0, 0, 1, 1], 2)
    with pytest.raises(ValueError, match="num_pairs must leave room in 6 inputs; got 4"):
        data.planted_pairs(KEY, 1, shape=(2, 3, 1), num_pairs=4)
    with pytest.raises(ValueError, match=r"baseline must be a number or of shape \(8, 8, 1\); got"):
        data.planted_linear(KEY, 1, baseline=np.zeros(3))


def test_a_net_of_shuffled_labels_learns_them_and_nothing_else():
    class Table(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    points = np.eye(40, dtype=np.float32)  # each can be learned by heart
    true = data.Dataset(points, (np.arange(40) % 4).astype(np.int32), tuple("abcd"))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        found = training.fit_shuffled(
            Table(), true, key=KEY, optimizer=optax.adam(0.5), num_epochs=8, batch_size=40
        )
    learned = np.asarray(Table().apply(found.variables, points)).argmax(1)
    assert sorted(learned.tolist()) == sorted(true.labels.tolist())  # as many of each
    assert (learned == true.labels).mean() < 0.5  # by chance a quarter
    np.testing.assert_array_equal(
        learned, jax.random.permutation(jax.random.split(KEY)[0], jnp.asarray(true.labels))
    )
