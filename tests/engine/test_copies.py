"""How many copies are taken at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.engine.copies import chunk_length, default_chunk
from jaxviz.parts.covered import _at_once


@pytest.mark.parametrize(
    ("num", "most", "length"),
    [(50, 8, 5), (25, 2, 2), (10, 4, 2), (24, 2, 2), (7, 7, 7), (3, 8, 3), (5, 1, 1)],
)
def test_few_copies_are_wasted_and_none_goes_alone_that_need_not(num, most, length):
    assert chunk_length("method", num, most) == length


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the numbers are those of a CPU")
@pytest.mark.parametrize(
    ("shape", "cores", "length", "local"),
    [
        ((1, 28, 28, 1), 1, 83, 16),  # 2**16 numbers; 16 examples
        ((8, 28, 28, 1), 1, 10, 1),  # as many examples as make one place at a time quick
        ((8, 28, 28, 1), 2, 10, 2),
        ((1, 224, 224, 3), 1, 2, 16),  # two photographs
        ((1, 224, 224, 3), 4, 8, 32),  # for each core; 8 examples for each
        ((64, 28, 28, 1), 2, 2, 2),  # each core one copy, if it fits
        ((64, 224, 224, 3), 2, 1, 2),
    ],
)
def test_copies_at_once_where_nobody_said(monkeypatch, shape, cores, length, local):
    monkeypatch.setattr("jaxviz.engine.copies.cores", lambda: cores)
    assert default_chunk(jax.ShapeDtypeStruct(shape, jnp.float32)) == length
    assert _at_once(np.broadcast_to(0, shape), cores) == local


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the numbers are those of a CPU")
def test_ids_of_tokens_count_as_the_vectors_that_they_become():
    ids = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    assert default_chunk(ids(jnp.int32, 1, 128)) == 8
    assert default_chunk(ids(jnp.float32, 1, 128)) == 512  # a row of numbers
    assert default_chunk(ids(jnp.uint8, 1, 28, 28)) == 83  # an image
