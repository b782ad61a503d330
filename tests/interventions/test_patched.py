"""`patched` and `steered`; oracle: the forward pass in NumPy, with its values edited."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_transformer import IDS, OTHER, TOKENS, W, by_hand, net

import jaxviz as jv

_, AT_OTHER = by_hand(OTHER)
VECTOR = np.linspace(-1, 1, 8, dtype=np.float32)


def edited(name, change):
    """The oracle's logits with one value edited."""
    return by_hand(IDS, lambda at, a: change(a) if at == name else a)[0]


def set_at(index, new):
    def change(a):
        a = a.copy()
        a[index] = new if np.ndim(new) == 0 else np.broadcast_to(new, a.shape)[index]
        return a

    return change


CASES = {
    "a number, everywhere": ("middle[1]", {"value": 0.5}, set_at(np.s_[:], 0.5)),
    "a channel": ("neurons[0]", {"value": 0.0, "where": np.s_[:, 5]}, set_at(np.s_[:, :, 5], 0)),
    "channels from the end": (
        "neurons[0]",
        {"value": 2.0, "where": np.s_[..., -3:]},
        set_at(np.s_[:, :, -3:], 2.0),
    ),
    "a position": ("stream[0]", {"value": VECTOR, "where": 2}, set_at(np.s_[:, 2], VECTOR)),
    "positions by channels": (
        "stream[0]",
        {"value": 1.0, "where": ([0, 2], [1, 4])},
        lambda a: set_at((slice(None), [[0], [2]], [[1, 4]]), 1.0)(a),
    ),
    "a mask of each example": (
        "stream[1]",
        {"value": 0.0, "where": np.eye(2, TOKENS, k=2, dtype=bool)},
        set_at(np.eye(2, TOKENS, k=2, dtype=bool), 0.0),
    ),
    "a function": ("stream[0]", {"value": lambda a: 3 * a, "where": 3}, None),
    "a head of another input": (
        "scan_0[1]/attention:heads",
        {"source": OTHER, "where": 1},
        set_at(np.s_[:, 1], AT_OTHER["scan_0[1]/attention:heads"]),
    ),
    "a head at a query": (
        "scan_0[0]/attention:heads",
        {"source": OTHER, "where": (0, 3)},
        set_at(np.s_[:, 0, 3], AT_OTHER["scan_0[0]/attention:heads"]),
    ),
    "the weights of a head": (
        "scan_0[0]/attention:weights",
        {"source": OTHER, "where": 1},
        set_at(np.s_[:, 1], AT_OTHER["scan_0[0]/attention:weights"]),
    ),
    "another input's position": (
        "stream[0]",
        {"source": OTHER, "where": jnp.asarray(-3)},
        set_at(np.s_[:, 1], AT_OTHER["stream[0]"]),
    ),
    "one other input": (
        "stream[0]",
        {"source": OTHER[:1]},
        set_at(np.s_[:], AT_OTHER["stream[0]"][:1]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_value_is_replaced_as_by_hand(case):
    layer, options, change = CASES[case]
    if change is None:
        change = lambda a: set_at(np.s_[:, 3], 3 * a)(a)
    expected = edited(layer, change)
    found = jv.patched(net, layer, **options)(W, IDS)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert not np.allclose(expected, by_hand(IDS)[0], atol=1e-3)


def test_several_layers_take_what_one_run_of_the_source_has():
    names = "neurons[0]", "middle[1]"
    found = jv.patched(net, names, source=OTHER, where={names[0]: 3, names[1]: 2})(W, IDS)

    def edit(at, a):
        at_position = {names[0]: 3, names[1]: 2}.get(at)
        return a if at_position is None else set_at(np.s_[:, at_position], AT_OTHER[at])(a)

    np.testing.assert_allclose(found, by_hand(IDS, edit)[0], rtol=2e-5, atol=2e-5)
    values = jv.activations(net, W, OTHER, names)
    whole, _ = by_hand(IDS, lambda at, a: AT_OTHER[at] if at in names else a)
    np.testing.assert_allclose(jv.patched(net, names, values)(W, IDS), whole, rtol=2e-5, atol=2e-5)
    # One inside the other; and a name of all turns.
    nested = jv.patched(jv.patched(net, names[0], source=OTHER), names[1], source=OTHER)
    first = by_hand(OTHER, lambda at, a: AT_OTHER[at] if at == names[0] else a)[1]
    twice, _ = by_hand(IDS, lambda at, a: first[at] if at in names else a)
    np.testing.assert_allclose(nested(W, IDS), twice, rtol=2e-5, atol=2e-5)
    every, _ = by_hand(IDS, lambda at, a: 0 * a if at.startswith("neurons") else a)
    np.testing.assert_allclose(jv.patched(net, "neurons", 0.0)(W, IDS), every, rtol=2e-5, atol=2e-5)


def test_steering_adds_a_direction():
    expected = edited("stream[0]", lambda a: a - 2.0 * VECTOR * (np.arange(TOKENS) > 1)[:, None])
    found = jv.steered(net, "stream[0]", VECTOR, -2.0, where=np.s_[2:])(W, IDS)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_steering_of_16_bits_where_promotion_is_strict():
    half = lambda w, x: jnp.tanh(x) @ w
    w, x = jnp.ones((2, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    found = jv.steered(half, "tanh_0", jnp.array([1.0, 0.0]), 3.0)(w, x)
    assert found.dtype == jnp.bfloat16
    assert found.tolist() == [[3.0]]


def test_what_is_put_there_is_an_argument_of_the_program(compiled):
    runs = []

    def counted(w, ids):
        runs.append(1)
        return net(w, ids)[:, -1]

    def explained(model):
        return jv.at_layer(jv.gradient, "middle[0]")(model, W, IDS, 1)

    explained(jv.patched(counted, "stream[0]", VECTOR, where=jnp.asarray(1)))
    explained(jv.steered(counted, "stream[0]", VECTOR, 1.0))
    before = len(compiled)
    moved = explained(jv.patched(counted, "stream[0]", 2 * VECTOR, where=jnp.asarray(2)))
    explained(jv.steered(counted, "stream[0]", 3 * VECTOR, 4.0))
    assert len(compiled) - before <= 4  # of arrays that are made, no model
    assert sum(runs) == 1
    assert not np.asarray(moved[:, 2]).any()  # what was replaced has no slope
    value = jnp.asarray(VECTOR)
    same = [jv.patched(counted, "stream[0]", value) for _ in range(2)]
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    assert same[0] != jv.patched(counted, "stream[1]", value)


def test_it_is_differentiated_and_batched_by_what_is_put_there():
    put = lambda value: jv.patched(net, "stream[0]", value, where=2)(W, IDS).sum()
    value = jnp.asarray(VECTOR)
    slope = np.asarray(jax.grad(put)(value))
    for i in (0, 5):
        step = 1e-4 * np.eye(8)[i]
        ends = [edited("stream[0]", set_at(np.s_[:, 2], VECTOR + s)).sum() for s in (step, -step)]
        np.testing.assert_allclose(slope[i], (ends[0] - ends[1]) / 2e-4, rtol=1e-4)
    at = jax.vmap(lambda i: jv.patched(net, "stream[0]", value, where=i)(W, IDS))(jnp.arange(5))
    expected = edited("stream[0]", set_at(np.s_[:, 3], VECTOR))
    np.testing.assert_allclose(at[3], expected, rtol=2e-5, atol=2e-5)
    assert np.isnan(np.asarray(at[4])).any()  # there is no position 4
    assert np.isfinite(np.asarray(at[:4])).all()


class Attends(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, name="mha")(x)


def grouped(w, x):
    q, k, v = (x @ w[name] for name in "qkv")
    q, k, v = (a.reshape(*a.shape[:2], -1, 2) for a in (q, k, v))
    z = jax.nn.dot_product_attention(q, k, v)
    return z.reshape(*z.shape[:2], -1) @ w["o"]


def one_by_one(w, x):
    def head(q, k, v):
        return jax.nn.softmax(q @ k.T) @ v

    def example(one):
        q, k, v = (jnp.einsum("td,dhk->htk", one, w[name]) for name in "qkv")
        return jnp.einsum("htk,hkd->td", jax.vmap(head)(q, k, v), w["o"])

    return jax.vmap(example)(x)


def spellings():
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    linen = Attends().init(jax.random.key(1), x)
    own = linen["params"]["mha"]["out"]
    yield Attends().apply, linen, x, "mha:heads", own["kernel"], own["bias"][None, None]
    sizes = {"q": (8, 8), "k": (8, 4), "v": (8, 4), "o": (8, 8)}  # two heads of queries a key's
    w = {
        name: jnp.asarray(np.random.default_rng(2).normal(size=s), "float32")
        for name, s in sizes.items()
    }
    yield grouped, w, x, "attention_0:heads", w["o"].reshape(4, 2, 8), 0.0
    w = {name: jnp.asarray(W["blocks"][name][0]) for name in "qkvo"}
    yield one_by_one, w, x, "attention_0:heads", w["o"], 0.0


@pytest.mark.parametrize("case", range(3), ids=["linen", "grouped", "vmap"])
def test_heads_are_what_the_output_projection_reads(case):
    apply_fn, params, x, name, out, bias = list(spellings())[case]
    z = jax.random.normal(jax.random.key(3), (3, out.shape[0], 5, out.shape[1]))
    found = jv.patched(apply_fn, name, z)(params, x)
    expected = np.einsum("nhtk,hkd->ntd", z, out) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_patched_model_has_the_layers_that_it_had():
    x = jnp.ones((1, 5, 8))
    params = Attends().init(jax.random.key(1), x)
    names = [layer.name for layer in jv.layers(Attends().apply, params, x)]
    model = jv.patched(Attends().apply, "mha/value", 2.0, where=3)
    assert [layer.name for layer in jv.layers(model, params, x)] == names
    assert (jv.activations(model, params, x, ["mha/value"])["mha/value"][:, 3] == 2.0).all()
    model = jv.patched(net, "middle[1]", 2.0, where=3)
    found = jv.activations(model, W, IDS, ["middle[0]", "middle[1]"])
    expected = by_hand(IDS)[1]["middle[0]"]
    np.testing.assert_allclose(found["middle[0]"], expected, rtol=2e-5, atol=2e-5)
    assert (found["middle[1]"][:, 3] == 2.0).all()


def test_errors_say_what_is_wrong():
    call = lambda *args, **options: jv.patched(net, *args, **options)(W, IDS)
    with pytest.raises(ValueError, match=r"^patched: no layer 'strem\[0\]'; the nearest are 'str"):
        call("strem[0]", 0.0)
    with pytest.raises(ValueError, match=r"must broadcast to \(2, 4, 8\); got \(3,\)"):
        call("stream[0]", jnp.ones(3))
    with pytest.raises(ValueError, match=r"got \(2, 4\). If it is another input, pass it as sou"):
        call("stream[0]", OTHER)
    with pytest.raises(ValueError, match=r"got 4 for its axis 1 of 4"):
        call("stream[0]", 0.0, where=4)
    with pytest.raises(ValueError, match=r"at most 2 parts"):
        call("stream[0]", 0.0, where=(0, 0, 0))
    with pytest.raises(ValueError, match=r"mask must have the first axes .* got \(4,\)"):
        call("stream[0]", 0.0, where=np.ones(TOKENS, bool))
    with pytest.raises(ValueError, match=r"source must be an input like x, \(2, 4\)"):
        call("stream[0]", source=OTHER[:, :3])
    with pytest.raises(ValueError, match=r"'scan_0\[0\]/attention'"):
        call("attention:heads", 0.0)
    for given in ({}, {"value": 0.0, "source": OTHER}):
        with pytest.raises(TypeError, match="one of value and source must be given"):
            call("stream[0]", **given)
    with pytest.raises(ValueError, match="'stream\\[1\\]' twice"):
        call(("stream", "stream[1]"), 0.0)
    with pytest.raises(ValueError, match="must have one for each of 'stream'"):
        call("stream", {"strem": 0.0})


@pytest.mark.parametrize("name", ["attention_0:head", "attention_0:scores"])
def test_parts_of_attentions_are_told(name):
    def net(w, x):
        return (jax.nn.softmax(x @ x.mT) @ x).mean(1) @ w

    with pytest.raises(ValueError, match=r"must be :heads or :weights; got 'attention_0:"):
        jv.patched(net, name, 0.0)(jnp.eye(2), jnp.ones((1, 3, 2)))
