"""Patches beside their projections: order, scale, zero, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxviz.plot import top_projections


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
