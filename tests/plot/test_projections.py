"""Patches beside their projections: order, scale, zero, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxviz.plot import map_projections, top_projections


def found(count=9, channels=3, size=5, **changed):
    rng = np.random.default_rng(count)
    values = {
        "patches": rng.uniform(size=(count, size, size, channels)),
        "projections": rng.normal(size=(count, size, size, channels)),
        "scores": np.linspace(3.0, 1.0, count),
    }
    return SimpleNamespace(**(values | changed))


def pictures(figure):
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes]


def test_patches_stand_left_of_their_projections_in_one_order():
    top = found()
    figure = top_projections({"conv2 5": top, "conv2 9": found(4)})
    left, right, *others = pictures(figure)
    assert len(others) == 2
    # Three by three with one pixel between.
    assert left.shape == right.shape == (17, 17, 3)
    np.testing.assert_allclose(left[6:11, 12:17], top.patches[5], atol=1e-6)
    one = top.projections[5]
    limit = np.percentile(np.abs(one), 99.5)
    expected = (np.clip(one / limit, -1, 1) + 1) / 2
    np.testing.assert_allclose(right[6:11, 12:17], expected, atol=1e-12)
    boxes = [ax.get_position() for ax in figure.axes]
    assert boxes[0].x1 < boxes[1].x0 < boxes[2].x0
    said = [text.get_text() for text in figure.texts]
    assert {"conv2 5", "conv2 9", "activation 3 to 1"} <= set(said)


def test_zero_is_the_middle_tone_and_an_empty_projection_is_all_zero():
    sparse = np.zeros((1, 20, 20, 1))
    sparse[0, 0, 0], sparse[0, 0, 1] = 5.0, -5.0  # below the percentile: the largest is the scale
    _, right = pictures(top_projections({"sparse": found(1, 1, 20, projections=sparse)}))
    assert right[5, 5].min() > 0.95  # white
    assert right[0, 0, 0] > right[0, 0, 2] + 0.2  # red
    assert right[0, 1, 2] > right[0, 1, 0] + 0.2  # blue
    _, right = pictures(top_projections({"dead": found(1, 3, projections=np.zeros((1, 5, 5, 3)))}))
    assert (right == 0.5).all()


@pytest.mark.parametrize(
    ("tops", "message"),
    [
        ({}, "needs one feature map or more"),
        (
            {"a": found(2, patches=np.full((2, 5, 5, 3), 2.0))},
            r"\('a'\): images must lie in 0 to 1",
        ),
        ({"a": found(2, scores=np.ones(3))}, r"scores of 'a' must be .* \(2,\); got"),
    ],
)
def test_refusals(tops, message):
    with pytest.raises(ValueError, match=message):
        top_projections(tops)


def test_each_map_stands_above_its_projection_beside_the_input():
    rng = np.random.default_rng(0)
    maps, back = rng.normal(size=(3, 3, 2)), rng.normal(size=(2, 6, 6, 1))
    image = rng.uniform(size=(6, 6))
    figure = map_projections(image, {"conv1": (maps, back, [4, 7]), "conv2": (maps, back, "ab")})
    given, first, below, *_ = axes = figure.axes
    assert len(axes) == 1 + 2 * 2 * 2
    np.testing.assert_allclose(np.asarray(given.images[0].get_array())[..., 0], image, atol=1e-6)
    np.testing.assert_array_equal(first.images[0].get_array(), maps[..., 0])
    boxes = [ax.get_position() for ax in (given, first, below)]
    assert boxes[0].x1 < boxes[1].x0 == pytest.approx(boxes[2].x0)
    assert boxes[2].y1 < boxes[1].y0
    colours = np.asarray(below.images[0].get_array())
    redder = colours[..., 0] > colours[..., 2]
    clear = np.abs(back[0, ..., 0]) > 0.1  # near zero it is white
    np.testing.assert_array_equal(redder[clear], (back[0, ..., 0] > 0)[clear])
    said = [text.get_text() for text in figure.texts]
    assert {"4", "7", "a", "b", f"{maps[..., 1].max():.3g}"} <= set(said)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "needs one layer or more"),
        ({"a": (np.ones((3, 3, 2)), np.ones((2, 5, 6, 1)), "ab")}, r"as the image \(6, 6\)"),
        ({"a": (np.ones((3, 3)), np.ones((2, 6, 6, 1)), "ab")}, r"got \(3, 3\)"),
        ({"a": (np.ones((3, 3, 2)), np.ones((2, 6, 6, 1)), "a")}, "got 2, 2 and 1"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        map_projections(np.ones((6, 6)), layers)
