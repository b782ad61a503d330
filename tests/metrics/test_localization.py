"""Scores against masks: cases by hand, scikit-learn's AUC, ties, empty masks, mosaics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import jaxviz as jv
from jaxviz import metrics

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(5, 8, 9)).astype(np.float32)
MASKS = RNG.random((5, 8, 9)) < 0.3
FLAT = [(a.ravel(), m.ravel()) for a, m in zip(MAPS, MASKS, strict=True)]
OF_MASKS = [
    metrics.pointing_game,
    metrics.relevance_mass,
    metrics.energy_based_pointing,
    metrics.attribution_localisation,
    metrics.relevance_rank,
    lambda a, m: metrics.top_k_intersection(a, m, k=3),
    metrics.auc,
    metrics.focus,
]


def test_each_score_is_its_formula():
    mass = [np.maximum(a, 0)[m].sum() / np.maximum(a, 0).sum() for a, m in FLAT]
    for score in (metrics.relevance_mass, metrics.energy_based_pointing, metrics.focus):
        np.testing.assert_allclose(score(MAPS, MASKS), mass, rtol=1e-5)
    weighted = [one * m.size / m.sum() for one, (_, m) in zip(mass, FLAT, strict=True)]
    found = metrics.attribution_localisation(MAPS, MASKS, weighted=True)
    np.testing.assert_allclose(found, weighted, rtol=1e-5)
    rank = [m[np.argsort(-a)[: m.sum()]].mean() for a, m in FLAT]
    np.testing.assert_allclose(metrics.relevance_rank(MAPS, MASKS), rank, rtol=1e-6)
    top = [m[np.argsort(-a)[:10]].mean() for a, m in FLAT]
    np.testing.assert_allclose(metrics.top_k_intersection(MAPS, MASKS, k=10), top, rtol=1e-6)
    hit = [float(m[a.argmax()]) for a, m in FLAT]
    np.testing.assert_allclose(metrics.pointing_game(MAPS, MASKS, tolerance=0), hit)


@pytest.mark.parametrize("maps", [MAPS, np.round(MAPS)], ids=["", "ties"])
def test_auc_is_scikit_learns(maps):
    theirs = [roc_auc_score(m.ravel(), a.ravel()) for a, m in zip(maps, MASKS, strict=True)]
    np.testing.assert_allclose(metrics.auc(maps, MASKS), theirs, rtol=1e-5)


@pytest.mark.parametrize("tolerance", [1.5, 2.2, 15])
def test_the_tolerance_is_a_distance(tolerance):
    found = metrics.pointing_game(MAPS, MASKS, tolerance=tolerance)
    far = []
    for a, m in zip(MAPS, MASKS, strict=True):
        top = np.unravel_index(a.argmax(), a.shape)
        far.append(np.hypot(*(np.argwhere(m) - np.array(top)).T).min())
    np.testing.assert_array_equal(found, [float(d <= tolerance) for d in far])
    # One place far from the other, so that every tolerance tells something.
    a, m = np.zeros((1, 1, 20)), np.zeros((1, 1, 20))
    a[..., 0], m[..., 2] = 1, 1
    assert metrics.pointing_game(a, m, tolerance=tolerance).tolist() == [float(tolerance >= 2)]


def test_ties_are_shared_and_a_constant_map_scores_as_chance():
    constant, zero = np.ones_like(MAPS), np.zeros_like(MAPS)
    area = MASKS.reshape(5, -1).mean(1)
    for flat in (constant, zero):
        np.testing.assert_allclose(metrics.relevance_rank(flat, MASKS), area, rtol=1e-5)
        np.testing.assert_allclose(metrics.pointing_game(flat, MASKS, tolerance=0), area, rtol=1e-5)
        np.testing.assert_allclose(metrics.top_k_intersection(flat, MASKS, k=7), area, rtol=1e-5)
        np.testing.assert_allclose(metrics.auc(flat, MASKS), 0.5)
    np.testing.assert_allclose(metrics.relevance_mass(constant, MASKS), area, rtol=1e-5)
    assert np.isnan(metrics.relevance_mass(zero, MASKS)).all()
    tiny = 1e-35 * np.abs(MAPS)
    np.testing.assert_allclose(
        metrics.relevance_mass(tiny, MASKS), metrics.relevance_mass(abs(MAPS), MASKS), rtol=1e-5
    )


@pytest.mark.parametrize("score", OF_MASKS)
def test_empty_masks_and_nan_are_nan(score):
    assert np.isnan(score(MAPS, np.zeros_like(MASKS))).all()
    spoilt = MAPS.copy()
    spoilt[1, 0, 0] = np.nan
    assert np.isnan(score(spoilt, MASKS)).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("score", [metrics.pointing_game, metrics.relevance_mass])
def test_channels_are_summed_wherever_they_are(score):
    deep = RNG.normal(size=(5, 8, 9, 3)).astype(np.float32)
    expected = score(deep.sum(-1), MASKS)
    np.testing.assert_allclose(score(deep, MASKS), expected, rtol=1e-4)
    np.testing.assert_allclose(score(np.moveaxis(deep, -1, 1), MASKS), expected, rtol=1e-4)


def test_wrong_masks_are_refused():
    with pytest.raises(ValueError, match=r"^auc: mask must be .* got mask \(5, 4, 9\)"):
        metrics.auc(MAPS, MASKS[:, :4])
    with pytest.raises(ValueError, match=r"^top_k_intersection: k must be in \[1, 72\]"):
        metrics.top_k_intersection(MAPS, MASKS)


def test_boxes_become_masks():
    boxes = np.array([[[1, 0, 3, 2], [3, 2, 9, 9]], [[0, 0, 0, 0], [1.4, 0.6, 2.6, 1.4]]])
    found = metrics.boxes_to_masks(boxes, (3, 4))
    expected = np.zeros((2, 3, 4), bool)
    expected[0, 0:2, 1:3] = expected[0, 2, 3] = True
    expected[1] = False  # the second box holds no pixel's centre but (1.5, 1.5)? y 0.6..1.4: none
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(metrics.boxes_to_masks(boxes[:, 0], (3, 4))[1], False)


IMAGES = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) * np.ones((1, 4, 4, 1), np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def test_a_mosaic_has_its_image_once_among_others_of_other_classes():
    made = metrics.mosaics(IMAGES, LABELS, key=jax.random.key(0), grid=(2, 2))
    assert made.x.shape == (6, 8, 8, 1)
    for n in range(6):
        cells = np.asarray(made.x[n, ::4, ::4, 0]).ravel().astype(int)
        own = np.asarray(made.mask[n, ::4, ::4]).ravel()
        assert cells[own].tolist() == [n]
        others = cells[~own]
        assert len(set(others)) == 3
        assert (LABELS[others] != LABELS[n]).all()
        assert made.mask[n].sum() == 16
    again = metrics.mosaics(IMAGES, LABELS, key=jax.random.key(0), grid=(2, 2))
    np.testing.assert_array_equal(made.x, again.x)


def test_mosaics_of_one_size_and_of_too_few_classes():
    small = metrics.mosaics(IMAGES, LABELS, key=jax.random.key(0), resize=True)
    assert small.x.shape == IMAGES.shape
    assert small.mask.reshape(6, -1).sum(1).tolist() == [4] * 6
    few = metrics.mosaics(IMAGES[:3], LABELS[:3], key=jax.random.key(0), grid=(3, 3))
    assert np.isfinite(few.x).all()  # neighbours are used again
    alone = metrics.mosaics(IMAGES[:2], LABELS[:2], key=jax.random.key(0))
    assert np.isnan(alone.x).all()


def test_the_grid_pointing_game_knows_the_right_cell():
    x = np.eye(3)[LABELS][:, None, None, :] * np.ones((6, 4, 4, 1))
    x = jnp.asarray(x, jnp.float32)
    net = lambda _, x: x.sum((1, 2))
    key = jax.random.key(1)
    right = metrics.grid_pointing_game(jv.input_x_gradient, net, None, x, LABELS, key=key)
    np.testing.assert_allclose(right, 1)
    blind = lambda f, p, x, target: jnp.ones_like(x)
    for resize in (False, (6, 6)):
        chance = metrics.grid_pointing_game(blind, net, None, x, key=key, resize=resize)
        np.testing.assert_allclose(chance, 1 / 4, rtol=1e-6)
    turned = lambda _, x: x.sum((2, 3))
    first = jv.channels_first(turned)
    same = metrics.grid_pointing_game(
        jv.input_x_gradient, first, None, jnp.moveaxis(x, 3, 1), LABELS, key=key
    )
    np.testing.assert_allclose(same, right)
    with pytest.raises(ValueError, match=r"^grid_pointing_game: x must be images"):
        metrics.grid_pointing_game(jv.gradient, lambda _, x: x, None, x[:, 0, 0], key=key)
