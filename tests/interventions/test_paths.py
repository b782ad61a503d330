"""Path patching; oracle: the forward pass in NumPy, with every other head held."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from small_transformer import HEADS, IDS, OTHER, W, by_hand, difference, net

import jaxviz as jv

NAMES = [f"scan_0[{i}]/attention:heads" for i in range(2)]
CLEAN, AT_X = by_hand(IDS)
THERE, AT_OTHER = by_hand(OTHER)


def sent(head, amount=1.0):
    """What a head of the first block makes of the second block's heads, and of the outputs."""
    arrived = {}

    def edit(name, a):
        if name == NAMES[0]:
            a = a.copy()
            a[:, head] += amount * (AT_OTHER[name][:, head] - a[:, head])
        elif name == NAMES[1]:
            arrived[name] = a
            return AT_X[name]
        return a

    outputs, _ = by_hand(IDS, edit)
    return arrived[NAMES[1]], difference(outputs) - difference(CLEAN)


def received(new, head):
    def edit(name, a):
        if name == NAMES[1]:
            a = a.copy()
            a[:, head] = new[:, head]
        return a

    return difference(by_hand(IDS, edit)[0]) - difference(CLEAN)


def slope(function):
    return (function(1e-5) - function(-1e-5)) / 2e-5


def test_what_one_head_sends_to_another_is_as_by_hand():
    found = jv.path_patching(net, W, IDS, OTHER, difference)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5)
    assert found.effect.shape == (2, 2, HEADS, 2, HEADS)
    for k, j in itertools.product(range(HEADS), range(HEADS)):
        close(found.effect[:, 0, k, 1, j], received(sent(k)[0], j))
        along = slope(lambda e, k=k, j=j: received(sent(k, e)[0], j))
        close(found.first_order[:, 0, k, 1, j], along)
    for k in range(HEADS):
        close(found.direct[:, 0, k], sent(k)[1])
        close(found.direct_first_order[:, 0, k], slope(lambda e, k=k: sent(k, e)[1]))
    assert not np.any(found.effect[:, 1]), "the last block's heads reach no head"
    assert not np.any(found.effect[:, :, :, 0]), "nothing reaches the first block's heads"
    close(found.gap, difference(THERE) - difference(CLEAN))


def test_receivers_may_be_other_layers_and_other_places():
    found = jv.path_patching(
        net, W, IDS, OTHER, difference,
        layers=NAMES[:1], axis=(1, 2), receivers=["neurons[0]"], receiver_axis=1, chunk_size=3,
    )  # fmt: skip
    effect = np.asarray(found.effect)[:, 0, :, :, 0]
    assert effect.shape == (2, HEADS, 4, 4)
    # Neurons of a position read its own heads alone.
    assert not np.any(effect[..., ~np.eye(4, dtype=bool)])
    for k, q in itertools.product(range(HEADS), range(4)):
        arrived = {}

        def edit(name, a, k=k, q=q, arrived=arrived):
            if name == NAMES[0]:
                a = a.copy()
                a[:, k, q] = AT_OTHER[name][:, k, q]
            if name == "neurons[0]":
                arrived[name] = a
            return a

        by_hand(IDS, edit)

        def put(name, a, q=q, arrived=arrived):
            if name != "neurons[0]":
                return a
            a = a.copy()
            a[:, q] = arrived[name][:, q]
            return a

        moved = difference(by_hand(IDS, put)[0]) - difference(CLEAN)
        np.testing.assert_allclose(effect[:, k, q, q], moved, rtol=1e-4, atol=3e-5)


def test_an_error_names_the_option_that_was_wrong():
    def two(w, x):
        a = checkpoint_name(jnp.float32(checkpoint_name(x + 1, "ids")) @ w, "a")
        return checkpoint_name(a @ jnp.ones((3, 2)), "b")

    x = jnp.ones((1, 4), jnp.int32)
    found = functools.partial(jv.path_patching, two, jnp.ones((4, 3)), x, x, 0)
    with pytest.raises(ValueError, match=r"path_patching: receivers must be floating.*'ids'"):
        found(layers=["a"], receivers=["ids"])
    with pytest.raises(ValueError, match=r"path_patching: layers must be floating.*'ids'"):
        found(layers=["ids"], receivers=["a"])
    with pytest.raises(ValueError, match=r"receiver_axis must be .* layer 'a'.*got 5") as told:
        found(layers=["a"], receiver_axis=5)
    assert "receivers" not in str(told.value)
    with pytest.raises(ValueError, match=r"no layer 'c'.*It is one of `receivers`"):
        found(layers=["a"], receivers=["c"])
