"""How many copies are taken at once."""

import jax.numpy as jnp
import pytest

from jaxviz.attribution.copies import chunk_length


@pytest.mark.parametrize(
    ("num", "most", "length"),
    [(50, 8, 5), (25, 2, 2), (24, 2, 2), (7, 7, 7), (3, 8, 3), (5, 1, 1)],
)
def test_few_copies_are_wasted_and_none_goes_alone_that_need_not(num, most, length):
    assert chunk_length("method", num, most, jnp.ones((1, 2))) == length
