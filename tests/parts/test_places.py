"""Where segments lie: cells of a grid are known when a program is made, boxes are data of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.parts import covered
from jaxviz.parts.places import boxes_of, cells_of, stretches
from jaxviz.parts.regions import grid_segments, segments_like
from jaxviz.rules.spans import cut

X = jax.random.normal(jax.random.key(0), (3, 11, 13, 2))
ROWS = jnp.ones((3, 5))


def known(segments, x=X):
    found = segments_like("m", segments, x, None)
    return cells_of(segments, found, x), boxes_of(segments, found, x), found


@pytest.mark.parametrize("cells", [(3, 4), (11, 13), (1, 13)])
def test_grids_are_told_from_other_segments(cells):
    grid = grid_segments((11, 13), cells)
    assert known(grid)[0] == (*cells, 1)
    assert known(jnp.asarray(grid))[0] == (*cells, 1)
    assert known(np.tile(grid, (3, 1, 1)))[0] is None  # each example's own, be they alike
    assert known(grid[:, ::-1])[0] is None
    assert known(grid - 1)[0] is None
    grid[4, 5] = 0
    assert known(grid)[0] is None


def test_numbers_on_their_own_are_a_grid():
    assert known(np.arange(11 * 13 * 2).reshape(11, 13, 2))[0] == (11, 13, 2)
    assert known(np.arange(5), ROWS)[0] == (5,)
    assert known(np.array([0, 0, 0, 1, 1]), ROWS)[0] == (2,)
    assert known(np.array([0, 1, 1, 1, 1]), ROWS)[0] is None  # no equal parts


@pytest.mark.parametrize("irregular", [False, True])
def test_a_stretch_holds_its_segment(irregular):
    segments = grid_segments((11, 13), (3, 4))
    if irregular:
        segments[3, 6], segments[0, 0] = 4, -1
    cells, boxes, found = known(segments)
    assert (cells is None) is irregular
    stretch = stretches(cells, boxes or (None, ()), found, X)
    assert stretch is not None
    for k in range(12):
        inside = cut(
            jnp.asarray(segments)[None, ..., None] == k, (*stretch(jnp.int32(k))[:3], None)
        )
        assert inside.sum() == (segments == k).sum()
        assert inside.size <= (8 * 8 if irregular else 4 * 4)


def net(w, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    for kernel in w:
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x)
    return x.mean((1, 2))


@pytest.mark.parametrize("irregular", [False, True])
def test_what_changes_with_a_segment_is_all_that_is_run(irregular, monkeypatch):
    """Of ablation and permutation, as by whole passes."""
    keys = jax.random.split(jax.random.key(1))
    w = [jax.random.normal(k, (3, 3, a, 4)) / 4 for k, a in zip(keys, (2, 4), strict=True)]
    segments = grid_segments((11, 13), (3, 4))
    if irregular:
        segments[3, 6] = 4
    permuted = {"key": jax.random.key(2), "num_samples": 2}
    both = (jv.feature_ablation, {"fill": 0.3}), (jv.feature_permutation, permuted)

    def run(overhead):
        monkeypatch.setattr(covered, "_OVERHEAD", overhead)
        alone = lambda w, x: net(w, x)  # another function, to be traced anew
        return [method(alone, w, X, 1, segments=segments, **told) for method, told in both]

    for found, expected in zip(run(0), run(np.inf), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
