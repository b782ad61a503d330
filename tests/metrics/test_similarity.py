"""Similarities of attributions beside SciPy's and scikit-image's, with ties, constants and NaN."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from scipy.stats import pearsonr, rankdata, spearmanr

import jaxviz as jv
from jaxviz import metrics
from jaxviz.metrics.maps import ranks

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 5, 7)).astype(np.float32)
TIED = np.round(A), np.round(2 * B) / 2


@pytest.mark.parametrize(("a", "b"), [(A, B), TIED, (A * 1e-30, B * 1e30)], ids=["", "ties", "far"])
def test_correlations_are_scipys(a, b):
    pairs = [(x.ravel().astype(np.float64), y.ravel().astype(np.float64)) for x, y in zip(a, b)]  # noqa: B905
    for ours, theirs in [
        (metrics.spearman, lambda x, y: spearmanr(x, y)[0]),
        (metrics.pearson, lambda x, y: pearsonr(x, y)[0]),
        (metrics.cosine, lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)),
    ]:
        np.testing.assert_allclose(ours(a, b), [theirs(x, y) for x, y in pairs], atol=1e-6)


def test_ranks_are_scipys_and_both_zeros_are_equal():
    rows = np.array([[3.0, -0.0, 0.0, 3.0, -1.0, 3.0]], np.float32)
    np.testing.assert_array_equal(ranks(jnp.asarray(rows)), rankdata(rows, axis=1))


SHAPES = [(16, 12), (5, 9), (30,), (9, 8, 3)]


def structural_similarity(a, b, data_range, win_size=7, channel_axis=None):
    """scikit-image's, by the filter of SciPy that it is made of; scikit-image is an extra."""
    if channel_axis is not None:
        pairs = zip(np.moveaxis(a, channel_axis, 0), np.moveaxis(b, channel_axis, 0), strict=True)
        return np.mean([structural_similarity(x, y, data_range, win_size) for x, y in pairs])
    mean = lambda m: uniform_filter(m, win_size)
    sample = win_size**a.ndim / (win_size**a.ndim - 1)
    of_a, of_b = mean(a), mean(b)
    var_a, var_b = (sample * (mean(m * m) - mean(m) ** 2) for m in (a, b))
    both = sample * (mean(a * b) - of_a * of_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = (2 * of_a * of_b + c1) * (2 * both + c2)
    found = found / ((of_a**2 + of_b**2 + c1) * (var_a + var_b + c2))
    inner = (win_size - 1) // 2
    return found[(slice(inner, -inner),) * a.ndim].mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_of_ssim_is_scikit_images(shape):
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    a, b = np.random.default_rng(1).normal(size=(2, *shape))
    given = {"data_range": 4.0, "win_size": min(7, min(shape[:2]))}
    given |= {"channel_axis": -1} if len(shape) == 3 else {}
    np.testing.assert_allclose(structural_similarity(a, b, **given), theirs(a, b, **given), 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_ssim_is_scikit_images(shape, shift):
    a, b = RNG.normal(size=(2, 3, *shape)) + shift
    extent = [max(x.max(), y.max()) - min(x.min(), y.min()) for x, y in zip(a, b, strict=True)]
    channels = {"channel_axis": -1} if len(shape) == 3 else {}
    theirs = [
        structural_similarity(x, y, data_range=r, win_size=min(7, min(shape[:2])), **channels)
        for x, y, r in zip(a, b, extent, strict=True)
    ]
    ours = metrics.ssim(a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(ours, theirs, atol=2e-5 if not shift else 1e-3)


def test_ssim_of_pictures_is_not_that_of_rows_joined_up():
    # Quantus 0.6.0 flattens: what lies above one another is then far apart.
    a, b = RNG.normal(size=(2, 16, 16))
    extent = max(a.max(), b.max()) - min(a.min(), b.min())
    flat = structural_similarity(a.ravel(), b.ravel(), data_range=extent)
    picture = structural_similarity(a, b, data_range=extent)
    ours = metrics.ssim(a[None].astype(np.float32), b[None].astype(np.float32))[0]
    flattened = metrics.ssim(
        a.reshape(1, -1).astype(np.float32), b.reshape(1, -1).astype(np.float32)
    )[0]
    np.testing.assert_allclose([ours, flattened], [picture, flat], atol=2e-5)
    assert abs(picture - flat) > 0.01


def test_constants_and_nan_have_stated_values():
    still, moving = np.ones((1, 9), np.float32), np.arange(9, dtype=np.float32)[None]
    zero, nan = np.zeros((1, 9), np.float32), np.full((1, 9), np.nan, np.float32)
    for like in (metrics.spearman, metrics.pearson):
        assert np.isnan(like(still, moving)).all()
        assert np.isnan(like(0.1 * still, moving)).all()  # whose mean is not 0.1 to the last bit
    assert np.isnan(metrics.cosine(zero, moving)).all()
    assert metrics.ssim(still, still).tolist() == [1.0]
    assert metrics.top_k_overlap(still, zero, k=3).tolist() == pytest.approx([1 / 3])
    for like in (metrics.spearman, metrics.pearson, metrics.cosine, metrics.ssim):
        assert np.isnan(like(nan, moving)).all()
    assert np.isnan(metrics.top_k_overlap(nan, moving, k=3)).all()


def test_pytrees_are_their_leaves_together():
    a, b = ({"u": m[:, :2], "v": m[:, 2:]} for m in (A, B))
    joined = [np.concatenate([m["u"].reshape(6, -1), m["v"].reshape(6, -1)], 1) for m in (a, b)]
    np.testing.assert_allclose(metrics.spearman(a, b), metrics.spearman(*joined), rtol=1e-6)


def test_top_k_overlap_counts():
    a, b = A.reshape(6, -1), B.reshape(6, -1)
    top = lambda row: set(np.argsort(-row)[:10].tolist())
    ours = metrics.top_k_overlap(a, b, k=10)
    np.testing.assert_allclose(
        ours, [len(top(x) & top(y)) / 10 for x, y in zip(a, b, strict=True)], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"^top_k_overlap: k must be in \[1, 35\]"):
        metrics.top_k_overlap(a, b, k=36)


def test_agreement_is_the_mean_with_a_bootstrap_interval():
    a = RNG.normal(size=(40, 12)).astype(np.float32)
    noisy = a + RNG.normal(size=a.shape).astype(np.float32)
    noisy[0] = 1.0  # constant: no correlation
    out = metrics.agreement([a, noisy, -a], key=jax.random.key(0), num_samples=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = np.array([spearmanr(x, y)[0] for x, y in zip(a, noisy, strict=True)])
    each = each[~np.isnan(each)]
    assert out.count[0, 1] == 39
    assert out.count[0, 2] == 40
    np.testing.assert_allclose(out.mean[0, 1], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.mean, out.mean.T)
    np.testing.assert_allclose(np.diag(out.mean), 1, rtol=1e-6)
    # The normal interval of a mean, from which 400 draws are some hundredths off.
    error = 1.96 * each.std() / np.sqrt(len(each))
    np.testing.assert_allclose(out.low[0, 1], each.mean() - error, atol=0.02)
    np.testing.assert_allclose(out.high[0, 1], each.mean() + error, atol=0.02)
    with pytest.raises(ValueError, match=r"^agreement: attributions must have one shape"):
        metrics.agreement([a, a[:, :3]], key=jax.random.key(0))


def test_a_similarity_of_ones_own_is_checked():
    a = [A, B]
    signs = lambda a, b: jnp.stack([(jnp.sign(x) * jnp.sign(y)).mean() for x, y in zip(a, b)])  # noqa: B905
    assert metrics.agreement(a, key=jax.random.key(0), similarity=signs).mean.shape == (2, 2)
    with pytest.raises(ValueError, match=r"^agreement: similarity must be a function"):
        metrics.agreement(a, key=jax.random.key(0), similarity=lambda a, b: a)


def test_no_examples_have_no_numbers():
    none, mask = np.zeros((0, 4, 4), np.float32), np.zeros((0, 4, 4), bool)
    pairs = ("cosine", "pearson", "spearman", "ssim", "top_k_overlap")
    masked = ("auc", "focus", "pointing_game", "relevance_rank", "attribution_localisation")
    for name, second in [(n, none) for n in pairs] + [(n, mask) for n in masked]:
        options = {"k": 3} if name == "top_k_overlap" else {}
        assert getattr(metrics, name)(none, second, **options).shape == (0,), name
    assert metrics.sparseness(attribution=none).shape == (0,)
    features = none.reshape(0, 16), np.zeros(0, int)
    known = np.ones((3, 16), np.float32), np.array([0, 1, 1])
    assert jv.influence.knn_shapley(known, features, num_neighbors=1).shape == (0, 3)


def test_ssim_has_a_gradient():
    a, b = (jnp.asarray(m, jnp.float32).reshape(6, -1)[:1, :30].reshape(1, 5, 6) for m in (A, B))
    total = lambda a: metrics.ssim(a, b).sum()
    there = jnp.sign(jax.grad(total)(a))
    change = (total(a + 1e-2 * there) - total(a - 1e-2 * there)) / 2e-2
    np.testing.assert_allclose(jnp.abs(jax.grad(total)(a)).sum(), change, rtol=0.02)
