"""Receptive fields: against changing one pixel at a time, and by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import models
from jaxviz.graph.receptive import receptive_field
from jaxviz.graph.split import activations


class Winding(nn.Module):
    """Strides, holes, uneven padding, both poolings, a join, a shortcut, and a dense end."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 2), (2, 1), padding=((1, 0), (0, 1)), name="conv")(x)
        x = jnp.pad(jax.nn.gelu(x), ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=1.0)
        y = nn.Conv(2, (2, 3), kernel_dilation=2, padding="SAME", name="holes")(x)
        x = jnp.concatenate([x[:, :, ::-1], y], -1)
        # The mean and the soft maximum of windows answer to every place in them.
        x = nn.avg_pool(x, (2, 2), (2, 1), padding="SAME", count_include_pad=False)
        x = jnp.concatenate([x[:, 1:], x[:, :1]], 1)
        x = x + nn.ConvTranspose(4, (3, 3), name="up")(x)
        x = nn.LayerNorm(name="norm")(jnp.swapaxes(jnp.swapaxes(x, 1, 2), 2, 1))
        return nn.Dense(2, name="end")(x.reshape(len(x), -1))


LAYERS = ("conv", "holes", "avg_pool_0", "up", "norm", "end")


@pytest.fixture(scope="module")
def winding():
    module, x = Winding(), jax.random.normal(jax.random.key(0), (1, 9, 7, 1))
    return module.apply, jax.jit(module.init)(jax.random.key(1), x), x


def test_boxes_are_what_answers_to_single_pixels(winding):
    """Oracle: every pixel moved by itself, and which numbers of a layer answer."""
    apply_fn, params, x = winding
    pixels = jnp.eye(63).reshape(63, 9, 7, 1)
    moved = activations(apply_fn, params, jnp.concatenate([x, x + pixels]), list(LAYERS))
    for layer in LAYERS:
        answers = np.asarray(moved[layer][1:] != moved[layer][:1])
        answers = answers.any(-1).reshape(9, 7, -1)  # over channels
        boxes = receptive_field(apply_fn, params, x, layer)
        assert boxes.shape == (*moved[layer].shape[1:], 4)
        for seen, box in zip(
            np.moveaxis(answers, -1, 0), boxes[..., 0, :].reshape(-1, 4), strict=True
        ):
            rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
            expected = [0] * 4
            if len(rows):
                expected = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            assert box.tolist() == expected, layer


def test_net_a_by_hand():
    """3x3 convolutions with pooling between: 3, then 3 + 1 + 2 * 2 = 8, then 8 + 2 + 4 * 2 = 18."""
    net, x = models.MNISTNetA(), jnp.zeros((1, 28, 28, 1))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    boxes = {
        name: receptive_field(net.apply, params, x, name) for name in ("conv1", "conv2", "conv3")
    }
    assert boxes["conv1"][5, 6, 0].tolist() == [4, 5, 7, 8]
    assert boxes["conv2"][5, 6, 0].tolist() == [7, 9, 15, 17]
    assert boxes["conv3"][3, 0, 0].tolist() == [5, 0, 23, 11]
    assert boxes["conv3"].strides[2] == 0  # channels take no memory
    dense = receptive_field(net.apply, params, x, "dense1")
    assert dense.shape == (128, 4)
    assert dense[7].tolist() == [0, 0, 28, 28]


def test_what_has_no_rule_sees_all():
    net = lambda _, x: jax.nn.relu(jnp.sort(x, axis=1))
    boxes = receptive_field(net, None, jnp.zeros((1, 5, 4, 1)), "relu_0")
    assert boxes[2, 1, 0].tolist() == [0, 0, 5, 4]


def test_loops_are_walked_as_often_as_they_turn():
    """Three turns of a window of three, that of the places alone, and one whose end is unknown."""
    wide = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 1, 1), (1, 1, 1, 1), "SAME")
    x = jnp.zeros((1, 20, 2, 1))
    loop = lambda turn: lambda _, x: jax.nn.relu(jax.lax.fori_loop(0, 3, turn, x))
    boxes = receptive_field(loop(lambda n, x: wide(x)), None, x, "relu_0")
    assert boxes[10, 1, 0].tolist() == [7, 1, 14, 2]
    boxes = receptive_field(loop(lambda n, x: x * n.astype(x.dtype)), None, x, "relu_0")
    assert boxes[10, 1, 0].tolist() == [10, 1, 11, 2]
    ends = lambda _, x: jax.nn.relu(jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x))
    assert receptive_field(ends, None, x, "relu_0")[10, 1, 0].tolist() == [0, 0, 20, 2]


def test_a_layer_of_padding_alone_sees_nothing():
    net = lambda _, x: jnp.tanh(jnp.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0))))
    boxes = receptive_field(net, None, jnp.zeros((1, 3, 3, 1)), "tanh_0")
    assert boxes[:, 1, 0].tolist() == [[0] * 4, [0] * 4, *([i, 1, i + 1, 2] for i in range(3))]


def test_errors_name_the_layer_and_the_shape():
    with pytest.raises(ValueError, match="no layer 'relu'; the nearest are 'relu_0'"):
        receptive_field(lambda _, x: jax.nn.relu(x), None, jnp.ones((1, 2, 2, 1)), "relu")
    with pytest.raises(ValueError, match=r"x must be one array \[N, \*space, C\]; got \(1, 2\)"):
        receptive_field(lambda _, x: jax.nn.relu(x), None, jnp.ones((1, 2)), "relu_0")


def test_a_reshape_that_transposes_first_moves_the_boxes_with_the_places():
    def net(w, x):  # as `jax.vmap` writes some of its reshapes
        return jax.nn.relu(jax.lax.reshape(x, (2, 4, 4, 1), dimensions=(0, 2, 1, 3)) * w)

    boxes = receptive_field(net, 2.0, jnp.ones((2, 4, 4, 1)), "relu_0")
    assert boxes[3, 1, 0].tolist() == [1, 3, 2, 4]  # of the place at row 1, column 3
