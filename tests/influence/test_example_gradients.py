"""Gradients of single examples, their projections and products: against `jax.grad`, one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import jaxviz as jv


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="dense")(x.reshape(len(x), -1))


NET = Net()
APPLY = NET.apply
X = np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1], np.uint8)  # as data sets store labels
KEY = jax.random.key(3)
gradients = jv.influence.example_gradients


@pytest.fixture(scope="module")
def variables():
    return jax.jit(NET.init)(jax.random.key(1), X)


@pytest.fixture(scope="module")
def expected(variables):
    """`[N, P]`, each by itself; running statistics are no parameters."""

    @jax.jit
    def one(x, y):
        def loss(params):
            logits = NET.apply({**variables, "params": params}, x[None])[0]
            return jax.nn.logsumexp(logits) - logits[y]

        return ravel_pytree(jax.grad(loss)(variables["params"]))[0]

    return np.stack([one(x, y) for x, y in zip(X, Y, strict=True)])


def test_each_row_is_the_gradient_of_that_example_alone(variables, expected):
    found = gradients(APPLY, variables, X, Y, chunk_size=2)  # three chunks, the last one filled up
    np.testing.assert_allclose(found, expected, atol=1e-5)
    dense = gradients(APPLY, variables, X, Y, layers=["dense"])
    np.testing.assert_allclose(dense, expected[:, -dense.values.shape[1] - 6 : -6], atol=1e-5)
    assert gradients(APPLY, variables, X[:0], Y[:0]).values.shape == (0, expected.shape[1])


LINEAR = lambda w, x: x.reshape(len(x), -1) @ w
W = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def by_hand():
    """Of the linear model: `x (p - onehot)`."""
    x = X.reshape(5, -1)
    p = np.exp(x @ W)
    p /= p.sum(1, keepdims=True)
    return (x[:, :, None] * (p - np.eye(3)[Y])[:, None]).reshape(5, -1)


@pytest.mark.parametrize("projection", ["rademacher", "sjlt"])
def test_projections_keep_products_and_do_not_know_of_chunks(by_hand, projection):
    call = functools.partial(gradients, LINEAR, W, projection=projection, key=KEY, dim=500)
    found = np.asarray(call(X, Y, chunk_size=2))
    np.testing.assert_allclose(found[:1], call(X[:1], Y[:1]), atol=1e-5)
    products, lengths = by_hand @ by_hand.T, np.linalg.norm(by_hand, axis=1)
    # The error of a product of unit vectors has a standard deviation of at most sqrt(2 / dim).
    worst = np.abs(found @ found.T - products) / np.outer(lengths, lengths)
    assert 0 < worst.max() < 5 * np.sqrt(2 / 500)


def test_a_projection_of_several_pieces_is_of_the_leaf_as_a_whole(monkeypatch):
    from jaxviz.influence import projections

    monkeypatch.setattr(projections, "_PIECE", 64 * 3)
    unit = jnp.eye(200, dtype=jnp.float32)  # each row of P by itself
    rows = jax.vmap(lambda v: projections.projected([v], (4,), "rademacher", 3, KEY)[0])(unit)
    np.testing.assert_allclose(np.abs(rows), 3**-0.5, rtol=1e-6)
    assert len(np.unique(np.sign(rows[:64] - rows[64:128]))) > 1  # pieces differ


def test_int8_and_bfloat16_are_within_their_step(by_hand):
    small = gradients(LINEAR, W, X, Y, dtype="int8")
    assert small.values.dtype == jnp.int8
    step = np.abs(by_hand).max(1, keepdims=True) / 127
    assert (np.abs(np.asarray(small) - by_hand) <= 0.5 * step + 1e-6).all()
    half = gradients(LINEAR, W, X, Y, dtype="bfloat16")
    assert half.values.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, by_hand, rtol=2**-8, atol=1e-6)


def test_any_loss_and_any_labels():  # d/dw of 0.5 (w x - y)^2 weight = (w x - y) x weight
    x, w = np.array([[1.0], [2.0]], np.float32), jnp.array([[3.0]])
    labels = {"y": np.array([1.0, 1.0], np.float32), "weight": np.array([1.0, 10.0], np.float32)}

    def loss(outputs, labels):
        return 0.5 * labels["weight"] * (outputs[:, 0] - labels["y"]) ** 2

    found = gradients(lambda w, x: x @ w, w, x, labels, loss=loss)
    assert found.values.tolist() == [[2.0], [100.0]]


def test_a_sweep_keeps_them_in_a_store(tmp_path, by_hand):
    method = functools.partial(gradients, key=None)
    options = {"target": "label", "out": tmp_path / "a", "batch_size": 3, "progress": False}
    kept = jv.sweep(method, LINEAR, W, (X, Y.astype(np.int32)), **options)
    np.testing.assert_allclose(kept.maps["example_gradients.values"], by_hand, atol=1e-5)


def test_trac_in_is_the_sum_of_products_over_checkpoints(variables, expected):
    other = jax.tree.map(lambda a: 2 * a, variables)
    there = np.asarray(gradients(APPLY, other, X, Y))
    found = jv.influence.trac_in(
        APPLY, [variables, other], (X, Y), (X[1:3], Y[1:3]), learning_rates=[0.1, 0.02],
        chunk_size=2,
    )  # fmt: skip
    wanted = 0.1 * expected[1:3] @ expected.T + 0.02 * there[1:3] @ there.T
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    cosine = jv.influence.gradient_cosine(APPLY, variables, (X, Y), (X[1:3], Y[1:3]))
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine, unit[1:3] @ unit.T, atol=1e-5)


def test_what_does_not_fit_is_refused(variables):
    cases = [
        ({"layers": ["dens"]}, r"layers must be .*Did you mean 'dense'"),
        ({"projection": "sjlt"}, "dim must be given with a projection"),
        ({"dim": 3}, "projection must be given where dim or key are"),
        ({"loss": lambda outputs, y: outputs.mean()}, "loss must give one number an example"),
        ({"y": Y + 3}, r"y must hold labels in \[0, 3\)"),
        ({"y": Y[:2]}, "y must hold a label for each example"),
    ]
    for options, told in cases:
        given = {"y": Y} | options
        with pytest.raises(ValueError, match=f"^example_gradients: {told}"):
            gradients(APPLY, variables, X, **given)
    with pytest.raises(ValueError, match="learning_rates must be one for each of the 1"):
        jv.influence.trac_in(APPLY, [variables], (X, Y), (X, Y), learning_rates=[1.0, 2.0])
