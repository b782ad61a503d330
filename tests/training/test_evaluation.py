"""Predictions in batches, accuracies and confusions, by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import data, training

NET = nn.Dense(3, use_bias=False)
VARIABLES = {"params": {"kernel": jnp.eye(3)}}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_logits_do_not_depend_on_the_batches(batch_size):
    x = np.random.RandomState(0).randn(5, 3).astype(np.float32)
    out = training.predict(NET, VARIABLES, x, batch_size=batch_size)
    np.testing.assert_allclose(out, x, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_loss_and_accuracy_by_hand(batch_size):
    x = np.log(np.array([[8, 1, 1], [1, 8, 1], [2, 2, 6], [5, 4, 1]], np.float32) / 10)
    labels = np.array([0, 0, 2, 1], np.int32)
    out = training.evaluate(
        NET, VARIABLES, data.Dataset(x, labels, ("a", "b", "c")), batch_size=batch_size
    )
    assert out.accuracy == 0.5
    np.testing.assert_allclose(out.loss, -np.log([0.8, 0.1, 0.6, 0.4]).mean(), rtol=1e-6)


def test_a_second_call_does_not_compile_again():
    from jaxviz.training.evaluation import _logits

    x = jnp.ones((6, 3))
    training.predict(NET, VARIABLES, x, batch_size=4)
    before = _logits._cache_size()
    training.predict(nn.Dense(3, use_bias=False), VARIABLES, x + 1, batch_size=4)
    assert _logits._cache_size() == before


def test_confusions_counted_one_by_one():
    rng = np.random.RandomState(0)
    labels, predictions = rng.randint(0, 4, (2, 50))
    matrix = training.confusion_matrix(jnp.asarray(labels), predictions, 4)
    for i in range(4):
        for j in range(4):
            assert matrix[i, j] == sum(
                a == i and b == j for a, b in zip(labels, predictions, strict=True)
            )
    shares = training.per_class_accuracy(matrix)
    for i in range(4):
        np.testing.assert_allclose(shares[i], (predictions[labels == i] == i).mean())


def test_a_class_without_examples_has_no_accuracy():
    matrix = training.confusion_matrix([0, 0], [0, 2], 3)
    np.testing.assert_array_equal(training.per_class_accuracy(matrix), [0.5, np.nan, np.nan])


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"both be \[N\]; got \(2,\), \(2, 3\)"):
        training.confusion_matrix([0, 1], np.ones((2, 3), int), 3)
    with pytest.raises(ValueError, match="predictions must be 0 to 1; got 0 to 2"):
        training.confusion_matrix([0, 1], [1, 2], 2)
    with pytest.raises(ValueError, match=r"must be square; got \(2, 3\)"):
        training.per_class_accuracy(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"predict: needs at least one image"):
        training.predict(NET, VARIABLES, np.zeros((0, 3), np.float32))
    with pytest.raises(TypeError, match=r"predict: images must be floating; got .*uint8"):
        training.predict(NET, VARIABLES, np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"predict: net must take images \(5,\)"):
        training.predict(NET, VARIABLES, np.zeros((2, 5), np.float32))
    for labels in ([0, 1, 9], [-1, 0, 1]):  # whose cross entropy would be a number
        with pytest.raises(ValueError, match=r"evaluate: labels must be 0 to "):
            training.evaluate(NET, VARIABLES, data.Dataset(np.eye(3), np.array(labels), ()))
    with pytest.raises(ValueError, match=r"evaluate: dataset needs one label for each"):
        training.evaluate(NET, VARIABLES, data.Dataset(np.eye(3), np.arange(2), ()))
    with pytest.raises(ValueError, match=r"evaluate: batch_size must be at least 1; got 0"):
        training.evaluate(NET, VARIABLES, data.Dataset(np.eye(3), np.arange(3), ()), batch_size=0)


def images(n=16, side=6):
    """Every pixel another number, none of them zero."""
    return 1.0 + jnp.arange(n * side * side * 2, dtype=jnp.float32).reshape(n, side, side, 2)


def test_each_image_is_a_shifted_maybe_mirrored_copy():
    x, padding = images(), 2
    out = training.pad_crop_flip(jax.random.key(0), x, padding=padding)
    padded = np.pad(np.asarray(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = set()
    for n in range(len(x)):
        matches = [
            (top, left, flip)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
            if np.array_equal(
                padded[n, top : top + 6, left : left + 6][:, :: -1 if flip else 1], out[n]
            )
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 8
    assert {flip for *_, flip in found} == {False, True}


def test_every_shift_and_half_of_the_flips_occur():
    x = jnp.zeros((4000, 3, 3, 1)).at[:, 1, 0].set(1.0)  # one bright pixel
    out = np.asarray(training.pad_crop_flip(jax.random.key(1), x, padding=0))
    assert abs(out[:, 1, 2].mean() - 0.5) < 0.04  # 5 standard deviations
    x = jnp.zeros((4000, 3, 3, 1)).at[:, 1, 1].set(1.0)  # the middle: flips do not move it
    out = np.asarray(training.pad_crop_flip(jax.random.key(1), x, padding=1))
    assert np.abs(out.mean(0)[:, :, 0] - 1 / 9).max() < 0.025  # 5 standard deviations


def test_augmentation_is_a_function_of_its_key():
    x = images()
    first, second, other = (
        np.asarray(training.pad_crop_flip(jax.random.key(seed), x)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert first.dtype == np.float32
    with pytest.raises(ValueError, match=r"images must be \[M, H, W, C\].*\(6, 6, 2\)"):
        training.pad_crop_flip(jax.random.key(0), x[0])


def test_a_matrix_of_terabytes_is_refused_with_its_size():  # 8 bytes * 1e12 / 2**30 by hand
    with pytest.raises(ValueError, match=r"^confusion_matrix: num_classes .*7\.45e\+03 GiB"):
        training.confusion_matrix([0, 1], [1, 1], 10**6)
    with pytest.raises(ValueError, match=r"^confusion_matrix: num_classes"):
        training.confusion_matrix([], [], 0)
    with pytest.raises(ValueError, match=r"^confusion_matrix: labels must be integers; got"):
        training.confusion_matrix([0.5, 1.0], [1, 1], 2)
