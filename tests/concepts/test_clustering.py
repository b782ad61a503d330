"""Clusters beside scikit-learn's, archetypes that were planted, and concepts for outputs."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from jaxviz.concepts import archetypes, k_means

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def test_clusters_are_scikit_learns():
    a = (
        RNG.normal(size=(4, 5))[RNG.integers(0, 4, 60)] * 4 + RNG.normal(size=(60, 5)) + 30
    ).astype("f4")
    found, peer = k_means(a, 4, key=KEY), KMeans(4, n_init=10, random_state=0).fit(a)
    order = np.lexsort(peer.cluster_centers_.T)
    mine = np.lexsort(np.asarray(found.dictionary.atoms).T)
    atoms = np.asarray(found.dictionary.atoms)
    np.testing.assert_allclose(atoms[mine], peer.cluster_centers_[order], rtol=1e-5)
    labels = np.asarray(found.codes).argmax(1)
    np.testing.assert_array_equal(np.argsort(mine)[labels], np.argsort(order)[peer.labels_])
    left = np.sqrt(peer.inertia_ / np.square(a).sum())
    np.testing.assert_allclose(found.errors.min(), left, rtol=1e-4)
    assert found.every.shape == (5, 4, 5)
    with pytest.raises(
        ValueError, match=r"k_means: a must be \[n, C\] of at least num_concepts, 61"
    ):
        k_means(a, 61, key=KEY)


def test_planted_archetypes_are_found():
    corners = RNG.normal(size=(3, 6)).astype("f4")
    shares = np.concatenate([np.eye(3), RNG.dirichlet([0.7] * 3, 40)]).astype("f4")
    found = archetypes(shares @ corners, 3, key=KEY, num_seeds=3, num_steps=800)
    atoms = np.asarray(found.dictionary.atoms)
    nearest = np.square(atoms[:, None] - corners[None]).sum(2).argmin(1)
    assert sorted(nearest) == [0, 1, 2]
    np.testing.assert_allclose(atoms, corners[nearest], atol=0.05)
    np.testing.assert_allclose(found.codes, shares[:, nearest], atol=0.05)
    np.testing.assert_allclose(found.codes.sum(1), 1, rtol=1e-5)
    assert found.codes.min() >= 0
    assert found.stability.min() > 0.98
