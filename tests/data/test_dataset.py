"""Division and normalisation of data sets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import data


def numbered(n):
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    return data.Dataset(images, np.arange(n, dtype=np.int32), ("a",))


@pytest.mark.parametrize("seed", range(4))
def test_every_example_is_in_exactly_one_part(seed):
    train, validation = data.train_validation_split(numbered(50), jax.random.key(seed), 0.2)
    assert len(validation.labels) == 10
    together = np.concatenate([train.labels, validation.labels])
    assert sorted(together.tolist()) == list(range(50))
    assert together.tolist() != list(range(50))
    for part in (train, validation):  # images stay with their labels
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        assert part.class_names == ("a",)


def test_division_depends_on_the_key_alone():
    one, two, other = (
        data.train_validation_split(numbered(50), jax.random.key(seed), 0.5)[1].labels.tolist()
        for seed in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.01, -0.5, 1.5])
def test_empty_parts_are_refused(fraction):
    told = r"an example in both parts; got .* of 10 examples|fraction must be in \(0, 1\]; got"
    with pytest.raises(ValueError, match=told):
        data.train_validation_split(numbered(10), jax.random.key(0), fraction)


def test_normalize_by_hand():
    images = np.array([[[[0.2, 0.4, 0.6]]]], np.float32)
    out = data.normalize(images, (0.2, 0.2, 0.2), (0.1, 0.2, 0.4))
    np.testing.assert_allclose(out[0, 0, 0], [0.0, 1.0, 1.0], rtol=1e-6)
    assert out.dtype == np.float32
    chex.assert_trees_all_close(data.normalize(jnp.asarray(images), 0.0, 2.0), images / 2)


def test_normalize_names_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"std must be one number or one for each channel; got \(2,\)"
    ):
        data.normalize(np.ones((1, 2, 2, 3), np.float32), 0.0, (1.0, 2.0))
