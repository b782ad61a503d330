"""Grids of images and of a layer's units."""

import numpy as np
import pytest

from jaxviz.plot import feature_maps, image_grid


def said(figure):
    return [text.get_text() for text in figure.texts]


def test_rows_are_predicted_classes_and_wrong_ones_are_framed():
    predicted, labels = np.array([2, 0, 2, 2]), np.array([2, 0, 1, 2])
    figure = image_grid(
        np.linspace(0, 1, 4 * 9).reshape(4, 3, 3),
        predicted,
        labels=labels,
        class_names=["ant", "bee", "cat"],
    )
    assert figure.get_suptitle() == "4 images by predicted class, 1 wrong"
    text = said(figure)
    assert text.index("ant") < text.index("cat")
    assert "1 of 1 right" in text
    assert "2 of 3 right" in text
    widths = [next(iter(ax.spines.values())).get_linewidth() for ax in figure.axes]
    assert [width > 1 for width in widths] == [False, False, True, False]
    assert text.count("bee") == 1  # the true class of the wrong one; nobody was called bee


def test_a_row_is_cut_and_its_count_is_not():
    figure = image_grid(np.zeros((25, 3, 3)), np.zeros(25, int), per_row=10)
    assert len(figure.axes) == 10
    assert "25" in said(figure)


def test_images_stand_in_the_order_given():
    images = np.stack([np.full((2, 2), v) for v in (0.1, 0.9, 0.5)])
    figure = image_grid(images, np.array([1, 0, 1]))
    values = [float(np.asarray(ax.images[0].get_array())[0, 0, 0]) for ax in figure.axes]
    np.testing.assert_allclose(values, [0.9, 0.1, 0.5], atol=1e-6)


def test_each_feature_map_is_standardised():  # mean 0, standard deviation 1, by definition
    maps = np.random.default_rng(0).normal(3.0, [0.01, 1.0, 100.0], (6, 5, 3))
    figure = feature_maps(maps)
    for ax in figure.axes:
        values = np.asarray(ax.images[0].get_array())
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-9)


def test_a_dead_unit_is_said():
    maps = np.zeros((4, 4, 2))
    maps[0, 0, 1] = -7.0
    text = said(feature_maps(maps, names=["dead", "alive"]))
    assert {"dead", "all 0", "alive", "-7"} <= set(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[[0.0]]], None), "predicted must be .* got None"),
        (([[[0.0]]], np.array([[0]])), r"predicted must be 1 integers.*\(1, 1\)"),
        (([[[0.0]]], np.array([-1])), "class indices, from 0; got -1 to -1"),
    ],
)
def test_image_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"image_grid: .*{message}"):
        image_grid(*arguments)


def test_no_image_a_row_is_refused():
    with pytest.raises(ValueError, match="per_row must be 1 or more; got 0"):
        image_grid(np.zeros((1, 2, 2)), np.array([0]), per_row=0)


def test_feature_maps_refuses_a_batch():
    with pytest.raises(ValueError, match=r"one example; got \(1, 2, 2, 3\). Pick one"):
        feature_maps(np.zeros((1, 2, 2, 3)))
