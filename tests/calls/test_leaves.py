"""Options that stand in places of the input: for all of it, or for each leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.calls.leaves import fill_for, per_leaf

IDS = jnp.array([[1, 2, 3]])
BOTH = {"ids": IDS, "numbers": jnp.ones((1, 2))}


def test_one_for_all_leaves_or_one_for_each():
    assert per_leaf("f", "fill", 3, BOTH) == [3, 3]
    assert per_leaf("f", "fill", {"ids": 3, "numbers": 0.5}, BOTH) == [3, 0.5]
    assert per_leaf("f", "fill", (1, 2.5), (IDS, jnp.ones((1, 2)))) == [1, 2.5]
    (row,) = per_leaf("f", "fill", [1, 2, 3], IDS)  # of one array, a list is an array
    np.testing.assert_array_equal(row, [1, 2, 3])
    ids, numbers = per_leaf("f", "fill", ([4, 5, 6], [0.5, 1.5]), (IDS, jnp.ones((1, 2))))
    np.testing.assert_array_equal(ids, [4, 5, 6])
    np.testing.assert_array_equal(numbers, [0.5, 1.5])


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        ({"ids": 0}, r"^f: fill must be one for all leaves of x, or a pytree like x"),
        ({"ids": 0.5, "numbers": 0.5}, r"^f: fill must be whole .* for x is int32 at \['ids'\]"),
        (0.5, r"^f: fill must be whole numbers that int32 holds"),
        (float("nan"), "^f: fill must be whole"),
        (2.0**31, "^f: fill must be whole"),
    ],
)
def test_what_fits_no_leaf_is_refused(fill, told):
    with pytest.raises(ValueError, match=told):
        fill_for("f", fill, BOTH)


def test_a_list_of_several_lengths_and_a_dictionary_are_no_array():
    for wrong in ([[1, 2], [3]], {"ids": 0}):
        with pytest.raises(ValueError, match=r"^f: fill must be an array of numbers where x"):
            fill_for("f", wrong, IDS)


def test_a_traced_fill_of_whole_numbers_must_be_in_such():
    assert jax.jit(lambda f: fill_for("f", f, IDS))(4) == 4
    with pytest.raises(ValueError, match=r"^f: fill must be whole"):
        jax.jit(lambda f: fill_for("f", f, IDS))(4.0)
    assert fill_for("f", 300, jnp.ones((1, 2))) == 300
    with pytest.raises(ValueError, match="uint8 holds"):
        fill_for("f", 300, jnp.ones((1, 2), jnp.uint8))
