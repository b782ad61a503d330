"""Pictures of concepts: what is written and drawn is what was found."""

import numpy as np
import pytest

from jaxviz import plot
from jaxviz.concepts import Ace, ActivationAtlas, RelevantExamples, Tcav
from jaxviz.features.examples import TopExamples


def atlas(**changes):
    parts = {
        "images": np.ones((3, 4, 4, 3)) * 0.5,
        "cells": np.array([[0, 0], [0, 2], [1, 1]]),
        "grid": (2, 3),
        "counts": np.array([4, 16, 1]),
        "directions": np.ones((3, 2)),
        "effects": np.array([[1.0, 0.0], [-2.0, 1.0], [0.0, 0.5]]),
        "classes": np.array([3, 5]),
        "points": np.zeros((21, 2)),
        "members": np.zeros(21, int),
        "count": 21,
    }
    return ActivationAtlas(**(parts | changes))


def test_cells_lie_in_their_places_as_large_as_they_are_full():
    figure = plot.activation_atlas(atlas(), class_names=list("abcdef"), target=3)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["d", "f", "f"]  # of the largest effect
    sides = [abs(image.get_extent()[1] - image.get_extent()[0]) for image in ax.images]
    np.testing.assert_allclose(
        np.array(sides) / max(sides), 0.35 + 0.65 * np.sqrt([0.25, 1, 1 / 16])
    )
    middles = [np.mean(image.get_extent()[:2]) for image in ax.images]
    np.testing.assert_allclose(middles, [0.5, 2.5, 1.5])
    for_it, against, neither = (np.ravel(patch.get_edgecolor()) for patch in ax.patches)
    assert for_it[0] > for_it[2]
    assert against[0] < against[2]
    assert neither[:3].min() > 0.9
    assert figure.get_suptitle() == "Activation atlas: 21 values in 3 cells"


def test_an_atlas_without_classes_and_one_without_the_class():
    figure = plot.activation_atlas(atlas(effects=np.zeros((3, 0)), classes=np.zeros(0, int)))
    assert not figure.axes[0].texts
    with pytest.raises(ValueError, match=r"target must be one of the classes .* \[3, 5\]; got 4"):
        plot.activation_atlas(atlas(), target=4)
    with pytest.raises(TypeError, match="activation_atlas: found must be what"):
        plot.activation_atlas(3)


def test_a_reference_sheet_has_two_lines_a_unit():
    scores = np.array([[3.0, 1.0], [7.0, -np.inf], [2.0, 1.0]])
    indices = np.array([[4, 2], [1, -1], [0, 3]])
    patches = np.full((3, 2, 4, 4, 1), 0.5)
    top = TopExamples(scores, indices, np.zeros((3, 2, 4), int), patches, np.array([1, 9, 0.5]), 5)
    heat = np.ones((3, 2, 4, 4))
    heat[1, 1] = np.nan
    figure = plot.relevant_examples(RelevantExamples(top, top, heat), num_units=2)
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if word.startswith("unit")] == ["unit 1", "unit 0"]
    assert {"7", "3", "1"} <= set(words)
    assert len(figure.axes) == 2 + 4  # of unit 1 there is one image
    named = plot.relevant_examples(RelevantExamples(top, top, heat), units=[2], names=list("xyz"))
    assert "z" in [text.get_text() for text in named.texts]
    with pytest.raises(ValueError, match="units must be some of 0 to 2; got"):
        plot.relevant_examples(RelevantExamples(top, top, heat), units=[3])


def test_clusters_have_their_scores_and_what_chance_says():
    few = np.ones((3, 1))
    tested = Tcav(("a", "b", "c"), ("conv",), few, few, few, few, few, few, few, {})
    found = Ace(
        *(np.array(a) for a in ([1.0, 0.5, np.nan], [0.001, 0.4, 1.0], [True, False, False])),
        sizes=np.array([9, 8, 7]),
        crops=np.ones((3, 2, 4, 4, 3)),
        **dict.fromkeys(["images", "resolutions", "numbers"], np.zeros((3, 2), int)),
        segments=(),
        tcav=tested,
    )
    figure = plot.concepts(found)
    told = [[text.get_text() for text in ax.texts] for ax in figure.axes[::3]]
    assert told[0] == ["1.00", "concept 0", "TCAV score, p = 0.001 *"]
    assert told[1][2] == "TCAV score, p = 0.4"
    assert told[2][0] == "nan"
