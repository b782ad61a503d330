"""How many copies are taken at once."""

import jax
import jax.numpy as jnp
import pytest

from jaxviz.attribution.copies import chunk_length, default_chunk


@pytest.mark.parametrize(
    ("num", "most", "length"),
    [(50, 8, 5), (25, 2, 2), (24, 2, 2), (7, 7, 7), (3, 8, 3), (5, 1, 1)],
)
def test_few_copies_are_wasted_and_none_goes_alone_that_need_not(num, most, length):
    assert chunk_length("method", num, most, jnp.ones((1, 2))) == length


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the numbers are those of a CPU")
@pytest.mark.parametrize(
    ("shape", "cores", "examples", "length"),
    [
        ((8, 28, 28, 1), 1, None, 10),  # 2**16 numbers
        ((1, 224, 224, 3), 1, None, 2),  # two photographs
        ((1, 224, 224, 3), 4, None, 8),  # for each core
        ((64, 28, 28, 1), 2, None, 2),  # each core one copy, if it fits
        ((64, 224, 224, 3), 2, None, 1),
        ((8, 28, 28, 1), 2, 8, 2),  # eight examples for each core
        ((1, 224, 224, 3), 2, 8, 16),
    ],
)
def test_copies_at_once_where_nobody_said(shape, cores, examples, length):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert default_chunk(x, cores, examples) == length
