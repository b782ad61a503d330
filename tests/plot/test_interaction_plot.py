"""The picture of pairs: what is drawn where, how strong, and what is refused."""

import matplotlib.colors
import numpy as np
import pytest

from jaxviz.plot import interactions

PAIRS = np.array([[0, 2.0, -1], [2, 0, 0], [-1, 0, 0]])
CELLS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, -1, -1], [2, 2, -1, -1]])


def test_the_matrix_has_pairs_and_values_in_one_scale():
    figure = interactions(PAIRS, values=[4.0, 0, 1], names=["$a", "b", "c"], title="two by two")
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(np.diagonal(np.asarray(image.get_array())), [4, 0, 1])
    assert image.get_clim() == (-4, 4)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["$a", "b", "c"]


def test_lines_go_between_middles_strongest_widest_and_none_for_nothing():
    figure = interactions(PAIRS, image=np.zeros((4, 4)), segments=CELLS, max_pairs=5)
    weak, strong = figure.axes[0].lines  # drawn on top of it; the third pair is 0
    np.testing.assert_allclose(np.asarray(strong.get_xydata()), [[0.5, 0.5], [2.5, 0.5]])
    np.testing.assert_allclose(np.asarray(weak.get_xydata()), [[0.5, 0.5], [0.5, 2.5]])
    assert strong.get_linewidth() > weak.get_linewidth()
    red, _, blue, *_ = matplotlib.colors.to_rgba(strong.get_color())
    assert red > blue
    red, _, blue, *_ = matplotlib.colors.to_rgba(weak.get_color())
    assert red < blue
    assert (
        len(interactions(PAIRS, image=np.zeros((4, 4)), segments=CELLS, max_pairs=1).axes[0].lines)
        == 1
    )


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        (PAIRS[None], {}, r"pairs must be \[G, G\]"),
        ([[0, 1.0], [2, 0]], {}, "symmetric"),
        (PAIRS, {"values": [1.0]}, r"values must be \[3\]"),
        (PAIRS, {"names": ["a"]}, "names must be 3"),
        (PAIRS, {"image": np.zeros((4, 4))}, "together"),
        (PAIRS, {"image": np.zeros((5, 5)), "segments": CELLS}, r"segments must be \(5, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(pairs, options, said):
    with pytest.raises(ValueError, match=f"interactions: .*{said}"):
        interactions(pairs, **options)
