"""Owen values: shap's on the same tree, a recursion written out, what is left unsplit."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interactions import COUNT, PARAMS, X, net, scores

import jaxviz as jv

TREE = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]])


def test_owen_values_are_shaps_and_say_what_is_not_split():
    exact = jv.owen_values(net, PARAMS, X, 1)
    with np.load(
        pathlib.Path(__file__).parent.parent / "reference" / "coalition_peers.npz"
    ) as peers:
        np.testing.assert_allclose(exact.values, peers["owen/1000"], atol=1e-5)
    np.testing.assert_allclose(exact.map, exact.values)
    np.testing.assert_allclose(exact.unresolved, 0, atol=1e-6)
    gained = [scores(np.ones(COUNT), x) - scores(np.zeros(COUNT), x) for x in X]
    np.testing.assert_allclose(exact.base, [scores(np.zeros(COUNT), x) for x in X], atol=1e-6)
    tree = TREE.tolist()
    few = jv.owen_values(net, PARAMS, X, 1, tree=tree, num_samples=2)  # the root's halves alone
    np.testing.assert_allclose(few.values.sum(1), gained, atol=1e-5)
    left, right = np.repeat([1, 0], 4), np.repeat([0, 1], 4)
    mine = [(scores(left, x) + scores(left + right, x) - scores(right, x)) / 2 for x in X]
    np.testing.assert_allclose(
        few.values[:, :4], np.repeat(np.array(mine)[:, None] / 4, 4, 1), atol=1e-5
    )
    assert (few.unresolved > 0.1).all()


def test_a_recursion_over_an_uneven_tree_and_a_tolerance():
    tree = np.array([[5, 1], [0, 8], [2, 7], [9, 3], [4, 10], [11, 12], [6, 13]])
    members = [{i} for i in range(COUNT)]
    for a, b in tree:
        members.append(members[a] | members[b])
    values = np.zeros(COUNT)
    score = lambda kept: scores(np.array([i in kept for i in range(COUNT)]), X[0])

    def walk(node, beside, weight):
        if node < COUNT:
            values[node] += weight * (score(beside | members[node]) - score(beside))
            return
        a, b = tree[node - COUNT]
        for one, other in ((a, b), (b, a)):
            walk(one, beside, weight / 2)
            walk(one, beside | members[other], weight / 2)

    walk(2 * COUNT - 2, set(), 1.0)
    call = lambda t: jv.owen_values(net, PARAMS, X, 1, tree=tree, num_samples=400, tolerance=t)
    np.testing.assert_allclose(call(0.0).values[0], values, atol=1e-5)
    rough = call(0.3)
    assert 0 < rough.unresolved[0] < 3
    np.testing.assert_allclose(rough.values.sum(1), call(0.0).values.sum(1), atol=1e-5)


def test_an_image_is_halved_and_a_wrong_tree_is_refused():
    image = jnp.zeros((1, 6, 6, 1)).at[0, 4, 1].set(1.0)
    found = jv.owen_values(lambda _, x: x.sum((1, 2)), None, image, 0, num_samples=200)
    assert found.map[0, 4, 1] == 1  # the one cell that counts is reached: log2(36) splits
    np.testing.assert_allclose(found.map.sum(), 1, atol=1e-6)
    for tree in (TREE[:5], np.zeros((7, 2)), TREE[::-1]):
        with pytest.raises(ValueError, match=r"owen_values: tree must be \[7, 2\] for 8"):
            jv.owen_values(net, PARAMS, X, 1, tree=tree)
    with pytest.raises(ValueError, match="owen_values: tree must be given"):
        jax.jit(lambda s: jv.owen_values(net, PARAMS, X, 1, segments=s, num_segments=8))(
            np.arange(8)
        )
