"""Top examples: against a full sort in NumPy, streamed and at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        return nn.Conv(4, (2, 2), (2, 2), padding="VALID", name="deep")(x)


@pytest.fixture(scope="module")
def found():
    images = np.random.default_rng(0).normal(size=(23, 6, 8, 2)).astype(np.float32)
    net = Net()
    params = jax.jit(net.init)(jax.random.key(0), images[:1])
    a = np.asarray(net.apply(params, images))  # [23, 3, 4, 4]
    top = jv.top_examples(net.apply, params, images, layer="deep", num_images=5, batch_size=7)
    return net, params, images, a, top


def test_a_full_sort_finds_the_same(found):
    _, _, images, a, top = found
    best = a.max((1, 2))
    for unit in range(4):
        order = np.argsort(-best[:, unit])[:5]
        np.testing.assert_array_equal(top.indices[unit], order)
        np.testing.assert_allclose(top.scores[unit], best[order, unit], rtol=1e-5)
        for rank, n in enumerate(order):
            i, j = np.unravel_index(a[n, :, :, unit].argmax(), (3, 4))
            # A 2x2 window with stride 2 of 3x3 windows: four pixels each way, cut at the edge.
            box = [max(2 * i - 1, 0), max(2 * j - 1, 0), min(2 * i + 3, 6), min(2 * j + 3, 8)]
            assert top.boxes[unit, rank].tolist() == box
            y, x = min(box[0], 2), min(box[1], 4)
            np.testing.assert_array_equal(top.patches[unit, rank], images[n, y : y + 4, x : x + 4])
    np.testing.assert_allclose(top.means, a.mean((0, 1, 2)), atol=1e-5)
    assert top.count == 23


def test_an_iterable_of_batches_gives_the_same(found):
    net, params, images, _, top = found
    stream = (images[i : i + 10] for i in range(0, 23, 10))
    again = jv.top_examples(net.apply, params, stream, layer="deep", num_images=5, batch_size=7)
    np.testing.assert_array_equal(again.indices, top.indices)
    np.testing.assert_array_equal(again.patches, top.patches)


def test_fewer_images_than_asked_for_and_layers_without_space():
    net = lambda w, x: jnp.tanh(x.reshape(x.shape[0], -1) @ w)
    images = np.array([0.1, 0.3], np.float32).reshape(2, 1, 1, 1)
    top = jv.top_examples(net, jnp.ones((1, 1)), images, layer="tanh_0", num_images=3)
    assert top.indices.tolist() == [[1, 0, -1]]
    assert top.scores[0, 2] == -np.inf
    assert top.boxes[0, 0].tolist() == [0, 0, 1, 1]


def test_a_mean_of_many_images_in_half_precision():  # oracle: all activations are 1
    images, net = np.ones((1000, 1, 1, 1), jnp.bfloat16), lambda w, x: jax.nn.relu(x)
    top = jv.top_examples(net, None, images, layer="relu_0", num_images=1, batch_size=1000)
    assert top.means.tolist() == [1.0]


def test_errors():
    net = lambda w, x: jnp.tanh(x)
    with pytest.raises(ValueError, match="at least one image; got none"):
        jv.top_examples(net, None, [], layer="tanh_0")
    with pytest.raises(ValueError, match=r"images must be \[M, H, W, C\].*of shape \(4, 4, 1\)"):
        jv.top_examples(net, None, np.ones((4, 4, 1), "f4"), layer="tanh_0")
    with pytest.raises(ValueError, match="num_images must be at least 1; got 0"):
        jv.top_examples(net, None, np.ones((1, 4, 4, 1), "f4"), layer="tanh_0", num_images=0)
    with pytest.raises(ValueError, match="top_examples: no layer 'tanh'"):
        jv.top_examples(net, None, np.ones((1, 4, 4, 1), "f4"), layer="tanh")
