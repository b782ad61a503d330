"""Names beside attention that is divided by its sum only after its product with values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv

W = jnp.asarray(np.random.default_rng(0).normal(0, 0.4, (4, 4)), jnp.float32)
X, OTHER = jnp.asarray(np.random.default_rng(1).normal(0, 1, (2, 2, 5, 4)), jnp.float32)


def net(w, x):
    e = jnp.exp(x @ w @ x.mT)
    z = (e @ x) * (1 / e.sum(-1, keepdims=True))
    return jax.nn.softmax((z * jnp.tanh(x)).mean(1))


def by_hand(x, **given):
    """What the net makes, with some values given."""
    x, w, known = np.asarray(x, float), np.asarray(W, float), {}

    def put(name, made):
        known[name] = given.get(name, made)
        return known[name]

    e = np.exp(x @ w @ x.swapaxes(-1, -2))
    z = put("mul_0", put("matmul_1", e @ x) / e.sum(-1, keepdims=True))
    s = put("mul_1", z * np.tanh(x)).mean(1)
    put("softmax_0", np.exp(s) / np.exp(s).sum(-1, keepdims=True))
    return known


@pytest.fixture(scope="module")
def values():
    names = tuple(layer.name for layer in jv.layers(net, W, X))
    return jax.jit(lambda x: jv.activations(net, W, x, names))(X)


def test_names_of_layers_are_those_of_what_is_patched(values):
    names, there = ("matmul_1", "mul_0", "mul_1", "softmax_0"), by_hand(OTHER)
    for name in names:
        np.testing.assert_allclose(values[name], by_hand(X)[name], rtol=1e-4, atol=1e-6)

    @jax.jit
    def outputs(x, other):
        own = {name: jv.patched(net, name, a)(W, x) for name, a in values.items()}
        from_other = {name: jv.patched(net, name, source=other)(W, x) for name in names}
        return own, from_other

    own, from_other = outputs(X, OTHER)
    for name in values:
        np.testing.assert_allclose(own[name], values["softmax_0"], rtol=1e-5, err_msg=name)
    for name in names:
        right = by_hand(X, **{name: there[name]})["softmax_0"]
        np.testing.assert_allclose(from_other[name], right, rtol=1e-4, err_msg=name)


def test_parts_of_layers_are_those_of_the_values_that_have_the_name():
    there, here = by_hand(OTHER), by_hand(X)
    for name in ("matmul_1", "mul_1"):
        lost = jv.layer_ablation(net, W, X, 0, layers=[name])
        moved = jv.activation_patching(net, W, X, OTHER, 0, layers=[name]).effect
        for k in range(5):
            gone, new = here[name].copy(), here[name].copy()
            gone[:, k], new[:, k] = 0, there[name][:, k]
            right = [by_hand(X, **{name: a})["softmax_0"][:, 0] for a in (gone, new)]
            base = here["softmax_0"][:, 0]
            np.testing.assert_allclose(lost[:, 0, k], base - right[0], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(moved[:, 0, k], right[1] - base, rtol=1e-3, atol=1e-6)


def test_heads_and_layers_in_one_call():
    there = by_hand(OTHER)
    both = ("attention_0:heads", "mul_1")
    got = jv.patched(net, both, {both[0]: 0.0, both[1]: lambda a: a + 1})(W, X)
    right = by_hand(X, mul_1=np.ones((2, 5, 4)))["softmax_0"]
    np.testing.assert_allclose(got, right, rtol=1e-4)
    np.testing.assert_allclose(  # the quotient is what heads make
        jv.patched(net, ("attention_0:heads", "mul_0"), source=OTHER)(W, X),
        by_hand(X, mul_0=there["mul_0"])["softmax_0"], rtol=1e-4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="got 'matmul_1', which stands ahead of that division"):
        jv.patched(net, ("attention_0:weights", "matmul_1"), 0.0)(W, X)
    paths = jv.path_patching(net, W, X, OTHER, 0, receivers=["mul_1"], receiver_axis=1)
    assert paths.effect.shape == (2, 1, 1, 1, 5)
    assert np.abs(paths.effect).max() > 1e-4


def _masked(put):
    def model(_, x):
        e = jnp.where(jnp.tri(5, dtype=bool), jnp.exp(x @ x.mT / 9), 0)
        return put(e, x)

    return model


def _half(e, x):
    return e.astype("float16"), x.astype("float16"), e.sum(-1, keepdims=True).astype("float16")


def _read_beside(e, x):
    e, x, total = _half(e, x)
    return e @ x / total, e


def _squared(e, x):
    e, x, total = _half(e, x)
    return (e * e) @ x / total


SEEN = {
    "a product with a name": lambda e, x: checkpoint_name(e @ x, "z") / e.sum(-1, keepdims=True),
    "exponentials that are read beside": _read_beside,
    "not in proportion": _squared,
}


@pytest.mark.parametrize("name", SEEN)
def test_what_would_mean_another_thing_is_left_as_it_is(name):
    with pytest.raises(ValueError, match="must have an attention"):
        jv.attentions(_masked(SEEN[name]), None, X)


def test_a_sum_past_the_range_of_its_weights():
    """Oracle: NumPy, in float64."""

    def model(_, x):
        e = jnp.exp(x @ x.mT + jnp.float16(10.5))
        total = e.astype(jnp.float32).sum(-1, keepdims=True)
        z = jnp.matmul(e, x, preferred_element_type=jnp.float32)
        return (z / total).mean(1)

    x = (X / 9).astype(jnp.float16)
    wide = np.asarray(x, float)
    e = np.exp(wide @ wide.swapaxes(-1, -2))
    right = e / e.sum(-1, keepdims=True)
    assert np.exp(10.5) * e.sum(-1).min() > 65504
    (maps,) = jv.attentions(model, None, x).values()
    np.testing.assert_allclose(maps[:, 0], right, rtol=0.02)


def test_a_row_that_is_masked_throughout_is_what_the_model_makes_of_it():
    def model(_, x):
        e = jnp.where(jnp.tri(5, k=-1, dtype=bool), jnp.exp(x @ x.mT / 9), 0.0)
        total = e.sum(-1, keepdims=True)
        return ((e @ x) * jnp.where(total == 0, 0.0, 1 / total)).mean(1)

    same = jv.patched(model, "attention_0:weights", lambda a: a)(None, X)
    e = np.where(np.tri(5, k=-1), np.exp(np.asarray(X @ X.mT) / 9), 0)
    right = (e / np.maximum(e.sum(-1, keepdims=True), 1e-9) @ np.asarray(X)).mean(1)
    np.testing.assert_allclose(same, right, rtol=1e-4, atol=1e-6)
