"""Factorisations: scikit-learn's from the same start, planted atoms, several sets at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA, non_negative_factorization

from jaxviz.concepts import encode, matched_atoms, nmf, pca, semi_nmf
from jaxviz.concepts.alternating import _orthonormal

RNG = np.random.default_rng(0)
CODES, ATOMS = (RNG.gamma(0.5, size=shape).astype(np.float32) for shape in ((30, 3), (3, 8)))
A = CODES @ ATOMS + RNG.uniform(0, 0.2, (30, 8)).astype(np.float32)
KEY = jax.random.key(0)


def started(*shapes):
    return tuple(RNG.uniform(0.1, 1, shape).astype(np.float32) for shape in shapes)


def error(a, u, w):
    a, u, w = map(np.float64, (a, u, w))
    return np.linalg.norm(a - u @ w) / np.linalg.norm(a)


def peers(a, u, w, **options):
    """scikit-learn's, in float64."""
    given = (part.astype(np.float64) for part in (a, u, w))
    return non_negative_factorization(*given, w.shape[0], init="custom", **options)[:2]


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # as many as ours
def test_multiplicative_steps_are_scikit_learns():
    u, w = started((30, 3), (3, 8))
    exactly = {"num_steps": 40, "tolerance": 0.0, "init": (u, w)}
    found = nmf(A, 3, key=KEY, solver="multiplicative", **exactly)
    peer = peers(A, u, w, solver="mu", max_iter=40, tol=0)
    np.testing.assert_allclose(found.codes @ found.dictionary.atoms, peer[0] @ peer[1], atol=2e-4)
    np.testing.assert_allclose(found.errors, [error(A, *peer)], rtol=1e-5)
    assert np.isnan(found.stability).all()


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_objective_is_scikit_learns_from_the_same_start_or_less(noise):
    """Where it stops by its own rule; planted parts, below half as much noise as they are large."""
    rng = np.random.default_rng(7)
    codes, atoms = rng.gamma(0.3, size=(120, 4)), rng.gamma(0.3, size=(4, 60))
    clean = codes @ atoms
    a = np.maximum(clean + noise * clean.std() * rng.normal(size=clean.shape), 0).astype("f4")
    for _ in range(4):
        u, w = (0.3 * part for part in started((120, 4), (4, 60)))
        found = nmf(a, 4, key=KEY, init=(u, w))
        ours = error(a, found.codes, found.dictionary.atoms)
        np.testing.assert_allclose(found.errors, [ours], rtol=1e-6)
        theirs = error(a, *peers(a, u, w, solver="cd"))
        assert ours <= theirs * (1 + 1e-6)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("kind", ["parts", "noise", "zeros"])
def test_the_objective_never_rises(kind):
    """From a given start, step by step; of noise, too, where no few directions are the largest."""
    a = {"parts": A, "noise": started((30, 8))[0], "zeros": np.zeros((30, 8), "f4")}[kind]
    u, w = started((30, 3), (3, 8))
    each = [
        float(nmf(a, 3, key=KEY, num_steps=n, tolerance=0.0, init=(u, w)).errors[0])
        for n in (*range(1, 12), 50)
    ]
    before = [error(a, u, w)] if kind != "zeros" else []
    assert np.isfinite(each).all()
    assert (np.diff(before + each) <= 1e-6).all()


@pytest.fixture(scope="module")
def two():
    other = np.abs(np.random.default_rng(1).normal(size=(30, 8))).astype(np.float32)  # of no parts
    return nmf(np.stack([CODES @ ATOMS, other]), 3, key=KEY, num_seeds=4, num_steps=300), other


def test_planted_atoms_are_found_by_all_seeds_and_noise_is_not_stable(two):
    found, _ = two
    assert found.dictionary.atoms.shape == (2, 3, 8)
    assert found.every.shape == (2, 4, 3, 8)
    assert (matched_atoms(found.dictionary.atoms[0], ATOMS) > 0.97).all()
    assert found.stability[0].min() > 0.97
    assert found.stability[1].min() < 0.9
    assert (np.asarray(found.errors)[0] < 0.05).all()
    np.testing.assert_allclose(np.linalg.norm(found.every, axis=-1), 1, rtol=1e-5)


def test_sets_at_once_are_sets_alone_and_codes_are_those_of_the_dictionary(two):
    found, other = two
    best = int(np.argmin(found.errors[1]))
    alone = nmf(other, 3, key=KEY, num_seeds=4, num_steps=300)
    np.testing.assert_allclose(alone.errors, found.errors[1], rtol=1e-4)
    np.testing.assert_allclose(alone.every[best], alone.dictionary.atoms)
    left = np.linalg.norm(other - alone.codes @ alone.dictionary.atoms) / np.linalg.norm(other)
    np.testing.assert_allclose(alone.errors.min(), left, rtol=1e-5)
    np.testing.assert_allclose(encode(alone.dictionary, jnp.asarray(other)), alone.codes, atol=2e-2)


def test_atoms_may_be_negative_where_codes_are_not():
    signed = CODES @ (ATOMS - 1)
    found = semi_nmf(signed, 3, key=KEY, num_seeds=2)
    assert found.errors.min() < 0.02
    assert found.codes.min() >= 0
    assert found.dictionary.atoms.min() < 0
    first = semi_nmf(signed, 3, key=KEY, num_seeds=2, tolerance=1.0)  # done after two steps at most
    assert first.errors.min() > 2 * found.errors.min()
    with pytest.raises(ValueError, match=r"nmf: a must have no negative numbers; .* semi_nmf"):
        nmf(signed, 3, key=KEY)


def test_principal_components_are_scikit_learns():
    found, peer = pca(A, 2), PCA(2).fit(A)
    sign = np.sign((np.asarray(found.dictionary.atoms) * peer.components_).sum(1))
    np.testing.assert_allclose(found.dictionary.atoms, peer.components_ * sign[:, None], atol=1e-4)
    np.testing.assert_allclose(found.codes, peer.transform(A) * sign, atol=1e-4)
    np.testing.assert_allclose(encode(found.dictionary, A), found.codes, atol=1e-4)
    kept = 1 - np.square(found.errors[0])
    np.testing.assert_allclose(kept, peer.explained_variance_ratio_.sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="pca: num_concepts must be at most 8"):
        pca(A, 9)


def test_the_basis_of_dependent_rows_is_of_what_they_span():
    """Also where one row is nearly another, and one of zeros: LAPACK's basis, but for signs."""
    rows = np.random.default_rng(4).normal(size=(6, 40)).astype(np.float32)
    rows[2] = rows[0] - 3 * rows[1]
    rows[3], rows[4] = 0, rows[1] + 1e-3 * rows[4]
    found = np.asarray(_orthonormal(jnp.asarray(rows)))
    there = np.float32([1, 1, 0, 0, 1, 1])
    np.testing.assert_allclose(found @ found.T, np.diag(there), atol=1e-6)
    basis = np.linalg.qr(np.float64(rows[there > 0]).T)[0]
    np.testing.assert_allclose(found.T @ found, basis @ basis.T, atol=1e-4)
